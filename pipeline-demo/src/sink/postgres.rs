//! Results, dead letters and counts in PostgreSQL.
//!
//! A batch is one transaction of a few statements whatever its size: columns travel as arrays and become rows there.
//! Several sinks may store at once: all take their locks in the same order (results, second places, dead letters,
//! counts, each by key), and what PostgreSQL ends for the sake of others is done again. Dead letters are not stored beside
//! results: of a result and a letter of one task that come at once, neither would see the other.

mod maintenance;
mod migrate;

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::fmt;

use async_trait::async_trait;
use sqlx::postgres::{PgArguments, PgPool, PgRow, Postgres};
use sqlx::query::Query;
use sqlx::{Executor, PgConnection, Row as _};
use tracing::debug;

use super::deltas::{Deltas, MINUTE_S};
use super::rows::{Batch, Duplicate, Fact, Letter, Old, Row, place, settle};
use super::storage::{Receipt, Storage, StorageError, Stored};
use crate::bus::Position;
use crate::seeded::stable_hash;

/// How often a transaction that PostgreSQL ended for the sake of another is done again at once. Two sinks that collide
/// do so once; what fails so often has another reason and waits as any trouble does.
const ATTEMPTS_MAX: u32 = 5;

/// SQLSTATEs of such an end: serialization failure, deadlock, a lock that did not come in time.
const AGAIN: [&str; 3] = ["40001", "40P01", "55P03"];

/// Classes of SQLSTATEs that say that the data are at fault: data exception, constraint, a limit of the program. What
/// they refuse they refuse always.
const REFUSED: [&str; 3] = ["22", "23", "54"];

/// The store in a database.
#[derive(Clone)]
pub struct PostgresStorage {
    pub(crate) pool: PgPool,
    shown: String,
}

impl fmt::Debug for PostgresStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shown, .. } = self;
        f.debug_struct("PostgresStorage")
            .field("database", shown)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Storage for PostgresStorage {
    async fn store(&self, batch: &Batch) -> Result<Receipt, StorageError> {
        let mut attempt = 1;
        loop {
            match self.try_store(batch).await {
                Ok(receipt) => return Ok(receipt),
                Err(error) if attempt < ATTEMPTS_MAX && is_again(&error) => attempt += 1,
                Err(error) => return Err(failed("store rows", error)),
            }
            debug!(
                attempt,
                "sink: another transaction went first, doing it again"
            );
        }
    }

    async fn stored(&self) -> Result<Stored, StorageError> {
        self.count_rows().await
    }
}

impl PostgresStorage {
    async fn try_store(&self, batch: &Batch) -> Result<Receipt, sqlx::Error> {
        let mut transaction = self.pool.begin().await?;
        let mut storing = Storing {
            connection: &mut transaction,
            batch,
            deltas: Deltas::default(),
            receipt: Receipt {
                redelivered: batch.redelivered,
                ..Receipt::default()
            },
        };
        storing.take_turn().await?;
        let duplicates = storing.results().await?;
        storing.duplicates(&duplicates).await?;
        storing.no_letters_any_more().await?;
        storing.letters().await?;
        storing.counts().await?;
        let Storing { receipt, .. } = storing;
        transaction.commit().await?;
        Ok(receipt)
    }
}

/// One transaction.
struct Storing<'a> {
    connection: &'a mut PgConnection,
    batch: &'a Batch,
    deltas: Deltas,
    receipt: Receipt,
}

/// The columns of results, from arrays.
macro_rules! results_from_arrays {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " SELECT tweet_id, author_id, created_at, release, language, sentiment, sentiment_label, hashtags,
                features::json, minute, late, result_partition, result_offset, origin_partition, origin_offset, $16::bigint
              FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::float8[], $7::text[], $8::text[],
                $9::text[], $10::bigint[], $11::bool[], $12::bigint[], $13::bigint[], $14::bigint[], $15::bigint[])
              AS t (tweet_id, author_id, created_at, release, language, sentiment, sentiment_label, hashtags,
                features, minute, late, result_partition, result_offset, origin_partition, origin_offset) ",
            $after
        )
    };
}

