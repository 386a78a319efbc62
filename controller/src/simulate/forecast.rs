//! What a rollout by one `friday.yml` is to expect: how long a good release takes, how soon a worse one is caught and at
//! what price, and which proofs the traffic is too low for.
//!
//! Times and shares come from releases that are simulated with the file's own plan, bake, deadlines and guard. Beside them
//! stands what the proof of each step's margin for errors costs by the formula of JUDGE 2.10; it says how much traffic, or
//! time, or margin would do where there is too little.

use rayon::iter::{IntoParallelIterator, ParallelIterator};
use rollout::judge::{
    EXCESS_GRID, Margin, Position, Proof, RULES_VERSION, asked_at, canary_requests_for_errors,
};
use rollout::{Duration, Phase, Rollout, Skipped, Spec, Step, Weight};
use serde::Serialize;

use super::release::{self, End, Outcome};
use super::scenario::{Change, Expect, Nodes, Release, Scenario, Service, Source, Traffic};
use super::seed_of;
use super::summary::{Ratio, Spread};
use super::traffic::Model;
use super::values::{Name, Percent, Positive};

/// Releases of each kind at each rate. With 100 a median is known within a tenth or so, and a p95 is the fifth worst.
pub const RELEASES: u32 = 100;

/// Fewest, where a plan takes so long that 100 would keep one waiting.
const RELEASES_MIN: u32 = 20;

/// Seconds of requests that are simulated before the number of releases shrinks: some seconds on two cores.
const SECONDS_MAX: f64 = 1e6;

/// Share of good releases that pass a step without proof from which that is to be expected.
const EXPECTED_FROM: f64 = 0.5;

/// How many more requests than the middling release needs are asked for where there are too few: with so many about nine
/// releases in ten have their proof in time, where without more it would be five.
const FOR_MOST: f64 = 1.3;

/// The 99th percentile of the normal distribution.
const NORMAL_P99: f64 = 2.326_348;

/// What is asked of a forecast.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// Requests a second over both arms; a forecast for each.
    pub rates: Vec<Positive>,
    /// Stable's share of failing requests.
    pub stable_errors: Percent,
    /// Releases of each kind at each rate; none for as many as take some seconds.
    pub releases: Option<u32>,
    /// Where chance begins.
    pub seed: u64,
}

/// What is to be expected.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Forecast {
    /// The judge's rules.
    pub rules: u32,
    /// What chance began with.
    pub seed: u64,
    /// Simulated releases behind each number.
    pub releases: u32,
    /// What is released.
    pub service: String,
    /// Stable's share of failing requests.
    pub stable_error_ratio: f64,
    /// Stable's median and 99th percentile of latency, in seconds.
    pub stable_latency_seconds: [f64; 2],
    /// How long the canary stays alone at 100 % after the times below, in seconds.
    pub keep_warm_seconds: f64,
    /// Gates; the times below are without the wait at them.
    pub gates: usize,
    /// Checks of the guard; without data from them no gate opens, and they are left out here.
    pub checks: usize,
    /// Whether the guard compares answers; left out here likewise.
    pub answers: bool,
    /// One for each rate.
    pub rates: Vec<AtRate>,
}

/// What is to be expected at one rate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AtRate {
    /// Requests a second over both arms.
    pub requests_per_second: f64,
    /// The step that a rollout begins with, an index into the plan.
    pub first_step: usize,
    /// The steps that are passed over because they are too small for this traffic; none where none is.
    pub skipped: Option<Skipped>,
    /// A release that is as stable is.
    pub good: Good,
    /// Releases that are worse.
    pub regressions: Vec<Regression>,
    /// The steps with a weight, in order.
    pub steps: Vec<StepForecast>,
}

/// What becomes of a good release.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Good {
    /// Those that were promoted.
    pub promoted: Ratio,
    /// Those that were rolled back for nothing.
    pub rolled_back: Ratio,
    /// Those that ended on a deadline.
    pub undecided: Ratio,
    /// From the canary's first request to the end of the bake.
    pub seconds: Option<Spread>,
}

