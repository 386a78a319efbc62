//! How long to wait before the next attempt, and how often to speak of it.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::seeded::{stable_hash, unit};

/// First wait. A worker that was killed is back within a second, so the first attempts should come quickly.
const FIRST: Duration = Duration::from_millis(50);

/// Longest wait: 64 tasks that are held back ask at most about 40 times a second together.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// The wait after the `failures`-th failure (from 1): it doubles up to [`WAIT_MAX`], and lies between half of that and
/// all of it, so that those who failed together do not come again together. `who` makes one caller's waits its own.
pub(crate) fn wait_after(failures: u32, who: &str) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let whole = FIRST.saturating_mul(1 << doublings).min(WAIT_MAX);
    let jitter = unit(stable_hash(format!("{who}/{failures}").as_bytes()));
    whole.mul_f64(0.5 + jitter / 2.0)
}

/// How often the same trouble is logged. When a proxy dies, thousands of tasks have one trouble, not thousands.
const SPEAK_EVERY: Duration = Duration::from_secs(1);

/// Keeps a log readable while the same thing fails again and again.
#[derive(Debug, Default)]
pub(crate) struct Hush(Mutex<Option<Instant>>);

impl Hush {
    /// Whether it is time to say it again.
    pub(crate) fn may_speak(&self) -> bool {
        let mut spoken = self.0.lock().expect("nothing here panics");
        let now = Instant::now();
        if spoken.is_some_and(|at| now - at < SPEAK_EVERY) {
            return false;
        }
        *spoken = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_limit_and_differs_between_callers() {
        assert!(wait_after(1, "a") >= FIRST / 2 && wait_after(1, "a") <= FIRST);
        assert!(wait_after(1_000, "a") <= WAIT_MAX && wait_after(1_000, "a") >= WAIT_MAX / 2);
        assert_ne!(wait_after(5, "a"), wait_after(5, "b"));
    }
}
