//! What must be let through.

use super::super::super::{Baseline, Decision, Grounds, Judge, Position, Signal};
use super::super::traffic_model::{Arm, Outcome, Simulated, ladder, percent, slice};
use super::{SECOND, at_once, block, cell, no_warm_up};
use crate::plan::{Guard, Hold};

#[test]
fn f09_lets_a_canary_pass_that_is_no_worse_than_a_bad_stable_and_names_how_bad_that_is() {
    let bad = Arm::GOOD.failing(0.2);
    let mut rollout = Simulated::new(9, Guard::default());
    let outcome = rollout.run(3_000, 200.0, |_| (bad, bad));
    assert!(matches!(outcome, Outcome::Promoted { .. }), "{outcome:?}");
    let verdict = &rollout.judged.last().unwrap().verdict;
    assert!(
        (verdict.stable_error_rate - 0.2).abs() < 0.03,
        "{}",
        verdict.stable_error_rate
    );
}

#[test]
fn f10_judges_rare_errors_by_counting_them() {
    // 20 000 requests on each arm, no failure on stable. Five on the canary happen by chance once in 32 times, which is
    // no ground to roll back at 1 %; fifteen do not.
    let guard = no_warm_up();
    let position = Position {
        hold: Hold {
            least: SECOND * 3_600,
            most: SECOND * 3_600,
        },
        ..at_once(50, 80)
    };
    let judge = |failures: u64| {
        let mut judge = Judge::new(&guard, &Baseline::default());
        let mut verdicts = Vec::new();
        for at in 0..200 {
            let bad = u64::from(at % (200 / failures) == 0 && at / (200 / failures) < failures);
            let slice = block(
                position.weight,
                vec![cell("c", 100, bad, 240)],
                vec![cell("s", 100, 0, 240)],
            );
            verdicts.extend(judge.observe(&slice, &guard, &position));
        }
        verdicts
    };
    let five = judge(5);
    assert!(
        five.iter()
            .all(|judged| !matches!(judged.verdict.decision, Decision::Fail { .. }))
    );
    assert_eq!(
        five.last().unwrap().verdict.bound,
        Some(0.001),
        "though the excess is proven to be below 0.1 %"
    );
    assert!(judge(15).iter().any(|judged| matches!(
        judged.verdict.decision,
        Decision::Fail {
            signal: Signal::Errors,
            ..
        }
    )));
}

#[test]
fn f12_rolls_back_at_most_alpha_of_a_thousand_equal_releases_though_it_peeks_at_every_block() {
    // Errors and latencies drift with both arms: errors between 0 and 2 %, latencies between x0.7 and x1.4.
    let mut rolled_back = Vec::new();
    let mut promoted = 0;
    for seed in 0..1_000 {
        let mut rollout = Simulated::new(seed, Guard::default());
        let outcome = rollout.run(200, 100.0, |second| {
            let wave = (second as f64 / 40.0 + seed as f64).sin();
            let arm = Arm {
                error_rate: 0.01 * (1.0 + wave),
                median_us: 20_000.0 * (0.5 * wave).exp2(),
                ..Arm::GOOD
            };
            (arm, arm)
        });
        match outcome {
            Outcome::RolledBack { signal, .. } => rolled_back.push((seed, signal)),
            Outcome::Promoted { .. } => promoted += 1,
            Outcome::Undecided => {}
        }
    }
    assert!(
        rolled_back.len() <= 10,
        "{} rolled back: {rolled_back:?}",
        rolled_back.len()
    );
    eprintln!(
        "rolled back {} of 1000, promoted in 200 s {promoted}",
        rolled_back.len()
    );
}

#[test]
fn promotes_a_good_release_soon() {
    let mut rollout = Simulated::new(1, Guard::default());
    let outcome = rollout.run(900, 500.0, |_| (Arm::GOOD, Arm::GOOD));
    let Outcome::Promoted { seconds } = outcome else {
        panic!("{outcome:?}")
    };
    assert!(seconds <= 200, "{seconds} s");
    assert_eq!(rollout.grounds, [Grounds::Proof; 5]);
}

#[test]
fn promotes_two_equal_fast_services_whose_colder_arm_is_twice_as_slow_in_microseconds() {
    for seed in 0..10 {
        let stable = Arm {
            median_us: 110.0,
            tail_share: 0.0,
            ..Arm::GOOD
        };
        let canary = Arm {
            median_us: 240.0,
            ..stable
        };
        let mut rollout = Simulated::new(seed, Guard::default());
        let outcome = rollout.run(1_200, 200.0, |_| (canary, stable));
        assert!(
            matches!(outcome, Outcome::Promoted { .. }),
            "seed {seed}: {outcome:?}"
        );
    }
}

#[test]
fn forgives_a_cold_start_that_fits_the_warm_up() {
    let cold = Arm {
        error_rate: 0.1,
        median_us: 100_000.0,
        ..Arm::GOOD
    };
    let mut rollout = Simulated::new(4, Guard::default());
    let outcome = rollout.run(1_200, 200.0, |second| {
        (if second < 20 { cold } else { Arm::GOOD }, Arm::GOOD)
    });
    assert!(matches!(outcome, Outcome::Promoted { .. }), "{outcome:?}");
}

#[test]
fn passes_by_time_out_only_what_is_calm_and_says_what_was_not_proven() {
    let guard = no_warm_up();
    let position = Position {
        hold: Hold {
            least: SECOND * 10,
            most: SECOND * 120,
        },
        last_gate: true,
        ..at_once(50, 80)
    };
    let mut rollout = Simulated::new(2, guard);
    rollout.ladder = vec![position, ladder()[5].clone()];
    let quiet = Arm::GOOD.failing(0.0);
    for _ in 0..400 {
        let slice = slice(
            &mut rollout.dice,
            percent(50),
            SECOND,
            3.0,
            Arm {
                median_us: 15_000.0,
                ..quiet
            },
            quiet,
        );
        rollout.feed(&slice);
        if rollout.step == 1 {
            break;
        }
    }
    let Some(Grounds::TimeOut { bound: Some(bound) }) = rollout.grounds.first() else {
        panic!("{:?}", rollout.grounds)
    };
    assert!(*bound > 0.005 && *bound <= 0.05, "{bound}");
    assert!(rollout.judged.last().unwrap().verdict.step_elapsed >= SECOND * 120);
}
