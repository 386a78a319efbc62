//! How long answers take: a lognormal body, perhaps a slow part, drawn as counts by the judge's buckets.

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use rand_distr::{Binomial, Distribution};
use rollout::LatencyHistogram;
use rollout::signals::LATENCY_BUCKETS;

use super::scenario::{Latency, Slow};

/// Buckets of an octave: a bucket is 2.19 % wide.
const OCTAVE: f64 = 32.0;

/// Parts of a bucket. A shape is known on them, so that a drift moves it by 0.27 % at a time and not by whole buckets.
const PARTS: i32 = 8;

/// How many sigmas of a lognormal are kept: beyond lie two in a billion.
const SIGMAS: f64 = 6.0;

/// Up to so many answers are drawn one by one, at 10 ns each; above, halving the range costs less, which takes 20 us for
/// any number. Measured.
const ONE_BY_ONE_MAX: u64 = 2_000;

/// Up to so many answers in a part of the range are placed one by one.
const FEW: u64 = 3;

/// Where a shape's median lies: in parts of a bucket, from the beginning of bucket 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(i32);

impl Place {
    /// The place of a latency.
    pub(super) fn of_us(us: f64) -> Self {
        Self(steps(us / 100.0))
    }
}

/// A factor of latency in parts of a bucket.
fn steps(factor: f64) -> i32 {
    // Factors are finite and above 0, and a latency of an hour is at 1,300 buckets.
    (factor.log2() * OCTAVE * f64::from(PARTS)).round() as i32
}

/// Latencies relative to their body's median.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    /// One table for each part of a bucket in which the median may lie.
    tables: Vec<Table>,
}

/// The chances of buckets.
#[derive(Debug, Clone)]
struct Table {
    /// The bucket of the first chance, counted from the median's.
    first: i32,
    /// The chance of each bucket and all before it; the last is 1.
    cumulative: Vec<f64>,
    /// Walker's alias table: the chance to stay, and where to go otherwise.
    alias: Vec<(f64, usize)>,
}

impl Shape {
    /// The shape of these latencies, whose slowest part may be slower still.
    pub(super) fn new(latency: &Latency, slowest: Option<Slow>) -> Self {
        let mut fine = Fine::default();
        let slow_share = latency.slow.map_or(0.0, |slow| slow.share.get());
        fine.add_lognormal(0, latency.sigma.get(), 1.0 - slow_share);
        if let Some(slow) = latency.slow {
            fine.add_lognormal(
                steps(slow.factor.get()),
                latency.sigma.get(),
                slow.share.get(),
            );
        }
        if let Some(Slow { share, factor }) = slowest {
            fine.move_slowest(share.get(), steps(factor.get()));
        }
        Self {
            tables: (0..PARTS).map(|part| fine.table(part)).collect(),
        }
    }

    /// Draws the latencies of `count` answers whose body's median is at `median`.
    pub(super) fn draw(
        &self,
        count: u64,
        median: Place,
        dice: &mut Xoshiro256PlusPlus,
        tally: &mut Tally,
    ) {
        let part = median.0.rem_euclid(PARTS);
        let table = &self.tables[part as usize];
        let first = median.0.div_euclid(PARTS) + table.first;
        if count <= ONE_BY_ONE_MAX {
            for _ in 0..count {
                tally.add(first, table.throw(dice), 1);
            }
        } else {
            table.halve(count, 0..table.cumulative.len(), dice, &mut |at, count| {
                tally.add(first, at, count);
            });
        }
    }
}

/// Chances by part of a bucket, while a shape is put together.
#[derive(Debug, Default)]
struct Fine {
    /// The first one's place, counted from the median.
    first: i32,
    chances: Vec<f64>,
}

impl Fine {
    fn at(&mut self, place: i32) -> &mut f64 {
        if self.chances.is_empty() {
            self.first = place;
        }
        if place < self.first {
            let more = (self.first - place) as usize;
            self.chances.splice(0..0, std::iter::repeat_n(0.0, more));
            self.first = place;
        }
        let index = (place - self.first) as usize;
        if index >= self.chances.len() {
            self.chances.resize(index + 1, 0.0);
        }
        &mut self.chances[index]
    }

    /// Adds a lognormal with this median, whose chances sum to `share`.
    fn add_lognormal(&mut self, median: i32, sigma: f64, share: f64) {
        let width = sigma / std::f64::consts::LN_2 * OCTAVE * f64::from(PARTS);
        let reach = (SIGMAS * width).ceil() as i32;
        let density = |step: i32| (-0.5 * (f64::from(step) / width).powi(2)).exp();
        let total: f64 = (-reach..=reach).map(density).sum();
        for step in -reach..=reach {
            *self.at(median + step) += share * density(step) / total;
        }
    }

