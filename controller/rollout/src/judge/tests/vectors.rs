//! Every number of `tests/data/judge-vectors.json`, which an independent reference computed and other packages confirmed.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::super::aimed::Aim;
use super::super::combine::combine;
use super::super::dispersion::Dispersion;
use super::super::gate::{demand, margins};
use super::super::latency::Reference;
use super::super::mixture::{Restart, log_sum_exp};
use super::super::non_inferiority::{
    Difference, NonInferiorErrors, NonInferiorLatency, excess_log_factor,
};
use super::super::saturation::sign_log_factor;
use super::super::split::{HARM_ODDS, Harm, Outcomes, split_log_factor};
use super::super::traffic::SampleRatio;
use super::super::trial::{Reduced, Trial};
use super::super::verdict::{ArmCounts, Grounds};
use super::super::warm_up::WarmUp;
use super::super::{Position, counter_delta};
use crate::plan::{Guard, Hold, Tuning};
use crate::signals::{LatencyHistogram, bucket_edge_us, bucket_of_us};
use crate::{Duration, Weight};

fn group<T: DeserializeOwned>(name: &str) -> T {
    let text = include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/data/judge-vectors.json"
    ));
    let mut all: Value = serde_json::from_str(text).unwrap();
    serde_json::from_value(all[name].take()).unwrap_or_else(|error| panic!("group {name}: {error}"))
}

