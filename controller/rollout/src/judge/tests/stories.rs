//! Whole rollouts through the judge: what must be found, what must be let through, what must wait. Tests that begin with a
//! number are the failures of other controllers that must not happen here.

use super::super::{
    Baseline, Counts, Decision, Gauge, Grounds, HoldReason, Judge, Judged, Margin, Missing,
    NodeGauges, Percentile, Position, RULES_VERSION, SaturationSample, Signal, Verdict, first_step,
};
use super::traffic_model::{Arm, Dice, Outcome, Simulated, ladder, percent, slice};
use crate::plan::{Guard, Hold, Plan, Step, Tuning};
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

// ---- silence and missing data ----

#[test]
fn f01_passes_nothing_without_canary_requests() {
    for step in 0..6 {
        for stable in [vec![], vec![cell("s", 100, 0, 240)]] {
            let guard = Guard::default();
            let position = ladder()[step].clone();
            let mut judge = Judge::new(&guard, &Baseline::default());
            let mut last = None;
            for _ in 0..3_600 {
                let judged = judge.observe(
                    &block(position.weight, vec![], stable.clone()),
                    &guard,
                    &position,
                );
                assert!(!passes(&judged));
                last = judged.into_iter().last().or(last);
            }
            let verdict = last.expect("blocks close in silence too").verdict;
            assert_eq!(verdict.in_step.canary.requests, 0);
            assert!(verdict.evidence.total.abs() < 1e-9);
            // A thousand stable requests and no canary request are also not what the weight says.
            let reason = HoldReason::Silence;
            assert_eq!(verdict.decision, Decision::Hold { reason });
        }
    }
}

#[test]
fn f03_knows_no_success_when_every_measurement_is_missing() {
    let guard = no_warm_up();
    let position = at_once(10, 25);
    let mut judge = Judge::new(&guard, &Baseline::default());
    let nothing = Some(f64::NAN);
    let node = NodeGauges {
        memory_bytes: nothing,
        memory_limit_bytes: nothing,
        cpu_ratio: nothing,
        ..NodeGauges::default()
    };
    let sample = SaturationSample {
        canary: vec![node.clone()],
        stable: vec![node],
    };
    for second in 0..600 {
        if second % 10 == 0 {
            judge.saturation(&sample, &guard);
        }
        assert!(!passes(&judge.observe(
            &block(position.weight, vec![], vec![]),
            &guard,
            &position
        )));
    }
}

#[test]
fn f04_has_no_verdict_before_the_first_block_is_full() {
    let guard = no_warm_up();
    let position = at_once(10, 25);
    let mut judge = Judge::new(&guard, &Baseline::default());
    let slice = Block {
        duration: Duration::from_millis(500),
        ..block(position.weight, vec![cell("c", 10, 0, 240)], vec![])
    };
    assert!(judge.observe(&slice, &guard, &position).is_empty());
}

#[test]
fn f11_holds_while_the_source_is_silent_and_spends_no_budget() {
    let mut rollout = Simulated::new(11, Guard::default());
    let arms = |_| (Arm::GOOD, Arm::GOOD);
    assert_eq!(rollout.run(45, 200.0, arms), Outcome::Undecided);
    let before = rollout.judged.last().unwrap().verdict.evidence;
    let (step, elapsed) = (
        rollout.step,
        rollout.judged.last().unwrap().verdict.step_elapsed,
    );
    for _ in 0..1_000 {
        assert_eq!(
            rollout.feed(&block(rollout.at().weight, vec![], vec![])),
            None
        );
    }
    assert_eq!(
        *rollout.last(),
        Decision::Hold {
            reason: HoldReason::Silence
        }
    );
    let after = &rollout.judged.last().unwrap().verdict;
    assert_eq!(rollout.step, step);
    assert!((after.evidence.total - before.total).abs() < 1e-9);
    assert!(after.step_elapsed < elapsed + Guard::default().tuning.idle_max);
    assert!(
        matches!(rollout.run(3_000, 200.0, arms), Outcome::Promoted { .. }),
        "and goes on where it was"
    );
}

