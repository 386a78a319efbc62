//! The documents of locks.

use rollout::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Takes a lock, or renews it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LockRequest {
    /// In which environment; without it, everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// Who.
    pub by: String,
    /// Why, in their words.
    pub reason: String,
    /// For how long, 1 s to 30 days; without it, until it is given back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_seconds: Option<u64>,
}

/// Gives a lock back, or breaks it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UnlockRequest {
    /// In which environment; without it, the one that holds everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// Who.
    pub by: String,
    /// Why, in their words; needed to break one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its number, so that a newer one is not given back by mistake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<u64>,
    /// Whether it may be somebody else's.
    #[serde(default)]
    pub breaks: bool,
}

/// A lock that is, or was until now, in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LockView {
    /// The service.
    pub service: String,
    /// In which environment; `null` for everywhere.
    pub environment: Option<String>,
    /// Who holds it.
    pub owner: String,
    /// Why, in their words.
    pub reason: String,
    /// Since when.
    #[schema(value_type = String)]
    pub taken: Timestamp,
    /// Until when; `null` until it is given back.
    #[schema(value_type = Option<String>)]
    pub until: Option<Timestamp>,
    /// Its number, which grows with every taking.
    pub fence: u64,
}
