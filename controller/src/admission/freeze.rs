//! Which freezes are on: those of a rollout's own file, and those of GitLab as they were last read.

use std::sync::Arc;

use rollout::policy::Policy;
use rollout::{Duration, Timestamp};
use tokio::sync::watch;

use super::calendar::Window;

/// How old GitLab's freeze periods may be and still count. A GitLab that is away for a night shall not stop a service's
/// releases; what was read before yesterday may have been replaced.
pub const PERIODS_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Most freeze periods that are kept of one project. GitLab shows a hundred on a page; more is no calendar.
pub const PERIODS_MAX: usize = 100;

/// Whether a freeze is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frozen {
    /// None is.
    No,
    /// One is: which, and until when, in words that stay the same while it is on.
    Yes(String),
    /// That is not known: why. Nothing begins then, and what runs stays as it was: held if it was held.
    Unknown(String),
}

/// GitLab's freeze periods, as they were last read.
#[derive(Debug, Clone)]
pub enum Periods {
    /// They never were, or what came makes no sense: why.
    Unknown(String),
    /// They were.
    Read {
        /// All of the project's.
        windows: Vec<Window>,
        /// When, by the clock's elapsed time.
        at: Duration,
    },
}

/// What freezes are asked of.
#[derive(Debug, Clone, Default)]
pub struct Freezes {
    gitlab: Option<watch::Receiver<Arc<Periods>>>,
}

impl Freezes {
    /// Those of files, and GitLab's too.
    #[must_use]
    pub fn with_gitlab(periods: watch::Receiver<Arc<Periods>>) -> Self {
        Self {
            gitlab: Some(periods),
        }
    }

    /// How long ago GitLab's were read, or why they are not known; `None` where nobody asks for them.
    #[must_use]
    pub fn of_gitlab(&self, elapsed: Duration) -> Option<Result<Duration, String>> {
        let periods = self.gitlab.as_ref()?.borrow().clone();
        Some(match &*periods {
            Periods::Unknown(why) => Err(why.clone()),
            Periods::Read { at, .. } => match elapsed.saturating_sub(*at) {
                age if age > PERIODS_AGE_MAX => Err(too_old()),
                age => Ok(age),
            },
        })
    }

    /// Whether one is on for a rollout by this policy to `environment`, `now` by the time of day and `elapsed` by the time
    /// that only passes.
    #[must_use]
    pub fn ask(
        &self,
        policy: &Policy,
        environment: &str,
        now: Timestamp,
        elapsed: Duration,
    ) -> Frozen {
        for (index, freeze) in policy.freeze.iter().enumerate() {
            let window = match Window::of(freeze) {
                Ok(window) => window,
                // Saved by a version that knew more zones: what was a freeze is not silently none.
                Err(error) => return Frozen::Unknown(format!("freeze[{index}]: {error}")),
            };
            match window.until(environment, now) {
                Ok(None) => {}
                Ok(Some(until)) => {
                    return Frozen::Yes(format!(
                        "by friday.yml (freeze[{index}], {:?} {}) until {}",
                        freeze.cron,
                        freeze.zone,
                        shown(until)
                    ));
                }
                Err(error) => return Frozen::Unknown(format!("freeze[{index}]: {error}")),
            }
        }
        let Some(gitlab) = &self.gitlab else {
            return Frozen::No;
        };
        match &**gitlab.borrow() {
            Periods::Unknown(why) => Frozen::Unknown(why.clone()),
            Periods::Read { at, .. } if elapsed.saturating_sub(*at) > PERIODS_AGE_MAX => {
                Frozen::Unknown(too_old())
            }
            Periods::Read { windows, .. } => {
                let mut last = None;
                for window in windows {
                    match window.until(environment, now) {
                        Ok(until) => last = last.max(until),
                        Err(error) => {
                            return Frozen::Unknown(format!("a freeze period of GitLab: {error}"));
                        }
                    }
                }
                last.map_or(Frozen::No, |until| {
                    Frozen::Yes(format!(
                        "by a freeze period of GitLab until {}",
                        shown(until)
                    ))
                })
            }
        }
    }
}

fn too_old() -> String {
    format!(
        "GitLab's freeze periods were read more than {} hours ago",
        PERIODS_AGE_MAX.as_secs() / 3_600
    )
}

fn shown(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}
