//! The pipeline on a real broker while everything happens to it: every tweet is stored exactly once.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use controller_testing::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rollout::Phase;
use serde_json::Value;
use system_tests::{Broker, Part, Scene, is_alive, pipeline_demo, run};

/// Tweets that go in, unless `FRIDAY_PIPELINE_TASKS` says otherwise (100,000 in the run by hand): two minutes and a half.
const TASKS: u64 = 30_000;

/// Tweets a second: enough for the judge to see a rollout through in a minute, little enough for a busy machine.
const RATE: u64 = 200;

/// How long the broker is away, unless `FRIDAY_PIPELINE_AWAY_SECONDS` says otherwise (30 in the run by hand).
const AWAY: u64 = 10;

/// Every so many tweets one is malformed.
const MALFORMED_EVERY: u64 = 50;

/// Authors; each one's tweets keep their order.
const AUTHORS: u64 = 997;

/// Longest wait for a rollout to end.
const ROLLOUT_MAX: Duration = Duration::from_secs(240);

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is {text:?}, expected a number"))
    })
}

/// The input, and how many of its tweets are malformed.
fn input(tasks: u64) -> (String, u64) {
    let mut lines = String::new();
    let mut malformed = 0;
    for id in 1..=tasks {
        let author = id % AUTHORS + 1;
        if id % MALFORMED_EVERY == 0 {
            malformed += 1;
            writeln!(
                lines,
                r#"{{"data":{{"id":"{id}","author_id":"{author}"}}}}"#
            )
            .unwrap();
        } else {
            writeln!(
                lines,
                r#"{{"data":{{"id":"{id}","author_id":"{author}","text":"I love tweet {id} #friday"}}}}"#
            )
            .unwrap();
        }
    }
    (lines, malformed)
}

/// A scene with its pipeline around it.
struct Pipeline {
    scene: Scene,
    broker: Broker,
    http: reqwest::Client,
}

impl Pipeline {
    async fn start() -> Self {
        let scene = Scene::start().await;
        let directory = scene.dir().join("broker");
        std::fs::create_dir(&directory).unwrap();
        Self {
            broker: Broker::start(&directory),
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            scene,
        }
    }

    async fn part(&self, name: &str, more: &[&str]) -> Part {
        let kafka = self.broker.address();
        let args = [&[name, "--kafka", &kafka], more].concat();
        Part::start(name, &pipeline_demo(), &args, self.scene.dir()).await
    }

    async fn feeder(&self) -> Part {
        let proxy = format!("http://{}", self.scene.proxy().address("listen"));
        self.part("feed", &["--proxy", &proxy]).await
    }

    /// Where the results go; PostgreSQL would stand here.
    fn store(&self) -> [String; 2] {
        ["--db".to_owned(), self.scene.path("store.sqlite")]
    }

    async fn sink(&self) -> Part {
        let [option, value] = self.store();
        self.part("sink", &[&option, &value]).await
    }

    async fn counts(&self, part: &Part) -> Value {
        let url = format!("http://{}/counts", part.address("listen"));
        match self.http.get(url).send().await {
            Ok(answer) => answer.json().await.unwrap_or_default(),
            // It is looked at again.
            Err(_) => Value::Null,
        }
    }

    async fn ended(&self, id: &str) -> Phase {
        let ended = |phase: &Phase| matches!(phase, Phase::Promoted | Phase::RolledBack { .. });
        let what = "the rollout ends";
        let view = self
            .scene
            .until(id, what, ROLLOUT_MAX, |view| ended(&view.phase));
        view.await.phase
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn real_broker_every_tweet_is_stored_once_through_kills_an_outage_a_promotion_and_a_rollback()
{
    let tasks = setting("FRIDAY_PIPELINE_TASKS", TASKS);
    let away = Duration::from_secs(setting("FRIDAY_PIPELINE_AWAY_SECONDS", AWAY));
    let (lines, malformed) = input(tasks);
    let mut pipeline = Pipeline::start().await;
    let file: PathBuf = pipeline.scene.dir().join("tweets.jsonl");
    std::fs::write(&file, lines).unwrap();
    let sink = pipeline.sink().await;
    let feeder = pipeline.feeder().await;
    let (file, rate) = (file.display().to_string(), RATE.to_string());
    let args = ["--input", &file, "--once", "--rate", &rate];
    let producer = pipeline.part("produce", &args).await;

    // The broker goes away in the middle of a rollout: no requests come, and the judge holds.
    let good = pipeline.scene.deploy("worker:v2").await;
    pipeline.scene.until_weight(1_000).await;
    pipeline.broker.kill();
    tokio::time::sleep(away).await;
    let held = pipeline.scene.rollout(&good.id).await;
    assert!(
        matches!(held.phase, Phase::Analyzing { .. }),
        "{:?}",
        held.phase
    );
    pipeline.broker.start_again();
    let phase = pipeline.ended(&good.id).await;
    assert!(matches!(phase, Phase::Promoted), "{phase:?}");

    feeder.kill();
    let feeder = pipeline.feeder().await;
    let worker = pipeline.scene.tasks()[0].cast_signed();
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    let bad = pipeline.scene.deploy("worker:errors").await;
    let phase = pipeline.ended(&bad.id).await;
    assert!(matches!(phase, Phase::RolledBack { .. }), "{phase:?}");

    let good = tasks - malformed;
    let left = Duration::from_secs(tasks / RATE + 120);
    eventually(
        "all that went in is stored",
        left,
        async || {
            let fed = pipeline.counts(&feeder).await;
            (fed, pipeline.counts(&sink).await)
        },
        |(fed, stored)| {
            stored["results"].as_u64() >= Some(good)
                && stored["malformed"].as_u64() >= Some(malformed)
                && stored["lag"] == 0
                && fed["lag"] == 0
        },
    )
    .await;
    assert!(!is_alive(producer.pid()), "the file is at its end");
    assert!(feeder.stop().await.success());
    assert!(sink.stop().await.success());
    let [option, value] = pipeline.store();
    let args = ["query", &option, &value];
    let query = run(&pipeline_demo(), &args, Duration::from_secs(30)).await;
    let stored: Value = serde_json::from_str(&query.out).unwrap();
    assert_eq!(
        (stored["results"].as_u64(), stored["malformed"].as_u64()),
        (Some(good), Some(malformed)),
        "{tasks} tweets went in, {malformed} of them malformed"
    );
}
