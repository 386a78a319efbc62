//! One record's way: sent until it is answered, and the answer to the bus until it is durable.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use friday_traces::{Kind, Span, Tracer};
use reqwest::header::HeaderMap;
use serde_json::json;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::DeadLetter;
use super::counts::Counts;
use super::pinned::PinError;
use super::upstream::{Answer, AttemptError, Upstream};
use crate::backoff::{Hush, wait_after};
use crate::bus::{Bus, BusError, MALFORMED, NewRecord, RESULTS, Record, TWEETS};
use crate::origin::Origin;
use crate::telemetry::{chain, words_of};
use crate::tweet::{Ids, Malformed, RECORD_BYTES_MAX};

/// The word for a record that no worker could answer.
const UNANSWERED: &str = "unanswered";

/// What a task in flight needs.
pub(crate) struct Delivery {
    /// Where the answers go; without one they are only counted.
    pub(crate) answers_to: Option<Arc<dyn Bus>>,
    /// The topic that the records stand in, for dead letters.
    pub(crate) topic: String,
    /// Where the tasks go.
    pub(crate) upstream: Upstream,
    /// Attempts after which a record is given up; the feeder never does.
    pub(crate) attempts_max: Option<u32>,
    /// Attempts that fail while other tasks are answered, after which a record is kept as a dead letter.
    pub(crate) letter_after: Option<u32>,
    pub(crate) counts: Arc<Counts>,
    pub(crate) hush: Hush,
    /// What records traces, if they are.
    pub(crate) tracer: Option<Tracer>,
}

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Delivered {
    /// Its result is durable.
    Completed,
    /// Its dead letter is.
    Malformed,
    /// An attempt failed after the stop: it is left to whoever goes on.
    Left,
    /// All its attempts failed.
    GivenUp,
    /// The release that it is for takes no tasks, so it was not sent, or not again.
    NotSent(PinError),
}

impl Delivery {
    /// Sends one record until it is answered, and the answer to the bus until it is durable; then the record is done.
    /// `slot` is dropped once no worker has it in hand any more.
    pub(crate) async fn deliver<S>(
        &self,
        record: &Record,
        slot: S,
        stop: &CancellationToken,
    ) -> Result<Delivered, BusError> {
        let ids = Ids::of(&record.value);
        // A record without an id is known by its place, which stays the same however often it is read.
        let key = ids.tweet.unwrap_or_else(|| record.position.to_string());
        let answer = self.answer(&key, record, stop).await;
        drop(slot);
        match answer {
            Ok(Answer::Done(result)) => {
                self.append(RESULTS, &key, result).await?;
                self.counts.completed.inc();
                Ok(Delivered::Completed)
            }
            Ok(Answer::Malformed {
                code,
                reason,
                release,
            }) => {
                let letter = DeadLetter {
                    topic: self.topic.clone(),
                    position: record.position,
                    code,
                    reason,
                    release,
                    original_base64: STANDARD.encode(original(record)),
                };
                let place = record.position.to_string();
                let letter = Bytes::from(json!(letter).to_string());
                self.append(MALFORMED, &place, letter).await?;
                self.counts.malformed.inc();
                Ok(Delivered::Malformed)
            }
            Err(unanswered) => Ok(unanswered),
        }
    }

