//! The hashtags of a tweet.

use std::collections::HashSet;

use serde_json::Value;

use super::{Feature, words_after};
use crate::tweet::Tweet;

pub(super) struct Hashtags;

impl Feature for Hashtags {
    fn name(&self) -> &'static str {
        "hashtags"
    }

    /// In lower case, because X treats `#Rust` and `#rust` as one; a tag of digits alone is none.
    fn of(&self, tweet: &Tweet) -> Value {
        let words = words_after('#', &tweet.text, |c| c.is_alphanumeric() || c == '_');
        let mut seen = HashSet::new();
        let tags = words.into_iter().map(|tag| tag.to_lowercase());
        let tags = tags.filter(|tag| !tag.chars().all(char::is_numeric));
        let tags: Vec<String> = tags.filter(|tag| seen.insert(tag.clone())).collect();
        tags.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::tweet;

    #[test]
    fn finds_tags_in_any_script_once_and_in_lower_case() {
        let tags = Hashtags.of(&tweet("#Rust and #rust, #大好き (#Köln) a#b #1 # ##x"));
        assert_eq!(tags, serde_json::json!(["rust", "大好き", "köln", "x"]));
    }
}
