//! One member of a consumer group.
//!
//! A task of its own polls librdkafka and keeps a small supply of records, so that the group hears of this member however
//! long its owner is busy, and never takes its partitions for want of a poll. While the supply is full it is not polled;
//! if that lasts, the partitions are paused, and polling goes on for the group's news alone.
//!
//! Rebalancing is cooperative: the partitions that stay are not interrupted. A partition that the group wants back is
//! first taken out of the supply; then its owner is told, finishes or leaves what it took, commits, and gives it up; only
//! then does the group hear that it is free. All this has a time limit.
//!
//! A topic may be deleted and made anew while it is read. librdkafka goes to its beginning, where the broker says that there is no
//! such offset any more. So a partition begins anew when a record comes that is younger than all before and stands at an older
//! offset; else it would be taken for one that was fetched again.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt};
use jiff::Timestamp;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::supply::Shared;
use super::unavailable;
use crate::bus::{BusError, Consumer, Offsets, Polled, Position, Record};

/// How long librdkafka is not polled while the supply is full. Below this a pause would cost more than it saves: what was
/// fetched ahead is thrown away by it. Far below `max.poll.interval.ms`, which is 5 minutes.
const UNPOLLED_MAX: Duration = Duration::from_secs(2);

/// How long an owner may take to give up a partition that the group wants back. Longer than a feeder waits for its tasks;
/// shorter than the others would wait for this member.
const RELEASE_WAIT_MAX: Duration = Duration::from_secs(20);

/// After how long with no partition a member leaves the group and joins it again; twice as long each time, up to
/// [`REJOIN_MAX`]. A broker may count a member that died among those who share, and forget to share anew when it finds out
/// (tansu 0.6 does). Where there are more members than partitions it moves nothing.
const REJOIN_FIRST: Duration = Duration::from_secs(15);

/// Longest time between two such attempts.
const REJOIN_MAX: Duration = Duration::from_secs(600);

/// How long leaving the group may take. The broker need not be there; then the group notices by itself.
const LEAVE_WAIT_MAX: Duration = Duration::from_secs(5);

/// How long librdkafka may take to go to the beginning of a partition.
const SEEK_WAIT_MAX: Duration = Duration::from_secs(2);

/// How long it is left alone when it could not.
const SEEK_PAUSE: Duration = Duration::from_secs(1);

/// A member of a group.
pub(super) struct Member {
    topic: String,
    shared: Arc<Shared>,
    offsets: Arc<MemberOffsets>,
    stop: CancellationToken,
    poller: Option<JoinHandle<()>>,
}

type GroupConsumer = StreamConsumer<Context>;

impl Member {
    /// Joins the group that `config` names.
    pub(super) fn join(config: &ClientConfig, topic: &str) -> Result<Self, KafkaError> {
        let shared = Arc::new(Shared::default());
        let context = Context(shared.clone());
        let consumer: GroupConsumer = config.create_with_context(context)?;
        consumer.subscribe(&[topic])?;
        let consumer = Arc::new(consumer);
        let stop = CancellationToken::new();
        let poller = Poller {
            topic: topic.to_owned(),
            consumer: consumer.clone(),
            shared: shared.clone(),
            stop: stop.clone(),
        };
        Ok(Self {
            topic: topic.to_owned(),
            offsets: Arc::new(MemberOffsets {
                topic: topic.to_owned(),
                consumer,
                shared: shared.clone(),
            }),
            shared,
            stop,
            poller: Some(tokio::spawn(poller.run())),
        })
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topic, .. } = self;
        f.debug_struct("Member")
            .field("topic", topic)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Consumer for Member {
    async fn poll(&mut self, records_max: usize) -> Result<Polled, BusError> {
        loop {
            // Asked for before looking, so that nothing that comes in between is missed.
            let news = self.shared.supplied.notified();
            if let Some(polled) = self.shared.take(records_max) {
                return polled.map_err(unavailable("read", &self.topic));
            }
            news.await;
        }
    }

    fn release(&mut self, partitions: &[u32]) {
        self.shared.state().release(partitions);
        self.shared.wanted.notify_one();
    }

    fn offsets(&self) -> Arc<dyn Offsets> {
        self.offsets.clone()
    }

    async fn close(mut self: Box<Self>) {
        let poller = self.poller.take();
        // From here on it is the poller who holds the client, and who takes leave of the group.
        drop(self);
        if let Some(poller) = poller
            && timeout(LEAVE_WAIT_MAX, poller).await.is_err()
        {
            info!("kafka: the group was left without a farewell, its broker does not answer");
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.shared.state().closing = true;
        self.stop.cancel();
    }
}

/// The group's callbacks; they run on the poller's task, inside a poll.
struct Context(Arc<Shared>);

impl ClientContext for Context {}

impl ConsumerContext for Context {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        code: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let partitions = partitions_of(list);
        let assigned = code == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        info!(
            assigned,
            ?partitions,
            "kafka: the group shares its partitions"
        );
        if assigned {
            self.0.state().assigned(&partitions);
            if let Err(error) = consumer.incremental_assign(list) {
                warn!(%error, "kafka: the partitions could not be taken");
            }
            return;
        }
        let lost = consumer.assignment_lost();
        let mut state = self.0.state();
        state.withdraw(&partitions);
        if state.closing || lost {
            if lost && !state.closing {
                state.news.push_back(Polled::Lost(partitions));
                self.0.supplied.notify_one();
            }
            drop(state);
            if let Err(error) = consumer.incremental_unassign(list) {
                warn!(%error, "kafka: the partitions could not be given up");
            }
            return;
        }
        state.leaving.extend(&partitions);
        state.unreleased.extend(&partitions);
        state.release_until = Some(Instant::now() + RELEASE_WAIT_MAX);
        state.news.push_back(Polled::Revoked(partitions));
        self.0.supplied.notify_one();
    }
}

fn partitions_of(list: &TopicPartitionList) -> Vec<u32> {
    let elements = list.elements();
    let partitions = elements.iter().map(|e| e.partition().cast_unsigned());
    partitions.collect()
}

/// The task that polls.
struct Poller {
    topic: String,
    consumer: Arc<GroupConsumer>,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

impl Poller {
    async fn run(self) {
        self.poll_until_stopped().await;
        // Nobody commits any more, so what the group waits for is given up.
        {
            let mut state = self.shared.state();
            state.release_until = state.release_until.map(|_| Instant::now());
        }
        self.settle();
        // The last one who holds the client waits for its farewell to the group.
        tokio::task::spawn_blocking(move || drop(self)).await.ok();
    }

