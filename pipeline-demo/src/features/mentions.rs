//! The accounts a tweet speaks to.

use serde_json::Value;

use super::{Feature, words_after};
use crate::tweet::Tweet;

/// Longest account name on X.
const NAME_CHARS_MAX: usize = 15;

pub(super) struct Mentions;

impl Feature for Mentions {
    fn name(&self) -> &'static str {
        "mentions"
    }

    /// Account names without the `@`, as written, in order.
    fn of(&self, tweet: &Tweet) -> Value {
        let names = words_after('@', &tweet.text, |c| c.is_ascii_alphanumeric() || c == '_');
        names
            .into_iter()
            .filter(|name| name.len() <= NAME_CHARS_MAX)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::tweet;

    #[test]
    fn finds_accounts_and_leaves_mail_addresses_alone() {
        let text = ".@ferris and @a_b: mail me@example.org @averyveryverylongname @";
        assert_eq!(
            Mentions.of(&tweet(text)),
            serde_json::json!(["ferris", "a_b"])
        );
    }
}
