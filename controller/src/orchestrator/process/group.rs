//! One group of tasks: what is wanted, what is there, and what to do about the difference. Pure: no process is touched
//! here, and the time is an argument.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

use rollout::{Duration, Release};

use super::identity::{Identity, Sample};
use super::record::{GroupRecord, TaskRecord};
use crate::orchestrator::{self, RESTART_WINDOW};

/// The wait before the first restart of a task; each further one waits twice as long.
const BACKOFF_MIN: Duration = Duration::from_millis(200);

/// The longest wait before a restart: a task that fails at once costs the machine a start in five seconds.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// A task that was ready for so long had started well: its end is a new trouble, and the wait begins anew.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);

/// So many ready checks in a row must fail before a ready task gets no more requests: one that refuses is out within a
/// second, one that hangs within four, and one slow answer takes none out.
const MISSES_MAX: u32 = 3;

/// The most restarts that are remembered. A full group that fails as fast as the backoff lets it makes fewer than 60
/// for each task in the window; who counts wants to know "many".
const RESTARTS_MAX: usize = 1000;

/// So often in a row a task is started on another port because somebody else took the one that was chosen for it.
const PORT_RETRIES_MAX: u32 = 3;

/// How long a task may take to go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// From "no new requests" to SIGTERM: routing tables need to arrive, requests in flight to end.
    pub(super) drain: Duration,
    /// From SIGTERM to SIGKILL.
    pub(super) stop: Duration,
}

/// Where a task is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    /// It does not answer the ready check, or not yet.
    Unready,
    /// It answers, but for the last few `misses`.
    Ready { since: Duration, misses: u32 },
    /// It used more than it may and was ended for it.
    OverLimit { reason: String },
    /// It shall go, and finishes what it has.
    Draining { until: Duration },
    /// It was asked to stop.
    Stopping { until: Duration },
    /// It was made to stop.
    Killed,
}

/// One task.
#[derive(Debug, Clone)]
pub(super) struct Task {
    pub(super) id: String,
    pub(super) slot: u32,
    pub(super) release: Release,
    pub(super) port: u16,
    /// `None` only between the saving of the intent and the start.
    pub(super) process: Option<Identity>,
    pub(super) phase: Phase,
    /// Whether it may have had requests.
    pub(super) was_ready: bool,
    /// Whether it was started by an earlier controller: not our child, so its end is seen and not told.
    pub(super) adopted: bool,
    /// Whether its process has ended, and the end is being looked into.
    pub(super) has_ended: bool,
    pub(super) sample: Sample,
}

impl Task {
    /// A task that is about to be started.
    pub(super) fn intended(id: String, slot: u32, release: Release, port: u16) -> Self {
        Self {
            id,
            slot,
            release,
            port,
            process: None,
            phase: Phase::Unready,
            was_ready: false,
            adopted: false,
            has_ended: false,
            sample: Sample::default(),
        }
    }

    /// A task that an earlier controller started, and that still runs as `process`. It may have had requests; whether
    /// it may now is to be asked.
    pub(super) fn adopted(
        record: &TaskRecord,
        process: Identity,
        now: Duration,
        limits: Limits,
    ) -> Self {
        let mut task = Self {
            process: Some(process),
            was_ready: true,
            adopted: true,
            sample: process.sample().unwrap_or_default(),
            ..Self::intended(
                record.id.clone(),
                record.slot,
                record.release.clone(),
                record.port,
            )
        };
        if record.leaving {
            task.leave(now, limits);
        }
        task
    }

    /// Whether it was asked to go.
    pub(super) fn is_leaving(&self) -> bool {
        matches!(
            self.phase,
            Phase::Draining { .. } | Phase::Stopping { .. } | Phase::Killed
        )
    }

