//! What the poller of a group's member, its owner and the group's callbacks share: records that wait, and who has what.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use rdkafka::error::KafkaError;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::warn;

use crate::bus::{Polled, Position, Record};

/// Records kept for the owner at most: a tenth of a second at 5,000 a second, while librdkafka has more behind them.
const SUPPLY_RECORDS_MAX: usize = 512;

/// Bytes of those records at most. One record above it is kept all the same, or nothing would ever come.
const SUPPLY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What the poller, the owner and the group's callbacks share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// There is something for the owner.
    pub(super) supplied: Notify,
    /// There is room for much more, or a partition was given up.
    pub(super) wanted: Notify,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Partitions whose records are given out, and the next offset of each, once one came.
    pub(super) owned: BTreeMap<u32, Option<i64>>,
    /// Partitions that the group wants back, and what it still waits for: those not given up yet.
    pub(super) leaving: BTreeSet<u32>,
    pub(super) unreleased: BTreeSet<u32>,
    pub(super) release_until: Option<Instant>,
    /// Commits on their way; a partition is not given up while one may be about it.
    pub(super) commits: usize,
    supply: VecDeque<Record>,
    supply_bytes: usize,
    pub(super) news: VecDeque<Polled>,
    pub(super) error: Option<KafkaError>,
    /// The assignment changed since the partitions were paused.
    pub(super) changed: bool,
    pub(super) closing: bool,
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing here panics")
    }

    pub(super) fn take(&self, records_max: usize) -> Option<Result<Polled, KafkaError>> {
        let mut state = self.state();
        if let Some(news) = state.news.pop_front() {
            return Some(Ok(news));
        }
        if records_max > 0 && !state.supply.is_empty() {
            let taken = records_max.min(state.supply.len());
            let records: Vec<Record> = state.supply.drain(..taken).collect();
            let bytes: usize = records.iter().map(bytes_of).sum();
            state.supply_bytes -= bytes;
            // Not for each record: to wake the poller costs more than to poll.
            if state.runs_low() {
                self.wanted.notify_one();
            }
            return Some(Ok(Polled::Records(records)));
        }
        state.error.take().map(Err)
    }
}

impl State {
    pub(super) fn has_room(&self) -> bool {
        self.supply.len() < SUPPLY_RECORDS_MAX && self.supply_bytes < SUPPLY_BYTES_MAX
    }

    /// Half of it is gone: time to fetch more.
    fn runs_low(&self) -> bool {
        self.supply.len() <= SUPPLY_RECORDS_MAX / 2 && self.supply_bytes <= SUPPLY_BYTES_MAX / 2
    }

    pub(super) fn add(&mut self, record: Record) {
        let Position { partition, offset } = record.position;
        let Some(next) = self.owned.get_mut(&partition) else {
            return;
        };
        // What a pause threw away is fetched again; nothing is given out twice.
        if next.is_some_and(|next| offset < next) {
            return;
        }
        *next = Some(offset + 1);
        self.supply_bytes += bytes_of(&record);
        self.supply.push_back(record);
    }

    pub(super) fn assigned(&mut self, partitions: &[u32]) {
        self.owned.extend(partitions.iter().map(|p| (*p, None)));
        self.changed = true;
    }

    /// Nothing of these partitions is given out from now on.
    pub(super) fn withdraw(&mut self, partitions: &[u32]) {
        for partition in partitions {
            self.owned.remove(partition);
        }
        let owned = &self.owned;
        self.supply
            .retain(|record| owned.contains_key(&record.position.partition));
        self.supply_bytes = self.supply.iter().map(bytes_of).sum();
    }

    pub(super) fn release(&mut self, partitions: &[u32]) {
        for partition in partitions {
            self.unreleased.remove(partition);
        }
    }

    /// The partitions that the group may have now, if the group waits for any.
    pub(super) fn given_up(&mut self, now: Instant) -> Option<Vec<u32>> {
        let until = self.release_until?;
        let free = self.unreleased.is_empty() && self.commits == 0;
        if !free && now < until {
            return None;
        }
        if !free {
            warn!(partitions = ?self.unreleased, "kafka: taken away before their owner was done; some records are done again");
        }
        self.release_until = None;
        self.unreleased.clear();
        Some(std::mem::take(&mut self.leaving).into_iter().collect())
    }
}

fn bytes_of(record: &Record) -> usize {
    record.value.len() + record.key.as_ref().map_or(0, Bytes::len)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    /// With every record that is taken the poller would poll for one.
    #[test]
    fn the_poller_is_woken_when_half_is_gone_and_not_for_each_record() {
        let shared = Shared::default();
        shared.state().assigned(&[0]);
        let mut offset = 0;
        while shared.state().has_room() {
            let position = Position {
                partition: 0,
                offset,
            };
            shared.state().add(Record {
                position,
                key: None,
                value: Bytes::from_static(b"{}"),
                produced_at: None,
            });
            offset += 1;
        }
        let woken = || shared.wanted.notified().now_or_never().is_some();
        let mut taken = 0;
        while !woken() {
            let records = shared.take(1).unwrap().unwrap();
            assert!(matches!(&records, Polled::Records(records) if records.len() == 1));
            taken += 1;
        }
        assert_eq!(taken, SUPPLY_RECORDS_MAX / 2);
    }
}
