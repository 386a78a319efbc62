//! CPU and memory.

use super::super::super::{
    Baseline, Decision, Gauge, Grounds, HoldReason, Judge, Missing, NodeGauges, Position,
    SaturationSample, Signal,
};
use super::super::traffic_model::{Arm, Simulated, ladder};
use super::{SECOND, at_once, block, cell, gauges, no_warm_up};
use crate::plan::Hold;

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
