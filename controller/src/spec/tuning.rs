//! `guard.tuning`: the judge's inner settings. Few will ever have a reason to touch them; what they mean stands in the
//! schema. The ranges are those in which the judge's arithmetic is what it says it is.

use std::ops::RangeInclusive;

use rollout::Duration;
use rollout::plan::Tuning;

use super::show_duration;
use crate::yaml::{Fields, Findings, Place, Value, units};

/// Below a tenth of a nat a block the judge would need hours; above 10, which is a factor of 22,000, one block decides.
const CAP_NATS: RangeInclusive<f64> = 0.1..=10.0;

/// A tolerance of 64 buckets is four times as slow, which is no tolerance any more.
const TOLERANCE_MAX: u16 = 64;

/// The evidence that closes gates. At 1 it would be there from the beginning.
const SUSPICION: RangeInclusive<f64> = 1.1..=1e6;

/// With one canary request a step is not silent; a million are no "fewest" any more.
const CANARY_REQUESTS: RangeInclusive<u64> = 1..=1_000_000;

/// Canary requests a second of a first step: one in a thousand seconds, to more than most services get.
const CANARY_RATE: RangeInclusive<f64> = 0.001..=100_000.0;

/// A block of a quiet service lasts 10 s: what is shorter would be silence between two blocks, and a half-life within one.
const BLOCK_MAX: Duration = Duration::from_secs(10);

/// Reads `guard.tuning`; what it does not say, or says wrongly, stays as it is.
pub(super) fn tuning(mut tuning: Tuning, value: Value<'_>, findings: &mut Findings) -> Tuning {
    let place = value.at();
    let Some(mut fields) = value.map("a map like { suspicion: 10 }", findings) else {
        return tuning;
    };
    let whole = "from 0% to 100%, with its %, such as 40%";
    let mut weights_given = false;
    for (key, weight) in [
        ("weight_warm_up", &mut tuning.weight_warm_up),
        ("weight_errors", &mut tuning.weight_errors),
        ("weight_latency", &mut tuning.weight_latency),
        ("weight_saturation", &mut tuning.weight_saturation),
    ] {
        weights_given |= share(&mut fields, key, weight, whole, findings, |percent| {
            (0.0..=100.0).contains(&percent)
        });
    }
    number(
        &mut fields,
        "cap_nats",
        &mut tuning.cap_nats,
        &CAP_NATS,
        findings,
    );
    let within = "above 0% and below 100%, with its %, such as 50%";
    share(
        &mut fields,
        "restart_first",
        &mut tuning.restart_first,
        within,
        findings,
        |percent| percent > 0.0 && percent < 100.0,
    );
    time(
        &mut fields,
        "restart",
        &mut tuning.restart,
        BLOCK_MAX,
        findings,
    );
    // The warm-up's guard bets on shares from 50 % on (JUDGE 2.6): at or above that it would bet against itself.
    let catastrophe = "above 0% and below 50%, with its %, such as 30%";
    share(
        &mut fields,
        "catastrophe",
        &mut tuning.catastrophe,
        catastrophe,
        findings,
        |percent| percent > 0.0 && percent < 50.0,
    );
    if let Some(value) = fields.take("latency_tolerance_buckets") {
        let expected = format!("a whole number from 0 to {TOLERANCE_MAX}, such as 2");
        let buckets = value.scalar(&expected, findings, |text| {
            text.parse()
                .ok()
                .filter(|buckets| *buckets <= TOLERANCE_MAX)
        });
        tuning.latency_tolerance_buckets = buckets.unwrap_or(tuning.latency_tolerance_buckets);
    }
    time(
        &mut fields,
        "reference_half_life",
        &mut tuning.reference_half_life,
        BLOCK_MAX,
        findings,
    );
    share(
        &mut fields,
        "errors_margin_relative",
        &mut tuning.errors_margin_relative,
        whole,
        findings,
        |percent| (0.0..=100.0).contains(&percent),
    );
    number(
        &mut fields,
        "suspicion",
        &mut tuning.suspicion,
        &SUSPICION,
        findings,
    );
    if let Some(value) = fields.take("canary_requests_min") {
        let (least, most) = (CANARY_REQUESTS.start(), CANARY_REQUESTS.end());
        let expected = format!("a whole number from {least} to {most}, such as 10");
        let requests = value.scalar(&expected, findings, |text| {
            text.parse()
                .ok()
                .filter(|requests| CANARY_REQUESTS.contains(requests))
        });
        tuning.canary_requests_min = requests.unwrap_or(tuning.canary_requests_min);
    }
    time(
        &mut fields,
        "idle_max",
        &mut tuning.idle_max,
        BLOCK_MAX,
        findings,
    );
    number(
        &mut fields,
        "canary_rate_min",
        &mut tuning.canary_rate_min,
        &CANARY_RATE,
        findings,
    );
    let aimed = "from 0% to 95%, with its %, such as 75%";
    share(
        &mut fields,
        "aimed",
        &mut tuning.aimed,
        aimed,
        findings,
        |percent| (0.0..=95.0).contains(&percent),
    );
    let watch = "above 0% and at most 5%, with its %, such as 0.1%";
    share(
        &mut fields,
        "alpha_watch",
        &mut tuning.alpha_watch,
        watch,
        findings,
        |percent| percent > 0.0 && percent <= 5.0,
    );
    fields.finish(findings);
    if weights_given {
        check_weights(&tuning, place, findings);
    }
    tuning
}

