//! Sign-ins that wait: for a code to be collected, for a person to confirm on another device. Each is good once, for a short
//! time.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use rollout::Duration;

use super::sessions::Secret;

/// Most that wait at a time; the oldest makes room. To begin one on another device needs no account, and as many as may
/// begin while one is good fit: 50 at once and 5 a second for 10 minutes.
const WAITING_MAX: usize = 4_000;

/// What waits, by a random name.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    /// How long each is good.
    good_for: Duration,
    held: Mutex<HashMap<String, (Duration, T)>>,
}

impl<T: Clone> Waiting<T> {
    pub(super) fn new(good_for: Duration) -> Self {
        Self {
            good_for,
            held: Mutex::default(),
        }
    }

    /// Lets it wait; the name to come back with.
    pub(super) fn put(&self, what: T, now: Duration) -> Secret {
        let name = Secret::random();
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.len() >= WAITING_MAX {
            let oldest = held.iter().min_by_key(|(_, (since, _))| *since);
            let oldest = oldest.map(|(name, _)| name.clone());
            oldest.map(|name| held.remove(&name));
        }
        held.insert(name.0.clone(), (now, what));
        name
    }

    /// What waits under this name, which nobody can take again.
    pub(super) fn take(&self, name: &str, now: Duration) -> Option<T> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, what) = held.remove(name)?;
        (now.saturating_sub(since) < self.good_for).then_some(what)
    }

    /// The same, and it waits on.
    pub(super) fn look(&self, name: &str, now: Duration) -> Option<T> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, what) = held.get(name)?;
        (now.saturating_sub(*since) < self.good_for).then(|| what.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_good_once_and_not_for_long() {
        let secs = Duration::from_secs;
        let waiting = Waiting::new(secs(60));
        let (one, two) = (waiting.put(1, secs(0)), waiting.put(2, secs(0)));
        assert_eq!(waiting.look(&one.0, secs(59)), Some(1));
        assert_eq!(waiting.look(&one.0, secs(60)), None);
        assert_eq!(waiting.take(&one.0, secs(59)), Some(1));
        assert_eq!(waiting.take(&one.0, secs(59)), None);
        assert_eq!(waiting.take(&two.0, secs(60)), None);
        let all: Vec<Secret> = (0..=WAITING_MAX)
            .map(|n| waiting.put(n, secs(100 + u64::from(n > 0))))
            .collect();
        assert_eq!(waiting.look(&all[0].0, secs(101)), None, "the oldest");
        assert_eq!(waiting.look(&all[1].0, secs(101)), Some(1));
    }
}
