//! What becomes of tasks when somebody stops: a worker that drains, behind a real proxy, and a feeder.

use pipeline_demo::bus::{NewRecord, TWEETS};
use serde_json::json;

use crate::failures::{Feeding, drained, store};
use crate::support::{Process, local_bus, produce_tweets, tweet, until};

#[tokio::test]
async fn a_worker_that_drains_hands_its_tasks_back_and_they_are_stored_once() {
    const TWEETS_MADE: u64 = 600;
    let directory = tempfile::tempdir().unwrap();
    let bus = local_bus(&directory.path().join("bus")).await;
    let stable = ["work", "--release", "a"];
    let stable = Process::start(directory.path(), "stable", &stable).await;
    // It leaves at once what it has not done.
    let canary = ["work", "--release", "b", "--drain-seconds", "0.3"];
    let canary = Process::start(directory.path(), "canary", &canary).await;
    let routes = json!({"generation": {"term": 1, "seq": 1}, "routes": [{
        "name": "tweets-worker", "match": {"host": "*", "path": "/"}, "canary_bp": 5_000, "shield": "idempotent",
        "stable": {"release": "a", "endpoints": [stable.address.to_string()]},
        "canary": {"release": "b", "endpoints": [canary.address.to_string()]},
    }]});
    let file = directory.path().join("routes.json");
    std::fs::write(&file, routes.to_string()).unwrap();
    let file = file.display().to_string();
    let args = [
        "proxy",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--routes",
        &file,
    ];
    let proxy = Process::start(directory.path(), "proxy", &args).await;
    produce_tweets(&bus, TWEETS_MADE).await;
    let feeding = Feeding::start(&bus, proxy.address);
    until("both releases work", async || {
        let counts = canary.counts().await;
        let middle =
            counts["in_flight"].as_u64() > Some(0) && counts["completed"].as_u64() > Some(20);
        if middle { Ok(()) } else { Err(counts) }
    })
    .await;
    canary.terminate();
    assert_eq!(canary.end().await.0, Some(0));
    drained(&bus, TWEETS, "feeder").await;
    let fed = feeding.stop().await;
    assert_eq!(fed.tasks_completed, TWEETS_MADE);
    let stored = store(&bus, directory.path()).await;
    assert_eq!((stored.results, stored.malformed), (TWEETS_MADE, 0));
    let counts = stable.counts().await;
    assert!(
        counts["completed"].as_u64() > Some(TWEETS_MADE / 2),
        "{counts}"
    );
}

#[tokio::test]
async fn a_feeder_that_stops_finishes_what_it_took_also_what_waits_for_another_of_its_key() {
    // As many as it takes at once, one after another: a task takes 20 ms.
    const TWEETS_MADE: u64 = 16;
    let directory = tempfile::tempdir().unwrap();
    let bus = local_bus(&directory.path().join("bus")).await;
    let worker = Process::start(directory.path(), "worker", &["work", "--release", "a"]).await;
    for id in 1..=TWEETS_MADE {
        let record = NewRecord {
            key: Some("one".into()),
            value: tweet(id),
        };
        bus.produce(TWEETS, record).await.unwrap();
    }
    let feeding = Feeding::start(&bus, worker.address);
    until("all are taken", async || {
        let fed = feeding.feeder.fed();
        let taken = fed.in_flight + fed.tasks_completed;
        if taken == TWEETS_MADE {
            Ok(())
        } else {
            Err(fed)
        }
    })
    .await;
    let fed = feeding.stop().await;
    assert_eq!((fed.tasks_completed, fed.in_flight), (TWEETS_MADE, 0));
    assert_eq!(bus.lag(TWEETS, "feeder").await.unwrap(), 0);
}
