//! What jobs need of the store: a lock, a book of runs, and the work itself.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::sink::{ReconcileStore, StorageError};

/// How long a lock in SQLite lasts without being renewed: a node that dies is followed by another after that.
pub(crate) const LEASE_MS: i64 = 15_000;

/// Rows removed in one transaction: some 100 ms, so that the sink hardly waits.
pub(crate) const REMOVED_MAX: i64 = 5_000;

/// Jobs, as the store knows them.
#[async_trait]
pub trait JobStore: ReconcileStore {
    /// Takes the job's lock, if no other node has it.
    async fn lock(
        &self,
        job: &str,
        holder: &str,
        now_ms: i64,
    ) -> Result<Option<Box<dyn Lock>>, StorageError>;

    /// The last due time that was dealt with. A job that is new counts from `now_ms`.
    async fn last_due(&self, job: &str, now_ms: i64) -> Result<i64, StorageError>;

    /// Attempts at the run of this due time that were begun. Those that did not end are written off: who asks has the
    /// lock, so nobody else is at it.
    async fn attempts(&self, job: &str, due_ms: i64, now_ms: i64) -> Result<i64, StorageError>;

    /// Writes down that a run begins.
    async fn begin(&self, run: &Begun) -> Result<(), StorageError>;

    /// Writes down how it ended, and that its due time is dealt with.
    async fn end(
        &self,
        run: &Begun,
        ended_ms: i64,
        outcome: Outcome,
        detail: &str,
    ) -> Result<(), StorageError>;

    /// Runs, the latest first, at most `limit`, after the last one of the page before.
    async fn runs(
        &self,
        job: Option<&str>,
        after: Option<&RunPlace>,
        limit: i64,
    ) -> Result<Vec<JobRun>, StorageError>;

    /// Folds counts of buckets `from_s` seconds wide that ended before `before_s` into buckets of `to_s` seconds. Returns
    /// how many rows were folded.
    async fn fold(&self, from_s: i64, to_s: i64, before_s: i64) -> Result<u64, StorageError>;

    /// Removes some rows stored before `before_ms`; returns how many, 0 when none are left. Rows that were not compared
    /// with the bus yet stay, where a comparison has begun.
    async fn remove_rows(&self, before_ms: i64) -> Result<u64, StorageError>;

    /// Removes what is only book-keeping and older: runs, and keys of counter posts.
    async fn remove_records(&self, before_ms: i64) -> Result<u64, StorageError>;
}

/// A job's lock. Dropped without a word, it ends with its connection or lease.
#[async_trait]
pub trait Lock: Send {
    /// Makes sure that it is still held, and renews it.
    async fn held(&mut self, now_ms: i64) -> Result<bool, StorageError>;

    /// Gives it back.
    async fn release(self: Box<Self>) -> Result<(), StorageError>;
}

/// A run that begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun {
    /// The job.
    pub job: String,
    /// When it was due, in milliseconds since 1970.
    pub due_ms: i64,
    /// From 1.
    pub attempt: i64,
    /// Who runs it.
    pub node: String,
    /// When it began.
    pub started_ms: i64,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Done,
    /// With an error.
    Failed,
    /// It took longer than it may.
    Deadline,
    /// The lock was lost on the way.
    Lost,
    /// Its node was told to stop.
    Stopped,
    /// Nobody was there when it was due.
    Missed,
}

impl Outcome {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Deadline => "deadline",
            Self::Lost => "lost",
            Self::Stopped => "stopped",
            Self::Missed => "missed",
        }
    }

    /// Whether the due time is dealt with; otherwise another node goes on with it.
    #[must_use]
    pub const fn is_final(self) -> bool {
        match self {
            Self::Done | Self::Failed | Self::Deadline | Self::Missed => true,
            Self::Lost | Self::Stopped => false,
        }
    }
}

/// Where a run stands among the others: by its beginning, and those that began at once by what tells them apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunPlace {
    /// When it began.
    pub started_ms: i64,
    /// The job.
    pub job: String,
    /// When it was due.
    pub due_ms: i64,
    /// From 1.
    pub attempt: i64,
}

impl JobRun {
    /// Where it stands among the others.
    #[must_use]
    pub fn place(&self) -> RunPlace {
        RunPlace {
            started_ms: self.started_ms,
            job: self.job.clone(),
            due_ms: self.due_ms,
            attempt: self.attempt,
        }
    }
}

/// A run, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct JobRun {
    /// The job.
    pub job: String,
    /// When it was due, in milliseconds since 1970.
    pub due_ms: i64,
    /// From 1; more when a node died on it.
    pub attempt: i64,
    /// Who ran it.
    pub node: String,
    /// When it began.
    pub started_ms: i64,
    /// When it ended; absent while it runs.
    pub ended_ms: Option<i64>,
    /// From due to begun.
    pub delay_ms: i64,
    /// `running`, `done`, `failed`, `deadline`, `lost`, `stopped`, `missed` or `abandoned`.
    pub outcome: String,
    /// What it did, or why it failed.
    pub detail: String,
}
