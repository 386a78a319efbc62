//! Proof that the canary is not worse than a margin: what opens a gate (JUDGE 2.10). The null is "it is worse", so
//! silence proves nothing and no gate opens by waiting.

use serde::{Deserialize, Serialize};

use super::mixture::{Log, log_mean_exp};
use super::split::{Outcomes, split_log_factor};
use crate::plan::Tuning;

/// Excess error shares that may be proven absent, largest first. A gate takes the largest that its weight can afford; the
/// small ones are for the report.
pub const EXCESS_GRID: [f64; 8] = [0.10, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005];

/// How much of the bankroll is bet on each block that the excess is absent: careful to bold. The best one depends on the
/// base rate, which nobody knows, so the mean of all is kept.
pub(crate) const STAKES: [f64; 4] = [0.1, 0.35, 0.7, 0.95];

/// How many times *less* likely a slow answer is on the canary, shifted by the margin, than on stable, if the canary is
/// within the margin.
pub(crate) const MARGIN_ODDS: [f64; 4] = [0.85, 0.65, 0.4, 0.15];

/// The logarithm of a bet that the canary's error share does not exceed stable's by `delta`, for a stake from 0 to 1. Its
/// mean is at most 1 for any base rate if the excess is `delta` or more (AM-GM).
pub(crate) fn excess_log_factor(
    block: &Outcomes,
    delta: f64,
    stake: f64,
    phi: f64,
    cap: f64,
) -> f64 {
    if !block.both_arms() {
        return 0.0;
    }
    let all = (block.canary + block.stable) as f64;
    let share = block.canary as f64 / all;
    let bet = stake / (1.0 / share - delta);
    let (canary, stable) = (block.canary_events as f64, block.stable_events as f64);
    let log = canary * (bet * (delta - 1.0 / share)).ln_1p()
        + stable * (bet * (delta + 1.0 / (1.0 - share))).ln_1p()
        + (all - canary - stable) * (bet * delta).ln_1p();
    (log / phi).min(cap)
}

/// Evidence that the canary's error share exceeds stable's by less than a margin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct NonInferiorErrors {
    /// The margin where stable has few errors.
    pub(super) delta: f64,
    /// The widest margin that was in force: with many errors on stable it is a share of their rate.
    widest: f64,
    /// The bets, one for each stake.
    bets: [Log; STAKES.len()],
}

impl NonInferiorErrors {
    /// Nothing proven yet.
    pub(crate) fn new(delta: f64) -> Self {
        Self {
            delta,
            widest: delta,
            bets: [Log::EVEN; STAKES.len()],
        }
    }

    /// The margin in force when stable fails at `reference`.
    pub(crate) fn margin(delta: f64, reference: f64, tuning: &Tuning) -> f64 {
        delta.max(tuning.errors_margin_relative * reference)
    }

    /// Takes one block; `reference` is stable's error rate as known before it.
    pub(crate) fn block(&mut self, block: &Outcomes, reference: f64, phi: f64, tuning: &Tuning) {
        let margin = Self::margin(self.delta, reference, tuning);
        self.widest = self.widest.max(margin);
        for (bet, stake) in self.bets.iter_mut().zip(STAKES) {
            bet.0 += excess_log_factor(block, margin, stake, phi, tuning.cap_nats);
        }
    }

    /// The logarithm of the evidence so far.
    pub(crate) fn log_e(&self) -> f64 {
        log_mean_exp(&self.bets)
    }

    /// The excess that is disproven once the evidence suffices.
    pub(crate) fn proves(&self) -> f64 {
        self.widest
    }
}

/// Evidence that the canary, made faster by a margin, is slow less often than stable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct NonInferiorLatency {
    bets: [Log; MARGIN_ODDS.len()],
}

impl Default for NonInferiorLatency {
    fn default() -> Self {
        Self {
            bets: [Log::EVEN; MARGIN_ODDS.len()],
        }
    }
}

impl NonInferiorLatency {
    /// Takes one block: the canary's answers above the shifted threshold, stable's above the plain one.
    pub(crate) fn block(&mut self, block: &Outcomes, phi: f64, tuning: &Tuning) {
        for (bet, odds) in self.bets.iter_mut().zip(MARGIN_ODDS) {
            bet.0 += split_log_factor(block, odds, phi, tuning.cap_nats);
        }
    }

    /// Takes one block at a threshold that hardly any answer of stable exceeds, because most fall into one bucket. Such a
    /// stable proves nothing by its share. But a canary whose quantile is beyond the margin exceeds it with a chance of at
    /// least `tail`, so its own answers are counted against that.
    pub(crate) fn block_of_tied(&mut self, block: &Outcomes, tail: f64, phi: f64, tuning: &Tuning) {
        if !block.both_arms() {
            return;
        }
        for (bet, odds) in self.bets.iter_mut().zip(MARGIN_ODDS) {
            let log = block.canary_events as f64 * odds.ln()
                - block.canary as f64 * (tail * (odds - 1.0)).ln_1p();
            bet.0 += (log / phi).min(tuning.cap_nats);
        }
    }

    /// The logarithm of the evidence so far.
    pub(crate) fn log_e(&self) -> f64 {
        log_mean_exp(&self.bets)
    }
}

/// The pooled difference of the arms' event shares, canary less stable, each block weighted by how much it can tell
/// (Mantel and Haenszel). A point estimate, for the time-out rule and the report; never a proof.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Difference {
    events: f64,
    weight: f64,
}

impl Difference {
    /// Takes one block.
    pub(crate) fn block(&mut self, block: &Outcomes) {
        let (canary, stable) = (block.canary as f64, block.stable as f64);
        let all = canary + stable;
        if all > 0.0 {
            let (canary_events, stable_events) =
                (block.canary_events as f64, block.stable_events as f64);
            self.events += (canary_events * stable - stable_events * canary) / all;
            self.weight += canary * stable / all;
        }
    }

    /// The difference; none before a block had both arms.
    pub(crate) fn estimate(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.events / self.weight)
    }

    /// Whether the canary has no more than its share of the events.
    pub(crate) fn is_fair(&self) -> bool {
        self.events <= 0.0
    }
}
