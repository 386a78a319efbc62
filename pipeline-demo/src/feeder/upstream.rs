//! One HTTP attempt: a task goes to the proxy, and what comes back is judged.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, StatusCode, Url};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::pinned::{PinError, Pinned};
use crate::bus::BUS_RECORD_BYTES_MAX;
use crate::origin::{Origin, with_origin};

/// How long a connection may take to be made. The proxy is near.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(2);

/// The header that chooses a release, as the proxy reads it.
pub(super) const RELEASE_HEADER: &str = "x-friday-release";

/// The header by which the proxy and the worker know a task again (draft-ietf-httpapi-idempotency-key-header).
const IDEMPOTENCY_HEADER: &str = "idempotency-key";

/// The header in which a worker says whose answer it is.
pub(crate) const WORKER_RELEASE_HEADER: &str = "x-release";

/// Longest reason of a 422 that is kept. A dead letter has to fit into a record, whatever a worker says.
const REASON_CHARS_MAX: usize = 500;

/// Longest word for what is wrong that is kept, and longest name of a release. A digest has 71 characters.
const WORD_CHARS_MAX: usize = 128;

/// The release that all tasks go to, whatever the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Pin {
    /// The stable one.
    Stable,
    /// The one on trial.
    Canary,
}

impl Pin {
    /// The word in [`RELEASE_HEADER`].
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Canary => "canary",
        }
    }
}

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The address is no HTTP URL.
    #[error("{url} is no address of a proxy; expected http://HOST:PORT")]
    Address {
        /// What was given.
        url: String,
    },
    /// The client cannot be built.
    #[error("no HTTP client could be made")]
    Client(#[source] reqwest::Error),
}

/// A final answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// The result, as the worker wrote it; with its origin, if that was given.
    Done(Bytes),
    /// The record is no tweet and never will be.
    Malformed {
        code: String,
        reason: String,
        /// The release that says so, where the worker names it.
        release: Option<String>,
    },
}

/// An attempt that has to be made again.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttemptError {
    #[error("the proxy did not answer")]
    Unanswered(#[source] reqwest::Error),
    #[error("the answer broke off or took too long")]
    Broken(#[source] reqwest::Error),
    #[error("the answer was {0}")]
    Status(StatusCode),
    #[error("the answer was 200 and not the task's result")]
    NotTheResult,
    #[error("the answer was given by {}, and the task is for {wanted} alone", .answered.as_deref().unwrap_or("nobody who says so"))]
    AnotherRelease {
        answered: Option<String>,
        wanted: Arc<str>,
    },
    /// Nothing was sent, and trying again does not mend it.
    #[error("the release that the task is for takes none")]
    Pin(#[from] PinError),
}

/// Outcomes of attempts that were answered, and of those that failed: the labels of the metric.
pub(super) const ANSWERED: &[&str] = &["completed", "malformed"];
pub(super) const FAILED: &[&str] = &[
    "unanswered",
    "broken",
    "status",
    "not_the_result",
    "another_release",
];

impl Answer {
    pub(super) const fn outcome(&self) -> &'static str {
        match self {
            Self::Done(_) => "completed",
            Self::Malformed { .. } => "malformed",
        }
    }
}

impl AttemptError {
    pub(super) const fn outcome(&self) -> &'static str {
        match self {
            Self::Unanswered(_) => "unanswered",
            Self::Broken(_) => "broken",
            Self::Status(_) => "status",
            Self::NotTheResult => "not_the_result",
            Self::AnotherRelease { .. } => "another_release",
            Self::Pin(_) => "not_sent",
        }
    }
}

/// The proxy, as the feeder sees it.
#[derive(Debug, Clone)]
pub(crate) struct Upstream {
    client: Client,
    tasks: Url,
    pin: Option<Pin>,
    /// Who the canary is, for tasks that are for it alone.
    pinned: Arc<Pinned>,
}

