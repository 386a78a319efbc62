//! The demo, which waits for releases, and an agent beside it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use controller_testing::eventually;
use friday::api::types::{DeployRequest, Order, RolloutView};
use friday::client::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use system_tests::{
    PATIENCE, Part, SERVICE, SPEC, deploy_request, friday, order_request, pipeline_demo, running_of,
};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

/// Tweets a second: the canary's tenth is 40 requests a second, so that every step is proven in seconds.
const RATE: &str = "400";

/// Traces: 20 a second, so that each step has some.
const TRACE_PERCENT: &str = "5";

/// Tweets of the file, which is looped: results of a minute, and then others of the same tweets.
const TWEETS: u32 = 20_000;

/// The same where new results are to come for minutes.
pub(crate) const MANY_TWEETS: u32 = 200_000;

/// Every so many lines one is no tweet.
const MALFORMED_EVERY: u32 = 50;

/// Where its releases go.
pub(crate) const ENVIRONMENT: &str = "demo";

/// Between two requests of one user: with two of them about as many as [`RATE`], of which the canary should have its share.
const USER_EVERY: Duration = Duration::from_millis(5);

/// How often Prometheus is told which tasks there are. It takes notice every 5 s.
const TELL_EVERY: Duration = Duration::from_millis(500);

pub(crate) struct Demo {
    dir: tempfile::TempDir,
    child: Child,
    url: String,
    client: Client,
    http: reqwest::Client,
}

/// A process that stands still, until this is dropped.
pub(crate) struct Frozen(Pid);

impl Drop for Frozen {
    fn drop(&mut self) {
        if kill(self.0, Signal::SIGCONT).is_err() {
            eprintln!("process {} cannot go on: it has ended", self.0);
        }
    }
}

impl Demo {
    /// Starts one whose traces go to that collector.
    pub(crate) async fn traced(collector: &str) -> Self {
        let traces = [
            "--otlp-endpoint",
            collector,
            "--trace-percent",
            TRACE_PERCENT,
        ];
        Self::start(TWEETS, &traces, &[]).await
    }

