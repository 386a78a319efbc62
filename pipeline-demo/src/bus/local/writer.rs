//! The one task of a process that writes to the local log, many writes in one transaction.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use friday::clock::Clock;
use sqlx::sqlite::{SqliteConnection, SqlitePool};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::{BusError, NewRecord, Position, Shared, unavailable};
use crate::seeded::stable_hash;
use crate::telemetry::chain;

/// Writes in one transaction at most, so that other processes get their turn: 512 take about 10 ms.
const BATCH_MAX: usize = 512;

/// Most records a partition may hold. A group that is away for long must not fill the disk: at 400 bytes a record, four
/// partitions of 250,000 are 400 MB. Then `produce` is refused until somebody catches up.
const PARTITION_RECORDS_MAX: i64 = 250_000;

/// How long a write waits for company. Synchronising the disk and changing hands cost the same for one record as for a
/// hundred; with 10 ms, a process writes at most a hundred transactions a second, and nobody waits for a tweet's result.
const LINGER: Duration = Duration::from_millis(10);

/// How often records that everybody has done with are deleted.
const CLEAN_EVERY: Duration = Duration::from_secs(1);

/// Most records deleted in one go from a partition, a transaction of about 50 ms. 10,000 a second and partition is more
/// than this log can take in.
const CLEAN_MAX: i64 = 10_000;

type Done<T> = oneshot::Sender<Result<T, BusError>>;

/// Something to write, and whom to tell that it is durable.
#[derive(Debug)]
pub(super) enum Write {
    Topic {
        topic: String,
        partitions: u32,
        done: Done<()>,
    },
    Append {
        topic: String,
        record: NewRecord,
        done: Done<Position>,
    },
    Join {
        topic: i64,
        group: String,
        partitions: u32,
        done: Done<Vec<i64>>,
    },
    Commit {
        topic: i64,
        group: String,
        next: Vec<Position>,
        done: Done<()>,
    },
}

/// An answer that is given once the transaction is committed.
type Answer = Box<dyn FnOnce(Result<(), &sqlx::Error>) + Send>;

pub(super) async fn run(
    pool: SqlitePool,
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    mut writes: mpsc::Receiver<Write>,
) {
    let mut batch = Vec::new();
    let mut turn = 0;
    let mut clean_at = Instant::now() + CLEAN_EVERY;
    while writes.recv_many(&mut batch, BATCH_MAX).await > 0 {
        if batch.len() < BATCH_MAX {
            sleep(LINGER).await;
            while batch.len() < BATCH_MAX
                && let Ok(write) = writes.try_recv()
            {
                batch.push(write);
            }
        }
        let clean = Instant::now() >= clean_at;
        let mut answers = Vec::with_capacity(batch.len());
        let now_ms = clock.now().as_millisecond();
        let batch = batch.drain(..);
        let written = transaction(&pool, batch, now_ms, clean, &mut turn, &mut answers).await;
        if let Err(error) = &written {
            warn!(
                error = chain(error),
                "local log: a transaction failed, its writers are told"
            );
        }
        for answer in answers {
            answer(written.as_ref().copied());
        }
        shared
            .appended
            .send_modify(|transactions| *transactions += 1);
        if clean {
            clean_at = Instant::now() + CLEAN_EVERY;
        }
    }
}

/// Writes a batch. Whatever becomes of it, `answers` has one answer for every write.
async fn transaction(
    pool: &SqlitePool,
    batch: impl Iterator<Item = Write>,
    now_ms: i64,
    clean: bool,
    turn: &mut usize,
    answers: &mut Vec<Answer>,
) -> Result<(), sqlx::Error> {
    // A transaction that began by reading could not become a writing one while another process writes.
    let mut open = pool.begin_with("BEGIN IMMEDIATE").await;
    let mut failed: Option<sqlx::Error> = None;
    let mut appends = Appends {
        now_ms,
        ..Appends::default()
    };
    for write in batch {
        let connection = match &mut open {
            Ok(transaction) if failed.is_none() => Some(&mut **transaction),
            Ok(_) | Err(_) => None,
        };
        let outcome = match write {
            Write::Append {
                topic,
                record,
                done,
            } => append(connection, &mut appends, turn, topic, record, done, answers).await,
            Write::Topic {
                topic,
                partitions,
                done,
            } => {
                let made = match connection {
                    Some(connection) => create_topic(connection, &topic, partitions).await,
                    None => Ok(()),
                };
                settle(made, "create", topic, done, answers)
            }
            Write::Join {
                topic,
                group,
                partitions,
                done,
            } => {
                let joined = match connection {
                    Some(connection) => join(connection, topic, &group, partitions).await,
                    None => Ok(Vec::new()),
                };
                settle(joined, "join", format!("as group {group}"), done, answers)
            }
            Write::Commit {
                topic,
                group,
                next,
                done,
            } => {
                let committed = match connection {
                    Some(connection) => commit(connection, topic, &group, &next).await,
                    None => Ok(()),
                };
                settle(
                    committed,
                    "commit",
                    format!("as group {group}"),
                    done,
                    answers,
                )
            }
        };
        if let Err(error) = outcome {
            failed.get_or_insert(error);
        }
    }
    let mut transaction = open?;
    if let Some(error) = failed {
        return Err(error);
    }
    appends.save_heads(&mut transaction).await?;
    if clean {
        delete_done(&mut transaction).await?;
    }
    transaction.commit().await
}

