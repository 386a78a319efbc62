//! The one loop: look at the world, decide, save, act, wait; and then again.
//!
//! All rollouts belong to this task; others send it requests and read what it publishes. What a rollout wants of the
//! world is a function of its saved state, so there is nothing to resume after a crash: the first turn of the loop does
//! what any other does. A state is saved before it is acted upon. Only the way back does not wait for the store: if a
//! rollback cannot be written it happens all the same, and is written as soon as that is possible (F40).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proxy_api::{Generation, RouteTable};
use rollout::judge::{CheckSample, Decision, Judged, RULES_VERSION, Signal};
use rollout::rollout::Ruling;
use rollout::{
    Block, Duration, Event, Judge, Placement, Release, Rollout, RolloutId, ServiceName, Spec,
    Weight,
};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admission::{Freezes, Locks};
use crate::agents::Agents;
use crate::checks::Checks;
use crate::clock::Clock;
use crate::delivery::Delivery;
use crate::fleet::{Fleet, PROXY_LIVE, Slice, Taken};
use crate::incidents::{Incident, Incidents};
use crate::metrics_source::MetricsSource;
use crate::notifier::Audience;
use crate::orchestrator::{Orchestrator, OrchestratorError, ServiceState};
use crate::replay::{Began, Sample};
use crate::routing;
use crate::store::{Change, Saved, Store, StoreError};

mod back;
mod commit;
mod error;
mod hold;
mod lease;
mod ledger;
mod look;
mod policy;
mod queue;
mod registry;
mod request;
mod service;

pub use error::RequestError;
pub use lease::LeaseRequest;
pub use policy::{DEFAULT_ENVIRONMENT, LockAct, LockOrder, LockReply};
pub use queue::{NotTaken, Requests};
pub use registry::{Registry, Resolved};
pub use request::{Deploy, Reply, Request};

use ledger::Ledger;
use service::Service;

/// How often the world is looked at when nothing calls. A reaction takes at most this much longer; an observation of
/// some tasks takes a few milliseconds.
pub const TICK: Duration = Duration::from_millis(250);

/// How often a service at rest is looked at, where its orchestrator tells of changes. What it does not tell of, such as a
/// task that died on another node, is seen within this; a task that replaces it takes about as long to start, and the
/// proxies leave the dead one by themselves.
const REST: Duration = Duration::from_secs(1);

/// How long after a word of a change nothing counts as at rest: its tasks follow over some seconds.
const RESTLESS: Duration = Duration::from_secs(10);

/// How long a word of a change waits for others: a task that starts makes several.
const GATHER: Duration = Duration::from_millis(20);

/// Longest time that one turn may count as passed: after the machine slept, or an engine hung, a deadline shall not
/// fire for time in which nothing was seen.
const PASSED_MAX: Duration = Duration::from_secs(5);

/// Requests that may wait for the loop, and as many that go back; one more is refused at once.
pub const REQUESTS_MAX: usize = 64;

/// Stretches of stable traffic that are learned from at once, outside analysis: as long as the judge's blocks.
const LEARN_EVERY: Duration = Duration::from_secs(2);

/// The author of what nobody ordered.
pub const FRIDAY: &str = "friday";

/// What the loop publishes of one service.
#[derive(Debug, Clone)]
pub struct ServiceSnapshot {
    /// What it goes by when no rollout runs.
    pub spec: Spec,
    /// What there is; `None` before the first look.
    pub state: Option<ServiceState>,
    /// Rollouts that have not ended, oldest first: the first one runs, the others wait for it.
    pub open: Vec<Saved>,
    /// The newest that ended.
    pub last: Option<Saved>,
    /// What the tasks use.
    pub usage: crate::saturation::Usage,
    /// Why its tasks could not be seen at the last look; then what is known of them is older.
    pub trouble: Option<String>,
}