    async fn poll_until_stopped(&self) {
        let mut messages = self.consumer.stream();
        let mut rejoin = Rejoin::new();
        let mut paused = false;
        let mut full_since: Option<Instant> = None;
        while !self.stop.is_cancelled() {
            let wanted = self.shared.wanted.notified();
            self.settle();
            let anew = std::mem::take(&mut self.shared.state().anew);
            self.begin_anew(anew).await;
            let (room, changed, release_until, idle) = {
                let mut state = self.shared.state();
                let changed = std::mem::take(&mut state.changed);
                let idle = state.owned.is_empty() && state.leaving.is_empty();
                (state.has_room(), changed, state.release_until, idle)
            };
            if rejoin.is_due(idle, Instant::now()) {
                self.rejoin();
            }
            if room {
                full_since = None;
                if paused {
                    self.set_paused(false);
                    paused = false;
                }
            } else {
                let since = *full_since.get_or_insert_with(Instant::now);
                if (paused && changed) || (!paused && since.elapsed() >= UNPOLLED_MAX) {
                    self.set_paused(true);
                    paused = true;
                }
            }
            let release = async {
                match release_until {
                    // While commits are on their way, it looks again and again.
                    Some(until) => sleep_until(until.min(Instant::now() + SETTLE_EVERY)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = wanted => {}
                () = release => {}
                () = sleep_until(rejoin.at), if idle => {}
                message = messages.next(), if room || paused => {
                    self.keep(message);
                    // What is there already is taken at once, and the owner is woken once.
                    while self.shared.state().has_room()
                        && let Some(message) = messages.next().now_or_never()
                    {
                        self.keep(message);
                    }
                    self.shared.supplied.notify_one();
                }
                () = sleep(UNPOLLED_MAX), if !room && !paused => {}
            }
        }
    }

    fn keep(&self, message: Option<Result<BorrowedMessage<'_>, KafkaError>>) {
        let mut state = self.shared.state();
        match message {
            Some(Ok(message)) => state.add(record(&message)),
            Some(Err(error)) => state.error = Some(error),
            None => {}
        }
    }

    /// Goes to the beginning of partitions whose topic is another one than it was. Nothing is polled meanwhile, so nothing that
    /// comes from there is missed.
    async fn begin_anew(&self, partitions: impl IntoIterator<Item = u32>) {
        for partition in partitions {
            warn!(
                topic = self.topic,
                partition,
                "kafka: the topic was made anew, or lost what was read of it; reading the partition from its beginning"
            );
            let (consumer, topic) = (self.consumer.clone(), self.topic.clone());
            let going = tokio::task::spawn_blocking(move || {
                let (partition, beginning) = (partition.cast_signed(), Offset::Beginning);
                consumer.seek(&topic, partition, beginning, SEEK_WAIT_MAX)
            });
            match going.await {
                Ok(Ok(())) => {
                    self.shared.state().begin_anew(partition);
                    self.shared.supplied.notify_one();
                }
                Ok(Err(error)) => {
                    warn!(%error, partition, "kafka: its beginning could not be gone to, trying again");
                    self.shared.state().anew.insert(partition);
                    sleep(SEEK_PAUSE).await;
                    self.shared.wanted.notify_one();
                }
                Err(_) => {}
            }
        }
    }

    /// Tells the group what was given up.
    fn settle(&self) {
        let Some(partitions) = self.shared.state().given_up(Instant::now()) else {
            return;
        };
        debug!(?partitions, "kafka: given up");
        if let Err(error) = self.consumer.incremental_unassign(&self.list(&partitions)) {
            warn!(%error, "kafka: the partitions could not be given up");
        }
    }

    fn rejoin(&self) {
        info!(
            topic = self.topic,
            "kafka: no partitions so far, the group is joined again"
        );
        self.consumer.unsubscribe();
        if let Err(error) = self.consumer.subscribe(&[&self.topic]) {
            warn!(%error, "kafka: the topic could not be subscribed to");
        }
    }

    fn set_paused(&self, paused: bool) {
        let partitions: Vec<u32> = self.shared.state().owned.keys().copied().collect();
        let list = self.list(&partitions);
        let done = if paused {
            self.consumer.pause(&list)
        } else {
            self.consumer.resume(&list)
        };
        debug!(paused, ?partitions, "kafka: back-pressure");
        if let Err(error) = done {
            warn!(%error, paused, "kafka: the partitions could not be paused or resumed");
        }
    }

    fn list(&self, partitions: &[u32]) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(&self.topic, partition.cast_signed());
        }
        list
    }
}

/// When a member that has nothing joins its group again. Pure.
#[derive(Debug)]
struct Rejoin {
    at: Instant,
    wait: Duration,
}

impl Rejoin {
    fn new() -> Self {
        Self {
            at: Instant::now() + REJOIN_FIRST,
            wait: REJOIN_FIRST,
        }
    }

