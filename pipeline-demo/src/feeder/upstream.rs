//! One HTTP attempt: a task goes to the proxy, and what comes back is judged.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, StatusCode, Url};
use serde::Deserialize;

use crate::bus::BUS_RECORD_BYTES_MAX;

/// How long a connection may take to be made. The proxy is near.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(2);

/// The header that chooses a release, as the proxy reads it.
const RELEASE_HEADER: &str = "x-friday-release";

/// The header by which the proxy and the worker know a task again (draft-ietf-httpapi-idempotency-key-header).
const IDEMPOTENCY_HEADER: &str = "idempotency-key";

/// The header in which a worker says whose answer it is.
pub(crate) const WORKER_RELEASE_HEADER: &str = "x-release";

/// Longest reason kept of a 422 whose body is no problem document.
const REASON_CHARS_MAX: usize = 500;

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
    /// The result, as the worker wrote it.
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
}

/// Outcomes of attempts that were answered, and of those that failed: the labels of the metric.
pub(super) const ANSWERED: &[&str] = &["completed", "malformed"];
pub(super) const FAILED: &[&str] = &["unanswered", "broken", "status", "not_the_result"];

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
        }
    }
}

/// The proxy, as the feeder sees it.
#[derive(Debug, Clone)]
pub(crate) struct Upstream {
    client: Client,
    tasks: Url,
    pin: Option<HeaderValue>,
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
        let pin = pin.map(|pin| HeaderValue::from_static(pin.name()));
        Ok(Self {
            client,
            tasks: base.join("/tasks").map_err(|_| address())?,
            pin,
        })
    }

    /// Makes one attempt. `key` is the same in every attempt of a record, and so is `trace`: the fields of its trace.
    pub(super) async fn send(
        &self,
        key: &str,
        trace: &HeaderMap,
        body: Bytes,
    ) -> Result<Answer, AttemptError> {
        let mut request = self
            .client
            .post(self.tasks.clone())
            .headers(trace.clone())
            .header(CONTENT_TYPE, "application/json")
            .header(IDEMPOTENCY_HEADER, key)
            .body(body);
        if let Some(pin) = &self.pin {
            request = request.header(RELEASE_HEADER, pin);
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
        judge(status, key, body.freeze(), release)
    }
}

/// What an answer means. Pure.
fn judge(
    status: StatusCode,
    key: &str,
    body: Bytes,
    release: Option<String>,
) -> Result<Answer, AttemptError> {
    #[derive(Deserialize)]
    struct Head {
        tweet_id: String,
    }
    #[derive(Deserialize)]
    struct Problem {
        code: String,
        detail: String,
    }
    match status {
        StatusCode::OK => match serde_json::from_slice::<Head>(&body) {
            Ok(head) if head.tweet_id == key => Ok(Answer::Done(body)),
            Ok(_) | Err(_) => Err(AttemptError::NotTheResult),
        },
        StatusCode::UNPROCESSABLE_ENTITY => {
            let (code, reason) = match serde_json::from_slice::<Problem>(&body) {
                Ok(Problem { code, detail }) => (code, detail),
                Err(_) => {
                    let text = String::from_utf8_lossy(&body);
                    let text = text.chars().take(REASON_CHARS_MAX).collect();
                    ("unprocessable".to_owned(), text)
                }
            };
            Ok(Answer::Malformed {
                code,
                reason,
                release,
            })
        }
        other => Err(AttemptError::Status(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tasks_own_result_is_a_result() {
        let right = Bytes::from_static(br#"{"tweet_id":"7","features":{}}"#);
        let judged = judge(StatusCode::OK, "7", right.clone(), None);
        assert_eq!(judged.unwrap(), Answer::Done(right.clone()));
        for (status, key, body) in [
            (StatusCode::OK, "8", right),
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

    #[test]
    fn refuses_an_address_that_is_none() {
        for url in ["127.0.0.1:80", "ftp://a", "nonsense"] {
            let made = Upstream::new(url, Duration::from_secs(1), None);
            assert!(matches!(made, Err(UpstreamError::Address { .. })), "{url}");
        }
    }
}
