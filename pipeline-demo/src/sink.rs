//! The sink: stores results and dead letters, each once.
//!
//! Offsets are committed after the rows are stored. What is delivered again overwrites its own row: a result by its
//! tweet, a dead letter by the place of its original. While the store is away nothing is committed, so nothing is lost.

mod sqlite;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prometheus::{IntCounter, IntGauge, Opts};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::backoff::wait_after;
use crate::bus::{Bus, BusConfig, BusError, Consumer, MALFORMED, Position, RESULTS, Record};
use crate::feeder::DeadLetter;
use crate::server::{self, Counted, Health, Server, ServerConfig, ServerError};
use crate::telemetry::{Identity, Telemetry, chain};
use crate::worker::TaskResult;

pub use sqlite::SqliteStorage;

/// The sink's group.
pub const GROUP: &str = "sink";

/// Rows of one transaction at most. At 400 bytes a row it is 200 KiB, which a disk takes at once.
const BATCH_MAX: usize = 512;

/// How often the lag is looked up for the metrics.
const LAG_EVERY: Duration = Duration::from_secs(1);

/// Where rows are stored.
#[async_trait]
pub trait Storage: Send + Sync + fmt::Debug {
    /// Stores these results, all or none; a row of the same tweet is overwritten.
    async fn store_results(&self, results: &[TaskResult]) -> Result<(), StorageError>;

    /// Stores these dead letters, all or none; a row of the same original is overwritten.
    async fn store_malformed(&self, letters: &[Letter]) -> Result<(), StorageError>;

    /// How many rows there are.
    async fn stored(&self) -> Result<Stored, StorageError>;
}

/// A dead letter to store: the original is bytes again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// The topic that the original stands in.
    pub topic: String,
    /// Where in it.
    pub position: Position,
    /// The stable word for what is wrong.
    pub code: String,
    /// What is wrong, in words.
    pub reason: String,
    /// The original's bytes.
    pub original: Vec<u8>,
}

/// Rows stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Tweets with a result.
    pub results: u64,
    /// Records that are no tweets.
    pub malformed: u64,
}

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// It cannot be opened.
    #[error("cannot open the store {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It failed; it may be well again in a moment.
    #[error("the store could not {action}")]
    Unavailable {
        /// What was tried.
        action: &'static str,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What the sink does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkConfig {
    /// Where from.
    pub bus: BusConfig,
    /// The SQLite file to store in.
    pub database: PathBuf,
    /// Where to show the counts.
    pub server: ServerConfig,
    /// Labels of the metrics.
    pub identity: Identity,
}

