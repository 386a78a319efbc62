//! The trial of one canary on blocks that are already reduced to counts: clocks, evidence for and against, and what
//! follows (JUDGE 2.10, 2.11).

use serde::{Deserialize, Serialize};

use super::Position;
use super::aimed::{Aim, Aimed};
use super::combine::{combine, of_nodes};
use super::gate::{Demand, MARGINS, demand, margins, percentile};
use super::latency::QUANTILES;
use super::non_inferiority::{Difference, EXCESS_GRID, NonInferiorErrors, NonInferiorLatency};
use super::split::{Harm, Outcomes};
use super::traffic::is_suspicious;
use super::verdict::{ArmCounts, Counts, Evidence, Grounds, HoldReason, Margin, Missing, Proof};
use super::warm_up::{LateNodes, WarmUp};
use crate::Duration;
use crate::plan::{Guard, Tuning};
use crate::serial::millis;

/// Evidence at which an excess of errors counts as disproven in the report: 20, a chance of being wrong of 5 %.
const BOUND_AT: f64 = 20.0;

/// A block as the evidence sees it. Thresholds, dispersion and reference are those known before it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Reduced {
    /// How long it lasted.
    pub(crate) duration: Duration,
    /// The canary's requests on nodes that are warm.
    pub(crate) canary: ArmCounts,
    /// The canary's requests on nodes that are not, and how many of them were bad.
    pub(crate) cold: (u64, u64),
    /// Stable's requests on nodes that are warm.
    pub(crate) stable: ArmCounts,
    /// The canary's answers that are slower than each margin allows.
    pub(crate) beyond_margin: [u64; MARGINS],
    /// Stable's error rate.
    pub(crate) reference: f64,
    /// Dispersion: errors, then slow at each quantile.
    pub(crate) phi: [f64; 4],
    /// Whether stable's answers at a quantile are too much alike to have enough of them above its threshold.
    pub(crate) tied: [bool; 3],
    /// What is expected of a canary that is like stable.
    pub(crate) aim: Aim,
}

impl Reduced {
    fn errors(&self) -> Outcomes {
        Outcomes {
            canary: self.canary.requests,
            stable: self.stable.requests,
            canary_events: self.canary.bad,
            stable_events: self.stable.bad,
        }
    }

    /// The same with the requests of cold nodes, or with them alone.
    fn errors_of_cold(&self, with_warm: bool) -> Outcomes {
        let warm = if with_warm {
            (self.canary.requests, self.canary.bad)
        } else {
            (0, 0)
        };
        Outcomes {
            canary: warm.0 + self.cold.0,
            canary_events: warm.1 + self.cold.1,
            ..self.errors()
        }
    }

    fn slow(&self, quantile: usize) -> Outcomes {
        Outcomes {
            canary: self.canary.timed,
            stable: self.stable.timed,
            canary_events: self.canary.slow[quantile],
            stable_events: self.stable.slow[quantile],
        }
    }

    fn slow_beyond(&self, margin: usize, quantile: usize) -> Outcomes {
        Outcomes {
            canary_events: self.beyond_margin[margin],
            ..self.slow(quantile)
        }
    }
}

/// Everything for and against one canary so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Trial {
    /// Time since the first block with both arms, without silence.
    #[serde(rename = "clock_ms", with = "millis")]
    clock: Duration,
    started: bool,
    /// How long there was nothing to compare.
    #[serde(rename = "idle_ms", with = "millis")]
    idle: Duration,
    step: StepSoFar,
    warm_up: WarmUp,
    late_nodes: LateNodes,
    errors: Harm,
    latency: [Harm; 3],
    excess: Vec<NonInferiorErrors>,
    margins: [NonInferiorLatency; MARGINS],
    #[serde(default)]
    aimed: Aimed,
    errors_difference: Difference,
    latency_difference: [Difference; MARGINS],
}

