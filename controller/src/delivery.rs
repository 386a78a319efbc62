//! What releases bring and cost, counted for Prometheus: how many began and how they ended, how long a promotion took, how
//! soon a bad release was found out and gone, how many requests it had by then; and every request by node.
//!
//! These are counters: unlike states they cannot be read from what is there when somebody asks. They begin anew with the
//! controller, which Prometheus' `rate` and `increase` allow for. A rollout that the controller found under way at its start
//! is counted with its ending; its times and requests are not, since a part of them is not known.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::proto::MetricFamily;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};
use rollout::rollout::Retreat;
use rollout::signals::bucket_edge_us;
use rollout::{Block, Cause, Duration, Ending, Phase, Rollout, RolloutId, Weight};

/// Label sets of requests that are shown at once, the latest used ones: 500 nodes with both arms, and one release back. Each is
/// 20 lines of text.
pub const SERIES_MAX: usize = 2_000;

/// Upper edges of the buckets of latency, in seconds. Each is twice the last, as the proxies' own are; finer ones are the judge's.
const LATENCY_BUCKETS: [f64; 16] = [
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096,
    8.192, 16.384, 32.768,
];

/// Upper edges for what people wait for, in seconds: from the demo's minute to a rollout of a day.
const LEAD_BUCKETS: [f64; 11] = [
    60.0, 120.0, 300.0, 600.0, 1_200.0, 1_800.0, 3_600.0, 7_200.0, 14_400.0, 43_200.0, 86_400.0,
];

/// Upper edges for what should be a matter of seconds.
const REACTION_BUCKETS: [f64; 12] = [
    0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0,
];

/// Upper edges for requests, each ten times the last.
const REQUEST_BUCKETS: [f64; 8] = [0.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7];

/// Every ending, by its name in labels.
const OUTCOMES: [&str; 6] = [
    "promoted",
    "rolled_back",
    "aborted",
    "superseded",
    "insufficient_evidence",
    "not_ready",
];

/// The name of an ending in labels: that of the API.
#[must_use]
pub fn outcome(ending: Ending) -> &'static str {
    match ending {
        Ending::Promoted => "promoted",
        Ending::RolledBack => "rolled_back",
        Ending::Aborted => "aborted",
        Ending::Superseded => "superseded",
        Ending::InsufficientEvidence => "insufficient_evidence",
        Ending::NotReady => "not_ready",
    }
}

/// What is remembered of a rollout until it ends.
#[derive(Debug, Default)]
struct Trail {
    /// When the canary first had a weight.
    shared: Option<Duration>,
    /// When it was decided to go back.
    turned: Option<Duration>,
    /// Whether no proxy sends it requests any more.
    has_left: bool,
    requests: u64,
    bad: u64,
}

/// Whose requests are counted.
#[derive(Debug, Clone, Copy)]
pub struct Served<'a> {
    /// The service.
    pub service: &'a str,
    /// Where, as the rollout's author named it.
    pub environment: &'a str,
    /// The release of the stable group.
    pub stable: &'a str,
    /// The release on trial; nothing of the canary is counted without.
    pub canary: Option<&'a str>,
}

/// What labels one node's requests: service, environment, arm, release, node.
type Place = [String; 5];

#[derive(Debug, Default)]
struct Memory {
    open: HashMap<RolloutId, Trail>,
    /// When each label set was last used, in calls.
    places: HashMap<Place, u64>,
    calls: u64,
}

/// All of these counters.
#[derive(Debug)]
pub struct Delivery {
    registry: Registry,
    started: IntCounterVec,
    ended: IntCounterVec,
    lead: HistogramVec,
    detection: HistogramVec,
    restore: HistogramVec,
    exposed: HistogramVec,
    exposed_bad: IntCounterVec,
    requests: IntCounterVec,
    latency: HistogramVec,
    memory: Mutex<Memory>,
}

const VALID: &str = "names and labels are constants that Prometheus accepts";

