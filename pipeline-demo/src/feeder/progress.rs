//! What was taken, what is done, and so what may be committed. Pure.

use std::collections::{BTreeMap, VecDeque};

use crate::bus::Position;

/// The records between the committed offset and the last one taken, for each partition.
#[derive(Debug, Default)]
pub(super) struct Progress {
    partitions: BTreeMap<u32, Partition>,
    taken: usize,
    unfinished: usize,
}

#[derive(Debug, Default)]
struct Partition {
    /// In order of offset; the first one is always unfinished.
    taken: VecDeque<Taken>,
    /// The offset from which to go on, once something is done, and whether it is committed.
    next: Option<i64>,
    committed: Option<i64>,
}

#[derive(Debug)]
struct Taken {
    offset: i64,
    done: bool,
}

impl Progress {
    /// A record was taken; records of a partition are taken in order.
    pub(super) fn take(&mut self, position: Position) {
        let partition = self.partitions.entry(position.partition).or_default();
        let offset = position.offset;
        let taken = Taken {
            offset,
            done: false,
        };
        partition.taken.push_back(taken);
        self.taken += 1;
        self.unfinished += 1;
    }

    /// A record that was taken is done; the order does not matter.
    pub(super) fn done(&mut self, position: Position) {
        let Some(partition) = self.partitions.get_mut(&position.partition) else {
            return;
        };
        // Offsets grow, with gaps in a compacted topic.
        let found = partition
            .taken
            .binary_search_by_key(&position.offset, |taken| taken.offset);
        if let Ok(index) = found
            && !partition.taken[index].done
        {
            partition.taken[index].done = true;
            self.unfinished -= 1;
        }
        while partition.taken.front().is_some_and(|taken| taken.done) {
            let taken = partition.taken.pop_front();
            partition.next = taken.map(|taken| taken.offset + 1);
            self.taken -= 1;
        }
    }

    /// Records since the oldest unfinished one of each partition, done or not.
    pub(super) const fn taken(&self) -> usize {
        self.taken
    }

    /// Records taken and not done.
    pub(super) const fn unfinished(&self) -> usize {
        self.unfinished
    }

    /// Offsets from which to go on, where they moved since the last commit: all before them is done.
    pub(super) fn to_commit(&self) -> Vec<Position> {
        let moved = self.partitions.iter().filter_map(|(partition, state)| {
            let offset = state.next.filter(|_| state.next != state.committed)?;
            Some(Position {
                partition: *partition,
                offset,
            })
        });
        moved.collect()
    }

    /// A partition is another's: what was taken from it is not ours to commit.
    pub(super) fn forget(&mut self, partition: u32) {
        if let Some(state) = self.partitions.remove(&partition) {
            self.taken -= state.taken.len();
            self.unfinished -= state.taken.iter().filter(|taken| !taken.done).count();
        }
    }

    /// These offsets are committed.
    pub(super) fn committed(&mut self, next: &[Position]) {
        for Position { partition, offset } in next {
            if let Some(state) = self.partitions.get_mut(partition) {
                state.committed = Some(*offset);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn at(partition: u32, offset: i64) -> Position {
        Position { partition, offset }
    }

    #[test]
    fn commits_up_to_the_first_record_that_is_not_done() {
        let mut progress = Progress::default();
        for offset in [5, 6, 9] {
            progress.take(at(0, offset));
        }
        progress.done(at(0, 6));
        assert_eq!(progress.to_commit(), []);
        progress.done(at(0, 5));
        assert_eq!(progress.to_commit(), [at(0, 7)]);
        progress.committed(&[at(0, 7)]);
        assert_eq!(progress.to_commit(), []);
        assert_eq!((progress.taken(), progress.unfinished()), (1, 1));
        progress.done(at(0, 9));
        assert_eq!(progress.to_commit(), [at(0, 10)]);
    }

    #[test]
    fn a_partition_that_comes_back_begins_anew() {
        let mut progress = Progress::default();
        for offset in [5, 6, 7] {
            progress.take(at(0, offset));
        }
        progress.take(at(1, 0));
        progress.done(at(0, 6));
        progress.forget(0);
        assert_eq!((progress.taken(), progress.unfinished()), (1, 1));
        progress.done(at(0, 5));
        assert_eq!(progress.to_commit(), []);
        progress.take(at(0, 3));
        progress.done(at(0, 3));
        assert_eq!(progress.to_commit(), [at(0, 4)]);
    }

    proptest! {
        #[test]
        fn never_commits_past_an_unfinished_record_and_at_last_all(
            order in Just((0_u32..30).collect::<Vec<_>>()).prop_shuffle(),
            partitions in 1_u32..4,
        ) {
            let place = |n: u32| at(n % partitions, i64::from(n * 2));
            let mut progress = Progress::default();
            (0..30).for_each(|n| progress.take(place(n)));
            let mut left: BTreeSet<Position> = (0..30).map(place).collect();
            for n in order {
                progress.done(place(n));
                left.remove(&place(n));
                for next in progress.to_commit() {
                    let first_left = left.iter().find(|l| l.partition == next.partition);
                    prop_assert!(first_left.is_none_or(|l| l.offset >= next.offset));
                }
                prop_assert_eq!(progress.unfinished(), left.len());
            }
            prop_assert_eq!(progress.taken(), 0);
            for next in progress.to_commit() {
                let last = (0..30).map(place).filter(|p| p.partition == next.partition).max();
                prop_assert_eq!(next.offset, last.unwrap().offset + 1);
            }
        }
    }
}
