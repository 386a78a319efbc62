//! What the controller needs of a store: that what was saved is there after any crash, and that nobody else writes.
//!
//! A change of a rollout, the events that tell of it, and how far the proxies' reports were read are saved in one
//! transaction: after a crash they agree. Every write names the term of the controller that makes it; a controller that
//! was replaced can write nothing (F26).

use std::fmt;

use async_trait::async_trait;
use proxy_api::BootId;
use rollout::{Judge, Release, Rollout, RolloutId, ServiceName, Timestamp, Verdict};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::admission::lock::Slot;
use crate::lease::Lease;
use crate::origin::Origin;

use crate::incidents::SavedIncidents;

pub mod outbox;

pub mod sqlite;

pub use outbox::{NewMessage, Outbox};
pub use sqlite::Sqlite;

/// A rollout with what the judge knows of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Saved {
    /// Its number among the service's rollouts.
    pub number: u64,
    /// The rollout.
    pub rollout: Rollout,
    /// The evidence so far.
    pub judge: Option<Judge>,
    /// The last verdict.
    pub verdict: Option<Verdict>,
    /// The job that asked for it.
    pub origin: Option<Origin>,
    /// Who waits for it.
    pub lease: Option<Lease>,
}

/// An event that is yet to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    /// The rollout it is about.
    pub rollout: Option<RolloutId>,
    /// What kind.
    pub kind: &'static str,
    /// Who caused it.
    pub author: String,
    /// What happened.
    pub data: Value,
}

/// An entry of the event log.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its number, from 1, without gaps.
    pub seq: i64,
    /// When.
    pub at: Timestamp,
    /// The rollout it is about.
    pub rollout: Option<RolloutId>,
    /// What kind.
    pub kind: String,
    /// Who caused it.
    pub author: String,
    /// What happened.
    pub data: Value,
    /// Over this entry and the hash before.
    pub hash: String,
}

/// The hash of an event: SHA-256 over the hash before it and its parts, each with its length before it, so that no two
/// entries have one encoding.
#[must_use]
pub fn event_hash(
    before: &str,
    seq: i64,
    at: &str,
    rollout: Option<&str>,
    kind: &str,
    author: &str,
    data: &str,
) -> String {
    let mut hasher = Sha256::new();
    let seq = seq.to_string();
    for part in [before, &seq, at, rollout.unwrap_or(""), kind, author, data] {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hex(&hasher.finalize())
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String cannot fail.
            let _infallible = write!(text, "{byte:02x}");
            text
        })
}

/// How far a proxy's reports are part of the evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The proxy.
    pub proxy: String,
    /// Which life of it.
    pub boot: BootId,
    /// Every final epoch up to this number was read.
    pub number: u64,
}

/// What is saved together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Change {
    /// New rollouts. The numbers were asked for with [`Store::next_number`].
    pub started: Vec<Saved>,
    /// Rollouts as they are now.
    pub rollouts: Vec<Saved>,
    /// How far reports were read.
    pub marks: Vec<Mark>,
    /// Locks as they are now.
    pub locks: Vec<Slot>,
    /// What happened, in order.
    pub events: Vec<NewEvent>,
    /// What others are to be told of it, in order.
    pub messages: Vec<NewMessage>,
    /// All incidents as they are now, if they changed.
    pub incidents: Option<SavedIncidents>,
}

impl Change {
    /// Whether there is nothing to save.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self == &Self::default()
    }
}

/// Why something was not saved or not found.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file is not a store of ours, or was damaged. Nothing was changed.
    #[error("{file} is damaged: {reason}; move it away to start empty, or bring back a copy of it")]
    Corrupt {
        /// Which file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No room.
    #[error("{file} cannot grow: the disk is full")]
    Full {
        /// Which file.
        file: String,
        /// What the database said.
        source: sqlx::Error,
    },
    /// Another controller took over.
    #[error("another controller has taken over: this one has term {ours}, the newest is {theirs}")]
    Fenced {
        /// Our term.
        ours: u64,
        /// The newest.
        theirs: u64,
    },
    /// The database failed.
    #[error("{what} in {file} failed")]
    Database {
        /// What was tried.
        what: &'static str,
        /// Where.
        file: String,
        /// What the database said.
        source: sqlx::Error,
    },
}

/// Whoever keeps the state.
#[async_trait]
pub trait Store: Outbox + fmt::Debug + Send + Sync {
    /// Takes over from whatever controller was there: the new term.
    ///
    /// # Errors
    /// The store cannot be written.
    async fn take_over(&self) -> Result<u64, StoreError>;

    /// Saves a change whole, or nothing of it.
    ///
    /// # Errors
    /// It was not saved: no room, fenced off, or the database failed.
    async fn save(&self, term: u64, now: Timestamp, change: &Change) -> Result<(), StoreError>;

    /// Every rollout that has not ended, by service and number.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn open_rollouts(&self) -> Result<Vec<Saved>, StoreError>;

    /// The rollout of this name.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn rollout(&self, id: &RolloutId) -> Result<Option<Saved>, StoreError>;

    /// The newest rollouts, newest first, of one service or of all; at most `limit`.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn history(
        &self,
        service: Option<&ServiceName>,
        limit: u32,
    ) -> Result<Vec<Saved>, StoreError>;

    /// The newest of the rollouts that are older than `before`, newest first, of one service or of all; at most `limit`.
    /// `None` if there is no rollout `before`.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn older(
        &self,
        service: Option<&ServiceName>,
        before: &RolloutId,
        limit: u32,
    ) -> Result<Option<Vec<Saved>>, StoreError>;

    /// Every service that has a rollout, by name.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn released(&self) -> Result<Vec<ServiceName>, StoreError>;

    /// The newest rollouts of these services, newest first; only those that are older than `before` if that is given. At most
    /// `limit`; `None` if there is no rollout `before`.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn history_of(
        &self,
        services: &[ServiceName],
        before: Option<&RolloutId>,
        limit: u32,
    ) -> Result<Option<Vec<Saved>>, StoreError>;

    /// The newest rollouts of a service that were promoted, newest first; at most `limit`.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn promoted(&self, service: &ServiceName, limit: u32) -> Result<Vec<Saved>, StoreError>;

    /// The newest rollout of a service that was promoted.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn last_promoted(&self, service: &ServiceName) -> Result<Option<Saved>, StoreError> {
        let newest = self.promoted(service, 1).await?;
        Ok(newest.into_iter().next())
    }

    /// The number the service's next rollout gets.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn next_number(&self, service: &ServiceName) -> Result<u64, StoreError>;

    /// How far reports were read.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn marks(&self) -> Result<Vec<Mark>, StoreError>;

    /// Every lock, and every number of one that is no more.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn locks(&self) -> Result<Vec<Slot>, StoreError>;

    /// Whether a rollout of this release's digest was promoted in this environment, under this service or under any.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn was_promoted(
        &self,
        service: Option<&ServiceName>,
        environment: &str,
        release: &Release,
    ) -> Result<bool, StoreError>;

    /// The incidents that are open.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn incidents(&self) -> Result<SavedIncidents, StoreError>;

    /// Events after `after`, oldest first, of one rollout or of all; at most `limit`.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn events(
        &self,
        rollout: Option<&RolloutId>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<Event>, StoreError>;

    /// Ends all use of the store: what was saved is in its file whole, without a journal beside it.
    async fn close(&self);

    /// Checks the whole chain of hashes: how many events there are, or the first that does not fit.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn verify(&self) -> Result<Result<i64, i64>, StoreError>;
}
