//! What is asked of the loop, and how it answers: releases started, orders carried out, or refused with the reason.

use rollout::policy::{Emergency, Policy};
use rollout::{
    Admission, Cause, Command, Event, Phase, Release, Rollout, RolloutId, ServiceName, Spec,
};
use serde_json::json;
use tokio::sync::oneshot;

use super::back::{self, Standing};
use super::error::{RequestError, fenced};
use super::lease::LeaseRequest;
use super::ledger::{Ledger, describe};
use super::policy::{LockOrder, LockReply, Rules, Wanted, check_approver, grows};
use super::{Reconciler, Resolved};
use crate::admission;
use crate::api::types::alerts::AlertsView;
use crate::incidents::Alert;
use crate::lease::{Lease, Terms};
use crate::orchestrator::ServiceState;
use crate::origin::Origin;
use crate::store::{Change, NewEvent, Saved, StoreError};

/// What a person, or a pipeline, asks of the loop.
#[derive(Debug)]
pub enum Request {
    /// Start a rollout.
    Deploy(Box<Resolved>, Reply),
    /// Move a running one.
    Order {
        /// Which; a name that was resolved before, so that an order never hits a newer one (F32).
        id: RolloutId,
        /// What.
        command: Command,
        /// Who says so.
        by: String,
        /// In their words.
        reason: Option<String>,
        /// Why no freeze shall hold the rollout from now on.
        emergency: Option<String>,
        /// Whether they may approve: only then does it open a gate, or stand for an approval.
        may_approve: bool,
        /// Where the answer goes.
        reply: Reply,
    },
    /// Make an earlier release stable again, at once.
    Undo {
        /// Of which service.
        service: ServiceName,
        /// The rollout whose release it shall be; without it, the one before the present.
        to: Option<u64>,
        /// The newest rollout as whoever asks saw it; nothing is undone if it is not that any more.
        of: Option<RolloutId>,
        /// Who says so.
        by: String,
        /// In their words.
        reason: Option<String>,
        /// Where the answer goes.
        reply: Reply,
    },
    /// Somebody waits for a running one, or no longer does.
    Lease {
        /// Which.
        id: RolloutId,
        /// What.
        request: LeaseRequest,
        /// Where the answer goes.
        reply: Reply,
    },
    /// Try the last release again that did not make it.
    Retry {
        /// Of which service.
        service: ServiceName,
        /// Who says so.
        by: String,
        /// In their words.
        reason: Option<String>,
        /// Where the answer goes.
        reply: Reply,
    },
    /// Take a lock, or give it back.
    Lock(LockOrder, LockReply),
    /// What an Alertmanager says.
    Alerts(
        Vec<Alert>,
        oneshot::Sender<Result<AlertsView, RequestError>>,
    ),
}

/// Where the answer to a request goes: the rollout it made or moved.
pub type Reply = oneshot::Sender<Result<RolloutId, RequestError>>;

/// A rollout to start.
#[derive(Debug, Clone)]
pub struct Deploy {
    /// What it goes by.
    pub spec: Spec,
    /// The image of the canary.
    pub image: String,
    /// The commit it was built from.
    pub commit: Option<String>,
    /// A label.
    pub environment: String,
    /// Who starts it.
    pub author: String,
    /// Whether a release that was rolled back before may be tried again.
    pub retry: bool,
    /// Why no freeze shall hold it.
    pub emergency: Option<String>,
    /// The number of the lock that its author believes to hold.
    pub fence: Option<u64>,
    /// Whether its file's rules count alone, although the release before it asked for more, and whether it may be for another
    /// environment: an admin's word.
    pub change_rules: bool,
    /// The job that asks for it.
    pub origin: Option<Origin>,
    /// Who waits for it; without them it needs nobody.
    pub lease: Option<Terms>,
}

/// All that a new rollout is made of, but its name.
struct Start {
    spec: Spec,
    environment: String,
    author: String,
    reason: Option<String>,
    stable: Release,
    canary: Release,
    full: bool,
    /// What its own file asks for, where that is less than what holds it.
    own: Option<Policy>,
    /// Why no freeze shall hold it.
    emergency: Option<String>,
    origin: Option<Origin>,
    lease: Option<Terms>,
}

