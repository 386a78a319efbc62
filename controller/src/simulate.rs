//! The simulator: the judge and the state machine as they are, on synthetic traffic, thousands of releases a minute.
//!
//! [`read`] takes scenarios from a file, [`run`] releases each of them many times, and a [`Row`] says what came of it: how
//! many were rolled back, after how long and at what price, how many were promoted and how soon, and whether that keeps
//! what the judge promises. [`forecast`] asks the same of one `friday.yml`. Nothing of the decision is rebuilt here; what is
//! simulated is requests.
//!
//! What it leaves out: the gauges of nodes, restarts, sticky clients, and the half second that a new weight takes to reach
//! the proxies.

mod forecast;
mod latency;
mod release;
mod scenario;
mod summary;
mod traffic;
mod values;

#[cfg(test)]
mod tests;

use rayon::iter::{IntoParallelIterator, ParallelIterator};
use rollout::Rollout;
use rollout::judge::RULES_VERSION;
use serde::Serialize;

pub use forecast::{
    AtRate, Forecast, Good, Question, RELEASES, Regression, StepForecast, TooLow, Worse, forecast,
};
pub use scenario::{Expect, Published, SHIPPED, SHIPPED_NAME, Scenario, Source, read};
pub use summary::{Comparison, Measure, Promise, Ratio, Row, Spread};
pub use values::{Name, Percent, Positive, ValueError};

use release::Outcome;
use summary::Heading;
use traffic::Model;

/// What a simulation came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Simulation {
    /// The judge's rules.
    pub rules: u32,
    /// What it was seeded with: the same seed, scenarios and rules give the same rows, on any number of threads.
    pub seed: u64,
    /// Releases for each row.
    pub releases: u32,
    /// One for each scenario and rate, in the file's order.
    pub rows: Vec<Row>,
}

/// Releases every scenario `releases` times at each of its rates, on all threads that rayon has.
#[must_use]
pub fn run(scenarios: &[Scenario], releases: u32, seed: u64) -> Simulation {
    let models: Vec<(Model, Rollout)> = scenarios
        .iter()
        .flat_map(|scenario| {
            scenario
                .rates
                .iter()
                .map(|rate| Model::new(scenario, *rate))
        })
        .map(|model| {
            let beginning = release::beginning(&model);
            (model, beginning)
        })
        .collect();
    // All at once, so that a slow row at the end does not leave threads idle.
    let outcomes: Vec<Outcome> = (0..models.len() * releases as usize)
        .into_par_iter()
        .map(|index| {
            let (model, beginning) = &models[index / releases as usize];
            let number = index % releases as usize;
            release::run(model, beginning, seed_of(seed, model, number))
        })
        .collect();
    let rows = models.iter().zip(outcomes.chunks(releases.max(1) as usize));
    Simulation {
        rules: RULES_VERSION,
        seed,
        releases,
        rows: rows
            .map(|((model, beginning), outcomes)| Row::new(heading(model, beginning), outcomes))
            .collect(),
    }
}

fn heading(model: &Model, beginning: &Rollout) -> Heading {
    let scenario = &model.scenario;
    let published = scenario.published.iter().map(|published| published.value);
    Heading {
        scenario: scenario.name.as_str().to_owned(),
        from: scenario.from,
        expect: scenario.expect,
        rate: model.rate,
        published: published
            .into_iter()
            .find(|published| published.rate.get() == model.rate),
        alpha: beginning.spec.guard.alpha,
    }
}

/// The seed of one release: of its own name and not of its place, so that it is the same whatever else is run (FNV-1a).
fn seed_of(seed: u64, model: &Model, number: usize) -> u64 {
    let name = model.scenario.name.as_str().bytes();
    let numbers = [seed, model.rate.to_bits(), number as u64];
    numbers
        .into_iter()
        .flat_map(u64::to_le_bytes)
        .chain(name)
        .fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        })
}
