//! What a rollout goes by: the steps, the waiting times, and what must not get worse. Valid by construction; reading
//! and refusing text is the shell's work. A rollout keeps its own copy, which never changes under it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Duration;
use crate::notify::Notify;
use crate::policy::Policy;
use crate::proxy::ProxySpec;
use crate::release::ServiceName;
use crate::serial::millis;
use crate::weight::Weight;

/// How long a step lasts: at least, and at most before the time-out rule may decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hold {
    /// No advance before this much time with requests on both arms.
    #[serde(rename = "least_ms", with = "millis")]
    #[schemars(with = "u64")]
    pub least: Duration,
    /// From here on a calm canary may advance without proof (JUDGE 2.10).
    #[serde(rename = "most_ms", with = "millis")]
    #[schemars(with = "u64")]
    pub most: Duration,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The canary gets this share and is judged.
    Weight {
        /// The share.
        weight: Weight,
        /// For how long.
        hold: Hold,
    },
    /// Waits, at the weight before, until somebody approves who may: also whoever started the rollout, unless its
    /// environment asks for approvals.
    Gate {
        /// Who is awaited, in words for people; roles say who may.
        approvers: String,
    },
}

/// The ordered steps: weights grow, there is at least one, and no gate comes first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Vec<Step>", into = "Vec<Step>")]
pub struct Plan(Vec<Step>);

/// Why steps are no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Nothing to do.
    #[error(
        "the plan has no weight: expected at least one step like {{ weight: 10%, hold: 10s..5m }}"
    )]
    Empty,
    /// A weight not above the one before.
    #[error("step {step} has weight {weight}, which is not above {before} of the step before")]
    NotGrowing {
        /// Counted from 1.
        step: usize,
        /// Its weight.
        weight: Weight,
        /// The weight before it.
        before: Weight,
    },
    /// All requests before anything is proven.
    #[error(
        "step {step} has weight {weight}: a step's weight is above 0% and below 100%, so that there is something to compare with"
    )]
    NoComparison {
        /// Counted from 1.
        step: usize,
        /// Its weight.
        weight: Weight,
    },
    /// A shortest time above the longest.
    #[error("step {step} holds for at least {least:?} but at most {most:?}")]
    Hold {
        /// Counted from 1.
        step: usize,
        /// The shortest time.
        least: Duration,
        /// The longest.
        most: Duration,
    },
    /// A gate at no weight, or two in a row.
    #[error("step {step} is a gate without a weight before it")]
    GateFirst {
        /// Counted from 1.
        step: usize,
    },
}

impl Plan {
    /// The plan of these steps.
    ///
    /// # Errors
    /// The first step that cannot be, counted from 1.
    pub fn new(steps: Vec<Step>) -> Result<Self, PlanError> {
        let mut before = Weight::ZERO;
        let mut gate_allowed = false;
        for (index, step) in steps.iter().enumerate() {
            let number = index + 1;
            match step {
                Step::Weight { weight, hold } => {
                    if *weight == Weight::ZERO || *weight == Weight::ALL {
                        return Err(PlanError::NoComparison {
                            step: number,
                            weight: *weight,
                        });
                    }
                    if *weight <= before {
                        return Err(PlanError::NotGrowing {
                            step: number,
                            weight: *weight,
                            before,
                        });
                    }
                    if hold.least > hold.most {
                        return Err(PlanError::Hold {
                            step: number,
                            least: hold.least,
                            most: hold.most,
                        });
                    }
                    before = *weight;
                    gate_allowed = true;
                }
                Step::Gate { .. } if gate_allowed => gate_allowed = false,
                Step::Gate { .. } => return Err(PlanError::GateFirst { step: number }),
            }
        }
        if before == Weight::ZERO {
            return Err(PlanError::Empty);
        }
        Ok(Self(steps))
    }

    /// The steps, in order.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// The weight at a step: its own, or at a gate the one before. The last step's beyond the end.
    #[must_use]
    pub fn weight_at(&self, step: usize) -> Weight {
        let until = (step + 1).min(self.0.len());
        self.0[..until]
            .iter()
            .rev()
            .find_map(|step| match step {
                Step::Weight { weight, .. } => Some(*weight),
                Step::Gate { .. } => None,
            })
            .unwrap_or(Weight::ZERO)
    }

    /// The first weight above the one at `step`, if a later step has one.
    #[must_use]
    pub fn weight_after(&self, step: usize) -> Option<Weight> {
        self.0.iter().skip(step + 1).find_map(|step| match step {
            Step::Weight { weight, .. } => Some(*weight),
            Step::Gate { .. } => None,
        })
    }
}

impl TryFrom<Vec<Step>> for Plan {
    type Error = PlanError;

