//! Malformed records among good ones, as scenario `malformed` needs them.

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};

use super::{Source, SourceError, SourceRecord};
use crate::seeded::Seeded;

/// First of the ids given to malformed records: the largest 19 digits, which real ids reach about the year 2079. So a
/// malformed record never bears the id of a tweet.
const FIRST_ID: u64 = 9_000_000_000_000_000_000;

/// Adds malformed records to a source: copies of the tweet that comes next, broken in one of several ways.
///
/// They come in addition to the good records, not in place of some: so every tweet of a looped file is stored, and the
/// share of malformed records is still the configured one.
#[derive(Debug)]
pub struct WithMalformed {
    inner: Box<dyn Source>,
    share: f64,
    seeded: Seeded,
    made: u64,
    held: Option<SourceRecord>,
}

impl WithMalformed {
    /// `share` of all records, from 0 to below 1, will be malformed.
    #[must_use]
    pub fn new(inner: Box<dyn Source>, share: f64, seed: u64) -> Self {
        Self {
            inner,
            share,
            // Another stream of numbers than the source's own.
            seeded: Seeded::new(seed ^ 0x6d61_6c66_6f72_6d65),
            made: 0,
            held: None,
        }
    }

    /// A record of its own that looks like `good` and is no tweet.
    fn broken(&mut self, good: &SourceRecord) -> SourceRecord {
        let mut record: Value = serde_json::from_slice(&good.value).unwrap_or_else(|_| json!({}));
        if !record["data"].is_object() {
            record = json!({"data": {"text": "?"}});
        }
        record["data"]["id"] = (FIRST_ID + self.made).to_string().into();
        self.made += 1;
        let bytes = match self.seeded.below(6) {
            0 => {
                let text = record.to_string();
                // Cut inside the text, wherever a character ends there.
                let mut end = text.len() / 2;
                while !text.is_char_boundary(end) {
                    end -= 1;
                }
                text.as_bytes()[..end].to_vec()
            }
            1 => {
                record["data"]["text"] = Value::Null;
                record.to_string().into_bytes()
            }
            2 => {
                record["data"]["id"] = "unknown".into();
                record.to_string().into_bytes()
            }
            3 => {
                // 0xff is no part of any UTF-8 text.
                let mut bytes = record.to_string().into_bytes();
                let middle = bytes.len() / 2;
                bytes[middle] = 0xff;
                bytes
            }
            4 => record["data"].to_string().into_bytes(),
            _ => {
                record["data"]["text"] = "  ".into();
                record.to_string().into_bytes()
            }
        };
        SourceRecord {
            key: good.key.clone(),
            value: Bytes::from(bytes),
            malformed_on_purpose: true,
        }
    }
}

#[async_trait]
impl Source for WithMalformed {
    async fn next(&mut self) -> Result<Option<SourceRecord>, SourceError> {
        let good = match self.held.take() {
            Some(held) => held,
            None => match self.inner.next().await? {
                Some(good) => good,
                None => return Ok(None),
            },
        };
        if self.seeded.chance(self.share) {
            let broken = self.broken(&good);
            self.held = Some(good);
            return Ok(Some(broken));
        }
        Ok(Some(good))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Synthetic, take};
    use crate::tweet::{Malformed, Tweet};

    #[tokio::test]
    async fn adds_its_share_and_takes_nothing_away() {
        let good = take(&mut Synthetic::new(1), 9_500).await;
        let mut mixed = WithMalformed::new(Box::new(Synthetic::new(1)), 0.05, 7);
        let mixed = take(&mut mixed, 10_000).await;
        let (malformed, kept): (Vec<_>, Vec<_>) =
            mixed.into_iter().partition(|r| r.malformed_on_purpose);
        assert!((430..570).contains(&malformed.len()), "{}", malformed.len());
        let common = kept.len().min(good.len());
        assert_eq!(kept[..common], good[..common]);
        for reason in [
            Malformed::NotUtf8,
            Malformed::NotJson,
            Malformed::NoId,
            Malformed::NoText,
        ] {
            let found = malformed
                .iter()
                .any(|r| Tweet::parse(&r.value) == Err(reason));
            assert!(found, "{reason}");
        }
        assert!(malformed.iter().all(|r| Tweet::parse(&r.value).is_err()));
    }
}
