//! Bodies on their way: what goes to an upstream and what comes back.
//!
//! Nothing is collected but what may have to be repeated. Back-pressure passes through: a body is polled only when the
//! other side takes more.

mod loan;
mod silence;

use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};

use crate::forward::Relay;
use crate::headers;
use crate::socket::FullWindow;
use crate::upstream::{Connection, Seat};
pub(crate) use loan::Loan;
pub(crate) use silence::{Silence, SilenceMax};

/// Longest wait for the next part of a body that is collected, so that a silent client does not hold its place for
/// ever. Three times the longest retransmission of TCP on a bad mobile line, about 10 s.
const PART_WAIT_MAX: Duration = Duration::from_secs(30);

/// Longest wait for a body that is only to be copied: what a client sends in one go is here by then, and nobody notices.
const COPY_WAIT_MAX: Duration = Duration::from_millis(5);

/// Longest body that finds room on a machine whose program does not read it: Linux begins with 64 KiB for each connection,
/// and the head needs some of that.
const UNREAD_BYTES_MAX: u64 = 32 << 10;

/// What went wrong with a body on the client's side: nothing that an upstream could be blamed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ClientFault {
    /// Longer than the route allows.
    #[error("the request's body is longer than the route allows")]
    TooLarge,
    /// It broke off.
    #[error("the request's body broke off")]
    Broken,
    /// It stopped coming.
    #[error("the request's body stopped coming")]
    Stalled,
}

/// Why an answer ends before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnswerFault {
    /// Its connection broke, or what came was no HTTP.
    #[error("the upstream's answer broke off")]
    Broken(#[source] hyper::Error),
    /// Nothing more came, for too long.
    #[error("the upstream's answer stopped coming")]
    Stopped,
    /// As before, while the upstream may have waited for more of the request's body, which did not come either.
    #[error("neither the request's body nor its answer went on")]
    Idle,
    /// Its endpoint left the table, and the time for what was in flight is over.
    #[error("the upstream left")]
    Gone(#[source] h2::Error),
}

impl AnswerFault {
    fn of_endpoint_gone() -> Self {
        // What clients of HTTP/2 are told: that nobody needs the stream any more, not that we failed.
        Self::Gone(h2::Reason::CANCEL.into())
    }
}

/// How long a body is waited for before any of it is sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Collect {
    /// Not at all: it passes as it comes.
    Nothing,
    /// For what comes at once: to be copied, if that is all.
    AtOnce,
    /// Until all of it is here, as it may have to be repeated.
    Whole,
}

/// The body of a request to an upstream.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// Whole, so that it can be sent again.
    Whole {
        /// What is still to be sent.
        data: Option<Bytes>,
        /// What follows it. Boxed: hardly a request has any, and all are moved about.
        trailers: Option<Box<HeaderMap>>,
    },
    /// As the client sends it.
    Stream(Box<Upload>),
    /// The same while a connection of HTTP/2 has it.
    Lent(Loan),
}

impl Outgoing {
    /// A body without trailers.
    pub(crate) fn whole(data: Bytes) -> Self {
        Self::Whole {
            data: Some(data).filter(|data| !data.is_empty()),
            trailers: None,
        }
    }

    /// The same body once more, if it is all here.
    pub(crate) fn again(&self) -> Option<Self> {
        match self {
            Self::Whole { data, trailers } => Some(Self::Whole {
                data: data.clone(),
                trailers: trailers.clone(),
            }),
            Self::Stream(_) | Self::Lent(_) => None,
        }
    }

    /// Lends a body that passes as it comes to a connection, for a request that has that place on it. `None` if it is whole.
    pub(crate) fn lend(&mut self, seat: &Arc<Seat>) -> Option<Loan> {
        let lendable = match mem::replace(self, Self::whole(Bytes::new())) {
            // Nothing of it was sent, and the connection that had it is gone.
            Self::Lent(loan) => match loan.clone().take_back() {
                Some(body) => body,
                None => {
                    *self = Self::Lent(loan);
                    return None;
                }
            },
            other @ (Self::Whole { .. } | Self::Stream(_)) => other,
        };
        match lendable {
            Self::Stream(upload) => {
                let loan = Loan::new(upload, seat);
                *self = Self::Lent(loan.clone());
                Some(loan)
            }
            other @ (Self::Whole { .. } | Self::Lent(_)) => {
                *self = other;
                None
            }
        }
    }

