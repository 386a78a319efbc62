//! Apache Kafka, or whatever speaks its protocol, by librdkafka.
//!
//! The consumer assigns itself all partitions of its topic and uses the group only to keep the offsets. Sharing the
//! partitions among the members of a group comes with the pipeline's scaling.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::FromClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use rdkafka::util::Timeout;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::{
    BUS_RECORD_BYTES_MAX, Bus, BusError, Consumer, NewRecord, PARTITIONS, Position, Record,
    Standing, check_size,
};

/// How long a question to the brokers (metadata, offsets, commits) may take.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);

/// How long librdkafka itself tries to deliver a record before it says so; then whoever produces tries again.
const DELIVERY_WAIT_MAX: Duration = Duration::from_secs(30);

/// How long a record waits for company, for larger batches; far below what a person or the judge notices.
const LINGER_MS: &str = "2";

/// What a consumer fetches ahead, in KiB; librdkafka's default of 64 MiB is much for one small process.
const FETCHED_AHEAD_KIB: &str = "16384";

/// Kafka's brokers.
pub struct Kafka {
    brokers: String,
    producer: FutureProducer,
    /// Clients that only ask for the offsets of a group, by group; they never consume.
    askers: Mutex<BTreeMap<String, Arc<BaseConsumer>>>,
}

impl fmt::Debug for Kafka {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { brokers, .. } = self;
        f.debug_struct("Kafka").field("brokers", brokers).finish()
    }
}

impl Kafka {
    /// A client of the brokers at `HOST:PORT[,HOST:PORT…]`. Connections are made when they are needed, and again when
    /// they break.
    ///
    /// # Errors
    /// When librdkafka refuses the configuration.
    pub fn connect(brokers: &str) -> Result<Self, BusError> {
        let producer = config(brokers)
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
            .create()
            .map_err(|source| BusError::Client {
                brokers: brokers.to_owned(),
                source: source.into(),
            })?;
        Ok(Self {
            brokers: brokers.to_owned(),
            producer,
            askers: Mutex::default(),
        })
    }

    /// Runs a blocking question on a thread of its own.
    async fn ask<T: Send + 'static>(
        &self,
        action: &'static str,
        topic: &str,
        question: impl FnOnce(&FutureProducer) -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<T, BusError> {
        let producer = self.producer.clone();
        let answer = tokio::task::spawn_blocking(move || question(&producer));
        let answer = answer.await.map_err(|_| BusError::Closed)?;
        answer.map_err(unavailable(action, topic))
    }

    fn asker(&self, group: &str) -> Result<Arc<BaseConsumer>, BusError> {
        let mut askers = self.askers.lock().expect("nothing here panics");
        if let Some(asker) = askers.get(group) {
            return Ok(asker.clone());
        }
        let asker: Arc<BaseConsumer> = Arc::new(self.new_consumer(group)?);
        askers.insert(group.to_owned(), asker.clone());
        Ok(asker)
    }

    fn new_consumer<C: FromClientConfig>(&self, group: &str) -> Result<C, BusError> {
        config(&self.brokers)
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            .set("queued.max.messages.kbytes", FETCHED_AHEAD_KIB)
            .create()
            .map_err(|source| BusError::Client {
                brokers: self.brokers.clone(),
                source: source.into(),
            })
    }
}

