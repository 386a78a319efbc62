//! What the sink stores, ready to be stored: rows, and what is counted of each. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::bus::{Position, TWEETS};
use crate::origin::Origin;
use crate::tweet::Ids;
use crate::worker::TaskResult;

/// Longest word that is counted under: releases, languages, labels, codes. A digest has 71 characters.
const WORD_CHARS_MAX: usize = 128;

/// Hashtags of one tweet that are counted. A tweet of 280 characters has at most 140; few have more than five, and a
/// record of 256 KiB may have any number.
const HASHTAGS_MAX: usize = 32;

/// Longest author, time of writing or reason that is kept.
const TEXT_CHARS_MAX: usize = 1_000;

/// The first tweet was written on 2006-03-21. What claims to be older has no time.
const FIRST_TWEET_S: i64 = 1_142_899_200;

/// How far a tweet may be ahead of our clock before its time is not believed.
const AHEAD_MAX_S: i64 = 86_400;

/// Tweets that were written longer ago are from a file or a backfill: their age says nothing of this pipeline.
const LATENESS_MAX: Duration = Duration::from_hours(24);

/// A result as it came: what the worker wrote, and the two places.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredResult {
    /// What the worker found out.
    pub result: TaskResult,
    /// The tweet's place in topic "tweets", if the feeder said so.
    pub origin: Option<Origin>,
    /// Its own place in topic "results".
    pub position: Position,
}

impl StoredResult {
    /// Reads the record at `position`; `None` if it is no result.
    #[must_use]
    pub fn read(bytes: &[u8], position: Position) -> Option<Self> {
        /// Field by field: reading it in two layers would take twice as long.
        #[derive(Deserialize)]
        struct Raw {
            tweet_id: String,
            author_id: Option<String>,
            created_at: Option<String>,
            release: String,
            features: Map<String, Value>,
            origin: Option<Origin>,
        }
        let raw: Raw = serde_json::from_slice(bytes).ok()?;
        Some(Self {
            result: TaskResult {
                tweet_id: raw.tweet_id,
                author_id: raw.author_id,
                created_at: raw.created_at,
                release: raw.release,
                features: raw.features,
            },
            origin: raw.origin,
            position,
        })
    }
}

/// What is counted of a result. It stands in the row, so that it can be uncounted exactly when a later result of the
/// same tweet takes its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Fact {
    /// The release that found it out.
    pub release: String,
    /// The language's code.
    pub language: Option<String>,
    /// From -1 to 1.
    pub sentiment: Option<f64>,
    /// Such as `positive`.
    pub sentiment_label: Option<String>,
    /// Lower case, each once.
    pub hashtags: Vec<String>,
    /// The minute it is counted in, since 1970: when the tweet was written, or, where that is not known, stored.
    pub minute: i64,
    /// Whether it was stored later than promised.
    pub late: bool,
}

/// A result to store.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The key.
    pub tweet_id: String,
    /// Who wrote it.
    pub author_id: Option<String>,
    /// When, as the API wrote it.
    pub created_at: Option<String>,
    /// All features, as JSON.
    pub features: String,
    /// What is counted of it.
    pub fact: Fact,
    /// Its place in topic "results".
    pub position: Position,
    /// The tweet's place in topic "tweets".
    pub origin: Option<Position>,
    /// When the tweet was appended to the bus or, where the bus does not say, written; in milliseconds since 1970.
    pub since_ms: Option<i64>,
    /// From then until it is stored; `None` where it says nothing of this pipeline.
    pub lateness: Option<Duration>,
}

impl Row {
    /// The row of a result that came at `now`.
    #[must_use]
    pub fn of(stored: StoredResult, now: Timestamp) -> Self {
        let StoredResult {
            result,
            origin,
            position,
        } = stored;
        let feature = |name: &str, key: &str| result.features.get(name)?.get(key);
        let word_of = |name, key| Some(word(feature(name, key)?.as_str()?));
        let written = result.created_at.as_deref().and_then(seconds_of);
        let written = written
            .filter(|s| (FIRST_TWEET_S..=now.as_second().saturating_add(AHEAD_MAX_S)).contains(s));
        let since_ms = origin
            .and_then(|origin| origin.appended_ms)
            .or(written.map(|s| s * 1_000));
        let fact = Fact {
            release: word(&result.release),
            language: word_of("language", "code"),
            sentiment: feature("sentiment", "compound")
                .and_then(Value::as_f64)
                .map(|compound| compound.clamp(-1.0, 1.0)),
            sentiment_label: word_of("sentiment", "label"),
            hashtags: hashtags(result.features.get("hashtags")),
            minute: written.unwrap_or(now.as_second()).div_euclid(60),
            late: false,
        };
        Self {
            features: Value::Object(result.features).to_string(),
            tweet_id: word(&result.tweet_id),
            author_id: result.author_id.as_deref().map(text),
            created_at: result.created_at.as_deref().map(text),
            fact,
            position,
            origin: origin.map(
                |Origin {
                     partition, offset, ..
                 }| Position { partition, offset },
            ),
            since_ms,
            lateness: None,
        }
    }
}

