//! A durable log in one SQLite file: the bus of a machine on which nothing is installed.
//!
//! Several processes may have it open at once (subscriber, feeder, sink): SQLite's WAL lets them read while one writes.
//! A record that was produced survives the death of any process and of the machine (`synchronous = FULL`). In each
//! process one task writes and takes everything that waits into one transaction, so the disk is synchronised once for
//! many records. Records below what every group has committed are deleted as time passes, and SQLite uses their pages
//! again, so a demo that runs for days stays small.

mod consumer;
mod writer;

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use friday::clock::SystemClock;
use jiff::Timestamp;
use sqlx::Row;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep};

use super::{
    Bus, BusError, Consumer, NewRecord, PARTITIONS, Position, Reader, Record, Span, Standing,
    check_size,
};
use crate::file_lock::lock;
use consumer::{LocalConsumer, LocalReader};
use writer::Write;

/// The log's file in its directory.
const FILE: &str = "log.sqlite";

/// Version of the tables, kept in the file's `user_version`.
const SCHEMA_VERSION: i64 = 2;

const SCHEMA: &str = "
    CREATE TABLE topics (
        topic TEXT PRIMARY KEY, id INTEGER NOT NULL UNIQUE, partitions INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE heads (
        topic INTEGER NOT NULL, partition INTEGER NOT NULL, next INTEGER NOT NULL,
        PRIMARY KEY (topic, partition)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE records (
        topic INTEGER NOT NULL, partition INTEGER NOT NULL, offset INTEGER NOT NULL,
        key BLOB, value BLOB NOT NULL, appended_ms INTEGER,
        PRIMARY KEY (topic, partition, offset)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE groups (
        topic INTEGER NOT NULL, name TEXT NOT NULL, partition INTEGER NOT NULL, committed INTEGER NOT NULL,
        PRIMARY KEY (topic, name, partition)
    ) STRICT, WITHOUT ROWID;
    PRAGMA user_version = 2;";

/// From version 1, whose records do not say when they were appended.
const UPGRADE_1: &str =
    "ALTER TABLE records ADD COLUMN appended_ms INTEGER; PRAGMA user_version = 2;";

/// How long SQLite waits for another process's transaction. Ours take milliseconds; a machine under load, or a disk that
/// is slow to synchronise, may take seconds.
const BUSY_WAIT_MAX: Duration = Duration::from_secs(10);

/// How often an idle consumer looks whether another process produced something: what a record may wait at most, at a
/// price of 50 tiny queries a second. Records of the same process wake it at once.
const POLL: Duration = Duration::from_millis(20);

/// How long a new consumer waits for the one before it to end, as when a process is replaced.
const GROUP_WAIT_MAX: Duration = Duration::from_secs(5);

/// Writes that may wait for the writing task; then `produce` itself waits.
const WRITES_WAITING_MAX: usize = 4_096;

/// Connections for reading: each consumer and each question holds one for a moment.
const READERS_MAX: u32 = 4;

/// The local log.
#[derive(Debug)]
pub struct LocalLog {
    shared: Arc<Shared>,
    writes: mpsc::Sender<Write>,
}

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    readers: SqlitePool,
    /// Counts the transactions of this process, to wake its consumers.
    appended: watch::Sender<u64>,
}

impl LocalLog {
    /// Opens the log in `directory` and creates both if they are missing.
    ///
    /// # Errors
    /// When the directory or the file cannot be used; a file that is damaged, or of a newer version, is left as it is.
    pub async fn open(directory: &Path) -> Result<Self, BusError> {
        let path = directory.join(FILE);
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| BusError::Open {
            path: path.clone(),
            source,
        };
        // Two processes that create the file at once would trip over each other; the lock ends with this function.
        let _opening = lock(&directory.join("open.lock"))
            .await
            .map_err(|e| failed(e.into()))?;
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_WAIT_MAX);
        let writers = SqlitePoolOptions::new().max_connections(1);
        let writers = writers.connect_with(options.clone()).await;
        let writers = writers.map_err(|e| failed(e.into()))?;
        let version: i64 = sqlx::query_scalar("PRAGMA user_version")
            .fetch_one(&writers)
            .await
            .map_err(|e| failed(e.into()))?;
        match version {
            SCHEMA_VERSION => {}
            older @ (0 | 1) => {
                let script = if older == 0 { SCHEMA } else { UPGRADE_1 };
                let made = sqlx::raw_sql(script).execute(&writers).await;
                made.map_err(|e| failed(e.into()))?;
            }
            newer => {
                let text = format!("its tables are of version {newer}, not {SCHEMA_VERSION}");
                return Err(failed(text.into()));
            }
        }
        let readers = SqlitePoolOptions::new().max_connections(READERS_MAX);
        let readers = readers.connect_with(options).await;
        let shared = Arc::new(Shared {
            directory: directory.to_owned(),
            readers: readers.map_err(|e| failed(e.into()))?,
            appended: watch::Sender::new(0),
        });
        let (writes, waiting) = mpsc::channel(WRITES_WAITING_MAX);
        // Ends by itself when the log and all its consumers are dropped and what they wrote is saved.
        let clock = SystemClock::new();
        tokio::spawn(writer::run(writers, shared.clone(), clock, waiting));
        Ok(Self { shared, writes })
    }
}

#[async_trait]
impl Bus for LocalLog {
    async fn ensure_topic(&self, topic: &str) -> Result<(), BusError> {
        if self.shared.topic(topic).await?.is_some() {
            return Ok(());
        }
        ask(&self.writes, |done| Write::Topic {
            topic: topic.to_owned(),
            partitions: PARTITIONS,
            done,
        })
        .await
    }

    async fn partitions(&self, topic: &str) -> Result<u32, BusError> {
        Ok(self.shared.known_topic(topic).await?.partitions)
    }

    async fn produce(&self, topic: &str, record: NewRecord) -> Result<Position, BusError> {
        check_size(topic, &record)?;
        ask(&self.writes, |done| Write::Append {
            topic: topic.to_owned(),
            record,
            done,
        })
        .await
    }

    async fn consumer(&self, topic: &str, group: &str) -> Result<Box<dyn Consumer>, BusError> {
        let Topic { id, partitions } = self.shared.known_topic(topic).await?;
        let lock = self.shared.lock_group(topic, group).await?;
        let next = ask(&self.writes, |done| Write::Join {
            topic: id,
            group: group.to_owned(),
            partitions,
            done,
        })
        .await?;
        let consumer = LocalConsumer::new(
            self.shared.clone(),
            self.writes.clone(),
            (topic, id),
            group,
            next,
            lock,
        );
        Ok(Box::new(consumer))
    }

    async fn ends(&self, topic: &str) -> Result<Vec<(i64, i64)>, BusError> {
        let Topic { id, .. } = self.shared.known_topic(topic).await?;
        sqlx::query_as(
            "SELECT coalesce((SELECT min(offset) FROM records
                WHERE records.topic = heads.topic AND records.partition = heads.partition), next), next
             FROM heads WHERE topic = ? ORDER BY partition",
        )
        .bind(id)
        .fetch_all(&self.shared.readers)
        .await
        .map_err(unavailable("read", topic))
    }

    async fn offsets_at(&self, topic: &str, time: Timestamp) -> Result<Vec<i64>, BusError> {
        let Topic { id, .. } = self.shared.known_topic(topic).await?;
        sqlx::query_scalar(
            "SELECT coalesce((SELECT min(offset) FROM records
                WHERE records.topic = heads.topic AND records.partition = heads.partition
                AND appended_ms >= ?2), next)
             FROM heads WHERE topic = ?1 ORDER BY partition",
        )
        .bind(id)
        .bind(time.as_millisecond())
        .fetch_all(&self.shared.readers)
        .await
        .map_err(unavailable("read", topic))
    }

    async fn reader(&self, topic: &str, spans: &[Span]) -> Result<Box<dyn Reader>, BusError> {
        let Topic { id, .. } = self.shared.known_topic(topic).await?;
        let reader = LocalReader::new(self.shared.clone(), (topic, id), spans);
        Ok(Box::new(reader))
    }

    async fn standing(&self, topic: &str, group: &str) -> Result<Vec<Standing>, BusError> {
        let Topic { id, .. } = self.shared.known_topic(topic).await?;
        let rows: Vec<(u32, i64, Option<i64>, i64)> = sqlx::query_as(
            "SELECT heads.partition,
                coalesce((SELECT min(offset) FROM records
                    WHERE records.topic = heads.topic AND records.partition = heads.partition), heads.next),
                groups.committed, heads.next
             FROM heads LEFT JOIN groups
             ON groups.topic = heads.topic AND groups.partition = heads.partition AND groups.name = ?2
             WHERE heads.topic = ?1 ORDER BY heads.partition",
        )
        .bind(id)
        .bind(group)
        .fetch_all(&self.shared.readers)
        .await
        .map_err(unavailable("read", topic))?;
        let standing = rows
            .into_iter()
            .map(|(partition, oldest, committed, next)| Standing {
                partition,
                oldest,
                committed,
                next,
            });
        Ok(standing.collect())
    }
}

