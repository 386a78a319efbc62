//! Hooks of GitLab: answered at once, worked on from a queue.
//!
//! They bear no token of ours; they prove themselves ([`webhook`](crate::gitlab::webhook)). What is answered counts with
//! GitLab: four failures in a row switch a hook off for a while. So an event that nobody here acts on is a success, and
//! only a delivery that is not GitLab's is a failure.
//!
//! Whoever reaches the port may send one. So nothing of a body is read before its head was looked at, and of all bodies that
//! are on their way only so much is kept at a time.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use futures::StreamExt as _;
use rollout::Duration;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::time::timeout;

use super::Api;
use super::error::ApiError;
use super::types::Problem;
use crate::gitlab::webhook::{BODY_BYTES_MAX, Hint, Keys, Rejected, Seen, hint};

/// Hints that may wait to be worked on. A pipeline sends some in a second; each takes a question to GitLab.
pub const QUEUE_MAX: usize = 256;

/// Bytes of bodies that are kept at one time: two of the longest, or a thousand of the usual ones.
pub const BODIES_BYTES_MAX: usize = 2 * BODY_BYTES_MAX;

/// Longest wait for a body. GitLab itself gives a delivery up after 10 s, unless it is told otherwise.
const READ_MAX: Duration = Duration::from_secs(10);

/// What deliveries are checked with, and where their hints go.
#[derive(Debug)]
pub struct Webhooks {
    keys: Keys,
    seen: Seen,
    hints: mpsc::Sender<Hint>,
    /// A permit for each byte of a body that is kept.
    room: Semaphore,
}

impl Webhooks {
    /// Takes deliveries that these keys prove; and where their hints come out.
    #[must_use]
    pub fn new(keys: Keys) -> (Arc<Self>, mpsc::Receiver<Hint>) {
        let (hints, receiver) = mpsc::channel(QUEUE_MAX);
        let webhooks = Self {
            keys,
            seen: Seen::default(),
            hints,
            room: Semaphore::new(BODIES_BYTES_MAX),
        };
        (Arc::new(webhooks), receiver)
    }

    /// The whole body, and the room that it takes.
    async fn read(&self, body: Body) -> Result<(Vec<u8>, Option<SemaphorePermit<'_>>), ApiError> {
        let (mut bytes, mut room) = (Vec::new(), None::<SemaphorePermit<'_>>);
        let mut chunks = body.into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| {
                ApiError::new(StatusCode::BAD_REQUEST, "invalid_body", error.to_string())
            })?;
            if bytes.len() + chunk.len() > BODY_BYTES_MAX {
                return Err(too_long());
            }
            let more = u32::try_from(chunk.len()).map_err(|_| too_long())?;
            let more = self.room.try_acquire_many(more);
            let more = more.map_err(|_| ApiError::busy())?;
            match &mut room {
                Some(room) => room.merge(more),
                None => room = Some(more),
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok((bytes, room))
    }
}

/// Takes a delivery of GitLab's.
#[utoipa::path(post, path = "/api/v1/webhooks/gitlab", request_body(content = String, content_type = "application/json"),
    responses((status = 200), (status = 401, body = Problem), (status = 404, body = Problem), (status = 408, body = Problem), (status = 413, body = Problem), (status = 503, body = Problem)))]
pub async fn gitlab(State(api): State<Api>, delivery: Request) -> Result<StatusCode, ApiError> {
    let Some(webhooks) = &api.webhooks else {
        return Err(ApiError::new(
            StatusCode::NOT_FOUND,
            "no_webhooks",
            "this controller takes no webhooks: start it with --webhook-secret-file or --webhook-signing-key-file",
        ));
    };
    let (head, body) = delivery.into_parts();
    let checked = webhooks.keys.check_head(&head.headers, api.clock.now());
    checked.map_err(refused)?;
    let read = timeout(READ_MAX, webhooks.read(body));
    let (body, _room) = read.await.map_err(|_| {
        ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "invalid_body",
            format!("the body did not come within {READ_MAX:?}"),
        )
    })??;
    let verified = webhooks.keys.verify(&head.headers, &body, api.clock.now());
    let id = verified.map_err(refused)?;
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

fn refused(rejected: Rejected) -> ApiError {
    tracing::warn!("a webhook was refused: {rejected}");
    ApiError::new(
        StatusCode::UNAUTHORIZED,
        "webhook_refused",
        rejected.to_string(),
    )
}

fn too_long() -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "invalid_body",
        format!("the body has more than {BODY_BYTES_MAX} bytes"),
    )
}
