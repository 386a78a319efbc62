//! Synthetic traffic: the requests of both arms, second by second, as counts that are drawn and not as requests.
//!
//! Inside a second everything is steady: how many requests come is Poisson, how many of them go to the canary, to a node,
//! or fail is binomial, and how the others spread over the latency buckets is multinomial. Between seconds the rate, the
//! error rate and the latency move as the scenario says, for both arms together.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Exp1, Geometric, Poisson, StandardNormal};
use rollout::judge::Baseline;
use rollout::{Block, Cell, Duration, Guard, Weight};

use super::latency::{Place, Shape, Tally, binomial};
use super::scenario::{ArmName, Bursts, Scenario, Sick, Wave};
use super::values::Positive;

/// The length of a slice. The proxies report each half second; no block is shorter than a second.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// Stable nodes from which the judge measures clusters between nodes; with fewer it needs client groups.
const NODES_TO_GROUP_BY: usize = 3;

/// Groups of clients.
const GROUPS: u8 = 8;

/// Requests and seconds that fill a block before the rollout, as in the judge.
const BLOCK_REQUESTS: u64 = 100;
const BLOCK_MAX: Duration = Duration::from_secs(10);

/// What all rollouts of a scenario at one rate share.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) scenario: Scenario,
    pub(super) rate: f64,
    stable: Shape,
    /// The canary's, once and while it differs.
    canary: Shape,
}

impl Model {
    pub(super) fn new(scenario: &Scenario, rate: Positive) -> Self {
        let latency = scenario.stable.latency;
        let mut changed = latency;
        changed.slow = scenario.canary.slow.or(latency.slow);
        Self {
            scenario: scenario.clone(),
            rate: rate.get(),
            stable: Shape::new(&latency, None),
            canary: Shape::new(&changed, scenario.canary.slowest),
        }
    }
}

/// One second of requests.
#[derive(Debug)]
pub(super) struct Slice {
    pub(super) block: Block,
    /// The canary's failures.
    pub(super) failed: u64,
    /// How many of the canary's requests would have failed on stable, in the mean.
    pub(super) failed_on_stable: f64,
}

impl Slice {
    /// Requests that went to the canary.
    pub(super) fn canary_requests(&self) -> u64 {
        self.block.canary.iter().map(|cell| cell.requests).sum()
    }
}

/// The traffic of one rollout.
#[derive(Debug)]
pub(super) struct World<'a> {
    model: &'a Model,
    dice: Xoshiro256PlusPlus,
    /// Seconds from the canary's first; negative before.
    now: f64,
    /// When the canary got every request.
    alone_since: Option<f64>,
    tide: Moment,
    errors: Moment,
    latency: Moment,
    burst: Burst,
    canary: Vec<Node>,
    stable: Vec<Node>,
    tally: Tally,
}

/// A wave as one rollout meets it.
#[derive(Debug, Clone, Copy)]
struct Moment {
    wave: Option<Wave>,
    /// Where in the period the rollout begins, from 0 to 1.
    phase: f64,
}

impl Moment {
    fn new(wave: Option<Wave>, dice: &mut Xoshiro256PlusPlus) -> Self {
        Self {
            wave,
            phase: dice.random(),
        }
    }

    fn factor(&self, now: f64) -> f64 {
        self.wave.map_or(1.0, |Wave { factor, period }| {
            let turns = now / period.seconds().max(1.0) + self.phase;
            factor.get().powf((turns * std::f64::consts::TAU).sin())
        })
    }
}

/// Whether there is a burst, and until when that is so.
#[derive(Debug, Clone, Copy)]
struct Burst {
    is_on: bool,
    until: f64,
}

impl Burst {
    /// Moves on to `now` and gives the burst that is on.
    fn at<'a>(
        &mut self,
        now: f64,
        bursts: Option<&'a Bursts>,
        dice: &mut Xoshiro256PlusPlus,
    ) -> Option<&'a Bursts> {
        let bursts = bursts?;
        while now >= self.until {
            self.is_on = !self.is_on;
            let mean = if self.is_on {
                bursts.lasts
            } else {
                bursts.every
            };
            let length: f64 = Exp1.sample(dice);
            // No gap or burst of nothing at all, or this would never end.
            self.until += (length * mean.seconds()).max(TICK.as_secs_f64());
        }
        self.is_on.then_some(bursts)
    }
}

/// One node as one rollout meets it.
#[derive(Debug, Clone)]
struct Node {
    name: String,
    /// Its error rate and its latency as multiples of its arm's.
    errors: f64,
    latency: f64,
    sick: Option<Sick>,
    /// When it got its first request.
    since: Option<f64>,
}

