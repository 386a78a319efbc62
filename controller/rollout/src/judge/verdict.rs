//! What the judge says of a block, as data: enough to explain it, and to check it again later.

use serde::{Deserialize, Serialize};

use super::saturation::Gauge;
use crate::Duration;
use crate::plan::Bound;
use crate::serial::{Millis, log, millis};
use crate::weight::Weight;

/// The version of the rules. It changes with every change that may lead to another verdict on the same blocks, so that a
/// replay can say why it differs.
pub const RULES_VERSION: u32 = 3;

/// What the judge says of one block, with the numbers that led to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The rules it was found by.
    pub rules: u32,
    /// The step that was judged, as the caller counts.
    pub step: usize,
    /// The weight under which the block's requests were routed.
    pub weight: Weight,
    /// What follows.
    pub decision: Decision,
    /// Evidence of harm.
    pub evidence: Evidence,
    /// The logarithm of the evidence from which the release is rolled back.
    pub rollback_at: f64,
    /// What counted in this block: nodes that warm up are left out.
    pub block: Counts,
    /// What counted in this step so far, after the warm-up.
    pub in_step: Counts,
    /// How long the step had requests on both arms.
    #[serde(rename = "step_elapsed_ms", with = "millis")]
    pub step_elapsed: Duration,
    /// How long there was nothing to compare.
    #[serde(rename = "idle_ms", with = "millis")]
    pub idle: Duration,
    /// Requests of canary nodes that still warm up; they are left out, but for the catastrophe guard.
    pub canary_cold: u64,
    /// Stable's latency at p50, p90 and p99, in microseconds, from which on an answer is slow; none while unknown.
    pub thresholds_us: [Option<f64>; 3],
    /// By what the evidence was divided because events cluster: errors, then slow at each percentile.
    pub dispersion: [f64; 4],
    /// Stable's error rate as known before the block. A bad stable release makes the margin wider; here it is named.
    pub stable_error_rate: f64,
    /// Pooled estimate of the canary's error share less stable's; none while nothing was compared.
    pub excess_errors: Option<f64>,
    /// The smallest excess of errors that is disproven with a chance of being wrong of at most 5 %; none if none is.
    pub bound: Option<f64>,
    /// What the gate asks for, and how far each proof is. Empty in the bake.
    pub proofs: Vec<Proof>,
    /// The logarithm of the evidence that requests are not split as the weight says.
    pub split_mismatch: f64,
    /// What is known of each check of the guard.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckSeen>,
    /// What kinds of answers there were since the warm-up, where the guard asks for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<KindSeen>,
    /// The watch over a canary that has every request; none as long as there is something to compare it with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watched: Option<Watched>,
}

impl Verdict {
    /// How near the evidence is to a rollback, as a natural logarithm: 0 and above is one.
    #[must_use]
    pub fn nearness(&self) -> f64 {
        let compared = self.evidence.total - self.rollback_at;
        self.watched.as_ref().map_or(compared, |watched| {
            compared.max(watched.total - watched.rollback_at)
        })
    }
}

/// Evidence against a canary that has every request, held against stable's last hour: a weaker comparison, for what changes
/// in the world meanwhile is taken for the canary's doing. Natural logarithms.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Watched {
    /// That it fails more than is allowed.
    #[serde(with = "log")]
    pub errors: f64,
    /// That it is more than twice as slow as stable was, at p50, p90 and p99.
    pub latency: [f64; 3],
    /// That nodes of it which start now are broken rather than cold.
    #[serde(with = "log")]
    pub cold: f64,
    /// The weighted mean of them all.
    #[serde(with = "log")]
    pub total: f64,
    /// From which total on it is rolled back. This is a budget of its own, beside `alpha`.
    pub rollback_at: f64,
    /// Stable's share of errors in the worst five minutes of its last hour; none if too little is known of it.
    pub errors_before: Option<f64>,
    /// The share of errors that the canary may have.
    pub errors_allowed: f64,
}

