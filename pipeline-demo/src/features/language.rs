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

/// What X says of a tweet's language (`lang`; docs.x.com, "Supported languages") in the codes that the library has. Sorted. `in`
/// and `iw` are what Indonesian and Hebrew were called once. What X has no language for (`und`, `zxx`, `qme` and the like) is
/// not there.
const OF_X: [(&str, &str); 70] = [
    ("am", "amh"),
    ("ar", "ara"),
    ("bg", "bul"),
    ("bn", "ben"),
    ("bo", "bod"),
    ("bs", "bos"),
    ("ca", "cat"),
    ("ckb", "ckb"),
    ("cs", "ces"),
    ("cy", "cym"),
    ("da", "dan"),
    ("de", "deu"),
    ("dv", "div"),
    ("el", "ell"),
    ("en", "eng"),
    ("es", "spa"),
    ("et", "est"),
    ("eu", "eus"),
    ("fa", "pes"),
    ("fi", "fin"),
    ("fr", "fra"),
    ("gu", "guj"),
    ("he", "heb"),
    ("hi", "hin"),
    ("hr", "hrv"),
    ("ht", "hat"),
    ("hu", "hun"),
    ("hy", "hye"),
    ("id", "ind"),
    ("in", "ind"),
    ("is", "isl"),
    ("it", "ita"),
    ("iw", "heb"),
    ("ja", "jpn"),
    ("ka", "kat"),
    ("km", "khm"),
    ("kn", "kan"),
    ("ko", "kor"),
    ("lo", "lao"),
    ("lt", "lit"),
    ("lv", "lav"),
    ("ml", "mal"),
    ("mr", "mar"),
    ("my", "mya"),
    ("ne", "nep"),
    ("nl", "nld"),
    ("no", "nob"),
    ("or", "ori"),
    ("pa", "pan"),
    ("pl", "pol"),
    ("ps", "pus"),
    ("pt", "por"),
    ("ro", "ron"),
    ("ru", "rus"),
    ("sd", "snd"),
    ("si", "sin"),
    ("sk", "slk"),
    ("sl", "slv"),
    ("sr", "srp"),
    ("sv", "swe"),
    ("ta", "tam"),
    ("te", "tel"),
    ("th", "tha"),
    ("tl", "tgl"),
    ("tr", "tur"),
    ("ug", "uig"),
    ("uk", "ukr"),
    ("ur", "urd"),
    ("vi", "vie"),
    ("zh", "cmn"),
];

static DETECTOR: LazyLock<Detector> = LazyLock::new(|| Detector::with_denylist(LEFT_OUT.to_vec()));

pub(super) struct Language;

impl Feature for Language {
    fn name(&self) -> &'static str {
        "language"
    }

    /// `code` is ISO 639-3, `und` where nothing can be said; `reliable` is false for most very short texts of which X does
    /// not say anything.
    fn of(&self, tweet: &Tweet) -> Value {
        if let Some(code) = tweet.lang.as_deref().and_then(told) {
            return json!({"code": code, "reliable": true});
        }
        match DETECTOR.detect(&tweet.text) {
            Some(info) => json!({"code": info.lang().code(), "reliable": info.is_reliable()}),
            None => json!({"code": "und", "reliable": false}),
        }
    }
}

/// The code for what X says, whatever the script or the country.
fn told(lang: &str) -> Option<&'static str> {
    let primary = lang.split('-').next()?;
    let at = OF_X.binary_search_by_key(&primary, |(lang, _)| lang).ok()?;
    Some(OF_X[at].1)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

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
    fn what_x_says_is_not_looked_for() {
        let of = |lang: &str| {
            let tweet = Tweet {
                lang: Some(lang.to_owned()),
                ..tweet("Heute ist das Wetter endlich wieder richtig schön.")
            };
            Language.of(&tweet)
        };
        for (lang, code) in [("en", "eng"), ("zh-TW", "cmn"), ("in", "ind")] {
            assert_eq!(of(lang), json!({"code": code, "reliable": true}), "{lang}");
        }
        for lang in ["und", "zxx", "qme", ""] {
            assert_eq!(of(lang)["code"], "deu", "{lang}");
        }
    }

    #[test]
    fn what_x_says_and_what_is_found_have_the_same_codes() {
        assert!(OF_X.is_sorted_by_key(|(lang, _)| lang));
        let told: HashSet<&str> = OF_X.iter().map(|(_, code)| *code).collect();
        for lang in Lang::all().iter().filter(|lang| !LEFT_OUT.contains(lang)) {
            assert!(told.contains(lang.code()), "{lang:?}");
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
