//! The watch over a canary that has every request: what it must find, what it must forgive, and how often it is wrong.

use proptest::prelude::*;

use super::super::mixture::Restart;
use super::super::split::HARM_ODDS;
use super::super::watch::rate_log_factor;
use super::super::{
    Baseline, Decision, Gauge, Judge, Missing, NodeGauges, Percentile, Position, SaturationSample,
    Signal, Verdict,
};
use super::traffic_model::{Arm, Dice, percent, slice};
use crate::plan::{Guard, Hold, Tuning};
use crate::{Duration, Weight};

const SECOND: Duration = Duration::from_secs(1);

fn guard() -> Guard {
    Guard {
        warm_up: Duration::ZERO,
        ..Guard::default()
    }
}

fn bake() -> Position {
    Position {
        step: 1,
        weight: percent(80),
        next: None,
        last_gate: false,
        hold: Hold {
            least: Duration::from_secs(60),
            most: Duration::from_secs(600),
        },
    }
}

fn alone() -> Position {
    Position {
        step: 2,
        weight: Weight::ALL,
        ..bake()
    }
}

/// A rollout at its end: a minute of the bake is over, and now the canary has every request.
struct Alone {
    judge: Judge,
    guard: Guard,
    dice: Dice,
    rate: f64,
}

impl Alone {
    fn after_the_bake(seed: u64, rate: f64, stable: Arm) -> Self {
        let guard = guard();
        let mut alone = Self {
            judge: Judge::new(&guard, &Baseline::default()),
            guard,
            dice: Dice::new(seed),
            rate,
        };
        for _ in 0..60 {
            let slice = slice(&mut alone.dice, percent(80), SECOND, rate, stable, stable);
            alone.judge.observe(&slice, &alone.guard, &bake());
        }
        alone
    }

    /// A second with every request on the canary.
    fn second(&mut self, canary: Arm) -> Option<Verdict> {
        let slice = slice(
            &mut self.dice,
            Weight::ALL,
            SECOND,
            self.rate,
            canary,
            canary,
        );
        let judged = self.judge.observe(&slice, &self.guard, &alone());
        judged.into_iter().last().map(|judged| judged.verdict)
    }

    /// After how many seconds, of at most so many, it is rolled back, and why.
    fn condemned(&mut self, canary: Arm, seconds: u32) -> Option<(u32, Signal)> {
        (1..=seconds).find_map(|second| match self.second(canary)?.decision {
            Decision::Fail { signal, .. } => Some((second, signal)),
            Decision::Inconclusive { .. } => None,
            other @ (Decision::Hold { .. } | Decision::Pass { .. }) => {
                panic!("neither holds nor passes: {other:?}")
            }
        })
    }
}

#[test]
fn finds_what_breaks_down_within_seconds_and_says_what_it_was_held_against() {
    for (rate, within) in [(5.0, 30), (50.0, 6), (500.0, 6)] {
        let mut watch = Alone::after_the_bake(1, rate, Arm::GOOD);
        assert_eq!(watch.condemned(Arm::GOOD, 30), None);
        let (seconds, signal) = watch.condemned(Arm::GOOD.failing(1.0), 60).unwrap();
        assert!(seconds <= within, "{rate}/s: {seconds} s");
        assert!(matches!(signal, Signal::ErrorsAlone { .. }), "{signal:?}");
    }
    let mut watch = Alone::after_the_bake(2, 200.0, Arm::GOOD);
    let slow = Arm {
        median_us: 3.0 * Arm::GOOD.median_us,
        ..Arm::GOOD
    };
    let (seconds, signal) = watch.condemned(slow, 60).unwrap();
    assert!((8..=20).contains(&seconds), "{seconds}");
    let Signal::LatencyAlone { percentile } = signal else {
        panic!("{signal:?}")
    };
    assert!(percentile != Percentile::P99, "most of it is slower");
}

#[test]
fn forgives_some_seconds_in_which_everybody_may_be_slow() {
    let slow = Arm {
        median_us: 5.0 * Arm::GOOD.median_us,
        ..Arm::GOOD
    };
    for seed in 0..10 {
        let mut watch = Alone::after_the_bake(seed, 500.0, Arm::GOOD);
        assert_eq!(watch.condemned(Arm::GOOD, 60), None);
        assert_eq!(watch.condemned(slow, 6), None);
        assert_eq!(watch.condemned(Arm::GOOD, 60), None);
    }
}

#[test]
fn waits_out_its_time_for_a_good_one_and_shows_the_weaker_comparison() {
    let mut watch = Alone::after_the_bake(3, 200.0, Arm::GOOD.failing(0.01));
    let verdict = (0..20)
        .filter_map(|_| watch.second(Arm::GOOD.failing(0.01)))
        .last()
        .unwrap();
    assert_eq!(
        verdict.decision,
        Decision::Inconclusive {
            missing: vec![Missing::Time {
                remaining: Duration::from_secs(40)
            }]
        }
    );
    let watched = verdict.watched.unwrap();
    let before = watched.errors_before.unwrap();
    assert!((0.005..0.02).contains(&before), "{before}");
    assert!((watched.errors_allowed - 2.0 * (before + 0.005)).abs() < 1e-12);
    assert!((watched.rollback_at - 1_000_f64.ln()).abs() < 1e-12);
    assert_eq!(verdict.in_step.stable.requests, 0);
    assert!(verdict.in_step.canary.requests > 1_500);
    assert_eq!(verdict.step_elapsed, Duration::from_secs(20));
    assert!(verdict.nearness() < 0.0);
}

#[test]
fn is_off_where_the_guard_says_so() {
    let mut watch = Alone::after_the_bake(4, 100.0, Arm::GOOD);
    watch.guard.watch = false;
    assert_eq!(watch.condemned(Arm::GOOD.failing(1.0), 60), None);
}

