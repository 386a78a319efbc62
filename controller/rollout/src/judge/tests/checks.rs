//! Checks of the user's own: what condemns, what only closes gates, and that no data is never success.

use super::super::combine::of_nodes;
use super::super::mixture::Restart;
use super::super::saturation::{WORSE, sign};
use super::super::{
    Baseline, CheckSample, Decision, Judge, Missing, Position, SAMPLE_PERIOD, Signal, Verdict,
};
use super::traffic_model::percent;
use crate::plan::{Bound, CHECKS_MAX, Check, Guard, Hold, Tuning};
use crate::signals::{Block, Cell};
use crate::{Duration, Millis};

const SECOND: Duration = Duration::from_secs(1);

fn check(name: &str, bound: Bound) -> Check {
    Check {
        name: name.into(),
        query: "x{release=\"$release\"}".into(),
        bound,
        every: 10 * SECOND,
        lag: Duration::ZERO,
        window: Duration::ZERO,
        grace: 30 * SECOND,
    }
}

fn guard(checks: Vec<Check>) -> Guard {
    Guard {
        warm_up: Duration::ZERO,
        checks,
        ..Guard::default()
    }
}

fn limit() -> Guard {
    guard(vec![check("lag", Bound::Max(100.0))])
}

fn comparison() -> Guard {
    guard(vec![check("cost", Bound::AboveStable(0.25))])
}

fn sample(name: &str, canary: Option<f64>, stable: Option<f64>) -> CheckSample {
    CheckSample {
        name: name.into(),
        canary,
        stable,
        ..CheckSample::default()
    }
}

/// A step from which nothing but checks keeps a good canary.
fn position(step: usize) -> Position {
    Position {
        step,
        weight: percent(50),
        next: Some(percent(80)),
        last_gate: false,
        hold: Hold {
            least: Duration::ZERO,
            most: 5 * SECOND,
        },
    }
}

/// A second in which both arms do equally well.
fn second() -> Block {
    let cells = |node: &str| {
        vec![Cell {
            node: node.into(),
            requests: 250,
            latency: (0..50).map(|bucket| (200 + bucket, 5)).collect(),
            ..Cell::default()
        }]
    };
    Block {
        weight: percent(50),
        duration: SECOND,
        canary: cells("c"),
        stable: cells("s"),
    }
}

struct Trial {
    judge: Judge,
    guard: Guard,
    step: usize,
}

impl Trial {
    fn of(guard: Guard) -> Self {
        Self {
            judge: Judge::new(&guard, &Baseline::default()),
            guard,
            step: 0,
        }
    }

    /// Judges so many good seconds; the last verdict.
    fn seconds(&mut self, seconds: u32) -> Verdict {
        let mut last = None;
        for _ in 0..seconds {
            last = Some(
                self.judge
                    .judge(&second(), &self.guard, &position(self.step)),
            );
        }
        last.unwrap()
    }

    fn tell(&mut self, sample: CheckSample) {
        self.judge.checks(&[sample], &self.guard);
    }

    /// One sample, and the ten seconds after it.
    fn ten_seconds_after(&mut self, canary: Option<f64>, stable: Option<f64>) -> Verdict {
        let name = self.guard.checks[0].name.clone();
        self.tell(sample(&name, canary, stable));
        self.seconds(10)
    }
}

fn passes(verdict: &Verdict) -> bool {
    matches!(verdict.decision, Decision::Pass { .. })
}

fn fails(verdict: &Verdict) -> bool {
    matches!(verdict.decision, Decision::Fail { .. })
}

fn missing(verdict: &Verdict) -> Option<Option<Millis>> {
    let Decision::Inconclusive { missing } = &verdict.decision else {
        return None;
    };
    missing.iter().find_map(|missing| {
        let Missing::Check { silent, .. } = missing else {
            return None;
        };
        Some(*silent)
    })
}

#[test]
fn passes_a_canary_that_keeps_its_checks() {
    for (guard, values) in [
        (limit(), (Some(99.0), None)),
        (comparison(), (Some(10.0), Some(10.0))),
    ] {
        let mut trial = Trial::of(guard);
        trial.seconds(20);
        let verdicts: Vec<_> = (0..30)
            .map(|_| trial.ten_seconds_after(values.0, values.1))
            .collect();
        assert!(verdicts.iter().all(passes), "{:?}", verdicts[0].decision);
    }
    assert!(passes(&Trial::of(guard(vec![])).seconds(20)));
}

