//! What the statistics need of the store.

use async_trait::async_trait;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::sink::{Kind, StorageError};

/// Which counts to add up. Counts older than two days are kept by the hour, older than two months by the day: a bucket
/// belongs to the range that its beginning lies in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Window {
    /// From this second on, since 1970.
    pub from_s: i64,
    /// To before this one.
    pub to_s: i64,
    /// Only of this release.
    pub release: Option<String>,
}

/// What became of counters that were posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// They are added.
    Now,
    /// They were added before, under the same key.
    Before,
    /// Others were added before, under the same key; nothing is added.
    Other,
    /// There would be too many; nothing is added.
    TooMany,
}

/// What tells counters that were posted from others: a hash of all of them, in hexadecimal digits.
pub(crate) fn fingerprint(counters: &[(String, String, i64)]) -> String {
    let digest = Sha256::digest(json!(counters).to_string());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reading counts, and keeping those of others.
#[async_trait]
pub trait StatsStore: Send + Sync {
    /// `(kind, count, sentiment_micros)` of results, late results, dead letters and duplicates, of all releases.
    async fn sums(&self, window: &Window) -> Result<Vec<(String, i64, i64)>, StorageError>;

    /// `(kind, release, count, sentiment_micros)` of the same, of the `releases_max` releases that have most of any kind, the
    /// largest first.
    async fn totals(
        &self,
        window: &Window,
        releases_max: i64,
    ) -> Result<Vec<(String, String, i64, i64)>, StorageError>;

    /// `(key, count, sentiment_micros)` of a kind, the largest first, after the last one of the page before.
    async fn top(
        &self,
        kind: Kind,
        window: &Window,
        after: Option<(i64, String)>,
        limit: i64,
    ) -> Result<Vec<(String, i64, i64)>, StorageError>;

    /// `(second, key, count, sentiment_micros)` of the latest `limit` steps that have any, the latest first.
    async fn over_time(
        &self,
        kind: Kind,
        step_s: i64,
        window: &Window,
        limit: i64,
    ) -> Result<Vec<(i64, String, i64, i64)>, StorageError>;

    /// `(name, labels, total, updated_ms)` of the counters of others, by name and labels, after the last one of the page
    /// before.
    async fn counters(
        &self,
        after: Option<(String, String)>,
        limit: i64,
    ) -> Result<Vec<(String, String, i64, i64)>, StorageError>;

    /// Adds `(name, labels, value)` to the counters, all or none; once for each `key`, which the same counters
    /// may come with again. Afterwards there are at most `series_max`.
    async fn add(
        &self,
        key: Option<&str>,
        counters: &[(String, String, i64)],
        series_max: i64,
        now_ms: i64,
    ) -> Result<Added, StorageError>;
}