/// How an arm serves at one moment.
#[derive(Debug, Clone, Copy)]
struct Serving<'a> {
    errors: f64,
    median_us: f64,
    shape: &'a Shape,
}

impl<'a> World<'a> {
    pub(super) fn new(model: &'a Model, seed: u64) -> Self {
        let mut dice = Xoshiro256PlusPlus::seed_from_u64(seed);
        let Scenario { traffic, nodes, .. } = &model.scenario;
        let mut arm = |arm: ArmName, letter: char, count: u32| -> Vec<Node> {
            let lognormal = |sigma: f64, dice: &mut Xoshiro256PlusPlus| {
                let normal: f64 = StandardNormal.sample(dice);
                (sigma * normal).exp()
            };
            let node = |index: u32| Node {
                // Two digits, so that nodes are in the order of their names, as a block has them.
                name: format!("{letter}{index:02}"),
                errors: lognormal(nodes.errors_spread.get(), &mut dice),
                latency: lognormal(nodes.spread.get(), &mut dice),
                sick: nodes.sick.filter(|sick| sick.arm == arm && index == 0),
                since: None,
            };
            (0..count).map(node).collect()
        };
        let stable = arm(ArmName::Stable, 's', nodes.stable.0);
        let canary = if nodes.join {
            nodes.stable
        } else {
            nodes.canary
        };
        let canary = arm(ArmName::Canary, 'c', canary.0);
        let now = -traffic.before.seconds();
        Self {
            model,
            now,
            alone_since: None,
            tide: Moment::new(traffic.tide, &mut dice),
            errors: Moment::new(traffic.drift.errors, &mut dice),
            latency: Moment::new(traffic.drift.latency, &mut dice),
            burst: Burst {
                is_on: true,
                until: now,
            },
            canary,
            stable,
            tally: Tally::default(),
            dice,
        }
    }

    /// What is learned of stable before the rollout, in blocks such as the judge's own.
    pub(super) fn baseline(&mut self, guard: &Guard) -> Baseline {
        let mut baseline = Baseline::default();
        let mut open = Block::default();
        while self.now < 0.0 {
            open.append(&self.slice(Weight::ZERO, 0).block);
            if open.requests() >= BLOCK_REQUESTS || open.duration >= BLOCK_MAX {
                baseline.learn(&open, guard);
                open = Block::default();
            }
        }
        baseline
    }

    /// The next second at this weight, with so many canary nodes where they join one by one.
    pub(super) fn slice(&mut self, weight: Weight, canary_nodes: u32) -> Slice {
        let model = self.model;
        let Scenario { traffic, nodes, .. } = &model.scenario;
        let now = self.now;
        self.now += TICK.as_secs_f64();
        let burst = self.burst.at(now, traffic.bursts.as_ref(), &mut self.dice);
        let load = self.tide.factor(now) * burst.map_or(1.0, |burst| burst.factor.get());
        let errors = self.errors.factor(now) * burst.map_or(1.0, |burst| burst.errors.get());
        let latency = self.latency.factor(now) * burst.map_or(1.0, |burst| burst.latency.get());
        let (stable, canary) = self.serving(now, errors, latency, burst.is_some());

        let has_stopped = traffic.stops.is_some_and(|stops| now >= stops.seconds());
        let rate = if has_stopped { 0.0 } else { model.rate * load };
        let all = poisson(rate * TICK.as_secs_f64(), &mut self.dice);
        let to_canary = binomial(all, weight.ratio() * traffic.routed.get(), &mut self.dice);
        let serving_nodes = if nodes.join {
            canary_nodes as usize
        } else {
            self.canary.len()
        };

        let groups = if self.stable.len() < NODES_TO_GROUP_BY {
            GROUPS
        } else {
            1
        };
        let stable_cells = self.serve(ArmName::Stable, all - to_canary, stable, usize::MAX, groups);
        let canary_cells = self.serve(ArmName::Canary, to_canary, canary, serving_nodes, 1);
        Slice {
            failed: canary_cells.iter().map(|cell| cell.bad).sum(),
            failed_on_stable: to_canary as f64 * stable.errors,
            block: Block {
                weight,
                duration: TICK,
                canary: canary_cells,
                stable: stable_cells,
            },
        }
    }

    /// Since when the canary differs, or will; none while that is not known.
    fn differs_from(&self) -> Option<f64> {
        let change = &self.model.scenario.canary;
        match change.alone {
            None => Some(change.starts.seconds()),
            Some(after) => self.alone_since.map(|since| since + after.seconds()),
        }
    }

