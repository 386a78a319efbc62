//! The documents of the HTTP API: what callers send and get. The command line, the board and scripts read these.

pub mod agents;
pub mod alerts;
pub mod health;
pub mod locks;
pub mod me;
pub mod series;

use rollout::{Admission, Ending, Phase, Release, Skipped, Timestamp, Verdict};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::lease::{Lease, Terms};
use crate::origin::Origin;

/// Starts a rollout.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeployRequest {
    /// The text of `friday.yml`, at most [`SPEC_BYTES_MAX`] long.
    pub spec: String,
    /// What its errors call that text: the path it was read from.
    #[serde(default = "friday_yml")]
    pub spec_name: String,
    /// The image of the canary.
    pub image: String,
    /// The commit it was built from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// A label: where it is released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// A plan of `plans:` in place of `plan:`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// Who starts it.
    pub author: String,
    /// Whether a release that was rolled back before may be tried again.
    #[serde(default)]
    pub retry: bool,
    /// Why no freeze shall hold it: the emergency word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emergency: Option<String>,
    /// The number of the lock that its author believes to hold; refused if that is no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<u64>,
    /// Whether its file's rules (`freeze`, `environments`) count alone, although the release before it asked for more, and
    /// whether it may be for another environment than that. Takes role admin.
    #[serde(default, skip_serializing_if = "is_false")]
    pub change_rules: bool,
    /// The job that asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Who waits for it, and what happens when they are heard no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Terms>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(is: &bool) -> bool {
    !*is
}

fn friday_yml() -> String {
    "friday.yml".to_owned()
}

/// Longest `friday.yml`, in bytes. A long one is 4 KiB.
pub const SPEC_BYTES_MAX: usize = 256 << 10;

/// An order to a running rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// On to the next step without further proof; ends a pause.
    Promote,
    /// All the way, without further steps.
    PromoteFull,
    /// Stay as it is.
    Pause,
    /// End the pause.
    Resume,
    /// Back to stable.
    Abort,
    /// The gate may open.
    Approve,
    /// The gate stays shut: back to stable.
    Reject,
}

/// An order, by whom and why.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OrderRequest {
    /// What.
    pub order: Order,
    /// Who says so.
    pub by: String,
    /// Why, in their words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why no freeze shall hold the rollout from now on: the emergency word. With `promote` and `approve`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emergency: Option<String>,
}

/// Takes, renews or gives back the lease of a rollout.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(tag = "action", rename_all = "snake_case", deny_unknown_fields)]
pub enum LeaseOrder {
    /// It is mine from now on, by these terms; whoever had it before has it no more.
    Take {
        /// What is agreed upon.
        terms: Terms,
    },
    /// I still wait.
    Renew {
        /// Who.
        holder: String,
    },
    /// I wait no longer: what was agreed upon shall happen now.
    GiveBack {
        /// Who.
        holder: String,
        /// Why, in their words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
}

/// Goes back to an earlier release, or tries one again.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UndoRequest {
    /// The number of the rollout whose release shall be stable again; without it, the one before the present.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<u64>,
    /// The newest rollout as its author saw it: refused if there is a newer one by now, so that two who undo the same release
    /// do not undo two. For an undo alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    /// Who says so.
    pub by: String,
    /// Why, in their words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// One task of a release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskView {
    /// Its identity.
    pub id: String,
    /// The release it runs.
    pub release: String,
    /// Where it listens.
    pub endpoint: String,
    /// The node it runs on.
    pub node: String,
    /// Whether it gets requests.
    pub ready: bool,
    /// Memory it uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// The most it may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes_max: Option<u64>,
    /// CPU time it has used since its start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_seconds: Option<f64>,
    /// Requests it answered well, over about the last ten seconds.
    #[serde(default)]
    pub done: u64,
    /// Requests that failed at it, over about the last ten seconds.
    #[serde(default)]
    pub failed: u64,
    /// Requests at it that have no answer yet.
    #[serde(default)]
    pub in_flight: u64,
}

/// One side of a service: its release, its tasks, and what became of their requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ArmView {
    /// The release.
    #[schema(value_type = Object)]
    pub release: Release,
    /// Its tasks.
    pub tasks: Vec<TaskView>,
    /// How many are wanted.
    pub replicas: u32,
    /// Restarts that nobody asked for, in the last five minutes.
    pub restarts: u32,
    /// Why the last task ended or could not start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// The golden signals, over about the last ten seconds.
    pub signals: SignalsView,
}

/// The golden signals of one side, over about the last ten seconds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct SignalsView {
    /// Requests in a second.
    pub requests_per_second: f64,
    /// Bad outcomes as a share of requests; `null` without requests.
    pub error_ratio: Option<f64>,
    /// Median latency of the successes, in seconds; `null` without any.
    pub latency_p50_seconds: Option<f64>,
    /// 90th percentile.
    pub latency_p90_seconds: Option<f64>,
    /// 99th percentile.
    pub latency_p99_seconds: Option<f64>,
    /// Memory of all tasks, in bytes.
    pub memory_bytes: Option<u64>,
    /// CPU seconds used in a second, over all tasks.
    pub cpu_cores: Option<f64>,
}

/// What stands of a step in a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// Behind.
    Done,
    /// Here.
    Current,
    /// Ahead.
    Pending,
    /// Passed over when the rollout began: too small for the traffic.
    Skipped,
}

/// One step, the bake, or the warm phase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepView {
    /// `weight`, `gate`, `bake` or `warm`.
    pub kind: String,
    /// The canary's share in percent; `null` at a gate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_percent: Option<f64>,
    /// Who may approve; at a gate only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approvers: Option<String>,
    /// At least so long.
    pub least_seconds: f64,
    /// At most so long before the time-out rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most_seconds: Option<f64>,
    /// Behind, here, ahead or passed over.
    pub state: StepState,
}