    /// Starts one of so many tweets, with these arguments and variables more.
    pub(crate) async fn start(count: u32, args: &[&str], variables: &[(&str, &str)]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("friday-grafana-")
            .tempdir()
            .unwrap();
        let tweets = dir.path().join("tweets.jsonl");
        fs::write(&tweets, input(count)).unwrap();
        let log = fs::File::create(dir.path().join("demo.log")).unwrap();
        let mut child = Command::new(pipeline_demo())
            .args([
                "demo",
                "--rate",
                RATE,
                "--seconds",
                "0",
                "--port",
                "0",
                "--input",
            ])
            .arg(&tweets)
            .args(args)
            .envs(variables.iter().copied())
            .arg("--dir")
            .arg(dir.path())
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        // The last part that is started.
        let producer = dir.path().join("producer.addresses");
        let look = async || {
            let ended = child.try_wait().ok().flatten();
            let said = fs::read_to_string(dir.path().join("demo.log")).unwrap_or_default();
            assert_eq!(ended, None, "the demo has ended:\n{said}");
            producer.exists()
        };
        eventually("every part of the demo listens", 2 * PATIENCE, look, |is| {
            *is
        })
        .await;
        let url = format!("http://{}", address(dir.path(), "controller", "listen"));
        let demo = Self {
            client: Client::new(&url, None).unwrap(),
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            dir,
            child,
            url,
        };
        let feeder = format!("http://{}/counts", address(demo.dir(), "feeder", "listen"));
        let done = async || demo.get(&feeder).await["tasks_completed"].as_u64();
        // So that the judge knows what stable is like.
        eventually("some tasks are done", PATIENCE, done, |done| {
            *done > Some(600)
        })
        .await;
        demo
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    async fn get(&self, url: &str) -> Value {
        get(&self.http, url).await
    }

    /// What is scraped from the beginning: job and address.
    pub(crate) fn targets(&self) -> Vec<(&'static str, String)> {
        let at = |name: &'static str, key: &str| (name, address(self.dir(), name, key));
        vec![
            at("controller", "listen"),
            at("proxy", "admin"),
            at("sink", "listen"),
            at("feeder", "listen"),
            at("producer", "listen"),
        ]
    }

    /// Tells Prometheus which tasks there are, again and again, until it is aborted.
    pub(crate) fn keep_telling_tasks(&self) -> JoinHandle<()> {
        let (dir, url, http) = (self.dir().to_owned(), self.url.clone(), self.http.clone());
        tokio::spawn(async move {
            loop {
                let view = get(&http, &format!("{url}/api/v1/services")).await;
                let newest = get(&http, &format!("{url}/api/v1/rollouts/{SERVICE}")).await;
                let groups = [&view[0]["stable"]["tasks"], &newest["canary"]["tasks"]];
                let tasks = groups.into_iter().filter_map(Value::as_array).flatten();
                let tasks: Vec<&str> = tasks.filter_map(|task| task["endpoint"].as_str()).collect();
                write_targets(&dir, "workers", &json!(tasks));
                tokio::time::sleep(TELL_EVERY).await;
            }
        })
    }

    /// The nodes that the tasks of the service are on.
    pub(crate) async fn nodes(&self) -> Vec<String> {
        let view = self.get(&format!("{}/api/v1/services", self.url)).await;
        let tasks = view[0]["stable"]["tasks"].as_array().unwrap();
        let nodes = tasks.iter().map(|task| task["node"].as_str().unwrap());
        nodes.map(str::to_owned).collect()
    }

    /// An agent without an engine: it says what the machine uses, and that the engine is away.
    pub(crate) async fn start_agent(&self, node: &str) -> Part {
        let engine = format!("unix://{}", self.dir().join("no-engine.sock").display());
        let args = [
            "agent",
            "--engine",
            &engine,
            "--controller",
            &self.url,
            "--listen",
            "127.0.0.1:0",
            "--name",
            node,
        ];
        let name = format!("agent of {node}");
        Part::start(&name, &friday(), &args, self.dir()).await
    }

    pub(crate) fn tell_of_agents(&self, agents: &[&Part]) {
        let addresses = agents
            .iter()
            .map(|agent| agent.address("listen").to_string());
        let addresses: Vec<String> = addresses.collect();
        write_targets(self.dir(), "agents", &json!(addresses));
    }

    /// A user who stays with one release and sends about as much as all others together, by two connections, until it is aborted.
    pub(crate) fn keep_sending_as_one_user(&self) -> JoinHandle<()> {
        let url = format!("http://{}/", address(self.dir(), "proxy", "listen"));
        let http = self.http.clone();
        let send = async move || {
            let mut due = tokio::time::interval(USER_EVERY);
            due.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                due.tick().await;
                // What is answered is not looked at: it is counted where it was routed.
                drop(http.get(&url).header("x-user", "ann").send().await);
            }
        };
        tokio::spawn(async move { tokio::join!(send(), send()).0 })
    }

    pub(crate) async fn deploy(&self, image: &str) -> String {
        self.deploy_by(SPEC, image).await
    }

    /// The same by another file.
    pub(crate) async fn deploy_by(&self, spec: &str, image: &str) -> String {
        self.ask_for(deploy_request(spec, image)).await
    }

    /// The same of one that was rolled back before.
    pub(crate) async fn deploy_again(&self, image: &str) -> String {
        let mut request = deploy_request(SPEC, image);
        request.retry = true;
        self.ask_for(request).await
    }

    async fn ask_for(&self, mut request: DeployRequest) -> String {
        request.environment = Some(ENVIRONMENT.to_owned());
        let view = self.client.deploy(&request).await;
        view.unwrap_or_else(|error| panic!("{} is refused: {error:?}", request.image))
            .id
    }

