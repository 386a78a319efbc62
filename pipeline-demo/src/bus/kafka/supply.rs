//! What the poller of a group's member, its owner and the group's callbacks share: records that wait, and who has what.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use jiff::Timestamp;
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
    /// Partitions whose records are given out, and how far each is, once one came.
    pub(super) owned: BTreeMap<u32, Option<Reached>>,
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
    /// Partitions of which a record came that cannot be of the topic that was read so far.
    pub(super) anew: BTreeSet<u32>,
    /// The assignment changed since the partitions were paused.
    pub(super) changed: bool,
    pub(super) closing: bool,
}

/// How far a partition is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reached {
    /// The offset after the last record.
    next: i64,
    /// When the youngest record was produced.
    youngest: Option<Timestamp>,
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
        let Some(reached) = self.owned.get(&partition).copied() else {
            return;
        };
        let mut youngest = record.produced_at;
        if let Some(reached) = reached {
            if offset >= reached.next {
                youngest = youngest.max(reached.youngest);
            } else {
                // What a pause threw away is fetched again; nothing is given out twice. But what is younger than all that came
                // cannot have come before.
                if youngest > reached.youngest {
                    self.anew.insert(partition);
                }
                return;
            }
        }
        let next = offset + 1;
        self.owned
            .insert(partition, Some(Reached { next, youngest }));
        self.supply_bytes += bytes_of(&record);
        self.supply.push_back(record);
    }

    pub(super) fn assigned(&mut self, partitions: &[u32]) {
        self.owned.extend(partitions.iter().map(|p| (*p, None)));
        self.changed = true;
    }

    /// The partition's topic was deleted and made anew: its offsets say nothing any more, and what was not given out is gone.
    pub(super) fn begin_anew(&mut self, partition: u32) {
        let beginning = Reached {
            next: 0,
            youngest: None,
        };
        self.owned.insert(partition, Some(beginning));
        self.anew.remove(&partition);
        self.supply
            .retain(|record| record.position.partition != partition);
        self.supply_bytes = self.supply.iter().map(bytes_of).sum();
        self.news.push_back(Polled::Anew(vec![partition]));
    }

    /// Nothing of these partitions is given out from now on.
    pub(super) fn withdraw(&mut self, partitions: &[u32]) {
        for partition in partitions {
            self.owned.remove(partition);
            self.anew.remove(partition);
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

    fn record(offset: i64, second: i64) -> Record {
        Record {
            position: Position {
                partition: 0,
                offset,
            },
            key: None,
            value: Bytes::from_static(b"value"),
            produced_at: Timestamp::from_second(second).ok(),
        }
    }

    fn offsets(shared: &Shared) -> Vec<i64> {
        match shared.take(100) {
            Some(Ok(Polled::Records(records))) => {
                records.iter().map(|r| r.position.offset).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_fetched_again_is_given_out_once() {
        let shared = Shared::default();
        shared.state().assigned(&[0]);
        // The clocks of producers differ.
        for (offset, second) in [(7, 100), (8, 130), (9, 110)] {
            shared.state().add(record(offset, second));
        }
        for (offset, second) in [(7, 100), (8, 130), (9, 110), (10, 120)] {
            shared.state().add(record(offset, second));
        }
        assert_eq!(offsets(&shared), [7, 8, 9, 10]);
    }

    #[test]
    fn a_younger_record_at_an_older_offset_is_of_a_new_topic() {
        let shared = Shared::default();
        shared.state().assigned(&[0, 1]);
        for offset in 0..5 {
            shared.state().add(record(offset, 100 + offset));
        }
        assert_eq!(offsets(&shared), [0, 1, 2, 3, 4]);
        shared.state().add(record(5, 105));
        assert_eq!(shared.state().anew, BTreeSet::new());
        shared.state().add(record(1, 201));
        assert_eq!(shared.state().anew, BTreeSet::from([0]));
        // It is read from its beginning. What was not given out of the old one is not given out any more.
        shared.state().begin_anew(0);
        for offset in 0..3 {
            shared.state().add(record(offset, 200 + offset));
        }
        let news = shared.take(100).unwrap().unwrap();
        assert_eq!(news, Polled::Anew(vec![0]));
        assert_eq!(offsets(&shared), [0, 1, 2]);
        assert_eq!(shared.state().supply_bytes, 0);
    }

    #[test]
    fn a_supply_of_large_records_ends_with_their_bytes() {
        let shared = Shared::default();
        shared.state().assigned(&[0]);
        let mut records = 0;
        while shared.state().has_room() {
            let mut large = record(records, records);
            large.value = vec![0; 256 * 1024].into();
            shared.state().add(large);
            records += 1;
        }
        assert_eq!(records, (SUPPLY_BYTES_MAX / (256 * 1024)) as i64);
        shared.take(1).unwrap().unwrap();
        assert!(shared.state().has_room());
    }

    /// With every record that is taken the poller would poll for one.
    #[test]
    fn the_poller_is_woken_when_half_is_gone_and_not_for_each_record() {
        let shared = Shared::default();
        shared.state().assigned(&[0]);
        let mut next = 0;
        while shared.state().has_room() {
            shared.state().add(record(next, next));
            next += 1;
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
