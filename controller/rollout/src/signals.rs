//! The golden signals as evidence: blocks of requests of both arms.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Duration;
use crate::serial::millis;
use crate::weight::Weight;

/// How many latency buckets there are: bucket `i` begins at `100 us * 2^(i/32)` and is 2.19 % wide.
pub const LATENCY_BUCKETS: u16 = 640;

/// The lower edge of a latency bucket, in microseconds.
#[must_use]
pub fn bucket_edge_us(bucket: u16) -> f64 {
    100.0 * (f64::from(bucket) / 32.0).exp2()
}

/// The bucket of a latency in microseconds: `floor(32 log2(us / 100))`, clamped to the 640 there are.
#[must_use]
pub fn bucket_of_us(us: f64) -> u16 {
    let index = (32.0 * (us / 100.0).log2() + 1e-9).floor();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to 0..=639 in the line itself"
    )]
    let index = index.clamp(0.0, f64::from(LATENCY_BUCKETS - 1)) as u16;
    index
}

/// Counts of latencies by logarithmic bucket, sparse: pairs of bucket and count, buckets rising, counts above 0.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LatencyHistogram(Vec<(u16, u32)>);

impl LatencyHistogram {
    /// Adds `count` latencies to `bucket`; one above the range goes to the top bucket.
    pub fn add(&mut self, bucket: u16, count: u32) {
        if count == 0 {
            return;
        }
        let bucket = bucket.min(LATENCY_BUCKETS - 1);
        match self.0.binary_search_by_key(&bucket, |(at, _)| *at) {
            Ok(at) => self.0[at].1 = self.0[at].1.saturating_add(count),
            Err(at) => self.0.insert(at, (bucket, count)),
        }
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        for &(bucket, count) in &other.0 {
            self.add(bucket, count);
        }
    }

    /// How many latencies there are.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().map(|(_, count)| u64::from(*count)).sum()
    }

    /// How many are in buckets above `bucket`.
    #[must_use]
    pub fn above(&self, bucket: u16) -> u64 {
        let from = self.0.partition_point(|(at, _)| *at <= bucket);
        self.0[from..]
            .iter()
            .map(|(_, count)| u64::from(*count))
            .sum()
    }

    /// The pairs of bucket and count, buckets rising.
    pub fn iter(&self) -> impl Iterator<Item = (u16, u32)> + '_ {
        self.0.iter().copied()
    }
}

impl FromIterator<(u16, u32)> for LatencyHistogram {
    fn from_iter<I: IntoIterator<Item = (u16, u32)>>(pairs: I) -> Self {
        let mut histogram = Self::default();
        for (bucket, count) in pairs {
            histogram.add(bucket, count);
        }
        histogram
    }
}

/// Requests of one arm in one block that share node and client group.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cell {
    /// The task, or the node, that served them; empty when there was none.
    pub node: String,
    /// The client's group, 0 to 7.
    pub group: u8,
    /// Requests routed here, whatever became of them.
    pub requests: u64,
    /// Of these, the bad: 5xx, timeouts, broken or refused connections.
    pub bad: u64,
    /// Latency of the others, to the end of the answer.
    pub latency: LatencyHistogram,
    /// Answers by the kind they say they are of, if the guard asks for it, or [`KIND_NONE`]; the bad say nothing.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kinds: BTreeMap<String, u64>,
}

/// What answers are counted as that name no kind though the guard asks.
pub const KIND_NONE: &str = "(none)";

impl Cell {
    /// Adds the counts of `other`; node and group stay.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.bad += other.bad;
        self.latency.merge(&other.latency);
        for (kind, count) in &other.kinds {
            *self.kinds.entry(kind.clone()).or_default() += count;
        }
    }
}

/// The requests of both arms in one short span, judged together: only shares inside one block are ever compared.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Block {
    /// The canary's weight while these requests were routed.
    pub weight: Weight,
    /// How long the block lasted.
    #[serde(rename = "duration_ms", with = "millis")]
    pub duration: Duration,
    /// The canary's requests, sorted by node and group.
    pub canary: Vec<Cell>,
    /// Stable's requests, sorted by node and group.
    pub stable: Vec<Cell>,
}

impl Block {
    /// Adds the requests and the length of `other`, which came right after and under the same weight.
    pub fn append(&mut self, other: &Self) {
        self.duration += other.duration;
        merge_cells(&mut self.canary, &other.canary);
        merge_cells(&mut self.stable, &other.stable);
    }

    /// Requests over both arms.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.canary
            .iter()
            .chain(&self.stable)
            .map(|cell| cell.requests)
            .sum()
    }

    /// Bad outcomes over both arms.
    #[must_use]
    pub fn bad(&self) -> u64 {
        self.canary
            .iter()
            .chain(&self.stable)
            .map(|cell| cell.bad)
            .sum()
    }
}

/// Adds `from` to `into`, cell by cell, and leaves `into` sorted by node and group.
pub fn merge_cells(into: &mut Vec<Cell>, from: &[Cell]) {
    for cell in from {
        let key = (cell.node.as_str(), cell.group);
        match into.binary_search_by(|have| (have.node.as_str(), have.group).cmp(&key)) {
            Ok(at) => into[at].add(cell),
            Err(at) => into.insert(at, cell.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_cells_of_one_node_and_group_and_keeps_the_others_apart() {
        let cell = |node: &str, group, bad| Cell {
            node: node.into(),
            group,
            requests: 10,
            bad,
            latency: [(5, 2), (3, 1)].into_iter().collect(),
            kinds: [("good".to_owned(), 3)].into(),
        };
        let mut into = vec![cell("a", 1, 0)];
        merge_cells(
            &mut into,
            &[cell("b", 0, 1), cell("a", 1, 2), cell("a", 0, 4)],
        );
        let seen: Vec<_> = into
            .iter()
            .map(|c| (c.node.as_str(), c.group, c.requests, c.bad))
            .collect();
        assert_eq!(seen, [("a", 0, 10, 4), ("a", 1, 20, 2), ("b", 0, 10, 1)]);
        assert_eq!(into[1].latency.iter().collect::<Vec<_>>(), [(3, 2), (5, 4)]);
        assert_eq!(into[1].latency.above(3), 4);
        assert_eq!(into[1].latency.total(), 6);
        assert_eq!(into[1].kinds["good"], 6);
    }
}
