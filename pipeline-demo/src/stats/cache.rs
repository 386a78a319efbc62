//! Answers that are still fresh. Many people with one page open ask the same; the store is asked once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use crate::server::problem;
use crate::sink::StorageError;
use crate::telemetry::chain;

/// How long an answer is given again. A page looks every few seconds; counts change all the time.
pub(super) const FRESH: Duration = Duration::from_secs(2);

/// Answers kept. Each is at most some 100 KiB, most have 2.
const ANSWERS_MAX: usize = 256;

/// Questions that the store answers at once; others wait for these.
const QUESTIONS_MAX: usize = 4;

/// How long a question may take, waiting included.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Cache {
    answers: Mutex<BTreeMap<String, Answer>>,
    questions: Arc<Semaphore>,
}

#[derive(Debug, Clone)]
struct Answer {
    body: Bytes,
    etag: HeaderValue,
    at: Instant,
}

impl Cache {
    pub(super) fn new() -> Self {
        Self {
            answers: Mutex::default(),
            questions: Arc::new(Semaphore::new(QUESTIONS_MAX)),
        }
    }

    /// The answer to `question`, asked of the store by `ask` unless it is fresh.
    pub(super) async fn answer<T: Serialize>(
        &self,
        question: String,
        headers: &HeaderMap,
        ask: impl Future<Output = Result<T, StorageError>>,
    ) -> Response {
        if let Some(answer) = self.fresh(&question) {
            return answer.give(headers);
        }
        let asked = async {
            let _turn = self.questions.acquire().await;
            // Whoever waited for the same may find it answered now.
            match self.fresh(&question) {
                Some(answer) => Ok(answer),
                None => ask.await.map(|value| self.keep(question.clone(), &value)),
            }
        };
        match timeout(ANSWER_WAIT_MAX, asked).await {
            Ok(Ok(answer)) => answer.give(headers),
            Ok(Err(error)) => unavailable(&error),
            Err(_) => problem(
                StatusCode::SERVICE_UNAVAILABLE,
                "slow",
                "the store did not answer in time; ask again, or for a shorter range",
            ),
        }
    }

    fn fresh(&self, question: &str) -> Option<Answer> {
        let answers = self.answers.lock().expect("nothing here panics");
        let answer = answers.get(question)?;
        (answer.at.elapsed() < FRESH).then(|| answer.clone())
    }

    fn keep<T: Serialize>(&self, question: String, value: &T) -> Answer {
        let body = serde_json::json!(value).to_string();
        let digest = Sha256::digest(body.as_bytes());
        let hex: String = digest
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let answer = Answer {
            body: body.into(),
            etag: HeaderValue::from_str(&format!("\"{hex}\"")).expect("quotes and digits"),
            at: Instant::now(),
        };
        let mut answers = self.answers.lock().expect("nothing here panics");
        if answers.len() >= ANSWERS_MAX {
            answers.retain(|_, answer| answer.at.elapsed() < FRESH);
        }
        if answers.len() < ANSWERS_MAX {
            answers.insert(question, answer.clone());
        }
        answer
    }
}

impl Answer {
    fn give(&self, headers: &HeaderMap) -> Response {
        let known = headers.get_all(header::IF_NONE_MATCH).iter();
        let is_known = known
            .filter_map(|value| value.to_str().ok())
            .flat_map(|list| list.split(','))
            .map(|tag| tag.trim().trim_start_matches("W/"))
            .any(|tag| tag == "*" || tag.as_bytes() == self.etag.as_bytes());
        let (status, body) = match is_known {
            true => (StatusCode::NOT_MODIFIED, Bytes::new()),
            false => (StatusCode::OK, self.body.clone()),
        };
        let mut response = (status, body).into_response();
        let answer = response.headers_mut();
        answer.insert(header::ETAG, self.etag.clone());
        let json = HeaderValue::from_static("application/json");
        answer.insert(header::CONTENT_TYPE, json);
        let age = FRESH.saturating_sub(self.at.elapsed()).as_secs();
        if let Ok(control) = HeaderValue::from_str(&format!("max-age={age}")) {
            answer.insert(header::CACHE_CONTROL, control);
        }
        response
    }
}

/// The store is away: the cause is for the log, not for the asker.
pub(super) fn unavailable(error: &StorageError) -> Response {
    tracing::warn!(error = chain(error), "stats: the store did not answer");
    let detail = "the store does not answer; ask again in a moment";
    problem(StatusCode::SERVICE_UNAVAILABLE, "store_away", detail)
}
