//! The message bus between the steps of the pipeline: what the pipeline needs of one, in Kafka's words.
//!
//! A topic has partitions; a record keeps its place (partition and offset); a group commits, for each partition, the
//! offset from which it wants to go on. Delivery is at least once: whoever consumes commits only what is done, in order,
//! and whatever it does must bear to be done twice.

mod args;
mod kafka;
mod local;

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use tracing::warn;

pub use args::BusArgs;
pub use kafka::{Kafka, KafkaConfig, Mechanism, Security};
pub use local::LocalLog;

use crate::backoff::wait_after;
use crate::telemetry::chain;
use crate::tweet::RECORD_BYTES_MAX;

/// Tweets, as they came; keyed by author.
pub const TWEETS: &str = "tweets";
/// What the workers found out about them; keyed by tweet.
pub const RESULTS: &str = "results";
/// Dead letters: records that are no tweets, with the reason; keyed by their place in [`TWEETS`].
pub const MALFORMED: &str = "malformed";

/// Largest record of any topic. A dead letter holds the original as base64, which takes 4 bytes for 3, and a few words.
pub const BUS_RECORD_BYTES_MAX: usize = RECORD_BYTES_MAX * 4 / 3 + 16 * 1024;

/// Partitions of a topic that is created here, unless told otherwise. Four let a feeder be scaled to four instances.
pub const PARTITIONS: u32 = 4;

/// How long [`BusConfig::open`] waits for a bus that is away: a broker that is started at the same time, or restarted. A
/// wrong address is known by then, and whoever started the process hears of it.
const OPEN_WAIT_MAX: Duration = Duration::from_secs(60);

/// A message bus.
#[async_trait]
pub trait Bus: Send + Sync + fmt::Debug {
    /// Creates the topic unless it exists.
    async fn ensure_topic(&self, topic: &str) -> Result<(), BusError>;

    /// How many partitions the topic has.
    async fn partitions(&self, topic: &str) -> Result<u32, BusError>;

    /// Appends a record; returns once it is durable. Records with equal keys go to one partition, in the order of calls
    /// that were awaited one after the other. Many calls at once travel as one batch.
    ///
    /// # Cancel safety
    /// A call that is dropped may or may not have appended its record.
    async fn produce(&self, topic: &str, record: NewRecord) -> Result<Position, BusError>;

    /// A consumer of the topic as a member of the group, from what the group committed last, or from the oldest record
    /// kept. The partitions are shared among the members: each has one owner at a time, and one member alone has all of
    /// them. A group of the local log has one member.
    async fn consumer(&self, topic: &str, group: &str) -> Result<Box<dyn Consumer>, BusError>;

    /// For each partition, the offset of the oldest record kept and the one that the next record will get.
    async fn ends(&self, topic: &str) -> Result<Vec<(i64, i64)>, BusError>;

    /// For each partition, the offset of the first record appended at or after `time`, or the one that the next record
    /// will get if there is none.
    async fn offsets_at(&self, topic: &str, time: Timestamp) -> Result<Vec<i64>, BusError>;

    /// Reads these places without any group: `from` of each span up to, not including, `to`; a partition has at
    /// most one span. Records that are not kept any more are left out.
    async fn reader(&self, topic: &str, spans: &[Span]) -> Result<Box<dyn Reader>, BusError>;

    /// Records of the topic that the group has not committed yet; all that is kept, for a group that never consumed.
    async fn lag(&self, topic: &str, group: &str) -> Result<u64, BusError> {
        let standing = self.standing(topic, group).await?;
        Ok(standing.iter().map(Standing::lag).sum())
    }

    /// Where the group stands in each partition of the topic.
    async fn standing(&self, topic: &str, group: &str) -> Result<Vec<Standing>, BusError>;
}

/// One member's view of one topic.
#[async_trait]
pub trait Consumer: Send + fmt::Debug {
    /// What comes next: at least one and at most `records_max` records, in order of offset for each partition, or news
    /// about partitions. Waits while there is nothing; with a `records_max` of 0, for news alone.
    ///
    /// # Cancel safety
    /// A call that is dropped took nothing.
    async fn poll(&mut self, records_max: usize) -> Result<Polled, BusError>;

