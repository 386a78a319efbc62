//! The counts of one epoch on one worker, and how they become a report.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use proxy_api::{Cell, Chosen, Epoch, Generation, Outcome, latency_bucket};
use tokio::time::Instant;

use super::{Request, Weights};
use crate::kinds::Kind;
use crate::routes::Place;

#[derive(Debug)]
pub(super) struct EpochCounts {
    pub(super) generation: Generation,
    pub(super) weights: Arc<Weights>,
    pub(super) began: Instant,
    /// Set when it is closed.
    pub(super) lasted: Option<Duration>,
    pub(super) cells: Vec<CellCounts>,
    pub(super) index: HashMap<CellKey, usize>,
    /// Its requests that have no end yet, by [`Ticket::request`], with gaps.
    pub(super) requests: Vec<Pending>,
    /// Places among them that are free again.
    pub(super) free: Vec<usize>,
    /// When the first of them may be too old.
    pub(super) too_old: Option<Instant>,
    pub(super) unfinished: u32,
    /// Of the last request; wraps.
    pub(super) serial: u32,
}

/// Place by its address in memory: it is one and the same as long as its table is in force, and so for a whole epoch.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct CellKey {
    pub(super) place: usize,
    pub(super) group: u8,
    pub(super) chosen: Chosen,
}

#[derive(Debug)]
pub(super) struct CellCounts {
    pub(super) place: Arc<Place>,
    pub(super) group: u8,
    pub(super) chosen: Chosen,
    pub(super) requests: u32,
    pub(super) unfinished: u32,
    pub(super) outcomes: [u32; 5],
    pub(super) failed_to_user: u32,
    pub(super) latency: BTreeMap<u16, u32>,
    /// Few, and none where the route does not ask.
    pub(super) kinds: Vec<(Kind, u32)>,
}

/// What tells a request of an epoch from all others of it, also from one that had its place before.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestId {
    pub(super) place: usize,
    pub(super) serial: u32,
}

#[derive(Debug)]
pub(super) struct Pending {
    pub(super) serial: u32,
    pub(super) cell: usize,
    pub(super) routed: Instant,
    pub(super) too_old: Instant,
    pub(super) progress: Progress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Waiting,
    /// The head of an answer below 500 is there.
    Answered,
    Failed(Outcome),
    Ended,
}

impl EpochCounts {
    pub(super) fn new(generation: Generation, weights: Arc<Weights>, began: Instant) -> Self {
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

    pub(super) fn is_final(&self) -> bool {
        self.lasted.is_some() && self.unfinished == 0
    }

    pub(super) fn begin(&mut self, key: Request<'_>, now: Instant) -> RequestId {
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
    pub(super) fn pending(&mut self, id: RequestId) -> Option<&mut Pending> {
        let pending = self.requests.get_mut(id.place)?;
        let is_same = pending.serial == id.serial && pending.progress != Progress::Ended;
        is_same.then_some(pending)
    }

    /// Ends a request that has not ended yet.
    pub(super) fn end(
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

    pub(super) fn age(&mut self, now: Instant) {
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
    pub(super) fn report(number: u64, parts: &[&Self], now: Instant) -> Option<Epoch> {
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
    pub(super) fn key(&self) -> CellKey {
        CellKey {
            place: Arc::as_ptr(&self.place) as usize,
            group: self.group,
            chosen: self.chosen,
        }
    }

    pub(super) fn count_kind(&mut self, kind: Kind) {
        match self.kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => self.kinds.push((kind, 1)),
        }
    }

    /// The kinds by name.
    pub(super) fn named_kinds(&self) -> impl Iterator<Item = (String, u32)> {
        let name = |kind| self.place.kinds.name(kind).to_owned();
        self.kinds
            .iter()
            .map(move |(kind, count)| (name(*kind), *count))
    }

    /// Adds what another worker counted in the same cell.
    pub(super) fn add_to(&self, cell: &mut Cell) {
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

    pub(super) fn report(&self) -> Cell {
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

/// What an epoch takes as JSON at most, in bytes, where names need no escapes. Not exact: it is asked under the locks.
pub(super) fn json_bytes(epoch: &Epoch) -> usize {
    /// The keys of an epoch and of a cell, with numbers of ten digits.
    const EPOCH_BYTES: usize = 192;
    const CELL_BYTES: usize = 384;
    /// `[639,4294967295],`
    const LATENCY_BYTES: usize = 17;
    let cell = |cell: &Cell| {
        let endpoint = cell.endpoint.as_ref();
        CELL_BYTES
            + cell.route.len()
            + cell.release.len()
            + endpoint.map_or(0, |endpoint| endpoint.as_str().len())
            + cell.latency.len() * LATENCY_BYTES
            + named(cell.kinds.keys())
    };
    EPOCH_BYTES + named(epoch.weights.keys()) + epoch.cells.iter().map(cell).sum::<usize>()
}

fn named<'a>(names: impl Iterator<Item = &'a String>) -> usize {
    /// What stands around a name with its number: `"":4294967295,`
    const NAMED_BYTES: usize = 14;
    names.map(|name| name.len() + NAMED_BYTES).sum()
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
