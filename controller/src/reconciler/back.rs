//! The way back: which releases stand, one on the other, and so where an undo may lead.
//!
//! An undo is no release of its own: it takes off what it undid. So pressed twice it goes back twice, and never puts what
//! was undone up again.

use rollout::{Release, ReleaseId, Rollout, RolloutId, ServiceName};

use super::RequestError;
use crate::store::Saved;

/// How many promoted rollouts are looked at. Who goes further back than that knows the number, and has it in `--to`.
pub(super) const PROMOTED_MAX: u32 = 100;

/// The promoted releases of a service that stand.
#[derive(Debug)]
pub(super) struct Standing<'a> {
    /// Oldest first; each went up over the one before it.
    releases: Vec<&'a Saved>,
    /// The number of the oldest rollout that was looked at, if there may be older ones.
    oldest: Option<u64>,
}

impl<'a> Standing<'a> {
    /// Of the newest promoted rollouts, newest first: at most [`PROMOTED_MAX`].
    pub(super) fn of(promoted: &'a [Saved]) -> Self {
        let mut releases: Vec<&Saved> = Vec::new();
        let mut went_up: Vec<&ReleaseId> = Vec::new();
        for saved in promoted.iter().rev() {
            let Rollout {
                canary, admission, ..
            } = &saved.rollout;
            if !admission.goes_back {
                releases.push(saved);
                went_up.push(&canary.id);
                continue;
            }
            let lies = |part: fn(&Rollout) -> &Release| {
                releases
                    .iter()
                    .rposition(|other| part(&other.rollout).id == canary.id)
            };
            if let Some(at) = lies(|rollout| &rollout.canary) {
                releases.truncate(at + 1);
            } else if let Some(at) = lies(|rollout| &rollout.stable) {
                releases.truncate(at);
            } else if went_up.contains(&&canary.id) {
                // It put up again what had been undone, as controllers before this one let it.
                releases.push(saved);
            } else {
                releases.clear();
            }
        }
        let is_full = promoted.len() >= PROMOTED_MAX as usize;
        let oldest = promoted.last().filter(|_| is_full);
        Self {
            releases,
            oldest: oldest.map(|saved| saved.number),
        }
    }

    /// The one that went up last: undone, the release before it is stable.
    pub(super) fn last(&self) -> Option<&'a Saved> {
        self.releases.last().copied()
    }

    /// Whether it is back to the release of this promoted rollout. One that was undone, or whose release is newer than what
    /// stands, is forward, however old it is.
    pub(super) fn is_back_to(&self, saved: &Saved) -> bool {
        let release = &saved.rollout.canary.id;
        let stands = self.releases.iter().any(|other| {
            let Rollout { stable, canary, .. } = &other.rollout;
            stable.id == *release || canary.id == *release
        });
        stands || self.oldest.is_some_and(|oldest| saved.number < oldest)
    }
}

/// Whether the newest rollout of a service is the one that whoever undoes saw, if they say which: two people who undo one
/// release do not undo two.
///
/// # Errors
/// There is a newer one.
pub(super) fn check_newest(
    service: &ServiceName,
    of: Option<&RolloutId>,
    newest: Option<&Saved>,
) -> Result<(), RequestError> {
    let newest = newest.map(|saved| &saved.rollout.id);
    match of.zip(newest) {
        Some((of, newest)) if of != newest => Err(RequestError::NotNow {
            order: "undo",
            rollout: of.clone(),
            state: format!("is not the newest rollout of {service}, {newest} is"),
        }),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
