//! The split factor and the harm process: does the canary have more than its share of the events of each block?
//!
//! Inside a block the base rate, the load and the clock are the same for both arms, so if the outcome does not depend on
//! the arm, the events fall on the canary as balls drawn from an urn. Drift, ramps and Simpson's effects cancel, because
//! only shares inside one block are ever compared.

use serde::{Deserialize, Serialize};

use super::mixture::Restart;
use crate::Duration;
use crate::plan::Tuning;

/// How many times more likely an event is on a harmful canary: from a quarter more, which takes long to see, to total
/// failure beside a healthy stable. About evenly spaced in how long they take to find.
pub(crate) const HARM_ODDS: [f64; 7] = [1.25, 1.6, 2.2, 3.5, 8.0, 30.0, 200.0];

/// One block and one kind of event: how many of each arm, and to how many of them it happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Outcomes {
    /// Requests of the canary.
    pub(crate) canary: u64,
    /// Requests of stable.
    pub(crate) stable: u64,
    /// The canary's requests with the event.
    pub(crate) canary_events: u64,
    /// Stable's.
    pub(crate) stable_events: u64,
}

impl Outcomes {
    /// Whether there is anything to compare.
    pub(crate) fn both_arms(&self) -> bool {
        self.canary > 0 && self.stable > 0
    }
}

/// The logarithm of the likelihood ratio of "an event is `odds` times as likely on the canary" to "as likely", with a
/// denominator that makes its mean at most 1 whatever the base rate and the weight (JUDGE 2.2). Divided by the dispersion
/// `phi`, which keeps that (Jensen), and at most `cap`. 0 for a block without both arms.
pub(crate) fn split_log_factor(block: &Outcomes, odds: f64, phi: f64, cap: f64) -> f64 {
    if !block.both_arms() {
        return 0.0;
    }
    let all = (block.canary + block.stable) as f64;
    let events = block.canary_events + block.stable_events;
    let fewer = events.min(block.canary) as f64;
    let share = events.max(block.canary) as f64 / all;
    let log = block.canary_events as f64 * odds.ln() - fewer * (share * (odds - 1.0)).ln_1p();
    (log / phi).min(cap)
}

/// Evidence that one kind of event (a bad outcome, or slower than one threshold) is more frequent on the canary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Harm(pub(super) Restart);

impl Default for Harm {
    fn default() -> Self {
        Self(Restart::new(HARM_ODDS.len()))
    }
}

impl Harm {
    /// Takes one block.
    pub(crate) fn block(
        &mut self,
        duration: Duration,
        block: &Outcomes,
        phi: f64,
        tuning: &Tuning,
    ) {
        let factors = HARM_ODDS
            .iter()
            .map(|odds| split_log_factor(block, *odds, phi, tuning.cap_nats));
        self.0.update(factors, duration, tuning);
    }

    /// The logarithm of the evidence so far.
    pub(crate) fn log_e(&self) -> f64 {
        self.0.log_e()
    }
}
