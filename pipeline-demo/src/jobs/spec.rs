//! What a job is, as `pipeline.yml` says it under `jobs:`.
//!
//! ```yaml
//! jobs:
//!   - { name: fold counts, task: aggregate, every: 10m }
//!   - { name: remove old rows, task: clean_up, cron: "30 3 * * *", keep: 30d, catch_up: false }
//!   - { name: compare, task: reconcile, every: 1m, deadline: 30s }
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::schedule::Schedule;

/// Longest name.
pub const NAME_CHARS_MAX: usize = 64;

/// Shortest time between two runs: below it a stream is the better tool.
pub const EVERY_MIN: Duration = Duration::from_secs(1);

/// Longest time between two runs, longest deadline, longest retention.
pub const EVERY_MAX: Duration = Duration::from_hours(24 * 366);

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

/// A job that can be run.
#[derive(Debug, Clone, PartialEq)]
pub struct JobSpec {
    /// Its name, the same on every node.
    pub name: String,
    /// What it does.
    pub task: Task,
    /// When.
    pub schedule: Schedule,
    /// Whether runs that were missed while nobody was there are made up for, one by one.
    pub catch_up: bool,
    /// How long a run may take; then it is ended and has failed.
    pub deadline: Duration,
}

/// A job as it is written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawJob {
    /// Its name.
    pub name: String,
    /// `aggregate`, `clean_up` or `reconcile`.
    pub task: String,
    /// Time between two runs, such as `10m`; or else `cron`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<String>,
    /// Five fields, in UTC, such as `30 3 * * *`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
    /// Whether missed runs are made up for; by default not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catch_up: Option<bool>,
    /// How long a run may take, by default 10 minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<String>,
    /// With `clean_up`: how long rows are kept, by default 30 days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<String>,
}

/// What is wrong with a job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("job {job:?}: {key} is {value:?}; expected {expected}")]
pub struct JobError {
    /// The job's name, as written.
    pub job: String,
    /// The key at fault.
    pub key: &'static str,
    /// Its value, as written.
    pub value: String,
    /// What would be right.
    pub expected: String,
}

impl TryFrom<RawJob> for JobSpec {
    type Error = JobError;

    fn try_from(raw: RawJob) -> Result<Self, JobError> {
        let wrong = |key, value: &str, expected: &str| JobError {
            job: raw.name.clone(),
            key,
            value: value.to_owned(),
            expected: expected.to_owned(),
        };
        let is_name = |name: &str| {
            let count = name.chars().count();
            (1..=NAME_CHARS_MAX).contains(&count)
                && name
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || " -_.".contains(c))
        };
        if !is_name(&raw.name) {
            let expected = "1 to 64 letters, digits, blanks and - _ .";
            return Err(wrong("name", &raw.name, expected));
        }
        let span = |key, text: &Option<String>, default: Duration, min: Duration| match text {
            None => Ok(default),
            Some(text) => duration(text)
                .filter(|span| (min..=EVERY_MAX).contains(span))
                .ok_or_else(|| {
                    let expected =
                        format!("a time from {min:?} to 366d, such as 30s, 10m, 2h or 7d");
                    wrong(key, text, &expected)
                }),
        };
        let task = match raw.task.as_str() {
            "aggregate" => Task::Aggregate,
            "clean_up" => Task::CleanUp {
                keep: span("keep", &raw.keep, KEEP_DEFAULT, KEEP_MIN)?,
            },
            "reconcile" => Task::Reconcile,
            other => return Err(wrong("task", other, "aggregate, clean_up or reconcile")),
        };
        if let (Some(keep), Task::Aggregate | Task::Reconcile) = (&raw.keep, task) {
            return Err(wrong(
                "keep",
                keep,
                "none: only clean_up keeps rows for a time",
            ));
        }
        let schedule = match (&raw.every, &raw.cron) {
            (Some(_), None) => Schedule::every(span("every", &raw.every, EVERY_MIN, EVERY_MIN)?),
            (None, Some(cron)) => Schedule::cron(cron).map_err(|why| {
                let expected = format!("five fields such as 30 3 * * * ({why})");
                wrong("cron", cron, &expected)
            })?,
            (Some(every), Some(_)) => {
                return Err(wrong("every", every, "either every or cron, not both"));
            }
            (None, None) => return Err(wrong("every", "", "either every or cron")),
        };
        Ok(Self {
            task,
            schedule,
            catch_up: raw.catch_up.unwrap_or(false),
            deadline: span("deadline", &raw.deadline, DEADLINE_DEFAULT, EVERY_MIN)?,
            name: raw.name,
        })
    }
}

impl JobSpec {
    /// The jobs that a pipeline needs if nobody says otherwise.
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

/// A whole number and a unit: `30s`, `10m`, `2h`, `7d`.
fn duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let unit = text.chars().last()?;
    let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return None,
    };
    number.checked_mul(seconds).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(name: &str, task: &str) -> RawJob {
        RawJob {
            name: name.into(),
            task: task.into(),
            every: Some("10m".into()),
            ..RawJob::default()
        }
    }

    #[test]
    fn reads_a_job_with_its_defaults() {
        let job = JobSpec::try_from(raw("fold", "aggregate")).unwrap();
        assert_eq!(job.schedule, Schedule::every(Duration::from_secs(600)));
        assert_eq!((job.catch_up, job.deadline), (false, DEADLINE_DEFAULT));
        let keep = RawJob {
            keep: Some("7d".into()),
            every: None,
            cron: Some("30 3 * * *".into()),
            ..raw("old", "clean_up")
        };
        let job = JobSpec::try_from(keep).unwrap();
        let week = Duration::from_hours(7 * 24);
        assert_eq!(job.task, Task::CleanUp { keep: week });
    }

    #[test]
    fn says_which_key_is_wrong_and_what_would_be_right() {
        let cases = [
            (raw("", "aggregate"), "name"),
            (raw("a/b", "aggregate"), "name"),
            (raw("a", "compress"), "task"),
            (
                RawJob {
                    every: None,
                    ..raw("a", "reconcile")
                },
                "every",
            ),
            (
                RawJob {
                    every: Some("0s".into()),
                    ..raw("a", "reconcile")
                },
                "every",
            ),
            (
                RawJob {
                    every: Some("ten".into()),
                    ..raw("a", "reconcile")
                },
                "every",
            ),
            (
                RawJob {
                    cron: Some("* * * * *".into()),
                    ..raw("a", "reconcile")
                },
                "every",
            ),
            (
                RawJob {
                    every: None,
                    cron: Some("61 * * * *".into()),
                    ..raw("a", "reconcile")
                },
                "cron",
            ),
            (
                RawJob {
                    keep: Some("1m".into()),
                    ..raw("a", "clean_up")
                },
                "keep",
            ),
            (
                RawJob {
                    keep: Some("1d".into()),
                    ..raw("a", "reconcile")
                },
                "keep",
            ),
            (
                RawJob {
                    deadline: Some("9999999999999999999d".into()),
                    ..raw("a", "reconcile")
                },
                "deadline",
            ),
        ];
        for (job, key) in cases {
            let error = JobSpec::try_from(job.clone()).unwrap_err();
            assert_eq!(error.key, key, "{job:?}: {error}");
            assert!(error.to_string().contains("expected"), "{error}");
        }
    }

    #[test]
    fn the_defaults_have_names_of_their_own() {
        let names: std::collections::BTreeSet<String> = JobSpec::defaults()
            .into_iter()
            .map(|job| job.name)
            .collect();
        assert_eq!(names.len(), JobSpec::defaults().len());
    }
}
