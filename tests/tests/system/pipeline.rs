//! The pipeline on a real broker and a real PostgreSQL while everything happens to it: every tweet is stored once, and each
//! author's tweets in their order.

mod stored;

use std::fmt::Write;
use std::time::Duration;

use controller_testing::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rollout::Phase;
use serde_json::Value;
use system_tests::{Broker, PATIENCE, Part, Postgres, Scene, TweetStream, is_alive, pipeline_demo};
use tokio::time::{Instant, sleep};

use stored::Check;

/// Tweets that go in at least, unless `FRIDAY_PIPELINE_TASKS` says otherwise (100,000 in the run by hand). They go on until
/// the last rollout has ended.
const TASKS_MIN: u64 = 8_000;

/// How long the input lasts, while nothing is away, where there are many tweets.
const INPUT_SECONDS: u64 = 240;

/// Tweets a second at least: enough for the judge to see a rollout through in a minute.
const RATE_MIN: u64 = 125;

/// How long the broker is away, and then PostgreSQL, unless `FRIDAY_PIPELINE_AWAY_SECONDS` says otherwise (30 in the run by
/// hand).
const AWAY_SECONDS: u64 = 5;

/// Every so many tweets one is malformed.
const MALFORMED_EVERY: u64 = 50;

/// Authors; each one's tweets keep their order.
const AUTHORS: u64 = 97;

/// Longest wait for a rollout to end.
const ROLLOUT_MAX: Duration = Duration::from_secs(240);

/// Longest wait for the rest to be stored, from the end of the last rollout on.
const STORED_MAX: Duration = Duration::from_secs(INPUT_SECONDS + 120);

/// The comparison of what went in with what is stored, all the while.
const JOBS: &str = "jobs: { compare: { task: reconcile, every: 2s, deadline: 20s } }\n";

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is {text:?}, expected a number"))
    })
}

/// The input: tweets with the ids from 1 on.
pub(crate) struct Input {
    pub(crate) tasks: u64,
}

impl Input {
    pub(crate) fn is_malformed(id: u64) -> bool {
        id.is_multiple_of(MALFORMED_EVERY)
    }