impl Reconciler {
    pub(super) async fn answer(&mut self, request: Request) -> Result<(), StoreError> {
        let (reply, outcome) = match request {
            Request::Alerts(alerts, reply) => {
                let outcome = self.hear(alerts).await;
                let fenced = fenced(outcome.as_ref().err());
                self.publish_snapshot();
                drop(reply.send(outcome));
                return fenced;
            }
            Request::Deploy(resolved, reply) => (reply, self.deploy(*resolved).await),
            Request::Order {
                id,
                command,
                by,
                reason,
                emergency,
                may_approve,
                reply,
            } => {
                let order = self.order(&id, command, by, reason, emergency, may_approve);
                (reply, order.await)
            }
            Request::Undo {
                service,
                to,
                of,
                by,
                reason,
                reply,
            } => (reply, self.undo(&service, to, of, by, reason).await),
            Request::Lease { id, request, reply } => (reply, self.lease(&id, request).await),
            Request::Retry {
                service,
                by,
                reason,
                reply,
            } => (reply, self.retry(&service, by, reason).await),
            Request::Lock(order, reply) => return self.answer_lock(order, reply).await,
        };
        let fenced = fenced(outcome.as_ref().err());
        self.publish_snapshot();
        // Whoever asked may have gone; what was done is done.
        drop(reply.send(outcome));
        fenced
    }

    fn unknown(&self, name: &str) -> RequestError {
        let known: Vec<&str> = self.services.keys().map(ServiceName::as_str).collect();
        RequestError::UnknownService {
            name: name.to_owned(),
            known: known.join(", "),
        }
    }

    async fn deploy(&mut self, resolved: Resolved) -> Result<RolloutId, RequestError> {
        let Resolved {
            deploy,
            canary,
            turn: _turn,
        } = resolved;
        let name = deploy.spec.service.clone();
        if !deploy.change_rules {
            self.stays(&name, &deploy.environment).await?;
        }
        if !self.services.contains_key(&name) {
            self.orchestrator.know(&deploy.spec);
        }
        let state = self.orchestrator.observe(&name).await?;
        let running = self
            .services
            .get(&name)
            .and_then(|service| service.open.last());
        if let Some(saved) = running
            && saved.rollout.canary.id == canary.id
            && saved.rollout.environment == deploy.environment
            && !matches!(saved.rollout.phase, Phase::RollingBack { .. })
        {
            let id = saved.rollout.id.clone();
            // A job that was started again waits for what the one before it began.
            if let Some(terms) = deploy.lease {
                self.lease(&id, LeaseRequest::Take(terms)).await?;
            }
            return Ok(id);
        }
        let stable = self.stable_release(&name, &state);
        if stable.id == canary.id && running.is_none() {
            let last = self
                .services
                .get(&name)
                .and_then(|service| service.last.as_ref());
            let is_done = |saved: &&Saved| {
                saved.rollout.phase == Phase::Promoted
                    && saved.rollout.environment == deploy.environment
            };
            if let Some(saved) = last.filter(is_done) {
                return Ok(saved.rollout.id.clone());
            }
            return Err(RequestError::AlreadyStable {
                service: name,
                image: deploy.image,
                release: canary.id.to_string(),
            });
        }
        if !deploy.retry
            && let Some(rollout) = self.rolled_back_before(&name, &canary).await?
        {
            return Err(RequestError::RolledBackBefore {
                image: deploy.image,
                rollout,
            });
        }
        let Deploy {
            mut spec,
            environment,
            author,
            emergency,
            fence,
            change_rules,
            origin,
            lease,
            ..
        } = deploy;
        let rules = if change_rules {
            Rules::of(spec.policy)
        } else {
            self.rules(&name, &spec.policy).await?
        };
        self.admit(Wanted {
            service: &name,
            rules: &rules,
            environment: &environment,
            author: &author,
            canary: &canary,
            emergency: emergency.as_deref(),
            fence,
        })
        .await?;
        spec.policy = rules.policy.clone();
        self.begin(Start {
            spec,
            environment,
            author,
            reason: None,
            stable,
            canary,
            full: false,
            own: rules.own(),
            emergency,
            origin,
            lease,
        })
        .await
    }

