//! The issuer's keys, as they were last had: asked for again at most once a minute, kept for a day while the issuer is down.

use std::sync::{Arc, Mutex, PoisonError};

use rollout::Duration;
use tokio::time::timeout;

use super::jws::KeySet;
use super::provider::Provider;
use super::refusal::Refusal;
use crate::clock::Clock;
use crate::reconciler::chain;

/// Shortest time between two fetches: whoever makes up names of keys makes us ask no more often.
const FETCH_EVERY: Duration = Duration::from_secs(60);

/// Shortest time between two fetches while there are no keys at all: nobody gets in until there are.
const FIRST_FETCH_EVERY: Duration = Duration::from_secs(5);

/// Age from which keys are fetched again though all that are asked for are there: one that was taken back is not in the next
/// set.
const FRESH: Duration = Duration::from_secs(60 * 60);

/// Longest time for which the last good set is used while the issuer gives no other: what GitLab lets its keys be cached for.
const KEPT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The keys.
#[derive(Debug)]
pub(super) struct Keys {
    clock: Arc<dyn Clock>,
    held: Mutex<Held>,
    /// One fetch at a time.
    fetching: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Held {
    set: Arc<KeySet>,
    /// When the set was had, by the clock that only passes.
    had: Option<Duration>,
    /// When the last fetch began, whatever came of it.
    tried: Option<Duration>,
    /// Why the last one brought nothing.
    trouble: Option<String>,
}

/// How the keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeysState {
    /// Whether there are any that count.
    pub(crate) is_there: bool,
    /// Why none could be had at the last attempt.
    pub(crate) trouble: Option<String>,
}

/// What is to be done for a key.
#[derive(Debug, PartialEq)]
enum Need {
    /// It is there.
    Nothing(Arc<KeySet>),
    /// It may be there after a fetch; until then it is verified with these, if there are any.
    Fetch(Option<Arc<KeySet>>),
    /// It is not, and it is too early to ask again.
    Wait(Option<Arc<KeySet>>),
}

impl Held {
    /// Pure: what a key of this name needs now.
    fn need(&self, key_id: &str, now: Duration) -> Need {
        let age = self.had.map(|had| now.saturating_sub(had));
        let kept = age
            .is_some_and(|age| age <= KEPT_MAX)
            .then(|| Arc::clone(&self.set));
        let every = if kept.is_some() {
            FETCH_EVERY
        } else {
            FIRST_FETCH_EVERY
        };
        let may_ask = self
            .tried
            .is_none_or(|tried| now.saturating_sub(tried) >= every);
        let is_known = kept.as_ref().is_some_and(|set| set.has(key_id));
        let is_fresh = age.is_some_and(|age| age <= FRESH);
        match kept {
            Some(set) if is_known && (is_fresh || !may_ask) => Need::Nothing(set),
            kept if may_ask => Need::Fetch(kept),
            kept => Need::Wait(kept),
        }
    }
}

impl Keys {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            held: Mutex::default(),
            fetching: tokio::sync::Mutex::new(()),
        }
    }

    fn need(&self, key_id: &str) -> Need {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.need(key_id, self.clock.elapsed())
    }

    /// A set that most likely has a key of this name.
    ///
    /// # Errors
    /// There are no keys at all.
    pub(super) async fn with(
        &self,
        key_id: &str,
        provider: &Provider,
    ) -> Result<Arc<KeySet>, Refusal> {
        let none = || Refusal::NoKeys {
            issuer: provider.issuer().to_owned(),
        };
        match self.need(key_id) {
            Need::Nothing(set) => return Ok(set),
            Need::Wait(kept) => return kept.ok_or_else(none),
            Need::Fetch(_) => {}
        }
        let _one_at_a_time = self.fetching.lock().await;
        // Another may have fetched while we waited.
        let kept = match self.need(key_id) {
            Need::Nothing(set) => return Ok(set),
            Need::Wait(kept) => return kept.ok_or_else(none),
            Need::Fetch(kept) => kept,
        };
        let now = self.clock.elapsed();
        self.note(|held| held.tried = Some(now));
        let set = match provider.keys().await {
            Ok(document) => KeySet::read(&document),
            Err(error) => {
                self.note(|held| held.trouble = Some(chain(&error)));
                tracing::warn!(error = %chain(&error), "the issuer's keys cannot be had; the last good ones are used");
                return kept.ok_or_else(none);
            }
        };
        let Some(set) = set.map(Arc::new) else {
            let words = format!("{} has no key that we can use", provider.issuer());
            self.note(|held| held.trouble = Some(words));
            tracing::warn!(issuer = %provider.issuer(), "the issuer's document of keys holds none that we can use; the last good ones are used");
            return kept.ok_or_else(none);
        };
        self.note(|held| {
            held.set = Arc::clone(&set);
            held.had = Some(now);
            held.trouble = None;
        });
        Ok(set)
    }

    /// How they are. They are asked for, for at most `limit`, unless that was done just now.
    pub(super) async fn state(&self, provider: &Provider, limit: Duration) -> KeysState {
        // No key has this name, so all are looked at anew.
        let asked = timeout(limit, self.with("", provider)).await;
        let trouble = match asked {
            Ok(_) => self.note(|held| held.trouble.clone()),
            Err(_) => Some(format!("no answer within {limit:?}")),
        };
        let is_there = match self.need("") {
            Need::Nothing(_) => true,
            Need::Fetch(kept) | Need::Wait(kept) => kept.is_some(),
        };
        KeysState { is_there, trouble }
    }

    fn note<T>(&self, change: impl FnOnce(&mut Held) -> T) -> T {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut held)
    }
}

