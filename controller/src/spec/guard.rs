//! `guard`: what must not get worse.

use rollout::plan::{CHECKS_MAX, Start, Sticky};
use rollout::{Bound, Check, Duration, Guard};

use super::is_header;
use super::show_duration;
use super::tuning::tuning;
use crate::metrics_source::Query;
use crate::yaml::{Fields, Findings, Setting, Value, units};

/// Excess failures below this cannot be proven in any useful time: 4.4 / 0.0005 = 8,800 canary requests without one
/// error (JUDGE 2.10), and the judge's table of margins ends here.
const MARGIN_LEAST_PERCENT: f64 = 0.05;

/// A floor above this would hide what users wait for: the judge's latencies end at 104 s.
const FLOOR_MAX: Duration = Duration::from_secs(60);

/// A question each ten seconds: as often as gauges are sampled, and more often than most metrics are scraped.
const CHECK_EVERY: Duration = Duration::from_secs(10);

/// Questions further apart than this could not stop anything in time: three in a row would be half an hour.
const CHECK_EVERY_MAX: Duration = Duration::from_secs(10 * 60);

/// Prometheus scrapes each fifteen seconds where nobody says otherwise; what is asked for was scraped by then (F8).
const CHECK_LAG: Duration = Duration::from_secs(15);

/// Questions in a row that may bring no data before a check closes the gates: one is lost to a restart of the source, two
/// may be.
const CHECK_GRACE_QUESTIONS: u32 = 3;

/// Longest name of a check, in characters: it stands in sentences.
const CHECK_NAME_MAX: usize = 60;

/// The guard of a service that says nothing of it. Where clients keep their release, the canary's share is that of its
/// clients: few busy ones move it, so it is not held against the routing.
pub(super) fn guard_for(sticky: &Sticky) -> Guard {
    Guard {
        ratio_check: *sticky == Sticky::None,
        ..Guard::default()
    }
}

/// Reads `guard`; what it does not say, or says wrongly, stays as it is in `guard`. Beside it, how long each check takes to
/// have a sample of a step.
pub(super) fn guard(
    mut guard: Guard,
    sticky: &Sticky,
    value: Value<'_>,
    findings: &mut Findings,
) -> (Guard, Vec<Setting<Duration>>) {
    let expected = "a map with errors, latency, saturation, answers, checks";
    let Some(mut fields) = value.map(expected, findings) else {
        return (guard, Vec::new());
    };
    for (key, place) in [
        ("alpha", &mut guard.alpha),
        ("alpha_gate", &mut guard.alpha_gate),
        ("alpha_promote", &mut guard.alpha_promote),
    ] {
        if let Some(value) = fields.take(key) {
            let expected = "a chance above 0% and at most 20%, with its %, such as 1%";
            // Beyond one in five the judge would be guessing.
            let percent = value.scalar(expected, findings, |text| {
                units::percent(text).filter(|percent| *percent > 0.0 && *percent <= 20.0)
            });
            *place = percent.map_or(*place, |percent| percent / 100.0);
        }
    }
    if let Some(mut fields) = fields.sub("errors", "a map like { margin: 0.5% }", findings) {
        if let Some(value) = fields.take("margin") {
            let expected = format!(
                "a share from {MARGIN_LEAST_PERCENT}% to below 100%, with its %, such as 0.5%"
            );
            let percent = value.scalar(&expected, findings, |text| {
                units::percent(text)
                    .filter(|percent| *percent >= MARGIN_LEAST_PERCENT && *percent < 100.0)
            });
            guard.errors_margin = percent.map_or(guard.errors_margin, |percent| percent / 100.0);
        }
        fields.finish(findings);
    }
    let latency = "a map like { p50: +14%, p90: +19%, p99: +30%, floor: 1ms }";
    if let Some(mut fields) = fields.sub("latency", latency, findings) {
        factor(&mut fields, "p50", &mut guard.latency_p50, findings);
        factor(&mut fields, "p90", &mut guard.latency_p90, findings);
        factor(&mut fields, "p99", &mut guard.latency_p99, findings);
        if let Some(value) = fields.take("floor") {
            let expected = "a duration such as 1ms or 500us, at most 1m";
            let floor = value.scalar(expected, findings, |text| {
                units::fine_duration(text).filter(|floor| *floor <= FLOOR_MAX)
            });
            let micros = floor.and_then(|floor| u64::try_from(floor.as_micros()).ok());
            guard.latency_floor_us = micros.unwrap_or(guard.latency_floor_us);
        }
        fields.finish(findings);
    }
    if let Some(mut fields) = fields.sub(
        "saturation",
        "a map like { cpu: +25%, memory: +25% }",
        findings,
    ) {
        factor(&mut fields, "cpu", &mut guard.saturation_cpu, findings);
        factor(
            &mut fields,
            "memory",
            &mut guard.saturation_memory,
            findings,
        );
        fields.finish(findings);
    }
    if let Some(value) = fields.take("ratio_check") {
        let check = value.scalar("true or false", findings, |text| text.parse().ok());
        guard.ratio_check = check.unwrap_or(guard.ratio_check);
    }
    if let Some(value) = fields.take("answers") {
        guard.answers = answers(sticky, value, findings);
    }
    if let Some(value) = fields.take("start") {
        let start = value.scalar("auto or first", findings, |text| match text {
            "auto" => Some(Start::Auto),
            "first" => Some(Start::First),
            _ => None,
        });
        guard.start = start.unwrap_or(guard.start);
    }
    if let Some(value) = fields.take("tuning") {
        guard.tuning = tuning(guard.tuning, value, findings);
    }
    if let Some(value) = fields.take("watch") {
        let watch = value.scalar("true or false", findings, |text| text.parse().ok());
        guard.watch = watch.unwrap_or(guard.watch);
    }
    let mut sampled_after = Vec::new();
    if let Some(value) = fields.take("checks") {
        (guard.checks, sampled_after) = checks(value, findings);
    }
    fields.finish(findings);
    (guard, sampled_after)
}

