//! The feeder's loop: takes records, keeps each key's order, commits what is done, and hands partitions over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::FeederError;
use super::counts::Counts;
use super::delivery::{Delivered, Delivery};
use super::lanes::{Lane, Lanes};
use super::pinned::PinError;
use super::progress::Progress;
use super::slots::{Slot, Slots};
use crate::backoff::wait_after;
use crate::bus::{BusError, Consumer, Offsets, Polled, Position, Record};
use crate::telemetry::chain;

/// How often offsets are committed: what is done again after a kill is at most what was done in this time.
const COMMIT_EVERY: Duration = Duration::from_millis(100);

/// Records taken beyond the oldest that is not done. One record may be held back for minutes while others go on: half a
/// minute of 2,500 a second. This bounds what a kill lets be done again, which is stored once all the same, and the memory
/// for it: 16 bytes a record, beside those that wait for one of their key.
const TAKEN_MAX: usize = 65_536;

/// Bytes of records that wait for one of their key. Tweets of 400 bytes never come near it.
const WAITING_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Answers on their way to the bus, beside the tasks in flight: 50 ms of a bus at 20,000 a second.
const APPENDING_MAX: usize = 1_024;

/// How long what was taken may take once the feeder is told to stop. What is not done then is done again next time.
const STOP_WAIT_MAX: Duration = Duration::from_secs(5);

/// How long tasks in flight may take when the group wants their partition back. Then they are left to its next owner.
const FINISH_WAIT_MAX: Duration = Duration::from_secs(5);

/// How long a partition that the group wants back may wait for its last commit. The bus waits for 20 s.
const HAND_OVER_MAX: Duration = Duration::from_secs(10);

pub(super) struct Feeding<'a> {
    pub(super) delivery: Arc<Delivery>,
    pub(super) counts: &'a Counts,
    pub(super) in_flight_max: usize,
    consumer: Box<dyn Consumer>,
    offsets: Arc<dyn Offsets>,
    progress: Progress,
    lanes: Lanes,
    slots: Arc<Slots>,
    partitions: BTreeMap<u32, Partition>,
    /// Partitions that were taken so far: tells a partition from the same one that came back.
    taken_over: u64,
    tasks: JoinSet<Result<Ended, BusError>>,
    commit: Option<Commit>,
    /// Why no task may be sent any more.
    not_sent: Option<PinError>,
}

/// A partition of which records were taken.
struct Partition {
    epoch: u64,
    in_flight: usize,
    /// Cancelled when what is in flight must be left.
    abandon: CancellationToken,
    /// Since when the group wants it back.
    revoked_at: Option<Instant>,
}

/// A task's end.
struct Ended {
    position: Position,
    epoch: u64,
    lane: Option<Lane>,
    done: bool,
    not_sent: Option<PinError>,
}

/// Offsets on their way to the bus.
struct Commit {
    next: Vec<Position>,
    /// Partitions to give up afterwards.
    leaving: Vec<u32>,
    task: JoinHandle<Result<(), BusError>>,
}

impl<'a> Feeding<'a> {
    pub(super) fn new(
        delivery: Arc<Delivery>,
        counts: &'a Counts,
        in_flight_max: usize,
        consumer: Box<dyn Consumer>,
    ) -> Self {
        Self {
            delivery,
            counts,
            in_flight_max,
            offsets: consumer.offsets(),
            consumer,
            progress: Progress::default(),
            lanes: Lanes::default(),
            slots: Arc::default(),
            partitions: BTreeMap::new(),
            taken_over: 0,
            tasks: JoinSet::new(),
            commit: None,
            not_sent: None,
        }
    }

    /// Feeds until `shutdown`, then finishes what it can, commits it, and leaves the group.
    pub(super) async fn run(mut self, shutdown: CancellationToken) -> Result<(), FeederError> {
        let fed = self.feed(&shutdown).await;
        let ended = match fed {
            Ok(()) => self.finish(&shutdown).await,
            Err(error @ FeederError::Pin { .. }) => {
                // What is done is committed; what waits is not sent.
                self.lanes = Lanes::default();
                self.finish(&shutdown).await.and(Err(error))
            }
            Err(error) => Err(error),
        };
        self.counts.in_flight.set(0);
        self.consumer.close().await;
        ended
    }