#[derive(Debug, Clone, Copy)]
struct Topic {
    id: i64,
    partitions: u32,
}

impl Shared {
    async fn topic(&self, topic: &str) -> Result<Option<Topic>, BusError> {
        let row = sqlx::query("SELECT id, partitions FROM topics WHERE topic = ?")
            .bind(topic)
            .fetch_optional(&self.readers)
            .await
            .map_err(unavailable("find", topic))?;
        Ok(row.map(|row| Topic {
            id: row.get(0),
            partitions: row.get(1),
        }))
    }

    async fn known_topic(&self, topic: &str) -> Result<Topic, BusError> {
        self.topic(topic).await?.ok_or(BusError::UnknownTopic {
            topic: topic.to_owned(),
        })
    }

    /// Records of one partition from an offset on, and before another.
    async fn records(
        &self,
        (topic, id): (&str, i64),
        span: Span,
        records_max: usize,
    ) -> Result<Vec<Record>, BusError> {
        let rows = sqlx::query(
            "SELECT offset, key, value, appended_ms FROM records
             WHERE topic = ? AND partition = ? AND offset >= ? AND offset < ? ORDER BY offset LIMIT ?",
        )
        .bind(id)
        .bind(span.partition)
        .bind(span.from)
        .bind(span.to)
        .bind(records_max as i64)
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable("read", topic))?;
        let records = rows.into_iter().map(|row| Record {
            position: Position {
                partition: span.partition,
                offset: row.get(0),
            },
            key: row.get::<Option<Vec<u8>>, _>(1).map(Bytes::from),
            value: row.get::<Vec<u8>, _>(2).into(),
            produced_at: row
                .get::<Option<i64>, _>(3)
                .and_then(|ms| Timestamp::from_millisecond(ms).ok()),
        });
        Ok(records.collect())
    }

    /// A file lock that the system frees when its holder ends, however it ends.
    async fn lock_group(&self, topic: &str, group: &str) -> Result<File, BusError> {
        let path = self.directory.join(format!("{topic}.{group}.lock"));
        let failed = |source: std::io::Error| BusError::Open {
            path: path.clone(),
            source: source.into(),
        };
        let file = File::create(&path).map_err(failed)?;
        let deadline = Instant::now() + GROUP_WAIT_MAX;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => sleep(POLL).await,
                Err(TryLockError::WouldBlock) => {
                    let (topic, group) = (topic.to_owned(), group.to_owned());
                    return Err(BusError::GroupTaken { topic, group });
                }
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
    }
}

/// Hands a write to the writing task and waits for its answer.
async fn ask<T>(
    writes: &mpsc::Sender<Write>,
    write: impl FnOnce(oneshot::Sender<Result<T, BusError>>) -> Write,
) -> Result<T, BusError> {
    let (done, answer) = oneshot::channel();
    let sent = writes.send(write(done)).await;
    sent.map_err(|_| BusError::Closed)?;
    answer.await.map_err(|_| BusError::Closed)?
}

fn unavailable(action: &'static str, topic: &str) -> impl FnOnce(sqlx::Error) -> BusError {
    move |source| BusError::Unavailable {
        action,
        topic: topic.to_owned(),
        source: source.into(),
    }
}
