//! The judge: from the requests of both arms to a verdict, block by block.
//!
//! It may be looked at after every request. The chance that a release which is no worse than stable is ever rolled back is
//! at most `alpha`, under any drift that both arms share, at any weights and whenever one stops; a gate opens only on
//! proof that the canary is not worse than a margin, or, once the step's time is over, on calm and estimates inside the
//! margins. Silence proves nothing. The README beside this crate explains the statistics.
//!
//! Evidence is kept as natural logarithms throughout. One idea a file, from the inside out: `mixture`, `split`,
//! `non_inferiority`, `aimed`, `warm_up`, `latency`, `dispersion`, `saturation`, `checks`, `kinds`, `traffic`, `nodes`, `blocks`, `baseline`,
//! `combine`, `watch`, `hour`, `gate`, `trial`; `price` says beforehand what a proof takes.

mod aimed;
mod baseline;
mod blocks;
mod checks;
mod combine;
mod dispersion;
mod gate;
mod hour;
mod kinds;
mod latency;
mod mixture;
mod nodes;
mod non_inferiority;
mod price;
mod saturation;
mod split;
mod traffic;
mod trial;
mod verdict;
mod warm_up;
mod watch;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::Duration;
use crate::plan::{Guard, Hold, Plan, Start, Step};
use crate::serial::Millis;
use crate::signals::{Block, Cell, bucket_edge_us};
use crate::weight::Weight;

pub use baseline::Baseline;
pub use checks::CheckSample;
pub use kinds::KINDS_MAX;
pub use non_inferiority::EXCESS_GRID;
pub use price::{asked_at, canary_requests_for_errors};
pub use saturation::{Gauge, NodeGauges, SAMPLE_PERIOD, SaturationSample};
pub use traffic::{CounterStep, counter_delta};
pub use verdict::{
    ArmCounts, CheckSeen, Counts, Decision, Evidence, Grounds, HoldReason, KindSeen, Margin,
    Missing, Percentile, Proof, RULES_VERSION, SickNode, Signal, Verdict, Watched,
};

use blocks::{closes, compact};
use checks::Checks;
use combine::loudest;
use gate::margins;
use kinds::Kinds;
use mixture::{Log, log_mean_exp};
use nodes::Roster;
use saturation::Saturation;
use traffic::{SampleRatio, StableHealth, restarts_condemn};
use trial::{Reduced, Trial};
use watch::{LATENCY_SHIFT, Watch};

/// Samples of the nodes' gauges that may fail to come before gates close.
const SAMPLES_MISSING_MAX: u32 = 3;

/// Where the rollout is when a block is judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The step, as the caller counts; another one starts the step's clock and counts again.
    pub step: usize,
    /// The weight that the step sets.
    pub weight: Weight,
    /// The weight that its gate opens; none in the bake, and when the canary has every request.
    pub next: Option<Weight>,
    /// Whether the bake comes next, so that this is the gate where the guard's own margins are proven.
    pub last_gate: bool,
    /// No pass before `least`; from `most` on a pass without proof. In the bake `least` is its period, afterwards for how long
    /// stable is kept warm.
    pub hold: Hold,
}

impl Position {
    /// Whether the canary has every request here, and is watched alone.
    #[must_use]
    pub fn is_watch(&self) -> bool {
        self.weight == Weight::ALL
    }

    /// Whether this is the same step, though its waiting times may have been changed.
    pub(crate) fn is_same_step(&self, other: &Self) -> bool {
        (self.step, self.weight, self.next, self.last_gate)
            == (other.step, other.weight, other.next, other.last_gate)
    }
}

/// A block that was closed, as it was judged, and what the judge says of it. Blocks fed to [`Judge::judge`] in the same
/// order, at the same positions and with the same samples between them lead to the same verdicts, bit for bit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// The block.
    pub block: Block,
    /// What the judge says.
    pub verdict: Verdict,
}

