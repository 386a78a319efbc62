//! Sends a part of a topic through the proxy once more: a backfill, or yesterday's tweets for a canary alone.
//!
//! Each record goes the feeder's way (its answer is appended to "results" or "malformed", where the sink overwrites what it
//! had), with the feeder's bounds and each key in its order. No group is touched: what the feeder has done stays done. A
//! record whose attempts all fail is counted and left; the feeder would hold it back, but nobody waits for a replay. What is
//! for the canary alone is answered by the canary or not at all: once there is none, the replay ends, and says so.

mod args;

use std::sync::Arc;
use std::time::Duration;

use friday::clock::{Clock, SystemClock};
use jiff::Timestamp;
use serde::Serialize;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::backoff::{Hush, wait_after};
use crate::bus::{Bus, BusConfig, BusError, Reader, Record, Span};
use crate::feeder::{
    Counts, Delivered, Delivery, Lane, Lanes, Pin, PinError, Upstream, UpstreamError,
};
use crate::telemetry::{Identity, Telemetry, chain};

pub use args::ReplayArgs;

/// Bytes of records that wait for one of their key.
const WAITING_BYTES_MAX: usize = 32 * 1024 * 1024;

/// What to send again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayConfig {
    /// Where from, and where the answers go.
    pub bus: BusConfig,
    /// The proxy, such as `http://127.0.0.1:8080`.
    pub proxy: String,
    /// The topic; its records must be tasks.
    pub topic: String,
    /// Which of its records.
    pub part: ReplayPart,
    /// Sends every task to one release, whatever the weights. With the canary it ends once there is none.
    pub pin: Option<Pin>,
    /// Most tasks in flight, at least 1.
    pub in_flight_max: usize,
    /// How long one attempt may take.
    pub attempt_wait_max: Duration,
    /// Attempts for each record, at least 1.
    pub attempts_max: u32,
    /// Counts the answers and keeps none.
    pub discard_results: bool,
}

/// A part of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplayPart {
    /// What was produced at or after the first time and before the second.
    Times(ReplayTime, ReplayTime),
    /// These places, one span a partition.
    Offsets(Vec<Span>),
}

/// A moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayTime {
    /// This one.
    At(Timestamp),
    /// So long before the replay begins.
    Ago(Duration),
}

impl ReplayTime {
    fn resolve(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(time) => time,
            // Before the oldest time that can be written, there is no record.
            Self::Ago(ago) => now.checked_sub(ago).unwrap_or(Timestamp::MIN),
        }
    }
}

/// What was sent again.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Replayed {
    /// The topic.
    pub topic: String,
    /// The places that were asked for, as far as the topic reached when the replay began.
    pub spans: Vec<Span>,
    /// Offsets among them that are not kept any more.
    pub offsets_not_kept: u64,
    /// Records read.
    pub records_read: u64,
    /// Tasks answered with 200.
    pub tasks_completed: u64,
    /// Records answered with 422.
    pub tasks_malformed: u64,
    /// Records whose attempts all failed.
    pub tasks_failed: u64,
    /// Records that the canary was to get and did not, because there is none any more.
    pub tasks_not_sent: u64,
    /// Attempts sent.
    pub attempts: u64,
    /// Attempts that ended in neither 200 nor 422.
    pub attempts_failed: u64,
    /// The release that all were sent to; `None` for what the weights said.
    pub release: Option<&'static str>,
    /// Whether the answers are in the bus.
    pub results_kept: bool,
    /// Whether it was told to stop before the end.
    pub interrupted: bool,
    /// Why it stopped by itself before the end, and what to do.
    pub stopped: Option<String>,
    /// How long it took.
    pub seconds: f64,
}

impl Replayed {
    /// Whether every record that is kept was answered.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.tasks_failed == 0 && !self.interrupted && self.stopped.is_none()
    }
}

