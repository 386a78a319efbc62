//! When a block is full, and how it is kept small (JUDGE 2.1).

use super::baseline::{NODES_TO_GROUP_BY, count_nodes};
use crate::Duration;
use crate::signals::{Block, Cell, merge_cells};

/// No block lasts longer: what is compared must be of one time.
const AGE_MAX: Duration = Duration::from_secs(10);

/// No block that closes by its counts is shorter.
const AGE_MIN: Duration = Duration::from_secs(1);

/// Requests of both arms that fill a block.
const REQUESTS_FULL: u64 = 100;

/// Requests that fill it when something is going wrong, whichever arm it is.
const REQUESTS_WITH_ERRORS: u64 = 20;

/// Bad outcomes of both arms that count as "something is going wrong".
const ERRORS_TO_HURRY: u64 = 3;

/// Whether a block of this age, with these counts over both arms, is closed. `at_edge` is a change of weight or the end of
/// the warm-up. The rule cannot see which arm failed: one that could would break what the judge promises.
pub(crate) fn closes(age: Duration, requests: u64, bad: u64, at_edge: bool) -> bool {
    let full =
        requests >= REQUESTS_FULL || (bad >= ERRORS_TO_HURRY && requests >= REQUESTS_WITH_ERRORS);
    at_edge || age >= AGE_MAX || (age >= AGE_MIN && full)
}

/// The same counts in fewer cells: client groups are kept only where the dispersion is measured between them, that is for
/// stable with fewer than three nodes. Whole milliseconds, as the record has it.
pub(crate) fn compact(slice: &Block) -> Block {
    let by_node = count_nodes(slice.stable.iter()) >= NODES_TO_GROUP_BY;
    Block {
        weight: slice.weight,
        duration: Duration::from_millis(
            u64::try_from(slice.duration.as_millis()).unwrap_or(u64::MAX),
        ),
        canary: without_groups(&slice.canary),
        stable: if by_node {
            without_groups(&slice.stable)
        } else {
            sorted(&slice.stable)
        },
    }
}

/// The cells by node alone.
fn without_groups(cells: &[Cell]) -> Vec<Cell> {
    let mut merged: Vec<Cell> = Vec::new();
    for cell in cells {
        match merged.binary_search_by(|have| have.node.cmp(&cell.node)) {
            Ok(at) => merged[at].add(cell),
            Err(at) => merged.insert(
                at,
                Cell {
                    group: 0,
                    ..cell.clone()
                },
            ),
        }
    }
    merged
}

/// The cells as a [`Block`] promises them, whatever order they came in.
fn sorted(cells: &[Cell]) -> Vec<Cell> {
    let mut merged = Vec::with_capacity(cells.len());
    merge_cells(&mut merged, cells);
    merged
}
