//! What became of requests, in epochs, exactly as [`proxy_api::report`] describes it. Pure but for a lock: the time
//! comes in as an argument.
//!
//! A request is counted when it is routed, in the epoch of that moment, and again when it ends: with the first failure
//! of the side it was routed to, else as `Ok`. If the client goes away before the end, the upstream has not failed:
//! that is `Ok`, with the time until then, so that clients who lose patience show as latency. A request that is too
//! old to wait for ages out: with the failure it had; as `Ok` if a head below 500 has arrived (a long stream), with its
//! age as latency; otherwise as `Timeout`.
//!
//! Each worker thread counts in a shard of its own, under a lock that nobody else wants but twice a second. Routing and
//! counting are one step under that lock, together with the check that the table is still the one in force; whoever
//! changes the table or reads the counts holds all locks. So no request is counted in an epoch of another table, and
//! after a report of a new generation no request starts at an endpoint that only the old one has.

mod epoch;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use friday_traces::TraceParent;
use proxy_api::{BasisPoints, BootId, Chosen, Generation, InFlight, Outcome, Report, ReportAck};
use tokio::time::Instant;

use crate::kinds::Kind;
use crate::lock;
use crate::routes::Place;
use crate::upstream::{Lease, Peer};
use epoch::{EpochCounts, Progress, RequestId};

/// How long an epoch lasts.
pub(crate) const EPOCH_LENGTH: Duration = Duration::from_millis(500);

/// Most epochs that wait for the controller: ten minutes. Beyond it the oldest are let go, and the report says so.
pub(crate) const EPOCHS_WAITING_MAX: usize = 1_200;

/// Most epochs in one report, beside the present one: a minute. The workers stand still while it is put together.
pub(crate) const REPORT_EPOCHS_MAX: usize = 120;

/// Longest report as JSON, in bytes; only a single epoch may be longer. A sixteenth of what the controller takes, and what
/// 20 endpoints with clients of all 8 groups tell in some 60 epochs.
pub(crate) const REPORT_BYTES_MAX: usize = 4 << 20;

/// The table by which a request was about to be routed is no longer in force: choose again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stale;

/// The canary's share by route.
pub(crate) type Weights = BTreeMap<String, BasisPoints>;

/// The counts of one proxy.
#[derive(Debug)]
pub(crate) struct Signals {
    boot: BootId,
    /// How many closed epochs are kept; 0 where nobody wants reports.
    waiting_max: usize,
    /// One for each worker. All have the same epochs.
    shards: Vec<Arc<Shard>>,
    dropped: AtomicU64,
}

/// The counts of one worker.
#[derive(Debug)]
pub(crate) struct Shard {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    generation: Generation,
    weights: Arc<Weights>,
    /// The open epoch, and those that wait for the controller.
    epochs: BTreeMap<u64, EpochCounts>,
    current: u64,
}

/// A request that is about to be routed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    /// The endpoint it goes to first, or the lack of one.
    pub(crate) place: &'a Arc<Place>,
    /// The client's group.
    pub(crate) group: u8,
    /// Who chose the release.
    pub(crate) chosen: Chosen,
    /// When it is too old to wait for.
    pub(crate) age_max: Duration,
}

impl Signals {
    /// Counts at zero, in epoch 1, without a table, for so many workers. Keeps `waiting_max` epochs for the controller.
    pub(crate) fn new(boot: BootId, waiting_max: usize, workers: usize, now: Instant) -> Self {
        let shard = |_| {
            let generation = Generation::default();
            let weights = Arc::<Weights>::default();
            let first = EpochCounts::new(generation, Arc::clone(&weights), now);
            Arc::new(Shard {
                state: Mutex::new(State {
                    generation,
                    weights,
                    epochs: BTreeMap::from([(1, first)]),
                    current: 1,
                }),
            })
        };
        Self {
            boot,
            waiting_max,
            shards: (0..workers.max(1)).map(shard).collect(),
            dropped: AtomicU64::new(0),
        }
    }

    /// Where that worker counts.
    pub(crate) fn shard(&self, worker: usize) -> &Arc<Shard> {
        &self.shards[worker % self.shards.len()]
    }