#[test]
fn f13_holds_an_inconclusive_canary_for_as_long_as_it_takes() {
    // Half a request a second on the canary, now and then a failure: never proven, and the estimate is outside the margin.
    let guard = no_warm_up();
    let position = Position {
        last_gate: true,
        ..at_once(50, 80)
    };
    let mut judge = Judge::new(&guard, &Baseline::default());
    let mut last = None;
    for second in 0..600 {
        let bad = u64::from(second % 150 == 7);
        let slice = block(
            position.weight,
            vec![cell("c", 1, bad, 240)],
            vec![cell("s", 1, 0, 240)],
        );
        let judged = judge.observe(&slice, &guard, &position);
        assert!(!passes(&judged));
        last = judged.into_iter().last().or(last);
    }
    let Decision::Inconclusive { missing } = last.unwrap().verdict.decision else {
        panic!("not inconclusive")
    };
    let margin = Margin::Errors { excess: 0.005 };
    assert!(
        missing.contains(&Missing::Proof { margin })
            && missing.contains(&Missing::Estimate { margin }),
        "{missing:?}"
    );
}

#[test]
fn opens_no_gate_in_a_block_without_canary_requests_although_all_is_proven() {
    let guard = no_warm_up();
    let position = Position {
        hold: Hold {
            least: Duration::from_secs(60),
            most: SECOND * 300,
        },
        ..at_once(50, 60)
    };
    let mut rollout = Simulated::new(3, guard);
    rollout.ladder = vec![position.clone()];
    rollout.run(59, 300.0, |_| (Arm::GOOD, Arm::GOOD));
    let stable_only = block(position.weight, vec![], vec![cell("stable-0", 300, 0, 240)]);
    rollout.feed(&stable_only);
    assert_eq!(
        *rollout.last(),
        Decision::Inconclusive {
            missing: vec![Missing::BothArms]
        }
    );
    let both = slice(
        &mut Dice::new(1),
        position.weight,
        SECOND,
        300.0,
        Arm::GOOD,
        Arm::GOOD,
    );
    assert!(passes(&rollout.judge.observe(
        &both,
        &rollout.guard,
        &position
    )));
}

// ---- what must be let through ----

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

// ---- what must be found ----

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

// ---- nodes that start later ----

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

// ---- traffic ----

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

// ---- saturation ----

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

/// Healthy traffic for `seconds` with a sample each ten; the first verdict that is neither a pass nor inconclusive.
fn with_samples(
    seconds: u64,
    sample: impl Fn(u64) -> (NodeGauges, NodeGauges),
) -> Option<(u64, Decision)> {
    let guard = no_warm_up();
    let position = at_once(50, 80);
    let mut judge = Judge::new(&guard, &Baseline::default());
    let good = block(
        position.weight,
        vec![cell("c", 100, 0, 240)],
        vec![cell("s", 100, 0, 240)],
    );
    judge.observe(&good, &guard, &position);
    (1..=seconds).find_map(|second| {
        if second % 10 == 0 {
            let (canary, stable) = sample(second);
            judge.saturation(
                &SaturationSample {
                    canary: vec![canary],
                    stable: vec![stable],
                },
                &guard,
            );
        }
        let decision = judge
            .observe(&good, &guard, &position)
            .remove(0)
            .verdict
            .decision;
        matches!(decision, Decision::Fail { .. } | Decision::Hold { .. })
            .then_some((second, decision))
    })
}

#[test]
fn rolls_back_a_canary_at_its_memory_limit_at_once_and_one_at_its_cpu_limit_after_three_samples() {
    let found = with_samples(300, |at| {
        (
            gauges("c", if at < 50 { 500.0 } else { 960.0 }, 0.5),
            gauges("s", 500.0, 0.5),
        )
    });
    let limit = |gauge, ratio| Decision::Fail {
        signal: Signal::Limit {
            gauge,
            node: "c".into(),
            ratio,
        },
        sick_node: None,
    };
    assert_eq!(found, Some((50, limit(Gauge::Memory, 0.96))));
    let found = with_samples(300, |at| {
        (
            gauges("c", 500.0, if at < 50 { 0.5 } else { 0.97 }),
            gauges("s", 500.0, 0.8),
        )
    });
    assert_eq!(found, Some((70, limit(Gauge::Cpu, 0.97))));
    let both = with_samples(300, |_| {
        (gauges("c", 960.0, 0.97), gauges("s", 960.0, 0.97))
    });
    assert_eq!(both, None, "stable is at the limit too");
}

