//! A real bus that says no at first, or takes its time: what has to be tried again, and how much waits meanwhile.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use pipeline_demo::bus::{
    Bus, BusConfig, BusError, Consumer, NewRecord, Offsets, Polled, Position, Reader, Span,
    Standing, TWEETS,
};
use pipeline_demo::producer::{Producer, ProducerConfig};
use pipeline_demo::sink::{Batch, Receipt, SqliteStorage, Storage, StorageError, Stored};
use pipeline_demo::source::SourceConfig;
use pipeline_demo::telemetry::Identity;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::failures::drained;
use crate::sinks::{Sinking, result};
use crate::support::{any_port, local_bus, record, tweet, until};

#[derive(Debug)]
struct Unwilling {
    bus: Arc<dyn Bus>,
    /// Values that it does not take, once each.
    refused: Mutex<HashSet<Bytes>>,
    /// Commits that it does not take.
    commits_refused: Arc<AtomicU64>,
    /// Until then it takes nothing.
    willing: CancellationToken,
    waiting: Waiting,
    /// Bytes that its consumers were given.
    given: Arc<AtomicUsize>,
}

/// Records that wait to be taken.
#[derive(Debug, Default)]
struct Waiting {
    bytes: AtomicUsize,
    bytes_most: AtomicUsize,
}

impl Unwilling {
    fn new(bus: &Arc<dyn Bus>, refused: impl IntoIterator<Item = Bytes>, commits: u64) -> Self {
        Self {
            bus: bus.clone(),
            refused: Mutex::new(refused.into_iter().collect()),
            commits_refused: Arc::new(AtomicU64::new(commits)),
            willing: CancellationToken::new(),
            waiting: Waiting::default(),
            given: Arc::default(),
        }
    }

    /// One that takes what it is asked to, at once.
    fn willing(self) -> Self {
        self.willing.cancel();
        self
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
        let (bytes, order) = (record.value.len(), Ordering::SeqCst);
        let waiting = self.waiting.bytes.fetch_add(bytes, order) + bytes;
        self.waiting.bytes_most.fetch_max(waiting, order);
        self.willing.cancelled().await;
        let produced = self.bus.produce(topic, record).await;
        self.waiting.bytes.fetch_sub(bytes, order);
        produced
    }

