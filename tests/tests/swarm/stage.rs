//! Controller and proxy beside a swarm's services, and users who call them through the proxy.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use controller_testing::eventually;
use friday::api::types::{EventView, Order, RolloutView};
use friday::client::{Client, ClientError};
use system_tests::{Ended, PATIENCE, Part, deploy_request, friday, order_request, proxy};
use tokio::task::JoinSet;

use crate::world::LIMIT;

/// Where the controller listens, on the loopback of the network that the test stands in.
const CONTROLLER: &str = "127.0.0.1:7070";

/// Where users call: a proxy each.
pub(crate) const PROXIES: [&str; 2] = ["127.0.0.1:8080", "127.0.0.1:8081"];

/// Requests a second: enough for the judge to see a step through in seconds.
const RATE: u32 = 200;

/// Users, each with one request at a time.
const USERS: u32 = 10;

/// Short steps, of which latency says nothing: the machine may be busy. What never gets ready is given up after ten seconds.
pub(crate) const SPEC: &str = "\
service: worker
port: 9000
ready: { path: /ready }
sticky: none
shield: idempotent
plan:
  - { weight: 25%, hold: 2s..60s }
bake: { weight: 80%, for: 3s }
keep_warm: 3s
deadlines: { ready: 10s, evidence: 120s, rollout: 5m }
warm_up: 2s
guard: { alpha: 0.01%, latency: { floor: 100ms } }
";

/// What became of the users' requests.
#[derive(Debug, Default)]
struct Counts {
    answered: AtomicU64,
    failed: AtomicU64,
    stop: AtomicBool,
}

/// A controller and one proxy or two. They end with it.
pub(crate) struct Stage {
    socket: PathBuf,
    spec: String,
    controller: Option<Part>,
    /// The proxies that were not killed.
    proxies: Vec<Part>,
    pub(crate) client: Client,
    counts: Arc<Counts>,
    users: JoinSet<()>,
    /// Last, because things are dropped in this order: programs whose test failed show their logs, which are in it.
    dir: tempfile::TempDir,
}

impl Stage {
    /// Starts both, and the users once a task answers. To be called in the overlay network.
    pub(crate) async fn start(socket: PathBuf) -> Self {
        Self::start_by(socket, SPEC).await
    }

    /// The same by another `friday.yml`.
    pub(crate) async fn start_by(socket: PathBuf, spec: &str) -> Self {
        let mut stage = Self::open(socket, spec, 1).await;
        for _ in 0..USERS {
            stage.users.spawn(user(stage.counts.clone()));
        }
        stage
    }

