//! Endpoints as the proxy sees them: connections, load, health.
//!
//! Each endpoint keeps its own idle connections, last used first. A connection is given a request only while it is
//! ready for one; a request that was not written comes back to the caller, so nothing is sent twice behind its back.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use proxy_api::{Arm, Endpoint, InFlight, Outcome};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::body::{ClientFault, Outgoing};
use crate::lock;

/// Longest time a connection is kept without work. Servers close idle connections too (gunicorn after 2 s, Node.js and
/// uvicorn after 5 s), and a request written at that moment is lost: so we let go first.
const IDLE_MAX: Duration = Duration::from_millis(1_500);

/// Most idle connections kept for one endpoint; what a burst opened beyond it is closed.
const IDLE_CONNECTIONS_MAX: usize = 256;

/// How long a connection that is about to become ready is waited for. It lacks one turn of its own task, so this only
/// ends the wait for one that hangs.
const READY_WAIT_MAX: Duration = Duration::from_millis(10);

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
    /// Connections without work and since when, last used last.
    idle: Mutex<Vec<(SendRequest<Outgoing>, Instant)>>,
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
    /// An endpoint nothing is known of yet: it counts as healthy.
    pub(crate) fn new(address: Endpoint) -> Self {
        Self {
            address,
            in_flight: AtomicU32::new(0),
            healthy: AtomicBool::new(true),
            idle: Mutex::default(),
        }
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

    /// Sends a request and waits for the head of the answer, as long as `response_wait_max` without any progress of
    /// the request's body.
    ///
    /// # Cancel safety
    /// Dropped, it closes the connection it was using.
    ///
    /// # Errors
    /// See [`Failure`].
    pub(crate) async fn send(
        self: &Arc<Self>,
        mut request: Request<Outgoing>,
        connect_wait_max: Duration,
        response_wait_max: Duration,
    ) -> Result<(Response<Incoming>, Connection), Failure> {
        loop {
            let (mut sender, is_fresh) = match self.take_idle().await {
                Some(sender) => (sender, false),
                None => match self.connect(connect_wait_max).await {
                    Some(sender) => (sender, true),
                    None => return Err(Failure::Connect(Box::new(request))),
                },
            };
            let upload = request.body().watch();
            let answer = sender.try_send_request(request);
            tokio::pin!(answer);
            let answer = loop {
                let parts = upload.as_ref().map(|upload| upload.parts());
                match timeout(response_wait_max, &mut answer).await {
                    Ok(answer) => break answer,
                    Err(_) => match &upload {
                        // A long upload on its way is no silence.
                        Some(upload) if Some(upload.parts()) != parts => {}
                        Some(upload) if upload.is_waiting_for_client() => {
                            return Err(Failure::Client(ClientFault::Stalled));
                        }
                        Some(_) | None => return Err(Failure::Timeout),
                    },
                }
            };
            match answer {
                Ok(response) => {
                    let connection = Connection {
                        sender,
                        peer: Arc::clone(self),
                    };
                    return Ok((response, connection));
                }
                Err(mut failed) => match failed.take_message() {
                    // Not written: the connection was closed just then. There is always a fresh one to end this.
                    Some(unsent) if !is_fresh => request = unsent,
                    Some(unsent) => return Err(Failure::Connect(Box::new(unsent))),
                    None => {
                        if let Some(fault) = upload.and_then(|upload| upload.fault()) {
                            return Err(Failure::Client(fault));
                        }
                        let error = failed.into_error();
                        debug!(endpoint = %self.address, %error, "an upstream broke the connection");
                        return Err(Failure::Reset);
                    }
                },
            }
        }
    }

    async fn take_idle(&self) -> Option<SendRequest<Outgoing>> {
        loop {
            let (mut sender, since) = lock(&self.idle).pop()?;
            if since.elapsed() < IDLE_MAX
                && !sender.is_closed()
                && matches!(timeout(READY_WAIT_MAX, sender.ready()).await, Ok(Ok(())))
            {
                return Some(sender);
            }
        }
    }

    /// A new connection, or `None`, and then the endpoint counts as unhealthy.
    async fn connect(&self, wait_max: Duration) -> Option<SendRequest<Outgoing>> {
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
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
        // Ends by itself: when its sender is dropped, or when the other side closes.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "a connection to an upstream ended");
            }
        });
        Some(sender)
    }

    fn set_healthy(&self, healthy: bool, why: &dyn fmt::Display) {
        if self.healthy.swap(healthy, Ordering::AcqRel) != healthy {
            if healthy {
                info!(endpoint = %self.address, "endpoint is back");
            } else {
                warn!(endpoint = %self.address, error = %why, "endpoint takes no connection: avoided until it does");
                lock(&self.idle).clear();
            }
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
        lock(&self.idle).retain(|(sender, since)| {
            !sender.is_closed() && now.saturating_duration_since(*since) < IDLE_MAX
        });
    }
}

/// A connection whose answer is still being read.
pub(crate) struct Connection {
    sender: SendRequest<Outgoing>,
    peer: Arc<Peer>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("peer", &self.peer.address)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Keeps the connection for the next request. Only after request and answer were read to their ends; dropping it
    /// instead closes it.
    pub(crate) fn keep(self) {
        if self.sender.is_closed() {
            return;
        }
        let mut idle = lock(&self.peer.idle);
        if idle.len() < IDLE_CONNECTIONS_MAX {
            idle.push((self.sender, Instant::now()));
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
#[derive(Debug, Default)]
pub(crate) struct Peers {
    known: Mutex<HashMap<PeerKey, Arc<Peer>>>,
}

impl Peers {
    /// The endpoint of that key, new if it is not known.
    pub(crate) fn get(&self, key: PeerKey) -> Arc<Peer> {
        let mut known = lock(&self.known);
        let peer = known
            .entry(key)
            .or_insert_with_key(|key| Arc::new(Peer::new(key.address.clone())));
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
            lock(&peer.idle).clear();
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