#[test]
fn sees_a_memory_limit_between_two_samples() {
    let guard = no_warm_up();
    let position = at_once(50, 80);
    let mut judge = Judge::new(&guard, &Baseline::default());
    judge.limits(&SaturationSample {
        canary: vec![gauges("c", 960.0, 0.1)],
        stable: vec![gauges("s", 500.0, 0.1)],
    });
    let good = block(
        position.weight,
        vec![cell("c", 100, 0, 240)],
        vec![cell("s", 100, 0, 240)],
    );
    let decision = judge
        .observe(&good, &guard, &position)
        .remove(0)
        .verdict
        .decision;
    assert!(
        matches!(
            decision,
            Decision::Fail {
                signal: Signal::Limit {
                    gauge: Gauge::Memory,
                    ..
                },
                ..
            }
        ),
        "{decision:?}"
    );
}

#[test]
fn finds_a_canary_that_needs_more_memory_or_cpu_than_stable() {
    let (at, decision) =
        with_samples(400, |_| (gauges("c", 400.0, 0.2), gauges("s", 300.0, 0.2))).unwrap();
    let fail = |gauge| Decision::Fail {
        signal: Signal::Saturation { gauge },
        sick_node: None,
    };
    assert_eq!(decision, fail(Gauge::Memory));
    assert!(at <= 160, "{at} s");
    let (_, decision) =
        with_samples(400, |_| (gauges("c", 300.0, 0.4), gauges("s", 300.0, 0.2))).unwrap();
    assert_eq!(decision, fail(Gauge::Cpu));
    let idle = NodeGauges {
        requests: Some(30.0),
        ..gauges("c", 300.0, 0.2)
    };
    assert_eq!(
        with_samples(400, |_| (idle.clone(), gauges("s", 300.0, 0.2))),
        None,
        "idle work is not load"
    );
}

#[test]
fn holds_a_canary_whose_memory_grows_towards_its_limit() {
    let noise = |at: u64| ((at * 7_919) % 100) as f64 / 10.0;
    let sample = |at: u64| {
        (
            gauges("c", 250.0 + at as f64 * 0.2 + noise(at), 0.2),
            gauges("s", 260.0 + noise(at), 0.2),
        )
    };
    assert_eq!(
        with_samples(300, sample),
        None,
        "a slow leak would reach it in an hour"
    );
    let sample = |at: u64| {
        (
            gauges("c", 250.0 + at as f64 * 0.7 + noise(at), 0.2),
            gauges("s", 400.0 + noise(at), 0.2),
        )
    };
    let (at, decision) = with_samples(300, sample).unwrap();
    let Decision::Hold {
        reason: HoldReason::MemoryTrend { seconds_to_limit },
    } = decision
    else {
        panic!("{decision:?}")
    };
    assert!(
        (180..=220).contains(&at) && (700.0..=900.0).contains(&seconds_to_limit),
        "{at} s, {seconds_to_limit} s"
    );
}

#[test]
fn opens_no_gate_while_gauges_that_came_before_do_not() {
    let guard = no_warm_up();
    let position = at_once(50, 60);
    let mut rollout = Simulated::new(3, guard.clone());
    rollout.ladder = vec![Position {
        hold: Hold {
            least: SECOND * 60,
            most: SECOND * 300,
        },
        ..position.clone()
    }];
    let sample = SaturationSample {
        canary: vec![gauges("c", 1.0, 0.1)],
        stable: vec![gauges("s", 1.0, 0.1)],
    };
    rollout.judge.saturation(&sample, &guard);
    rollout.run(70, 300.0, |_| (Arm::GOOD, Arm::GOOD));
    assert_eq!(
        *rollout.last(),
        Decision::Inconclusive {
            missing: vec![Missing::Gauges]
        }
    );
    rollout.judge.saturation(&sample, &guard);
    rollout.ladder.push(ladder()[5].clone());
    rollout.run(72, 300.0, |_| (Arm::GOOD, Arm::GOOD));
    assert_eq!(rollout.grounds, [Grounds::Proof]);
}

// ---- the record ----

