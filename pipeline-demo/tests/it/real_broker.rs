//! The pipeline on a real broker: what only that can show. Numbers are those of the list of failures.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use pipeline_demo::bus::{MALFORMED, NewRecord, Position, RESULTS, TWEETS};
use pipeline_demo::tweet::Tweet;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::sleep;

use crate::bus_contract::{contract, ends, take};
use crate::failures::{
    Feeding, a_worker_is_killed, drained, malformed_records_come, result_of, store,
};
use crate::support::{Broker, Process, any_port, kafka_bus, record, until};

/// How long the broker is away in F43, which says 60 s: shorter than a producer tries to deliver a record by itself.
const AWAY: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn real_broker_keeps_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    let broker = Broker::start(directory.path());
    contract(kafka_bus(&broker).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f41_real_broker_a_worker_killed_in_its_task_the_task_is_done_again_and_stored_once() {
    let directory = tempfile::tempdir().unwrap();
    let broker = Broker::start(directory.path());
    a_worker_is_killed(&kafka_bus(&broker).await, directory.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f42_real_broker_a_malformed_record_is_a_dead_letter_and_the_partition_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let broker = Broker::start(directory.path());
    malformed_records_come(&kafka_bus(&broker).await, directory.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f43_real_broker_away_for_a_while_nothing_is_lost_and_nobody_restarts_anything() {
    let directory = tempfile::tempdir().unwrap();
    let mut broker = Broker::start(directory.path());
    let kafka = broker.address();
    let db = directory.path().join("store.sqlite").display().to_string();
    let worker = Process::start(directory.path(), "work", &["work"]).await;
    let proxy = format!("http://{}", worker.address);
    let args = ["feed", "--kafka", &kafka, "--proxy", &proxy];
    let feeder = Process::start(directory.path(), "feed", &args).await;
    let args = ["sink", "--kafka", &kafka, "--db", &db];
    let sink = Process::start(directory.path(), "sink", &args).await;
    let args = [
        "produce",
        "--kafka",
        &kafka,
        "--rate",
        "200",
        "--malformed-share",
        "0.05",
    ];
    let producer = Process::start(directory.path(), "produce", &args).await;
    until("tasks flow", async || {
        let stored = sink.counts().await;
        if stored["results"].as_u64() > Some(200) {
            Ok(())
        } else {
            Err(stored)
        }
    })
    .await;
    broker.kill();
    sleep(AWAY).await;
    let before = producer.counts().await["tasks_produced"].as_u64().unwrap();
    broker.start_again();
    until("tasks flow again", async || {
        let produced = producer.counts().await;
        if produced["tasks_produced"].as_u64() > Some(before + 400) {
            Ok(())
        } else {
            Err(produced)
        }
    })
    .await;
    producer.terminate();
    let (code, produced) = producer.end().await;
    assert_eq!(code, Some(0));
    let tasks = produced["tasks_produced"].as_u64().unwrap();
    let malformed = produced["malformed_produced"].as_u64().unwrap();
    until("all is stored and nothing is left", async || {
        let (fed, stored) = (feeder.counts().await, sink.counts().await);
        let all = stored["results"].as_u64() >= Some(tasks - malformed)
            && stored["malformed"].as_u64() >= Some(malformed);
        if all && fed["lag"] == 0 && stored["lag"] == 0 {
            Ok(())
        } else {
            Err((fed, stored, produced.clone()))
        }
    })
    .await;
    // A record whose acknowledgement was lost with the broker stands twice in the log: its result is stored once, since
    // it has the tweet's id; a malformed one has no id, and is kept at both its places.
    let stored = sink.counts().await;
    assert_eq!(stored["results"], tasks - malformed, "{stored}");
    for process in [feeder, sink, worker] {
        process.terminate();
        assert_eq!(process.end().await.0, Some(0));
    }
}

/// What a worker in the proxy's place saw of each author.
#[derive(Debug, Default)]
struct Seen {
    in_flight: HashMap<String, u64>,
    /// Tweets in the order in which they were done for the first time, by author.
    done: BTreeMap<String, Vec<u64>>,
    overlaps: Vec<String>,
    tasks: u64,
}

/// A worker that notes the order of what comes, and whether an author had two tasks at once.
async fn watching() -> (SocketAddr, Arc<Mutex<Seen>>) {
    async fn task(State(seen): State<Arc<Mutex<Seen>>>, body: Bytes) -> Response {
        let tweet = Tweet::parse(&body).unwrap();
        let author = tweet.author_id.clone().unwrap();
        {
            let mut seen = seen.lock().unwrap();
            seen.tasks += 1;
            let now = seen.in_flight.entry(author.clone()).or_default();
            *now += 1;
            if *now > 1 {
                seen.overlaps.push(format!("{author}: {}", tweet.id));
            }
        }
        sleep(Duration::from_millis(5)).await;
        let mut seen = seen.lock().unwrap();
        *seen.in_flight.get_mut(&author).unwrap() -= 1;
        let id = tweet.id.parse().unwrap();
        let done = seen.done.entry(author).or_default();
        if !done.contains(&id) {
            done.push(id);
        }
        result_of(&tweet)
    }
    let seen = Arc::new(Mutex::new(Seen::default()));
    let app = Router::new()
        .route("/tasks", post(task))
        .with_state(seen.clone());
    let listener = TcpListener::bind(any_port().listen).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (address, seen)
}

fn by_author(id: u64, author: u64) -> NewRecord {
    let data = json!({"id": id.to_string(), "author_id": author.to_string(), "text": "in order"});
    NewRecord {
        key: Some(author.to_string().into()),
        value: json!({ "data": data }).to_string().into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn real_broker_a_second_feeder_joins_and_leaves_under_load_and_each_key_keeps_its_order() {
    const AUTHORS: u64 = 23;
    const TWEETS_MADE: u64 = 6_000;
    let directory = tempfile::tempdir().unwrap();
    let broker = Broker::start(directory.path());
    let (one, two) = (kafka_bus(&broker).await, kafka_bus(&broker).await);
    let (proxy, seen) = watching().await;
    let produced = tokio::spawn({
        let bus = one.clone();
        async move {
            for id in 1..=TWEETS_MADE {
                bus.produce(TWEETS, by_author(id, id % AUTHORS))
                    .await
                    .unwrap();
            }
        }
    });
    let first = Feeding::start(&one, proxy);
    let at_least = async |feeding: &Feeding, tasks: u64| {
        until("it has done its share", async || {
            let fed = feeding.feeder.fed();
            if fed.tasks_completed >= tasks {
                Ok(fed)
            } else {
                Err(fed)
            }
        })
        .await
    };
    at_least(&first, 100).await;
    let second = Feeding::start(&two, proxy);
    at_least(&second, 100).await;
    let before = first.feeder.fed().tasks_completed;
    // Both work at once: the partitions are shared, not moved.
    at_least(&first, before + 50).await;
    let second = second.stop().await;
    produced.await.unwrap();
    drained(&one, TWEETS, "feeder").await;
    let first = first.stop().await;
    let stored = store(&one, directory.path()).await;
    assert_eq!(stored.results, TWEETS_MADE);
    let seen = seen.lock().unwrap();
    assert_eq!(
        seen.overlaps,
        Vec::<String>::new(),
        "one author has two tasks at once"
    );
    let mut all: BTreeSet<u64> = BTreeSet::new();
    for (author, done) in &seen.done {
        assert!(done.is_sorted(), "author {author}: {done:?}");
        all.extend(done);
    }
    assert_eq!(all.len() as u64, TWEETS_MADE);
    assert!(second.tasks_completed >= 100, "{second:?}");
    // Partitions were handed over, not taken away: nothing was done twice.
    assert_eq!(first.tasks_completed + second.tasks_completed, TWEETS_MADE);
}

#[tokio::test(flavor = "multi_thread")]
async fn f41_real_broker_a_feeder_killed_another_takes_its_partitions_and_all_is_stored_once() {
    const TWEETS_MADE: u64 = 3_000;
    let directory = tempfile::tempdir().unwrap();
    let broker = Broker::start(directory.path());
    let bus = kafka_bus(&broker).await;
    let (proxy, seen) = watching().await;
    let made = (1..=TWEETS_MADE).map(|id| bus.produce(TWEETS, by_author(id, id % 100)));
    futures::future::try_join_all(made).await.unwrap();
    let (kafka, url) = (broker.address(), format!("http://{proxy}"));
    let args = [
        "feed",
        "--kafka",
        &kafka,
        "--proxy",
        &url,
        "--in-flight",
        "4",
    ];
    let mut killed = Process::start(directory.path(), "feed", &args).await;
    until("some tasks are done", async || {
        let tasks = seen.lock().unwrap().tasks;
        if tasks > 100 { Ok(()) } else { Err(tasks) }
    })
    .await;
    killed.child.kill().await.unwrap();
    let feeding = Feeding::start(&bus, proxy);
    // The group notices the death after 10 s, and gives what was the dead one's to the other.
    until("the other one works", async || {
        let fed = feeding.feeder.fed();
        if fed.tasks_completed > 0 {
            Ok(())
        } else {
            Err(fed)
        }
    })
    .await;
    drained(&bus, TWEETS, "feeder").await;
    feeding.stop().await;
    assert_eq!(store(&bus, directory.path()).await.results, TWEETS_MADE);
}

#[tokio::test(flavor = "multi_thread")]
async fn real_broker_an_owner_who_is_busy_for_long_gets_everything_once() {
    const RECORDS: usize = 3_000;
    let directory = tempfile::tempdir().unwrap();
    let broker = Broker::start(directory.path());
    let bus = kafka_bus(&broker).await;
    let produced = (0..RECORDS).map(|n| bus.produce(TWEETS, record(format!("{n}"))));
    let produced = futures::future::try_join_all(produced).await.unwrap();
    let mut consumer = bus.consumer(TWEETS, "busy").await.unwrap();
    let mut taken = consumer.next(7).await.unwrap();
    // Longer than the partitions go unpolled: they are paused, and what was fetched ahead is thrown away.
    sleep(Duration::from_secs(5)).await;
    let left = RECORDS - taken.len();
    taken.extend(take(consumer.as_mut(), left).await);
    consumer.commit(&ends(&taken)).await.unwrap();
    assert_eq!(bus.lag(TWEETS, "busy").await.unwrap(), 0);
    let places: BTreeSet<Position> = taken.iter().map(|record| record.position).collect();
    assert_eq!(places, produced.into_iter().collect());
    consumer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn real_broker_topics_are_made_with_the_wished_partitions_and_those_that_exist_stay() {
    let directory = tempfile::tempdir().unwrap();
    let broker = Broker::start(directory.path());
    let kafka = broker.address();
    for wished in ["7", "9"] {
        let args = [
            "produce",
            "--kafka",
            &kafka,
            "--partitions",
            wished,
            "--rate",
            "max",
            "--seconds",
            "0.2",
        ];
        let mut producer = Command::new(env!("CARGO_BIN_EXE_pipeline-demo"));
        let ended = producer.args(args).output().await.unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(0), "{said}");
        // What exists is never cut anew: keys would move.
        let fewer = said.contains("fewer partitions than wished");
        assert_eq!(fewer, wished == "9", "{said}");
    }
    let bus = kafka_bus(&broker).await;
    for topic in [TWEETS, RESULTS, MALFORMED] {
        assert_eq!(bus.partitions(topic).await.unwrap(), 7, "{topic}");
    }
    // They are used, too.
    let ends = bus.ends(TWEETS).await.unwrap();
    assert!(ends.iter().all(|(_, next)| *next > 0), "{ends:?}");
}
