//! One request and its answer, within limits. For GitLab, and for whoever else is told something.

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use rollout::Duration;
use tokio::time::{Instant, timeout_at};

use crate::client::TransportError;
use crate::client::transport::Transport;

/// A whole answer.
#[derive(Debug, Clone)]
pub(crate) struct Exchanged {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Why there is no whole answer. What was asked may have been done.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// No connection, or one that broke.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The answer broke off.
    #[error("the answer broke off")]
    Body {
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is more of the answer than is read.
    #[error("the answer is longer than {bytes_max} bytes")]
    TooLong {
        /// The limit.
        bytes_max: usize,
    },
}

/// Sends a request and reads the answer whole, within `answer_max` for both and at most `bytes_max` of it.
///
/// # Errors
/// See [`ExchangeError`].
pub(crate) async fn exchange(
    transport: &Transport,
    request: Request<Full<Bytes>>,
    answer_max: Duration,
    bytes_max: usize,
) -> Result<Exchanged, ExchangeError> {
    let whole = async {
        let answer = transport.send(request).await?;
        let (head, body) = answer.into_parts();
        let read = Limited::new(body, bytes_max).collect().await;
        let body = read.map_err(|source| {
            if source.is::<LengthLimitError>() {
                ExchangeError::TooLong { bytes_max }
            } else {
                ExchangeError::Body { source }
            }
        })?;
        Ok(Exchanged {
            status: head.status,
            headers: head.headers,
            body: body.to_bytes(),
        })
    };
    match tokio::time::timeout(answer_max, whole).await {
        Ok(outcome) => outcome,
        Err(_) => Err(TransportError::Late(answer_max).into()),
    }
}

/// Sends a request and waits for the head of its answer, at most `answer_max`. Nothing is done with the rest, so it may be too
/// long, too slow or broken: up to `bytes_max` of it is read, within the same time, and then the connection serves again.
///
/// # Errors
/// See [`TransportError`].
pub(crate) async fn answered(
    transport: &Transport,
    request: Request<Full<Bytes>>,
    answer_max: Duration,
    bytes_max: usize,
) -> Result<(StatusCode, HeaderMap), TransportError> {
    let end = Instant::now() + answer_max;
    let answer = timeout_at(end, transport.send(request)).await;
    let answer = answer.map_err(|_| TransportError::Late(answer_max))??;
    let (head, body) = answer.into_parts();
    // What was asked is done or not done by now.
    drop(timeout_at(end, Limited::new(body, bytes_max).collect()).await);
    Ok((head.status, head.headers))
}
