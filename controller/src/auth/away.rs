//! People at the provider's page. To begin a sign-in needs no account, so nothing is kept here of one that has begun: all of
//! it is in a cookie of the browser, signed. However many others begin, nobody's sign-in is lost by it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use rollout::Duration;

use super::people::Next;
use super::sessions::Secret;

/// Most sign-ins that are remembered as come back. One that is forgotten could come back a second time in the browser that
/// began it, and the provider takes no code twice.
const BACK_MAX: usize = 10_000;

/// A person at the provider's page.
#[derive(Debug, Clone)]
pub(super) struct Away {
    /// What the provider sends the browser back with.
    pub(super) state: Secret,
    /// What the code is redeemed with (RFC 7636).
    pub(super) verifier: Secret,
    /// What the ID token has to name.
    pub(super) nonce: Secret,
    /// Where the person goes then.
    pub(super) next: Next,
}

/// Signs people out to the provider, and knows them again.
pub(super) struct Departures {
    /// How long a person may stay away.
    good_for: Duration,
    /// Made at our start: nobody comes back to another process.
    key: hmac::Key,
    /// Who has come back, and when they left.
    back: Mutex<HashMap<String, Duration>>,
}

impl fmt::Debug for Departures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Departures(…)")
    }
}

impl Departures {
    pub(super) fn new(good_for: Duration) -> Self {
        let key: [u8; 32] = rand::random();
        Self {
            good_for,
            key: hmac::Key::new(hmac::HMAC_SHA256, &key),
            back: Mutex::default(),
        }
    }

    /// Lets a person go; the cookie by which they are known again.
    pub(super) fn leave(&self, next: Next, now: Duration) -> (Away, Secret) {
        let state = Secret::random();
        let mut words = format!("{}.{}", state.0, now.as_secs());
        match &next {
            Next::Board => {}
            Next::CommandLine {
                port,
                challenge,
                state,
            } => {
                words.push_str(&format!(".{port}.{challenge}.{state}"));
            }
        }
        let cookie = Secret(format!("{words}.{}", self.sign("cookie", &words)));
        (self.away(state.0, next), cookie)
    }

    /// The person who stands at the door with this cookie, if they have not come back yet; and when they left. Whoever is sent
    /// away again may knock once more.
    pub(super) fn knock(
        &self,
        cookie: &str,
        state: &str,
        now: Duration,
    ) -> Option<(Away, Duration)> {
        let (words, signature) = cookie.rsplit_once('.')?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        let signed = format!("cookie {words}");
        hmac::verify(&self.key, signed.as_bytes(), &signature).ok()?;
        let words: Vec<&str> = words.split('.').collect();
        let (ours, since, next) = match words[..] {
            [ours, since] => (ours, since, Next::Board),
            [ours, since, port, challenge, state] => {
                let next = Next::CommandLine {
                    port: port.parse().ok()?,
                    challenge: challenge.to_owned(),
                    state: state.to_owned(),
                };
                (ours, since, next)
            }
            _ => return None,
        };
        let since = Duration::from_secs(since.parse().ok()?);
        let is_late = now.saturating_sub(since) >= self.good_for;
        if ours != state || is_late || self.back().contains_key(state) {
            return None;
        }
        Some((self.away(state.to_owned(), next), since))
    }

    /// Lets in a person who left then. Whether they are the first by this name: nobody comes back twice.
    pub(super) fn come_back(&self, away: &Away, since: Duration, now: Duration) -> bool {
        let mut back = self.back();
        if back.len() >= BACK_MAX {
            back.retain(|_, since| now.saturating_sub(*since) < self.good_for);
        }
        if back.len() >= BACK_MAX {
            let oldest = back.iter().min_by_key(|(_, since)| **since);
            let oldest = oldest.map(|(state, _)| state.clone());
            oldest.map(|state| back.remove(&state));
        }
        back.insert(away.state.0.clone(), since).is_none()
    }

    fn back(&self) -> MutexGuard<'_, HashMap<String, Duration>> {
        self.back.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn away(&self, state: String, next: Next) -> Away {
        Away {
            verifier: Secret(self.sign("verifier", &state)),
            nonce: Secret(self.sign("nonce", &state)),
            state: Secret(state),
            next,
        }
    }

    /// 43 characters that only we can make of a text, for one purpose.
    fn sign(&self, purpose: &str, text: &str) -> String {
        let tag = hmac::sign(&self.key, format!("{purpose} {text}").as_bytes());
        URL_SAFE_NO_PAD.encode(tag.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTES: Duration = Duration::from_secs(600);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn command_line() -> Next {
        Next::CommandLine {
            port: 4567,
            challenge: "c".repeat(43),
            state: "s-_1".to_owned(),
        }
    }

    fn come_back(doors: &Departures, cookie: &str, state: &str, now: Duration) -> Option<Away> {
        let (away, since) = doors.knock(cookie, state, now)?;
        doors.come_back(&away, since, now).then_some(away)
    }

    #[test]
    fn each_comes_back_once_in_its_own_browser_and_in_time() {
        let doors = Departures::new(MINUTES);
        for next in [Next::Board, command_line()] {
            let (away, cookie) = doors.leave(next.clone(), at(100));
            let (other, _) = doors.leave(next.clone(), at(100));
            assert_eq!((away.verifier.0.len(), away.nonce.0.len()), (43, 43));
            assert_ne!(away.verifier, away.nonce);
            assert_ne!(away.verifier, other.verifier);
            let come = |cookie: &str, state: &str, now| come_back(&doors, cookie, state, at(now));
            assert!(come(&cookie.0, &away.state.0, 700).is_none(), "too late");
            assert!(come(&cookie.0, &other.state.0, 101).is_none());
            let forged = cookie.0.replacen(".100.", ".900.", 1);
            assert!(come(&forged, &away.state.0, 901).is_none());
            let another = Departures::new(MINUTES);
            let there = another.knock(&cookie.0, &away.state.0, at(101));
            assert!(there.is_none());
            for junk in ["", ".", "a.b", "a.b.c"] {
                assert!(come(junk, "a", 101).is_none(), "{junk}");
            }
            // However often they knock before.
            for _ in 0..3 {
                assert!(doors.knock(&cookie.0, &away.state.0, at(699)).is_some());
            }
            let back = come(&cookie.0, &away.state.0, 699).unwrap();
            assert_eq!(
                (back.verifier, back.nonce, back.next),
                (away.verifier, away.nonce, next)
            );
            assert!(come(&cookie.0, &away.state.0, 699).is_none(), "twice");
        }
    }

    #[test]
    fn nobody_is_thrown_out_by_others_who_begin_or_come_back() {
        let doors = Departures::new(MINUTES);
        let (away, cookie) = doors.leave(Next::Board, at(0));
        for _ in 0..BACK_MAX + 10 {
            let (other, cookie) = doors.leave(Next::Board, at(1));
            assert!(come_back(&doors, &cookie.0, &other.state.0, at(1)).is_some());
        }
        assert!(come_back(&doors, &cookie.0, &away.state.0, at(30)).is_some());
        assert_eq!(doors.back.lock().unwrap().len(), BACK_MAX);
    }
}