/// All evidence of one rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judge {
    /// The block that is not full yet.
    open: Option<Block>,
    trial: Trial,
    baseline: Baseline,
    nodes: Roster,
    saturation: Saturation,
    /// Block time since the nodes' gauges last came; none before the first.
    #[serde(rename = "since_sample_ms")]
    since_sample: Option<Millis>,
    #[serde(default)]
    checks: Checks,
    #[serde(default)]
    kinds: Kinds,
    ratio: SampleRatio,
    health: StableHealth,
    #[serde(default)]
    watch: Watch,
    /// What condemned the canary. A verdict to roll back is never taken back.
    condemned: Option<Signal>,
}

impl Judge {
    /// The judge of a rollout that has not begun, with what is known of stable.
    #[must_use]
    pub fn new(_guard: &Guard, baseline: &Baseline) -> Self {
        Self {
            open: None,
            trial: Trial::default(),
            baseline: baseline.clone(),
            nodes: Roster::default(),
            saturation: Saturation::default(),
            since_sample: None,
            checks: Checks::default(),
            kinds: Kinds::default(),
            ratio: SampleRatio::default(),
            health: StableHealth::new(baseline.errors()),
            watch: Watch::default(),
            condemned: None,
        }
    }

    /// Adds routed counts, all of one weight, in order, and judges every block that this closes: none as a rule, one
    /// often, two when the weight changed just before a long slice.
    pub fn observe(&mut self, slice: &Block, guard: &Guard, position: &Position) -> Vec<Judged> {
        let mut judged = Vec::new();
        if let Some(open) = self.open.take_if(|open| open.weight != slice.weight) {
            judged.push(self.judge_and_keep(open, guard, position));
        }
        let slice = compact(slice);
        let open = match self.open.take() {
            None => slice,
            Some(mut open) => {
                open.append(&slice);
                open
            }
        };
        let both_arms = requests(&open.canary) > 0 && requests(&open.stable) > 0;
        let at_edge = self
            .trial
            .warm_up_ends_within(open.duration, both_arms, guard);
        if closes(open.duration, open.requests(), open.bad(), at_edge) {
            judged.push(self.judge_and_keep(open, guard, position));
        } else {
            self.open = Some(open);
        }
        judged
    }

    /// Judges one closed block. For replaying what [`Judge::observe`] returned; who has slices calls that.
    pub fn judge(&mut self, block: &Block, guard: &Guard, position: &Position) -> Verdict {
        if self.trial.turn_to(position) {
            self.checks.turn_to_step();
        }
        let of_step = block.weight == position.weight;
        // What was still routed by the weight before has both arms, and is judged as ever.
        let is_alone = of_step && position.is_watch();
        self.nodes.meet(block, self.trial.is_warming(guard), guard);
        let reduced = self.reduce(block, guard);
        let thresholds_us = self
            .baseline
            .thresholds()
            .0
            .map(|bucket| bucket.map(|bucket| bucket_edge_us(bucket + 1)));
        let counted = if is_alone {
            let slow = self.slower_than_twice(block, guard);
            self.watch
                .block(&reduced, slow, self.baseline.hour(), guard);
            Counts {
                canary: ArmCounts {
                    slow,
                    ..reduced.canary
                },
                stable: ArmCounts::default(),
            }
        } else {
            let counted = self.trial.block(&reduced, of_step, guard);
            self.learn(block, &reduced, guard);
            counted
        };
        self.checks.pass(block.duration, of_step, guard);

        let checks = self.custom(guard);
        let evidence = self
            .trial
            .evidence(self.saturation.log_e(), checks, &guard.tuning);
        let rollback_at = -guard.alpha.ln();
        if self.condemned.is_none() && evidence.total >= rollback_at {
            self.condemned = loudest(&evidence, self.saturation.loudest(), checks, &guard.tuning)
                .or_else(|| self.loudest_custom(guard));
        }
        let watched = position
            .is_watch()
            .then(|| self.watch.watched(self.baseline.hour(), guard));
        if self.condemned.is_none() && guard.watch {
            self.condemned = watched.as_ref().and_then(Watched::condemns);
        }
        Verdict {
            rules: RULES_VERSION,
            step: position.step,
            weight: block.weight,
            decision: self.decide(position, &reduced, of_step, evidence.total, guard),
            evidence,
            rollback_at,
            block: counted,
            in_step: if position.is_watch() {
                Counts {
                    canary: self.watch.seen(),
                    stable: ArmCounts::default(),
                }
            } else {
                self.trial.in_step()
            },
            step_elapsed: if position.is_watch() {
                self.watch.elapsed()
            } else {
                self.trial.step_elapsed()
            },
            idle: self.trial.idle(),
            canary_cold: reduced.cold.0,
            thresholds_us,
            dispersion: reduced.phi,
            stable_error_rate: reduced.reference,
            excess_errors: self.trial.excess_errors(),
            bound: self.trial.bound(&guard.tuning),
            proofs: self.trial.proofs(position, reduced.reference, guard),
            split_mismatch: self.ratio.log_e(),
            checks: self.checks.seen(guard),
            kinds: self.kinds.seen(),
            watched,
        }
    }

