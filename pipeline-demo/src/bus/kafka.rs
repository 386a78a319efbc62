//! Apache Kafka, or whatever speaks its protocol, by librdkafka.

mod config;
mod member;
mod reader;
mod supply;

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use rdkafka::util::Timeout;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use tracing::warn;

use super::{
    BUS_RECORD_BYTES_MAX, Bus, BusError, Consumer, NewRecord, Position, Reader, Span, Standing,
    check_size,
};
use member::Member;
use reader::SpanReader;

pub use config::{KafkaConfig, Mechanism, Security};

/// How long a question to the brokers (metadata, offsets, commits) may take.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);

/// How long librdkafka itself tries to deliver a record before it says so; then whoever produces tries again. As long as it
/// tries, a record stands once and in its order, because the broker knows its sequence number; what we try again may stand
/// twice. So it is longer than a broker takes to restart: Kafka's own default.
const DELIVERY_WAIT_MAX: Duration = Duration::from_secs(120);

/// How long a record waits for company, for larger batches: most of what a record costs, here and at the broker, it costs
/// by the request, of which there is one for each partition. At 2,500 records a second and four partitions it makes batches
/// of a dozen, which cost half as much, here and at the broker, as those that 5 ms make. No worker's place waits for it, and
/// no person notices.
const LINGER_MS: &str = "20";

/// How long a broker may keep a question for records open while there are none, in milliseconds. Kafka answers as soon as
/// something comes; other brokers look again only when half or all of that time is over, so it is how late a record can be
/// there. An idle consumer asks as often.
const FETCH_WAIT_MS: &str = "50";

/// Bytes of one answer to a question for records: some thousand tweets, and about the least that librdkafka takes. In its default
/// of 50 MiB, a consumer that was away may be given all that it missed at once by a broker that heeds this limit alone, and
/// has nothing to do until that is read and unpacked. Kafka stops at 1 MiB for each partition besides.
const FETCHED_AT_ONCE: &str = "1048576";

/// What a consumer fetches ahead, in KiB, of all its partitions together: thousands of tweets. librdkafka's default of 64 MiB is
/// much for one small process, which holds it all while it lags.
const FETCHED_AHEAD_KIB: &str = "4096";

/// How long nothing more is fetched of a partition once so much is there, in milliseconds. In librdkafka's default of a second
/// a partition of which there is little runs dry.
const FETCH_PAUSE_MS: &str = "20";

/// After how long a silence the group takes a member for dead and gives its partitions to the others. Kafka's default of
/// 45 s is for machines that pause; brokers refuse less than 6 s.
const SESSION_MS: &str = "10000";

/// How often a member shows that it lives: three times in [`SESSION_MS`].
const HEARTBEAT_MS: &str = "3000";

/// The group of readers, which never join or commit: librdkafka wants a name for every consumer.
const READER_GROUP: &str = "pipeline-demo-reader";

/// Kafka's brokers.
pub struct Kafka {
    brokers: String,
    partitions: u32,
    /// What all clients have in common; it may hold a password.
    client: ClientConfig,
    producer: RwLock<FutureProducer>,
    /// Clients that only ask for the offsets of a group, by group; they never consume.
    askers: Mutex<BTreeMap<String, Arc<BaseConsumer>>>,
}

impl fmt::Debug for Kafka {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { brokers, .. } = self;
        f.debug_struct("Kafka")
            .field("brokers", brokers)
            .finish_non_exhaustive()
    }
}

impl Kafka {
    /// A client of these brokers. Connections are made when they are needed, and again when they break.
    ///
    /// # Errors
    /// When the options do not go together, or librdkafka refuses them.
    pub fn connect(config: &KafkaConfig) -> Result<Self, BusError> {
        let client = config.client()?;
        Ok(Self {
            producer: RwLock::new(producer(&client, &config.brokers)?),
            brokers: config.brokers.clone(),
            partitions: config.partitions,
            client,
            askers: Mutex::default(),
        })
    }