#[test]
fn goes_on_bit_for_bit_the_same_after_a_round_trip_through_json() {
    let mut rollout = Simulated::new(14, Guard::default());
    let arms = |second| (Arm::GOOD.failing(0.001 * (second % 7) as f64), Arm::GOOD);
    for stop in [1, 7, 31, 53, 90] {
        rollout.run(stop, 130.0, arms);
        let text = serde_json::to_string(&rollout.judge).unwrap();
        let read: Judge = serde_json::from_str(&text).unwrap();
        assert_eq!(read, rollout.judge);
        let mut dice = Dice::new(stop);
        let (mut one, mut other) = (rollout.judge.clone(), read);
        for _ in 0..30 {
            let at = rollout.at().clone();
            let slice = slice(&mut dice, at.weight, SECOND, 130.0, Arm::GOOD, Arm::GOOD);
            let verdicts = one.observe(&slice, &rollout.guard, &at);
            assert_eq!(verdicts, other.observe(&slice, &rollout.guard, &at));
            let text = serde_json::to_string(&verdicts).unwrap();
            assert_eq!(
                serde_json::from_str::<Vec<Judged>>(&text).unwrap(),
                verdicts
            );
        }
        assert_eq!(
            serde_json::to_string(&one).unwrap(),
            serde_json::to_string(&other).unwrap()
        );
    }
}

#[test]
fn comes_to_the_same_verdicts_when_the_recorded_blocks_are_judged_again() {
    let guard = Guard::default();
    let (mut live, mut dice) = (Judge::new(&guard, &Baseline::default()), Dice::new(15));
    let steps = ladder();
    let mut record: Vec<(Position, Judged)> = Vec::new();
    for second in 0..120_usize {
        let at = &steps[second / 30];
        let slice = slice(
            &mut dice,
            at.weight,
            Duration::from_millis(500),
            70.0,
            Arm::GOOD,
            Arm::GOOD,
        );
        record.extend(
            live.observe(&slice, &guard, at)
                .into_iter()
                .map(|judged| (at.clone(), judged)),
        );
    }
    let mut again = Judge::new(&guard, &Baseline::default());
    for (at, judged) in record {
        let verdict: Verdict = again.judge(&judged.block, &guard, &at);
        assert_eq!((verdict.rules, &verdict), (RULES_VERSION, &judged.verdict));
    }
}

#[test]
fn keeps_its_state_below_64_kib() {
    let guard = Guard::default();
    let arm = Arm {
        nodes: 8,
        ..Arm::GOOD
    };
    let mut judge = Judge::new(&guard, &Baseline::default());
    let (mut dice, at) = (Dice::new(16), ladder()[4].clone());
    let mut largest = 0;
    for _ in 0..300 {
        let slice = slice(
            &mut dice,
            at.weight,
            Duration::from_millis(500),
            2_000.0,
            arm,
            arm,
        );
        judge.observe(&slice, &guard, &at);
        judge.saturation(
            &SaturationSample {
                canary: vec![gauges("c", 1.0, 0.1); 8],
                stable: vec![gauges("s", 1.0, 0.1); 8],
            },
            &guard,
        );
        largest = largest.max(serde_json::to_string(&judge).unwrap().len());
    }
    assert!(largest < 64 * 1_024, "{largest} bytes");
    eprintln!("largest state: {largest} bytes");
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "only to measure how long it takes; nothing is decided by it"
)]
fn a_tick_of_a_thousand_rollouts_with_eight_nodes_on_each_arm_takes_less_than_50_ms() {
    let guard = Guard::default();
    let arm = Arm {
        nodes: 8,
        ..Arm::GOOD
    };
    // What this thread used of a core, whatever else the machine does (proc(5)).
    let used = || {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
    };
    let half = Duration::from_millis(500);
    let at = ladder()[4].clone();
    for rate in [50.0, 200.0, 500.0] {
        let mut rollouts: Vec<(Judge, Vec<Block>)> = (0..1_000)
            .map(|seed| {
                let mut dice = Dice::new(seed);
                let mut judge = Judge::new(&guard, &Baseline::default());
                // Of different ages, so that not all blocks close at once.
                for _ in 0..100 + seed % 20 {
                    judge.observe(
                        &slice(&mut dice, at.weight, half, rate, arm, arm),
                        &guard,
                        &at,
                    );
                }
                let next = (0..5)
                    .map(|_| slice(&mut dice, at.weight, half, rate, arm, arm))
                    .collect();
                (judge, next)
            })
            .collect();
        let mut ticks: Vec<Duration> = (0..5)
            .map(|tick| {
                let began = used();
                let judged: usize = rollouts
                    .iter_mut()
                    .map(|(judge, next)| judge.observe(&next[tick], &guard, &at).len())
                    .sum();
                let took = used().saturating_sub(began);
                eprintln!("{rate}/s: {judged} blocks judged in {took:?}");
                took
            })
            .collect();
        ticks.sort();
        assert!(ticks[2] < Duration::from_millis(50), "{ticks:?}");
    }
}

// ---- settings ----

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