/// Reads `guard.answers`: the header, in lower case. Refused where clients keep their release: answers are evidence as far
/// as the choice of the release is by chance, and there it is made once for each client, of whom nobody counts how many
/// there are. A key is one task, and has one answer.
fn answers(sticky: &Sticky, value: Value<'_>, findings: &mut Findings) -> Option<String> {
    let (at, key) = (value.at(), value.key().to_owned());
    let mut fields = value.map("a map like { header: x-sentiment }", findings)?;
    let expected = "the name of a response header by which answers say of what kind they are, such as x-sentiment";
    let header = fields
        .required("header", expected, findings)
        .and_then(|value| {
            value.text(expected, findings, |text| {
                is_header(text).then(|| text.to_ascii_lowercase())
            })
        });
    fields.finish(findings);
    if matches!(sticky, Sticky::Cookie | Sticky::Header(_)) {
        findings.note(
            at,
            &key,
            None,
            "expected sticky: none or key: where clients keep their release, all that a busy client is answered falls on \
             one side, and would look like a difference"
                .to_owned(),
            Some("add sticky: none, or compare by a check of your own (guard.checks)".to_owned()),
        );
    }
    header
}

fn checks(value: Value<'_>, findings: &mut Findings) -> (Vec<Check>, Vec<Setting<Duration>>) {
    let (at, key) = (value.at(), value.key().to_owned());
    let expected = "a list of checks like { name: consumer lag, prometheus: 'max(lag{release=\"$release\"})', max: 1000 }";
    let Some(list) = value.list(expected, findings) else {
        return (Vec::new(), Vec::new());
    };
    if list.len() > CHECKS_MAX {
        findings.at(
            at,
            &key,
            Some(format!("{} checks", list.len())),
            format!("expected at most {CHECKS_MAX} checks"),
        );
        return (Vec::new(), Vec::new());
    }
    let mut checks: Vec<Check> = Vec::new();
    let mut sampled_after = Vec::new();
    for value in list {
        let (at, key) = (value.at(), value.key().to_owned());
        let Some(check) = check(value, findings) else {
            continue;
        };
        if checks.iter().any(|other| other.name == check.name) {
            let expected = "expected another name: a check above has it already".to_owned();
            findings.at(
                at,
                &format!("{key}.name"),
                Some(format!("{:?}", check.name)),
                expected,
            );
        }
        let after = check.every + check.lag + check.window;
        let shown = format!(
            "its first sample of a step comes after {}",
            show_duration(after)
        );
        sampled_after.push(Setting {
            value: after,
            key,
            at: Some(at),
            shown,
        });
        checks.push(check);
    }
    (checks, sampled_after)
}

