//! What must be proven before a step's gate opens (JUDGE 2.10): the more traffic the next weight risks, the more.

use super::Position;
use super::latency::buckets_of_factor;
use super::non_inferiority::EXCESS_GRID;
use super::verdict::Percentile;
use crate::plan::Guard;
use crate::weight::Weight;

/// A canary that is faster than its margin by this many buckets of 2.19 %: x2.00. Enough before a weight of up to 10 %.
const SHIFT_SMALL_WEIGHT: u16 = 32;

/// x1.41: enough before a weight of up to 50 %.
const SHIFT_MEDIUM_WEIGHT: u16 = 16;

/// How many latency margins are followed at all times.
pub(crate) const MARGINS: usize = 6;

/// The latency margins of all gates: quantile (0 to 2) and by how many buckets the canary may be slower. One for small
/// weights, two for medium ones, then the three of the guard. No gate asks for more than the last one does.
pub(crate) fn margins(guard: &Guard) -> [(usize, u16); MARGINS] {
    let own = [guard.latency_p50, guard.latency_p90, guard.latency_p99].map(buckets_of_factor);
    [
        (0, own[0].max(SHIFT_SMALL_WEIGHT)),
        (0, own[0].max(SHIFT_MEDIUM_WEIGHT)),
        (1, own[1].max(SHIFT_MEDIUM_WEIGHT)),
        (0, own[0]),
        (1, own[1]),
        (2, own[2]),
    ]
}

/// What one gate asks for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Demand {
    /// Which excess of the grid must be proven absent.
    pub(crate) excess: usize,
    /// Which of [`margins`] must be proven.
    pub(crate) latency: std::ops::Range<usize>,
    /// The logarithm of the evidence that each of them needs.
    pub(crate) needed: f64,
}

/// What the gate to `next` asks for.
pub(crate) fn demand(next: Weight, at: &Position, guard: &Guard) -> Demand {
    let affordable = if at.last_gate {
        guard.errors_margin
    } else {
        guard.errors_margin / next.ratio()
    };
    // The division may land a hair below a value of the grid that it should hit.
    let excess = EXCESS_GRID
        .iter()
        .position(|delta| *delta <= affordable * (1.0 + 1e-9))
        .unwrap_or(EXCESS_GRID.len() - 1);
    let latency = match next.basis_points() {
        _ if at.last_gate => 3..6,
        0..=1_000 => 0..1,
        1_001..=5_000 => 1..3,
        _ => 3..6,
    };
    let level = if at.last_gate {
        guard.alpha_promote
    } else {
        guard.alpha_gate
    };
    Demand {
        excess,
        latency,
        needed: -level.ln(),
    }
}

/// The percentile of a margin's quantile.
pub(crate) fn percentile(quantile: usize) -> Percentile {
    Percentile::ALL[quantile]
}
