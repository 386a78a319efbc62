//! The calls to X's API, and what its answers say.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use hyper::{Method, Request, StatusCode};
use rollout::Timestamp;
use serde_json::Value;
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::connection::{Answer, Server};
use super::rules::{self, Rule};
use super::schedule::Failure;
use super::{End, XError};
use crate::telemetry::chain;

/// Largest answer about rules: a page of 1,000 rules of the greatest length takes 4 MiB.
const RULES_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How much of a refusal is read and repeated.
const REFUSAL_BYTES_MAX: usize = 16 * 1024;

/// X's API.
#[derive(Debug)]
pub(super) struct Api {
    pub(super) server: Server,
}

impl Api {
    /// Makes the rules in our name equal to the configured ones.
    pub(super) async fn keep_rules(&self, token: &HeaderValue, wanted: &[Rule]) -> Result<(), End> {
        let mut existing = Vec::new();
        let mut target = "/2/tweets/search/stream/rules?max_results=1000".to_owned();
        for _ in 0..rules::PAGES_MAX {
            let answer = self.ask(token, Method::GET, &target, None).await?;
            let page: rules::Page = read_json(answer).await.ok_or(Failure::Http)?;
            existing.extend(page.data);
            let Some(next) = page.meta.next_token else {
                break;
            };
            // The token comes from outside and goes into an address.
            if !next.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                break;
            }
            target =
                format!("/2/tweets/search/stream/rules?max_results=1000&pagination_token={next}");
        }
        let changes = rules::changes(&existing, wanted);
        for rule in &changes.foreign {
            warn!(
                tag = rule.tag,
                "x: another rule of this project has the same text; its tag stays"
            );
        }
        self.delete(token, &changes.delete_first).await?;
        if !changes.add.is_empty() {
            info!(rules = changes.add.len(), "x: adds rules");
            let body = rules::addition(&changes.add);
            let answer = self.change(token, &body).await?;
            if let Some((value, reason)) = rules::refused(&answer) {
                return Err(End::Final(XError::Rule { value, reason }));
            }
        }
        self.delete(token, &changes.delete_after).await
    }

    async fn delete(&self, token: &HeaderValue, ids: &[String]) -> Result<(), End> {
        if ids.is_empty() {
            return Ok(());
        }
        info!(rules = ids.len(), "x: deletes rules of ours");
        let answer = self.change(token, &rules::deletion(ids)).await?;
        if let Some((_, reason)) = rules::refused(&answer) {
            // Somebody deleted it too; what is there now is looked at before the next connection.
            warn!(reason, "x: a rule was not deleted");
        }
        Ok(())
    }

    /// Posts a change of rules. X answers a rule that it does not take with 400 and the same words as in a 201.
    async fn change(&self, token: &HeaderValue, body: &Value) -> Result<Value, End> {
        let target = "/2/tweets/search/stream/rules";
        let sent = self.send(token, Method::POST, target, Some(body)).await?;
        let status = sent.response.status();
        if status == StatusCode::BAD_REQUEST {
            let answer: Value = read_json(sent).await.unwrap_or_default();
            return match rules::refused(&answer) {
                Some((value, reason)) => Err(End::Final(XError::Rule { value, reason })),
                None => Err(Failure::Http.into()),
            };
        }
        let answer = self.expect_success(sent).await?;
        Ok(read_json(answer).await.unwrap_or_default())
    }

    pub(super) async fn ask(
        &self,
        token: &HeaderValue,
        method: Method,
        target: &str,
        body: Option<&Value>,
    ) -> Result<Answer, Failure> {
        let answer = self.send(token, method, target, body).await?;
        self.expect_success(answer).await
    }

    async fn send(
        &self,
        token: &HeaderValue,
        method: Method,
        target: &str,
        body: Option<&Value>,
    ) -> Result<Answer, Failure> {
        let bytes = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let request = Request::builder()
            .method(method)
            .uri(self.server.target(target))
            .header(AUTHORIZATION, token)
            .header(USER_AGENT, "friday-pipeline")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(bytes))
            .expect("a path of ours and headers that are read already");
        self.server.send(request).await.map_err(|error| {
            warn!(error = chain(&*error), "x: no answer");
            Failure::Network
        })
    }

    /// The answer if it is a success; else what X says about it goes into the log.
    async fn expect_success(&self, answer: Answer) -> Result<Answer, Failure> {
        let status = answer.response.status();
        if status.is_success() {
            return Ok(answer);
        }
        let reset = answer.response.headers().get("x-rate-limit-reset");
        let reset = reset.and_then(|value| value.to_str().ok()?.parse().ok());
        let reset = reset.and_then(|seconds| Timestamp::from_second(seconds).ok());
        let words = refusal(answer).await;
        match status {
            StatusCode::TOO_MANY_REQUESTS => {
                let reset_at = reset.map(|reset: Timestamp| reset.to_string());
                warn!(reset_at, words, "x: too many requests");
                return Err(Failure::Limited { reset });
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                error!(%status, words, "x: the token or the plan does not give access to the stream");
            }
            _ => warn!(%status, words, "x: no stream"),
        }
        Err(Failure::Http)
    }
}

async fn read_json<T: serde::de::DeserializeOwned>(answer: Answer) -> Option<T> {
    let Answer {
        response,
        connection: _connection,
    } = answer;
    let body = Limited::new(response.into_body(), RULES_BYTES_MAX).collect();
    let bytes = timeout(Duration::from_secs(30), body).await.ok()?.ok()?;
    let read = serde_json::from_slice(&bytes.to_bytes());
    read.inspect_err(|error| warn!(%error, "x: an answer about rules is not as documented"))
        .ok()
}

/// X's words: the title and detail of a problem document.
async fn refusal(answer: Answer) -> String {
    let Answer {
        response,
        connection: _connection,
    } = answer;
    let body = Limited::new(response.into_body(), REFUSAL_BYTES_MAX).collect();
    let Ok(Ok(bytes)) = timeout(Duration::from_secs(5), body).await else {
        return String::new();
    };
    let document: Value = serde_json::from_slice(&bytes.to_bytes()).unwrap_or_default();
    let word = |name: &str| document.get(name).and_then(Value::as_str);
    let words = [word("title"), word("detail")];
    words.into_iter().flatten().collect::<Vec<_>>().join(": ")
}
