//! The rollouts beside the log: each is where the log has it, or had it when they were read.

use std::collections::BTreeMap;

use rollout::{Duration, Phase, RolloutId};

use super::{Broken, Head};
use crate::store::Event;

/// Rollouts that were read before the log, and of which the log has not told yet.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    untold: BTreeMap<String, Phase>,
}

impl Rows {
    /// These rollouts, each with where it is.
    #[must_use]
    pub fn new(rollouts: impl IntoIterator<Item = (String, Phase)>) -> Self {
        let at_start = |(id, phase): (String, Phase)| (id, phase.at_start());
        Self {
            untold: rollouts.into_iter().map(at_start).collect(),
        }
    }

    /// Takes the next entry of the log.
    pub fn take(&mut self, event: &Event) {
        let Some(id) = event.rollout.as_ref().map(RolloutId::as_str) else {
            return;
        };
        let Some(expected) = self.untold.get(id) else {
            return;
        };
        let told = match event.kind.as_str() {
            "started" => Some(Phase::Deploying {
                elapsed: Duration::ZERO,
            }),
            "phase" => {
                let to = event.data.get("to").cloned().unwrap_or_default();
                serde_json::from_value::<Phase>(to).ok()
            }
            _ => return,
        };
        // One that this version cannot read may be it.
        if told.is_none_or(|phase| phase.at_start() == *expected) {
            self.untold.remove(id);
        }
    }

    /// Whether the log, which ends with `head`, told of all.
    ///
    /// # Errors
    /// One is where the log never had it.
    pub fn finish(self, head: &Head) -> Result<(), Broken> {
        match self.untold.into_iter().next() {
            None => Ok(()),
            Some((rollout, phase)) => Err(Broken::Untold {
                last: head.seq,
                rollout,
                phase: phase.name().replace('_', " "),
            }),
        }
    }
}
