//! The time. One clock is passed to the app; nothing reads another.

use std::fmt;
use std::sync::Arc;

use rollout::{Duration, Timestamp};

/// The time of day, for the record, and time that only passes, for measuring.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The time of day. May jump; nothing is measured with it.
    fn now(&self) -> Timestamp;

    /// Time passed since some moment before. Never jumps (F39).
    fn elapsed(&self) -> Duration;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: tokio::time::Instant,
}

impl SystemClock {
    /// A clock whose measured time begins now.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            start: tokio::time::Instant::now(),
        })
    }
}

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the time of day"
    )]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}
