//! What goes wrong on the way, and must not matter. Numbers are those of the list of failures.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use pipeline_demo::bus::{Bus, MALFORMED, RESULTS, TWEETS};
use pipeline_demo::feeder::{DeadLetter, Fed, Feeder, FeederConfig};
use pipeline_demo::sink::{Sink, SqliteStorage, Storage, Stored};
use pipeline_demo::telemetry::Identity;
use pipeline_demo::tweet::Tweet;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{
    Process, any_port, feeder_config, get, local_bus, produce_tweets, record, tweet, until,
};

/// A feeder at work in this process.
pub(crate) struct Feeding {
    pub(crate) feeder: Arc<Feeder>,
    stop: CancellationToken,
    task: JoinHandle<Fed>,
}

impl Feeding {
    pub(crate) fn start(bus: &Arc<dyn Bus>, proxy: SocketAddr) -> Self {
        Self::by(bus, &feeder_config(proxy))
    }

    fn by(bus: &Arc<dyn Bus>, config: &FeederConfig) -> Self {
        let feeder = Arc::new(Feeder::new(bus.clone(), config).unwrap());
        let stop = CancellationToken::new();
        let (running, told) = (feeder.clone(), stop.clone());
        let task = tokio::spawn(async move { running.run(told).await.unwrap() });
        Self { feeder, stop, task }
    }

    pub(crate) async fn stop(self) -> Fed {
        self.stop.cancel();
        self.task.await.unwrap()
    }
}

pub(crate) async fn drained(bus: &Arc<dyn Bus>, topic: &str, group: &str) {
    until("the topic is drained", async || {
        match bus.lag(topic, group).await.unwrap() {
            0 => Ok(()),
            lag => Err(lag),
        }
    })
    .await;
}

/// Runs the sink until it stored all there is.
pub(crate) async fn store(bus: &Arc<dyn Bus>, directory: &Path) -> Stored {
    let storage = SqliteStorage::open(&directory.join("store.sqlite"))
        .await
        .unwrap();
    let storage = Arc::new(storage);
    let sink = Sink::new(bus.clone(), storage.clone(), &Identity::default());
    let stop = CancellationToken::new();
    let (stored, ()) = tokio::join!(sink.run(stop.clone()), async {
        for topic in [RESULTS, MALFORMED] {
            drained(bus, topic, "sink").await;
        }
        stop.cancel();
    });
    assert_eq!(stored.unwrap(), Some(storage.stored().await.unwrap()));
    storage.stored().await.unwrap()
}

/// A worker in the proxy's place whose answers a test chooses by tweet and attempt.
pub(crate) async fn upstream(
    answer: impl Fn(&Tweet, u64) -> Response + Clone + Send + Sync + 'static,
) -> (SocketAddr, Arc<AtomicU64>) {
    let attempts = Arc::new(AtomicU64::new(0));
    let counter = attempts.clone();
    let handle = move |State(attempts): State<Arc<AtomicU64>>, headers: HeaderMap, body: Bytes| {
        let answer = answer.clone();
        async move {
            let attempt = attempts.fetch_add(1, Ordering::SeqCst);
            let tweet = Tweet::parse(&body).unwrap();
            assert_eq!(headers["idempotency-key"], tweet.id.as_str());
            assert_eq!(headers["content-type"], "application/json");
            answer(&tweet, attempt)
        }
    };
    let app = Router::new()
        .route("/tasks", post(handle))
        .with_state(counter);
    let listener = TcpListener::bind(any_port().listen).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (address, attempts)
}

pub(crate) fn result_of(tweet: &Tweet) -> Response {
    let result = json!({"tweet_id": tweet.id, "release": "a", "features": {}});
    (StatusCode::OK, result.to_string()).into_response()
}

#[tokio::test]
async fn f41_a_worker_killed_in_its_task_the_task_is_done_again_and_stored_once() {
    let directory = tempfile::tempdir().unwrap();
    let bus = local_bus(&directory.path().join("bus")).await;
    a_worker_is_killed(&bus, directory.path()).await;
}