    /// The last promoted release: what runs, unless a rollout is about to replace it.
    fn stable_release(&self, name: &ServiceName, state: &ServiceState) -> Release {
        let running = self
            .services
            .get(name)
            .and_then(|service| service.open.first());
        running.map_or_else(
            || state.stable.release.clone(),
            |saved| saved.rollout.stable.clone(),
        )
    }

    async fn rolled_back_before(
        &self,
        name: &ServiceName,
        canary: &Release,
    ) -> Result<Option<RolloutId>, StoreError> {
        /// How far back a rolled back release is remembered.
        const BACK: u32 = 100;
        let history = self.store.history(Some(name), BACK).await?;
        let last = history
            .into_iter()
            .find(|saved| saved.rollout.canary.id == canary.id);
        Ok(last
            .filter(|saved| matches!(saved.rollout.cause(), Some(Cause::Evidence { .. })))
            .map(|saved| saved.rollout.id))
    }

    /// Starts a rollout; every other of the service makes way.
    async fn begin(&mut self, start: Start) -> Result<RolloutId, RequestError> {
        let Start {
            spec,
            environment,
            author,
            reason,
            stable,
            canary,
            full,
            own,
            emergency,
            origin,
            lease,
        } = start;
        let name = spec.service.clone();
        if !full && !spec.guard.checks.is_empty() && !self.checks.can_ask() {
            let names: Vec<&str> = spec
                .guard
                .checks
                .iter()
                .map(|check| check.name.as_str())
                .collect();
            return Err(RequestError::NoMetricsSource {
                service: name,
                checks: names.join(", "),
            });
        }
        let number = self.store.next_number(&name).await?;
        let id = RolloutId::new(&name, number);
        let now = self.clock.now();
        // What was stable before needs no one's leave: the way back is always open.
        let admission = Admission {
            approvals_min: if full {
                0
            } else {
                spec.policy.approvals(&environment)
            },
            goes_back: full,
            emergency: emergency.as_ref().map(|reason| Emergency {
                by: author.clone(),
                reason: reason.clone(),
            }),
            own,
            ..Admission::default()
        };
        let mut rollout = Rollout::new(
            id.clone(),
            name.clone(),
            environment,
            author.clone(),
            stable,
            canary,
            spec,
            full,
            now,
        );
        rollout.admission = admission;
        let mut change = Change::default();
        let started = json!({
            "service": name, "image": rollout.canary.image, "digest": rollout.canary.digest,
            "commit": rollout.canary.commit, "stable": rollout.stable, "environment": rollout.environment,
            "full": full, "reason": reason, "spec": rollout.spec, "own_policy": rollout.admission.own,
            "origin": origin, "lease": lease,
        });
        change.events.push(NewEvent {
            rollout: Some(id.clone()),
            kind: "started",
            author: author.clone(),
            data: started,
        });
        if let Some(reason) = emergency {
            tracing::warn!(rollout = %id, author, reason, "emergency: no freeze holds this rollout");
            change.events.push(NewEvent {
                rollout: Some(id.clone()),
                kind: "emergency",
                author,
                data: json!({ "reason": reason, "with": "deploy" }),
            });
        }
        for saved in self
            .services
            .get(&name)
            .map_or(&[][..], |service| &service.open)
        {
            let mut next = saved.clone();
            let cause = Cause::Superseded { by: id.clone() };
            next.rollout = next.rollout.on(Event::Ordered(Command::Abort(cause)), now);
            let mut ledger = Ledger::of(&next.rollout);
            ledger.moves(&saved.rollout, &next.rollout);
            change.events.extend(ledger.events);
            change.rollouts.push(next);
        }
        change.started.push(Saved {
            number,
            rollout,
            judge: None,
            verdict: None,
            origin,
            lease: lease.map(Lease::new),
        });
        self.commit(change, false).await??;
        tracing::info!(rollout = %id, "started");
        Ok(id)
    }

