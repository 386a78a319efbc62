//! A connection to an endpoint, driven by the request that uses it.

use std::error::Error;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tracing::debug;

use super::{Failure, IDLE_CONNECTIONS_MAX, IDLE_MAX, Peer, Seat, UPGRADE_WAIT_MAX};
use crate::body::{ClientFault, Outgoing, UploadWatch};
use crate::lock;
use crate::socket::{FullWindow, Socket};
use crate::stream::{Stream, Watched};

/// A connection to an endpoint. It moves only while it is driven.
pub(super) struct Wire {
    pub(super) sender: http1::SendRequest<Outgoing>,
    /// Gone when a request still waited for it at its end: so the request comes back.
    pub(super) driver: Option<http1::Connection<TokioIo<Stream>, Outgoing>>,
    pub(super) has_ended: bool,
    /// Whether it ended because nobody is there any more.
    pub(super) is_lost: bool,
    /// Whether a request was given to it whose answer was not read to its end.
    pub(super) is_busy: bool,
    pub(super) socket: Socket,
    /// What the socket was told last.
    pub(super) full_window: FullWindow,
    /// Set once for many requests: see [`Wire::poll_deadline`].
    pub(super) timer: Pin<Box<Sleep>>,
    pub(super) idle_since: Instant,
}

impl Drop for Wire {
    fn drop(&mut self) {
        // A request that is given up must not arrive later.
        if self.is_busy && !self.has_ended && self.driver.is_some() {
            self.socket.break_when_closed();
        }
    }
}

impl Wire {
    /// Reads and writes what can be read and written now, and asks to be woken for more.
    pub(super) fn drive(&mut self, context: &mut Context<'_>) {
        if !self.has_ended
            && let Some(driver) = &mut self.driver
            && let Poll::Ready(ended) = Pin::new(driver).poll(context)
        {
            self.has_ended = true;
            if let Err(error) = ended {
                self.is_lost = is_nobody_there(&error);
                debug!(%error, "a connection to an upstream ended");
            }
        }
    }

    /// Tells the socket what the next request needs, if that is something else: mostly it is not.
    pub(super) fn set_full_window(&mut self, full_window: FullWindow) {
        if self.full_window != full_window {
            self.socket.set_full_window(full_window);
            self.full_window = full_window;
        }
    }

    pub(super) fn is_young(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.idle_since) < IDLE_MAX
    }

    /// Sends the request and waits for the head of its answer.
    pub(super) async fn exchange(
        &mut self,
        request: Box<Request<Outgoing>>,
        mut deadline: Instant,
        wait_max: Duration,
        upload: Option<&UploadWatch>,
    ) -> Result<Response<Incoming>, Failure> {
        self.is_busy = true;
        let mut answer = pin!(self.sender.try_send_request(*request));
        let mut parts = upload.map(UploadWatch::parts);
        let answer = poll_fn(|context| {
            self.drive(context);
            if let Poll::Ready(answer) = answer.as_mut().poll(context) {
                return Poll::Ready(Ok(answer));
            }
            if self.has_ended {
                self.driver = None;
                return match answer.as_mut().poll(context) {
                    Poll::Ready(answer) => Poll::Ready(Ok(answer)),
                    Poll::Pending => Poll::Ready(Err(Failure::Reset)),
                };
            }
            while self.poll_deadline(deadline, context).is_ready() {
                if let Err(failure) = still_coming(upload, &mut parts) {
                    return Poll::Ready(Err(failure));
                }
                deadline = Instant::now() + wait_max;
            }
            Poll::Pending
        })
        .await?;
        answer.map_err(|failed| {
            // Whoever waits for an answer is told why there is none; the driver keeps quiet about it then.
            self.is_lost |= is_nobody_there(failed.error());
            failure_of(failed, upload)
        })
    }

    /// See [`poll_deadline`]. Its timer serves many requests.
    pub(super) fn poll_deadline(
        &mut self,
        deadline: Instant,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        poll_deadline(&mut self.timer, deadline, context)
    }
}

/// Whether the deadline has passed; if not, it asks to be woken by then. A timer that still waits for an earlier deadline,
/// such as that of the request before, stays as it is and is set again when it rings: that costs less than setting it each time.
fn poll_deadline(
    timer: &mut Pin<Box<Sleep>>,
    deadline: Instant,
    context: &mut Context<'_>,
) -> Poll<()> {
    if timer.deadline() > deadline {
        timer.as_mut().reset(deadline);
    }
    while timer.as_mut().poll(context).is_ready() {
        if Instant::now() >= deadline {
            return Poll::Ready(());
        }
        timer.as_mut().reset(deadline);
    }
    Poll::Pending
}

