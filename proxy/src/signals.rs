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

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use proxy_api::{
    BasisPoints, BootId, Cell, Chosen, Epoch, Generation, InFlight, Outcome, Report, ReportAck,
    latency_bucket,
};
use tokio::time::Instant;

use crate::kinds::Kind;
use crate::lock;
use crate::routes::Place;
use crate::upstream::{Lease, Peer};

/// How long an epoch lasts.
pub(crate) const EPOCH_LENGTH: Duration = Duration::from_millis(500);

/// Most epochs that wait for the controller: ten minutes. Beyond it the oldest are let go, and the report says so.
pub(crate) const EPOCHS_WAITING_MAX: usize = 1_200;

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

#[derive(Debug)]
struct EpochCounts {
    generation: Generation,
    weights: Arc<Weights>,
    began: Instant,
    /// Set when it is closed.
    lasted: Option<Duration>,
    cells: Vec<CellCounts>,
    index: HashMap<CellKey, usize>,
    /// Its requests that have no end yet, by [`Ticket::request`], with gaps.
    requests: Vec<Pending>,
    /// Places among them that are free again.
    free: Vec<usize>,
    /// When the first of them may be too old.
    too_old: Option<Instant>,
    unfinished: u32,
    /// Of the last request; wraps.
    serial: u32,
}

/// Place by its address in memory: it is one and the same as long as its table is in force, and so for a whole epoch.
#[derive(Debug, PartialEq, Eq, Hash)]
struct CellKey {
    place: usize,
    group: u8,
    chosen: Chosen,
}

#[derive(Debug)]
struct CellCounts {
    place: Arc<Place>,
    group: u8,
    chosen: Chosen,
    requests: u32,
    unfinished: u32,
    outcomes: [u32; 5],
    failed_to_user: u32,
    latency: BTreeMap<u16, u32>,
    /// Few, and none where the route does not ask.
    kinds: Vec<(Kind, u32)>,
}

/// What tells a request of an epoch from all others of it, also from one that had its place before.
#[derive(Debug, Clone, Copy)]
struct RequestId {
    place: usize,
    serial: u32,
}

#[derive(Debug)]
struct Pending {
    serial: u32,
    cell: usize,
    routed: Instant,
    too_old: Instant,
    progress: Progress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Waiting,
    /// The head of an answer below 500 is there.
    Answered,
    Failed(Outcome),
    Ended,
}

impl EpochCounts {
    fn new(generation: Generation, weights: Arc<Weights>, began: Instant) -> Self {
        Self {
            generation,
            weights,
            began,
            lasted: None,
            cells: Vec::new(),
            index: HashMap::new(),
            requests: Vec::new(),
            free: Vec::new(),
            too_old: None,
            unfinished: 0,
            serial: 0,
        }
    }

    fn is_final(&self) -> bool {
        self.lasted.is_some() && self.unfinished == 0
    }

    fn begin(&mut self, key: Request<'_>, now: Instant) -> RequestId {
        let cell_key = CellKey {
            place: Arc::as_ptr(key.place) as usize,
            group: key.group,
            chosen: key.chosen,
        };
        let cells = &mut self.cells;
        let cell = *self.index.entry(cell_key).or_insert_with(|| {
            cells.push(CellCounts {
                place: Arc::clone(key.place),
                group: key.group,
                chosen: key.chosen,
                requests: 0,
                unfinished: 0,
                outcomes: [0; 5],
                failed_to_user: 0,
                latency: BTreeMap::new(),
                kinds: Vec::new(),
            });
            cells.len() - 1
        });
        cells[cell].requests += 1;
        cells[cell].unfinished += 1;
        self.unfinished += 1;
        let too_old = now + key.age_max;
        self.too_old = Some(self.too_old.map_or(too_old, |first| first.min(too_old)));
        self.serial = self.serial.wrapping_add(1);
        let pending = Pending {
            serial: self.serial,
            cell,
            routed: now,
            too_old,
            progress: Progress::Waiting,
        };
        let place = match self.free.pop() {
            Some(place) => {
                self.requests[place] = pending;
                place
            }
            None => {
                self.requests.push(pending);
                self.requests.len() - 1
            }
        };
        RequestId {
            place,
            serial: self.serial,
        }
    }

    /// A request that has not ended yet.
    fn pending(&mut self, id: RequestId) -> Option<&mut Pending> {
        let pending = self.requests.get_mut(id.place)?;
        let is_same = pending.serial == id.serial && pending.progress != Progress::Ended;
        is_same.then_some(pending)
    }