    /// Takes one sample of the nodes' gauges; there should be one each [`SAMPLE_PERIOD`]. What it leads to shows in the
    /// next verdict.
    pub fn saturation(&mut self, sample: &SaturationSample, guard: &Guard) {
        if self.trial.is_watch() {
            return self.limits(sample);
        }
        let warming = self.trial.is_warming(guard);
        let limit = self.saturation.sample(sample, warming, guard);
        if !sample.canary.is_empty() {
            self.since_sample = Some(Millis(Duration::ZERO));
        }
        if self.condemned.is_none() {
            self.condemned = limit;
        }
    }

    /// How much time it judged since it took the last sample of the nodes' gauges; `None` before the first. Who samples may have
    /// died meanwhile, and knows it from here.
    #[must_use]
    pub fn since_sample(&self) -> Option<Duration> {
        self.since_sample.map(|since| since.0)
    }

    /// Takes a look at the nodes between two samples: only whether a limit is reached. Memory that grows by a third of its
    /// limit in ten seconds would be killed between two samples, and never be seen at it.
    pub fn limits(&mut self, sample: &SaturationSample) {
        if self.condemned.is_none() {
            // All load on one arm is no fair measure of CPU and queues; a kill for want of memory is near at any load.
            self.condemned = if self.trial.is_watch() {
                self.saturation.memory_limit(sample)
            } else {
                self.saturation.limit(sample)
            };
        }
    }

    /// Takes the answers to checks of the guard; of each there should be one as often as the guard says. A check that is
    /// not told of has no data, which never counts as success. What it leads to shows in the next verdict. While the canary
    /// has every request, limits count and comparisons do not.
    pub fn checks(&mut self, samples: &[CheckSample], guard: &Guard) {
        let warming = self.trial.is_warming(guard);
        let alone = self.trial.is_watch();
        for sample in samples {
            let broken = self.checks.sample(sample, warming, alone, guard);
            if self.condemned.is_none() {
                self.condemned = broken;
            }
        }
    }

    /// Takes how often tasks of each arm restarted in the last five minutes. What it leads to shows in the next verdict.
    pub fn restart(&mut self, canary: u32, stable: u32) {
        if self.condemned.is_none() && restarts_condemn(canary, stable) {
            self.condemned = Some(Signal::Restarts { canary, stable });
        }
    }

    /// What is known of stable by now; worth keeping for the next rollout if stable stays.
    #[must_use]
    pub fn baseline(&self) -> &Baseline {
        &self.baseline
    }

    fn judge_and_keep(&mut self, block: Block, guard: &Guard, position: &Position) -> Judged {
        let verdict = self.judge(&block, guard, position);
        Judged { block, verdict }
    }

