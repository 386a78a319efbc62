//! What requests say, and how they are answered.

use std::time::Duration;

use axum::body::Body;
use axum::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use sha2::{Digest, Sha256};
use tracing::error;

use super::SLOW_RETRY_AFTER;
use super::answers::Answer;
use super::clients::Denied;
use crate::request::{idempotency_key, unauthorized};
use crate::server::problem;
use crate::source::lines::Packing;
use crate::telemetry::chain;

/// Media types of JSON lines; none of them is registered, and all of them are used.
const TYPES: [&str; 4] = [
    "application/x-ndjson",
    "application/jsonl",
    "application/x-jsonlines",
    "application/json-lines",
];

/// An answer and what it is counted as.
pub(super) struct Outcome {
    pub(super) label: &'static str,
    pub(super) response: Box<Response>,
}

impl Outcome {
    pub(super) fn new(label: &'static str, response: Response) -> Self {
        Self {
            label,
            response: Box::new(response),
        }
    }
}

pub(super) fn packing_of(headers: &HeaderMap) -> Result<Packing, Outcome> {
    let unsupported = |detail: &str| {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        let mut answer = problem(status, "media_type", detail);
        let known = HeaderValue::from_static("gzip, zstd, identity");
        answer.headers_mut().insert(ACCEPT_ENCODING, known);
        Outcome::new("unsupported", answer)
    };
    if let Some(kind) = headers.get(CONTENT_TYPE) {
        let kind = kind.to_str().unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if !TYPES.iter().any(|known| kind.eq_ignore_ascii_case(known)) {
            let detail = format!("expected lines of JSON: Content-Type {}", TYPES[0]);
            return Err(unsupported(&detail));
        }
    }
    let mut encodings = headers.get_all(CONTENT_ENCODING).iter();
    let encoding = encodings
        .next()
        .map_or("", |value| value.to_str().unwrap_or("?"));
    let known = match &*encoding.trim().to_ascii_lowercase() {
        "" | "identity" => Some(Packing::Plain),
        "gzip" | "x-gzip" => Some(Packing::Gzip),
        "zstd" => Some(Packing::Zstd),
        _ => None,
    };
    known
        .filter(|_| encodings.next().is_none())
        .ok_or_else(|| unsupported("expected one Content-Encoding: gzip, zstd or identity"))
}

pub(super) fn key_of(headers: &HeaderMap) -> Result<Option<String>, Outcome> {
    let key = idempotency_key(headers).map_err(|detail| {
        let answer = problem(StatusCode::BAD_REQUEST, "idempotency_key", detail);
        Outcome::new("broken", answer)
    })?;
    Ok(key.map(str::to_owned))
}

pub(super) async fn body_of(body: Body, limit: usize) -> Result<Bytes, Outcome> {
    let mut stream = body.into_data_stream();
    let mut bytes = BytesMut::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|_| {
            let detail = "the body broke off";
            Outcome::new(
                "broken",
                problem(StatusCode::BAD_REQUEST, "no_body", detail),
            )
        })?;
        if bytes.len() + chunk.len() > limit {
            return Err(too_large(limit));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

pub(super) fn fingerprint(packing: Packing, body: &Bytes) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(format!("{packing:?}\n"));
    hash.update(body);
    hash.finalize().into()
}

/// The answer that was given to the same body before; another body must not hide behind its key.
pub(super) fn again(given: &Answer, fingerprint: [u8; 32]) -> Outcome {
    if given.fingerprint == fingerprint {
        return Outcome::new("repeated", respond(given));
    }
    let detail = "this Idempotency-Key was used for another body; take a new one";
    let status = StatusCode::UNPROCESSABLE_ENTITY;
    Outcome::new(
        "conflict",
        problem(status, "idempotency_key_reused", detail),
    )
}

pub(super) fn respond(answer: &Answer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let kind = if status.is_success() {
        "application/json"
    } else {
        "application/problem+json"
    };
    (status, [(CONTENT_TYPE, kind)], answer.body.clone()).into_response()
}

pub(super) fn denied(denied: Denied) -> Outcome {
    match denied {
        Denied::Unknown => {
            let detail = "expected Authorization: Bearer and the token of a client";
            Outcome::new("unauthorized", unauthorized("token", detail))
        }
        Denied::Off => {
            let detail = "this client is switched off";
            let answer = problem(StatusCode::FORBIDDEN, "client_off", detail);
            Outcome::new("unauthorized", answer)
        }
        Denied::TooMany { retry_after } => too_many(
            retry_after,
            "this client sends too much at once or too often",
        ),
    }
}

pub(super) fn too_many(wait: Duration, detail: &str) -> Outcome {
    let mut answer = problem(StatusCode::TOO_MANY_REQUESTS, "too_many", detail);
    retry_after(&mut answer, wait);
    Outcome::new("limited", answer)
}

pub(super) fn retry_after(answer: &mut Response, wait: Duration) {
    let seconds = wait.as_secs_f64().ceil().max(1.0) as u64;
    answer.headers_mut().insert(RETRY_AFTER, seconds.into());
}

pub(super) fn too_large(limit: usize) -> Outcome {
    let detail = format!("the body is larger than {limit} bytes; send it in parts");
    let answer = problem(StatusCode::PAYLOAD_TOO_LARGE, "too_large", &detail);
    Outcome::new("refused", answer)
}

pub(super) fn forgetful(error: sqlx::Error) -> Outcome {
    error!(error = chain(&error), "ingest: cannot look up an answer");
    let detail = "the answers given before cannot be looked up; send the same again";
    let mut answer = problem(StatusCode::SERVICE_UNAVAILABLE, "answers", detail);
    retry_after(&mut answer, SLOW_RETRY_AFTER);
    Outcome::new("failed", answer)
}
