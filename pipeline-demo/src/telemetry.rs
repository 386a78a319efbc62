//! Metrics of one process, in Prometheus' text format, with the labels of the release it belongs to.

use std::collections::HashMap;
use std::error::Error;

use friday_traces::{Service, StartError, Traces};
use prometheus::core::Collector;
use prometheus::{
    Counter, Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec,
};
use prometheus::{Opts, Registry, TextEncoder};

/// Whose metrics these are. Empty labels are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// The service, as users call it.
    pub service: String,
    /// The release: a digest, a commit, or any name that tells it from others.
    pub release: String,
    /// `stable` or `canary`.
    pub arm: String,
    /// The machine.
    pub node: String,
    /// Such as `production`.
    pub environment: String,
}

impl Identity {
    fn labels(&self) -> HashMap<String, String> {
        [
            ("service", &self.service),
            ("release", &self.release),
            ("arm", &self.arm),
            ("node", &self.node),
            ("environment", &self.environment),
        ]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (name.to_owned(), value.clone()))
        .collect()
    }
}

/// What sends the spans of a process to a collector, if there is one; the process is known there as the service that its
/// labels name, else as `part`.
///
/// # Errors
/// See [`Traces::start`].
pub(crate) fn traces(
    config: Option<&friday_traces::Config>,
    part: &str,
    identity: &Identity,
) -> Result<Option<Traces>, StartError> {
    let or = |label: &str, default: &str| match label {
        "" => default.to_owned(),
        label => label.to_owned(),
    };
    let service = Service {
        name: or(&identity.service, part),
        version: or(&identity.release, env!("CARGO_PKG_VERSION")),
        instance: String::new(),
    };
    config
        .map(|config| Traces::start(config, &service))
        .transpose()
}

/// The metrics of one process.
#[derive(Debug)]
pub struct Telemetry {
    registry: Registry,
    cpu_seconds: Counter,
    resident_bytes: IntGauge,
}

impl Telemetry {
    /// Metrics labelled with `identity`; the process's own use of CPU and memory is among them (on Linux, by `/proc`).
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        let registry = Registry::new_custom(None, Some(identity.labels()))
            .expect("fixed label names that Prometheus accepts");
        let cpu_seconds = Counter::new(
            "process_cpu_seconds_total",
            "CPU time of this process, user and system.",
        );
        let resident_bytes = IntGauge::new(
            "process_resident_memory_bytes",
            "Memory of this process that is in RAM.",
        );
        let telemetry = Self {
            registry,
            cpu_seconds: cpu_seconds.expect(VALID),
            resident_bytes: resident_bytes.expect(VALID),
        };
        if own_use().is_some() {
            telemetry.register(telemetry.cpu_seconds.clone());
            telemetry.register(telemetry.resident_bytes.clone());
        }
        telemetry
    }

    pub(crate) fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::new(name, help).expect(VALID))
    }

    /// A counter of time, whose name ends in `_seconds_total`.
    pub(crate) fn seconds(&self, name: &str, help: &str) -> Counter {
        self.register(Counter::new(name, help).expect(VALID))
    }

    pub(crate) fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(Opts::new(name, help), labels).expect(VALID))
    }

    pub(crate) fn gauge(&self, opts: Opts) -> IntGauge {
        self.register(IntGauge::with_opts(opts).expect(VALID))
    }

    pub(crate) fn gauges(&self, opts: Opts, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(opts, labels).expect(VALID))
    }

    pub(crate) fn histogram(&self, name: &str, help: &str, buckets: Vec<f64>) -> Histogram {
        let opts = HistogramOpts::new(name, help).buckets(buckets);
        self.register(Histogram::with_opts(opts).expect(VALID))
    }

    pub(crate) fn histograms(
        &self,
        name: &str,
        help: &str,
        buckets: Vec<f64>,
        labels: &[&str],
    ) -> HistogramVec {
        let opts = HistogramOpts::new(name, help).buckets(buckets);
        self.register(HistogramVec::new(opts, labels).expect(VALID))
    }

    fn register<T: Collector + Clone + 'static>(&self, metric: T) -> T {
        self.registry
            .register(Box::new(metric.clone()))
            .expect("each metric is registered once for each process");
        metric
    }

    /// All metrics in the text format.
    #[must_use]
    pub fn text(&self) -> String {
        if let Some((cpu_seconds, resident_bytes)) = own_use() {
            let more = cpu_seconds - self.cpu_seconds.get();
            self.cpu_seconds.inc_by(more.max(0.0));
            self.resident_bytes.set(resident_bytes);
        }
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .expect("writing to memory does not fail");
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// An error with all its sources, as words of a text.
pub(crate) fn words_of(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// An error as a field of a log line: the subscriber prints it with all its sources.
pub(crate) fn chain<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    error
}

const VALID: &str = "names and labels are constants that Prometheus accepts";

/// Clock ticks in a second as `/proc` counts them: `USER_HZ`, which is 100 on every Linux that Rust's tier 1 runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU seconds and resident bytes of this process; `None` where there is no `/proc`.
fn own_use() -> Option<(f64, i64)> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    Some((cpu_seconds(&stat)?, resident_bytes(&status)?))
}

/// Fields 14 and 15 of `proc_pid_stat(5)`; the name in field 2 may contain blanks and ends at the last parenthesis.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

/// `VmRSS` of `proc_pid_status(5)`, which is in KiB.
fn resident_bytes(status: &str) -> Option<i64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: i64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_every_metric_with_the_release() {
        let telemetry = Telemetry::new(&Identity {
            service: "tweets-worker".into(),
            release: "abc".into(),
            arm: "canary".into(),
            ..Identity::default()
        });
        telemetry.counter("some_total", "Some.").inc();
        let text = telemetry.text();
        let line = text.lines().find(|line| line.starts_with("some_total{"));
        for label in [
            r#"service="tweets-worker""#,
            r#"release="abc""#,
            r#"arm="canary""#,
        ] {
            assert!(line.unwrap().contains(label), "{text}");
        }
        assert!(!text.contains("environment="), "{text}");
    }

    #[test]
    fn reads_what_linux_says_of_a_process() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 84 0 0 0 150 50 0 0 20 0 1 0 1 1 1";
        assert_eq!(cpu_seconds(stat), Some(2.0));
        assert_eq!(
            resident_bytes("Name:\tx\nVmRSS:\t    2048 kB\n"),
            Some(2 << 20)
        );
    }
}
