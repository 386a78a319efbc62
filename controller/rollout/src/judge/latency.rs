//! What is slow: thresholds from stable's own recent latencies, known before the block that they judge (JUDGE 2.5).

use serde::{Deserialize, Serialize};

use crate::plan::Guard;
use crate::signals::{LATENCY_BUCKETS, LatencyHistogram, bucket_edge_us, bucket_of_us};

/// The quantiles that are watched. The margins of a plan are named after them, so they are no setting.
pub(crate) const QUANTILES: [f64; 3] = [0.50, 0.90, 0.99];

/// Latencies that a reference needs above a quantile before it has a threshold there: 2 answers for the median, 100 for
/// the 99th percentile. With fewer the threshold would be the slowest answer or beyond, and nothing ever above it.
const TAIL_MIN: f64 = 1.0;

/// Shares of a latency below this are forgotten, so that the reference stays small: after 20 half-lives a count of 1.
const FORGET_BELOW: f64 = 1e-6;

/// Stable's latencies, the recent ones counting more.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Reference(Vec<(u16, f64)>);

impl Reference {
    /// Lets all counts fade to `share` of themselves and adds new ones.
    pub(crate) fn update<'a>(
        &mut self,
        share: f64,
        newer: impl Iterator<Item = &'a LatencyHistogram>,
    ) {
        for (_, count) in &mut self.0 {
            *count *= share;
        }
        self.0.retain(|(_, count)| *count >= FORGET_BELOW);
        for histogram in newer {
            for (bucket, count) in histogram.iter() {
                match self.0.binary_search_by_key(&bucket, |(at, _)| *at) {
                    Ok(at) => self.0[at].1 += f64::from(count),
                    Err(at) => self.0.insert(at, (bucket, f64::from(count))),
                }
            }
        }
    }

    /// For each quantile, whether less than half of what belongs above its threshold is there, because the threshold's own
    /// bucket holds the rest.
    pub(crate) fn ties(&self, thresholds: &Thresholds) -> [bool; 3] {
        let total: f64 = self.0.iter().map(|(_, count)| count).sum();
        [0, 1, 2].map(|index| {
            thresholds.0[index].is_some_and(|threshold| {
                let above: f64 = self
                    .0
                    .iter()
                    .filter(|(bucket, _)| *bucket > threshold)
                    .map(|(_, count)| count)
                    .sum();
                above < 0.5 * (1.0 - QUANTILES[index]) * total
            })
        })
    }

    /// How many times less likely an answer of stable itself is beyond the canary's threshold than beyond its own, in odds.
    /// Where stable is tied, beyond its quantile. 1 while there is no threshold.
    pub(crate) fn odds_beyond(
        &self,
        thresholds: &Thresholds,
        quantile: usize,
        shift: u16,
        is_tied: bool,
        guard: &Guard,
    ) -> f64 {
        let Some(threshold) = thresholds.0[quantile] else {
            return 1.0;
        };
        // Half an answer more than there are: none yet is no promise that there will be none.
        let total: f64 = self.0.iter().map(|(_, count)| count).sum::<f64>() + 1.0;
        let odds_above = |bucket: u16| {
            let from = self.0.partition_point(|(at, _)| *at <= bucket);
            let above = self.0[from..].iter().map(|(_, count)| count).sum::<f64>() + 0.5;
            above / (total - above)
        };
        let own = if is_tied {
            (1.0 - QUANTILES[quantile]) / QUANTILES[quantile]
        } else {
            odds_above(threshold)
        };
        odds_above(forgiving(threshold, shift, guard)) / own
    }

    /// For each quantile, the smallest bucket that together with all below it holds that share.
    pub(crate) fn thresholds(&self) -> Thresholds {
        let total: f64 = self.0.iter().map(|(_, count)| count).sum();
        Thresholds(QUANTILES.map(|quantile| {
            if total * (1.0 - quantile) < TAIL_MIN * (1.0 - 1e-9) {
                return None;
            }
            let mut below = 0.0;
            self.0.iter().find_map(|(bucket, count)| {
                below += count;
                (below >= quantile * total).then_some(*bucket)
            })
        }))
    }
}

/// The bucket of each watched quantile of stable; none while too little is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Thresholds(pub(crate) [Option<u16>; 3]);

impl Thresholds {
    /// How many answers are slow by stable's measure, at each quantile.
    pub(crate) fn slow(&self, histogram: &LatencyHistogram) -> [u64; 3] {
        self.0
            .map(|threshold| threshold.map_or(0, |bucket| histogram.above(bucket)))
    }

    /// How many of the canary's answers are slow at a quantile when `shift` buckets, and never less than the floor, are
    /// forgiven.
    pub(crate) fn slow_beyond(
        &self,
        histogram: &LatencyHistogram,
        quantile: usize,
        shift: u16,
        guard: &Guard,
    ) -> u64 {
        self.0[quantile].map_or(0, |bucket| histogram.above(forgiving(bucket, shift, guard)))
    }
}

/// The canary's threshold for stable's: later by `shift` buckets or by the floor, whichever is more.
pub(crate) fn forgiving(bucket: u16, shift: u16, guard: &Guard) -> u16 {
    let floor = bucket_of_us(bucket_edge_us(bucket) + guard.latency_floor_us as f64);
    bucket
        .saturating_add(shift)
        .max(floor)
        .min(LATENCY_BUCKETS - 1)
}

/// A factor of latency as a whole number of buckets: 1.14 is 6.
pub(crate) fn buckets_of_factor(factor: f64) -> u16 {
    let buckets = (32.0 * factor.log2())
        .round()
        .clamp(0.0, f64::from(LATENCY_BUCKETS - 1));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to 0..=639 in the line above; not a number becomes 0"
    )]
    let buckets = buckets as u16;
    buckets
}
