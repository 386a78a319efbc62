//! May this rollout begin, or go on? Freezes, the chain of environments, locks, four eyes. Pure.
//!
//! What is decided here is asked in one place, when a request comes to the loop ([`reconciler`](crate::reconciler)); what
//! holds a rollout that runs is the core's ([`rollout::policy`]). Nothing here ever stands in the way back: aborts, pauses
//! and undos are not asked.

pub mod calendar;
pub mod freeze;
pub mod lock;

use rollout::policy::{Needs, Policy};
use rollout::{Rollout, ServiceName, Timestamp};

pub use freeze::{Freezes, Frozen};
pub use lock::{Lock, LockKey, Locks};

/// Longest reason of an emergency or a lock, in bytes, as of every other text in a request.
pub const REASON_BYTES_MAX: usize = 1_000;

/// Why something may not begin, or not go on. Every message names who or what, and how to go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A freeze is on.
    #[error(
        "{what} is frozen: {why}; wait until it is over, or give the emergency word: --emergency \"WHY\", which the event log keeps"
    )]
    Frozen {
        /// What was to begin or to grow.
        what: String,
        /// Which freeze, and until when.
        why: String,
    },
    /// Whether a freeze is on is not known.
    #[error(
        "whether {what} is frozen is not known: {why}; try again when it is, or give the emergency word: --emergency \"WHY\", which the event log keeps"
    )]
    FreezeUnknown {
        /// What was to begin.
        what: String,
        /// Why not.
        why: String,
    },
    /// The release was not promoted where it must have been before.
    #[error(
        "{image} may not go to {environment}: it was never promoted in {needs}, which {environment} needs; deploy it there first: `friday deploy --environment {name} --image {image}`"
    )]
    Chain {
        /// The image as it was asked for.
        image: String,
        /// Where it was to go.
        environment: String,
        /// Where it must have been, with the service if that is another.
        needs: String,
        /// The same environment, by its name alone.
        name: String,
    },
    /// The file has rules for environments, and none was named.
    #[error(
        "{service} has rules for where it is released, and no environment was named: give --environment, one of {known}"
    )]
    NoEnvironment {
        /// The service.
        service: ServiceName,
        /// Those that have rules.
        known: String,
    },
    /// Somebody else holds it.
    #[error(
        "{what} is locked by {owner} {held}: wait, ask {owner}, or break it: `friday unlock {place} --break --reason WHY`, which the event log keeps"
    )]
    Locked {
        /// The service, with the environment if it is locked there alone.
        what: String,
        /// Who holds it.
        owner: String,
        /// For how long by now, why, by which number and until when, in words.
        held: String,
        /// The service, with the option that names the environment.
        place: String,
    },
    /// The lock that the caller believes to hold was broken, or ended.
    #[error(
        "the lock {fence} of {what} is no more: {newer}; look why (`friday audit`), and lock again"
    )]
    LockLost {
        /// What was locked.
        what: String,
        /// The number the caller knows.
        fence: u64,
        /// What there is in its place.
        newer: String,
    },
    /// There is no lock to give back.
    #[error("{what} is not locked: there is nothing to unlock")]
    NotLocked {
        /// What.
        what: String,
    },
    /// Too many locks.
    #[error(
        "there are {max} locks of {of} already, also counting those that were given back: no other environment can be locked"
    )]
    TooManyLocks {
        /// Of what.
        of: String,
        /// The most.
        max: usize,
    },
    /// The author may not open the gate.
    #[error(
        "{by} may not open a gate of {rollout}: {environment} takes the approval of somebody other than its author, {author} (an approval by a token counts as that of the person it speaks for, and two people who share a token as one)"
    )]
    FourEyes {
        /// Who tried.
        by: String,
        /// Of what.
        rollout: String,
        /// Where.
        environment: String,
        /// Who started it.
        author: String,
    },
    /// An emergency without a reason.
    #[error(
        "an emergency needs a reason of 1 to {REASON_BYTES_MAX} characters: --emergency \"WHY\""
    )]
    NoReason,
}