/// Promises an answer: the value if the transaction is committed, the error of the transaction otherwise.
fn settle<T: Send + 'static>(
    outcome: Result<T, sqlx::Error>,
    action: &'static str,
    topic: String,
    done: Done<T>,
    answers: &mut Vec<Answer>,
) -> Result<(), sqlx::Error> {
    let (value, error) = match outcome {
        Ok(value) => (Some(value), None),
        Err(error) => (None, Some(error)),
    };
    answers.push(Box::new(move |written| {
        let answer = match (written, value) {
            (Ok(()), Some(value)) => Ok(value),
            (Err(error), _) => Err(unavailable(action, &topic)(told(error))),
            (Ok(()), None) => Err(BusError::Closed),
        };
        // Whoever asked may be gone.
        done.send(answer).ok();
    }));
    error.map_or(Ok(()), Err)
}

/// An error for one of many: `sqlx::Error` cannot be cloned.
fn told(error: &sqlx::Error) -> sqlx::Error {
    sqlx::Error::Protocol(error.to_string())
}

/// Where the partitions end, as far as this transaction knows.
#[derive(Debug, Default)]
struct Appends {
    /// When this transaction is written, in milliseconds since 1970.
    now_ms: i64,
    topics: BTreeMap<String, Option<(i64, u32)>>,
    heads: BTreeMap<(i64, u32), Head>,
}

#[derive(Debug)]
struct Head {
    next: i64,
    full_at: i64,
}

impl Appends {
    async fn topic(
        &mut self,
        connection: &mut SqliteConnection,
        topic: &str,
    ) -> Result<Option<(i64, u32)>, sqlx::Error> {
        if let Some(known) = self.topics.get(topic) {
            return Ok(*known);
        }
        let found = sqlx::query_as("SELECT id, partitions FROM topics WHERE topic = ?")
            .bind(topic)
            .fetch_optional(connection)
            .await?;
        self.topics.insert(topic.to_owned(), found);
        Ok(found)
    }

    async fn head(
        &mut self,
        connection: &mut SqliteConnection,
        topic: i64,
        partition: u32,
    ) -> Result<&mut Head, sqlx::Error> {
        match self.heads.entry((topic, partition)) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(unknown) => {
                let (next, oldest): (i64, Option<i64>) = sqlx::query_as(
                    "SELECT next, (SELECT min(offset) FROM records WHERE topic = ?1 AND partition = ?2)
                     FROM heads WHERE topic = ?1 AND partition = ?2",
                )
                .bind(topic)
                .bind(partition)
                .fetch_one(connection)
                .await?;
                let full_at = oldest.unwrap_or(next) + PARTITION_RECORDS_MAX;
                Ok(unknown.insert(Head { next, full_at }))
            }
        }
    }

    async fn save_heads(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        for ((topic, partition), head) in &self.heads {
            sqlx::query("UPDATE heads SET next = ? WHERE topic = ? AND partition = ?")
                .bind(head.next)
                .bind(topic)
                .bind(partition)
                .execute(&mut *connection)
                .await?;
        }
        Ok(())
    }
}