    /// `idle`: the member has no partition.
    fn is_due(&mut self, idle: bool, now: Instant) -> bool {
        if !idle {
            self.wait = REJOIN_FIRST;
            self.at = now + self.wait;
            return false;
        }
        if now < self.at {
            return false;
        }
        self.wait = (self.wait * 2).min(REJOIN_MAX);
        self.at = now + self.wait;
        true
    }
}

/// How often it is looked whether the last commit before a release has ended.
const SETTLE_EVERY: Duration = Duration::from_millis(20);

struct MemberOffsets {
    topic: String,
    consumer: Arc<GroupConsumer>,
    shared: Arc<Shared>,
}

impl fmt::Debug for MemberOffsets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemberOffsets")
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}

/// A commit on its way.
struct Committing(Arc<Shared>);

impl Drop for Committing {
    fn drop(&mut self) {
        self.0.state().commits -= 1;
        self.0.wanted.notify_one();
    }
}

#[async_trait]
impl Offsets for MemberOffsets {
    async fn commit(&self, next: &[Position]) -> Result<(), BusError> {
        let mut offsets = TopicPartitionList::new();
        let committing = {
            let mut state = self.shared.state();
            for Position { partition, offset } in next {
                let ours = state.owned.contains_key(partition)
                    || (state.unreleased.contains(partition) && state.release_until.is_some());
                if ours {
                    let offset = Offset::Offset(*offset);
                    offsets
                        .add_partition_offset(&self.topic, partition.cast_signed(), offset)
                        .map_err(unavailable("commit", &self.topic))?;
                }
            }
            if offsets.count() == 0 {
                return Ok(());
            }
            state.commits += 1;
            Committing(self.shared.clone())
        };
        let consumer = self.consumer.clone();
        let committed = tokio::task::spawn_blocking(move || {
            // Held here, because the call goes on when its caller is dropped.
            let _committing = committing;
            consumer.commit(&offsets, CommitMode::Sync)
        });
        let committed = committed.await.map_err(|_| BusError::Closed)?;
        committed.map_err(unavailable("commit", &self.topic))
    }
}

pub(super) fn record(message: &BorrowedMessage<'_>) -> Record {
    let produced_at = message.timestamp().to_millis();
    Record {
        position: Position {
            partition: message.partition().cast_unsigned(),
            offset: message.offset(),
        },
        key: message.key().map(Bytes::copy_from_slice),
        value: message
            .payload()
            .map_or_else(Bytes::new, Bytes::copy_from_slice),
        produced_at: produced_at.and_then(|ms| Timestamp::from_millisecond(ms).ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_without_partitions_joins_again_ever_more_rarely() {
        let mut rejoin = Rejoin::new();
        let start = Instant::now();
        let mut due = Vec::new();
        for second in 0..200 {
            if rejoin.is_due(true, start + Duration::from_secs(second)) {
                due.push(second);
            }
        }
        assert!(due[0].abs_diff(15) <= 1, "{due:?}");
        assert_eq!(due[1] - due[0], 30, "{due:?}");
        assert_eq!(due[2] - due[1], 60, "{due:?}");
        let later = start + Duration::from_secs(1_000);
        assert!(!rejoin.is_due(false, later));
        assert!(!rejoin.is_due(true, later + Duration::from_secs(14)));
        assert!(rejoin.is_due(true, later + Duration::from_secs(15)));
    }
}
