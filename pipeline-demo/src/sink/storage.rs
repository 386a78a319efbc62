//! What the sink needs of a store.

use std::fmt;
use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::rows::Batch;

/// Where rows are stored.
#[async_trait]
pub trait Storage: Send + Sync + fmt::Debug {
    /// Stores these rows and changes the counts, all or none. Rows that are there already change nothing; a result of a
    /// later place takes the place of an earlier one, and the counts move with it. A result overrules a dead letter of the same
    /// task, whichever comes first: the letter is not stored, or not any more.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`]: nothing is stored, or, when the connection broke in the last moment, perhaps all
    /// of it; the same batch again is right in both cases. [`StorageError::Refused`]: a row is not fit to be stored.
    async fn store(&self, batch: &Batch) -> Result<Receipt, StorageError>;

    /// How many rows there are.
    async fn stored(&self) -> Result<Stored, StorageError>;
}

/// What a store made of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Receipt {
    /// Indices of the rows that were not there.
    pub results: Vec<usize>,
    /// Indices of the rows that took the place of an earlier result.
    pub replaced: Vec<usize>,
    /// Indices of the letters that were not there.
    pub letters: Vec<usize>,
    /// Second places of tweets that were not known.
    pub duplicates: u64,
    /// Rows that were there already.
    pub redelivered: u64,
    /// Dead letters that do not hold, because their task has a result.
    pub overruled: u64,
}

/// Rows stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Tweets with a result.
    pub results: u64,
    /// Records that are no tweets.
    pub malformed: u64,
}

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The file cannot be opened.
    #[error("cannot open the store {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The database cannot be used as it is.
    #[error(
        "cannot use the database {database}; mend its address, its rights or its tables and start again"
    )]
    Connect {
        /// Host and name, no password.
        database: String,
        /// What PostgreSQL said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The address says no database that can be used.
    #[error("{database} is no address of a database: {reason}")]
    Address {
        /// What was given, without a password.
        database: String,
        /// What is wrong, and what to write.
        reason: String,
    },
    /// It failed; it may be well again in a moment.
    #[error("the store could not {action}")]
    Unavailable {
        /// What was tried.
        action: &'static str,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It will never take this.
    #[error("the store refused to {action}")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StorageError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable { .. } => true,
            Self::Open { .. }
            | Self::Connect { .. }
            | Self::Address { .. }
            | Self::Refused { .. } => false,
        }
    }
}