    /// Whether it may get requests.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Ready { .. }) && !self.has_ended
    }

    /// Whether its ready check is of interest.
    pub(super) fn is_checked(&self) -> bool {
        let lives = self.process.is_some() && !self.has_ended;
        lives && matches!(self.phase, Phase::Unready | Phase::Ready { .. })
    }

    fn checked(&mut self, answered: bool, now: Duration) {
        match (&mut self.phase, answered) {
            (Phase::Unready, true) => {
                self.phase = Phase::Ready {
                    since: now,
                    misses: 0,
                };
                self.was_ready = true;
            }
            (Phase::Ready { misses, .. }, true) => *misses = 0,
            (Phase::Ready { misses, .. }, false) => {
                *misses += 1;
                if *misses >= MISSES_MAX {
                    self.phase = Phase::Unready;
                }
            }
            (Phase::Unready, false)
            | (
                Phase::OverLimit { .. }
                | Phase::Draining { .. }
                | Phase::Stopping { .. }
                | Phase::Killed,
                _,
            ) => {}
        }
    }

    fn leave(&mut self, now: Duration, limits: Limits) {
        // Nobody sends requests to a task that never was ready: it can be stopped at once.
        let drain = if self.was_ready {
            limits.drain
        } else {
            Duration::ZERO
        };
        self.phase = Phase::Draining { until: now + drain };
    }
}

/// What to do with processes, in this order, once what was decided is saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Start a task of the wanted release in this slot.
    Start { slot: u32 },
    /// Send SIGTERM.
    Terminate {
        task: String,
        process: Option<Identity>,
    },
    /// Send SIGKILL.
    Kill {
        task: String,
        process: Option<Identity>,
    },
}

/// Why a process ended that nobody had asked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    /// In words.
    pub(super) words: String,
    /// Whether somebody else has the port that was chosen for it: nobody's fault, and cured by another port.
    pub(super) port_taken: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Backoff {
    failures: u32,
    port_retries: u32,
    not_before: Duration,
}

/// One group.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) release: Release,
    pub(super) replicas: u32,
    pub(super) removing: bool,
    pub(super) tasks: Vec<Task>,
    /// When each restart that counts is forgotten, the earliest first.
    forget_at: VecDeque<Duration>,
    trouble: Option<String>,
    backoff: BTreeMap<u32, Backoff>,
}

impl Group {
    /// A group without tasks, which is to run `replicas` tasks of `release`.
    pub(super) fn new(release: Release, replicas: u32) -> Self {
        Self {
            release,
            replicas,
            removing: false,
            tasks: Vec::new(),
            forget_at: VecDeque::new(),
            trouble: None,
            backoff: BTreeMap::new(),
        }
    }

    /// The group of a record. Its tasks are not in it: whether they still are there is to be seen.
    pub(super) fn restored(record: &GroupRecord, now: Duration) -> Self {
        let forget_at = record
            .restarts_remembered_ms
            .iter()
            .map(|ms| now + Duration::from_millis(*ms));
        Self {
            removing: record.removing,
            forget_at: forget_at.take(RESTARTS_MAX).collect(),
            trouble: record.trouble.clone(),
            ..Self::new(record.release.clone(), record.replicas)
        }
    }

    /// What to save of it.
    pub(super) fn record(&self, now: Duration) -> GroupRecord {
        let task = |task: &Task| TaskRecord {
            id: task.id.clone(),
            slot: task.slot,
            release: task.release.clone(),
            port: task.port,
            process: task.process,
            leaving: task.is_leaving(),
        };
        let remembered = self
            .forget_at
            .iter()
            .map(|at| at.saturating_sub(now).as_millis());
        GroupRecord {
            release: self.release.clone(),
            replicas: self.replicas,
            removing: self.removing,
            tasks: self.tasks.iter().map(task).collect(),
            restarts_remembered_ms: remembered.filter_map(|ms| u64::try_from(ms).ok()).collect(),
            trouble: self.trouble.clone(),
        }
    }

    /// Takes a wish. Another release begins with a clean slate: its predecessor's troubles say nothing of it.
    pub(super) fn want(&mut self, release: &Release, replicas: u32) {
        if release.digest != self.release.digest {
            self.forget_at.clear();
            self.trouble = None;
            self.backoff.clear();
        }
        self.release = release.clone();
        self.replicas = replicas;
        self.removing = false;
    }

    /// Whether it is on its way out and has nothing left.
    pub(super) fn is_gone(&self) -> bool {
        self.removing && self.tasks.is_empty()
    }