/// What the loop publishes.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// By name.
    pub services: BTreeMap<ServiceName, ServiceSnapshot>,
    /// Why the last change could not be saved, and when by the clock's elapsed time; nothing was saved since.
    pub unsaved: Option<(String, Duration)>,
    /// The incidents that are open.
    pub incidents: Vec<Incident>,
    /// The rollouts that are held for them.
    pub held: BTreeSet<RolloutId>,
}

/// The loop and all it owns.
#[derive(Debug)]
pub struct Reconciler {
    store: Arc<dyn Store>,
    orchestrator: Arc<dyn Orchestrator>,
    fleet: Arc<Fleet>,
    clock: Arc<dyn Clock>,
    term: u64,
    seq: u64,
    services: BTreeMap<ServiceName, Service>,
    requests: queue::Waiting,
    snapshot: watch::Sender<Arc<Snapshot>>,
    table: RouteTable,
    turned: Duration,
    /// The proxies that are not waited for.
    silent: BTreeSet<String>,
    /// When the orchestrator last had word of a change.
    told: Option<Duration>,
    checks: Checks,
    agents: Arc<Agents>,
    locks: Locks,
    freezes: Freezes,
    /// When it was last asked whether a freeze holds the service's running rollout.
    freeze_asked: BTreeMap<ServiceName, Duration>,
    delivery: Arc<Delivery>,
    incidents: Incidents,
    /// What went ahead although it could not be saved: rollouts on their way back, and the events that tell of it.
    unsaved: Change,
    /// Why the last change could not be saved, and since when.
    save_trouble: Option<(String, Duration)>,
    /// Whom messages can reach.
    audience: Audience,
    /// Changes with every message that was saved.
    mail: watch::Sender<u64>,
}

/// What others hold of the loop.
#[derive(Debug, Clone)]
pub struct Handle {
    /// Where requests go.
    pub requests: Requests,
    /// Whom a release to deploy is looked up by, before it is requested.
    pub registry: Arc<Registry>,
    /// What is published.
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// What is counted.
    pub delivery: Arc<Delivery>,
}

