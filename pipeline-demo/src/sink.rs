//! The sink: stores results and dead letters, each once, and keeps count of them.
//!
//! Offsets are committed after the rows are stored. What is delivered again changes nothing: a result is known by its
//! tweet, a dead letter by the place of its original, and counts change only with rows, in the same transaction. While
//! the store is away nothing is committed, so nothing is lost. While one batch is stored the next is fetched.
//!
//! Of two results of one tweet (a task that was done again, perhaps by the other release, or a backfill) the one that
//! stands later in topic "results" stays, and the counts move from the one to the other.

// First, because the others use its macros.
#[macro_use]
mod shared;

mod analytics;
mod args;
mod database;
mod deltas;
mod metrics;
mod postgres;
mod reconcile;
mod rows;
mod sqlite;
mod storage;
mod unreadable;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use friday::clock::{Clock, SystemClock};
use jiff::Timestamp;
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::backoff::{Hush, wait_after};
use crate::bus::{
    Bus, BusConfig, BusError, Consumer, MALFORMED, Position, RESULTS, Record, TWEETS,
};
use crate::feeder::DeadLetter;
use crate::server::{self, Health, Server, ServerConfig, ServerError};
use crate::telemetry::{Identity, Telemetry, chain, words_of};
use metrics::Counts;
use rows::task_key;
use unreadable::unreadable;

pub use analytics::{ANALYTICS, Analysed};
pub use args::{DatabaseArgs, SinkArgs};
pub use database::{DatabaseConfig, PostgresConfig, Store};
pub use deltas::{DAY_S, HOUR_S, Kind, MINUTE_S};
pub use postgres::PostgresStorage;
pub(crate) use reconcile::reconcile;
pub use reconcile::{Hole, Range, ReconcileError, ReconcileStore, Reconciled};
pub use rows::{Batch, Duplicate, Fact, Letter, Row, StoredResult};
pub use sqlite::SqliteStorage;
pub use storage::{Receipt, Storage, StorageError, Stored};

/// The sink's group.
pub const GROUP: &str = "sink";

/// Rows of one transaction at most, unless told otherwise. At 600 bytes a row it is 2.4 MiB, which PostgreSQL takes in a
/// tenth of a second; larger ones bring no more rows a second.
pub const BATCH_MAX_DEFAULT: usize = 4_096;

/// When a result is late, unless told otherwise. A pipeline that keeps up takes well below a second.
pub const LATE_AFTER_DEFAULT: Duration = Duration::from_secs(60);

/// Bytes of records that are fetched while a batch is stored. A dead letter may have 365 KB, and of 4,096 of those memory would
/// have no room. What one poll brings comes on top.
const AHEAD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How often offsets that the bus did not take are tried again while nothing new comes.
const COMMIT_AGAIN_EVERY: Duration = Duration::from_secs(1);

/// How long a batch that is being stored may take once the sink is told to stop. One that failed before is left at once.
const STOP_WAIT_MAX: Duration = Duration::from_secs(5);

/// How long the bus and the store may take to say at the end what is left and what is stored.
const LAST_LOOK_MAX: Duration = Duration::from_secs(2);

/// How often the lag is looked up for the metrics.
const LAG_EVERY: Duration = Duration::from_secs(1);

/// What the sink does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkConfig {
    /// Where from.
    pub bus: BusConfig,
    /// Where to.
    pub database: DatabaseConfig,
    /// Rows of one transaction at most.
    pub batch_max: usize,
    /// When a result is late.
    pub late_after: Duration,
    /// Whether to append what is stored to topic [`ANALYTICS`].
    pub analytics: bool,
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

/// Stores until `shutdown`. Gives what is stored then; `None` while the store does not say.
///
/// # Errors
/// When the bus or the store cannot be opened. One that is away for a while is waited for, also at the start.
pub async fn run(
    config: SinkConfig,
    shutdown: CancellationToken,
) -> Result<Option<Stored>, SinkError> {
    let bus = tokio::select! {
        bus = config.bus.open() => bus?,
        () = shutdown.cancelled() => return Ok(None),
    };
    let Some(store) = config.database.open_when_there(&shutdown).await? else {
        return Ok(None);
    };
    let server = Server::bind(&config.server).await?;
    let mut sink = Sink::new(bus, store, &config.identity)
        .batch_max(config.batch_max)
        .late_after(config.late_after);
    if config.analytics {
        sink = sink.with_analytics().await?;
    }
    info!(listen = %server.address(), database = %config.database, "sink: started");
    let routes = server::routes(sink.health());
    let stored = server::beside(server, routes, sink.run(shutdown)).await?;
    info!(?stored, "sink: ended");
    Ok(stored)
}