/// What becomes of a worse release.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Regression {
    /// In what it is worse.
    pub worse: Worse,
    /// Those that were rolled back on evidence.
    pub caught: Ratio,
    /// Those that were promoted.
    pub promoted: Ratio,
    /// Of those that were caught: from the canary's first request.
    pub seconds: Option<Spread>,
    /// Requests that the canary got until then.
    pub canary_requests: Option<Spread>,
    /// Of these, the failed.
    pub failed: Option<Spread>,
}

/// In what a release is worse than stable.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Worse {
    /// So much larger a share of its requests fails.
    Errors(f64),
    /// Its answers take so many times as long.
    Latency(f64),
}

/// The releases that are worse: an error here and there, one in twenty, one in five; and slower by a fifth.
const REGRESSIONS: [Worse; 4] = [
    Worse::Errors(0.01),
    Worse::Errors(0.05),
    Worse::Errors(0.20),
    Worse::Latency(1.2),
];

/// What is to be expected of one step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepForecast {
    /// Its index in the plan, from 0.
    pub step: usize,
    /// The canary's share in percent.
    pub weight_percent: f64,
    /// Whether it is passed over.
    pub is_skipped: bool,
    /// Its shortest time.
    pub least_seconds: f64,
    /// The time from which it may pass without proof.
    pub most_seconds: f64,
    /// What is proven before the next weight.
    pub margins: Vec<Margin>,
    /// Canary requests that prove the margin for errors, those of the steps before included: by the formula.
    pub canary_requests: f64,
    /// How long that takes in this step, with the warm-up, if nothing ends it before.
    pub proof_seconds: f64,
    /// How long good releases took, simulated.
    pub seconds: Option<Spread>,
    /// Good releases that passed it, simulated.
    pub passed: Ratio,
    /// Those of them that passed without proof because its time was over.
    pub without_proof: Ratio,
    /// What would do, where the traffic is too low.
    pub too_low: Option<TooLow>,
}

/// A proof that the traffic is too low for, and what would do: each of them without the others.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TooLow {
    /// The margin that takes longest.
    pub margin: Margin,
    /// Canary requests that prove it, about; those of the steps before included.
    pub canary_requests: f64,
    /// How long they take in this step, with the warm-up.
    pub seconds: f64,
    /// Requests a second over both arms that would do for most releases.
    pub requests_per_second: f64,
    /// The longest time of the hold that would.
    pub hold_seconds: f64,
    /// The `guard.errors.margin` that would, where it is about errors and one is wide enough.
    pub errors_margin: Option<f64>,
}

/// What is to be expected of rollouts by `spec`.
#[must_use]
pub fn forecast(spec: &Spec, question: &Question) -> Forecast {
    let (checks, answers) = (spec.guard.checks.len(), spec.guard.answers.is_some());
    let spec = simulated(spec);
    let kinds = || std::iter::once(None).chain(REGRESSIONS.map(Some));
    let models: Vec<(Model, Rollout)> = question
        .rates
        .iter()
        .flat_map(|rate| kinds().map(|worse| model(worse, *rate, question.stable_errors)))
        .map(|model| {
            let beginning = release::begin(spec.clone(), &model);
            (model, beginning)
        })
        .collect();
    let releases = question
        .releases
        .unwrap_or_else(|| affordable(&spec, models.len()));
    let outcomes: Vec<Outcome> = (0..models.len() * releases as usize)
        .into_par_iter()
        .map(|index| {
            let (model, beginning) = &models[index / releases as usize];
            let number = index % releases as usize;
            release::run(model, beginning, seed_of(question.seed, model, number))
        })
        .collect();
    let mut rows = models.iter().zip(outcomes.chunks(releases.max(1) as usize));
    let rates = question.rates.iter().map(|rate| {
        let mut next = || {
            rows.next()
                .expect("there is a row for each kind of release at each rate")
        };
        let ((_, beginning), good) = next();
        AtRate {
            requests_per_second: rate.get(),
            first_step: beginning.skipped.map_or(0, |skipped| skipped.steps),
            skipped: beginning.skipped,
            good: Good::of(good),
            steps: steps(beginning, rate.get(), question.stable_errors.get(), good),
            regressions: REGRESSIONS
                .into_iter()
                .map(|worse| Regression::of(worse, next().1))
                .collect(),
        }
    });
    let is_gate = |step: &&Step| matches!(step, Step::Gate { .. });
    let latency = Service::default().latency;
    let median_seconds = latency.median_ms.get() / 1000.0;
    Forecast {
        rules: RULES_VERSION,
        seed: question.seed,
        releases,
        service: spec.service.to_string(),
        stable_error_ratio: question.stable_errors.get(),
        stable_latency_seconds: [
            median_seconds,
            median_seconds * (NORMAL_P99 * latency.sigma.get()).exp(),
        ],
        keep_warm_seconds: spec.keep_warm.as_secs_f64(),
        gates: spec.plan.steps().iter().filter(is_gate).count(),
        checks,
        answers,
        rates: rates.collect(),
    }
}

