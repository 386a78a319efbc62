//! The feeder: takes tweets from the bus, sends each as an HTTP task to the proxy, and makes its answer durable.
//!
//! The feeder, not the worker, appends to topics "results" and "malformed". So the release on trial is a plain HTTP
//! service that needs no bus; its latency, which is compared with stable's, has no bus in it; an attempt that failed on
//! the canary and was replayed on stable leaves one result, the one the user got; and the order *result durable, then
//! offset committed* is kept in one place. A worker that dies takes nothing with it but the attempt, which is made again.
//!
//! A record is done when its answer is durable: 200 in "results", 422 in "malformed". Anything else (no connection, a
//! time-out, any other status) is tried again for as long as it takes: a record is held back, never given up. Offsets
//! are committed in order, so a feeder that is killed does some records again; whoever reads results must store them by
//! tweet id.

mod progress;
mod upstream;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::backoff::{Hush, wait_after};
use crate::bus::{Bus, BusConfig, BusError, Consumer, MALFORMED, NewRecord, Position, RESULTS};
use crate::bus::{Record, TWEETS};
use crate::origin::with_origin;
use crate::server::{self, Counted, Health, Server, ServerConfig, ServerError};
use crate::telemetry::{Identity, Telemetry, chain};
use crate::tweet::{Ids, Malformed, RECORD_BYTES_MAX};
use progress::Progress;
use upstream::{Answer, Upstream};

pub(crate) use upstream::WORKER_RELEASE_HEADER;
pub use upstream::{Pin, UpstreamError};

/// The feeder's group.
pub const GROUP: &str = "feeder";

/// Tasks in flight unless told otherwise. With 20 ms a task, 64 carry 3,000 tasks a second.
pub const IN_FLIGHT_DEFAULT: usize = 64;

/// How long one attempt may take unless told otherwise: far beyond the slowest task of a sick release (0.8 s).
pub const ATTEMPT_WAIT_DEFAULT: Duration = Duration::from_secs(10);

/// How often offsets are committed: what is done again after a kill is at most what was done in this time.
const COMMIT_EVERY: Duration = Duration::from_millis(100);

/// How often the lag is looked up for the metrics.
const LAG_EVERY: Duration = Duration::from_secs(1);

/// Records taken beyond the oldest that is not done. One record may be held back for long while others go on; this
/// bounds what a kill lets be done again, and the memory for it.
const TAKEN_MAX: usize = 4_096;

/// How long tasks in flight may take once the feeder is told to stop. What is not done then is done again next time.
const STOP_WAIT_MAX: Duration = Duration::from_secs(5);

/// What the feeder does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeederConfig {
    /// Where from, and where the answers go.
    pub bus: BusConfig,
    /// The proxy, such as `http://127.0.0.1:8080`; tasks go to its `/tasks`.
    pub proxy: String,
    /// Most tasks in flight, at least 1.
    pub in_flight_max: usize,
    /// How long one attempt may take.
    pub attempt_wait_max: Duration,
    /// Sends every task to one release, whatever the weights.
    pub pin: Option<Pin>,
    /// Where to show the counts.
    pub server: ServerConfig,
    /// Labels of the metrics.
    pub identity: Identity,
}

/// What the feeder did since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Fed {
    /// Tasks answered with 200 whose result is durable.
    pub tasks_completed: u64,
    /// Records answered with 422 whose dead letter is durable.
    pub tasks_malformed: u64,
    /// Attempts sent.
    pub attempts: u64,
    /// Attempts that ended in neither 200 nor 422.
    pub attempts_failed: u64,
    /// Records taken from the bus and not done yet.
    pub in_flight: u64,
    /// Records not committed yet, at the last look (once a second); `/counts` looks anew.
    pub lag: u64,
}

