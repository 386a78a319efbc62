//! Who asks, and what is allowed to them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whoever asks, as the controller knows them. A program that shows buttons shows those that are allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MeView {
    /// The name that stands in the event log; absent where nobody has to sign in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The role; absent where nobody has to sign in, for then everybody may do everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Whether they may start and move rollouts.
    pub may_operate: bool,
    /// Whether they may approve and reject at gates.
    pub may_approve: bool,
    /// Whether they may read what is about all services: agents, proxies, the whole event log.
    #[serde(default)]
    pub may_read_all: bool,
}
