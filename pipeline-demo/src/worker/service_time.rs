//! How long a task takes: lognormal, and always the same for one tweet.

use std::f64::consts::TAU;
use std::time::Duration;

use crate::seeded::{Seeded, stable_hash};

/// Half of all tasks take less.
const MEDIAN: Duration = Duration::from_millis(20);

/// Standard deviation of the logarithm: the slowest in a hundred take 3.2 times the median.
const SIGMA: f64 = 0.5;

/// Largest deviation, in sigmas; one in 30,000 is cut. So no task takes longer than 148 ms.
const DEVIATION_MAX: f64 = 4.0;

/// From this deviation on a task is among the slowest 2 %: the normal distribution's 98 % quantile.
const SLOWEST_2_PERCENT: f64 = 2.053_749;

/// The service time of one tweet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ServiceTime {
    deviation: f64,
}

impl ServiceTime {
    pub(super) fn of(tweet_id: &str) -> Self {
        let mut seeded = Seeded::new(stable_hash(tweet_id.as_bytes()));
        // Box and Muller; 1 - u is in (0, 1], where the logarithm is finite.
        let radius = (-2.0 * (1.0 - seeded.unit()).ln()).sqrt();
        let deviation = radius * (TAU * seeded.unit()).cos();
        Self {
            deviation: deviation.clamp(-DEVIATION_MAX, DEVIATION_MAX),
        }
    }

    pub(super) fn duration(self) -> Duration {
        MEDIAN.mul_f64((SIGMA * self.deviation).exp())
    }

    pub(super) fn is_among_the_slowest_2_percent(self) -> bool {
        self.deviation >= SLOWEST_2_PERCENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_lognormal_with_the_median_and_spread_of_the_design() {
        let mut times: Vec<ServiceTime> = (0..20_000_u64)
            .map(|n| ServiceTime::of(&(399_570_506_216_374_273 + n * 4_194_304).to_string()))
            .collect();
        times.sort_by(|a, b| a.deviation.total_cmp(&b.deviation));
        let at = |share: f64| {
            times[(share * times.len() as f64) as usize]
                .duration()
                .as_secs_f64()
                * 1e3
        };
        // Quantiles of the lognormal distribution with median 20 ms and sigma 0.5.
        for (share, expected) in [
            (0.1, 10.54),
            (0.5, 20.0),
            (0.9, 37.96),
            (0.98, 55.85),
            (0.99, 64.0),
        ] {
            let seen = at(share);
            assert!(
                (seen / expected - 1.0).abs() < 0.04,
                "{share}: {seen} ms, not {expected}"
            );
        }
        let slowest = times
            .iter()
            .filter(|t| t.is_among_the_slowest_2_percent())
            .count();
        assert!((320..480).contains(&slowest), "{slowest} of 20000");
    }

    #[test]
    fn is_the_same_for_one_tweet_in_every_build() {
        let time = ServiceTime::of("399570506216374273").duration();
        assert_eq!(time.as_micros(), 16_715);
    }
}