/// What is known of one check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckSeen {
    /// Its name.
    pub name: String,
    /// What it must keep.
    pub bound: Bound,
    /// The canary's newest value; none while there is no data.
    pub canary: Option<f64>,
    /// Stable's, where the two are compared.
    pub stable: Option<f64>,
    /// How many samples in a row were beyond the limit; 0 where the two are compared.
    pub broken: u8,
    /// The logarithm of the evidence that the canary is the worse one; 0 for a limit.
    #[serde(with = "log")]
    pub log_e: f64,
    /// How long there has been no data, in time of blocks; since the beginning if there never was any.
    #[serde(rename = "silent_ms", with = "millis")]
    pub silent: Duration,
    /// Why the last question brought none, if it did not.
    pub trouble: Option<String>,
}

/// How often one kind of answer was given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KindSeen {
    /// The kind, as answers name it.
    pub name: String,
    /// Its share of the canary's answers, from 0 to 1.
    pub canary: f64,
    /// Its share of stable's at the same time, block by block: weights and moods that change do not show as a difference.
    pub stable: f64,
    /// The logarithm of the evidence that the canary gives it more often.
    #[serde(with = "log")]
    pub log_e: f64,
}

/// What follows from the evidence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// The canary keeps its weight: it is not yet known. Never empty.
    Inconclusive {
        /// What a pass needs.
        missing: Vec<Missing>,
    },
    /// The canary keeps its weight: what there is cannot be judged, and someone should look.
    Hold {
        /// Why.
        reason: HoldReason,
    },
    /// The step's gate is open; in the bake: promote.
    Pass {
        /// On what grounds.
        by: Grounds,
    },
    /// The canary is worse than stable: roll back.
    Fail {
        /// What is worse.
        signal: Signal,
        /// The one node that it may be due to, if the failures are all but its own.
        sick_node: Option<SickNode>,
    },
}

/// On what grounds a gate opens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grounds {
    /// Every margin of the gate is proven.
    Proof,
    /// The step's time is over without proof: nothing speaks against the canary, and all estimates are inside the margins.
    TimeOut {
        /// The smallest excess of errors that is disproven; none if none is.
        bound: Option<f64>,
    },
    /// The bake is over and nothing spoke against the canary.
    Calm,
}

/// What a pass still needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// The rollout's warm-up is not over.
    WarmUp {
        /// How much of it is left, in time with requests.
        #[serde(rename = "remaining_ms", with = "millis")]
        remaining: Duration,
    },
    /// There is some evidence of harm, though not enough to roll back.
    Calm {
        /// The logarithm of the total.
        #[serde(with = "log")]
        log_e: f64,
        /// What it must be below.
        below: f64,
    },
    /// This block had no requests on one of the arms.
    BothArms,
    /// This block's requests were routed under another weight.
    Weight,
    /// The nodes' gauges were reported before and are no longer.
    Gauges,
    /// A check of the guard has no data, or none that was taken wholly within this step.
    Check {
        /// Which.
        name: String,
        /// How long it has had none; absent where it has, but of the time before this step.
        #[serde(rename = "silent_ms")]
        silent: Option<Millis>,
    },
    /// The guard compares answers, and since the warm-up none of stable's has said of what kind it is.
    Answers {
        /// The header that would say it.
        header: String,
    },
    /// The step's least time is not over.
    Time {
        /// How much of it is left.
        #[serde(rename = "remaining_ms", with = "millis")]
        remaining: Duration,
    },
    /// Too few canary requests in the step.
    CanaryRequests {
        /// How many there are.
        have: u64,
        /// How many it takes.
        needed: u64,
    },
    /// A margin is not proven.
    Proof {
        /// Which.
        margin: Margin,
    },
    /// The step's time is over, but the estimate itself is beyond this margin.
    Estimate {
        /// Which.
        margin: Margin,
    },
}

/// Why there is nothing to decide on, although the rollout runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldReason {
    /// No requests on both arms; clocks stand still.
    Silence,
    /// Stable itself fails far more than before the rollout.
    StableInTrouble {
        /// Its error rate now.
        rate: f64,
        /// Its error rate before.
        before: f64,
    },
    /// Requests are not split as the weights say: routing is broken, which says nothing of the release.
    SplitMismatch {
        /// Canary requests that the weights asked for.
        expected: f64,
        /// Canary requests that came.
        seen: u64,
    },
    /// The canary's memory grows towards its limit, and stable's does not.
    MemoryTrend {
        /// When the straight line through the last minutes reaches it, in seconds.
        seconds_to_limit: f64,
    },
}

