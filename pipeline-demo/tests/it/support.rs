//! What several tests need: conditions to wait for, records, workers.

#[path = "../../../tests/src/broker.rs"]
#[expect(unreachable_pub, reason = "the system tests' crate shows it to others")]
mod broker;

#[path = "../../../tests/src/port.rs"]
mod port;

#[path = "../../../tests/src/postgres.rs"]
#[expect(unreachable_pub, reason = "the system tests' crate shows it to others")]
mod postgres;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use broker::Broker;
pub(crate) use postgres::Server;

use bytes::Bytes;
use pipeline_demo::bus::{
    Bus, BusConfig, KafkaConfig, LocalLog, MALFORMED, NewRecord, RESULTS, TWEETS,
};
use pipeline_demo::feeder::{ATTEMPT_WAIT_DEFAULT, FeederConfig};
use pipeline_demo::server::ServerConfig;
use pipeline_demo::telemetry::Identity;
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

/// How long a condition may take to come true, on a machine that does other work as well.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Waits until `look` finds something, and panics with what it saw last.
pub(crate) async fn until<T, Seen: std::fmt::Debug>(
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T, Seen>,
) -> T {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(seen) if Instant::now() > deadline => panic!("{what}: still {seen:?}"),
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

/// The local log in `directory`, with the pipeline's topics.
pub(crate) async fn local_bus(directory: &Path) -> Arc<dyn Bus> {
    let log: Arc<dyn Bus> = Arc::new(LocalLog::open(directory).await.unwrap());
    for topic in [TWEETS, RESULTS, MALFORMED] {
        log.ensure_topic(topic).await.unwrap();
    }
    log
}

/// The broker's bus, with the pipeline's topics.
pub(crate) async fn kafka_bus(broker: &Broker) -> Arc<dyn Bus> {
    let config = KafkaConfig::plaintext(&broker.address());
    BusConfig::Kafka(Box::new(config)).open().await.unwrap()
}

pub(crate) fn record(value: impl Into<Bytes>) -> NewRecord {
    NewRecord {
        key: None,
        value: value.into(),
    }
}

pub(crate) fn tweet(id: u64) -> Bytes {
    let text = format!("I love tweet number {id} #tweet");
    let data = json!({"id": id.to_string(), "author_id": (id % 7 + 1).to_string(), "text": text});
    json!({ "data": data }).to_string().into()
}

/// Appends tweets with the ids 1 to `tweets`.
pub(crate) async fn produce_tweets(bus: &Arc<dyn Bus>, tweets: u64) {
    let appended = (1..=tweets).map(|id| bus.produce(TWEETS, record(tweet(id))));
    futures::future::try_join_all(appended).await.unwrap();
}

pub(crate) fn any_port() -> ServerConfig {
    ServerConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        addresses_file: None,
    }
}

pub(crate) fn feeder_config(proxy: SocketAddr) -> FeederConfig {
    FeederConfig {
        // Feeders of tests are given their bus.
        bus: BusConfig::Local("unused".into()),
        proxy: format!("http://{proxy}"),
        in_flight_max: 16,
        attempt_wait_max: ATTEMPT_WAIT_DEFAULT,
        letter_after: None,
        pin: None,
        server: any_port(),
        identity: Identity::default(),
        traces: None,
    }
}

/// A process of our program that serves; killed when it is dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
}

impl Process {
    /// Starts a subcommand and waits until it says where it listens.
    pub(crate) async fn start(directory: &Path, name: &str, args: &[&str]) -> Self {
        Self::start_telling(directory, name, args, Stdio::inherit()).await
    }

    /// The same; what it says is in the file that comes back.
    pub(crate) async fn start_logged(
        directory: &Path,
        name: &str,
        args: &[&str],
    ) -> (Self, PathBuf) {
        let log = directory.join(format!("{name}.log"));
        let file = std::fs::File::create(&log).unwrap();
        (
            Self::start_telling(directory, name, args, file.into()).await,
            log,
        )
    }

    async fn start_telling(directory: &Path, name: &str, args: &[&str], log: Stdio) -> Self {
        let file = directory.join(format!("{name}.json"));
        std::fs::remove_file(&file).ok();
        let mut child = Command::new(env!("CARGO_BIN_EXE_pipeline-demo"))
            .args(args)
            .arg("--addresses-file")
            .arg(&file)
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let address = until("the process listens", async || {
            assert_eq!(child.try_wait().unwrap(), None, "{name} has ended");
            let text = std::fs::read_to_string(&file).map_err(|error| error.to_string())?;
            let document: Value = serde_json::from_str(&text).unwrap();
            Ok::<SocketAddr, String>(document["listen"].as_str().unwrap().parse().unwrap())
        })
        .await;
        Self { child, address }
    }

    pub(crate) async fn counts(&self) -> Value {
        get(self.address, "/counts")
            .await
            .unwrap()
            .json()
            .await
            .unwrap()
    }

    pub(crate) fn terminate(&self) {
        let pid = self.child.id().unwrap().cast_signed();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGTERM).unwrap();
    }

    /// Waits for its end: the exit code, and the record it printed.
    pub(crate) async fn end(self) -> (Option<i32>, Value) {
        let output = self.child.wait_with_output().await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let last = text.lines().last().unwrap_or("null");
        (output.status.code(), serde_json::from_str(last).unwrap())
    }
}

pub(crate) async fn get(
    address: SocketAddr,
    path: &str,
) -> Result<reqwest::Response, reqwest::Error> {
    reqwest::get(format!("http://{address}{path}")).await
}
