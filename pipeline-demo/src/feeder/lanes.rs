//! Which record may be sent now: those of one key go one after another, everything else at once. Pure.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use crate::bus::Record;

/// Records that were taken and not sent yet.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    /// May be sent, in the order in which they were taken or became free.
    ready: VecDeque<Record>,
    /// Keys of which one record is ready or sent, and those that wait behind it.
    behind: HashMap<Lane, VecDeque<Record>>,
    waiting: usize,
    waiting_bytes: usize,
}

/// A key in its partition.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Lane {
    partition: u32,
    key: Bytes,
}

impl Lane {
    /// The lane of a record; one without a key has none, and keeps no order.
    pub(crate) fn of(record: &Record) -> Option<Self> {
        Some(Self {
            partition: record.position.partition,
            key: record.key.clone()?,
        })
    }
}

impl Lanes {
    /// A record was taken; those of a key are taken in order.
    pub(crate) fn take(&mut self, record: Record) {
        let Some(lane) = Lane::of(&record) else {
            self.ready.push_back(record);
            return;
        };
        match self.behind.entry(lane) {
            Entry::Vacant(free) => {
                free.insert(VecDeque::new());
                self.ready.push_back(record);
            }
            Entry::Occupied(mut busy) => {
                self.waiting += 1;
                self.waiting_bytes += record.value.len();
                busy.get_mut().push_back(record);
            }
        }
    }

    /// The next record to send.
    pub(crate) fn next(&mut self) -> Option<Record> {
        self.ready.pop_front()
    }

    /// The record that was sent from this lane is done: the next of its key may go.
    pub(crate) fn done(&mut self, lane: Lane) {
        let Entry::Occupied(mut behind) = self.behind.entry(lane) else {
            return;
        };
        match behind.get_mut().pop_front() {
            Some(record) => {
                self.waiting -= 1;
                self.waiting_bytes -= record.value.len();
                self.ready.push_back(record);
            }
            None => {
                behind.remove();
            }
        }
    }

    /// Forgets what was not sent of a partition, and its lanes.
    pub(crate) fn forget(&mut self, partition: u32) {
        self.ready.retain(|r| r.position.partition != partition);
        self.behind.retain(|lane, _| lane.partition != partition);
        let left = || self.behind.values().flatten();
        self.waiting = left().count();
        self.waiting_bytes = left().map(|record| record.value.len()).sum();
    }

    /// Records that may be sent and are not.
    pub(crate) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Bytes of the records that wait for one of their key.
    pub(crate) const fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Whether nothing is left to send, now or later.
    pub(crate) fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.waiting == 0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::bus::Position;

    fn record(partition: u32, offset: i64, key: Option<u8>) -> Record {
        Record {
            position: Position { partition, offset },
            key: key.map(|key| Bytes::from(vec![key])),
            value: Bytes::from_static(b"value"),
            produced_at: None,
        }
    }

    #[test]
    fn one_key_waits_and_the_others_do_not() {
        let mut lanes = Lanes::default();
        for (offset, key) in [(0, Some(1)), (1, Some(1)), (2, Some(2)), (3, None)] {
            lanes.take(record(0, offset, key));
        }
        let first = lanes.next().unwrap();
        let sent: Vec<i64> = std::iter::from_fn(|| lanes.next())
            .map(|r| r.position.offset)
            .collect();
        assert_eq!(sent, [2, 3]);
        assert_eq!((lanes.ready(), lanes.waiting_bytes()), (0, 5));
        lanes.done(Lane::of(&first).unwrap());
        assert_eq!(lanes.next().unwrap().position.offset, 1);
        assert!(lanes.is_empty());
    }

    #[test]
    fn a_partition_that_is_given_up_leaves_nothing_behind() {
        let mut lanes = Lanes::default();
        for offset in 0..3 {
            lanes.take(record(0, offset, Some(1)));
            lanes.take(record(1, offset, Some(1)));
        }
        let sent = lanes.next().unwrap();
        assert_eq!(sent.position.partition, 0);
        lanes.forget(0);
        assert_eq!((lanes.ready(), lanes.waiting_bytes()), (1, 10));
        // One that was sent before ends: nothing follows it.
        lanes.done(Lane::of(&sent).unwrap());
        assert_eq!(lanes.next().unwrap().position.partition, 1);
        assert_eq!(lanes.next(), None);
    }

    proptest! {
        #[test]
        fn a_key_has_one_record_on_its_way_and_keeps_its_order(
            keys in prop::collection::vec(prop::option::of(0_u8..4), 1..60),
            ends in prop::collection::vec(any::<prop::sample::Index>(), 200),
        ) {
            let mut lanes = Lanes::default();
            for (offset, key) in (0..).zip(&keys) {
                lanes.take(record(0, offset, *key));
            }
            let mut sent: Vec<Record> = Vec::new();
            let mut last: BTreeMap<Option<Bytes>, i64> = BTreeMap::new();
            let mut done = 0;
            for end in ends {
                sent.extend(std::iter::from_fn(|| lanes.next()));
                if sent.is_empty() {
                    break;
                }
                for key in 0..4 {
                    let key = Some(Bytes::from(vec![key]));
                    prop_assert!(sent.iter().filter(|record| record.key == key).count() <= 1);
                }
                let ended = sent.remove(end.index(sent.len()));
                if let Some(lane) = Lane::of(&ended) {
                    let before = last.insert(ended.key.clone(), ended.position.offset);
                    prop_assert!(before.is_none_or(|before| before < ended.position.offset));
                    lanes.done(lane);
                }
                done += 1;
            }
            prop_assert_eq!(done, keys.len());
            prop_assert!(lanes.is_empty());
        }
    }
}
