//! The rules of the filtered stream: those in our name are made equal to the configured ones, all others are left alone.

use serde::Deserialize;
use serde_json::{Value, json};

/// What the tags of our rules begin with: whoever else uses the same project keeps their rules.
pub const TAG_PREFIX: &str = "friday:";

/// Rules that one stream may have: X's limit for a project that pays by use.
pub const RULES_MAX: usize = 1_000;

/// Longest rule, in characters: X's limit there.
const RULE_CHARS_MAX: usize = 1_024;

/// Pages of rules that are read. Each holds 1,000, and X's largest plan has 25,000.
pub(super) const PAGES_MAX: usize = 50;

/// A rule that we want.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Its name, without [`TAG_PREFIX`].
    pub tag: String,
    /// What it matches, in X's words: `(rust OR cargo) lang:en -is:retweet`.
    pub value: String,
}

impl Rule {
    /// Reads `TAG=RULE`.
    ///
    /// # Errors
    /// Says what was expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (tag, value) = text
            .split_once('=')
            .ok_or("expected TAG=RULE, such as rust=(rust OR cargo) lang:en")?;
        Self::new(tag, value)
    }

    /// A rule whose tag is one word and whose value is not empty and not longer than X takes.
    ///
    /// # Errors
    /// Says what was expected.
    pub fn new(tag: &str, value: &str) -> Result<Self, String> {
        let word = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if tag.is_empty() || tag.len() > 64 || !tag.chars().all(word) {
            return Err("expected a tag of 1 to 64 letters, digits, '-', '_' or '.'".to_owned());
        }
        let value = value.trim();
        if value.is_empty() || value.chars().count() > RULE_CHARS_MAX {
            return Err(format!(
                "expected a rule of 1 to {RULE_CHARS_MAX} characters, such as (rust OR cargo) lang:en"
            ));
        }
        Ok(Self {
            tag: tag.to_owned(),
            value: value.to_owned(),
        })
    }

    fn full_tag(&self) -> String {
        format!("{TAG_PREFIX}{}", self.tag)
    }
}

/// A rule that X has.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Existing {
    id: String,
    value: String,
    #[serde(default)]
    tag: Option<String>,
}

impl Existing {
    fn is_ours(&self) -> bool {
        self.tag
            .as_deref()
            .is_some_and(|tag| tag.starts_with(TAG_PREFIX))
    }
}

/// A page of the list.
#[derive(Debug, Deserialize)]
pub(super) struct Page {
    #[serde(default)]
    pub(super) data: Vec<Existing>,
    #[serde(default)]
    pub(super) meta: Meta,
}

/// What X says about a list.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Meta {
    pub(super) next_token: Option<String>,
}

/// What makes the rules equal, in this order. A new rule comes before an old one goes, so that no moment is without;
/// but X takes no text twice, so one that only changes its tag goes first.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) delete_first: Vec<String>,
    pub(super) add: Vec<Rule>,
    pub(super) delete_after: Vec<String>,
    /// Wanted texts that somebody else's rule has already: the stream carries them, under another tag.
    pub(super) foreign: Vec<Rule>,
}

pub(super) fn changes(existing: &[Existing], wanted: &[Rule]) -> Changes {
    let mut changes = Changes::default();
    for rule in existing.iter().filter(|rule| rule.is_ours()) {
        let same = |w: &&Rule| w.value == rule.value;
        match wanted.iter().find(same) {
            Some(w) if Some(w.full_tag()) == rule.tag => {}
            Some(_) => changes.delete_first.push(rule.id.clone()),
            None => changes.delete_after.push(rule.id.clone()),
        }
    }
    for (index, rule) in wanted.iter().enumerate() {
        if wanted[..index].iter().any(|w| w.value == rule.value) {
            continue;
        }
        let mut same = existing.iter().filter(|e| e.value == rule.value);
        if same
            .clone()
            .any(|e| e.tag.as_ref() == Some(&rule.full_tag()))
        {
            continue;
        }
        if same.any(|e| !e.is_ours()) {
            changes.foreign.push(rule.clone());
        } else {
            changes.add.push(rule.clone());
        }
    }
    changes
}

