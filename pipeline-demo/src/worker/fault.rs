//! What is wrong with a worker in each scenario, so that the judge can be tried on it.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::{Instant, interval, sleep};
use tracing::{error, warn};

use super::ServiceTime;
use crate::seeded::{stable_hash, unit};

/// Exit code of a worker that crashes on purpose (`EX_SOFTWARE`, an internal error).
pub const CRASH_CODE: i32 = 70;

/// How long a crashing worker lives.
const CRASH_AFTER: Duration = Duration::from_secs(2);

/// How much a leaking worker takes, and how often: 8 MiB/s in even steps.
const LEAK_CHUNK_BYTES: usize = 1024 * 1024;
const LEAK_EVERY: Duration = Duration::from_millis(125);

/// What a leaking worker takes at most, four times the limit it is given in the demo: without a limit, the machine
/// must survive it all the same.
const LEAK_BYTES_MAX: usize = 1024 * 1024 * 1024;

/// How long a cold start lasts. It begins with the first task and not with the process: what is cold is what only real
/// work warms (caches, pools), so a worker that waits for its first request does not get warm by waiting.
const COLD_START: Duration = Duration::from_secs(3);

/// What differs in this worker. The names are those of the scenarios.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Fault {
    /// Nothing.
    #[default]
    Good,
    /// 20 % of the tasks fail.
    Errors,
    /// 1 % of the tasks fail.
    RareErrors,
    /// Every task takes 1.6 times as long.
    Slow,
    /// The slowest 2 % of the tasks take 3 times as long.
    Tail,
    /// Memory grows by 8 MiB/s.
    Leak,
    /// The process dies 2 s after its start.
    Crash,
    /// For 3 s from its first task on, it is 5 times as slow and 10 % of the tasks fail.
    Coldstart,
    /// Nothing here; its scenario sends it no request.
    Silent,
    /// Nothing here; its scenario has malformed records.
    Malformed,
    /// The sentiment has the wrong sign.
    Wrong,
    /// Nothing but speed: no service time is added to the computing, which takes about 100 us; stable is as fast in this
    /// scenario.
    Fast,
}

/// How one task is to be treated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Treatment {
    pub(super) takes: Duration,
    pub(super) fails: bool,
    pub(super) flip: bool,
}

impl Fault {
    /// The treatment of a task. Pure: `draw` is uniform in [0, 1), `cold` says whether the cold start lasts.
    fn treat(self, service_time: ServiceTime, draw: f64, cold: bool) -> Treatment {
        let (slower, failing) = match self {
            Self::Errors => (1.0, 0.2),
            Self::RareErrors => (1.0, 0.01),
            Self::Slow => (1.6, 0.0),
            Self::Tail if service_time.is_among_the_slowest_2_percent() => (3.0, 0.0),
            Self::Coldstart if cold => (5.0, 0.1),
            Self::Fast => (0.0, 0.0),
            Self::Good
            | Self::Tail
            | Self::Leak
            | Self::Crash
            | Self::Coldstart
            | Self::Silent
            | Self::Malformed
            | Self::Wrong => (1.0, 0.0),
        };
        Treatment {
            takes: service_time.duration().mul_f64(slower),
            fails: draw < failing,
            flip: self == Self::Wrong,
        }
    }
}

/// A fault at work in one process.
#[derive(Debug)]
pub(super) struct Symptoms {
    fault: Fault,
    seed: u64,
    attempts: std::sync::atomic::AtomicU64,
    first_task: OnceLock<Instant>,
}

impl Symptoms {
    pub(super) const fn new(fault: Fault, seed: u64) -> Self {
        Self {
            fault,
            seed,
            attempts: std::sync::atomic::AtomicU64::new(0),
            first_task: OnceLock::new(),
        }
    }

    /// The treatment of the next task. A tweet that failed may succeed the next time, because attempts are counted.
    pub(super) fn treat(&self, tweet_id: &str, service_time: ServiceTime) -> Treatment {
        let attempt = self
            .attempts
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let draw = stable_hash(format!("{tweet_id}/{}/{attempt}", self.seed).as_bytes());
        let cold = self.first_task.get_or_init(Instant::now).elapsed() < COLD_START;
        self.fault.treat(service_time, unit(draw), cold)
    }

