//! Synthetic traffic for the judge's tests: seeded, and only as real as the laws need.

use super::super::{Decision, Grounds, Judge, Judged, Position, Signal};
use crate::plan::{Guard, Hold};
use crate::signals::{Block, Cell};
use crate::{Duration, Weight};

/// A small seeded generator (xorshift64*): the same numbers everywhere, for ever.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        let mut dice = Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        for _ in 0..8 {
            dice.throw();
        }
        dice
    }

    fn throw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// From 0 up to 1.
    pub(super) fn share(&mut self) -> f64 {
        (self.throw() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        (self.throw() >> 33) as usize % limit
    }

    /// The sum of four even numbers, centred and scaled to a variance of 1: bell-shaped enough for latencies.
    pub(super) fn bell(&mut self) -> f64 {
        let bits = self.throw();
        let sum: u64 = (0..4).map(|i| bits >> (16 * i) & 0xFFFF).sum();
        (sum as f64 / 65_536.0 - 2.0) * 3.0_f64.sqrt()
    }
}

/// How one arm behaves at one moment.
#[derive(Clone, Copy)]
pub(super) struct Arm {
    pub(super) nodes: usize,
    pub(super) error_rate: f64,
    pub(super) median_us: f64,
    /// The share of answers that are `tail` times slower.
    pub(super) tail_share: f64,
    pub(super) tail: f64,
}

impl Arm {
    pub(super) const GOOD: Self = Self {
        nodes: 2,
        error_rate: 0.001,
        median_us: 20_000.0,
        tail_share: 0.02,
        tail: 4.0,
    };

    pub(super) fn failing(self, error_rate: f64) -> Self {
        Self { error_rate, ..self }
    }
}

/// The requests of one slice: `rate` in a second, split at `weight`.
pub(super) fn slice(
    dice: &mut Dice,
    weight: Weight,
    length: Duration,
    rate: f64,
    canary: Arm,
    stable: Arm,
) -> Block {
    let expected = rate * length.as_secs_f64();
    let count = (expected + expected.sqrt() * dice.bell()).round().max(0.0) as u64;
    let mut arms = [
        (canary, "canary", Vec::new()),
        (stable, "stable", Vec::new()),
    ]
    .map(|(arm, name, mut cells)| {
        for node in 0..arm.nodes {
            cells.extend((0..if name == "stable" { 8 } else { 1 }).map(|group| Cell {
                node: format!("{name}-{node}"),
                group,
                ..Cell::default()
            }));
        }
        (arm, cells)
    });
    for _ in 0..count {
        let (arm, cells) = &mut arms[usize::from(dice.share() >= weight.ratio())];
        let at = dice.below(cells.len());
        let cell = &mut cells[at];
        cell.requests += 1;
        if dice.share() < arm.error_rate {
            cell.bad += 1;
            continue;
        }
        let tail = if dice.share() < arm.tail_share {
            arm.tail
        } else {
            1.0
        };
        let octaves = (arm.median_us * tail / 100.0).log2() + 0.5 * dice.bell();
        cell.latency
            .add((32.0 * octaves).clamp(0.0, 639.0) as u16, 1);
    }
    let [(_, canary), (_, stable)] = arms;
    let seen = |cells: Vec<Cell>| cells.into_iter().filter(|cell| cell.requests > 0).collect();
    Block {
        weight,
        duration: length,
        canary: seen(canary),
        stable: seen(stable),
    }
}

pub(super) fn percent(percent: u8) -> Weight {
    Weight::from_percent(percent).unwrap()
}

/// The steps of the default plan, the bake included.
pub(super) fn ladder() -> Vec<Position> {
    const WEIGHTS: [u8; 6] = [1, 5, 10, 25, 50, 80];
    let position = |step: usize| Position {
        step,
        weight: percent(WEIGHTS[step]),
        next: WEIGHTS.get(step + 1).map(|next| percent(*next)),
        last_gate: step == 4,
        hold: Hold {
            least: Duration::from_secs(if step == 5 { 60 } else { 10 }),
            most: Duration::from_secs(if step == 4 { 600 } else { 300 }),
        },
    };
    (0..WEIGHTS.len()).map(position).collect()
}

/// How a simulated rollout ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Outcome {
    Promoted { seconds: u64 },
    RolledBack { seconds: u64, signal: Signal },
    Undecided,
}

/// One rollout under simulated traffic, driven as the controller does: a step forward at each pass.
pub(super) struct Simulated {
    pub(super) judge: Judge,
    pub(super) guard: Guard,
    pub(super) ladder: Vec<Position>,
    pub(super) step: usize,
    pub(super) seconds: u64,
    pub(super) dice: Dice,
    pub(super) judged: Vec<Judged>,
    pub(super) grounds: Vec<Grounds>,
}

impl Simulated {
    pub(super) fn new(seed: u64, guard: Guard) -> Self {
        Self {
            judge: Judge::new(&guard, &super::super::Baseline::default()),
            guard,
            ladder: ladder(),
            step: 0,
            seconds: 0,
            dice: Dice::new(seed),
            judged: Vec::new(),
            grounds: Vec::new(),
        }
    }

    pub(super) fn at(&self) -> &Position {
        &self.ladder[self.step]
    }

    /// Feeds one slice and follows the verdicts; says how it ended if it did.
    pub(super) fn feed(&mut self, slice: &Block) -> Option<Outcome> {
        let position = self.ladder[self.step].clone();
        let judged = self.judge.observe(slice, &self.guard, &position);
        self.seconds += slice.duration.as_secs();
        for judged in &judged {
            match &judged.verdict.decision {
                Decision::Fail { signal, .. } => {
                    return Some(Outcome::RolledBack {
                        seconds: self.seconds,
                        signal: signal.clone(),
                    });
                }
                Decision::Pass { .. } if position.next.is_none() => {
                    return Some(Outcome::Promoted {
                        seconds: self.seconds,
                    });
                }
                Decision::Pass { by } => {
                    self.grounds.push(*by);
                    self.step = position.step + 1;
                }
                Decision::Hold { .. } | Decision::Inconclusive { .. } => {}
            }
        }
        self.judged.extend(judged);
        None
    }

    /// Runs for at most `limit` seconds of traffic at `rate`; `arms` says how canary and stable behave at each second.
    pub(super) fn run(
        &mut self,
        limit: u64,
        rate: f64,
        arms: impl Fn(u64) -> (Arm, Arm),
    ) -> Outcome {
        while self.seconds < limit {
            let (canary, stable) = arms(self.seconds);
            let weight = self.at().weight;
            let slice = slice(
                &mut self.dice,
                weight,
                Duration::from_secs(1),
                rate,
                canary,
                stable,
            );
            if let Some(outcome) = self.feed(&slice) {
                return outcome;
            }
            if self.judged.len() > 4 {
                self.judged.drain(..self.judged.len() - 4);
            }
        }
        Outcome::Undecided
    }

    pub(super) fn last(&self) -> &Decision {
        &self
            .judged
            .last()
            .expect("a block was judged")
            .verdict
            .decision
    }
}
