//! One number out of four: a weighted mean of evidence is evidence, whatever the signals have to do with each other
//! (JUDGE 2.9).

use super::mixture::log_sum_exp;
use super::saturation::Gauge;
use super::verdict::{Evidence, Percentile, Signal};
use crate::plan::Tuning;

/// The part of saturation's share that guards nodes which start late. They are few; with a hundredth of the whole budget
/// about a dozen failing requests suffice.
const LATE_NODES: f64 = 0.1;

/// The part of saturation's share that what users compare gets, if the guard has any: checks, and kinds of answers. Like gauges
/// they are few and slow; halving the share costs gauges 0.8 nats, which is a sample or two.
const CHECKS: f64 = 0.5;

/// The total that is held against `1 / alpha`; `nodes` is what [`of_nodes`] makes of saturation and late nodes.
pub(crate) fn combine(
    warm_up: f64,
    errors: f64,
    latency: [f64; 3],
    nodes: f64,
    tuning: &Tuning,
) -> f64 {
    log_sum_exp(terms(warm_up, errors, latency, nodes, tuning).into_iter())
}

/// The evidence that nodes bring: their gauges, the failures of those that start late, and what users compare of them. The
/// parts sum to 1, so that with checks the total is a mean of evidence as it is without.
pub(crate) fn of_nodes(saturation: f64, late_nodes: f64, checks: Option<f64>) -> f64 {
    log_sum_exp(parts(saturation, late_nodes, checks).into_iter())
}

/// The weighted parts of saturation's share: gauges, late nodes, checks.
fn parts(saturation: f64, late_nodes: f64, checks: Option<f64>) -> [f64; 3] {
    let of_checks = checks.map_or(0.0, |_| CHECKS);
    [
        (1.0 - LATE_NODES - of_checks).ln() + saturation,
        LATE_NODES.ln() + late_nodes,
        checks.map_or(f64::NEG_INFINITY, |checks| CHECKS.ln() + checks),
    ]
}

/// The weighted terms of the mean: warm-up, errors, latency, nodes.
fn terms(warm_up: f64, errors: f64, latency: [f64; 3], nodes: f64, tuning: &Tuning) -> [f64; 4] {
    let slow = log_sum_exp(latency.into_iter()) - (latency.len() as f64).ln();
    [
        tuning.weight_warm_up.ln() + warm_up,
        tuning.weight_errors.ln() + errors,
        tuning.weight_latency.ln() + slow,
        tuning.weight_saturation.ln() + nodes,
    ]
}

/// Which signal brought the total: the largest term. `gauge` is the one that is named if it was saturation; none if it was
/// a check or an answer, which [`super::checks`] and [`super::kinds`] can name.
pub(crate) fn loudest(
    evidence: &Evidence,
    gauge: Gauge,
    checks: Option<f64>,
    tuning: &Tuning,
) -> Option<Signal> {
    let Evidence {
        warm_up,
        errors,
        latency,
        saturation,
        late_nodes,
        ..
    } = *evidence;
    let signal = match index_of_largest(&terms(
        warm_up,
        errors,
        latency,
        of_nodes(saturation, late_nodes, checks),
        tuning,
    )) {
        0 => Signal::WarmUp,
        1 => Signal::Errors,
        2 => Signal::Latency {
            percentile: Percentile::ALL[index_of_largest(&latency)],
        },
        _ => match index_of_largest(&parts(saturation, late_nodes, checks)) {
            0 => Signal::Saturation { gauge },
            1 => Signal::WarmUp,
            _ => return None,
        },
    };
    Some(signal)
}

/// The index of the largest; the first of equals.
fn index_of_largest(values: &[f64]) -> usize {
    (1..values.len()).fold(
        0,
        |best, at| if values[at] > values[best] { at } else { best },
    )
}
