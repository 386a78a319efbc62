//! Controller and proxy beside a swarm's services, and users who call them through the proxy.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use controller_testing::eventually;
use friday::api::types::{DeployRequest, RolloutView};
use friday::client::{Client, ClientError};
use system_tests::{PATIENCE, Part, friday, proxy};
use tokio::task::JoinSet;

/// Where the controller listens, on the loopback of the network that the test stands in.
const CONTROLLER: &str = "127.0.0.1:7070";

/// Where users call.
const PROXY: &str = "127.0.0.1:8080";

/// Requests a second: enough for the judge to see a step through in seconds.
const RATE: u32 = 200;

/// Users, each with one request at a time.
const USERS: u32 = 10;

/// Short steps, of which latency says nothing: the machine may be busy. What never gets ready is given up after ten seconds.
const SPEC: &str = "\
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

/// A controller and a proxy. Both end with it.
pub(crate) struct Stage {
    dir: tempfile::TempDir,
    socket: PathBuf,
    controller: Option<Part>,
    proxy: Option<Part>,
    pub(crate) client: Client,
    counts: Arc<Counts>,
    users: JoinSet<()>,
}

impl Stage {
    /// Starts both, and the users once a task answers. To be called in the overlay network.
    pub(crate) async fn start(socket: PathBuf) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("friday-stage-")
            .tempdir()
            .unwrap();
        fs::write(dir.path().join("friday.yml"), SPEC).unwrap();
        let mut stage = Self {
            dir,
            socket,
            controller: None,
            proxy: None,
            client: Client::new(&format!("http://{CONTROLLER}"), None).unwrap(),
            counts: Arc::default(),
            users: JoinSet::new(),
        };
        stage.start_controller().await;
        let (state, url) = (stage.path("proxy"), format!("http://{CONTROLLER}"));
        let args = [
            ["--listen", PROXY],
            ["--admin", "127.0.0.1:0"],
            ["--controller", &url],
            ["--state-dir", &state],
            ["--name", "stage"],
            ["--drain-seconds", "5"],
        ];
        let part = Part::start("proxy", &proxy(), &args.concat(), stage.dir.path()).await;
        stage.proxy = Some(part);
        eventually(
            "a task answers through the proxy",
            PATIENCE,
            async || get(&format!("http://{PROXY}/work")).await,
            Result::is_ok,
        )
        .await
        .unwrap();
        for _ in 0..USERS {
            stage.users.spawn(user(stage.counts.clone()));
        }
        stage
    }

    fn path(&self, name: &str) -> String {
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

    pub(crate) fn kill_controller(&mut self) {
        self.controller.take().unwrap().kill();
    }

    pub(crate) async fn try_deploy(&self, image: &str) -> Result<RolloutView, ClientError> {
        let request = DeployRequest {
            spec: SPEC.to_owned(),
            spec_name: "friday.yml".to_owned(),
            image: image.to_owned(),
            commit: None,
            environment: None,
            plan: None,
            author: "test".to_owned(),
            retry: false,
        };
        self.client.deploy(&request).await
    }

    pub(crate) async fn deploy(&self, image: &str) -> RolloutView {
        self.try_deploy(image).await.unwrap()
    }

    pub(crate) async fn rollout(&self, id: &str) -> RolloutView {
        self.client.rollout(id).await.unwrap()
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

    async fn weight(&self) -> u64 {
        let admin = self.proxy.as_ref().unwrap().address("admin");
        let text = get(&format!("http://{admin}/routes")).await.unwrap();
        let table: serde_json::Value = serde_json::from_str(&text).unwrap();
        table["routes"][0]["canary_bp"].as_u64().unwrap_or(0)
    }

    /// The exit code of a command, as a pipeline sees it.
    pub(crate) async fn exit_code(&self, args: &[&str]) -> i32 {
        let url = format!("http://{CONTROLLER}");
        let args: Vec<&str> = args.iter().copied().chain(["--url", &url]).collect();
        system_tests::run(&friday(), &args, PATIENCE).await.code
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
        let answer = client.get(format!("http://{PROXY}/work")).send().await;
        let count = match answer {
            Ok(answer) if answer.status().is_success() => &counts.answered,
            Ok(_) | Err(_) => &counts.failed,
        };
        count.fetch_add(1, Ordering::SeqCst);
    }
}

async fn get(url: &str) -> Result<String, String> {
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