impl Delivery {
    /// Counters at zero.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let vec = IntCounterVec::new(Opts::new(name, help), labels).expect(VALID);
            registry.register(Box::new(vec.clone())).expect(VALID);
            vec
        };
        let histogram = |name: &str, help: &str, labels: &[&str], buckets: &[f64]| {
            let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            let vec = HistogramVec::new(opts, labels).expect(VALID);
            registry.register(Box::new(vec.clone())).expect(VALID);
            vec
        };
        let by = ["service", "environment"];
        let place = ["service", "environment", "arm", "release", "node"];
        Arc::new(Self {
            started: counter("friday_rollouts_started_total", "Rollouts that began.", &by),
            ended: counter(
                "friday_rollouts_ended_total",
                "Rollouts that ended, by how.",
                &["service", "environment", "outcome"],
            ),
            lead: histogram(
                "friday_rollout_lead_time_seconds",
                "Time from the order to release to the release's being the stable one, of rollouts that were promoted.",
                &by,
                &LEAD_BUCKETS,
            ),
            detection: histogram(
                "friday_rollout_detection_seconds",
                "Time from the canary's first weight to the decision to roll it back, where evidence decided.",
                &by,
                &REACTION_BUCKETS,
            ),
            restore: histogram(
                "friday_rollout_restore_seconds",
                "Time from the decision to go back to the moment when every living proxy sends all requests to stable.",
                &by,
                &REACTION_BUCKETS,
            ),
            exposed: histogram(
                "friday_rollout_exposed_requests",
                "Requests that the canary of one rollout had, by how it ended.",
                &["service", "environment", "outcome"],
                &REQUEST_BUCKETS,
            ),
            exposed_bad: counter(
                "friday_rollout_exposed_bad_requests_total",
                "Of these, the bad ones: what users saw of them is less where the shield replays on stable.",
                &["service", "environment", "outcome"],
            ),
            requests: counter(
                "friday_requests_total",
                "Requests that ended, by side and node, as the proxies reported them; good or bad.",
                &[
                    "service",
                    "environment",
                    "arm",
                    "release",
                    "node",
                    "outcome",
                ],
            ),
            latency: histogram(
                "friday_request_duration_seconds",
                "Time from routing to the end of the answer, of good requests, by side and node.",
                &place,
                &LATENCY_BUCKETS,
            ),
            registry,
            memory: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every counter.
    #[must_use]
    pub fn gather(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }

    /// Shows the counters of a service and environment from now on, at zero: a counter that is first seen at 1 has grown by
    /// nothing, as Prometheus reads it.
    pub fn show(&self, rollout: &Rollout) {
        let by = [rollout.service.as_str(), rollout.environment.as_str()];
        self.started.with_label_values(&by);
        self.lead.with_label_values(&by);
        self.detection.with_label_values(&by);
        self.restore.with_label_values(&by);
        for outcome in OUTCOMES {
            let labels = [by[0], by[1], outcome];
            self.ended.with_label_values(&labels);
            self.exposed.with_label_values(&labels);
            self.exposed_bad.with_label_values(&labels);
        }
    }

    /// A rollout begins.
    pub fn began(&self, rollout: &Rollout) {
        self.show(rollout);
        let by = [rollout.service.as_str(), rollout.environment.as_str()];
        self.started.with_label_values(&by).inc();
        self.lock()
            .open
            .insert(rollout.id.clone(), Trail::default());
    }

    /// A rollout is at `after` now, and was at `before`.
    pub fn moved(&self, before: &Rollout, after: &Rollout, now: Duration) {
        let by = [after.service.as_str(), after.environment.as_str()];
        let mut memory = self.lock();
        if let Some(trail) = memory.open.get_mut(&after.id) {
            if trail.shared.is_none() && after.desired().weight > Weight::ZERO {
                trail.shared = Some(now);
            }
            if let (Some(cause), None) = (after.cause(), trail.turned) {
                trail.turned = Some(now);
                if let (Cause::Evidence { .. }, Some(shared)) = (cause, trail.shared) {
                    let took = now.saturating_sub(shared).as_secs_f64();
                    self.detection.with_label_values(&by).observe(took);
                }
            }
            if let (Some(turned), Some(_), false) = (trail.turned, trail.shared, trail.has_left)
                && has_left(&after.phase)
            {
                trail.has_left = true;
                let took = now.saturating_sub(turned).as_secs_f64();
                self.restore.with_label_values(&by).observe(took);
            }
        }
        let (None, Some(ending)) = (before.ending(), after.ending()) else {
            return;
        };
        let trail = memory.open.remove(&after.id);
        drop(memory);
        let labels = [by[0], by[1], outcome(ending)];
        self.ended.with_label_values(&labels).inc();
        if let Some(trail) = trail {
            self.exposed
                .with_label_values(&labels)
                .observe(as_f64(trail.requests));
            self.exposed_bad
                .with_label_values(&labels)
                .inc_by(trail.bad);
        }
        if ending == Ending::Promoted {
            // By the clock of day, as people wait: a rollout outlives its controller.
            let took = after.moved.duration_since(after.created).as_secs_f64();
            self.lead.with_label_values(&by).observe(took.max(0.0));
        }
    }

    /// Requests of a block, its cells by node; those of the canary belong to the rollout that runs.
    pub fn served(&self, whose: Served<'_>, running: Option<&RolloutId>, block: &Block) {
        let mut memory = self.lock();
        if let Some(trail) = running.and_then(|id| memory.open.get_mut(id)) {
            trail.requests += block.canary.iter().map(|cell| cell.requests).sum::<u64>();
            trail.bad += block.canary.iter().map(|cell| cell.bad).sum::<u64>();
        }
        let sides = [
            ("stable", Some(whose.stable), &block.stable),
            ("canary", whose.canary, &block.canary),
        ];
        for (arm, release, cells) in sides {
            let Some(release) = release else { continue };
            for cell in cells {
                let labels = [
                    whose.service,
                    whose.environment,
                    arm,
                    release,
                    cell.node.as_str(),
                ];
                memory.calls += 1;
                let now = memory.calls;
                memory.places.insert(labels.map(str::to_owned), now);
                let good = cell.requests.saturating_sub(cell.bad);
                for (outcome, count) in [("good", good), ("bad", cell.bad)] {
                    let [service, environment, arm, release, node] = labels;
                    let labels = [service, environment, arm, release, node, outcome];
                    self.requests.with_label_values(&labels).inc_by(count);
                }
                let latency = self.latency.with_label_values(&labels);
                for (bucket, count) in cell.latency.iter() {
                    // Where the bucket of the judge ends: it never shows a request as quicker than it was.
                    let seconds = bucket_edge_us(bucket + 1) / 1e6;
                    for _ in 0..count {
                        latency.observe(seconds);
                    }
                }
            }
        }
        self.forget(&mut memory);
    }

    /// Lets the label sets go that were not used for longest, where there are too many.
    fn forget(&self, memory: &mut Memory) {
        if memory.places.len() <= SERIES_MAX {
            return;
        }
        let mut by_use: Vec<(u64, Place)> = memory
            .places
            .iter()
            .map(|(place, used)| (*used, place.clone()))
            .collect();
        by_use.sort_unstable();
        // A tenth at once, so that this is seldom.
        let surplus = by_use.len() - SERIES_MAX + SERIES_MAX / 10;
        for (_, place) in by_use.into_iter().take(surplus) {
            memory.places.remove(&place);
            let [service, environment, arm, release, node] = place.each_ref().map(String::as_str);
            for outcome in ["good", "bad"] {
                let labels = [service, environment, arm, release, node, outcome];
                // An error only says that it is gone already.
                drop(self.requests.remove_label_values(&labels));
            }
            let labels = [service, environment, arm, release, node];
            drop(self.latency.remove_label_values(&labels));
        }
    }
}

/// Whether every living proxy sends everything to stable again.
fn has_left(phase: &Phase) -> bool {
    match phase {
        Phase::RollingBack { stage, .. } => match stage {
            Retreat::Removing => true,
            Retreat::Regaining { .. }
            | Retreat::Yielding { .. }
            | Retreat::Restoring { .. }
            | Retreat::Leaving => false,
        },
        Phase::RolledBack { .. } => true,
        Phase::Deploying { .. }
        | Phase::Analyzing { .. }
        | Phase::Gated { .. }
        | Phase::Baking { .. }
        | Phase::Warm { .. }
        | Phase::Paused { .. }
        | Phase::Promoting { .. }
        | Phase::Promoted => false,
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "for display; counts below 2^53 are exact"
)]
fn as_f64(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests;