/// The way from the bus into the store.
pub struct Sink {
    bus: Arc<dyn Bus>,
    storage: Arc<dyn Storage>,
    clock: Arc<dyn Clock>,
    batch_max: usize,
    late_after: Duration,
    analytics: bool,
    counts: Arc<Counts>,
    telemetry: Arc<Telemetry>,
    hush: Hush,
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
        // The label `release` of these metrics is the release whose results they count, not the sink's own.
        let telemetry = Telemetry::new(&Identity {
            release: String::new(),
            ..identity.clone()
        });
        let counts = Counts::new(&telemetry, bus.clone(), storage.clone());
        Self {
            bus,
            storage,
            clock: SystemClock::new(),
            batch_max: BATCH_MAX_DEFAULT,
            late_after: LATE_AFTER_DEFAULT,
            analytics: false,
            counts: Arc::new(counts),
            telemetry: Arc::new(telemetry),
            hush: Hush::default(),
        }
    }

    /// With transactions of at most this many rows, at least 1.
    #[must_use]
    pub fn batch_max(mut self, batch_max: usize) -> Self {
        self.batch_max = batch_max.max(1);
        self
    }

    /// With another promise: results stored later than this are late.
    #[must_use]
    pub const fn late_after(mut self, late_after: Duration) -> Self {
        self.late_after = late_after;
        self
    }

    /// With every stored result in topic [`ANALYTICS`], for others.
    ///
    /// # Errors
    /// When the topic cannot be made.
    pub async fn with_analytics(mut self) -> Result<Self, BusError> {
        self.bus.ensure_topic(ANALYTICS).await?;
        self.analytics = true;
        Ok(self)
    }

    fn health(&self) -> Health {
        Health {
            telemetry: self.telemetry.clone(),
            ready: Arc::new(AtomicBool::new(true)),
            counted: self.counts.clone(),
        }
    }

    /// The metrics as they are scraped.
    #[must_use]
    pub fn metrics(&self) -> String {
        self.telemetry.text()
    }

    /// Stores; see [`run`].
    ///
    /// # Errors
    /// As [`run`].
    pub async fn run(&self, shutdown: CancellationToken) -> Result<Option<Stored>, SinkError> {
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
        self.say_what_is_left().await;
        match timeout(LAST_LOOK_MAX, self.storage.stored()).await {
            Ok(Ok(stored)) => Ok(Some(stored)),
            Ok(Err(error)) if !error.is_transient() => Err(error.into()),
            Ok(Err(_)) | Err(_) => {
                warn!("sink: the store is away, it does not say how many rows it has");
                Ok(None)
            }
        }
    }

    /// What was not stored was not committed either: it stays where it is.
    async fn say_what_is_left(&self) {
        for topic in [RESULTS, MALFORMED] {
            match timeout(LAST_LOOK_MAX, self.bus.lag(topic, GROUP)).await {
                Ok(Ok(0)) => {}
                Ok(Ok(records)) => {
                    info!(
                        topic,
                        records, "sink: records stay in the topic for the next one"
                    );
                }
                Ok(Err(_)) | Err(_) => {
                    warn!(
                        topic,
                        "sink: the bus does not say how many records stay in the topic"
                    );
                }
            }
        }
    }

    /// Stores what one topic brings, until `shutdown`.
    async fn drain_topic(
        &self,
        topic: &'static str,
        shutdown: &CancellationToken,
    ) -> Result<(), SinkError> {
        let mut fetch = Fetch {
            consumer: self.bus.consumer(topic, GROUP).await?,
            topic,
            failures: 0,
            resume_at: Instant::now(),
            uncommitted: BTreeMap::new(),
        };
        let drained = self.drain(&mut fetch, topic, shutdown).await;
        // Others of the group need not wait for a time-out.
        fetch.consumer.close().await;
        drained
    }

    async fn drain(
        &self,
        fetch: &mut Fetch,
        topic: &'static str,
        shutdown: &CancellationToken,
    ) -> Result<(), SinkError> {
        let mut ahead = Taken::default();
        loop {
            if ahead.count == 0 {
                let is_committed = fetch.uncommitted.is_empty();
                tokio::select! {
                    () = shutdown.cancelled() => return Ok(()),
                    taken = fetch.next(self.batch_max) => ahead.add(topic, taken?, self.clock.now()),
                    () = sleep(COMMIT_AGAIN_EVERY), if !is_committed => fetch.commit().await?,
                }
                continue;
            }
            let taken = std::mem::take(&mut ahead);
            let ends = taken.ends.clone();
            let storing = self.store(topic, taken, shutdown);
            tokio::pin!(storing);
            let stored = loop {
                let room = if ahead.bytes < AHEAD_BYTES_MAX {
                    self.batch_max.saturating_sub(ahead.count)
                } else {
                    0
                };
                tokio::select! {
                    stored = &mut storing => break stored?,
                    taken = fetch.next(room), if room > 0 => ahead.add(topic, taken?, self.clock.now()),
                }
            };
            if !stored {
                return Ok(());
            }
            fetch.uncommitted.extend(ends);
            fetch.commit().await?;
            // What was fetched ahead comes again to the next one.
            if shutdown.is_cancelled() {
                return Ok(());
            }
        }
    }

    /// Stores what was taken; tries again until the store takes it. False if told to stop meanwhile.
    async fn store(
        &self,
        topic: &str,
        taken: Taken,
        shutdown: &CancellationToken,
    ) -> Result<bool, SinkError> {
        let Taken {
            rows,
            letters,
            count,
            ..
        } = taken;
        let mut batch = Batch::new(rows, letters, self.clock.now(), self.late_after);
        let mut failures = 0;
        // What the store refuses is halved until the record at fault is alone.
        let mut left = Vec::new();
        loop {
            // Where it ends in the middle, all of it is stored or nothing, and it comes again.
            let patience = if failures == 0 {
                STOP_WAIT_MAX
            } else {
                Duration::ZERO
            };
            let overdue = async {
                shutdown.cancelled().await;
                sleep(patience).await;
            };
            let stored = tokio::select! {
                stored = self.storage.store(&batch) => stored,
                () = overdue => return Ok(false),
            };
            match stored {
                Ok(receipt) => {
                    failures = 0;
                    self.counts.count(&batch, &receipt);
                    if self.analytics {
                        tokio::select! {
                            published = self.publish(&batch) => published?,
                            // Not committed, so it comes again.
                            () = shutdown.cancelled() => return Ok(false),
                        }
                    }
                    match left.pop() {
                        Some(next) => batch = next,
                        None => break,
                    }
                }
                Err(error) if error.is_transient() => {
                    failures += 1;
                    self.counts.failed();
                    if self.hush.may_speak() {
                        warn!(
                            topic,
                            failures,
                            error = chain(&error),
                            "sink: nothing is stored or committed, trying again"
                        );
                    }
                    tokio::select! {
                        () = shutdown.cancelled() => return Ok(false),
                        () = sleep(wait_after(failures, topic)) => {}
                    }
                }
                Err(error) if batch.rows.len() + batch.letters.len() > 1 => {
                    warn!(
                        topic,
                        rows = batch.len(),
                        error = chain(&error),
                        "sink: looking for the record at fault"
                    );
                    let (first, rest) = batch.halves();
                    left.push(rest);
                    batch = first;
                }
                Err(error) => batch = unstorable(batch, error)?,
            }
            batch.stamp(self.clock.now(), self.late_after);
        }
        self.counts.taken(count);
        Ok(true)
    }
}

