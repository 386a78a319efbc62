//! Results, dead letters and counts in one SQLite file.
//!
//! One transaction writes at a time, so what has to be looked up before it is changed cannot change in between.

mod maintenance;

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{Row as _, SqliteConnection};

use super::deltas::{Deltas, MINUTE_S};
use super::postgres::{hashtags_of, hashtags_text, origin_of};
use super::rows::{Batch, Duplicate, Fact, Letter, Old, Row, place, settle};
use super::storage::{Receipt, Storage, StorageError, Stored};
use crate::bus::Position;
use crate::file_lock::lock;

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// How long to wait for another process that writes to the same file.
const BUSY_WAIT_MAX: Duration = Duration::from_secs(10);

/// One for the sink's transactions, the others for whoever reads meanwhile.
const CONNECTIONS_MAX: u32 = 4;

/// SQLite's primary result codes that say that the data are at fault: too big, constraint, mismatch.
const REFUSED: [i64; 3] = [18, 19, 20];

/// The store in a file.
#[derive(Debug, Clone)]
pub struct SqliteStorage {
    pub(crate) pool: SqlitePool,
}

impl SqliteStorage {
    /// Opens the file; it and its directory are created if they are missing, and its tables brought up to date.
    ///
    /// # Errors
    /// When it cannot be opened, is damaged or of a newer version; the file is left as it is.
    pub async fn open(path: &Path) -> Result<Self, StorageError> {
        let failed = |source| StorageError::Open {
            path: path.to_owned(),
            source,
        };
        // SQLite does not wait for another that turns a new file to its write-ahead log, nor one migration for another.
        let mut beside = path.as_os_str().to_owned();
        beside.push(".lock");
        let _opening = lock(beside.as_ref()).await.map_err(|e| failed(e.into()))?;
        let options = SqliteConnectOptions::new()
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full);
        let storage = Self::connect(path, options).await?;
        let made = MIGRATIONS.run(&storage.pool).await;
        made.map_err(|e| failed(e.into()))?;
        Ok(storage)
    }

    /// Opens a file that exists, to read from it.
    ///
    /// # Errors
    /// When there is no such file or it is no store.
    pub async fn open_to_read(path: &Path) -> Result<Self, StorageError> {
        let failed = |source| StorageError::Open {
            path: path.to_owned(),
            source,
        };
        let storage = Self::connect(path, SqliteConnectOptions::new().read_only(true)).await?;
        let newest: Option<i64> = sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations")
            .fetch_one(&storage.pool)
            .await
            .map_err(|e| failed(e.into()))?;
        let ours = MIGRATIONS.iter().map(|migration| migration.version).max();
        if newest == ours {
            return Ok(storage);
        }
        let text = format!(
            "its tables are of version {}, not {}; the sink brings them up to date",
            newest.unwrap_or_default(),
            ours.unwrap_or_default()
        );
        Err(failed(text.into()))
    }

    async fn connect(path: &Path, options: SqliteConnectOptions) -> Result<Self, StorageError> {
        let options = options.filename(path).busy_timeout(BUSY_WAIT_MAX);
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .connect_with(options)
            .await
            .map_err(|source| StorageError::Open {
                path: path.to_owned(),
                source: source.into(),
            })?;
        Ok(Self { pool })
    }
}

/// What an error means to whoever asked.
pub(crate) fn failed(action: &'static str, error: sqlx::Error) -> StorageError {
    let code = error.as_database_error().and_then(|error| error.code());
    let code: Option<i64> = code.and_then(|code| code.parse().ok());
    let source = error.into();
    // The extended codes have the primary one in their low byte.
    if code.is_some_and(|code| REFUSED.contains(&(code & 0xff))) {
        StorageError::Refused { action, source }
    } else {
        StorageError::Unavailable { action, source }
    }
}

#[async_trait]
impl Storage for SqliteStorage {
    async fn store(&self, batch: &Batch) -> Result<Receipt, StorageError> {
        let stored = self.try_store(batch).await;
        stored.map_err(|error| failed("store rows", error))
    }

    async fn stored(&self) -> Result<Stored, StorageError> {
        self.count_rows().await
    }
}

impl SqliteStorage {
    async fn try_store(&self, batch: &Batch) -> Result<Receipt, sqlx::Error> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let mut storing = Storing {
            connection: &mut transaction,
            batch,
            deltas: Deltas::default(),
            kept: HashSet::new(),
            receipt: Receipt {
                redelivered: batch.redelivered,
                ..Receipt::default()
            },
        };
        for (index, row) in batch.rows.iter().enumerate() {
            storing.result(index, row).await?;
        }
        for duplicate in &batch.duplicates {
            // A place that came last in the batch may be the stored row's own.
            if !storing.kept.contains(&duplicate.origin) {
                storing.duplicate(duplicate).await?;
            }
        }
        for (origin, tweet_id) in batch.answered() {
            storing.no_letter_any_more(origin, tweet_id).await?;
        }
        for (index, letter) in batch.letters.iter().enumerate() {
            if storing.is_answered(letter).await? {
                storing.receipt.overruled += 1;
            } else {
                storing.letter(index, letter).await?;
            }
        }
        storing.counts().await?;
        let Storing { receipt, .. } = storing;
        transaction.commit().await?;
        Ok(receipt)
    }
}