pub(crate) async fn a_worker_is_killed(bus: &Arc<dyn Bus>, directory: &Path) {
    const TWEETS_MADE: u64 = 200;
    produce_tweets(bus, TWEETS_MADE).await;
    let mut worker = Process::start(directory, "first", &["work"]).await;
    let feeding = Feeding::start(bus, worker.address);
    // Some are done, and some are taken and not done: that is when it dies.
    until("the worker is in the middle", async || {
        let counts = worker.counts().await;
        let middle =
            counts["in_flight"].as_u64() > Some(2) && counts["completed"].as_u64() > Some(5);
        if middle { Ok(()) } else { Err(counts) }
    })
    .await;
    worker.child.kill().await.unwrap();
    let failed = until("an attempt fails", async || {
        let fed = feeding.feeder.fed();
        if fed.attempts_failed > 0 {
            Ok(fed)
        } else {
            Err(fed)
        }
    })
    .await;
    assert!(
        failed.tasks_completed < TWEETS_MADE,
        "it was killed too late: {failed:?}"
    );
    let listen = worker.address.to_string();
    let args = ["work", "--listen", &listen];
    let second = Process::start(directory, "second", &args).await;
    drained(bus, TWEETS, "feeder").await;
    let fed = feeding.stop().await;
    assert_eq!((fed.tasks_completed, fed.tasks_malformed), (TWEETS_MADE, 0));
    assert!(fed.attempts > TWEETS_MADE, "{fed:?}");
    let stored = store(bus, directory).await;
    assert_eq!((stored.results, stored.malformed), (TWEETS_MADE, 0));
    second.terminate();
    assert_eq!(second.end().await.0, Some(0));
}

#[tokio::test]
async fn f41_a_feeder_killed_before_its_commit_the_tasks_are_done_again_and_stored_once() {
    const TWEETS_MADE: u64 = 300;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bus");
    let bus = local_bus(&path).await;
    produce_tweets(&bus, TWEETS_MADE).await;
    let (proxy, _) = upstream(|tweet, _| result_of(tweet)).await;
    let (path, url) = (path.to_str().unwrap().to_owned(), format!("http://{proxy}"));
    let args = ["feed", "--bus", &path, "--proxy", &url, "--in-flight", "4"];
    let mut killed = 0;
    // Killed again and again, wherever it stands, until it comes through.
    for generation in 0.. {
        let mut feeder = Process::start(directory.path(), "feed", &args).await;
        let lag = bus.lag(TWEETS, "feeder").await.unwrap();
        tokio::time::sleep(Duration::from_millis(20 * generation)).await;
        if lag == 0 {
            feeder.terminate();
            assert_eq!(feeder.end().await.0, Some(0));
            break;
        }
        feeder.child.kill().await.unwrap();
        killed += 1;
    }
    assert!(killed > 1, "{killed}");
    let stored = store(&bus, directory.path()).await;
    assert_eq!((stored.results, stored.malformed), (TWEETS_MADE, 0));
}

#[tokio::test]
async fn f42_a_malformed_record_is_a_dead_letter_with_its_reason_and_bytes_and_the_partition_goes_on()
 {
    let directory = tempfile::tempdir().unwrap();
    let bus = local_bus(&directory.path().join("bus")).await;
    malformed_records_come(&bus, directory.path()).await;
}

