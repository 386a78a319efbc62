//! A world for the controller: a clock, tasks, proxies with users behind them, and a disk.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use controller_testing::{FakeClock, FakeMetricsSource, FakeOrchestrator};
use friday::admission::Freezes;
use friday::agents::Agents;
use friday::auth::Tokens;
use friday::clock::Clock;
use friday::fleet::Fleet;
use friday::metrics_source::MetricsSource;
use friday::orchestrator::{Orchestrator, ServiceState};
use friday::reconciler::{Deploy, Handle, Reconciler, Request, RequestError};
use friday::replay::{Entry, replay};
use friday::spec::{self, ReadOptions};
use friday::store::{Event, Saved, Sqlite, Store, StoreError};
use proxy_api::{
    Arm, BootId, Cell, Chosen, Endpoint, Epoch, Generation, InFlight, KIND_NONE, Report,
    RouteTable, latency_bucket,
};
use rollout::{Command, Duration, Phase, Rollout, RolloutId, ServiceName, Spec, Timestamp, Weight};
use tokio::sync::{oneshot, watch};

/// One turn of the loop.
pub(crate) const STEP: Duration = Duration::from_millis(250);

/// The plan of the demo, so that a rollout takes a minute.
pub(crate) const FRIDAY_YML: &str = "
service: web
port: 9000
ready: { path: /ready }
route: { host: '*', path: / }
sticky: none
shield: idempotent
plan:
  - { weight: 10%, hold: 10s..60s }
  - { weight: 25%, hold: 10s..60s }
  - { weight: 50%, hold: 10s..90s }
bake: { weight: 80%, for: 10s }
keep_warm: 5s
deadlines: { ready: 30s, evidence: 120s, rollout: 10m }
warm_up: 5s
";

pub(crate) fn spec() -> Spec {
    let options = ReadOptions {
        plan: None,
        environment: None,
    };
    spec::read(FRIDAY_YML, "friday.yml", &options).unwrap_or_else(|findings| panic!("{findings:?}"))
}

pub(crate) fn service() -> ServiceName {
    "web".parse().unwrap()
}

/// How a release answers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Behaviour {
    /// Share of its requests that fail.
    pub(crate) fails: f64,
    /// Its latency is so many times stable's.
    pub(crate) slower: f64,
    /// Share of its answers that are of the kind "sad", while the others are "glad"; none where they name no kind.
    pub(crate) sad: Option<f64>,
}

pub(crate) const GOOD: Behaviour = Behaviour {
    fails: 0.0,
    slower: 1.0,
    sad: Some(0.3),
};
pub(crate) const FAILING: Behaviour = Behaviour {
    fails: 0.2,
    slower: 1.0,
    sad: Some(0.3),
};
/// Quick, without an error, and wrong.
pub(crate) const WRONG: Behaviour = Behaviour {
    fails: 0.0,
    slower: 1.0,
    sad: Some(0.7),
};

