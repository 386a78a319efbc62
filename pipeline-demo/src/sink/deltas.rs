//! By how much the counts change when rows come or go. Pure.

use std::collections::BTreeMap;

use super::rows::Fact;

/// Seconds of the buckets that rows are counted in first; [`HOUR_S`] and [`DAY_S`] come when they are folded.
pub const MINUTE_S: i64 = 60;
/// Seconds of the buckets of older counts.
pub const HOUR_S: i64 = 3_600;
/// Seconds of the buckets of the oldest counts.
pub const DAY_S: i64 = 86_400;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Results; no key.
    Total,
    /// Results, by the sentiment's label.
    Sentiment,
    /// Results, by language.
    Language,
    /// Results, by hashtag; one result counts for each of its own.
    Hashtag,
    /// Results that were stored later than promised; no key.
    Late,
    /// Dead letters, by code.
    Malformed,
    /// Tweets that stood in more than one place; no key.
    Duplicate,
}

impl Kind {
    /// As the table has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Sentiment => "sentiment",
            Self::Language => "language",
            Self::Hashtag => "hashtag",
            Self::Late => "late",
            Self::Malformed => "malformed",
            Self::Duplicate => "duplicate",
        }
    }
}

/// The row of a count.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Counted {
    pub(crate) kind: &'static str,
    pub(crate) bucket_s: i64,
    pub(crate) key: String,
    pub(crate) release: String,
}

/// A change of a count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) count: i64,
    pub(crate) sentiment_micros: i64,
}

/// Changes of counts, in the order of their rows: every transaction locks them in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Deltas(BTreeMap<Counted, Change>);

impl Deltas {
    /// A result comes (`sign` 1) or goes (-1).
    pub(crate) fn result(&mut self, fact: &Fact, sign: i64) {
        let micros = sign * micros(fact.sentiment);
        let mut add =
            |kind, key: &str| self.add(kind, fact.minute, key, &fact.release, sign, micros);
        add(Kind::Total, "");
        if let Some(label) = &fact.sentiment_label {
            add(Kind::Sentiment, label);
        }
        if let Some(language) = &fact.language {
            add(Kind::Language, language);
        }
        for tag in &fact.hashtags {
            add(Kind::Hashtag, tag);
        }
        if fact.late {
            add(Kind::Late, "");
        }
    }

    /// A dead letter comes or goes.
    pub(crate) fn letter(&mut self, minute: i64, code: &str, release: &str, sign: i64) {
        self.add(Kind::Malformed, minute, code, release, sign, 0);
    }

    /// A second place of a tweet comes or goes.
    pub(crate) fn duplicate(&mut self, minute: i64, release: &str, sign: i64) {
        self.add(Kind::Duplicate, minute, "", release, sign, 0);
    }

    fn add(&mut self, kind: Kind, minute: i64, key: &str, release: &str, count: i64, micros: i64) {
        let counted = Counted {
            kind: kind.name(),
            bucket_s: minute * MINUTE_S,
            key: key.to_owned(),
            release: release.to_owned(),
        };
        let change = self.0.entry(counted).or_default();
        change.count += count;
        change.sentiment_micros += micros;
    }

    /// What really changes, in order.
    pub(crate) fn changes(&self) -> impl Iterator<Item = (&Counted, &Change)> {
        self.0
            .iter()
            .filter(|(_, change)| **change != Change::default())
    }
}

/// Millionths, so that sums are exact.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a sentiment lies between -1 and 1"
)]
fn micros(sentiment: Option<f64>) -> i64 {
    (sentiment.unwrap_or(0.0) * 1e6).round() as i64
}
