//! All endpoints, by what tells them apart, and the watch over them.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use proxy_api::{Arm, Endpoint, InFlight, Transport};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Dial, PROBE_INTERVAL, PROBES_MAX, Peer};
use crate::lock;

/// What tells one endpoint of the proxy from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PeerKey {
    pub(crate) route: Arc<str>,
    pub(crate) arm: Arm,
    pub(crate) release: Arc<str>,
    pub(crate) address: Endpoint,
    /// Behind them, so that the order of endpoints is by what people see.
    pub(crate) transport: Transport,
    /// [`Dial::files`]: with a new certificate it is another endpoint, and connections are made anew.
    pub(crate) files: u64,
}

/// All endpoints: those of the table, and those of earlier tables that still have requests. So load, health and
/// connections outlive a change of the table.
#[derive(Debug)]
pub(crate) struct Peers {
    workers: usize,
    /// How long what is in flight may take at an endpoint that left the table; `None`: as long as it takes.
    leaving_max: Option<Duration>,
    known: Mutex<HashMap<PeerKey, Arc<Peer>>>,
}

impl Peers {
    /// None yet; so many threads may send to those to come.
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            workers,
            leaving_max: None,
            known: Mutex::default(),
        }
    }

    /// The same with a limit for what is in flight at an endpoint that left the table.
    pub(crate) fn leaving_within(self, leaving_max: Option<Duration>) -> Self {
        Self {
            leaving_max,
            ..self
        }
    }

    /// How many threads send to them.
    pub(crate) fn workers(&self) -> usize {
        self.workers
    }

    /// The endpoint of that key, new if it is not known.
    pub(crate) fn get(&self, key: PeerKey, dial: &Dial) -> Arc<Peer> {
        let mut known = lock(&self.known);
        let peer = known.entry(key).or_insert_with_key(|key| {
            let peer = Peer::new(key.address.clone(), dial.clone(), self.workers);
            Arc::new(peer)
        });
        // If it comes back its time is not over, for the very first request.
        peer.stays();
        Arc::clone(peer)
    }

    /// Takes note of the endpoints of the table in force, by route, release and address: on which side of a route an endpoint
    /// is, and how it is spoken to, does not matter to the requests that it has.
    pub(crate) fn in_force(&self, places: &HashSet<(&str, &str, &Endpoint)>, now: Instant) {
        for (key, peer) in &*lock(&self.known) {
            if places.contains(&(&*key.route, &*key.release, &key.address)) {
                peer.stays();
            } else {
                peer.leaves(now);
            }
        }
    }

    /// Ends what is still in flight at endpoints that left the table too long ago, and says so.
    fn end_leaving(&self, now: Instant) {
        let Some(leaving_max) = self.leaving_max else {
            return;
        };
        for (key, peer) in &*lock(&self.known) {
            let requests = peer.in_flight();
            if peer.ends(now, leaving_max) && requests > 0 {
                warn!(
                    service = %key.route,
                    release = %key.release,
                    endpoint = %key.address,
                    requests,
                    leaving_seconds = leaving_max.as_secs(),
                    "an endpoint left the table, and its limit is over: cutting what is left"
                );
            }
        }
    }

    /// Says what broke off at endpoints that had left the table, since the last time.
    fn tell_broken_off(&self) {
        for (key, peer) in &*lock(&self.known) {
            let requests = peer.broken_off.swap(0, Ordering::Relaxed);
            if requests > 0 {
                warn!(
                    service = %key.route,
                    release = %key.release,
                    endpoint = %key.address,
                    requests,
                    "an endpoint that left the table broke off what it still had to do: its task was ended before"
                );
            }
        }
    }

    /// Forgets endpoints that no table and no request holds any more, and of which nothing is left to be told.
    pub(crate) fn forget_unused(&self) {
        lock(&self.known).retain(|_, peer| {
            let is_told = peer.broken_off.load(Ordering::Relaxed) == 0;
            Arc::strong_count(peer) > 1 || peer.in_flight() > 0 || !is_told
        });
    }

    /// Each endpoint with requests in flight.
    pub(crate) fn in_flight(&self) -> Vec<(PeerKey, u32)> {
        lock(&self.known)
            .iter()
            .map(|(key, peer)| (key.clone(), peer.in_flight()))
            .filter(|(_, requests)| *requests > 0)
            .collect()
    }

    /// The same as it stands in a report, in a fixed order.
    pub(crate) fn in_flight_report(&self) -> Vec<InFlight> {
        let mut busy = self.in_flight();
        busy.sort_unstable();
        let mut report: Vec<InFlight> = Vec::with_capacity(busy.len());
        for (key, requests) in busy {
            let same = report.iter_mut().find(|known| {
                *known.route == *key.route
                    && *known.release == *key.release
                    && known.endpoint == key.address
            });
            match same {
                Some(known) => known.requests += requests,
                None => report.push(InFlight {
                    route: key.route.to_string(),
                    release: key.release.to_string(),
                    endpoint: key.address,
                    requests,
                }),
            }
        }
        report
    }

    /// Looks again and again at endpoints that took no connection, and closes connections that idle too long, until
    /// `stop`.
    pub(crate) async fn keep_watch(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = interval(PROBE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop
            .run_until_cancelled(async {
                ticks.tick().await;
                self.watch_once().await;
            })
            .await
            .is_some()
        {}
        for peer in lock(&self.known).values() {
            peer.close_idle();
        }
    }

    async fn watch_once(&self) {
        self.tell_broken_off();
        self.forget_unused();
        let now = Instant::now();
        self.end_leaving(now);
        let mut sick = Vec::new();
        for peer in lock(&self.known).values() {
            peer.close_old_connections(now);
            if !peer.is_avoided(now) && !peer.is_healthy() {
                sick.push(Arc::clone(peer));
            }
        }
        futures::stream::iter(sick)
            .for_each_concurrent(PROBES_MAX, |peer| async move {
                peer.probe().await;
            })
            .await;
    }
}
