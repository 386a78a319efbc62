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
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use proxy_api::{Arm, Endpoint, InFlight, Outcome};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, Sleep, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::body::{ClientFault, Outgoing, UploadWatch};
use crate::lock;

/// Longest time a connection is kept without work. Servers close idle connections too (gunicorn after 2 s, Node.js and
/// uvicorn after 5 s), and a request written at that moment is lost: so we let go first.
const IDLE_MAX: Duration = Duration::from_millis(1_500);

/// Most idle connections a worker keeps for one endpoint; what a burst opened beyond it is closed.
const IDLE_CONNECTIONS_MAX: usize = 256;

/// Between two looks at endpoints that refused a connection.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);

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

/// One endpoint of one release on one side of one route.
pub(crate) struct Peer {
    address: Endpoint,
    in_flight: AtomicU32,
    healthy: AtomicBool,
    /// Connections without work by worker, last used last. Only the watch takes the lock of another worker.
    idle: Box<[Mutex<Vec<Box<Wire>>>]>,
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
    pub(crate) fn new(address: Endpoint, workers: usize) -> Self {
        Self {
            address,
            in_flight: AtomicU32::new(0),
            healthy: AtomicBool::new(true),
            idle: (0..workers.max(1)).map(|_| Mutex::default()).collect(),
        }
    }

    fn idle(&self, worker: usize) -> &Mutex<Vec<Box<Wire>>> {
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

    /// Whether it took the last connection that was tried.
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

    /// Sends a request from a worker and waits for the head of the answer, as long as `response_wait_max` without any
    /// progress of the request's body.
    ///
    /// # Cancel safety
    /// Dropped, it closes the connection it was using.
    ///
    /// # Errors
    /// See [`Failure`].
    pub(crate) async fn send(
        self: &Arc<Self>,
        worker: usize,
        mut request: Request<Outgoing>,
        connect_wait_max: Duration,
        response_wait_max: Duration,
    ) -> Result<(Response<Incoming>, Connection), Failure> {
        let upload = request.body().watch();
        loop {
            let now = Instant::now();
            let (mut wire, is_fresh) = match poll_fn(|c| self.poll_idle(worker, now, c)).await {
                Some(wire) => (wire, false),
                None => match self.connect(connect_wait_max).await {
                    Some(wire) => (wire, true),
                    None => return Err(Failure::Connect(Box::new(request))),
                },
            };
            match wire
                .exchange(request, response_wait_max, upload.as_deref())
                .await
            {
                Ok(response) => {
                    let connection = Connection {
                        wire,
                        peer: Arc::clone(self),
                        worker,
                    };
                    return Ok((response, connection));
                }
                // Not written: the connection was closed just then. There is always a fresh one to end this.
                Err(Failure::Connect(unsent)) if !is_fresh => request = *unsent,
                Err(failure) => {
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

    /// A new connection, or `None`, and then the endpoint counts as unhealthy.
    async fn connect(&self, wait_max: Duration) -> Option<Box<Wire>> {
        let connected = timeout(wait_max, TcpStream::connect(self.address.as_str())).await;
        let stream = match connected {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                self.set_healthy(false, &error);
                return None;
            }
            Err(elapsed) => {
                self.set_healthy(false, &elapsed);
                return None;
            }
        };
        self.set_healthy(true, &"it takes connections");
        // Small heads must not wait for an acknowledgement. Without it things are slower, not wrong.
        drop(stream.set_nodelay(true));
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await.ok()?;
        let now = Instant::now();
        Some(Box::new(Wire {
            sender,
            driver: Some(driver),
            has_ended: false,
            timer: Box::pin(sleep_until(now)),
            idle_since: now,
        }))
    }

    fn set_healthy(&self, healthy: bool, why: &dyn fmt::Display) {
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
    }

    /// Whether an endpoint that took no connection takes one now; then it counts as healthy again.
    pub(crate) async fn probe(&self) -> bool {
        let probe = TcpStream::connect(self.address.as_str());
        let is_back = matches!(timeout(PROBE_WAIT_MAX, probe).await, Ok(Ok(_)));
        if is_back {
            self.set_healthy(true, &"it takes connections");
        }
        is_back
    }

    fn close_old_connections(&self, now: Instant) {
        for idle in &self.idle {
            lock(idle).retain(|wire| !wire.has_ended && wire.is_young(now));
        }
    }
}

/// A connection to an endpoint. It moves only while it is driven.
struct Wire {
    sender: SendRequest<Outgoing>,
    /// Gone when a request still waited for it at its end: so the request comes back.
    driver: Option<http1::Connection<TokioIo<TcpStream>, Outgoing>>,
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
        request: Request<Outgoing>,
        wait_max: Duration,
        upload: Option<&UploadWatch>,
    ) -> Result<Response<Incoming>, Failure> {
        let mut answer = pin!(self.sender.try_send_request(request));
        let mut deadline = Instant::now() + wait_max;
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
                let now_parts = upload.map(UploadWatch::parts);
                match upload {
                    // A long upload on its way is no silence.
                    Some(_) if now_parts != parts => parts = now_parts,
                    Some(upload) if upload.is_waiting_for_client() => {
                        return Poll::Ready(Err(Failure::Client(ClientFault::Stalled)));
                    }
                    Some(_) | None => return Poll::Ready(Err(Failure::Timeout)),
                }
                deadline = Instant::now() + wait_max;
            }
            Poll::Pending
        })
        .await?;
        answer.map_err(|mut failed| match failed.take_message() {
            Some(unsent) => Failure::Connect(Box::new(unsent)),
            None => match upload.and_then(UploadWatch::fault) {
                Some(fault) => Failure::Client(fault),
                None => Failure::Reset,
            },
        })
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

/// A connection whose answer is still being read.
pub(crate) struct Connection {
    wire: Box<Wire>,
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
        self.wire.drive(context);
    }

    /// Keeps the connection for the next request. Only after request and answer were read to their ends; dropping it
    /// instead closes it.
    pub(crate) fn keep(mut self) {
        if self.wire.has_ended {
            return;
        }
        self.wire.idle_since = Instant::now();
        let mut idle = lock(self.peer.idle(self.worker));
        if idle.len() < IDLE_CONNECTIONS_MAX {
            idle.push(self.wire);
        }
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

    /// The endpoint of that key, new if it is not known.
    pub(crate) fn get(&self, key: PeerKey) -> Arc<Peer> {
        let mut known = lock(&self.known);
        let peer = known
            .entry(key)
            .or_insert_with_key(|key| Arc::new(Peer::new(key.address.clone(), self.workers)));
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
            if !peer.is_healthy() {
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