/// A dead letter to store: the original is bytes again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// The topic that the original stands in.
    pub topic: String,
    /// Where in it.
    pub position: Position,
    /// The stable word for what is wrong.
    pub code: String,
    /// What is wrong, in words.
    pub reason: String,
    /// The release that refused it; empty where nobody said.
    pub release: String,
    /// The original's bytes.
    pub original: Vec<u8>,
    /// The letter's own place.
    pub letter: Position,
    /// The key of its task, which a result of it would have for its tweet; `None` where nobody can say.
    pub tweet_id: Option<String>,
    /// The place in topic "tweets" that it accounts for: the original's own, or, of a record in another topic, the one whose
    /// answer it should have been. `None` where that record does not say.
    pub origin: Option<Position>,
}

/// The key of the task that a record of topic "tweets" is: its id, or its place where it has none. The feeder says the same.
pub(crate) fn task_key(record: &[u8], position: Position) -> String {
    let id = Ids::of(record).tweet;
    word(&id.unwrap_or_else(|| position.to_string()))
}

impl Letter {
    /// With texts that every database takes.
    #[must_use]
    pub fn cleaned(self) -> Self {
        Self {
            topic: word(&self.topic),
            code: word(&self.code),
            reason: text(&self.reason),
            release: word(&self.release),
            tweet_id: self.tweet_id.as_deref().map(word),
            origin: if self.topic == TWEETS {
                Some(self.position)
            } else {
                self.origin
            },
            ..self
        }
    }
}

/// A place in topic "tweets" whose tweet is stored from another place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Duplicate {
    /// The place.
    pub origin: Position,
    /// The tweet that stands there as well.
    pub tweet_id: String,
    /// The release that worked on it there.
    pub release: String,
}

/// Rows to store together: each key once, in the order of keys, so that two sinks never wait for each other in a circle.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// Results, by tweet.
    pub rows: Vec<Row>,
    /// Dead letters, by the place of their original.
    pub letters: Vec<Letter>,
    /// Places of tweets that come twice within the batch, by place.
    pub duplicates: Vec<Duplicate>,
    /// Records of the batch that say nothing new: the same work done again.
    pub redelivered: u64,
    /// When it is stored, in milliseconds since 1970.
    pub now_ms: i64,
}

impl Batch {
    /// Sorts what came. Of several results of a tweet the one of the latest place stays, as if they had come one by one.
    #[must_use]
    pub fn new(rows: Vec<Row>, letters: Vec<Letter>, now: Timestamp, late_after: Duration) -> Self {
        let mut batch = Self::default();
        let mut by_tweet: BTreeMap<String, Row> = BTreeMap::new();
        let mut duplicates = BTreeMap::new();
        for row in rows {
            let Some(other) = by_tweet.remove(&row.tweet_id) else {
                by_tweet.insert(row.tweet_id.clone(), row);
                continue;
            };
            let (kept, left) = if row.position >= other.position {
                (row, other)
            } else {
                (other, row)
            };
            match left.origin.filter(|origin| kept.origin != Some(*origin)) {
                Some(origin) => {
                    duplicates.insert(origin, left.duplicate(origin));
                }
                None => batch.redelivered += 1,
            }
            by_tweet.insert(kept.tweet_id.clone(), kept);
        }
        // Of three, the one that stayed may have been pushed aside before.
        for origin in by_tweet.values().filter_map(|row| row.origin) {
            duplicates.remove(&origin);
        }
        let mut by_place: BTreeMap<(String, Position), Letter> = BTreeMap::new();
        for letter in letters {
            let letter = letter.cleaned();
            let key = (letter.topic.clone(), letter.position);
            let is_later = |other: &Letter| letter.letter >= other.letter;
            match by_place.get(&key) {
                Some(other) if !is_later(other) => batch.redelivered += 1,
                Some(_) => {
                    batch.redelivered += 1;
                    by_place.insert(key, letter);
                }
                None => {
                    by_place.insert(key, letter);
                }
            }
        }
        batch.rows = by_tweet.into_values().collect();
        batch.letters = by_place.into_values().collect();
        batch.duplicates = duplicates.into_values().collect();
        batch.stamp(now, late_after);
        batch
    }

