//! What every bus promises: one suite, run on the local log and on Kafka's protocol.
//!
//! Kafka's side is a broker of the test's own, and librdkafka's broker inside this process, which needs nothing installed
//! but keeps only 5 MB a partition.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use pipeline_demo::bus::{
    BUS_RECORD_BYTES_MAX, Bus, BusError, Consumer, Kafka, KafkaConfig, LocalLog, NewRecord,
    PARTITIONS, Position, Record,
};
use rdkafka::mocking::MockCluster;
use tokio::time::timeout;

use crate::support::record;

/// Long enough for a slow machine; nothing waits for its end.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// The topics that the suite needs: one for each of its parts.
const TOPICS: [&str; 4] = ["order", "groups", "resume", "limits"];

pub(crate) async fn contract(bus: Arc<dyn Bus>) {
    for topic in TOPICS {
        bus.ensure_topic(topic).await.unwrap();
        // Again: it is there, and stays as it is.
        bus.ensure_topic(topic).await.unwrap();
        assert_eq!(bus.partitions(topic).await.unwrap(), PARTITIONS);
    }
    keeps_keys_together_and_in_order(&bus).await;
    groups_do_not_disturb_each_other(&bus).await;
    goes_on_from_what_was_committed(&bus).await;
    names_what_it_refuses(&bus).await;
}

/// Takes exactly `records`, a few at a time.
pub(crate) async fn take(consumer: &mut dyn Consumer, records: usize) -> Vec<Record> {
    let mut taken = Vec::new();
    while taken.len() < records {
        let next = timeout(WAIT_MAX, consumer.next(7)).await;
        let next = next.unwrap_or_else(|_| panic!("{} of {records} came", taken.len()));
        let next = next.unwrap();
        assert!((1..=7).contains(&next.len()), "{}", next.len());
        taken.extend(next);
    }
    assert_eq!(taken.len(), records);
    taken
}

async fn keeps_keys_together_and_in_order(bus: &Arc<dyn Bus>) {
    let mut produced: BTreeMap<Position, (Option<Bytes>, Bytes)> = BTreeMap::new();
    for n in 0..60_u32 {
        let key = (n % 6 > 0).then(|| Bytes::from(format!("key {}", n % 6)));
        // Any bytes, and none at all.
        let value = Bytes::from(vec![0xff; n as usize]);
        let new = NewRecord {
            key: key.clone(),
            value: value.clone(),
        };
        let position = bus.produce("order", new).await.unwrap();
        assert_eq!(produced.insert(position, (key, value)), None);
    }
    let mut consumer = bus.consumer("order", "a").await.unwrap();
    let taken = take(consumer.as_mut(), 60).await;
    let seen: BTreeMap<_, _> = taken
        .iter()
        .map(|record| (record.position, (record.key.clone(), record.value.clone())))
        .collect();
    assert_eq!(seen, produced);
    let mut partition_of = BTreeMap::new();
    let mut last = BTreeMap::new();
    for Record {
        position,
        key,
        value,
        ..
    } in &taken
    {
        let before = last.insert(position.partition, position.offset);
        assert!(before.is_none_or(|before| before < position.offset));
        if let Some(key) = key {
            let (partition, length) = (position.partition, value.len());
            let before = partition_of.insert(key, (partition, length));
            assert!(before.is_none_or(|b| b.0 == partition && b.1 < length));
        }
    }
    assert!(last.len() > 1, "the partitions share the load");
}