pub(crate) async fn malformed_records_come(bus: &Arc<dyn Bus>, directory: &Path) {
    let bad: [(&[u8], &str); 5] = [
        (b"\xff\xfe\x00", "not_utf8"),
        (br#"{"data":{"id":"1","#, "not_json"),
        (br#"{"data":{"text":"a"}}"#, "no_id"),
        (br#"{"data":{"id":"77"}}"#, "no_text"),
        (b"", "not_json"),
    ];
    // One key, so that all stand in one partition, each bad one before a good one.
    let mut places = Vec::new();
    for (number, (bytes, _)) in (1_u64..).zip(bad) {
        for value in [bytes.to_vec().into(), tweet(number)] {
            let mut new = record(value);
            new.key = Some("one".into());
            places.push(bus.produce(TWEETS, new).await.unwrap());
        }
    }
    let worker = Process::start(directory, "worker", &["work"]).await;
    let feeding = Feeding::start(bus, worker.address);
    drained(bus, TWEETS, "feeder").await;
    let fed = feeding.stop().await;
    assert_eq!((fed.tasks_completed, fed.tasks_malformed), (5, 5));
    assert_eq!(
        (fed.attempts, fed.attempts_failed),
        (10, 0),
        "none is tried again"
    );
    let metrics = get(worker.address, "/metrics")
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(
        metrics.contains("pipeline_tasks_malformed_total 5"),
        "{metrics}"
    );

    let mut consumer = bus.consumer(MALFORMED, "test").await.unwrap();
    let mut letters: Vec<DeadLetter> = Vec::new();
    while letters.len() < bad.len() {
        let records = consumer.next(10).await.unwrap();
        letters.extend(
            records
                .iter()
                .map(|r| serde_json::from_slice(&r.value).unwrap()),
        );
    }
    letters.sort_by_key(|letter| letter.position);
    for (index, letter) in letters.iter().enumerate() {
        assert_eq!(
            (letter.topic.as_str(), letter.position),
            (TWEETS, places[2 * index])
        );
        assert_eq!(letter.code, bad[index].1);
        assert!(!letter.reason.is_empty());
    }
    drop(consumer);
    let stored = store(bus, directory).await;
    assert_eq!((stored.results, stored.malformed), (5, 5));
    let options =
        sqlx::sqlite::SqliteConnectOptions::new().filename(directory.join("store.sqlite"));
    let reader = sqlx::SqlitePool::connect_with(options).await.unwrap();
    let originals: Vec<Vec<u8>> =
        sqlx::query_scalar("SELECT original FROM malformed ORDER BY partition, offset")
            .fetch_all(&reader)
            .await
            .unwrap();
    assert_eq!(originals, bad.map(|(bytes, _)| bytes.to_vec()));
}

#[tokio::test]
async fn a_flaky_upstream_loses_nothing() {
    const TWEETS_MADE: u64 = 150;
    let directory = tempfile::tempdir().unwrap();
    let bus = local_bus(&directory.path().join("bus")).await;
    produce_tweets(&bus, TWEETS_MADE).await;
    let (proxy, attempts) = upstream(|tweet, attempt| match attempt % 7 {
        0 => StatusCode::BAD_GATEWAY.into_response(),
        1 => StatusCode::TOO_MANY_REQUESTS.into_response(),
        2 => (StatusCode::OK, "not the result").into_response(),
        3 => StatusCode::NOT_FOUND.into_response(),
        _ => result_of(tweet),
    })
    .await;
    let feeding = Feeding::start(&bus, proxy);
    drained(&bus, TWEETS, "feeder").await;
    let fed = feeding.stop().await;
    assert_eq!(fed.tasks_completed, TWEETS_MADE);
    assert_eq!(fed.attempts, attempts.load(Ordering::SeqCst));
    assert_eq!(fed.attempts - fed.attempts_failed, TWEETS_MADE);
    let stored = store(&bus, directory.path()).await;
    assert_eq!(stored.results, TWEETS_MADE);
}

#[tokio::test]
async fn a_record_that_is_held_back_does_not_hold_the_others_and_is_not_committed() {
    let directory = tempfile::tempdir().unwrap();
    let bus = local_bus(&directory.path().join("bus")).await;
    produce_tweets(&bus, 100).await;
    let healed = Arc::new(AtomicU64::new(0));
    let sick = healed.clone();
    let (proxy, _) = upstream(move |tweet, _| match tweet.id.as_str() {
        "1" if sick.load(Ordering::SeqCst) == 0 => {
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
        _ => result_of(tweet),
    })
    .await;
    let feeding = Feeding::start(&bus, proxy);
    until("the others are done", async || {
        let fed = feeding.feeder.fed();
        if fed.tasks_completed == 99 {
            Ok(())
        } else {
            Err(fed)
        }
    })
    .await;
    // Its partition waits for it: a feeder that ends now leaves the record to the next one.
    let fed = feeding.stop().await;
    assert_eq!(fed.tasks_completed, 99);
    assert!(bus.lag(TWEETS, "feeder").await.unwrap() > 0);
    healed.store(1, Ordering::SeqCst);
    let feeding = Feeding::start(&bus, proxy);
    drained(&bus, TWEETS, "feeder").await;
    feeding.stop().await;
    assert_eq!(store(&bus, directory.path()).await.results, 100);
}

#[tokio::test]
async fn a_record_that_fails_while_others_do_not_becomes_a_dead_letter_and_one_that_fails_with_all_does_not()
 {
    const ATTEMPTS: u32 = 3;
    let directory = tempfile::tempdir().unwrap();
    let bus = local_bus(&directory.path().join("bus")).await;
    produce_tweets(&bus, 20).await;
    let healed = Arc::new(AtomicU64::new(0));
    let sick = healed.clone();
    let (proxy, _) = upstream(move |tweet, _| {
        if tweet.id == "1" || sick.load(Ordering::SeqCst) == 0 {
            (StatusCode::INTERNAL_SERVER_ERROR, "no").into_response()
        } else {
            result_of(tweet)
        }
    })
    .await;
    let config = FeederConfig {
        letter_after: Some(ATTEMPTS),
        ..feeder_config(proxy)
    };
    let feeding = Feeding::by(&bus, &config);
    // The first 16 are in flight, and each has failed more often than that on average.
    until("all fail", async || {
        let fed = feeding.feeder.fed();
        (fed.attempts_failed > 16 * u64::from(ATTEMPTS + 3))
            .then_some(())
            .ok_or(fed)
    })
    .await;
    assert_eq!(feeding.feeder.fed().tasks_malformed, 0);
    healed.store(1, Ordering::SeqCst);
    // Others go on being answered between its attempts.
    let mut id = 20;
    until("one is given up", async || {
        id += 1;
        bus.produce(TWEETS, record(tweet(id))).await.unwrap();
        let fed = feeding.feeder.fed();
        (fed.tasks_malformed > 0).then_some(()).ok_or(fed)
    })
    .await;
    // Nothing waits for it any more.
    drained(&bus, TWEETS, "feeder").await;
    let fed = feeding.stop().await;
    assert_eq!((fed.tasks_malformed, fed.tasks_completed), (1, id - 1));
    let mut consumer = bus.consumer(MALFORMED, "test").await.unwrap();
    let records = consumer.next(10).await.unwrap();
    let letter: DeadLetter = serde_json::from_slice(&records[0].value).unwrap();
    assert_eq!((letter.code.as_str(), letter.release), ("unanswered", None));
    assert!(
        letter.reason.contains("attempts failed")
            && letter
                .reason
                .ends_with("the answer was 500 Internal Server Error"),
        "{}",
        letter.reason
    );
}

#[tokio::test]
async fn what_the_sink_gets_twice_or_cannot_read_is_stored_once() {
    let directory = tempfile::tempdir().unwrap();
    let bus = local_bus(&directory.path().join("bus")).await;
    let result =
        json!({"tweet_id": "1", "release": "a", "features": {"sentiment": {"compound": 0.1}}});
    let letter = json!({"topic": "tweets", "partition": 0, "offset": 3, "code": "not_json",
        "reason": "the record is not JSON", "original_base64": "e30="});
    for _ in 0..3 {
        bus.produce(RESULTS, record(result.to_string()))
            .await
            .unwrap();
        bus.produce(MALFORMED, record(letter.to_string()))
            .await
            .unwrap();
    }
    bus.produce(RESULTS, record("nonsense")).await.unwrap();
    let expected = Stored {
        results: 1,
        malformed: 2,
    };
    assert_eq!(store(&bus, directory.path()).await, expected);
    bus.produce(RESULTS, record(result.to_string()))
        .await
        .unwrap();
    assert_eq!(store(&bus, directory.path()).await, expected);
}