    /// What is to become of its connection when the upstream's program does not read it.
    pub(crate) fn full_window(&self) -> FullWindow {
        match self.size_hint().exact() {
            Some(bytes) if bytes <= UNREAD_BYTES_MAX => FullWindow::Breaks,
            Some(_) | None => FullWindow::Borne,
        }
    }

    /// Where the client's part of it can be watched; `None` if nothing depends on the client any more.
    pub(crate) fn watch(&self) -> Option<Arc<UploadWatch>> {
        match self {
            Self::Whole { .. } => None,
            Self::Stream(upload) => Some(Arc::clone(&upload.watch)),
            Self::Lent(loan) => Some(Arc::clone(loan.watch())),
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = ClientFault;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ClientFault>>> {
        match self.get_mut() {
            Self::Whole { data, trailers } => Poll::Ready(
                data.take()
                    .map(Frame::data)
                    .or_else(|| trailers.take().map(|trailers| Frame::trailers(*trailers)))
                    .map(Ok),
            ),
            Self::Stream(upload) => upload.poll_frame(context),
            Self::Lent(loan) => loan.poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole { data, trailers } => data.is_none() && trailers.is_none(),
            Self::Stream(upload) => upload.is_end_stream(),
            Self::Lent(loan) => loan.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            // With trailers the length must stay open: they only travel behind chunks.
            Self::Whole {
                trailers: Some(_), ..
            } => SizeHint::default(),
            Self::Whole { data, .. } => {
                SizeHint::with_exact(data.as_ref().map_or(0, |data| data.len() as u64))
            }
            Self::Stream(upload) => upload.size_hint(),
            Self::Lent(loan) => loan.size_hint(),
        }
    }
}

/// How far the client is with its body.
#[derive(Debug, Default)]
pub(crate) struct UploadWatch {
    parts: AtomicU64,
    ended: AtomicBool,
    waiting_for_client: AtomicBool,
    /// 0, or 1 + the discriminant of a [`ClientFault`].
    fault: AtomicU8,
}

impl UploadWatch {
    /// Grows with each part that was taken.
    pub(crate) fn parts(&self) -> u64 {
        self.parts.load(Ordering::Acquire)
    }

    /// Whether all of it was taken by the connection to the upstream.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Whether the upstream would take more, but the client does not send.
    pub(crate) fn is_waiting_for_client(&self) -> bool {
        !self.has_ended() && self.waiting_for_client.load(Ordering::Acquire)
    }

    /// What the client did wrong, if anything.
    pub(crate) fn fault(&self) -> Option<ClientFault> {
        match self.fault.load(Ordering::Acquire) {
            1 => Some(ClientFault::TooLarge),
            2 => Some(ClientFault::Broken),
            _ => None,
        }
    }

    fn fail(&self, fault: ClientFault) -> ClientFault {
        let code = match fault {
            ClientFault::TooLarge => 1,
            ClientFault::Broken | ClientFault::Stalled => 2,
        };
        self.fault.store(code, Ordering::Release);
        fault
    }
}

/// A body that passes through as it comes.
#[derive(Debug)]
pub(crate) struct Upload {
    /// What was read already, in the hope that it would be all.
    ahead: Bytes,
    incoming: Incoming,
    /// How many bytes may still come.
    bytes_left: u64,
    watch: Arc<UploadWatch>,
}

impl Upload {
    /// The same with what went by of it in front again.
    fn rewound(mut self: Box<Self>, mut passed: Vec<u8>) -> Box<Self> {
        self.bytes_left += passed.len() as u64;
        passed.extend_from_slice(&self.ahead);
        self.ahead = passed.into();
        self.watch.ended.store(false, Ordering::Release);
        self
    }

    fn is_end_stream(&self) -> bool {
        self.ahead.is_empty() && self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.incoming.size_hint().exact() {
            Some(rest) => SizeHint::with_exact(rest + self.ahead.len() as u64),
            None => SizeHint::default(),
        }
    }

    fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ClientFault>>> {
        let frame = if self.ahead.is_empty() {
            match Pin::new(&mut self.incoming).poll_frame(context) {
                Poll::Pending => {
                    self.watch.waiting_for_client.store(true, Ordering::Release);
                    return Poll::Pending;
                }
                Poll::Ready(frame) => frame,
            }
        } else {
            Some(Ok(Frame::data(mem::take(&mut self.ahead))))
        };
        self.watch
            .waiting_for_client
            .store(false, Ordering::Release);
        self.watch.parts.fetch_add(1, Ordering::AcqRel);
        Poll::Ready(match frame {
            None => {
                self.watch.ended.store(true, Ordering::Release);
                None
            }
            Some(Err(_)) => Some(Err(self.watch.fail(ClientFault::Broken))),
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    headers::clean_trailers(trailers);
                }
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                match self.bytes_left.checked_sub(length) {
                    None => Some(Err(self.watch.fail(ClientFault::TooLarge))),
                    Some(left) => {
                        self.bytes_left = left;
                        // Nobody need ask again after the last part.
                        if self.ahead.is_empty() && self.incoming.is_end_stream() {
                            self.watch.ended.store(true, Ordering::Release);
                        }
                        Some(Ok(frame))
                    }
                }
            }
        })
    }
}