    /// Decides who goes and who is to be started. `ending`: everything goes, whatever is wanted.
    pub(super) fn next(&mut self, now: Duration, limits: Limits, ending: bool) -> Vec<Action> {
        let wanted = if ending || self.removing {
            0
        } else {
            self.replicas as usize
        };
        self.send_away(wanted, now, limits);

        let mut actions = Vec::new();
        let present =
            |task: &&Task| !task.is_leaving() && task.release.digest == self.release.digest;
        let missing = wanted.saturating_sub(self.tasks.iter().filter(present).count());
        let slots = 1..=u32::try_from(wanted).unwrap_or(u32::MAX);
        let is_free = |slot: &u32| {
            let rests = self
                .backoff
                .get(slot)
                .is_some_and(|backoff| now < backoff.not_before);
            !rests
                && !self
                    .tasks
                    .iter()
                    .filter(present)
                    .any(|task| task.slot == *slot)
        };
        actions.extend(
            slots
                .filter(is_free)
                .take(missing)
                .map(|slot| Action::Start { slot }),
        );
        actions.extend(
            self.tasks
                .iter_mut()
                .filter_map(|task| stop(task, now, limits)),
        );
        actions
    }

    /// Start-first: tasks of an earlier release stay until all that is wanted of the new one is ready. Of the wanted
    /// release, what is too many goes: first what serves nobody, then the highest slot.
    fn send_away(&mut self, wanted: usize, now: Duration, limits: Limits) {
        let digest = self.release.digest.clone();
        let is_wanted = |task: &Task| task.release.digest == digest;
        let ready = self
            .tasks
            .iter()
            .filter(|task| is_wanted(task) && task.is_ready())
            .count();
        let mut staying = Vec::new();
        for task in self.tasks.iter_mut().filter(|task| !task.is_leaving()) {
            if is_wanted(task) {
                staying.push(task);
            } else if ready >= wanted {
                task.leave(now, limits);
            }
        }
        staying.sort_by_key(|task| (Reverse(task.is_ready()), task.slot));
        for task in staying.into_iter().skip(wanted) {
            task.leave(now, limits);
        }
    }

    /// A ready check's answer.
    pub(super) fn checked(&mut self, id: &str, answered: bool, now: Duration) {
        if let Some(task) = self.task(id) {
            task.checked(answered, now);
        }
    }

    /// A task's process has ended, or could not be started: the task goes. Tells whether that counts as a restart.
    pub(super) fn ended(&mut self, id: &str, end: End, now: Duration) -> bool {
        let Some(place) = self.tasks.iter().position(|task| task.id == id) else {
            return false;
        };
        let task = self.tasks.remove(place);
        // What an earlier release does while it waits to be replaced is not this release's trouble.
        if task.is_leaving() || task.release.digest != self.release.digest {
            return false;
        }
        let backoff = self.backoff.entry(task.slot).or_default();
        if end.port_taken && !task.was_ready && backoff.port_retries < PORT_RETRIES_MAX {
            backoff.port_retries += 1;
            return false;
        }
        if let Phase::Ready { since, .. } = task.phase
            && now.saturating_sub(since) >= HEALTHY_AFTER
        {
            *backoff = Backoff::default();
        }
        backoff.failures += 1;
        backoff.not_before = now + delay(backoff.failures);
        let words = match task.phase {
            Phase::OverLimit { reason } => reason,
            Phase::Unready
            | Phase::Ready { .. }
            | Phase::Draining { .. }
            | Phase::Stopping { .. }
            | Phase::Killed => end.words,
        };
        self.restarted(words, now);
        true
    }

    /// Counts an end that nobody asked for.
    pub(super) fn restarted(&mut self, words: String, now: Duration) {
        self.trouble = Some(words);
        self.forget(now);
        if self.forget_at.len() == RESTARTS_MAX {
            self.forget_at.pop_front();
        }
        self.forget_at.push_back(now + RESTART_WINDOW);
    }

    /// Notes why nothing could be started in `slot`, and starts nothing there for `pause`.
    pub(super) fn rest(&mut self, slot: u32, words: String, pause: Duration, now: Duration) {
        self.trouble = Some(words);
        self.backoff.entry(slot).or_default().not_before = now + pause;
    }

    /// The task with this id.
    pub(super) fn task(&mut self, id: &str) -> Option<&mut Task> {
        self.tasks.iter_mut().find(|task| task.id == id)
    }

    fn forget(&mut self, now: Duration) {
        while self.forget_at.front().is_some_and(|at| *at <= now) {
            self.forget_at.pop_front();
        }
    }

