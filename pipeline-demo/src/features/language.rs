//! The language a tweet is written in.

use serde_json::{Value, json};

use super::Feature;
use crate::tweet::Tweet;

pub(super) struct Language;

impl Feature for Language {
    fn name(&self) -> &'static str {
        "language"
    }

    /// `code` is ISO 639-3, `und` where nothing can be said; `reliable` is false for most very short texts.
    fn of(&self, tweet: &Tweet) -> Value {
        match whatlang::detect(&tweet.text) {
            Some(info) => json!({"code": info.lang().code(), "reliable": info.is_reliable()}),
            None => json!({"code": "und", "reliable": false}),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::tweet;

    #[test]
    fn tells_languages_apart() {
        for (text, code) in [
            (
                "The weather has been wonderful this morning, hasn't it?",
                "eng",
            ),
            ("Heute ist das Wetter endlich wieder richtig schön.", "deu"),
            ("今日はとても楽しかったです", "jpn"),
            ("", "und"),
        ] {
            assert_eq!(Language.of(&tweet(text))["code"], code, "{text}");
        }
    }
}
