//! The command lines of the sink, and of whoever else uses its database.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::database::{DatabaseConfig, PostgresConfig};
use super::storage::StorageError;

/// Which database.
#[derive(Debug, Args)]
#[group(skip)]
pub struct DatabaseArgs {
    /// SQLite file
    #[arg(long, value_name = "FILE", required_unless_present = "database")]
    db: Option<PathBuf>,
    /// PostgreSQL database instead, without a password: postgresql://USER@HOST:PORT/NAME
    #[arg(long, value_name = "URL", conflicts_with = "db")]
    database: Option<String>,
    /// File with the password; without it, the file that PGPASSFILE names is asked
    #[arg(long, value_name = "FILE", requires = "database")]
    database_password_file: Option<PathBuf>,
}

impl TryFrom<DatabaseArgs> for DatabaseConfig {
    type Error = StorageError;

    fn try_from(args: DatabaseArgs) -> Result<Self, Self::Error> {
        match (args.db, args.database) {
            (Some(file), _) => Ok(Self::Sqlite(file)),
            (None, url) => {
                let url = url.unwrap_or_default();
                PostgresConfig::new(&url, args.database_password_file).map(Self::Postgres)
            }
        }
    }
}

/// What the sink is told.
#[derive(Debug, Args)]
#[group(skip)]
pub struct SinkArgs {
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
    /// Rows of one transaction at most
    #[arg(long, value_name = "N", default_value_t = super::BATCH_MAX_DEFAULT as u32,
        value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub(crate) batch: u32,
    /// The pipeline.yml that says when a result is late
    #[arg(long, value_name = "FILE")]
    pub(crate) pipeline: Option<PathBuf>,
    /// Results stored later than this after their tweet was appended are late, whatever the pipeline.yml says; 60 where
    /// neither says it
    #[arg(long, value_name = "SECONDS", value_parser = crate::cli::seconds)]
    pub(crate) late_after: Option<Duration>,
    /// Append each stored result to topic "analytics", for others
    #[arg(long)]
    pub(crate) analytics: bool,
}