/// The spec without what is not simulated: nobody answers checks here, nor do answers name kinds, and without these no gate
/// would open.
fn simulated(spec: &Spec) -> Spec {
    let mut spec = spec.clone();
    spec.guard.checks = Vec::new();
    spec.guard.answers = None;
    spec
}

/// How many releases of each of so many kinds take some seconds.
fn affordable(spec: &Spec, kinds: usize) -> u32 {
    let holds = spec.plan.steps().iter().map(|step| match step {
        Step::Weight { hold, .. } => hold.least,
        Step::Gate { .. } => Duration::ZERO,
    });
    let shortest = holds.sum::<Duration>() + spec.bake.period + spec.guard.warm_up;
    let affordable = SECONDS_MAX / (shortest.as_secs_f64().max(1.0) * kinds.max(1) as f64);
    affordable.clamp(f64::from(RELEASES_MIN), f64::from(RELEASES)) as u32
}

/// The traffic of a release that is good, or worse in this.
fn model(worse: Option<Worse>, rate: Positive, stable_errors: Percent) -> Model {
    let mut canary = Change::default();
    let name = match worse {
        None => "good".to_owned(),
        Some(Worse::Errors(more)) => {
            canary.errors = Some(Percent((stable_errors.get() + more).min(1.0)));
            format!("errors-{:.0}", more * 100.0)
        }
        Some(Worse::Latency(factor)) => {
            canary.slower = Some(Positive(factor));
            format!("latency-{:.0}", factor * 100.0)
        }
    };
    let scenario = Scenario {
        name: Name::try_from(name).expect("small letters, a hyphen and digits are a name"),
        about: String::new(),
        from: Source::Own,
        expect: Expect::Any,
        rates: vec![rate],
        published: Vec::new(),
        traffic: Traffic::default(),
        stable: Service {
            errors: stable_errors,
            ..Service::default()
        },
        canary,
        nodes: Nodes::default(),
        // The rollout brings its own.
        plan: Release::default(),
    };
    Model::new(&scenario, rate)
}

/// The outcomes with this end, and what is known of them.
fn spread(
    outcomes: &[Outcome],
    is: impl Fn(&End) -> bool,
    of: impl Fn(&Outcome) -> f64,
) -> Option<Spread> {
    let these = outcomes.iter().filter(|outcome| is(&outcome.end));
    Spread::of(these.map(of).collect())
}

fn share(outcomes: &[Outcome], is: impl Fn(&End) -> bool) -> Ratio {
    let count = outcomes.iter().filter(|outcome| is(&outcome.end)).count();
    Ratio::new(count as u64, outcomes.len() as u64)
}

fn is_caught(end: &End) -> bool {
    matches!(end, End::RolledBack(_))
}

fn is_promoted(end: &End) -> bool {
    *end == End::Promoted
}

impl Good {
    fn of(outcomes: &[Outcome]) -> Self {
        Self {
            promoted: share(outcomes, is_promoted),
            rolled_back: share(outcomes, is_caught),
            undecided: share(outcomes, |end| *end == End::Undecided),
            seconds: spread(outcomes, is_promoted, |outcome| outcome.seconds),
        }
    }
}