impl Upstream {
    pub(crate) fn new(
        proxy: &str,
        attempt_wait_max: Duration,
        pin: Option<Pin>,
    ) -> Result<Self, UpstreamError> {
        let address = || UpstreamError::Address {
            url: proxy.to_owned(),
        };
        let base = Url::parse(proxy).map_err(|_| address())?;
        if base.scheme() != "http" || base.host().is_none() {
            return Err(address());
        }
        let client = Client::builder()
            .connect_timeout(CONNECT_WAIT_MAX)
            .timeout(attempt_wait_max)
            // A proxy of the environment is for the way out, not for the next hop.
            .no_proxy()
            .build()
            .map_err(UpstreamError::Client)?;
        Ok(Self {
            client,
            tasks: base.join("/tasks").map_err(|_| address())?,
            pin,
            pinned: Arc::default(),
        })
    }

    /// Makes one attempt. `key` is the same in every attempt of a record, and so is `trace`: the fields of its trace. A result
    /// is told its `origin`. What is for the canary alone is sent only while there is one, and answered by nobody else.
    pub(super) async fn send(
        &self,
        key: &str,
        trace: &HeaderMap,
        body: Bytes,
        origin: Option<Origin>,
    ) -> Result<Answer, AttemptError> {
        let mut request = self
            .client
            .post(self.tasks.clone())
            .headers(trace.clone())
            .header(CONTENT_TYPE, "application/json")
            .body(body);
        if let Some(pin) = self.pin {
            request = request.header(RELEASE_HEADER, HeaderValue::from_static(pin.name()));
        }
        // Stable is asked for nothing that it does not get; a canary's tasks may come to stable.
        let wanted = match self.pin {
            Some(Pin::Canary) => Some(self.pinned.canary(&self.client, &self.tasks).await?),
            Some(Pin::Stable) | None => None,
        };
        if wanted.is_none() {
            // What is for the canary alone is nothing that the proxy may repeat, for it repeats on stable.
            request = request.header(IDEMPOTENCY_HEADER, key);
        }
        let mut answer = request.send().await.map_err(AttemptError::Unanswered)?;
        let status = answer.status();
        let release = answer.headers().get(WORKER_RELEASE_HEADER);
        let release = release.and_then(|name| Some(name.to_str().ok()?.to_owned()));
        let mut body = BytesMut::new();
        while let Some(chunk) = answer.chunk().await.map_err(AttemptError::Broken)? {
            if body.len() + chunk.len() > BUS_RECORD_BYTES_MAX {
                return Err(AttemptError::NotTheResult);
            }
            body.extend_from_slice(&chunk);
        }
        if let Some(wanted) = wanted
            && matches!(status, StatusCode::OK | StatusCode::UNPROCESSABLE_ENTITY)
            && release.as_deref() != Some(&*wanted)
        {
            self.pinned.doubt().await;
            return Err(AttemptError::AnotherRelease {
                answered: release,
                wanted,
            });
        }
        judge(status, key, body.freeze(), release, origin)
    }
}

/// What an answer means. Pure.
fn judge(
    status: StatusCode,
    key: &str,
    body: Bytes,
    release: Option<String>,
    origin: Option<Origin>,
) -> Result<Answer, AttemptError> {
    #[derive(Deserialize)]
    struct Problem {
        code: String,
        detail: String,
    }
    match status {
        StatusCode::OK => {
            let result = result_of(&body, key).ok_or(AttemptError::NotTheResult)?;
            let result = origin.map_or(body, |origin| with_origin(result, origin));
            // Written anew it may be larger, and no bus takes it then.
            if result.len() + key.len() > BUS_RECORD_BYTES_MAX {
                return Err(AttemptError::NotTheResult);
            }
            Ok(Answer::Done(result))
        }
        StatusCode::UNPROCESSABLE_ENTITY => {
            let (code, reason) = match serde_json::from_slice::<Problem>(&body) {
                Ok(Problem { code, detail }) => (code, detail),
                Err(_) => {
                    let text = String::from_utf8_lossy(&body).into_owned();
                    ("unprocessable".to_owned(), text)
                }
            };
            let cut = |text: &str, chars_max| text.chars().take(chars_max).collect();
            Ok(Answer::Malformed {
                code: cut(&code, WORD_CHARS_MAX),
                reason: cut(&reason, REASON_CHARS_MAX),
                release: release.map(|name| cut(&name, WORD_CHARS_MAX)),
            })
        }
        other => Err(AttemptError::Status(other)),
    }
}

