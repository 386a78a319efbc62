//! From a source that does not wait for us into the topic of tweets.

use std::collections::HashSet;

use bytes::Bytes;
use futures::future::join_all;
use tokio::task::unconstrained;
use tokio::time::sleep;
use tracing::warn;

use crate::backoff::{Hush, wait_after};
use crate::bus::{Bus, BusError, NewRecord, Position, TWEETS};
use crate::source::SourceRecord;
use crate::telemetry::chain;

/// Records that are appended together. More would wait longer for the slowest; at 5 ms for each batch it is 100,000 a
/// second.
pub(crate) const BATCH_MAX: usize = 512;

/// Appends all records, and tries again as long as the bus may come back.
///
/// They are handed to the bus in their order, without waiting for each other. When the bus does not take one, it is
/// appended again together with all that follow it under its key: some are there twice then, and the last ones of each
/// stand in their order.
///
/// # Errors
/// When trying again does not mend it. Some of the records may be appended then.
///
/// # Cancel safety
/// If it is dropped, any of the records may be appended or not.
pub(crate) async fn append_all(
    bus: &dyn Bus,
    mut records: Vec<SourceRecord>,
    hush: &Hush,
) -> Result<(), BusError> {
    let mut failures = 0;
    loop {
        let appending = records.iter().map(|record| {
            let new = NewRecord {
                key: record.key.clone(),
                value: record.value.clone(),
            };
            bus.produce(TWEETS, new)
        });
        // It begins with them one after the other, which is the order in which the bus gets them. Within tokio's budget it
        // would be stopped after 128, and would begin with the next ones before it came back to that one.
        let appended = unconstrained(join_all(appending)).await;
        let (again, trouble) = to_repeat(records.into_iter().zip(appended))?;
        let Some(error) = trouble else {
            return Ok(());
        };
        failures += 1;
        if hush.may_speak() {
            warn!(
                error = chain(&error),
                records = again.len(),
                failures,
                "the bus did not take records, trying again"
            );
        }
        sleep(wait_after(failures, "intake")).await;
        records = again;
    }
}

/// Of records that were handed to the bus in this order, and what it said: those that have to be appended again, in their
/// order, and the last trouble, if there was any. Pure.
///
/// # Errors
/// When trying again does not mend it.
pub(crate) fn to_repeat(
    answered: impl IntoIterator<Item = (SourceRecord, Result<Position, BusError>)>,
) -> Result<(Vec<SourceRecord>, Option<BusError>), BusError> {
    let mut failed_keys: HashSet<Bytes> = HashSet::new();
    let mut trouble = None;
    let mut again = Vec::new();
    for (record, appended) in answered {
        let key = record.key.as_ref();
        match appended {
            Ok(_) if key.is_none_or(|key| !failed_keys.contains(key)) => {}
            Ok(_) => again.push(record),
            Err(error) if error.is_transient() => {
                failed_keys.extend(key.cloned());
                trouble = Some(error);
                again.push(record);
            }
            Err(error) => return Err(error),
        }
    }
    Ok((again, trouble))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;

    use super::*;
    use crate::bus::{Consumer, Reader, Span, Standing};
    use jiff::Timestamp;

    /// A log in memory that refuses the values it is told to, once each.
    #[derive(Debug, Default)]
    struct Refusing {
        refuse: Mutex<HashSet<Bytes>>,
        log: Mutex<Vec<Bytes>>,
    }

    #[async_trait]
    impl Bus for Refusing {
        async fn ensure_topic(&self, _: &str) -> Result<(), BusError> {
            Ok(())
        }

        async fn partitions(&self, _: &str) -> Result<u32, BusError> {
            Ok(1)
        }

        async fn produce(&self, topic: &str, record: NewRecord) -> Result<Position, BusError> {
            if self.refuse.lock().unwrap().remove(&record.value) {
                let topic = topic.to_owned();
                let partition = 0;
                return Err(BusError::Full { topic, partition });
            }
            let mut log = self.log.lock().unwrap();
            log.push(record.value);
            let offset = log.len() as i64 - 1;
            Ok(Position {
                partition: 0,
                offset,
            })
        }

        async fn consumer(&self, _: &str, _: &str) -> Result<Box<dyn Consumer>, BusError> {
            Err(BusError::Closed)
        }

        async fn ends(&self, _: &str) -> Result<Vec<(i64, i64)>, BusError> {
            Err(BusError::Closed)
        }

        async fn offsets_at(&self, _: &str, _: Timestamp) -> Result<Vec<i64>, BusError> {
            Err(BusError::Closed)
        }

        async fn reader(&self, _: &str, _: &[Span]) -> Result<Box<dyn Reader>, BusError> {
            Err(BusError::Closed)
        }

        async fn standing(&self, _: &str, _: &str) -> Result<Vec<Standing>, BusError> {
            Err(BusError::Closed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_appended_again_keeps_its_order_within_its_key() {
        let bus = Refusing::default();
        bus.refuse.lock().unwrap().insert("a2".into());
        let records = ["a1", "b1", "a2", "b2", "a3", "a4"];
        let records = records.map(|value| SourceRecord {
            key: Some(Bytes::from_static(&value.as_bytes()[..1])),
            value: value.into(),
            malformed_on_purpose: false,
        });
        append_all(&bus, records.into(), &Hush::default())
            .await
            .unwrap();
        let log = bus.log.lock().unwrap();
        assert_eq!(log[..5], ["a1", "b1", "b2", "a3", "a4"]);
        assert_eq!(log[5..], ["a2", "a3", "a4"]);
    }
}
