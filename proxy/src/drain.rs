//! Clients: accepting them, and letting them go.
//!
//! Each worker is a thread with listening sockets of its own (`SO_REUSEPORT`), so that a client is served from its
//! first byte to its last by one thread, and no request waits for a lock that another thread holds.
//!
//! Draining stops accepting, tells every connection with its next answer that this was the last (`connection: close`),
//! or at once where the protocol can (GOAWAY), waits for what is left up to a limit, and then cuts it, and says so.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::app::BACKLOG;
use crate::config::Clients;
use crate::forward::Forward;
use crate::refusal::Refusal;
use crate::session::{GOODBYE_MAX, Session};
use crate::socket;
use crate::tls::Certificate;

/// Pause after accepting failed, most likely for want of file descriptors: they come back as clients leave.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a client of HTTP/1.1 has for one more request when the drain begins, at most half of the drain's limit. Its
/// connection cannot be closed between two requests without a chance to lose the next one; who says nothing for so
/// long is most likely idle.
const LAST_CALL_MAX: Duration = Duration::from_secs(1);

/// When a client for whom there was no place may try again: idle ones make room all the time.
const RETRY_AFTER: &str = "retry-after: 1\r\n";

/// Most clients that are told at the same time that there is no place for them; others are only closed. Each has
/// [`GOODBYE_MAX`], so these are some hundred a second at least.
const TURNED_AWAY_MAX: usize = 256;

/// Why a worker ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkerError {
    /// The system gives no thread, or no event queue for it.
    #[error("cannot start a worker")]
    Start(#[from] io::Error),
    /// A defect of ours.
    #[error("a worker panicked")]
    Panicked,
}

/// Serves clients, those of each group of listeners by a worker of its own, until `shutdown`, then drains for at most
/// `drain_max`.
///
/// # Errors
/// See [`WorkerError`].
pub(crate) async fn serve(
    workers: Vec<(Vec<std::net::TcpListener>, Arc<Forward>)>,
    clients: Clients,
    certificate: Option<Arc<Certificate>>,
    shutdown: CancellationToken,
    drain_max: Duration,
) -> Result<(), WorkerError> {
    let shared = Arc::new(Shared {
        phase: AtomicU8::new(SERVING),
        stop: CancellationToken::new(),
        cut: CancellationToken::new(),
        last_call: LAST_CALL_MAX.min(drain_max / 2),
        places: Arc::new(Semaphore::new(clients.connections_max as usize)),
        goodbyes: Arc::new(Semaphore::new(TURNED_AWAY_MAX)),
        clients,
        certificate,
        connections: AtomicU64::new(0),
        requests: AtomicU64::new(0),
    });
    let mut ended = Vec::with_capacity(workers.len());
    for (number, (listeners, forward)) in workers.into_iter().enumerate() {
        let worker = Worker {
            forward,
            shared: Arc::clone(&shared),
        };
        let (end, waiting) = oneshot::channel();
        thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || {
                // Nobody waits for it any more only if the whole proxy failed.
                drop(end.send(worker.run(listeners)));
            })?;
        ended.push(async {
            waiting
                .await
                .map_err(|_| WorkerError::Panicked)?
                .map_err(WorkerError::Start)
        });
    }
    let mut ended = pin!(try_join_all(ended));
    tokio::select! {
        failed = &mut ended => return failed.map(drop),
        () = shutdown.cancelled() => {}
    }
    shared.phase.store(DRAINING, Ordering::Release);
    shared.stop.cancel();
    let (connections, requests) = shared.left();
    info!(connections, requests, "draining");
    match timeout(drain_max, &mut ended).await {
        Ok(all) => all?,
        Err(_) => {
            let (connections, requests) = shared.left();
            warn!(
                connections,
                requests,
                drain_seconds = drain_max.as_secs(),
                "the drain's limit is over: cutting what is left"
            );
            shared.phase.store(CUTTING, Ordering::Release);
            shared.cut.cancel();
            ended.await?
        }
    };
    info!("drained");
    Ok(())
}

pub(crate) const SERVING: u8 = 0;
pub(crate) const DRAINING: u8 = 1;
pub(crate) const CUTTING: u8 = 2;

