//! The jobs' counts, live.

use async_trait::async_trait;
use prometheus::{HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts};
use serde_json::{Value, json};

use super::store::Outcome;
use crate::server::Counted;
use crate::sink::Reconciled;
use crate::telemetry::Telemetry;

/// Bounds in seconds, from a job that starts at once to one that waits for a node for an hour.
const BUCKETS: [f64; 11] = [
    0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0, 300.0, 900.0, 3600.0,
];

#[derive(Debug)]
pub(super) struct Metrics {
    runs: IntCounterVec,
    delay: HistogramVec,
    duration: HistogramVec,
    last_done: IntGaugeVec,
    missing: IntGauge,
    doubled: IntGauge,
    unreadable: IntGauge,
    expected: IntGauge,
    checked: IntGauge,
}

impl Metrics {
    pub(super) fn new(telemetry: &Telemetry) -> Self {
        let gauge = |name: &str, help: &str| telemetry.gauge(Opts::new(name, help));
        Self {
            runs: telemetry.counters(
                "pipeline_job_runs_total",
                "Runs of this node that ended, by outcome.",
                &["job", "outcome"],
            ),
            delay: telemetry.histograms(
                "pipeline_job_delay_seconds",
                "Time from a run's being due to its beginning.",
                BUCKETS.to_vec(),
                &["job"],
            ),
            duration: telemetry.histograms(
                "pipeline_job_duration_seconds",
                "Time that a run took.",
                BUCKETS.to_vec(),
                &["job"],
            ),
            last_done: telemetry.gauges(
                Opts::new(
                    "pipeline_job_last_done_timestamp_seconds",
                    "When the job last ended as it should on this node.",
                ),
                &["job"],
            ),
            missing: gauge(
                "pipeline_reconciled_missing_records",
                "Records that went in, are done according to the feeder, and are stored nowhere.",
            ),
            doubled: gauge(
                "pipeline_reconciled_doubled_records",
                "Records that are stored both as a result and as malformed.",
            ),
            unreadable: gauge(
                "pipeline_reconciled_unreadable_records",
                "Records that went in and whose answer could not be read or stored; it is kept as malformed.",
            ),
            expected: gauge(
                "pipeline_reconciled_expected_records",
                "Records that went in and were looked for.",
            ),
            checked: gauge(
                "pipeline_reconciled_timestamp_seconds",
                "When the store was last compared with the bus.",
            ),
        }
    }

    pub(super) fn began(&self, job: &str, delay_ms: i64) {
        self.delay
            .with_label_values(&[job])
            .observe(seconds(delay_ms));
    }

    pub(super) fn ended(&self, job: &str, outcome: Outcome, took_ms: i64, now_ms: i64) {
        self.runs.with_label_values(&[job, outcome.name()]).inc();
        if outcome != Outcome::Missed {
            self.duration
                .with_label_values(&[job])
                .observe(seconds(took_ms));
        }
        if outcome == Outcome::Done {
            self.last_done.with_label_values(&[job]).set(now_ms / 1_000);
        }
    }

    /// Shows what all comparisons came to, whichever node made them.
    pub(super) fn reconciled(&self, all: &[Reconciled]) {
        let sum = |of: fn(&Reconciled) -> i64| all.iter().map(of).sum::<i64>();
        self.missing.set(sum(|r| r.missing));
        self.doubled.set(sum(|r| r.doubled));
        self.unreadable.set(sum(|r| r.unreadable));
        self.expected.set(sum(|r| r.expected));
        if let Some(oldest) = all.iter().map(|r| r.checked_ms).max() {
            self.checked.set(oldest / 1_000);
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds of a run")]
fn seconds(ms: i64) -> f64 {
    ms.max(0) as f64 / 1_000.0
}

#[async_trait]
impl Counted for Metrics {
    async fn counts(&self) -> Value {
        json!({"missing": self.missing.get(), "doubled": self.doubled.get(), "expected": self.expected.get()})
    }
}
