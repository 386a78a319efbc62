//! All endpoints, by what tells them apart, and the watch over them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use proxy_api::{Arm, Endpoint, InFlight, Transport};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

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
    known: Mutex<HashMap<PeerKey, Arc<Peer>>>,
}

impl Peers {
    /// None yet; so many threads may send to those to come.
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            workers,
            known: Mutex::default(),
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
        Arc::clone(peer)
    }

    /// Forgets endpoints that no table and no request holds any more.
    pub(crate) fn forget_unused(&self) {
        lock(&self.known).retain(|_, peer| Arc::strong_count(peer) > 1 || peer.in_flight() > 0);
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
        self.forget_unused();
        let now = Instant::now();
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
