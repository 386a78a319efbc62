//! The watch over a canary that has every request, while stable is kept warm: is it worse than stable was in the last hour?
//!
//! Nothing can be compared within a block any more, so this is a weaker test than all the others: what happens to the world
//! then, and would have happened to stable too, speaks against the canary. It therefore allows much (twice stable's worst
//! five minutes of the hour and twice the margin besides; twice stable's latency), has a small budget of its own
//! (`alpha_watch`), and finds breakdowns, not small regressions. A release that stays within what is allowed is rolled back
//! with a chance of at most that budget, however long it is watched; the promise of `alpha` is neither spent nor claimed.

use serde::{Deserialize, Serialize};

use super::hour::Hour;
use super::latency::QUANTILES;
use super::mixture::{Restart, log_sum_exp};
use super::split::HARM_ODDS;
use super::trial::Reduced;
use super::verdict::{ArmCounts, Percentile, Signal, Watched};
use crate::Duration;
use crate::plan::{Guard, Tuning};
use crate::serial::millis;

/// How many times what stable's last hour and the margin allow together.
const ERRORS_FACTOR: f64 = 2.0;

/// No error rate of stable's allows the canary more than this.
const ERRORS_ALLOWED_MAX: f64 = 0.9;

/// Twice stable's latency, in buckets.
pub(crate) const LATENCY_SHIFT: u16 = 32;

/// Most evidence that one second of slow answers may bring, in nats. Everybody is slow for a few seconds now and then, and
/// there is no stable to show it; at one nat a second it takes about fifteen of them. Failures are more urgent.
const SLOW_NATS_PER_SECOND: f64 = 1.0;

/// The parts of the watch's budget: errors, latency, errors of nodes that are cold.
const PARTS: [f64; 3] = [0.5, 0.4, 0.1];

/// Evidence against a canary that is alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Watch {
    errors: Restart,
    /// Answers beyond twice stable's p50, p90 and p99.
    latency: [Restart; 3],
    /// Errors of nodes that are cold, which may fail as often as a cold start may.
    cold: Restart,
    #[serde(rename = "elapsed_ms", with = "millis")]
    elapsed: Duration,
    seen: ArmCounts,
}

impl Default for Watch {
    fn default() -> Self {
        let new = || Restart::new(HARM_ODDS.len());
        Self {
            errors: new(),
            latency: [new(), new(), new()],
            cold: new(),
            elapsed: Duration::ZERO,
            seen: ArmCounts::default(),
        }
    }
}

/// The logarithm of a bet that an event happens more often than with the chance `allowed`, for as many times the odds. Its
/// mean is at most 1 if the chance is not higher: `(1 + p (o - 1))^n / (1 + allowed (o - 1))^n`.
pub(crate) fn rate_log_factor(
    (all, events): (u64, u64),
    allowed: f64,
    odds: f64,
    phi: f64,
    cap: f64,
) -> f64 {
    let log = events as f64 * odds.ln() - all as f64 * (allowed * (odds - 1.0)).ln_1p();
    (log / phi).min(cap)
}

/// The share of errors that a canary may have when it is alone.
pub(crate) fn errors_allowed(hour: &Hour, guard: &Guard) -> f64 {
    let Some(worst) = hour.worst_rate() else {
        return guard.tuning.catastrophe;
    };
    (ERRORS_FACTOR * (worst + guard.errors_margin)).min(ERRORS_ALLOWED_MAX)
}

impl Watch {
    /// Takes one block of a canary that is alone; `slow` is how many of its answers are slower than twice stable's quantiles.
    pub(crate) fn block(&mut self, block: &Reduced, slow: [u64; 3], hour: &Hour, guard: &Guard) {
        let tuning = &guard.tuning;
        let canary = block.canary;
        self.elapsed += block.duration;
        self.seen.add(&ArmCounts { slow, ..canary });
        let allowed = errors_allowed(hour, guard);
        let (duration, cap) = (block.duration, tuning.cap_nats);
        let errors = (canary.requests, canary.bad);
        let of_errors = (block.phi[0], cap);
        take(
            &mut self.errors,
            (errors, allowed),
            of_errors,
            duration,
            tuning,
        );
        let slow_cap = cap.min(SLOW_NATS_PER_SECOND * duration.as_secs_f64());
        for (index, process) in self.latency.iter_mut().enumerate() {
            let events = (canary.timed, slow[index]);
            let tail = 1.0 - QUANTILES[index];
            let phi = block.phi[1 + index];
            take(process, (events, tail), (phi, slow_cap), duration, tuning);
        }
        let cold = tuning.catastrophe.max(allowed);
        take(
            &mut self.cold,
            (block.cold, cold),
            of_errors,
            duration,
            tuning,
        );
    }

    /// How long the canary has been watched.
    pub(crate) fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// What was seen of it since.
    pub(crate) fn seen(&self) -> ArmCounts {
        self.seen
    }

    /// All of it as numbers.
    pub(crate) fn watched(&self, hour: &Hour, guard: &Guard) -> Watched {
        let latency = [0, 1, 2].map(|index: usize| self.latency[index].log_e());
        let (errors, cold) = (self.errors.log_e(), self.cold.log_e());
        Watched {
            errors,
            latency,
            cold,
            total: log_sum_exp(parts(errors, latency, cold).into_iter()),
            rollback_at: -guard.tuning.alpha_watch.ln(),
            errors_before: hour.worst_rate(),
            errors_allowed: errors_allowed(hour, guard),
        }
    }
}

impl Watched {
    /// What condemns the canary, if the evidence suffices.
    pub(crate) fn condemns(&self) -> Option<Signal> {
        if self.total < self.rollback_at {
            return None;
        }
        let [errors, latency, cold] = parts(self.errors, self.latency, self.cold);
        Some(if errors >= latency && errors >= cold {
            Signal::ErrorsAlone {
                allowed: self.errors_allowed,
            }
        } else if latency >= cold {
            let slowest = (1..3).fold(0, |best, at| {
                if self.latency[at] > self.latency[best] {
                    at
                } else {
                    best
                }
            });
            Signal::LatencyAlone {
                percentile: Percentile::ALL[slowest],
            }
        } else {
            Signal::WarmUp
        })
    }
}

fn parts(errors: f64, latency: [f64; 3], cold: f64) -> [f64; 3] {
    let slow = log_sum_exp(latency.into_iter()) - (latency.len() as f64).ln();
    [
        PARTS[0].ln() + errors,
        PARTS[1].ln() + slow,
        PARTS[2].ln() + cold,
    ]
}

fn take(
    process: &mut Restart,
    (events, allowed): ((u64, u64), f64),
    (phi, cap): (f64, f64),
    duration: Duration,
    tuning: &Tuning,
) {
    let factors = HARM_ODDS
        .iter()
        .map(|odds| rate_log_factor(events, allowed, *odds, phi, cap));
    process.update(factors, duration, tuning);
}