/// The step that is being judged.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct StepSoFar {
    at: Option<Position>,
    #[serde(rename = "elapsed_ms", with = "millis")]
    elapsed: Duration,
    counts: Counts,
}

impl Default for Trial {
    fn default() -> Self {
        Self {
            clock: Duration::ZERO,
            started: false,
            idle: Duration::ZERO,
            step: StepSoFar::default(),
            warm_up: WarmUp::default(),
            late_nodes: LateNodes::default(),
            errors: Harm::default(),
            latency: Default::default(),
            excess: EXCESS_GRID.map(NonInferiorErrors::new).to_vec(),
            margins: Default::default(),
            aimed: Aimed::default(),
            errors_difference: Difference::default(),
            latency_difference: Default::default(),
        }
    }
}

impl Trial {
    /// Whether the rollout's own warm-up goes on.
    pub(crate) fn is_warming(&self, guard: &Guard) -> bool {
        !self.started || self.clock <= guard.warm_up
    }

    /// Whether the warm-up ends within a block that began now and is this old.
    pub(crate) fn warm_up_ends_within(
        &self,
        age: Duration,
        both_arms: bool,
        guard: &Guard,
    ) -> bool {
        (self.started || both_arms)
            && self.clock < guard.warm_up
            && self.clock + age >= guard.warm_up
    }

    /// Starts the step's clock and counts again if this is another step; whether it is.
    pub(crate) fn turn_to(&mut self, at: &Position) -> bool {
        let before = self.step.at.as_ref();
        let is_another = !before.is_some_and(|before| before.is_same_step(at));
        if is_another {
            self.step = StepSoFar {
                at: Some(at.clone()),
                ..StepSoFar::default()
            };
        }
        is_another
    }

    /// Whether the step is the watch over a canary that has every request.
    pub(crate) fn is_watch(&self) -> bool {
        self.step.at.as_ref().is_some_and(Position::is_watch)
    }

    /// Takes one block; `of_step` says whether its requests were routed under the step's weight. Returns what counted.
    pub(crate) fn block(&mut self, block: &Reduced, of_step: bool, guard: &Guard) -> Counts {
        let tuning = &guard.tuning;
        let phi = block.phi;
        let whole = block.errors_of_cold(true);
        let warm = self.would_be_warming(block.duration, whole.both_arms(), tuning, guard);
        let seen = if warm { whole } else { block.errors() };

        self.idle = if seen.both_arms() {
            Duration::ZERO
        } else {
            self.idle + block.duration
        };
        self.started |= seen.both_arms();
        if self.started && self.idle < tuning.idle_max {
            self.clock += block.duration;
            if of_step {
                self.step.elapsed += block.duration;
            }
        }
        if warm {
            self.warm_up.block(block.duration, &whole, phi[0], tuning);
            let canary = ArmCounts {
                requests: whole.canary,
                bad: whole.canary_events,
                ..block.canary
            };
            return Counts {
                canary,
                stable: block.stable,
            };
        }
        self.judge_warm(block, guard);
        let counts = Counts {
            canary: block.canary,
            stable: block.stable,
        };
        if of_step {
            self.step.counts.canary.add(&counts.canary);
            self.step.counts.stable.add(&counts.stable);
        }
        counts
    }

    /// Whether the rollout's warm-up still goes on at the end of this block.
    fn would_be_warming(
        &self,
        duration: Duration,
        both_arms: bool,
        tuning: &Tuning,
        guard: &Guard,
    ) -> bool {
        let idle = if both_arms {
            Duration::ZERO
        } else {
            self.idle + duration
        };
        let ticks = (self.started || both_arms) && idle < tuning.idle_max;
        let clock = if ticks {
            self.clock + duration
        } else {
            self.clock
        };
        clock <= guard.warm_up
    }

