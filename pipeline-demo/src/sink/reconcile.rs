//! Compares what went in with what is stored, offset by offset.
//!
//! The feeder commits an offset of topic "tweets" once the answers to all records before it are durable in "results" or
//! "malformed". When the sink has stored what those two topics held at that moment, every offset below the committed one
//! must be found in the store: as the origin of a result, as the second place of a tweet, or as a dead letter. What is
//! not found there is missing, and is looked for again in every later run.
//!
//! A record of "results" or "malformed" that could not be read or stored is kept as a dead letter as well, and accounts for the
//! place of its tweet. Where it does not say that place any more, its key says the tweet; so the tweets that are missing are
//! read once more, and where one of them has that key, it is found.

use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use tokio::time::sleep;

use super::GROUP;
use super::rows::task_key;
use super::storage::StorageError;
use crate::bus::{Bus, BusError, MALFORMED, Position, RESULTS, Span, Standing, TWEETS};
use crate::feeder;

/// Offsets compared in one transaction: about a second of reading indices.
pub(crate) const OFFSETS_MAX: i64 = 200_000;

/// Holes written down in one step; the step ends with the last of them.
pub(crate) const HOLES_MAX: i64 = 1_000;

/// Holes whose tweets are read once more in one run, while there are answers that could be theirs: each takes a reader of its own,
/// some 50 ms with Kafka.
const HOLES_READ_MAX: i64 = 100;

/// Records of one hole that are read.
const HOLE_RECORDS_MAX: i64 = 1_000;

/// How often the sink's offsets are looked at while they are waited for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A partition of topic "tweets" and how far its records are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// From 0.
    pub partition: u32,
    /// The oldest record that the bus still has: where the first comparison begins, unless the store knows older ones.
    pub oldest: i64,
    /// The first offset that need not be stored yet.
    pub to: i64,
}

/// Offsets that are stored nowhere, from `first` to before `next`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Hole {
    /// The partition of topic "tweets".
    pub partition: i64,
    /// The first of them.
    pub first_offset: i64,
    /// The first after them.
    pub next_offset: i64,
}

/// What the comparison of a partition came to, over all its runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Reconciled {
    /// The partition of topic "tweets".
    pub partition: i64,
    /// All offsets below this one were compared.
    pub next_offset: i64,
    /// Records that went in.
    pub expected: i64,
    /// Those that are a result's origin.
    pub results: i64,
    /// Those that are a dead letter's original.
    pub malformed: i64,
    /// Those whose answer could not be read or stored; it is kept as a dead letter in their place.
    pub unreadable: i64,
    /// Those that hold a tweet which is stored from another place.
    pub duplicates: i64,
    /// Those that are found in more than one of these; 0, unless somebody else writes to the tables.
    pub doubled: i64,
    /// Those that are found in none of these, now.
    pub missing: i64,
    /// When, in milliseconds since 1970.
    pub checked_ms: i64,
}

/// As what some offsets were found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) results: i64,
    pub(crate) malformed: i64,
    pub(crate) unreadable: i64,
    pub(crate) duplicates: i64,
    /// Different ones.
    pub(crate) places: i64,
}

impl Found {
    pub(crate) const fn add(&mut self, other: Self) {
        self.results += other.results;
        self.malformed += other.malformed;
        self.unreadable += other.unreadable;
        self.duplicates += other.duplicates;
        self.places += other.places;
    }

    pub(crate) const fn doubled(&self) -> i64 {
        self.results + self.malformed + self.unreadable + self.duplicates - self.places
    }
}

/// What a comparison needs of the store.
#[async_trait]
pub trait ReconcileStore: Send + Sync {
    /// Compares the next offsets of a partition, at most some 100,000, and looks for the missing ones again. Repeat it
    /// until [`Reconciled::next_offset`] is `range.to`. Only one process may do so at a time.
    async fn reconcile(&self, range: Range, now_ms: i64) -> Result<Reconciled, StorageError>;

    /// What the last comparisons came to, by partition.
    async fn reconciled(&self) -> Result<Vec<Reconciled>, StorageError>;

