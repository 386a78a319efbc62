//! What happens to a rollout, as it goes into the event log.

use rollout::{Block, Cause, Command, Rollout, RolloutId, Verdict};
use serde_json::json;

use super::FRIDAY;
use crate::replay::JudgedEntry;
use crate::store::NewEvent;

/// The events of one rollout in one change.
pub(super) struct Ledger {
    rollout: RolloutId,
    pub(super) events: Vec<NewEvent>,
}

impl Ledger {
    pub(super) fn of(rollout: &Rollout) -> Self {
        Self {
            rollout: rollout.id.clone(),
            events: Vec::new(),
        }
    }

    pub(super) fn event(
        &self,
        kind: &'static str,
        author: &str,
        data: serde_json::Value,
    ) -> NewEvent {
        NewEvent {
            rollout: Some(self.rollout.clone()),
            kind,
            author: author.to_owned(),
            data,
        }
    }

    pub(super) fn verdict(
        &mut self,
        position: &rollout::judge::Position,
        block: &Block,
        verdict: &Verdict,
    ) {
        let judged = JudgedEntry {
            position: position.clone(),
            block: block.clone(),
            verdict: verdict.clone(),
        };
        self.events
            .push(self.event("verdict", FRIDAY, json!(judged)));
    }

    /// What is to be told of the way from `before` to `after`.
    pub(super) fn moves(&mut self, before: &Rollout, after: &Rollout) {
        if before.phase.at_start() != after.phase.at_start() {
            tracing::info!(rollout = %after.id, from = before.phase.name(), to = after.phase.name(), "moved");
            let data = json!({ "from": before.phase, "to": after.phase });
            self.events.push(self.event("phase", FRIDAY, data));
        }
        let (from, to) = (before.desired().weight, after.desired().weight);
        if from != to {
            let data =
                json!({ "from_percent": from.ratio() * 100.0, "to_percent": to.ratio() * 100.0 });
            self.events.push(self.event("weight", FRIDAY, data));
        }
    }
}

pub(super) fn describe(
    command: &Command,
    reason: Option<String>,
) -> (&'static str, serde_json::Value) {
    let order = match command {
        Command::Promote => "promote",
        Command::PromoteFull => "promote --full",
        Command::Pause => "pause",
        Command::Resume => "resume",
        Command::Abort(Cause::Rejected { .. }) => "reject",
        Command::Abort(_) => "abort",
        Command::Approve { .. } => "approve",
    };
    (order, json!({ "order": order, "reason": reason }))
}
