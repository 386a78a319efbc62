//! Checks of the user's own: what a metrics source says of the canary, held against a limit or against stable.
//!
//! What the judge makes of them follows what it makes of gauges (JUDGE 2.7), for they are as few and as slow:
//!
//! - A **limit** condemns when it is broken in three samples in a row. As the limits of 2.7 it is outside the promise that
//!   a good release is rolled back with a chance of at most `alpha`: how often a good release breaks a limit is for who
//!   set it to know, not for the judge.
//! - A **comparison** gives one sign for each sample, whether the canary is worse than stable by more than the margin, to
//!   the same mixture as memory and CPU. It spends a part of saturation's weight, so the total stays within the promise for
//!   every measure of which a good release is beyond the margin in at most half of the samples, whatever came before.
//! - **No data is never success, and never failure.** An absent value, one that is no number or infinite, and a comparison
//!   with one side only are all no data (F2, F3). They condemn nobody; a check without data for its grace closes the gates,
//!   and the rollout holds until its deadline (F11).
//! - A gate also waits for a sample **taken wholly within its step** (F4, F5): all that the question looked at, its lag and
//!   its window included, was measured after requests were routed by the step's weight.
//!
//! While the rollout warms up neither limits nor comparisons count: a cold start may queue and lag.

use serde::{Deserialize, Serialize};

use super::mixture::{Log, Restart, log_mean_exp};
use super::saturation::{WORSE, sign};
use super::verdict::{CheckSeen, Missing, Signal};
use crate::Duration;
use crate::plan::{CHECKS_MAX, Check, Guard};
use crate::serial::{Millis, millis};

/// Samples in a row beyond a limit that condemn, as for CPU and queues: with ten seconds between them one bad scrape or a
/// short burst does not.
const BROKEN_SAMPLES: u8 = 3;

/// Characters of the reason for having no data that are kept. The state of a rollout stays small whatever a server says.
const TROUBLE_MAX: usize = 200;

/// The answer to one check at one moment. What is absent, not a number or infinite is no data.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct CheckSample {
    /// The check's name.
    pub name: String,
    /// What was said of the canary.
    pub canary: Option<f64>,
    /// What was said of stable, where the two are compared.
    pub stable: Option<f64>,
    /// How long ago this was so: the lag, and the time since the question.
    #[serde(rename = "age_ms", with = "millis")]
    pub age: Duration,
    /// Why there is no data, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// What is known of all checks.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Checks {
    known: Vec<Known>,
    /// Block time in which requests were routed by the step's weight.
    #[serde(rename = "in_step_ms")]
    in_step: Millis,
}

/// What is known of one check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Known {
    name: String,
    /// The newest data; kept while there is no newer.
    canary: Option<f64>,
    stable: Option<f64>,
    trouble: Option<String>,
    /// Samples in a row beyond the limit.
    broken: u8,
    /// Evidence that the canary is the worse one.
    worse: Restart,
    /// Block time since the newest data, or since the beginning.
    #[serde(rename = "silent_ms")]
    silent: Millis,
    /// Whether there was data that was taken wholly within the step.
    is_of_step: bool,
}

impl Known {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            canary: None,
            stable: None,
            trouble: None,
            broken: 0,
            worse: Restart::new(WORSE.len()),
            silent: Millis::default(),
            is_of_step: false,
        }
    }
}

impl Checks {
    /// Another step began: what was seen before says nothing of it.
    pub(crate) fn turn_to_step(&mut self) {
        self.in_step = Millis::default();
        for known in &mut self.known {
            known.is_of_step = false;
        }
    }

    /// Lets the time of one block pass; `of_step` says whether its requests were routed by the step's weight.
    pub(crate) fn pass(&mut self, duration: Duration, of_step: bool, guard: &Guard) {
        if of_step {
            self.in_step.0 += duration;
        }
        for check in checks_of(guard) {
            self.known(&check.name).silent.0 += duration;
        }
    }

