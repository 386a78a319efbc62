//! How many requests a service gets, as its proxies reported them lately.

use rollout::{Block, Duration};

/// Half-life of what is counted: what the judge knows of stable fades as fast.
const HALF_LIFE: Duration = Duration::from_secs(300);

/// How long a service is watched before its rate is known. In 30 s, 5 requests a second are 150 give or take 12; and load
/// that has only just begun does not look like all there is.
const WATCHED_MIN: Duration = Duration::from_secs(30);

/// Requests before a rate is known: with 10, it is right within a factor of two. A service that stands still has none.
const REQUESTS_MIN: f64 = 10.0;

/// The rate of requests to one service, whichever release they went to, the recent ones counting more.
#[derive(Debug, Clone, Default)]
pub(crate) struct RequestRate {
    watched: Duration,
    requests: f64,
    seconds: f64,
}

impl RequestRate {
    /// Takes what came in one stretch of time.
    pub(crate) fn add(&mut self, block: &Block) {
        let seconds = block.duration.as_secs_f64();
        let kept = (-seconds / HALF_LIFE.as_secs_f64()).exp2();
        self.requests = self.requests * kept + block.requests() as f64;
        self.seconds = self.seconds * kept + seconds;
        self.watched = self.watched.saturating_add(block.duration);
    }

    /// Requests a second, once they are known.
    pub(crate) fn per_second(&self) -> Option<f64> {
        let is_known = self.watched >= WATCHED_MIN && self.requests >= REQUESTS_MIN;
        is_known.then(|| self.requests / self.seconds)
    }
}

#[cfg(test)]
mod tests {
    use rollout::Cell;

    use super::*;

    /// What is known after so many seconds with so many requests each.
    fn after(mut rate: RequestRate, seconds: u32, requests: u64) -> RequestRate {
        for _ in 0..seconds {
            let cell = Cell {
                requests,
                ..Cell::default()
            };
            rate.add(&Block {
                duration: Duration::from_secs(1),
                stable: vec![cell],
                ..Block::default()
            });
        }
        rate
    }

    #[test]
    fn is_known_once_there_was_enough_to_know_it_by() {
        let none = RequestRate::default();
        assert_eq!(none.per_second(), None);
        assert_eq!(after(none.clone(), 29, 50).per_second(), None);
        let steady = after(none.clone(), 30, 50).per_second().unwrap();
        assert!((steady - 50.0).abs() < 1e-9, "{steady}");
        assert_eq!(after(none, 3_600, 0).per_second(), None, "it stands still");
    }

    #[test]
    fn follows_the_traffic_within_minutes() {
        let busy = after(RequestRate::default(), 3_600, 100);
        let half = after(busy.clone(), 300, 0).per_second().unwrap();
        assert!((half - 50.0).abs() < 0.1, "{half}");
        assert_eq!(after(busy, 3_600 * 4, 0).per_second(), None);
    }
}
