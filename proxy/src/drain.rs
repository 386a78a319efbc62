//! Clients: accepting them, and letting them go.
//!
//! Draining stops accepting, tells every connection that its present requests are the last (`connection: close`,
//! GOAWAY), waits for them up to a limit, and then cuts what is left, and says so.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

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

/// Serves clients of `listener` until `shutdown`, then drains for at most `drain_max`.
pub(crate) async fn serve(
    listener: TcpListener,
    forward: Arc<Forward>,
    shutdown: CancellationToken,
    drain_max: Duration,
) {
    let clients = Clients {
        forward,
        shutdown: shutdown.clone(),
        cut: CancellationToken::new(),
        requests: Arc::default(),
        http: http(),
    };
    let tracker = TaskTracker::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let accepting = async {
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, address)) => {
                    let clients = clients.clone();
                    tracker.spawn(async move {
                        clients.serve(stream, address).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    // It never ends by itself.
    shutdown.run_until_cancelled(accepting).await;
    drop(listener);
    tracker.close();
    let requests = clients.requests.load(Ordering::Acquire);
    info!(connections = tracker.len(), requests, "draining");
    if timeout(drain_max, tracker.wait()).await.is_err() {
        let requests = clients.requests.load(Ordering::Acquire);
        warn!(
            connections = tracker.len(),
            requests,
            drain_seconds = drain_max.as_secs(),
            "the drain's limit is over: cutting what is left"
        );
        clients.cut.cancel();
        tracker.wait().await;
    }
    info!("drained");
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

/// What connections share.
#[derive(Clone)]
struct Clients {
    forward: Arc<Forward>,
    shutdown: CancellationToken,
    /// The drain's limit is over.
    cut: CancellationToken,
    /// Requests whose answer has no head yet.
    requests: Arc<AtomicU64>,
    http: auto::Builder<TokioExecutor>,
}

impl Clients {
    async fn serve(&self, stream: TcpStream, address: SocketAddr) {
        // Small answers must not wait for an acknowledgement. Without it things are slower, not wrong.
        drop(stream.set_nodelay(true));
        let client = Client::new(address.ip());
        let asked = AtomicBool::new(false);
        let service = service_fn(|request| {
            asked.store(true, Ordering::Relaxed);
            let forward = Arc::clone(&self.forward);
            let counted = Counted::new(&self.requests);
            async move {
                let answer = forward.answer(client, request).await;
                drop(counted);
                Ok::<_, Infallible>(answer)
            }
        });
        let mut connection = pin!(self.http.serve_connection(TokioIo::new(stream), service));
        let mut told = false;
        // The limit on heads does not hold yet while it is open whether HTTP/1.1 or HTTP/2 is spoken.
        let mut silence = pin!(sleep(HEAD_WAIT_MAX));
        let ended = loop {
            tokio::select! {
                ended = connection.as_mut() => break ended,
                () = self.shutdown.cancelled(), if !told => {
                    told = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = &mut silence, if !told && !asked.load(Ordering::Relaxed) => {
                    told = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = self.cut.cancelled() => return,
            }
        };
        if let Err(error) = ended {
            debug!(%address, %error, "a client's connection ended");
        }
    }
}

/// Counts a request until it is dropped.
struct Counted(Arc<AtomicU64>);

impl Counted {
    fn new(requests: &Arc<AtomicU64>) -> Self {
        requests.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(requests))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
