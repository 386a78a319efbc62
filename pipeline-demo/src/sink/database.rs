//! Which database to store in: an SQLite file, or PostgreSQL.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use reqwest::Url;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::postgres::PostgresStorage;
use super::sqlite::SqliteStorage;
use super::storage::{Storage, StorageError};
use crate::backoff::wait_after;
use crate::jobs::JobStore;
use crate::stats::StatsStore;
use crate::telemetry::chain;

/// All that the pipeline asks of its database.
pub trait Store: Storage + StatsStore + JobStore {}

impl<T: Storage + StatsStore + JobStore> Store for T {}

/// Which database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabaseConfig {
    /// An SQLite file, created if missing.
    Sqlite(PathBuf),
    /// A PostgreSQL database.
    Postgres(PostgresConfig),
}

/// How to reach a PostgreSQL database. Its `Debug` shows no password, because it holds none.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresConfig {
    url: String,
    password_file: Option<PathBuf>,
}

impl PostgresConfig {
    /// The database at `postgresql://USER@HOST:PORT/NAME`. The password stands in `password_file`, or in the file that
    /// `PGPASSFILE` names (by default `~/.pgpass`).
    ///
    /// # Errors
    /// When the address is none, or contains a password: everybody on the machine can read the arguments of a process.
    pub fn new(url: &str, password_file: Option<PathBuf>) -> Result<Self, StorageError> {
        let refused = |database: &str, reason: &str| {
            Err(StorageError::Address {
                database: database.to_owned(),
                reason: reason.to_owned(),
            })
        };
        let expected = "expected postgresql://USER@HOST:PORT/NAME";
        let Ok(parsed) = Url::parse(url) else {
            return refused("the text given", expected);
        };
        if !["postgresql", "postgres"].contains(&parsed.scheme()) {
            return refused(&format!("a URL of scheme {}", parsed.scheme()), expected);
        }
        let config = Self {
            url: url.to_owned(),
            password_file,
        };
        let in_query = parsed.query_pairs().any(|(key, _)| key == "password");
        if parsed.password().is_some() || in_query {
            return refused(
                &config.shown(),
                "it contains a password, which others can read in the list of processes; \
                 write it to a file and name that with --database-password-file or PGPASSFILE",
            );
        }
        Ok(config)
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The password, if there is a file for it.
    pub(super) fn password(&self) -> Result<Option<String>, StorageError> {
        let Some(path) = &self.password_file else {
            return Ok(None);
        };
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned())),
            Err(error) => Err(StorageError::Address {
                database: self.shown(),
                reason: format!(
                    "the password file {} cannot be read: {error}",
                    path.display()
                ),
            }),
        }
    }

    /// User, host and name: what a log may say.
    #[must_use]
    pub fn shown(&self) -> String {
        match Url::parse(&self.url) {
            Ok(mut url) => {
                url.set_query(None);
                url.set_fragment(None);
                // Refused only where there is none to remove.
                url.set_password(None).ok();
                url.to_string()
            }
            Err(_) => "PostgreSQL".to_owned(),
        }
    }
}

impl fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PostgresConfig")
            .field(&self.shown())
            .finish()
    }
}

impl fmt::Display for DatabaseConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => path.display().fmt(f),
            Self::Postgres(config) => config.shown().fmt(f),
        }
    }
}

impl DatabaseConfig {
    /// Opens it, and makes or updates its tables.
    ///
    /// # Errors
    /// As the engine's own `open`.
    pub async fn open(&self) -> Result<Arc<dyn Store>, StorageError> {
        Ok(match self {
            Self::Sqlite(path) => Arc::new(SqliteStorage::open(path).await?),
            Self::Postgres(config) => Arc::new(PostgresStorage::open(config).await?),
        })
    }

    /// Opens one that exists, and changes nothing.
    ///
    /// # Errors
    /// As the engine's own `open_to_read`.
    pub async fn open_to_read(&self) -> Result<Arc<dyn Store>, StorageError> {
        Ok(match self {
            Self::Sqlite(path) => Arc::new(SqliteStorage::open_to_read(path).await?),
            Self::Postgres(config) => Arc::new(PostgresStorage::open_to_read(config).await?),
        })
    }

    /// Opens it as soon as it can be reached. `None` if told to stop before.
    ///
    /// # Errors
    /// When it can be reached and not be used.
    pub async fn open_when_there(
        &self,
        stop: &CancellationToken,
    ) -> Result<Option<Arc<dyn Store>>, StorageError> {
        let mut failures = 0;
        loop {
            match self.open().await {
                Ok(store) => return Ok(Some(store)),
                Err(error) if error.is_transient() => {
                    failures += 1;
                    warn!(database = %self, failures, error = chain(&error), "the database is away, waiting for it");
                    tokio::select! {
                        () = stop.cancelled() => return Ok(None),
                        () = sleep(wait_after(failures, "open")) => {}
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_the_address_is_refused_and_never_shown() {
        for url in [
            "postgresql://me:secret@db/tweets",
            "postgres://me@db/tweets?password=secret",
        ] {
            let error = PostgresConfig::new(url, None).unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(!text.contains("secret"), "{text}");
            assert!(text.contains("--database-password-file"), "{text}");
        }
        for url in ["db:5432", "mysql://me:secret@db/tweets", ""] {
            let error = PostgresConfig::new(url, None).unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(
                text.contains("postgresql://USER@HOST") && !text.contains("secret"),
                "{text}"
            );
        }
    }

    #[test]
    fn the_password_is_that_of_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        std::fs::write(&file, "se cret\n").unwrap();
        let url = "postgresql://me@db:5433/tweets?sslmode=disable";
        let config = PostgresConfig::new(url, Some(file.clone())).unwrap();
        assert_eq!(config.password().unwrap().as_deref(), Some("se cret"));
        assert_eq!(config.shown(), "postgresql://me@db:5433/tweets");
        assert!(!format!("{config:?}").contains("se cret"));
        let missing = PostgresConfig::new(url, Some(directory.path().join("none"))).unwrap();
        let error = missing.password().unwrap_err().to_string();
        assert!(
            error.contains("none") && error.contains("cannot be read"),
            "{error}"
        );
    }
}
