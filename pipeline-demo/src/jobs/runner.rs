//! The loop of a node: waits until a job is due, takes its lock, runs it, writes down how it went.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use friday::clock::{Clock, SystemClock};
use futures::future::join_all;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::metrics::Metrics;
use super::spec::JobSpec;
use super::store::{Begun, Lock, Outcome};
use super::tasks::{TaskError, Tasks, Work};
use crate::backoff::wait_after;
use crate::sink::StorageError;
use crate::telemetry::{Identity, Telemetry, chain};

/// Longest sleep before the clock is looked at again: clocks are set, machines are suspended.
const SLEEP_MAX: Duration = Duration::from_secs(10);

/// How often a node looks whether a job that another one runs has been left. With the lease of SQLite, the longest way
/// to a take-over is 15 s and this.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often a lock is renewed: three times in its lease.
const RENEW_EVERY: Duration = Duration::from_secs(5);

/// How long the answer may take. With the time between two renewals it is 13 s: less than the lease of SQLite, and than
/// the 25 s after which PostgreSQL gives a lock away whose holder is cut off.
const RENEW_WAIT_MAX: Duration = Duration::from_secs(8);

/// How late a run may begin, without catching up, before it counts as missed: a restart, or a take-over.
const GRACE_MS: i64 = 60_000;

/// Attempts at one run. A job that takes its node down with it shall not take down one after the other.
const ATTEMPTS_MAX: i64 = 3;

/// Longest text kept of an error.
const DETAIL_CHARS_MAX: usize = 1_000;

/// A node's jobs.
pub struct Runner {
    tasks: Arc<Tasks>,
    jobs: Vec<JobSpec>,
    node: String,
    clock: Arc<dyn Clock>,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) metrics: Arc<Metrics>,
}

impl fmt::Debug for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runner")
            .field("node", &self.node)
            .field("jobs", &self.jobs)
            .finish_non_exhaustive()
    }
}

impl Runner {
    /// A node of this name, unlike that of any other process, with these jobs.
    #[must_use]
    pub fn new(tasks: Tasks, jobs: Vec<JobSpec>, node: &str, identity: &Identity) -> Self {
        let telemetry = Arc::new(Telemetry::new(identity));
        Self {
            tasks: Arc::new(tasks),
            jobs,
            node: node.to_owned(),
            clock: SystemClock::new(),
            metrics: Arc::new(Metrics::new(&telemetry)),
            telemetry,
        }
    }

    /// The metrics as they are scraped.
    #[must_use]
    pub fn metrics(&self) -> String {
        self.telemetry.text()
    }

    /// Runs jobs until `stop`; a run in the middle is left, for another node or the next start.
    pub async fn run(&self, stop: &CancellationToken) {
        let jobs = self.jobs.iter().map(|job| self.follow(job, stop));
        join_all(jobs).await;
    }

