//! What may begin and what may grow, asked of [`admission`](crate::admission) with what the loop knows; and the locks.

use rollout::policy::Policy;
use rollout::{Command, Duration, Phase, Release, Rollout, ServiceName};
use serde_json::json;
use tokio::sync::oneshot;

use super::{Reconciler, RequestError};
use crate::admission::lock::Slot;
use crate::admission::{self, Asked, Freezes, Frozen, Known, Lock, LockKey};
use crate::store::{Change, NewEvent, StoreError};

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

/// What somebody wants to begin.
pub(super) struct Wanted<'a> {
    pub(super) service: &'a ServiceName,
    pub(super) policy: &'a Policy,
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

    /// May it begin?
    pub(super) async fn admit(&self, wanted: Wanted<'_>) -> Result<(), RequestError> {
        let Wanted {
            service,
            policy,
            environment,
            author,
            canary,
            emergency,
            fence,
        } = wanted;
        let now = self.clock.now();
        let frozen = self
            .freezes
            .ask(policy, environment, now, self.clock.elapsed());
        let was_promoted = match admission::needs(policy, service, environment) {
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
        let outcome = admission::may_begin(policy, asked, known);
        if let Err(refused) = &outcome {
            tracing::warn!(%service, environment, author, rule = refused.code(), "refused: {refused}");
        }
        Ok(outcome?)
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
        Command::Promote => Some(matches!(rollout.running_phase(), Phase::Gated { .. })),
        Command::Pause | Command::Resume | Command::Abort(_) => None,
    }
}
