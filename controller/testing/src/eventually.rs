//! Waiting for a condition.

use std::fmt::Debug;

use rollout::Duration;
use tokio::time::{self, Instant};

/// How often it is looked. A test that waits for something quick loses no more than this.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Looks at a state again and again until it is as `what` says, and returns it.
///
/// # Panics
/// When it is not so within `limit`; the message says what was waited for, and the last state seen.
pub async fn eventually<S: Debug>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> S,
    mut holds: impl FnMut(&S) -> bool,
) -> S {
    let deadline = Instant::now() + limit;
    loop {
        let state = look().await;
        if holds(&state) {
            return state;
        }
        assert!(
            Instant::now() < deadline,
            "not within {limit:?}: {what}; last seen: {state:#?}"
        );
        time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn returns_the_state_that_was_waited_for() {
        let mut count = 0;
        let seen = eventually(
            "three",
            Duration::from_secs(1),
            async || {
                count += 1;
                count
            },
            |count| *count == 3,
        )
        .await;
        assert_eq!(seen, 3);
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "not within 1s: something else; last seen: \"this\"")]
    async fn says_what_was_seen_instead() {
        eventually(
            "something else",
            Duration::from_secs(1),
            async || "this",
            |_| false,
        )
        .await;
    }
}
