//! What is yet to be told to others: written in one transaction with the change that it tells of, and kept until whoever
//! it is for has acknowledged it.

use std::fmt;

use async_trait::async_trait;
use rollout::{RolloutId, Timestamp};
use serde_json::Value;

use super::StoreError;

/// Who is told. Each is told by itself: one that is away keeps no other waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Destination {
    /// GitLab's API.
    Gitlab,
    /// GitLab's alert endpoint.
    Alert,
    /// An incoming webhook of Slack's kind.
    Slack,
    /// A webhook of somebody's own.
    Webhook,
}

impl Destination {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Gitlab, Self::Alert, Self::Slack, Self::Webhook];

    /// Its name in the store, in metrics and for people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gitlab => "gitlab",
            Self::Alert => "alert",
            Self::Slack => "slack",
            Self::Webhook => "webhook",
        }
    }

    /// The one of this name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.as_str() == name)
    }
}

/// A message that is yet to be written. One of the same rollout, destination and topic that still waits is replaced by it:
/// what was true before need not be told any more.
#[derive(Debug, Clone, PartialEq)]
pub struct NewMessage {
    /// The rollout it is about.
    pub rollout: RolloutId,
    /// Who is told.
    pub destination: Destination,
    /// Which thing it is about, such as `note`.
    pub topic: String,
    /// What to say: the notifier's.
    pub body: Value,
}

/// A message that waits.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Its number: messages are told in this order.
    pub id: i64,
    /// How often it was replaced, from 1.
    pub version: i64,
    /// The rollout it is about.
    pub rollout: RolloutId,
    /// Who is told.
    pub destination: Destination,
    /// Which thing it is about.
    pub topic: String,
    /// What to say.
    pub body: Value,
    /// Since when it waits; one that was replaced, since the first of them.
    pub at: Timestamp,
    /// How often it was tried.
    pub attempts: u32,
}

/// What became of an attempt to tell a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// It was acknowledged; what it became there has this id, if it has one.
    Told {
        /// The id.
        remote: Option<String>,
    },
    /// It is to be tried again.
    Failed {
        /// Why, in words.
        error: String,
    },
    /// It is given up.
    Dead {
        /// Why, in words.
        error: String,
    },
}

/// A message that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadMessage {
    /// The rollout it was about.
    pub rollout: RolloutId,
    /// Who was to be told.
    pub destination: String,
    /// Which thing it was about.
    pub topic: String,
    /// When it was written.
    pub at: Timestamp,
    /// Why it was given up.
    pub error: String,
}

/// How the outbox is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutboxState {
    /// For each destination with messages that wait: how many, since when the oldest, and why it was not told at the last
    /// attempt.
    pub waiting: Vec<Waiting>,
    /// The messages that were given up, newest first, at most a hundred.
    pub dead: Vec<DeadMessage>,
    /// How many were given up.
    pub dead_count: u64,
}

/// What waits for one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Who is to be told.
    pub destination: String,
    /// How many messages wait.
    pub count: u64,
    /// When the oldest was written.
    pub oldest: Timestamp,
    /// Why it was not told at the last attempt.
    pub error: Option<String>,
}

/// The part of a store that keeps what is yet to be told. Messages come in with [`Store::save`](super::Store::save).
#[async_trait]
pub trait Outbox: fmt::Debug + Send + Sync {
    /// The messages that wait for a destination, in order; at most `limit`.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn waiting(
        &self,
        destination: Destination,
        limit: u32,
    ) -> Result<Vec<Message>, StoreError>;

    /// Writes what became of an attempt. A message that was replaced meanwhile stays.
    ///
    /// # Errors
    /// It was not written: no room, another controller took over, or the database failed.
    async fn settle(
        &self,
        term: u64,
        message: &Message,
        settled: &Settled,
    ) -> Result<(), StoreError>;

    /// What an earlier message about this became there.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn told(&self, rollout: &RolloutId, topic: &str) -> Result<Option<String>, StoreError>;

    /// Whether a message about another rollout became this.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn is_anothers(
        &self,
        rollout: &RolloutId,
        topic: &str,
        remote: &str,
    ) -> Result<bool, StoreError>;

    /// How it is.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn outbox_state(&self) -> Result<OutboxState, StoreError>;
}
