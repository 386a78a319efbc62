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
        if let (None, Some(skipped)) = (before.skipped, after.skipped) {
            tracing::info!(rollout = %after.id, ?skipped, "begins with a later step");
            let weight = |step| after.spec.plan.weight_at(step).ratio() * 100.0;
            let data = json!({
                "step": skipped.steps,
                "weight_percent": weight(skipped.steps),
                "skipped_percent": (0..skipped.steps).map(weight).collect::<Vec<_>>(),
                "requests_per_second": skipped.requests_per_second,
                "canary_rate_min": skipped.canary_rate_min,
            });
            self.events.push(self.event("skipped", FRIDAY, data));
        }
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
