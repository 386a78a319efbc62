//! Evidence as an e-process: a bet against the null that multiplies, block by block, and starts again and again.
//!
//! Everything is kept as a natural logarithm, because a year of good traffic is `e^-10000`.

use serde::{Deserialize, Serialize};

use crate::Duration;
use crate::plan::Tuning;
use crate::serial;

/// A natural logarithm of evidence; minus infinity is a bet that was never placed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Log(#[serde(with = "serial::log")] pub(crate) f64);

impl Log {
    /// The logarithm of nothing.
    pub(crate) const NEVER: Self = Self(f64::NEG_INFINITY);
    /// The logarithm of 1: no evidence either way.
    pub(crate) const EVEN: Self = Self(0.0);
}

/// `ln(sum(exp(values)))` without leaving the logarithms.
pub(crate) fn log_sum_exp(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = values.clone().fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY {
        return largest;
    }
    largest
        + values
            .map(|value| (value - largest).exp())
            .sum::<f64>()
            .ln()
}

/// The logarithm of the mean of what these are logarithms of.
pub(crate) fn log_mean_exp(logs: &[Log]) -> f64 {
    log_sum_exp(logs.iter().map(|log| log.0)) - (logs.len() as f64).ln()
}

/// A mixture over the size of an effect and over its start (JUDGE 2.3): half of the belief is "from the first block", the
/// rest is released slowly for ever, so that a good hour does not bury a regression that starts after it.
///
/// `E = sum_j V_j + reserve`, where each block does `V_j <- (V_j + released / J) * factor_j`. If every factor's mean is at
/// most 1 under the null, so is E's, at any time one cares to look (Ville).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Restart {
    /// The bets that are on, one for each size of effect.
    pub(super) bets: Vec<Log>,
    /// What is not yet bet, from 1 down.
    pub(super) reserve: f64,
    /// Time since the first block, in seconds.
    pub(super) age_seconds: Option<f64>,
}

impl Restart {
    /// A mixture over `sizes` sizes of effect, with nothing seen.
    pub(crate) fn new(sizes: usize) -> Self {
        Self {
            bets: vec![Log::NEVER; sizes],
            reserve: 1.0,
            age_seconds: None,
        }
    }

    /// Takes one block, as the logarithm of its factor for each size of effect.
    pub(crate) fn update(
        &mut self,
        log_factors: impl Iterator<Item = f64>,
        duration: Duration,
        tuning: &Tuning,
    ) {
        let age = self
            .age_seconds
            .map_or(0.0, |age| age + duration.as_secs_f64());
        let reserve = (1.0 - tuning.restart_first) / (1.0 + age / tuning.restart.as_secs_f64());
        let released = self.reserve - reserve;
        let stake = if released > 0.0 {
            (released / self.bets.len() as f64).ln()
        } else {
            f64::NEG_INFINITY
        };
        for (bet, factor) in self.bets.iter_mut().zip(log_factors) {
            bet.0 = log_sum_exp([bet.0, stake].into_iter()) + factor;
        }
        self.age_seconds = Some(age);
        self.reserve = reserve;
    }

    /// The logarithm of the evidence so far; 0 before the first block.
    pub(crate) fn log_e(&self) -> f64 {
        log_sum_exp(self.bets.iter().map(|bet| bet.0).chain([self.reserve.ln()]))
    }
}
