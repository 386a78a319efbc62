//! Which nodes serve each arm: the cold ones are left out, and one sick node among many is named (JUDGE 2.6, 2.13).

use serde::{Deserialize, Serialize};

use super::verdict::SickNode;
use crate::Duration;
use crate::plan::Guard;
use crate::serial::millis;
use crate::signals::{Block, Cell};

/// Nodes remembered on each arm. What comes beyond is judged like all others, without a warm-up of its own.
const NODES_MAX: usize = 64;

/// A node that got no request for so long is forgotten, and warms up again if it comes back.
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// One node of one arm, as its requests show it. Times are block time since the judge began.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Node {
    name: String,
    /// A block that ends by then is one of a cold node.
    #[serde(rename = "cold_until_ms", with = "millis")]
    cold_until: Duration,
    #[serde(rename = "seen_ms", with = "millis")]
    seen: Duration,
    requests: u64,
    bad: u64,
}

/// The nodes of both arms, sorted by name.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Roster {
    canary: Vec<Node>,
    stable: Vec<Node>,
    /// Block time since the judge began.
    #[serde(rename = "clock_ms", with = "millis")]
    clock: Duration,
}

impl Roster {
    /// Meets the nodes of a block. A canary node is cold for one warm-up from its first request on. A stable node that is
    /// first seen before the rollout's own warm-up is over was there all along; a later one is cold like a canary's.
    pub(crate) fn meet(&mut self, block: &Block, rollout_is_warming: bool, guard: &Guard) {
        let begin = self.clock;
        self.clock += block.duration;
        let cold_until = begin + guard.warm_up;
        meet(&mut self.canary, &block.canary, cold_until, self.clock);
        let stable_cold_until = if rollout_is_warming {
            Duration::ZERO
        } else {
            cold_until
        };
        meet(
            &mut self.stable,
            &block.stable,
            stable_cold_until,
            self.clock,
        );
    }

    /// Whether the block just met is too early for this canary node.
    pub(crate) fn canary_is_cold(&self, cell: &Cell) -> bool {
        is_cold(&self.canary, cell, self.clock)
    }

    /// Whether the block just met is too early for this stable node.
    pub(crate) fn stable_is_cold(&self, cell: &Cell) -> bool {
        is_cold(&self.stable, cell, self.clock)
    }

    /// The canary node that has more of the bad requests than chance would give it, if there is one.
    pub(crate) fn sick_canary(&self) -> Option<SickNode> {
        let nodes = self.canary.iter().filter(|node| node.requests > 0);
        let (count, requests, bad) = nodes
            .clone()
            .fold((0_u32, 0, 0), |(n, requests, bad), node| {
                (n + 1, requests + node.requests, bad + node.bad)
            });
        let worst = nodes.max_by(|a, b| a.bad.cmp(&b.bad).then_with(|| b.name.cmp(&a.name)))?;
        let chance =
            f64::from(count) * at_least(worst.bad, bad, worst.requests as f64 / requests as f64);
        (count > 1 && chance < SICK_CHANCE_MAX).then(|| SickNode {
            node: worst.name.clone(),
            bad: worst.bad,
            bad_of_all: bad,
            nodes: count,
            chance,
        })
    }
}

/// A node is named when chance would do this to one of the nodes less often.
const SICK_CHANCE_MAX: f64 = 0.01;

/// The chance of at least `least` of `tries` when each has the chance `each`: the binomial's upper tail.
fn at_least(least: u64, tries: u64, each: f64) -> f64 {
    if least == 0 || each >= 1.0 {
        return 1.0;
    }
    let choose: f64 = (0..least)
        .map(|i| ((tries - i) as f64 / (i + 1) as f64).ln())
        .sum();
    let mut term =
        (choose + least as f64 * each.ln() + (tries - least) as f64 * (-each).ln_1p()).exp();
    let odds = each / (1.0 - each);
    let mut tail = 0.0;
    for hits in least..=tries {
        tail += term;
        term *= odds * (tries - hits) as f64 / (hits + 1) as f64;
        if hits as f64 > tries as f64 * each && term < tail * 1e-12 {
            break;
        }
    }
    tail.min(1.0)
}

fn meet(nodes: &mut Vec<Node>, cells: &[Cell], cold_until: Duration, now: Duration) {
    nodes.retain(|node| now.saturating_sub(node.seen) < FORGET_AFTER);
    for cell in cells
        .iter()
        .filter(|cell| !cell.node.is_empty() && cell.requests > 0)
    {
        let at = match nodes.binary_search_by(|node| node.name.as_str().cmp(&cell.node)) {
            Ok(at) => at,
            Err(_) if nodes.len() >= NODES_MAX => continue,
            Err(at) => {
                let node = Node {
                    name: cell.node.clone(),
                    cold_until,
                    seen: now,
                    requests: 0,
                    bad: 0,
                };
                nodes.insert(at, node);
                at
            }
        };
        nodes[at].seen = now;
        nodes[at].requests += cell.requests;
        nodes[at].bad += cell.bad;
    }
}

fn is_cold(nodes: &[Node], cell: &Cell, now: Duration) -> bool {
    nodes
        .binary_search_by(|node| node.name.as_str().cmp(&cell.node))
        .is_ok_and(|at| now <= nodes[at].cold_until)
}
