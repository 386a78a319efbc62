//! What a rollout asks of the world, and what it was told of it.
//!
//! The shell compares the two and closes the gap with calls that may be repeated. Nothing here is an order to carry out
//! once: asked again after a crash, a rollout says the same again.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::release::{Release, ReleaseId};
use crate::weight::Weight;

/// What shall be there of the canary's tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// None: what is there is drained, stopped and removed.
    Absent,
    /// What is there stays, and nothing is added: traffic is leaving it.
    Keep,
    /// So many tasks of this release.
    Run {
        /// The release.
        release: Release,
        /// How many tasks.
        replicas: u32,
    },
}

/// What a rollout asks of the world: a function of its saved state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// The canary's share of requests.
    pub weight: Weight,
    /// The canary's tasks.
    pub canary: Placement,
    /// The release that the stable group shall run. `None`: whatever it runs is its owner's business.
    pub stable: Option<Release>,
    /// How many tasks the stable group shall have again if somebody took them all away: by scaling it to nothing, or by
    /// removing it. `None`: that is its owner's business.
    pub stable_replicas: Option<u32>,
}

/// What was last seen of the world, as far as a rollout's next step depends on it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Observed {
    /// How many tasks the stable group wants.
    pub stable_replicas: u32,
    /// The release that the stable group wants; its tasks may still run another.
    pub stable_wants: Option<ReleaseId>,
    /// Tasks of the stable release in the stable group that may get requests.
    pub stable_ready: u32,
    /// Tasks of the canary's release in the stable group that may get requests: above 0 once it is promoted in place.
    pub stable_updated: u32,
    /// Tasks of the stable group that may get requests, whichever release they run.
    #[serde(default)]
    pub stable_serving: u32,
    /// Whether the canary group is there at all, also while it is being removed.
    pub canary_exists: bool,
    /// Tasks of the canary group that may get requests.
    pub canary_ready: u32,
    /// The canary's share as every proxy that is alive applies it; `None` when they differ, or none is known.
    pub weight_seen: Option<Weight>,
    /// Requests at the canary that have no answer yet, over all proxies.
    pub canary_in_flight: u32,
    /// Requests a second to the service before the canary's first; `None` once it gets any, and while the rate is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<f64>,
    /// Why the canary's last task ended or could not start, in the words of whoever ran it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Why what this rollout asked for was refused for good, in the words of whoever refused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}
