//! From a source that does not wait for us into the topic of tweets.

use std::collections::HashMap;

use bytes::Bytes;
use futures::future::try_join_all;
use tokio::time::sleep;
use tracing::warn;

use crate::backoff::{Hush, wait_after};
use crate::bus::{Bus, BusError, NewRecord, TWEETS};
use crate::source::SourceRecord;
use crate::telemetry::chain;

/// Records that are appended together. More would wait longer for the slowest; at 5 ms for each batch it is 100,000 a
/// second.
pub(crate) const BATCH_MAX: usize = 512;

/// Appends all records, and tries again as long as the bus may come back.
///
/// Records of one key follow each other, so that they keep their order also where one has to be tried again; different
/// keys do not wait for each other.
///
/// # Errors
/// When trying again does not mend it. Some of the records may be appended then.
///
/// # Cancel safety
/// If it is dropped, any of the records may be appended or not.
pub(crate) async fn append_all(
    bus: &dyn Bus,
    records: Vec<SourceRecord>,
    hush: &Hush,
) -> Result<(), BusError> {
    let mut chains: Vec<Vec<SourceRecord>> = Vec::new();
    let mut chain_of: HashMap<Bytes, usize> = HashMap::new();
    for record in records {
        let chain = match &record.key {
            Some(key) => *chain_of.entry(key.clone()).or_insert(chains.len()),
            None => chains.len(),
        };
        if chain == chains.len() {
            chains.push(Vec::new());
        }
        chains[chain].push(record);
    }
    let appended = chains.into_iter().map(async |chain| {
        for record in chain {
            append(bus, record, hush).await?;
        }
        Ok(())
    });
    try_join_all(appended).await.map(|_| ())
}

async fn append(bus: &dyn Bus, record: SourceRecord, hush: &Hush) -> Result<(), BusError> {
    let mut failures = 0;
    loop {
        let new = NewRecord {
            key: record.key.clone(),
            value: record.value.clone(),
        };
        match bus.produce(TWEETS, new).await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_transient() => {
                failures += 1;
                if hush.may_speak() {
                    warn!(
                        error = chain(&error),
                        failures, "the bus did not take a record, trying again"
                    );
                }
                let who = record.key.as_deref().map(String::from_utf8_lossy);
                sleep(wait_after(failures, &who.unwrap_or_default())).await;
            }
            Err(error) => return Err(error),
        }
    }
}
