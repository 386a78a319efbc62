//! Asks a metrics source the checks of every rollout that is judged, beside the loop and never in its way.
//!
//! Each question is a task of its own, at most one for each check at a time; the loop starts those that are due and takes
//! what has come back by its next turn. A source that is slow or down costs the loop nothing: its checks have no data.

use std::collections::HashMap;
use std::sync::Arc;

use rollout::judge::CheckSample;
use rollout::{Check, Duration, Rollout, RolloutId, Timestamp};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::clock::Clock;
use crate::metrics_source::{MetricsError, MetricsSource, Query, Subject};
use crate::reconciler::chain;

/// Questions that are asked at the same time; more wait for their turn. A Prometheus answers twenty at once by default,
/// and others want some of them.
const ASKED_AT_ONCE: usize = 8;

/// Checks of all rollouts whose times are remembered: a hundred rollouts with all the checks they may have.
const REMEMBERED_MAX: usize = 2_000;

/// A check of a rollout.
type Key = (RolloutId, String);

/// What is asked, and what came back.
#[derive(Debug)]
pub struct Checks {
    source: Option<Arc<dyn MetricsSource>>,
    at_once: Arc<Semaphore>,
    asking: JoinSet<Answer>,
    /// When each check was asked last, by the clock that only goes on.
    asked: HashMap<Key, Asked>,
    /// What came back and was not taken yet.
    answers: Vec<Answer>,
    /// Whether the source failed last time; said once.
    is_down: bool,
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    at: Duration,
    is_answered: bool,
    /// Whether its own fault was said.
    is_faulty: bool,
}

#[derive(Debug)]
struct Answer {
    key: Key,
    /// When it was asked.
    asked: Duration,
    /// How long before that it was so.
    lag: Duration,
    values: Result<(Option<f64>, Option<f64>), MetricsError>,
}

impl Checks {
    /// Checks that are asked of this source, or of none.
    #[must_use]
    pub fn of(source: Option<Arc<dyn MetricsSource>>) -> Self {
        Self {
            source,
            at_once: Arc::new(Semaphore::new(ASKED_AT_ONCE)),
            asking: JoinSet::new(),
            asked: HashMap::new(),
            answers: Vec::new(),
            is_down: false,
        }
    }

    /// Whether there is anybody to ask.
    #[must_use]
    pub fn can_ask(&self) -> bool {
        self.source.is_some()
    }

    /// Asks what is due for a rollout that is judged, without waiting for it.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn ask(&mut self, rollout: &Rollout, clock: &dyn Clock) {
        let Some(source) = &self.source else { return };
        if self.asked.len() > REMEMBERED_MAX {
            self.asked.retain(|_, asked| !asked.is_answered);
        }
        let now = clock.elapsed();
        for check in &rollout.spec.guard.checks {
            let key = (rollout.id.clone(), check.name.clone());
            let before = self.asked.get(&key).copied();
            let is_due = before.is_none_or(|asked| {
                asked.is_answered && now.saturating_sub(asked.at) >= check.every
            });
            let Some(questions) = is_due.then(|| questions(check, rollout)).flatten() else {
                continue;
            };
            let is_faulty = before.is_some_and(|asked| asked.is_faulty);
            self.asked.insert(
                key.clone(),
                Asked {
                    at: now,
                    is_answered: false,
                    is_faulty,
                },
            );
            let (source, at_once) = (Arc::clone(source), Arc::clone(&self.at_once));
            let (lag, at) = (check.lag, clock.now() - check.lag);
            self.asking.spawn(async move {
                // Never closed, so there is always a permit in the end.
                let _permit = at_once.acquire().await.ok();
                let values = ask_all(&*source, &questions, at).await;
                Answer {
                    key,
                    asked: now,
                    lag,
                    values,
                }
            });
        }
    }

    /// The answers for a rollout that came back since the last time.
    pub fn take(&mut self, rollout: &RolloutId, clock: &dyn Clock) -> Vec<CheckSample> {
        while let Some(joined) = self.asking.try_join_next() {
            match joined {
                Ok(answer) => self.come_back(answer),
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => {}
            }
        }
        let now = clock.elapsed();
        let (mine, others) = std::mem::take(&mut self.answers)
            .into_iter()
            .partition(|answer| answer.key.0 == *rollout);
        self.answers = others;
        let mine: Vec<Answer> = mine;
        mine.into_iter().map(|answer| answer.sample(now)).collect()
    }

    /// Forgets a rollout that is not judged any more.
    pub fn forget(&mut self, rollout: &RolloutId) {
        self.answers.retain(|answer| answer.key.0 != *rollout);
        self.asked.retain(|(id, _), _| id != rollout);
    }

    fn come_back(&mut self, answer: Answer) {
        // Of a rollout that ended meanwhile.
        let Some(asked) = self.asked.get_mut(&answer.key) else {
            return;
        };
        asked.is_answered = true;
        let (rollout, check) = &answer.key;
        match &answer.values {
            Ok(_) => {
                asked.is_faulty = false;
                if std::mem::take(&mut self.is_down) {
                    tracing::info!("the metrics source answers again");
                }
            }
            Err(error) if error.is_transient() => {
                if !std::mem::replace(&mut self.is_down, true) {
                    tracing::warn!(%rollout, check, error = %chain(error), "no data: the metrics source fails, and gates stay closed");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut asked.is_faulty, true) {
                    tracing::warn!(%rollout, check, error = %chain(error), "no data: this check cannot be answered, and gates stay closed");
                }
            }
        }
        self.answers.push(answer);
    }
}

impl Answer {
    fn sample(self, now: Duration) -> CheckSample {
        let age = now.saturating_sub(self.asked) + self.lag;
        // As the log has it: a replay must hear the same.
        let age = Duration::from_millis(u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        let (canary, stable, trouble) = match self.values {
            Ok((canary, stable)) => (canary, stable, None),
            Err(error) => (None, None, Some(chain(&error))),
        };
        CheckSample {
            name: self.key.1,
            canary,
            stable,
            age,
            trouble,
        }
    }
}

/// What is asked of the canary and, where the two are compared, of stable. `None` for a query that lint would refuse.
fn questions(check: &Check, rollout: &Rollout) -> Option<(String, Option<String>)> {
    let query = Query::parse(&check.query).ok()?;
    let about = |arm: &'static str, release: &rollout::Release| {
        query.about(&Subject {
            release: release.id.to_string(),
            service: rollout.service.to_string(),
            environment: rollout.environment.clone(),
            arm,
        })
    };
    let stable = check
        .bound
        .compares()
        .then(|| about("stable", &rollout.stable));
    Some((about("canary", &rollout.canary), stable))
}

async fn ask_all(
    source: &dyn MetricsSource,
    (canary, stable): &(String, Option<String>),
    at: Timestamp,
) -> Result<(Option<f64>, Option<f64>), MetricsError> {
    let of_canary = source.ask(canary, at).await?;
    let of_stable = match stable {
        Some(stable) => source.ask(stable, at).await?,
        None => None,
    };
    Ok((of_canary, of_stable))
}
