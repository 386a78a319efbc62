//! The language a tweet is written in.

use std::sync::LazyLock;

use serde_json::{Value, json};
use whatlang::{Detector, Lang};

use super::Feature;
use crate::tweet::Tweet;

/// Languages of the library that X does not tell apart (operator `lang` of its API, docs.x.com, "Supported languages"). Short
/// tweets in others are easily taken for one of them, and each costs a comparison with its profile.
const LEFT_OUT: [Lang; 13] = [
    Lang::Afr,
    Lang::Aka,
    Lang::Aze,
    Lang::Bel,
    Lang::Epo,
    Lang::Jav,
    Lang::Lat,
    Lang::Mkd,
    Lang::Sna,
    Lang::Tuk,
    Lang::Uzb,
    Lang::Yid,
    Lang::Zul,
];

static DETECTOR: LazyLock<Detector> = LazyLock::new(|| Detector::with_denylist(LEFT_OUT.to_vec()));

pub(super) struct Language;

impl Feature for Language {
    fn name(&self) -> &'static str {
        "language"
    }

    /// `code` is ISO 639-3, `und` where nothing can be said; `reliable` is false for most very short texts.
    fn of(&self, tweet: &Tweet) -> Value {
        match DETECTOR.detect(&tweet.text) {
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

    #[test]
    fn takes_no_tweet_for_a_language_that_x_does_not_know() {
        for text in [
            "Lorem ipsum dolor sit amet, consectetur adipiscing elit",
            "Ek het gister vir jou gesê dat dit nie nodig was nie",
        ] {
            let whole = whatlang::detect(text).unwrap().lang();
            assert!(LEFT_OUT.contains(&whole), "{whole:?}");
            let code = Language.of(&tweet(text))["code"].clone();
            assert!(LEFT_OUT.iter().all(|lang| code != lang.code()), "{code}");
        }
    }
}
