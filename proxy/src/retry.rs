//! What may be tried again after an attempt failed. Pure: a few facts in, the next step out.
//!
//! Two kinds of second attempt. A *retry* goes to another endpoint of the same release, at most once for each release.
//! The *shield* replays on stable what the canary failed, at most once. Both only where repeating is safe: what was not
//! sent at all, or a request that may be repeated and whose body is still there.

use http::{HeaderMap, Method};
use proxy_api::{Arm, Outcome, Shield};

/// The header that makes any request repeatable
/// (draft-ietf-httpapi-idempotency-key-header, and what large APIs do with it).
pub(crate) const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Whether doing a request twice is the same as doing it once: the idempotent methods of RFC 9110, 9.2.2, and what
/// carries an `Idempotency-Key`. That its body is still there is another question: of a call of gRPC it never is, once sent.
pub(crate) fn is_repeatable(method: &Method, headers: &HeaderMap) -> bool {
    method.is_idempotent() || headers.contains_key(IDEMPOTENCY_KEY)
}

/// What is done after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// The user gets the failure.
    Answer,
    /// Once more on the same release, elsewhere if it has another endpoint.
    Retry,
    /// Once more on stable.
    Shield,
}

/// The attempts of one request so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attempts {
    /// Where the request is being tried now.
    pub(crate) arm: Arm,
    /// Whether the present release was retried already.
    retried: bool,
    /// Whether stable answers for the canary now.
    shielded: bool,
    shield: Shield,
    /// Whether the request may be repeated after it was sent: by its meaning, and because its body is still there.
    repeatable: bool,
}

impl Attempts {
    /// The first attempt of a request routed to `arm`.
    pub(crate) fn new(arm: Arm, shield: Shield, repeatable: bool) -> Self {
        Self {
            arm,
            retried: false,
            shielded: false,
            shield,
            repeatable,
        }
    }

    /// Whether the present attempt is the shield's.
    pub(crate) fn is_shielded(self) -> bool {
        self.shielded
    }

    /// What to do after the present attempt failed. `elsewhere`: the release has an endpoint other than the failed one;
    /// `may_retry` takes what requests have saved for a second attempt. The shield needs no savings: it sends to stable at
    /// most what would have gone there without a canary.
    pub(crate) fn after(
        &mut self,
        failure: Outcome,
        elsewhere: bool,
        may_retry: impl FnOnce() -> bool,
    ) -> Next {
        let next = match self.next(failure, elsewhere) {
            Next::Retry if !may_retry() => self.instead_of_retry(failure),
            next @ (Next::Answer | Next::Retry | Next::Shield) => next,
        };
        match next {
            Next::Answer => {}
            Next::Retry => self.retried = true,
            Next::Shield => {
                self.arm = Arm::Stable;
                self.shielded = true;
                self.retried = false;
            }
        }
        next
    }

    /// Without a second attempt on the canary the shield comes at once, where it may.
    fn instead_of_retry(self, failure: Outcome) -> Next {
        let mut spent = self;
        spent.retried = true;
        match spent.next(failure, true) {
            Next::Shield => Next::Shield,
            Next::Answer | Next::Retry => Next::Answer,
        }
    }