    /// The final answer, or why there is none.
    async fn answer(
        &self,
        key: &str,
        record: &Record,
        stop: &CancellationToken,
    ) -> Result<Answer, Delivered> {
        if record.value.len() > RECORD_BYTES_MAX {
            let bytes = record.value.len();
            return Ok(Answer::Malformed {
                code: Malformed::TooLarge.code().to_owned(),
                reason: format!(
                    "{}: it has {bytes}, of which the first are kept",
                    Malformed::TooLarge
                ),
                // No release was asked.
                release: None,
            });
        }
        let (trace, mut span) = self.trace(key, record);
        let origin = (self.topic == TWEETS).then(|| Origin::of(record));
        let mut failures = 0;
        // How many of them were this record's alone, and how many tasks were answered at the last one.
        let mut alone = 0;
        let mut answered = None;
        loop {
            let body = record.value.clone();
            let sent = self.upstream.send(key, &trace, body, origin).await;
            let outcome = sent.as_ref().map_or_else(|e| e.outcome(), Answer::outcome);
            if let Err(AttemptError::Pin(error)) = sent {
                failed(span, outcome, failures);
                return Err(Delivered::NotSent(error));
            }
            self.counts.attempts.with_label_values(&[outcome]).inc();
            match sent {
                Ok(answer) => {
                    if let Some(span) = &mut span {
                        span.set("pipeline.outcome", outcome);
                        span.set("pipeline.attempts", i64::from(failures) + 1);
                    }
                    return Ok(answer);
                }
                Err(error) => {
                    failures += 1;
                    let answered_now = self.counts.answered();
                    if answered
                        .replace(answered_now)
                        .is_some_and(|before| answered_now > before)
                    {
                        alone += 1;
                    }
                    if self.letter_after.is_some_and(|max| alone >= max) {
                        failed(span, outcome, failures);
                        let last = words_of(&error);
                        warn!(task = key, position = %record.position, failures, last, "feed: a task that fails while others do not is kept as a dead letter (unanswered); once a release can do it, send it again with replay --offsets");
                        return Ok(Answer::Malformed {
                            code: UNANSWERED.to_owned(),
                            reason: format!(
                                "{failures} attempts failed, {alone} of them while other tasks were answered; the last: {last}"
                            ),
                            release: None,
                        });
                    }
                    if self.hush.may_speak() {
                        let error = chain(&error);
                        warn!(task = key, position = %record.position, failures, error, "feed: a task failed, trying again");
                    }
                    if self.attempts_max.is_some_and(|max| failures >= max) {
                        failed(span, outcome, failures);
                        return Err(Delivered::GivenUp);
                    }
                    tokio::select! {
                        () = stop.cancelled() => {
                            failed(span, outcome, failures);
                            return Err(Delivered::Left);
                        }
                        () = sleep(wait_after(failures, key)) => {}
                    }
                }
            }
        }
    }

    /// Begins a trace with the record, over all attempts: the fields that say so, and the span, if it is recorded.
    fn trace(&self, key: &str, record: &Record) -> (HeaderMap, Option<Span>) {
        let mut fields = HeaderMap::new();
        let Some(tracer) = &self.tracer else {
            return (fields, None);
        };
        let mut span = tracer.begin(&mut fields, Kind::Client, "feed");
        if let Some(span) = &mut span {
            span.set("messaging.destination.name", self.topic.clone());
            let partition = record.position.partition.to_string();
            span.set("messaging.destination.partition.id", partition);
            span.set("messaging.message.id", key.to_owned());
            span.set("messaging.kafka.offset", record.position.offset);
        }
        (fields, span)
    }

    async fn append(&self, topic: &str, key: &str, value: Bytes) -> Result<(), BusError> {
        let Some(bus) = &self.answers_to else {
            return Ok(());
        };
        let mut failures = 0;
        loop {
            let record = NewRecord {
                key: Some(Bytes::copy_from_slice(key.as_bytes())),
                value: value.clone(),
            };
            match bus.produce(topic, record).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_transient() => {
                    failures += 1;
                    if self.hush.may_speak() {
                        warn!(
                            task = key,
                            topic,
                            error = chain(&error),
                            failures,
                            "feed: the bus did not take an answer, trying again"
                        );
                    }
                    sleep(wait_after(failures, key)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Ends the span of a record that was not answered.
fn failed(span: Option<Span>, outcome: &'static str, attempts: u32) {
    if let Some(mut span) = span {
        span.set("pipeline.attempts", i64::from(attempts));
        span.fail(outcome);
    }
}

/// The bytes that a dead letter keeps: all, save of a record that another producer made larger than the bus takes here.
fn original(record: &Record) -> &[u8] {
    &record.value[..record.value.len().min(RECORD_BYTES_MAX)]
}