    /// The logarithm of the evidence of what the guard compares beside the golden signals: checks, and kinds of answers.
    /// None where it compares nothing.
    fn custom(&self, guard: &Guard) -> Option<f64> {
        let both = [self.checks.log_e(guard), self.kinds.log_e(guard)];
        let logs: Vec<Log> = both.into_iter().flatten().map(Log).collect();
        (!logs.is_empty()).then(|| log_mean_exp(&logs))
    }

    /// Which of these brought it.
    fn loudest_custom(&self, guard: &Guard) -> Option<Signal> {
        let by_kinds = self.kinds.log_e(guard);
        let by_checks = self.checks.log_e(guard);
        match (by_kinds, by_checks) {
            (Some(kinds), Some(checks)) if kinds < checks => self.checks.loudest(guard),
            (Some(_), _) => self.kinds.loudest(),
            (None, _) => self.checks.loudest(guard),
        }
    }

    /// The block in counts: cold nodes apart, slow by the thresholds known before it.
    fn reduce(&self, block: &Block, guard: &Guard) -> Reduced {
        let thresholds = self.baseline.thresholds();
        let margins = margins(guard);
        let tolerance = guard.tuning.latency_tolerance_buckets;
        let mut reduced = Reduced {
            duration: block.duration,
            reference: self.baseline.error_rate(),
            phi: self.baseline.dispersion(),
            tied: self.baseline.ties(),
            aim: self.baseline.aim(guard),
            ..Reduced::default()
        };
        for cell in &block.canary {
            if self.nodes.canary_is_cold(cell) {
                reduced.cold.0 += cell.requests.max(cell.bad);
                reduced.cold.1 += cell.bad;
                continue;
            }
            let slow = [0, 1, 2]
                .map(|quantile| thresholds.slow_beyond(&cell.latency, quantile, tolerance, guard));
            reduced.canary.add(&counts_of(cell, slow));
            for (count, (quantile, shift)) in reduced.beyond_margin.iter_mut().zip(margins) {
                *count += thresholds.slow_beyond(&cell.latency, quantile, shift, guard);
            }
        }
        for cell in block
            .stable
            .iter()
            .filter(|cell| !self.nodes.stable_is_cold(cell))
        {
            reduced
                .stable
                .add(&counts_of(cell, thresholds.slow(&cell.latency)));
        }
        reduced
    }

    /// The canary's answers on warm nodes that are slower than twice stable's quantiles.
    fn slower_than_twice(&self, block: &Block, guard: &Guard) -> [u64; 3] {
        let thresholds = self.baseline.thresholds();
        let mut slow = [0; 3];
        for cell in block
            .canary
            .iter()
            .filter(|cell| !self.nodes.canary_is_cold(cell))
        {
            for (quantile, count) in slow.iter_mut().enumerate() {
                *count += thresholds.slow_beyond(&cell.latency, quantile, LATENCY_SHIFT, guard);
            }
        }
        slow
    }

    /// What a block teaches of stable and of the routing, for the blocks after it.
    fn learn(&mut self, block: &Block, reduced: &Reduced, guard: &Guard) {
        let nodes = &self.nodes;
        self.baseline.learn_from(
            block.duration,
            &block.stable,
            |cell| !nodes.stable_is_cold(cell),
            guard,
        );
        let warm = self.trial.is_warming(guard);
        let stable = reduced.stable;
        self.health.block(
            block.duration,
            stable.requests,
            stable.bad,
            self.baseline.errors(),
            warm,
        );
        if guard.answers.is_some() && !warm {
            let is_warm = |cell: &&Cell| !nodes.canary_is_cold(cell);
            let canary: Vec<&Cell> = block.canary.iter().filter(is_warm).collect();
            let is_warm = |cell: &&Cell| !nodes.stable_is_cold(cell);
            let stable: Vec<&Cell> = block.stable.iter().filter(is_warm).collect();
            self.kinds
                .block(block.duration, &canary, &stable, &guard.tuning);
        }
        self.ratio
            .block(block.weight, requests(&block.canary), block.requests());
        if let Some(since) = &mut self.since_sample {
            since.0 += block.duration;
        }
    }

