//! What is kept of a judge, and what a judge costs.

use super::super::super::{
    Baseline, Judge, Judged, Position, RULES_VERSION, SaturationSample, Verdict,
};
use super::super::traffic_model::{Arm, Dice, Simulated, ladder, slice};
use super::{SECOND, gauges};
use crate::Duration;
use crate::plan::Guard;
use crate::signals::Block;

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