    fn next(self, failure: Outcome, elsewhere: bool) -> Next {
        let on_canary = self.arm == Arm::Canary;
        let shield = on_canary && self.shield == Shield::Idempotent;
        match failure {
            Outcome::Ok => Next::Answer,
            // Nothing was sent: any request may try again.
            Outcome::Connect if elsewhere && !self.retried => Next::Retry,
            Outcome::Connect if shield => Next::Shield,
            // The release's own answer: stable would not do better by asking it again, the canary's user may.
            Outcome::ServerError | Outcome::Timeout | Outcome::Reset
                if shield && self.repeatable =>
            {
                Next::Shield
            }
            // A task that died. With one endpoint on stable the same one is asked again: most likely it only closed a
            // connection that was idle. Replaying is not replayed.
            Outcome::Reset
                if self.repeatable
                    && !self.retried
                    && !self.shielded
                    && (elsewhere || !on_canary) =>
            {
                Next::Retry
            }
            Outcome::Connect | Outcome::ServerError | Outcome::Timeout | Outcome::Reset => {
                Next::Answer
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// Arm, shield, repeatable, elsewhere: the failures in a row, and what is done after each.
    type Case = (Arm, Shield, bool, bool, &'static [(Outcome, Next)]);

    #[test]
    fn does_what_the_table_says() {
        use Arm::{Canary, Stable};
        use Next::{Answer, Retry};
        use Outcome::{Connect, Reset, ServerError, Timeout};
        use Shield::{Idempotent, Off};
        let cases: &[Case] = &[
            (
                Stable,
                Off,
                false,
                true,
                &[(Connect, Retry), (Connect, Answer)],
            ),
            (Stable, Off, false, false, &[(Connect, Answer)]),
            (Stable, Off, false, true, &[(Reset, Answer)]),
            (Stable, Off, true, true, &[(Reset, Retry), (Reset, Answer)]),
            (Stable, Off, true, false, &[(Reset, Retry), (Reset, Answer)]),
            (Stable, Idempotent, true, true, &[(ServerError, Answer)]),
            (Stable, Idempotent, true, true, &[(Timeout, Answer)]),
            (
                Canary,
                Off,
                true,
                true,
                &[(Connect, Retry), (Connect, Answer)],
            ),
            (Canary, Off, true, false, &[(Connect, Answer)]),
            (Canary, Off, true, true, &[(ServerError, Answer)]),
            (Canary, Off, true, true, &[(Reset, Retry), (Reset, Answer)]),
            (Canary, Off, true, false, &[(Reset, Answer)]),
            (
                Canary,
                Idempotent,
                false,
                true,
                &[
                    (Connect, Retry),
                    (Connect, Next::Shield),
                    (Connect, Retry),
                    (Connect, Answer),
                ],
            ),
            (
                Canary,
                Idempotent,
                false,
                false,
                &[(Connect, Next::Shield), (Connect, Answer)],
            ),
            (Canary, Idempotent, false, true, &[(ServerError, Answer)]),
            (
                Canary,
                Idempotent,
                true,
                true,
                &[(ServerError, Next::Shield), (ServerError, Answer)],
            ),
            (
                Canary,
                Idempotent,
                true,
                true,
                &[(Timeout, Next::Shield), (Reset, Answer)],
            ),
            (
                Canary,
                Idempotent,
                true,
                true,
                &[(Connect, Retry), (Reset, Next::Shield), (Connect, Retry)],
            ),
        ];
        for &(arm, shield, repeatable, elsewhere, steps) in cases {
            let mut attempts = Attempts::new(arm, shield, repeatable);
            for &(failure, next) in steps {
                let before = attempts;
                assert_eq!(
                    attempts.after(failure, elsewhere, || true),
                    next,
                    "{failure:?} after {before:?}"
                );
            }
        }
    }

    #[test]
    fn without_savings_nothing_is_retried_and_the_shield_still_holds() {
        let mut stable = Attempts::new(Arm::Stable, Shield::Idempotent, true);
        assert_eq!(stable.after(Outcome::Connect, true, || false), Next::Answer);
        assert_eq!(stable.after(Outcome::Reset, true, || false), Next::Answer);
        let mut canary = Attempts::new(Arm::Canary, Shield::Idempotent, true);
        assert_eq!(canary.after(Outcome::Connect, true, || false), Next::Shield);
        assert_eq!(canary.after(Outcome::Connect, true, || false), Next::Answer);
        let mut open = Attempts::new(Arm::Canary, Shield::Off, true);
        assert_eq!(open.after(Outcome::Connect, true, || false), Next::Answer);
    }

    #[test]
    fn a_post_is_repeatable_with_an_idempotency_key_only() {
        let mut headers = HeaderMap::new();
        assert!(is_repeatable(&Method::GET, &headers) && is_repeatable(&Method::PUT, &headers));
        assert!(
            !is_repeatable(&Method::POST, &headers) && !is_repeatable(&Method::PATCH, &headers)
        );
        headers.insert(IDEMPOTENCY_KEY, HeaderValue::from_static("tweet-1"));
        assert!(is_repeatable(&Method::POST, &headers));
    }
}
