//! A decision as JUnit XML: a test case for each signal that was watched, and one for the release.

use std::fmt::Write as _;

use rollout::judge::{ArmCounts, Decision, Percentile, Signal};
use rollout::{Cause, Phase, Verdict};

use super::Record;
use crate::api::types::{CheckState, RolloutView};
use crate::words::{self, odds};

/// How a case ended.
#[derive(Debug, Clone, PartialEq)]
enum State {
    Passed,
    /// Nothing was found out.
    Skipped,
    /// The release is to blame: in a word, and in a sentence.
    Failed(&'static str, String),
    /// Something else is.
    Error(&'static str, String),
}

/// One test case.
#[derive(Debug, Clone, PartialEq)]
struct Case {
    name: String,
    state: State,
    /// The numbers.
    out: String,
}

/// The document, in the dialect that GitLab reads: <https://docs.gitlab.com/ci/testing/unit_test_reports/>.
pub(super) fn text(record: &Record) -> String {
    let cases = cases(record);
    let count =
        |wanted: fn(&State) -> bool| cases.iter().filter(|case| wanted(&case.state)).count();
    let failures = count(|state| matches!(state, State::Failed(..)));
    let errors = count(|state| matches!(state, State::Error(..)));
    let skipped = count(|state| matches!(state, State::Skipped));
    let (tests, seconds) = (cases.len(), record.seconds());
    let numbers = format!(
        "tests=\"{tests}\" failures=\"{failures}\" errors=\"{errors}\" skipped=\"{skipped}\" time=\"{seconds:.3}\""
    );
    let suite = escaped(&format!(
        "friday: {} to {}",
        record.service, record.environment
    ));
    let at = record.written.strftime("%Y-%m-%dT%H:%M:%S");
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites {numbers}>\n  <testsuite name=\"{suite}\" timestamp=\"{at}\" {numbers}>\n"
    );
    let class = escaped(&format!("{}.{}", record.service, record.environment));
    let last = cases.len().saturating_sub(1);
    for (index, case) in cases.iter().enumerate() {
        // The time is the release's: what was watched was watched all along.
        let seconds = if index == last { seconds } else { 0.0 };
        let name = escaped(&case.name);
        // Writing to a String cannot fail.
        let _infallible = writeln!(
            text,
            "    <testcase classname=\"{class}\" name=\"{name}\" time=\"{seconds:.3}\">"
        );
        let inner = match &case.state {
            State::Passed => String::new(),
            State::Skipped => "      <skipped/>\n".to_owned(),
            State::Failed(kind, message) => element("failure", kind, message),
            State::Error(kind, message) => element("error", kind, message),
        };
        text.push_str(&inner);
        if !case.out.is_empty() {
            let out = escaped(&case.out);
            let _infallible = writeln!(text, "      <system-out>{out}</system-out>");
        }
        text.push_str("    </testcase>\n");
    }
    text.push_str("  </testsuite>\n</testsuites>\n");
    text
}

fn element(name: &str, kind: &str, message: &str) -> String {
    let message = escaped(message);
    format!("      <{name} type=\"{kind}\" message=\"{message}\">{message}</{name}>\n")
}

fn cases(record: &Record) -> Vec<Case> {
    let signals = |view| signals(view, record.compared.as_ref());
    let mut cases = record.rollout.as_ref().map(signals).unwrap_or_default();
    let words = || {
        let code = record.exit_code;
        format!("{} (exit code {code})", record.message)
    };
    let state = match record.outcome {
        "promoted" => State::Passed,
        "rolled_back" | "not_ready" => State::Failed(record.outcome, words()),
        // Its job does not wait, and did not fail either.
        "running" if record.exit_code == 0 => State::Skipped,
        outcome => State::Error(outcome, words()),
    };
    let image = &record.image;
    let out = match &record.rollout {
        Some(view) => format!("{}: {image}: {}", view.id, view.message),
        None => image.clone(),
    };
    cases.push(Case {
        name: "release".to_owned(),
        state,
        out,
    });
    cases
}

/// A case for whether the canary became ready, and one for each signal, with the numbers of the last comparison.
fn signals(view: &RolloutView, compared: Option<&Verdict>) -> Vec<Case> {
    let cause = match &view.phase {
        Phase::RollingBack { cause, .. } | Phase::RolledBack { cause } => Some(cause),
        Phase::Deploying { .. }
        | Phase::Analyzing { .. }
        | Phase::Gated { .. }
        | Phase::Baking { .. }
        | Phase::Warm { .. }
        | Phase::Paused { .. }
        | Phase::Promoting { .. }
        | Phase::Promoted => None,
    };
    let verdict = view.verdict.as_ref();
    let ready = match cause {
        Some(cause @ Cause::NotReady { .. }) => State::Failed("not_ready", words::cause(cause)),
        Some(_) | None if verdict.is_some() => State::Passed,
        Some(_) | None => State::Skipped,
    };
    let mut cases = vec![Case {
        name: "ready".to_owned(),
        state: ready,
        out: String::new(),
    }];
    let guilty = verdict.and_then(guilty);
    let case = |name: String, out: String| {
        let state = match (verdict, &guilty) {
            (None, _) => State::Skipped,
            (Some(verdict), Some(guilty)) if *guilty == name => {
                State::Failed("rolled_back", words::verdict(verdict))
            }
            (Some(_), _) => State::Passed,
        };
        Case { name, state, out }
    };
    let numbers = |wanted: fn(&ArmCounts) -> (u64, u64), log_e: fn(&Verdict) -> f64| {
        compared.map_or_else(String::new, |verdict| {
            let ((canary, of), (stable, of_stable)) = (
                wanted(&verdict.in_step.canary),
                wanted(&verdict.in_step.stable),
            );
            format!(
                "canary {canary} of {of}, stable {stable} of {of_stable}; evidence of harm {}, rolled back at {}",
                odds(log_e(verdict)),
                odds(verdict.rollback_at)
            )
        })
    };
    let evidence = |log_e: fn(&Verdict) -> f64| {
        verdict.map_or_else(String::new, |verdict| {
            let harm = odds(log_e(verdict));
            format!("evidence of harm {harm}")
        })
    };
    cases.push(case(
        "errors".into(),
        numbers(
            |arm| (arm.bad, arm.requests),
            |verdict| verdict.evidence.errors,
        ),
    ));
    cases.push(case(
        latency(Percentile::P50),
        numbers(
            |arm| (arm.slow[0], arm.timed),
            |verdict| verdict.evidence.latency[0],
        ),
    ));
    cases.push(case(
        latency(Percentile::P90),
        numbers(
            |arm| (arm.slow[1], arm.timed),
            |verdict| verdict.evidence.latency[1],
        ),
    ));
    cases.push(case(
        latency(Percentile::P99),
        numbers(
            |arm| (arm.slow[2], arm.timed),
            |verdict| verdict.evidence.latency[2],
        ),
    ));
    cases.push(case(
        "saturation".into(),
        evidence(|verdict| verdict.evidence.saturation),
    ));
    cases.push(case(
        "warm-up".into(),
        evidence(|verdict| verdict.evidence.warm_up),
    ));
    cases.push(case("restarts".into(), String::new()));
    if verdict.is_some_and(|verdict| !verdict.kinds.is_empty()) {
        cases.push(case(
            "answers".into(),
            evidence(|verdict| verdict.evidence.checks),
        ));
    }
    for check in &view.checks {
        let mut case = case(check_name(&check.name), check.message.clone());
        if check.state == CheckState::NoData && case.state == State::Passed {
            case.state = State::Skipped;
        }
        cases.push(case);
    }
    cases
}

fn latency(percentile: Percentile) -> String {
    format!("latency {}", words::percentile_name(percentile))
}

fn check_name(name: &str) -> String {
    format!("check {name}")
}

/// The case that a failing verdict belongs to.
fn guilty(verdict: &Verdict) -> Option<String> {
    let Decision::Fail { signal, .. } = &verdict.decision else {
        return None;
    };
    Some(match signal {
        Signal::Errors | Signal::ErrorsAlone { .. } => "errors".to_owned(),
        Signal::WarmUp => "warm-up".to_owned(),
        Signal::Latency { percentile } | Signal::LatencyAlone { percentile } => {
            latency(*percentile)
        }
        Signal::Saturation { .. } | Signal::Limit { .. } => "saturation".to_owned(),
        Signal::Restarts { .. } => "restarts".to_owned(),
        Signal::Check { name, .. } => check_name(name),
        Signal::Answers { .. } => "answers".to_owned(),
    })
}

/// A text inside of an element or an attribute. What XML 1.0 cannot hold becomes a blank.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            '\n' => escaped.push_str("&#10;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}
