//! The store in one SQLite file: write-ahead log, synced at every commit.

mod locks;
mod outbox;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use proxy_api::BootId;
use rollout::{Duration, Release, Rollout, RolloutId, ServiceName, Timestamp};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Connection as _, Row, SqliteConnection, SqlitePool};

use crate::admission::lock::Slot;
use crate::incidents::SavedIncidents;

use super::{Change, Event, Mark, NewEvent, Saved, Store, StoreError, event_hash};

/// How long a statement waits for another connection's write before it fails.
const BUSY_MAX: Duration = Duration::from_secs(5);

/// Connections at once: one writes, the others serve the API.
const CONNECTIONS_MAX: u32 = 4;

/// Space held back beside the database. On a full disk it is given up, so that a rollback can still be written (F40).
/// A rollback writes some 20 KiB; this is room for many.
const RESERVE_BYTES: usize = 1 << 20;

/// SQLite's primary result code for a full disk (`SQLITE_FULL`).
const SQLITE_FULL: &str = "13";

/// A store in one SQLite file.
#[derive(Debug)]
pub struct Sqlite {
    pool: SqlitePool,
    file: PathBuf,
    reserve: PathBuf,
    /// See [`Sqlite::limit_pages`].
    pages_max: AtomicU32,
}

impl Sqlite {
    /// Opens the store, makes it when there is none, and checks it.
    ///
    /// # Errors
    /// The file cannot be opened, or is damaged; it is left as it is.
    pub async fn open(file: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_MAX);
        let corrupt = |reason: String| StoreError::Corrupt {
            file: file.display().to_string(),
            reason,
        };
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .connect_with(options)
            .await
            .map_err(|error| {
                let damaged = error
                    .as_database_error()
                    .filter(|inner| !is_transient_open(*inner));
                match damaged.map(ToString::to_string) {
                    Some(reason) => corrupt(reason),
                    None => database("opening", file, error),
                }
            })?;
        let store = Self {
            pool,
            file: file.to_owned(),
            reserve: file.with_extension("reserve"),
            pages_max: AtomicU32::new(0),
        };
        let verdict: String = sqlx::query_scalar("PRAGMA quick_check(1)")
            .fetch_one(&store.pool)
            .await
            .map_err(|error| corrupt(error.to_string()))?;
        if verdict != "ok" {
            return Err(corrupt(verdict));
        }
        sqlx::migrate!("src/store/migrations")
            .run(&store.pool)
            .await
            .map_err(|error| {
                if let sqlx::migrate::MigrateError::Execute(error) = error {
                    store.failed("preparing", error)
                } else {
                    corrupt(error.to_string())
                }
            })?;
        // Read everything that a start needs now: a row that cannot be read is better found before a socket is bound.
        store.open_rollouts().await?;
        store.marks().await?;
        store.locks().await?;
        store.incidents().await?;
        store.hold_reserve().await;
        Ok(store)
    }

    /// Opens a store that is there to read it, and changes nothing of it; a controller may be at work on it.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub async fn read_only(file: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .read_only(true)
            .busy_timeout(BUSY_MAX);
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(options)
            .await
            .map_err(|error| database("opening", file, error))?;
        Ok(Self {
            pool,
            file: file.to_owned(),
            reserve: file.with_extension("reserve"),
            pages_max: AtomicU32::new(0),
        })
    }

    /// From now on the file cannot grow beyond `pages` pages, as on a full disk; 0 lifts the limit. For tests.
    pub fn limit_pages(&self, pages: u32) {
        self.pages_max.store(pages, Ordering::Relaxed);
    }

    async fn hold_reserve(&self) {
        let held = tokio::fs::metadata(&self.reserve)
            .await
            .is_ok_and(|meta| meta.len() >= RESERVE_BYTES as u64);
        if !held && let Err(error) = tokio::fs::write(&self.reserve, vec![0u8; RESERVE_BYTES]).await
        {
            tracing::warn!(file = %self.reserve.display(), %error, "no reserve for a full disk");
        }
    }

    fn failed(&self, what: &'static str, error: sqlx::Error) -> StoreError {
        database(what, &self.file, error)
    }

    async fn save_once(
        &self,
        term: u64,
        now: Timestamp,
        change: &Change,
    ) -> Result<(), StoreError> {
        let mut connection = self
            .pool
            .acquire()
            .await
            .map_err(|error| self.failed("saving", error))?;
        let outcome = self.write(&mut connection, term, now, change).await;
        if outcome.is_err() {
            // On a full disk SQLite ends the transaction by itself, and the library does not notice: such a connection
            // is no good any more.
            drop(connection.close().await);
        }
        outcome
    }

    async fn write(
        &self,
        connection: &mut SqliteConnection,
        term: u64,
        now: Timestamp,
        change: &Change,
    ) -> Result<(), StoreError> {
        let failed = |error| self.failed("saving", error);
        let pages_max = self.pages_max.load(Ordering::Relaxed);
        if pages_max > 0 {
            sqlx::query(sqlx::AssertSqlSafe(format!(
                "PRAGMA max_page_count = {pages_max}"
            )))
            .execute(&mut *connection)
            .await
            .map_err(failed)?;
        }
        // `IMMEDIATE`: take the write lock first, so that reading the term and writing by it are one step.
        let mut tx = connection
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(failed)?;
        let theirs: i64 = sqlx::query_scalar("SELECT term FROM controller WHERE id = 1")
            .fetch_one(&mut *tx)
            .await
            .map_err(failed)?;
        let theirs = u64::try_from(theirs).unwrap_or(0);
        if theirs != term {
            return Err(StoreError::Fenced { ours: term, theirs });
        }
        for saved in &change.started {
            sqlx::query("INSERT INTO rollouts (id, service, number, ended, canary, body, origin) VALUES (?, ?, ?, 0, ?, '{}', ?)")
                .bind(saved.rollout.id.as_str())
                .bind(saved.rollout.service.as_str())
                .bind(i64::try_from(saved.number).unwrap_or(i64::MAX))
                .bind(saved.rollout.canary.id.as_str())
                .bind(saved.origin.as_ref().map(json))
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
        }
        for saved in change.started.iter().chain(&change.rollouts) {
            let ending = saved.rollout.ending().map(|ending| json(&ending));
            sqlx::query("UPDATE rollouts SET ended = ?, ending = ?, body = ?, judge = ?, verdict = ?, lease = ? WHERE id = ?")
                .bind(i64::from(saved.rollout.phase.is_ended()))
                .bind(ending)
                .bind(json(&saved.rollout))
                .bind(saved.judge.as_ref().map(json))
                .bind(saved.verdict.as_ref().map(json))
                .bind(saved.lease.as_ref().map(json))
                .bind(saved.rollout.id.as_str())
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
        }
        for mark in &change.marks {
            sqlx::query(
                "INSERT INTO marks (proxy, boot, number) VALUES (?, ?, ?)
                 ON CONFLICT (proxy) DO UPDATE SET boot = excluded.boot, number = excluded.number",
            )
            .bind(&mark.proxy)
            .bind(mark.boot.to_string())
            .bind(i64::try_from(mark.number).unwrap_or(i64::MAX))
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        }
        for slot in &change.locks {
            locks::put(&mut tx, slot).await.map_err(failed)?;
        }
        if let Some(incidents) = &change.incidents {
            sqlx::query(
                "INSERT INTO incidents (id, body) VALUES (1, ?)
                 ON CONFLICT (id) DO UPDATE SET body = excluded.body",
            )
            .bind(json(incidents))
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        }
        if !change.events.is_empty() {
            let last: Option<(i64, String)> =
                sqlx::query_as("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1")
                    .fetch_optional(&mut *tx)
                    .await
                    .map_err(failed)?;
            let (mut seq, mut before) = last.unwrap_or_default();
            for event in &change.events {
                seq += 1;
                before = insert_event(&mut tx, seq, &before, now, event)
                    .await
                    .map_err(failed)?;
            }
        }
        outbox::write(&mut tx, now, &change.messages)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)
    }
}