async fn append(
    connection: Option<&mut SqliteConnection>,
    appends: &mut Appends,
    turn: &mut usize,
    topic: String,
    record: NewRecord,
    done: Done<Position>,
    answers: &mut Vec<Answer>,
) -> Result<(), sqlx::Error> {
    let nowhere = Position {
        partition: 0,
        offset: 0,
    };
    let Some(connection) = connection else {
        return settle(Ok(nowhere), "append to", topic, done, answers);
    };
    let inserted = async {
        let Some((id, partitions)) = appends.topic(connection, &topic).await? else {
            return Ok(Err(BusError::UnknownTopic {
                topic: topic.clone(),
            }));
        };
        let partition = match &record.key {
            Some(key) => stable_hash(key) % u64::from(partitions.max(1)),
            None => {
                *turn = turn.wrapping_add(1);
                *turn as u64 % u64::from(partitions.max(1))
            }
        } as u32;
        let head = appends.head(connection, id, partition).await?;
        if head.next >= head.full_at {
            return Ok(Err(BusError::Full {
                topic: topic.clone(),
                partition,
            }));
        }
        let offset = head.next;
        head.next += 1;
        sqlx::query(
            "INSERT INTO records (topic, partition, offset, key, value, appended_ms) VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(id)
        .bind(partition)
        .bind(offset)
        .bind(record.key.as_deref())
        .bind(&record.value[..])
        .bind(appends.now_ms)
        .execute(&mut *connection)
        .await?;
        Ok(Ok(Position { partition, offset }))
    };
    match inserted.await {
        Ok(Ok(position)) => settle(Ok(position), "append to", topic, done, answers),
        // Refused, and nothing was written: the others of the batch go on.
        Ok(Err(refused)) => {
            done.send(Err(refused)).ok();
            Ok(())
        }
        Err(error) => settle(Err(error), "append to", topic, done, answers),
    }
}

async fn create_topic(
    connection: &mut SqliteConnection,
    topic: &str,
    partitions: u32,
) -> Result<(), sqlx::Error> {
    // Another process may have been quicker; then the topic stays as that one made it.
    let created = sqlx::query(
        "INSERT INTO topics (topic, id, partitions)
         VALUES (?, (SELECT coalesce(max(id), 0) + 1 FROM topics), ?) ON CONFLICT DO NOTHING",
    )
    .bind(topic)
    .bind(partitions)
    .execute(&mut *connection)
    .await?;
    if created.rows_affected() == 0 {
        return Ok(());
    }
    for partition in 0..partitions {
        sqlx::query("INSERT INTO heads SELECT id, ?, 0 FROM topics WHERE topic = ?")
            .bind(partition)
            .bind(topic)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Makes the group known, so that nothing it has not read is deleted, and returns where it goes on.
async fn join(
    connection: &mut SqliteConnection,
    topic: i64,
    group: &str,
    partitions: u32,
) -> Result<Vec<i64>, sqlx::Error> {
    let mut next = Vec::new();
    for partition in 0..partitions {
        sqlx::query(
            "INSERT INTO groups SELECT ?1, ?2, ?3, coalesce(
                (SELECT min(offset) FROM records WHERE topic = ?1 AND partition = ?3),
                (SELECT next FROM heads WHERE topic = ?1 AND partition = ?3))
             ON CONFLICT DO NOTHING",
        )
        .bind(topic)
        .bind(group)
        .bind(partition)
        .execute(&mut *connection)
        .await?;
        let committed = sqlx::query_scalar(
            "SELECT committed FROM groups WHERE topic = ? AND name = ? AND partition = ?",
        )
        .bind(topic)
        .bind(group)
        .bind(partition)
        .fetch_one(&mut *connection)
        .await?;
        next.push(committed);
    }
    Ok(next)
}

async fn commit(
    connection: &mut SqliteConnection,
    topic: i64,
    group: &str,
    next: &[Position],
) -> Result<(), sqlx::Error> {
    for Position { partition, offset } in next {
        // A commit that comes late must not bring done records back.
        sqlx::query(
            "UPDATE groups SET committed = max(committed, ?) WHERE topic = ? AND name = ? AND partition = ?",
        )
        .bind(offset)
        .bind(topic)
        .bind(group)
        .bind(partition)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Deletes what every group of a topic has committed. A topic that no group ever read keeps everything.
async fn delete_done(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let done: Vec<(i64, u32, i64)> = sqlx::query_as(
        "SELECT topic, partition, min(committed) FROM groups GROUP BY topic, partition",
    )
    .fetch_all(&mut *connection)
    .await?;
    for (topic, partition, committed) in done {
        sqlx::query(
            "DELETE FROM records WHERE topic = ?1 AND partition = ?2 AND offset < min(?3, ?4 +
                (SELECT min(offset) FROM records WHERE topic = ?1 AND partition = ?2))",
        )
        .bind(topic)
        .bind(partition)
        .bind(committed)
        .bind(CLEAN_MAX)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}