/// A proxy with users behind it.
#[derive(Debug)]
pub(crate) struct Proxy {
    name: String,
    boot: BootId,
    table: Arc<RouteTable>,
    epochs: Vec<Epoch>,
    number: u64,
    owed: BTreeMap<(Arm, &'static str), f64>,
    seed: u64,
    history: Option<Vec<(u64, u64)>>,
    /// Requests in a second.
    pub(crate) rate: f64,
    /// Whether it reaches the controller.
    pub(crate) linked: bool,
    /// What users were given by a table that had nobody to serve them.
    pub(crate) refused: u64,
    /// Requests routed to a task that was not there any more.
    pub(crate) misrouted: u64,
    /// Requests by release.
    pub(crate) served: BTreeMap<String, u64>,
}

impl Proxy {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            boot: BootId(1),
            table: Arc::new(RouteTable::default()),
            epochs: Vec::new(),
            number: 0,
            owed: BTreeMap::new(),
            seed: 1,
            history: None,
            rate: 400.0,
            linked: true,
            refused: 0,
            misrouted: 0,
            served: BTreeMap::new(),
        }
    }

    pub(crate) fn generation(&self) -> Generation {
        self.table.generation
    }

    pub(crate) fn weight(&self) -> Weight {
        let points = self
            .table
            .routes
            .first()
            .map_or(0, |route| route.canary_bp.get());
        Weight::from_basis_points(points).unwrap()
    }

    /// Takes the newest table, as a long poll would.
    fn pull(&mut self, fleet: &Fleet) {
        let newest = fleet.table().borrow().clone();
        if self.linked && newest.generation > self.table.generation {
            self.table = newest;
        }
    }

    /// How many of something, so that in the long run it is `rate`: no chance in counts, so runs repeat.
    fn count(&mut self, arm: Arm, what: &'static str, rate: f64) -> u32 {
        let owed = self.owed.entry((arm, what)).or_default();
        *owed += rate;
        let whole = owed.floor();
        *owed -= whole;
        whole as u32
    }

    fn uniform(&mut self) -> f64 {
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Serves users for a while by the table it has.
    fn serve(&mut self, time: Duration, there: &[Endpoint], behave: &impl Fn(&str) -> Behaviour) {
        let table = Arc::clone(&self.table);
        let mut cells = Vec::new();
        for route in &table.routes {
            let canary = route.canary_bp.ratio();
            for (arm, share, upstream) in [
                (Arm::Canary, canary, route.canary.as_ref()),
                (Arm::Stable, 1.0 - canary, Some(&route.stable)),
            ] {
                let requests = self.count(arm, "requests", self.rate * time.as_secs_f64() * share);
                let Some(upstream) = upstream.filter(|upstream| !upstream.endpoints.is_empty())
                else {
                    self.refused += u64::from(requests);
                    continue;
                };
                if requests == 0 {
                    continue;
                }
                let behaviour = behave(&upstream.release);
                let bad = self
                    .count(arm, "bad", f64::from(requests) * behaviour.fails)
                    .min(requests);
                *self.served.entry(upstream.release.clone()).or_default() += u64::from(requests);
                let latency = (bad..requests).map(|_| {
                    let z: f64 = (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0;
                    let us = 20_000.0 * behaviour.slower * (0.5 * z).exp();
                    (latency_bucket(us as u64), 1)
                });
                let latency: rollout::LatencyHistogram = latency.collect();
                let mut kinds = BTreeMap::new();
                for _ in (bad..requests).filter(|_| route.answer_kind.is_some()) {
                    let kind = match behaviour.sad {
                        None => KIND_NONE,
                        Some(sad) if self.uniform() < sad => "sad",
                        Some(_) => "glad",
                    };
                    *kinds.entry(kind.to_owned()).or_default() += 1;
                }
                let endpoint = upstream.endpoints[0].clone();
                if !there.contains(&endpoint) {
                    self.misrouted += u64::from(requests);
                }
                cells.push(Cell {
                    route: route.name.clone(),
                    arm,
                    release: upstream.release.clone(),
                    endpoint: Some(endpoint),
                    group: 0,
                    chosen: Chosen::Weight,
                    requests,
                    unfinished: 0,
                    outcomes: [requests - bad, bad, 0, 0, 0],
                    failed_to_user: 0,
                    latency: latency.iter().collect(),
                    kinds,
                });
            }
        }
        if let Some(history) = &mut self.history {
            let of = |arm| {
                cells
                    .iter()
                    .filter(|cell| cell.arm == arm)
                    .map(|cell| u64::from(cell.requests))
                    .sum()
            };
            history.push((of(Arm::Canary), of(Arm::Stable)));
        }
        self.number += 1;
        self.epochs.push(Epoch {
            number: self.number,
            generation: table.generation,
            weights: table
                .routes
                .iter()
                .map(|route| (route.name.clone(), route.canary_bp))
                .collect(),
            duration_ms: u32::try_from(time.as_millis()).unwrap(),
            is_final: true,
            cells,
        });
    }

    /// Reports what nobody acknowledged, and forgets what somebody did.
    fn report(&mut self, fleet: &Fleet, now: Duration) {
        if !self.linked {
            return;
        }
        let report = Report {
            proxy: self.name.clone(),
            boot: self.boot,
            generation: self.table.generation,
            epochs: self.epochs.clone(),
            epochs_dropped: 0,
            in_flight: Vec::<InFlight>::new(),
        };
        let ack = fleet.report(&self.name, report, now).unwrap();
        self.epochs.retain(|epoch| epoch.number > ack.acknowledged);
    }

    /// Remembers what it routed, epoch by epoch.
    pub(crate) fn keep_history(&mut self) {
        self.history = Some(Vec::new());
    }

    /// Requests to the canary and to stable in all stretches of epochs that begin not after the canary's first request.
    pub(crate) fn sums_with_the_first_canary_request(
        &self,
    ) -> impl Iterator<Item = (u64, u64)> + '_ {
        let history = self.history.as_deref().expect("a history is kept");
        let first = history
            .iter()
            .position(|(canary, _)| *canary > 0)
            .expect("the canary got requests");
        (0..=first).flat_map(move |from| {
            history[from..]
                .iter()
                .scan((0, 0), |sum, (canary, stable)| {
                    *sum = (sum.0 + canary, sum.1 + stable);
                    Some(*sum)
                })
        })
    }

    /// Another life: counts start again; the table is on disk.
    pub(crate) fn restart(&mut self) {
        self.boot = BootId(self.boot.0 + 1);
        self.number = 0;
        self.epochs.clear();
    }
}

