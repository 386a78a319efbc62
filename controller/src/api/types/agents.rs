//! What a node's agent reports, and what is shown of agents.

use proxy_api::{Arm, BootId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Most tasks of one report. A node runs a hundred; what is beyond is counted in [`AgentReport::tasks_left_out`].
pub const TASKS_MAX: usize = 500;

/// Longest report, in bytes: as many tasks with names of 63 characters make 300 KiB.
pub const REPORT_BYTES_MAX: usize = 512 << 10;

/// What the tasks of one node use, and the node itself, at one moment. Sent about once a second; only the last one counts.
/// What is not known is absent, never zero.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AgentReport {
    /// The node, by the name that Swarm shows of it.
    pub node: String,
    /// Its id in the swarm; absent while the engine has not told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    /// This life of the agent.
    pub boot: BootId,
    /// Grows by one with each sample of this life: a report that comes late replaces none that is newer.
    pub number: u64,
    /// Why the engine could not be asked; then there are no tasks in the report, and nothing is known of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// The node as a whole.
    #[serde(default)]
    pub host: HostUse,
    /// The swarm's tasks that run on it, at most [`TASKS_MAX`].
    #[serde(default)]
    pub tasks: Vec<TaskUse>,
    /// Tasks that found no place in the report.
    #[serde(default)]
    pub tasks_left_out: u32,
}

/// What a node uses as a whole, of what it has.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct HostUse {
    /// The share of all its CPUs' time that was not idle since the sample before, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ratio: Option<f64>,
    /// How many CPUs it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Memory that is not available to programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// All its memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes_max: Option<u64>,
}

/// What one task uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskUse {
    /// The task's id in the swarm.
    pub id: String,
    /// Its name, `SERVICE.SLOT.ID`.
    pub name: String,
    /// The service that users call; of a canary's task the one that it is a clone of.
    pub service: String,
    /// Whether it is one of the canary's.
    pub arm: Arm,
    /// The release it runs.
    pub release: String,
    /// CPU time used since its start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_seconds: Option<f64>,
    /// CPU seconds used in a second since the sample before: 1 is one CPU, all the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_cores: Option<f64>,
    /// The most of it that it may use; absent without a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_cores_max: Option<f64>,
    /// Memory in use, without the page cache that can be dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// The most that it may use; absent without a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes_max: Option<u64>,
}

/// An agent, as the controller knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AgentView {
    /// The last it said.
    pub report: AgentReport,
    /// Seconds since then.
    pub silent_seconds: f64,
    /// Whether that is recent enough to be believed; else nothing is known of its tasks.
    pub is_live: bool,
}