fn config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("client.id", "pipeline-demo")
        // A broker that comes back should be found quickly; the default waits up to 10 s.
        .set("reconnect.backoff.max.ms", "1000");
    config
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
            Ok(_) => return Ok(()),
            Err(BusError::UnknownTopic { .. }) => {}
            Err(error) => return Err(error),
        }
        let admin: AdminClient<DefaultClientContext> = config(&self.brokers)
            .create()
            .map_err(unavailable("create", topic))?;
        // -1: as many copies as the brokers' own default says.
        let wanted = NewTopic::new(topic, PARTITIONS.cast_signed(), TopicReplication::Fixed(-1));
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
        let delivered = self.producer.send(sent, queue_wait_max).await;
        let delivered = delivered.map_err(|(error, _)| unavailable("append to", topic)(error))?;
        Ok(Position {
            partition: delivered.partition.cast_unsigned(),
            offset: delivered.offset,
        })
    }

    async fn consumer(&self, topic: &str, group: &str) -> Result<Box<dyn Consumer>, BusError> {
        let partitions = self.partitions(topic).await?;
        let consumer: StreamConsumer = self.new_consumer(group)?;
        let mut assigned = TopicPartitionList::new();
        for partition in 0..partitions {
            assigned
                .add_partition_offset(topic, partition.cast_signed(), Offset::Stored)
                .map_err(unavailable("consume", topic))?;
        }
        consumer
            .assign(&assigned)
            .map_err(unavailable("consume", topic))?;
        Ok(Box::new(KafkaConsumer {
            consumer: Arc::new(consumer),
            topic: topic.to_owned(),
        }))
    }

    async fn lag(&self, topic: &str, group: &str) -> Result<u64, BusError> {
        let partitions = self.partitions(topic).await?;
        let consumer = self.asker(group)?;
        let owned = topic.to_owned();
        self.ask("read", topic, move |_| {
            let mut asked = TopicPartitionList::new();
            for partition in 0..partitions {
                asked.add_partition(&owned, partition.cast_signed());
            }
            let committed = consumer.committed_offsets(asked, ANSWER_WAIT_MAX)?;
            let mut lag = 0;
            for element in committed.elements() {
                let (low, high) =
                    consumer.fetch_watermarks(&owned, element.partition(), ANSWER_WAIT_MAX)?;
                let from = match element.offset() {
                    Offset::Offset(offset) => offset.max(low),
                    Offset::Beginning
                    | Offset::End
                    | Offset::Stored
                    | Offset::Invalid
                    | Offset::OffsetTail(_) => low,
                };
                lag += (high - from).max(0).cast_unsigned();
            }
            Ok(lag)
        })
        .await
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

struct KafkaConsumer {
    consumer: Arc<StreamConsumer>,
    topic: String,
}

impl fmt::Debug for KafkaConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topic, .. } = self;
        f.debug_struct("KafkaConsumer")
            .field("topic", topic)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Consumer for KafkaConsumer {
    async fn next(&mut self, records_max: usize) -> Result<Vec<Record>, BusError> {
        let received = self.consumer.recv().await;
        // Nothing is awaited from here on: a call that is dropped took nothing.
        let mut records = vec![record(&received.map_err(unavailable("read", &self.topic))?)];
        while records.len() < records_max {
            match self.consumer.recv().now_or_never() {
                Some(Ok(message)) => records.push(record(&message)),
                // An error that lasts shows again in the next call.
                Some(Err(_)) | None => break,
            }
        }
        Ok(records)
    }

    async fn commit(&mut self, next: &[Position]) -> Result<(), BusError> {
        if next.is_empty() {
            return Ok(());
        }
        let mut offsets = TopicPartitionList::new();
        for Position { partition, offset } in next {
            offsets
                .add_partition_offset(
                    &self.topic,
                    partition.cast_signed(),
                    Offset::Offset(*offset),
                )
                .map_err(unavailable("commit", &self.topic))?;
        }
        let consumer = self.consumer.clone();
        let committed =
            tokio::task::spawn_blocking(move || consumer.commit(&offsets, CommitMode::Sync));
        let committed = committed.await.map_err(|_| BusError::Closed)?;
        committed.map_err(unavailable("commit", &self.topic))
    }
}

fn record(message: &rdkafka::message::BorrowedMessage<'_>) -> Record {
    Record {
        position: Position {
            partition: message.partition().cast_unsigned(),
            offset: message.offset(),
        },
        key: message.key().map(Bytes::copy_from_slice),
        value: message
            .payload()
            .map_or_else(Bytes::new, Bytes::copy_from_slice),
    }
}