    pub(crate) async fn order(&self, id: &str, order: Order) {
        let answer = self.client.order(id, &order_request(order)).await;
        answer.unwrap_or_else(|error| panic!("{order:?} of {id} is refused: {error:?}"));
    }

    pub(crate) async fn until(
        &self,
        id: &str,
        what: &str,
        holds: impl Fn(&RolloutView) -> bool,
    ) -> RolloutView {
        self.until_within(id, what, PATIENCE, holds).await
    }

    async fn until_within(
        &self,
        id: &str,
        what: &str,
        limit: Duration,
        holds: impl Fn(&RolloutView) -> bool,
    ) -> RolloutView {
        let look = async || {
            let view = self.client.rollout(id).await;
            view.unwrap_or_else(|error| panic!("{id}: {error:?}"))
        };
        eventually(what, limit, look, holds).await
    }

    /// Releases an image, or follows the rollout that does, to its end.
    pub(crate) async fn release(
        &self,
        image: &str,
        limit: Duration,
        id: Option<&str>,
    ) -> RolloutView {
        let id = match id {
            Some(id) => id.to_owned(),
            None => self.deploy(image).await,
        };
        self.until_within(&id, &format!("{image} has ended"), limit, |view| {
            view.ending.is_some()
        })
        .await
    }

    /// Stops a part where it is: `proxy` or `serve`, as its command line begins.
    pub(crate) fn freeze(&self, part: &str) -> Frozen {
        let running = running_of(self.dir());
        let found = running
            .iter()
            .find(|process| process.command.contains(&format!(" {part} --listen ")));
        let found = found.unwrap_or_else(|| panic!("no {part} among {running:#?}"));
        let pid = Pid::from_raw(i32::try_from(found.pid).unwrap());
        kill(pid, Signal::SIGSTOP).unwrap();
        Frozen(pid)
    }

    /// Ends it, and waits until nothing of it is left.
    pub(crate) async fn end(mut self) {
        let pid = self.child.id().expect("it runs");
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGTERM).unwrap();
        let ended = tokio::time::timeout(2 * PATIENCE, self.child.wait()).await;
        ended.expect("the demo ends when it is told to").unwrap();
    }
}

/// Where a part listens, as it wrote it down.
fn address(dir: &Path, name: &str, key: &str) -> String {
    let file = dir.join(format!("{name}.addresses"));
    let text =
        fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let document: Value = serde_json::from_str(&text).unwrap();
    document[key]
        .as_str()
        .unwrap_or_else(|| panic!("the {name} says no {key}: {document}"))
        .to_owned()
}

/// An answer as JSON; null where there is none.
async fn get(http: &reqwest::Client, url: &str) -> Value {
    let Ok(answer) = http.get(url).send().await else {
        return Value::Null;
    };
    answer.json().await.unwrap_or_default()
}

/// The file by which Prometheus finds the targets of a job. Whoever reads it finds all of it or nothing.
pub(crate) fn targets_file(dir: &Path, job: &str) -> PathBuf {
    dir.join(format!("{job}.targets.json"))
}

fn write_targets(dir: &Path, job: &str, targets: &Value) {
    let file = targets_file(dir, job);
    let text = json!([{ "targets": targets }]).to_string();
    // An unchanged file is no news.
    if fs::read_to_string(&file).is_ok_and(|before| before == text) {
        return;
    }
    let partial = file.with_extension("partial");
    // The folder goes when the test has ended.
    if fs::write(&partial, text).is_ok() {
        drop(fs::rename(&partial, &file));
    }
}

/// Tweets, and now and then something that is none.
fn input(count: u32) -> String {
    let mut lines = String::new();
    for number in 1..=count {
        if number.is_multiple_of(MALFORMED_EVERY) {
            writeln!(lines, "no tweet but number {number}").unwrap();
            continue;
        }
        let text = format!("I love tweet {number} #friday");
        let author = (number % 97).to_string();
        let tweet =
            json!({ "data": { "id": number.to_string(), "author_id": author, "text": text } });
        writeln!(lines, "{tweet}").unwrap();
    }
    lines
}
