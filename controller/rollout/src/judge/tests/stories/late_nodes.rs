//! Nodes that start later than the others.

use super::super::super::{Baseline, Decision, Judge, Position, Signal};
use super::{SECOND, at_once, block, cell};
use crate::plan::{Guard, Hold};

#[test]
fn leaves_out_a_node_that_starts_later_until_it_is_warm() {
    let cold_of = |second: u64| {
        let late = if second < 80 {
            vec![]
        } else {
            vec![cell("late", 50, if second < 100 { 10 } else { 0 }, 240)]
        };
        [vec![cell("first", 50, 0, 240)], late].concat()
    };
    let guard = Guard::default();
    let position = Position {
        hold: Hold {
            least: SECOND * 600,
            most: SECOND * 600,
        },
        ..at_once(50, 80)
    };
    let mut judge = Judge::new(&guard, &Baseline::default());
    for second in 0..200 {
        // A stable node that starts at the same moment, just as cold, is left out as well.
        let mut stable = cold_of(second);
        stable
            .iter_mut()
            .for_each(|cell| cell.node.insert_str(0, "s-"));
        let judged = judge.observe(
            &block(position.weight, cold_of(second), stable),
            &guard,
            &position,
        );
        let verdict = &judged[0].verdict;
        let warming = second < 30;
        let left_out = (80..110).contains(&second);
        assert_eq!(
            verdict.canary_cold > 0,
            warming || left_out,
            "at {second} s"
        );
        let both = if second < 80 || left_out { 50 } else { 100 };
        assert_eq!(
            (verdict.block.canary.requests, verdict.block.stable.requests),
            (both, both),
            "at {second} s"
        );
        assert!(
            matches!(verdict.decision, Decision::Inconclusive { .. }),
            "{:?}",
            verdict.decision
        );
    }
}

#[test]
fn is_not_fooled_by_a_canary_that_comes_back_under_a_new_name_before_it_is_warm() {
    let guard = Guard::default();
    let position = Position {
        hold: Hold {
            least: SECOND * 600,
            most: SECOND * 600,
        },
        ..at_once(50, 80)
    };
    let mut judge = Judge::new(&guard, &Baseline::default());
    let found = (0..120).find(|second| {
        let (name, bad) = if *second < 60 {
            ("c".to_owned(), 0)
        } else {
            (format!("c-{}", second / 2), 50)
        };
        let slice = block(
            position.weight,
            vec![cell(&name, 50, bad, 240)],
            vec![cell("s", 50, 0, 240)],
        );
        let judged = judge.observe(&slice, &guard, &position);
        matches!(
            judged[0].verdict.decision,
            Decision::Fail {
                signal: Signal::WarmUp,
                ..
            }
        )
    });
    assert!(found.is_some_and(|second| second <= 66), "{found:?}");
}
