//! What the jobs do. Each may be done twice, or ended in the middle.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use super::spec::Task;
use super::store::JobStore;
use crate::bus::{Bus, BusConfig, BusError};
use crate::sink::{DAY_S, HOUR_S, MINUTE_S, Reconciled, StorageError};

/// How long counts stay by the minute: what a person looks at closely is seldom older than the day before.
const MINUTES_KEPT_S: i64 = 2 * DAY_S;

/// How long counts stay by the hour.
const HOURS_KEPT_S: i64 = 60 * DAY_S;

/// How long runs of jobs and keys of counter posts are kept.
const RECORDS_KEPT: Duration = Duration::from_hours(24 * 30);

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    #[error("the store failed")]
    Storage(#[from] StorageError),
    #[error("the store and the bus could not be compared")]
    Reconcile(#[from] crate::sink::ReconcileError),
    #[error("the bus cannot be opened")]
    Bus(#[from] BusError),
}

/// What the jobs work on.
#[derive(Debug)]
pub struct Tasks {
    store: Arc<dyn crate::sink::Store>,
    bus_config: BusConfig,
    /// Opened when it is needed first: a bus that is away does not keep rows from being removed.
    bus: Mutex<Option<Arc<dyn Bus>>>,
}

/// What a run did.
#[derive(Debug, Default)]
pub(crate) struct Work {
    /// In words.
    pub(crate) detail: String,
    /// What a comparison came to.
    pub(crate) reconciled: Vec<Reconciled>,
}

impl Tasks {
    /// Jobs on this store and bus.
    #[must_use]
    pub fn new(store: Arc<dyn crate::sink::Store>, bus: BusConfig) -> Self {
        Self {
            store,
            bus_config: bus,
            bus: Mutex::default(),
        }
    }

    /// With a bus that is open already.
    #[must_use]
    pub fn on(store: Arc<dyn crate::sink::Store>, config: BusConfig, bus: Arc<dyn Bus>) -> Self {
        Self {
            store,
            bus_config: config,
            bus: Mutex::new(Some(bus)),
        }
    }

    pub(crate) fn store(&self) -> &dyn JobStore {
        &*self.store
    }

    pub(crate) async fn run(&self, task: Task, now_ms: i64) -> Result<Work, TaskError> {
        match task {
            Task::Aggregate => self.aggregate(now_ms).await,
            Task::CleanUp { keep } => self.clean_up(keep, now_ms).await,
            Task::Reconcile => self.reconcile(now_ms).await,
        }
    }

    async fn aggregate(&self, now_ms: i64) -> Result<Work, TaskError> {
        let now_s = now_ms / 1_000;
        // Whole buckets of the wider kind, so that none is half folded.
        let whole = |before_s: i64, width_s: i64| before_s - before_s.rem_euclid(width_s);
        let before = whole(now_s - MINUTES_KEPT_S, HOUR_S);
        let minutes = self.store.fold(MINUTE_S, HOUR_S, before).await?;
        let before = whole(now_s - HOURS_KEPT_S, DAY_S);
        let hours = self.store.fold(HOUR_S, DAY_S, before).await?;
        Ok(Work {
            detail: format!("{minutes} counts of minutes and {hours} of hours folded"),
            ..Work::default()
        })
    }

    async fn clean_up(&self, keep: Duration, now_ms: i64) -> Result<Work, TaskError> {
        let before = |keep: Duration| {
            let keep_ms = i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
            now_ms.saturating_sub(keep_ms)
        };
        let mut rows = 0;
        loop {
            match self.store.remove_rows(before(keep)).await? {
                0 => break,
                removed => rows += removed,
            }
        }
        let records = self.store.remove_records(before(RECORDS_KEPT)).await?;
        Ok(Work {
            detail: format!("{rows} rows and {records} records removed"),
            ..Work::default()
        })
    }

    async fn reconcile(&self, now_ms: i64) -> Result<Work, TaskError> {
        let bus = {
            let mut open = self.bus.lock().await;
            match &*open {
                Some(bus) => bus.clone(),
                None => open.insert(self.bus_config.open().await?).clone(),
            }
        };
        let reconciled = crate::sink::reconcile(&*bus, &*self.store, now_ms).await?;
        let sum = |of: fn(&Reconciled) -> i64| reconciled.iter().map(of).sum::<i64>();
        Ok(Work {
            detail: format!(
                "{} records in: {} results, {} malformed, {} unreadable, {} duplicates, {} of them doubled; {} missing",
                sum(|r| r.expected),
                sum(|r| r.results),
                sum(|r| r.malformed),
                sum(|r| r.unreadable),
                sum(|r| r.duplicates),
                sum(|r| r.doubled),
                sum(|r| r.missing)
            ),
            reconciled,
        })
    }
}
