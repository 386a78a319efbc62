//! Whether the traffic is what the judge thinks it is: the sample ratio, stable's own health, and counters that were
//! scraped (JUDGE 2.8).

use serde::{Deserialize, Serialize};

use super::mixture::{Log, log_mean_exp};
use crate::Duration;
use crate::plan::Tuning;
use crate::weight::Weight;

/// How far the canary's odds of being chosen may be off, both ways: from a fifth to twice.
const RATIO_ODDS: [f64; 6] = [1.0 / 2.0, 2.0 / 3.0, 5.0 / 6.0, 6.0 / 5.0, 3.0 / 2.0, 2.0];

/// Evidence from which routing counts as broken: 1 rollout in 1 000 is held for nothing.
pub(crate) const RATIO_ALARM: f64 = 1_000.0;

/// Evidence that requests are not split as the weights say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SampleRatio {
    bets: [Log; RATIO_ODDS.len()],
    /// Canary requests that the weights asked for.
    expected: f64,
    /// Canary requests that came.
    seen: u64,
}

impl Default for SampleRatio {
    fn default() -> Self {
        Self {
            bets: [Log::EVEN; RATIO_ODDS.len()],
            expected: 0.0,
            seen: 0,
        }
    }
}

impl SampleRatio {
    /// Takes the routed counts of one block.
    pub(crate) fn block(&mut self, weight: Weight, canary: u64, all: u64) {
        for (bet, odds) in self.bets.iter_mut().zip(RATIO_ODDS) {
            bet.0 +=
                canary as f64 * odds.ln() - all as f64 * (weight.ratio() * (odds - 1.0)).ln_1p();
        }
        self.expected += weight.ratio() * all as f64;
        self.seen += canary;
    }

    /// The logarithm of the evidence so far.
    pub(crate) fn log_e(&self) -> f64 {
        log_mean_exp(&self.bets)
    }

    /// Whether routing is broken.
    pub(crate) fn is_broken(&self) -> bool {
        self.log_e() >= RATIO_ALARM.ln()
    }

    /// Canary requests that the weights asked for, and those that came.
    pub(crate) fn expected_and_seen(&self) -> (f64, u64) {
        (self.expected, self.seen)
    }
}

/// A share of bad requests, the recent ones counting more.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct FadingRate {
    requests: f64,
    bad: f64,
}

impl FadingRate {
    /// Lets what was learned fade to `share` of itself and adds new counts.
    pub(crate) fn update(&mut self, share: f64, requests: u64, bad: u64) {
        self.requests = self.requests * share + requests as f64;
        self.bad = self.bad * share + bad as f64;
    }

    /// The share of bad ones; 0 while there are none to speak of.
    pub(crate) fn rate(&self) -> f64 {
        if self.requests > 0.0 {
            self.bad / self.requests
        } else {
            0.0
        }
    }

    /// The share as it is after `requests` more of which a share of `rate` is bad.
    pub(crate) fn rate_with_prior(&self, requests: f64, rate: f64) -> f64 {
        (self.bad + requests * rate) / (self.requests + requests)
    }

    /// The share, if there are at least `requests` to know it from.
    pub(crate) fn rate_of(&self, requests: f64) -> Option<f64> {
        (self.requests >= requests).then(|| self.rate())
    }
}

/// By what a count fades in `duration` with this half-life; a half-life of nothing forgets all.
pub(crate) fn fade(duration: Duration, half_life: Duration) -> f64 {
    (-duration.as_secs_f64() / half_life.as_secs_f64().max(1e-3)).exp2()
}

/// Half-life of the error rate that says whether stable is in trouble now: short enough to notice within a minute, long
/// enough that one failed block at a few requests a second is not trouble.
const HEALTH_HALF_LIFE: Duration = Duration::from_secs(30);

/// Requests from which a rate "before the rollout" is known: with 100, a rate of 2 % is 2 errors give or take 1.4.
const BEFORE_REQUESTS_MIN: f64 = 100.0;

/// Stable is in trouble above this many times its rate before the rollout, and above [`TROUBLE_RATE`].
const TROUBLE_FACTOR: f64 = 3.0;

/// No error rate below this is trouble, whatever it was before.
const TROUBLE_RATE: f64 = 0.02;

/// Errors it takes to speak of trouble; fewer are noise at low traffic.
const TROUBLE_BAD_MIN: f64 = 3.0;

/// Whether stable itself is well: while it is not, margins that lean on its error rate mean nothing, so no gate opens.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct StableHealth {
    /// Its error rate before the rollout or, if nothing was known, at the end of the warm-up.
    before: Option<f64>,
    recent: FadingRate,
}

impl StableHealth {
    /// The health of a stable release about which this was learned before the rollout.
    pub(crate) fn new(known: &FadingRate) -> Self {
        Self {
            before: known.rate_of(BEFORE_REQUESTS_MIN),
            recent: FadingRate::default(),
        }
    }

    /// Takes one block of stable; `known` is what was learned of it so far, and serves as "before" when the warm-up is over
    /// and nothing better is known.
    pub(crate) fn block(
        &mut self,
        duration: Duration,
        requests: u64,
        bad: u64,
        known: &FadingRate,
        warm: bool,
    ) {
        self.recent
            .update(fade(duration, HEALTH_HALF_LIFE), requests, bad);
        if self.before.is_none() && !warm {
            self.before = known.rate_of(BEFORE_REQUESTS_MIN);
        }
    }

    /// Its error rate now and before, if it is in trouble.
    pub(crate) fn trouble(&self) -> Option<(f64, f64)> {
        let before = self.before?;
        let now = self.recent.rate();
        let troubled = self.recent.bad >= TROUBLE_BAD_MIN
            && now > TROUBLE_RATE
            && now > TROUBLE_FACTOR * before;
        troubled.then_some((now, before))
    }
}

/// What a scraped counter says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CounterStep {
    /// How much it grew since the last sample; none if this is no sample.
    pub delta: Option<f64>,
    /// Whether it began again from 0, that is whether its process restarted.
    pub reset: bool,
}

/// The growth of a scraped counter. What is no number, infinite or negative is no sample, which is not the same as no
/// growth; a value below the one before is a restart, and what it shows has grown since.
#[must_use]
pub fn counter_delta(old: Option<f64>, new: Option<f64>) -> CounterStep {
    let step = |delta, reset| CounterStep { delta, reset };
    let Some(new) = new.filter(|new| new.is_finite() && *new >= 0.0) else {
        return step(None, false);
    };
    match old {
        None => step(Some(0.0), false),
        Some(old) if new < old => step(Some(new), true),
        Some(old) => step(Some(new - old), false),
    }
}

/// Canary restarts within five minutes, with none on stable, that end a rollout. One may be a node's fault.
const RESTARTS_MAX: u32 = 2;

/// Whether so many restarts in the last five minutes speak against the canary.
pub(crate) fn restarts_condemn(canary: u32, stable: u32) -> bool {
    canary >= RESTARTS_MAX && stable == 0
}

/// Whether the total evidence of harm closes the gates without yet being enough for a rollback.
pub(crate) fn is_suspicious(log_e_total: f64, tuning: &Tuning) -> bool {
    log_e_total >= tuning.suspicion.ln()
}