    async fn order(
        &mut self,
        id: &RolloutId,
        command: Command,
        by: String,
        reason: Option<String>,
        emergency: Option<String>,
        may_approve: bool,
    ) -> Result<RolloutId, RequestError> {
        let found = self
            .services
            .values()
            .flat_map(|service| &service.open)
            .find(|saved| saved.rollout.id == *id);
        let (order, mut data) = describe(&command, reason);
        let Some(saved) = found.cloned() else {
            return Err(self.not_running(id, order).await?);
        };
        let opens_gate = check_approver(&command, &saved.rollout, &by, may_approve)?;
        // An audit counts it among the approvals.
        if opens_gate && !matches!(command, Command::Approve { .. }) {
            data["approves"] = true.into();
        }
        if let Some(refusal) = self.refusal(&saved.rollout, &command) {
            return Err(refusal);
        }
        // Who pauses what an incident holds wants it to stay so.
        let is_handed_over = command == Command::Pause && self.incidents.hand_over(id);
        let mut next = saved.clone();
        if let Some(opens_gate) = grows(&command, &saved.rollout) {
            let refused =
                admission::may_grow(&saved.rollout, &by, opens_gate, emergency.as_deref());
            if let Err(refused) = &refused {
                tracing::warn!(rollout = %id, by, rule = refused.code(), "refused: {refused}");
            }
            refused?;
            if let Some(why) = &emergency {
                next.rollout = next.rollout.in_emergency(&by, why);
            }
        }
        if let Some(lease) = &mut next.lease {
            lease.person();
        }
        next.rollout = next
            .rollout
            .on(Event::Ordered(command.clone()), self.clock.now());
        if next.rollout == saved.rollout && !matches!(command, Command::Abort(_)) && !is_handed_over
        {
            let state = if command == Command::PromoteFull && saved.rollout.lacks_approvals() {
                let missing = saved.rollout.admission.approvals_missing();
                format!("waits for {missing} more approvals first (`friday approve {id}`)")
            } else {
                format!("is {}", saved.rollout.phase.name())
            };
            return Err(RequestError::NotNow {
                order,
                rollout: id.clone(),
                state,
            });
        }
        let mut ledger = Ledger::of(&saved.rollout);
        ledger.events.push(ledger.event("order", &by, data));
        if let (Some(reason), true) = (
            &emergency,
            next.rollout.admission != saved.rollout.admission,
        ) {
            tracing::warn!(rollout = %id, by, reason, "emergency: no freeze holds this rollout");
            let data = json!({ "reason": reason, "with": order, "freeze": saved.rollout.admission.frozen });
            ledger.events.push(ledger.event("emergency", &by, data));
        }
        ledger.moves(&saved.rollout, &next.rollout);
        let goes_back = matches!(command, Command::Abort(_));
        let change = Change {
            rollouts: vec![next],
            events: ledger.events,
            incidents: self.incidents.unsaved(),
            ..Change::default()
        };
        match self.commit(change, true).await? {
            // It happens all the same, see `commit`.
            Err(_) if goes_back => {}
            outcome => outcome?,
        }
        Ok(id.clone())
    }

    /// Why nothing can be ordered of a rollout that does not run.
    pub(super) async fn not_running(
        &self,
        id: &RolloutId,
        order: &'static str,
    ) -> Result<RequestError, StoreError> {
        let Some(ended) = self.store.rollout(id).await? else {
            let newest = self.store.history(None, 10).await?;
            let known: Vec<String> = newest
                .iter()
                .map(|saved| saved.rollout.id.to_string())
                .collect();
            return Ok(RequestError::UnknownRollout {
                name: id.to_string(),
                known: known.join(", "),
            });
        };
        Ok(RequestError::NotNow {
            order,
            rollout: id.clone(),
            state: format!("has ended ({})", ended.rollout.phase.name()),
        })
    }

