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
    use controller_testing::gitlab::{Fault, Gitlab as StandIn, PROJECT, PROJECT_TOKEN};
    use rollout::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::clock::SystemClock;
    use crate::gitlab::Secret;

    fn reader(stand_in: &StandIn, token: &str) -> (FreezePeriods, watch::Receiver<Arc<Periods>>) {
        let gitlab = Gitlab::new(&stand_in.url(), None, Secret::from_text(token)).unwrap();
        let sooner = Arc::default();
        FreezePeriods::new(gitlab, &PROJECT.to_string(), SystemClock::new(), sooner)
    }

    /// How many periods were read, or why none.
    fn known(periods: &watch::Receiver<Arc<Periods>>) -> Result<usize, String> {
        match &**periods.borrow() {
            Periods::Read { windows, .. } => Ok(windows.len()),
            Periods::Unknown(why) => Err(why.clone()),
        }
    }

    #[tokio::test]
    async fn what_was_read_holds_while_gitlab_fails_and_before_that_nothing_is_known() {
        let never = "the freeze periods of GitLab project 4711 were not read yet";
        for fault in Fault::ALL {
            let stand_in = StandIn::start().await.unwrap();
            let (reader, periods) = reader(&stand_in, PROJECT_TOKEN);
            assert_eq!(known(&periods).unwrap_err(), never);
            stand_in.fail([fault]);
            // GitLab's own word on when to come back counts for more: at once, of the stand-in.
            let (pause, first) = match fault {
                Fault::Slow => (READ_EVERY, Ok(())),
                Fault::Limited => (Duration::ZERO, Err(())),
                Fault::Well
                | Fault::LimitedWithoutWords
                | Fault::Internal
                | Fault::BadGateway
                | Fault::Closed
                | Fault::ClosedAfterwards
                | Fault::Nonsense
                | Fault::InternalAfterwards => (AGAIN_AFTER, Err(())),
            };
            assert_eq!(reader.read_once().await, pause, "{fault:?}");
            match first {
                Ok(()) => assert_eq!(known(&periods), Ok(0)),
                Err(()) => {
                    let why = known(&periods).unwrap_err();
                    assert!(why.contains("4711 cannot be read: "), "{fault:?}: {why}");
                    assert!(!why.contains(PROJECT_TOKEN), "{why}");
                }
            }
            stand_in.records(|records| records.add_freeze_period("0 18 * * 5", "0 7 * * 1"));
            assert_eq!(reader.read_once().await, READ_EVERY, "{fault:?}");
            assert_eq!(known(&periods), Ok(1), "{fault:?}");
            stand_in.fail([fault]);
            assert_eq!(reader.read_once().await, pause, "{fault:?}");
            assert_eq!(known(&periods), Ok(1), "{fault:?}: what was read holds");
        }
    }

    #[tokio::test]
    async fn what_does_not_pass_by_itself_ends_what_was_read() {
        let stand_in = StandIn::start().await.unwrap();
        let (mut reader, periods) = reader(&stand_in, PROJECT_TOKEN);
        stand_in.records(|records| records.add_freeze_period("0 18 * * 5", "0 7 * * 1"));
        reader.read_once().await;
        assert_eq!(known(&periods), Ok(1));
        // A period that cannot be told is one that may be on.
        stand_in.records(|records| records.add_freeze_period("soon", "0 7 * * 1"));
        assert_eq!(reader.read_once().await, AGAIN_AFTER);
        let why = known(&periods).unwrap_err();
        assert!(why.contains("cannot be told"), "{why}");
        stand_in.records(|records| records.freeze_periods.pop());
        reader.read_once().await;
        assert_eq!(known(&periods), Ok(1), "somebody mended it");
        // The token ran out.
        let other = Secret::from_text("glpat-that-ran-out");
        reader.gitlab = Gitlab::new(&stand_in.url(), None, other).unwrap();
        assert_eq!(reader.read_once().await, AGAIN_AFTER);
        let why = known(&periods).unwrap_err();
        assert!(why.contains("401"), "{why}");
    }

    #[tokio::test]
    async fn contract_freeze_periods_are_asked_for_as_gitlab_documents() {
        let stand_in = StandIn::start_checked().await.unwrap();
        let (reader, periods) = reader(&stand_in, PROJECT_TOKEN);
        reader.read_once().await;
        assert_eq!(known(&periods), Ok(0));
        assert_eq!(stand_in.seen().len(), 1);
        assert_eq!(stand_in.mistakes(), Vec::<String>::new());
    }

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