/// What all workers share. On the way of a request are only its two counters.
#[derive(Debug)]
pub(crate) struct Shared {
    /// What clients may do.
    pub(crate) clients: Clients,
    /// For TLS, if clients speak it.
    pub(crate) certificate: Option<Arc<Certificate>>,
    /// [`SERVING`], [`DRAINING`] or [`CUTTING`]: set before the tokens, which only wake.
    pub(crate) phase: AtomicU8,
    /// No more clients; those that are there finish.
    pub(crate) stop: CancellationToken,
    /// The drain's limit is over.
    pub(crate) cut: CancellationToken,
    /// How long a silent client may wait before its last request.
    pub(crate) last_call: Duration,
    places: Arc<Semaphore>,
    /// For clients that have no place.
    goodbyes: Arc<Semaphore>,
    pub(crate) connections: AtomicU64,
    /// Requests whose answer has not ended.
    pub(crate) requests: AtomicU64,
}

impl Shared {
    /// Connections, and requests whose answer has not ended.
    fn left(&self) -> (u64, u64) {
        (
            self.connections.load(Ordering::Acquire),
            self.requests.load(Ordering::Acquire),
        )
    }
}

/// One thread's share of the clients.
#[derive(Clone)]
struct Worker {
    forward: Arc<Forward>,
    shared: Arc<Shared>,
}

impl Worker {
    fn run(self, listeners: Vec<std::net::TcpListener>) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let listeners = listeners.into_iter().map(TcpListener::from_std);
            let listeners = listeners.collect::<io::Result<Vec<_>>>()?;
            let tracker = TaskTracker::new();
            let turns = tokio::spawn(socket::take_turns());
            let stop = self.shared.stop.clone();
            // It never ends by itself.
            let accepting = listeners
                .iter()
                .map(|listener| self.accept(listener, &tracker));
            stop.run_until_cancelled(join_all(accepting)).await;
            for listener in listeners {
                self.accept_last(&listener.into_std()?, &tracker);
            }
            tracker.close();
            tracker.wait().await;
            turns.abort();
            socket::take_no_more_turns();
            Ok(())
        })
    }

    async fn accept(&self, listener: &TcpListener, tracker: &TaskTracker) {
        loop {
            match listener.accept().await {
                Ok((stream, address)) => {
                    // Not before: a place held for who may come here could be missing elsewhere.
                    match Arc::clone(&self.shared.places).try_acquire_owned() {
                        Ok(place) => {
                            tracker.spawn(self.session(address, Some(place)).serve(stream));
                        }
                        Err(_) => self.refuse(stream, tracker),
                    }
                }
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Sends a client away for whom there is no place. By TLS nothing is said: that would take a handshake, the most expensive
    /// part of a connection.
    fn refuse(&self, stream: TcpStream, tracker: &TaskTracker) {
        self.forward.telemetry.refused(Refusal::Connections);
        if self.shared.certificate.is_none()
            && let Ok(goodbye) = Arc::clone(&self.shared.goodbyes).try_acquire_owned()
        {
            tracker.spawn(async move {
                if let Ok(Err(error)) = timeout(GOODBYE_MAX, turn_away(stream)).await {
                    debug!(%error, "a client did not hear why it was refused");
                }
                drop(goodbye);
            });
        }
    }

    /// Takes the clients whose connections the kernel has made already: unless another proxy took it over, closing the
    /// socket would break them. What comes meanwhile is not waited for: it would have no end.
    fn accept_last(&self, listener: &std::net::TcpListener, tracker: &TaskTracker) {
        for (stream, address) in (0..BACKLOG).map_while(|_| listener.accept().ok()) {
            let taken = stream.set_nonblocking(true);
            match taken.and_then(|()| TcpStream::from_std(stream)) {
                Ok(stream) => drop(tracker.spawn(self.session(address, None).serve(stream))),
                Err(error) => warn!(%error, "cannot take a connection"),
            }
        }
    }

    fn session(&self, address: SocketAddr, place: Option<OwnedSemaphorePermit>) -> Arc<Session> {
        let (forward, shared) = (Arc::clone(&self.forward), Arc::clone(&self.shared));
        Arc::new(Session::new(forward, shared, address, place))
    }
}

/// Answers a client's first request with a refusal, whatever it is. Closed with unread bytes the connection would break, and
/// the client perhaps not see the answer: so it is read to its end.
async fn turn_away(mut stream: TcpStream) -> io::Result<()> {
    let mut heard = vec![0; 4 << 10];
    // An answer before the request would be none.
    if stream.read(&mut heard).await? > 0 {
        let text = Refusal::Connections.last_words(RETRY_AFTER);
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await?;
        while stream.read(&mut heard).await? > 0 {}
    }
    Ok(())
}

/// Counts something until it is dropped.
pub(crate) struct Counted<'a>(&'a AtomicU64);

impl<'a> Counted<'a> {
    pub(crate) fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