    /// All locks, always taken in the same order.
    fn lock_all(&self) -> Vec<MutexGuard<'_, State>> {
        self.shards.iter().map(|shard| lock(&shard.state)).collect()
    }

    /// Closes the present epoch because it is over, and lets requests age.
    pub(crate) fn tick(&self, now: Instant) {
        let mut states = self.lock_all();
        self.close_epoch(&mut states, now);
        for state in &mut states {
            for epoch in state.epochs.values_mut() {
                epoch.age(now);
            }
        }
    }

    /// Closes the present epoch because a new table comes, and calls `swap` before any request is counted in the next.
    pub(crate) fn cut(
        &self,
        generation: Generation,
        weights: Weights,
        now: Instant,
        swap: impl FnOnce(),
    ) {
        let weights = Arc::new(weights);
        let mut states = self.lock_all();
        for state in &mut states {
            state.generation = generation;
            state.weights = Arc::clone(&weights);
        }
        self.close_epoch(&mut states, now);
        swap();
    }

    fn close_epoch(&self, states: &mut [MutexGuard<'_, State>], now: Instant) {
        let mut dropped = 0;
        for state in states {
            dropped = state.close_epoch(self.waiting_max, now);
        }
        self.dropped.fetch_add(dropped, Ordering::Relaxed);
    }

    /// The report of this moment: of the epochs from number `from` on the oldest, as many as one report may have, and the
    /// present one, whose weights are those of the table in force. With it comes where the next report is to go on, if
    /// there is more to tell. `in_flight` is asked under the lock, so that the endpoints it lists belong to the generation
    /// that the report names.
    pub(crate) fn report(
        &self,
        proxy: &str,
        from: u64,
        now: Instant,
        in_flight: impl FnOnce() -> Vec<InFlight>,
    ) -> (Report, Option<u64>) {
        let states = self.lock_all();
        let current = states[0].current;
        let epoch = |number: u64| {
            let parts: Vec<&EpochCounts> = states
                .iter()
                .filter_map(|state| state.epochs.get(&number))
                .collect();
            EpochCounts::report(number, &parts, now)
        };
        let present = epoch(current);
        let mut bytes = present.as_ref().map_or(0, epoch::json_bytes);
        let mut epochs = Vec::new();
        let mut next = None;
        for (&number, _) in states[0].epochs.range(from.min(current)..current) {
            if epochs.len() == REPORT_EPOCHS_MAX {
                next = Some(number);
                break;
            }
            let Some(epoch) = epoch(number) else {
                continue;
            };
            bytes += epoch::json_bytes(&epoch);
            if bytes > REPORT_BYTES_MAX && !epochs.is_empty() {
                next = Some(number);
                break;
            }
            epochs.push(epoch);
        }
        epochs.extend(present);
        let report = Report {
            proxy: proxy.to_owned(),
            boot: self.boot,
            generation: states[0].generation,
            epochs,
            epochs_dropped: self.dropped.load(Ordering::Relaxed),
            in_flight: in_flight(),
        };
        (report, next)
    }

    /// Lets go what the controller has: of the epochs that it was `told` as final those up to the number it names. What is
    /// left of `told` may be acknowledged later.
    pub(crate) fn acknowledge(&self, told: &mut Vec<u64>, ack: ReportAck) {
        if ack.boot != self.boot {
            return;
        }
        let mut states = self.lock_all();
        told.retain(|number| {
            let is_safe = *number <= ack.acknowledged;
            if is_safe {
                for state in &mut states {
                    state.epochs.remove(number);
                }
            }
            !is_safe
        });
    }
}

impl State {
    /// Closes the present epoch and opens the next; how many of the oldest were let go for it.
    fn close_epoch(&mut self, waiting_max: usize, now: Instant) -> u64 {
        if let Some(epoch) = self.epochs.get_mut(&self.current) {
            epoch.lasted = Some(now.saturating_duration_since(epoch.began));
            epoch.index = HashMap::new();
            if epoch.unfinished == 0 {
                epoch.requests = Vec::new();
                epoch.free = Vec::new();
            }
        }
        self.current += 1;
        let next = EpochCounts::new(self.generation, Arc::clone(&self.weights), now);
        self.epochs.insert(self.current, next);
        let mut dropped = 0;
        while self.epochs.len() > waiting_max + 1 {
            self.epochs.pop_first();
            dropped += 1;
        }
        dropped
    }
}