    /// One job, again and again.
    async fn follow(&self, job: &JobSpec, stop: &CancellationToken) {
        let mut failures = 0;
        while !stop.is_cancelled() {
            let wait = match self.look(job, stop).await {
                Ok(wait) => {
                    failures = 0;
                    wait
                }
                Err(error) => {
                    failures += 1;
                    warn!(
                        job = job.name,
                        failures,
                        error = chain(&error),
                        "jobs: the store is away, trying again"
                    );
                    wait_after(failures, &job.name)
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// Runs what is due, if it is this node's turn; then says how long to wait.
    async fn look(
        &self,
        job: &JobSpec,
        stop: &CancellationToken,
    ) -> Result<Duration, StorageError> {
        let store = self.tasks.store();
        let now_ms = self.now_ms();
        let last = store.last_due(&job.name, now_ms).await?;
        if job.schedule.due(&job.name, last, now_ms).is_empty() {
            return Ok(self.until_due(job));
        }
        let Some(mut lock) = store.lock(&job.name, &self.node, now_ms).await? else {
            return Ok(LOOK_EVERY);
        };
        let ran = self.run_due(job, &mut *lock, stop).await;
        // Also after an error: a lease that is kept would keep everybody away.
        let released = lock.release().await;
        ran?;
        released?;
        Ok(self.until_due(job))
    }

    fn until_due(&self, job: &JobSpec) -> Duration {
        let now_ms = self.now_ms();
        match job.schedule.next(&job.name, now_ms) {
            Some(next_ms) => {
                Duration::from_millis((next_ms - now_ms).max(0).cast_unsigned()).min(SLEEP_MAX)
            }
            None => SLEEP_MAX,
        }
    }

    /// Runs every due time that is not dealt with. The lock is ours.
    async fn run_due(
        &self,
        job: &JobSpec,
        lock: &mut dyn Lock,
        stop: &CancellationToken,
    ) -> Result<(), StorageError> {
        let store = self.tasks.store();
        // Another node may have been quicker between the look and the lock.
        let last = store.last_due(&job.name, self.now_ms()).await?;
        for due_ms in job.schedule.due(&job.name, last, self.now_ms()) {
            if stop.is_cancelled() {
                break;
            }
            let now_ms = self.now_ms();
            let before = store.attempts(&job.name, due_ms, now_ms).await?;
            let begun = Begun {
                job: job.name.clone(),
                due_ms,
                attempt: before + 1,
                node: self.node.clone(),
                started_ms: now_ms,
            };
            let is_missed = !job.catch_up && before == 0 && now_ms - due_ms > GRACE_MS;
            if is_missed {
                let detail = "no node was there when it was due";
                self.skip(&begun, Outcome::Missed, detail).await?;
            } else if before >= ATTEMPTS_MAX {
                let detail = "given up: no node came to its end";
                self.skip(&begun, Outcome::Failed, detail).await?;
            } else if !self.run_once(job, &begun, lock, stop).await? {
                break;
            }
        }
        Ok(())
    }

    async fn skip(&self, run: &Begun, outcome: Outcome, detail: &str) -> Result<(), StorageError> {
        let store = self.tasks.store();
        store.begin(run).await?;
        store.end(run, run.started_ms, outcome, detail).await?;
        self.metrics.ended(&run.job, outcome, 0, run.started_ms);
        warn!(
            job = run.job,
            due_ms = run.due_ms,
            detail,
            "jobs: a run was skipped"
        );
        Ok(())
    }

    /// Runs it within its deadline, as long as the lock is held. False if it is to be left to others.
    async fn run_once(
        &self,
        job: &JobSpec,
        run: &Begun,
        lock: &mut dyn Lock,
        stop: &CancellationToken,
    ) -> Result<bool, StorageError> {
        let store = self.tasks.store();
        store.begin(run).await?;
        self.metrics.began(&job.name, run.started_ms - run.due_ms);
        let work = timeout(job.deadline, self.tasks.run(job.task, run.started_ms));
        let (outcome, detail) = tokio::select! {
            worked = work => match worked {
                Ok(Ok(Work { detail, reconciled })) => {
                    if !reconciled.is_empty() {
                        self.metrics.reconciled(&reconciled);
                    }
                    (Outcome::Done, detail)
                }
                Ok(Err(error)) => (Outcome::Failed, words(&error)),
                Err(_) => (Outcome::Deadline, format!("not done within {:?}", job.deadline)),
            },
            () = self.lost(lock) => (Outcome::Lost, "another node may have taken over".to_owned()),
            () = stop.cancelled() => (Outcome::Stopped, "the node was told to stop".to_owned()),
        };
        let ended_ms = self.now_ms();
        let took_ms = ended_ms - run.started_ms;
        store.end(run, ended_ms, outcome, &detail).await?;
        self.metrics.ended(&job.name, outcome, took_ms, ended_ms);
        let delay_ms = run.started_ms - run.due_ms;
        match outcome {
            Outcome::Done => info!(job = job.name, delay_ms, took_ms, detail, "jobs: done"),
            Outcome::Failed
            | Outcome::Deadline
            | Outcome::Lost
            | Outcome::Stopped
            | Outcome::Missed => {
                warn!(
                    job = job.name,
                    delay_ms,
                    took_ms,
                    outcome = outcome.name(),
                    detail,
                    "jobs: not done"
                );
            }
        }
        Ok(outcome.is_final())
    }

    /// Renews the lock until it is lost.
    async fn lost(&self, lock: &mut dyn Lock) {
        let mut renew = interval(RENEW_EVERY);
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            renew.tick().await;
            match timeout(RENEW_WAIT_MAX, lock.held(self.now_ms())).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => return,
                Ok(Err(error)) => {
                    warn!(error = chain(&error), "jobs: the lock could not be renewed");
                    return;
                }
                Err(_) => {
                    warn!("jobs: the store does not say whether the lock is held");
                    return;
                }
            }
        }
    }

    fn now_ms(&self) -> i64 {
        self.clock.now().as_millisecond()
    }
}

/// An error with all its causes, not too long.
fn words(error: &TaskError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text.chars()
        .filter(|c| *c != '\0')
        .take(DETAIL_CHARS_MAX)
        .collect()
}