/// The four parts of the error budget are all of it, no less and no more: else `alpha` would not be what it says.
fn check_weights(tuning: &Tuning, at: Place, findings: &mut Findings) {
    let weights = [
        tuning.weight_warm_up,
        tuning.weight_errors,
        tuning.weight_latency,
        tuning.weight_saturation,
    ];
    let sum: f64 = weights.iter().sum();
    if (sum - 1.0).abs() > 1e-9 {
        let parts = weights.map(|weight| format!("{}%", tenths(weight)));
        findings.at(
            at,
            "guard.tuning",
            Some(format!("weights {}", parts.join(" + "))),
            format!(
                "expected weight_warm_up, weight_errors, weight_latency and weight_saturation to sum to 100%, not {}%; a \
                 missing one keeps its default",
                tenths(sum)
            ),
        );
    }
}

/// A share in percent, to a thousandth of one: sums of decimals are not exact.
fn tenths(share: f64) -> f64 {
    (share * 100_000.0).round() / 1000.0
}

/// Reads a share; whether it was there.
fn share(
    fields: &mut Fields<'_>,
    key: &'static str,
    place: &mut f64,
    expected: &str,
    findings: &mut Findings,
    fits: impl Fn(f64) -> bool,
) -> bool {
    let Some(value) = fields.take(key) else {
        return false;
    };
    let percent = value.scalar(&format!("a share {expected}"), findings, |text| {
        units::percent(text).filter(|percent| fits(*percent))
    });
    *place = percent.map_or(*place, |percent| percent / 100.0);
    true
}

fn number(
    fields: &mut Fields<'_>,
    key: &'static str,
    place: &mut f64,
    range: &RangeInclusive<f64>,
    findings: &mut Findings,
) {
    if let Some(value) = fields.take(key) {
        let expected = format!(
            "a number from {} to {}, such as {place}",
            range.start(),
            range.end()
        );
        let number = value.scalar(&expected, findings, |text| {
            text.parse().ok().filter(|number| range.contains(number))
        });
        *place = number.unwrap_or(*place);
    }
}

fn time(
    fields: &mut Fields<'_>,
    key: &'static str,
    place: &mut Duration,
    least: Duration,
    findings: &mut Findings,
) {
    if let Some(value) = fields.take(key) {
        let expected = format!(
            "a duration from {} to 30d, such as {}",
            show_duration(least),
            show_duration(*place)
        );
        let time = value.scalar(&expected, findings, |text| {
            units::duration(text).filter(|time| *time >= least)
        });
        *place = time.unwrap_or(*place);
    }
}
