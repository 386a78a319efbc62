//! The emoji of a tweet: how many, of how many kinds, and the first.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::features::Feature;
use crate::tweet::Tweet;

pub(super) struct Emoji;

impl Feature for Emoji {
    fn name(&self) -> &'static str {
        "emoji"
    }

    /// `count`, `kinds`, and `first`, which is `null` where there is none.
    fn of(&self, tweet: &Tweet) -> Value {
        let found: Vec<char> = tweet.text.chars().filter(|c| is_emoji(*c)).collect();
        let kinds: BTreeSet<&char> = found.iter().collect();
        json!({ "count": found.len(), "kinds": kinds.len(), "first": found.first() })
    }
}

/// Whether it is in one of the blocks that hold nearly all of them (Unicode, emoji-data.txt).
fn is_emoji(c: char) -> bool {
    matches!(c, '\u{1f300}'..='\u{1faff}' | '\u{2600}'..='\u{27bf}' | '\u{1f1e6}'..='\u{1f1ff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::tweet;

    #[test]
    fn counts_them_and_their_kinds() {
        let emoji = Emoji.of(&tweet("😀 good 😀 morning ☀!"));
        assert_eq!(emoji, json!({ "count": 3, "kinds": 2, "first": "😀" }));
        assert_eq!(
            Emoji.of(&tweet("none")),
            json!({ "count": 0, "kinds": 0, "first": null })
        );
    }
}
