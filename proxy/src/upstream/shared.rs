//! Connections of HTTP/2 to an endpoint: each carries as many requests at a time as the endpoint allows on one.
//!
//! A request waits for its seat here, and not in the HTTP library: what waits here was not sent, so it can go elsewhere, and
//! the wait is not held against the endpoint's time to answer.

use std::fmt;
use std::future::{Future, poll_fn};
use std::mem;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use crate::body::Outgoing;
use crate::lock;
use crate::socket::Socket;
use crate::stream::Stream;

/// Most connections of a worker to one endpoint. With the 100 to 250 requests that servers allow on each these are some
/// thousands; of an endpoint that allows one at a time, some dozens.
const CONNECTIONS_MAX: usize = 32;

/// How many requests an endpoint is taken to allow on a connection until one of its connections said so: the least that a
/// server should (RFC 9113, 6.5.2).
const STREAMS_ASSUMED: usize = 100;

/// Pause after a further connection was not to be had: an endpoint may have as many as it takes, and serves on those.
const OPENING_PAUSE: Duration = Duration::from_secs(1);

/// How long connections beyond the first are kept without a request: longer than the pause between two bursts of one client,
/// and short beside what an endpoint has to keep for each.
const SPARE_IDLE_MAX: Duration = Duration::from_secs(5);

/// What moves a connection.
pub(super) type Driver = http2::Connection<TokioIo<Stream>, Outgoing, TokioExecutor>;

/// A connection for many requests at a time. It moves by itself, in a task of its worker.
pub(super) struct SharedWire {
    sender: http2::SendRequest<Outgoing>,
    /// Gone when the connection takes no more requests.
    driver: Arc<Mutex<Option<Driver>>>,
    seats: AtomicUsize,
    idle_since: Mutex<Instant>,
}

impl SharedWire {
    /// Lets the connection move. It ends when nobody has it any more, or when the other side closes it.
    pub(super) fn new(
        sender: http2::SendRequest<Outgoing>,
        driver: Driver,
        socket: Socket,
    ) -> Arc<Self> {
        let driver = Arc::new(Mutex::new(Some(driver)));
        let driven = Arc::clone(&driver);
        tokio::spawn(async move {
            let ended = poll_fn(|context| match &mut *lock(&driven) {
                Some(driver) => Pin::new(driver).poll(context),
                None => Poll::Ready(Ok(())),
            });
            let ended = ended.await;
            // With it goes what still waited in it: back to where it came from.
            let over = lock(&driven).take();
            drop(over);
            if let Err(error) = ended {
                debug!(%error, "a connection to an upstream ended");
                socket.break_when_closed();
            }
        });
        Arc::new(Self {
            sender,
            driver,
            seats: AtomicUsize::new(0),
            idle_since: Mutex::new(Instant::now()),
        })
    }

    /// How many requests the endpoint allows on it at present; `None` if it takes no more at all.
    fn streams_max(&self) -> Option<usize> {
        let driver = lock(&self.driver);
        let driver = driver.as_ref().filter(|_| self.sender.is_ready())?;
        Some(driver.current_max_send_streams())
    }
}

/// A place for one request on a connection, until it is dropped.
pub(crate) struct Seat {
    wire: Arc<SharedWire>,
    home: Arc<SharedWires>,
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").finish_non_exhaustive()
    }
}

impl Seat {
    fn take(wire: &Arc<SharedWire>, home: &Arc<SharedWires>) -> Self {
        wire.seats.fetch_add(1, Ordering::AcqRel);
        Self {
            wire: Arc::clone(wire),
            home: Arc::clone(home),
        }
    }

    /// What sends the request.
    pub(super) fn sender(&self) -> http2::SendRequest<Outgoing> {
        self.wire.sender.clone()
    }

    /// The connection.
    pub(super) fn wire(&self) -> &Arc<SharedWire> {
        &self.wire
    }

    /// Gives the connection no more requests; those that it has go on.
    pub(super) fn retire_wire(&self) {
        let mut state = lock(&self.home.state);
        state.wires.retain(|wire| !Arc::ptr_eq(wire, &self.wire));
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.wire.seats.fetch_sub(1, Ordering::AcqRel) == 1 {
            *lock(&self.wire.idle_since) = Instant::now();
        }
        self.home.changed.notify_one();
    }
}

/// The connections of one worker to one endpoint.
#[derive(Default)]
pub(super) struct SharedWires {
    state: Mutex<State>,
    /// A seat came free, or a connection was opened, or was not.
    changed: Notify,
}

#[derive(Default)]
struct State {
    wires: Vec<Arc<SharedWire>>,
    /// Whether a request opens one: others wait for it, so that a burst opens no more than it needs.
    is_opening: bool,
    /// How often none could be opened.
    failures: u64,
    /// No further one is opened before.
    opens_after: Option<Instant>,
    /// How many requests the endpoint allowed on a connection the last time it was seen.
    streams_max: Option<usize>,
}

