//! What may begin and what may grow, asked of [`admission`](crate::admission) with what the loop knows; and the locks.

use rollout::policy::Policy;
use rollout::{Command, Duration, Phase, Release, Rollout, RolloutId, ServiceName, Step};
use serde_json::json;
use tokio::sync::oneshot;

use super::ledger::describe;
use super::{Reconciler, RequestError, back};
use crate::admission::lock::Slot;
use crate::admission::{self, Asked, Freezes, Frozen, Known, Lock, LockKey, Refused};
use crate::store::{Change, NewEvent, Saved, StoreError};

/// The environment of a rollout whose author named none.
pub const DEFAULT_ENVIRONMENT: &str = "default";

/// How often it is asked whether a freeze holds a running rollout. Freezes begin by the minute.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// What somebody wants of a lock.
#[derive(Debug, Clone)]
pub struct LockOrder {
    /// Of what.
    pub key: LockKey,
    /// Who.
    pub by: String,
    /// Why, in their words.
    pub reason: String,
    /// What.
    pub act: LockAct,
}

/// What can be done with a lock.
#[derive(Debug, Clone, Copy)]
pub enum LockAct {
    /// To take it, or to renew it.
    Take {
        /// For how long; `None` until it is given back.
        period: Option<Duration>,
    },
    /// To give it back.
    GiveBack {
        /// Its number, if the caller knows it.
        fence: Option<u64>,
        /// Whether it may be somebody else's.
        breaks: bool,
    },
}

/// Where the answer goes: the lock that was taken, or the one that was given back, and its number.
pub type LockReply = oneshot::Sender<Result<(u64, Lock), RequestError>>;

/// What a new rollout is held by.
pub(super) struct Rules {
    /// All that counts.
    pub(super) policy: Policy,
    /// What its own file asks for, and the release whose rules go beyond that, if they do.
    own: Option<(Policy, RolloutId)>,
}

impl Rules {
    /// Those of the file alone.
    pub(super) fn of(policy: Policy) -> Self {
        Self { policy, own: None }
    }

    /// What its own file asks for, if that is less.
    pub(super) fn own(self) -> Option<Policy> {
        self.own.map(|(own, _)| own)
    }
}

/// What somebody wants to begin.
pub(super) struct Wanted<'a> {
    pub(super) service: &'a ServiceName,
    pub(super) rules: &'a Rules,
    pub(super) environment: &'a str,
    pub(super) author: &'a str,
    pub(super) canary: &'a Release,
    pub(super) emergency: Option<&'a str>,
    pub(super) fence: Option<u64>,
}

impl Reconciler {
    /// The same, with these freezes beside those of files.
    #[must_use]
    pub fn with_freezes(self, freezes: Freezes) -> Self {
        Self { freezes, ..self }
    }

    /// A service is released in one environment: whoever may release to another one moves nothing of it, and no rule of this
    /// one is passed by under another's name. What was released without naming one may get a name once.
    pub(super) async fn stays(
        &self,
        service: &ServiceName,
        environment: &str,
    ) -> Result<(), RequestError> {
        let newest = self.store.history(Some(service), 1).await?;
        let Some(Saved { rollout, .. }) = newest.into_iter().next() else {
            return Ok(());
        };
        let there = rollout.environment;
        let was_named = there != DEFAULT_ENVIRONMENT;
        if there == environment || (!was_named && rollout.phase.is_ended()) {
            return Ok(());
        }
        let advice = if environment == DEFAULT_ENVIRONMENT {
            format!("names no environment: give --environment {there}")
        } else if was_named {
            format!(
                "is for {environment:?}: give each environment a service of its own (an admin moves one with --change-rules)"
            )
        } else {
            format!("is for {environment:?}: wait until that one has ended")
        };
        tracing::warn!(%service, environment, there, "refused: another environment");
        Err(RequestError::OtherEnvironment {
            service: service.clone(),
            there,
            rollout: rollout.id,
            advice,
        })
    }