    async fn consumer(&self, topic: &str, group: &str) -> Result<Box<dyn Consumer>, BusError> {
        let consumer = self.bus.consumer(topic, group).await?;
        let commits_refused = self.commits_refused.clone();
        Ok(Box::new(Member {
            consumer,
            commits_refused,
            given: self.given.clone(),
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
    given: Arc<AtomicUsize>,
}

#[async_trait]
impl Consumer for Member {
    async fn poll(&mut self, records_max: usize) -> Result<Polled, BusError> {
        let polled = self.consumer.poll(records_max).await;
        if let Ok(Polled::Records(records)) = &polled {
            let bytes: usize = records.iter().map(|record| record.value.len()).sum();
            self.given.fetch_add(bytes, Ordering::SeqCst);
        }
        polled
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
    let bus: Arc<dyn Bus> = Arc::new(Unwilling::new(&real, [], 2).willing());
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
    let unwilling = Unwilling::new(&real, [3, 4, 700, 701, 2_000].map(tweet), 0);
    let bus: Arc<dyn Bus> = Arc::new(unwilling.willing());
    let (source, config) = all_of(input);
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

/// A producer of all lines of a file, as fast as the bus takes them.
fn all_of(input: std::path::PathBuf) -> (SourceConfig, ProducerConfig) {
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
    (source, config)
}

/// Long enough for another few hundred records to be begun, if anything let them.
const A_MOMENT: Duration = Duration::from_millis(300);

const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn large_records_on_their_way_to_the_bus_are_bounded_by_their_bytes() {
    // 80 MB; the producer has 64 MiB on its way at most, and one record more.
    const TWEETS_MADE: u64 = 320;
    const BYTES: usize = 250_000;
    let directory = tempfile::tempdir().unwrap();
    let real = local_bus(&directory.path().join("bus")).await;
    let input = directory.path().join("tweets.jsonl");
    let large = |id: u64| json!({"data": {"id": id.to_string(), "author_id": "1", "text": "x".repeat(BYTES)}});
    let lines: Vec<String> = (1..=TWEETS_MADE).map(|id| large(id).to_string()).collect();
    std::fs::write(&input, lines.join("\n")).unwrap();
    drop(lines);
    let unwilling = Arc::new(Unwilling::new(&real, [], 0));
    let bus: Arc<dyn Bus> = unwilling.clone();
    let (source, config) = all_of(input);
    let producer = Producer::new(bus, &config);
    let produced = producer.run(source.open().await.unwrap(), CancellationToken::new());
    let looking = async {
        until("as much waits as may", async || {
            match unwilling.waiting.bytes.load(Ordering::SeqCst) {
                enough if enough >= 64 * MIB => Ok(()),
                less => Err(less),
            }
        })
        .await;
        tokio::time::sleep(A_MOMENT).await;
        unwilling.willing.cancel();
    };
    let (produced, ()) = tokio::join!(produced, looking);
    assert_eq!(produced.unwrap().tasks_produced, TWEETS_MADE);
    let most = unwilling.waiting.bytes_most.load(Ordering::SeqCst);
    assert!(most < 64 * MIB + 2 * BYTES, "{most}");
}

/// A real store that takes its time.
#[derive(Debug)]
struct Slow {
    storage: SqliteStorage,
    ready: CancellationToken,
}

#[async_trait]
impl Storage for Slow {
    async fn store(&self, batch: &Batch) -> Result<Receipt, StorageError> {
        self.ready.cancelled().await;
        self.storage.store(batch).await
    }

    async fn stored(&self) -> Result<Stored, StorageError> {
        self.storage.stored().await
    }
}

#[tokio::test]
async fn large_records_that_the_sink_fetches_ahead_are_bounded_by_their_bytes() {
    // 45 MB. A poll brings 128 records, and the sink asks for more while it holds less than 16 MiB ahead: one batch is being
    // stored, and two polls are ahead of it.
    const RESULTS_MADE: u64 = 450;
    const BYTES: usize = 100_000;
    let directory = tempfile::tempdir().unwrap();
    let real = local_bus(&directory.path().join("bus")).await;
    let appended = (0..RESULTS_MADE).map(|id| {
        let features = json!({ "filler": "x".repeat(BYTES) });
        let result = json!({"tweet_id": id.to_string(), "release": "a", "features": features});
        real.produce("results", record(result.to_string()))
    });
    futures::future::try_join_all(appended).await.unwrap();
    let unwilling = Arc::new(Unwilling::new(&real, [], 0).willing());
    let bus: Arc<dyn Bus> = unwilling.clone();
    let storage = SqliteStorage::open(&directory.path().join("store.sqlite"))
        .await
        .unwrap();
    let ready = CancellationToken::new();
    let slow = Arc::new(Slow {
        storage,
        ready: ready.clone(),
    });
    let sinking = Sinking::start(&bus, slow.clone(), 4_096);
    until("as much is ahead as may be", async || {
        match unwilling.given.load(Ordering::SeqCst) {
            enough if enough >= 128 * BYTES + 16 * MIB => Ok(()),
            less => Err(less),
        }
    })
    .await;
    tokio::time::sleep(A_MOMENT).await;
    let given = unwilling.given.load(Ordering::SeqCst);
    assert!(given < 128 * (BYTES + 1_000) * 3, "{given}");
    ready.cancel();
    drained(&real, "results", "sink").await;
    sinking.stop().await;
    assert_eq!(slow.stored().await.unwrap().results, RESULTS_MADE);
}