/// A connection that is to be opened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// How many requests it may be given until the endpoint says how many it allows.
    pub(super) streams: usize,
    /// Whether there are others: then the endpoint is not gone if it does not take this one.
    pub(super) is_further: bool,
}

/// What a request finds.
enum Look {
    Seat(Seat),
    /// It is to open a connection.
    Open(Opening, Wanted),
    Wait,
    /// The connection that it waited for could not be opened.
    Failed,
}

impl SharedWires {
    /// A seat on the connection with the fewest requests, and whether that was opened for it; not on `avoid`, if another can be
    /// had. `None` if none could be opened, or if no seat came free in time.
    ///
    /// # Cancel safety
    /// Dropped while it opens a connection, it leaves that to the next request.
    pub(super) async fn seat<F>(
        self: &Arc<Self>,
        avoid: Option<&Arc<SharedWire>>,
        wait_max: Duration,
        open: impl Fn(Wanted) -> F,
    ) -> Option<(Seat, bool)>
    where
        F: Future<Output = Option<Arc<SharedWire>>>,
    {
        let deadline = Instant::now() + wait_max;
        let failures = lock(&self.state).failures;
        loop {
            // Before the look, so that no change is missed.
            let changed = self.changed.notified();
            match self.look(avoid, failures) {
                Look::Seat(seat) => return Some((seat, false)),
                Look::Open(opening, wanted) => match open(wanted).await {
                    Some(wire) => return Some((opening.done(wire), true)),
                    None if wanted.is_further => opening.put_off(),
                    None => {
                        opening.failed();
                        return None;
                    }
                },
                Look::Wait => timeout_at(deadline, changed).await.ok()?,
                Look::Failed => return None,
            }
        }
    }

    fn look(self: &Arc<Self>, avoid: Option<&Arc<SharedWire>>, failures: u64) -> Look {
        let mut state = lock(&self.state);
        let state = &mut *state;
        let mut best: Option<(usize, &Arc<SharedWire>)> = None;
        let mut avoided = None;
        state.wires.retain(|wire| wire.streams_max().is_some());
        for wire in &state.wires {
            let max = wire.streams_max().unwrap_or_default();
            state.streams_max = Some(max);
            let taken = wire.seats.load(Ordering::Acquire);
            if taken >= max {
                continue;
            }
            if avoid.is_some_and(|avoid| Arc::ptr_eq(avoid, wire)) {
                avoided = Some(wire);
            } else if best.is_none_or(|(least, _)| taken < least) {
                best = Some((taken, wire));
            }
        }
        if let Some((_, wire)) = best {
            return Look::Seat(Seat::take(wire, self));
        }
        if state.failures != failures {
            return Look::Failed;
        }
        let is_further = !state.wires.is_empty();
        let is_pause = || state.opens_after.is_some_and(|end| end > Instant::now());
        if state.is_opening {
            return Look::Wait;
        }
        if state.wires.len() >= CONNECTIONS_MAX || (is_further && is_pause()) {
            // Better there than nowhere.
            return avoided.map_or(Look::Wait, |wire| Look::Seat(Seat::take(wire, self)));
        }
        state.is_opening = true;
        let streams = state.streams_max.unwrap_or(STREAMS_ASSUMED);
        let wanted = Wanted {
            streams: streams.clamp(1, STREAMS_ASSUMED),
            is_further,
        };
        Look::Open(Opening(Arc::clone(self)), wanted)
    }

    /// Lets go of all connections; the requests that they have go on.
    pub(super) fn close(&self) {
        let over = mem::take(&mut lock(&self.state).wires);
        drop(over);
    }

    /// Lets go of connections beyond the first that had no request for a while.
    pub(super) fn close_spare(&self, now: Instant) {
        let mut is_first = true;
        lock(&self.state).wires.retain(|wire| {
            let idle = now.saturating_duration_since(*lock(&wire.idle_since));
            let is_busy = wire.seats.load(Ordering::Acquire) > 0;
            mem::take(&mut is_first) || is_busy || idle < SPARE_IDLE_MAX
        });
    }
}

/// A connection that a request opens. Dropped, others may.
struct Opening(Arc<SharedWires>);

impl Opening {
    /// The first seat on it.
    fn done(self, wire: Arc<SharedWire>) -> Seat {
        let seat = Seat::take(&wire, &self.0);
        lock(&self.0.state).wires.push(wire);
        seat
    }

    /// Whoever waits for it gets a place on another one, if in time.
    fn put_off(self) {
        lock(&self.0.state).opens_after = Some(Instant::now() + OPENING_PAUSE);
    }

    /// Whoever waits for it need not wait longer.
    fn failed(self) {
        lock(&self.0.state).failures += 1;
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        lock(&self.0.state).is_opening = false;
        self.0.changed.notify_waiters();
    }
}
