//! Endpoints as the proxy sees them: connections, load, health.
//!
//! Each endpoint keeps its idle connections, last used first, apart for each worker: a connection stays on the thread
//! that opened it. Nobody drives a connection but the request that uses it, so an answer takes no turn through another
//! task. A connection is given a request only while it is ready for one; a request that was not written comes back to
//! the caller, so nothing is sent twice behind its back. Those of HTTP/2 are shared, and move by themselves.

mod h2;
mod peers;
mod shared;
mod wire;

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use friday_tls::Trouble;
use http::uri::Scheme;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use proxy_api::{Endpoint, Outcome, Protocol};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tracing::{debug, info, warn};

use crate::body::{ClientFault, Outgoing};
use crate::lock;
use crate::socket::{FullWindow, Socket};
use crate::stream::Stream;
use crate::tls::Asking;
pub(crate) use peers::{PeerKey, Peers};
pub(crate) use shared::Seat;
use shared::SharedWires;
pub(crate) use wire::Connection;
use wire::Wire;

/// Longest time a connection is kept without work. Servers close idle connections too (gunicorn after 2 s, Node.js and
/// uvicorn after 5 s), and a request written at that moment is lost: so we let go first.
const IDLE_MAX: Duration = Duration::from_millis(1_500);

/// Most idle connections a worker keeps for one endpoint; what a burst opened beyond it is closed.
const IDLE_CONNECTIONS_MAX: usize = 256;

/// So many requests in a row without an answer in time, and an endpoint is avoided. One alone may be a slow request.
const TIMEOUTS_MAX: u32 = 3;

/// For how long. As long as the default wait for an answer: a process that hangs is ended by its orchestrator sooner.
const AVOIDED_FOR: Duration = Duration::from_secs(10);

/// Most bytes of a connection that are held on their way, in either direction, and so the longest head of an answer.
/// The HTTP library would take 400 KiB: pieces that large the allocator keeps apart, each in pages of its own, and
/// large bodies grew the process by up to 12 MiB.
const BUFFER_BYTES_MAX: usize = 128 << 10;

/// Between two looks at endpoints that refused a connection.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);

/// Between two signs of life asked of the program at the other end of a shared connection, while it is silent about the requests
/// that it has. Servers of gRPC end the connections of clients that ask more often than every five minutes, with all the streams on
/// them (`too_many_pings`); whether the machine is there the kernel asks.
const H2_PING_INTERVAL: Duration = Duration::from_secs(330);

/// Longest wait for such a sign of life.
const H2_PING_WAIT_MAX: Duration = Duration::from_secs(5);

/// Longest wait for a connection to be let go by HTTP after it was upgraded.
const UPGRADE_WAIT_MAX: Duration = Duration::from_secs(1);

/// Longest wait for a probe's connection, as long as the default for requests.
const PROBE_WAIT_MAX: Duration = Duration::from_secs(1);

/// Most probes at the same time: a thousand dead endpoints must not cost a thousand sockets.
const PROBES_MAX: usize = 64;

/// Why a request got no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No connection, so nothing was sent, or the endpoint said that it did nothing with it: the request is still here.
    Connect(Box<Request<Outgoing>>),
    /// The endpoint said that it did nothing with it (RFC 9113, 8.7), and too much of its body has gone by.
    Refused,
    /// The connection broke.
    Reset,
    /// No head of an answer in time.
    Timeout,
    /// The client's body failed; the upstream is not to blame.
    Client(ClientFault),
}

impl Failure {
    /// What is counted against the release; `None` if it is the client's fault.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Connect(_) | Self::Refused => Some(Outcome::Connect),
            Self::Reset => Some(Outcome::Reset),
            Self::Timeout => Some(Outcome::Timeout),
            Self::Client(_) => None,
        }
    }
}

/// Connections without work. Boxed: each is some 700 bytes, and moves with every request.
type IdleWires = Vec<Box<Wire>>;

/// How connections to an endpoint are made.
#[derive(Debug, Clone, Default)]
pub(crate) struct Dial {
    pub(crate) protocol: Protocol,
    pub(crate) tls: Option<Asking>,
}

