//! Deliveries that came before: GitLab sends one again when our answer was lost.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};

/// Ids that are remembered. At 300 s of tolerance this is thirteen deliveries in a second; of an older one the signature is
/// refused for its time. With a secret token alone an old one may come again: it is a hint, and the state is read back.
const SEEN_MAX: usize = 4_096;

/// The ids of the newest deliveries.
#[derive(Debug, Default)]
pub struct Seen(Mutex<(VecDeque<String>, BTreeSet<String>)>);

impl Seen {
    /// Whether this one is new; it is not from now on.
    #[must_use]
    pub fn is_new(&self, id: &str) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (order, ids) = &mut *seen;
        if !ids.insert(id.to_owned()) {
            return false;
        }
        order.push_back(id.to_owned());
        if order.len() > SEEN_MAX
            && let Some(oldest) = order.pop_front()
        {
            ids.remove(&oldest);
        }
        true
    }

    /// Forgets one that could not be worked on, so that it may come again.
    pub fn forget(&self, id: &str) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (order, ids) = &mut *seen;
        ids.remove(id);
        order.retain(|other| other != id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_newest_and_forgets_the_oldest() {
        let seen = Seen::default();
        for number in 0..=SEEN_MAX {
            assert!(seen.is_new(&number.to_string()));
        }
        assert!(!seen.is_new(&SEEN_MAX.to_string()));
        assert!(seen.is_new("0"));
        seen.forget("0");
        assert!(seen.is_new("0"));
        let (order, ids) = seen.0.into_inner().unwrap();
        assert_eq!((order.len(), ids.len()), (SEEN_MAX, SEEN_MAX));
    }
}
