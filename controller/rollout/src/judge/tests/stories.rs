//! Whole rollouts through the judge: what must be found, what must be let through, what must wait. Tests that begin with a
//! number are the failures of other controllers that must not happen here.

mod bad;
mod good;
mod late_nodes;
mod record;
mod saturation;
mod settings;
mod silence;
mod traffic;

use super::super::{Decision, Judged, NodeGauges, Position};
use super::traffic_model::percent;
use crate::plan::{Guard, Hold};
use crate::signals::{Block, Cell};
use crate::{Duration, Weight};

const SECOND: Duration = Duration::from_secs(1);

fn cell(node: &str, requests: u64, bad: u64, bucket: u16) -> Cell {
    let latency = [(bucket, u32::try_from(requests - bad).unwrap())]
        .into_iter()
        .collect();
    Cell {
        node: node.into(),
        group: 0,
        requests,
        bad,
        latency,
        ..Cell::default()
    }
}

fn block(weight: Weight, canary: Vec<Cell>, stable: Vec<Cell>) -> Block {
    Block {
        weight,
        duration: SECOND,
        canary,
        stable,
    }
}

fn no_warm_up() -> Guard {
    Guard {
        warm_up: Duration::ZERO,
        ..Guard::default()
    }
}

/// A position from which nothing but the evidence keeps the canary.
fn at_once(weight: u8, next: u8) -> Position {
    Position {
        step: 0,
        weight: percent(weight),
        next: Some(percent(next)),
        last_gate: false,
        hold: Hold {
            least: Duration::ZERO,
            most: Duration::from_secs(300),
        },
    }
}

fn passes(judged: &[Judged]) -> bool {
    judged
        .iter()
        .any(|judged| matches!(judged.verdict.decision, Decision::Pass { .. }))
}

fn gauges(node: &str, memory: f64, cpu: f64) -> NodeGauges {
    NodeGauges {
        node: node.into(),
        memory_bytes: Some(memory),
        memory_limit_bytes: Some(1_000.0),
        cpu_ratio: Some(cpu),
        cpu_seconds: Some(cpu * 10.0),
        requests: Some(100.0),
        ..NodeGauges::default()
    }
}