async fn insert_event(
    tx: &mut SqliteConnection,
    seq: i64,
    before: &str,
    now: Timestamp,
    event: &NewEvent,
) -> Result<String, sqlx::Error> {
    let at = now.to_string();
    let rollout = event.rollout.as_ref().map(RolloutId::as_str);
    let data = event.data.to_string();
    let hash = event_hash(before, seq, &at, rollout, event.kind, &event.author, &data);
    sqlx::query("INSERT INTO events (seq, at, rollout, kind, author, data, hash) VALUES (?, ?, ?, ?, ?, ?, ?)")
        .bind(seq)
        .bind(at)
        .bind(rollout)
        .bind(event.kind)
        .bind(&event.author)
        .bind(data)
        .bind(&hash)
        .execute(tx)
        .await?;
    Ok(hash)
}

/// What our own types write cannot fail: they have string keys and finite numbers.
fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("our own types have string keys and finite numbers")
}

fn database(what: &'static str, file: &Path, error: sqlx::Error) -> StoreError {
    let full = error
        .as_database_error()
        .and_then(|inner| inner.code())
        .is_some_and(|code| code == SQLITE_FULL);
    let file = file.display().to_string();
    if full {
        StoreError::Full {
            file,
            source: error,
        }
    } else {
        StoreError::Database {
            what,
            file,
            source: error,
        }
    }
}