#[track_caller]
fn same(ours: f64, theirs: f64) {
    let apart = (ours - theirs).abs();
    assert!(
        apart <= 1e-12 || apart <= 1e-9 * theirs.abs(),
        "{ours} is not {theirs}"
    );
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

#[derive(Deserialize)]
struct Outcome {
    #[serde(rename = "nC")]
    canary: u64,
    #[serde(rename = "nS")]
    stable: u64,
    #[serde(rename = "yC", alias = "xC", alias = "yC_shifted")]
    canary_events: u64,
    #[serde(rename = "yS", alias = "xS")]
    stable_events: u64,
    #[serde(default)]
    dt: f64,
}

impl Outcome {
    fn outcomes(&self) -> Outcomes {
        Outcomes {
            canary: self.canary,
            stable: self.stable,
            canary_events: self.canary_events,
            stable_events: self.stable_events,
        }
    }
}

#[derive(Deserialize)]
struct Factor {
    #[serde(flatten)]
    counts: Outcome,
    omega: Option<f64>,
    delta: Option<f64>,
    c: Option<f64>,
    phi: Option<f64>,
    cap: Option<f64>,
    #[serde(rename = "logL")]
    log: f64,
}

#[test]
fn agrees_on_the_split_factor() {
    for name in ["split_factor", "split_factor_tempered"] {
        for row in group::<Vec<Factor>>(name) {
            let (phi, cap) = (row.phi.unwrap_or(1.0), row.cap.unwrap_or(f64::INFINITY));
            same(
                split_log_factor(&row.counts.outcomes(), row.omega.unwrap(), phi, cap),
                row.log,
            );
        }
    }
}

#[test]
fn agrees_on_the_mean_of_the_split_factor() {
    #[derive(Deserialize)]
    struct Row {
        #[serde(rename = "nC")]
        canary: u64,
        #[serde(rename = "nS")]
        stable: u64,
        #[serde(rename = "Y")]
        events: u64,
        omega: f64,
        #[serde(rename = "expected_L")]
        mean: f64,
    }
    for row in group::<Vec<Row>>("split_expectation_under_null") {
        let mean = super::laws::mean_given_events(row.canary, row.stable, row.events, |block| {
            split_log_factor(block, row.omega, 1.0, f64::INFINITY).exp()
        });
        same(mean, row.mean);
    }
}

#[test]
fn agrees_on_the_harm_process() {
    #[derive(Deserialize)]
    struct Row {
        blocks: Vec<Outcome>,
        log_e: Vec<f64>,
        final_log_v: Vec<f64>,
        #[serde(rename = "final_R")]
        final_reserve: f64,
    }
    let rows: Vec<Row> = group("harm_process");
    assert_eq!(rows.len(), 4);
    for row in rows {
        let mut harm = Harm::default();
        for (block, log_e) in row.blocks.iter().zip(row.log_e) {
            harm.block(
                seconds(block.dt),
                &block.outcomes(),
                1.0,
                &Tuning::default(),
            );
            same(harm.log_e(), log_e);
        }
        assert_eq!(harm.0.bets.len(), row.final_log_v.len());
        for (bet, theirs) in harm.0.bets.iter().zip(row.final_log_v) {
            same(bet.0, theirs);
        }
        same(harm.0.reserve, row.final_reserve);
    }
}

#[test]
fn agrees_on_the_excess_factor() {
    for row in group::<Vec<Factor>>("excess_factor") {
        let cap = row.cap.unwrap_or(f64::INFINITY);
        same(
            excess_log_factor(
                &row.counts.outcomes(),
                row.delta.unwrap(),
                row.c.unwrap(),
                1.0,
                cap,
            ),
            row.log,
        );
    }
}

#[test]
fn agrees_on_the_proof_about_errors() {
    #[derive(Deserialize)]
    struct Row {
        delta: f64,
        p_ref: f64,
        rel: f64,
        blocks: Vec<Outcome>,
        log_e: Vec<f64>,
    }
    for row in group::<Vec<Row>>("ni_errors_process") {
        let tuning = Tuning {
            errors_margin_relative: row.rel,
            ..Tuning::default()
        };
        let mut proof = NonInferiorErrors::new(row.delta);
        for (block, log_e) in row.blocks.iter().zip(row.log_e) {
            proof.block(&block.outcomes(), row.p_ref, 1.0, &tuning);
            same(proof.log_e(), log_e);
        }
    }
}

#[test]
fn agrees_on_the_proof_about_latency() {
    #[derive(Deserialize)]
    struct Row {
        blocks: Vec<Outcome>,
        log_e: Vec<f64>,
    }
    for row in group::<Vec<Row>>("ni_latency_process") {
        let mut proof = NonInferiorLatency::default();
        for (block, log_e) in row.blocks.iter().zip(row.log_e) {
            proof.block(&block.outcomes(), 1.0, &Tuning::default());
            same(proof.log_e(), log_e);
        }
    }
}

#[test]
fn agrees_on_the_warm_up() {
    #[derive(Deserialize)]
    struct Row {
        #[serde(flatten)]
        counts: Outcome,
        log_e_cat: f64,
        log_e_rel: f64,
        log_e_warm: f64,
    }
    let mut guard = WarmUp::default();
    for row in group::<Vec<Row>>("warm_guard") {
        guard.block(
            seconds(row.counts.dt),
            &row.counts.outcomes(),
            1.0,
            &Tuning::default(),
        );
        same(guard.log_e_broken(), row.log_e_cat);
        same(guard.log_e_worse(), row.log_e_rel);
        same(guard.log_e(), row.log_e_warm);
    }
}

#[test]
fn agrees_on_signs_with_the_mixture_over_all_chances() {
    #[derive(Deserialize)]
    struct Row {
        worse: u32,
        not_worse: u32,
        log_e: f64,
        confseq_one_sided_beta_binomial: f64,
    }
    // The closed form is the mean of our factor over all chances from 1/2 to 1: integrated here by Simpson's rule.
    const PANELS: u32 = 20_000;
    for row in group::<Vec<Row>>("sign") {
        let product = |chance: f64| {
            let times = |count: u32, is_worse| match count {
                0 => 0.0,
                _ => f64::from(count) * sign_log_factor(is_worse, chance),
            };
            (times(row.worse, true) + times(row.not_worse, false)).exp()
        };
        let width = 0.5 / f64::from(PANELS);
        let inner: f64 = (1..PANELS)
            .map(|at| product(0.5 + f64::from(at) * width) * f64::from(2 + 2 * (at % 2)))
            .sum();
        let mean = 2.0 * width / 3.0 * (product(0.5) + inner + product(1.0));
        same(mean.ln(), row.log_e);
        assert!((mean.ln() - row.confseq_one_sided_beta_binomial).abs() < 1e-10);
    }
}

#[test]
fn agrees_on_the_sample_ratio() {
    #[derive(Deserialize)]
    struct Routed {
        w: f64,
        #[serde(rename = "nC")]
        canary: u64,
        #[serde(rename = "nS")]
        stable: u64,
    }
    #[derive(Deserialize)]
    struct Row {
        blocks: Vec<Routed>,
        log_e: f64,
    }
    for row in group::<Vec<Row>>("srm") {
        let mut ratio = SampleRatio::default();
        for block in &row.blocks {
            ratio.block(share(block.w), block.canary, block.canary + block.stable);
        }
        same(ratio.log_e(), row.log_e);
    }
}

#[test]
fn agrees_with_a_dirichlet_mixture_that_a_right_split_is_no_alarm() {
    #[derive(Deserialize)]
    struct Row {
        w: f64,
        k: f64,
        #[serde(rename = "nC")]
        canary: u64,
        #[serde(rename = "nS")]
        stable: u64,
        log_e: f64,
    }
    for row in group::<Vec<Row>>("dirichlet_reference") {
        let rising =
            |from: f64, count: u64| (0..count).map(|i| (from + i as f64).ln()).sum::<f64>();
        let (canary, stable) = (row.k * row.w, row.k * (1.0 - row.w));
        let theirs = rising(canary, row.canary) + rising(stable, row.stable)
            - rising(row.k, row.canary + row.stable)
            - row.canary as f64 * row.w.ln()
            - row.stable as f64 * (1.0 - row.w).ln();
        same(theirs, row.log_e);
        // Ours bets on other sizes, so the numbers differ; both must find the same counts unremarkable.
        let mut ratio = SampleRatio::default();
        ratio.block(share(row.w), row.canary, row.canary + row.stable);
        assert!((ratio.log_e() - theirs).abs() < 2.0 && !ratio.is_broken());
    }
}

#[test]
fn agrees_on_dispersion() {
    #[derive(Deserialize)]
    struct Row {
        blocks: Vec<Vec<(u64, u64)>>,
        phi: f64,
    }
    for row in group::<Vec<Row>>("dispersion") {
        let mut dispersion = Dispersion::default();
        for block in &row.blocks {
            dispersion.block(block.iter().copied());
        }
        same(dispersion.phi(), row.phi);
    }
}

#[test]
fn agrees_on_the_pooled_difference() {
    #[derive(Deserialize)]
    struct Row {
        blocks: Vec<[u64; 4]>,
        difference: f64,
    }
    for row in group::<Vec<Row>>("mantel_haenszel_difference") {
        let mut difference = Difference::default();
        for [canary, stable, canary_events, stable_events] in row.blocks {
            difference.block(&Outcomes {
                canary,
                stable,
                canary_events,
                stable_events,
            });
        }
        same(difference.estimate().unwrap(), row.difference);
    }
}

#[test]
fn agrees_on_the_total_and_on_what_is_an_alarm() {
    #[derive(Deserialize)]
    struct Row {
        warm: f64,
        err: f64,
        lat: [f64; 3],
        sat: f64,
        log_e_total: f64,
        alarm: bool,
    }
    for row in group::<Vec<Row>>("combine") {
        let total = combine(row.warm, row.err, row.lat, row.sat, &Tuning::default());
        same(total, row.log_e_total);
        assert_eq!(total >= -Guard::default().alpha.ln(), row.alarm);
    }
}

#[test]
fn f02_takes_what_is_no_number_for_no_sample_and_a_fallen_counter_for_a_restart() {
    #[derive(Deserialize)]
    struct Row {
        old: Option<f64>,
        new: Value,
        delta: Option<f64>,
        reset: bool,
    }
    for row in group::<Vec<Row>>("counter") {
        let new = row.new.as_f64().unwrap_or(f64::NAN);
        let step = counter_delta(row.old, Some(new));
        assert_eq!((step.delta, step.reset), (row.delta, row.reset));
    }
    assert_eq!(counter_delta(Some(1.0), None).delta, None);
    assert_eq!(counter_delta(Some(1.0), Some(f64::INFINITY)).delta, None);
}

#[test]
fn agrees_on_buckets() {
    #[derive(Deserialize)]
    struct Row {
        us: f64,
        i: u16,
    }
    #[derive(Deserialize)]
    struct Bucket {
        index: Vec<Row>,
    }
    for row in group::<Bucket>("bucket").index {
        assert_eq!(bucket_of_us(row.us), row.i, "{} us", row.us);
    }
    for bucket in 0..640 {
        assert_eq!(bucket_of_us(bucket_edge_us(bucket)), bucket);
    }
}

#[test]
fn agrees_on_when_a_block_closes() {
    #[derive(Deserialize)]
    struct Row {
        age_s: f64,
        n: u64,
        y: u64,
        close: bool,
    }
    for row in group::<Vec<Row>>("close_block") {
        assert_eq!(
            super::super::blocks::closes(seconds(row.age_s), row.n, row.y, false),
            row.close
        );
    }
    assert!(super::super::blocks::closes(Duration::ZERO, 0, 0, true));
}

#[test]
fn agrees_on_thresholds() {
    #[derive(Deserialize)]
    struct Row {
        hist: std::collections::BTreeMap<u16, u32>,
        tau: std::collections::BTreeMap<String, u16>,
    }
    let row: Row = group("threshold");
    let histogram: LatencyHistogram = row.hist.into_iter().collect();
    let mut reference = Reference::default();
    reference.update(1.0, std::iter::once(&histogram));
    let theirs = ["0.5", "0.9", "0.99"].map(|quantile| row.tau.get(quantile).copied());
    assert_eq!(reference.thresholds().0, theirs);
}

#[test]
fn has_the_constants_of_the_reference() {
    #[derive(Deserialize)]
    struct Meta {
        omega_harm: Vec<f64>,
        omega_ok: Vec<f64>,
        delta_ni: Vec<f64>,
        p_cat: f64,
        cap_nats: f64,
        restart_first: f64,
        #[serde(rename = "restart_T_s")]
        restart_seconds: f64,
        metric_weights: [f64; 4],
        alpha: f64,
    }
    let meta: Meta = group("meta");
    let tuning = Tuning::default();
    assert_eq!(meta.omega_harm, HARM_ODDS);
    assert_eq!(meta.omega_ok, super::super::non_inferiority::MARGIN_ODDS);
    assert_eq!(meta.delta_ni, super::super::EXCESS_GRID);
    assert_eq!(
        (meta.p_cat, meta.cap_nats),
        (tuning.catastrophe, tuning.cap_nats)
    );
    assert_eq!(
        (meta.restart_first, meta.restart_seconds),
        (tuning.restart_first, tuning.restart.as_secs_f64())
    );
    let weights = [
        tuning.weight_warm_up,
        tuning.weight_errors,
        tuning.weight_latency,
        tuning.weight_saturation,
    ];
    assert_eq!(
        (meta.metric_weights, meta.alpha),
        (weights, Guard::default().alpha)
    );
}

/// A block of the reference's rollouts: already reduced.
#[derive(Deserialize, Clone)]
struct ReferenceBlock {
    dt: f64,
    #[serde(rename = "nC")]
    canary: u64,
    #[serde(rename = "nS")]
    stable: u64,
    #[serde(rename = "xC")]
    canary_bad: u64,
    #[serde(rename = "xS")]
    stable_bad: u64,
    #[serde(rename = "lC")]
    canary_timed: u64,
    #[serde(rename = "lS")]
    stable_timed: u64,
    y_tol: [u64; 3],
    #[serde(rename = "yS")]
    stable_slow: [u64; 3],
    y_shift: std::collections::BTreeMap<String, u64>,
    p_ref: f64,
}

impl ReferenceBlock {
    fn reduced(&self, guard: &Guard) -> Reduced {
        let canary = ArmCounts {
            requests: self.canary,
            bad: self.canary_bad,
            timed: self.canary_timed,
            slow: self.y_tol,
        };
        let stable = ArmCounts {
            requests: self.stable,
            bad: self.stable_bad,
            timed: self.stable_timed,
            slow: self.stable_slow,
        };
        let beyond = |(quantile, shift)| {
            self.y_shift
                .get(&format!("tau{quantile}+{shift}"))
                .copied()
                .unwrap_or(0)
        };
        Reduced {
            duration: seconds(self.dt),
            canary,
            cold: (0, 0),
            stable,
            beyond_margin: margins(guard).map(beyond),
            reference: self.p_ref,
            phi: [1.0; 4],
            tied: [false; 3],
            aim: Aim::default(),
        }
    }

    fn without_canary(mut self) -> Self {
        (self.canary, self.canary_bad, self.canary_timed, self.y_tol) = (0, 0, 0, [0; 3]);
        self.y_shift.clear();
        self
    }

    fn silent(self) -> Self {
        let mut silent = self.without_canary();
        (
            silent.stable,
            silent.stable_bad,
            silent.stable_timed,
            silent.stable_slow,
        ) = (0, 0, 0, [0; 3]);
        silent.dt = 10.0;
        silent
    }

    fn failing(mut self, failures: u64) -> Self {
        self.canary_bad = failures;
        self.canary_timed = self.canary - failures;
        self
    }

    fn broken(self) -> Self {
        let canary = self.canary;
        let mut broken = self.failing(canary);
        broken.y_tol = [0; 3];
        broken.y_shift.clear();
        broken
    }
}

#[derive(Deserialize)]
struct Input {
    block: ReferenceBlock,
}

#[derive(Deserialize)]
struct Inputs {
    good_block_per_step: Vec<Input>,
    ladder: Vec<f64>,
    gate_delta: Vec<f64>,
    gate_latency: Vec<Vec<(usize, u16)>>,
}

#[derive(Deserialize, Debug)]
struct Event {
    t: f64,
    action: String,
    weight: f64,
    log_e_total: f64,
    block: usize,
}

#[derive(Deserialize)]
struct Trace {
    name: String,
    generator: String,
    events: Vec<Event>,
    last: Event,
}

fn share(weight: f64) -> Weight {
    Weight::from_percent((weight * 100.0).round() as u8).unwrap()
}

fn positions(ladder: &[f64]) -> Vec<Position> {
    let last = ladder.len() - 1;
    let position = |step: usize| Position {
        step,
        weight: share(ladder[step]),
        next: ladder.get(step + 1).map(|next| share(*next)),
        last_gate: step + 1 == last,
        hold: Hold {
            least: seconds(if step == last { 60.0 } else { 10.0 }),
            most: seconds(if step + 1 == last { 600.0 } else { 300.0 }),
        },
    };
    (0..=last).map(position).collect()
}

#[test]
fn asks_of_each_gate_what_the_reference_does() {
    let inputs: Inputs = group("rollout_inputs");
    let guard = Guard::default();
    for position in positions(&inputs.ladder) {
        let Some(next) = position.next else { continue };
        let demand = demand(next, &position, &guard);
        assert_eq!(
            super::super::EXCESS_GRID[demand.excess],
            inputs.gate_delta[position.step]
        );
        assert_eq!(
            margins(&guard)[demand.latency],
            inputs.gate_latency[position.step]
        );
        same(
            demand.needed,
            if position.last_gate {
                20.0_f64.ln()
            } else {
                10.0_f64.ln()
            },
        );
    }
}

/// What the reference calls the decision, and the weight after it.
fn decide(
    trial: &Trial,
    at: &Position,
    block: &Reduced,
    total: f64,
    guard: &Guard,
) -> (&'static str, f64) {
    if total >= -guard.alpha.ln() {
        return ("rollback", 0.0);
    }
    if trial.silence(&guard.tuning).is_some() {
        return ("hold", at.weight.ratio());
    }
    match (
        trial.pass(at, block, true, total, Vec::new(), guard),
        at.next,
    ) {
        (Ok(_), None) => ("promote", 1.0),
        (Ok(Grounds::Proof), Some(next)) => ("advance", next.ratio()),
        (Ok(_), Some(next)) => ("advance_on_timeout", next.ratio()),
        (Err(missing), _) => {
            assert!(!missing.is_empty());
            ("continue", at.weight.ratio())
        }
    }
}

#[test]
fn drives_the_whole_rollouts_as_the_reference_does() {
    let inputs: Inputs = group("rollout_inputs");
    let traces: Vec<Trace> = group("rollout_traces");
    assert_eq!(traces.len(), 6);
    let guard = Guard {
        tuning: Tuning {
            aimed: 0.0,
            ..Tuning::default()
        },
        ..Guard::default()
    };
    let positions = positions(&inputs.ladder);
    for trace in traces {
        let (mut trial, mut step, mut clock) = (Trial::default(), 0, 0.0);
        let mut events = trace.events.iter();
        let mut before = "continue";
        for number in 1..=trace.last.block {
            let good = inputs.good_block_per_step[step].block.clone();
            let in_bake = positions[step].next.is_none();
            let block = match trace.generator.as_str() {
                "bad" if number > 40 => {
                    let failures = good.canary.div_ceil(5);
                    good.failing(failures)
                }
                "broken" => good.broken(),
                "silent" => good.silent(),
                "stable_only" => good.without_canary(),
                text if text.contains("stops for ever") && in_bake => {
                    let mut silent = good.silent();
                    silent.dt = 1.0;
                    silent
                }
                _ => good,
            };
            let reduced = block.reduced(&guard);
            trial.turn_to(&positions[step]);
            trial.block(&reduced, true, &guard);
            let total = trial.evidence(0.0, None, &guard.tuning).total;
            let (action, weight) = decide(&trial, &positions[step], &reduced, total, &guard);
            clock = if trial.silence(&guard.tuning).is_some() {
                clock
            } else {
                clock + block.dt
            };
            let is_event = action != "continue" && (action != "hold" || before != "hold");
            before = action;
            if is_event {
                let event = events
                    .next()
                    .unwrap_or_else(|| panic!("{}: {action} at block {number}", trace.name));
                assert_eq!(
                    (action, number),
                    (event.action.as_str(), event.block),
                    "{}",
                    trace.name
                );
                same(total, event.log_e_total);
                same(weight, event.weight);
                assert!(event.t <= clock + 1e-9 || event.action != "advance");
            }
            if number == trace.last.block {
                assert_eq!(action, trace.last.action, "{}", trace.name);
                same(total, trace.last.log_e_total);
                same(weight, trace.last.weight);
            }
            if action == "advance" {
                step += 1;
            }
        }
        assert!(
            events.next().is_none(),
            "{}: an event did not happen",
            trace.name
        );
    }
}

#[test]
fn spends_its_reserve_as_the_reference_does() {
    let mut restart = Restart::new(1);
    assert_eq!(restart.log_e(), 0.0);
    for _ in 0..=600 {
        restart.update(
            std::iter::once(0.0),
            Duration::from_secs(1),
            &Tuning::default(),
        );
    }
    same(restart.reserve, 0.25);
    same(
        log_sum_exp([restart.reserve.ln(), restart.bets[0].0].into_iter()),
        0.0,
    );
}