#[test]
fn judges_what_still_comes_of_the_weight_before_as_ever() {
    let mut watch = Alone::after_the_bake(5, 200.0, Arm::GOOD);
    assert_eq!(watch.condemned(Arm::GOOD, 2), None);
    let late = slice(
        &mut watch.dice,
        percent(80),
        3 * SECOND,
        200.0,
        Arm::GOOD.failing(0.5),
        Arm::GOOD,
    );
    let before = watch.judge.observe(&late, &watch.guard, &alone());
    let verdict = &before.last().unwrap().verdict;
    assert!(verdict.evidence.errors > 1.0, "{:?}", verdict.evidence);
    assert_eq!(verdict.weight, percent(80));
}

#[test]
fn takes_a_memory_limit_for_one_and_all_load_on_one_arm_for_no_sign() {
    let gauges = |node: &str, memory: f64, cpu: f64| NodeGauges {
        node: node.into(),
        memory_bytes: Some(memory),
        memory_limit_bytes: Some(1_000.0),
        cpu_ratio: Some(cpu),
        ..NodeGauges::default()
    };
    let mut watch = Alone::after_the_bake(6, 100.0, Arm::GOOD);
    assert_eq!(watch.condemned(Arm::GOOD, 1), None);
    for _ in 0..30 {
        let busy = SaturationSample {
            canary: vec![gauges("c", 800.0, 0.99)],
            stable: vec![gauges("s", 100.0, 0.01)],
        };
        watch.judge.saturation(&busy, &watch.guard);
    }
    assert_eq!(watch.condemned(Arm::GOOD, 2), None);
    let full = SaturationSample {
        canary: vec![gauges("c", 960.0, 0.5)],
        stable: vec![gauges("s", 100.0, 0.01)],
    };
    watch.judge.saturation(&full, &watch.guard);
    let (_, signal) = watch.condemned(Arm::GOOD, 2).unwrap();
    assert!(matches!(
        signal,
        Signal::Limit {
            gauge: Gauge::Memory,
            ..
        }
    ));
}

#[test]
fn goes_on_from_a_judge_that_was_saved_before_there_was_a_watch() {
    let mut watch = Alone::after_the_bake(7, 100.0, Arm::GOOD);
    let mut saved = serde_json::to_value(&watch.judge).unwrap();
    let all = saved.as_object_mut().unwrap();
    all.remove("watch").unwrap();
    all["baseline"]
        .as_object_mut()
        .unwrap()
        .remove("hour")
        .unwrap();
    all["trial"]
        .as_object_mut()
        .unwrap()
        .remove("aimed")
        .unwrap();
    watch.judge = serde_json::from_value(saved).unwrap();
    // Of stable's hour nothing is known: as much is allowed as to a cold start.
    assert_eq!(watch.condemned(Arm::GOOD.failing(0.2), 30), None);
    assert!(watch.condemned(Arm::GOOD.failing(1.0), 10).is_some());
}

/// The chance of so many events of so many, each with this chance.
fn binomial(all: u64, events: u64, chance: f64) -> f64 {
    let choose: f64 = (0..events)
        .map(|i| (all - i) as f64 / (i + 1) as f64)
        .product();
    choose * chance.powi(events as i32) * (1.0 - chance).powi((all - events) as i32)
}

#[test]
fn gains_nothing_on_average_from_a_canary_that_stays_within_what_is_allowed() {
    for all in [1, 5, 20, 60] {
        for allowed in [0.01, 0.1, 0.5, 0.9] {
            for chance in [allowed, 0.5 * allowed, 0.0] {
                for odds in HARM_ODDS {
                    for (phi, cap) in [(1.0, f64::INFINITY), (1.0, 3.0), (4.0, 3.0)] {
                        let mean: f64 = (0..=all)
                            .map(|events| {
                                binomial(all, events, chance)
                                    * rate_log_factor((all, events), allowed, odds, phi, cap).exp()
                            })
                            .sum();
                        assert!(mean <= 1.0 + 1e-9, "{all} at {chance}, {allowed}: {mean}");
                    }
                }
            }
        }
    }
}

#[test]
fn is_wrong_no_more_often_than_its_budget_says_when_all_is_as_bad_as_is_allowed() {
    // A tenth in place of a thousandth, so that a thousand watches of ten minutes can tell.
    const WATCHES: u64 = 1_000;
    let tuning = Tuning::default();
    for allowed in [0.012, 0.1] {
        let alarms = (0..WATCHES).filter(|seed| {
            let mut dice = Dice::new(*seed);
            let mut process = Restart::new(HARM_ODDS.len());
            (0..120).any(|_| {
                let events = (0..100).filter(|_| dice.share() < allowed).count() as u64;
                let factors = HARM_ODDS.iter().map(|odds| {
                    rate_log_factor((100, events), allowed, *odds, 1.0, tuning.cap_nats)
                });
                process.update(factors, 5 * SECOND, &tuning);
                process.log_e() >= 10_f64.ln()
            })
        });
        let share = alarms.count() as f64 / WATCHES as f64;
        assert!(share <= 0.1 + 0.028, "{share} at {allowed}");
    }
}

proptest! {
    #[test]
    fn one_more_failure_never_speaks_for_the_canary(
        all in 1_u64..500, allowed in 0.001_f64..0.9, share in 0.0_f64..1.0, odds in prop::sample::select(HARM_ODDS.to_vec())
    ) {
        let events = ((all - 1) as f64 * share) as u64;
        let of = |events| rate_log_factor((all, events), allowed, odds, 1.0, 3.0);
        prop_assert!(of(events + 1) >= of(events));
    }
}
