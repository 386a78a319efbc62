//! The one loop: look at the world, decide, save, act, wait; and then again.
//!
//! All rollouts belong to this task; others send it requests and read what it publishes. What a rollout wants of the
//! world is a function of its saved state, so there is nothing to resume after a crash: the first turn of the loop does
//! what any other does. A state is saved before it is acted upon. Only the way back does not wait for the store: if a
//! rollback cannot be written it happens all the same, and is written as soon as that is possible (F40).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures::future::join_all;
use proxy_api::{Generation, RouteTable};
use rollout::judge::{Baseline, CheckSample, Decision, Judged, RULES_VERSION, Signal};
use rollout::rollout::Ruling;
use rollout::{
    Block, Duration, Event, Judge, Observed, Phase, Placement, Release, Rollout, RolloutId,
    ServiceName, Spec, Weight,
};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::checks::Checks;
use crate::clock::Clock;
use crate::fleet::{Fleet, Slice, Taken};
use crate::metrics_source::MetricsSource;
use crate::orchestrator::{Orchestrator, OrchestratorError, ServiceState};
use crate::replay::{Began, Sample};
use crate::request_rate::RequestRate;
use crate::routing;
use crate::saturation::Saturation;
use crate::store::{Change, NewEvent, Saved, Store, StoreError};

mod ledger;
mod request;

pub use request::{Deploy, Reply, Request, RequestError};

use ledger::Ledger;

/// How often the world is looked at when nothing calls. A reaction takes at most this much longer; an observation of
/// some tasks takes a few milliseconds.
pub const TICK: Duration = Duration::from_millis(250);

/// Longest time that one turn may count as passed: after the machine slept, or an engine hung, a deadline shall not
/// fire for time in which nothing was seen.
const PASSED_MAX: Duration = Duration::from_secs(5);

/// Requests that may wait for the loop; one more is refused at once.
pub const REQUESTS_MAX: usize = 64;

/// Stretches of stable traffic that are learned from at once, outside analysis: as long as the judge's blocks.
const LEARN_EVERY: Duration = Duration::from_secs(2);

/// Endpoints whose node is remembered, so that late reports of a dead task find it.
const NODES_MAX: usize = 10_000;

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
}

/// What the loop publishes.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// By name.
    pub services: BTreeMap<ServiceName, ServiceSnapshot>,
}

#[derive(Debug)]
struct Service {
    spec: Spec,
    state: Option<ServiceState>,
    open: Vec<Saved>,
    last: Option<Saved>,
    baseline: Baseline,
    learning: Block,
    rate: RequestRate,
    nodes: HashMap<String, String>,
    saturation: Saturation,
    /// Restarts of the canary and of stable, as the judge was last told.
    restarts: (u32, u32),
    /// Why the last wish of a rollout was refused for good.
    refused: Option<(RolloutId, String)>,
    /// Whether the last look failed; said once, not at every turn.
    blind: bool,
}

impl Service {
    fn new(spec: Spec) -> Self {
        Self {
            spec,
            state: None,
            open: Vec::new(),
            last: None,
            baseline: Baseline::default(),
            learning: Block::default(),
            rate: RequestRate::default(),
            nodes: HashMap::new(),
            saturation: Saturation::default(),
            restarts: (0, 0),
            refused: None,
            blind: false,
        }
    }

    /// The rollout whose wishes count: the oldest that has not ended, else the newest that has.
    fn in_charge(&self) -> Option<&Rollout> {
        self.open
            .first()
            .or(self.last.as_ref())
            .map(|saved| &saved.rollout)
    }

    /// What the service goes by now.
    fn spec(&self) -> &Spec {
        self.open
            .first()
            .map_or(&self.spec, |saved| &saved.rollout.spec)
    }

    fn remember_nodes(&mut self) {
        let Some(state) = &self.state else { return };
        if self.nodes.len() > NODES_MAX {
            self.nodes.clear();
        }
        for task in state
            .stable
            .tasks
            .iter()
            .chain(state.canary.iter().flat_map(|group| &group.tasks))
        {
            self.nodes
                .insert(task.endpoint.to_string(), task.node.clone());
        }
    }