    /// Moves every process on by one block after the warm-up.
    fn judge_warm(&mut self, block: &Reduced, guard: &Guard) {
        let tuning = &guard.tuning;
        let phi = block.phi;
        let errors = block.errors();
        self.late_nodes
            .block(block.duration, &block.errors_of_cold(false), phi[0], tuning);
        self.errors.block(block.duration, &errors, phi[0], tuning);
        for (quantile, harm) in self.latency.iter_mut().enumerate() {
            harm.block(
                block.duration,
                &block.slow(quantile),
                phi[1 + quantile],
                tuning,
            );
        }
        for excess in &mut self.excess {
            excess.block(&errors, block.reference, phi[0], tuning);
        }
        self.aimed
            .errors(&errors, &block.aim, block.reference, phi[0], tuning);
        self.errors_difference.block(&errors);
        for (margin, (quantile, _)) in margins(guard).into_iter().enumerate() {
            let slow = block.slow_beyond(margin, quantile);
            let bets = &mut self.margins[margin];
            let phi = phi[1 + quantile];
            if block.tied[quantile] {
                let tail = 1.0 - QUANTILES[quantile];
                bets.block_of_tied(&slow, tail, phi, tuning);
                self.aimed
                    .latency_of_tied(margin, &slow, &block.aim, tail, phi, tuning);
            } else {
                bets.block(&slow, phi, tuning);
                self.aimed.latency(margin, &slow, &block.aim, phi, tuning);
            }
            self.latency_difference[margin].block(&slow);
        }
    }

    /// The evidence of harm, with that of saturation and of checks, which are kept elsewhere; `checks` is none where the
    /// guard compares nothing by them.
    pub(crate) fn evidence(
        &self,
        saturation: f64,
        checks: Option<f64>,
        tuning: &Tuning,
    ) -> Evidence {
        let latency = [0, 1, 2].map(|quantile| self.latency[quantile].log_e());
        let (warm_up, late_nodes, errors) = (
            self.warm_up.log_e(),
            self.late_nodes.log_e(),
            self.errors.log_e(),
        );
        let total = combine(
            warm_up,
            errors,
            latency,
            of_nodes(saturation, late_nodes, checks),
            tuning,
        );
        Evidence {
            warm_up,
            errors,
            latency,
            saturation,
            checks: checks.unwrap_or_default(),
            late_nodes,
            total,
        }
    }

    /// Whether there has been nothing to compare for so long that clocks stand still.
    pub(crate) fn silence(&self, tuning: &Tuning) -> Option<HoldReason> {
        (self.idle >= tuning.idle_max).then_some(HoldReason::Silence)
    }

    /// How long there was nothing to compare.
    pub(crate) fn idle(&self) -> Duration {
        self.idle
    }

    /// How long the step has had requests on both arms.
    pub(crate) fn step_elapsed(&self) -> Duration {
        self.step.elapsed
    }

    /// What counted in the step.
    pub(crate) fn in_step(&self) -> Counts {
        self.step.counts
    }

    /// Pooled estimate of the canary's error share less stable's.
    pub(crate) fn excess_errors(&self) -> Option<f64> {
        self.errors_difference.estimate()
    }

    /// The smallest excess of errors that is disproven.
    pub(crate) fn bound(&self, tuning: &Tuning) -> Option<f64> {
        let proven = self
            .excess
            .iter()
            .enumerate()
            .filter(|(index, _)| self.excess_log_e(*index, tuning) >= BOUND_AT.ln());
        proven.map(|(_, excess)| excess.proves()).reduce(f64::min)
    }

    fn excess_log_e(&self, excess: usize, tuning: &Tuning) -> f64 {
        self.aimed
            .excess_log_e(excess, self.excess[excess].log_e(), tuning)
    }

    /// How far each proof is that the gate asks for; none in the bake.
    pub(crate) fn proofs(&self, at: &Position, reference: f64, guard: &Guard) -> Vec<Proof> {
        let Some(next) = at.next else {
            return Vec::new();
        };
        let Demand {
            excess,
            latency,
            needed,
        } = demand(next, at, guard);
        let errors = Proof {
            margin: errors_margin(excess, reference, &guard.tuning),
            log_e: self.excess_log_e(excess, &guard.tuning),
            needed,
        };
        let slow = latency.map(|index| Proof {
            margin: latency_margin(index, guard),
            log_e: self
                .aimed
                .margin_log_e(index, self.margins[index].log_e(), &guard.tuning),
            needed,
        });
        std::iter::once(errors).chain(slow).collect()
    }

