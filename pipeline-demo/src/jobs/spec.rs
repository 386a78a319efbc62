//! What a job is. It is written in `pipeline.yml` under `jobs:` ([`Pipeline`](crate::workflow::Pipeline)).

use std::time::Duration;

use super::schedule::Schedule;

/// Shortest time between two runs: each takes a lock in the store, and below it a stream is the better tool.
pub const EVERY_MIN: Duration = Duration::from_secs(1);

/// Shortest deadline.
pub const DEADLINE_MIN: Duration = Duration::from_secs(1);

/// How long a run may take, unless told otherwise.
pub const DEADLINE_DEFAULT: Duration = Duration::from_mins(10);

/// How long rows are kept, unless told otherwise. It must be longer than the bus keeps its records (a week, with Kafka's
/// defaults): a result that is delivered again after its row is gone would be counted again.
pub const KEEP_DEFAULT: Duration = Duration::from_hours(24 * 30);

/// Shortest time that rows may be kept: what the bus delivers again after an outage should still be known.
pub const KEEP_MIN: Duration = Duration::from_hours(1);

/// What a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Folds counts by the minute that are two days old into hours, and hours that are two months old into days.
    Aggregate,
    /// Removes rows stored longer ago than this; the counts stay.
    CleanUp {
        /// How long rows are kept.
        keep: Duration,
    },
    /// Compares what is stored with what went in.
    Reconcile,
}

impl Task {
    /// One of each, with its defaults.
    pub const ALL: [Self; 3] = [
        Self::Aggregate,
        Self::CleanUp { keep: KEEP_DEFAULT },
        Self::Reconcile,
    ];

    /// As `pipeline.yml` has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aggregate => "aggregate",
            Self::CleanUp { .. } => "clean_up",
            Self::Reconcile => "reconcile",
        }
    }
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobSpec {
    /// Its name, the same on every node.
    pub name: String,
    /// What it does.
    pub task: Task,
    /// When it is due, in UTC.
    pub schedule: Schedule,
    /// Whether runs that were missed while nobody was there are made up for, one by one.
    pub catch_up: bool,
    /// How long a run may take; then it is ended and has failed.
    pub deadline: Duration,
}

impl JobSpec {
    /// The jobs of a pipeline whose file names none.
    #[must_use]
    pub fn defaults() -> Vec<Self> {
        let job = |name: &str, task, every_s, deadline_s| Self {
            name: name.to_owned(),
            task,
            schedule: Schedule::every(Duration::from_secs(every_s)),
            catch_up: false,
            deadline: Duration::from_secs(deadline_s),
        };
        let clean_up = Task::CleanUp { keep: KEEP_DEFAULT };
        vec![
            job("aggregate", Task::Aggregate, 600, 300),
            job("clean_up", clean_up, 3_600, 1_800),
            job("reconcile", Task::Reconcile, 60, 50),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_have_names_of_their_own() {
        let names: std::collections::BTreeSet<String> = JobSpec::defaults()
            .into_iter()
            .map(|job| job.name)
            .collect();
        assert_eq!(names.len(), JobSpec::defaults().len());
    }
}