    fn try_from(steps: Vec<Step>) -> Result<Self, Self::Error> {
        Self::new(steps)
    }
}

impl From<Plan> for Vec<Step> {
    fn from(plan: Plan) -> Self {
        plan.0
    }
}

/// The last comparison before the canary gets everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Bake {
    /// The canary's share; stable keeps the rest, so that there is something to compare with.
    pub weight: Weight,
    /// For how long.
    #[serde(rename = "for_ms", with = "millis")]
    #[schemars(with = "u64")]
    pub period: Duration,
}

/// Every wait has an end. All are measured in time that the controller was up and the rollout not paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Deadlines {
    /// For the canary to become ready; then the rollout ends as not ready.
    #[serde(rename = "ready_ms", with = "millis")]
    #[schemars(with = "u64")]
    pub ready: Duration,
    /// For a step to find enough evidence, from the change of weight; then the rollout ends as insufficient evidence.
    #[serde(rename = "evidence_ms", with = "millis")]
    #[schemars(with = "u64")]
    pub evidence: Duration,
    /// For the whole rollout, gates and promotion included.
    #[serde(rename = "rollout_ms", with = "millis")]
    #[schemars(with = "u64")]
    pub rollout: Duration,
}

/// Most checks of one guard. Each is one or two questions every few seconds, and one more thing that must have data before
/// a gate opens; who needs more than twenty has not decided what matters.
pub const CHECKS_MAX: usize = 20;

/// A measure of the user's own: a question to a metrics source, and what its answer must keep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// What people call it; no two of a guard have the same.
    pub name: String,
    /// The question, with placeholders (`$release`, `$service`, `$environment`, `$arm`) as its author wrote it.
    pub query: String,
    /// What the answer must keep.
    pub bound: Bound,
    /// The time between two questions.
    #[serde(rename = "every_ms", with = "millis")]
    #[schemars(with = "u64")]
    pub every: Duration,
    /// How far the source lags behind: no question asks for a later time than this long ago (F8).
    #[serde(rename = "lag_ms", with = "millis")]
    #[schemars(with = "u64")]
    pub lag: Duration,
    /// How far the question looks back from the time it asks for: `rate(x[1m])` looks back a minute.
    #[serde(rename = "window_ms", with = "millis")]
    #[schemars(with = "u64")]
    pub window: Duration,
    /// How long it may be without data before it closes the gates.
    #[serde(rename = "grace_ms", with = "millis")]
    #[schemars(with = "u64")]
    pub grace: Duration,
}

/// What the answer to a check must keep.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// The canary's value may be this, and no more.
    Max(f64),
    /// The canary's value may be this, and no less.
    Min(f64),
    /// The canary's value may exceed stable's by this share of it, 0.25 for a quarter.
    AboveStable(f64),
}

impl Bound {
    /// Whether the canary is asked for alone, or stable too.
    #[must_use]
    pub fn compares(&self) -> bool {
        match self {
            Self::AboveStable(_) => true,
            Self::Max(_) | Self::Min(_) => false,
        }
    }

    /// The value that the canary's must not pass, if it is known: a comparison needs stable's. The margin is a share of
    /// its size, so that it is one also where values are below zero.
    #[must_use]
    pub fn limit(&self, stable: Option<f64>) -> Option<f64> {
        match self {
            Self::Max(limit) | Self::Min(limit) => Some(*limit),
            Self::AboveStable(more) => stable.map(|stable| stable + more * stable.abs()),
        }
    }

    /// Whether this value of the canary's is beyond a limit that [`Bound::limit`] gave.
    #[must_use]
    pub fn is_broken(&self, canary: f64, limit: f64) -> bool {
        match self {
            Self::Max(_) | Self::AboveStable(_) => canary > limit,
            Self::Min(_) => canary < limit,
        }
    }
}

/// Which step a rollout begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// The first that is large enough for the traffic before the rollout; see [`Tuning::canary_rate_min`]. The plan's
    /// first while that traffic is not known.
    #[default]
    Auto,
    /// The plan's first, whatever the traffic.
    First,
}

