//! The event log in words: what each entry says to people. The command line, the board and the shareable picture tell the
//! same story.

use rollout::{Phase, Verdict};
use serde::Deserialize;
use serde_json::Value;

use crate::words;

/// What an entry of the event log says, as far as it explains anything. Its words may hold names from elsewhere: whoever
/// shows them takes care of control characters and markup.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Entry {
    /// What the judge said of a block.
    Verdict(Box<Verdict>),
    /// What happened, on a line.
    Line(String),
    /// Nothing that explains the rollout.
    Nothing,
}

/// The data of an entry of kind `verdict`.
#[derive(Deserialize)]
struct Judged {
    verdict: Box<Verdict>,
}

/// What an entry of this kind, author and data says.
pub(crate) fn entry(kind: &str, author: &str, data: &Value) -> Entry {
    let word = |key: &str| data.get(key).and_then(Value::as_str).map(str::to_owned);
    match kind {
        "verdict" => match Judged::deserialize(data) {
            Ok(judged) => Entry::Verdict(judged.verdict),
            Err(_) => Entry::Line("a verdict that this version of friday cannot read".to_owned()),
        },
        "started" => Entry::Line(format!(
            "started by {author}: {}",
            word("image").unwrap_or_default()
        )),
        "skipped" => match skipped(data) {
            Some(words) => Entry::Line(words),
            None => Entry::Nothing,
        },
        "order" => {
            let because = word("reason")
                .map(|reason| format!(": {reason}"))
                .unwrap_or_default();
            Entry::Line(format!(
                "{} by {author}{because}",
                word("order").unwrap_or_else(|| "order".to_owned())
            ))
        }
        "weight" => match (data["from_percent"].as_f64(), data["to_percent"].as_f64()) {
            (Some(from), Some(to)) => Entry::Line(format!("weight from {from}% to {to}%")),
            _ => Entry::Nothing,
        },
        "proxy" => match (word("proxy"), data["silent"].as_bool()) {
            (Some(proxy), Some(true)) => Entry::Line(format!(
                "goes on without the proxy {proxy}, which is silent"
            )),
            (Some(proxy), Some(false)) => Entry::Line(format!("the proxy {proxy} is heard again")),
            (None, _) | (_, None) => Entry::Nothing,
        },
        "phase" => match Phase::deserialize(&data["to"]) {
            Ok(to) => Entry::Line(format!("now {}", phase(&to))),
            Err(_) => Entry::Nothing,
        },
        _ => Entry::Nothing,
    }
}

/// The data of an entry of kind `skipped`, in words.
fn skipped(data: &Value) -> Option<String> {
    let rate = |key: &str| data[key].as_f64().map(words::rate);
    let skipped = data["skipped_percent"].as_array()?.iter();
    let skipped: Vec<String> = skipped
        .filter_map(|percent| Some(format!("{}%", percent.as_f64()?)))
        .collect();
    Some(format!(
        "begins with step {} at {}%: at {} requests/s, {} would be fewer than {} canary requests/s",
        data["step"].as_u64()? + 1,
        data["weight_percent"].as_f64()?,
        rate("requests_per_second")?,
        skipped.join(", "),
        rate("canary_rate_min")?,
    ))
}

/// A phase in a few words.
pub(crate) fn phase(phase: &Phase) -> String {
    match phase {
        Phase::Analyzing { step, .. } => format!("analyzing step {}", step + 1),
        Phase::Gated { step, .. } => format!("at the gate of step {}", step + 1),
        Phase::Paused { at } => format!("paused at {}", self::phase(at)),
        Phase::RollingBack { cause, .. } => format!("rolling back: {}", words::cause(cause)),
        Phase::RolledBack { cause } => format!("rolled back: {}", words::cause(cause)),
        Phase::Deploying { .. }
        | Phase::Baking { .. }
        | Phase::Warm { .. }
        | Phase::Promoting { .. }
        | Phase::Promoted => phase.name().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn says_each_kind_of_entry_in_words_and_passes_over_what_it_does_not_know() {
        let table = [
            (
                "started",
                json!({ "image": "web:v2" }),
                "started by ada: web:v2",
            ),
            (
                "order",
                json!({ "order": "abort", "reason": "odd" }),
                "abort by ada: odd",
            ),
            (
                "order",
                json!({ "order": "pause", "reason": null }),
                "pause by ada",
            ),
            (
                "weight",
                json!({ "from_percent": 1.0, "to_percent": 10.0 }),
                "weight from 1% to 10%",
            ),
            (
                "proxy",
                json!({ "proxy": "edge", "silent": false }),
                "the proxy edge is heard again",
            ),
            (
                "verdict",
                json!({ "verdict": 1 }),
                "a verdict that this version of friday cannot read",
            ),
        ];
        for (kind, data, words) in table {
            assert_eq!(
                entry(kind, "ada", &data),
                Entry::Line(words.to_owned()),
                "{kind}"
            );
        }
        for (kind, data) in [
            ("weight", json!({})),
            ("phase", json!({ "to": "nowhere" })),
            ("of tomorrow", json!({})),
        ] {
            assert_eq!(entry(kind, "ada", &data), Entry::Nothing, "{kind}");
        }
    }
}