    /// The block with nodes in place of the addresses that proxies know.
    fn by_node(&self, block: &Block) -> Block {
        let translate = |cells: &[rollout::Cell]| {
            let mut named = Vec::with_capacity(cells.len());
            for cell in cells {
                let node = self
                    .nodes
                    .get(&cell.node)
                    .cloned()
                    .unwrap_or_else(|| cell.node.clone());
                rollout::signals::merge_cells(
                    &mut named,
                    &[rollout::Cell {
                        node,
                        ..cell.clone()
                    }],
                );
            }
            named
        };
        Block {
            canary: translate(&block.canary),
            stable: translate(&block.stable),
            ..block.clone()
        }
    }
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
    requests: mpsc::Receiver<Request>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    table: RouteTable,
    turned: Duration,
    checks: Checks,
    /// What went ahead although it could not be saved: rollouts on their way back, and the events that tell of it.
    unsaved: Change,
}

/// What others hold of the loop.
#[derive(Debug, Clone)]
pub struct Handle {
    /// Where requests go.
    pub requests: mpsc::Sender<Request>,
    /// What is published.
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
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
        let (sender, requests) = mpsc::channel(REQUESTS_MAX);
        let snapshot = watch::Sender::new(Arc::new(Snapshot::default()));
        let handle = Handle {
            requests: sender,
            snapshot: snapshot.subscribe(),
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
            checks: Checks::of(None),
            unsaved: Change::default(),
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
        while let Ok(request) = self.requests.try_recv() {
            self.answer(request).await?;
        }
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

    async fn look(&mut self) {
        let now = self.clock.elapsed();
        // All at once: an engine that hangs costs one time-out a turn, however many services it has.
        let looks = join_all(self.services.iter().map(async |(name, service)| {
            self.orchestrator.know(service.spec());
            self.orchestrator.observe(name).await
        }));
        let looks = looks.await;
        for ((name, service), look) in self.services.iter_mut().zip(looks) {
            match look {
                Ok(state) => {
                    if std::mem::take(&mut service.blind) {
                        tracing::info!(service = %name, "the orchestrator answers again");
                    }
                    service.saturation.see(&state, now);
                    service.state = Some(state);
                    service.remember_nodes();
                }
                Err(error) => {
                    if !std::mem::replace(&mut service.blind, true) {
                        tracing::warn!(service = %name, error = %chain(&error), "cannot see the tasks: what was known stays in force");
                    }
                }
            }
        }
    }

    fn observed(
        &self,
        name: &ServiceName,
        service: &Service,
        rollout: &Rollout,
    ) -> Option<Observed> {
        let state = service.state.as_ref()?;
        let now = self.clock.elapsed();
        let canary = state.canary.as_ref();
        Some(Observed {
            stable_replicas: state.stable.replicas,
            stable_wants: Some(state.stable.release.id.clone()),
            stable_ready: state.stable.ready(&rollout.stable.id),
            stable_updated: state.stable.ready(&rollout.canary.id),
            canary_exists: canary.is_some(),
            canary_ready: canary.map_or(0, |group| group.ready(&rollout.canary.id)),
            weight_seen: self.fleet.weight_seen(name.as_str(), now),
            canary_in_flight: self.canary_in_flight(name, rollout, now),
            requests_per_second: match rollout.running_phase() {
                Phase::Deploying { .. } => service.rate.per_second(),
                Phase::Analyzing { .. }
                | Phase::Gated { .. }
                | Phase::Baking { .. }
                | Phase::Warm { .. }
                | Phase::Paused { .. }
                | Phase::Promoting { .. }
                | Phase::RollingBack { .. }
                | Phase::Promoted
                | Phase::RolledBack { .. } => None,
            },
            trouble: canary.and_then(|group| group.trouble.clone()),
            refused: service
                .refused
                .as_ref()
                .filter(|(id, _)| *id == rollout.id)
                .map(|(_, words)| words.clone()),
        })
    }

    /// Requests in flight to the canary's tasks. Once the stable group runs the same release they cannot be told apart
    /// by release; then only the drain limit of the tasks themselves protects them.
    fn canary_in_flight(&self, name: &ServiceName, rollout: &Rollout, now: Duration) -> u32 {
        match rollout.running_phase() {
            Phase::Promoting { .. } => 0,
            Phase::Deploying { .. }
            | Phase::Analyzing { .. }
            | Phase::Gated { .. }
            | Phase::Baking { .. }
            | Phase::Warm { .. }
            | Phase::Paused { .. }
            | Phase::RollingBack { .. }
            | Phase::Promoted
            | Phase::RolledBack { .. } => {
                self.fleet
                    .in_flight(name.as_str(), rollout.canary.id.as_str(), now)
            }
        }
    }

    /// Moves every running rollout by what was seen, and saves that.
    async fn decide(&mut self, passed: Duration, taken: &Taken) -> Result<(), StoreError> {
        let mut change = Change {
            marks: taken.marks.clone(),
            ..Change::default()
        };
        let names: Vec<ServiceName> = self.services.keys().cloned().collect();
        for name in &names {
            let slices = taken
                .slices
                .get(name.as_str())
                .map_or(&[][..], Vec::as_slice);
            self.decide_one(name, passed, slices, &mut change);
        }
        let only_marks =
            change.rollouts.is_empty() && change.events.is_empty() && self.unsaved.is_empty();
        if only_marks {
            // Nothing was decided on them: were they lost with this process, nobody would miss them.
            self.fleet.acknowledge(&change.marks);
            return Ok(());
        }
        if self.commit(change, true).await?.is_err() {
            // Said already. What was not saved comes again at the next turn.
        }
        Ok(())
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
        next.rollout = next.rollout.on(Event::Passed(passed), now);
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
        let gauges = service.saturation.sample(state, now);
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

    /// Saves a change and makes it true in memory. If it cannot be saved and `backwards` is allowed, what only goes back
    /// to stable becomes true all the same, and is saved as soon as that is possible. The inner result says whether it
    /// was saved.
    async fn commit(
        &mut self,
        mut change: Change,
        backwards: bool,
    ) -> Result<Result<(), StoreError>, StoreError> {
        change
            .events
            .splice(0..0, self.unsaved.events.iter().cloned());
        for waiting in &self.unsaved.rollouts {
            if !change
                .rollouts
                .iter()
                .any(|saved| saved.rollout.id == waiting.rollout.id)
            {
                change.rollouts.push(waiting.clone());
            }
        }
        match self.store.save(self.term, self.clock.now(), &change).await {
            Ok(()) => {
                self.unsaved = Change::default();
                self.fleet.acknowledge(&change.marks);
                self.take_in(change);
                Ok(Ok(()))
            }
            Err(error @ StoreError::Fenced { .. }) => Err(error),
            Err(error) => {
                tracing::error!(error = %chain(&error), "not saved; only rollbacks go ahead until it can be");
                if backwards {
                    let goes_back = |saved: &Saved| {
                        matches!(
                            saved.rollout.phase,
                            Phase::RollingBack { .. } | Phase::RolledBack { .. }
                        )
                    };
                    let rollouts: Vec<Saved> =
                        change.rollouts.into_iter().filter(goes_back).collect();
                    let tells = |event: &NewEvent| {
                        // Verdicts come again with the blocks, which were not acknowledged.
                        event.kind != "verdict"
                            && rollouts
                                .iter()
                                .any(|saved| event.rollout.as_ref() == Some(&saved.rollout.id))
                    };
                    let events = change.events.into_iter().filter(tells).collect();
                    self.unsaved = Change {
                        rollouts,
                        events,
                        ..Change::default()
                    };
                    self.take_in(Change {
                        rollouts: self.unsaved.rollouts.clone(),
                        ..Change::default()
                    });
                }
                Ok(Err(error))
            }
        }
    }

    fn take_in(&mut self, change: Change) {
        for saved in change.started {
            let name = saved.rollout.service.clone();
            let service = self
                .services
                .entry(name)
                .or_insert_with(|| Service::new(saved.rollout.spec.clone()));
            service.open.push(saved);
        }
        for saved in change.rollouts {
            let Some(service) = self.services.get_mut(&saved.rollout.service) else {
                continue;
            };
            let Some(at) = service
                .open
                .iter()
                .position(|open| open.rollout.id == saved.rollout.id)
            else {
                continue;
            };
            if saved.rollout.phase.is_ended() {
                service.open.remove(at);
                if saved.rollout.phase == Phase::Promoted {
                    service.spec = saved.rollout.spec.clone();
                    // Another release is stable now: what was known of the one before says little of it.
                    service.baseline = Baseline::default();
                }
                service.last = Some(saved);
            } else {
                service.open[at] = saved;
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
                };
                (name.clone(), snapshot)
            })
            .collect();
        self.snapshot.send_replace(Arc::new(Snapshot { services }));
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
