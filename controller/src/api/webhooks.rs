//! Hooks of GitLab: answered at once, worked on from a queue.
//!
//! They bear no token of ours; they prove themselves ([`webhook`](crate::gitlab::webhook)). What is answered counts with
//! GitLab: four failures in a row switch a hook off for a while. So an event that nobody here acts on is a success, and
//! only a delivery that is not GitLab's is a failure.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode};
use tokio::sync::mpsc;

use super::Api;
use super::error::ApiError;
use super::types::Problem;
use crate::gitlab::webhook::{Hint, Keys, Seen, hint};

/// Hints that may wait to be worked on. A pipeline sends some in a second; each takes a question to GitLab.
pub const QUEUE_MAX: usize = 256;

/// What deliveries are checked with, and where their hints go.
#[derive(Debug)]
pub struct Webhooks {
    keys: Keys,
    seen: Seen,
    hints: mpsc::Sender<Hint>,
}

impl Webhooks {
    /// Takes deliveries that these keys prove; and where their hints come out.
    #[must_use]
    pub fn new(keys: Keys) -> (Arc<Self>, mpsc::Receiver<Hint>) {
        let (hints, receiver) = mpsc::channel(QUEUE_MAX);
        let seen = Seen::default();
        (Arc::new(Self { keys, seen, hints }), receiver)
    }
}

/// Takes a delivery of GitLab's.
#[utoipa::path(post, path = "/api/v1/webhooks/gitlab", request_body(content = String, content_type = "application/json"),
    responses((status = 200), (status = 401, body = Problem), (status = 404, body = Problem), (status = 413, body = Problem), (status = 503, body = Problem)))]
pub async fn gitlab(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, ApiError> {
    let Some(webhooks) = &api.webhooks else {
        return Err(ApiError::new(
            StatusCode::NOT_FOUND,
            "no_webhooks",
            "this controller takes no webhooks: start it with --webhook-secret-file or --webhook-signing-key-file",
        ));
    };
    let body =
        body.map_err(|error| ApiError::new(error.status(), "invalid_body", error.body_text()))?;
    let id = webhooks
        .keys
        .verify(&headers, &body, api.clock.now())
        .map_err(|rejected| {
            tracing::warn!("a webhook was refused: {rejected}");
            ApiError::new(
                StatusCode::UNAUTHORIZED,
                "webhook_refused",
                rejected.to_string(),
            )
        })?;
    if let Some(id) = &id
        && !webhooks.seen.is_new(id)
    {
        return Ok(StatusCode::OK);
    }
    let hint = match hint(&body) {
        Ok(Hint::Other) => return Ok(StatusCode::OK),
        Ok(hint) => hint,
        Err(at) => {
            tracing::warn!(
                at,
                "a webhook that is GitLab's makes no sense; it is left out"
            );
            return Ok(StatusCode::OK);
        }
    };
    if webhooks.hints.try_send(hint).is_err() {
        if let Some(id) = &id {
            // So that it is new when it comes again.
            webhooks.seen.forget(id);
        }
        return Err(ApiError::busy());
    }
    Ok(StatusCode::OK)
}