    async fn feed(&mut self, shutdown: &CancellationToken) -> Result<(), FeederError> {
        let mut save = interval(COMMIT_EVERY);
        save.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failures = 0;
        let mut resume_at = Instant::now();
        while !shutdown.is_cancelled() {
            if let Some(reason) = self.not_sent.take() {
                return Err(FeederError::Pin { reason });
            }
            // All that have ended at once: a turn for each of them would cost as much as a turn for all.
            while let Some(ended) = self.tasks.try_join_next() {
                self.ended(ended??);
            }
            self.send_ready(shutdown);
            let room = self.room();
            let hurry = self.next_deadline();
            let next = async {
                // Empty while the bus is well: the wait after an error must not be lost with the other branches.
                sleep_until(resume_at).await;
                self.consumer.poll(room).await
            };
            tokio::select! {
                () = shutdown.cancelled() => {}
                Some(ended) = self.tasks.join_next() => self.ended(ended??),
                () = self.slots.freed() => {}
                saved = saved(&mut self.commit) => self.saved(saved)?,
                polled = next => match polled {
                    Ok(polled) => {
                        failures = 0;
                        self.polled(polled);
                    }
                    Err(error) if error.is_transient() => {
                        failures += 1;
                        warn!(error = chain(&error), failures, "feed: the bus gave nothing, trying again");
                        resume_at = Instant::now() + wait_after(failures, super::GROUP);
                    }
                    Err(error) => return Err(error.into()),
                },
                _ = save.tick() => self.save(),
                () = sleep_until(hurry.unwrap_or(resume_at)), if hurry.is_some() => self.hurry(),
            }
            self.counts.in_flight.set(self.progress.unfinished() as i64);
        }
        Ok(())
    }

    /// How many records may be taken.
    fn room(&self) -> usize {
        if self.lanes.waiting_bytes() >= WAITING_BYTES_MAX {
            return 0;
        }
        let idle = self.idle();
        let idle = idle.saturating_sub(self.lanes.ready());
        idle.min(TAKEN_MAX.saturating_sub(self.progress.taken()))
    }

    /// How many tasks more may be sent.
    fn idle(&self) -> usize {
        let sending = self.in_flight_max.saturating_sub(self.slots.busy());
        let appending = (self.in_flight_max + APPENDING_MAX).saturating_sub(self.tasks.len());
        sending.min(appending)
    }

    fn polled(&mut self, polled: Polled) {
        match polled {
            Polled::Records(records) => {
                for record in records {
                    self.progress.take(record.position);
                    self.partition(record.position.partition);
                    self.lanes.take(record);
                }
            }
            Polled::Revoked(partitions) => {
                info!(?partitions, "feed: the group wants partitions back");
                for partition in partitions {
                    self.lanes.forget(partition);
                    self.partition(partition).revoked_at = Some(Instant::now());
                }
                self.save();
            }
            Polled::Lost(partitions) => {
                warn!(
                    ?partitions,
                    "feed: partitions were lost, what is in flight of them is done again elsewhere"
                );
                for partition in partitions {
                    self.forget(partition);
                }
            }
            Polled::Anew(partitions) => {
                warn!(
                    ?partitions,
                    "feed: the topic was deleted and made anew, these partitions go on from their beginning"
                );
                self.counts.anew.inc_by(partitions.len() as u64);
                for partition in partitions {
                    // What is in flight ends as it may: nobody else has it. The offsets are no longer those of the topic.
                    self.lanes.forget(partition);
                    self.progress.forget(partition);
                    self.partitions.remove(&partition);
                }
            }
        }
    }

    fn partition(&mut self, partition: u32) -> &mut Partition {
        let taken_over = &mut self.taken_over;
        self.partitions.entry(partition).or_insert_with(|| {
            *taken_over += 1;
            Partition {
                epoch: *taken_over,
                in_flight: 0,
                abandon: CancellationToken::new(),
                revoked_at: None,
            }
        })
    }

    fn forget(&mut self, partition: u32) {
        self.lanes.forget(partition);
        self.progress.forget(partition);
        if let Some(partition) = self.partitions.remove(&partition) {
            partition.abandon.cancel();
        }
    }

    /// Sends what may be sent, as far as there is room in flight.
    fn send_ready(&mut self, shutdown: &CancellationToken) {
        while self.idle() > 0
            && let Some(record) = self.lanes.next()
        {
            let partition = self.partition(record.position.partition);
            partition.in_flight += 1;
            let (epoch, abandon) = (partition.epoch, partition.abandon.clone());
            let (delivery, stop) = (self.delivery.clone(), shutdown.clone());
            let slot = self.slots.take();
            self.tasks
                .spawn(task(delivery, record, slot, epoch, abandon, stop));
        }
    }

    fn ended(&mut self, ended: Ended) {
        let Ended {
            position,
            epoch,
            lane,
            done,
            not_sent,
        } = ended;
        if not_sent.is_some() {
            self.not_sent = not_sent;
        }
        let Some(partition) = self.partitions.get_mut(&position.partition) else {
            return;
        };
        if partition.epoch != epoch {
            return;
        }
        partition.in_flight -= 1;
        let last_of_revoked = partition.revoked_at.is_some() && partition.in_flight == 0;
        if done {
            self.progress.done(position);
            if let Some(lane) = lane {
                self.lanes.done(lane);
            }
        }
        if last_of_revoked {
            self.save();
        }
    }