/// Whether opening failed for a reason that says nothing about the file's contents: busy, locked, cannot open, full.
fn is_transient_open(error: &dyn sqlx::error::DatabaseError) -> bool {
    error
        .code()
        .is_some_and(|code| matches!(code.as_ref(), "5" | "6" | "14" | SQLITE_FULL))
}

const ROLLOUT: &str = "SELECT id, number, body, judge, verdict, origin, lease FROM rollouts";

impl Sqlite {
    fn saved(&self, row: &SqliteRow) -> Result<Saved, StoreError> {
        let id: String = row
            .try_get("id")
            .map_err(|error| self.failed("reading a rollout", error))?;
        let corrupt = |part: &str, reason: String| StoreError::Corrupt {
            file: self.file.display().to_string(),
            reason: format!("{part} of rollout {id}: {reason}"),
        };
        let text = |column: &str| {
            row.try_get::<Option<String>, _>(column)
                .map_err(|error| corrupt(column, error.to_string()))
        };
        let number: i64 = row
            .try_get("number")
            .map_err(|error| corrupt("number", error.to_string()))?;
        let body = text("body")?.unwrap_or_default();
        let rollout: Rollout =
            serde_json::from_str(&body).map_err(|error| corrupt("body", error.to_string()))?;
        let judge = text("judge")?
            .map(|text| serde_json::from_str(&text))
            .transpose()
            .map_err(|error| corrupt("judge", error.to_string()))?;
        let verdict = text("verdict")?
            .map(|text| serde_json::from_str(&text))
            .transpose()
            .map_err(|error| corrupt("verdict", error.to_string()))?;
        let origin = text("origin")?
            .map(|text| serde_json::from_str(&text))
            .transpose()
            .map_err(|error| corrupt("origin", error.to_string()))?;
        let lease = text("lease")?
            .map(|text| serde_json::from_str(&text))
            .transpose()
            .map_err(|error| corrupt("lease", error.to_string()))?;
        Ok(Saved {
            number: u64::try_from(number).unwrap_or(0),
            rollout,
            judge,
            verdict,
            origin,
            lease,
        })
    }

    /// Where a rollout is in the order of their starts.
    async fn place(&self, id: &RolloutId) -> Result<Option<i64>, StoreError> {
        sqlx::query_scalar("SELECT rowid FROM rollouts WHERE id = ?")
            .bind(id.as_str())
            .fetch_optional(&self.pool)
            .await
            .map_err(|error| self.failed("reading older rollouts", error))
    }

    fn all_saved(&self, rows: &[SqliteRow]) -> Result<Vec<Saved>, StoreError> {
        rows.iter().map(|row| self.saved(row)).collect()
    }
}

#[async_trait]
impl Store for Sqlite {
    async fn take_over(&self) -> Result<u64, StoreError> {
        let term: i64 =
            sqlx::query_scalar("UPDATE controller SET term = term + 1 WHERE id = 1 RETURNING term")
                .fetch_one(&self.pool)
                .await
                .map_err(|error| self.failed("taking over", error))?;
        Ok(u64::try_from(term).unwrap_or(0))
    }

