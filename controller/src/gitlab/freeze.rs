//! The freeze periods of a GitLab project (docs.gitlab.com/api/freeze_periods), read again and again and kept.
//!
//! GitLab stops no job by itself: it sets `CI_DEPLOY_FREEZE` and leaves the rest to whoever reads it. Here the crons are
//! evaluated by the controller. While GitLab is away what was read last holds, up to
//! [`PERIODS_AGE_MAX`](crate::admission::freeze::PERIODS_AGE_MAX); before it was ever read, and after that, nothing begins
//! without the emergency word, and what runs stays as it was.

use std::sync::Arc;

use http::Method;
use rollout::Duration;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{Credential, Gitlab, GitlabError};
use crate::admission::calendar::{CalendarError, Window};
use crate::admission::freeze::{PERIODS_MAX, Periods};
use crate::clock::Clock;
use crate::reconciler::chain;

/// How often they are read. A freeze that somebody adds at noon for noon is late by this much at most.
const READ_EVERY: Duration = Duration::from_secs(60);

/// How soon it is tried again when it did not work; GitLab's own word on that counts for more.
const AGAIN_AFTER: Duration = Duration::from_secs(15);

/// Periods on a page, GitLab's most.
const PER_PAGE: usize = 100;

/// One period, as GitLab has it.
#[derive(Debug, Deserialize)]
struct RawPeriod {
    freeze_start: String,
    freeze_end: String,
    #[serde(default)]
    cron_timezone: Option<String>,
}

/// Why the periods are not known.
#[derive(Debug, thiserror::Error)]
enum PeriodsError {
    #[error(transparent)]
    Gitlab(#[from] GitlabError),
    #[error("its freeze periods are none: {0}")]
    Malformed(String),
    #[error("it has more than {PERIODS_MAX} freeze periods: remove those that are over")]
    TooMany,
    #[error("a freeze period of it cannot be told: {0}")]
    Calendar(#[from] CalendarError),
}

/// Reads an answer of `GET /projects/:id/freeze_periods`.
fn windows(body: &Value) -> Result<Vec<Window>, PeriodsError> {
    let periods = Vec::<RawPeriod>::deserialize(body)
        .map_err(|error| PeriodsError::Malformed(error.to_string()))?;
    if periods.len() > PERIODS_MAX {
        return Err(PeriodsError::TooMany);
    }
    let window = |period: &RawPeriod| {
        let zone = period.cron_timezone.as_deref().unwrap_or_default();
        Window::between(&period.freeze_start, &period.freeze_end, zone)
    };
    Ok(periods.iter().map(window).collect::<Result<_, _>>()?)
}

/// A project by its number or its path, as it stands in a request's path.
fn encoded(project: &str) -> String {
    use std::fmt::Write as _;
    project.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _infallible = write!(text, "%{byte:02X}");
        }
        text
    })
}

/// Reads a project's freeze periods until told to stop, and publishes them.
#[derive(Debug)]
pub struct FreezePeriods {
    gitlab: Gitlab,
    project: String,
    clock: Arc<dyn Clock>,
    periods: watch::Sender<Arc<Periods>>,
    sooner: Arc<Notify>,
}

impl FreezePeriods {
    /// Those of `project`, a number or a path; `sooner` wakes the reading. And where they are published.
    #[must_use]
    pub fn new(
        gitlab: Gitlab,
        project: &str,
        clock: Arc<dyn Clock>,
        sooner: Arc<Notify>,
    ) -> (Self, watch::Receiver<Arc<Periods>>) {
        let unknown = Periods::Unknown(format!(
            "the freeze periods of GitLab project {project} were not read yet"
        ));
        let (periods, receiver) = watch::channel(Arc::new(unknown));
        let reader = Self {
            gitlab,
            project: project.to_owned(),
            clock,
            periods,
            sooner,
        };
        (reader, receiver)
    }

    /// Reads them until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            let pause = self.read_once().await;
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                // A push may have come with a new freeze; many pushes are one reading.
                () = self.sooner.notified() => {}
            }
        }
    }

    /// Reads them once; how long to wait before the next time.
    async fn read_once(&self) -> Duration {
        let path = format!(
            "/projects/{}/freeze_periods?per_page={PER_PAGE}",
            encoded(&self.project)
        );
        let answer = self
            .gitlab
            .call(Method::GET, &path, None, Credential::Project)
            .await;
        let after = if let Err(GitlabError::Limited { after, .. }) = &answer {
            *after
        } else {
            None
        };
        let read = answer.map_err(PeriodsError::from).and_then(|answer| {
            if answer.next.is_some() {
                return Err(PeriodsError::TooMany);
            }
            windows(&answer.body)
        });
        match read {
            Ok(windows) => {
                let at = self.clock.elapsed();
                self.periods
                    .send_replace(Arc::new(Periods::Read { windows, at }));
                READ_EVERY
            }
            Err(error) => {
                let why = chain(&error);
                tracing::warn!(project = %self.project, error = why, "the freeze periods of GitLab cannot be read; what was read last holds for a day");
                let is_lasting = match &error {
                    PeriodsError::Gitlab(error) => !error.is_temporary(),
                    PeriodsError::Malformed(_) => false,
                    // It was read, and says what cannot be understood: what was there before is no more.
                    PeriodsError::TooMany | PeriodsError::Calendar(_) => true,
                };
                let is_known = matches!(**self.periods.borrow(), Periods::Read { .. });
                if is_lasting || !is_known {
                    let text = format!(
                        "the freeze periods of GitLab project {} cannot be read: {why}",
                        self.project
                    );
                    self.periods.send_replace(Arc::new(Periods::Unknown(text)));
                }
                after.unwrap_or(AGAIN_AFTER)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use rollout::Timestamp;

    #[test]
    fn reads_the_answer_of_gitlabs_own_document() {
        let sample = include_str!("../../../tests/data/gitlab/rest-freeze-periods.json");
        let windows = windows(&serde_json::from_str(sample).unwrap()).unwrap();
        let until = |now: &str| {
            let now: Timestamp = now.parse().unwrap();
            windows[0]
                .until("any", now)
                .unwrap()
                .map(|until| until.to_string())
        };
        assert_eq!(until("2026-01-09T16:59:00Z"), None);
        assert_eq!(
            until("2026-01-09T17:00:00Z").as_deref(),
            Some("2026-01-12T06:00:00Z")
        );
    }

    #[test]
    fn what_cannot_be_understood_is_no_leave() {
        let table = [
            json!({}),
            json!([{ "freeze_start": "0 18 * * 5" }]),
            json!([{ "freeze_start": "soon", "freeze_end": "0 7 * * 1" }]),
            json!([{ "freeze_start": "0 18 * * 5", "freeze_end": "0 7 * * 1", "cron_timezone": "Mars" }]),
            json!(vec![
                json!({ "freeze_start": "0 18 * * 5", "freeze_end": "0 7 * * 1" });
                PERIODS_MAX + 1
            ]),
        ];
        for body in table {
            assert!(windows(&body).is_err(), "{body:.60}");
        }
        assert!(windows(&json!([])).unwrap().is_empty());
    }

    #[test]
    fn a_project_is_one_part_of_a_path() {
        assert_eq!(encoded("4711"), "4711");
        assert_eq!(encoded("acme/shop"), "acme%2Fshop");
        assert_eq!(encoded("../x?y"), "..%2Fx%3Fy");
    }
}