#[test]
fn f02_f03_no_data_never_passes_and_never_condemns() {
    let nothing = [
        None,
        Some(f64::NAN),
        Some(f64::INFINITY),
        Some(f64::NEG_INFINITY),
    ];
    let limits = nothing.map(|value| (limit(), value, None));
    let comparisons = nothing
        .into_iter()
        .flat_map(|value| [(value, Some(1.0)), (Some(9e9), value), (value, value)])
        .map(|(canary, stable)| (comparison(), canary, stable));
    for (guard, canary, stable) in limits.into_iter().chain(comparisons) {
        let mut trial = Trial::of(guard);
        for tens in 1..60 {
            let verdict = trial.ten_seconds_after(canary, stable);
            assert!(
                !passes(&verdict) && !fails(&verdict),
                "{canary:?} {stable:?}"
            );
            let silent = missing(&verdict).expect("it says what is missing");
            assert_eq!(
                silent.is_some(),
                tens > 3,
                "after its grace it says since when"
            );
        }
    }
}

#[test]
fn f03_a_check_that_is_never_answered_never_passes() {
    let mut trial = Trial::of(limit());
    for _ in 0..600 {
        assert!(!passes(&trial.seconds(1)));
    }
    // Answers to other checks are none to this.
    trial.tell(sample("another", Some(1.0), None));
    assert!(!passes(&trial.seconds(1)));
}

#[test]
fn f11_a_source_that_stops_closes_the_gates_after_its_grace_and_opens_them_when_it_is_back() {
    let mut trial = Trial::of(limit());
    trial.seconds(20);
    assert!(passes(&trial.ten_seconds_after(Some(1.0), None)));
    assert!(passes(&trial.seconds(20)), "three questions may fail");
    let verdict = trial.seconds(1);
    assert_eq!(missing(&verdict), Some(Some(Millis(31 * SECOND))));
    assert_eq!(verdict.checks[0].silent, 31 * SECOND);
    assert_eq!(
        verdict.checks[0].canary,
        Some(1.0),
        "what was last known is still shown"
    );
    assert!(!passes(&trial.seconds(600)));
    assert!(passes(&trial.ten_seconds_after(Some(1.0), None)));
}

#[test]
fn f04_f05_a_gate_waits_for_a_sample_taken_wholly_within_its_step() {
    let mut late = check("lag", Bound::Max(100.0));
    late.window = 10 * SECOND;
    let mut trial = Trial::of(guard(vec![late]));
    let aged = |seconds: u32| CheckSample {
        age: seconds * SECOND,
        ..sample("lag", Some(1.0), None)
    };
    trial.seconds(24);
    trial.tell(aged(15));
    let verdict = trial.seconds(1);
    assert_eq!(
        missing(&verdict),
        Some(None),
        "it looked at the second before the step"
    );
    trial.tell(aged(15));
    assert!(passes(&trial.seconds(1)));
    trial.step = 1;
    trial.tell(aged(15));
    assert_eq!(
        missing(&trial.seconds(1)),
        Some(None),
        "another step, another sample"
    );
}

#[test]
fn a_limit_condemns_when_it_is_broken_three_times_in_a_row() {
    let mut trial = Trial::of(limit());
    let values = [101.0, 500.0, 100.0, 101.0, 1e300];
    for value in values {
        assert!(!fails(&trial.ten_seconds_after(Some(value), None)));
    }
    // A hole in the row is no evidence.
    assert!(!fails(&trial.ten_seconds_after(None, None)));
    for value in [101.0, 102.0] {
        assert!(!fails(&trial.ten_seconds_after(Some(value), None)));
    }
    let verdict = trial.ten_seconds_after(Some(103.5), None);
    let signal = Signal::Check {
        name: "lag".into(),
        value: 103.5,
        limit: 100.0,
    };
    assert_eq!(
        verdict.decision,
        Decision::Fail {
            signal,
            sick_node: None
        }
    );
    assert!(
        fails(&trial.ten_seconds_after(Some(0.0), None)),
        "it is never taken back"
    );
}

#[test]
fn a_least_value_condemns_below_it() {
    let mut trial = Trial::of(guard(vec![check("hits", Bound::Min(0.9))]));
    for value in [0.9, 0.95, f64::MAX, 0.89, 0.89] {
        assert!(!fails(&trial.ten_seconds_after(Some(value), None)));
    }
    assert!(fails(&trial.ten_seconds_after(Some(-1.0), None)));
}

