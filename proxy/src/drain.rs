//! Clients: accepting them, and letting them go.
//!
//! Each worker is a thread with a listening socket of its own (`SO_REUSEPORT`), so that a client is served from its
//! first byte to its last by one thread, and no request waits for a lock that another thread holds.
//!
//! Draining stops accepting, tells every connection that its present requests are the last (`connection: close`,
//! GOAWAY), waits for them up to a limit, and then cuts what is left, and says so.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use futures::future::try_join_all;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::body::Answer;
use crate::forward::{Client, Forward};

/// Most connections of clients; more wait in the kernel's queue. An idle one costs about 10 KiB, so 200 MiB at most.
const CONNECTIONS_MAX: usize = 20_000;

/// Longest wait for the head of a request, also for the first byte of the next one: as long as nginx.
const HEAD_WAIT_MAX: Duration = Duration::from_secs(60);

/// Longest head of a request. Cookies of 4 KiB by the dozen still fit.
const HEAD_BYTES_MAX: u32 = 64 << 10;

/// Most requests at a time on one HTTP/2 connection: the usual limit of servers (RFC 9113 wants at least 100).
const STREAMS_MAX: u32 = 250;

/// Pause after accepting failed, most likely for want of file descriptors: they come back as clients leave.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

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

/// Serves clients, each listener by a worker of its own, until `shutdown`, then drains for at most `drain_max`.
///
/// # Errors
/// See [`WorkerError`].
pub(crate) async fn serve(
    workers: Vec<(std::net::TcpListener, Arc<Forward>)>,
    shutdown: CancellationToken,
    drain_max: Duration,
) -> Result<(), WorkerError> {
    let shared = Arc::new(Shared {
        phase: AtomicU8::new(SERVING),
        stop: CancellationToken::new(),
        cut: CancellationToken::new(),
        places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        connections: AtomicU64::new(0),
        requests: AtomicU64::new(0),
    });
    let mut ended = Vec::with_capacity(workers.len());
    for (number, (listener, forward)) in workers.into_iter().enumerate() {
        let worker = Worker {
            forward,
            shared: Arc::clone(&shared),
            http: http(),
        };
        let (end, waiting) = oneshot::channel();
        thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || {
                // Nobody waits for it any more only if the whole proxy failed.
                drop(end.send(worker.run(listener)));
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

const SERVING: u8 = 0;
const DRAINING: u8 = 1;
const CUTTING: u8 = 2;

/// What all workers share. On the way of a request are only its two counters.
#[derive(Debug)]
struct Shared {
    /// [`SERVING`], [`DRAINING`] or [`CUTTING`]: set before the tokens, which only wake.
    phase: AtomicU8,
    /// No more clients; those that are there finish.
    stop: CancellationToken,
    /// The drain's limit is over.
    cut: CancellationToken,
    places: Arc<Semaphore>,
    connections: AtomicU64,
    /// Requests whose answer has no head yet.
    requests: AtomicU64,
}

impl Shared {
    /// Connections, and requests that have no answer yet.
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
    http: auto::Builder<TokioExecutor>,
}

impl Worker {
    fn run(self, listener: std::net::TcpListener) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener)?;
            let tracker = TaskTracker::new();
            let stop = self.shared.stop.clone();
            // It never ends by itself.
            stop.run_until_cancelled(self.accept(&listener, &tracker))
                .await;
            self.accept_last(listener.into_std()?, &tracker);
            tracker.close();
            tracker.wait().await;
            Ok(())
        })
    }

    async fn accept(&self, listener: &TcpListener, tracker: &TaskTracker) {
        loop {
            let Ok(place) = Arc::clone(&self.shared.places).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, address)) => {
                    let worker = self.clone();
                    tracker.spawn(async move {
                        worker.serve(stream, address).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Takes the clients whose connections the kernel has made already: closing the socket would break them.
    fn accept_last(&self, listener: std::net::TcpListener, tracker: &TaskTracker) {
        while let Ok((stream, address)) = listener.accept() {
            let worker = self.clone();
            tracker.spawn(async move {
                match stream
                    .set_nonblocking(true)
                    .and_then(|()| TcpStream::from_std(stream))
                {
                    Ok(stream) => worker.serve(stream, address).await,
                    Err(error) => warn!(%error, "cannot take a connection"),
                }
            });
        }
    }
    async fn serve(&self, stream: TcpStream, address: SocketAddr) {
        // Small answers must not wait for an acknowledgement. Without it things are slower, not wrong.
        drop(stream.set_nodelay(true));
        let session = Arc::new(Session {
            forward: Arc::clone(&self.forward),
            shared: Arc::clone(&self.shared),
            client: Client::new(address.ip()),
            asked: AtomicBool::new(false),
        });
        let connected = Counted::new(&self.shared.connections);
        let service = service_fn(|request| {
            let session = Arc::clone(&session);
            async move { Ok::<_, Infallible>(session.answer(request).await) }
        });
        let mut connection = pin!(self.http.serve_connection(TokioIo::new(stream), service));
        let mut stop = pin!(self.shared.stop.cancelled());
        let mut cut = pin!(self.shared.cut.cancelled());
        // The limit on heads does not hold yet while it is open whether HTTP/1.1 or HTTP/2 is spoken.
        let mut silence = pin!(sleep(HEAD_WAIT_MAX));
        let mut is_waiting = false;
        let mut told = false;
        let ended = poll_fn(|context| {
            if !is_waiting {
                // Once is enough to be woken. Asked each time, they would take locks that all threads share.
                is_waiting = stop.as_mut().poll(context).is_pending()
                    && cut.as_mut().poll(context).is_pending();
            }
            if let Poll::Ready(ended) = connection.as_mut().poll(context) {
                return Poll::Ready(Some(ended));
            }
            let phase = self.shared.phase.load(Ordering::Acquire);
            if phase == CUTTING {
                return Poll::Ready(None);
            }
            let mut is_silent = || {
                !session.asked.load(Ordering::Relaxed) && silence.as_mut().poll(context).is_ready()
            };
            if !told && (phase == DRAINING || is_silent()) {
                told = true;
                connection.as_mut().graceful_shutdown();
                return connection.as_mut().poll(context).map(Some);
            }
            Poll::Pending
        })
        .await;
        if let Some(Err(error)) = ended {
            debug!(%address, %error, "a client's connection ended");
        }
        drop(connected);
    }
}

/// What the requests of one connection share.
struct Session {
    forward: Arc<Forward>,
    shared: Arc<Shared>,
    client: Client,
    /// Whether there was a request yet.
    asked: AtomicBool,
}

impl Session {
    async fn answer(&self, request: Request<Incoming>) -> Response<Answer> {
        self.asked.store(true, Ordering::Relaxed);
        let counted = Counted::new(&self.shared.requests);
        let answer = self.forward.answer(&self.client, request).await;
        drop(counted);
        answer
    }
}

fn http() -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT_MAX)
        .max_buf_size(HEAD_BYTES_MAX as usize);
    http.http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEAD_BYTES_MAX)
        .max_concurrent_streams(STREAMS_MAX);
    http
}

/// Counts something until it is dropped.
struct Counted<'a>(&'a AtomicU64);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
