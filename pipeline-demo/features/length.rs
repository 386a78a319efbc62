//! How long a tweet is: words, characters, and the time it takes to read.

use serde_json::{Value, json};

use crate::features::Feature;
use crate::tweet::Tweet;

/// Words that people read in a minute.
const WORDS_PER_MINUTE: usize = 240;

pub(super) struct Length;

impl Feature for Length {
    fn name(&self) -> &'static str {
        "length"
    }

    /// `words`, `characters` and `reading_seconds`, rounded up.
    fn of(&self, tweet: &Tweet) -> Value {
        let words = tweet.text.split_whitespace().count();
        json!({
            "words": words,
            "characters": tweet.text.chars().count(),
            "reading_seconds": (words * 60).div_ceil(WORDS_PER_MINUTE),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::tweet;

    #[test]
    fn counts_words_and_characters() {
        let length = Length.of(&tweet("what a  lovely day for größe"));
        assert_eq!(
            length,
            json!({ "words": 6, "characters": 28, "reading_seconds": 2 })
        );
    }
}