/// What must not get worse, and how sure the judge must be. Defaults, and their price in time: JUDGE 2.10 and 2.12.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Guard {
    /// Highest chance that a release no worse than stable is rolled back. 0.01.
    pub alpha: f64,
    /// Highest chance that a release worse than the margin passes a gate by proof, for every gate but the last. 0.10.
    pub alpha_gate: f64,
    /// The same for the last gate. 0.05.
    pub alpha_promote: f64,
    /// Kappa: excess failures over all traffic, as a share of it, that the canary's weight may grow into unproven; and
    /// the margin of the last gate. 0.005, which is half a percent; the smallest the judge can prove is 0.0005.
    pub errors_margin: f64,
    /// The canary's median may be this many times stable's at the last gate. 1.14.
    pub latency_p50: f64,
    /// The same for the 90th percentile. 1.19.
    pub latency_p90: f64,
    /// The same for the 99th percentile. 1.30.
    pub latency_p99: f64,
    /// Nothing is slower that is slower by less than this. 1 ms: two equal servers of 100 us differ by less for being
    /// colder.
    #[serde(rename = "latency_floor_us")]
    pub latency_floor_us: u64,
    /// CPU seconds for each request may be this many times stable's. 1.25.
    pub saturation_cpu: f64,
    /// Memory may be this many times stable's. 1.25.
    pub saturation_memory: f64,
    /// How long a node's requests are left out while it warms up, in milliseconds. 30 s; must cover the real cold start.
    #[serde(rename = "warm_up_ms", with = "millis")]
    #[schemars(with = "u64")]
    pub warm_up: Duration,
    /// Whether routed counts are held against the weight. True; false where few clients keep their release (sticky
    /// sessions), because then the share is theirs and not the router's.
    pub ratio_check: bool,
    /// Whether steps that are too small for the traffic are passed over. Auto, which does.
    pub start: Start,
    /// Whether the canary is watched while it has every request and stable is kept warm: against stable's last hour, which
    /// is a weaker comparison with a budget of its own (`alpha_watch`). True.
    pub watch: bool,
    /// What else must not get worse, by the user's own measure. None; at most [`CHECKS_MAX`].
    pub checks: Vec<Check>,
    /// The header by which answers say of what kind they are, in lower case. The canary must not give one kind more often
    /// than stable does. None.
    #[serde(default)]
    pub answers: Option<String>,
    /// The judge's inner settings. Few will ever have a reason to touch them.
    pub tuning: Tuning,
}

/// The judge's inner settings (JUDGE 2.12). The defaults were tuned together on simulated traffic; a change here changes
/// how soon a bad release is found, never the promise that a good one is rolled back with a chance of at most `alpha`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tuning {
    /// Share of the error budget `alpha` that the warm-up's catastrophe guard may spend. 0.1. The four sum to 1.
    pub weight_warm_up: f64,
    /// The same for errors. 0.4.
    pub weight_errors: f64,
    /// The same for latency. 0.4.
    pub weight_latency: f64,
    /// The same for saturation. 0.1: gauges are few and move slowly.
    pub weight_saturation: f64,
    /// Most evidence that one block may bring, in nats. 3, which is a factor of 20: no verdict from a single block.
    pub cap_nats: f64,
    /// Share of the belief in harm that is "from the start"; the rest is "from some later moment on". 0.5.
    pub restart_first: f64,
    /// How slowly the belief in a later start is spent: half of it in this time. 600 s.
    #[serde(rename = "restart_ms", with = "millis")]
    #[schemars(with = "u64")]
    pub restart: Duration,
    /// Share of failing requests that a cold start may have, above which the warm-up's guard speaks. 0.3.
    pub catastrophe: f64,
    /// How many latency buckets of 2.19 % the canary may be slower before it counts as slow. 2, which is 4.4 %.
    pub latency_tolerance_buckets: u16,
    /// Half-life of what is known of stable, its latencies and its errors. 300 s.
    #[serde(rename = "reference_half_life_ms", with = "millis")]
    #[schemars(with = "u64")]
    pub reference_half_life: Duration,
    /// Smallest margin for errors, as a share of stable's own error rate: half as much again is no proof of harm. 0.5.
    pub errors_margin_relative: f64,
    /// Total evidence of harm from which no gate opens, as an odds-like factor. 10; the rollback is at 1 / alpha.
    pub suspicion: f64,
    /// Fewest canary requests in a step before it may pass by time-out or end the bake. 10.
    pub canary_requests_min: u64,
    /// Without requests on both arms for this long, clocks stop and the rollout holds. 30 s.
    #[serde(rename = "idle_max_ms", with = "millis")]
    #[schemars(with = "u64")]
    pub idle_max: Duration,
    /// Canary requests in a second that a first step should have; smaller steps are passed over. 0.5.
    pub canary_rate_min: f64,
    /// The part of each proof's bankroll that is aimed at a canary like stable; the rest stays on a grid of stakes for all that
    /// a canary may be. 0.75: one like stable then needs 0.3 nats more than the aimed bet alone, any other at most 1.4 nats
    /// more than the grid alone. 0 is JUDGE 2.10 to the letter.
    pub aimed: f64,
    /// Highest chance that a release which stays within what the watch allows is rolled back by it. 0.001, beside `alpha`.
    pub alpha_watch: f64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            weight_warm_up: 0.1,
            weight_errors: 0.4,
            weight_latency: 0.4,
            weight_saturation: 0.1,
            cap_nats: 3.0,
            restart_first: 0.5,
            restart: Duration::from_secs(600),
            catastrophe: 0.3,
            latency_tolerance_buckets: 2,
            reference_half_life: Duration::from_secs(300),
            errors_margin_relative: 0.5,
            suspicion: 10.0,
            canary_requests_min: 10,
            idle_max: Duration::from_secs(30),
            canary_rate_min: 0.5,
            aimed: 0.75,
            alpha_watch: 0.001,
        }
    }
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            alpha: 0.01,
            alpha_gate: 0.10,
            alpha_promote: 0.05,
            errors_margin: 0.005,
            latency_p50: 1.14,
            latency_p90: 1.19,
            latency_p99: 1.30,
            latency_floor_us: 1_000,
            saturation_cpu: 1.25,
            saturation_memory: 1.25,
            warm_up: Duration::from_secs(30),
            ratio_check: true,
            start: Start::Auto,
            watch: true,
            checks: Vec::new(),
            answers: None,
            tuning: Tuning::default(),
        }
    }
}