    /// Commits what is done, and gives up afterwards what the group wants back and nothing is in flight of.
    fn save(&mut self) {
        if self.commit.is_some() {
            return;
        }
        let next = self.progress.to_commit();
        let idle = |(partition, state): (&u32, &Partition)| {
            (state.revoked_at.is_some() && state.in_flight == 0).then_some(*partition)
        };
        let leaving: Vec<u32> = self.partitions.iter().filter_map(idle).collect();
        if next.is_empty() && leaving.is_empty() {
            return;
        }
        let (offsets, committed) = (self.offsets.clone(), next.clone());
        let task = tokio::spawn(async move { offsets.commit(&committed).await });
        self.commit = Some(Commit {
            next,
            leaving,
            task,
        });
    }

    /// A commit has ended. What could not be committed now is committed with the next.
    fn saved(&mut self, (commit, saved): (Commit, Result<(), BusError>)) -> Result<(), BusError> {
        match saved {
            Ok(()) => {
                self.progress.committed(&commit.next);
                for partition in &commit.leaving {
                    self.forget(*partition);
                }
                if !commit.leaving.is_empty() {
                    info!(partitions = ?commit.leaving, "feed: partitions are handed over, all that was done is committed");
                    self.consumer.release(&commit.leaving);
                }
                Ok(())
            }
            Err(error) if error.is_transient() => {
                let error = chain(&error);
                warn!(
                    error,
                    "feed: the bus did not take the offsets, they go with the next"
                );
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// When something has to be done about a partition that the group wants back.
    fn next_deadline(&self) -> Option<Instant> {
        let revoked = self.partitions.values();
        let deadlines = revoked.filter_map(|partition| {
            let since = partition.revoked_at?;
            Some(if partition.abandon.is_cancelled() {
                since + HAND_OVER_MAX
            } else {
                since + FINISH_WAIT_MAX
            })
        });
        deadlines.min()
    }

    /// Leaves what takes too long.
    fn hurry(&mut self) {
        let now = Instant::now();
        let mut over = Vec::new();
        for (number, partition) in &self.partitions {
            match partition.revoked_at {
                Some(since) if now >= since + HAND_OVER_MAX => over.push(*number),
                Some(since) if now >= since + FINISH_WAIT_MAX => partition.abandon.cancel(),
                Some(_) | None => {}
            }
        }
        if !over.is_empty() {
            warn!(partitions = ?over, "feed: handed over without a last commit, some tasks are done again");
            for partition in &over {
                self.forget(*partition);
            }
            self.consumer.release(&over);
        }
    }

    /// Lets what was taken end, also what waits for another of its key, so that nobody does any of it again; and commits
    /// what is done. What fails now is left.
    async fn finish(&mut self, shutdown: &CancellationToken) -> Result<(), FeederError> {
        let stopping = Instant::now() + STOP_WAIT_MAX;
        loop {
            self.send_ready(shutdown);
            tokio::select! {
                ended = self.tasks.join_next() => match ended {
                    Some(ended) => self.ended(ended??),
                    None => break,
                },
                () = self.slots.freed() => {}
                () = sleep_until(stopping) => break,
            }
        }
        self.tasks.shutdown().await;
        // One that is on its way, and a last one. Without an answer the tasks are done again.
        for _ in 0..2 {
            self.save();
            if self.commit.is_none() {
                break;
            }
            match timeout(STOP_WAIT_MAX, saved(&mut self.commit)).await {
                Ok(ended) => self.saved(ended)?,
                Err(_) => {
                    warn!("feed: the bus did not take the last offsets, some tasks are done again");
                    break;
                }
            }
        }
        Ok(())
    }
}

/// The end of the commit that is on its way; waits for ever while there is none.
async fn saved(commit: &mut Option<Commit>) -> (Commit, Result<(), BusError>) {
    let Some(on_its_way) = commit else {
        return std::future::pending().await;
    };
    // A commit that panicked says nothing of the offsets.
    let saved = (&mut on_its_way.task)
        .await
        .unwrap_or(Err(BusError::Closed));
    match commit.take() {
        Some(commit) => (commit, saved),
        None => std::future::pending().await,
    }
}

async fn task(
    delivery: Arc<Delivery>,
    record: Record,
    slot: Slot,
    epoch: u64,
    abandon: CancellationToken,
    stop: CancellationToken,
) -> Result<Ended, BusError> {
    let delivered = tokio::select! {
        delivered = delivery.deliver(&record, slot, &stop) => delivered?,
        () = abandon.cancelled() => Delivered::Left,
    };
    let (done, not_sent) = match delivered {
        Delivered::Completed | Delivered::Malformed => (true, None),
        Delivered::Left | Delivered::GivenUp => (false, None),
        Delivered::NotSent(error) => (false, Some(error)),
    };
    Ok(Ended {
        position: record.position,
        epoch,
        lane: Lane::of(&record),
        done,
        not_sent,
    })
}