/// The dead letter in the place of the only record of a batch, which the store refused.
fn unstorable(batch: Batch, error: StorageError) -> Result<Batch, StorageError> {
    const CODE: &str = "unstorable";
    let Batch {
        mut rows, letters, ..
    } = batch;
    let reason = format!("the store refused it: {}", words_of(&error));
    let letter = match (rows.pop(), letters.into_iter().next()) {
        (Some(row), None) => Letter {
            topic: RESULTS.to_owned(),
            position: row.position,
            code: CODE.to_owned(),
            release: row.fact.release.clone(),
            original: json!({"tweet_id": row.tweet_id, "features": row.features})
                .to_string()
                .into_bytes(),
            letter: row.position,
            tweet_id: Some(row.tweet_id),
            origin: row.origin,
            reason,
        },
        (None, Some(letter)) if letter.code != CODE => Letter {
            code: CODE.to_owned(),
            original: Vec::new(),
            reason,
            ..letter
        },
        // Not even the note of it is taken: someone has to look at the store.
        _ => return Err(error),
    };
    error!(
        topic = letter.topic,
        position = %letter.position,
        reason = letter.reason,
        "sink: a record cannot be stored and is kept as a dead letter"
    );
    Ok(Batch {
        letters: vec![letter.cleaned()],
        ..Batch::default()
    })
}

