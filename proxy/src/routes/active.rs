//! A route of the table in force: its sides and endpoints, what it may have in flight, and what the weight did.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use proxy_api::{Arm, Chosen, Route};

use crate::kinds::Kinds;
use crate::pick;
use crate::telemetry::{PlaceMetrics, RouteMetrics};
use crate::upstream::Peer;

/// The least age at which a request is counted as too old to wait for.
const AGE_MIN: Duration = Duration::from_secs(10);

/// What a route's requests use together, whatever its table.
#[derive(Debug)]
pub(crate) struct RouteLoad {
    pub(super) in_flight: AtomicU32,
    /// What each worker's requests have saved for second attempts, in requests.
    pub(super) budgets: Box<[AtomicU32]>,
}

/// A second attempt costs what so many requests save: when every request fails, at most a fifth more is sent.
pub(super) const RETRY_COST: u32 = 5;

/// Most that is saved, for a hundred second attempts: when a task dies, all it was working on may go elsewhere.
pub(super) const SAVED_MAX: u32 = 100 * RETRY_COST;

impl RouteLoad {
    pub(super) fn new(workers: usize) -> Self {
        let budget = |_| AtomicU32::new(SAVED_MAX);
        Self {
            in_flight: AtomicU32::new(0),
            budgets: (0..workers.max(1)).map(budget).collect(),
        }
    }

    pub(super) fn budget(&self, worker: usize) -> &AtomicU32 {
        &self.budgets[worker % self.budgets.len()]
    }
}

/// A place among the requests in flight to a route, with the route.
#[derive(Debug)]
pub(crate) struct Admitted(Arc<ActiveRoute>);

impl Admitted {
    /// The route, by the table of the moment it let the request in.
    pub(crate) fn route(&self) -> &Arc<ActiveRoute> {
        &self.0
    }

    /// The same place by another table, where that still has the route's counts.
    pub(crate) fn by(self, route: &Arc<ActiveRoute>) -> Self {
        if Arc::ptr_eq(&self.0, route) {
            return self;
        }
        route.load.in_flight.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(route))
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.load.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What the weight did to requests since its table came into force.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(super) all: AtomicU64,
    pub(super) canary: AtomicU64,
}

impl Seen {
    /// Counts a routed request, if the weight chose its side.
    pub(crate) fn count(&self, arm: Arm, chosen: Chosen) {
        if chosen == Chosen::Weight {
            self.all.fetch_add(1, Ordering::Relaxed);
            if arm == Arm::Canary {
                self.canary.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// The canary's share; `None` before the first request.
    pub(crate) fn ratio(&self) -> Option<f64> {
        let all = self.all.load(Ordering::Relaxed);
        // Exact below 2^53 requests.
        (all > 0).then(|| self.canary.load(Ordering::Relaxed) as f64 / all as f64)
    }
}

/// Where requests are counted: one endpoint, or the lack of one, on one side of one route.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) route: Arc<str>,
    pub(crate) arm: Arm,
    pub(crate) release: Arc<str>,
    pub(crate) endpoint: Option<proxy_api::Endpoint>,
    /// Those of its route.
    pub(crate) kinds: Arc<Kinds>,
    pub(crate) metrics: PlaceMetrics,
}

/// An endpoint of a side.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) peer: Arc<Peer>,
    pub(crate) place: Arc<Place>,
}

/// One release of a route and where it runs.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) arm: Arm,
    pub(crate) release: Arc<str>,
    pub(crate) targets: Vec<Target>,
    /// Where requests are counted that find no endpoint.
    pub(crate) nowhere: Arc<Place>,
}

impl Side {
    /// One of its endpoints, if possible not `avoid`.
    pub(crate) fn choose(&self, avoid: Option<&proxy_api::Endpoint>) -> Option<&Target> {
        let avoid = avoid.and_then(|address| {
            self.targets
                .iter()
                .position(|target| target.peer.address() == address)
        });
        let index = pick::endpoint(
            self.targets.len(),
            |index| self.targets[index].peer.is_healthy(),
            |index| self.targets[index].peer.in_flight(),
            avoid,
            rand::random(),
        )?;
        self.targets.get(index)
    }

    /// Whether it has an endpoint other than `address`.
    pub(crate) fn has_other(&self, address: &proxy_api::Endpoint) -> bool {
        self.targets
            .iter()
            .any(|target| target.peer.address() != address)
    }
}

/// One route of the table in force.
#[derive(Debug)]
pub(crate) struct ActiveRoute {
    pub(crate) name: Arc<str>,
    pub(crate) spec: Route,
    pub(crate) stable: Side,
    pub(crate) canary: Option<Side>,
    pub(crate) seen: Seen,
    pub(crate) metrics: RouteMetrics,
    /// Of the sticky hash.
    pub(crate) seed: u64,
    pub(super) load: Arc<RouteLoad>,
}

impl ActiveRoute {
    /// The side of that arm; stable where there is no canary.
    pub(crate) fn side(&self, arm: Arm) -> &Side {
        match (arm, &self.canary) {
            (Arm::Canary, Some(canary)) => canary,
            (Arm::Canary | Arm::Stable, _) => &self.stable,
        }
    }

    /// Stable, and the canary if there is one.
    pub(crate) fn sides(&self) -> impl Iterator<Item = &Side> {
        std::iter::once(&self.stable).chain(&self.canary)
    }

    /// Lets one more request in, if the route may have it.
    pub(crate) fn admit(self: &Arc<Self>, worker: usize) -> Option<Admitted> {
        // Only its own worker writes, so nothing is lost between the two.
        let budget = self.load.budget(worker);
        let saved = budget.load(Ordering::Relaxed);
        if saved < SAVED_MAX {
            budget.store(saved + 1, Ordering::Relaxed);
        }
        let before = self.load.in_flight.fetch_add(1, Ordering::AcqRel);
        let admitted = Admitted(Arc::clone(self));
        (before < self.spec.limits.in_flight_max).then_some(admitted)
    }

    /// Whether requests have saved enough for a second attempt; takes it away.
    pub(crate) fn may_retry(&self, worker: usize) -> bool {
        let budget = self.load.budget(worker);
        let saved = budget.load(Ordering::Relaxed);
        let rest = saved.checked_sub(RETRY_COST);
        if let Some(rest) = rest {
            budget.store(rest, Ordering::Relaxed);
        }
        rest.is_some()
    }

    /// How long a request is waited for in its epoch: as long as it can take to connect and to answer.
    pub(crate) fn age_max(&self) -> Duration {
        (self.connect_wait_max() + self.response_wait_max()).max(AGE_MIN)
    }

    /// The longest wait for a connection.
    pub(crate) fn connect_wait_max(&self) -> Duration {
        Duration::from_millis(self.spec.timeouts.connect_ms)
    }

    /// The longest wait for the head of an answer.
    pub(crate) fn response_wait_max(&self) -> Duration {
        Duration::from_millis(self.spec.timeouts.response_ms)
    }
}