    /// Moves the slowest `share` of all chances by so many steps, and leaves the others.
    fn move_slowest(&mut self, share: f64, by: i32) {
        let mut left = share;
        let mut moved = Vec::new();
        for (index, chance) in self.chances.iter_mut().enumerate().rev() {
            let taken = chance.min(left);
            *chance -= taken;
            left -= taken;
            moved.push((self.first + index as i32, taken));
            if left <= 0.0 {
                break;
            }
        }
        for (place, chance) in moved {
            *self.at(place + by) += chance;
        }
    }

    /// The chances by bucket for a median that lies `part` parts after its bucket's beginning.
    fn table(&self, part: i32) -> Table {
        let bucket = |index: usize| (self.first + index as i32 + part).div_euclid(PARTS);
        let first = bucket(0);
        let mut chances = vec![0.0; (bucket(self.chances.len() - 1) - first + 1) as usize];
        for (index, chance) in self.chances.iter().enumerate() {
            chances[(bucket(index) - first) as usize] += chance;
        }
        let total: f64 = chances.iter().sum();
        let mut below = 0.0;
        let cumulative = chances.iter().map(|chance| {
            below += chance / total;
            below
        });
        Table {
            first,
            cumulative: cumulative.collect(),
            alias: alias(&chances, total),
        }
    }
}

/// Walker's alias table (Vose's way to build it): each entry gives the part of its own chance that it can hold, and the
/// one richer entry that fills it up.
fn alias(chances: &[f64], total: f64) -> Vec<(f64, usize)> {
    let mut table: Vec<(f64, usize)> = chances
        .iter()
        .enumerate()
        .map(|(at, chance)| (chance / total * chances.len() as f64, at))
        .collect();
    let (mut poor, mut rich): (Vec<usize>, Vec<usize>) =
        (0..table.len()).partition(|at| table[*at].0 < 1.0);
    while let (Some(&from), Some(to)) = (rich.last(), poor.pop()) {
        table[to].1 = from;
        table[from].0 -= 1.0 - table[to].0;
        if table[from].0 < 1.0 {
            rich.pop();
            poor.push(from);
        }
    }
    table
}

impl Table {
    /// One bucket, counted from the first.
    fn throw(&self, dice: &mut Xoshiro256PlusPlus) -> usize {
        let at = dice.random_range(0..self.alias.len());
        let (stay, other) = self.alias[at];
        if dice.random::<f64>() < stay {
            at
        } else {
            other
        }
    }

    /// `count` answers among these buckets: a binomial share to the lower half, the rest to the upper, and so on down.
    fn halve(
        &self,
        count: u64,
        buckets: std::ops::Range<usize>,
        dice: &mut Xoshiro256PlusPlus,
        tally: &mut impl FnMut(usize, u64),
    ) {
        let (from, to) = (buckets.start, buckets.end);
        let below = |at: usize| {
            if at == 0 {
                0.0
            } else {
                self.cumulative[at - 1]
            }
        };
        if count == 0 {
            return;
        }
        if to - from == 1 {
            tally(from, count);
            return;
        }
        let (low, high) = (below(from), below(to));
        if count <= FEW {
            for _ in 0..count {
                let at = low + (high - low) * dice.random::<f64>();
                let inside = &self.cumulative[from..to - 1];
                tally(from + inside.partition_point(|below| *below <= at), 1);
            }
            return;
        }
        let middle = from.midpoint(to);
        let share = (below(middle) - low) / (high - low);
        let lower = binomial(count, share, dice);
        self.halve(lower, from..middle, dice, tally);
        self.halve(count - lower, middle..to, dice, tally);
    }
}

/// How many of `count` tries succeed when each has this chance.
pub(super) fn binomial(count: u64, chance: f64, dice: &mut Xoshiro256PlusPlus) -> u64 {
    // What rounding leaves outside of 0 to 1, or 0 / 0 where there is nothing to share out, is all or none.
    if count == 0 || chance.is_nan() || chance <= 0.0 {
        return 0;
    }
    let chance = chance.min(1.0);
    Binomial::new(count, chance).map_or(0, |binomial| binomial.sample(dice))
}

/// Counts by bucket, while a slice is drawn. One is used over and over: clearing costs what was touched.
#[derive(Debug, Clone)]
pub(super) struct Tally {
    counts: Vec<u32>,
    /// The buckets that may hold something.
    touched: std::ops::Range<usize>,
}