/// The bus's side of one topic.
struct Fetch {
    consumer: Box<dyn Consumer>,
    topic: &'static str,
    failures: u32,
    resume_at: Instant,
    /// For each partition, the offset before which all is stored, until the bus has taken it.
    uncommitted: BTreeMap<u32, i64>,
}

impl Fetch {
    /// Records, as soon as there are any; none after an error that passes. A call that is dropped took nothing.
    async fn next(&mut self, records_max: usize) -> Result<Vec<Record>, BusError> {
        sleep_until(self.resume_at).await;
        match self.consumer.next(records_max).await {
            Ok(records) => {
                self.failures = 0;
                Ok(records)
            }
            Err(error) if error.is_transient() => {
                self.failures += 1;
                warn!(
                    topic = self.topic,
                    error = chain(&error),
                    failures = self.failures,
                    "sink: the bus gave nothing, trying again"
                );
                self.resume_at = Instant::now() + wait_after(self.failures, self.topic);
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }

    /// Commits what is stored; what the bus does not take now stays for the next time.
    async fn commit(&mut self) -> Result<(), BusError> {
        let ends = self.uncommitted.iter();
        let ends = ends.map(|(&partition, &offset)| Position { partition, offset });
        let ends: Vec<Position> = ends.collect();
        match self.consumer.commit(&ends).await {
            Ok(()) => {
                self.uncommitted.clear();
                Ok(())
            }
            Err(error) if error.is_transient() => {
                warn!(
                    topic = self.topic,
                    error = chain(&error),
                    "sink: the bus did not take the offsets, trying again"
                );
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// What was taken off a topic and is to be stored together. Records are read as they come: while the store works on the
/// batch before, on another core.
#[derive(Debug, Default)]
struct Taken {
    rows: Vec<Row>,
    letters: Vec<Letter>,
    /// Records that these come from.
    count: usize,
    /// Their bytes.
    bytes: usize,
    /// For each partition, the offset after the last of them.
    ends: BTreeMap<u32, i64>,
}

impl Taken {
    /// Reads records that arrived at `now`. What is neither a result nor a dead letter is kept as a dead letter itself,
    /// and the topic goes on.
    fn add(&mut self, topic: &str, records: Vec<Record>, now: Timestamp) {
        self.count += records.len();
        for record in records {
            let Position { partition, offset } = record.position;
            self.bytes += record.value.len();
            self.ends.insert(partition, offset + 1);
            if topic == RESULTS {
                match StoredResult::read(&record.value, record.position) {
                    Some(result) => self.rows.push(Row::of(result, now)),
                    None => self.letters.push(unreadable(topic, &record)),
                }
            } else {
                let letter = letter(&record.value, record.position);
                self.letters
                    .push(letter.unwrap_or_else(|| unreadable(topic, &record)));
            }
        }
    }
}

fn letter(bytes: &[u8], place: Position) -> Option<Letter> {
    let letter: DeadLetter = serde_json::from_slice(bytes).ok()?;
    let original = STANDARD.decode(&letter.original_base64).ok()?;
    Some(Letter {
        tweet_id: Some(task_key(&original, letter.position)),
        origin: (letter.topic == TWEETS).then_some(letter.position),
        original,
        topic: letter.topic,
        position: letter.position,
        code: letter.code,
        reason: letter.reason,
        release: letter.release.unwrap_or_default(),
        letter: place,
    })
}