impl Reconciler {
    /// Takes over: a new term, and every rollout as it was saved.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub async fn start(
        store: Arc<dyn Store>,
        orchestrator: Arc<dyn Orchestrator>,
        fleet: Arc<Fleet>,
        clock: Arc<dyn Clock>,
        specs: Vec<Spec>,
    ) -> Result<(Self, Handle), StoreError> {
        let term = store.take_over().await?;
        orchestrator.lead(term);
        // Only now: what a controller before us was still writing is written, or never will be.
        fleet.resume(store.marks().await?);
        let mut services: BTreeMap<ServiceName, Service> = specs
            .into_iter()
            .map(|spec| (spec.service.clone(), Service::new(spec)))
            .collect();
        for saved in store.open_rollouts().await? {
            let service = services
                .entry(saved.rollout.service.clone())
                .or_insert_with(|| Service::new(saved.rollout.spec.clone()));
            service.open.push(saved);
        }
        let names: Vec<ServiceName> = services.keys().cloned().collect();
        for name in names {
            if let Some(promoted) = store.last_promoted(&name).await?
                && let Some(service) = services.get_mut(&name)
            {
                service.spec = promoted.rollout.spec.clone();
            }
            let ended = store
                .history(Some(&name), 16)
                .await?
                .into_iter()
                .find(|saved| saved.rollout.phase.is_ended());
            if let Some(service) = services.get_mut(&name) {
                service.last = ended;
            }
        }
        let locks = Locks::of(store.locks().await?);
        let incidents = Incidents::restored(store.incidents().await?, clock.elapsed());
        let delivery = Delivery::new();
        for service in services.values() {
            service
                .last
                .iter()
                .chain(&service.open)
                .for_each(|saved| delivery.show(&saved.rollout));
        }
        let (sender, requests) = queue::requests();
        let snapshot = watch::Sender::new(Arc::new(Snapshot::default()));
        let handle = Handle {
            requests: sender,
            registry: Registry::new(Arc::clone(&orchestrator)),
            snapshot: snapshot.subscribe(),
            delivery: Arc::clone(&delivery),
        };
        let turned = clock.elapsed();
        let reconciler = Self {
            store,
            orchestrator,
            fleet,
            clock,
            term,
            seq: 0,
            services,
            requests,
            snapshot,
            table: RouteTable::default(),
            turned,
            silent: BTreeSet::new(),
            told: None,
            checks: Checks::of(None),
            agents: Agents::new(),
            locks,
            freezes: Freezes::default(),
            freeze_asked: BTreeMap::new(),
            delivery,
            incidents,
            unsaved: Change::default(),
            save_trouble: None,
            audience: Audience::default(),
            mail: watch::Sender::new(0),
        };
        Ok((reconciler, handle))
    }

    /// The same, with a source that the checks of guards are asked of.
    #[must_use]
    pub fn with_metrics(self, source: Option<Arc<dyn MetricsSource>>) -> Self {
        Self {
            checks: Checks::of(source),
            ..self
        }
    }

    /// The same, with what these agents say of the tasks.
    #[must_use]
    pub fn with_agents(self, agents: Arc<Agents>) -> Self {
        Self { agents, ..self }
    }

    /// The same, and these are told what rollouts do.
    #[must_use]
    pub fn with_audience(self, audience: Audience) -> Self {
        Self { audience, ..self }
    }

    /// The term that it writes by.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Changes with every message that was saved to be told.
    #[must_use]
    pub fn wake(&self) -> watch::Receiver<u64> {
        self.mail.subscribe()
    }

    /// Turns until told to stop. What runs goes on running.
    ///
    /// # Errors
    /// Another controller took over.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), StoreError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.turn().await?;
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = tick.tick() => {}
                () = self.orchestrator.changed() => {
                    tokio::time::sleep(GATHER).await;
                    self.told = Some(self.clock.elapsed());
                }
                request = self.requests.recv() => match request {
                    Some(request) => self.answer(request).await?,
                    None => return Ok(()),
                },
            }
        }
    }

    /// One turn: answer who asked, look, decide, save, act.
    ///
    /// # Errors
    /// Another controller took over. Every other trouble is logged and tried again at the next turn.
    pub async fn turn(&mut self) -> Result<(), StoreError> {
        // Orders first: a rollback that came together with good evidence wins (F32).
        self.answer_waiting().await?;
        let now = self.clock.elapsed();
        let passed = now.saturating_sub(self.turned).min(PASSED_MAX);
        self.turned = now;
        self.look().await;
        let taken = self.fleet.take();
        self.decide(passed, &taken).await?;
        self.publish_table();
        self.act().await;
        self.publish_snapshot();
        Ok(())
    }

    /// Moves every running rollout by what was seen, and saves that.
    async fn decide(&mut self, passed: Duration, taken: &Taken) -> Result<(), StoreError> {
        let mut change = Change {
            marks: taken.marks.clone(),
            ..Change::default()
        };
        self.expire_incidents(&mut change);
        let names: Vec<ServiceName> = self.services.keys().cloned().collect();
        for name in &names {
            let slices = taken
                .slices
                .get(name.as_str())
                .map_or(&[][..], Vec::as_slice);
            self.decide_one(name, passed, slices, &mut change);
        }
        self.tell_of_proxies(&mut change);
        self.forget_held();
        change.incidents = self.incidents.unsaved();
        let only_marks = change.rollouts.is_empty()
            && change.events.is_empty()
            && change.incidents.is_none()
            && self.unsaved.is_empty();
        if only_marks {
            // Nothing was decided on them: were they lost with this process, nobody would miss them.
            self.fleet.acknowledge(&change.marks);
            self.count(taken);
            return Ok(());
        }
        if self.commit(change, true).await?.is_ok() {
            self.count(taken);
        }
        // Else it was said already. What was not saved comes again at the next turn.
        Ok(())
    }

    /// Counts requests that come no second time.
    fn count(&self, taken: &Taken) {
        for (name, service) in &self.services {
            let slices = taken.slices.get(name.as_str());
            for slice in slices.map_or(&[][..], Vec::as_slice) {
                service.count(&self.delivery, name, &service.by_node(&slice.block));
            }
        }
    }

    /// Says which proxies are not waited for any more, and which are again: a rollout that goes on without one says so.
    fn tell_of_proxies(&mut self, change: &mut Change) {
        let silent = self.fleet.silent(self.clock.elapsed());
        let before = std::mem::replace(&mut self.silent, silent);
        for name in before.symmetric_difference(&self.silent) {
            let is_silent = self.silent.contains(name);
            let seconds = PROXY_LIVE.as_secs();
            if is_silent {
                tracing::warn!(proxy = %name, seconds, "a proxy is silent: rollouts go on without waiting for it");
            } else {
                tracing::info!(proxy = %name, "a silent proxy is heard again");
            }
            let running = self
                .services
                .values()
                .filter_map(|service| service.open.first());
            change.events.extend(running.map(|saved| {
                let data =
                    json!({ "proxy": name, "silent": is_silent, "silent_seconds_min": seconds });
                Ledger::of(&saved.rollout).event("proxy", FRIDAY, data)
            }));
        }
    }

    fn decide_one(
        &mut self,
        name: &ServiceName,
        passed: Duration,
        slices: &[Slice],
        change: &mut Change,
    ) {
        let sample = self.sample(name, slices);
        let checks = self.ask_checks(name);
        let freeze = self.freeze_changed(name);
        let hold = self.hold(name);
        let Some(service) = self.services.get(name) else {
            return;
        };
        let Some(saved) = service.open.first() else {
            self.learn(name, slices);
            return;
        };
        let now = self.clock.now();
        let before = saved.rollout.clone();
        let mut next = saved.clone();
        let mut ledger = Ledger::of(&next.rollout);
        if let Some(frozen) = freeze {
            tracing::info!(rollout = %next.rollout.id, freeze = frozen.as_deref().unwrap_or("over"), "freeze");
            let data = json!({ "frozen": frozen.is_some(), "why": frozen });
            ledger.events.push(ledger.event("freeze", FRIDAY, data));
            next.rollout = next.rollout.on(Event::Frozen(frozen), now);
        }
        next.rollout = hold::held(next.rollout, hold, &mut ledger, now);
        next.rollout = next.rollout.on(Event::Passed(passed), now);
        lease::pass(&mut next, passed, now, &mut ledger);
        if let Some(observed) = self.observed(name, service, &next.rollout) {
            next.rollout = next.rollout.on(Event::Observed(observed), now);
        }
        // Made when the comparison begins: until then there is more to learn of stable.
        if next.judge.is_none() && next.rollout.position().is_some() {
            let began = Began {
                rules: RULES_VERSION,
                baseline: service.baseline.clone(),
            };
            ledger
                .events
                .push(ledger.event("judge", FRIDAY, json!(began)));
            next.judge = Some(Judge::new(&next.rollout.spec.guard, &began.baseline));
        }
        let mut judge = next.judge.take();
        let mut learned = Vec::new();
        let sample = if checks.is_empty() {
            sample
        } else {
            let (canary_restarts, stable_restarts) = service.restarts;
            let nothing_else = Sample {
                canary_restarts,
                stable_restarts,
                ..Sample::default()
            };
            Some(Sample {
                checks,
                ..sample.unwrap_or(nothing_else)
            })
        };
        // What was sampled comes before the blocks of this turn, as in the log.
        if next.rollout.position().is_some()
            && let (Some(sample), Some(judge)) = (sample, &mut judge)
        {
            ledger
                .events
                .push(ledger.event("sample", FRIDAY, json!(sample)));
            sample.tell(judge, &next.rollout.spec.guard);
        }
        for slice in slices {
            let block = service.by_node(&slice.block);
            let (Some((stage, position)), Some(judge)) = (next.rollout.position(), &mut judge)
            else {
                learned.push(slice.clone());
                continue;
            };
            let guard = next.rollout.spec.guard.clone();
            for Judged { block, verdict } in judge.observe(&block, &guard, &position) {
                ledger.verdict(&position, &block, &verdict);
                next.rollout = next.rollout.on(
                    Event::Judged {
                        stage,
                        ruling: ruling(&verdict.decision),
                    },
                    now,
                );
                next.verdict = Some(verdict);
            }
        }
        next.judge = judge;
        ledger.moves(&before, &next.rollout);
        self.learn(name, &learned);
        change.events.extend(ledger.events);
        change.rollouts.push(next);
    }

    /// What the judge is told beside requests: gauges when it is time for them or a limit is near, restarts when there
    /// were more.
    fn sample(&mut self, name: &ServiceName, slices: &[Slice]) -> Option<Sample> {
        let now = self.clock.elapsed();
        let service = self.services.get_mut(name)?;
        for slice in slices {
            service.rate.add(&slice.block);
            let block = service.by_node(&slice.block);
            service.saturation.served(&block);
        }
        let state = service.state.as_ref()?;
        let judge = service.open.first().and_then(|saved| saved.judge.as_ref());
        let waited = judge.and_then(Judge::since_sample);
        let gauges = service.saturation.sample(state, now, waited);
        let restarts = (state.canary.as_ref()?.restarts, state.stable.restarts);
        let more = std::mem::replace(&mut service.restarts, restarts) != restarts;
        let limits = service.saturation.at_limit(state);
        (more || gauges.is_some() || limits.is_some()).then_some(Sample {
            canary_restarts: restarts.0,
            stable_restarts: restarts.1,
            gauges,
            limits,
            checks: Vec::new(),
        })
    }

    /// Starts the questions that are due for the service's running rollout; what came back since.
    fn ask_checks(&mut self, name: &ServiceName) -> Vec<CheckSample> {
        let Some(saved) = self
            .services
            .get(name)
            .and_then(|service| service.open.first())
        else {
            return Vec::new();
        };
        let rollout = &saved.rollout;
        if rollout.spec.guard.checks.is_empty() {
            return Vec::new();
        }
        if rollout.position().is_none() {
            self.checks.forget(&rollout.id);
            return Vec::new();
        }
        self.checks.ask(rollout, &*self.clock);
        self.checks.take(&rollout.id, &*self.clock)
    }

    /// Learns what stable is like from requests that nothing was decided on.
    fn learn(&mut self, name: &ServiceName, slices: &[Slice]) {
        let Some(service) = self.services.get_mut(name) else {
            return;
        };
        for slice in slices {
            let block = service.by_node(&slice.block);
            if service.learning.duration > Duration::ZERO && service.learning.weight != block.weight
            {
                service.learning = Block::default();
            }
            service.learning.weight = block.weight;
            service.learning.append(&block);
            if service.learning.duration >= LEARN_EVERY {
                let block = std::mem::take(&mut service.learning);
                let guard = service.spec().guard.clone();
                // With everything on the canary there is no stable to learn from.
                if block.weight != Weight::ALL {
                    service.baseline.learn(&block, &guard);
                }
            }
        }
    }

    fn publish_table(&mut self) {
        // Before every service was seen once, a table would lack some of them; the proxies' last one is better.
        if self
            .services
            .values()
            .any(|service| service.state.is_none())
        {
            return;
        }
        let routes = self
            .services
            .values()
            .filter_map(|service| {
                let state = service.state.as_ref()?;
                // An ended rollout says no more than that everything goes to stable.
                let running = service.open.first().map(|saved| &saved.rollout);
                Some(routing::route(service.spec(), state, running))
            })
            .collect();
        if self.table.routes == routes && self.table.generation.term == self.term {
            return;
        }
        self.seq += 1;
        self.table = RouteTable {
            generation: Generation {
                term: self.term,
                seq: self.seq,
            },
            routes,
        };
        self.fleet.publish(self.table.clone());
    }

    async fn act(&mut self) {
        let mut outcomes = Vec::new();
        for (name, service) in &self.services {
            let (Some(rollout), Some(state)) = (service.in_charge(), &service.state) else {
                continue;
            };
            let mut refused = None;
            if let Err(error) = self.ensure(name, rollout, state).await {
                tracing::warn!(service = %name, rollout = %rollout.id, error = %chain(&error), "not carried out; tried again");
                if !error.is_transient() {
                    refused = Some((rollout.id.clone(), chain(&error)));
                }
            }
            outcomes.push((name.clone(), refused));
        }
        for (name, refused) in outcomes {
            if let Some(service) = self.services.get_mut(&name) {
                service.refused = refused;
            }
        }
    }

    async fn ensure(
        &self,
        name: &ServiceName,
        rollout: &Rollout,
        state: &ServiceState,
    ) -> Result<(), OrchestratorError> {
        let desired = rollout.desired();
        // A group in trouble is asked again: whoever runs it may have given it up.
        let is_stuck = |release: &Release| {
            state.stable.trouble.is_some()
                && state.stable.ready(&release.id) < state.stable.replicas
        };
        // Before traffic returns to it (F15).
        if let (Some(release), Some(replicas)) = (&desired.stable, desired.stable_replicas)
            && state.stable.replicas == 0
        {
            self.orchestrator
                .restore_stable(name, release, replicas)
                .await?;
        }
        if let Some(release) = &desired.stable
            && (state.stable.release.id != release.id || is_stuck(release))
        {
            self.orchestrator.ensure_stable(name, release).await?;
        }
        match (&desired.canary, &state.canary) {
            (Placement::Run { release, replicas }, Some(group))
                if group.release.id == release.id && group.replicas == *replicas => {}
            (Placement::Run { release, replicas }, _) => {
                self.orchestrator
                    .ensure_canary(name, release, *replicas)
                    .await?;
            }
            (Placement::Absent, Some(_)) => self.orchestrator.ensure_no_canary(name).await?,
            (Placement::Absent, None) | (Placement::Keep, _) => {}
        }
        Ok(())
    }

    fn publish_snapshot(&self) {
        let services = self
            .services
            .iter()
            .map(|(name, service)| {
                let snapshot = ServiceSnapshot {
                    spec: service.spec().clone(),
                    state: service.state.clone(),
                    open: service.open.clone(),
                    last: service.last.clone(),
                    usage: service.saturation.usage(),
                    trouble: service.blind.clone(),
                };
                (name.clone(), snapshot)
            })
            .collect();
        self.snapshot.send_replace(Arc::new(Snapshot {
            services,
            unsaved: self.save_trouble.clone(),
            incidents: self.incidents.list(),
            held: self.incidents.held().clone(),
        }));
    }
}

/// What a verdict means for the rollout.
fn ruling(decision: &Decision) -> Ruling {
    match decision {
        Decision::Pass { .. } => Ruling::Pass,
        Decision::Fail { signal, .. } => Ruling::Fail {
            signal: signal_name(signal).to_owned(),
        },
        Decision::Hold { .. } | Decision::Inconclusive { .. } => Ruling::Hold,
    }
}

/// The signal's name in causes, events and metrics.
#[must_use]
pub fn signal_name(signal: &Signal) -> &'static str {
    match signal {
        Signal::Errors => "errors",
        Signal::WarmUp => "warm_up",
        Signal::Latency { .. } => "latency",
        Signal::Saturation { .. } | Signal::Limit { .. } => "saturation",
        Signal::Restarts { .. } => "restarts",
        Signal::ErrorsAlone { .. } => "errors_alone",
        Signal::LatencyAlone { .. } => "latency_alone",
        Signal::Check { .. } => "check",
        Signal::Answers { .. } => "answers",
    }
}

/// An error with all its sources, on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}
