//! Topic "analytics": what is stored, flat, for others.
//!
//! A record is appended after its row is stored and before the sink's offset is committed. So whoever reads the topic
//! gets every stored result at least once, also when the sink is killed in between; a result that is delivered again
//! comes again. The key is the tweet; of two records of one tweet the one with the larger `result_offset` holds.

use bytes::Bytes;
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::sleep;
use tracing::warn;

use super::Sink;
use super::rows::{Batch, Row};
use crate::backoff::wait_after;
use crate::bus::{BusError, NewRecord};
use crate::telemetry::chain;

/// The topic's name.
pub const ANALYTICS: &str = "analytics";

/// A record of the topic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Analysed {
    /// The tweet, and the key.
    pub tweet_id: String,
    /// Who wrote it.
    pub author_id: Option<String>,
    /// When, as the API wrote it.
    pub created_at: Option<String>,
    /// The release that found this out.
    pub release: String,
    /// The language's code.
    pub language: Option<String>,
    /// From -1 to 1.
    pub sentiment: Option<f64>,
    /// Such as `positive`.
    pub sentiment_label: Option<String>,
    /// Lower case.
    pub hashtags: Vec<String>,
    /// The minute that it is counted in, in seconds since 1970.
    pub minute_s: i64,
    /// Its place in topic "results".
    pub result_partition: u32,
    /// Its place in that partition: larger is later.
    pub result_offset: i64,
}

impl From<&Row> for Analysed {
    fn from(row: &Row) -> Self {
        let fact = row.fact.clone();
        Self {
            tweet_id: row.tweet_id.clone(),
            author_id: row.author_id.clone(),
            created_at: row.created_at.clone(),
            release: fact.release,
            language: fact.language,
            sentiment: fact.sentiment,
            sentiment_label: fact.sentiment_label,
            hashtags: fact.hashtags,
            minute_s: fact.minute * 60,
            result_partition: row.position.partition,
            result_offset: row.position.offset,
        }
    }
}

impl Sink {
    /// Appends what was stored; returns once it is durable.
    pub(super) async fn publish(&self, batch: &Batch) -> Result<(), BusError> {
        let appended = batch.rows.iter().map(|row| self.append(row));
        try_join_all(appended).await?;
        Ok(())
    }

    async fn append(&self, row: &Row) -> Result<(), BusError> {
        let value = Bytes::from(json!(Analysed::from(row)).to_string());
        let mut failures = 0;
        loop {
            let record = NewRecord {
                key: Some(Bytes::copy_from_slice(row.tweet_id.as_bytes())),
                value: value.clone(),
            };
            match self.bus.produce(ANALYTICS, record).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_transient() => {
                    failures += 1;
                    if self.hush.may_speak() {
                        warn!(
                            failures,
                            error = chain(&error),
                            "sink: topic analytics took nothing, trying again"
                        );
                    }
                    sleep(wait_after(failures, &row.tweet_id)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}
