//! The proxy's metrics, for Prometheus. Names and labels are a contract with the board (Grafana) and the checks.
//!
//! Handles are resolved once for each table, not for each request.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex};

use friday_traces::TraceParent;
use prometheus::proto::{LabelPair, MetricFamily};
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts,
    Registry, TextEncoder, exponential_buckets,
};
use proxy_api::{Arm, Endpoint, Outcome};

use crate::exemplars::{Exemplar, Exemplars};
use crate::lock;
use crate::openmetrics;
use crate::refusal::Refusal;
use crate::routes::Table;
use crate::upstream::Peers;

/// Label sets of endpoints that left the table and whose counters are still shown. With releases of ten tasks that is a
/// hundred releases back; beyond it the oldest go, else a crash loop on ever new ports grows the memory.
const RETIRED_SERIES_MAX: usize = 1_000;

/// The histogram that has exemplars.
const DURATION: &str = "friday_proxy_request_duration_seconds";

/// Its labels.
const DURATION_LABELS: [&str; 3] = ["service", "arm", "release"];

/// The service label of answers to requests that no route takes.
const NO_SERVICE: &str = "none";

/// What [`Telemetry::place`] is labelled with: service, arm, release, endpoint.
type PlaceLabels = [Arc<str>; 4];

/// All metrics of one proxy.
pub(crate) struct Telemetry {
    registry: Registry,
    requests: IntCounterVec,
    duration: HistogramVec,
    answers: IntCounterVec,
    failed_to_user: IntCounterVec,
    shielded: IntCounterVec,
    retries: IntCounterVec,
    in_flight: IntGaugeVec,
    weight: GaugeVec,
    generation: IntGaugeVec,
    refusals: IntCounterVec,
    mirrored: IntCounterVec,
    healthy: IntGaugeVec,
    /// Lines of the access log that were left out because it could not be written as fast.
    pub(crate) access_log_dropped: IntCounter,
    /// Of the histogram, by the values of [`DURATION_LABELS`]. As many as it has label sets.
    exemplars: Mutex<HashMap<[String; 3], Arc<Exemplars>>>,
    /// Every label set that is shown, oldest first.
    shown: Mutex<VecDeque<PlaceLabels>>,
    /// Gauges are filled when they are asked for; two who ask must not mix.
    render: Mutex<()>,
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemetry").finish_non_exhaustive()
    }
}

/// Counters of one endpoint on one side of one route.
#[derive(Debug)]
pub(crate) struct PlaceMetrics {
    outcomes: [IntCounter; 5],
    duration: Histogram,
    exemplars: Arc<Exemplars>,
}

impl PlaceMetrics {
    /// Counts a request that ended.
    pub(crate) fn ended(&self, outcome: Outcome, seconds: f64) {
        self.outcomes[outcome as usize].inc();
        self.duration.observe(seconds);
    }

    /// Takes note of where such a request is to be found, if its trace is recorded.
    pub(crate) fn exemplify(&self, at: TraceParent, seconds: f64) {
        self.exemplars.note(at, seconds);
    }
}

/// What became of a copy of a request for the canary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mirrored {
    /// The canary answered below 500.
    Ok,
    /// It answered 500 or above, or not at all.
    Failed,
    /// There were too many already, or its body was not whole yet or too long to keep.
    LeftOut,
}

impl Mirrored {
    const NAMES: [&'static str; 3] = ["ok", "failed", "left_out"];
}

/// How a client's request ended, for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToUser {
    /// With an answer of this status, to its end.
    Answered(http::StatusCode),
    /// With an answer that broke off.
    BrokenOff,
}

impl ToUser {
    /// Whether the user got no good answer by our or an upstream's fault.
    pub(crate) fn is_failed(self) -> bool {
        match self {
            Self::Answered(status) => status.is_server_error(),
            Self::BrokenOff => true,
        }
    }

    /// The index into [`RouteMetrics::CODES`].
    fn index(self) -> usize {
        match self {
            Self::Answered(status) => usize::from(status.as_u16() / 100).clamp(1, 5) - 1,
            Self::BrokenOff => 5,
        }
    }
}

/// Counters of one route.
#[derive(Debug)]
pub(crate) struct RouteMetrics {
    answers: [IntCounter; 6],
    failed_to_user: IntCounter,
    /// Replays on stable of what the canary failed.
    pub(crate) shielded: IntCounter,
    mirrored: [IntCounter; 3],
    retries: [IntCounter; 2],
    /// Of all routes.
    refusals: IntCounterVec,
}

