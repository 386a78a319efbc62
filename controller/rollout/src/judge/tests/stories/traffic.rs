//! How requests are split, and in which order they are reported.

use super::super::super::{Baseline, Counts, Decision, HoldReason, Judge, Missing, Position};
use super::super::traffic_model::percent;
use super::{SECOND, at_once, block, cell, no_warm_up, passes};
use crate::plan::Guard;
use crate::{Duration, Weight};

#[test]
fn f20_holds_when_requests_are_not_split_as_the_weight_says() {
    let guard = no_warm_up();
    let position = at_once(10, 25);
    let run = |guard: &Guard| {
        let mut judge = Judge::new(guard, &Baseline::default());
        let slice = block(
            position.weight,
            vec![cell("c", 20, 0, 240)],
            vec![cell("s", 80, 0, 240)],
        );
        let verdicts = (0..30).flat_map(|_| judge.observe(&slice, guard, &position));
        verdicts.last().unwrap().verdict.decision
    };
    let Decision::Hold {
        reason: HoldReason::SplitMismatch { expected, seen },
    } = run(&guard)
    else {
        panic!("{:?}", run(&guard))
    };
    assert_eq!((expected.round(), seen), (300.0, 600));
    assert!(matches!(
        run(&Guard {
            ratio_check: false,
            ..guard
        }),
        Decision::Pass { .. }
    ));
}

#[test]
fn opens_no_gate_while_stable_itself_is_in_trouble() {
    let mut baseline = Baseline::default();
    let guard = no_warm_up();
    for _ in 0..120 {
        baseline.learn(
            &block(Weight::ZERO, vec![], vec![cell("s", 100, 0, 240)]),
            &guard,
        );
    }
    let position = at_once(10, 25);
    let mut judge = Judge::new(&guard, &baseline);
    let mut last = None;
    for _ in 0..60 {
        let slice = block(
            position.weight,
            vec![cell("c", 10, 1, 240)],
            vec![cell("s", 90, 9, 240)],
        );
        let judged = judge.observe(&slice, &guard, &position);
        assert!(!passes(&judged));
        last = judged.into_iter().last();
    }
    let reason = last.unwrap().verdict.decision;
    assert!(
        matches!(
            reason,
            Decision::Hold {
                reason: HoldReason::StableInTrouble { before: 0.0, .. }
            }
        ),
        "{reason:?}"
    );
}

#[test]
fn counts_late_answers_of_an_earlier_weight_as_evidence_but_not_for_the_step() {
    let guard = no_warm_up();
    let position = at_once(10, 25);
    let mut judge = Judge::new(&guard, &Baseline::default());
    let late = block(
        percent(5),
        vec![cell("c", 5, 1, 240)],
        vec![cell("s", 95, 0, 240)],
    );
    let judged = judge.observe(&late, &guard, &position);
    let verdict = &judged[0].verdict;
    assert!(verdict.evidence.errors > 0.0);
    assert_eq!(
        (verdict.in_step, verdict.step_elapsed),
        (Counts::default(), Duration::ZERO)
    );
    let Decision::Inconclusive { missing } = &verdict.decision else {
        panic!("{:?}", verdict.decision)
    };
    assert!(missing.contains(&Missing::Weight));
}

#[test]
fn closes_the_open_block_before_another_weight() {
    let guard = no_warm_up();
    let position = at_once(10, 25);
    let mut judge = Judge::new(&guard, &Baseline::default());
    let few = |weight| {
        block(
            weight,
            vec![cell("c", 2, 0, 240)],
            vec![cell("s", 8, 0, 240)],
        )
    };
    assert!(
        judge
            .observe(&few(percent(5)), &guard, &position)
            .is_empty()
    );
    let judged = judge.observe(&few(percent(10)), &guard, &position);
    assert_eq!(
        judged
            .iter()
            .map(|judged| judged.block.weight)
            .collect::<Vec<_>>(),
        [percent(5)]
    );
}

#[test]
fn starts_the_steps_clock_again_at_another_position() {
    let guard = no_warm_up();
    let (first, second) = (
        at_once(10, 25),
        Position {
            step: 1,
            ..at_once(25, 50)
        },
    );
    let mut judge = Judge::new(&guard, &Baseline::default());
    let slice = |weight| {
        block(
            percent(weight),
            vec![cell("c", 50, 0, 240)],
            vec![cell("s", 450 - 20, 0, 240)],
        )
    };
    for _ in 0..5 {
        judge.observe(&slice(10), &guard, &first);
    }
    let verdict = &judge.observe(&slice(25), &guard, &second)[0].verdict;
    assert_eq!(
        (
            verdict.step,
            verdict.step_elapsed,
            verdict.in_step.canary.requests
        ),
        (1, SECOND, 50)
    );
}

#[test]
fn judges_a_block_by_what_was_known_before_it() {
    let guard = no_warm_up();
    let position = at_once(50, 80);
    let mut judge = Judge::new(&guard, &Baseline::default());
    let at = |bucket| {
        block(
            position.weight,
            vec![cell("c", 100, 0, bucket)],
            vec![cell("s", 100, 0, bucket)],
        )
    };
    let first = judge.observe(&at(200), &guard, &position).remove(0).verdict;
    assert_eq!(
        (first.thresholds_us, first.stable_error_rate),
        ([None; 3], 0.0)
    );
    let second = judge.observe(&at(300), &guard, &position).remove(0).verdict;
    assert_eq!(
        second.block.stable.slow, [100; 3],
        "all of the block is slower than the block before"
    );
    assert_eq!(second.block.canary.slow, [100; 3]);
}
