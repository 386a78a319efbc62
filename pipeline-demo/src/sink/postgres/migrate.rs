//! Connecting to PostgreSQL and bringing its tables up to date.

use std::str::FromStr;
use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use super::PostgresStorage;
use crate::sink::database::PostgresConfig;
use crate::sink::storage::StorageError;

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// Connections of one process: one for each topic of the sink, a few for whoever reads meanwhile.
const CONNECTIONS_MAX: u32 = 8;

/// How long a call waits for a connection, also while PostgreSQL is away; then it has failed and is tried again.
const CONNECTION_WAIT_MAX: Duration = Duration::from_secs(5);

/// What PostgreSQL itself ends for us, so that nothing of a process that hangs or is cut off holds others up: a statement
/// that takes longer than any of ours, a lock that another one holds, a transaction that is left open, a peer that is gone.
const SESSION: [(&str, &str); 6] = [
    ("statement_timeout", "60s"),
    ("lock_timeout", "20s"),
    ("idle_in_transaction_session_timeout", "30s"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
];

/// SQLSTATE classes that show at a connection and pass by themselves: too many connections or no memory, starting up or
/// shutting down, an error of the system. All others (no such database, wrong password, no right) need someone.
const PASSING: [&str; 4] = ["08", "53", "57", "58"];

impl PostgresStorage {
    /// Connects and brings the tables up to date; several processes may do so at once.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`] while nobody answers; [`StorageError::Connect`] when the database does not let us in
    /// or its tables are of another version.
    pub async fn open(config: &PostgresConfig) -> Result<Self, StorageError> {
        let pool = connect(config).await?;
        if let Err(error) = MIGRATIONS.run(&pool).await {
            return Err(if let MigrateError::Execute(source) = error {
                refused(config, source)
            } else {
                StorageError::Connect {
                    database: config.shown(),
                    source: error.into(),
                }
            });
        }
        Ok(Self {
            pool,
            shown: config.shown(),
        })
    }

    /// Connects without changing anything.
    ///
    /// # Errors
    /// As [`Self::open`], and when the tables are not there.
    pub async fn open_to_read(config: &PostgresConfig) -> Result<Self, StorageError> {
        let pool = connect(config).await?;
        let newest: Option<i64> = sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations")
            .fetch_one(&pool)
            .await
            .map_err(|source| refused(config, source))?;
        let ours = MIGRATIONS.iter().map(|migration| migration.version).max();
        if newest != ours {
            let text = format!(
                "its tables are of version {}, not {}; the sink brings them up to date",
                newest.unwrap_or_default(),
                ours.unwrap_or_default()
            );
            return Err(StorageError::Connect {
                database: config.shown(),
                source: text.into(),
            });
        }
        Ok(Self {
            pool,
            shown: config.shown(),
        })
    }
}

async fn connect(config: &PostgresConfig) -> Result<sqlx::PgPool, StorageError> {
    let options =
        PgConnectOptions::from_str(config.url()).map_err(|error| StorageError::Address {
            database: config.shown(),
            reason: error.to_string(),
        })?;
    let options = options.application_name("pipeline-demo").options(SESSION);
    let options = match config.password()? {
        Some(password) => options.password(&password),
        None => options,
    };
    PgPoolOptions::new()
        .max_connections(CONNECTIONS_MAX)
        .acquire_timeout(CONNECTION_WAIT_MAX)
        .connect_with(options.disable_statement_logging())
        .await
        .map_err(|source| refused(config, source))
}

/// An error at the start: one that passes, or one that someone has to mend.
fn refused(config: &PostgresConfig, source: sqlx::Error) -> StorageError {
    let code = source.as_database_error().and_then(|error| error.code());
    let lasts = match code {
        Some(code) => !PASSING.iter().any(|class| code.starts_with(class)),
        None => matches!(source, sqlx::Error::Configuration(_) | sqlx::Error::Tls(_)),
    };
    if lasts {
        return StorageError::Connect {
            database: config.shown(),
            source: source.into(),
        };
    }
    StorageError::Unavailable {
        action: "be opened",
        source: source.into(),
    }
}
