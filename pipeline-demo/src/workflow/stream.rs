//! `stream:`: what is asked of the filtered stream of X.

use friday::yaml::{Findings, Value};

use crate::source::x::{BACKFILL_MINUTES_MAX, RULES_MAX, Rule};

/// What is asked of the stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamSpec {
    /// The rules in our name.
    pub rules: Vec<Rule>,
    /// Most minutes to ask for again after a gap, where the plan has it.
    pub backfill_minutes: Option<u8>,
}

pub(super) fn stream(value: Value<'_>, findings: &mut Findings) -> StreamSpec {
    let mut stream = StreamSpec::default();
    let expected =
        "a map like { rules: { rust: \"(rust OR cargo) lang:en\" }, backfill_minutes: 5 }";
    let Some(mut fields) = value.map(expected, findings) else {
        return stream;
    };
    let expected = "a map of tags and rules like { rust: \"(rust OR cargo) lang:en\" }";
    if let Some(value) = fields.required("rules", expected, findings) {
        stream.rules = rules(value, expected, findings);
    }
    if let Some(value) = fields.take("backfill_minutes") {
        let expected = format!("whole minutes from 1 to {BACKFILL_MINUTES_MAX}");
        let fits = |minutes: &u8| (1..=BACKFILL_MINUTES_MAX).contains(minutes);
        let read = |text: &str| text.parse().ok().filter(fits);
        stream.backfill_minutes = value.scalar(&expected, findings, read);
    }
    fields.finish(findings);
    stream
}

fn rules(value: Value<'_>, expected: &str, findings: &mut Findings) -> Vec<Rule> {
    let (at, key) = (value.at(), value.key().to_owned());
    let Some(fields) = value.map(expected, findings) else {
        return Vec::new();
    };
    let entries: Vec<_> = fields.entries().collect();
    if entries.is_empty() || entries.len() > RULES_MAX {
        let expected = format!("expected 1 to {RULES_MAX} rules");
        findings.at(at, &key, Some(entries.len().to_string()), expected);
        return Vec::new();
    }
    let mut rules: Vec<Rule> = Vec::new();
    for (tag, value) in entries {
        let expected = "a rule in X's words, such as \"(rust OR cargo) lang:en\"";
        let Some(text) = value.text(expected, findings, Some) else {
            continue;
        };
        match Rule::new(tag, text) {
            Err(expected) => {
                findings.at(value.at(), value.key(), Some(value.shown()), expected);
            }
            Ok(rule) => match rules.iter().find(|other| other.value == rule.value) {
                None => rules.push(rule),
                Some(other) => {
                    let expected = format!(
                        "expected another rule than that of {}: X takes a text once",
                        other.tag
                    );
                    findings.at(value.at(), value.key(), Some(value.shown()), expected);
                }
            },
        }
    }
    rules
}