/// What speaks against a canary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    /// It fails more than stable.
    Errors,
    /// While warming up, or on nodes that do, it fails far more than a cold start may.
    WarmUp,
    /// It is slower than stable.
    Latency {
        /// Where it shows most.
        percentile: Percentile,
    },
    /// Its nodes use more than stable's.
    Saturation {
        /// Of what.
        gauge: Gauge,
    },
    /// A node of it is at a limit, and no node of stable is.
    Limit {
        /// Of what.
        gauge: Gauge,
        /// Which node.
        node: String,
        /// Its use as a share of the limit.
        ratio: f64,
    },
    /// Its tasks restart, and stable's do not.
    Restarts {
        /// Restarts of the canary's tasks in the last five minutes.
        canary: u32,
        /// Restarts of stable's.
        stable: u32,
    },
    /// With every request on it, it fails more than stable's last hour allows.
    ErrorsAlone {
        /// The share of errors that was allowed.
        allowed: f64,
    },
    /// With every request on it, it is more than twice as slow as stable was.
    LatencyAlone {
        /// Where it shows most.
        percentile: Percentile,
    },
    /// A check of the guard is beyond its limit.
    Check {
        /// Which.
        name: String,
        /// The canary's value.
        value: f64,
        /// The value it must not pass: the guard's, or what stable's allows.
        limit: f64,
    },
    /// It answers other things than stable.
    Answers {
        /// The kind that it gives more often.
        kind: String,
        /// Its share of the canary's answers.
        canary: f64,
        /// Its share of stable's.
        stable: f64,
    },
}

/// A percentile of latency that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Percentile {
    /// The median.
    P50,
    /// The 90th.
    P90,
    /// The 99th.
    P99,
}

impl Percentile {
    /// All of them, in order.
    pub const ALL: [Self; 3] = [Self::P50, Self::P90, Self::P99];
}

/// Evidence of harm by signal, as natural logarithms: 0 is none, 4.6 is 100 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// That the canary is broken rather than cold.
    #[serde(with = "log")]
    pub warm_up: f64,
    /// That it fails more.
    #[serde(with = "log")]
    pub errors: f64,
    /// That it is slower, at p50, p90 and p99.
    pub latency: [f64; 3],
    /// That it uses more.
    #[serde(with = "log")]
    pub saturation: f64,
    /// That it is worse by the guard's checks which compare it with stable, or answers other things than stable.
    #[serde(with = "log", default)]
    pub checks: f64,
    /// That nodes of it which start after the warm-up are broken rather than cold.
    #[serde(with = "log")]
    pub late_nodes: f64,
    /// The weighted mean of them all.
    #[serde(with = "log")]
    pub total: f64,
}

/// Requests of both arms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// The canary's.
    pub canary: ArmCounts,
    /// Stable's.
    pub stable: ArmCounts,
}

/// Requests of one arm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ArmCounts {
    /// How many.
    pub requests: u64,
    /// Of these, the bad.
    pub bad: u64,
    /// Of the others, those whose latency is known.
    pub timed: u64,
    /// Of these, the slow ones at p50, p90 and p99; for the canary only those beyond the tolerance.
    pub slow: [u64; 3],
}

impl ArmCounts {
    /// Adds the counts of `other`.
    pub(crate) fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.bad += other.bad;
        self.timed += other.timed;
        for (slow, more) in self.slow.iter_mut().zip(other.slow) {
            *slow += more;
        }
    }
}

/// Something that is to be shown of the canary before its weight grows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Margin {
    /// Its error share exceeds stable's by less.
    Errors {
        /// Than this.
        excess: f64,
    },
    /// Its latency at a percentile is less than stable's times a factor.
    Latency {
        /// The percentile.
        percentile: Percentile,
        /// The factor.
        factor: f64,
    },
}

/// How far the proof of one margin is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Proof {
    /// What is to be proven.
    pub margin: Margin,
    /// The logarithm of the evidence so far.
    pub log_e: f64,
    /// The logarithm of the evidence it takes.
    pub needed: f64,
}

impl Proof {
    /// Whether it is done.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.log_e >= self.needed
    }
}

/// One canary node that has nearly all the failures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SickNode {
    /// Its name.
    pub node: String,
    /// Its failures.
    pub bad: u64,
    /// The failures of all canary nodes.
    pub bad_of_all: u64,
    /// How many canary nodes there are.
    pub nodes: u32,
    /// The chance that some node gets so many of them if all are equal.
    pub chance: f64,
}