impl Dial {
    /// HTTP/1.1 by TLS.
    pub(crate) fn by_tls(asking: Asking) -> Self {
        Self {
            tls: Some(asking),
            ..Self::default()
        }
    }

    /// Another number when the files of its TLS had other contents; 0 without any.
    pub(crate) fn files(&self) -> u64 {
        self.tls.as_ref().map_or(0, Asking::files)
    }

    fn scheme(&self) -> Scheme {
        match self.tls {
            Some(_) => Scheme::HTTPS,
            None => Scheme::HTTP,
        }
    }
}

/// One endpoint of one release on one side of one route.
pub(crate) struct Peer {
    address: Endpoint,
    in_flight: AtomicU32,
    healthy: AtomicBool,
    /// Requests in a row that got no answer in time.
    timeouts: AtomicU32,
    /// Until when it is avoided for them.
    avoided_until: Mutex<Option<Instant>>,
    dial: Dial,
    /// Why TLS was not agreed on the last time, if that was it.
    trouble: Mutex<Option<Trouble>>,
    /// For HTTP/2 the connections of each worker, which its requests share.
    shared: Box<[Arc<SharedWires>]>,
    leaving: Mutex<Leaving>,
    /// What broke off after it left the table and was not told yet.
    broken_off: AtomicU32,
    /// Connections without work by worker, last used last. Only the watch takes the lock of another worker.
    idle: Box<[Mutex<IdleWires>]>,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("address", &self.address)
            .field("in_flight", &self.in_flight)
            .field("healthy", &self.healthy)
            .finish_non_exhaustive()
    }
}

impl Peer {
    /// An endpoint nothing is known of yet: it counts as healthy. `workers` is how many threads may send to it.
    pub(crate) fn new(address: Endpoint, dial: Dial, workers: usize) -> Self {
        Self {
            address,
            dial,
            shared: (0..workers.max(1)).map(|_| Arc::default()).collect(),
            leaving: Mutex::default(),
            broken_off: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
            healthy: AtomicBool::new(true),
            timeouts: AtomicU32::new(0),
            avoided_until: Mutex::default(),
            trouble: Mutex::default(),
            idle: (0..workers.max(1)).map(|_| Mutex::default()).collect(),
        }
    }

    fn idle(&self, worker: usize) -> &Mutex<IdleWires> {
        &self.idle[worker % self.idle.len()]
    }

    /// Its address.
    pub(crate) fn address(&self) -> &Endpoint {
        &self.address
    }

