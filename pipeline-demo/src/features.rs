//! What the pipeline finds out about a tweet: one module for each feature, all of them in one list.
//!
//! To add a feature, add a file beside the others and a line to [`FEATURES`]; `add-new-feature.sh` does just that.

mod hashtags;
mod language;
mod mentions;
mod sentiment;

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::tweet::Tweet;

/// One thing to find out about a tweet.
pub trait Feature: Sync {
    /// Its key in the result.
    fn name(&self) -> &'static str;

    /// Its value for this tweet: the same for the same tweet, in every process.
    fn of(&self, tweet: &Tweet) -> Value;
}

/// The features of this release, in the order of the result's keys.
pub static FEATURES: &[&dyn Feature] = &[
    &language::Language,
    &hashtags::Hashtags,
    &mentions::Mentions,
    &sentiment::Sentiment,
];

/// All features of one tweet.
#[must_use]
pub fn all_of(tweet: &Tweet) -> Map<String, Value> {
    FEATURES
        .iter()
        .map(|feature| (feature.name().to_owned(), feature.of(tweet)))
        .collect()
}

/// Whether the feature of that name finds something, where it has a list for it.
pub(crate) fn finds_any(name: &str, tweet: &Tweet) -> bool {
    let feature = FEATURES.iter().find(|feature| feature.name() == name);
    let found = feature.map(|feature| feature.of(tweet));
    found.is_some_and(|found| found.as_array().is_some_and(|list| !list.is_empty()))
}

/// Turns the sentiment round, as the release of scenario `wrong` does.
pub(crate) fn flip_sentiment(features: &mut Map<String, Value>) {
    sentiment::flip(features);
}

/// Words that follow `sigil` (`#` or `@`) at the start of a word, without the sigil, in order, each once.
fn words_after(sigil: char, text: &str, continues: fn(char) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    let mut before = None;
    for (at, character) in text.char_indices() {
        let starts = character == sigil && !before.is_some_and(char::is_alphanumeric);
        before = Some(character);
        if !starts {
            continue;
        }
        let rest = &text[at + sigil.len_utf8()..];
        let end = rest.find(|c| !continues(c)).unwrap_or(rest.len());
        let word = &rest[..end];
        if !word.is_empty() && seen.insert(word) {
            found.push(word.to_owned());
        }
    }
    found
}

#[cfg(test)]
mod offered;

#[cfg(test)]
fn tweet(text: &str) -> Tweet {
    Tweet {
        id: "1".into(),
        author_id: None,
        created_at: None,
        lang: None,
        kinds: vec![crate::tweet::Kind::Original],
        text: text.into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tweet::RECORD_BYTES_MAX;

    #[test]
    fn every_feature_has_a_name_of_its_own() {
        let result = all_of(&tweet(
            "I really love what everybody is doing with #rust, thank you @ferris!",
        ));
        assert_eq!(result.len(), FEATURES.len());
        assert_eq!(result["hashtags"], serde_json::json!(["rust"]));
        assert_eq!(result["mentions"], serde_json::json!(["ferris"]));
        assert_eq!(result["sentiment"]["label"], "positive");
        assert_eq!(result["language"]["code"], "eng");
    }

    /// As many words as a record has room for: comparing each with all others would take half a minute.
    #[test]
    fn a_tweet_of_nothing_but_tags_and_mentions_is_done_in_time() {
        let words = RECORD_BYTES_MAX / 8;
        let text: String = (0..words).map(|n| format!("#a{n:05} ")).collect();
        let tags = &all_of(&tweet(&text))["hashtags"];
        assert_eq!(tags.as_array().unwrap().len(), words);
        let text = text.replace('#', "@");
        let mentions = &all_of(&tweet(&text))["mentions"];
        assert_eq!(mentions.as_array().unwrap().len(), words);
    }

    proptest! {
        #[test]
        fn any_text_has_features_and_the_same_again(text in ".{0,200}") {
            prop_assert_eq!(all_of(&tweet(&text)), all_of(&tweet(&text)));
        }

        #[test]
        fn any_punctuation_has_features(text in "[!?.:;)(@#'\" a-zA-Z\u{1F600}-\u{1F64F}]{0,100}") {
            prop_assert_eq!(all_of(&tweet(&text)).len(), FEATURES.len());
        }
    }
}
