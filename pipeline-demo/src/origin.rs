//! Where a result comes from: the place of its tweet in topic "tweets".
//!
//! The feeder writes it into every result, beside what the worker wrote, and the sink keeps it. So what went in can be
//! compared with what came out, offset by offset. A dead letter has said so from the beginning.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::bus::{Position, Record};

/// The result's key for it.
const KEY: &str = "origin";

/// The place of a tweet in topic "tweets".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// From 0.
    pub partition: u32,
    /// In that partition.
    pub offset: i64,
    /// When it was appended there, in milliseconds since 1970; `None` where the bus keeps no times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub appended_ms: Option<i64>,
}

impl From<Position> for Origin {
    fn from(Position { partition, offset }: Position) -> Self {
        Self {
            partition,
            offset,
            appended_ms: None,
        }
    }
}

impl Origin {
    /// The place of that record.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        Self {
            appended_ms: record.produced_at.map(|time| time.as_millisecond()),
            ..Self::from(record.position)
        }
    }
}

/// A worker's result with its origin. Whatever a worker says of the origin itself is overwritten.
pub(crate) fn with_origin(mut result: Map<String, Value>, origin: Origin) -> Bytes {
    result.insert(KEY.to_owned(), json!(origin));
    Value::Object(result).to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_says_where_its_tweet_stands_and_a_worker_cannot_say_otherwise() {
        let origin = Origin::from(Position {
            partition: 3,
            offset: 14,
        });
        let result = br#"{"tweet_id":"7","origin":{"partition":0,"offset":0},"features":{}}"#;
        let told = with_origin(serde_json::from_slice(result).unwrap(), origin);
        assert_eq!(
            serde_json::from_slice::<Value>(&told).unwrap(),
            json!({"tweet_id": "7", "features": {}, "origin": {"partition": 3, "offset": 14}})
        );
    }
}
