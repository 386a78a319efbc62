//! Endpoints as the proxy sees them: connections, load, health.
//!
//! Each endpoint keeps its idle connections, last used first, apart for each worker: a connection stays on the thread
//! that opened it. Nobody drives a connection but the request that uses it, so an answer takes no turn through another
//! task. A connection is given a request only while it is ready for one; a request that was not written comes back to
//! the caller, so nothing is sent twice behind its back.

use std::collections::HashMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt;
use http::header::{HOST, TRANSFER_ENCODING};
use http::uri::{Authority, Scheme, Uri};
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use proxy_api::{Arm, Endpoint, InFlight, Outcome, Protocol, Transport};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, Sleep, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::body::{ClientFault, Outgoing, UploadWatch};
use crate::lock;
use crate::socket::Socket;
use crate::stream::{Stream, Watched};
use crate::tls::Asking;

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

/// Between two signs of life asked of a shared connection, also while it has no requests: a dead one must be noticed
/// before a request needs it.
const H2_PING_INTERVAL: Duration = Duration::from_secs(10);

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
    /// No connection, so nothing was sent: the request is still here.
    Connect(Box<Request<Outgoing>>),
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
            Self::Connect(_) => Some(Outcome::Connect),
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
    /// For HTTP/2 the connection of each worker, which all its requests share.
    shared: Box<[Mutex<Option<http2::SendRequest<Outgoing>>>]>,
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
            shared: (0..workers.max(1)).map(|_| Mutex::default()).collect(),
            in_flight: AtomicU32::new(0),
            healthy: AtomicBool::new(true),
            timeouts: AtomicU32::new(0),
            avoided_until: Mutex::default(),
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
            let answer = wire.exchange(request, deadline, response_wait_max, upload.as_deref());
            match answer.await {
                Ok(response) => {
                    self.answered(true);
                    let connection = Connection {
                        wire: Some(wire),
                        peer: Arc::clone(self),
                        worker,
                    };
                    return Ok((response, connection));
                }
                // Not written: the connection was closed just then. There is always a fresh one to end this.
                Err(Failure::Connect(unsent)) if !is_fresh => request = unsent,
                Err(failure) => {
                    if matches!(failure, Failure::Timeout) {
                        self.answered(false);
                    }
                    debug!(endpoint = %self.address, ?failure, "an upstream did not answer");
                    return Err(failure);
                }
            }
        }
    }

    async fn send_h2(
        self: &Arc<Self>,
        worker: usize,
        request: Request<Outgoing>,
        connect_wait_max: Duration,
        response_wait_max: Duration,
        upload: Option<Arc<UploadWatch>>,
    ) -> Result<(Response<Incoming>, Connection), Failure> {
        let mut request = for_h2(request, &self.dial.scheme());
        loop {
            let shared = &self.shared[worker % self.shared.len()];
            let ready = lock(shared).clone().filter(|sender| sender.is_ready());
            let (mut sender, is_fresh) = match ready {
                Some(sender) => (sender, false),
                None => match Box::pin(self.connect_h2(connect_wait_max)).await {
                    Some(sender) => {
                        *lock(shared) = Some(sender.clone());
                        (sender, true)
                    }
                    None => return Err(Failure::Connect(Box::new(request))),
                },
            };
            let mut answer = pin!(sender.try_send_request(request));
            let mut parts = upload.as_deref().map(UploadWatch::parts);
            let answer = loop {
                match timeout(response_wait_max, &mut answer).await {
                    Ok(answer) => break answer,
                    Err(_) => {
                        still_coming(upload.as_deref(), &mut parts).inspect_err(|failure| {
                            if matches!(failure, Failure::Timeout) {
                                self.answered(false);
                            }
                        })?
                    }
                }
            };
            match answer {
                Ok(response) => {
                    self.answered(true);
                    let connection = Connection {
                        wire: None,
                        peer: Arc::clone(self),
                        worker,
                    };
                    return Ok((response, connection));
                }
                Err(failed) => match failure_of(failed, upload.as_deref()) {
                    Failure::Connect(unsent) if !is_fresh => {
                        lock(shared).take();
                        request = *unsent;
                    }
                    failure @ (Failure::Connect(_)
                    | Failure::Reset
                    | Failure::Timeout
                    | Failure::Client(_)) => {
                        debug!(endpoint = %self.address, ?failure, "an upstream did not answer");
                        return Err(failure);
                    }
                },
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

    /// A new connection, or `None`, and then the endpoint counts as unhealthy.
    async fn connect(&self, wait_max: Duration) -> Option<TokioIo<Stream>> {
        let connecting = async {
            let stream = TcpStream::connect(self.address.as_str()).await?;
            // Small heads must not wait for an acknowledgement. Without it things are slower, not wrong.
            drop(stream.set_nodelay(true));
            let stream = Socket::new(stream);
            match &self.dial.tls {
                None => Ok(Stream::Plain(stream)),
                Some(tls) => tls.connect(stream).await,
            }
        };
        match timeout(wait_max, connecting).await {
            Ok(Ok(stream)) => {
                self.set_healthy(true, &"it takes connections");
                Some(TokioIo::new(stream))
            }
            Ok(Err(error)) => {
                self.set_healthy(false, &error);
                None
            }
            Err(elapsed) => {
                self.set_healthy(false, &elapsed);
                None
            }
        }
    }

    async fn connect_h1(&self, wait_max: Duration) -> Option<Box<Wire>> {
        let stream = self.connect(wait_max).await?;
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
            timer: Box::pin(sleep_until(now)),
            idle_since: now,
        }))
    }

    async fn connect_h2(&self, wait_max: Duration) -> Option<http2::SendRequest<Outgoing>> {
        let stream = self.connect(wait_max).await?;
        let (sender, driver) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(H2_PING_INTERVAL)
            .keep_alive_timeout(H2_PING_WAIT_MAX)
            .handshake(stream)
            .await
            .ok()?;
        // Ends by itself: when all its senders are dropped, or when the other side closes.
        tokio::spawn(async move {
            if let Err(error) = driver.await {
                debug!(%error, "a connection to an upstream ended");
            }
        });
        Some(sender)
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
            lock(shared).take();
        }
    }

    /// Whether an endpoint that took no connection takes one now; then it counts as healthy again.
    pub(crate) async fn probe(&self) -> bool {
        self.connect(PROBE_WAIT_MAX).await.is_some()
    }

    fn close_old_connections(&self, now: Instant) {
        for idle in &self.idle {
            lock(idle).retain(|wire| !wire.has_ended && wire.is_young(now));
        }
    }
}