    /// Whether the step passes after the block just taken, or else what is missing. `total` is the evidence of harm,
    /// `not_seen` what else should have been seen by now.
    pub(crate) fn pass(
        &self,
        at: &Position,
        block: &Reduced,
        of_step: bool,
        total: f64,
        not_seen: Vec<Missing>,
        guard: &Guard,
    ) -> Result<Grounds, Vec<Missing>> {
        let tuning = &guard.tuning;
        let mut missing = Vec::new();
        if self.is_warming(guard) {
            missing.push(Missing::WarmUp {
                remaining: guard.warm_up.saturating_sub(self.clock),
            });
        }
        if is_suspicious(total, tuning) {
            missing.push(Missing::Calm {
                log_e: total,
                below: tuning.suspicion.ln(),
            });
        }
        if self.idle > Duration::ZERO {
            missing.push(Missing::BothArms);
        }
        if !of_step {
            missing.push(Missing::Weight);
        }
        missing.extend(not_seen);
        let is_calm = missing.is_empty();

        if self.step.elapsed < at.hold.least {
            missing.push(Missing::Time {
                remaining: at.hold.least.saturating_sub(self.step.elapsed),
            });
        }
        let requests = self.step.counts.canary.requests;
        let too_few = (requests < tuning.canary_requests_min).then_some(Missing::CanaryRequests {
            have: requests,
            needed: tuning.canary_requests_min,
        });
        let Some(next) = at.next else {
            missing.extend(too_few);
            return if missing.is_empty() {
                Ok(Grounds::Calm)
            } else {
                Err(missing)
            };
        };

        let proofs = self.proofs(at, block.reference, guard);
        missing.extend(proofs.iter().filter(|proof| !proof.is_done()).map(|proof| {
            Missing::Proof {
                margin: proof.margin,
            }
        }));
        if missing.is_empty() {
            return Ok(Grounds::Proof);
        }
        if self.step.elapsed < at.hold.most {
            return Err(missing);
        }
        let mut beyond = self.estimates_beyond(&demand(next, at, guard), block.reference, guard);
        beyond.extend(too_few);
        if is_calm && beyond.is_empty() {
            return Ok(Grounds::TimeOut {
                bound: self.bound(tuning),
            });
        }
        missing.extend(beyond);
        Err(missing)
    }

    /// The margins of a gate that even the estimates do not keep.
    fn estimates_beyond(&self, demand: &Demand, reference: f64, guard: &Guard) -> Vec<Missing> {
        let allowed =
            NonInferiorErrors::margin(EXCESS_GRID[demand.excess], reference, &guard.tuning);
        let errors = self
            .errors_difference
            .estimate()
            .is_none_or(|difference| difference > allowed)
            .then(|| errors_margin(demand.excess, reference, &guard.tuning));
        let slow = demand
            .latency
            .clone()
            .filter(|index| !self.latency_difference[*index].is_fair());
        let slow = slow.map(|index| latency_margin(index, guard));
        errors
            .into_iter()
            .chain(slow)
            .map(|margin| Missing::Estimate { margin })
            .collect()
    }
}

fn errors_margin(excess: usize, reference: f64, tuning: &Tuning) -> Margin {
    Margin::Errors {
        excess: NonInferiorErrors::margin(EXCESS_GRID[excess], reference, tuning),
    }
}

fn latency_margin(index: usize, guard: &Guard) -> Margin {
    let (quantile, buckets) = margins(guard)[index];
    Margin::Latency {
        percentile: percentile(quantile),
        factor: (f64::from(buckets) / 32.0).exp2(),
    }
}
