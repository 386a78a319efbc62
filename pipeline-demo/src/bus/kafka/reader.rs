//! Reads some of a topic's places, with no group.

use std::collections::BTreeMap;
use std::fmt;

use async_trait::async_trait;
use futures::FutureExt;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::member::record;
use super::unavailable;
use crate::bus::{BusError, Reader, Record, Span};

/// A consumer that assigned itself the partitions it reads.
pub(super) struct SpanReader {
    topic: String,
    consumer: StreamConsumer,
    /// The last offset to read, by partition; a partition that was read to its end is left out.
    last: BTreeMap<u32, i64>,
}

impl SpanReader {
    /// `ends` says for each partition what is kept.
    pub(super) fn new(
        config: &ClientConfig,
        topic: &str,
        spans: &[Span],
        ends: &[(i64, i64)],
    ) -> Result<Self, KafkaError> {
        let mut config = config.clone();
        config.set("enable.partition.eof", "true");
        let consumer: StreamConsumer = config.create()?;
        let mut assigned = TopicPartitionList::new();
        let mut last = BTreeMap::new();
        for span in spans {
            let Some((low, high)) = ends.get(span.partition as usize) else {
                continue;
            };
            let (from, to) = (span.from.max(*low), span.to.min(*high));
            if from < to {
                let partition = span.partition.cast_signed();
                assigned.add_partition_offset(topic, partition, Offset::Offset(from))?;
                last.insert(span.partition, to - 1);
            }
        }
        consumer.assign(&assigned)?;
        Ok(Self {
            topic: topic.to_owned(),
            consumer,
            last,
        })
    }
}

impl fmt::Debug for SpanReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpanReader")
            .field("topic", &self.topic)
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Reader for SpanReader {
    async fn read(&mut self, records_max: usize) -> Result<Vec<Record>, BusError> {
        let mut records = Vec::new();
        while !self.last.is_empty() && records.len() < records_max {
            let received = if records.is_empty() {
                self.consumer.recv().await
            } else {
                match self.consumer.recv().now_or_never() {
                    Some(received) => received,
                    None => break,
                }
            };
            // Nothing is awaited between here and the return, or the next record that there is already.
            match received {
                Ok(message) => {
                    let record = record(&message);
                    let partition = record.position.partition;
                    let Some(last) = self.last.get(&partition).copied() else {
                        continue;
                    };
                    if record.position.offset >= last {
                        self.last.remove(&partition);
                    }
                    if record.position.offset <= last {
                        records.push(record);
                    }
                }
                // Its last places hold no record.
                Err(KafkaError::PartitionEOF(partition)) => {
                    self.last.remove(&partition.cast_unsigned());
                }
                Err(error) if records.is_empty() => {
                    return Err(unavailable("read", &self.topic)(error));
                }
                // One that lasts shows again in the next call.
                Err(_) => break,
            }
        }
        Ok(records)
    }
}