/// The controller and all around it.
pub(crate) struct World {
    pub(crate) clock: Arc<FakeClock>,
    pub(crate) orchestrator: Arc<FakeOrchestrator>,
    pub(crate) proxies: Vec<Proxy>,
    pub(crate) behaviours: BTreeMap<String, Behaviour>,
    pub(crate) store: Arc<Sqlite>,
    /// What releases are deployed by.
    pub(crate) spec: Spec,
    /// What checks are asked of, if there is anything.
    pub(crate) metrics: Option<Arc<FakeMetricsSource>>,
    fleet: Arc<Fleet>,
    /// What nodes' agents say of the tasks.
    pub(crate) agents: Arc<Agents>,
    /// Who may ask the API for what; everybody for everything if it is empty.
    pub(crate) tokens: Option<Arc<Tokens>>,
    /// The job that the next deploy comes from.
    pub(crate) origin: Option<friday::origin::Origin>,
    /// Who waits for what it starts.
    pub(crate) lease: Option<friday::lease::Terms>,
    /// Where hooks come in, if they are taken.
    pub(crate) webhooks: Option<Arc<friday::api::webhooks::Webhooks>>,
    /// The GitLab's address, if there is one.
    pub(crate) gitlab: Option<String>,
    freezes: Freezes,
    reconciler: Option<Reconciler>,
    pub(crate) handle: Handle,
    /// Tells the API when the controller stops, which it never does here.
    stopping: watch::Sender<bool>,
    file: PathBuf,
    _folder: tempfile::TempDir,
}

impl World {
    /// Stable `web:v1` with two tasks, images `web:v2` and `web:v3`, one proxy with 400 requests a second.
    pub(crate) async fn new() -> Self {
        let clock = FakeClock::standing("2026-11-20T16:00:00Z".parse().unwrap());
        let orchestrator = FakeOrchestrator::new(clock.clone());
        for (image, meaning) in [("web:v1", "one"), ("web:v2", "two"), ("web:v3", "three")] {
            orchestrator.set_image(image, meaning);
        }
        orchestrator.add_service(&service(), "web:v1", 2);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("friday.db");
        let agents = Agents::new();
        let (store, fleet, reconciler, handle) =
            start(&file, &clock, &orchestrator, None, &agents).await;
        let mut world = Self {
            clock,
            orchestrator,
            proxies: vec![Proxy::new("p1")],
            behaviours: BTreeMap::new(),
            store,
            spec: spec(),
            metrics: None,
            fleet,
            agents,
            tokens: None,
            origin: None,
            lease: None,
            webhooks: None,
            gitlab: None,
            freezes: Freezes::default(),
            reconciler: Some(reconciler),
            handle,
            stopping: watch::Sender::new(false),
            file,
            _folder: folder,
        };
        // The first table, and some seconds of what stable is like.
        world.pass(Duration::from_secs(5)).await;
        world
    }

