//! How the controller itself is: what it sees, saves and asks.

use rollout::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::alerts::IncidentView;

/// How the controller is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HealthView {
    /// Its version.
    pub version: String,
    /// The time of its clock.
    #[schema(value_type = String)]
    pub now: Timestamp,
    /// The newest table, `TERM.SEQ`: what every proxy should apply.
    pub generation: String,
    /// Whether requests need a token.
    pub needs_token: bool,
    /// The services that it looks after, by name.
    pub services: Vec<SightView>,
    /// Why the last change could not be saved; absent while all is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<TroubleView>,
    /// The source of metrics that checks are asked of; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<MetricsView>,
    /// The incidents that are open, and hold rollouts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub incidents: Vec<IncidentView>,
    /// What is yet to be told to others, by whom it is for; absent while there is nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outbox: Vec<OutboxView>,
    /// Messages that were given up, newest first, some of very many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub untold: Vec<UntoldView>,
    /// How GitLab can be asked; absent where none was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gitlab: Option<GitlabView>,
}

/// What releases need to know of GitLab.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GitlabView {
    /// Its address.
    pub url: String,
    /// Its freeze periods, as they were last read; absent where none are asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze_periods: Option<FreezePeriodsView>,
    /// The keys of those it vouches for, as they were asked for just now; absent where it vouches for nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<KeysView>,
}

/// How freeze periods are known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FreezePeriodsView {
    /// How long ago they were read; absent where they are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<f64>,
    /// Why they are not known: nothing begins then without the emergency word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// Whether those whom GitLab vouches for can be let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeysView {
    /// Whether there are any that count: they do for a day.
    pub is_there: bool,
    /// Why none could be had at the last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// Messages that wait for one destination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OutboxView {
    /// Who is to be told: `gitlab`, `alert`, `slack` or `webhook`.
    pub destination: String,
    /// How many wait.
    pub messages: u64,
    /// How long the oldest waits.
    pub oldest_seconds: f64,
    /// Why it was not told at the last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// A message that was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UntoldView {
    /// The rollout it was about.
    pub rollout: String,
    /// Who was to be told.
    pub destination: String,
    /// Which thing it was about, such as `note`.
    pub topic: String,
    /// When it was written.
    #[schema(value_type = String)]
    pub at: Timestamp,
    /// Why it was given up.
    pub trouble: String,
}

/// Whether the controller sees the tasks of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SightView {
    /// The service.
    pub service: String,
    /// Whether they were ever seen.
    pub is_seen: bool,
    /// Why they could not be seen at the last look; what is shown of them is older then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// A trouble that lasts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TroubleView {
    /// What it is.
    pub words: String,
    /// For how long, in seconds.
    pub seconds: f64,
}

/// A source of metrics, as it answered just now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MetricsView {
    /// Why it gave no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}