/// Why the feeder ended early.
#[derive(Debug, thiserror::Error)]
pub enum FeederError {
    /// The bus failed in a way that trying again does not mend.
    #[error("the bus failed")]
    Bus(#[from] BusError),
    /// No client could be made for the proxy.
    #[error("the proxy cannot be used")]
    Upstream(#[from] UpstreamError),
    /// The process cannot be reached.
    #[error("the feeder's server failed")]
    Server(#[from] ServerError),
    /// A defect of ours.
    #[error("a task of the feeder panicked")]
    Panicked(#[from] JoinError),
}

/// Feeds until `shutdown`, then lets what is in flight finish and commits it.
///
/// # Errors
/// When the bus cannot be opened or fails for good. A bus or a proxy that is away for a while is waited for.
pub async fn run(config: FeederConfig, shutdown: CancellationToken) -> Result<Fed, FeederError> {
    let bus = config.bus.open().await?;
    let server = Server::bind(&config.server).await?;
    let feeder = Feeder::new(bus, &config)?;
    info!(listen = %server.address(), proxy = config.proxy, "feed: started");
    let routes = server::routes(feeder.health());
    let fed = server::beside(server, routes, feeder.run(shutdown)).await?;
    info!(?fed, "feed: ended");
    Ok(fed)
}

/// A dead letter: a record that is no tweet, as topic "malformed" keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The topic the record stands in.
    pub topic: String,
    /// Where in that topic.
    #[serde(flatten)]
    pub position: Position,
    /// The stable word for what is wrong, such as `not_json`.
    pub code: String,
    /// What is wrong, in words.
    pub reason: String,
    /// The release that refused it, if its answer said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// The record's bytes, unchanged, in base64: they need not be text.
    pub original_base64: String,
}

/// The way from the bus through the proxy and back.
pub struct Feeder {
    bus: Arc<dyn Bus>,
    in_flight_max: usize,
    delivery: Arc<Delivery>,
    counts: Arc<Counts>,
    telemetry: Arc<Telemetry>,
}

impl fmt::Debug for Feeder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feeder")
            .field("bus", &self.bus)
            .field("fed", &self.counts.now())
            .finish_non_exhaustive()
    }
}

impl Feeder {
    /// A feeder from `bus` to the proxy that `config` names; its bus is not looked at.
    ///
    /// # Errors
    /// When the proxy's address is none.
    pub fn new(bus: Arc<dyn Bus>, config: &FeederConfig) -> Result<Self, UpstreamError> {
        let telemetry = Telemetry::new(&config.identity);
        let upstream = Upstream::new(&config.proxy, config.attempt_wait_max, config.pin)?;
        let counts = Arc::new(Counts::new(&telemetry, bus.clone()));
        let delivery = Delivery {
            bus: bus.clone(),
            upstream,
            counts: counts.clone(),
            hush: Hush::default(),
        };
        Ok(Self {
            bus,
            in_flight_max: config.in_flight_max.max(1),
            delivery: Arc::new(delivery),
            counts,
            telemetry: Arc::new(telemetry),
        })
    }

    /// What was done so far; may be asked while it runs.
    #[must_use]
    pub fn fed(&self) -> Fed {
        self.counts.now()
    }

    fn health(&self) -> Health {
        Health {
            telemetry: self.telemetry.clone(),
            ready: Arc::new(AtomicBool::new(true)),
            counted: self.counts.clone(),
        }
    }

