//! When to come back to X after a failure. Pure: what happened goes in, how long to wait comes out.
//!
//! The numbers are X's own (docs.x.com/x-api/fundamentals/handling-disconnections).

use std::time::Duration;

use rollout::Timestamp;

/// Longest wait that a rate limit's reset can ask for. X counts requests over 15 minutes, so no honest reset lies further
/// away; one minute is for clocks that differ.
const RESET_MAX: Duration = Duration::from_secs(16 * 60);

/// The times of one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// Silence after which a connection counts as lost.
    pub silence_max: Duration,
    /// How much longer each wait after a network error is than the one before.
    pub network_step: Duration,
    /// Longest wait after a network error.
    pub network_max: Duration,
    /// First wait after an HTTP error; it doubles.
    pub http_first: Duration,
    /// Longest wait after an HTTP error.
    pub http_max: Duration,
    /// First wait after a 429; it doubles.
    pub limited_first: Duration,
    /// Longest wait after a 429 that names no reset.
    pub limited_max: Duration,
}

impl Schedule {
    /// As X asks for it. A keep-alive comes every 20 s; one second is for its way.
    pub const X: Self = Self {
        silence_max: Duration::from_secs(21),
        network_step: Duration::from_millis(250),
        network_max: Duration::from_secs(16),
        http_first: Duration::from_secs(5),
        http_max: Duration::from_secs(320),
        limited_first: Duration::from_secs(60),
        limited_max: RESET_MAX,
    };

    /// The same, so many times as quick: for tests against a server of their own.
    ///
    /// # Panics
    /// If `times` is 0.
    #[must_use]
    pub fn sped_up(self, times: u32) -> Self {
        Self {
            silence_max: self.silence_max / times,
            network_step: self.network_step / times,
            network_max: self.network_max / times,
            http_first: self.http_first / times,
            http_max: self.http_max / times,
            limited_first: self.limited_first / times,
            limited_max: self.limited_max / times,
        }
    }
}

/// How an attempt or a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// A connection that gave the stream was lost after this time.
    Lost { lived: Duration },
    /// No connection, or none that answered.
    Network,
    /// An answer that is neither 200 nor 429.
    Http,
    /// 429, perhaps with the time at which the limit ends.
    Limited { reset: Option<Timestamp> },
}

impl Failure {
    /// The metric's label.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Lost { .. } => "lost",
            Self::Network => "network",
            Self::Http => "http",
            Self::Limited { .. } => "limited",
        }
    }
}

/// The failures in a row, by kind.
#[derive(Debug)]
pub(super) struct Backoff {
    schedule: Schedule,
    network: u32,
    http: u32,
    limited: u32,
}

impl Backoff {
    pub(super) const fn new(schedule: Schedule) -> Self {
        Self {
            schedule,
            network: 0,
            http: 0,
            limited: 0,
        }
    }

    /// How long to wait now.
    pub(super) fn wait(&mut self, failure: Failure, now: Timestamp) -> Duration {
        let Schedule {
            silence_max,
            network_step,
            network_max,
            http_first,
            http_max,
            limited_first,
            limited_max,
        } = self.schedule;
        match failure {
            Failure::Lost { lived } => {
                (self.http, self.limited) = (0, 0);
                // X asks to come back at once. A server that ends every connection early would then be asked without
                // pause, so only a connection that lasted starts the count again.
                if lived >= silence_max {
                    self.network = 0;
                }
                let wait = network_step.saturating_mul(self.network);
                self.network = self.network.saturating_add(1);
                wait.min(network_max)
            }
            Failure::Network => {
                self.network = self.network.saturating_add(1);
                network_step.saturating_mul(self.network).min(network_max)
            }
            Failure::Http => {
                self.http = self.http.saturating_add(1);
                doubled(http_first, self.http).min(http_max)
            }
            Failure::Limited { reset } => {
                self.limited = self.limited.saturating_add(1);
                let own = doubled(limited_first, self.limited).min(limited_max);
                let until_reset = reset.map_or(Duration::ZERO, |reset| {
                    Duration::try_from(reset.duration_since(now)).unwrap_or_default()
                });
                // Both are asked for: a minute and more, and not before the reset.
                own.max(until_reset.min(RESET_MAX))
            }
        }
    }
}

fn doubled(first: Duration, failures: u32) -> Duration {
    first.saturating_mul(1 << failures.saturating_sub(1).min(16))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn waits(failures: impl IntoIterator<Item = Failure>) -> Vec<u128> {
        let mut backoff = Backoff::new(Schedule::X);
        let waits = failures.into_iter().map(|f| backoff.wait(f, NOW));
        waits.map(|wait| wait.as_millis()).collect()
    }

    #[test]
    fn f45_waits_as_the_documentation_asks() {
        let network = waits([Failure::Network; 70]);
        assert_eq!(network[..4], [250, 500, 750, 1_000]);
        assert_eq!(network[63..], [16_000; 7]);
        let http = waits([Failure::Http; 9]);
        let doubling = [5_000, 10_000, 20_000, 40_000, 80_000, 160_000, 320_000];
        assert_eq!(http[..7], doubling);
        assert_eq!(http[7..], [320_000; 2]);
        let limited = waits([Failure::Limited { reset: None }; 4]);
        assert_eq!(limited, [60_000, 120_000, 240_000, 480_000]);
    }

    #[test]
    fn f45_waits_for_the_reset_of_a_rate_limit_and_never_for_ever() {
        let at = |seconds| Failure::Limited {
            reset: Some(Timestamp::from_second(seconds).unwrap()),
        };
        assert_eq!(waits([at(300)]), [300_000]);
        assert_eq!(waits([at(10)]), [60_000], "a minute at least");
        assert_eq!(waits([at(-10)]), [60_000]);
        assert_eq!(waits([at(1_000_000)]), [960_000]);
    }

    #[test]
    fn f45_comes_back_at_once_after_a_connection_that_lasted_and_not_without_pause() {
        let lasted = Failure::Lost {
            lived: Duration::from_secs(60),
        };
        let brief = Failure::Lost {
            lived: Duration::from_secs(1),
        };
        assert_eq!(waits([lasted, Failure::Network, lasted]), [0, 500, 0]);
        assert_eq!(waits([brief; 4]), [0, 250, 500, 750]);
        assert_eq!(waits([Failure::Http, brief, Failure::Http])[2], 5_000);
    }
}
