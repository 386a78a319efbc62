//! A real bus that says no at first: what has to be tried again.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use pipeline_demo::bus::{
    Bus, BusConfig, BusError, Consumer, NewRecord, Offsets, Polled, Position, Reader, Span,
    Standing, TWEETS,
};
use pipeline_demo::producer::{Producer, ProducerConfig};
use pipeline_demo::sink::{SqliteStorage, Storage};
use pipeline_demo::source::SourceConfig;
use pipeline_demo::telemetry::Identity;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::failures::drained;
use crate::sinks::{Sinking, result};
use crate::support::{any_port, local_bus, record, tweet};

#[derive(Debug)]
struct Unwilling {
    bus: Arc<dyn Bus>,
    /// Values that it does not take, once each.
    refused: Mutex<HashSet<Bytes>>,
    /// Commits that it does not take.
    commits_refused: Arc<AtomicU64>,
}

impl Unwilling {
    fn new(bus: &Arc<dyn Bus>, refused: impl IntoIterator<Item = Bytes>, commits: u64) -> Self {
        Self {
            bus: bus.clone(),
            refused: Mutex::new(refused.into_iter().collect()),
            commits_refused: Arc::new(AtomicU64::new(commits)),
        }
    }
}

fn no(topic: &str) -> BusError {
    BusError::Full {
        topic: topic.to_owned(),
        partition: 0,
    }
}

#[async_trait]
impl Bus for Unwilling {
    async fn ensure_topic(&self, topic: &str) -> Result<(), BusError> {
        self.bus.ensure_topic(topic).await
    }

    async fn partitions(&self, topic: &str) -> Result<u32, BusError> {
        self.bus.partitions(topic).await
    }

    async fn produce(&self, topic: &str, record: NewRecord) -> Result<Position, BusError> {
        if self.refused.lock().unwrap().remove(&record.value) {
            return Err(no(topic));
        }
        self.bus.produce(topic, record).await
    }

    async fn consumer(&self, topic: &str, group: &str) -> Result<Box<dyn Consumer>, BusError> {
        let consumer = self.bus.consumer(topic, group).await?;
        let commits_refused = self.commits_refused.clone();
        Ok(Box::new(Member {
            consumer,
            commits_refused,
        }))
    }

    async fn ends(&self, topic: &str) -> Result<Vec<(i64, i64)>, BusError> {
        self.bus.ends(topic).await
    }

    async fn offsets_at(&self, topic: &str, time: Timestamp) -> Result<Vec<i64>, BusError> {
        self.bus.offsets_at(topic, time).await
    }

    async fn reader(&self, topic: &str, spans: &[Span]) -> Result<Box<dyn Reader>, BusError> {
        self.bus.reader(topic, spans).await
    }

    async fn standing(&self, topic: &str, group: &str) -> Result<Vec<Standing>, BusError> {
        self.bus.standing(topic, group).await
    }
}

#[derive(Debug)]
struct Member {
    consumer: Box<dyn Consumer>,
    commits_refused: Arc<AtomicU64>,
}

#[async_trait]
impl Consumer for Member {
    async fn poll(&mut self, records_max: usize) -> Result<Polled, BusError> {
        self.consumer.poll(records_max).await
    }

    fn release(&mut self, partitions: &[u32]) {
        self.consumer.release(partitions);
    }

    fn offsets(&self) -> Arc<dyn Offsets> {
        Arc::new(Committing {
            offsets: self.consumer.offsets(),
            refused: self.commits_refused.clone(),
        })
    }

    async fn close(self: Box<Self>) {
        self.consumer.close().await;
    }
}

#[derive(Debug)]
struct Committing {
    offsets: Arc<dyn Offsets>,
    refused: Arc<AtomicU64>,
}

#[async_trait]
impl Offsets for Committing {
    async fn commit(&self, next: &[Position]) -> Result<(), BusError> {
        let one_less = |left: u64| left.checked_sub(1);
        let order = Ordering::SeqCst;
        match self.refused.fetch_update(order, order, one_less) {
            Ok(_) => Err(no("offsets")),
            Err(_) => self.offsets.commit(next).await,
        }
    }
}

#[tokio::test]
async fn offsets_that_the_bus_did_not_take_are_committed_although_nothing_more_comes() {
    let directory = tempfile::tempdir().unwrap();
    let real = local_bus(&directory.path().join("bus")).await;
    real.produce("results", record(result(1))).await.unwrap();
    let bus: Arc<dyn Bus> = Arc::new(Unwilling::new(&real, [], 2));
    let storage = SqliteStorage::open(&directory.path().join("store.sqlite"))
        .await
        .unwrap();
    let storage = Arc::new(storage);
    let sinking = Sinking::start(&bus, storage.clone(), 100);
    drained(&real, "results", "sink").await;
    assert_eq!(storage.stored().await.unwrap().results, 1);
    sinking.stop().await;
}

#[tokio::test]
async fn a_key_keeps_its_order_when_the_bus_does_not_take_some_of_its_records() {
    const TWEETS_MADE: u64 = 2_000;
    let directory = tempfile::tempdir().unwrap();
    let real = local_bus(&directory.path().join("bus")).await;
    let input = directory.path().join("tweets.jsonl");
    let mut lines = Vec::new();
    for id in 1..=TWEETS_MADE {
        lines.extend_from_slice(&tweet(id));
        lines.push(b'\n');
    }
    std::fs::write(&input, lines).unwrap();
    let bus: Arc<dyn Bus> = Arc::new(Unwilling::new(&real, [3, 4, 700, 701, 2_000].map(tweet), 0));
    let source = SourceConfig {
        input: Some(input),
        once: true,
        seed: 1,
        malformed_share: 0.0,
    };
    let config = ProducerConfig {
        bus: BusConfig::Local("unused".into()),
        source: source.clone(),
        rate: f64::INFINITY,
        duration: None,
        server: any_port(),
        identity: Identity::default(),
    };
    let producer = Producer::new(bus, &config);
    let produced = producer.run(source.open().await.unwrap(), CancellationToken::new());
    assert_eq!(produced.await.unwrap().tasks_produced, TWEETS_MADE);

    // Some are there twice, and the last ones of each stand in their order.
    let mut consumer = real.consumer(TWEETS, "test").await.unwrap();
    let mut last = std::collections::BTreeMap::new();
    let mut place = 0_u64;
    let whole: u64 = real.lag(TWEETS, "test").await.unwrap();
    while place < whole {
        for record in consumer.next(1_000).await.unwrap() {
            place += 1;
            let tweet: Value = serde_json::from_slice(&record.value).unwrap();
            let id: u64 = tweet["data"]["id"].as_str().unwrap().parse().unwrap();
            last.insert((id % 7, id), place);
        }
    }
    assert_eq!(last.len() as u64, TWEETS_MADE);
    for author in 0..7 {
        let places: Vec<u64> = last
            .range((author, 0)..(author + 1, 0))
            .map(|(_, place)| *place)
            .collect();
        assert!(places.is_sorted(), "author {author}: {places:?}");
    }
    assert!(whole < 2 * TWEETS_MADE, "{whole}");
}
