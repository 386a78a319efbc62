//! What is asked of a source of metrics: one number, as it was at a time.
//!
//! Absent is absent: an empty answer, one that is no number, and one that is too old are `None`, never 0. A source that
//! fails says why; to the judge that is no data too.

pub mod prometheus;
pub mod query;

use async_trait::async_trait;
use rollout::Timestamp;

pub use prometheus::Prometheus;
pub use query::{Query, Subject};

/// Where the answers to checks come from.
#[async_trait]
pub trait MetricsSource: Send + Sync + std::fmt::Debug {
    /// The one value of `query` at a time; `None` if there is none.
    ///
    /// # Errors
    /// The source cannot be asked, or did not answer with one value.
    async fn ask(&self, query: &str, at: Timestamp) -> Result<Option<f64>, MetricsError>;
}

/// Why a question brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The address is none.
    #[error(
        "{url:?} is not the address of a Prometheus: {reason}; expected one such as http://prometheus:9090"
    )]
    Address {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No connection, or no whole answer in time.
    #[error("{url} is out of reach, or did not answer in time")]
    Unreachable {
        /// Who was asked.
        url: String,
        /// What happened.
        source: reqwest::Error,
    },
    /// It refused the question, in its own words.
    #[error("{url} refused the query ({kind}): {words}")]
    Refused {
        /// Who was asked.
        url: String,
        /// Its word for the kind of error.
        kind: String,
        /// Its words.
        words: String,
    },
    /// It answered, but a part of its data is missing.
    #[error("{url} has only a part of the data: {words}")]
    Partial {
        /// Who was asked.
        url: String,
        /// Its words.
        words: String,
    },
    /// It answered with a status that is no answer.
    #[error("{url} answered {status} and not as a Prometheus does: is something else before it?")]
    Status {
        /// Who was asked.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// What it answered makes no sense.
    #[error("{url} did not answer as a Prometheus does: {reason}")]
    Alien {
        /// Who was asked.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The answer is not one number.
    #[error("the query gives {got}, expected one number: aggregate it, such as sum(…) or max(…)")]
    Shape {
        /// What it gives.
        got: String,
    },
}

impl MetricsError {
    /// Whether the same question may have an answer later, without anybody changing it.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Partial { .. } => true,
            // What Prometheus calls these is of the moment; `bad_data` and `execution` are of the question.
            Self::Refused { kind, .. } => {
                ["timeout", "canceled", "internal", "unavailable"].contains(&kind.as_str())
            }
            Self::Status { status, .. } => *status >= 500 || *status == 429,
            Self::Address { .. } | Self::Alien { .. } | Self::Shape { .. } => false,
        }
    }
}