/// Why nothing, or not all, was sent again.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The bus failed in a way that trying again does not mend.
    #[error("the bus failed")]
    Bus(#[from] BusError),
    /// No client could be made for the proxy.
    #[error("the proxy cannot be used")]
    Upstream(#[from] UpstreamError),
    /// There is no such partition.
    #[error("topic {topic} has {partitions} partitions, from 0; there is no partition {partition}")]
    NoPartition {
        /// The topic.
        topic: String,
        /// How many it has.
        partitions: usize,
        /// The one that was named.
        partition: u32,
    },
    /// A defect of ours.
    #[error("a task of the replay panicked")]
    Panicked(#[from] JoinError),
}

/// Replays until the end of what was asked for, or `shutdown`; what is in flight then is finished if it can be.
///
/// # Errors
/// When the bus cannot be opened or fails for good, or a partition is named that is not there. A bus or a proxy that is
/// away for a while is waited for.
pub async fn run(
    config: ReplayConfig,
    shutdown: CancellationToken,
) -> Result<Replayed, ReplayError> {
    let bus = tokio::select! {
        bus = config.bus.open() => bus?,
        () = shutdown.cancelled() => return Ok(Replayed { interrupted: true, ..Replayed::default() }),
    };
    replay(bus, &config, shutdown).await
}

/// Replays on a bus that is open; see [`run`].
///
/// # Errors
/// As [`run`].
pub async fn replay(
    bus: Arc<dyn Bus>,
    config: &ReplayConfig,
    shutdown: CancellationToken,
) -> Result<Replayed, ReplayError> {
    let started = Instant::now();
    let topic = config.topic.as_str();
    let ends = bus.ends(topic).await?;
    let spans = spans(&bus, config, &ends).await?;
    let gone = |span: &Span| {
        let (low, _) = ends[span.partition as usize];
        (low.min(span.to) - span.from).max(0).cast_unsigned()
    };
    let offsets_not_kept: u64 = spans.iter().map(gone).sum();
    info!(topic, ?spans, offsets_not_kept, pin = ?config.pin, "replay: started");
    let telemetry = Telemetry::new(&Identity::default());
    let counts = Arc::new(Counts::new(&telemetry, bus.clone()));
    let delivery = Delivery {
        answers_to: (!config.discard_results).then(|| bus.clone()),
        topic: topic.to_owned(),
        upstream: Upstream::new(&config.proxy, config.attempt_wait_max, config.pin)?,
        attempts_max: Some(config.attempts_max.max(1)),
        letter_after: None,
        counts: counts.clone(),
        hush: Hush::default(),
        tracer: None,
    };
    let mut sending = Sending {
        reader: bus.reader(topic, &spans).await?,
        delivery: Arc::new(delivery),
        in_flight_max: config.in_flight_max.max(1),
        lanes: Lanes::default(),
        tasks: JoinSet::new(),
        records_read: 0,
        tasks_failed: 0,
        not_sent: None,
    };
    sending.run(&shutdown).await?;
    let did = counts.now();
    let ended = did.tasks_completed + did.tasks_malformed + sending.tasks_failed;
    let (tasks_not_sent, stopped) = match &sending.not_sent {
        None => (0, None),
        Some(reason) => {
            let places = |span: &Span| (span.to - span.from).max(0).cast_unsigned();
            let asked_for: u64 = spans.iter().map(places).sum();
            let left = asked_for.saturating_sub(offsets_not_kept + ended);
            let mend = reason.mend();
            let words = format!("{reason}: {left} tasks were not sent; {mend}");
            (left, Some(words))
        }
    };
    if let Some(words) = &stopped {
        error!("replay: {words}");
    }
    Ok(Replayed {
        topic: topic.to_owned(),
        spans,
        offsets_not_kept,
        records_read: sending.records_read,
        tasks_completed: did.tasks_completed,
        tasks_malformed: did.tasks_malformed,
        tasks_failed: sending.tasks_failed,
        tasks_not_sent,
        attempts: did.attempts,
        attempts_failed: did.attempts_failed,
        release: config.pin.map(Pin::name),
        results_kept: !config.discard_results,
        interrupted: shutdown.is_cancelled(),
        stopped,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// The places that were asked for, up to where the topic reaches now: what is produced meanwhile is the feeder's.
async fn spans(
    bus: &Arc<dyn Bus>,
    config: &ReplayConfig,
    ends: &[(i64, i64)],
) -> Result<Vec<Span>, ReplayError> {
    let topic = config.topic.as_str();
    let spans = match &config.part {
        ReplayPart::Offsets(spans) => spans.clone(),
        ReplayPart::Times(from, to) => {
            let now = SystemClock::new().now();
            let from = bus.offsets_at(topic, from.resolve(now)).await?;
            let to = bus.offsets_at(topic, to.resolve(now)).await?;
            let spans = (0..).zip(from.into_iter().zip(to));
            spans
                .map(|(partition, (from, to))| Span {
                    partition,
                    from,
                    to,
                })
                .collect()
        }
    };
    let mut reached = Vec::new();
    for span in spans {
        let Some((_, high)) = ends.get(span.partition as usize) else {
            return Err(ReplayError::NoPartition {
                topic: topic.to_owned(),
                partitions: ends.len(),
                partition: span.partition,
            });
        };
        let to = span.to.min(*high);
        if span.from < to {
            reached.push(Span { to, ..span });
        }
    }
    Ok(reached)
}

struct Sending {
    reader: Box<dyn Reader>,
    delivery: Arc<Delivery>,
    in_flight_max: usize,
    lanes: Lanes,
    tasks: JoinSet<Result<(Option<Lane>, Delivered), BusError>>,
    records_read: u64,
    tasks_failed: u64,
    /// Why no task may be sent any more.
    not_sent: Option<PinError>,
}

impl Sending {
    async fn run(&mut self, shutdown: &CancellationToken) -> Result<(), ReplayError> {
        let mut open = true;
        let mut failures = 0;
        let mut resume_at = Instant::now();
        while open || !self.tasks.is_empty() || !self.lanes.is_empty() {
            while self.tasks.len() < self.in_flight_max
                && let Some(record) = self.lanes.next()
            {
                let sent = send(self.delivery.clone(), record, shutdown.clone());
                self.tasks.spawn(sent);
            }
            let busy = self.tasks.len() + self.lanes.ready();
            let room = if open && self.lanes.waiting_bytes() < WAITING_BYTES_MAX {
                self.in_flight_max.saturating_sub(busy)
            } else {
                0
            };
            let read = async {
                sleep_until(resume_at).await;
                self.reader.read(room).await
            };
            tokio::select! {
                () = shutdown.cancelled(), if open => {
                    open = false;
                    self.lanes = Lanes::default();
                }
                Some(ended) = self.tasks.join_next() => {
                    let (lane, delivered) = ended??;
                    match delivered {
                        Delivered::Completed | Delivered::Malformed | Delivered::Left => {}
                        Delivered::GivenUp => self.tasks_failed += 1,
                        Delivered::NotSent(reason) => {
                            self.not_sent = Some(reason);
                            open = false;
                            self.lanes = Lanes::default();
                        }
                    }
                    if let Some(lane) = lane {
                        self.lanes.done(lane);
                    }
                }
                read = read, if room > 0 => match read {
                    Ok(records) => {
                        failures = 0;
                        open = !records.is_empty();
                        self.records_read += records.len() as u64;
                        for record in records {
                            self.lanes.take(record);
                        }
                    }
                    Err(error) if error.is_transient() => {
                        failures += 1;
                        warn!(error = chain(&error), failures, "replay: the bus gave nothing, trying again");
                        resume_at = Instant::now() + wait_after(failures, "replay");
                    }
                    Err(error) => return Err(error.into()),
                },
            }
        }
        Ok(())
    }
}

async fn send(
    delivery: Arc<Delivery>,
    record: Record,
    stop: CancellationToken,
) -> Result<(Option<Lane>, Delivered), BusError> {
    let delivered = delivery.deliver(&record, (), &stop).await?;
    Ok((Lane::of(&record), delivered))
}