    /// What holds a release by a file that asks for this: the last promoted release's rules too, so that nobody passes them by
    /// with another file. An undo is no release: it changes no rules.
    pub(super) async fn rules(
        &self,
        service: &ServiceName,
        own: &Policy,
    ) -> Result<Rules, StoreError> {
        let promoted = self.store.promoted(service, back::PROMOTED_MAX).await?;
        let last = promoted
            .into_iter()
            .map(|saved| saved.rollout)
            .find(|rollout| !rollout.admission.goes_back);
        let Some(last) = last else {
            return Ok(Rules::of(own.clone()));
        };
        let before = last.admission.own.unwrap_or(last.spec.policy);
        let policy = own.at_least(&before);
        let is_less = policy != *own;
        Ok(Rules {
            policy,
            own: is_less.then(|| (own.clone(), last.id)),
        })
    }

    /// May it begin?
    pub(super) async fn admit(&self, wanted: Wanted<'_>) -> Result<(), RequestError> {
        let Err(refused) = self.may_begin(&wanted.rules.policy, &wanted).await? else {
            return Ok(());
        };
        let Wanted {
            service,
            environment,
            author,
            rules,
            ..
        } = wanted;
        tracing::warn!(%service, environment, author, rule = refused.code(), "refused: {refused}");
        if let Some((own, rollout)) = &rules.own
            && self.may_begin(own, &wanted).await?.is_ok()
        {
            let rollout = rollout.clone();
            let refused = Box::new(refused);
            return Err(RequestError::HeldByRules { refused, rollout });
        }
        Err(refused.into())
    }

    async fn may_begin(
        &self,
        policy: &Policy,
        wanted: &Wanted<'_>,
    ) -> Result<Result<(), Refused>, StoreError> {
        let Wanted {
            service,
            environment,
            author,
            canary,
            emergency,
            fence,
            ..
        } = *wanted;
        let now = self.clock.now();
        let frozen = self
            .freezes
            .ask(policy, environment, now, self.clock.elapsed());
        let was_promoted = match admission::needs(policy, environment) {
            None => true,
            Some((service, environment)) => {
                self.store
                    .was_promoted(service, environment, canary)
                    .await?
            }
        };
        let asked = Asked {
            service,
            environment,
            is_named: environment != DEFAULT_ENVIRONMENT,
            author,
            image: &canary.image,
            emergency,
            fence,
        };
        let known = Known {
            frozen: &frozen,
            was_promoted,
            locks: &self.locks,
            now,
        };
        Ok(admission::may_begin(policy, asked, known))
    }

    /// Whether the freeze of the service's running rollout is another one than it knows of: then the one that is on now.
    pub(super) fn freeze_changed(&mut self, name: &ServiceName) -> Option<Option<String>> {
        let elapsed = self.clock.elapsed();
        let saved = self.services.get(name)?.open.first()?;
        let rollout = &saved.rollout;
        let admission = &rollout.admission;
        if admission.goes_back || admission.emergency.is_some() {
            return None;
        }
        if let Some(asked) = self.freeze_asked.get(name)
            && elapsed.saturating_sub(*asked) < ASK_EVERY
        {
            return None;
        }
        let frozen = self.freezes.ask(
            &rollout.spec.policy,
            &rollout.environment,
            self.clock.now(),
            elapsed,
        );
        let frozen = match frozen {
            Frozen::No => None,
            Frozen::Yes(why) => Some(why),
            // What is not known changes nothing: held if it was held.
            Frozen::Unknown(_) => admission.frozen.clone(),
        };
        let is_new = frozen != admission.frozen;
        self.freeze_asked.insert(name.clone(), elapsed);
        is_new.then_some(frozen)
    }

    pub(super) async fn answer_lock(
        &mut self,
        order: LockOrder,
        reply: LockReply,
    ) -> Result<(), StoreError> {
        let outcome = self.lock(order).await;
        let fenced = match &outcome {
            Err(RequestError::Store(StoreError::Fenced { ours, theirs })) => Some((*ours, *theirs)),
            Ok(_) | Err(_) => None,
        };
        // Whoever asked may have gone; what was done is done.
        drop(reply.send(outcome));
        fenced.map_or(Ok(()), |(ours, theirs)| {
            Err(StoreError::Fenced { ours, theirs })
        })
    }

