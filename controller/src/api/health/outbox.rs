//! What is yet to be told to others, for people and for Prometheus.

use prometheus::{GaugeVec, Opts, Registry};
use rollout::Timestamp;

use super::super::Api;
use super::super::types::health::{OutboxView, UntoldView};
use crate::reconciler::chain;
use crate::store::outbox::{Destination, OutboxState};

/// How the outbox is. One that cannot be read says so elsewhere: nothing can be saved then.
pub(super) async fn state(api: &Api) -> OutboxState {
    match api.store.outbox_state().await {
        Ok(state) => state,
        Err(error) => {
            tracing::warn!(error = %chain(&error), "the outbox cannot be read");
            OutboxState::default()
        }
    }
}

fn seconds(since: Timestamp, api: &Api) -> f64 {
    api.clock.now().duration_since(since).as_secs_f64().max(0.0)
}

pub(super) async fn views(api: &Api) -> (Vec<OutboxView>, Vec<UntoldView>) {
    let OutboxState { waiting, dead, .. } = state(api).await;
    let outbox = waiting.into_iter().map(|waiting| OutboxView {
        oldest_seconds: seconds(waiting.oldest, api),
        destination: waiting.destination,
        messages: waiting.count,
        trouble: waiting.error,
    });
    let untold = dead.into_iter().map(|dead| UntoldView {
        rollout: dead.rollout.to_string(),
        destination: dead.destination,
        topic: dead.topic,
        at: dead.at,
        trouble: dead.error,
    });
    (outbox.collect(), untold.collect())
}

pub(super) fn collect(
    state: &OutboxState,
    api: &Api,
    registry: &Registry,
) -> prometheus::Result<()> {
    let gauge = |name: &str, help: &str, labels: &[&str]| -> prometheus::Result<GaugeVec> {
        let gauge = GaugeVec::new(Opts::new(name, help), labels)?;
        registry.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    };
    let messages = gauge(
        "friday_outbox_messages",
        "Messages to others: those that wait to be told (waiting), by destination, and those that were given up (dead).",
        &["destination", "state"],
    )?;
    let oldest = gauge(
        "friday_outbox_oldest_seconds",
        "How long the oldest message to a destination waits; 0 while none does.",
        &["destination"],
    )?;
    for destination in Destination::ALL {
        let name = destination.as_str();
        let waiting = state
            .waiting
            .iter()
            .find(|waiting| waiting.destination == name);
        let count = waiting.map_or(0, |waiting| waiting.count);
        // Counts of messages are far below 2^53.
        messages
            .with_label_values(&[name, "waiting"])
            .set(count as f64);
        let age = waiting.map_or(0.0, |waiting| seconds(waiting.oldest, api));
        oldest.with_label_values(&[name]).set(age);
    }
    messages
        .with_label_values(&["all", "dead"])
        .set(state.dead_count as f64);
    Ok(())
}