/// The fields of a result of that tweet, if it is one that the sink can store.
fn result_of(body: &[u8], key: &str) -> Option<Map<String, Value>> {
    let fields: Map<String, Value> = serde_json::from_slice(body).ok()?;
    let text = |name| fields.get(name).and_then(Value::as_str);
    let is_text_or_none =
        |name| (fields.get(name)).is_none_or(|value| value.is_string() || value.is_null());
    let is_result = text("tweet_id") == Some(key)
        && text("release").is_some()
        && fields.get("features").is_some_and(Value::is_object)
        && is_text_or_none("author_id")
        && is_text_or_none("created_at");
    is_result.then_some(fields)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::bus::Position;

    fn judge(
        status: StatusCode,
        key: &str,
        body: Bytes,
        release: Option<String>,
    ) -> Result<Answer, AttemptError> {
        super::judge(status, key, body, release, None)
    }

    #[test]
    fn only_the_tasks_own_result_is_a_result() {
        let right = Bytes::from_static(br#"{"tweet_id":"7","release":"a","features":{}}"#);
        let judged = judge(StatusCode::OK, "7", right.clone(), None);
        assert_eq!(judged.unwrap(), Answer::Done(right.clone()));
        let ok = |body: Value| (StatusCode::OK, "7", Bytes::from(body.to_string()));
        for (status, key, body) in [
            (StatusCode::OK, "8", right),
            ok(json!({"tweet_id": "7", "features": {}})),
            ok(json!({"tweet_id": "7", "release": "a", "features": []})),
            ok(json!({"tweet_id": "7", "release": "a", "features": {}, "author_id": 7})),
            ok(json!([])),
            (StatusCode::OK, "7", Bytes::from_static(b"<html>")),
            (StatusCode::BAD_GATEWAY, "7", Bytes::new()),
            (StatusCode::NOT_FOUND, "7", Bytes::new()),
            (StatusCode::TOO_MANY_REQUESTS, "7", Bytes::new()),
        ] {
            assert!(judge(status, key, body, None).is_err(), "{status}");
        }
    }

    #[test]
    fn a_422_is_final_and_keeps_the_reason() {
        let body = Bytes::from_static(br#"{"code":"no_text","detail":"data.text is missing"}"#);
        let judged = judge(
            StatusCode::UNPROCESSABLE_ENTITY,
            "7",
            body,
            Some("a".into()),
        )
        .unwrap();
        let expected = Answer::Malformed {
            code: "no_text".into(),
            reason: "data.text is missing".into(),
            release: Some("a".into()),
        };
        assert_eq!(judged, expected);
    }

    /// What a worker writes briefly may be long when it is written anew.
    #[test]
    fn a_result_that_no_bus_takes_is_none() {
        let origin = Position {
            partition: 0,
            offset: 0,
        };
        let numbers = vec!["1e15"; BUS_RECORD_BYTES_MAX / 8].join(",");
        let body = format!(r#"{{"tweet_id":"7","release":"a","features":{{"n":[{numbers}]}}}}"#);
        let origin = Some(Origin::from(origin));
        assert!(body.len() < BUS_RECORD_BYTES_MAX);
        let judged = super::judge(StatusCode::OK, "7", body.into(), None, origin);
        assert!(matches!(judged, Err(AttemptError::NotTheResult)));
    }

    #[test]
    fn a_dead_letter_fits_into_a_record_whatever_the_worker_says() {
        let long = "\u{1}".repeat(BUS_RECORD_BYTES_MAX / 8);
        let body = json!({"code": long, "detail": long}).to_string();
        let judged = judge(
            StatusCode::UNPROCESSABLE_ENTITY,
            "7",
            body.into(),
            Some(long),
        );
        let Ok(Answer::Malformed {
            code,
            reason,
            release,
        }) = judged
        else {
            panic!("{judged:?}");
        };
        let release = release.unwrap();
        let lengths = [&code, &reason, &release].map(|text| text.chars().count());
        assert_eq!(lengths, [WORD_CHARS_MAX, REASON_CHARS_MAX, WORD_CHARS_MAX]);
    }

    #[test]
    fn refuses_an_address_that_is_none() {
        for url in ["127.0.0.1:80", "ftp://a", "nonsense"] {
            let made = Upstream::new(url, Duration::from_secs(1), None);
            assert!(matches!(made, Err(UpstreamError::Address { .. })), "{url}");
        }
    }
}