impl Shard {
    /// Counts a request in: at its endpoint, and in the present epoch.
    ///
    /// # Errors
    /// The table of `generation` is no longer in force; nothing was counted.
    pub(crate) fn begin(
        self: &Arc<Self>,
        generation: Generation,
        request: Request<'_>,
        peer: Option<&Arc<Peer>>,
        now: Instant,
    ) -> Result<(Ticket, Option<Lease>), Stale> {
        let mut state = lock(&self.state);
        if state.generation != generation {
            return Err(Stale);
        }
        let epoch = state.current;
        let number = match state.epochs.get_mut(&epoch) {
            Some(counts) => counts.begin(request, now),
            // The open epoch is always there; without it the request would just not be counted.
            None => RequestId {
                place: usize::MAX,
                serial: 0,
            },
        };
        let lease = peer.map(Peer::lease);
        drop(state);
        let ticket = Ticket {
            shard: Arc::clone(self),
            place: Arc::clone(request.place),
            epoch,
            request: number,
            routed: now,
            failed: None,
            failed_to_user: false,
            kind: None,
            traced: None,
        };
        Ok((ticket, lease))
    }

    /// Counts a request in at another endpoint, for another attempt.
    ///
    /// # Errors
    /// The table of `generation` is no longer in force; nothing was counted.
    pub(crate) fn enter(&self, generation: Generation, peer: &Arc<Peer>) -> Result<Lease, Stale> {
        let state = lock(&self.state);
        if state.generation == generation {
            Ok(peer.lease())
        } else {
            Err(Stale)
        }
    }

    fn with_epoch(&self, number: u64, change: impl FnOnce(&mut EpochCounts)) {
        if let Some(epoch) = lock(&self.state).epochs.get_mut(&number) {
            change(epoch);
        }
    }
}

/// A request that was counted in. Dropped, it is counted out.
#[derive(Debug)]
pub(crate) struct Ticket {
    shard: Arc<Shard>,
    place: Arc<Place>,
    epoch: u64,
    request: RequestId,
    routed: Instant,
    /// The first failure of the side it was routed to.
    failed: Option<Outcome>,
    failed_to_user: bool,
    /// Of what kind the answer is, once its head has come, where the route asks.
    kind: Option<Kind>,
    /// Where it is to be found, if its trace is recorded. Boxed: hardly a request has any.
    traced: Option<Box<TraceParent>>,
}

impl Ticket {
    /// Where it was routed to.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// The head of an answer below 500 has arrived from the side it was routed to.
    pub(crate) fn answered(&mut self) {
        self.note(Progress::Answered);
    }

    /// The answer from the side it was routed to is of this kind.
    pub(crate) fn of_kind(&mut self, kind: Kind) {
        self.kind = Some(kind);
    }

    /// It is recorded there.
    pub(crate) fn traced(&mut self, at: TraceParent) {
        self.traced = Some(Box::new(at));
    }

    /// An attempt at the side it was routed to failed. The first failure counts.
    pub(crate) fn failed(&mut self, outcome: Outcome) {
        if self.failed.is_none() {
            self.failed = Some(outcome);
            self.note(Progress::Failed(outcome));
        }
    }

    /// The user's answer was 500 or above, or broke off.
    pub(crate) fn failed_to_user(&mut self) {
        self.failed_to_user = true;
    }

    fn note(&self, progress: Progress) {
        self.shard.with_epoch(self.epoch, |epoch| {
            if let Some(pending) = epoch.pending(self.request)
                && matches!(pending.progress, Progress::Waiting | Progress::Answered)
            {
                pending.progress = progress;
            }
        });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let now = Instant::now();
        let outcome = self.failed.unwrap_or(Outcome::Ok);
        let lasted = now.saturating_duration_since(self.routed);
        let seconds = lasted.as_secs_f64();
        self.place.metrics.ended(outcome, seconds);
        if let Some(at) = self.traced.take() {
            self.place.metrics.exemplify(*at, seconds);
        }
        self.shard.with_epoch(self.epoch, |epoch| {
            epoch.end(self.request, outcome, self.failed_to_user, self.kind, now);
        });
    }
}

#[cfg(test)]
mod tests;
