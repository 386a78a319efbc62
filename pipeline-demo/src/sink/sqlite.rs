//! Results and dead letters in one SQLite file.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use tracing::debug;

use super::{Letter, Storage, StorageError, Stored};
use crate::worker::TaskResult;

/// How long to wait for another process that writes to the same file.
const BUSY_WAIT_MAX: Duration = Duration::from_secs(10);

/// One for the sink's transactions, two for whoever counts meanwhile.
const CONNECTIONS_MAX: u32 = 3;

/// Version of the tables, kept in the file's `user_version`.
const SCHEMA_VERSION: i64 = 1;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS results (
        tweet_id TEXT PRIMARY KEY,
        author_id TEXT,
        created_at TEXT,
        release TEXT NOT NULL,
        language TEXT,
        sentiment REAL,
        features TEXT NOT NULL,
        stored_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS malformed (
        topic TEXT NOT NULL,
        partition INTEGER NOT NULL,
        offset INTEGER NOT NULL,
        code TEXT NOT NULL,
        reason TEXT NOT NULL,
        original BLOB NOT NULL,
        stored_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
        PRIMARY KEY (topic, partition, offset)
    ) STRICT, WITHOUT ROWID;
    PRAGMA user_version = 1;";

/// The store in a file.
#[derive(Debug, Clone)]
pub struct SqliteStorage {
    pool: SqlitePool,
}

impl SqliteStorage {
    /// Opens the file; it and its directory are created if they are missing.
    ///
    /// # Errors
    /// When it cannot be opened, is damaged or of a newer version; the file is left as it is.
    pub async fn open(path: &Path) -> Result<Self, StorageError> {
        let failed = |source| StorageError::Open {
            path: path.to_owned(),
            source,
        };
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(|e| failed(e.into()))?;
        }
        let options = SqliteConnectOptions::new()
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full);
        let storage = Self::connect(path, options).await?;
        let version = storage.version().await.map_err(|e| failed(e.into()))?;
        match version {
            SCHEMA_VERSION => {}
            0 => {
                let created = sqlx::raw_sql(SCHEMA).execute(&storage.pool).await;
                created.map_err(|e| failed(e.into()))?;
            }
            newer => {
                let text = format!("its tables are of version {newer}, not {SCHEMA_VERSION}");
                return Err(failed(text.into()));
            }
        }
        Ok(storage)
    }

    /// Opens a file that exists, to read from it.
    ///
    /// # Errors
    /// When there is no such file or it is no store.
    pub async fn open_to_read(path: &Path) -> Result<Self, StorageError> {
        let storage = Self::connect(path, SqliteConnectOptions::new().read_only(true)).await?;
        match storage.version().await {
            Ok(SCHEMA_VERSION) => Ok(storage),
            Ok(other) => Err(StorageError::Open {
                path: path.to_owned(),
                source: format!("its tables are of version {other}, not {SCHEMA_VERSION}").into(),
            }),
            Err(error) => Err(StorageError::Open {
                path: path.to_owned(),
                source: error.into(),
            }),
        }
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

    async fn version(&self) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar("PRAGMA user_version")
            .fetch_one(&self.pool)
            .await
    }
}

fn unavailable<E: Into<Box<dyn Error + Send + Sync>>>(
    action: &'static str,
) -> impl FnOnce(E) -> StorageError {
    move |source| StorageError::Unavailable {
        action,
        source: source.into(),
    }
}

#[async_trait]
impl Storage for SqliteStorage {
    async fn store_results(&self, results: &[TaskResult]) -> Result<(), StorageError> {
        let stored = async {
            let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
            for result in results {
                let features = serde_json::Value::Object(result.features.clone()).to_string();
                let feature = |name: &str, key: &str| result.features.get(name)?.get(key);
                sqlx::query(
                    "INSERT INTO results
                        (tweet_id, author_id, created_at, release, language, sentiment, features)
                     VALUES (?, ?, ?, ?, ?, ?, ?)
                     ON CONFLICT (tweet_id) DO UPDATE SET
                        author_id = excluded.author_id, created_at = excluded.created_at,
                        release = excluded.release, language = excluded.language,
                        sentiment = excluded.sentiment, features = excluded.features,
                        stored_at = excluded.stored_at",
                )
                .bind(&result.tweet_id)
                .bind(&result.author_id)
                .bind(&result.created_at)
                .bind(&result.release)
                .bind(feature("language", "code").and_then(|code| code.as_str()))
                .bind(feature("sentiment", "compound").and_then(|compound| compound.as_f64()))
                .bind(features)
                .execute(&mut *transaction)
                .await?;
            }
            transaction.commit().await
        };
        stored
            .await
            .map_err(unavailable::<sqlx::Error>("store results"))?;
        debug!(rows = results.len(), "sink: stored results");
        Ok(())
    }

