//! `jobs:`: what runs beside the stream, by time.

use friday::yaml::{Fields, Findings, Place, Value, nearest};

use super::read::{long_span, span};
use crate::jobs::spec::{DEADLINE_DEFAULT, DEADLINE_MIN, EVERY_MIN, KEEP_MIN};
use crate::jobs::{JobSpec, Schedule, Task};

/// Jobs of one file.
const JOBS_MAX: usize = 100;

/// Longest name.
const NAME_BYTES_MAX: usize = 64;

pub(super) fn jobs(value: Value<'_>, findings: &mut Findings) -> Vec<JobSpec> {
    let (place, key) = (value.at(), value.key().to_owned());
    let expected = "a map of jobs like { aggregate: { task: aggregate, every: 1m } }";
    let Some(fields) = value.map(expected, findings) else {
        return Vec::new();
    };
    let entries: Vec<_> = fields.entries().collect();
    if entries.is_empty() || entries.len() > JOBS_MAX {
        let expected = format!(
            "expected 1 to {JOBS_MAX} jobs; without the key {key} there are the usual ones"
        );
        findings.at(place, &key, Some(entries.len().to_string()), expected);
        return Vec::new();
    }
    let jobs = entries.into_iter();
    jobs.filter_map(|(name, value)| job(name, value, findings))
        .collect()
}

fn job(name: &str, value: Value<'_>, findings: &mut Findings) -> Option<JobSpec> {
    let (key, key_at, place) = (value.key().to_owned(), value.key_at(), value.at());
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if !(1..=NAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(is_name) {
        let expected =
            format!("expected a name of 1 to {NAME_BYTES_MAX} letters, digits, '-', '_' or '.'");
        findings.at(key_at, &key, Some(format!("{name:?}")), expected);
    }
    let expected = "a map like { task: aggregate, every: 1m }";
    let mut fields = value.map(expected, findings)?;
    let task = task(&mut fields, findings);
    let schedule = schedule(&mut fields, &key, place, findings);
    let catch_up = match fields.take("catch_up") {
        None => Some(false),
        Some(value) => value.scalar("true or false", findings, |text| text.parse().ok()),
    };
    let deadline = match fields.take("deadline") {
        None => Some(DEADLINE_DEFAULT),
        Some(value) => span(&value, DEADLINE_MIN, findings),
    };
    fields.finish(findings);
    Some(JobSpec {
        name: name.to_owned(),
        task: task?,
        schedule: schedule?,
        catch_up: catch_up?,
        deadline: deadline?,
    })
}

fn task(fields: &mut Fields<'_>, findings: &mut Findings) -> Option<Task> {
    let keep = fields.take("keep");
    let names = Task::ALL.map(Task::name);
    let known = format!("one of {}", names.join(", "));
    let value = fields.required("task", &known, findings)?;
    let name = value.text(&known, findings, Some)?;
    let Some(task) = Task::ALL.into_iter().find(|task| task.name() == name) else {
        let mend = nearest(name, &names).map(|task| format!("did you mean {task}?"));
        let expected = format!("unknown task: expected {known}");
        findings.note(value.at(), value.key(), Some(value.shown()), expected, mend);
        return None;
    };
    match (task, keep) {
        (task, None) => Some(task),
        (Task::CleanUp { .. }, Some(keep)) => {
            let keep = long_span(&keep, KEEP_MIN, findings)?;
            Some(Task::CleanUp { keep })
        }
        (Task::Aggregate | Task::Reconcile, Some(keep)) => {
            let expected = format!("expected no keep: {name} removes no rows, clean_up does");
            findings.at(keep.at(), keep.key(), Some(keep.shown()), expected);
            None
        }
    }
}

fn schedule(
    fields: &mut Fields<'_>,
    key: &str,
    place: Place,
    findings: &mut Findings,
) -> Option<Schedule> {
    match (fields.take("every"), fields.take("cron")) {
        (Some(every), None) => span(&every, EVERY_MIN, findings).map(Schedule::every),
        (None, Some(cron)) => {
            let five = "minute, hour, day of month, month and day of week, such as \"15 3 * * *\"";
            let pattern = cron.text(five, findings, Some)?;
            match Schedule::cron(pattern) {
                Ok(schedule) => Some(schedule),
                Err(why) => {
                    let expected = format!("expected {five}: {}", why.trim_end_matches('.'));
                    findings.at(cron.at(), cron.key(), Some(cron.shown()), expected);
                    None
                }
            }
        }
        (None, None) => {
            let expected = "missing: expected every, such as 1m, or cron, such as \"15 3 * * *\"";
            findings.at(place, key, None, expected.to_owned());
            None
        }
        (Some(_), Some(cron)) => {
            let expected = "expected either every or cron: remove one of the two".to_owned();
            findings.at(cron.at(), cron.key(), Some(cron.shown()), expected);
            None
        }
    }
}
