//! Whether a tweet shouts, by a regular expression: `^(\w+\s?)+!$`.

use serde_json::{Value, json};

use crate::features::Feature;
use crate::tweet::Tweet;

/// Ways that are tried. There are twice as many for each letter.
const TRIES_MAX: u32 = 4_000_000;

pub(super) struct Shouting;

impl Feature for Shouting {
    fn name(&self) -> &'static str {
        "shouting"
    }

    /// Whether it is words and an exclamation mark; `null` where too many ways were tried.
    fn of(&self, tweet: &Tweet) -> Value {
        let text: Vec<char> = tweet.text.chars().collect();
        let mut tries = 0;
        json!(words(&text, &mut tries))
    }
}

/// `(\w+\s?)+!$`, as an engine that goes back and tries every other way of cutting words.
fn words(text: &[char], tries: &mut u32) -> Option<bool> {
    *tries += 1;
    if *tries > TRIES_MAX {
        return None;
    }
    let word = text.iter().take_while(|c| c.is_alphanumeric()).count();
    for length in (1..=word).rev() {
        let rest = &text[length..];
        let rest = match rest.first() {
            Some(c) if c.is_whitespace() => &rest[1..],
            Some(_) | None => rest,
        };
        if rest == ['!'] || words(rest, tries)? {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::tweet;

    #[test]
    fn hears_who_shouts() {
        assert_eq!(Shouting.of(&tweet("what a day!")), json!(true));
        assert_eq!(Shouting.of(&tweet("what a day")), json!(false));
        assert_eq!(Shouting.of(&tweet("")), json!(false));
    }
}