fn check(value: Value<'_>, findings: &mut Findings) -> Option<Check> {
    let at = value.at();
    let key = value.key().to_owned();
    let mut fields = value.map(
        "a map with name, prometheus, and one of max, min, above_stable",
        findings,
    )?;
    let name = fields
        .required(
            "name",
            "what people call it, such as consumer lag",
            findings,
        )
        .and_then(|value| {
            let expected = format!("a name of 1 to {CHECK_NAME_MAX} characters");
            value.scalar(&expected, findings, |text| {
                let fits = (1..=CHECK_NAME_MAX).contains(&text.chars().count())
                    && !text.chars().any(char::is_control);
                fits.then(|| text.to_owned())
            })
        });
    let query = fields
        .required("prometheus", "a query that gives one number", findings)
        .and_then(|value| {
            let text = value.text("a query that gives one number", findings, Some)?;
            match Query::parse(text) {
                Ok(query) => Some((value.setting(text.to_owned()), query)),
                Err(error) => {
                    findings.at(
                        value.at(),
                        value.key(),
                        Some(value.shown()),
                        error.to_string(),
                    );
                    None
                }
            }
        });
    let bound = bound(&mut fields, at, &key, findings);
    let every = fields.duration("every", CHECK_EVERY, findings);
    let lag = fields.duration("lag", CHECK_LAG, findings);
    let grace = fields.duration("grace", every.value * CHECK_GRACE_QUESTIONS, findings);
    fields.finish(findings);

    if !(CHECK_EVERY..=CHECK_EVERY_MAX).contains(&every.value) {
        let (least, most) = (show_duration(CHECK_EVERY), show_duration(CHECK_EVERY_MAX));
        findings.at(
            every.at.unwrap_or(at),
            &every.key,
            Some(every.shown.clone()),
            format!("expected {least} to {most}: the judge takes samples no closer together for separate ones"),
        );
    }
    every.below(&grace, findings);
    let (query, bound) = (query?, bound?);
    if bound.compares() && !query.1.tells_arms_apart() {
        let (query, _) = &query;
        findings.at(
            query.at.unwrap_or(at),
            &query.key,
            Some(query.shown.clone()),
            "expected $release or $arm in it: above_stable asks once for the canary and once for stable, and both would be \
             told the same"
                .to_owned(),
        );
    }
    Some(Check {
        name: name?,
        window: query.1.window(),
        query: query.0.value,
        bound,
        every: every.value,
        lag: lag.value,
        grace: grace.value,
    })
}

/// Reads the one of `max`, `min` and `above_stable` that is there.
fn bound(
    fields: &mut Fields<'_>,
    at: crate::yaml::Place,
    key: &str,
    findings: &mut Findings,
) -> Option<Bound> {
    let number = |value: Value<'_>, findings: &mut Findings| {
        value.scalar("a number such as 1000 or 0.95", findings, |text| {
            text.parse().ok().filter(|number: &f64| number.is_finite())
        })
    };
    let max = fields
        .take("max")
        .map(|value| number(value, findings).map(Bound::Max));
    let min = fields
        .take("min")
        .map(|value| number(value, findings).map(Bound::Min));
    let above = fields
        .take("above_stable")
        .map(|value| more(&value, findings).map(Bound::AboveStable));
    let given: Vec<Option<Bound>> = [max, min, above].into_iter().flatten().collect();
    match given[..] {
        [bound] => bound,
        _ => {
            let many = format!("{} of max, min, above_stable", given.len());
            findings.at(
                at,
                key,
                Some(many),
                "expected exactly one of them".to_owned(),
            );
            None
        }
    }
}

/// Reads how much more than stable's is too much, as a factor.
fn factor(fields: &mut Fields<'_>, key: &'static str, place: &mut f64, findings: &mut Findings) {
    let Some(value) = fields.take(key) else {
        return;
    };
    *place = more_percent(&value, findings).map_or(*place, |more| (100.0 + more) / 100.0);
}

/// Reads how much more than stable's is too much, as a share of stable's.
fn more(value: &Value<'_>, findings: &mut Findings) -> Option<f64> {
    more_percent(value, findings).map(|more| more / 100.0)
}

fn more_percent(value: &Value<'_>, findings: &mut Findings) -> Option<f64> {
    // Tenfold and more is no margin any more.
    let expected =
        "how much more than stable's is too much, above +0% and at most +900%, such as +25%";
    value.scalar(expected, findings, |text| {
        units::percent(text.strip_prefix('+').unwrap_or(text))
            .filter(|more| *more > 0.0 && *more <= 900.0)
    })
}