impl Regression {
    fn of(worse: Worse, outcomes: &[Outcome]) -> Self {
        Self {
            worse,
            caught: share(outcomes, is_caught),
            promoted: share(outcomes, is_promoted),
            seconds: spread(outcomes, is_caught, |outcome| outcome.seconds),
            canary_requests: spread(outcomes, is_caught, |outcome| outcome.canary_requests),
            failed: spread(outcomes, is_caught, |outcome| outcome.failed),
        }
    }
}

/// What is to be expected of each step at this rate, where `good` are releases that are as stable is.
fn steps(beginning: &Rollout, rate: f64, error_rate: f64, good: &[Outcome]) -> Vec<StepForecast> {
    let spec = &beginning.spec;
    let first = beginning.skipped.map_or(0, |skipped| skipped.steps);
    let mut flow = Flow {
        rate,
        error_rate,
        counted: 0.0,
        warm_up: spec.guard.warm_up.as_secs_f64(),
    };
    let mut steps = Vec::new();
    for (step, planned) in spec.plan.steps().iter().enumerate() {
        let Step::Weight { weight, hold } = planned else {
            continue;
        };
        let position = position(beginning, step);
        let asked = asked_at(&position, error_rate, &spec.guard);
        let cost = asked.iter().map(|proof| cost_of(proof, error_rate));
        let canary_requests = cost.flatten().fold(0.0, f64::max);
        let is_skipped = step < first;
        let mut forecast = StepForecast {
            step,
            weight_percent: weight.ratio() * 100.0,
            is_skipped,
            least_seconds: hold.least.as_secs_f64(),
            most_seconds: hold.most.as_secs_f64(),
            margins: asked.iter().map(|proof| proof.margin).collect(),
            canary_requests,
            proof_seconds: flow.seconds(canary_requests, *weight),
            seconds: None,
            passed: Ratio::new(0, good.len() as u64),
            without_proof: Ratio::new(0, 0),
            too_low: None,
        };
        if !is_skipped {
            forecast.simulated(good);
            forecast.too_low = flow.too_low(&forecast, &asked, &position, spec, good);
            flow.pass(&forecast, *weight);
        }
        steps.push(forecast);
    }
    steps
}

/// What the judge is told at a step.
fn position(rollout: &Rollout, step: usize) -> Position {
    let mut there = rollout.clone();
    there.phase = Phase::Analyzing {
        step,
        elapsed: Duration::ZERO,
    };
    let (_, position) = there.position().expect("an analyzed step is judged");
    position
}

/// Canary requests that a proof takes by the formula; there is one for errors alone.
fn cost_of(proof: &Proof, error_rate: f64) -> Option<f64> {
    match proof.margin {
        Margin::Errors { excess } => {
            Some(canary_requests_for_errors(excess, error_rate, proof.needed))
        }
        Margin::Latency { .. } => None,
    }
}

/// The same for a proof that was not there after so many canary requests: evidence grows with them. None where there is
/// hardly any.
fn cost_of_unproven(proof: &Proof, counted: u64, error_rate: f64) -> Option<f64> {
    let by_growth = || {
        // The mean of four bets began that far below the best of them.
        let grown = proof.log_e + 4_f64.ln();
        (grown > 0.1).then(|| counted as f64 * (proof.needed + 4_f64.ln()) / grown)
    };
    cost_of(proof, error_rate).or_else(by_growth)
}

impl StepForecast {
    fn simulated(&mut self, good: &[Outcome]) {
        let passed: Vec<_> = passed(good, self.step).collect();
        self.seconds = Spread::of(passed.iter().map(|passed| passed.seconds).collect());
        self.passed = Ratio::new(passed.len() as u64, good.len() as u64);
        let without = passed.iter().filter(|passed| !passed.unproven.is_empty());
        self.without_proof = Ratio::new(without.count() as u64, passed.len() as u64);
    }
}

