//! Why a request was not carried out, in words for whoever made it.

use rollout::{RolloutId, ServiceName};

use crate::admission::Refused;
use crate::orchestrator::OrchestratorError;
use crate::store::StoreError;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// There is no such service.
    #[error("there is no service {name:?}; known: {known}")]
    UnknownService {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// There is no such rollout.
    #[error("there is no rollout {name:?}; known: {known}")]
    UnknownRollout {
        /// What was asked for.
        name: String,
        /// Some of what there is.
        known: String,
    },
    /// The release is stable already.
    #[error(
        "{image} ({release}) is the stable release of {service} already: there is nothing to do"
    )]
    AlreadyStable {
        /// The service.
        service: ServiceName,
        /// The image as it was asked for.
        image: String,
        /// Its release.
        release: String,
    },
    /// The release was rolled back before (F31).
    #[error(
        "{image} was rolled back by {rollout}: deploy another release, or say that you want to try it again (friday retry, deploy --retry)"
    )]
    RolledBackBefore {
        /// The image as it was asked for.
        image: String,
        /// By which rollout.
        rollout: RolloutId,
    },
    /// The order does not fit where the rollout is.
    #[error("{order} does nothing for {rollout}: it {state}")]
    NotNow {
        /// What was ordered.
        order: &'static str,
        /// Of which rollout.
        rollout: RolloutId,
        /// Where it is.
        state: String,
    },
    /// Somebody else waits for it.
    #[error(
        "{rollout} is waited for by {holder:?}: its lease is not yours to renew or give back; `friday status {rollout}` waits without one"
    )]
    LeaseHeld {
        /// The rollout.
        rollout: RolloutId,
        /// Who.
        holder: String,
    },
    /// The order stands for an approval, and who gives it may not approve.
    #[error(
        "rule \"approve\" takes the role approver or admin: {order} would take {rollout} past {what}, and {by:?} may not do that; who may says `friday approve {rollout}`"
    )]
    NeedsApprover {
        /// What was ordered.
        order: &'static str,
        /// Of which rollout.
        rollout: RolloutId,
        /// What it would go past.
        what: &'static str,
        /// Who says so.
        by: String,
    },
    /// An incident is open, and the order would take a further step.
    #[error(
        "{order} has to wait: {rollout} is held by the incident {incident}; it goes on when that is resolved (or silenced in Alertmanager), and `friday abort {rollout}` goes back now"
    )]
    Held {
        /// What was ordered.
        order: &'static str,
        /// Of which rollout.
        rollout: RolloutId,
        /// Its name and summary.
        incident: String,
    },
    /// There is nothing to go back to.
    #[error("{service} has no {what}")]
    NoSuchRelease {
        /// The service.
        service: ServiceName,
        /// What was looked for.
        what: String,
    },
    /// The service is released in another environment.
    #[error("{service} is released in {there:?} ({rollout}), and this release {}", .advice)]
    OtherEnvironment {
        /// The service.
        service: ServiceName,
        /// Where it is.
        there: String,
        /// By which rollout.
        rollout: RolloutId,
        /// Where the release was to go, and what to do.
        advice: String,
    },
    /// It would put up again what was undone, or what is newer than what is stable.
    #[error(
        "{image} ({rollout}) is no way back: it was undone, or is newer than what is stable; deploy it to have it again: `friday deploy --image {image}`"
    )]
    NotBack {
        /// The image as it was asked for.
        image: String,
        /// Whose release it is.
        rollout: RolloutId,
    },
    /// The guard has checks, and nobody answers them: no gate would ever open.
    #[error(
        "{service} has checks ({checks}), and this controller has nobody to ask: start it with `friday serve --prometheus URL`, or remove guard.checks"
    )]
    NoMetricsSource {
        /// The service.
        service: ServiceName,
        /// Their names.
        checks: String,
    },
    /// Too many releases of the service, or of all, wait for their registries.
    #[error(
        "too many releases wait for their registry: {service}'s has to wait; try again in a moment"
    )]
    Busy {
        /// The service.
        service: ServiceName,
    },
    /// A freeze, a lock, the chain of environments, or the author's own eyes.
    #[error(transparent)]
    NotAdmitted(#[from] Refused),
    /// The same, by the rules of the last promoted release.
    #[error(
        "{refused} ({rollout}, the last promoted release, asked for that, and this file asks for less: one more release goes by its rules before those of the file count alone, or an admin says --change-rules)"
    )]
    HeldByRules {
        /// Why not.
        refused: Box<Refused>,
        /// Whose rules.
        rollout: RolloutId,
    },
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The orchestrator refused.
    #[error(transparent)]
    Orchestrator(#[from] OrchestratorError),
}

/// Whether another controller took over, which ends the loop.
pub(super) fn fenced(error: Option<&RequestError>) -> Result<(), StoreError> {
    match error {
        Some(RequestError::Store(StoreError::Fenced { ours, theirs })) => Err(StoreError::Fenced {
            ours: *ours,
            theirs: *theirs,
        }),
        Some(_) | None => Ok(()),
    }
}
