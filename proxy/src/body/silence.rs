//! How long an answer may keep silent in its middle, and how long it may last when its endpoint has left the table.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use tokio::time::Instant;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::{AnswerFault, UploadWatch};
use crate::headers;
use crate::upstream::Connection;

/// An answer that lasts longer is looked after should its endpoint leave the table. Hardly one does, and for each of the
/// others that would cost a lock which all threads share.
const LONG_AFTER: Duration = Duration::from_secs(5);

/// Longest silences in the middle of what is passed on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SilenceMax {
    /// Of an endpoint that answers.
    pub(crate) answer: Duration,
    /// Of streams, on which both sides may well wait for something to happen.
    pub(crate) stream: Duration,
}

impl SilenceMax {
    /// That for an answer with this head.
    pub(crate) fn of(self, has_length: bool, headers: &HeaderMap) -> Duration {
        if !has_length && is_stream(headers) {
            self.stream
        } else {
            self.answer
        }
    }
}

/// Whether the answer is a stream by its nature: of server-sent events, or of gRPC.
fn is_stream(headers: &HeaderMap) -> bool {
    const EVENTS: &[u8] = b"text/event-stream";
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let kind = kind.and_then(|kind| kind.get(..EVENTS.len()));
    kind.is_some_and(|kind| kind.eq_ignore_ascii_case(EVENTS)) || headers::is_grpc(headers)
}

/// The watch over an answer on its way. It costs something only while a piece is waited for.
#[derive(Debug)]
pub(crate) struct Silence {
    max: Duration,
    /// When the next piece must be here, if it is waited for.
    until: Option<Instant>,
    /// From when on the answer is a long one.
    long_from: Option<Instant>,
    /// For a long one: when the time of its endpoint is over.
    gone: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// How far the request's body was when the silence began.
    parts: u64,
}

impl Silence {
    /// Of an answer that may be silent for so long.
    pub(crate) fn new(max: Duration) -> Self {
        Self {
            max,
            until: None,
            long_from: None,
            gone: None,
            parts: 0,
        }
    }

    /// A piece is here.
    pub(super) fn broken(&mut self) {
        self.until = None;
    }

    /// While a piece is waited for: whether it has been for too long, or nothing more is to come from there.
    pub(super) fn poll_over(
        &mut self,
        connection: &mut Connection,
        upload: Option<&UploadWatch>,
        context: &mut Context<'_>,
    ) -> Poll<AnswerFault> {
        let (mut until, long_from) = match (self.until, self.long_from) {
            (Some(until), Some(long_from)) => (until, long_from),
            (_, long_from) => {
                let now = Instant::now();
                self.parts = upload.map_or(0, UploadWatch::parts);
                let until = *self.until.insert(now + self.max);
                let long_from = long_from.unwrap_or(now + LONG_AFTER);
                self.long_from = Some(long_from);
                (until, long_from)
            }
        };
        loop {
            let is_long = self.gone.is_some();
            let next = if is_long { until } else { until.min(long_from) };
            if connection.poll_deadline(next, context).is_pending() {
                break;
            }
            if next == until {
                let parts = upload.map_or(0, UploadWatch::parts);
                if parts == self.parts {
                    // A body that the client does not go on with may be what the endpoint waits for.
                    let is_clients = upload.is_some_and(UploadWatch::is_waiting_for_client);
                    return Poll::Ready(if is_clients {
                        AnswerFault::Idle
                    } else {
                        AnswerFault::Stopped
                    });
                }
                self.parts = parts;
                until = *self.until.insert(Instant::now() + self.max);
            } else {
                self.gone = Some(Box::pin(connection.peer().gone()));
            }
        }
        match &mut self.gone {
            Some(gone) => gone
                .as_mut()
                .poll(context)
                .map(|()| AnswerFault::of_endpoint_gone()),
            None => Poll::Pending,
        }
    }
}
