//! Who is signed in, in memory: a new controller asks everybody to sign in again. Nothing of a session's token is kept but
//! its hash.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use rollout::Duration;
use sha2::{Digest as _, Sha256};

use super::Caller;
use crate::store::hex;

/// How the token of a session begins.
pub(super) const PREFIX: &str = "friday_session_";

/// Most sessions at a time; the one that would end first makes room. A person has two or three.
const SESSIONS_MAX: usize = 10_000;

/// A secret that nothing prints.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    /// 256 random bits, in 64 digits.
    pub(crate) fn random() -> Self {
        // The generator is a cryptographic one, seeded by the system.
        Self(hex(&rand::random::<[u8; 32]>()))
    }
}

/// A person who is signed in.
#[derive(Debug, Clone)]
pub(super) struct Session {
    /// Who, with what is granted.
    pub(super) caller: Caller,
    /// What the provider gave to ask for the person again.
    pub(super) refresh: Option<Secret>,
    /// When it ends, by the clock that only passes.
    pub(super) ends: Duration,
}

/// All sessions, by the hash of their token.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<HashMap<[u8; 32], Session>>);

impl Sessions {
    /// Begins one; its token.
    pub(super) fn begin(&self, session: Session, now: Duration) -> Secret {
        let token = Secret(format!("{PREFIX}{}", Secret::random().0));
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if held.len() >= SESSIONS_MAX {
            held.retain(|_, session| session.ends > now);
        }
        if held.len() >= SESSIONS_MAX {
            let first = held.iter().min_by_key(|(_, session)| session.ends);
            let first = first.map(|(hash, _)| *hash);
            first.map(|hash| held.remove(&hash));
        }
        held.insert(hash(&token.0), session);
        token
    }

    /// Whose token it is, if its session has not ended.
    pub(super) fn of(&self, token: &str, now: Duration) -> Option<Session> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = hash(token);
        let found = held.get(&hash)?;
        if found.ends <= now {
            held.remove(&hash);
            return None;
        }
        Some(found.clone())
    }

    /// Ends one, whether or not there is one.
    pub(super) fn end(&self, token: &str) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove(&hash(token));
    }
}

/// A token is 256 random bits: one round is enough, and looking it up by its hash tells nobody how much of it is right.
fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Role;

    #[test]
    fn a_session_is_good_until_it_ends() {
        let sessions = Sessions::default();
        let secs = Duration::from_secs;
        let session = |ends| Session {
            caller: Caller::of_token("dana", Role::Viewer),
            refresh: None,
            ends: secs(ends),
        };
        let (short, long) = (
            sessions.begin(session(10), secs(0)),
            sessions.begin(session(20), secs(0)),
        );
        assert_ne!(short, long);
        assert!(!format!("{short:?}{sessions:?}").contains(&short.0[PREFIX.len()..]));
        assert!(sessions.of(&short.0, secs(9)).is_some());
        assert!(sessions.of(&short.0, secs(10)).is_none());
        assert!(sessions.of(&short.0, secs(9)).is_none(), "it is gone");
        assert!(sessions.of("friday_session_x", secs(0)).is_none());
        sessions.end(&long.0);
        assert!(sessions.of(&long.0, secs(0)).is_none());
    }

    #[test]
    fn the_one_that_would_end_first_makes_room() {
        let sessions = Sessions::default();
        let secs = Duration::from_secs;
        let begin = |ends| {
            let session = Session {
                caller: Caller::of_token("dana", Role::Viewer),
                refresh: None,
                ends: secs(ends),
            };
            sessions.begin(session, secs(0))
        };
        let first = begin(10);
        let others: Vec<Secret> = (0..SESSIONS_MAX).map(|_| begin(20)).collect();
        assert!(sessions.of(&first.0, secs(0)).is_none());
        assert!(
            others
                .iter()
                .all(|token| sessions.of(&token.0, secs(0)).is_some())
        );
    }
}