    /// Gives up partitions that were [`Polled::Revoked`]: from now on they may be another member's.
    fn release(&mut self, partitions: &[u32]);

    /// Where offsets are saved; may be used beside [`Self::poll`].
    fn offsets(&self) -> Arc<dyn Offsets>;

    /// At least one and at most `records_max` records: [`Self::poll`] for whoever is done with all it took, and has
    /// committed it, before it asks for more.
    ///
    /// # Cancel safety
    /// A call that is dropped took nothing.
    async fn next(&mut self, records_max: usize) -> Result<Vec<Record>, BusError> {
        loop {
            match self.poll(records_max.max(1)).await? {
                Polled::Records(records) => return Ok(records),
                Polled::Revoked(partitions) => self.release(&partitions),
                Polled::Lost(_) | Polled::Anew(_) => {}
            }
        }
    }

    /// Saves, for each partition given, the offset from which the group goes on: one more than the last one done.
    async fn commit(&mut self, next: &[Position]) -> Result<(), BusError> {
        self.offsets().commit(next).await
    }

    /// Leaves the group, so that the others need not wait for a time-out. A consumer that is dropped does so as well,
    /// but whoever drops it does not know when.
    async fn close(self: Box<Self>);
}

/// What a consumer is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Polled {
    /// Records, at least one.
    Records(Vec<Record>),
    /// The group wants these partitions back. Nothing more comes from them; what was taken from them is to be finished or
    /// left, what is done is to be committed, and then they are to be given up with [`Consumer::release`]. The bus takes
    /// them away by itself after 20 s.
    Revoked(Vec<u32>),
    /// These partitions are another member's already, as after a long silence. What was taken from them is done again
    /// there, and nothing can be committed for them here.
    Lost(Vec<u32>),
    /// The topic was deleted and made anew: what comes of these partitions from now on has the offsets of the new one, from its
    /// beginning. What was taken before is of a topic that is no more, and there is nothing to commit for it.
    Anew(Vec<u32>),
}

/// Saves a group's offsets.
#[async_trait]
pub trait Offsets: Send + Sync + fmt::Debug {
    /// See [`Consumer::commit`]. Partitions that are not this member's any more are left out.
    async fn commit(&self, next: &[Position]) -> Result<(), BusError>;
}

/// Reads a part of a topic.
#[async_trait]
pub trait Reader: Send + fmt::Debug {
    /// The next records, at most `records_max`, in order of offset for each partition; none at the end.
    ///
    /// # Cancel safety
    /// A call that is dropped took nothing.
    async fn read(&mut self, records_max: usize) -> Result<Vec<Record>, BusError>;
}

/// Some of a partition's places: `from` up to, not including, `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Span {
    /// From 0.
    pub partition: u32,
    /// The first offset.
    pub from: i64,
    /// One more than the last.
    pub to: i64,
}

/// A record to append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRecord {
    /// What chooses the partition; without a key the partitions take turns.
    pub key: Option<Bytes>,
    /// The payload, at most [`BUS_RECORD_BYTES_MAX`].
    pub value: Bytes,
}

/// A record that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where it stands in its topic.
    pub position: Position,
    /// The key it was produced with.
    pub key: Option<Bytes>,
    /// The payload.
    pub value: Bytes,
    /// When it was produced, as its producer or the bus says; `None` where nobody does.
    pub produced_at: Option<Timestamp>,
}

/// A place in a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// From 0.
    pub partition: u32,
    /// Grows by at least one with every record of the partition.
    pub offset: i64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.partition, self.offset)
    }
}

/// Where a group stands in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// From 0.
    pub partition: u32,
    /// The offset of the oldest record kept, or of the next one if there is none.
    pub oldest: i64,
    /// The offset from which the group goes on; `None` for one that never committed.
    pub committed: Option<i64>,
    /// The offset that the next record gets.
    pub next: i64,
}