    pub(crate) fn add_proxy(&mut self, name: &str) {
        self.proxies.push(Proxy::new(name));
    }

    /// How the release of `image` answers.
    pub(crate) async fn behave(&mut self, image: &str, behaviour: Behaviour) {
        let release = self
            .orchestrator
            .resolve(&service(), image, None)
            .await
            .unwrap();
        self.behaviours.insert(release.id.to_string(), behaviour);
    }

    /// The controller dies, as by SIGKILL, and another starts on the same disk. Tasks and proxies go on.
    pub(crate) async fn crash(&mut self) {
        drop(self.reconciler.take());
        self.agents = Agents::new();
        let (store, fleet, reconciler, handle) = start(
            &self.file,
            &self.clock,
            &self.orchestrator,
            self.metrics.clone(),
            &self.agents,
        )
        .await;
        self.store = store;
        self.fleet = fleet;
        self.reconciler = Some(reconciler);
        self.handle = handle;
    }

    /// The controller asks these freezes too.
    pub(crate) fn freeze_by(&mut self, freezes: Freezes) {
        self.freezes = freezes.clone();
        let reconciler = self.reconciler.take();
        self.reconciler = reconciler.map(|reconciler| reconciler.with_freezes(freezes));
    }

    /// The time that only passes.
    pub(crate) fn now(&self) -> Duration {
        self.clock.elapsed()
    }

    /// The HTTP API of this controller.
    pub(crate) fn api(&self) -> axum::Router {
        friday::api::router(friday::api::Api {
            metrics: self
                .metrics
                .clone()
                .map(|source| source as Arc<dyn MetricsSource>),
            store: self.store.clone(),
            fleet: self.fleet.clone(),
            agents: self.agents.clone(),
            handle: self.handle.clone(),
            clock: self.clock.clone(),
            stopping: self.stopping.subscribe(),
            tokens: self.tokens.clone(),
            webhooks: self.webhooks.clone(),
            gitlab: self.gitlab.clone(),
            freezes: self.freezes.clone(),
            job_tokens: Arc::default(),
        })
    }

    async fn users_and_proxies(&mut self) {
        self.clock.pass(STEP);
        let there = self.endpoints().await;
        let behaviours = self.behaviours.clone();
        let behave = |release: &str| behaviours.get(release).copied().unwrap_or(GOOD);
        let now = self.clock.elapsed();
        for proxy in &mut self.proxies {
            proxy.pull(&self.fleet);
            proxy.serve(STEP, &there, &behave);
            proxy.report(&self.fleet, now);
        }
    }

    async fn endpoints(&self) -> Vec<Endpoint> {
        let Ok(state) = self.orchestrator.observe(&service()).await else {
            return Vec::new();
        };
        let tasks = state
            .stable
            .tasks
            .into_iter()
            .chain(state.canary.into_iter().flat_map(|group| group.tasks));
        tasks.map(|task| task.endpoint).collect()
    }

    /// A quarter of a second, and one turn of the loop.
    pub(crate) async fn step(&mut self) {
        self.users_and_proxies().await;
        if let Some(reconciler) = &mut self.reconciler {
            reconciler.turn().await.unwrap();
        }
    }