/// Why the sink ended early.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The bus failed in a way that trying again does not mend.
    #[error("the bus failed")]
    Bus(#[from] BusError),
    /// The store cannot be opened or read.
    #[error("the store failed")]
    Storage(#[from] StorageError),
    /// The process cannot be reached.
    #[error("the sink's server failed")]
    Server(#[from] ServerError),
}

/// Stores until `shutdown`.
///
/// # Errors
/// When the bus or the store cannot be opened. One that is away for a while is waited for.
pub async fn run(config: SinkConfig, shutdown: CancellationToken) -> Result<Stored, SinkError> {
    let bus = config.bus.open().await?;
    let storage = Arc::new(SqliteStorage::open(&config.database).await?);
    let server = Server::bind(&config.server).await?;
    let sink = Sink::new(bus, storage, &config.identity);
    info!(listen = %server.address(), database = %config.database.display(), "sink: started");
    let routes = server::routes(sink.health());
    let stored = server::beside(server, routes, sink.run(shutdown)).await?;
    info!(?stored, "sink: ended");
    Ok(stored)
}

/// The way from the bus into the store.
pub struct Sink {
    bus: Arc<dyn Bus>,
    storage: Arc<dyn Storage>,
    counts: Arc<Counts>,
    telemetry: Arc<Telemetry>,
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink")
            .field("bus", &self.bus)
            .field("storage", &self.storage)
            .finish_non_exhaustive()
    }
}

impl Sink {
    /// A sink from `bus` into `storage`.
    #[must_use]
    pub fn new(bus: Arc<dyn Bus>, storage: Arc<dyn Storage>, identity: &Identity) -> Self {
        let telemetry = Telemetry::new(identity);
        let counts = Counts::new(&telemetry, bus.clone(), storage.clone());
        Self {
            bus,
            storage,
            counts: Arc::new(counts),
            telemetry: Arc::new(telemetry),
        }
    }

    fn health(&self) -> Health {
        Health {
            telemetry: self.telemetry.clone(),
            ready: Arc::new(AtomicBool::new(true)),
            counted: self.counts.clone(),
        }
    }

    /// Stores; see [`run`].
    ///
    /// # Errors
    /// As [`run`].
    pub async fn run(&self, shutdown: CancellationToken) -> Result<Stored, SinkError> {
        let results = self.drain_topic(RESULTS, &shutdown);
        let malformed = self.drain_topic(MALFORMED, &shutdown);
        let looking = async {
            let mut look = interval(LAG_EVERY);
            look.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                look.tick().await;
                self.counts.look().await;
            }
        };
        tokio::select! {
            both = async { tokio::try_join!(results, malformed) } => { both?; }
            () = looking => {}
        }
        Ok(self.storage.stored().await?)
    }

    /// Stores what one topic brings, until `shutdown`.
    async fn drain_topic(
        &self,
        topic: &'static str,
        shutdown: &CancellationToken,
    ) -> Result<(), SinkError> {
        let mut consumer = self.bus.consumer(topic, GROUP).await?;
        let mut failures = 0;
        loop {
            let taken = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                taken = consumer.next(BATCH_MAX) => taken,
            };
            match taken {
                Ok(records) => {
                    failures = 0;
                    if !self
                        .store(consumer.as_mut(), topic, &records, shutdown)
                        .await?
                    {
                        return Ok(());
                    }
                }
                Err(error) if error.is_transient() => {
                    failures += 1;
                    warn!(
                        error = chain(&error),
                        failures, "sink: the bus gave nothing, trying again"
                    );
                    sleep(wait_after(failures, topic)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Stores a batch, then commits it; tries again until the store takes it. False if told to stop meanwhile.
    async fn store(
        &self,
        consumer: &mut dyn Consumer,
        topic: &str,
        records: &[Record],
        shutdown: &CancellationToken,
    ) -> Result<bool, SinkError> {
        let (results, letters) = sorted(topic, records);
        let mut failures = 0;
        while let Err(error) = self.store_rows(&results, &letters).await {
            failures += 1;
            warn!(
                topic,
                failures,
                error = chain(&error),
                "sink: nothing is stored or committed, trying again"
            );
            tokio::select! {
                () = shutdown.cancelled() => return Ok(false),
                () = sleep(wait_after(failures, topic)) => {}
            }
        }
        self.counts.stored.inc_by(records.len() as u64);
        match consumer.commit(&ends(records)).await {
            Ok(()) => Ok(true),
            Err(error) if error.is_transient() => {
                warn!(
                    topic,
                    error = chain(&error),
                    "sink: the bus did not take the offsets, they go with the next"
                );
                Ok(true)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn store_rows(
        &self,
        results: &[TaskResult],
        letters: &[Letter],
    ) -> Result<(), StorageError> {
        if !results.is_empty() {
            self.storage.store_results(results).await?;
        }
        if !letters.is_empty() {
            self.storage.store_malformed(letters).await?;
        }
        Ok(())
    }
}

/// Reads a batch. What is neither a result nor a dead letter is kept as a dead letter itself, and the topic goes on.
fn sorted(topic: &str, records: &[Record]) -> (Vec<TaskResult>, Vec<Letter>) {
    let mut results = Vec::new();
    let mut letters = Vec::new();
    for record in records {
        let unreadable = |what: &str| Letter {
            topic: topic.to_owned(),
            position: record.position,
            code: "unreadable".to_owned(),
            reason: format!("the record in topic {topic} is no {what}"),
            original: record.value.to_vec(),
        };
        if topic == RESULTS {
            match serde_json::from_slice(&record.value) {
                Ok(result) => results.push(result),
                Err(_) => letters.push(unreadable("result")),
            }
        } else {
            letters.push(letter(&record.value).unwrap_or_else(|| unreadable("dead letter")));
        }
    }
    (results, letters)
}

fn letter(bytes: &[u8]) -> Option<Letter> {
    let letter: DeadLetter = serde_json::from_slice(bytes).ok()?;
    Some(Letter {
        original: STANDARD.decode(&letter.original_base64).ok()?,
        topic: letter.topic,
        position: letter.position,
        code: letter.code,
        reason: letter.reason,
    })
}

/// For each partition, the offset after the last of these records.
fn ends(records: &[Record]) -> Vec<Position> {
    let mut ends = std::collections::BTreeMap::new();
    for Record { position, .. } in records {
        ends.insert(position.partition, position.offset + 1);
    }
    ends.into_iter()
        .map(|(partition, offset)| Position { partition, offset })
        .collect()
}

/// The sink's counts, live.
struct Counts {
    bus: Arc<dyn Bus>,
    storage: Arc<dyn Storage>,
    stored: IntCounter,
    lags: [(&'static str, IntGauge); 2],
}

impl Counts {
    fn new(telemetry: &Telemetry, bus: Arc<dyn Bus>, storage: Arc<dyn Storage>) -> Self {
        let lags = telemetry.gauges(
            Opts::new(
                "pipeline_consumer_lag",
                "Records of the topic that the group has not committed yet.",
            )
            .const_label("group", GROUP),
            &["topic"],
        );
        Self {
            bus,
            storage,
            stored: telemetry.counter(
                "pipeline_sink_records_total",
                "Records stored; one that came twice counts twice.",
            ),
            lags: [RESULTS, MALFORMED].map(|topic| (topic, lags.with_label_values(&[topic]))),
        }
    }

    /// Looks the lag up. While the bus does not answer, the last one stands.
    async fn look(&self) {
        for (topic, gauge) in &self.lags {
            match self.bus.lag(topic, GROUP).await {
                Ok(lag) => gauge.set(lag.min(i64::MAX as u64).cast_signed()),
                Err(error) => warn!(topic, error = chain(&error), "sink: the lag is not known"),
            }
        }
    }
}

#[async_trait]
impl Counted for Counts {
    async fn counts(&self) -> Value {
        self.look().await;
        let lag: i64 = self.lags.iter().map(|(_, gauge)| gauge.get()).sum();
        match self.storage.stored().await {
            Ok(Stored { results, malformed }) => {
                json!({"results": results, "malformed": malformed, "lag": lag})
            }
            Err(error) => {
                warn!(error = chain(&error), "sink: the rows could not be counted");
                json!({"results": null, "malformed": null, "lag": lag})
            }
        }
    }
}