#[cfg(test)]
mod tests {
    use controller_testing::identity::{Person, Provider as StandIn, Signer};
    use rollout::Timestamp;

    use super::*;

    /// A clock that is set by hand.
    #[derive(Debug, Default)]
    struct ByHand(Mutex<Duration>);

    impl ByHand {
        fn pass(&self, time: Duration) {
            *self.0.lock().unwrap() += time;
        }
    }

    impl Clock for ByHand {
        fn now(&self) -> Timestamp {
            Timestamp::UNIX_EPOCH
        }

        fn elapsed(&self) -> Duration {
            *self.0.lock().unwrap()
        }
    }

    #[tokio::test]
    async fn how_they_are_is_asked_for_at_most_once_a_minute() {
        let dana = Person {
            id: 42,
            login: "dana".to_owned(),
            groups: Vec::new(),
        };
        let stand_in = StandIn::start(0, dana).await;
        let provider = Provider::new(&stand_in.issuer(), None).unwrap();
        let clock = Arc::<ByHand>::default();
        let keys = Keys::new(clock.clone());
        let limit = Duration::from_secs(20);
        stand_in.fail(true);
        let state = keys.state(&provider, limit).await;
        let words = state.trouble.unwrap();
        assert!(!state.is_there && words.contains("500"), "{words}");
        // What was said is said again until it is time to ask.
        stand_in.fail(false);
        assert!(keys.state(&provider, limit).await.trouble.is_some());
        clock.pass(FIRST_FETCH_EVERY);
        let well = KeysState {
            is_there: true,
            trouble: None,
        };
        assert_eq!(keys.state(&provider, limit).await, well);
        assert_eq!(keys.state(&provider, limit).await, well);
        assert_eq!(stand_in.key_requests(), 1);
        stand_in.fail(true);
        clock.pass(FETCH_EVERY);
        let state = keys.state(&provider, limit).await;
        assert!(state.is_there && state.trouble.is_some(), "{state:?}");
        clock.pass(KEPT_MAX);
        let state = keys.state(&provider, limit).await;
        assert!(!state.is_there && state.trouble.is_some(), "{state:?}");
    }

    #[test]
    fn asks_at_most_once_a_minute_and_keeps_the_last_good_set_for_a_day() {
        let signer = Signer::first();
        let document = serde_json::json!({ "keys": [signer.public()] }).to_string();
        let set = Arc::new(KeySet::read(document.as_bytes()).unwrap());
        let secs = Duration::from_secs;
        let mut held = Held::default();
        let start = secs(1_000_000);
        assert_eq!(held.need("x", start), Need::Fetch(None));
        held.tried = Some(start);
        assert_eq!(held.need("x", start + secs(4)), Need::Wait(None));
        assert_eq!(held.need("x", start + secs(5)), Need::Fetch(None));

        held.set = Arc::clone(&set);
        held.had = Some(start);
        let kept = || Some(Arc::clone(&set));
        let known = signer.key_id();
        assert_eq!(held.need(known, start), Need::Nothing(Arc::clone(&set)));
        // A name that somebody makes up.
        assert_eq!(held.need("x", start + secs(59)), Need::Wait(kept()));
        assert_eq!(held.need("x", start + secs(60)), Need::Fetch(kept()));
        // After an hour it is time for a look; while that fails the set is used on.
        assert_eq!(held.need(known, start + secs(3_601)), Need::Fetch(kept()));
        held.tried = Some(start + secs(3_601));
        let soon = held.need(known, start + secs(3_602));
        assert_eq!(soon, Need::Nothing(Arc::clone(&set)));
        // Not for ever.
        let day = start + secs(86_401);
        assert_eq!(held.need(known, day), Need::Fetch(None));
        held.tried = Some(day);
        assert_eq!(held.need(known, day + secs(1)), Need::Wait(None));
    }
}
