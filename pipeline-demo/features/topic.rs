//! What a tweet is about, by its hashtags.

use serde_json::{Value, json};

use crate::features::Feature;
use crate::features::hashtags::Hashtags;
use crate::tweet::Tweet;

/// Tags that have a topic.
const KNOWN: &[&str] = &[
    "coffee", "music", "photo", "rustlang", "travel", "worldcup", "monday",
];

/// The topics, by tag.
const TOPICS: &[(&str, &str)] = &[
    ("coffee", "food"),
    ("music", "art"),
    ("photo", "art"),
    ("rustlang", "computers"),
    ("travel", "travel"),
];

pub(super) struct Topic;

impl Feature for Topic {
    fn name(&self) -> &'static str {
        "topic"
    }

    /// The topic of the first tag that has one; `null` where none has.
    fn of(&self, tweet: &Tweet) -> Value {
        let tags = Hashtags.of(tweet);
        let mut tags = tags
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        let known = tags.find(|tag| KNOWN.contains(tag));
        let topic = known.map(|tag| {
            let found = TOPICS.iter().find(|(known, _)| *known == tag);
            found.expect("every tag that we know has a topic").1
        });
        json!(topic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::tweet;

    #[test]
    fn knows_topics_by_tags() {
        assert_eq!(Topic.of(&tweet("good morning #coffee")), json!("food"));
        assert_eq!(Topic.of(&tweet("good morning")), json!(null));
    }
}
