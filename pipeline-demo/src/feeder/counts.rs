//! What the feeder did, live.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use super::{Fed, GROUP, upstream};
use crate::bus::{Bus, TWEETS};
use crate::server::Counted;
use crate::telemetry::{Telemetry, chain};

/// How often the lag is looked up for the metrics.
const LAG_EVERY: Duration = Duration::from_secs(1);

/// The feeder's counts, live.
pub(crate) struct Counts {
    bus: Arc<dyn Bus>,
    pub(super) completed: IntCounter,
    pub(super) malformed: IntCounter,
    pub(super) attempts: IntCounterVec,
    pub(super) in_flight: IntGauge,
    pub(super) anew: IntCounter,
    lag: IntGauge,
}

impl Counts {
    pub(crate) fn new(telemetry: &Telemetry, bus: Arc<dyn Bus>) -> Self {
        let labels = BTreeMap::from([("topic", TWEETS), ("group", GROUP)]);
        let labels = labels
            .into_iter()
            .map(|(k, v)| (k.to_owned(), v.to_owned()));
        let lag = Opts::new(
            "pipeline_consumer_lag",
            "Records of the topic that the group has not committed yet.",
        );
        let done = telemetry.counters(
            "pipeline_feeder_tasks_total",
            "Tasks whose answer is durable, by outcome.",
            &["outcome"],
        );
        Self {
            bus,
            completed: done.with_label_values(&["completed"]),
            malformed: done.with_label_values(&["malformed"]),
            attempts: telemetry.counters(
                "pipeline_feeder_attempts_total",
                "Requests sent to the proxy, by outcome.",
                &["outcome"],
            ),
            in_flight: telemetry.gauge(Opts::new(
                "pipeline_feeder_in_flight",
                "Tasks taken from the bus and not done yet.",
            )),
            anew: telemetry.counter(
                "pipeline_feeder_partitions_anew_total",
                "Partitions that began anew because their topic was deleted and made again.",
            ),
            lag: telemetry.gauge(lag.const_labels(labels.collect())),
        }
    }

    fn attempts(&self, outcomes: &[&str]) -> u64 {
        let counter = |outcome: &&str| self.attempts.with_label_values(&[*outcome]).get();
        outcomes.iter().map(counter).sum()
    }

    /// Attempts that were answered, with a result or a refusal.
    pub(super) fn answered(&self) -> u64 {
        self.attempts(upstream::ANSWERED)
    }

    pub(crate) fn now(&self) -> Fed {
        let answered = self.answered();
        let failed = self.attempts(upstream::FAILED);
        Fed {
            tasks_completed: self.completed.get(),
            tasks_malformed: self.malformed.get(),
            attempts: answered + failed,
            attempts_failed: failed,
            in_flight: self.in_flight.get().max(0).cast_unsigned(),
            lag: self.lag.get().max(0).cast_unsigned(),
        }
    }

    /// Looks the lag up once a second, for ever.
    pub(super) async fn keep_looking(&self) {
        let mut look = interval(LAG_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            self.look().await;
        }
    }

    /// Looks the lag up. While the bus does not answer, the last one stands.
    async fn look(&self) {
        match self.bus.lag(TWEETS, GROUP).await {
            Ok(lag) => self.lag.set(lag.min(i64::MAX as u64).cast_signed()),
            Err(error) => warn!(error = chain(&error), "feed: the lag is not known"),
        }
    }
}

#[async_trait]
impl Counted for Counts {
    async fn counts(&self) -> Value {
        self.look().await;
        json!(self.now())
    }
}
