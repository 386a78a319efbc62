//! The catastrophe guard: while nodes are cold nothing is compared finely, but what fails nearly always is still stopped
//! after about seven failing requests (JUDGE 2.6).

use serde::{Deserialize, Serialize};

use super::mixture::{Log, Restart, log_mean_exp};
use super::split::{Harm, Outcomes};
use crate::Duration;
use crate::plan::Tuning;

/// Error shares of a canary that is broken rather than cold.
const BROKEN: [f64; 4] = [0.5, 0.7, 0.9, 0.99];

/// The logarithm of the likelihood ratio of "a canary request fails with the chance `share`" to "with the highest chance
/// that a cold start may have".
fn broken_log_factor(block: &Outcomes, share: f64, tuning: &Tuning) -> f64 {
    let bad = block.canary_events as f64;
    let good = block.canary.saturating_sub(block.canary_events) as f64;
    let allowed = tuning.catastrophe;
    let log = bad * (share / allowed).ln() + good * ((1.0 - share) / (1.0 - allowed)).ln();
    log.min(tuning.cap_nats)
}

/// Evidence that the canary is broken: it fails more often than a cold start may, *and* more often than stable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct WarmUp {
    broken: [Log; BROKEN.len()],
    worse: Harm,
}

impl Default for WarmUp {
    fn default() -> Self {
        Self {
            broken: [Log::EVEN; BROKEN.len()],
            worse: Harm::default(),
        }
    }
}

impl WarmUp {
    /// Takes one block of a cold canary and of stable.
    pub(crate) fn block(
        &mut self,
        duration: Duration,
        block: &Outcomes,
        phi: f64,
        tuning: &Tuning,
    ) {
        for (bet, share) in self.broken.iter_mut().zip(BROKEN) {
            bet.0 += broken_log_factor(block, share, tuning);
        }
        self.worse.block(duration, block, phi, tuning);
    }

    /// Evidence that the error share is above what a cold start may have.
    pub(crate) fn log_e_broken(&self) -> f64 {
        log_mean_exp(&self.broken)
    }

    /// Evidence that it is above stable's.
    pub(crate) fn log_e_worse(&self) -> f64 {
        self.worse.log_e()
    }

    /// Both at once: the smaller.
    pub(crate) fn log_e(&self) -> f64 {
        self.log_e_broken().min(self.log_e_worse())
    }
}

/// The same guard for nodes that start after the warm-up, whose requests nothing else sees. It may start again, so that
/// one good newcomer does not speak for the next; and a canary that dies and comes back under another name, cold every
/// time, is found here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LateNodes {
    broken: Restart,
    worse: Harm,
}

impl Default for LateNodes {
    fn default() -> Self {
        Self {
            broken: Restart::new(BROKEN.len()),
            worse: Harm::default(),
        }
    }
}

impl LateNodes {
    /// Takes one block of cold canary nodes and of stable; nothing if there are none.
    pub(crate) fn block(
        &mut self,
        duration: Duration,
        block: &Outcomes,
        phi: f64,
        tuning: &Tuning,
    ) {
        if block.both_arms() {
            self.broken.update(
                BROKEN
                    .iter()
                    .map(|share| broken_log_factor(block, *share, tuning)),
                duration,
                tuning,
            );
            self.worse.block(duration, block, phi, tuning);
        }
    }

    /// The logarithm of the evidence so far.
    pub(crate) fn log_e(&self) -> f64 {
        self.broken.log_e().min(self.worse.log_e())
    }
}
