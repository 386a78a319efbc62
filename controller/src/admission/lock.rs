//! Locks: who has a service, or one of its environments, to themselves. Pure; the loop keeps them and saves them.
//!
//! A lock has a number that grows with every taking, so that one who was away while theirs was broken finds out: a deploy
//! that names an old number is refused (a fencing token, as Kleppmann's "How to do distributed locking" has it).

use std::collections::BTreeMap;

use rollout::{Duration, ServiceName, Timestamp};
use serde::{Deserialize, Serialize};

use super::Refused;
use crate::auth::PERSON;

/// Most services and environments that ever had a lock. A controller serves some tens.
pub const LOCKS_MAX: usize = 1_000;

/// Most of one service: a service has some environments. So nobody who names environments fills all of the places.
pub const LOCKS_OF_SERVICE_MAX: usize = 50;

/// What can be locked: a service everywhere (`""`), or in one environment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockKey {
    /// The service.
    pub service: ServiceName,
    /// The environment; empty for all.
    pub environment: String,
}

impl LockKey {
    /// For people: `web`, or `web in production`.
    #[must_use]
    pub fn shown(&self) -> String {
        if self.environment.is_empty() {
            self.service.to_string()
        } else {
            format!("{} in {}", self.service, self.environment)
        }
    }
}

/// A lock that somebody holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// Who.
    pub owner: String,
    /// Why, in their words.
    pub reason: String,
    /// Since when.
    pub taken: Timestamp,
    /// Until when; `None` until it is given back.
    pub until: Option<Timestamp>,
}

/// A key's lock, as it is saved: the number stays when the lock goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// What.
    pub key: LockKey,
    /// The number of the newest lock.
    pub fence: u64,
    /// The lock, while somebody holds it.
    pub lock: Option<Lock>,
}

/// All locks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Locks(BTreeMap<LockKey, (u64, Option<Lock>)>);

impl Locks {
    /// As they were saved.
    #[must_use]
    pub fn of(slots: Vec<Slot>) -> Self {
        let entry = |slot: Slot| (slot.key, (slot.fence, slot.lock));
        Self(slots.into_iter().map(entry).collect())
    }

    /// Takes in what was saved.
    pub fn put(&mut self, slot: Slot) {
        self.0.insert(slot.key, (slot.fence, slot.lock));
    }

    /// The lock of a key that is in force, and its number.
    #[must_use]
    pub fn held(&self, key: &LockKey, now: Timestamp) -> Option<(u64, &Lock)> {
        let (fence, lock) = self.0.get(key)?;
        let lock = lock.as_ref()?;
        lock.until
            .is_none_or(|until| now < until)
            .then_some((*fence, lock))
    }

    /// May `author` begin a rollout there?
    pub(super) fn admit(
        &self,
        service: &ServiceName,
        environment: &str,
        author: &str,
        fence: Option<u64>,
        now: Timestamp,
    ) -> Result<(), Refused> {
        let key = |environment: &str| LockKey {
            service: service.clone(),
            environment: environment.to_owned(),
        };
        let mut held = Vec::new();
        for key in [key(environment), key("")] {
            if let Some((number, lock)) = self.held(&key, now) {
                if !is_same_owner(&lock.owner, author) {
                    return Err(refused(&key, number, lock, now));
                }
                held.push(number);
            }
        }
        match fence {
            Some(fence) if !held.contains(&fence) => Err(Refused::LockLost {
                what: key(environment).shown(),
                fence,
                newer: held.first().map_or_else(
                    || "nobody holds it now".to_owned(),
                    |number| format!("the newest is {number}"),
                ),
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// The key's slot after `owner` took its lock, or renewed it.
    ///
    /// # Errors
    /// Somebody else holds it, or there are too many, there or everywhere.
    pub fn take(
        &self,
        key: &LockKey,
        owner: &str,
        reason: &str,
        period: Option<Duration>,
        now: Timestamp,
    ) -> Result<Slot, Refused> {
        if !self.0.contains_key(key) {
            let here = self.0.keys().filter(|other| other.service == key.service);
            if here.count() >= LOCKS_OF_SERVICE_MAX {
                return Err(Refused::TooManyLocks {
                    of: key.service.to_string(),
                    max: LOCKS_OF_SERVICE_MAX,
                });
            }
            if self.0.len() >= LOCKS_MAX {
                return Err(Refused::TooManyLocks {
                    of: "all services".to_owned(),
                    max: LOCKS_MAX,
                });
            }
        }
        let (fence, taken) = match self.held(key, now) {
            Some((number, lock)) if !is_same_owner(&lock.owner, owner) => {
                return Err(refused(key, number, lock, now));
            }
            Some((number, lock)) => (number, lock.taken),
            None => {
                let before = self.0.get(key).map_or(0, |(fence, _)| *fence);
                (before + 1, now)
            }
        };
        let until = period.and_then(|period| {
            let period = jiff::SignedDuration::try_from(period).ok()?;
            now.checked_add(period).ok()
        });
        Ok(Slot {
            key: key.clone(),
            fence,
            lock: Some(Lock {
                owner: owner.to_owned(),
                reason: reason.to_owned(),
                taken,
                until,
            }),
        })
    }

    /// The key's slot after `by` gave its lock back, or broke it if `breaks`; and the lock that was.
    ///
    /// # Errors
    /// There is none, it is another one than `fence` says, or it is somebody else's.
    pub fn give_back(
        &self,
        key: &LockKey,
        by: &str,
        fence: Option<u64>,
        breaks: bool,
        now: Timestamp,
    ) -> Result<(Slot, Lock), Refused> {
        let Some((number, lock)) = self.held(key, now) else {
            return Err(Refused::NotLocked { what: key.shown() });
        };
        if let Some(fence) = fence.filter(|fence| *fence != number) {
            return Err(Refused::LockLost {
                what: key.shown(),
                fence,
                newer: format!("the newest is {number}"),
            });
        }
        if !breaks && !is_same_owner(&lock.owner, by) {
            return Err(refused(key, number, lock, now));
        }
        let slot = Slot {
            key: key.clone(),
            fence: number,
            lock: None,
        };
        Ok((slot, lock.clone()))
    }
}

/// Whether a lock of `owner` is that of `author`. A person whom GitLab vouches for is known by number, whatever their login is
/// now; of all others the whole name counts.
pub(crate) fn is_same_owner(owner: &str, author: &str) -> bool {
    fn certain(name: &str) -> &str {
        match name.split_once(" (for ") {
            Some((certain, _)) if certain.starts_with(PERSON) => certain,
            Some(_) | None => name,
        }
    }
    certain(owner) == certain(author)
}

/// How long ago something was, in words.
#[must_use]
pub fn age(taken: Timestamp, now: Timestamp) -> String {
    let passed = Duration::try_from(now.duration_since(taken)).unwrap_or_default();
    crate::words::rounded(passed)
}

fn refused(key: &LockKey, fence: u64, lock: &Lock, now: Timestamp) -> Refused {
    let ends = lock.until.map_or_else(
        || ", without an end".to_owned(),
        |until| format!(", until {}", until.strftime("%Y-%m-%d %H:%M:%SZ")),
    );
    Refused::Locked {
        what: key.shown(),
        owner: lock.owner.clone(),
        held: format!(
            "for {} ({}; number {fence}{ends})",
            age(lock.taken, now),
            lock.reason
        ),
        place: if key.environment.is_empty() {
            key.service.to_string()
        } else {
            format!("{} --environment {}", key.service, key.environment)
        },
    }
}
