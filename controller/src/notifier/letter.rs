//! What a message in the outbox says: all that telling it takes, so that it can be told hours later.

use rollout::{RolloutId, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::origin::Origin;
use crate::store::NewMessage;
use crate::store::outbox::Destination;

/// A message's body. Saved: a field that is renamed is a message of an older version that is given up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Letter {
    /// The job that asked for the release, for what goes to GitLab.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// What to say.
    pub what: What,
}

/// What is said. Each is a state to bring about, not a step: to say it twice does no more than to say it once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum What {
    /// A commit status in the origin's pipeline.
    Status {
        /// `running`, `success`, `failed` or `canceled`.
        state: String,
        /// By which GitLab finds it again.
        name: String,
        /// In a line.
        description: String,
        /// Where to read on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target_url: Option<String>,
    },
    /// The note about the rollout in the commit's merge request.
    Note {
        /// By which it is found again: an HTML comment, part of the body.
        marker: String,
        /// All of it, in GitLab's Markdown.
        body: String,
    },
    /// The deployment record of the rollout.
    Deployment {
        /// The environment.
        environment: String,
        /// `running`, `success`, `failed` or `canceled`.
        status: String,
        /// When the rollout began: an older record is not its own.
        since: Timestamp,
    },
    /// A release.
    Release {
        /// Its tag; made from the origin's commit if there is none.
        tag: String,
        /// For people.
        name: String,
        /// In GitLab's Markdown.
        description: String,
    },
    /// The issue for change management.
    Ticket {
        /// By which it is found again, part of the description.
        marker: String,
        /// Its title.
        title: String,
        /// All of it, in GitLab's Markdown.
        description: String,
        /// Whether the change is over.
        is_over: bool,
    },
    /// An alert, or its end.
    Alert {
        /// The file with the endpoint's address.
        url_file: String,
        /// The file with its key.
        key_file: String,
        /// As the endpoint takes it.
        payload: Value,
    },
    /// A line to a chat.
    Slack {
        /// The file with the address.
        url_file: String,
        /// In Slack's markup.
        text: String,
    },
    /// A signed webhook.
    Webhook {
        /// Its address.
        url: String,
        /// The file with the secret.
        secret_file: String,
        /// As it is sent.
        payload: Value,
    },
}

impl What {
    /// Who is told that.
    #[must_use]
    pub fn destination(&self) -> Destination {
        match self {
            Self::Status { .. }
            | Self::Note { .. }
            | Self::Deployment { .. }
            | Self::Release { .. }
            | Self::Ticket { .. } => Destination::Gitlab,
            Self::Alert { .. } => Destination::Alert,
            Self::Slack { .. } => Destination::Slack,
            Self::Webhook { .. } => Destination::Webhook,
        }
    }
}

impl Letter {
    /// The message that says it, about this rollout and topic.
    #[must_use]
    pub fn about(self, rollout: &RolloutId, topic: impl Into<String>) -> NewMessage {
        NewMessage {
            rollout: rollout.clone(),
            destination: self.what.destination(),
            topic: topic.into(),
            body: json!(self),
        }
    }
}