    /// Whether the canary begins to differ in the second that comes next, at this weight, in a scenario that counts from there.
    pub(super) fn counts_from_now(&mut self, weight: Weight) -> bool {
        if weight == Weight::ALL {
            self.alone_since.get_or_insert(self.now);
        }
        self.model.scenario.canary.alone.is_some()
            && self
                .differs_from()
                .is_some_and(|from| (from..from + TICK.as_secs_f64()).contains(&self.now))
    }

    /// How stable and the canary serve now.
    fn serving(
        &self,
        now: f64,
        errors: f64,
        latency: f64,
        in_burst: bool,
    ) -> (Serving<'a>, Serving<'a>) {
        let Scenario { stable, canary, .. } = &self.model.scenario;
        let of_stable = Serving {
            errors: (stable.errors.get() * errors).min(1.0),
            median_us: stable.latency.median_ms.get() * 1_000.0 * latency,
            shape: &self.model.stable,
        };
        let from = self.differs_from().filter(|from| now >= *from);
        let Some(from) = from.filter(|_| in_burst || !canary.only_in_bursts) else {
            return (of_stable, of_stable);
        };
        let since = now - from;
        let grown = if since < canary.grows.seconds() {
            since / canary.grows.seconds()
        } else {
            1.0
        };
        let excess = canary
            .errors
            .map_or(0.0, |errors| errors.get() - stable.errors.get());
        let slower = canary.slower.map_or(1.0, Positive::get);
        let of_canary = Serving {
            errors: (of_stable.errors + grown * excess).clamp(0.0, 1.0),
            median_us: of_stable.median_us * slower.powf(grown),
            shape: &self.model.canary,
        };
        (of_stable, of_canary)
    }

    /// `requests` of an arm, by node and group of clients: evenly, give or take chance.
    fn serve(
        &mut self,
        arm: ArmName,
        requests: u64,
        serving: Serving<'_>,
        nodes_max: usize,
        groups: u8,
    ) -> Vec<Cell> {
        let Self {
            model,
            dice,
            tally,
            now,
            ..
        } = self;
        let nodes = match arm {
            ArmName::Canary => &mut self.canary,
            ArmName::Stable => &mut self.stable,
        };
        let cold_start = match arm {
            ArmName::Canary => model.scenario.canary.cold_start,
            ArmName::Stable => None,
        };
        let clusters = model.scenario.stable.clusters.get();
        let count = nodes.len().min(nodes_max);
        let mut cells = Vec::with_capacity(count * usize::from(groups));
        let mut left = requests;
        let mut places = count * usize::from(groups);
        for node in &mut nodes[..count] {
            let mut errors = (serving.errors * node.errors).min(1.0);
            let mut median_us = serving.median_us * node.latency;
            if let Some(sick) = node.sick {
                errors = either(errors, sick.errors.get());
                median_us *= sick.slower.get();
            }
            if let Some(cold) = cold_start
                && node
                    .since
                    .is_none_or(|since| *now - since <= cold.lasts.seconds())
            {
                errors = either(errors, cold.errors.get());
                median_us *= cold.slower.get();
            }
            for group in 0..groups {
                let requests = binomial(left, 1.0 / places as f64, dice);
                left -= requests;
                places -= 1;
                if requests == 0 {
                    continue;
                }
                node.since.get_or_insert(*now);
                let bad = failures(requests, errors, clusters, dice);
                serving
                    .shape
                    .draw(requests - bad, Place::of_us(median_us), dice, tally);
                cells.push(Cell {
                    node: node.name.clone(),
                    group,
                    requests,
                    bad,
                    latency: tally.take(),
                    ..Cell::default()
                });
            }
        }
        cells
    }
}

/// The chance of one thing or another, which know nothing of each other.
fn either(one: f64, other: f64) -> f64 {
    one + other - one * other
}

/// How many of `requests` fail: each by itself, or in clusters of this mean size, whose lengths are geometric.
fn failures(requests: u64, chance: f64, clusters: f64, dice: &mut Xoshiro256PlusPlus) -> u64 {
    if clusters <= 1.0 {
        return binomial(requests, chance, dice);
    }
    let count = poisson(requests as f64 * chance / clusters, dice);
    let more = Geometric::new(1.0 / clusters);
    let failed: u64 = (0..count)
        .map(|_| 1 + more.map_or(0, |more| more.sample(dice)))
        .sum();
    failed.min(requests)
}

/// How many come when so many come in the mean.
fn poisson(mean: f64, dice: &mut Xoshiro256PlusPlus) -> u64 {
    // Nothing can come where the mean is 0, which is no Poisson distribution to the library.
    Poisson::new(mean).map_or(0, |poisson| poisson.sample(dice) as u64)
}