const INSERT_RESULTS: &str = results_from_arrays!(
    "INSERT INTO results (tweet_id, author_id, created_at, release, language, sentiment, sentiment_label, hashtags,
        features, minute, late, result_partition, result_offset, origin_partition, origin_offset, stored_ms)",
    "ON CONFLICT (tweet_id) DO NOTHING RETURNING tweet_id"
);

const REPLACE_RESULTS: &str = results_from_arrays!(
    "UPDATE results SET author_id = n.author_id, created_at = n.created_at, release = n.release,
        language = n.language, sentiment = n.sentiment, sentiment_label = n.sentiment_label, hashtags = n.hashtags,
        features = n.features, minute = n.minute, late = n.late, result_partition = n.result_partition,
        result_offset = n.result_offset, origin_partition = n.origin_partition, origin_offset = n.origin_offset,
        stored_ms = n.stored_ms FROM (",
    ") AS n (tweet_id, author_id, created_at, release, language, sentiment, sentiment_label, hashtags,
        features, minute, late, result_partition, result_offset, origin_partition, origin_offset, stored_ms)
     WHERE results.tweet_id = n.tweet_id"
);

impl Storing<'_> {
    /// Batches of results go beside each other; one with dead letters goes alone. The lock ends with the transaction.
    async fn take_turn(&mut self) -> Result<(), sqlx::Error> {
        let lock = if self.batch.letters.is_empty() {
            "SELECT pg_advisory_xact_lock_shared($1)"
        } else {
            "SELECT pg_advisory_xact_lock($1)"
        };
        let key = stable_hash(b"pipeline-demo dead letters").cast_signed();
        self.connection.execute(sqlx::query(lock).bind(key)).await?;
        Ok(())
    }

    /// Stores the results; gives the second places that showed up.
    async fn results(&mut self) -> Result<Vec<Duplicate>, sqlx::Error> {
        let mut duplicates = self.batch.duplicates.clone();
        let rows: Vec<&Row> = self.batch.rows.iter().collect();
        if rows.is_empty() {
            return Ok(duplicates);
        }
        let inserted = bind_results(INSERT_RESULTS, &rows, self.batch.now_ms)
            .fetch_all(&mut *self.connection)
            .await?;
        let inserted: HashSet<&str> = inserted
            .iter()
            .map(|row| row.try_get(0))
            .collect::<Result<_, _>>()?;
        let mut known = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            if inserted.contains(row.tweet_id.as_str()) {
                self.deltas.result(&row.fact, 1);
                self.receipt.results.push(index);
            } else {
                known.push(index);
            }
        }
        if known.is_empty() {
            return Ok(duplicates);
        }
        let ids: Vec<&str> = known.iter().map(|at| rows[*at].tweet_id.as_str()).collect();
        let old = sqlx::query(
            "SELECT tweet_id, release, language, sentiment, sentiment_label, hashtags, minute, late,
                result_partition, result_offset, origin_partition, origin_offset
             FROM results WHERE tweet_id = ANY($1) ORDER BY tweet_id FOR UPDATE",
        )
        .bind(&ids)
        .fetch_all(&mut *self.connection)
        .await?;
        let mut old: HashMap<String, Old> = old.iter().map(read_old).collect::<Result<_, _>>()?;
        let mut replacing = Vec::new();
        let mut kept = HashSet::new();
        for index in known {
            let row = rows[index];
            // Removed in between: the whole transaction has to look again.
            let Some(old) = old.remove(&row.tweet_id) else {
                return Err(gone());
            };
            let settled = settle(&old, row);
            if settled.replaces {
                self.deltas.result(&old.fact, -1);
                self.deltas.result(&row.fact, 1);
                self.receipt.replaced.push(index);
                replacing.push(row);
            } else {
                self.receipt.redelivered += 1;
                kept.extend(old.origin);
            }
            duplicates.extend(settled.duplicate);
        }
        // A place that came last in the batch may be the stored row's own.
        duplicates.retain(|duplicate| !kept.contains(&duplicate.origin));
        if !replacing.is_empty() {
            bind_results(REPLACE_RESULTS, &replacing, self.batch.now_ms)
                .execute(&mut *self.connection)
                .await?;
            self.no_duplicates_any_more(&replacing).await?;
        }
        Ok(duplicates)
    }

    /// What was a second place may have become the place of the row.
    async fn no_duplicates_any_more(&mut self, rows: &[&Row]) -> Result<(), sqlx::Error> {
        let (partitions, offsets): (Vec<i64>, Vec<i64>) =
            rows.iter().filter_map(|row| row.origin).map(place).unzip();
        let removed: Vec<(i64, String)> = sqlx::query_as(
            "DELETE FROM duplicates USING UNNEST($1::bigint[], $2::bigint[]) AS n (p, o)
             WHERE origin_partition = p AND origin_offset = o RETURNING minute, release",
        )
        .bind(&partitions)
        .bind(&offsets)
        .fetch_all(&mut *self.connection)
        .await?;
        for (minute, release) in removed {
            self.deltas.duplicate(minute, &release, -1);
        }
        Ok(())
    }

    async fn duplicates(&mut self, duplicates: &[Duplicate]) -> Result<(), sqlx::Error> {
        if duplicates.is_empty() {
            return Ok(());
        }
        let mut duplicates: Vec<&Duplicate> = duplicates.iter().collect();
        duplicates.sort_by_key(|duplicate| duplicate.origin);
        duplicates.dedup_by_key(|duplicate| duplicate.origin);
        let (partitions, offsets): (Vec<i64>, Vec<i64>) = duplicates
            .iter()
            .map(|duplicate| place(duplicate.origin))
            .unzip();
        let ids: Vec<&str> = duplicates.iter().map(|d| d.tweet_id.as_str()).collect();
        let releases: Vec<&str> = duplicates.iter().map(|d| d.release.as_str()).collect();
        let inserted: Vec<String> = sqlx::query_scalar(
            "INSERT INTO duplicates (origin_partition, origin_offset, tweet_id, release, minute, stored_ms)
             SELECT p, o, id, release, $5, $6
             FROM UNNEST($1::bigint[], $2::bigint[], $3::text[], $4::text[]) AS n (p, o, id, release)
             ON CONFLICT DO NOTHING RETURNING release",
        )
        .bind(&partitions)
        .bind(&offsets)
        .bind(&ids)
        .bind(&releases)
        .bind(self.batch.minute())
        .bind(self.batch.now_ms)
        .fetch_all(&mut *self.connection)
        .await?;
        for release in inserted {
            self.deltas.duplicate(self.batch.minute(), &release, 1);
            self.receipt.duplicates += 1;
        }
        Ok(())
    }

    /// What was refused and has a result after all.
    async fn no_letters_any_more(&mut self) -> Result<(), sqlx::Error> {
        let (places, ids): (Vec<Position>, Vec<&str>) = self.batch.answered().unzip();
        if places.is_empty() {
            return Ok(());
        }
        let (partitions, offsets): (Vec<i64>, Vec<i64>) = places.into_iter().map(place).unzip();
        let removed: Vec<(i64, String, String)> = sqlx::query_as(
            "DELETE FROM malformed AS m USING UNNEST($1::bigint[], $2::bigint[], $3::text[]) AS n (p, o, id)
             WHERE m.origin_partition = n.p AND m.origin_offset = n.o AND (m.tweet_id IS NULL OR m.tweet_id = n.id)
             RETURNING m.minute, m.code, m.release",
        )
        .bind(&partitions)
        .bind(&offsets)
        .bind(&ids)
        .fetch_all(&mut *self.connection)
        .await?;
        for (minute, code, release) in removed {
            self.deltas.letter(minute, &code, &release, -1);
            self.receipt.overruled += 1;
        }
        Ok(())
    }

    /// Indices of the letters whose task has a result.
    async fn answered_letters(&mut self) -> Result<HashSet<usize>, sqlx::Error> {
        let letters = &self.batch.letters;
        let places = letters.iter().map(|letter| letter.origin.map(place));
        let (partitions, offsets): (Vec<Option<i64>>, Vec<Option<i64>>) =
            places.map(Option::unzip).unzip();
        let ids: Vec<Option<&str>> = letters.iter().map(|l| l.tweet_id.as_deref()).collect();
        let answered: Vec<i64> = sqlx::query_scalar(
            "SELECT n.number - 1 FROM UNNEST($1::bigint[], $2::bigint[], $3::text[]) WITH ORDINALITY
                AS n (p, o, id, number)
             WHERE EXISTS (SELECT FROM results AS r
                    WHERE r.origin_partition = n.p AND r.origin_offset = n.o AND (n.id IS NULL OR r.tweet_id = n.id))
                OR EXISTS (SELECT FROM duplicates AS d
                    WHERE d.origin_partition = n.p AND d.origin_offset = n.o AND (n.id IS NULL OR d.tweet_id = n.id))",
        )
        .bind(&partitions)
        .bind(&offsets)
        .bind(&ids)
        .fetch_all(&mut *self.connection)
        .await?;
        let answered = answered.into_iter();
        Ok(answered
            .filter_map(|number| number.try_into().ok())
            .collect())
    }

    async fn letters(&mut self) -> Result<(), sqlx::Error> {
        if self.batch.letters.is_empty() {
            return Ok(());
        }
        let answered = self.answered_letters().await?;
        self.receipt.overruled += answered.len() as u64;
        let numbered = self.batch.letters.iter().enumerate();
        let (indices, letters): (Vec<usize>, Vec<&Letter>) = numbered
            .filter(|(index, _)| !answered.contains(index))
            .unzip();
        if letters.is_empty() {
            return Ok(());
        }
        let minute = self.batch.minute();
        let inserted: Vec<(String, i64, i64)> = bind_letters(
            "INSERT INTO malformed (topic, partition, \"offset\", code, reason, release, original, letter_partition,
                letter_offset, tweet_id, origin_partition, origin_offset, minute, stored_ms)
             SELECT n.*, $13::bigint, $14::bigint
             FROM UNNEST($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::bytea[],
                $8::bigint[], $9::bigint[], $10::text[], $11::bigint[], $12::bigint[]) AS n
             ON CONFLICT DO NOTHING RETURNING topic, partition, \"offset\"",
            &letters,
            self.batch,
        )
        .fetch_all(&mut *self.connection)
        .await?
        .iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)))
        .collect::<Result<_, sqlx::Error>>()?;
        let inserted: HashSet<_> = inserted.into_iter().collect();
        let mut known = Vec::new();
        for (index, letter) in indices.into_iter().zip(&letters) {
            let (partition, offset) = place(letter.position);
            if inserted.contains(&(letter.topic.clone(), partition, offset)) {
                self.deltas.letter(minute, &letter.code, &letter.release, 1);
                self.receipt.letters.push(index);
            } else {
                known.push(*letter);
            }
        }
        if known.is_empty() {
            return Ok(());
        }
        self.later_letters(&known).await
    }

    /// A later letter of the same original takes the place of the earlier one.
    async fn later_letters(&mut self, letters: &[&Letter]) -> Result<(), sqlx::Error> {
        let minute = self.batch.minute();
        let old: Vec<(i64, String, String)> = bind_letters(
            "SELECT m.minute, m.code, m.release FROM malformed m
             JOIN UNNEST($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::bytea[],
                $8::bigint[], $9::bigint[], $10::text[], $11::bigint[], $12::bigint[])
                AS n (t, p, o, c, r, release, original, lp, lo, id, op, oo)
             ON m.topic = n.t AND m.partition = n.p AND m.\"offset\" = n.o
                AND (m.letter_partition, m.letter_offset) < (n.lp, n.lo) AND $13::bigint IS NOT NULL
                AND $14::bigint IS NOT NULL
             ORDER BY m.topic, m.partition, m.\"offset\" FOR UPDATE OF m",
            letters,
            self.batch,
        )
        .fetch_all(&mut *self.connection)
        .await?
        .iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)))
        .collect::<Result<_, sqlx::Error>>()?;
        self.receipt.redelivered += letters.len() as u64;
        if old.is_empty() {
            return Ok(());
        }
        let new: Vec<(String, String)> = bind_letters(
            "UPDATE malformed m SET code = n.c, reason = n.r, release = n.release, original = n.original,
                letter_partition = n.lp, letter_offset = n.lo, tweet_id = n.id, minute = $13, stored_ms = $14
             FROM UNNEST($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::bytea[],
                $8::bigint[], $9::bigint[], $10::text[], $11::bigint[], $12::bigint[])
                AS n (t, p, o, c, r, release, original, lp, lo, id, op, oo)
             WHERE m.topic = n.t AND m.partition = n.p AND m.\"offset\" = n.o
                AND (m.letter_partition, m.letter_offset) < (n.lp, n.lo)
             RETURNING m.code, m.release",
            letters,
            self.batch,
        )
        .fetch_all(&mut *self.connection)
        .await?
        .iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect::<Result<_, sqlx::Error>>()?;
        for (minute, code, release) in &old {
            self.deltas.letter(*minute, code, release, -1);
        }
        for (code, release) in &new {
            self.deltas.letter(minute, code, release, 1);
        }
        Ok(())
    }

    async fn counts(&mut self) -> Result<(), sqlx::Error> {
        let mut kinds = Vec::new();
        let (mut buckets, mut keys, mut releases) = (Vec::new(), Vec::new(), Vec::new());
        let (mut counts, mut micros) = (Vec::new(), Vec::new());
        for (counted, change) in self.deltas.changes() {
            kinds.push(counted.kind);
            buckets.push(counted.bucket_s);
            keys.push(counted.key.as_str());
            releases.push(counted.release.as_str());
            counts.push(change.count);
            micros.push(change.sentiment_micros);
        }
        if kinds.is_empty() {
            return Ok(());
        }
        let changed = sqlx::query(
            "INSERT INTO aggregates (kind, bucket_s, width_s, key, release, count, sentiment_micros)
             SELECT kind, bucket_s, $7, key, release, count, micros
             FROM UNNEST($1::text[], $2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::bigint[])
                AS n (kind, bucket_s, key, release, count, micros)
             ON CONFLICT (kind, bucket_s, width_s, key, release) DO UPDATE SET
                count = aggregates.count + excluded.count,
                sentiment_micros = aggregates.sentiment_micros + excluded.sentiment_micros",
        )
        .bind(&kinds)
        .bind(&buckets)
        .bind(&keys)
        .bind(&releases)
        .bind(&counts)
        .bind(&micros)
        .bind(MINUTE_S);
        self.connection.execute(changed).await?;
        Ok(())
    }
}

