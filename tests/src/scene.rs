//! A service with its controller and its proxy, in a folder and on ports of their own.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use controller_testing::eventually;
use friday::api::types::{DeployRequest, Order, OrderRequest, RolloutView};
use friday::client::{Client, ClientError};
use friday::orchestrator::process::end_leftovers;
use friday::store::{Saved, Sqlite, Store};
use reqwest::StatusCode;
use rollout::{Phase, RolloutId};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::load::Load;
use crate::part::Part;
use crate::port::free_address;
use crate::programs;

/// Longest wait for what should happen at once. Generous: the machine may do other things.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The service of every scene.
pub const SERVICE: &str = "tweets-worker";

/// A plan with short steps. A good release is rolled back by chance once in ten thousand times: scenes are not about
/// the judge.
pub const SPEC: &str = "\
service: tweets-worker
port: 9000
ready: { path: /ready }
route: { host: \"*\", path: / }
sticky: none
shield: idempotent
plan:
  - { weight: 10%, hold: 2s..60s }
  - { weight: 25%, hold: 2s..60s }
  - { weight: 50%, hold: 2s..60s }
bake: { weight: 80%, for: 3s }
keep_warm: 3s
deadlines: { ready: 30s, evidence: 120s, rollout: 10m }
warm_up: 2s
guard: { alpha: 0.01% }
";

/// A controller, a proxy and the tasks of one service. All of them end with it.
#[derive(Debug)]
pub struct Scene {
    state_dir: PathBuf,
    controller_at: SocketAddr,
    proxy_at: SocketAddr,
    controller: Option<Part>,
    proxy: Option<Part>,
    client: Client,
    http: reqwest::Client,
    /// Last, because things are dropped in this order: programs whose test failed show their logs, which are in it.
    dir: TempDir,
}

/// The order to release `image` by the `friday.yml` in `spec`.
#[must_use]
pub fn deploy_request(spec: &str, image: &str) -> DeployRequest {
    DeployRequest {
        spec: spec.to_owned(),
        spec_name: "friday.yml".to_owned(),
        image: image.to_owned(),
        commit: None,
        environment: None,
        plan: None,
        author: "test".to_owned(),
        retry: false,
        emergency: None,
        fence: None,
        change_rules: false,
        origin: None,
        lease: None,
    }
}

/// The order to do that with a rollout.
#[must_use]
pub fn order_request(order: Order) -> OrderRequest {
    OrderRequest {
        order,
        by: "test".to_owned(),
        reason: None,
        emergency: None,
    }
}

impl Scene {
    /// Starts all of them and waits until the proxy has its table and tasks answer through it.
    pub async fn start() -> Self {
        let mut scene = Self::prepare();
        scene.start_controller().await;
        scene.start_proxy().await;
        scene
    }

    /// The folder with its files, and nothing started.
    ///
    /// # Panics
    /// No temporary folder can be made.
    #[must_use]
    pub fn prepare() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("friday-scene-")
            .tempdir()
            .expect("a temporary folder can be made");
        let program = programs::pipeline_demo().display().to_string();
        let image = |release: &str, fault: &str| json!({ "command": [program, "work", "--fault", fault], "env": { "WORKER_VERSION": release } });
        let catalog = json!({
            "images": {
                "worker:v1": image("v1", "good"),
                "worker:v2": image("v2", "good"),
                "worker:v3": image("v3", "good"),
                "worker:errors": image("errors", "errors"),
            },
            "services": { SERVICE: { "image": "worker:v1", "replicas": 2, "ready": "/ready", "memory_limit": "256MiB" } },
        });
        let write = |name: &str, text: &str| {
            fs::write(dir.path().join(name), text).expect("a folder of ours can be written to");
        };
        // JSON is YAML.
        write("processes.yml", &catalog.to_string());
        write("friday.yml", SPEC);
        let (controller_at, proxy_at) = (free_address(), free_address());
        let client =
            Client::new(&format!("http://{controller_at}"), None).expect("this is an address");
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(PATIENCE)
            .build()
            .expect("a client can be made");
        let state_dir = dir.path().join("controller");
        Self {
            dir,
            state_dir,
            controller_at,
            proxy_at,
            controller: None,
            proxy: None,
            client,
            http,
        }
    }

    /// Keeps the controller's state elsewhere than in the scene's folder.
    pub fn keep_state_in(&mut self, state_dir: &Path) {
        state_dir.clone_into(&mut self.state_dir);
    }

    /// The scene's folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path in it, as an argument.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// The controller's state.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The proxy's state.
    #[must_use]
    pub fn proxy_state_dir(&self) -> PathBuf {
        self.dir.path().join("proxy")
    }

    /// The address of the controller, running or not.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.controller_at)
    }

    /// The arguments of `friday serve`.
    #[must_use]
    pub fn serve_args(&self) -> Vec<String> {
        let listen = self.controller_at.to_string();
        let (state, service, processes) = (
            self.state_dir.display().to_string(),
            self.path("friday.yml"),
            self.path("processes.yml"),
        );
        let args = [
            "serve",
            "--listen",
            &listen,
            "--state-dir",
            &state,
            "--service",
            &service,
            "--processes",
            &processes,
        ];
        args.map(str::to_owned).to_vec()
    }

    /// The arguments of `friday-proxy`.
    #[must_use]
    pub fn proxy_args(&self) -> Vec<String> {
        let (listen, state) = (
            self.proxy_at.to_string(),
            self.proxy_state_dir().display().to_string(),
        );
        let url = self.url();
        let args = [
            ["--listen", &listen],
            ["--admin", "127.0.0.1:0"],
            ["--controller", &url],
            ["--state-dir", &state],
            ["--name", "scene"],
            ["--drain-seconds", "5"],
        ];
        args.concat().into_iter().map(str::to_owned).collect()
    }

    /// Starts `friday serve` and waits until it has seen the service.
    pub async fn start_controller(&mut self) {
        let args = self.serve_args();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.controller =
            Some(Part::start("controller", &programs::friday(), &args, self.dir.path()).await);
        let url = format!("{}/ready", self.url());
        self.until_answered("the controller is ready", &url).await;
    }

    /// Starts `friday-proxy` and waits until tasks answer through it.
    pub async fn start_proxy(&mut self) {
        let args = self.proxy_args();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.proxy = Some(Part::start("proxy", &programs::proxy(), &args, self.dir.path()).await);
        let url = format!("http://{}/live", self.proxy_at);
        self.until_answered("a task answers through the proxy", &url)
            .await;
    }

    /// The controller that runs.
    ///
    /// # Panics
    /// None does.
    #[must_use]
    pub fn controller(&self) -> &Part {
        self.controller.as_ref().expect("the controller runs")
    }

    /// The proxy that runs.
    ///
    /// # Panics
    /// None does.
    #[must_use]
    pub fn proxy(&self) -> &Part {
        self.proxy.as_ref().expect("the proxy runs")
    }

    /// SIGKILL to the controller.
    ///
    /// # Panics
    /// It does not run.
    pub fn kill_controller(&mut self) {
        self.controller.take().expect("the controller runs").kill();
    }

    /// SIGTERM to the controller, and how it ended.
    ///
    /// # Panics
    /// It does not run, or does not end.
    pub async fn stop_controller(&mut self) -> std::process::ExitStatus {
        self.controller
            .take()
            .expect("the controller runs")
            .stop()
            .await
    }

    /// SIGKILL to the proxy.
    ///
    /// # Panics
    /// It does not run.
    pub fn kill_proxy(&mut self) {
        self.proxy.take().expect("the proxy runs").kill();
    }

    /// Requests through the proxy until [`Load::end`].
    #[must_use]
    pub fn load(&self, rate: u32) -> Load {
        Load::start(self.proxy_at, rate)
    }

    async fn until_answered(&self, what: &str, url: &str) {
        let answer = eventually(what, PATIENCE, async || self.get(url).await, Result::is_ok).await;
        answer.expect("that was waited for");
    }

    async fn get(&self, url: &str) -> Result<String, String> {
        let answer = self
            .http
            .get(url)
            .send()
            .await
            .map_err(|error| error.to_string())?;
        let status = answer.status();
        let text = answer.text().await.map_err(|error| error.to_string())?;
        if status == StatusCode::OK {
            Ok(text)
        } else {
            Err(format!("{status}: {text}"))
        }
    }

    /// The canary's share as the proxy applies it, in basis points.
    ///
    /// # Panics
    /// The proxy does not answer, or has no table.
    pub async fn weight(&self) -> u64 {
        let url = format!("http://{}/routes", self.proxy().address("admin"));
        let text = self
            .get(&url)
            .await
            .unwrap_or_else(|error| panic!("the proxy's table: {error}"));
        let table: Value = serde_json::from_str(&text).expect("a table is JSON");
        table["routes"][0]["canary_bp"].as_u64().unwrap_or(0)
    }

    /// Waits until the proxy applies that share, in basis points.
    pub async fn until_weight(&self, points: u64) {
        let what = format!("the proxy sends {points} of 10000 to the canary");
        eventually(
            &what,
            PATIENCE,
            async || self.weight().await,
            |weight| *weight == points,
        )
        .await;
    }

    /// Starts a rollout.
    ///
    /// # Errors
    /// The controller refuses, or does not answer.
    pub async fn try_deploy(&self, image: &str) -> Result<RolloutView, ClientError> {
        self.client.deploy(&deploy_request(SPEC, image)).await
    }

    /// The same where it must not be refused.
    ///
    /// # Panics
    /// It is.
    pub async fn deploy(&self, image: &str) -> RolloutView {
        self.try_deploy(image)
            .await
            .unwrap_or_else(|error| panic!("{image} is refused: {error:?}"))
    }

    /// Gives an order.
    ///
    /// # Errors
    /// The controller refuses, or does not answer.
    pub async fn order(&self, id: &str, order: Order) -> Result<RolloutView, ClientError> {
        self.client.order(id, &order_request(order)).await
    }

    /// A rollout, or the newest of the service.
    ///
    /// # Panics
    /// The controller does not answer.
    pub async fn rollout(&self, name: &str) -> RolloutView {
        self.client
            .rollout(name)
            .await
            .unwrap_or_else(|error| panic!("{name}: {error:?}"))
    }

    /// Waits until a rollout is as `what` says.
    pub async fn until(
        &self,
        id: &str,
        what: &str,
        limit: Duration,
        holds: impl Fn(&RolloutView) -> bool,
    ) -> RolloutView {
        eventually(what, limit, async || self.rollout(id).await, holds).await
    }

    /// The phases that a rollout came to, in their order, as its event log has them: from and to.
    ///
    /// # Panics
    /// The controller does not answer.
    pub async fn moves(&self, id: &str, after: i64) -> Vec<(i64, Phase, Phase)> {
        let events = self
            .client
            .events(id, after, 1000)
            .await
            .unwrap_or_else(|error| panic!("{id}: {error:?}"));
        let phase =
            |value: &Value| serde_json::from_value(value.clone()).expect("the log has phases");
        let moves = events.iter().filter(|event| event.kind == "phase");
        moves
            .map(|event| {
                (
                    event.seq,
                    phase(&event.data["from"]),
                    phase(&event.data["to"]),
                )
            })
            .collect()
    }

    /// A rollout as it stands in the controller's file. Read from a copy, so that nothing of it is touched.
    ///
    /// # Panics
    /// It is not there.
    pub async fn saved(&self, id: &str) -> Saved {
        let copy =
            tempfile::tempdir_in(self.dir.path()).expect("a folder of ours can be written to");
        for name in ["friday.db", "friday.db-wal"] {
            let from = self.state_dir.join(name);
            if from.exists() {
                fs::copy(&from, copy.path().join(name)).expect("a file of ours can be copied");
            }
        }
        let store = Sqlite::open(&copy.path().join("friday.db"))
            .await
            .expect("the saved state can be read");
        let saved = store
            .rollout(&RolloutId::from_text(id))
            .await
            .expect("the saved state can be read");
        saved.unwrap_or_else(|| panic!("{id} is not saved"))
    }

    /// The process ids of the tasks that are saved as running, stable's first.
    #[must_use]
    pub fn tasks(&self) -> Vec<u32> {
        let file = self
            .state_dir
            .join("processes")
            .join("services")
            .join(format!("{SERVICE}.json"));
        let text = fs::read_to_string(&file).unwrap_or_default();
        let record: Value = serde_json::from_str(&text).unwrap_or_default();
        let groups = ["stable", "canary"]
            .into_iter()
            .filter_map(|group| record[group]["tasks"].as_array());
        groups
            .flatten()
            .filter_map(|task| u32::try_from(task["process"]["pid"].as_u64()?).ok())
            .collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // The controller first: it would start again what ends.
        drop(self.controller.take());
        end_tasks(&self.state_dir);
        drop(self.proxy.take());
    }
}

/// Ends the tasks of a controller that has ended, by its state.
pub fn end_tasks(state_dir: &Path) {
    let processes = state_dir.join("processes");
    // A test's runtime cannot be waited on from here.
    let ending = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime
            .block_on(end_leftovers(&processes))
            .map_err(std::io::Error::other)
    });
    match ending.join() {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => eprintln!("tasks may be left over: {error}"),
        Err(_) => eprintln!("tasks may be left over: ending them panicked"),
    }
}

/// Where a rollout is, without the time it has spent there.
#[must_use]
pub fn place(phase: &Phase) -> String {
    serde_json::to_string(&phase.at_start()).expect("a phase is JSON")
}