    /// The same for a service of this `friday.yml`, with so many of [`PROXIES`], and nobody who calls it.
    pub(crate) async fn open(socket: PathBuf, spec: &str, proxies: usize) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("friday-stage-")
            .tempdir()
            .unwrap();
        fs::write(dir.path().join("friday.yml"), spec).unwrap();
        let mut stage = Self {
            socket,
            spec: spec.to_owned(),
            controller: None,
            proxies: Vec::new(),
            client: Client::new(&format!("http://{CONTROLLER}"), None).unwrap(),
            counts: Arc::default(),
            users: JoinSet::new(),
            dir,
        };
        stage.start_controller().await;
        for (number, address) in PROXIES.iter().take(proxies).enumerate() {
            let name = format!("proxy-{number}");
            let (state, url) = (stage.path(&name), format!("http://{CONTROLLER}"));
            let args = [
                ["--listen", address],
                ["--admin", "127.0.0.1:0"],
                ["--controller", &url],
                ["--state-dir", &state],
                ["--name", &name],
                ["--drain-seconds", "5"],
            ];
            let part = Part::start(&name, &proxy(), &args.concat(), stage.dir.path()).await;
            stage.proxies.push(part);
            eventually(
                "a task answers through the proxy",
                PATIENCE,
                async || get(&format!("http://{address}/work")).await,
                Result::is_ok,
            )
            .await
            .unwrap();
        }
        stage
    }

    /// Where something is in its folder: `friday.yml`, the controller's state.
    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    pub(crate) async fn start_controller(&mut self) {
        let engine = format!("unix://{}", self.socket.display());
        let (state, file) = (self.path("controller"), self.path("friday.yml"));
        // Who logged in at the lab may deploy from the same registry.
        let lab = self.socket.ancestors().nth(2).unwrap();
        let docker = lab.join("docker").display().to_string();
        let args = [
            "serve",
            "--orchestrator",
            "swarm",
            "--engine",
            &engine,
            "--listen",
            CONTROLLER,
            "--state-dir",
            &state,
            "--service",
            &file,
            "--docker-config",
            &docker,
        ];
        let part = Part::start("controller", &friday(), &args, self.dir.path()).await;
        self.controller = Some(part);
        eventually(
            "the controller has seen the service",
            PATIENCE,
            async || get(&format!("http://{CONTROLLER}/ready")).await,
            Result::is_ok,
        )
        .await
        .unwrap();
    }

    /// An agent for the node whose engine the controller asks.
    pub(crate) async fn start_agent(&self) -> Part {
        let (engine, url) = (
            format!("unix://{}", self.socket.display()),
            format!("http://{CONTROLLER}"),
        );
        let args = [
            "agent",
            "--engine",
            &engine,
            "--controller",
            &url,
            "--listen",
            "127.0.0.1:0",
        ];
        Part::start("agent", &friday(), &args, self.dir.path()).await
    }

    pub(crate) fn kill_controller(&mut self) {
        self.controller.take().unwrap().kill();
    }

    /// SIGKILL to the proxy that was started last.
    pub(crate) fn kill_proxy(&mut self) {
        self.proxies.pop().unwrap().kill();
    }

    pub(crate) async fn try_deploy(&self, image: &str) -> Result<RolloutView, ClientError> {
        self.client.deploy(&deploy_request(&self.spec, image)).await
    }

    pub(crate) async fn deploy(&self, image: &str) -> RolloutView {
        self.try_deploy(image).await.unwrap()
    }

    /// A release by another `friday.yml`.
    pub(crate) async fn deploy_by(&self, spec: &str, image: &str) -> RolloutView {
        self.client
            .deploy(&deploy_request(spec, image))
            .await
            .unwrap()
    }

    pub(crate) async fn order(&self, id: &str, order: Order) {
        let request = order_request(order);
        self.client.order(id, &request).await.unwrap();
    }

    pub(crate) async fn rollout(&self, id: &str) -> RolloutView {
        self.client.rollout(id).await.unwrap()
    }

    /// Starts a release and pauses it when the canary has the first step's share.
    pub(crate) async fn on_trial(&self, image: &str) -> String {
        let id = self.deploy(image).await.id;
        self.until(&id, "the first step", LIMIT, |view| {
            view.weight.seen_percent == Some(25.0)
        })
        .await;
        self.order(&id, Order::Pause).await;
        id
    }

    /// Waits until this service is all there is, as `listed` has it: no canary is left.
    pub(crate) async fn until_alone(&self, service: &str) {
        eventually(
            "nothing is left but the users' service",
            LIMIT,
            async || listed(&self.socket),
            |listed| *listed == [service],
        )
        .await;
    }

    pub(crate) async fn until(
        &self,
        id: &str,
        what: &str,
        limit: Duration,
        holds: impl Fn(&RolloutView) -> bool,
    ) -> RolloutView {
        eventually(what, limit, async || self.rollout(id).await, holds).await
    }

    /// The rollout's end, and the largest share that the proxy ever gave the canary, in basis points.
    pub(crate) async fn end_of(&self, id: &str, limit: Duration) -> (RolloutView, u64) {
        let mut most = 0;
        let look = async || {
            most = most.max(self.weight().await);
            self.rollout(id).await
        };
        let view = eventually("the rollout ends", limit, look, |view| {
            view.ending.is_some()
        })
        .await;
        (view, most)
    }

    /// The largest share that a proxy gives the canary now.
    async fn weight(&self) -> u64 {
        let mut most = 0;
        for number in 0..self.proxies.len() {
            let table = self.table(number).await;
            most = most.max(table["routes"][0]["canary_bp"].as_u64().unwrap_or(0));
        }
        most
    }

    /// The table that a proxy applies.
    pub(crate) async fn table(&self, number: usize) -> serde_json::Value {
        let text = get(&format!("http://{}/routes", self.admin(number))).await;
        serde_json::from_str(&text.unwrap()).unwrap()
    }

    /// How many stable and canary tasks a proxy sends to.
    pub(crate) async fn endpoints(&self, number: usize) -> (usize, usize) {
        let table = self.table(number).await;
        let count = |arm: &str| {
            let endpoints = table["routes"][0][arm]["endpoints"].as_array();
            endpoints.map_or(0, Vec::len)
        };
        (count("stable"), count("canary"))
    }

    /// What the log says of a rollout.
    pub(crate) async fn events(&self, id: &str) -> Vec<EventView> {
        let mut events = Vec::new();
        loop {
            let after = events.last().map_or(0, |event: &EventView| event.seq);
            let more = self.client.events(id, after, 500).await.unwrap();
            if more.is_empty() {
                return events;
            }
            events.extend(more);
        }
    }

    /// Where a proxy can be asked.
    pub(crate) fn admin(&self, number: usize) -> std::net::SocketAddr {
        self.proxies[number].address("admin")
    }

    /// SIGKILL to the last proxy.
    pub(crate) fn kill_a_proxy(&mut self) {
        self.proxies.pop().unwrap().kill();
    }

    /// The exit code of a command, as a pipeline sees it.
    pub(crate) async fn exit_code(&self, args: &[&str]) -> i32 {
        self.command(args).await.code
    }

    /// What a command prints, and how it ends.
    pub(crate) async fn command(&self, args: &[&str]) -> Ended {
        let url = format!("http://{CONTROLLER}");
        let args: Vec<&str> = args.iter().copied().chain(["--url", &url]).collect();
        system_tests::run(&friday(), &args, PATIENCE).await
    }

    /// Sends the users home; their answered and failed requests.
    pub(crate) async fn end(mut self) -> (u64, u64) {
        self.counts.stop.store(true, Ordering::SeqCst);
        while self.users.join_next().await.is_some() {}
        let read = |count: &AtomicU64| count.load(Ordering::SeqCst);
        (read(&self.counts.answered), read(&self.counts.failed))
    }
}

