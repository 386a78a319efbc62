//! What is asked of the statistics, and what they answer.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use crate::sink::{DAY_S, HOUR_S, Hole, MINUTE_S, Reconciled};

/// What is asked for.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Asked {
    /// From this time on (RFC 3339); by default a day before `to`.
    #[param(value_type = Option<String>)]
    pub(super) from: Option<Timestamp>,
    /// To before this time (RFC 3339); by default now, and what claims to be newer.
    #[param(value_type = Option<String>)]
    pub(super) to: Option<Timestamp>,
    /// Only of this release.
    pub(super) release: Option<String>,
    /// Rows of the page, from 1 to 500; by default 20.
    pub(super) limit: Option<i64>,
    /// `next` of the page before.
    pub(super) cursor: Option<String>,
    /// With `sentiment`: `minute`, `hour` (by default) or `day`.
    pub(super) step: Option<Step>,
    /// With `jobs`: only of this job.
    pub(super) job: Option<String>,
}

/// How long a step of a series is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Step {
    /// Of 60 seconds; counts older than two days have no minutes.
    Minute,
    /// Of 3,600 seconds; counts older than two months have no hours.
    Hour,
    /// Of 86,400 seconds, in UTC.
    Day,
}

impl Step {
    pub(super) const fn seconds(self) -> i64 {
        match self {
            Self::Minute => MINUTE_S,
            Self::Hour => HOUR_S,
            Self::Day => DAY_S,
        }
    }
}

/// Counts of one release.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct ReleaseCounts {
    pub(super) release: String,
    /// Tweets with a result.
    pub(super) results: i64,
    /// Records that the release refused.
    pub(super) malformed: i64,
    /// Results stored later than promised.
    pub(super) late: i64,
    /// Tweets that stood in more than one place.
    pub(super) duplicates: i64,
    /// Of all its records, the share that it refused.
    pub(super) malformed_ratio: f64,
    /// From -1 to 1.
    pub(super) sentiment_mean: f64,
}

/// The counts of a range.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Summary {
    pub(super) from: String,
    pub(super) to: String,
    /// Of all releases together.
    pub(super) total: ReleaseCounts,
    /// The largest first, at most 100.
    pub(super) releases: Vec<ReleaseCounts>,
    /// Records that went in and are stored nowhere.
    pub(super) missing: i64,
}

/// A page of counts.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Page<T> {
    pub(super) items: Vec<T>,
    /// The cursor of the next page, if there is one.
    pub(super) next: Option<String>,
}

/// A count.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct KeyCount {
    pub(super) key: String,
    pub(super) count: i64,
    /// From -1 to 1.
    pub(super) sentiment_mean: f64,
}

/// The sentiments of a step.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SentimentStep {
    /// When it begins.
    pub(super) at: String,
    pub(super) positive: i64,
    pub(super) neutral: i64,
    pub(super) negative: i64,
    /// From -1 to 1.
    pub(super) mean: f64,
}

/// What the comparison of store and bus came to.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Reconciliation {
    pub(super) partitions: Vec<Reconciled>,
    /// The first hundred ranges that are missing.
    pub(super) missing: Vec<Hole>,
    /// Records of topics "results" and "malformed" that could not be read and do not say whose answer they are: what is missing
    /// may be among them.
    pub(super) unplaced: i64,
}

/// A counter of others.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Counter {
    pub(super) name: String,
    pub(super) labels: Value,
    pub(super) total: i64,
    pub(super) updated: String,
}

/// Why a question was refused (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// `about:blank`.
    pub(super) r#type: String,
    /// The status, in words.
    pub(super) title: String,
    /// The status.
    pub(super) status: u16,
    /// A stable word.
    pub(super) code: String,
    /// What is wrong, and what to do.
    pub(super) detail: String,
}