    /// The group as others see it.
    pub(super) fn observed(
        &mut self,
        now: Duration,
        hostname: &str,
        memory_bytes_max: Option<u64>,
    ) -> orchestrator::Group {
        self.forget(now);
        let task = |task: &Task| orchestrator::Task {
            id: task.id.clone(),
            release: task.release.id.clone(),
            endpoint: format!("127.0.0.1:{}", task.port)
                .parse()
                .expect("an address and a port are an endpoint"),
            node: node(hostname, task.slot),
            ready: task.is_ready(),
            memory_bytes: task.sample.memory_bytes,
            memory_bytes_max,
            cpu: task.sample.cpu,
        };
        orchestrator::Group {
            release: self.release.clone(),
            replicas: if self.removing { 0 } else { self.replicas },
            tasks: self.tasks.iter().map(task).collect(),
            restarts: u32::try_from(self.forget_at.len()).unwrap_or(u32::MAX),
            trouble: self.trouble.clone(),
        }
    }
}

/// Each slot of a group stands for a node, so that one machine can show what several would.
pub(super) fn node(hostname: &str, slot: u32) -> String {
    format!("{hostname}-{slot}")
}

fn stop(task: &mut Task, now: Duration, limits: Limits) -> Option<Action> {
    let (id, process) = (task.id.clone(), task.process);
    match task.phase {
        Phase::Draining { until } if now >= until => {
            task.phase = Phase::Stopping {
                until: now + limits.stop,
            };
            Some(Action::Terminate { task: id, process })
        }
        Phase::Stopping { until } if now >= until => {
            task.phase = Phase::Killed;
            Some(Action::Kill { task: id, process })
        }
        Phase::Unready
        | Phase::Ready { .. }
        | Phase::OverLimit { .. }
        | Phase::Draining { .. }
        | Phase::Stopping { .. }
        | Phase::Killed => None,
    }
}