impl Standing {
    /// Records that are kept and were not committed yet.
    #[must_use]
    pub fn lag(&self) -> u64 {
        let from = self.committed.unwrap_or(self.oldest).max(self.oldest);
        (self.next - from).max(0).cast_unsigned()
    }
}

/// Which bus to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BusConfig {
    /// A durable log in an SQLite file in this directory.
    Local(PathBuf),
    /// Kafka brokers.
    Kafka(Box<KafkaConfig>),
}

impl BusConfig {
    /// Opens the bus and makes sure that the pipeline's topics exist. A bus that is away is waited for, up to a minute.
    ///
    /// # Errors
    /// When the directory cannot be used, the configuration cannot be, or no broker answers.
    pub async fn open(&self) -> Result<Arc<dyn Bus>, BusError> {
        let bus: Arc<dyn Bus> = match self {
            Self::Local(directory) => Arc::new(LocalLog::open(directory).await?),
            Self::Kafka(config) => Arc::new(Kafka::connect(config)?),
        };
        let deadline = Instant::now() + OPEN_WAIT_MAX;
        for topic in [TWEETS, RESULTS, MALFORMED] {
            let mut failures = 0;
            while let Err(error) = bus.ensure_topic(topic).await {
                failures += 1;
                if !error.is_transient() || Instant::now() >= deadline {
                    return Err(error);
                }
                warn!(
                    topic,
                    failures,
                    error = chain(&error),
                    "bus: it does not answer, trying again"
                );
                sleep(wait_after(failures, topic)).await;
            }
        }
        Ok(bus)
    }
}

/// Why the bus did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The local log cannot be opened.
    #[error("cannot open the local log {}", path.display())]
    Open {
        /// The file or directory.
        path: PathBuf,
        /// What the file system or SQLite said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The configuration makes no Kafka client.
    #[error("cannot make a Kafka client for {brokers}")]
    Client {
        /// The brokers that were given.
        brokers: String,
        /// What librdkafka said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The options for Kafka do not go together, or a file of theirs cannot be read.
    #[error("{problem}")]
    Options {
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The bus is out of reach or busy; it may be well again in a moment.
    #[error("the bus could not {action} topic {topic}")]
    Unavailable {
        /// What was tried.
        action: &'static str,
        /// On which topic.
        topic: String,
        /// What the bus said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The partition holds as many records as it may; its consumers have to catch up first.
    #[error("partition {partition} of topic {topic} is full")]
    Full {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
    },
    /// The record is larger than [`BUS_RECORD_BYTES_MAX`].
    #[error(
        "a record of {bytes} bytes is more than the {BUS_RECORD_BYTES_MAX} that topic {topic} takes"
    )]
    TooLarge {
        /// The topic.
        topic: String,
        /// The record's size.
        bytes: usize,
    },
    /// There is no such topic.
    #[error("there is no topic {topic}")]
    UnknownTopic {
        /// The topic.
        topic: String,
    },
    /// Another consumer of the group is running.
    #[error("another process consumes topic {topic} as group {group}")]
    GroupTaken {
        /// The topic.
        topic: String,
        /// The group.
        group: String,
    },
    /// The bus was closed.
    #[error("the bus is closed")]
    Closed,
}

impl BusError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable { .. } | Self::Full { .. } => true,
            Self::Open { .. }
            | Self::Client { .. }
            | Self::Options { .. }
            | Self::TooLarge { .. }
            | Self::UnknownTopic { .. }
            | Self::GroupTaken { .. }
            | Self::Closed => false,
        }
    }
}

/// Refuses a record that is too large for the bus.
fn check_size(topic: &str, record: &NewRecord) -> Result<(), BusError> {
    let bytes = record.value.len() + record.key.as_ref().map_or(0, Bytes::len);
    if bytes > BUS_RECORD_BYTES_MAX {
        let topic = topic.to_owned();
        return Err(BusError::TooLarge { topic, bytes });
    }
    Ok(())
}
