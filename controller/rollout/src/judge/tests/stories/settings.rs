//! Where a rollout begins, and how strict it is.

use super::super::super::first_step;
use super::super::traffic_model::{Arm, Outcome, Simulated, percent};
use super::SECOND;
use crate::plan::{Guard, Hold, Plan, Step, Tuning};

#[test]
fn begins_at_the_first_weight_that_brings_enough_requests_but_never_beyond_a_gate() {
    let hold = Hold {
        least: SECOND,
        most: SECOND,
    };
    let weight = |share| Step::Weight {
        weight: percent(share),
        hold,
    };
    let plan = Plan::new(vec![weight(1), weight(5), weight(10), weight(50)]).unwrap();
    let guard = Guard::default();
    let starts =
        [500.0, 100.0, 99.0, 50.0, 10.0, 5.0, 2.0, 0.1].map(|rate| first_step(&plan, rate, &guard));
    assert_eq!(starts, [0, 0, 0, 0, 1, 2, 2, 2]);
    let gated = Plan::new(vec![
        weight(1),
        Step::Gate {
            approvers: "all".into(),
        },
        weight(50),
    ])
    .unwrap();
    assert_eq!(first_step(&gated, 1.0, &guard), 0);
}

#[test]
fn finds_a_smaller_alpha_harder_to_reach() {
    let outcome = |alpha| {
        let mut rollout = Simulated::new(
            17,
            Guard {
                alpha,
                ..Guard::default()
            },
        );
        let outcome = rollout.run(900, 200.0, |_| (Arm::GOOD.failing(0.03), Arm::GOOD));
        let Outcome::RolledBack { seconds, .. } = outcome else {
            panic!("{outcome:?}")
        };
        seconds
    };
    assert!(outcome(0.01) < outcome(1e-6));
    assert_eq!(Tuning::default(), Guard::default().tuning);
}