/// A check of the guard, as the judge last saw it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CheckView {
    /// Its name.
    pub name: String,
    /// What it must keep: `at most 1000`.
    pub bound: String,
    /// The canary's newest value; `null` while there is none.
    pub canary: Option<f64>,
    /// Stable's, where the two are compared.
    pub stable: Option<f64>,
    /// The value that the canary's must not pass; `null` where it depends on stable's and there is none.
    pub limit: Option<f64>,
    /// How it stands.
    pub state: CheckState,
    /// All that is known, in a sentence.
    pub message: String,
}

/// How a check stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckState {
    /// The newest value is within its limit.
    Kept,
    /// It is beyond. Three times in a row rolls back; a comparison does when the evidence suffices.
    Beyond,
    /// There is none, or none for too long: no gate opens.
    NoData,
}

/// The canary's share: decided, and as the proxies apply it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WeightView {
    /// As decided, in percent.
    pub set_percent: f64,
    /// As every living proxy applies it, in percent; `null` when they differ or none is known.
    pub seen_percent: Option<f64>,
}

/// A rollout, as people see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RolloutView {
    /// Its name.
    pub id: String,
    /// Its number among the service's rollouts.
    pub number: u64,
    /// The service.
    pub service: String,
    /// Where.
    pub environment: String,
    /// Who started it.
    pub author: String,
    /// When it started.
    #[schema(value_type = String)]
    pub created: Timestamp,
    /// When it last moved.
    #[schema(value_type = String)]
    pub moved: Timestamp,
    /// Time since its start that counts for its deadline, in seconds.
    pub elapsed_seconds: f64,
    /// Where it is, with what matters there.
    #[schema(value_type = Object)]
    pub phase: Phase,
    /// One sentence for people: where it is, and what it waits for or why it ended.
    pub message: String,
    /// What holds it that is no evidence: a freeze, missing approvals; who approved, and the emergency word.
    #[serde(default, skip_serializing_if = "Admission::is_plain")]
    #[schema(value_type = Object)]
    pub admission: Admission,
    /// The canary's share.
    pub weight: WeightView,
    /// The steps.
    pub steps: Vec<StepView>,
    /// The steps that were passed over when it began, and why; absent where none were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub skipped: Option<Skipped>,
    /// The release served by default.
    pub stable: ArmView,
    /// The release on trial.
    pub canary: ArmView,
    /// The checks of the guard, as the judge last saw them; absent where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckView>,
    /// The judge's last verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    pub verdict: Option<Verdict>,
    /// How it ended; `null` while it runs.
    #[schema(value_type = Option<String>)]
    pub ending: Option<Ending>,
    /// The job that asked for it; absent where none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Who waits for it; absent where nobody has to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// The number to promote or abort by, so that an order meant for an older rollout moves nothing.
    pub superseded_by: Option<String>,
}

/// A rollout in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RolloutSummary {
    /// Its name.
    pub id: String,
    /// Its number among the service's rollouts.
    pub number: u64,
    /// The service.
    pub service: String,
    /// Where.
    pub environment: String,
    /// Who started it.
    pub author: String,
    /// When it started.
    #[schema(value_type = String)]
    pub created: Timestamp,
    /// When it last moved.
    #[schema(value_type = String)]
    pub moved: Timestamp,
    /// The release on trial.
    #[schema(value_type = Object)]
    pub canary: Release,
    /// Where it is.
    #[schema(value_type = Object)]
    pub phase: Phase,
    /// The canary's share as decided, in percent.
    pub weight_percent: f64,
    /// One sentence for people.
    pub message: String,
    /// How it ended; `null` while it runs.
    #[schema(value_type = Option<String>)]
    pub ending: Option<Ending>,
}

/// A service and its newest rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceView {
    /// Its name.
    pub service: String,
    /// What users get.
    pub stable: ArmView,
    /// Its newest rollout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutSummary>,
}

/// One entry of the event log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EventView {
    /// Its number, from 1, over all rollouts.
    pub seq: i64,
    /// When.
    #[schema(value_type = String)]
    pub at: Timestamp,
    /// The rollout, if it is about one.
    pub rollout: Option<String>,
    /// What kind: `started`, `skipped`, `phase`, `weight`, `order`, `verdict`, `refused`, …
    pub kind: String,
    /// Who caused it; `friday` for what it did by itself.
    pub author: String,
    /// What happened, by kind.
    #[schema(value_type = Object)]
    pub data: serde_json::Value,
    /// SHA-256 over this entry and the hash before it, in hexadecimal.
    pub hash: String,
}

impl From<crate::store::Event> for EventView {
    fn from(event: crate::store::Event) -> Self {
        Self {
            seq: event.seq,
            at: event.at,
            rollout: event.rollout.map(|id| id.to_string()),
            kind: event.kind,
            author: event.author,
            data: event.data,
            hash: event.hash,
        }
    }
}

/// A proxy, as the controller knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProxyView {
    /// Its name.
    pub name: String,
    /// The table it applies.
    pub generation: String,
    /// Seconds since it last reported.
    pub silent_seconds: f64,
    /// Its version, where it says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// A problem, as RFC 9457 has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// A stable name for the kind of problem, for programs: `unknown_rollout`, `invalid_spec`, `busy`, …
    pub code: String,
    /// The HTTP status.
    pub status: u16,
    /// A few words.
    pub title: String,
    /// What happened, to what, and what to do.
    pub detail: String,
}
