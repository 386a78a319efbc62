//! The lease of a rollout: somebody waits for it and says so again and again; when the word stops, what was agreed upon
//! happens (F38). Pure.
//!
//! A job that is cancelled, killed or timed out renews nothing. Time is what passed while the controller was up: neither
//! its downtime nor a jump of the clock ends a lease, and after its restart a whole period is granted again.

use rollout::Duration;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Who is named as the author of what a lost lease leads to.
pub const LEASE: &str = "lease";

/// Shortest period. It is renewed three times in one; below this a busy machine would lose it.
pub const PERIOD_MIN: Duration = Duration::from_secs(3);

/// Longest period. A release that nobody watches should not go on for longer than this.
pub const PERIOD_MAX: Duration = Duration::from_secs(60 * 60);

/// The period when nobody says: what GitLab takes to notice a lost runner is longer.
pub const PERIOD: Duration = Duration::from_secs(90);

/// Longest name of a holder, in bytes.
pub const HOLDER_BYTES_MAX: usize = 200;

/// What happens to a rollout whose lease is lost.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum OnLost {
    /// It stays at its weight, judged on, until somebody comes back or a deadline ends it
    Hold,
    /// Back to stable
    #[default]
    Abort,
}

/// What a holder asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// Who holds it: a name of the job, the same in every renewal. At most [`HOLDER_BYTES_MAX`] bytes.
    pub holder: String,
    /// For how long without a renewal it lasts, in milliseconds; [`PERIOD_MIN`] to [`PERIOD_MAX`].
    pub period_ms: u64,
    /// What happens then.
    #[serde(default)]
    pub on_lost: OnLost,
}

impl Terms {
    /// For how long without a renewal it lasts.
    #[must_use]
    pub fn period(&self) -> Duration {
        Duration::from_millis(self.period_ms)
    }

    /// Whether they are within the limits.
    ///
    /// # Errors
    /// They are not: the field, and what was expected.
    pub fn check(&self) -> Result<(), String> {
        let length = self.holder.trim().len();
        if length == 0 || length > HOLDER_BYTES_MAX {
            return Err(format!(
                "lease.holder must have 1 to {HOLDER_BYTES_MAX} bytes; it has {length}"
            ));
        }
        if !(PERIOD_MIN..=PERIOD_MAX).contains(&self.period()) {
            return Err(format!(
                "lease.period_ms must be {} to {}; it is {}",
                PERIOD_MIN.as_millis(),
                PERIOD_MAX.as_millis(),
                self.period_ms
            ));
        }
        Ok(())
    }
}

/// How a lease stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Somebody waits.
    Held,
    /// Nobody does any more, and what was agreed upon was ordered.
    Lost,
    /// Nobody does any more, and a person has taken over since.
    Settled,
}

/// A lease, as it is saved with its rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lease {
    /// What was agreed upon.
    pub terms: Terms,
    /// How it stands.
    pub state: State,
    /// Time without a renewal, as far as this controller saw it pass.
    #[serde(skip)]
    silent: Duration,
}

/// What is to be done about a rollout because of its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// It shall stay as it is.
    Pause,
    /// It shall go back.
    Abort,
    /// Its holder is back: it shall go on where it was held.
    Resume,
}

impl Lease {
    /// A new one, just taken.
    #[must_use]
    pub fn new(terms: Terms) -> Self {
        Self {
            terms,
            state: State::Held,
            silent: Duration::ZERO,
        }
    }

    /// Time passes.
    #[must_use]
    pub fn pass(&mut self, passed: Duration) -> Due {
        if self.state != State::Held {
            return Due::Nothing;
        }
        self.silent = self.silent.saturating_add(passed);
        if self.silent < self.terms.period() {
            return Due::Nothing;
        }
        self.lose()
    }

    /// The holder lets go, or was silent for too long.
    #[must_use]
    pub fn lose(&mut self) -> Due {
        if self.state != State::Held {
            return Due::Nothing;
        }
        self.state = State::Lost;
        match self.terms.on_lost {
            OnLost::Hold => Due::Pause,
            OnLost::Abort => Due::Abort,
        }
    }