    /// Ends a request that has not ended yet.
    fn end(
        &mut self,
        request: RequestId,
        outcome: Outcome,
        failed_to_user: bool,
        kind: Option<Kind>,
        now: Instant,
    ) {
        let Some(pending) = self.pending(request) else {
            return;
        };
        pending.progress = Progress::Ended;
        let (cell, routed) = (pending.cell, pending.routed);
        self.free.push(request.place);
        let cell = &mut self.cells[cell];
        cell.unfinished -= 1;
        cell.outcomes[outcome as usize] += 1;
        cell.failed_to_user += u32::from(failed_to_user);
        if outcome == Outcome::Ok {
            let bucket = latency_bucket(micros(now.saturating_duration_since(routed)));
            *cell.latency.entry(bucket).or_default() += 1;
            if let Some(kind) = kind {
                cell.count_kind(kind);
            }
        }
        self.unfinished -= 1;
        if self.is_final() {
            self.requests = Vec::new();
            self.free = Vec::new();
        }
    }

    fn age(&mut self, now: Instant) {
        if self.is_final() || self.too_old.is_none_or(|first| first > now) {
            return;
        }
        self.too_old = None;
        for place in 0..self.requests.len() {
            let Some(pending) = self.requests.get(place) else {
                return;
            };
            let request = RequestId {
                place,
                serial: pending.serial,
            };
            if pending.too_old > now {
                if pending.progress != Progress::Ended {
                    let first = self.too_old.unwrap_or(pending.too_old);
                    self.too_old = Some(first.min(pending.too_old));
                }
                continue;
            }
            let outcome = match pending.progress {
                Progress::Waiting => Outcome::Timeout,
                Progress::Answered => Outcome::Ok,
                Progress::Failed(outcome) => outcome,
                Progress::Ended => continue,
            };
            self.end(request, outcome, false, None, now);
        }
    }

    /// One epoch of the report, from its parts in all shards.
    fn report(number: u64, parts: &[&Self], now: Instant) -> Option<Epoch> {
        let first = parts.first()?;
        let lasted = first
            .lasted
            .unwrap_or_else(|| now.saturating_duration_since(first.began));
        let mut cells: Vec<Cell> = Vec::new();
        let mut index: HashMap<CellKey, usize> = HashMap::new();
        for part in parts.iter().flat_map(|part| &part.cells) {
            match index.get(&part.key()) {
                Some(&same) => part.add_to(&mut cells[same]),
                None => {
                    index.insert(part.key(), cells.len());
                    cells.push(part.report());
                }
            }
        }
        Some(Epoch {
            number,
            generation: first.generation,
            weights: BTreeMap::clone(&first.weights),
            duration_ms: u32::try_from(lasted.as_millis()).unwrap_or(u32::MAX),
            is_final: parts.iter().all(|part| part.is_final()),
            cells,
        })
    }
}

impl CellCounts {
    fn key(&self) -> CellKey {
        CellKey {
            place: Arc::as_ptr(&self.place) as usize,
            group: self.group,
            chosen: self.chosen,
        }
    }