async fn groups_do_not_disturb_each_other(bus: &Arc<dyn Bus>) {
    for n in 0..10 {
        bus.produce("groups", record(format!("{n}"))).await.unwrap();
    }
    let mut one = bus.consumer("groups", "one").await.unwrap();
    let taken = take(one.as_mut(), 10).await;
    one.commit(&ends(&taken)).await.unwrap();
    assert_eq!(bus.lag("groups", "one").await.unwrap(), 0);
    assert_eq!(bus.lag("groups", "two").await.unwrap(), 10);
    let mut two = bus.consumer("groups", "two").await.unwrap();
    take(two.as_mut(), 10).await;
    // A consumer that waits is woken by a record, also by one from its own process.
    let later = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        bus.produce("groups", record("late")).await.unwrap()
    };
    let (woken, position) = tokio::join!(take(one.as_mut(), 1), later);
    assert_eq!(
        (woken[0].position, &woken[0].value[..]),
        (position, &b"late"[..])
    );
    assert_eq!(bus.lag("groups", "one").await.unwrap(), 1);
}

async fn goes_on_from_what_was_committed(bus: &Arc<dyn Bus>) {
    let mut all = BTreeSet::new();
    for n in 0..40 {
        all.insert(bus.produce("resume", record(format!("{n}"))).await.unwrap());
    }
    let mut first = bus.consumer("resume", "a").await.unwrap();
    // A call that is dropped before it has an answer took nothing.
    let mut taken = Vec::new();
    for _ in 0..3 {
        taken.extend(
            first
                .next(5)
                .now_or_never()
                .unwrap_or(Ok(Vec::new()))
                .unwrap(),
        );
    }
    let left = 40 - taken.len();
    taken.extend(take(first.as_mut(), left).await);
    let half: Vec<Record> = taken[..20].to_vec();
    first.commit(&ends(&half)).await.unwrap();
    first.commit(&[]).await.unwrap();
    drop(first);
    let done: BTreeSet<Position> = half.iter().map(|record| record.position).collect();
    // What was taken and not committed comes again, and nothing else.
    assert_eq!(bus.lag("resume", "a").await.unwrap(), 20);
    let mut second = bus.consumer("resume", "a").await.unwrap();
    let again = take(second.as_mut(), 20).await;
    let again: BTreeSet<Position> = again.iter().map(|record| record.position).collect();
    assert_eq!(again, all.difference(&done).copied().collect());
    // In each partition the group stands after what is done, or nowhere.
    for standing in bus.standing("resume", "a").await.unwrap() {
        let of = |all: &BTreeSet<Position>| {
            all.iter()
                .filter(|p| p.partition == standing.partition)
                .count() as i64
        };
        assert_eq!(standing.next, of(&all));
        assert!(standing.oldest <= of(&done), "{standing:?}");
        assert_eq!(standing.committed.unwrap_or(0), of(&done), "{standing:?}");
    }
}

async fn names_what_it_refuses(bus: &Arc<dyn Bus>) {
    let large = vec![0; BUS_RECORD_BYTES_MAX];
    bus.produce("limits", record(large.clone())).await.unwrap();
    let larger = [large, vec![0]].concat();
    let refused = bus.produce("limits", record(larger)).await.unwrap_err();
    assert!(matches!(refused, BusError::TooLarge { .. }) && !refused.is_transient());
    let unknown = bus.consumer("nowhere", "a").await.unwrap_err();
    assert!(
        matches!(unknown, BusError::UnknownTopic { .. }),
        "{unknown}"
    );
    let mut consumer = bus.consumer("limits", "a").await.unwrap();
    assert_eq!(
        take(consumer.as_mut(), 1).await[0].value.len(),
        BUS_RECORD_BYTES_MAX
    );
}

pub(crate) fn ends(records: &[Record]) -> Vec<Position> {
    let mut ends = BTreeMap::new();
    for Record { position, .. } in records {
        let next = position.offset + 1;
        let end = ends.entry(position.partition).or_insert(next);
        *end = next.max(*end);
    }
    ends.into_iter()
        .map(|(partition, offset)| Position { partition, offset })
        .collect()
}

