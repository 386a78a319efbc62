//! A tweet as the X API v2 filtered stream sends it, and why a record is not one.

use serde::Serialize;

/// Largest record that travels through the pipeline. An object of the filtered stream with all its expansions stays below
/// 100 KiB; 256 KiB leaves room, and 64 such records in flight are 16 MiB.
pub const RECORD_BYTES_MAX: usize = 256 * 1024;

/// Most digits of a tweet's id: the X API gives `^[0-9]{1,19}$`.
const ID_DIGITS_MAX: usize = 19;

/// One tweet, as far as the pipeline reads it. What it does not read (rules, includes, labels) is ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tweet {
    /// 1 to 19 decimal digits; the key under which the result is stored.
    pub id: String,
    /// Who wrote it.
    pub author_id: Option<String>,
    /// When, as the API wrote it (RFC 3339).
    pub created_at: Option<String>,
    /// Its language, as X says (`lang`): BCP 47, `und` where X cannot say.
    pub lang: Option<String>,
    /// What it is to other tweets, at least one of them.
    pub kinds: Vec<Kind>,
    /// The text, never blank.
    pub text: String,
}

/// What a tweet is to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It refers to none.
    Original,
    /// An answer to another.
    Reply,
    /// With another inside.
    Quote,
    /// Another one, passed on.
    Retweet,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Original, Self::Reply, Self::Quote, Self::Retweet];

    /// Its name in `pipeline.yml`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Original => "original",
            Self::Reply => "reply",
            Self::Quote => "quote",
            Self::Retweet => "retweet",
        }
    }

    /// The kinds of a tweet, by its `referenced_tweets`: an answer may quote as well.
    fn of(data: &serde_json::Value) -> Vec<Self> {
        let references = data.get("referenced_tweets");
        let references = references.and_then(serde_json::Value::as_array);
        let types: Vec<&str> = references
            .into_iter()
            .flatten()
            .filter_map(|reference| reference.get("type")?.as_str())
            .collect();
        let named = [
            ("replied_to", Self::Reply),
            ("quoted", Self::Quote),
            ("retweeted", Self::Retweet),
        ];
        let is_there = |(name, kind): (&str, Self)| types.contains(&name).then_some(kind);
        let kinds: Vec<Self> = named.into_iter().filter_map(is_there).collect();
        if kinds.is_empty() {
            return vec![Self::Original];
        }
        kinds
    }
}

impl Tweet {
    /// Reads one record.
    ///
    /// # Errors
    /// Says what is wrong with it. Such a record will never be right, so nobody should try it again.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(Malformed::TooLarge);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| Malformed::NotUtf8)?;
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(|_| Malformed::NotJson)?;
        let data = value.get("data").ok_or(Malformed::NoId)?;
        let id = data.get("id").and_then(serde_json::Value::as_str);
        let id = id.filter(|id| is_id(id)).ok_or(Malformed::NoId)?;
        let text = data.get("text").and_then(serde_json::Value::as_str);
        let text = text
            .filter(|text| !text.trim().is_empty())
            .ok_or(Malformed::NoText)?;
        let optional = |name: &str| data.get(name)?.as_str().map(str::to_owned);
        Ok(Self {
            id: id.to_owned(),
            author_id: optional("author_id"),
            created_at: optional("created_at"),
            lang: optional("lang"),
            kinds: Kind::of(data),
            text: text.to_owned(),
        })
    }
}

/// What can be read of a record without judging it: enough to key it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ids {
    /// The tweet's id, if there is a valid one.
    pub tweet: Option<String>,
    /// The author's id, if there is a valid one.
    pub author: Option<String>,
}

impl Ids {
    /// Reads the ids of a record that may be malformed in any other way.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let record = serde_json::from_slice::<serde_json::Value>(bytes).unwrap_or_default();
        let id = |name: &str| {
            let id = record.get("data")?.get(name)?.as_str()?;
            is_id(id).then(|| id.to_owned())
        };
        Self {
            tweet: id("id"),
            author: id("author_id"),
        }
    }
}

fn is_id(id: &str) -> bool {
    (1..=ID_DIGITS_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_digit())
}