impl RouteMetrics {
    const CODES: [&'static str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "failed"];

    /// Counts what a client got in the end.
    pub(crate) fn answered(&self, to_user: ToUser) {
        self.answers[to_user.index()].inc();
        if to_user.is_failed() {
            self.failed_to_user.inc();
        }
    }

    /// Counts an answer that was given up.
    pub(crate) fn refused(&self, refusal: Refusal) {
        self.refusals.with_label_values(&[refusal.code()]).inc();
    }

    /// Counts a copy for the canary.
    pub(crate) fn mirrored(&self, copy: Mirrored) {
        self.mirrored[copy as usize].inc();
    }

    /// Counts a second attempt on the same release.
    pub(crate) fn retried(&self, arm: Arm) {
        match arm {
            Arm::Stable => self.retries[0].inc(),
            Arm::Canary => self.retries[1].inc(),
        }
    }
}

impl Telemetry {
    /// Metrics at zero.
    ///
    /// # Errors
    /// Two metrics of one name: a defect of ours.
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let vec = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vec.clone()))?;
            Ok::<_, prometheus::Error>(vec)
        };
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            let vec = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vec.clone()))?;
            Ok::<_, prometheus::Error>(vec)
        };
        let duration = HistogramVec::new(
            HistogramOpts::new(DURATION, "Time from routing to the end of the answer.")
                .buckets(duration_buckets()?),
            &DURATION_LABELS,
        )?;
        registry.register(Box::new(duration.clone()))?;
        let weight = GaugeVec::new(
            Opts::new(
                "friday_proxy_weight_ratio",
                "The canary's share: as set by the table, and as seen since then.",
            ),
            &["service", "kind"],
        )?;
        registry.register(Box::new(weight.clone()))?;
        let place = ["service", "arm", "release", "endpoint"];
        let access_log_dropped = IntCounter::new(
            "friday_proxy_access_log_dropped_total",
            "Lines of the access log that were left out because it could not be written as fast.",
        )?;
        registry.register(Box::new(access_log_dropped.clone()))?;
        let refusals = counter(
            "friday_proxy_refusals_total",
            "Answers of the proxy's own.",
            &["reason"],
        )?;
        for refusal in Refusal::ALL {
            refusals.with_label_values(&[refusal.code()]);
        }
        Ok(Self {
            requests: counter(
                "friday_proxy_requests_total",
                "Requests by the side they were routed to and their outcome there.",
                &["service", "arm", "release", "endpoint", "outcome"],
            )?,
            duration,
            answers: counter(
                "friday_proxy_answers_total",
                "Final answers to users; failed: broken off.",
                &["service", "code"],
            )?,
            failed_to_user: counter(
                "friday_proxy_failed_to_user_total",
                "Final answers to users that were 500 or above or broke off.",
                &["service"],
            )?,
            shielded: counter(
                "friday_proxy_shielded_total",
                "Failures of the canary that were replayed on stable.",
                &["service"],
            )?,
            retries: counter(
                "friday_proxy_retries_total",
                "Second attempts on the same release.",
                &["service", "arm"],
            )?,
            mirrored: counter(
                "friday_proxy_mirrored_total",
                "Copies of requests for the canary whose answers nobody gets.",
                &["service", "outcome"],
            )?,
            healthy: gauge(
                "friday_proxy_endpoint_healthy",
                "1 if the endpoint takes requests, 0 if it is avoided for now.",
                &place,
            )?,
            access_log_dropped,
            in_flight: gauge(
                "friday_proxy_in_flight",
                "Requests without an end yet.",
                &place,
            )?,
            weight,
            generation: gauge(
                "friday_proxy_generation",
                "The number of the table in force.",
                &["part"],
            )?,
            refusals,
            registry,
            exemplars: Mutex::default(),
            shown: Mutex::default(),
            render: Mutex::default(),
        })
    }

    /// The counters of one endpoint; without an endpoint those of requests that found none.
    pub(crate) fn place(
        &self,
        service: &str,
        arm: Arm,
        release: &str,
        endpoint: Option<&Endpoint>,
    ) -> PlaceMetrics {
        let endpoint = endpoint.map_or("", Endpoint::as_str);
        PlaceMetrics {
            outcomes: Outcome::ALL.map(|outcome| {
                self.requests.with_label_values(&[
                    service,
                    arm.as_str(),
                    release,
                    endpoint,
                    outcome.as_str(),
                ])
            }),
            duration: self
                .duration
                .with_label_values(&[service, arm.as_str(), release]),
            exemplars: self.exemplars(service, arm, release),
        }
    }

    fn exemplars(&self, service: &str, arm: Arm, release: &str) -> Arc<Exemplars> {
        let key = [service, arm.as_str(), release].map(str::to_owned);
        let mut all = lock(&self.exemplars);
        let of_these = all.entry(key).or_insert_with(|| {
            // They were good for the histogram.
            Arc::new(Exemplars::new(&duration_buckets().unwrap_or_default()))
        });
        Arc::clone(of_these)
    }

    /// The exemplars of a histogram's label set, by bucket.
    fn exemplars_of(&self, name: &str, labels: &[LabelPair]) -> Vec<Option<Exemplar>> {
        if name != DURATION {
            return Vec::new();
        }
        let key = DURATION_LABELS.map(|name| {
            let pair = labels.iter().find(|pair| pair.name() == name);
            pair.map_or_else(String::new, |pair| pair.value().to_owned())
        });
        let exemplars = lock(&self.exemplars).get(&key).map(Arc::clone);
        exemplars.map_or_else(Vec::new, |exemplars| exemplars.all())
    }

    /// The counters of one route.
    pub(crate) fn route(&self, service: &str) -> RouteMetrics {
        RouteMetrics {
            answers: RouteMetrics::CODES
                .map(|code| self.answers.with_label_values(&[service, code])),
            failed_to_user: self.failed_to_user.with_label_values(&[service]),
            shielded: self.shielded.with_label_values(&[service]),
            mirrored: Mirrored::NAMES
                .map(|outcome| self.mirrored.with_label_values(&[service, outcome])),
            retries: [Arm::Stable, Arm::Canary]
                .map(|arm| self.retries.with_label_values(&[service, arm.as_str()])),
            refusals: self.refusals.clone(),
        }
    }

    /// Counts an answer of the proxy's own.
    pub(crate) fn refused(&self, refusal: Refusal) {
        self.refusals.with_label_values(&[refusal.code()]).inc();
    }

    /// Counts an answer to a request that no route takes.
    pub(crate) fn answered_without_route(&self, status: http::StatusCode) {
        let to_user = ToUser::Answered(status);
        let code = RouteMetrics::CODES[to_user.index()];
        self.answers.with_label_values(&[NO_SERVICE, code]).inc();
        if to_user.is_failed() {
            self.failed_to_user.with_label_values(&[NO_SERVICE]).inc();
        }
    }

    /// Takes note of the endpoints of a new table, and lets the oldest series go that belong to no table any more.
    pub(crate) fn retire(&self, current: HashSet<PlaceLabels>) {
        let mut shown = lock(&self.shown);
        let known: HashSet<PlaceLabels> = shown.iter().cloned().collect();
        shown.extend(current.difference(&known).cloned());
        let mut surplus = shown
            .len()
            .saturating_sub(current.len() + RETIRED_SERIES_MAX);
        shown.retain(|labels| {
            if surplus == 0 || current.contains(labels) {
                return true;
            }
            surplus -= 1;
            let [service, arm, release, endpoint] = labels.each_ref().map(|label| &**label);
            for outcome in Outcome::ALL {
                // An error only says that it is gone already.
                drop(self.requests.remove_label_values(&[
                    service,
                    arm,
                    release,
                    endpoint,
                    outcome.as_str(),
                ]));
            }
            false
        });
    }

    /// All metrics in Prometheus' text format.
    ///
    /// # Errors
    /// A metric that cannot be written as text: a defect of ours.
    pub(crate) fn render(
        &self,
        table: Option<&Table>,
        peers: &Peers,
    ) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.gather(table, peers))
    }

    /// All metrics as OpenMetrics, with exemplars.
    ///
    /// # Errors
    /// As of [`Self::render`].
    pub(crate) fn render_openmetrics(
        &self,
        table: Option<&Table>,
        peers: &Peers,
    ) -> Result<String, std::fmt::Error> {
        openmetrics::encode(&self.gather(table, peers), |name, labels| {
            self.exemplars_of(name, labels)
        })
    }

    /// All metrics, as they are now.
    fn gather(&self, table: Option<&Table>, peers: &Peers) -> Vec<MetricFamily> {
        let _one_at_a_time = lock(&self.render);
        self.in_flight.reset();
        self.healthy.reset();
        self.weight.reset();
        if let Some(table) = table {
            for route in table.routes() {
                let service = &*route.name;
                for side in route.sides() {
                    for target in &side.targets {
                        let labels = [
                            service,
                            side.arm.as_str(),
                            &*side.release,
                            target.peer.address().as_str(),
                        ];
                        self.in_flight
                            .with_label_values(&labels)
                            .set(i64::from(target.peer.in_flight()));
                        self.healthy
                            .with_label_values(&labels)
                            .set(i64::from(target.peer.is_healthy()));
                    }
                }
                self.weight
                    .with_label_values(&[service, "set"])
                    .set(route.spec.canary_bp.ratio());
                if let Some(seen) = route.seen.ratio() {
                    self.weight.with_label_values(&[service, "seen"]).set(seen);
                }
            }
            let generation = table.generation();
            for (part, number) in [("term", generation.term), ("seq", generation.seq)] {
                self.generation
                    .with_label_values(&[part])
                    .set(i64::try_from(number).unwrap_or(i64::MAX));
            }
        }
        // Also endpoints that left the table and still have requests.
        for (key, requests) in peers.in_flight() {
            self.in_flight
                .with_label_values(&[
                    &*key.route,
                    key.arm.as_str(),
                    &*key.release,
                    key.address.as_str(),
                ])
                .set(i64::from(requests));
        }
        self.registry.gather()
    }
}

