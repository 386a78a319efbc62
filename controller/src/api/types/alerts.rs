//! What an Alertmanager sends to a webhook, version 4, as far as it is read; and what it is told.
//! <https://prometheus.io/docs/alerting/latest/configuration/#webhook_config>

use std::collections::BTreeMap;

use rollout::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Longest message, in bytes. An alert is about one KiB.
pub const ALERTS_BYTES_MAX: usize = 4 << 20;

/// A message. What else stands in it is passed over.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct AlertsRequest {
    /// The version of the format: "4".
    pub version: String,
    /// The alerts of one group.
    pub alerts: Vec<AlertBody>,
    /// How many were left out of it by the webhook's `max_alerts`.
    #[serde(default, rename = "truncatedAlerts")]
    pub truncated: u64,
}

/// One alert.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct AlertBody {
    /// `firing` or `resolved`.
    pub status: AlertStatus,
    /// What it is about: `alertname`, `service`, `friday_hold`.
    pub labels: BTreeMap<String, String>,
    /// What it says to people: `summary`.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// The hash of its labels; without one the labels themselves tell it from others.
    #[serde(default)]
    pub fingerprint: Option<String>,
}

/// Whether an alert fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AlertStatus {
    /// It does.
    Firing,
    /// It does no more.
    Resolved,
}

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AlertsView {
    /// Incidents that it opened.
    pub opened: usize,
    /// Incidents that it ended.
    pub resolved: usize,
    /// Alerts that found no place.
    pub left_out: usize,
    /// Incidents that are open now.
    pub open: usize,
}

/// An incident that is open: no rollout that it is about takes a further step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IncidentView {
    /// The alert's name.
    pub alert: String,
    /// The service that it is about; absent where it is about all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// What is wrong, in the alert's words.
    pub summary: String,
    /// When it was first heard of.
    #[schema(value_type = String)]
    pub since: Timestamp,
}
