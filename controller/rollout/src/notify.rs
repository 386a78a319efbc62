//! Who is told how a release goes, as `friday.yml` says it. Telling them is the shell's work.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who is told. Nobody by default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Notify {
    /// What GitLab is told, about releases that one of its jobs asked for.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub gitlab: BTreeSet<GitlabNotice>,
    /// GitLab's alert endpoint, when a release is rolled back on evidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alert: Option<AlertNotice>,
    /// The file that holds the address of an incoming webhook of Slack's kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slack_url_file: Option<String>,
    /// A webhook that is sent every move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<WebhookNotice>,
}

impl Notify {
    /// Whether nobody is told anything.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self == &Self::default()
    }
}

/// One thing that GitLab is told.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum GitlabNotice {
    /// A commit status in the job's pipeline.
    Status,
    /// One note in the commit's merge request, kept up to date.
    Note,
    /// A deployment record of the environment.
    Deployment,
    /// A release, when it was promoted in production.
    Release,
    /// An issue for change management, closed at the end.
    Ticket,
}

/// GitLab's alert endpoint. Both are paths of the controller's machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AlertNotice {
    /// The file that holds its address.
    pub url_file: String,
    /// The file that holds its authorization key.
    pub key_file: String,
}

/// A webhook, signed as <https://www.standardwebhooks.com> has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WebhookNotice {
    /// Its address.
    pub url: String,
    /// The file of the controller's machine that holds the secret: `whsec_` and base64.
    pub secret_file: String,
}
