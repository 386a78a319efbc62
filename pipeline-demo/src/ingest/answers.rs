//! Answers that were given, by idempotency key (draft-ietf-httpapi-idempotency-key-header): whoever did not hear the first
//! one asks again and gets the same.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sqlx::Row;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};

/// How long an answer is remembered: a client that was down over a day starts over, and results are stored once anyway.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// Answers that are kept for one client; the oldest go first.
const ANSWERS_MAX: i64 = 10_000;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS answers (
        client TEXT NOT NULL,
        key TEXT NOT NULL,
        fingerprint BLOB NOT NULL,
        status INTEGER NOT NULL,
        body TEXT NOT NULL,
        at INTEGER NOT NULL DEFAULT (unixepoch()),
        PRIMARY KEY (client, key)
    ) STRICT;
    CREATE INDEX IF NOT EXISTS answers_at ON answers (client, at);";

/// An answer that was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// SHA-256 of what was sent.
    pub(super) fingerprint: [u8; 32],
    pub(super) status: u16,
    pub(super) body: String,
}

/// The answers in an SQLite file, and the keys whose upload is on its way.
#[derive(Debug)]
pub(super) struct Answers {
    pool: SqlitePool,
    running: Arc<Mutex<HashSet<(String, String)>>>,
}

/// A key in use; free again when it is dropped.
#[derive(Debug)]
pub(super) struct InUse {
    name: (String, String),
    running: Arc<Mutex<HashSet<(String, String)>>>,
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut running = self.running.lock().expect("nothing here panics");
        running.remove(&self.name);
    }
}

impl Answers {
    pub(super) async fn open(path: &Path) -> Result<Self, sqlx::Error> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(10));
        let pool = SqlitePoolOptions::new().max_connections(2);
        let pool = pool.connect_with(options).await?;
        sqlx::raw_sql(SCHEMA).execute(&pool).await?;
        Ok(Self {
            pool,
            running: Arc::default(),
        })
    }

    /// Takes the key for one upload; `None` while another has it.
    pub(super) fn begin(&self, client: &str, key: &str) -> Option<InUse> {
        let name = (client.to_owned(), key.to_owned());
        let mut running = self.running.lock().expect("nothing here panics");
        running.insert(name.clone()).then(|| InUse {
            name,
            running: self.running.clone(),
        })
    }

    /// The answer given to this key, if it is remembered.
    pub(super) async fn find(&self, key: &InUse) -> Result<Option<Answer>, sqlx::Error> {
        let (client, key) = &key.name;
        let row = sqlx::query(
            "SELECT fingerprint, status, body FROM answers
             WHERE client = ? AND key = ? AND at > unixepoch() - ?",
        )
        .bind(client)
        .bind(key)
        .bind(KEPT_FOR.as_secs().cast_signed())
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else {
            return Ok(None);
        };
        let fingerprint: Vec<u8> = row.try_get(0)?;
        Ok(Some(Answer {
            // One of another length was not written by us and matches nothing.
            fingerprint: fingerprint.try_into().unwrap_or_default(),
            status: row.try_get::<i64, _>(1)?.try_into().unwrap_or(500),
            body: row.try_get(2)?,
        }))
    }

    /// Remembers the answer, and forgets those that are too old or too many.
    pub(super) async fn keep(&self, key: &InUse, answer: &Answer) -> Result<(), sqlx::Error> {
        let (client, key) = &key.name;
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query(
            "INSERT OR REPLACE INTO answers (client, key, fingerprint, status, body)
             VALUES (?, ?, ?, ?, ?)",
        )
        .bind(client)
        .bind(key)
        .bind(&answer.fingerprint[..])
        .bind(i64::from(answer.status))
        .bind(&answer.body)
        .execute(&mut *transaction)
        .await?;
        sqlx::query(
            "DELETE FROM answers WHERE client = ?1 AND (at <= unixepoch() - ?2 OR at <
                (SELECT at FROM answers WHERE client = ?1 ORDER BY at DESC LIMIT 1 OFFSET ?3))",
        )
        .bind(client)
        .bind(KEPT_FOR.as_secs().cast_signed())
        .bind(ANSWERS_MAX)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_outlives_the_process_and_belongs_to_one_client() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("answers.sqlite");
        let answer = Answer {
            fingerprint: [7; 32],
            status: 202,
            body: "{}".into(),
        };
        {
            let answers = Answers::open(&path).await.unwrap();
            let key = answers.begin("acme", "k").unwrap();
            assert!(answers.begin("acme", "k").is_none());
            assert_eq!(answers.find(&key).await.unwrap(), None);
            answers.keep(&key, &answer).await.unwrap();
            drop(key);
            assert!(answers.begin("acme", "k").is_some());
        }
        let answers = Answers::open(&path).await.unwrap();
        let found = async |client| {
            let key = answers.begin(client, "k").unwrap();
            answers.find(&key).await.unwrap()
        };
        assert_eq!(found("acme").await, Some(answer));
        assert_eq!(found("other").await, None);
        let old = "UPDATE answers SET at = at - 86400";
        sqlx::raw_sql(old).execute(&answers.pool).await.unwrap();
        assert_eq!(found("acme").await, None);
    }
}