#[tokio::test]
async fn the_local_log_keeps_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    let log = LocalLog::open(directory.path()).await.unwrap();
    contract(Arc::new(log)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_keeps_the_contract() {
    let cluster = MockCluster::new(1).unwrap();
    for topic in TOPICS {
        // The broker inside the process cannot be asked to create topics.
        cluster
            .create_topic(topic, PARTITIONS.cast_signed(), 1)
            .unwrap();
    }
    let kafka = Kafka::connect(&KafkaConfig::plaintext(&cluster.bootstrap_servers())).unwrap();
    contract(Arc::new(kafka)).await;
}

#[tokio::test]
async fn the_local_log_survives_its_processes_and_is_shared_by_them() {
    let directory = tempfile::tempdir().unwrap();
    let one = LocalLog::open(directory.path()).await.unwrap();
    let two = LocalLog::open(directory.path()).await.unwrap();
    one.ensure_topic("t").await.unwrap();
    two.ensure_topic("t").await.unwrap();
    let mut consumer = two.consumer("t", "g").await.unwrap();
    let both = (0..200).map(|n| {
        let log = if n % 2 == 0 { &one } else { &two };
        log.produce("t", record(format!("{n}")))
    });
    let positions = futures::future::try_join_all(both).await.unwrap();
    let distinct: BTreeSet<Position> = positions.into_iter().collect();
    assert_eq!(distinct.len(), 200, "two writers never share a place");
    let taken = take(consumer.as_mut(), 200).await;
    consumer.commit(&ends(&taken[..150])).await.unwrap();
    drop((one, two, consumer));
    let again = LocalLog::open(directory.path()).await.unwrap();
    let mut consumer = again.consumer("t", "g").await.unwrap();
    let lag = again.lag("t", "g").await.unwrap();
    take(consumer.as_mut(), lag as usize).await;
}

#[tokio::test]
async fn a_group_of_the_local_log_has_one_consumer() {
    let directory = tempfile::tempdir().unwrap();
    let log = LocalLog::open(directory.path()).await.unwrap();
    log.ensure_topic("t").await.unwrap();
    let first = log.consumer("t", "g").await.unwrap();
    let refused = log.consumer("t", "g").await.unwrap_err();
    assert!(matches!(refused, BusError::GroupTaken { .. }), "{refused}");
    log.consumer("t", "another").await.unwrap();
    drop(first);
    log.consumer("t", "g").await.unwrap();
}

#[tokio::test]
async fn the_local_log_deletes_what_every_group_is_done_with() {
    let directory = tempfile::tempdir().unwrap();
    let log = LocalLog::open(directory.path()).await.unwrap();
    log.ensure_topic("t").await.unwrap();
    let mut consumers = vec![
        log.consumer("t", "a").await.unwrap(),
        log.consumer("t", "b").await.unwrap(),
    ];
    let file = directory.path().join("log.sqlite");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file);
    let reader = sqlx::SqlitePool::connect_with(options).await.unwrap();
    let kept = async || -> i64 {
        let count = sqlx::query_scalar("SELECT count(*) FROM records");
        count.fetch_one(&reader).await.unwrap()
    };
    let mut taken = Vec::new();
    for n in 0..20 {
        log.produce("t", record(format!("{n}"))).await.unwrap();
    }
    for consumer in &mut consumers {
        taken = take(consumer.as_mut(), 20).await;
    }
    consumers[0].commit(&ends(&taken)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    consumers[0].commit(&ends(&taken)).await.unwrap();
    assert_eq!(kept().await, 20, "one group still needs them");
    let deleted = async || {
        consumers[1].commit(&ends(&taken)).await.unwrap();
        match kept().await {
            0 => Ok(()),
            left => Err(left),
        }
    };
    crate::support::until("all is deleted", deleted).await;
    // Places are never given twice.
    let next = log.produce("t", record("next")).await.unwrap();
    assert!(taken.iter().all(|record| record.position != next));
}

#[tokio::test]
async fn a_damaged_log_is_named_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("log.sqlite");
    std::fs::write(
        &file,
        "no database, by no means, and long enough to be looked at",
    )
    .unwrap();
    let before = std::fs::read(&file).unwrap();
    let error = LocalLog::open(directory.path()).await.unwrap_err();
    assert!(error.to_string().contains("log.sqlite"), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), before);
}