    /// A step in which the controller dies after so many of its waits, and starts again. Whether it died.
    pub(crate) async fn step_and_die_after(&mut self, waits: u32) -> bool {
        self.users_and_proxies().await;
        let mut reconciler = self.reconciler.take().expect("it runs");
        let finished = polls(reconciler.turn(), waits).await.is_some();
        if finished {
            self.reconciler = Some(reconciler);
            return false;
        }
        drop(reconciler);
        self.crash().await;
        true
    }

    pub(crate) async fn pass(&mut self, time: Duration) {
        let steps = time.as_millis().div_ceil(STEP.as_millis());
        for _ in 0..steps {
            self.step().await;
        }
    }

    /// Steps until the condition holds; panics with the last state after `limit`.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        limit: Duration,
        condition: impl Fn(&Self, &Rollout) -> bool,
    ) {
        let end = self.clock.elapsed() + limit;
        loop {
            let rollout = self.rollout().await;
            if condition(self, &rollout) {
                return;
            }
            assert!(
                self.clock.elapsed() < end,
                "not within {limit:?}: {what}; last: {:?}",
                rollout.phase
            );
            self.step().await;
        }
    }

    pub(crate) async fn until_phase(&mut self, name: &str, limit: Duration) {
        self.until(name, limit, |_, rollout| rollout.phase.name() == name)
            .await;
    }

    /// Hands a request to the loop, and turns it until it is answered.
    pub(crate) async fn ask(
        &mut self,
        make: impl FnOnce(friday::reconciler::Reply) -> Request,
    ) -> Result<RolloutId, RequestError> {
        let (reply, mut answer) = oneshot::channel();
        self.handle
            .requests
            .try_send(make(reply))
            .expect("the loop takes requests");
        self.step().await;
        answer
            .try_recv()
            .expect("the loop answers in the turn it is asked")
    }

    pub(crate) async fn deploy(&mut self, image: &str) -> Result<RolloutId, RequestError> {
        self.deploy_with(image, false).await
    }

    pub(crate) async fn deploy_with(
        &mut self,
        image: &str,
        retry: bool,
    ) -> Result<RolloutId, RequestError> {
        let deploy = Deploy {
            spec: self.spec.clone(),
            image: image.to_owned(),
            commit: None,
            environment: "test".to_owned(),
            author: "ada".to_owned(),
            retry,
            emergency: None,
            fence: None,
            change_rules: false,
            origin: self.origin.clone(),
            lease: self.lease.clone(),
        };
        self.start(deploy).await
    }

    /// Has a release looked up, and then started, as the API does.
    pub(crate) async fn start(&mut self, deploy: Deploy) -> Result<RolloutId, RequestError> {
        let resolved = self.handle.registry.resolve(deploy).await?;
        self.ask(|reply| Request::Deploy(Box::new(resolved), reply))
            .await
    }

    pub(crate) async fn order(
        &mut self,
        id: &RolloutId,
        command: Command,
    ) -> Result<RolloutId, RequestError> {
        let id = id.clone();
        self.ask(|reply| Request::Order {
            id,
            command,
            by: "bob".into(),
            reason: None,
            emergency: None,
            may_approve: true,
            reply,
        })
        .await
    }

    pub(crate) async fn lease(
        &mut self,
        id: &RolloutId,
        request: friday::reconciler::LeaseRequest,
    ) -> Result<RolloutId, RequestError> {
        let id = id.clone();
        self.ask(|reply| Request::Lease { id, request, reply })
            .await
    }

    pub(crate) async fn undo(&mut self, to: Option<u64>) -> Result<RolloutId, RequestError> {
        self.ask(|reply| Request::Undo {
            service: service(),
            to,
            by: "bob".into(),
            reason: None,
            reply,
        })
        .await
    }

    pub(crate) async fn retry(&mut self) -> Result<RolloutId, RequestError> {
        self.ask(|reply| Request::Retry {
            service: service(),
            by: "bob".into(),
            reason: None,
            reply,
        })
        .await
    }

    /// The newest rollout, as it was saved.
    pub(crate) async fn saved(&self) -> Saved {
        self.store
            .history(Some(&service()), 1)
            .await
            .unwrap()
            .remove(0)
    }

    pub(crate) async fn rollout(&self) -> Rollout {
        self.saved().await.rollout
    }

    /// The newest rollout, as the loop has it in memory.
    pub(crate) fn in_memory(&self) -> Rollout {
        let snapshot = self.handle.snapshot.borrow().clone();
        let service = &snapshot.services[&service()];
        service
            .open
            .last()
            .or(service.last.as_ref())
            .expect("there is one")
            .rollout
            .clone()
    }

    pub(crate) async fn events(&self, id: &RolloutId) -> Vec<Event> {
        self.store.events(Some(id), 0, 10_000).await.unwrap()
    }

    pub(crate) async fn state(&self) -> ServiceState {
        self.orchestrator.observe(&service()).await.unwrap()
    }

    /// The weight that is published.
    pub(crate) fn published(&self) -> Weight {
        let table = self.fleet.table().borrow().clone();
        let points = table
            .routes
            .first()
            .map_or(0, |route| route.canary_bp.get());
        Weight::from_basis_points(points).unwrap()
    }

    /// Nothing of what must never happen has happened so far.
    pub(crate) fn assert_users_are_well(&self) {
        for proxy in &self.proxies {
            assert_eq!(proxy.refused, 0, "requests without anybody to serve them");
            assert_eq!(proxy.misrouted, 0, "requests to tasks that were gone");
        }
    }

    pub(crate) async fn promote_now(&mut self, image: &str) -> RolloutId {
        let id = self.deploy(image).await.unwrap();
        self.order(&id, Command::PromoteFull).await.unwrap();
        self.until("promoted", Duration::from_secs(60), |_, rollout| {
            rollout.phase == Phase::Promoted
        })
        .await;
        id
    }
}