    async fn undo(
        &mut self,
        name: &ServiceName,
        to: Option<u64>,
        of: Option<RolloutId>,
        author: String,
        reason: Option<String>,
    ) -> Result<RolloutId, RequestError> {
        let Some(service) = self.services.get(name) else {
            return Err(self.unknown(name.as_str()));
        };
        let running = service.open.last().map(|saved| &saved.rollout);
        let going_back = running
            .filter(|rollout| rollout.admission.goes_back && rollout.cause().is_none())
            .map(|rollout| (rollout.id.clone(), rollout.canary.id.clone()));
        let newest = self.store.history(Some(name), 1).await?.into_iter().next();
        let check_newest = || back::check_newest(name, of.as_ref(), newest.as_ref());
        if going_back.is_none() {
            check_newest()?;
        }
        let missing = |what: String| RequestError::NoSuchRelease {
            service: name.clone(),
            what,
        };
        let state = self.orchestrator.observe(name).await?;
        let stable = self.stable_release(name, &state);
        let promoted = self.store.promoted(name, back::PROMOTED_MAX).await?;
        let standing = Standing::of(&promoted);
        let (target, from) = match to {
            Some(number) => {
                let id = RolloutId::new(name, number);
                let saved = self
                    .store
                    .rollout(&id)
                    .await?
                    .ok_or_else(|| missing(format!("rollout {number}")))?;
                if saved.rollout.phase != Phase::Promoted {
                    return Err(missing(format!(
                        "promoted release {number}: {id} ended otherwise or still runs"
                    )));
                }
                if !standing.is_back_to(&saved) {
                    return Err(RequestError::NotBack {
                        image: saved.rollout.canary.image,
                        rollout: id,
                    });
                }
                (saved.rollout.canary.clone(), saved)
            }
            None => {
                let saved = standing
                    .last()
                    .ok_or_else(|| missing("earlier release to go back to".to_owned()))?;
                (saved.rollout.stable.clone(), saved.clone())
            }
        };
        // Whoever asks for it again while it goes there is told so.
        if let Some((id, release)) = &going_back
            && *release == target.id
        {
            return Ok(id.clone());
        }
        check_newest()?;
        if target.id == stable.id {
            return Err(RequestError::AlreadyStable {
                service: name.clone(),
                image: target.image,
                release: target.id.to_string(),
            });
        }
        // The service is where its newest rollout is, whatever the one was called whose release it gets again.
        let Rollout { environment, .. } = newest.unwrap_or_else(|| from.clone()).rollout;
        let spec = from.rollout.spec;
        self.begin(Start {
            spec,
            environment,
            author,
            reason,
            stable,
            canary: target,
            full: true,
            own: None,
            emergency: None,
            origin: None,
            lease: None,
        })
        .await
    }

    async fn retry(
        &mut self,
        name: &ServiceName,
        author: String,
        reason: Option<String>,
    ) -> Result<RolloutId, RequestError> {
        let Some(service) = self.services.get(name) else {
            return Err(self.unknown(name.as_str()));
        };
        if let Some(running) = service.open.last() {
            let state = format!("is {}", running.rollout.phase.name());
            return Err(RequestError::NotNow {
                order: "retry",
                rollout: running.rollout.id.clone(),
                state,
            });
        }
        let last = service
            .last
            .clone()
            .filter(|saved| saved.rollout.phase != Phase::Promoted);
        let Some(last) = last else {
            let what =
                "rollout that ended without promotion: there is nothing to try again".to_owned();
            return Err(RequestError::NoSuchRelease {
                service: name.clone(),
                what,
            });
        };
        let state = self.orchestrator.observe(name).await?;
        let stable = self.stable_release(name, &state);
        let Rollout {
            mut spec,
            environment,
            canary,
            admission,
            ..
        } = last.rollout;
        let own = admission.own.unwrap_or(spec.policy);
        let rules = self.rules(name, &own).await?;
        self.admit(Wanted {
            service: name,
            rules: &rules,
            environment: &environment,
            author: &author,
            canary: &canary,
            emergency: None,
            fence: None,
        })
        .await?;
        spec.policy = rules.policy.clone();
        self.begin(Start {
            spec,
            environment,
            author,
            reason,
            stable,
            canary,
            full: false,
            own: rules.own(),
            emergency: None,
            origin: None,
            lease: None,
        })
        .await
    }
}