/// Why a record is not a tweet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Malformed {
    /// Larger than [`RECORD_BYTES_MAX`].
    #[error("the record is larger than {RECORD_BYTES_MAX} bytes")]
    TooLarge,
    /// The bytes are no text.
    #[error("the record is not UTF-8")]
    NotUtf8,
    /// The text is no JSON document, or only the beginning of one.
    #[error("the record is not JSON")]
    NotJson,
    /// `data.id` is missing or not 1 to 19 digits.
    #[error("data.id is missing or not 1 to 19 digits")]
    NoId,
    /// `data.text` is missing, blank or no string.
    #[error("data.text is missing or blank")]
    NoText,
}

impl Malformed {
    /// The stable word for it, in problem documents and metrics.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::NotUtf8 => "not_utf8",
            Self::NotJson => "not_json",
            Self::NoId => "no_id",
            Self::NoText => "no_text",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = r#"{"data":{"id":"399570506216374273","author_id":"10000940","created_at":"2013-11-10T16:13:27.000Z","lang":"en","text":"Hello #world"},"matching_rules":[{"id":"1","tag":"demo"}],"_label":{"human_mean_sentiment":2.7}}"#;

    #[test]
    fn reads_a_record_of_the_filtered_stream_and_ignores_the_rest() {
        let tweet = Tweet::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(tweet.id, "399570506216374273");
        assert_eq!(tweet.text, "Hello #world");
        assert_eq!(
            Ids::of(GOOD.as_bytes()),
            Ids {
                tweet: Some("399570506216374273".into()),
                author: Some("10000940".into())
            }
        );
    }

    #[test]
    fn a_tweet_is_of_the_kinds_of_what_it_refers_to() {
        use Kind::{Original, Quote, Reply, Retweet};
        let reference = |kind: &str| serde_json::json!({"type": kind, "id": "2"});
        let (replied_to, quoted) = (reference("replied_to"), reference("quoted"));
        for (references, kinds) in [
            (serde_json::json!(null), vec![Original]),
            (serde_json::json!([]), vec![Original]),
            (serde_json::json!([replied_to]), vec![Reply]),
            (serde_json::json!([quoted, replied_to]), vec![Reply, Quote]),
            (serde_json::json!([reference("retweeted")]), vec![Retweet]),
            (
                serde_json::json!([5, {}, reference("pinned")]),
                vec![Original],
            ),
            (serde_json::json!("replied_to"), vec![Original]),
        ] {
            let data = serde_json::json!({"id": "1", "text": "a", "referenced_tweets": references});
            let record = serde_json::json!({ "data": data }).to_string();
            let tweet = Tweet::parse(record.as_bytes()).unwrap();
            assert_eq!(tweet.kinds, kinds, "{references}");
        }
        assert_eq!(Tweet::parse(GOOD.as_bytes()).unwrap().lang.unwrap(), "en");
    }

    #[test]
    fn says_what_is_wrong_with_a_record() {
        let cases: [(&[u8], Malformed); 9] = [
            (b"", Malformed::NotJson),
            (b"[]", Malformed::NoId),
            (b"\xff\xfe", Malformed::NotUtf8),
            (br#"{"data":{"id":"1","te"#, Malformed::NotJson),
            (br#"{"data":{"text":"a"}}"#, Malformed::NoId),
            (br#"{"data":{"id":1,"text":"a"}}"#, Malformed::NoId),
            (br#"{"data":{"id":"a","text":"a"}}"#, Malformed::NoId),
            (br#"{"data":{"id":"1"}}"#, Malformed::NoText),
            (br#"{"data":{"id":"1","text":" "}}"#, Malformed::NoText),
        ];
        for (bytes, expected) in cases {
            assert_eq!(Tweet::parse(bytes), Err(expected), "{bytes:?}");
        }
        let large = vec![b' '; RECORD_BYTES_MAX + 1];
        assert_eq!(Tweet::parse(&large), Err(Malformed::TooLarge));
    }

    #[test]
    fn whatever_is_a_tweet_has_the_same_id_for_who_only_keys_it() {
        for text in [
            r#"{"data":{"id":"1","author_id":7,"text":"a"}}"#,
            r#"{"data":{"id":"1","text":"a","id":"2"}}"#,
            r#"{"data":{"id":"1","text":"a","created_at":[]},"data2":1}"#,
        ] {
            let tweet = Tweet::parse(text.as_bytes()).unwrap();
            assert_eq!(Ids::of(text.as_bytes()).tweet, Some(tweet.id), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(tweet) = Tweet::parse(&bytes) {
                prop_assert_eq!(Ids::of(&bytes).tweet, Some(tweet.id));
            }
        }
    }
}