    /// Requests sent to it that have no end yet.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Whether it took the last connection that was tried, and is not avoided for being silent.
    pub(crate) fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Acquire)
    }

    /// What was wrong with TLS when the last connection was tried, if that was it.
    pub(crate) fn trouble(&self) -> Option<Trouble> {
        lock(&self.trouble).clone()
    }

    /// Counts a request in until the lease is dropped.
    pub(crate) fn lease(self: &Arc<Self>) -> Lease {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        Lease {
            peer: Arc::clone(self),
        }
    }

    /// Sends a request from a worker and waits for the head of the answer, as long as `response_wait_max` from `now` on
    /// or without any progress of the request's body.
    ///
    /// # Cancel safety
    /// Dropped, it closes the connection it was using.
    ///
    /// # Errors
    /// See [`Failure`].
    pub(crate) async fn send(
        self: &Arc<Self>,
        worker: usize,
        mut request: Box<Request<Outgoing>>,
        now: Instant,
        connect_wait_max: Duration,
        response_wait_max: Duration,
    ) -> Result<(Response<Incoming>, Connection), Failure> {
        let upload = request.body().watch();
        if self.dial.protocol == Protocol::H2 {
            let sent = self.send_h2(
                worker,
                *request,
                connect_wait_max,
                response_wait_max,
                upload,
            );
            return Box::pin(sent).await;
        }
        let deadline = now + response_wait_max;
        let full_window = request.body().full_window();
        loop {
            let (mut wire, is_fresh) = match poll_fn(|c| self.poll_idle(worker, now, c)).await {
                Some(wire) => (wire, false),
                // Boxed, here and wherever else few requests come by: a request's future is moved about, and has room for
                // all that it may await.
                None => match Box::pin(self.connect_h1(connect_wait_max)).await {
                    Some(wire) => (wire, true),
                    None => return Err(Failure::Connect(request)),
                },
            };
            wire.set_full_window(full_window);
            let answer = wire.exchange(request, deadline, response_wait_max, upload.as_deref());
            match answer.await {
                Ok(response) => {
                    self.answered(true);
                    return Ok((response, Connection::alone(wire, self, worker)));
                }
                // Not written: the connection was closed just then. There is always a fresh one to end this.
                Err(Failure::Connect(unsent)) if !is_fresh => request = unsent,
                Err(failure) => {
                    if matches!(failure, Failure::Timeout) {
                        self.answered(false);
                    }
                    if wire.is_lost {
                        self.set_healthy(false, &"its machine shows no sign of life");
                    }
                    debug!(endpoint = %self.address, ?failure, "an upstream did not answer");
                    return Err(failure);
                }
            }
        }
    }

    /// An idle connection that is ready for a request; `None` if there is none. Never pending.
    fn poll_idle(
        &self,
        worker: usize,
        now: Instant,
        context: &mut Context<'_>,
    ) -> Poll<Option<Box<Wire>>> {
        loop {
            let Some(mut wire) = lock(self.idle(worker)).pop() else {
                return Poll::Ready(None);
            };
            // Driven once, it hears if the other side has closed it.
            wire.drive(context);
            if wire.is_young(now) && wire.sender.is_ready() {
                return Poll::Ready(Some(wire));
            }
        }
    }

    /// A new connection, or `None`; then the endpoint counts as unhealthy, if it `is_needed`.
    async fn connect(
        &self,
        wait_max: Duration,
        is_needed: bool,
    ) -> Option<(Socket, TokioIo<Stream>)> {
        let connecting = async {
            let stream = TcpStream::connect(self.address.as_str()).await?;
            // Small heads must not wait for an acknowledgement. Without it things are slower, not wrong.
            drop(stream.set_nodelay(true));
            let socket = Socket::new(stream);
            socket.break_when_lifeless();
            let stream = match &self.dial.tls {
                None => Stream::Plain(socket.clone()),
                Some(tls) => tls.connect(socket.clone()).await?,
            };
            Ok::<_, io::Error>((socket, stream))
        };
        match timeout(wait_max, connecting).await {
            Ok(Ok((socket, stream))) => {
                if self.dial.tls.is_some() {
                    lock(&self.trouble).take();
                }
                self.set_healthy(true, &"it takes connections");
                Some((socket, TokioIo::new(stream)))
            }
            Ok(Err(error)) if !is_needed => {
                debug!(endpoint = %self.address, %error, "no further connection");
                None
            }
            Err(elapsed) if !is_needed => {
                debug!(endpoint = %self.address, %elapsed, "no further connection");
                None
            }
            Ok(Err(error)) => {
                let trouble = Trouble::of(&error);
                match &trouble {
                    Some(trouble) => self.set_healthy(false, trouble),
                    None => self.set_healthy(false, &error),
                }
                *lock(&self.trouble) = trouble;
                None
            }
            Err(elapsed) => {
                self.set_healthy(false, &elapsed);
                None
            }
        }
    }

    async fn connect_h1(&self, wait_max: Duration) -> Option<Box<Wire>> {
        let (socket, stream) = self.connect(wait_max, true).await?;
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(BUFFER_BYTES_MAX)
            .handshake(stream)
            .await
            .ok()?;
        let now = Instant::now();
        Some(Box::new(Wire {
            sender,
            driver: Some(driver),
            has_ended: false,
            is_lost: false,
            is_busy: false,
            socket,
            full_window: FullWindow::Breaks,
            timer: Box::pin(sleep_until(now)),
            idle_since: now,
        }))
    }

    /// Takes note of an answer, or of none in time. An endpoint that is silent again and again takes connections all the
    /// same, so only time brings it back: then a single silence more sends it away again.
    fn answered(&self, in_time: bool) {
        if in_time {
            if self.timeouts.load(Ordering::Relaxed) > 0 {
                self.timeouts.store(0, Ordering::Relaxed);
            }
            return;
        }
        let timeouts = self.timeouts.fetch_add(1, Ordering::Relaxed) + 1;
        if timeouts >= TIMEOUTS_MAX {
            let mut until = lock(&self.avoided_until);
            if until.is_none() {
                *until = Some(Instant::now() + AVOIDED_FOR);
                warn!(
                    endpoint = %self.address,
                    timeouts,
                    seconds = AVOIDED_FOR.as_secs(),
                    "endpoint does not answer in time: avoided for a while"
                );
                self.healthy.store(false, Ordering::Release);
            }
        }
    }

    /// Whether it is to be left alone still; lets it back when its time is over.
    fn is_avoided(&self, now: Instant) -> bool {
        let mut until = lock(&self.avoided_until);
        match *until {
            Some(time) if time > now => true,
            Some(_) => {
                *until = None;
                self.timeouts.store(TIMEOUTS_MAX - 1, Ordering::Relaxed);
                false
            }
            None => false,
        }
    }

    fn set_healthy(&self, healthy: bool, why: &dyn fmt::Display) {
        if healthy && lock(&self.avoided_until).is_some() {
            return;
        }
        if self.healthy.swap(healthy, Ordering::AcqRel) != healthy {
            if healthy {
                info!(endpoint = %self.address, "endpoint is back");
            } else {
                warn!(endpoint = %self.address, error = %why, "endpoint takes no connection: avoided until it does");
                self.close_idle();
            }
        }
    }

    fn close_idle(&self) {
        for idle in &self.idle {
            lock(idle).clear();
        }
        for shared in &self.shared {
            shared.close();
        }
    }

    /// Whether an endpoint that took no connection takes one now; then it counts as healthy again.
    pub(crate) async fn probe(&self) -> bool {
        self.connect(PROBE_WAIT_MAX, true).await.is_some()
    }

    fn close_old_connections(&self, now: Instant) {
        for idle in &self.idle {
            lock(idle).retain(|wire| !wire.has_ended && wire.is_young(now));
        }
        for shared in &self.shared {
            shared.close_spare(now);
        }
    }

    /// It is in the table, or again.
    fn stays(&self) {
        let mut leaving = lock(&self.leaving);
        if leaving.since.take().is_some() && leaving.over.is_cancelled() {
            leaving.over = CancellationToken::new();
        }
    }

    /// It is not in the table any more.
    fn leaves(&self, now: Instant) {
        lock(&self.leaving).since.get_or_insert(now);
    }

    /// Ends what it still has to do, if it left the table so long ago. Whether that is so for the first time.
    fn ends(&self, now: Instant, after: Duration) -> bool {
        let leaving = lock(&self.leaving);
        let is_over = leaving
            .since
            .is_some_and(|since| now.saturating_duration_since(since) >= after);
        let is_first = is_over && !leaving.over.is_cancelled();
        if is_first {
            leaving.over.cancel();
        }
        is_first
    }

    /// Something in flight here broke off. It is taken note of if the table has this endpoint no more: then its task was ended
    /// with work left.
    pub(crate) fn broke_off(&self) {
        if lock(&self.leaving).since.is_some() {
            self.broken_off.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until its time is over, because it left the table.
    pub(crate) fn gone(&self) -> WaitForCancellationFutureOwned {
        lock(&self.leaving).over.clone().cancelled_owned()
    }
}

/// How an endpoint takes its leave: what it has in flight when no table has it any more finishes, up to a limit.
#[derive(Debug, Default)]
struct Leaving {
    /// When it was first missing in the table.
    since: Option<Instant>,
    over: CancellationToken,
}

/// A request in flight at an endpoint.
#[derive(Debug)]
pub(crate) struct Lease {
    peer: Arc<Peer>,
}

impl Lease {
    /// Where the request is.
    pub(crate) fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.peer.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}
