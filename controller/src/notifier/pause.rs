//! Pauses after failures: twice as long each time, up to a limit, and never all at the same moment.

use rand::RngExt as _;
use rollout::Duration;

/// How long to pause after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// After the first.
    pub first: Duration,
    /// At most.
    pub most: Duration,
}

impl Default for Pace {
    /// A second, so that a hiccup is not noticed; at most five minutes, so that a GitLab that is back is told soon, and one
    /// that is away for a day is asked 300 times.
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            most: Duration::from_secs(5 * 60),
        }
    }
}

/// A pause, or none.
#[derive(Debug, Default)]
pub(super) struct Pause {
    failures: u32,
    until: Duration,
}

impl Pause {
    /// When it is over, by the clock's elapsed time.
    pub(super) fn until(&self) -> Duration {
        self.until
    }

    /// Something went well.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }

    /// Something failed; whoever refused may have said how long to wait. How long the pause is.
    pub(super) fn begin(&mut self, now: Duration, after: Option<Duration>, pace: Pace) -> Duration {
        /// 2^20 times the first pause is beyond every limit.
        const DOUBLED_MAX: u32 = 20;
        let doubled = pace.first * (1 << self.failures.min(DOUBLED_MAX));
        let longest = doubled.min(pace.most);
        // Between half of it and all of it: many controllers do not come back at one moment.
        let drawn = longest.mul_f64(rand::rng().random_range(0.5..=1.0));
        let wait = after.map_or(drawn, |after| after.max(drawn));
        self.failures = self.failures.saturating_add(1);
        self.until = now + wait;
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_limit_and_never_ends_before_it_was_told_to() {
        let pace = Pace {
            first: Duration::from_secs(1),
            most: Duration::from_secs(60),
        };
        let mut pause = Pause::default();
        for longest in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            let longest = Duration::from_secs(longest);
            let wait = pause.begin(Duration::ZERO, None, pace);
            assert!(
                wait >= longest / 2 && wait <= longest,
                "{wait:?} of {longest:?}"
            );
        }
        let asked = Duration::from_secs(600);
        assert_eq!(pause.begin(Duration::ZERO, Some(asked), pace), asked);
        pause.end();
        assert_eq!(pause.until(), Duration::ZERO);
        let none = Some(Duration::ZERO);
        assert!(pause.begin(Duration::ZERO, none, pace) >= Duration::from_millis(500));
    }
}
