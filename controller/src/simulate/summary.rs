//! What many releases of one kind came to, and what that says of the judge.

use std::collections::BTreeMap;

use serde::Serialize;

use super::release::{End, Outcome};
use super::scenario::{Expect, Published, Source};
use super::values::Positive;

/// How sure a limit is: a share is beyond it in one of twenty cases.
const LIMIT_AT: f64 = 0.05;

/// By what factor a number may be above the published one and still counts as equal: chance moves a median by as much.
const AS_GOOD: f64 = 1.05;

/// Half of the last digit of published shares and of published counts: they were rounded.
const SHARE_ROUNDED: f64 = 0.0005;
const COUNT_ROUNDED: f64 = 0.5;

/// Halvings until a limit is known to ten digits.
const HALVINGS: u32 = 34;

/// What the releases of one scenario at one rate came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The scenario.
    pub scenario: String,
    /// Where it comes from.
    pub from: Source,
    /// How each should have ended.
    pub expect: Expect,
    /// Requests a second over both arms.
    pub rate: f64,
    /// How many releases there were.
    pub releases: u64,
    /// Those that were rolled back on evidence.
    pub rolled_back: Ratio,
    /// The same by the signal that weighed most.
    pub rolled_back_by: BTreeMap<String, u64>,
    /// Time to the rollback.
    pub seconds: Option<Spread>,
    /// The canary's failed requests until then.
    pub failed: Option<Spread>,
    /// Of these, those that would not have failed on stable.
    pub excess_failed: Option<Spread>,
    /// Those that were promoted.
    pub promoted: Ratio,
    /// Time to the end of the bake.
    pub promoted_seconds: Option<Spread>,
    /// Those that ended on a deadline.
    pub undecided: Ratio,
    /// For a good release: whether false rollbacks stay at or below alpha.
    pub promise: Option<Promise>,
    /// Each number that was published beside the one measured.
    pub comparisons: Vec<Comparison>,
}

/// How many of all, with the limits beyond which the true share lies in one of twenty cases on either side (Clopper and
/// Pearson).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio {
    /// How many.
    pub count: u64,
    /// The share, from 0 to 1.
    pub ratio: f64,
    /// The lower limit.
    pub low: f64,
    /// The upper limit.
    pub high: f64,
}

/// The middle and the bad end.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Half are at most this.
    pub median: f64,
    /// Nineteen of twenty are at most this.
    pub p95: f64,
}

/// Whether false rollbacks stay at or below alpha.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Promise {
    /// The upper limit does.
    Kept,
    /// Alpha is between the limits: more releases would tell.
    Open,
    /// The lower limit is above.
    Broken,
}

/// What a published number is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// The share that is rolled back.
    RolledBack,
    /// The median time to the rollback, in seconds.
    Seconds,
    /// The median of the canary's failed requests.
    Failed,
    /// The median time to the promotion, in seconds.
    PromotedSeconds,
}

/// A published number beside the one measured; less is better.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Comparison {
    /// Of what.
    pub of: Measure,
    /// What was published.
    pub published: f64,
    /// What was measured; none if it never came to that.
    pub measured: Option<f64>,
    /// Whether that is as good: not above it by more than a twentieth; for a share, whether the true one may be as small.
    pub is_as_good: bool,
}

/// What is known of a row before its releases.
#[derive(Debug, Clone)]
pub(super) struct Heading {
    pub(super) scenario: String,
    pub(super) from: Source,
    pub(super) expect: Expect,
    pub(super) rate: f64,
    pub(super) published: Option<Published>,
    pub(super) alpha: f64,
}

impl Row {
    pub(super) fn new(heading: Heading, outcomes: &[Outcome]) -> Self {
        let all = outcomes.len() as u64;
        let spread = |is: fn(&End) -> bool, of: fn(&Outcome) -> f64| {
            let these = outcomes.iter().filter(|outcome| is(&outcome.end));
            Spread::of(these.map(of).collect())
        };
        let count = |is: fn(&End) -> bool| {
            let count = outcomes.iter().filter(|outcome| is(&outcome.end)).count();
            Ratio::new(count as u64, all)
        };
        let is_rolled_back = |end: &End| matches!(end, End::RolledBack(_));
        let is_promoted = |end: &End| *end == End::Promoted;
        let mut rolled_back_by = BTreeMap::new();
        for outcome in outcomes {
            if let End::RolledBack(signal) = &outcome.end {
                *rolled_back_by.entry(signal.clone()).or_default() += 1;
            }
        }
        let rolled_back = count(is_rolled_back);
        let mut row = Self {
            scenario: heading.scenario,
            from: heading.from,
            expect: heading.expect,
            rate: heading.rate,
            releases: all,
            rolled_back,
            rolled_back_by,
            seconds: spread(is_rolled_back, |outcome| outcome.seconds),
            failed: spread(is_rolled_back, |outcome| outcome.failed),
            excess_failed: spread(is_rolled_back, |outcome| outcome.excess),
            promoted: count(is_promoted),
            promoted_seconds: spread(is_promoted, |outcome| outcome.seconds),
            undecided: count(|end| *end == End::Undecided),
            promise: (heading.expect == Expect::Promote)
                .then(|| Promise::of(rolled_back, heading.alpha)),
            comparisons: Vec::new(),
        };
        row.comparisons = heading
            .published
            .map_or_else(Vec::new, |published| row.compare(published));
        row
    }