fn bind_results<'q>(
    sql: &'static str,
    rows: &[&'q Row],
    now_ms: i64,
) -> Query<'q, Postgres, PgArguments> {
    fn column<'r, T>(rows: &[&'r Row], of: impl Fn(&'r Row) -> T) -> Vec<T> {
        rows.iter().map(|row| of(row)).collect()
    }
    sqlx::query(sql)
        .bind(column(rows, |row| row.tweet_id.as_str()))
        .bind(column(rows, |row| row.author_id.as_deref()))
        .bind(column(rows, |row| row.created_at.as_deref()))
        .bind(column(rows, |row| row.fact.release.as_str()))
        .bind(column(rows, |row| row.fact.language.as_deref()))
        .bind(column(rows, |row| row.fact.sentiment))
        .bind(column(rows, |row| row.fact.sentiment_label.as_deref()))
        .bind(column(rows, |row| hashtags_text(&row.fact)))
        .bind(column(rows, |row| row.features.as_str()))
        .bind(column(rows, |row| row.fact.minute))
        .bind(column(rows, |row| row.fact.late))
        .bind(column(rows, |row| place(row.position).0))
        .bind(column(rows, |row| place(row.position).1))
        .bind(column(rows, |row| row.origin.map(|origin| place(origin).0)))
        .bind(column(rows, |row| row.origin.map(|origin| place(origin).1)))
        .bind(now_ms)
}

