//! `jobs:`: what runs beside the stream, by time.

use std::time::Duration;

use friday::yaml::{Fields, Findings, Place, Value, duration, nearest};

use super::cron::wrong_field;

/// What a job can do.
pub const JOB_TASKS: [&str; 3] = ["aggregate", "clean_up", "reconcile"];

/// Jobs of one file.
const JOBS_MAX: usize = 100;

/// Shortest time between two runs: each takes a lock in the store.
const EVERY_MIN: Duration = Duration::from_secs(1);

/// A job, as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobSpec {
    /// Its name, of its own.
    pub name: String,
    /// What it does: one of [`JOB_TASKS`].
    pub task: String,
    /// When it runs.
    pub when: When,
    /// Whether runs that were missed while nobody could run them are made up for.
    pub catch_up: bool,
    /// The time zone of a cron schedule, such as `Europe/Berlin`; UTC where it is not said.
    pub zone: Option<String>,
}

/// When a job runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum When {
    /// Every so often.
    Every(Duration),
    /// Five fields, as crontab(5) has them.
    Cron(String),
}

pub(super) fn jobs(value: Value<'_>, findings: &mut Findings) -> Vec<JobSpec> {
    let place = value.at();
    let expected = "a map of jobs like { aggregate: { task: aggregate, every: 1m } }";
    let Some(fields) = value.map(expected, findings) else {
        return Vec::new();
    };
    let entries: Vec<_> = fields.entries().collect();
    if entries.len() > JOBS_MAX {
        let expected = format!("expected at most {JOBS_MAX} jobs");
        findings.at(place, "jobs", Some(entries.len().to_string()), expected);
        return Vec::new();
    }
    let jobs = entries.into_iter();
    jobs.filter_map(|(name, value)| job(name, value, findings))
        .collect()
}

fn job(name: &str, value: Value<'_>, findings: &mut Findings) -> Option<JobSpec> {
    let (key, place) = (value.key().to_owned(), value.at());
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(is_name) {
        let expected = "expected a name of 1 to 64 letters, digits, '-', '_' or '.'".to_owned();
        findings.at(place, &key, Some(format!("{name:?}")), expected);
    }
    let expected = "a map like { task: aggregate, every: 1m }";
    let mut fields = value.map(expected, findings)?;
    let task = task(&mut fields, findings);
    let when = when(&mut fields, &key, place, findings);
    let catch_up = match fields.take("catch_up") {
        None => Some(false),
        Some(value) => value.scalar("true or false", findings, |text| text.parse().ok()),
    };
    let zone = fields.take("zone").map(|value| {
        if matches!(when, Some(When::Every(_))) {
            let expected = "expected no zone beside every: it means something with cron alone";
            findings.at(
                value.at(),
                value.key(),
                Some(value.shown()),
                expected.to_owned(),
            );
        }
        let expected = "UTC or the name of a time zone, such as Europe/Berlin";
        value.text(expected, findings, |text| {
            is_zone(text).then(|| text.to_owned())
        })
    });
    fields.finish(findings);
    Some(JobSpec {
        name: name.to_owned(),
        task: task?,
        when: when?,
        catch_up: catch_up?,
        zone: match zone {
            None => None,
            Some(zone) => Some(zone?),
        },
    })
}

fn task(fields: &mut Fields<'_>, findings: &mut Findings) -> Option<String> {
    let known = JOB_TASKS.join(", ");
    let value = fields.required("task", &format!("one of {known}"), findings)?;
    let (at, key, shown) = (value.at(), value.key().to_owned(), value.shown());
    let task = value.text(&format!("one of {known}"), findings, |text| {
        Some(text.to_owned())
    })?;
    if JOB_TASKS.contains(&&*task) {
        return Some(task);
    }
    let mend = nearest(&task, &JOB_TASKS).map(|task| format!("did you mean {task}?"));
    findings.note(
        at,
        &key,
        Some(shown),
        format!("unknown task: expected one of {known}"),
        mend,
    );
    None
}

fn when(fields: &mut Fields<'_>, key: &str, place: Place, findings: &mut Findings) -> Option<When> {
    match (fields.take("every"), fields.take("cron")) {
        (Some(every), None) => {
            let expected = "a duration from 1s to 30d, such as 1m";
            let read = |text: &str| duration(text).filter(|every| *every >= EVERY_MIN);
            every.scalar(expected, findings, read).map(When::Every)
        }
        (None, Some(cron)) => {
            let mut wrong = None;
            let five = "minute, hour, day of month, month and day of week, such as \"15 3 * * *\"";
            let text = cron.text(five, findings, |text| Some(text.to_owned()))?;
            if let Some(field) = wrong_field(&text) {
                wrong = Some(format!("expected {five}; the {field} is not right"));
            }
            match wrong {
                None => Some(When::Cron(text)),
                Some(expected) => {
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

/// Whether it looks like a name of the tz database. Whether this machine knows the zone is seen when the job is planned.
fn is_zone(text: &str) -> bool {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic())
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_+-".contains(&b))
    };
    text.len() <= 64 && (text == "UTC" || (text.contains('/') && text.split('/').all(part)))
}