    /// What follows, most urgent first.
    fn decide(
        &self,
        at: &Position,
        block: &Reduced,
        of_step: bool,
        total: f64,
        guard: &Guard,
    ) -> Decision {
        if let Some(signal) = &self.condemned {
            let by_errors = matches!(
                signal,
                Signal::Errors | Signal::WarmUp | Signal::ErrorsAlone { .. }
            );
            let sick_node = if by_errors {
                self.nodes.sick_canary()
            } else {
                None
            };
            return Decision::Fail {
                signal: signal.clone(),
                sick_node,
            };
        }
        if at.is_watch() {
            let remaining = at.hold.least.saturating_sub(self.watch.elapsed());
            return Decision::Inconclusive {
                missing: vec![Missing::Time { remaining }],
            };
        }
        let silence = self.trial.silence(&guard.tuning);
        let reason = silence
            .or_else(|| self.distrust(guard))
            .or_else(|| self.saturation.trend());
        if let Some(reason) = reason {
            return Decision::Hold { reason };
        }
        let missing_after = SAMPLE_PERIOD * SAMPLES_MISSING_MAX;
        let gauges_are_missing = self
            .since_sample
            .is_some_and(|since| since.0 > missing_after);
        let mut not_seen = self.checks.missing(guard);
        if gauges_are_missing {
            not_seen.insert(0, Missing::Gauges);
        }
        // In the warm-up nobody looks at answers yet.
        if !self.trial.is_warming(guard) {
            not_seen.extend(self.kinds.missing(guard));
        }
        match self.trial.pass(at, block, of_step, total, not_seen, guard) {
            Ok(by) => Decision::Pass { by },
            Err(missing) => Decision::Inconclusive { missing },
        }
    }

    /// Why the traffic itself cannot be trusted, if it cannot.
    fn distrust(&self, guard: &Guard) -> Option<HoldReason> {
        if guard.ratio_check && self.ratio.is_broken() {
            let (expected, seen) = self.ratio.expected_and_seen();
            return Some(HoldReason::SplitMismatch { expected, seen });
        }
        let (rate, before) = self.health.trouble()?;
        Some(HoldReason::StableInTrouble { rate, before })
    }
}

/// Largest weight that steps are passed over for.
const FIRST_RATIO_MAX: f64 = 0.25;

/// The step to begin with, as an index into the plan: the first weight that brings enough canary requests at this rate, or
/// the last before a gate that waits for people or a weight above 25 %. At low traffic the smallest steps would take for ever and prove nothing.
/// The plan's first where there are no requests at all, and where the guard says so.
#[must_use]
pub fn first_step(plan: &Plan, requests_per_second: f64, guard: &Guard) -> usize {
    let mut first = 0;
    if guard.start == Start::First || requests_per_second.is_nan() || requests_per_second <= 0.0 {
        return first;
    }
    for (index, step) in plan.steps().iter().enumerate() {
        match step {
            Step::Gate { .. } => break,
            Step::Weight { weight, .. } => {
                // Quiet now may be busy in an hour, and nothing is known of the canary yet.
                if index > 0 && weight.ratio() > FIRST_RATIO_MAX {
                    break;
                }
                first = index;
                if weight.ratio() * requests_per_second >= guard.tuning.canary_rate_min {
                    break;
                }
            }
        }
    }
    first
}

/// Requests of one arm; a bad outcome whose request was counted in another block is a request too.
fn requests(cells: &[Cell]) -> u64 {
    cells.iter().map(|cell| cell.requests).sum()
}

fn counts_of(cell: &Cell, slow: [u64; 3]) -> ArmCounts {
    ArmCounts {
        requests: cell.requests.max(cell.bad),
        bad: cell.bad,
        timed: cell.latency.total(),
        slow,
    }
}