/// What the releases say of one step.
fn passed(good: &[Outcome], step: usize) -> impl Iterator<Item = &release::Passed> {
    good.iter()
        .flat_map(|outcome| &outcome.passed)
        .filter(move |passed| passed.step == step)
}

/// Canary requests on their way through the steps, as many as come in the mean.
#[derive(Debug, Clone, Copy)]
struct Flow {
    /// Requests a second over both arms.
    rate: f64,
    /// Stable's share of failing requests.
    error_rate: f64,
    /// Canary requests that counted in the steps before.
    counted: f64,
    /// Seconds of the warm-up that are left, in which none counts.
    warm_up: f64,
}

impl Flow {
    /// How long a step of this weight takes until so many canary requests counted.
    fn seconds(&self, canary_requests: f64, weight: Weight) -> f64 {
        let more = (canary_requests - self.counted).max(0.0);
        self.warm_up + more / (weight.ratio() * self.rate)
    }

    /// The same the other way: what counts by the end of so many seconds.
    fn counted_after(&self, seconds: f64, weight: Weight) -> f64 {
        self.counted + (seconds - self.warm_up).max(0.0) * weight.ratio() * self.rate
    }

    /// Moves on to the step after this one.
    fn pass(&mut self, step: &StepForecast, weight: Weight) {
        let seconds = step
            .seconds
            .map_or(step.most_seconds, |spread| spread.median)
            .max(step.least_seconds);
        self.counted = self.counted_after(seconds, weight);
        self.warm_up = (self.warm_up - seconds).max(0.0);
    }

    /// What would do for a step that good releases pass without proof.
    fn too_low(
        &self,
        step: &StepForecast,
        asked: &[Proof],
        position: &Position,
        spec: &Spec,
        good: &[Outcome],
    ) -> Option<TooLow> {
        let is_late = step.proof_seconds > step.most_seconds;
        let is_expected = step.without_proof.ratio >= EXPECTED_FROM
            || (step.passed.ratio < EXPECTED_FROM && is_late);
        if !is_expected {
            return None;
        }
        // The margin that is dearest, in the middle of the releases that lacked its proof.
        let dearest = asked.iter().filter_map(|asked| {
            let costs = passed(good, step.step).flat_map(|passed| {
                let of_margin = |proof: &&Proof| proof.margin == asked.margin;
                let unproven = passed.unproven.iter().filter(of_margin);
                unproven
                    .filter_map(|proof| cost_of_unproven(proof, passed.counted, self.error_rate))
            });
            let simulated = Spread::of(costs.collect()).map(|spread| spread.median);
            let by_formula = cost_of(asked, self.error_rate).filter(|_| is_late);
            Some((asked.margin, simulated.or(by_formula)?))
        });
        let (margin, canary_requests) = dearest.max_by(|a, b| a.1.total_cmp(&b.1))?;
        let Position { weight, next, .. } = position;
        let available = self.counted_after(step.most_seconds, *weight);
        // An estimate may be below what was not enough.
        let canary_requests = canary_requests.max(available);
        let for_most = FOR_MOST * canary_requests;
        let counting = (step.most_seconds - self.warm_up).max(1.0);
        let errors_margin = EXCESS_GRID.iter().rev().find_map(|excess| {
            let kappa = if position.last_gate {
                *excess
            } else {
                excess * next.map_or(1.0, Weight::ratio)
            };
            let proof = asked.first()?;
            let cost = canary_requests_for_errors(*excess, self.error_rate, proof.needed);
            let is_wider = kappa > spec.guard.errors_margin * 1.001;
            (is_wider && FOR_MOST * cost <= available).then_some(kappa)
        });
        Some(TooLow {
            margin,
            canary_requests,
            seconds: self.seconds(canary_requests, *weight),
            requests_per_second: (for_most - self.counted) / (weight.ratio() * counting),
            hold_seconds: self.seconds(for_most, *weight),
            errors_margin: errors_margin.filter(|_| matches!(margin, Margin::Errors { .. })),
        })
    }
}