impl Refused {
    /// Its stable name, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Frozen { .. } => "frozen",
            Self::FreezeUnknown { .. } => "freeze_unknown",
            Self::Chain { .. } => "not_promoted_before",
            Self::NoEnvironment { .. } => "no_environment",
            Self::Locked { .. } => "locked",
            Self::LockLost { .. } => "lock_lost",
            Self::NotLocked { .. } => "not_locked",
            Self::TooManyLocks { .. } => "too_many_locks",
            Self::FourEyes { .. } => "four_eyes",
            Self::NoReason => "no_reason",
        }
    }
}

/// A release that somebody wants to begin.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Of which service.
    pub service: &'a ServiceName,
    /// Where.
    pub environment: &'a str,
    /// Whether that was named, or is the default.
    pub is_named: bool,
    /// By whom.
    pub author: &'a str,
    /// The image as it was asked for.
    pub image: &'a str,
    /// Why no freeze shall hold it.
    pub emergency: Option<&'a str>,
    /// The number of the lock that the caller believes to hold.
    pub fence: Option<u64>,
}

/// What is known when it is asked.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// Whether a freeze is on there.
    pub frozen: &'a Frozen,
    /// Whether the release was promoted where the environment needs it; meaningless where it needs nothing.
    pub was_promoted: bool,
    /// The locks.
    pub locks: &'a Locks,
    /// The time of day.
    pub now: Timestamp,
}

/// What must have been before a release may go to `environment`: under which service, if it matters, and where.
#[must_use]
pub fn needs<'a>(
    policy: &'a Policy,
    environment: &str,
) -> Option<(Option<&'a ServiceName>, &'a str)> {
    let Needs {
        service,
        environment,
    } = policy.environments.get(environment)?.needs.as_ref()?;
    Some((service.as_ref(), environment))
}

/// May it begin?
///
/// # Errors
/// The first reason why not; the lock first, because whoever holds it may be mending what the others would say.
pub fn may_begin(policy: &Policy, asked: Asked<'_>, known: Known<'_>) -> Result<(), Refused> {
    let Asked {
        service,
        environment,
        ..
    } = asked;
    check_reason(asked.emergency)?;
    known
        .locks
        .admit(service, environment, asked.author, asked.fence, known.now)?;
    if !asked.is_named && !policy.environments.is_empty() {
        let names: Vec<&str> = policy.environments.keys().map(String::as_str).collect();
        return Err(Refused::NoEnvironment {
            service: service.clone(),
            known: names.join(", "),
        });
    }
    if let Some((other, name)) = needs(policy, environment)
        && !known.was_promoted
    {
        return Err(Refused::Chain {
            image: asked.image.to_owned(),
            environment: environment.to_owned(),
            needs: match other {
                Some(other) => format!("{name} as {other}"),
                None => name.to_owned(),
            },
            name: name.to_owned(),
        });
    }
    if asked.emergency.is_some() {
        return Ok(());
    }
    let what = format!("{service} in {environment}");
    match known.frozen {
        Frozen::No => Ok(()),
        Frozen::Yes(why) => Err(Refused::Frozen {
            what,
            why: why.clone(),
        }),
        Frozen::Unknown(why) => Err(Refused::FreezeUnknown {
            what,
            why: why.clone(),
        }),
    }
}

/// May this rollout get more requests by an order of `by`? `opens_gate` where the order is an approval, or stands for one.
///
/// # Errors
/// Why not.
pub fn may_grow(
    rollout: &Rollout,
    by: &str,
    opens_gate: bool,
    emergency: Option<&str>,
) -> Result<(), Refused> {
    check_reason(emergency)?;
    if opens_gate && rollout.needs_other_eyes(by) {
        return Err(Refused::FourEyes {
            by: by.to_owned(),
            rollout: rollout.id.to_string(),
            environment: rollout.environment.clone(),
            author: rollout.author.clone(),
        });
    }
    match &rollout.admission.frozen {
        Some(why) if rollout.is_frozen() && emergency.is_none() => Err(Refused::Frozen {
            what: rollout.id.to_string(),
            why: why.clone(),
        }),
        Some(_) | None => Ok(()),
    }
}

fn check_reason(emergency: Option<&str>) -> Result<(), Refused> {
    let fits = |reason: &str| !reason.trim().is_empty() && reason.len() <= REASON_BYTES_MAX;
    if emergency.is_none_or(fits) {
        Ok(())
    } else {
        Err(Refused::NoReason)
    }
}

#[cfg(test)]
mod tests;