async fn user(counts: Arc<Counts>) {
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(PATIENCE)
        .build()
        .unwrap();
    let mut due = tokio::time::interval(Duration::from_secs(1) * USERS / RATE);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !counts.stop.load(Ordering::SeqCst) {
        due.tick().await;
        let answer = client
            .get(format!("http://{}/work", PROXIES[0]))
            .send()
            .await;
        let count = match answer {
            Ok(answer) if answer.status().is_success() => &counts.answered,
            Ok(_) | Err(_) => &counts.failed,
        };
        count.fetch_add(1, Ordering::SeqCst);
    }
}

pub(crate) async fn get(url: &str) -> Result<String, String> {
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(5))
        .build()
        .unwrap();
    let answer = client.get(url).send().await;
    let answer = answer.map_err(|error| error.to_string())?;
    let status = answer.status();
    let text = answer.text().await.map_err(|error| error.to_string())?;
    if status.is_success() {
        Ok(text)
    } else {
        Err(format!("{status}: {text}"))
    }
}

/// What `docker service ls` shows.
pub(crate) fn listed(socket: &Path) -> Vec<String> {
    let output = std::process::Command::new("docker")
        .arg("--host")
        .arg(format!("unix://{}", socket.display()))
        .args([
            "service",
            "ls",
            "--format",
            "{{.Name}} {{.Image}} {{.Replicas}}",
        ])
        .output()
        .unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}