    fn producer(&self) -> FutureProducer {
        let producer = self.producer.read();
        producer.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces a producer that will never send again: an idempotent one gives up for good where it cannot tell any more
    /// whether a record stands once, as after a broker that lost some. What it was given is tried again by the new one,
    /// so there it may stand twice.
    fn mend_producer(&self) -> Result<(), BusError> {
        let mut current = self
            .producer
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some((code, why)) = current.client().fatal_error() {
            warn!(%code, why, "kafka: the producer gave up for good, a new one takes its place");
            *current = producer(&self.client, &self.brokers)?;
        }
        Ok(())
    }

    /// Runs a blocking question on a thread of its own.
    async fn ask<T: Send + 'static>(
        &self,
        action: &'static str,
        topic: &str,
        question: impl FnOnce(&FutureProducer) -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<T, BusError> {
        let producer = self.producer();
        let answer = tokio::task::spawn_blocking(move || question(&producer));
        let answer = answer.await.map_err(|_| BusError::Closed)?;
        answer.map_err(unavailable(action, topic))
    }

    fn asker(&self, group: &str) -> Result<Arc<BaseConsumer>, BusError> {
        let mut askers = self.askers.lock().expect("nothing here panics");
        if let Some(asker) = askers.get(group) {
            return Ok(asker.clone());
        }
        let asker: Arc<BaseConsumer> = Arc::new(self.made(self.consuming(group).create())?);
        askers.insert(group.to_owned(), asker.clone());
        Ok(asker)
    }

    /// The configuration of a consumer.
    fn consuming(&self, group: &str) -> ClientConfig {
        let mut config = self.client.clone();
        config
            .set("group.id", group)
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", SESSION_MS)
            .set("heartbeat.interval.ms", HEARTBEAT_MS)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            .set("fetch.wait.max.ms", FETCH_WAIT_MS)
            .set("fetch.max.bytes", FETCHED_AT_ONCE)
            .set("queued.max.messages.kbytes", FETCHED_AHEAD_KIB)
            .set("fetch.queue.backoff.ms", FETCH_PAUSE_MS);
        config
    }

    fn made<T>(&self, made: Result<T, KafkaError>) -> Result<T, BusError> {
        made.map_err(|source| BusError::Client {
            brokers: self.brokers.clone(),
            source: source.into(),
        })
    }
}

fn producer(client: &ClientConfig, brokers: &str) -> Result<FutureProducer, BusError> {
    let made = client
        .clone()
        // Each record once and in order in the log, also when a broker's answer is lost.
        .set("enable.idempotence", "true")
        .set("linger.ms", LINGER_MS)
        .set("compression.type", "zstd")
        .set("message.max.bytes", (2 * BUS_RECORD_BYTES_MAX).to_string())
        .set(
            "delivery.timeout.ms",
            DELIVERY_WAIT_MAX.as_millis().to_string(),
        )
        // The hash that Java's clients use, so that a key has one partition whoever produces.
        .set("partitioner", "murmur2_random")
        .create();
    made.map_err(|source| BusError::Client {
        brokers: brokers.to_owned(),
        source: source.into(),
    })
}

fn unavailable<E: Into<Box<dyn Error + Send + Sync>>>(
    action: &'static str,
    topic: &str,
) -> impl FnOnce(E) -> BusError {
    move |source| BusError::Unavailable {
        action,
        topic: topic.to_owned(),
        source: source.into(),
    }
}

#[async_trait]
impl Bus for Kafka {
    async fn ensure_topic(&self, topic: &str) -> Result<(), BusError> {
        match self.partitions(topic).await {
            Ok(found) => {
                if found < self.partitions {
                    warn!(
                        topic,
                        partitions = found,
                        wished = self.partitions,
                        "kafka: the topic has fewer partitions than wished; adding some would move keys, so it is left as it is"
                    );
                }
                return Ok(());
            }
            Err(BusError::UnknownTopic { .. }) => {}
            Err(error) => return Err(error),
        }
        let admin: AdminClient<DefaultClientContext> = self.made(self.client.create())?;
        // -1: as many copies as the brokers' own default says.
        let wanted = NewTopic::new(
            topic,
            self.partitions.cast_signed(),
            TopicReplication::Fixed(-1),
        );
        let options = AdminOptions::new().request_timeout(Some(ANSWER_WAIT_MAX));
        let answers = admin.create_topics([&wanted], &options).await;
        for answer in answers.map_err(unavailable("create", topic))? {
            match answer {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, code)) => return Err(unavailable("create", topic)(code)),
            }
        }
        Ok(())
    }

    async fn partitions(&self, topic: &str) -> Result<u32, BusError> {
        // Asked for by name, a broker may create the topic with a default of its own; so all topics are asked for.
        let metadata = |producer: &FutureProducer| {
            producer
                .client()
                .fetch_metadata(None, Timeout::After(ANSWER_WAIT_MAX))
        };
        let metadata = self.ask("find", topic, metadata).await?;
        let found = metadata.topics().iter().find(|known| known.name() == topic);
        match found.map_or(0, |known| known.partitions().len()) {
            0 => Err(BusError::UnknownTopic {
                topic: topic.to_owned(),
            }),
            partitions => Ok(partitions as u32),
        }
    }

    async fn produce(&self, topic: &str, record: NewRecord) -> Result<Position, BusError> {
        check_size(topic, &record)?;
        let mut sent = FutureRecord::<[u8], [u8]>::to(topic).payload(&record.value);
        if let Some(key) = &record.key {
            sent = sent.key(key);
        }
        let queue_wait_max = Timeout::After(DELIVERY_WAIT_MAX);
        let delivered = self.producer().send(sent, queue_wait_max).await;
        let delivered = match delivered {
            Ok(delivered) => delivered,
            Err((error, _)) => {
                self.mend_producer()?;
                return Err(unavailable("append to", topic)(error));
            }
        };
        Ok(Position {
            partition: delivered.partition.cast_unsigned(),
            offset: delivered.offset,
        })
    }

    async fn consumer(&self, topic: &str, group: &str) -> Result<Box<dyn Consumer>, BusError> {
        self.partitions(topic).await?;
        let member = Member::join(&self.consuming(group), topic);
        Ok(Box::new(self.made(member)?))
    }

    async fn ends(&self, topic: &str) -> Result<Vec<(i64, i64)>, BusError> {
        let partitions = self.partitions(topic).await?;
        let owned = topic.to_owned();
        self.ask("read", topic, move |producer| {
            let ends = (0..partitions.cast_signed()).map(|partition| {
                let client = producer.client();
                client.fetch_watermarks(&owned, partition, ANSWER_WAIT_MAX)
            });
            ends.collect()
        })
        .await
    }

    async fn offsets_at(&self, topic: &str, time: Timestamp) -> Result<Vec<i64>, BusError> {
        let ends = self.ends(topic).await?;
        let consumer = self.asker(READER_GROUP)?;
        let owned = topic.to_owned();
        let partitions = ends.len() as i32;
        let found = self.ask("read", topic, move |_| {
            let mut asked = TopicPartitionList::new();
            for partition in 0..partitions {
                let time = Offset::Offset(time.as_millisecond());
                asked.add_partition_offset(&owned, partition, time)?;
            }
            let found = consumer.offsets_for_times(asked, ANSWER_WAIT_MAX)?;
            let elements = found.elements().into_iter();
            let offset = |offset| match offset {
                Offset::Offset(offset) => Some(offset),
                Offset::Beginning
                | Offset::End
                | Offset::Stored
                | Offset::Invalid
                | Offset::OffsetTail(_) => None,
            };
            Ok(elements
                .map(|e| (e.partition(), offset(e.offset())))
                .collect::<Vec<_>>())
        });
        let mut offsets: Vec<i64> = ends.iter().map(|(_, high)| *high).collect();
        let mut doubtful = Vec::new();
        for (partition, offset) in found.await? {
            let (at, partition) = (
                partition.cast_unsigned() as usize,
                partition.cast_unsigned(),
            );
            let (Some((low, high)), Some(from)) = (ends.get(at).copied(), offset) else {
                continue;
            };
            if from <= low && low < high {
                let (from, to) = (low, low + 1);
                doubtful.push(Span {
                    partition,
                    from,
                    to,
                });
            } else {
                offsets[at] = from.min(high);
            }
        }
        // Not every broker says that there is no such record in the same way: tansu 0.6 answers with the oldest one.
        let mut reader = self.reader(topic, &doubtful).await?;
        loop {
            let oldest = reader.read(doubtful.len().max(1)).await?;
            if oldest.is_empty() {
                return Ok(offsets);
            }
            for record in oldest {
                if record.produced_at.is_none_or(|produced| produced >= time) {
                    offsets[record.position.partition as usize] = record.position.offset;
                }
            }
        }
    }

    async fn reader(&self, topic: &str, spans: &[Span]) -> Result<Box<dyn Reader>, BusError> {
        let ends = self.ends(topic).await?;
        let reader = SpanReader::new(&self.consuming(READER_GROUP), topic, spans, &ends);
        Ok(Box::new(self.made(reader)?))
    }

    async fn standing(&self, topic: &str, group: &str) -> Result<Vec<Standing>, BusError> {
        let partitions = self.partitions(topic).await?;
        let consumer = self.asker(group)?;
        let owned = topic.to_owned();
        self.ask("read", topic, move |_| {
            let mut asked = TopicPartitionList::new();
            for partition in 0..partitions {
                asked.add_partition(&owned, partition.cast_signed());
            }
            let committed = consumer.committed_offsets(asked, ANSWER_WAIT_MAX)?;
            let mut standing = Vec::new();
            for element in committed.elements() {
                let (oldest, next) =
                    consumer.fetch_watermarks(&owned, element.partition(), ANSWER_WAIT_MAX)?;
                let committed = match element.offset() {
                    Offset::Offset(offset) => Some(offset),
                    Offset::Beginning
                    | Offset::End
                    | Offset::Stored
                    | Offset::Invalid
                    | Offset::OffsetTail(_) => None,
                };
                standing.push(Standing {
                    partition: element.partition().cast_unsigned(),
                    oldest,
                    committed,
                    next,
                });
            }
            Ok(standing)
        })
        .await
    }
}