    /// Offsets that are missing, in order, at most `limit`.
    async fn holes(&self, limit: i64) -> Result<Vec<Hole>, StorageError>;

    /// Dead letters that account for no place of topic "tweets": records that could not be read and do not say whose answer
    /// they are.
    async fn unplaced(&self) -> Result<i64, StorageError>;

    /// Lets such letters account for the task at `origin`, whose key is `tweet_id`. False if there is none for it.
    async fn account_for(&self, origin: Position, tweet_id: &str) -> Result<bool, StorageError>;
}

/// Why nothing could be compared.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The bus does not say how far its groups are.
    #[error("the bus does not say what went in")]
    Bus(#[from] BusError),
    /// The store does not say what it has.
    #[error("the store could not be compared")]
    Storage(#[from] StorageError),
}

/// Compares all partitions, as soon as the sink has stored what was done by now. The caller sets the limit of time.
///
/// # Errors
/// When the bus or the store is away; nothing is spoilt by that, the next run goes on from here.
pub(crate) async fn reconcile(
    bus: &dyn Bus,
    store: &dyn ReconcileStore,
    now_ms: i64,
) -> Result<Vec<Reconciled>, ReconcileError> {
    let done = bus.standing(TWEETS, feeder::GROUP).await?;
    // After the feeder's offsets, so that the answers to all before them are below these.
    let answers = [
        (RESULTS, bus.standing(RESULTS, GROUP).await?),
        (MALFORMED, bus.standing(MALFORMED, GROUP).await?),
    ];
    for (topic, ends) in &answers {
        while !is_past(&bus.standing(topic, GROUP).await?, ends) {
            sleep(LOOK_EVERY).await;
        }
    }
    let ranges = done.into_iter().filter_map(|standing| {
        Some(Range {
            partition: standing.partition,
            oldest: standing.oldest,
            to: standing.committed?,
        })
    });
    let ranges: Vec<Range> = ranges.collect();
    let compared = compare(store, &ranges, now_ms).await?;
    let missing = compared.iter().any(|partition| partition.missing > 0);
    if missing && store.unplaced().await? > 0 && account_for_unreadable(bus, store).await? {
        return Ok(compare(store, &ranges, now_ms).await?);
    }
    Ok(compared)
}

async fn compare(
    store: &dyn ReconcileStore,
    ranges: &[Range],
    now_ms: i64,
) -> Result<Vec<Reconciled>, StorageError> {
    let mut all = Vec::new();
    for range in ranges {
        loop {
            let reconciled = store.reconcile(*range, now_ms).await?;
            if reconciled.next_offset >= range.to {
                all.push(reconciled);
                break;
            }
        }
    }
    Ok(all)
}

/// Reads the tweets that are missing, and looks for each among the answers that could not be read. Whether any was found.
async fn account_for_unreadable(
    bus: &dyn Bus,
    store: &dyn ReconcileStore,
) -> Result<bool, ReconcileError> {
    let mut found = false;
    for hole in store.holes(HOLES_READ_MAX).await? {
        let Ok(partition) = hole.partition.try_into() else {
            continue;
        };
        let from = hole.first_offset;
        let to = hole.next_offset.min(from + HOLE_RECORDS_MAX);
        let span = Span {
            partition,
            from,
            to,
        };
        let mut reader = bus.reader(TWEETS, &[span]).await?;
        loop {
            let records = reader.read(HOLE_RECORDS_MAX as usize).await?;
            if records.is_empty() {
                break;
            }
            for record in records {
                let key = task_key(&record.value, record.position);
                found |= store.account_for(record.position, &key).await?;
            }
        }
    }
    Ok(found)
}

/// Whether a group has committed all that was there.
fn is_past(now: &[Standing], ends: &[Standing]) -> bool {
    ends.iter().all(|end| {
        let standing = now.iter().find(|now| now.partition == end.partition);
        let committed = standing.and_then(|now| now.committed.or(Some(now.oldest)));
        committed.is_some_and(|committed| committed >= end.next)
    })
}