    fn compare(&self, published: Published) -> Vec<Comparison> {
        let median = |spread: Option<Spread>| spread.map(|spread| spread.median);
        let more = |of, published: Option<Positive>, rounded: f64, measured: Option<f64>| {
            let published = published?.get();
            let is_as_good =
                measured.is_some_and(|measured| measured <= (published + rounded) * AS_GOOD);
            Some(Comparison {
                of,
                published,
                measured,
                is_as_good,
            })
        };
        let rolled_back = published.rolled_back.map(|share| Comparison {
            of: Measure::RolledBack,
            published: share.get(),
            measured: Some(self.rolled_back.ratio),
            is_as_good: self.rolled_back.low <= share.get() + SHARE_ROUNDED,
        });
        let medians = [
            more(
                Measure::Seconds,
                published.seconds,
                0.0,
                median(self.seconds),
            ),
            more(
                Measure::Failed,
                published.failed,
                COUNT_ROUNDED,
                median(self.failed),
            ),
            more(
                Measure::PromotedSeconds,
                published.promoted_seconds,
                0.0,
                median(self.promoted_seconds),
            ),
        ];
        rolled_back
            .into_iter()
            .chain(medians.into_iter().flatten())
            .collect()
    }
}

impl Spread {
    pub(super) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        // The smallest value that so many are at most.
        let rank = |share: f64| (share * values.len() as f64).ceil() as usize;
        let at = |share| values.get(rank(share).saturating_sub(1)).copied();
        Some(Self {
            median: at(0.5)?,
            p95: at(0.95)?,
        })
    }
}

impl Promise {
    fn of(rolled_back: Ratio, alpha: f64) -> Self {
        if rolled_back.high <= alpha {
            Self::Kept
        } else if rolled_back.low <= alpha {
            Self::Open
        } else {
            Self::Broken
        }
    }
}

impl Ratio {
    pub(super) fn new(count: u64, all: u64) -> Self {
        // The share at which so few, or so many, come in one of twenty cases.
        let low = if count == 0 {
            0.0
        } else {
            root(|share| 1.0 - at_most(count - 1, all, share) >= LIMIT_AT)
        };
        let high = if count == all {
            1.0
        } else {
            root(|share| at_most(count, all, share) <= LIMIT_AT)
        };
        Self {
            count,
            ratio: count as f64 / all.max(1) as f64,
            low,
            high,
        }
    }
}

/// The share from 0 to 1 from which on this holds.
fn root(holds: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(low, high);
        if holds(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    high
}

/// The chance of at most `count` of `all` when each has the chance `share`, which is neither 0 nor 1.
fn at_most(count: u64, all: u64, share: f64) -> f64 {
    let odds = (share / (1.0 - share)).ln();
    let mut log_term = all as f64 * (-share).ln_1p();
    let mut sum = log_term.exp();
    for hits in 0..count {
        log_term += odds + ((all - hits) as f64 / (hits + 1) as f64).ln();
        sum += log_term.exp();
    }
    sum.min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_limits_of_a_share() {
        // Clopper and Pearson's, one-sided at 95 %: 1 - 0.05^(1/300); for 10 of 1,000 by summing exact terms.
        let none = Ratio::new(0, 300);
        assert_eq!(none.low, 0.0);
        assert!((none.high - (1.0 - 0.05_f64.powf(1.0 / 300.0))).abs() < 1e-9);
        let some = Ratio::new(10, 1_000);
        assert!((some.low - 0.005_435).abs() < 2e-6, "{some:?}");
        assert!((some.high - 0.016_903).abs() < 2e-6, "{some:?}");
        let all = Ratio::new(50, 50);
        assert!((all.low - 0.05_f64.powf(1.0 / 50.0)).abs() < 1e-9);
        assert_eq!(all.high, 1.0);
    }

    #[test]
    fn takes_the_middle_and_the_bad_end() {
        let spread = Spread::of((1..=100).rev().map(f64::from).collect());
        assert_eq!(
            spread,
            Some(Spread {
                median: 50.0,
                p95: 95.0
            })
        );
        assert_eq!(Spread::of(vec![]), None);
    }
}