fn bind_letters<'q>(
    sql: &'static str,
    letters: &[&'q Letter],
    batch: &Batch,
) -> Query<'q, Postgres, PgArguments> {
    fn column<'r, T>(letters: &[&'r Letter], of: impl Fn(&'r Letter) -> T) -> Vec<T> {
        letters.iter().map(|letter| of(letter)).collect()
    }
    sqlx::query(sql)
        .bind(column(letters, |letter| letter.topic.as_str()))
        .bind(column(letters, |letter| place(letter.position).0))
        .bind(column(letters, |letter| place(letter.position).1))
        .bind(column(letters, |letter| letter.code.as_str()))
        .bind(column(letters, |letter| letter.reason.as_str()))
        .bind(column(letters, |letter| letter.release.as_str()))
        .bind(column(letters, |letter| letter.original.as_slice()))
        .bind(column(letters, |letter| place(letter.letter).0))
        .bind(column(letters, |letter| place(letter.letter).1))
        .bind(column(letters, |letter| letter.tweet_id.as_deref()))
        .bind(column(letters, |l| l.origin.map(|at| place(at).0)))
        .bind(column(letters, |l| l.origin.map(|at| place(at).1)))
        .bind(batch.minute())
        .bind(batch.now_ms)
}

fn read_old(row: &PgRow) -> Result<(String, Old), sqlx::Error> {
    let hashtags: String = row.try_get("hashtags")?;
    let fact = Fact {
        release: row.try_get("release")?,
        language: row.try_get("language")?,
        sentiment: row.try_get("sentiment")?,
        sentiment_label: row.try_get("sentiment_label")?,
        hashtags: hashtags_of(&hashtags),
        minute: row.try_get("minute")?,
        late: row.try_get("late")?,
    };
    let old = Old {
        fact,
        position: (
            row.try_get("result_partition")?,
            row.try_get("result_offset")?,
        ),
        origin: origin_of(
            row.try_get("origin_partition")?,
            row.try_get("origin_offset")?,
        ),
    };
    Ok((row.try_get("tweet_id")?, old))
}

/// The counted hashtags as the row keeps them.
pub(super) fn hashtags_text(fact: &Fact) -> String {
    serde_json::json!(fact.hashtags).to_string()
}

pub(super) fn hashtags_of(text: &str) -> Vec<String> {
    serde_json::from_str(text).unwrap_or_default()
}

pub(super) fn origin_of(partition: Option<i64>, offset: Option<i64>) -> Option<Position> {
    Some(Position {
        partition: partition?.try_into().ok()?,
        offset: offset?,
    })
}

/// A row was there a moment ago and is not: as if another transaction had gone first.
fn gone() -> sqlx::Error {
    sqlx::Error::RowNotFound
}

fn is_again(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(error, sqlx::Error::RowNotFound) || code.is_some_and(|code| AGAIN.contains(&&*code))
}

/// What an error means to whoever asked.
pub(crate) fn failed(action: &'static str, error: sqlx::Error) -> StorageError {
    let code = error.as_database_error().and_then(|error| error.code());
    let refused = code.is_some_and(|code| REFUSED.iter().any(|class| code.starts_with(class)));
    let source: Box<dyn Error + Send + Sync> = error.into();
    if refused {
        StorageError::Refused { action, source }
    } else {
        StorageError::Unavailable { action, source }
    }
}