/// 1 ms to 33 s, each twice the last: enough for a board. The judge reads the finer buckets of reports.
fn duration_buckets() -> Result<Vec<f64>, prometheus::Error> {
    exponential_buckets(0.001, 2.0, 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lets_series_of_endpoints_long_gone_go() {
        let telemetry = Telemetry::new().unwrap();
        let labels = |port: usize| {
            let endpoint: Endpoint = format!("127.0.0.1:{port}").parse().unwrap();
            telemetry
                .place("web", Arm::Canary, "v2", Some(&endpoint))
                .ended(Outcome::Ok, 0.1);
            let labels: PlaceLabels = [
                "web".into(),
                "canary".into(),
                "v2".into(),
                endpoint.as_str().into(),
            ];
            labels
        };
        for port in 1..=RETIRED_SERIES_MAX + 11 {
            telemetry.retire(HashSet::from([labels(port)]));
        }
        let text = telemetry.render(None, &Peers::new(1)).unwrap();
        let series = text
            .lines()
            .filter(|line| {
                line.starts_with("friday_proxy_requests_total") && line.contains("\"ok\"")
            })
            .count();
        assert_eq!(series, RETIRED_SERIES_MAX + 1);
    }

    #[test]
    fn a_recorded_request_is_the_exemplar_of_its_bucket() {
        let telemetry = Telemetry::new().unwrap();
        let [stable, canary] =
            [Arm::Stable, Arm::Canary].map(|arm| telemetry.place("web", arm, "v2", None));
        stable.ended(Outcome::Ok, 0.003);
        canary.ended(Outcome::Ok, 0.003);
        let field = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        canary.exemplify(TraceParent::parse(field).unwrap(), 0.003);
        let text = telemetry.render_openmetrics(None, &Peers::new(1)).unwrap();
        let with_one: Vec<&str> = text.lines().filter(|line| line.contains(" # {")).collect();
        let [line] = with_one[..] else {
            panic!("expected one exemplar: {with_one:#?}");
        };
        let labels = "{arm=\"canary\",release=\"v2\",service=\"web\",le=\"0.004\"}";
        let (sample, exemplar) = line.split_once(" # ").unwrap();
        assert_eq!(sample, format!("{DURATION}_bucket{labels} 1"));
        assert!(
            exemplar.starts_with("{trace_id=\"0af7651916cd43dd8448eb211c80319c\","),
            "{line}"
        );
        // The older text has no room for it.
        let older = telemetry.render(None, &Peers::new(1)).unwrap();
        assert!(!older.contains("trace_id"), "{older}");
    }
}