/// One transaction.
struct Storing<'a> {
    connection: &'a mut SqliteConnection,
    batch: &'a Batch,
    deltas: Deltas,
    /// Origins of stored rows that stayed.
    kept: HashSet<Position>,
    receipt: Receipt,
}

impl Storing<'_> {
    async fn result(&mut self, index: usize, row: &Row) -> Result<(), sqlx::Error> {
        let inserted = self
            .write(
                "INSERT INTO results (tweet_id, author_id, created_at, release, language, sentiment, sentiment_label,
                    hashtags, features, minute, late, result_partition, result_offset, origin_partition, origin_offset,
                    stored_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)
                 ON CONFLICT DO NOTHING",
                row,
            )
            .await?;
        if inserted {
            self.deltas.result(&row.fact, 1);
            self.receipt.results.push(index);
            return Ok(());
        }
        let old = sqlx::query(
            "SELECT release, language, sentiment, sentiment_label, hashtags, minute, late,
                result_partition, result_offset, origin_partition, origin_offset
             FROM results WHERE tweet_id = ?1",
        )
        .bind(&row.tweet_id)
        .fetch_one(&mut *self.connection)
        .await?;
        let old = read_old(&old)?;
        let settled = settle(&old, row);
        if settled.replaces {
            self.write(
                "UPDATE results SET author_id = ?2, created_at = ?3, release = ?4, language = ?5, sentiment = ?6,
                    sentiment_label = ?7, hashtags = ?8, features = ?9, minute = ?10, late = ?11,
                    result_partition = ?12, result_offset = ?13, origin_partition = ?14, origin_offset = ?15,
                    stored_ms = ?16
                 WHERE tweet_id = ?1",
                row,
            )
            .await?;
            self.deltas.result(&old.fact, -1);
            self.deltas.result(&row.fact, 1);
            self.receipt.replaced.push(index);
            self.no_duplicate_any_more(row).await?;
        } else {
            self.receipt.redelivered += 1;
            self.kept.extend(old.origin);
        }
        match &settled.duplicate {
            Some(duplicate) => self.duplicate(duplicate).await,
            None => Ok(()),
        }
    }

    /// Whether a row was written.
    async fn write(&mut self, sql: &'static str, row: &Row) -> Result<bool, sqlx::Error> {
        let written = sqlx::query(sql)
            .bind(&row.tweet_id)
            .bind(&row.author_id)
            .bind(&row.created_at)
            .bind(&row.fact.release)
            .bind(&row.fact.language)
            .bind(row.fact.sentiment)
            .bind(&row.fact.sentiment_label)
            .bind(hashtags_text(&row.fact))
            .bind(&row.features)
            .bind(row.fact.minute)
            .bind(row.fact.late)
            .bind(place(row.position).0)
            .bind(place(row.position).1)
            .bind(row.origin.map(|origin| place(origin).0))
            .bind(row.origin.map(|origin| place(origin).1))
            .bind(self.batch.now_ms)
            .execute(&mut *self.connection)
            .await?;
        Ok(written.rows_affected() > 0)
    }

    /// What was a second place may have become the place of the row.
    async fn no_duplicate_any_more(&mut self, row: &Row) -> Result<(), sqlx::Error> {
        let Some((partition, offset)) = row.origin.map(place) else {
            return Ok(());
        };
        let removed: Option<(i64, String)> = sqlx::query_as(
            "DELETE FROM duplicates WHERE origin_partition = ?1 AND origin_offset = ?2 RETURNING minute, release",
        )
        .bind(partition)
        .bind(offset)
        .fetch_optional(&mut *self.connection)
        .await?;
        if let Some((minute, release)) = removed {
            self.deltas.duplicate(minute, &release, -1);
        }
        Ok(())
    }

    async fn duplicate(&mut self, duplicate: &Duplicate) -> Result<(), sqlx::Error> {
        let (partition, offset) = place(duplicate.origin);
        let minute = self.batch.minute();
        let written = sqlx::query(
            "INSERT INTO duplicates (origin_partition, origin_offset, tweet_id, release, minute, stored_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING",
        )
        .bind(partition)
        .bind(offset)
        .bind(&duplicate.tweet_id)
        .bind(&duplicate.release)
        .bind(minute)
        .bind(self.batch.now_ms)
        .execute(&mut *self.connection)
        .await?;
        if written.rows_affected() > 0 {
            self.deltas.duplicate(minute, &duplicate.release, 1);
            self.receipt.duplicates += 1;
        }
        Ok(())
    }

    /// What was refused has a result after all.
    async fn no_letter_any_more(
        &mut self,
        origin: Position,
        tweet_id: &str,
    ) -> Result<(), sqlx::Error> {
        let (partition, offset) = place(origin);
        let removed: Vec<(i64, String, String)> = sqlx::query_as(
            "DELETE FROM malformed WHERE origin_partition = ?1 AND origin_offset = ?2
                AND (tweet_id IS NULL OR tweet_id = ?3) RETURNING minute, code, release",
        )
        .bind(partition)
        .bind(offset)
        .bind(tweet_id)
        .fetch_all(&mut *self.connection)
        .await?;
        for (minute, code, release) in removed {
            self.deltas.letter(minute, &code, &release, -1);
            self.receipt.overruled += 1;
        }
        Ok(())
    }

    /// Whether the task that the letter is about has a result.
    async fn is_answered(&mut self, letter: &Letter) -> Result<bool, sqlx::Error> {
        let Some((partition, offset)) = letter.origin.map(place) else {
            return Ok(false);
        };
        sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM results
                    WHERE origin_partition = ?1 AND origin_offset = ?2 AND (?3 IS NULL OR tweet_id = ?3))
                OR EXISTS (SELECT 1 FROM duplicates
                    WHERE origin_partition = ?1 AND origin_offset = ?2 AND (?3 IS NULL OR tweet_id = ?3))",
        )
        .bind(partition)
        .bind(offset)
        .bind(&letter.tweet_id)
        .fetch_one(&mut *self.connection)
        .await
    }

    async fn letter(&mut self, index: usize, letter: &Letter) -> Result<(), sqlx::Error> {
        let (partition, offset) = place(letter.position);
        let minute = self.batch.minute();
        let old: Option<(i64, String, String, i64, i64)> = sqlx::query_as(
            "SELECT minute, code, release, letter_partition, letter_offset FROM malformed
             WHERE topic = ?1 AND partition = ?2 AND offset = ?3",
        )
        .bind(&letter.topic)
        .bind(partition)
        .bind(offset)
        .fetch_optional(&mut *self.connection)
        .await?;
        match old {
            None => self.receipt.letters.push(index),
            Some((minute, code, release, old_partition, old_offset)) => {
                self.receipt.redelivered += 1;
                if place(letter.letter) <= (old_partition, old_offset) {
                    return Ok(());
                }
                self.deltas.letter(minute, &code, &release, -1);
            }
        }
        self.deltas.letter(minute, &letter.code, &letter.release, 1);
        sqlx::query(
            "INSERT INTO malformed (topic, partition, offset, code, reason, release, original, letter_partition,
                letter_offset, minute, stored_ms, tweet_id, origin_partition, origin_offset)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
             ON CONFLICT (topic, partition, offset) DO UPDATE SET code = excluded.code, reason = excluded.reason,
                release = excluded.release, original = excluded.original, letter_partition = excluded.letter_partition,
                letter_offset = excluded.letter_offset, minute = excluded.minute, stored_ms = excluded.stored_ms,
                tweet_id = excluded.tweet_id",
        )
        .bind(&letter.topic)
        .bind(partition)
        .bind(offset)
        .bind(&letter.code)
        .bind(&letter.reason)
        .bind(&letter.release)
        .bind(&letter.original)
        .bind(place(letter.letter).0)
        .bind(place(letter.letter).1)
        .bind(minute)
        .bind(self.batch.now_ms)
        .bind(&letter.tweet_id)
        .bind(letter.origin.map(|origin| place(origin).0))
        .bind(letter.origin.map(|origin| place(origin).1))
        .execute(&mut *self.connection)
        .await?;
        Ok(())
    }

    async fn counts(&mut self) -> Result<(), sqlx::Error> {
        for (counted, change) in self.deltas.changes() {
            sqlx::query(
                "INSERT INTO aggregates (kind, bucket_s, width_s, key, release, count, sentiment_micros)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (kind, bucket_s, width_s, key, release) DO UPDATE SET
                    count = count + excluded.count, sentiment_micros = sentiment_micros + excluded.sentiment_micros",
            )
            .bind(counted.kind)
            .bind(counted.bucket_s)
            .bind(MINUTE_S)
            .bind(&counted.key)
            .bind(&counted.release)
            .bind(change.count)
            .bind(change.sentiment_micros)
            .execute(&mut *self.connection)
            .await?;
        }
        Ok(())
    }
}

fn read_old(row: &SqliteRow) -> Result<Old, sqlx::Error> {
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
    Ok(Old {
        fact,
        position: (
            row.try_get("result_partition")?,
            row.try_get("result_offset")?,
        ),
        origin: origin_of(
            row.try_get("origin_partition")?,
            row.try_get("origin_offset")?,
        ),
    })
}
