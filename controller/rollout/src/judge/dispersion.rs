//! How much more events cluster than independent requests would: retry storms, pauses, a sick node (JUDGE 2.4). Evidence
//! is divided by it.

use serde::{Deserialize, Serialize};

/// Both sums begin here, so that the first few events do not make a dispersion.
const PRIOR: f64 = 20.0;

/// Observed over expected scatter of one kind of event between groups of stable's requests.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Dispersion {
    observed: f64,
    expected: f64,
}

impl Default for Dispersion {
    fn default() -> Self {
        Self {
            observed: PRIOR,
            expected: PRIOR,
        }
    }
}

impl Dispersion {
    /// Lets what was learned fade to `share` of itself.
    pub(crate) fn fade(&mut self, share: f64) {
        self.observed = PRIOR + (self.observed - PRIOR) * share;
        self.expected = PRIOR + (self.expected - PRIOR) * share;
    }

    /// Takes one block: for each group its requests and how many of them had the event.
    pub(crate) fn block(&mut self, groups: impl Iterator<Item = (u64, u64)> + Clone) {
        let (requests, events) = groups
            .clone()
            .fold((0, 0), |(n, y), (ng, yg)| (n + ng, y + yg));
        if requests < 2 {
            return;
        }
        let (requests, events) = (requests as f64, events as f64);
        let mut concentration = 0.0;
        for (group_requests, group_events) in groups {
            let share = group_requests as f64 / requests;
            self.observed += (group_events as f64 - events * share).powi(2);
            concentration += share * share;
        }
        self.expected += events * (requests - events) / (requests - 1.0) * (1.0 - concentration);
    }

    /// By what evidence must be divided: 1 where events are independent, never less.
    pub(crate) fn phi(&self) -> f64 {
        (self.observed / self.expected).max(1.0)
    }
}