    fn count_kind(&mut self, kind: Kind) {
        match self.kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => self.kinds.push((kind, 1)),
        }
    }

    /// The kinds by name.
    fn named_kinds(&self) -> impl Iterator<Item = (String, u32)> {
        let name = |kind| self.place.kinds.name(kind).to_owned();
        self.kinds
            .iter()
            .map(move |(kind, count)| (name(*kind), *count))
    }

    /// Adds what another worker counted in the same cell.
    fn add_to(&self, cell: &mut Cell) {
        cell.requests += self.requests;
        cell.unfinished += self.unfinished;
        cell.failed_to_user += self.failed_to_user;
        for (sum, count) in cell.outcomes.iter_mut().zip(self.outcomes) {
            *sum += count;
        }
        let mut latency: BTreeMap<u16, u32> = cell.latency.iter().copied().collect();
        for (&bucket, &count) in &self.latency {
            *latency.entry(bucket).or_default() += count;
        }
        cell.latency = latency.into_iter().collect();
        for (kind, count) in self.named_kinds() {
            *cell.kinds.entry(kind).or_default() += count;
        }
    }

    fn report(&self) -> Cell {
        Cell {
            route: self.place.route.to_string(),
            arm: self.place.arm,
            release: self.place.release.to_string(),
            endpoint: self.place.endpoint.clone(),
            group: self.group,
            chosen: self.chosen,
            requests: self.requests,
            unfinished: self.unfinished,
            outcomes: self.outcomes,
            failed_to_user: self.failed_to_user,
            latency: self.latency.iter().map(|(&b, &n)| (b, n)).collect(),
            kinds: self.named_kinds().collect(),
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
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

    /// The report of this moment. `in_flight` is asked under the lock, so that the endpoints it lists belong to the
    /// generation that the report names.
    pub(crate) fn report(
        &self,
        proxy: &str,
        now: Instant,
        in_flight: impl FnOnce() -> Vec<InFlight>,
    ) -> Report {
        let states = self.lock_all();
        let numbers = states[0].epochs.keys();
        let epoch = |&number: &u64| {
            let parts: Vec<&EpochCounts> = states
                .iter()
                .filter_map(|state| state.epochs.get(&number))
                .collect();
            EpochCounts::report(number, &parts, now)
        };
        Report {
            proxy: proxy.to_owned(),
            boot: self.boot,
            generation: states[0].generation,
            epochs: numbers.filter_map(epoch).collect(),
            epochs_dropped: self.dropped.load(Ordering::Relaxed),
            in_flight: in_flight(),
        }
    }

    /// Lets go what the controller has: epochs that were final in the report it answers, up to the number it names.
    pub(crate) fn acknowledge(&self, sent: &Report, ack: ReportAck) {
        if ack.boot != self.boot {
            return;
        }
        let mut states = self.lock_all();
        for epoch in &sent.epochs {
            if epoch.is_final && epoch.number <= ack.acknowledged {
                for state in &mut states {
                    state.epochs.remove(&epoch.number);
                }
            }
        }
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
        self.place.metrics.ended(outcome, lasted.as_secs_f64());
        self.shard.with_epoch(self.epoch, |epoch| {
            epoch.end(self.request, outcome, self.failed_to_user, self.kind, now);
        });
    }
}

#[cfg(test)]
mod tests {
    use proxy_api::Arm;

    use super::*;
    use crate::telemetry::Telemetry;

    const BOOT: BootId = BootId(7);
    const OLD: Duration = Duration::from_secs(10);
    const WORKERS: usize = 2;

    struct World {
        signals: Arc<Signals>,
        place: Arc<Place>,
        routed: AtomicU64,
    }

    impl World {
        fn new(waiting_max: usize) -> Self {
            let telemetry = Telemetry::new().unwrap();
            Self {
                signals: Arc::new(Signals::new(BOOT, waiting_max, WORKERS, Instant::now())),
                place: Arc::new(Place {
                    route: "web".into(),
                    arm: Arm::Canary,
                    release: "v2".into(),
                    endpoint: None,
                    kinds: Arc::default(),
                    metrics: telemetry.place("web", Arm::Canary, "v2", None),
                }),
                routed: AtomicU64::new(0),
            }
        }

        fn route(&self, generation: Generation) -> Result<Ticket, Stale> {
            let request = Request {
                place: &self.place,
                group: 3,
                chosen: Chosen::Weight,
                age_max: OLD,
            };
            // One worker after the other.
            let worker = self.routed.fetch_add(1, Ordering::Relaxed) as usize;
            let shard = self.signals.shard(worker);
            let begun = shard.begin(generation, request, None, Instant::now());
            begun.map(|(ticket, _)| ticket)
        }

        fn report(&self) -> Report {
            self.signals.report("p", Instant::now(), Vec::new)
        }

        fn ack(&self, sent: &Report, acknowledged: u64) {
            let ack = ReportAck {
                boot: BOOT,
                acknowledged,
            };
            self.signals.acknowledge(sent, ack);
        }
    }

    const NONE: Generation = Generation { term: 0, seq: 0 };
    const FIRST: Generation = Generation { term: 1, seq: 1 };

    fn numbers(report: &Report) -> Vec<(u64, bool)> {
        report
            .epochs
            .iter()
            .map(|e| (e.number, e.is_final))
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn counts_a_request_in_the_epoch_in_which_it_was_routed() {
        let world = World::new(10);
        let mut ticket = world.route(NONE).unwrap();
        ticket.answered();
        tokio::time::advance(EPOCH_LENGTH).await;
        world.signals.tick(Instant::now());
        let report = world.report();
        assert_eq!(numbers(&report), [(1, false), (2, false)]);
        assert_eq!(report.epochs[0].duration_ms, 500);
        assert_eq!(
            (
                report.epochs[0].cells[0].unfinished,
                report.epochs[1].cells.len()
            ),
            (1, 0)
        );
        tokio::time::advance(Duration::from_millis(300)).await;
        drop(ticket);
        let epoch = world.report().epochs.remove(0);
        assert!(epoch.is_final);
        let cell = &epoch.cells[0];
        assert_eq!((cell.outcomes, cell.unfinished), ([1, 0, 0, 0, 0], 0));
        assert_eq!(cell.latency, [(latency_bucket(800_000), 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_table_cuts_the_epoch_and_stale_choices_are_sent_back() {
        let world = World::new(10);
        let old = world.route(NONE).unwrap();
        let weights = Weights::from([("web".to_owned(), BasisPoints::ALL)]);
        let now = Instant::now();
        world.signals.cut(FIRST, weights.clone(), now, || {});
        assert_eq!(world.route(NONE).unwrap_err(), Stale);
        let new = world.route(FIRST).unwrap();
        let report = world.report();
        let generations: Vec<_> = report.epochs.iter().map(|e| e.generation).collect();
        assert_eq!(generations, [NONE, FIRST]);
        assert_eq!(
            (report.epochs[0].weights.len(), &report.epochs[1].weights),
            (0, &weights)
        );
        assert!(
            report
                .epochs
                .iter()
                .all(|epoch| epoch.cells[0].requests == 1)
        );
        drop((old, new));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_failure_is_the_outcome() {
        let world = World::new(10);
        let mut ticket = world.route(NONE).unwrap();
        ticket.failed(Outcome::Connect);
        ticket.failed(Outcome::Reset);
        ticket.answered();
        drop(ticket);
        let mut broken = world.route(NONE).unwrap();
        broken.answered();
        broken.failed(Outcome::Reset);
        broken.failed_to_user();
        drop(broken);
        let cell = world.report().epochs.remove(0).cells.remove(0);
        assert_eq!(cell.outcomes, [0, 0, 0, 1, 1]);
        assert_eq!((cell.failed_to_user, cell.latency.len()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_counted_by_kind_over_all_workers_and_the_bad_are_not() {
        let world = World::new(10);
        let kind = |text: &'static str| {
            let header = http::HeaderValue::from_static(text);
            world.place.kinds.of(Some(&header))
        };
        for text in ["glad", "sad", "glad", "two words"] {
            let mut ticket = world.route(NONE).unwrap();
            ticket.answered();
            ticket.of_kind(kind(text));
        }
        let mut broken = world.route(NONE).unwrap();
        broken.answered();
        broken.of_kind(kind("glad"));
        broken.failed(Outcome::Reset);
        drop(broken);
        // Its client left before the head came.
        drop(world.route(NONE).unwrap());
        let cell = world.report().epochs.remove(0).cells.remove(0);
        assert_eq!(cell.requests, 6);
        let expected = [("(none)", 1), ("glad", 2), ("sad", 1)];
        assert_eq!(
            cell.kinds,
            expected.map(|(kind, n)| (kind.to_owned(), n)).into()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_request_ages_out_and_its_later_end_changes_nothing() {
        let world = World::new(100);
        let silent = world.route(NONE).unwrap();
        let mut stream = world.route(NONE).unwrap();
        stream.answered();
        let mut shielded = world.route(NONE).unwrap();
        shielded.failed(Outcome::ServerError);
        tokio::time::advance(OLD - Duration::from_millis(1)).await;
        world.signals.tick(Instant::now());
        assert!(!world.report().epochs[0].is_final);
        tokio::time::advance(Duration::from_millis(1)).await;
        world.signals.tick(Instant::now());
        let aged = world.report().epochs.remove(0);
        assert!(aged.is_final);
        assert_eq!(aged.cells[0].outcomes, [1, 1, 1, 0, 0]);
        assert_eq!(aged.cells[0].latency, [(latency_bucket(10_000_000), 1)]);
        stream.failed(Outcome::Reset);
        stream.failed_to_user();
        drop((silent, stream, shielded));
        assert_eq!(world.report().epochs[0], aged);
    }

    #[tokio::test(start_paused = true)]
    async fn an_epoch_stays_until_it_was_acknowledged_as_final() {
        let world = World::new(100);
        let ticket = world.route(NONE).unwrap();
        world.signals.tick(Instant::now());
        world.signals.tick(Instant::now());
        let sent = world.report();
        assert_eq!(numbers(&sent), [(1, false), (2, true), (3, false)]);
        drop(ticket);
        // It became final after the report was made: that acknowledgement is not about it.
        world.ack(&sent, 3);
        assert_eq!(numbers(&world.report()), [(1, true), (3, false)]);
        let sent = world.report();
        world.ack(&sent, 0);
        assert_eq!(
            numbers(&world.report()),
            [(1, true), (3, false)],
            "none yet"
        );
        world.signals.acknowledge(
            &sent,
            ReportAck {
                boot: BootId(8),
                acknowledged: 9,
            },
        );
        assert_eq!(
            numbers(&world.report()),
            [(1, true), (3, false)],
            "of another boot"
        );
        world.ack(&sent, 3);
        world.ack(&sent, 3);
        assert_eq!(numbers(&world.report()), [(3, false)]);
    }

    #[tokio::test(start_paused = true)]
    async fn lets_the_oldest_epochs_go_when_too_many_wait_and_says_so() {
        let world = World::new(3);
        let late = world.route(NONE).unwrap();
        for _ in 0..5 {
            world.signals.tick(Instant::now());
        }
        drop(late);
        let report = world.report();
        assert_eq!(report.epochs_dropped, 2);
        assert_eq!(
            numbers(&report),
            [(3, true), (4, true), (5, true), (6, false)]
        );
    }
}
