//! Tasks that are for the canary alone: by a real proxy, which sends to stable what the canary does not take.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use pipeline_demo::bus::{Bus, Polled, RESULTS, TWEETS};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::timeout;

use crate::replay::replay;
use crate::support::{Process, local_bus, produce_tweets, record, tweet, until};

/// How long a program may take to find out that there is no canary.
const END_WAIT_MAX: Duration = Duration::from_secs(60);

/// A bus with tweets, and a proxy whose stable release is r1.
struct World {
    directory: tempfile::TempDir,
    bus: Arc<dyn Bus>,
    stable: Process,
    proxy: Process,
}

impl World {
    async fn with(tweets: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let bus = local_bus(&directory.path().join("bus")).await;
        produce_tweets(&bus, tweets).await;
        let stable = worker(directory.path(), "r1", "good").await;
        let routes = directory.path().join("routes.json");
        std::fs::write(&routes, table("r1", stable.address, None).to_string()).unwrap();
        let any = "127.0.0.1:0";
        let routes = routes.to_str().unwrap();
        let args = ["proxy", "--listen", any, "--admin", any, "--routes", routes];
        let proxy = Process::start(directory.path(), "proxy", &args).await;
        Self {
            directory,
            bus,
            stable,
            proxy,
        }
    }

    /// The proxy's table from now on.
    async fn route(&self, table: &Value) {
        let addresses = std::fs::read_to_string(self.file("proxy.json")).unwrap();
        let addresses: Value = serde_json::from_str(&addresses).unwrap();
        let url = format!("http://{}/routes", addresses["admin"].as_str().unwrap());
        let put = reqwest::Client::new().put(url).body(table.to_string());
        let answer = put.send().await.unwrap();
        assert!(answer.status().is_success(), "{answer:?}");
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The options that say where from and where to, and that the canary alone is meant.
    fn args(&self) -> Vec<String> {
        let bus = self.file("bus").to_str().unwrap().to_owned();
        let proxy = format!("http://{}", self.proxy.address);
        let args = ["--bus", &bus, "--proxy", &proxy, "--pin", "canary"];
        args.map(str::to_owned).to_vec()
    }

    async fn replay(&self, more: &[&str]) -> (Option<i32>, Value, String) {
        let args = self.args();
        let args = args.iter().map(String::as_str);
        let args: Vec<&str> = args.chain(["--from", "1h"]).chain(more.to_vec()).collect();
        replay(&args).await
    }

    /// The releases of all results, one each.
    async fn results(&self) -> Vec<String> {
        let mut left = self.bus.lag(RESULTS, "test").await.unwrap();
        let mut consumer = self.bus.consumer(RESULTS, "test").await.unwrap();
        let mut releases = Vec::new();
        while left > 0 {
            let Polled::Records(records) = consumer.poll(100).await.unwrap() else {
                panic!("nobody else is in the group");
            };
            left -= records.len() as u64;
            for record in records {
                let result: Value = serde_json::from_slice(&record.value).unwrap();
                releases.push(result["release"].as_str().unwrap().to_owned());
            }
        }
        consumer.close().await;
        releases
    }
}

async fn worker(directory: &Path, release: &str, fault: &str) -> Process {
    let args = ["work", "--release", release, "--fault", fault];
    Process::start(directory, release, &args).await
}

fn table(stable: &str, at: SocketAddr, canary: Option<(&str, SocketAddr)>) -> Value {
    let side = |release: &str, at: SocketAddr| json!({"release": release, "endpoints": [at]});
    let mut route = json!({"name": "tweets", "shield": "idempotent", "stable": side(stable, at)});
    if let Some((release, at)) = canary {
        route["canary"] = side(release, at);
    }
    json!({ "routes": [route] })
}

#[tokio::test]
async fn without_a_canary_no_task_is_sent_and_nothing_is_committed() {
    const TWEETS_MADE: u64 = 40;
    let world = World::with(TWEETS_MADE).await;
    let (code, did, said) = world.replay(&[]).await;
    assert_eq!(code, Some(1), "{did}");
    let words = "no canary takes requests now (r1 answers in its place): 40 tasks were not sent; start one or drop --pin";
    assert!(said.contains(words), "{said}");
    assert_eq!(did["stopped"], words);
    assert_eq!(did["tasks_not_sent"], TWEETS_MADE, "{did}");

    let feeder = Command::new(env!("CARGO_BIN_EXE_pipeline-demo"))
        .arg("feed")
        .args(world.args())
        .kill_on_drop(true)
        .output();
    let Output { status, stderr, .. } = timeout(END_WAIT_MAX, feeder).await.unwrap().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    let words = "no canary takes requests now (r1 answers in its place): nothing more is sent";
    assert!(said.contains(words), "{said}");

    let lag = world.bus.lag(TWEETS, "feeder").await.unwrap();
    assert_eq!(lag, TWEETS_MADE, "nothing is committed");
    assert_eq!(world.bus.lag(RESULTS, "test").await.unwrap(), 0);
    let counts = world.stable.counts().await;
    assert_eq!(counts["completed"], 0, "stable did none of it");
}

#[tokio::test]
async fn what_the_canary_fails_is_asked_of_the_canary_again_and_of_nobody_else() {
    const TWEETS_MADE: u64 = 60;
    let world = World::with(TWEETS_MADE).await;
    let canary = worker(world.directory.path(), "r2", "errors").await;
    let at = world.stable.address;
    let both = table("r1", at, Some(("r2", canary.address)));
    world.route(&both).await;
    let (code, did, said) = world.replay(&["--attempts", "50"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(did["stopped"], Value::Null, "{did}");
    assert!(did["attempts_failed"].as_u64() > Some(0), "{did}");
    let results = world.results().await;
    assert_eq!(results, vec!["r2"; TWEETS_MADE as usize]);
    let counts = world.stable.counts().await;
    assert_eq!(counts["completed"], 0, "the shield asked stable");
}

#[tokio::test]
async fn a_canary_that_dies_ends_the_replay_and_stable_answers_for_nothing() {
    const TWEETS_MADE: u64 = 400;
    let world = World::with(TWEETS_MADE).await;
    let mut canary = worker(world.directory.path(), "r2", "good").await;
    let at = world.stable.address;
    let both = table("r1", at, Some(("r2", canary.address)));
    world.route(&both).await;
    let replaying = world.replay(&["--in-flight", "2", "--attempts", "1000"]);
    let killing = async {
        until("the canary is at work", async || {
            let counts = canary.counts().await;
            let begun = counts["completed"].as_u64() > Some(10);
            if begun { Ok(()) } else { Err(counts) }
        })
        .await;
        canary.child.kill().await.unwrap();
    };
    let ((code, did, said), ()) = tokio::join!(replaying, killing);
    assert_eq!(code, Some(1), "{did}");
    assert!(said.contains("no canary takes requests now"), "{said}");
    let number = |key: &str| did[key].as_u64().unwrap();
    assert!(number("tasks_completed") > 10, "{did}");
    assert!(number("tasks_not_sent") > 0, "{did}");
    let all = number("tasks_completed") + number("tasks_not_sent");
    assert_eq!(all, TWEETS_MADE, "{did}");
    let results = world.results().await;
    assert_eq!(results.len() as u64, number("tasks_completed"));
    assert!(results.iter().all(|release| release == "r2"), "{results:?}");
}

#[tokio::test]
async fn a_feeder_for_the_canary_ends_when_it_is_promoted_and_keeps_what_was_done() {
    const TWEETS_MADE: u64 = 30;
    let world = World::with(TWEETS_MADE).await;
    let canary = worker(world.directory.path(), "r2", "good").await;
    let at = world.stable.address;
    let both = table("r1", at, Some(("r2", canary.address)));
    world.route(&both).await;
    let args = [vec!["feed".to_owned()], world.args()].concat();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut feeder = Process::start(world.directory.path(), "feed", &args).await;
    crate::failures::drained(&world.bus, TWEETS, "feeder").await;
    world.route(&table("r2", canary.address, None)).await;
    let mut next = TWEETS_MADE;
    let code = until("the feeder ends", async || {
        next += 1;
        let more = world.bus.produce(TWEETS, record(tweet(next)));
        more.await.unwrap();
        match feeder.child.try_wait().unwrap() {
            Some(status) => Ok(status.code()),
            None => Err(next),
        }
    })
    .await;
    assert_eq!(code, Some(1));
    let left = world.bus.lag(TWEETS, "feeder").await.unwrap();
    let done = world.results().await;
    assert!(left > 0, "the last tweets were taken for done");
    let counted = done.len() as u64 + left;
    assert!(counted >= next, "{counted} of {next}: a tweet is lost");
    assert!(left < next, "what was done is committed");
    assert_eq!(done, vec!["r2"; done.len()]);
}