/// Takes the body of a request: whole if it is to be collected and is at most `replay_bytes_max` long, else as a stream
/// of at most `body_bytes_max`.
///
/// # Errors
/// The client broke off, stopped, or sent too much while the body was being collected.
pub(crate) async fn take(
    mut incoming: Incoming,
    collect: Collect,
    replay_bytes_max: u32,
    body_bytes_max: u64,
) -> Result<Outgoing, ClientFault> {
    if incoming.is_end_stream() {
        return Ok(Outgoing::whole(Bytes::new()));
    }
    let replay_bytes_max = u64::from(replay_bytes_max);
    let hint = incoming.size_hint();
    if hint.lower() > body_bytes_max {
        return Err(ClientFault::TooLarge);
    }
    // Copied: a part of one byte keeps the buffer of the connection that it was read into, and needs 32 for itself.
    let mut ahead = Vec::new();
    if collect != Collect::Nothing && hint.lower() <= replay_bytes_max {
        let at_once = Instant::now() + COPY_WAIT_MAX;
        loop {
            let deadline = match collect {
                Collect::Nothing | Collect::AtOnce => at_once,
                Collect::Whole => Instant::now() + PART_WAIT_MAX,
            };
            let frame = match timeout_at(deadline, incoming.frame()).await {
                Err(_) if collect == Collect::AtOnce => break,
                Err(_) => return Err(ClientFault::Stalled),
                Ok(Some(Err(_))) => return Err(ClientFault::Broken),
                Ok(Some(Ok(frame))) => frame,
                Ok(None) => return Ok(whole(ahead, None)),
            };
            match frame.into_data() {
                Ok(data) => {
                    append(&mut ahead, &data, replay_bytes_max);
                    if ahead.len() as u64 > body_bytes_max {
                        return Err(ClientFault::TooLarge);
                    }
                    if ahead.len() as u64 > replay_bytes_max {
                        break;
                    }
                }
                Err(frame) => {
                    let mut trailers = frame.into_trailers().ok();
                    if let Some(trailers) = &mut trailers {
                        headers::clean_trailers(trailers);
                    }
                    return Ok(whole(ahead, trailers));
                }
            }
        }
    }
    Ok(Outgoing::Stream(Box::new(Upload {
        ahead: ahead.into(),
        incoming,
        bytes_left: body_bytes_max,
        watch: Arc::default(),
    })))
}

/// Adds a part of a body. The buffer grows by doubling, but not beyond `bytes_max` for a body that is no longer than that.
fn append(buffer: &mut Vec<u8>, part: &[u8], bytes_max: u64) {
    let needed = buffer.len() + part.len();
    if needed > buffer.capacity() {
        let most = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        let capacity = (2 * buffer.capacity()).min(most).max(needed);
        buffer.reserve_exact(capacity - buffer.len());
    }
    buffer.extend_from_slice(part);
}