#[test]
fn a_cold_start_may_break_a_limit() {
    let mut trial = Trial::of(Guard {
        warm_up: 60 * SECOND,
        ..limit()
    });
    for _ in 0..6 {
        assert!(!fails(&trial.ten_seconds_after(Some(500.0), None)));
    }
    assert!(!fails(&trial.ten_seconds_after(Some(500.0), None)));
}

#[test]
fn a_comparison_condemns_on_evidence_and_names_the_check() {
    let mut trial = Trial::of(comparison());
    let mut samples = 0;
    let verdict = loop {
        samples += 1;
        assert!(samples < 40, "not found");
        let verdict = trial.ten_seconds_after(Some(13.0), Some(10.0));
        if fails(&verdict) {
            break verdict;
        }
    };
    assert!((8..=20).contains(&samples), "{samples} samples");
    let Decision::Fail {
        signal: Signal::Check { name, value, limit },
        ..
    } = verdict.decision
    else {
        panic!("{:?}", verdict.decision)
    };
    assert_eq!((name.as_str(), value, limit), ("cost", 13.0, 12.5));
    assert!(verdict.evidence.checks > verdict.evidence.errors);
}

#[test]
fn a_comparison_lets_its_margin_pass_also_below_zero() {
    for (canary, stable) in [(12.5, 10.0), (-7.5, -10.0), (0.0, 0.0), (-20.0, -10.0)] {
        let mut trial = Trial::of(comparison());
        trial.seconds(20);
        for _ in 0..60 {
            assert!(passes(&trial.ten_seconds_after(Some(canary), Some(stable))));
        }
    }
}

#[test]
fn signs_gain_nothing_on_average_from_a_canary_that_is_like_stable() {
    // Every row of twelve signs is as likely as any other where the canary is beyond the margin half of the time.
    const SIGNS: u32 = 12;
    let mut mean = 0.0;
    for row in 0_u32..1 << SIGNS {
        let mut process = Restart::new(WORSE.len());
        for at in 0..SIGNS {
            sign(
                &mut process,
                row >> at & 1 == 1,
                SAMPLE_PERIOD,
                &Tuning::default(),
            );
        }
        mean += process.log_e().exp() / f64::from(1 << SIGNS);
    }
    assert!((mean - 1.0).abs() < 1e-9, "{mean}");
}

#[test]
fn checks_take_their_share_from_saturation_and_add_nothing_to_the_whole() {
    for checks in [None, Some(0.0)] {
        assert!(of_nodes(0.0, 0.0, checks).abs() < 1e-12);
    }
    let (without, with) = (of_nodes(9.0, 0.0, None), of_nodes(9.0, 0.0, Some(0.0)));
    assert!(with < without && without - with < 1.0, "{without} {with}");
}

#[test]
fn comes_back_from_json_as_it_was_and_stays_small() {
    let named = |at: usize| format!("check {at}, {}", "n".repeat(40));
    let bound = |at: usize| {
        if at.is_multiple_of(2) {
            Bound::AboveStable(0.1)
        } else {
            Bound::Max(0.3)
        }
    };
    let guard = guard(
        (0..CHECKS_MAX + 5)
            .map(|at| check(&named(at), bound(at)))
            .collect(),
    );
    let mut trial = Trial::of(guard);
    for round in 0..7 {
        for at in 0..CHECKS_MAX + 5 {
            let value = 0.1 + f64::from(round) / 3.0;
            trial.tell(CheckSample {
                trouble: (at % 3 == 0).then(|| "no route to host ".repeat(100)),
                ..sample(&named(at), (at % 5 != 0).then_some(value), Some(0.3))
            });
        }
        trial.seconds(1);
        let json = serde_json::to_string(&trial.judge).unwrap();
        let back: Judge = serde_json::from_str(&json).unwrap();
        assert_eq!(back, trial.judge);
        assert!(json.len() < 64 << 10, "{} bytes", json.len());
        trial.judge = back;
    }
    let verdict = trial.seconds(1);
    assert_eq!(
        verdict.checks.len(),
        CHECKS_MAX,
        "more than these are not followed"
    );
    let json = serde_json::to_string(&verdict).unwrap();
    assert_eq!(serde_json::from_str::<Verdict>(&json).unwrap(), verdict);
}

#[test]
fn a_judge_that_was_saved_before_there_were_checks_goes_on() {
    let mut trial = Trial::of(limit());
    trial.seconds(3);
    let mut json = serde_json::to_value(&trial.judge).unwrap();
    json.as_object_mut().unwrap().remove("checks").unwrap();
    trial.judge = serde_json::from_value(json).unwrap();
    assert!(!passes(&trial.seconds(600)));
}
