//! Proof by a bet that is aimed: the stakes of `non_inferiority` cover all that a canary may be, this one is laid out for
//! the canary most releases bring, one that is like stable.
//!
//! How much to stake follows from what is known of stable before the block (its error rate, and how many of its answers
//! are beyond a margin), so a stake is *predictable*: chosen before the block it is bet on. That is all the promise needs.
//! A wrong guess, a drift, a baseline of another day makes the bet grow more slowly, and never makes its mean exceed 1.
//! As the null itself nothing of before is ever used.

use serde::{Deserialize, Serialize};

use super::gate::MARGINS;
use super::mixture::{Log, log_sum_exp};
use super::non_inferiority::{EXCESS_GRID, NonInferiorErrors, excess_log_factor};
use super::split::{Outcomes, split_log_factor};
use crate::plan::Tuning;

/// The boldest stake, as on the grid: a single unexpected error shall not end the bet.
const STAKE_MAX: f64 = 0.95;

/// Halvings in which the best stake is found; to a millionth, which costs nothing in growth.
const HALVINGS: u32 = 20;

/// The boldest odds against a slow answer, and the most timid.
const ODDS: std::ops::RangeInclusive<f64> = 0.02..=0.98;

/// Requests up to which the exact mean over the urn is summed. Above it a block is so rich that proof is had in the shortest
/// time of a step anyhow, and the bound in its place is cheap.
const EXACT_REQUESTS_MAX: u64 = 400;

/// What is expected of a canary that is like stable, from what was known before the block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Aim {
    /// The share of its requests that fails.
    pub(crate) error_rate: f64,
    /// For each latency margin, how many times less likely an answer beyond it is than one of stable's beyond its threshold.
    pub(crate) odds: [f64; MARGINS],
}

impl Default for Aim {
    fn default() -> Self {
        Self {
            error_rate: 0.001,
            odds: [0.5; MARGINS],
        }
    }
}

/// The stake on "no excess of `delta`" that grows fastest if both arms fail at `rate` and the canary has `share` of the
/// requests. Growth is concave in the stake, so this is where its slope changes sign.
pub(crate) fn best_stake(rate: f64, delta: f64, share: f64) -> f64 {
    let (canary, stable) = (delta - 1.0 / share, delta + 1.0 / (1.0 - share));
    let slope = |stake: f64| {
        let bet = stake / (1.0 / share - delta);
        rate * share * canary / (1.0 + bet * canary)
            + rate * (1.0 - share) * stable / (1.0 + bet * stable)
            + (1.0 - rate) * delta / (1.0 + bet * delta)
    };
    let (mut low, mut high) = (0.0, STAKE_MAX);
    if slope(high) >= 0.0 {
        return high;
    }
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(low, high);
        if slope(middle) > 0.0 {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

/// As [`split_log_factor`], with the exact mean in place of its bound: given the block's events, how many fall on the canary
/// is hypergeometric if the arms are alike. For `odds` below 1 its mean is 1 then, and less if the canary has more events.
/// Where half of all answers are "slow" the bound gives away nearly half of the evidence.
pub(crate) fn exact_split_log_factor(block: &Outcomes, odds: f64, phi: f64, cap: f64) -> f64 {
    if block.canary + block.stable > EXACT_REQUESTS_MAX {
        return split_log_factor(block, odds, phi, cap);
    }
    if !block.both_arms() {
        return 0.0;
    }
    let events = block.canary_events + block.stable_events;
    let least = events.saturating_sub(block.stable);
    let most = events.min(block.canary);
    // Chances as multiples of the least count's: at most about 10^119 for 400 requests.
    let (mut chance, mut power) = (1.0, 1.0);
    let (mut all, mut mean) = (0.0, 0.0);
    for count in least..=most {
        all += chance;
        mean += chance * power;
        chance *= (events - count) as f64 * (block.canary - count) as f64
            / ((count + 1) as f64 * (block.stable + count + 1 - events) as f64);
        power *= odds;
    }
    let log = (block.canary_events - least) as f64 * odds.ln() - (mean / all).ln();
    (log / phi).min(cap)
}

/// The aimed bets of all proofs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Aimed {
    excess: [Log; EXCESS_GRID.len()],
    margins: [Log; MARGINS],
}

impl Default for Aimed {
    fn default() -> Self {
        Self {
            excess: [Log::EVEN; EXCESS_GRID.len()],
            margins: [Log::EVEN; MARGINS],
        }
    }
}

impl Aimed {
    /// Takes one block's errors; `reference` is stable's error rate, as the margins lean on it.
    pub(crate) fn errors(
        &mut self,
        block: &Outcomes,
        aim: &Aim,
        reference: f64,
        phi: f64,
        tuning: &Tuning,
    ) {
        if !block.both_arms() {
            return;
        }
        let share = block.canary as f64 / (block.canary + block.stable) as f64;
        for (bet, delta) in self.excess.iter_mut().zip(EXCESS_GRID) {
            let margin = NonInferiorErrors::margin(delta, reference, tuning);
            let stake = best_stake(aim.error_rate, margin, share);
            bet.0 += excess_log_factor(block, margin, stake, phi, tuning.cap_nats);
        }
    }

    /// Takes one block's answers beyond a latency margin.
    pub(crate) fn latency(
        &mut self,
        margin: usize,
        block: &Outcomes,
        aim: &Aim,
        phi: f64,
        tuning: &Tuning,
    ) {
        let odds = bounded(aim.odds[margin]);
        self.margins[margin].0 += exact_split_log_factor(block, odds, phi, tuning.cap_nats);
    }

    /// The same at a threshold where stable is tied: the canary's own answers, against the share `tail`.
    pub(crate) fn latency_of_tied(
        &mut self,
        margin: usize,
        block: &Outcomes,
        aim: &Aim,
        tail: f64,
        phi: f64,
        tuning: &Tuning,
    ) {
        let odds = bounded(aim.odds[margin]);
        self.margins[margin].0 += tied_log_factor(block, odds, tail, phi, tuning.cap_nats);
    }

    /// The evidence on an excess of the grid, with what the grid's own stakes found.
    pub(crate) fn excess_log_e(&self, excess: usize, grid: f64, tuning: &Tuning) -> f64 {
        together(self.excess[excess], grid, tuning)
    }

    /// The evidence on a latency margin, with what the grid's own odds found.
    pub(crate) fn margin_log_e(&self, margin: usize, grid: f64, tuning: &Tuning) -> f64 {
        together(self.margins[margin], grid, tuning)
    }
}

/// The logarithm of a bet that fewer of the canary's answers than `tail` are slow, at `odds`.
pub(crate) fn tied_log_factor(block: &Outcomes, odds: f64, tail: f64, phi: f64, cap: f64) -> f64 {
    if !block.both_arms() {
        return 0.0;
    }
    let log = block.canary_events as f64 * odds.ln()
        - block.canary as f64 * (tail * (odds - 1.0)).ln_1p();
    (log / phi).min(cap)
}

/// A weighted mean of fair bets is a fair bet.
fn together(aimed: Log, grid: f64, tuning: &Tuning) -> f64 {
    log_sum_exp(
        [
            tuning.aimed.ln() + aimed.0,
            (1.0 - tuning.aimed).ln() + grid,
        ]
        .into_iter(),
    )
}

fn bounded(odds: f64) -> f64 {
    odds.clamp(*ODDS.start(), *ODDS.end())
}