    /// Takes one sample and says whether it condemns the canary. One that is `alone` has all the load, and stable, idle, is
    /// nothing to compare with.
    pub(crate) fn sample(
        &mut self,
        sample: &CheckSample,
        warming: bool,
        alone: bool,
        guard: &Guard,
    ) -> Option<Signal> {
        let check = checks_of(guard).find(|check| check.name == sample.name)?;
        let in_step = self.in_step.0;
        let known = self.known(&check.name);
        known.trouble = sample
            .trouble
            .as_ref()
            .map(|trouble| trouble.chars().take(TROUBLE_MAX).collect());
        let stable = data(sample.stable);
        let (Some(canary), Some(limit)) = (data(sample.canary), check.bound.limit(stable)) else {
            known.broken = 0;
            return None;
        };
        known.canary = Some(canary);
        known.stable = stable;
        known.silent = Millis::default();
        known.is_of_step |= in_step >= sample.age + check.window;

        let is_broken = check.bound.is_broken(canary, limit);
        if warming {
            known.broken = 0;
        } else if check.bound.compares() && alone {
            // Shown, and held against nothing.
        } else if check.bound.compares() {
            sign(&mut known.worse, is_broken, check.every, &guard.tuning);
        } else {
            known.broken = if is_broken {
                known.broken.saturating_add(1)
            } else {
                0
            };
        }
        (known.broken >= BROKEN_SAMPLES).then(|| Signal::Check {
            name: check.name.clone(),
            value: canary,
            limit,
        })
    }

    /// The logarithm of the evidence that the canary is the worse one: the mean over all comparisons; none where the guard
    /// has none.
    pub(crate) fn log_e(&self, guard: &Guard) -> Option<f64> {
        let logs: Vec<Log> = comparisons(guard)
            .map(|check| Log(self.log_e_of(check)))
            .collect();
        (!logs.is_empty()).then(|| log_mean_exp(&logs))
    }

    /// The comparison that speaks loudest against the canary.
    pub(crate) fn loudest(&self, guard: &Guard) -> Option<Signal> {
        let loudest = comparisons(guard)
            .max_by(|one, other| self.log_e_of(one).total_cmp(&self.log_e_of(other)))?;
        let known = self.find(&loudest.name)?;
        Some(Signal::Check {
            name: loudest.name.clone(),
            value: known.canary?,
            limit: loudest.bound.limit(known.stable)?,
        })
    }

    /// What keeps the gates closed.
    pub(crate) fn missing(&self, guard: &Guard) -> Vec<Missing> {
        checks_of(guard)
            .filter_map(|check| {
                let known = self.find(&check.name);
                let silent = known.map_or(Millis::default(), |known| known.silent);
                let is_silent = silent.0 > check.grace;
                let is_of_step = known.is_some_and(|known| known.is_of_step);
                (is_silent || !is_of_step).then(|| Missing::Check {
                    name: check.name.clone(),
                    silent: is_silent.then_some(silent),
                })
            })
            .collect()
    }

    /// All that is known, for people.
    pub(crate) fn seen(&self, guard: &Guard) -> Vec<CheckSeen> {
        checks_of(guard)
            .map(|check| {
                let known = self.find(&check.name);
                CheckSeen {
                    name: check.name.clone(),
                    bound: check.bound,
                    canary: known.and_then(|known| known.canary),
                    stable: known.and_then(|known| known.stable),
                    broken: known.map_or(0, |known| known.broken),
                    log_e: self.log_e_of(check),
                    silent: known.map_or(Duration::ZERO, |known| known.silent.0),
                    trouble: known.and_then(|known| known.trouble.clone()),
                }
            })
            .collect()
    }

    fn log_e_of(&self, check: &Check) -> f64 {
        self.find(&check.name)
            .map_or(0.0, |known| known.worse.log_e())
    }

    fn find(&self, name: &str) -> Option<&Known> {
        self.known.iter().find(|known| known.name == name)
    }

    /// What is known of a check of the guard, nothing if it is met for the first time. There are no more than the guard
    /// has.
    fn known(&mut self, name: &str) -> &mut Known {
        let at = self.known.iter().position(|known| known.name == name);
        let at = at.unwrap_or_else(|| {
            self.known.push(Known::new(name));
            self.known.len() - 1
        });
        &mut self.known[at]
    }
}

fn checks_of(guard: &Guard) -> impl Iterator<Item = &Check> {
    guard.checks.iter().take(CHECKS_MAX)
}

fn comparisons(guard: &Guard) -> impl Iterator<Item = &Check> {
    checks_of(guard).filter(|check| check.bound.compares())
}

/// A value that is one. Unlike a gauge it may be below zero: a lag against a clock, a balance.
fn data(value: Option<f64>) -> Option<f64> {
    value.filter(|value| value.is_finite())
}
