//! The numbers of a decision as OpenMetrics, for GitLab's widget and whatever else reads that.

use std::fmt::Write as _;

use rollout::Verdict;
use rollout::judge::Percentile;

use super::Record;
use crate::words;

/// The document, by <https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md>.
pub(super) fn text(record: &Record) -> String {
    let mut page = Page::default();
    page.gauge("friday_promoted", "Whether the release was promoted.");
    page.value("", f64::from(u8::from(record.outcome == "promoted")));
    page.gauge("friday_exit_code", "How the command ended.");
    page.value("", f64::from(record.exit_code));
    page.gauge(
        "friday_rollout_duration_seconds",
        "Time that the rollout took.",
    );
    page.value("", record.seconds());
    page.gauge(
        "friday_weight_max_percent",
        "The largest share of requests that the canary had.",
    );
    let weights = record
        .events
        .iter()
        .filter_map(|event| event.data["to_percent"].as_f64());
    page.value("", weights.fold(0.0, f64::max));
    if let Some(verdict) = &record.compared {
        of_verdict(&mut page, verdict);
    }
    page.text.push_str("# EOF\n");
    page.text
}

fn of_verdict(page: &mut Page, verdict: &Verdict) {
    let counts = [
        ("canary", verdict.in_step.canary),
        ("stable", verdict.in_step.stable),
    ];
    page.gauge(
        "friday_judged_requests",
        "Requests of the last step that were judged.",
    );
    for (arm, count) in counts {
        page.value(&format!("arm=\"{arm}\""), number(count.requests));
    }
    page.gauge(
        "friday_error_ratio",
        "Share of them that failed, from 0 to 1.",
    );
    for (arm, count) in counts {
        if count.requests > 0 {
            page.value(
                &format!("arm=\"{arm}\""),
                number(count.bad) / number(count.requests),
            );
        }
    }
    page.gauge(
        "friday_slow_ratio",
        "Share of the successes that were slower than stable at this percentile.",
    );
    for (arm, count) in counts {
        for percentile in Percentile::ALL {
            if count.timed > 0 {
                let name = words::percentile_name(percentile);
                page.value(
                    &format!("arm=\"{arm}\",percentile=\"{name}\""),
                    number(count.slow[percentile as usize]) / number(count.timed),
                );
            }
        }
    }
    page.gauge(
        "friday_evidence_of_harm",
        "Natural logarithm of the evidence against the canary.",
    );
    page.value("", verdict.evidence.total);
    page.gauge(
        "friday_evidence_rollback_at",
        "From which evidence on it is rolled back.",
    );
    page.value("", verdict.rollback_at);
    if !verdict.checks.is_empty() {
        page.gauge("friday_check_value", "The newest value of each check.");
        for check in &verdict.checks {
            if let Some(value) = check.canary {
                page.value(&format!("check=\"{}\"", escaped(&check.name)), value);
            }
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "for display; counts below 2^53 are exact"
)]
fn number(count: u64) -> f64 {
    count as f64
}

/// A text inside of the quotes of a label.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// The document as far as it is written.
#[derive(Default)]
struct Page {
    text: String,
    name: &'static str,
}

impl Page {
    fn gauge(&mut self, name: &'static str, help: &str) {
        self.name = name;
        // Writing to a String cannot fail.
        let _infallible = write!(self.text, "# TYPE {name} gauge\n# HELP {name} {help}\n");
    }

    fn value(&mut self, labels: &str, value: f64) {
        let name = self.name;
        let shown = match value {
            value if value.is_nan() => "NaN".to_owned(),
            value if value == f64::INFINITY => "+Inf".to_owned(),
            value if value == f64::NEG_INFINITY => "-Inf".to_owned(),
            value => value.to_string(),
        };
        let _infallible = if labels.is_empty() {
            writeln!(self.text, "{name} {shown}")
        } else {
            writeln!(self.text, "{name}{{{labels}}} {shown}")
        };
    }
}