    /// Feeds; see [`run`].
    ///
    /// # Errors
    /// As [`run`].
    pub async fn run(&self, shutdown: CancellationToken) -> Result<Fed, FeederError> {
        let mut consumer = self.bus.consumer(TWEETS, GROUP).await?;
        let mut progress = Progress::default();
        let mut tasks = JoinSet::new();
        let mut commit = interval(COMMIT_EVERY);
        commit.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = interval(LAG_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failures = 0;
        let mut resume_at = Instant::now();
        while !shutdown.is_cancelled() {
            let room = (self.in_flight_max - tasks.len()).min(TAKEN_MAX - progress.taken());
            let next = async {
                // Empty while the bus is well: the wait after an error must not be lost with the other branches.
                sleep_until(resume_at).await;
                consumer.next(room).await
            };
            tokio::select! {
                () = shutdown.cancelled() => {}
                Some(ended) = tasks.join_next() => if let Some(done) = ended?? {
                    progress.done(done);
                },
                taken = next, if room > 0 => match taken {
                    Ok(records) => {
                        failures = 0;
                        for record in records {
                            progress.take(record.position);
                            tasks.spawn(self.delivery.clone().deliver(record, shutdown.clone()));
                        }
                    }
                    Err(error) if error.is_transient() => {
                        failures += 1;
                        warn!(error = chain(&error), failures, "feed: the bus gave nothing, trying again");
                        resume_at = Instant::now() + wait_after(failures, GROUP);
                    }
                    Err(error) => return Err(error.into()),
                },
                _ = commit.tick() => save(consumer.as_mut(), &mut progress).await?,
                _ = look.tick() => self.counts.look().await,
            }
            self.counts.in_flight.set(progress.unfinished() as i64);
        }
        let stopping = Instant::now() + STOP_WAIT_MAX;
        loop {
            tokio::select! {
                ended = tasks.join_next() => match ended {
                    Some(ended) => if let Some(done) = ended?? {
                        progress.done(done);
                    },
                    None => break,
                },
                () = sleep_until(stopping) => break,
            }
        }
        tasks.shutdown().await;
        self.counts.in_flight.set(0);
        save(consumer.as_mut(), &mut progress).await?;
        Ok(self.counts.now())
    }
}

/// Commits what is done. What cannot be committed now is committed with the next.
async fn save(consumer: &mut dyn Consumer, progress: &mut Progress) -> Result<(), BusError> {
    let next = progress.to_commit();
    match consumer.commit(&next).await {
        Ok(()) => {
            progress.committed(&next);
            Ok(())
        }
        Err(error) if error.is_transient() => {
            warn!(
                error = chain(&error),
                "feed: the bus did not take the offsets, they go with the next"
            );
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// What a task in flight needs.
struct Delivery {
    bus: Arc<dyn Bus>,
    upstream: Upstream,
    counts: Arc<Counts>,
    hush: Hush,
}

impl Delivery {
    /// Sends one record until it is answered, and the answer to the bus until it is durable; then the record is done.
    /// `None` if an attempt failed after `stop`: the record is left to whoever goes on.
    async fn deliver(
        self: Arc<Self>,
        record: Record,
        stop: CancellationToken,
    ) -> Result<Option<Position>, BusError> {
        let ids = Ids::of(&record.value);
        // A record without an id is known by its place, which stays the same however often it is read.
        let key = ids.tweet.unwrap_or_else(|| record.position.to_string());
        let Some(answer) = self.answer(&key, &record, &stop).await else {
            return Ok(None);
        };
        match answer {
            Answer::Done(result) => {
                let result = with_origin(result, record.position.into());
                self.append(RESULTS, &key, result).await?;
                self.counts.completed.inc();
            }
            Answer::Malformed {
                code,
                reason,
                release,
            } => {
                let letter = DeadLetter {
                    topic: TWEETS.to_owned(),
                    position: record.position,
                    code,
                    reason,
                    release,
                    original_base64: STANDARD.encode(original(&record)),
                };
                let place = record.position.to_string();
                let letter = Bytes::from(json!(letter).to_string());
                self.append(MALFORMED, &place, letter).await?;
                self.counts.malformed.inc();
            }
        }
        Ok(Some(record.position))
    }

    async fn answer(&self, key: &str, record: &Record, stop: &CancellationToken) -> Option<Answer> {
        if record.value.len() > RECORD_BYTES_MAX {
            let bytes = record.value.len();
            return Some(Answer::Malformed {
                code: Malformed::TooLarge.code().to_owned(),
                reason: format!(
                    "{}: it has {bytes}, of which the first are kept",
                    Malformed::TooLarge
                ),
                // No release was asked.
                release: None,
            });
        }
        let mut failures = 0;
        loop {
            let sent = self.upstream.send(key, record.value.clone()).await;
            let outcome = sent.as_ref().map_or_else(|e| e.outcome(), Answer::outcome);
            self.counts.attempts.with_label_values(&[outcome]).inc();
            match sent {
                Ok(answer) => return Some(answer),
                Err(error) => {
                    failures += 1;
                    if self.hush.may_speak() {
                        let error = chain(&error);
                        warn!(task = key, position = %record.position, failures, error, "feed: a task failed, trying again");
                    }
                    tokio::select! {
                        () = stop.cancelled() => return None,
                        () = sleep(wait_after(failures, key)) => {}
                    }
                }
            }
        }
    }

    async fn append(&self, topic: &str, key: &str, value: Bytes) -> Result<(), BusError> {
        let mut failures = 0;
        loop {
            let record = NewRecord {
                key: Some(Bytes::copy_from_slice(key.as_bytes())),
                value: value.clone(),
            };
            match self.bus.produce(topic, record).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_transient() => {
                    failures += 1;
                    if self.hush.may_speak() {
                        warn!(
                            task = key,
                            topic,
                            error = chain(&error),
                            failures,
                            "feed: the bus did not take an answer, trying again"
                        );
                    }
                    sleep(wait_after(failures, key)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// The bytes that a dead letter keeps: all, save of a record that another producer made larger than the bus takes here.
fn original(record: &Record) -> &[u8] {
    &record.value[..record.value.len().min(RECORD_BYTES_MAX)]
}

/// The feeder's counts, live.
struct Counts {
    bus: Arc<dyn Bus>,
    completed: IntCounter,
    malformed: IntCounter,
    attempts: IntCounterVec,
    in_flight: IntGauge,
    lag: IntGauge,
}

impl Counts {
    fn new(telemetry: &Telemetry, bus: Arc<dyn Bus>) -> Self {
        let labels = BTreeMap::from([("topic", TWEETS), ("group", GROUP)]);
        let labels = labels
            .into_iter()
            .map(|(k, v)| (k.to_owned(), v.to_owned()));
        let lag = Opts::new(
            "pipeline_consumer_lag",
            "Records of the topic that the group has not committed yet.",
        );
        let done = telemetry.counters(
            "pipeline_feeder_tasks_total",
            "Tasks whose answer is durable, by outcome.",
            &["outcome"],
        );
        Self {
            bus,
            completed: done.with_label_values(&["completed"]),
            malformed: done.with_label_values(&["malformed"]),
            attempts: telemetry.counters(
                "pipeline_feeder_attempts_total",
                "Requests sent to the proxy, by outcome.",
                &["outcome"],
            ),
            in_flight: telemetry.gauge(Opts::new(
                "pipeline_feeder_in_flight",
                "Tasks taken from the bus and not done yet.",
            )),
            lag: telemetry.gauge(lag.const_labels(labels.collect())),
        }
    }

    fn now(&self) -> Fed {
        let attempts = |outcomes: &[&str]| -> u64 {
            let counter = |outcome: &&str| self.attempts.with_label_values(&[*outcome]).get();
            outcomes.iter().map(counter).sum()
        };
        let answered = attempts(upstream::ANSWERED);
        let failed = attempts(upstream::FAILED);
        Fed {
            tasks_completed: self.completed.get(),
            tasks_malformed: self.malformed.get(),
            attempts: answered + failed,
            attempts_failed: failed,
            in_flight: self.in_flight.get().max(0).cast_unsigned(),
            lag: self.lag.get().max(0).cast_unsigned(),
        }
    }

    /// Looks the lag up. While the bus does not answer, the last one stands.
    async fn look(&self) {
        match self.bus.lag(TWEETS, GROUP).await {
            Ok(lag) => self.lag.set(lag.min(i64::MAX as u64).cast_signed()),
            Err(error) => warn!(error = chain(&error), "feed: the lag is not known"),
        }
    }
}

#[async_trait]
impl Counted for Counts {
    async fn counts(&self) -> Value {
        self.look().await;
        json!(self.now())
    }
}