    async fn save(&self, term: u64, now: Timestamp, change: &Change) -> Result<(), StoreError> {
        match self.save_once(term, now, change).await {
            Err(StoreError::Full { file, source }) => {
                // Give up the reserve, once; whoever frees the disk gets a new one at the next start.
                if tokio::fs::remove_file(&self.reserve).await.is_err() {
                    return Err(StoreError::Full { file, source });
                }
                tracing::error!(file = %self.file.display(), "the disk is full: the reserve was given up; free some space");
                self.save_once(term, now, change).await
            }
            other => other,
        }
    }

    async fn open_rollouts(&self) -> Result<Vec<Saved>, StoreError> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{ROLLOUT} WHERE ended = 0 ORDER BY service, number"
        )))
        .fetch_all(&self.pool)
        .await
        .map_err(|error| self.failed("reading rollouts", error))?;
        self.all_saved(&rows)
    }

    async fn rollout(&self, id: &RolloutId) -> Result<Option<Saved>, StoreError> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!("{ROLLOUT} WHERE id = ?")))
            .bind(id.as_str())
            .fetch_optional(&self.pool)
            .await
            .map_err(|error| self.failed("reading a rollout", error))?;
        row.map(|row| self.saved(&row)).transpose()
    }

    async fn history(
        &self,
        service: Option<&ServiceName>,
        limit: u32,
    ) -> Result<Vec<Saved>, StoreError> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{ROLLOUT} WHERE ?1 IS NULL OR service = ?1 ORDER BY rowid DESC LIMIT ?2"
        )))
        .bind(service.map(ServiceName::as_str))
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(|error| self.failed("reading the history", error))?;
        self.all_saved(&rows)
    }

    async fn older(
        &self,
        service: Option<&ServiceName>,
        before: &RolloutId,
        limit: u32,
    ) -> Result<Option<Vec<Saved>>, StoreError> {
        let failed = |error| self.failed("reading older rollouts", error);
        let Some(at) = self.place(before).await? else {
            return Ok(None);
        };
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{ROLLOUT} WHERE rowid < ?1 AND (?2 IS NULL OR service = ?2) ORDER BY rowid DESC LIMIT ?3"
        )))
        .bind(at)
        .bind(service.map(ServiceName::as_str))
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(failed)?;
        self.all_saved(&rows).map(Some)
    }

    async fn released(&self) -> Result<Vec<ServiceName>, StoreError> {
        let names: Vec<String> =
            sqlx::query_scalar("SELECT DISTINCT service FROM rollouts ORDER BY service")
                .fetch_all(&self.pool)
                .await
                .map_err(|error| self.failed("reading the services", error))?;
        names
            .into_iter()
            .map(|name| {
                ServiceName::try_from(name).map_err(|error| StoreError::Corrupt {
                    file: self.file.display().to_string(),
                    reason: format!("the service of a rollout: {error}"),
                })
            })
            .collect()
    }

    async fn history_of(
        &self,
        services: &[ServiceName],
        before: Option<&RolloutId>,
        limit: u32,
    ) -> Result<Option<Vec<Saved>>, StoreError> {
        let at = match before {
            None => i64::MAX,
            Some(before) => match self.place(before).await? {
                None => return Ok(None),
                Some(at) => at,
            },
        };
        // `+`: from the newest on, without sorting whole rollouts. Only those that fit are read whole.
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{ROLLOUT} WHERE rowid < ?1 AND +service IN (SELECT value FROM json_each(?2)) ORDER BY rowid DESC LIMIT ?3"
        )))
        .bind(at)
        .bind(json(&services))
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(|error| self.failed("reading the history", error))?;
        self.all_saved(&rows).map(Some)
    }

    async fn promoted(&self, service: &ServiceName, limit: u32) -> Result<Vec<Saved>, StoreError> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{ROLLOUT} WHERE service = ? AND ending = ? ORDER BY number DESC LIMIT ?"
        )))
        .bind(service.as_str())
        .bind(json(&rollout::Ending::Promoted))
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(|error| self.failed("reading promoted rollouts", error))?;
        self.all_saved(&rows)
    }

    async fn next_number(&self, service: &ServiceName) -> Result<u64, StoreError> {
        let last: Option<i64> =
            sqlx::query_scalar("SELECT MAX(number) FROM rollouts WHERE service = ?")
                .bind(service.as_str())
                .fetch_one(&self.pool)
                .await
                .map_err(|error| self.failed("numbering a rollout", error))?;
        Ok(u64::try_from(last.unwrap_or(0)).unwrap_or(0) + 1)
    }

    async fn marks(&self) -> Result<Vec<Mark>, StoreError> {
        let rows: Vec<(String, String, i64)> =
            sqlx::query_as("SELECT proxy, boot, number FROM marks ORDER BY proxy")
                .fetch_all(&self.pool)
                .await
                .map_err(|error| self.failed("reading marks", error))?;
        rows.into_iter()
            .map(|(proxy, boot, number)| {
                let boot = BootId::try_from(boot).map_err(|reason| StoreError::Corrupt {
                    file: self.file.display().to_string(),
                    reason: format!("mark of proxy {proxy}: {reason}"),
                })?;
                Ok(Mark {
                    proxy,
                    boot,
                    number: u64::try_from(number).unwrap_or(0),
                })
            })
            .collect()
    }

    async fn locks(&self) -> Result<Vec<Slot>, StoreError> {
        self.read_locks().await
    }

    async fn was_promoted(
        &self,
        service: Option<&ServiceName>,
        environment: &str,
        release: &Release,
    ) -> Result<bool, StoreError> {
        self.was_promoted_in(service, environment, release).await
    }

    async fn incidents(&self) -> Result<SavedIncidents, StoreError> {
        let body: Option<String> = sqlx::query_scalar("SELECT body FROM incidents WHERE id = 1")
            .fetch_optional(&self.pool)
            .await
            .map_err(|error| self.failed("reading incidents", error))?;
        let read = |body: String| {
            serde_json::from_str(&body).map_err(|error| StoreError::Corrupt {
                file: self.file.display().to_string(),
                reason: format!("incidents: {error}"),
            })
        };
        body.map_or_else(|| Ok(SavedIncidents::default()), read)
    }

    async fn events(
        &self,
        rollout: Option<&RolloutId>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<Event>, StoreError> {
        let rows: Vec<EventRow> = sqlx::query_as(
            "SELECT seq, at, rollout, kind, author, data, hash FROM events
             WHERE seq > ?2 AND (?1 IS NULL OR rollout = ?1) ORDER BY seq LIMIT ?3",
        )
        .bind(rollout.map(RolloutId::as_str))
        .bind(after)
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(|error| self.failed("reading events", error))?;
        rows.into_iter()
            .map(|row| {
                let corrupt = |reason: String| StoreError::Corrupt {
                    file: self.file.display().to_string(),
                    reason: format!("event {}: {reason}", row.0),
                };
                Ok(Event {
                    seq: row.0,
                    at: Timestamp::from_str(&row.1).map_err(|error| corrupt(error.to_string()))?,
                    rollout: row.2.as_deref().map(RolloutId::from_text),
                    kind: row.3.clone(),
                    author: row.4.clone(),
                    data: serde_json::from_str(&row.5)
                        .map_err(|error| corrupt(error.to_string()))?,
                    hash: row.6.clone(),
                })
            })
            .collect()
    }

    async fn close(&self) {
        // The last connection to go writes the journal back into the file.
        self.pool.close().await;
    }

    async fn verify(&self) -> Result<Result<i64, i64>, StoreError> {
        /// Rows in memory at once.
        const PAGE: u32 = 1_000;
        let (mut after, mut before) = (0, String::new());
        loop {
            let rows: Vec<EventRow> = sqlx::query_as(
                "SELECT seq, at, rollout, kind, author, data, hash FROM events WHERE seq > ? ORDER BY seq LIMIT ?",
            )
            .bind(after)
            .bind(PAGE)
            .fetch_all(&self.pool)
            .await
            .map_err(|error| self.failed("verifying events", error))?;
            if rows.is_empty() {
                return Ok(Ok(after));
            }
            for (seq, at, rollout, kind, author, data, hash) in rows {
                let expected =
                    event_hash(&before, seq, &at, rollout.as_deref(), &kind, &author, &data);
                if seq != after + 1 || hash != expected {
                    return Ok(Err(seq));
                }
                (after, before) = (seq, hash);
            }
        }
    }
}

#[cfg(test)]
mod tests;

type EventRow = (i64, String, Option<String>, String, String, String, String);
