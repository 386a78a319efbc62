//! Reads the local log: the one consumer of a group, and readers of some of its places.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};

use super::writer::Write;
use super::{POLL, Shared, ask, unavailable};
use crate::bus::{BusError, Consumer, Offsets, Polled, Position, Reader, Record, Span};

/// Records a consumer reads ahead at most: 100 KB of tweets, 46 MB if each were as large as a record may be.
const READ_AHEAD_MAX: usize = 128;

/// A group's one consumer.
#[derive(Debug)]
pub(super) struct LocalConsumer {
    shared: Arc<Shared>,
    writes: mpsc::Sender<Write>,
    topic: String,
    topic_id: i64,
    group: String,
    /// Read and not taken yet.
    ahead: VecDeque<Record>,
    /// The next offset to read, by partition.
    next: Vec<i64>,
    /// The partition to look at first, so that a busy one cannot starve the others.
    first: usize,
    /// The sum of the heads when all was read.
    heads_read: Option<i64>,
    /// Until when there is no need to look, unless this process appends.
    idle_until: Option<Instant>,
    appended: watch::Receiver<u64>,
    /// Held while this consumer lives: a group has one.
    _lock: File,
}

impl LocalConsumer {
    pub(super) fn new(
        shared: Arc<Shared>,
        writes: mpsc::Sender<Write>,
        (topic, topic_id): (&str, i64),
        group: &str,
        next: Vec<i64>,
        lock: File,
    ) -> Self {
        Self {
            appended: shared.appended.subscribe(),
            shared,
            writes,
            topic: topic.to_owned(),
            topic_id,
            group: group.to_owned(),
            ahead: VecDeque::new(),
            next,
            first: 0,
            heads_read: None,
            idle_until: None,
            _lock: lock,
        }
    }
}

#[async_trait]
impl Consumer for LocalConsumer {
    async fn poll(&mut self, records_max: usize) -> Result<Polled, BusError> {
        if records_max == 0 {
            // The partitions are this consumer's for as long as it lives.
            std::future::pending::<()>().await;
        }
        while self.ahead.is_empty() {
            if let Some(until) = self.idle_until {
                // Whether it was woken or the time is over: it looks again.
                timeout_at(until, self.appended.changed()).await.ok();
                self.idle_until = None;
            }
            self.look().await?;
        }
        // Nothing is awaited from here on: a call that is dropped took nothing.
        let taken = records_max.clamp(1, self.ahead.len().max(1));
        Ok(Polled::Records(self.ahead.drain(..taken).collect()))
    }

    fn release(&mut self, _partitions: &[u32]) {}

    fn offsets(&self) -> Arc<dyn Offsets> {
        Arc::new(LocalOffsets {
            writes: self.writes.clone(),
            topic_id: self.topic_id,
            group: self.group.clone(),
        })
    }

    async fn close(self: Box<Self>) {}
}

#[derive(Debug)]
struct LocalOffsets {
    writes: mpsc::Sender<Write>,
    topic_id: i64,
    group: String,
}

#[async_trait]
impl Offsets for LocalOffsets {
    async fn commit(&self, next: &[Position]) -> Result<(), BusError> {
        if next.is_empty() {
            return Ok(());
        }
        ask(&self.writes, |done| Write::Commit {
            topic: self.topic_id,
            group: self.group.clone(),
            next: next.to_vec(),
            done,
        })
        .await
    }
}

impl LocalConsumer {
    /// Reads ahead what there is; nothing is changed before all of it is read.
    async fn look(&mut self) -> Result<(), BusError> {
        let heads = self.heads().await?;
        let records = match self.heads_read {
            Some(read) if read == heads => Vec::new(),
            Some(_) | None => self.read().await?,
        };
        if records.is_empty() {
            self.heads_read = Some(heads);
            self.idle_until = Some(Instant::now() + POLL);
            return Ok(());
        }
        for Record { position, .. } in &records {
            self.next[position.partition as usize] = position.offset + 1;
        }
        self.first = (self.first + 1) % self.next.len().max(1);
        self.heads_read = None;
        self.ahead.extend(records);
        Ok(())
    }

    async fn heads(&self) -> Result<i64, BusError> {
        sqlx::query_scalar("SELECT coalesce(sum(next), 0) FROM heads WHERE topic = ?")
            .bind(self.topic_id)
            .fetch_one(&self.shared.readers)
            .await
            .map_err(unavailable("read", &self.topic))
    }

    async fn read(&self) -> Result<Vec<Record>, BusError> {
        let mut records = Vec::new();
        for turn in 0..self.next.len() {
            let partition = (self.first + turn) % self.next.len();
            let wanted = READ_AHEAD_MAX.saturating_sub(records.len());
            if wanted == 0 {
                break;
            }
            let span = Span {
                partition: partition as u32,
                from: self.next[partition],
                to: i64::MAX,
            };
            let topic = (self.topic.as_str(), self.topic_id);
            records.extend(self.shared.records(topic, span, wanted).await?);
        }
        Ok(records)
    }
}

/// Reads some of a topic's places, one partition after the other.
#[derive(Debug)]
pub(super) struct LocalReader {
    shared: Arc<Shared>,
    topic: String,
    topic_id: i64,
    left: VecDeque<Span>,
}

impl LocalReader {
    pub(super) fn new(shared: Arc<Shared>, (topic, topic_id): (&str, i64), spans: &[Span]) -> Self {
        Self {
            shared,
            topic: topic.to_owned(),
            topic_id,
            left: spans.iter().copied().collect(),
        }
    }
}

#[async_trait]
impl Reader for LocalReader {
    async fn read(&mut self, records_max: usize) -> Result<Vec<Record>, BusError> {
        let wanted = records_max.clamp(1, READ_AHEAD_MAX);
        while let Some(span) = self.left.front_mut() {
            let topic = (self.topic.as_str(), self.topic_id);
            let records = self.shared.records(topic, *span, wanted).await?;
            match records.last() {
                Some(last) => {
                    span.from = last.position.offset + 1;
                    return Ok(records);
                }
                None => {
                    self.left.pop_front();
                }
            }
        }
        Ok(Vec::new())
    }
}