/// A connection to an endpoint. It moves only while it is driven.
struct Wire {
    sender: http1::SendRequest<Outgoing>,
    /// Gone when a request still waited for it at its end: so the request comes back.
    driver: Option<http1::Connection<TokioIo<Stream>, Outgoing>>,
    has_ended: bool,
    /// Set once for many requests: see [`Wire::poll_deadline`].
    timer: Pin<Box<Sleep>>,
    idle_since: Instant,
}

impl Wire {
    /// Reads and writes what can be read and written now, and asks to be woken for more.
    fn drive(&mut self, context: &mut Context<'_>) {
        if !self.has_ended
            && let Some(driver) = &mut self.driver
            && let Poll::Ready(ended) = Pin::new(driver).poll(context)
        {
            self.has_ended = true;
            if let Err(error) = ended {
                debug!(%error, "a connection to an upstream ended");
            }
        }
    }

    fn is_young(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.idle_since) < IDLE_MAX
    }

    /// Sends the request and waits for the head of its answer.
    async fn exchange(
        &mut self,
        request: Box<Request<Outgoing>>,
        mut deadline: Instant,
        wait_max: Duration,
        upload: Option<&UploadWatch>,
    ) -> Result<Response<Incoming>, Failure> {
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
        answer.map_err(|failed| failure_of(failed, upload))
    }

    /// Whether the deadline has passed; if not, it asks to be woken by then. A timer that still waits for the deadline
    /// of an earlier request stays as it is and is set again when it rings: that costs less than setting it each time.
    fn poll_deadline(&mut self, deadline: Instant, context: &mut Context<'_>) -> Poll<()> {
        if self.timer.deadline() > deadline {
            self.timer.as_mut().reset(deadline);
        }
        while self.timer.as_mut().poll(context).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

/// Once the time for an answer is over: whether the request's body moved since, so that one may wait on.
fn still_coming(upload: Option<&UploadWatch>, parts: &mut Option<u64>) -> Result<(), Failure> {
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

fn failure_of(
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

/// A request as HTTP/2 wants it: with the authority in its target, and without what frames a body in HTTP/1.1.
fn for_h2(mut request: Request<Outgoing>, scheme: &Scheme) -> Request<Outgoing> {
    let headers = request.headers_mut();
    headers.remove(TRANSFER_ENCODING);
    let host = headers.remove(HOST);
    let authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let mut target = request.uri().clone().into_parts();
    target.scheme = Some(scheme.clone());
    target.authority = Some(authority.unwrap_or_else(|| Authority::from_static("localhost")));
    if let Ok(target) = Uri::from_parts(target) {
        *request.uri_mut() = target;
    }
    *request.version_mut() = Version::HTTP_2;
    request
}

/// A connection whose answer is still being read.
pub(crate) struct Connection {
    /// Its own alone; `None` for HTTP/2, where many requests share one that drives itself.
    wire: Option<Box<Wire>>,
    peer: Arc<Peer>,
    worker: usize,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("peer", &self.peer.address)
            .finish_non_exhaustive()
    }
}

impl Connection {
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
        let parts = wire.driver?.into_parts();
        let stream = Watched::new(parts.io.into_inner(), Arc::default());
        Some(stream.rewound(parts.read_buf))
    }
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

/// What tells one endpoint of the proxy from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PeerKey {
    pub(crate) route: Arc<str>,
    pub(crate) arm: Arm,
    pub(crate) release: Arc<str>,
    pub(crate) address: Endpoint,
    /// Last, so that the order of endpoints is by what people see.
    pub(crate) transport: Transport,
}

/// All endpoints: those of the table, and those of earlier tables that still have requests. So load, health and
/// connections outlive a change of the table.
#[derive(Debug)]
pub(crate) struct Peers {
    workers: usize,
    known: Mutex<HashMap<PeerKey, Arc<Peer>>>,
}

impl Peers {
    /// None yet; so many threads may send to those to come.
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            workers,
            known: Mutex::default(),
        }
    }

    /// How many threads send to them.
    pub(crate) fn workers(&self) -> usize {
        self.workers
    }

    /// The endpoint of that key, new if it is not known.
    pub(crate) fn get(&self, key: PeerKey, dial: &Dial) -> Arc<Peer> {
        let mut known = lock(&self.known);
        let peer = known.entry(key).or_insert_with_key(|key| {
            let peer = Peer::new(key.address.clone(), dial.clone(), self.workers);
            Arc::new(peer)
        });
        Arc::clone(peer)
    }

    /// Forgets endpoints that no table and no request holds any more.
    pub(crate) fn forget_unused(&self) {
        lock(&self.known).retain(|_, peer| Arc::strong_count(peer) > 1 || peer.in_flight() > 0);
    }

    /// Each endpoint with requests in flight.
    pub(crate) fn in_flight(&self) -> Vec<(PeerKey, u32)> {
        lock(&self.known)
            .iter()
            .map(|(key, peer)| (key.clone(), peer.in_flight()))
            .filter(|(_, requests)| *requests > 0)
            .collect()
    }

    /// The same as it stands in a report, in a fixed order.
    pub(crate) fn in_flight_report(&self) -> Vec<InFlight> {
        let mut busy = self.in_flight();
        busy.sort_unstable();
        let mut report: Vec<InFlight> = Vec::with_capacity(busy.len());
        for (key, requests) in busy {
            let same = report.iter_mut().find(|known| {
                *known.route == *key.route
                    && *known.release == *key.release
                    && known.endpoint == key.address
            });
            match same {
                Some(known) => known.requests += requests,
                None => report.push(InFlight {
                    route: key.route.to_string(),
                    release: key.release.to_string(),
                    endpoint: key.address,
                    requests,
                }),
            }
        }
        report
    }

    /// Looks again and again at endpoints that took no connection, and closes connections that idle too long, until
    /// `stop`.
    pub(crate) async fn keep_watch(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = interval(PROBE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop
            .run_until_cancelled(async {
                ticks.tick().await;
                self.watch_once().await;
            })
            .await
            .is_some()
        {}
        for peer in lock(&self.known).values() {
            peer.close_idle();
        }
    }

    async fn watch_once(&self) {
        self.forget_unused();
        let now = Instant::now();
        let mut sick = Vec::new();
        for peer in lock(&self.known).values() {
            peer.close_old_connections(now);
            if !peer.is_avoided(now) && !peer.is_healthy() {
                sick.push(Arc::clone(peer));
            }
        }
        futures::stream::iter(sick)
            .for_each_concurrent(PROBES_MAX, |peer| async move {
                peer.probe().await;
            })
            .await;
    }
}