    /// What a sick process does apart from its tasks.
    pub(super) async fn act(self: Arc<Self>) {
        match self.fault {
            Fault::Leak => leak().await,
            Fault::Crash => {
                sleep(CRASH_AFTER).await;
                error!(
                    code = CRASH_CODE,
                    "work: the fault of this scenario ends the process"
                );
                std::process::exit(CRASH_CODE);
            }
            Fault::Good
            | Fault::Errors
            | Fault::RareErrors
            | Fault::Slow
            | Fault::Tail
            | Fault::Coldstart
            | Fault::Silent
            | Fault::Malformed
            | Fault::Wrong
            | Fault::Fast => {}
        }
    }
}

/// Takes memory, touches it, and keeps it until the process ends.
async fn leak() {
    let mut kept = Vec::new();
    let mut every = interval(LEAK_EVERY);
    while kept.len() * LEAK_CHUNK_BYTES < LEAK_BYTES_MAX {
        every.tick().await;
        // Ones, because a page of zeros need not be in memory.
        kept.push(vec![1_u8; LEAK_CHUNK_BYTES]);
    }
    warn!(
        bytes = LEAK_BYTES_MAX,
        "work: leaked as much as it may, stays there"
    );
    std::future::pending::<()>().await;
    drop(kept);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shares of failures, and mean slowness, over many tweets.
    fn seen(fault: Fault, cold: bool) -> (f64, f64) {
        let tasks = 20_000_u32;
        let mut failed = 0;
        let (mut took, mut takes) = (0.0, 0.0);
        for id in 0..tasks {
            let service_time = ServiceTime::of(&id.to_string());
            let draw = unit(stable_hash(format!("{id}x").as_bytes()));
            let treatment = fault.treat(service_time, draw, cold);
            failed += u32::from(treatment.fails);
            took += treatment.takes.as_secs_f64();
            takes += service_time.duration().as_secs_f64();
        }
        (f64::from(failed) / f64::from(tasks), took / takes)
    }

    #[test]
    fn every_fault_has_its_symptoms_and_no_other() {
        for (fault, cold, failing, slower) in [
            (Fault::Good, true, 0.0, 1.0),
            (Fault::Errors, false, 0.2, 1.0),
            (Fault::RareErrors, false, 0.01, 1.0),
            (Fault::Slow, false, 0.0, 1.6),
            // 2 % of the tasks hold 6 % of the time.
            (Fault::Tail, false, 0.0, 1.12),
            (Fault::Coldstart, true, 0.1, 5.0),
            (Fault::Coldstart, false, 0.0, 1.0),
            (Fault::Silent, true, 0.0, 1.0),
            (Fault::Wrong, true, 0.0, 1.0),
            (Fault::Fast, true, 0.0, 0.0),
        ] {
            let (share, slowness) = seen(fault, cold);
            assert!(
                (share - failing).abs() < 0.01 && (share == 0.0) == (failing == 0.0),
                "{fault:?} fails {share}"
            );
            assert!(
                (slowness - slower).abs() < 0.02,
                "{fault:?} is {slowness} times as slow"
            );
        }
    }

    #[test]
    fn a_retry_is_not_doomed() {
        let symptoms = Symptoms::new(Fault::Errors, 1);
        let time = ServiceTime::of("7");
        let failed = (0..1_000)
            .filter(|_| symptoms.treat("7", time).fails)
            .count();
        assert!((150..250).contains(&failed), "{failed} of 1000");
    }

    #[tokio::test(start_paused = true)]
    async fn a_cold_start_begins_with_the_first_task() {
        let symptoms = Symptoms::new(Fault::Coldstart, 1);
        let time = ServiceTime::of("7");
        sleep(Duration::from_secs(60)).await;
        let slow = symptoms.treat("7", time).takes;
        assert_eq!(slow, time.duration().mul_f64(5.0));
        sleep(COLD_START).await;
        assert_eq!(symptoms.treat("7", time).takes, time.duration());
    }
}
