//! One request and its whole answer, within limits. For GitLab, and for whoever else is told something.

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use rollout::Duration;

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