async fn start(
    file: &std::path::Path,
    clock: &Arc<FakeClock>,
    orchestrator: &Arc<FakeOrchestrator>,
    metrics: Option<Arc<FakeMetricsSource>>,
    agents: &Arc<Agents>,
) -> (Arc<Sqlite>, Arc<Fleet>, Reconciler, Handle) {
    let store = Arc::new(Sqlite::open(file).await.unwrap());
    let fleet = Fleet::new();
    let (reconciler, handle) = Reconciler::start(
        store.clone(),
        orchestrator.clone(),
        fleet.clone(),
        clock.clone(),
        vec![spec()],
    )
    .await
    .unwrap();
    let reconciler =
        reconciler.with_metrics(metrics.map(|metrics| metrics as Arc<dyn MetricsSource>));
    let reconciler = reconciler.with_agents(agents.clone());
    (store, fleet, reconciler, handle)
}

/// Runs a future for so many polls that found it waiting; its output if it was done by then.
async fn polls<F: Future>(future: F, mut waits: u32) -> Option<F::Output> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if waits == 0 => Poll::Ready(None),
        Poll::Pending => {
            waits -= 1;
            Poll::Pending
        }
    })
    .await
}

/// Every verdict of the newest rollout, of which there are more than `least`, comes out of its log again, bit for bit.
pub(crate) async fn replays_the_same(world: &World, least: usize) {
    let id = world.rollout().await.id;
    let events = world.events(&id).await.into_iter();
    let entries: Vec<Entry> = events
        .map(|event| Entry {
            seq: event.seq,
            at: event.at,
            kind: event.kind,
            data: event.data,
        })
        .collect();
    let replay = replay(&entries).unwrap();
    assert!(replay.verdicts > least, "{}", replay.verdicts);
    assert_eq!(replay.differences, []);
}

pub(crate) fn timestamp(text: &str) -> Timestamp {
    text.parse().unwrap()
}

pub(crate) fn is_fenced(error: &StoreError) -> bool {
    matches!(error, StoreError::Fenced { .. })
}
