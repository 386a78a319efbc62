//! So many at once, and then one in a while: for what needs no account and costs somebody else something.

use std::sync::{Mutex, PoisonError};

use rollout::Duration;

/// A bucket of tokens that fills again, as one moment: when it will be full.
#[derive(Debug)]
pub(super) struct Bucket {
    /// How long one token takes.
    every: Duration,
    /// How long all of them take.
    whole: Duration,
    full_at: Mutex<Duration>,
}

impl Bucket {
    /// One of `size` tokens, of which `per_second` come back in a second.
    pub(super) fn new(size: u32, per_second: u32) -> Self {
        let every = Duration::from_secs(1) / per_second;
        Self {
            every,
            whole: every * size,
            full_at: Mutex::default(),
        }
    }

    /// Takes one, if there is one.
    pub(super) fn take(&self, now: Duration) -> bool {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let after = now.max(*full_at) + self.every;
        let is_there = after <= now + self.whole;
        if is_there {
            *full_at = after;
        }
        is_there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_what_it_has_and_then_what_comes_back() {
        let bucket = Bucket::new(5, 10);
        let taken = |at: u64| {
            let now = Duration::from_millis(at);
            (0..100).filter(|_| bucket.take(now)).count()
        };
        assert_eq!(taken(0), 5);
        assert_eq!(taken(99), 0);
        assert_eq!(taken(100), 1);
        assert_eq!(taken(400), 3);
        assert_eq!(taken(60_000), 5, "never more than it holds");
    }
}