/// The body that deletes rules.
pub(super) fn deletion(ids: &[String]) -> Value {
    json!({"delete": {"ids": ids}})
}

/// The body that adds rules.
pub(super) fn addition(rules: &[Rule]) -> Value {
    let rules = rules
        .iter()
        .map(|rule| json!({"value": rule.value, "tag": rule.full_tag()}));
    json!({"add": rules.collect::<Vec<_>>()})
}

/// The rules that X refused, with its words; an answer may be a 201 and refuse some. A text that is there already is no
/// refusal: another subscriber was quicker.
pub(super) fn refused(answer: &Value) -> Option<(String, String)> {
    let errors = answer.get("errors")?.as_array()?;
    let word = |error: &Value, name: &str| error.get(name)?.as_str().map(str::to_owned);
    errors.iter().find_map(|error| {
        let title = word(error, "title").unwrap_or_default();
        if title == "DuplicateRule" {
            return None;
        }
        let details = error.get("details").and_then(Value::as_array);
        let detail = details
            .and_then(|details| details.first()?.as_str().map(str::to_owned))
            .or_else(|| word(error, "detail"))
            .or_else(|| word(error, "message"));
        let reason = detail.unwrap_or(title);
        Some((word(error, "value").unwrap_or_default(), reason))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn existing(id: &str, tag: Option<&str>, value: &str) -> Existing {
        Existing {
            id: id.into(),
            value: value.into(),
            tag: tag.map(str::to_owned),
        }
    }

    fn wanted(rules: &[(&str, &str)]) -> Vec<Rule> {
        let rule = |(tag, value): &(&str, &str)| Rule::new(tag, value).unwrap();
        rules.iter().map(rule).collect()
    }

    #[test]
    fn only_what_differs_changes_and_only_rules_in_our_name() {
        let there = [
            existing("1", Some("friday:kept"), "rust"),
            existing("2", Some("friday:gone"), "cobol"),
            existing("3", Some("friday:renamed"), "cargo"),
            existing("4", Some("theirs"), "zig"),
            existing("5", None, "go"),
        ];
        let rules = wanted(&[
            ("kept", "rust"),
            ("new-name", "cargo"),
            ("new", "tokio"),
            ("new-again", "tokio"),
            ("shared", "zig"),
        ]);
        let changes = changes(&there, &rules);
        assert_eq!(changes.delete_first, ["3"]);
        assert_eq!(changes.add, [rules[1].clone(), rules[2].clone()]);
        assert_eq!(changes.delete_after, ["2"]);
        assert_eq!(changes.foreign, [rules[4].clone()]);
        let none = super::changes(&there[3..], &[]);
        assert_eq!(none, Changes::default(), "nothing of others is touched");
    }

    #[test]
    fn a_refused_rule_is_named_with_xs_words() {
        let answer = json!({"meta": {"summary": {"created": 0, "invalid": 1}}, "errors": [
            {"title": "DuplicateRule", "value": "a", "id": "1"},
            {"title": "Invalid Rule", "value": "lang:", "details": ["no viable alternative at position 6"]},
        ]});
        let (value, reason) = refused(&answer).unwrap();
        assert_eq!((value.as_str(), &reason[..9]), ("lang:", "no viable"));
        assert_eq!(refused(&json!({"meta": {}})), None);
    }

    #[test]
    fn a_rule_is_a_tag_and_a_text() {
        let rule = Rule::parse("rust=from:rustlang OR #rust = x").unwrap();
        assert_eq!(rule.value, "from:rustlang OR #rust = x");
        for wrong in [
            "rust",
            "=x",
            "a b=x",
            "a= ",
            &format!("a={}", "x".repeat(1_025)),
        ] {
            assert!(Rule::parse(wrong).is_err(), "{wrong}");
        }
    }
}