    pub(crate) fn author_of(id: u64) -> u64 {
        id % AUTHORS + 1
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = u64> + use<> {
        1..=self.tasks
    }

    fn malformed(&self) -> u64 {
        self.tasks / MALFORMED_EVERY
    }

    fn tweet(id: u64) -> String {
        let author = Self::author_of(id);
        let mut tweet = format!(r#"{{"data":{{"id":"{id}","author_id":"{author}""#);
        if !Self::is_malformed(id) {
            write!(tweet, r#","text":"I love tweet {id} #friday""#).unwrap();
        }
        tweet + "}}"
    }
}

/// A scene with its pipeline around it.
struct Pipeline {
    scene: Scene,
    broker: Broker,
    postgres: Postgres,
    stream: TweetStream,
    http: reqwest::Client,
}

impl Pipeline {
    async fn start(rate: u64) -> Self {
        let scene = Scene::start().await;
        let directory = scene.dir().join("broker");
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(scene.dir().join("pipeline.yml"), JOBS).unwrap();
        Self {
            broker: Broker::start(&directory),
            postgres: Postgres::start().await,
            stream: TweetStream::start(Input::tweet, rate as u32).await,
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            scene,
        }
    }

    async fn part(&self, name: &str, more: &[&str]) -> Part {
        let kafka = self.broker.address();
        let args = [&[name, "--kafka", &kafka], more].concat();
        Part::start(name, &pipeline_demo(), &args, self.scene.dir()).await
    }

    async fn subscriber(&self) -> Part {
        // Nobody else may read it.
        let token = tempfile::Builder::new()
            .disable_cleanup(true)
            .tempfile_in(self.scene.dir())
            .unwrap();
        std::fs::write(token.path(), "token\n").unwrap();
        let (url, token) = (self.stream.url(), token.path().display().to_string());
        let args = ["--x-url", &url, "--x-token-file", &token];
        self.part(
            "subscribe",
            &[&args[..], &["--x-rule", "all=tweet"]].concat(),
        )
        .await
    }

    async fn feeder(&self) -> Part {
        let proxy = format!("http://{}", self.scene.proxy().address("listen"));
        self.part("feed", &["--proxy", &proxy]).await
    }

    async fn sink(&self) -> Part {
        self.part("sink", &["--database", &self.postgres.url()])
            .await
    }

    async fn jobs(&self) -> Part {
        let (url, file) = (self.postgres.url(), self.scene.path("pipeline.yml"));
        self.part("jobs", &["--database", &url, "--pipeline", &file])
            .await
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

    /// Waits until more is stored than was.
    async fn until_more_is_stored(&self, what: &str, sink: &Part) {
        let before = self.counts(sink).await["results"].as_u64().unwrap_or(0);
        let limit = Duration::from_secs(60);
        let counts = async || self.counts(sink).await["results"].as_u64();
        eventually(what, limit, counts, |now| *now > Some(before)).await;
    }
}

/// Waits until all that went in is stored, as those who did it count it.
async fn until_all_is_stored(pipeline: &Pipeline, input: &Input, parts: [&Part; 3]) {
    let (good, malformed) = (input.tasks - input.malformed(), input.malformed());
    eventually(
        "all that went in is stored",
        STORED_MAX,
        async || {
            let [subscriber, feeder, sink] = parts.map(|part| pipeline.counts(part));
            (subscriber.await, feeder.await, sink.await)
        },
        |(taken, fed, stored)| {
            taken["tasks_produced"] == input.tasks
                && stored["results"].as_u64() >= Some(good)
                && stored["malformed"].as_u64() >= Some(malformed)
                && stored["lag"] == 0
                && fed["lag"] == 0
        },
    )
    .await;
}

/// What is killed, stopped and released on the way is in this order, all of it while tweets come:
/// the broker is away in the middle of a rollout that ends well; the feeder and a worker are killed; PostgreSQL is away; a
/// rollout is rolled back.
#[tokio::test(flavor = "multi_thread")]
async fn f43_real_broker_and_postgres_store_every_tweet_once_and_in_order_whatever_happens_on_the_way()
 {
    let began = Instant::now();
    let tasks_min = setting("FRIDAY_PIPELINE_TASKS", TASKS_MIN);
    let rate = (tasks_min / INPUT_SECONDS).max(RATE_MIN);
    let away = Duration::from_secs(setting("FRIDAY_PIPELINE_AWAY_SECONDS", AWAY_SECONDS));
    let mut pipeline = Pipeline::start(rate).await;
    let sink = pipeline.sink().await;
    let jobs = pipeline.jobs().await;
    let feeder = pipeline.feeder().await;
    let subscriber = pipeline.subscriber().await;

    // No requests come while the broker is away, and the judge holds.
    let good = pipeline.scene.deploy("worker:v2").await;
    pipeline.scene.until_weight(1_000).await;
    pipeline.until_more_is_stored("tweets flow", &sink).await;
    pipeline.broker.kill();
    sleep(away).await;
    let held = pipeline.scene.rollout(&good.id).await;
    let is_held = matches!(held.phase, Phase::Analyzing { step: 0, .. });
    assert!(is_held, "{:?}", held.phase);
    assert_eq!(pipeline.scene.weight().await, 1_000);
    pipeline.broker.start_again();
    let phase = pipeline.ended(&good.id).await;
    assert!(matches!(phase, Phase::Promoted), "{phase:?}");
    println!("promoted after {:.0?}", began.elapsed());

    let in_flight = async || pipeline.counts(&feeder).await["in_flight"].as_u64();
    let what = "tasks are in flight";
    eventually(what, PATIENCE, in_flight, |count| *count > Some(0)).await;
    feeder.kill();
    let feeder = pipeline.feeder().await;
    let worker = pipeline.scene.tasks()[0].cast_signed();
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    pipeline.postgres.stop();
    sleep(away).await;
    let stored = pipeline.counts(&sink).await;
    assert_eq!(
        stored["results"],
        Value::Null,
        "PostgreSQL is away: {stored}"
    );
    pipeline.postgres.start_again().await;
    pipeline
        .until_more_is_stored("the sink goes on", &sink)
        .await;

    let bad = pipeline.scene.deploy("worker:errors").await;
    let phase = pipeline.ended(&bad.id).await;
    assert!(matches!(phase, Phase::RolledBack { .. }), "{phase:?}");
    println!("rolled back after {:.0?}", began.elapsed());

    let input = Input {
        tasks: pipeline.stream.end(tasks_min),
    };
    until_all_is_stored(&pipeline, &input, [&subscriber, &feeder, &sink]).await;
    println!("all is stored after {:.0?}", began.elapsed());
    // They were not started again by anybody.
    for (name, part) in [
        ("subscriber", &subscriber),
        ("sink", &sink),
        ("jobs", &jobs),
    ] {
        assert!(
            is_alive(part.pid()),
            "the {name} has ended:\n{}",
            part.log()
        );
    }
    let check = Check::of(&input, &pipeline.postgres.url(), &pipeline.broker.address()).await;
    check.every_tweet_is_stored_once();
    check.each_authors_order_is_kept();
    check.the_comparison_finds_nothing_missing().await;
    println!("{check}");
    assert!(subscriber.stop().await.success());
    assert!(feeder.stop().await.success());
    assert!(sink.stop().await.success());
    assert!(jobs.stop().await.success());
}
