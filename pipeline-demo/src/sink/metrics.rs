//! The sink's counts, live.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts};
use serde_json::{Value, json};
use tracing::warn;

use super::GROUP;
use super::rows::Batch;
use super::storage::{Receipt, Storage, Stored};
use crate::bus::{Bus, MALFORMED, RESULTS};
use crate::server::Counted;
use crate::telemetry::{Telemetry, chain};

/// Releases that have series of their own; what comes then is counted as [`OTHER`]. A process that lives through more
/// releases than these has long been restarted by one of them.
const RELEASES_MAX: usize = 64;

/// Codes and labels that have series of their own.
const WORDS_MAX: usize = 32;

/// What is counted together beyond those limits.
const OTHER: &str = "other";

/// Bounds of the lateness histogram, in seconds: from what a healthy pipeline takes to what a person would call an outage.
const LATENESS_BUCKETS: [f64; 14] = [
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0,
];

/// Words of one label, as many as may have series.
#[derive(Debug)]
struct Words {
    max: usize,
    seen: Mutex<BTreeSet<String>>,
}

impl Words {
    const fn up_to(max: usize) -> Self {
        Self {
            max,
            seen: Mutex::new(BTreeSet::new()),
        }
    }

    fn label<'a>(&self, word: &'a str) -> &'a str {
        let mut seen = self.seen.lock().expect("nothing here panics");
        if seen.contains(word) {
            return word;
        }
        if seen.len() == self.max {
            return OTHER;
        }
        seen.insert(word.to_owned());
        word
    }
}

/// The sink's counts, live.
pub(super) struct Counts {
    bus: Arc<dyn Bus>,
    storage: Arc<dyn Storage>,
    stored: IntCounter,
    failures: IntCounter,
    results: IntCounterVec,
    malformed: IntCounterVec,
    duplicates: IntCounter,
    redelivered: IntCounter,
    overruled: IntCounter,
    lateness: HistogramVec,
    late: IntCounterVec,
    lags: [(&'static str, IntGauge); 2],
    releases: Words,
    words: Words,
}

impl Counts {
    pub(super) fn new(telemetry: &Telemetry, bus: Arc<dyn Bus>, storage: Arc<dyn Storage>) -> Self {
        let lags = telemetry.gauges(
            Opts::new(
                "pipeline_consumer_lag",
                "Records of the topic that the group has not committed yet.",
            )
            .const_label("group", GROUP),
            &["topic"],
        );
        Self {
            bus,
            storage,
            stored: telemetry.counter(
                "pipeline_sink_records_total",
                "Records stored; one that came twice counts twice.",
            ),
            failures: telemetry.counter(
                "pipeline_sink_store_failures_total",
                "Times that the store did not take a batch and it was tried again.",
            ),
            results: telemetry.counters(
                "pipeline_results_total",
                "Tweets whose first result was stored, by the release that found it out.",
                &["release", "sentiment"],
            ),
            malformed: telemetry.counters(
                "pipeline_malformed_total",
                "Dead letters stored for the first time, by the release that refused the record.",
                &["release", "code"],
            ),
            duplicates: telemetry.counter(
                "pipeline_duplicates_total",
                "Tweets that stood in more than one place of topic tweets and are stored once.",
            ),
            redelivered: telemetry.counter(
                "pipeline_redelivered_total",
                "Records that were stored already: work that was done or delivered again.",
            ),
            overruled: telemetry.counter(
                "pipeline_overruled_total",
                "Dead letters that do not hold, because their task has a result: one release refused what another did.",
            ),
            lateness: telemetry.histograms(
                "pipeline_lateness_seconds",
                "Time from a tweet's being appended to the bus to its result's being stored.",
                LATENESS_BUCKETS.to_vec(),
                &["release"],
            ),
            late: telemetry.counters(
                "pipeline_late_total",
                "Results stored later than promised.",
                &["release"],
            ),
            lags: [RESULTS, MALFORMED].map(|topic| (topic, lags.with_label_values(&[topic]))),
            releases: Words::up_to(RELEASES_MAX),
            words: Words::up_to(WORDS_MAX),
        }
    }

    /// Counts what became of a batch. Only what was not there before counts for its release.
    pub(super) fn count(&self, batch: &Batch, receipt: &Receipt) {
        self.duplicates.inc_by(receipt.duplicates);
        self.redelivered.inc_by(receipt.redelivered);
        self.overruled.inc_by(receipt.overruled);
        for row in receipt.results.iter().filter_map(|at| batch.rows.get(*at)) {
            let release = self.releases.label(&row.fact.release);
            let sentiment = row.fact.sentiment_label.as_deref().unwrap_or("none");
            let sentiment = self.words.label(sentiment);
            self.results.with_label_values(&[release, sentiment]).inc();
            if let Some(lateness) = row.lateness {
                self.lateness
                    .with_label_values(&[release])
                    .observe(lateness.as_secs_f64());
            }
            // A release that is never late has 0 of them and not no data, on which no gate would open.
            let late = self.late.with_label_values(&[release]);
            late.inc_by(u64::from(row.fact.late));
        }
        for letter in receipt
            .letters
            .iter()
            .filter_map(|at| batch.letters.get(*at))
        {
            let release = self.releases.label(&letter.release);
            let code = self.words.label(&letter.code);
            self.malformed.with_label_values(&[release, code]).inc();
        }
    }

    /// Records were stored, each as a row of its own or not.
    pub(super) fn taken(&self, records: usize) {
        self.stored.inc_by(records as u64);
    }

    /// The store did not take a batch.
    pub(super) fn failed(&self) {
        self.failures.inc();
    }

    /// Looks the lag up. While the bus does not answer, the last one stands.
    pub(super) async fn look(&self) {
        for (topic, gauge) in &self.lags {
            match self.bus.lag(topic, GROUP).await {
                Ok(lag) => gauge.set(lag.min(i64::MAX as u64).cast_signed()),
                Err(error) => warn!(topic, error = chain(&error), "sink: the lag is not known"),
            }
        }
    }
}

#[async_trait]
impl Counted for Counts {
    async fn counts(&self) -> Value {
        self.look().await;
        let lag: i64 = self.lags.iter().map(|(_, gauge)| gauge.get()).sum();
        match self.storage.stored().await {
            Ok(Stored { results, malformed }) => {
                json!({"results": results, "malformed": malformed, "lag": lag})
            }
            Err(error) => {
                warn!(error = chain(&error), "sink: the rows could not be counted");
                json!({"results": null, "malformed": null, "lag": lag})
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guard_that_the_handbook_advises_is_accepted() {
        let handbook = include_str!("../../STORAGE.md");
        let (_, rest) = handbook.split_once("```yaml\nsticky").expect("a guard");
        let (guard, _) = rest.split_once("```").expect("its end");
        let text = format!("service: tweets-worker\nport: 9000\nsticky{guard}");
        let options = friday::spec::ReadOptions::default();
        let spec = friday::spec::read(&text, "friday.yml", &options);
        let guard = spec.unwrap_or_else(|findings| panic!("{findings:?}")).guard;
        assert_eq!(guard.answers.as_deref(), Some("x-sentiment"));
        assert_eq!(guard.checks.len(), 5);
    }

    #[test]
    fn beyond_its_limit_a_label_is_other() {
        let words = Words::up_to(2);
        assert_eq!(
            ["a", "b", "c", "a"].map(|word| words.label(word)),
            ["a", "b", OTHER, "a"]
        );
    }
}