fn delay(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    BACKOFF_MIN.saturating_mul(1 << doublings).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        drain: Duration::from_secs(2),
        stop: Duration::from_secs(10),
    };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn release(digit: char) -> Release {
        Release::new(
            "worker:latest",
            format!("sha256:{}", String::from(digit).repeat(64)),
            None,
        )
    }

    fn crash() -> End {
        End {
            words: "exited with code 1".to_owned(),
            port_taken: false,
        }
    }

    /// Carries out starts, as the supervisor would; ready at once if told so. Returns the other actions.
    fn run(group: &mut Group, now: Duration, ready: bool) -> Vec<Action> {
        let mut others = Vec::new();
        for action in group.next(now, LIMITS, false) {
            if let Action::Start { slot } = action {
                let id = format!("{}-{slot}-{now:?}", group.release.id);
                let mut task = Task::intended(id, slot, group.release.clone(), 1000);
                task.process = Some(Identity {
                    pid: 1,
                    start_ticks: u64::MAX,
                });
                if ready {
                    task.checked(true, now);
                }
                group.tasks.push(task);
            } else {
                others.push(action);
            }
        }
        others
    }

    fn ready(group: &Group, digit: char) -> usize {
        group
            .tasks
            .iter()
            .filter(|task| task.is_ready() && task.release == release(digit))
            .count()
    }

    #[test]
    fn an_update_starts_first_and_keeps_the_old_until_all_the_new_are_ready() {
        let mut group = Group::new(release('a'), 2);
        run(&mut group, at(0), true);
        group.want(&release('b'), 2);
        run(&mut group, at(1), false);
        assert_eq!((group.tasks.len(), ready(&group, 'a')), (4, 2));

        let new: Vec<String> = group.tasks[2..]
            .iter()
            .map(|task| task.id.clone())
            .collect();
        group.checked(&new[0], true, at(2));
        run(&mut group, at(2), false);
        assert_eq!(ready(&group, 'a'), 2, "one of two is not enough");

        group.checked(&new[1], true, at(3));
        assert_eq!(
            run(&mut group, at(3), false),
            [],
            "first they get no more requests, nothing else"
        );
        assert_eq!((ready(&group, 'a'), ready(&group, 'b')), (0, 2));
        assert_eq!(run(&mut group, at(4), false), [], "then they drain");
        assert!(matches!(
            run(&mut group, at(5), false)[..],
            [Action::Terminate { .. }, Action::Terminate { .. }]
        ));
        assert!(matches!(
            run(&mut group, at(15), false)[..],
            [Action::Kill { .. }, Action::Kill { .. }]
        ));
        assert_eq!(run(&mut group, at(99), false), [], "nothing is sent twice");
    }

    #[test]
    fn scaling_down_sends_away_what_serves_nobody_and_then_the_highest_slot() {
        let mut group = Group::new(release('a'), 4);
        run(&mut group, at(0), true);
        group.tasks[1].phase = Phase::Unready;
        group.want(&release('a'), 2);
        run(&mut group, at(1), false);
        let staying: Vec<u32> = group
            .tasks
            .iter()
            .filter(|task| !task.is_leaving())
            .map(|task| task.slot)
            .collect();
        assert_eq!(staying, [1, 3]);
        group.want(&release('a'), 3);
        run(&mut group, at(2), true);
        assert_eq!(
            group.tasks.last().unwrap().slot,
            2,
            "a free slot, though another is draining in it"
        );
    }

    #[test]
    fn a_crash_loop_waits_longer_each_time_and_is_counted_until_it_is_long_ago() {
        let mut group = Group::new(release('a'), 1);
        let mut now = at(0);
        let mut waits = Vec::new();
        for _ in 0..7 {
            run(&mut group, now, true);
            let id = group.tasks[0].id.clone();
            assert!(group.ended(&id, crash(), now));
            let mut wait = Duration::ZERO;
            while group.next(now + wait, LIMITS, false).is_empty() {
                wait += Duration::from_millis(100);
            }
            waits.push(wait.as_millis());
            now += wait;
        }
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 5000, 5000]);
        let seen = group.observed(now, "host", None);
        assert_eq!(
            (seen.restarts, seen.trouble.as_deref()),
            (7, Some("exited with code 1"))
        );
        assert_eq!(
            group.observed(now + RESTART_WINDOW, "host", None).restarts,
            0
        );

        run(&mut group, now, true);
        let id = group.tasks[0].id.clone();
        group.ended(&id, crash(), now + HEALTHY_AFTER);
        assert!(
            !group
                .next(now + HEALTHY_AFTER + BACKOFF_MIN, LIMITS, false)
                .is_empty(),
            "it had started well"
        );
    }

    #[test]
    fn restarts_are_remembered_over_a_restart_of_the_controller() {
        let mut group = Group::new(release('a'), 1);
        group.restarted("exited".to_owned(), at(1000));
        let record = group.record(at(1100));
        let mut restored = Group::restored(&record, at(5));
        assert_eq!(restored.observed(at(204), "host", None).restarts, 1);
        assert_eq!(restored.observed(at(205), "host", None).restarts, 0);
    }

    #[test]
    fn another_release_begins_with_a_clean_slate() {
        let mut group = Group::new(release('a'), 1);
        run(&mut group, at(0), true);
        let id = group.tasks[0].id.clone();
        group.ended(&id, crash(), at(1));
        group.want(&release('b'), 1);
        assert_eq!(group.observed(at(1), "host", None).restarts, 0);
        assert_eq!(
            group.next(at(1), LIMITS, false),
            [Action::Start { slot: 1 }]
        );
    }

    #[test]
    fn a_port_that_somebody_took_is_no_restart_but_only_a_few_times() {
        let mut group = Group::new(release('a'), 1);
        let mut counted = Vec::new();
        for second in 0..5 {
            run(&mut group, at(10 * second), false);
            let id = group.tasks[0].id.clone();
            counted.push(group.ended(
                &id,
                End {
                    port_taken: true,
                    ..crash()
                },
                at(10 * second),
            ));
        }
        assert_eq!(counted, [false, false, false, true, true]);
    }

    #[test]
    fn a_ready_task_is_unready_after_a_few_misses_in_a_row() {
        let mut group = Group::new(release('a'), 1);
        run(&mut group, at(0), true);
        let id = group.tasks[0].id.clone();
        for (answered, is_ready) in [
            (false, true),
            (false, true),
            (true, true),
            (false, true),
            (false, true),
            (false, false),
            (true, true),
        ] {
            group.checked(&id, answered, at(1));
            assert_eq!(group.tasks[0].is_ready(), is_ready);
        }
    }
}