    /// Somebody waits, from now on by these terms: its holder, or the next one.
    #[must_use]
    pub fn take(&mut self, terms: Terms) -> Due {
        let was_held_back = self.state == State::Lost && self.terms.on_lost == OnLost::Hold;
        *self = Self::new(terms);
        if was_held_back {
            Due::Resume
        } else {
            Due::Nothing
        }
    }

    /// A person gave an order: what the lease held back is theirs now.
    pub fn person(&mut self) {
        if self.state == State::Lost {
            self.state = State::Settled;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(on_lost: OnLost) -> Terms {
        Terms {
            holder: "job 7".into(),
            period_ms: 90_000,
            on_lost,
        }
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn f38_is_lost_after_a_whole_period_of_silence_and_says_so_once() {
        for (on_lost, due) in [(OnLost::Hold, Due::Pause), (OnLost::Abort, Due::Abort)] {
            let mut lease = Lease::new(terms(on_lost));
            assert_eq!(lease.pass(MINUTE), Due::Nothing);
            assert_eq!(lease.pass(Duration::from_secs(29)), Due::Nothing);
            assert_eq!(lease.pass(Duration::from_secs(1)), due);
            assert_eq!(lease.state, State::Lost);
            assert_eq!(lease.pass(MINUTE), Due::Nothing, "once");
            assert_eq!(lease.lose(), Due::Nothing, "once");
        }
    }

    #[test]
    fn a_renewal_grants_a_whole_period_again() {
        let mut lease = Lease::new(terms(OnLost::Abort));
        for _ in 0..100 {
            assert_eq!(lease.pass(MINUTE), Due::Nothing);
            assert_eq!(lease.take(terms(OnLost::Abort)), Due::Nothing);
        }
    }

    #[test]
    fn after_a_restart_of_the_controller_a_whole_period_is_granted() {
        let mut lease = Lease::new(terms(OnLost::Abort));
        assert_eq!(lease.pass(MINUTE), Due::Nothing);
        let text = serde_json::to_string(&lease).unwrap();
        let mut read: Lease = serde_json::from_str(&text).unwrap();
        assert_eq!(read.pass(MINUTE), Due::Nothing);
        assert_eq!(read.pass(MINUTE), Due::Abort);
        let text = serde_json::to_string(&read).unwrap();
        let mut lost: Lease = serde_json::from_str(&text).unwrap();
        assert_eq!(
            lost.pass(MINUTE),
            Due::Nothing,
            "what was ordered is not ordered again"
        );
    }

    #[test]
    fn whoever_comes_back_goes_on_unless_a_person_took_over() {
        let mut lease = Lease::new(terms(OnLost::Hold));
        assert_eq!(lease.lose(), Due::Pause);
        assert_eq!(lease.take(terms(OnLost::Hold)), Due::Resume);
        assert_eq!(lease.lose(), Due::Pause);
        lease.person();
        assert_eq!(lease.state, State::Settled);
        assert_eq!(lease.take(terms(OnLost::Hold)), Due::Nothing);
        lease.person();
        assert_eq!(
            lease.state,
            State::Held,
            "an order takes nobody's lease away"
        );
        let mut gone = Lease::new(terms(OnLost::Abort));
        assert_eq!(gone.lose(), Due::Abort);
        assert_eq!(
            gone.take(terms(OnLost::Abort)),
            Due::Nothing,
            "back is back"
        );
    }

    #[test]
    fn terms_have_limits() {
        let cases = [
            (String::new(), 90_000, false),
            (" ".into(), 90_000, false),
            ("x".repeat(HOLDER_BYTES_MAX + 1), 90_000, false),
            ("job".into(), 2_999, false),
            ("job".into(), 3_000, true),
            ("job".into(), 3_600_000, true),
            ("job".into(), 3_600_001, false),
            ("job".into(), u64::MAX, false),
        ];
        for (holder, period_ms, is_good) in cases {
            let terms = Terms {
                holder,
                period_ms,
                on_lost: OnLost::Abort,
            };
            assert_eq!(terms.check().is_ok(), is_good, "{terms:?}");
        }
    }
}