/// Whether the system gave a connection up because the other side's machine cannot be reached: no program ended it.
fn is_nobody_there(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref());
    cause.is_some_and(|cause: &io::Error| {
        matches!(
            cause.kind(),
            io::ErrorKind::TimedOut
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
        )
    })
}

/// Once the time for an answer is over: whether the request's body moved since, so that one may wait on.
pub(super) fn still_coming(
    upload: Option<&UploadWatch>,
    parts: &mut Option<u64>,
) -> Result<(), Failure> {
    let now = upload.map(UploadWatch::parts);
    match upload {
        // A long upload on its way is no silence.
        Some(_) if now != *parts => {
            *parts = now;
            Ok(())
        }
        Some(upload) if upload.is_waiting_for_client() => {
            Err(Failure::Client(ClientFault::Stalled))
        }
        Some(_) | None => Err(Failure::Timeout),
    }
}

pub(super) fn failure_of(
    mut failed: TrySendError<Request<Outgoing>>,
    upload: Option<&UploadWatch>,
) -> Failure {
    match failed.take_message() {
        Some(unsent) => Failure::Connect(Box::new(unsent)),
        None => match upload.and_then(UploadWatch::fault) {
            Some(fault) => Failure::Client(fault),
            None => Failure::Reset,
        },
    }
}

/// A connection whose answer is still being read.
pub(crate) struct Connection {
    /// Its own alone; `None` for HTTP/2, where many requests share one that drives itself.
    pub(super) wire: Option<Box<Wire>>,
    /// Its place on one that is shared, until it is dropped.
    _seat: Option<Arc<Seat>>,
    /// In place of the wire's, once it is needed.
    pub(super) timer: Option<Pin<Box<Sleep>>>,
    pub(super) peer: Arc<Peer>,
    pub(super) worker: usize,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("peer", &self.peer.address)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// One that is not shared.
    pub(super) fn alone(wire: Box<Wire>, peer: &Arc<Peer>, worker: usize) -> Self {
        Self {
            wire: Some(wire),
            _seat: None,
            timer: None,
            peer: Arc::clone(peer),
            worker,
        }
    }

    /// A seat on one that is shared.
    pub(super) fn on_seat(seat: Arc<Seat>, peer: &Arc<Peer>, worker: usize) -> Self {
        Self {
            wire: None,
            _seat: Some(seat),
            timer: None,
            peer: Arc::clone(peer),
            worker,
        }
    }

    /// The endpoint that it leads to.
    pub(crate) fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// Whether the deadline has passed; if not, it asks to be woken by then.
    pub(crate) fn poll_deadline(
        &mut self,
        deadline: Instant,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        match &mut self.wire {
            Some(wire) => wire.poll_deadline(deadline, context),
            None => {
                let timer = || Box::pin(sleep_until(deadline));
                poll_deadline(self.timer.get_or_insert_with(timer), deadline, context)
            }
        }
    }

    /// Moves the answer's body on: to be called before each look at it.
    pub(crate) fn drive(&mut self, context: &mut Context<'_>) {
        if let Some(wire) = &mut self.wire {
            wire.drive(context);
        }
    }

    /// Keeps the connection for the next request. Only after request and answer were read to their ends; dropping it
    /// instead closes it.
    pub(crate) fn keep(self) {
        let Some(mut wire) = self.wire.filter(|wire| !wire.has_ended) else {
            return;
        };
        wire.is_busy = false;
        wire.idle_since = Instant::now();
        let mut idle = lock(self.peer.idle(self.worker));
        if idle.len() < IDLE_CONNECTIONS_MAX {
            idle.push(wire);
        }
    }

    /// The bare connection, after the endpoint has said that it speaks another protocol from here on.
    pub(crate) async fn upgraded(self) -> Option<Watched> {
        let mut wire = self.wire?;
        let over = poll_fn(|context| {
            wire.drive(context);
            if wire.has_ended {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        });
        // It ends with the answer that said so; the limit is for one that does not.
        timeout(UPGRADE_WAIT_MAX, over).await.ok()?;
        // From here on the two sides may let each other wait as long as they like.
        wire.set_full_window(FullWindow::Borne);
        let parts = wire.driver.take()?.into_parts();
        let stream = Watched::new(parts.io.into_inner(), Arc::default());
        Some(stream.rewound(parts.read_buf))
    }
}