    async fn lock(&mut self, order: LockOrder) -> Result<(u64, Lock), RequestError> {
        let LockOrder {
            key,
            by,
            reason,
            act,
        } = order;
        let now = self.clock.now();
        let (slot, lock, kind) = match act {
            LockAct::Take { period } => {
                let slot = self.locks.take(&key, &by, &reason, period, now)?;
                let lock = slot.lock.clone().expect("a lock that was taken is there");
                (slot, lock, "lock")
            }
            LockAct::GiveBack { fence, breaks } => {
                let (slot, lock) = self.locks.give_back(&key, &by, fence, breaks, now)?;
                let kind = if admission::lock::is_same_owner(&lock.owner, &by) {
                    "unlock"
                } else {
                    "break_lock"
                };
                (slot, lock, kind)
            }
        };
        let Slot { fence, .. } = slot;
        tracing::info!(what = key.shown(), owner = lock.owner, by, fence, kind);
        let data = json!({
            "service": key.service, "environment": key.environment, "fence": fence,
            "owner": lock.owner, "taken": lock.taken, "until": lock.until, "reason": reason,
        });
        let change = Change {
            locks: vec![slot.clone()],
            events: vec![NewEvent {
                rollout: None,
                kind,
                author: by,
                data,
            }],
            ..Change::default()
        };
        self.commit(change, false).await??;
        Ok((fence, lock))
    }
}

/// Whether an order gives the canary more requests, and whether it opens a gate, or may. `None` for those that hold it or
/// take it back: nothing stands in their way.
pub(super) fn grows(command: &Command, rollout: &Rollout) -> Option<bool> {
    match command {
        Command::Approve { .. } | Command::PromoteFull => Some(true),
        Command::Promote => Some(matches!(rollout.phase, Phase::Gated { .. })),
        Command::Pause | Command::Resume | Command::Abort(_) => None,
    }
}

/// Whether an order opens a gate, or leads past one that is still ahead.
///
/// # Errors
/// It stands for an approval, and who gives it may not approve.
pub(super) fn check_approver(
    command: &Command,
    rollout: &Rollout,
    by: &str,
    may_approve: bool,
) -> Result<bool, RequestError> {
    let opens_gate = opens_gate(command, rollout);
    let is_short = *command == Command::PromoteFull && rollout.admission.approvals_missing() > 0;
    if may_approve || !(opens_gate || is_short) {
        return Ok(opens_gate);
    }
    let what = if opens_gate {
        "a gate"
    } else {
        "approvals that are missing"
    };
    let (order, _) = describe(command, None);
    tracing::warn!(rollout = %rollout.id, by, rule = "approve", "refused: {order} leads past {what}");
    Err(RequestError::NeedsApprover {
        order,
        rollout: rollout.id.clone(),
        what,
        by: by.to_owned(),
    })
}

fn opens_gate(command: &Command, rollout: &Rollout) -> bool {
    let is_gated_from = |step: usize| {
        let mut ahead = rollout.spec.plan.steps().iter().skip(step);
        ahead.any(|step| matches!(step, Step::Gate { .. }))
    };
    match command {
        Command::Approve { .. } => true,
        // While it is paused it only goes on with what it did: a gate stays shut.
        Command::Promote => matches!(rollout.phase, Phase::Gated { .. }),
        Command::PromoteFull => match rollout.running_phase() {
            Phase::Analyzing { step, .. } | Phase::Gated { step, .. } => is_gated_from(*step),
            // What is full already has no gates.
            Phase::Deploying { .. } => !rollout.full && is_gated_from(0),
            Phase::Baking { .. }
            | Phase::Warm { .. }
            | Phase::Paused { .. }
            | Phase::Promoting { .. }
            | Phase::RollingBack { .. }
            | Phase::Promoted
            | Phase::RolledBack { .. } => false,
        },
        Command::Pause | Command::Resume | Command::Abort(_) => false,
    }
}
