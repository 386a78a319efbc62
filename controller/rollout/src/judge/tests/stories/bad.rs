//! What must be found.

use super::super::super::{Baseline, Decision, Judge, Percentile, Position, Signal};
use super::super::traffic_model::{Arm, Outcome, Simulated};
use super::{SECOND, at_once, block, cell, no_warm_up};
use crate::plan::{Guard, Hold};

#[test]
fn stops_a_canary_that_fails_every_request_within_seconds() {
    let mut rollout = Simulated::new(5, Guard::default());
    let outcome = rollout.run(60, 500.0, |_| (Arm::GOOD.failing(1.0), Arm::GOOD));
    let Outcome::RolledBack {
        seconds,
        signal: Signal::WarmUp,
    } = outcome
    else {
        panic!("{outcome:?}")
    };
    assert!(seconds <= 6, "{seconds} s");
}

#[test]
fn finds_each_kind_of_harm_and_names_its_signal() {
    let later =
        |arm: Arm| move |second: u64| (if second < 60 { Arm::GOOD } else { arm }, Arm::GOOD);
    let slow = Arm {
        median_us: 26_000.0,
        ..Arm::GOOD
    };
    let tail = Arm {
        tail: 12.0,
        ..Arm::GOOD
    };
    let mut seen = Vec::new();
    for arm in [Arm::GOOD.failing(0.2), Arm::GOOD.failing(0.02), slow, tail] {
        let outcome = Simulated::new(6, Guard::default()).run(900, 500.0, later(arm));
        let Outcome::RolledBack { seconds, signal } = outcome else {
            panic!("{outcome:?}")
        };
        assert!(seconds < 200, "{signal:?} took {seconds} s");
        seen.push(signal);
    }
    let latency = |percentile| Signal::Latency { percentile };
    assert_eq!(seen[..2], [Signal::Errors, Signal::Errors]);
    assert!(matches!(seen[2], Signal::Latency { .. }));
    assert_eq!(seen[3], latency(Percentile::P99));
}

#[test]
fn finds_a_regression_that_begins_after_half_an_hour_of_good_service() {
    let position = Position {
        hold: Hold {
            least: SECOND * 7_200,
            most: SECOND * 7_200,
        },
        ..at_once(50, 80)
    };
    let mut rollout = Simulated::new(8, Guard::default());
    rollout.ladder = vec![position];
    let arms = |second| {
        (
            Arm::GOOD.failing(if second < 1_800 { 0.001 } else { 0.03 }),
            Arm::GOOD,
        )
    };
    let outcome = rollout.run(2_400, 100.0, arms);
    let Outcome::RolledBack {
        seconds,
        signal: Signal::Errors,
    } = outcome
    else {
        panic!("{outcome:?}")
    };
    assert!((1_801..1_860).contains(&seconds), "{seconds} s");
}

#[test]
fn keeps_a_verdict_to_roll_back() {
    let guard = no_warm_up();
    let position = at_once(50, 80);
    let mut judge = Judge::new(&guard, &Baseline::default());
    judge.restart(2, 0);
    let good = block(
        position.weight,
        vec![cell("c", 100, 0, 240)],
        vec![cell("s", 100, 0, 240)],
    );
    for _ in 0..50 {
        let judged = judge.observe(&good, &guard, &position);
        let signal = Signal::Restarts {
            canary: 2,
            stable: 0,
        };
        assert_eq!(
            judged[0].verdict.decision,
            Decision::Fail {
                signal,
                sick_node: None
            }
        );
    }
}

#[test]
fn lets_restarts_pass_that_stable_has_too() {
    let guard = no_warm_up();
    let position = at_once(50, 80);
    let mut judge = Judge::new(&guard, &Baseline::default());
    judge.restart(1, 0);
    judge.restart(3, 1);
    let good = block(
        position.weight,
        vec![cell("c", 100, 0, 240)],
        vec![cell("s", 100, 0, 240)],
    );
    assert!(!matches!(
        judge.observe(&good, &guard, &position)[0].verdict.decision,
        Decision::Fail { .. }
    ));
}

#[test]
fn names_the_one_node_that_has_all_the_failures() {
    let guard = no_warm_up();
    let position = at_once(50, 80);
    let mut judge = Judge::new(&guard, &Baseline::default());
    let fail = (0..20).find_map(|_| {
        let canary = vec![
            cell("a", 25, 0, 240),
            cell("b", 25, 6, 240),
            cell("c", 25, 0, 240),
            cell("d", 25, 0, 240),
        ];
        let slice = block(position.weight, canary, vec![cell("s", 100, 0, 240)]);
        judge
            .observe(&slice, &guard, &position)
            .into_iter()
            .find_map(|judged| match judged.verdict.decision {
                Decision::Fail { signal, sick_node } => Some((signal, sick_node)),
                Decision::Hold { .. } | Decision::Inconclusive { .. } | Decision::Pass { .. } => {
                    None
                }
            })
    });
    let Some((Signal::Errors, Some(sick))) = fail else {
        panic!("{fail:?}")
    };
    assert_eq!(
        (sick.node.as_str(), sick.bad, sick.bad_of_all, sick.nodes),
        ("b", sick.bad_of_all, sick.bad, 4)
    );
    let expected = 4.0_f64.powi(1 - i32::try_from(sick.bad).unwrap());
    assert!(
        (sick.chance / expected - 1.0).abs() < 1e-9,
        "{} is not {expected}",
        sick.chance
    );
}