    async fn store_malformed(&self, letters: &[Letter]) -> Result<(), StorageError> {
        let stored = async {
            let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
            for letter in letters {
                sqlx::query(
                    "INSERT INTO malformed (topic, partition, offset, code, reason, original)
                     VALUES (?, ?, ?, ?, ?, ?)
                     ON CONFLICT (topic, partition, offset) DO UPDATE SET
                        code = excluded.code, reason = excluded.reason, original = excluded.original,
                        stored_at = excluded.stored_at",
                )
                .bind(&letter.topic)
                .bind(letter.position.partition)
                .bind(letter.position.offset)
                .bind(&letter.code)
                .bind(&letter.reason)
                .bind(&letter.original)
                .execute(&mut *transaction)
                .await?;
            }
            transaction.commit().await
        };
        stored
            .await
            .map_err(unavailable::<sqlx::Error>("store dead letters"))
    }

    async fn stored(&self) -> Result<Stored, StorageError> {
        let (results, malformed): (i64, i64) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM results), (SELECT count(*) FROM malformed)",
        )
        .fetch_one(&self.pool)
        .await
        .map_err(unavailable::<sqlx::Error>("count its rows"))?;
        Ok(Stored {
            results: results.cast_unsigned(),
            malformed: malformed.cast_unsigned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::bus::Position;

    fn result(id: u32, release: &str) -> TaskResult {
        let features = json!({"language": {"code": "eng"}, "sentiment": {"compound": 0.5}});
        TaskResult {
            tweet_id: id.to_string(),
            author_id: None,
            created_at: None,
            release: release.into(),
            features: features.as_object().unwrap().clone(),
        }
    }

    fn letter(offset: i64) -> Letter {
        Letter {
            topic: "tweets".into(),
            position: Position {
                partition: 1,
                offset,
            },
            code: "not_json".into(),
            reason: "the record is not JSON".into(),
            original: b"{\xff".to_vec(),
        }
    }

    #[tokio::test]
    async fn the_same_rows_again_change_nothing_but_their_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deeper/store.sqlite");
        let storage = SqliteStorage::open(&path).await.unwrap();
        for release in ["a", "b"] {
            let results = [result(1, release), result(2, release)];
            storage.store_results(&results).await.unwrap();
            storage
                .store_malformed(&[letter(7), letter(8)])
                .await
                .unwrap();
        }
        let again = SqliteStorage::open(&path).await.unwrap();
        let expected = Stored {
            results: 2,
            malformed: 2,
        };
        assert_eq!(again.stored().await.unwrap(), expected);
        let reader = SqliteStorage::open_to_read(&path).await.unwrap();
        assert_eq!(reader.stored().await.unwrap(), expected);
        let rows: Vec<(String, f64, Vec<u8>)> = sqlx::query_as(
            "SELECT release, sentiment, original FROM results, malformed WHERE offset = 7",
        )
        .fetch_all(&reader.pool)
        .await
        .unwrap();
        assert_eq!(rows, vec![("b".into(), 0.5, b"{\xff".to_vec()); 2]);
    }

    #[tokio::test]
    async fn refuses_a_file_that_is_no_store_and_leaves_it_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.sqlite");
        std::fs::write(
            &path,
            "no database, by no means, and long enough to be looked at",
        )
        .unwrap();
        let before = std::fs::read(&path).unwrap();
        let error = SqliteStorage::open(&path).await.unwrap_err();
        assert!(error.to_string().contains("store.sqlite"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), before);
        let missing = directory.path().join("missing.sqlite");
        assert!(SqliteStorage::open_to_read(&missing).await.is_err());
        assert!(!missing.exists());
    }
}
