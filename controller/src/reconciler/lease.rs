//! What leases lead to: orders of the author "lease", and whoever renews.

use rollout::{Cause, Command, Duration, Event, RolloutId, Timestamp};

use super::Reconciler;
use super::error::RequestError;
use super::ledger::{Ledger, describe};
use crate::lease::{Due, LEASE, Lease, State, Terms};
use crate::store::{Change, Saved};

/// What is asked about a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseRequest {
    /// It is mine from now on, by these terms.
    Take(Terms),
    /// I still wait.
    Renew {
        /// Who.
        holder: String,
    },
    /// I wait no longer: what was agreed upon shall happen now.
    GiveBack {
        /// Who.
        holder: String,
        /// Why, in their words.
        reason: Option<String>,
    },
}

/// Time passes for the lease of a rollout, if it has one; if that ends it, what was agreed upon is ordered.
pub(super) fn pass(saved: &mut Saved, passed: Duration, now: Timestamp, ledger: &mut Ledger) {
    // On its way back or at its end there is nothing to watch over.
    if saved.rollout.cause().is_some() || saved.rollout.phase.is_ended() {
        return;
    }
    let Some(lease) = &mut saved.lease else {
        return;
    };
    let due = lease.pass(passed);
    let reason = format!(
        "{} was silent for {} s",
        lease.terms.holder,
        lease.terms.period().as_secs()
    );
    order(saved, due, reason, now, ledger);
}

/// Carries out what a lease leads to.
fn order(saved: &mut Saved, due: Due, reason: String, now: Timestamp, ledger: &mut Ledger) {
    let command = match due {
        Due::Nothing => return,
        Due::Pause => Command::Pause,
        Due::Resume => Command::Resume,
        Due::Abort => Command::Abort(Cause::Person {
            by: LEASE.to_owned(),
            reason: Some(reason.clone()),
        }),
    };
    tracing::warn!(rollout = %saved.rollout.id, ?due, reason, "by its lease");
    let (_, data) = describe(&command, Some(reason));
    ledger.events.push(ledger.event("order", LEASE, data));
    saved.rollout = saved.rollout.clone().on(Event::Ordered(command), now);
}

impl Reconciler {
    pub(super) async fn lease(
        &mut self,
        id: &RolloutId,
        request: LeaseRequest,
    ) -> Result<RolloutId, RequestError> {
        let Some(saved) = self
            .services
            .values_mut()
            .flat_map(|service| &mut service.open)
            .find(|saved| saved.rollout.id == *id)
        else {
            return Err(self.not_running(id, LEASE).await?);
        };
        let held_by = |holder: &str, lease: &Lease| {
            if lease.terms.holder == holder {
                return Ok(());
            }
            Err(RequestError::LeaseHeld {
                rollout: id.clone(),
                holder: lease.terms.holder.clone(),
            })
        };
        let no_lease = || RequestError::NotNow {
            order: LEASE,
            rollout: id.clone(),
            state: "has no lease".to_owned(),
        };
        let before = saved.rollout.clone();
        let mut next = saved.clone();
        let (due, reason) = match request {
            LeaseRequest::Take(terms) => {
                let reason = format!("{} waits for it", terms.holder);
                let due = match &mut next.lease {
                    Some(lease) => lease.take(terms),
                    None => {
                        next.lease = Some(Lease::new(terms));
                        Due::Nothing
                    }
                };
                (due, reason)
            }
            LeaseRequest::Renew { holder } => {
                let lease = next.lease.as_mut().ok_or_else(no_lease)?;
                held_by(&holder, lease)?;
                let is_lost = lease.state != State::Held;
                let terms = lease.terms.clone();
                let due = lease.take(terms);
                if !is_lost {
                    // How long nobody spoke is not saved, so neither is that somebody did.
                    saved.lease = next.lease;
                    return Ok(id.clone());
                }
                (due, format!("{holder} is back"))
            }
            LeaseRequest::GiveBack { holder, reason } => {
                let lease = next.lease.as_mut().ok_or_else(no_lease)?;
                held_by(&holder, lease)?;
                let due = lease.lose();
                let reason = reason.map_or_else(
                    || format!("{holder} waits no longer"),
                    |reason| format!("{holder}: {reason}"),
                );
                (due, reason)
            }
        };
        let mut ledger = Ledger::of(&before);
        order(&mut next, due, reason, self.clock.now(), &mut ledger);
        ledger.moves(&before, &next.rollout);
        let change = Change {
            rollouts: vec![next],
            events: ledger.events,
            ..Change::default()
        };
        match self.commit(change, due == Due::Abort).await? {
            // It happens all the same, see `commit`.
            Err(_) if due == Due::Abort => {}
            outcome => outcome?,
        }
        Ok(id.clone())
    }
}