impl Default for Tally {
    fn default() -> Self {
        let buckets = usize::from(LATENCY_BUCKETS);
        Self {
            counts: vec![0; buckets],
            touched: buckets..0,
        }
    }
}

impl Tally {
    /// Adds to the bucket `at` places after `first`; what is outside the range goes to its ends, as in a proxy.
    fn add(&mut self, first: i32, at: usize, count: u64) {
        let last = self.counts.len() - 1;
        let bucket = usize::try_from(first + at as i32).unwrap_or(0).min(last);
        self.counts[bucket] =
            self.counts[bucket].saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        self.touched.start = self.touched.start.min(bucket);
        self.touched.end = self.touched.end.max(bucket + 1);
    }

    /// The histogram of what was drawn; nothing is left.
    pub(super) fn take(&mut self) -> LatencyHistogram {
        let from = self.touched.start;
        let counts = self
            .counts
            .get_mut(self.touched.clone())
            .unwrap_or_default();
        let histogram = counts
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
            .map(|(index, count)| ((from + index) as u16, *count))
            .collect();
        counts.fill(0);
        self.touched = self.counts.len()..0;
        histogram
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::super::values::{Percent, Positive};
    use super::*;

    fn web() -> Latency {
        Latency::default()
    }

    /// Mean and variance, over many draws of `count`, of the answers above a bucket.
    fn above(shape: &Shape, count: u64, bucket: u16, draws: u32) -> (f64, f64) {
        let mut dice = Xoshiro256PlusPlus::seed_from_u64(7);
        let mut tally = Tally::default();
        let (mut sum, mut squares) = (0.0, 0.0);
        for _ in 0..draws {
            shape.draw(count, Place::of_us(80_000.0), &mut dice, &mut tally);
            let histogram = tally.take();
            assert_eq!(histogram.total(), count);
            let above = histogram.above(bucket) as f64;
            sum += above;
            squares += above * above;
        }
        let mean = sum / f64::from(draws);
        (mean, squares / f64::from(draws) - mean * mean)
    }

    #[test]
    fn draws_counts_with_the_mean_and_variance_of_single_draws() {
        let shape = Shape::new(&web(), None);
        // 80 ms is in bucket 308; its p90 is 80 ms x e^(1.2816 x 0.5), 29.6 buckets later.
        for (count, draws) in [(100, 20_000), (ONE_BY_ONE_MAX, 4_000), (20_000, 4_000)] {
            for (bucket, share) in [(308, 0.5), (338, 0.1)] {
                let (mean, variance) = above(&shape, count, bucket, draws);
                let n = count as f64;
                let drawn = mean / n;
                // A bucket is 0.043 sigmas wide, so that its share is known to a hundredth or two.
                assert!((drawn - share).abs() < 0.02, "{count} {bucket}: {drawn}");
                let ratio = variance / (n * drawn * (1.0 - drawn));
                assert!((ratio - 1.0).abs() < 0.12, "{count} {bucket}: {ratio}");
            }
        }
    }

    #[test]
    fn makes_the_slowest_slower_and_leaves_the_others() {
        let slowest = Slow {
            share: Percent(0.02),
            factor: Positive(2.0),
        };
        let (before, after) = (Shape::new(&web(), None), Shape::new(&web(), Some(slowest)));
        let of = |shape: &Shape, bucket| above(shape, 100_000, bucket, 20).0 / 100_000.0;
        for bucket in [308, 338] {
            assert!((of(&before, bucket) - of(&after, bucket)).abs() < 0.002);
        }
        // An octave later there are as many as 2 % have here.
        let p98 = 308 + 47;
        assert!((of(&after, p98 + 31) - 0.02).abs() < 0.002);
        assert!(of(&before, p98 + 31) < 0.001);
    }

    #[test]
    fn moves_with_its_median_by_parts_of_a_bucket() {
        let narrow = Latency {
            sigma: Positive(0.01),
            ..web()
        };
        let shape = Shape::new(&narrow, None);
        let mut dice = Xoshiro256PlusPlus::seed_from_u64(1);
        let mut tally = Tally::default();
        for us in [100.0, 80_000.0, 81_000.0, 99_999.0, 9e8] {
            shape.draw(9_999, Place::of_us(us), &mut dice, &mut tally);
            let histogram = tally.take();
            let expected = rollout::signals::bucket_of_us(us);
            let near: u32 = histogram
                .iter()
                .filter(|(bucket, _)| bucket.abs_diff(expected) <= 1)
                .map(|(_, count)| count)
                .sum();
            assert!(near > 9_800, "{us}: {histogram:?}");
        }
    }
}
