//! Records of topics "results" and "malformed" that are neither: kept as dead letters of their own, each with the place of the
//! tweet that it should have been the answer to, as far as what is left of it says so. Pure.

use serde_json::Value;

use super::rows::Letter;
use crate::bus::{Position, RESULTS, Record, TWEETS};
use crate::origin::Origin;

/// The code of such a letter.
const CODE: &str = "unreadable";

/// The letter in the place of a record of `topic` that is no result and no dead letter.
pub(super) fn unreadable(topic: &str, record: &Record) -> Letter {
    let left: Value = serde_json::from_slice(&record.value).unwrap_or_default();
    let key = record.key.as_deref();
    let key = key.and_then(|key| std::str::from_utf8(key).ok());
    let (what, tweet_id, origin) = if topic == RESULTS {
        let tweet_id = left.get("tweet_id").and_then(Value::as_str).or(key);
        let origin = left.get("origin").cloned();
        let origin = origin.and_then(|origin| serde_json::from_value::<Origin>(origin).ok());
        let origin = origin.map(|origin| Position {
            partition: origin.partition,
            offset: origin.offset,
        });
        // A task without an id has its place for a key.
        ("result", tweet_id, origin.or(key.and_then(place_of)))
    } else {
        let said = (left.get("topic").and_then(Value::as_str) == Some(TWEETS))
            .then(|| serde_json::from_value(left.clone()).ok())
            .flatten();
        // Its key is the place of its original.
        ("dead letter", None, said.or(key.and_then(place_of)))
    };
    Letter {
        topic: topic.to_owned(),
        position: record.position,
        code: CODE.to_owned(),
        reason: format!("the record in topic {topic} is no {what}"),
        release: String::new(),
        original: record.value.to_vec(),
        letter: record.position,
        tweet_id: tweet_id.map(str::to_owned),
        origin,
    }
}

/// The place that a key such as `3-14` names.
fn place_of(key: &str) -> Option<Position> {
    let (partition, offset) = key.split_once('-')?;
    let (partition, offset) = (partition.parse().ok()?, offset.parse().ok()?);
    (offset >= 0).then_some(Position { partition, offset })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::bus::MALFORMED;

    #[test]
    fn says_as_much_as_is_left_of_the_place_it_accounts_for() {
        let at = |partition, offset| Some(Position { partition, offset });
        for (topic, key, value, tweet_id, origin) in [
            (
                RESULTS,
                Some("7"),
                r#"{"tweet_id":"7","features":3,"origin":{"partition":2,"offset":5}}"#,
                Some("7"),
                at(2, 5),
            ),
            (RESULTS, Some("7"), "{\u{1}", Some("7"), None),
            (RESULTS, Some("1-30"), "cut off", Some("1-30"), at(1, 30)),
            (RESULTS, None, r#"{"origin":"nowhere"}"#, None, None),
            (
                MALFORMED,
                None,
                r#"{"topic":"tweets","partition":3,"offset":9,"code":"x","reason":"y"}"#,
                None,
                at(3, 9),
            ),
            (MALFORMED, Some("3-9"), "cut off", None, at(3, 9)),
            (
                MALFORMED,
                None,
                r#"{"topic":"others","partition":3,"offset":9}"#,
                None,
                None,
            ),
            (MALFORMED, Some("3--9"), "", None, None),
        ] {
            let record = Record {
                position: Position {
                    partition: 0,
                    offset: 1,
                },
                key: key.map(|key| Bytes::copy_from_slice(key.as_bytes())),
                value: Bytes::copy_from_slice(value.as_bytes()),
                produced_at: None,
            };
            let letter = unreadable(topic, &record);
            assert_eq!(
                (letter.tweet_id.as_deref(), letter.origin),
                (tweet_id, origin),
                "{topic} {value}"
            );
            assert_eq!(
                (&*letter.code, letter.position),
                ("unreadable", record.position)
            );
        }
    }
}