/// What keeps a client with the release it was given; as the proxy's table has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sticky {
    /// Every request is chosen by itself.
    None,
    /// A cookie of the proxy's.
    Cookie,
    /// A request header.
    Header(String),
    /// The request's `Idempotency-Key`.
    Key,
}

/// What is asked of a task before it counts as ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Ready {
    /// The path of a GET request that a ready task answers with 200 to 299.
    pub path: String,
}

/// Which requests a service is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RouteMatch {
    /// A host name, or `*`.
    pub host: String,
    /// A path prefix.
    pub path: String,
}

/// All that `friday.yml` says of one service and environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Spec {
    /// The service.
    pub service: ServiceName,
    /// The port its tasks listen on, where the orchestrator does not choose one.
    pub port: u16,
    /// What is asked of a task before it counts as ready.
    pub ready: Ready,
    /// Which requests the proxy sends here.
    pub route: RouteMatch,
    /// What keeps a client with its release.
    pub sticky: Sticky,
    /// Whether a canary's failure is replayed on stable where that is safe.
    pub shield: bool,
    /// How the proxy passes requests on.
    #[serde(default)]
    pub proxy: ProxySpec,
    /// The steps.
    pub plan: Plan,
    /// The last comparison.
    pub bake: Bake,
    /// How long stable stays up and idle once the canary has everything.
    #[serde(rename = "keep_warm_ms", with = "millis")]
    #[schemars(with = "u64")]
    pub keep_warm: Duration,
    /// The waits' ends.
    pub deadlines: Deadlines,
    /// What must not get worse.
    pub guard: Guard,
    /// When and where it may be released.
    #[serde(default, skip_serializing_if = "Policy::is_empty")]
    pub policy: Policy,
    /// Who is told.
    #[serde(default, skip_serializing_if = "Notify::is_nothing")]
    pub notify: Notify,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(percent: u8) -> Step {
        Step::Weight {
            weight: Weight::from_percent(percent).unwrap(),
            hold: Hold {
                least: Duration::from_secs(10),
                most: Duration::from_secs(300),
            },
        }
    }

    fn gate() -> Step {
        Step::Gate {
            approvers: "release-managers".into(),
        }
    }

    #[test]
    fn refuses_steps_that_lead_nowhere() {
        assert_eq!(Plan::new(vec![]), Err(PlanError::Empty));
        assert!(matches!(
            Plan::new(vec![weight(10), weight(10)]),
            Err(PlanError::NotGrowing { step: 2, .. })
        ));
        assert!(matches!(
            Plan::new(vec![weight(100)]),
            Err(PlanError::NoComparison { step: 1, .. })
        ));
        assert!(matches!(
            Plan::new(vec![weight(0)]),
            Err(PlanError::NoComparison { step: 1, .. })
        ));
        assert_eq!(
            Plan::new(vec![gate(), weight(10)]),
            Err(PlanError::GateFirst { step: 1 })
        );
        assert_eq!(
            Plan::new(vec![weight(5), gate(), gate()]),
            Err(PlanError::GateFirst { step: 3 })
        );
    }

    #[test]
    fn keeps_the_weight_of_the_step_before_at_a_gate() {
        let plan = Plan::new(vec![weight(5), gate(), weight(50)]).unwrap();
        let percents: Vec<_> = (0..4)
            .map(|step| plan.weight_at(step).to_string())
            .collect();
        assert_eq!(percents, ["5%", "5%", "50%", "50%"]);
        assert_eq!(plan.weight_after(0), Weight::from_percent(50));
        assert_eq!(plan.weight_after(2), None);
    }
}
