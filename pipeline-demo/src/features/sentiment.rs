//! Whether a tweet is glad or sad, by VADER (Hutto and Gilbert, ICWSM-14), a lexicon and rules for social media.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};
use vader_sentiment::SentimentIntensityAnalyzer;

use super::Feature;
use crate::tweet::Tweet;

/// Compound scores from this on are positive, and below its negative are negative: the bounds VADER's authors advise.
const CLEAR: f64 = 0.05;

/// Built once: the first use parses the lexicon of 7,500 words.
static ANALYZER: LazyLock<SentimentIntensityAnalyzer<'static>> =
    LazyLock::new(SentimentIntensityAnalyzer::new);

pub(super) struct Sentiment;

impl Feature for Sentiment {
    fn name(&self) -> &'static str {
        "sentiment"
    }

    /// `compound` from -1 to 1 with 4 decimals, and `label`: `positive`, `neutral` or `negative`.
    fn of(&self, tweet: &Tweet) -> Value {
        let scores = ANALYZER.polarity_scores(&tweet.text);
        let score = |name| scores.get(name).copied().unwrap_or(0.0);
        // The library lets exclamation marks make a text without any sentiment negative; the original does not.
        let silent = score("pos") == 0.0 && score("neg") == 0.0;
        sentiment(if silent { 0.0 } else { score("compound") })
    }
}

/// Rounded as in the original; the library adds up in the order of a hash map, so the last digits would differ by process.
fn sentiment(compound: f64) -> Value {
    let compound = (compound * 1e4).round() / 1e4 + 0.0;
    let label = match compound {
        c if c >= CLEAR => "positive",
        c if c <= -CLEAR => "negative",
        _ => "neutral",
    };
    json!({"compound": compound, "label": label})
}

pub(super) fn flip(features: &mut Map<String, Value>) {
    if let Some(found) = features.get_mut(Sentiment.name()) {
        *found = sentiment(-found["compound"].as_f64().unwrap_or(0.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::tweet;

    fn label(text: &str) -> String {
        let found = Sentiment.of(&tweet(text));
        found["label"].as_str().unwrap().to_owned()
    }

    #[test]
    fn tells_glad_from_sad() {
        assert_eq!(label("I LOVE this, what a great day!"), "positive");
        assert_eq!(label("This is horrible, I hate it"), "negative");
        assert_eq!(label("not good at all"), "negative");
        assert_eq!(label("The meeting is on Tuesday!!!"), "neutral");
        assert_eq!(label(""), "neutral");
    }

    #[test]
    fn flipping_turns_the_sign_and_the_label() {
        let mut features = Map::new();
        features.insert(
            "sentiment".into(),
            Sentiment.of(&tweet("I love it so much")),
        );
        let before = features["sentiment"]["compound"].as_f64().unwrap();
        flip(&mut features);
        assert_eq!(features["sentiment"]["compound"], -before);
        assert_eq!(features["sentiment"]["label"], "negative");
    }
}
