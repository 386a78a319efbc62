//! What is known of stable before a block: how slow is slow, how many errors are normal, how much events cluster.

use serde::{Deserialize, Serialize};

use super::aimed::Aim;
use super::dispersion::Dispersion;
use super::gate::margins;
use super::hour::Hour;
use super::latency::{Reference, Thresholds};
use super::traffic::{FadingRate, fade};
use crate::Duration;
use crate::plan::Guard;
use crate::signals::{Block, Cell};

/// Half-life of what is known of clustering. It must outlive quiet minutes, for storms are rare, and it must not be a
/// record of all time, for services change.
const DISPERSION_HALF_LIFE: Duration = Duration::from_secs(3_600);

/// Stable nodes from which scatter is measured between nodes; with fewer, between the eight groups of clients.
pub(crate) const NODES_TO_GROUP_BY: usize = 3;

/// Requests that an assumed error rate counts for, where a bet is aimed: after a hundred requests without an error the rate
/// is taken for half of [`AIM_PRIOR_RATE`].
const AIM_PRIOR: f64 = 100.0;

/// The error rate that is assumed before anything is known. Three nines: a bet that expects none at all would lose nearly
/// everything with the first.
const AIM_PRIOR_RATE: f64 = 0.001;

/// What was learned of a stable release. It is worth keeping from one rollout to the next: with a baseline of at least
/// two minutes the judge knows thresholds and clustering from its first block. The default knows nothing.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Baseline {
    latency: Reference,
    errors: FadingRate,
    /// Errors, then slow at each quantile.
    dispersion: [Dispersion; 4],
    #[serde(default)]
    hour: Hour,
}

impl Baseline {
    /// Learns from one block of stable; its canary is ignored. To be fed outside rollouts too, in blocks of 1 to 10 s.
    pub fn learn(&mut self, block: &Block, guard: &Guard) {
        self.learn_from(block.duration, &block.stable, |_| true, guard);
    }

    /// Learns from those cells of stable whose node counts.
    pub(crate) fn learn_from(
        &mut self,
        duration: Duration,
        stable: &[Cell],
        counts: impl Fn(&Cell) -> bool,
        guard: &Guard,
    ) {
        let stable: Vec<&Cell> = stable.iter().filter(|cell| counts(cell)).collect();
        let groups = groups(&stable, self.thresholds());
        let kept = fade(duration, DISPERSION_HALF_LIFE);
        for (class, dispersion) in self.dispersion.iter_mut().enumerate() {
            dispersion.fade(kept);
            dispersion.block(groups.iter().map(|group| group.of_class(class)));
        }
        let kept = fade(duration, guard.tuning.reference_half_life);
        let (requests, bad) = groups
            .iter()
            .fold((0, 0), |(n, x), group| (n + group.requests, x + group.bad));
        self.errors.update(kept, requests, bad);
        self.hour.block(duration, requests, bad);
        self.latency
            .update(kept, stable.iter().map(|cell| &cell.latency));
    }

    /// From which bucket on an answer is slow.
    pub(crate) fn thresholds(&self) -> Thresholds {
        self.latency.thresholds()
    }

    /// At which quantiles stable's answers are too much alike.
    pub(crate) fn ties(&self) -> [bool; 3] {
        self.latency.ties(&self.thresholds())
    }

    /// What to expect of a canary that is like stable.
    pub(crate) fn aim(&self, guard: &Guard) -> Aim {
        let (thresholds, ties) = (self.thresholds(), self.ties());
        Aim {
            error_rate: self.errors.rate_with_prior(AIM_PRIOR, AIM_PRIOR_RATE),
            odds: margins(guard).map(|(quantile, shift)| {
                self.latency
                    .odds_beyond(&thresholds, quantile, shift, ties[quantile], guard)
            }),
        }
    }

    /// Stable's error counts, faded.
    pub(crate) fn errors(&self) -> &FadingRate {
        &self.errors
    }

    /// Stable's errors in its last hour.
    pub(crate) fn hour(&self) -> &Hour {
        &self.hour
    }

    /// Stable's error rate; 0 while nothing is known.
    #[must_use]
    pub fn error_rate(&self) -> f64 {
        self.errors.rate()
    }

    /// How much events cluster: errors, then slow answers at each quantile. At least 1.
    #[must_use]
    pub fn dispersion(&self) -> [f64; 4] {
        self.dispersion.map(|dispersion| dispersion.phi())
    }
}

/// One group of stable's requests in one block.
struct Group<'a> {
    key: (&'a str, u8),
    requests: u64,
    bad: u64,
    timed: u64,
    slow: [u64; 3],
}

impl Group<'_> {
    /// Requests and events of a class: errors, then slow at each quantile.
    fn of_class(&self, class: usize) -> (u64, u64) {
        match class {
            0 => (self.requests, self.bad),
            _ => (self.timed, self.slow[class - 1]),
        }
    }
}

/// Stable's cells by node if there are enough nodes, else by client group.
fn groups<'a>(stable: &[&'a Cell], thresholds: Thresholds) -> Vec<Group<'a>> {
    let by_node = count_nodes(stable.iter().copied()) >= NODES_TO_GROUP_BY;
    let mut groups: Vec<Group<'a>> = Vec::new();
    for cell in stable {
        let key = if by_node {
            (cell.node.as_str(), 0)
        } else {
            ("", cell.group)
        };
        let at = groups
            .iter()
            .position(|group| group.key == key)
            .unwrap_or_else(|| {
                groups.push(Group {
                    key,
                    requests: 0,
                    bad: 0,
                    timed: 0,
                    slow: [0; 3],
                });
                groups.len() - 1
            });
        let group = &mut groups[at];
        group.requests += cell.requests.max(cell.bad);
        group.bad += cell.bad;
        group.timed += cell.latency.total();
        for (sum, slow) in group.slow.iter_mut().zip(thresholds.slow(&cell.latency)) {
            *sum += slow;
        }
    }
    groups
}

/// How many named nodes there are in cells that are sorted by node.
pub(crate) fn count_nodes<'a>(cells: impl Iterator<Item = &'a Cell>) -> usize {
    let mut last = "";
    let mut nodes = 0;
    for cell in cells {
        if cell.node != last && !cell.node.is_empty() {
            last = &cell.node;
            nodes += 1;
        }
    }
    nodes
}