fn whole(data: Vec<u8>, trailers: Option<HeaderMap>) -> Outgoing {
    Outgoing::Whole {
        data: Some(Bytes::from(data)).filter(|data| !data.is_empty()),
        trailers: trailers.map(Box::new),
    }
}

/// The body of an upstream's answer, with the connection it comes by. At its end the connection is kept for the next
/// request; dropped before, it is closed.
#[derive(Debug)]
pub(crate) struct Download {
    incoming: Incoming,
    connection: Option<Connection>,
    pub(crate) upload: Option<Arc<UploadWatch>>,
    /// `None`: whoever reads it has a limit of its own.
    silence: Option<Silence>,
}

impl Download {
    /// What is to come by that connection; `upload` is the request's body, if it is still on its way.
    pub(crate) fn new(
        incoming: Incoming,
        connection: Connection,
        upload: Option<Arc<UploadWatch>>,
    ) -> Self {
        Self {
            incoming,
            connection: Some(connection),
            upload,
            silence: None,
        }
    }

    /// From here on there is a limit for the time between two pieces.
    pub(crate) fn limit(&mut self, silence: Silence) {
        self.silence = Some(silence);
    }

    fn ended(&mut self) {
        let sent = self.upload.as_ref().is_none_or(|upload| upload.has_ended());
        if let Some(connection) = self.connection.take().filter(|_| sent) {
            connection.keep();
        }
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = AnswerFault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerFault>>> {
        let this = &mut *self;
        if let Some(connection) = &mut this.connection {
            connection.drive(context);
        }
        let frame = match Pin::new(&mut this.incoming).poll_frame(context) {
            Poll::Ready(frame) => {
                if let Some(silence) = &mut this.silence {
                    silence.broken();
                }
                frame.map(|frame| frame.map_err(AnswerFault::Broken))
            }
            Poll::Pending => match (&mut this.silence, &mut this.connection) {
                (Some(silence), Some(connection)) => {
                    let upload = this.upload.as_deref();
                    Some(Err(ready!(silence.poll_over(connection, upload, context))))
                }
                (_, _) => return Poll::Pending,
            },
        };
        match &frame {
            // Trailers are always last. Nobody need ask again after the last part of a known length either.
            Some(Ok(frame)) if frame.is_data() && !this.incoming.is_end_stream() => {}
            Some(Ok(_)) | None => this.ended(),
            Some(Err(_)) => this.connection = None,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if self.incoming.is_end_stream() {
            self.ended();
        }
    }
}

/// The body of an answer to a client.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The proxy's own.
    Own(Option<Bytes>),
    /// An upstream's, counted at its end.
    Relay(Box<Relay>),
}

impl Answer {
    /// A text of the proxy's own.
    pub(crate) fn own(text: &'static str) -> Self {
        Self::Own(Some(Bytes::from_static(text.as_bytes())))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = AnswerFault;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerFault>>> {
        match self.get_mut() {
            Self::Own(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Relay(relay) => {
                let frame = ready!(Pin::new(&mut relay.download).poll_frame(context));
                relay.passed(frame.as_ref());
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(text) => text.is_none(),
            Self::Relay(relay) => relay.download.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(text) => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
            Self::Relay(relay) => relay.download.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_comes_in_small_parts_takes_no_more_memory_than_it_may() {
        let (length, max) = (64 << 10, 64 << 10);
        for size in [1, 3, 1_000, 40_000, length] {
            let mut buffer = Vec::new();
            let mut grown = 0;
            for part in vec![b'x'; length].chunks(size) {
                let before = buffer.capacity();
                append(&mut buffer, part, max);
                grown += usize::from(buffer.capacity() > before);
            }
            assert_eq!(
                (buffer.len(), buffer.capacity()),
                (length, length),
                "{size}"
            );
            assert!(grown <= 17, "{size}: moved {grown} times");
        }
        let mut longer = vec![b'x'; length];
        append(&mut longer, b"yz", max);
        assert_eq!(longer.len(), length + 2);
    }
}