    /// It is to be stored at `now`, and what took longer than `late_after` until then is late. A batch that has to wait
    /// is stamped anew.
    pub fn stamp(&mut self, now: Timestamp, late_after: Duration) {
        self.now_ms = now.as_millisecond();
        for row in &mut self.rows {
            let age_ms = row
                .since_ms
                .map(|since_ms| self.now_ms.saturating_sub(since_ms));
            row.lateness = age_ms
                .map(|ms| Duration::from_millis(ms.max(0).cast_unsigned()))
                .filter(|lateness| *lateness <= LATENESS_MAX);
            row.fact.late = row.lateness.is_some_and(|lateness| lateness > late_after);
        }
    }

    /// Two batches that hold the same, each with some of it.
    pub(crate) fn halves(mut self) -> (Self, Self) {
        let half = |length: usize| length.div_ceil(2);
        let rest = Self {
            rows: self.rows.split_off(half(self.rows.len())),
            letters: match self.rows.is_empty() {
                true => self.letters.split_off(half(self.letters.len())),
                false => std::mem::take(&mut self.letters),
            },
            // A second place goes with the later part: what it refers to is stored before.
            duplicates: std::mem::take(&mut self.duplicates),
            redelivered: 0,
            now_ms: self.now_ms,
        };
        (self, rest)
    }

    /// The places that these results are good answers to, and the keys of their tasks: what stands in the table of dead letters
    /// for one of them does not hold any more.
    pub(crate) fn answered(&self) -> impl Iterator<Item = (Position, &str)> {
        let rows = self.rows.iter();
        let rows = rows.filter_map(|row| Some((row.origin?, row.tweet_id.as_str())));
        let others = self.duplicates.iter();
        rows.chain(others.map(|duplicate| (duplicate.origin, duplicate.tweet_id.as_str())))
    }

    /// Rows to write.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.rows.len() + self.letters.len() + self.duplicates.len()
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The minute of its storing, since 1970.
    pub(crate) const fn minute(&self) -> i64 {
        self.now_ms.div_euclid(60_000)
    }
}

impl Row {
    /// The note that stays when another place's result is the one that is stored.
    pub(crate) fn duplicate(&self, origin: Position) -> Duplicate {
        Duplicate {
            origin,
            tweet_id: self.tweet_id.clone(),
            release: self.fact.release.clone(),
        }
    }
}

/// What a stored row says that a new one has to be compared with.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Old {
    pub(crate) fact: Fact,
    pub(crate) position: (i64, i64),
    pub(crate) origin: Option<Position>,
}

/// What becomes of a result whose tweet is stored already.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settled {
    /// Whether the new one takes the old one's place.
    pub(crate) replaces: bool,
    /// The place that is left without a row, if it is another one than the row's.
    pub(crate) duplicate: Option<Duplicate>,
}

/// The later place in topic "results" wins, whichever came first: so it does not matter how often and in which order
/// results are delivered, or which of several sinks is slower.
pub(crate) fn settle(old: &Old, new: &Row) -> Settled {
    let replaces = place(new.position) > old.position;
    let left = if replaces {
        old.origin.map(|origin| Duplicate {
            origin,
            tweet_id: new.tweet_id.clone(),
            release: old.fact.release.clone(),
        })
    } else {
        new.origin.map(|origin| new.duplicate(origin))
    };
    let kept = if replaces { new.origin } else { old.origin };
    Settled {
        replaces,
        duplicate: left.filter(|left| kept != Some(left.origin)),
    }
}

/// A place as the database has it.
pub(crate) fn place(position: Position) -> (i64, i64) {
    (i64::from(position.partition), position.offset)
}

/// Text that every database takes: PostgreSQL knows no NUL.
fn text(text: &str) -> String {
    limited(text, TEXT_CHARS_MAX)
}

fn word(text: &str) -> String {
    limited(text, WORD_CHARS_MAX)
}

fn limited(text: &str, chars_max: usize) -> String {
    text.chars()
        .take(chars_max)
        .map(|c| {
            if c == '\0' {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

fn hashtags(feature: Option<&Value>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let tags = feature.and_then(Value::as_array).into_iter().flatten();
    for tag in tags.filter_map(Value::as_str) {
        let tag = word(&tag.to_lowercase());
        if !found.contains(&tag) {
            found.push(tag);
        }
        if found.len() == HASHTAGS_MAX {
            break;
        }
    }
    found
}

fn seconds_of(rfc3339: &str) -> Option<i64> {
    let time: Timestamp = rfc3339.parse().ok()?;
    Some(time.as_second())
}

#[cfg(test)]
mod tests;
