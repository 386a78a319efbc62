//! A clock that goes as it is told.

use std::sync::{Arc, Mutex, PoisonError};

use friday::clock::Clock;
use rollout::{Duration, Timestamp};

/// A clock whose two times are set apart: what passes, and the time of day, which may jump (F39).
#[derive(Debug)]
pub struct FakeClock {
    hands: Mutex<Hands>,
    /// When it began to go with tokio's time, if it does.
    running_since: Option<tokio::time::Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Hands {
    now: Timestamp,
    elapsed: Duration,
}

impl FakeClock {
    /// A clock that stands until it is told to go on.
    #[must_use]
    pub fn standing(now: Timestamp) -> Arc<Self> {
        Arc::new(Self {
            hands: Mutex::new(Hands {
                now,
                elapsed: Duration::ZERO,
            }),
            running_since: None,
        })
    }

    /// A clock that also goes with tokio's time, which a test may pause: for simulations.
    #[must_use]
    pub fn running(now: Timestamp) -> Arc<Self> {
        Arc::new(Self {
            hands: Mutex::new(Hands {
                now,
                elapsed: Duration::ZERO,
            }),
            running_since: Some(tokio::time::Instant::now()),
        })
    }

    /// Lets time pass, by both of its measures.
    pub fn pass(&self, time: Duration) {
        let mut hands = self.hands.lock().unwrap_or_else(PoisonError::into_inner);
        hands.now += time;
        hands.elapsed += time;
    }

    /// Sets the time of day, forwards or back. No time passes.
    pub fn set_now(&self, now: Timestamp) {
        let run = self.run();
        self.hands
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .now = now - run;
    }

    fn run(&self) -> Duration {
        self.running_since
            .map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn hands(&self) -> Hands {
        *self.hands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Timestamp {
        self.hands().now + self.run()
    }

    fn elapsed(&self) -> Duration {
        self.hands().elapsed + self.run()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn f39_a_step_of_the_time_of_day_is_no_time_that_passed() {
        let clock = FakeClock::standing(Timestamp::UNIX_EPOCH + 2 * HOUR);
        clock.pass(Duration::from_secs(5));
        clock.set_now(clock.now() - HOUR);
        assert_eq!(clock.elapsed(), Duration::from_secs(5));
        assert_eq!(
            clock.now(),
            Timestamp::UNIX_EPOCH + HOUR + Duration::from_secs(5)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn runs_with_paused_time() {
        let clock = FakeClock::running(Timestamp::UNIX_EPOCH);
        tokio::time::sleep(HOUR).await;
        clock.set_now(Timestamp::UNIX_EPOCH);
        tokio::time::sleep(HOUR).await;
        assert_eq!(
            (clock.now(), clock.elapsed()),
            (Timestamp::UNIX_EPOCH + HOUR, 2 * HOUR)
        );
    }
}
