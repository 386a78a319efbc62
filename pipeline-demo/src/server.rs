//! What every process of the pipeline answers over HTTP: whether it lives, whether it is ready, its metrics and counts.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::{Router, routing};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::telemetry::Telemetry;

/// How long open connections may take to end once their server stops.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(1);

/// Where a process listens and where it says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// The address; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// A file to write the chosen address to: `{"pid": N, "listen": "HOST:PORT"}`.
    pub addresses_file: Option<PathBuf>,
}

/// A process with something to count.
#[async_trait]
pub trait Counted: Send + Sync {
    /// The counts so far, as one JSON object.
    async fn counts(&self) -> Value;
}

/// What the common routes show.
#[derive(Clone)]
pub(crate) struct Health {
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) ready: Arc<AtomicBool>,
    pub(crate) counted: Arc<dyn Counted>,
}

/// `/live`, `/ready`, `/metrics` and `/counts`.
pub(crate) fn routes(health: Health) -> Router {
    Router::new()
        .route("/live", routing::get(StatusCode::OK))
        .route("/ready", routing::get(ready))
        .route("/metrics", routing::get(metrics))
        .route("/counts", routing::get(counts))
        .with_state(health)
}

async fn ready(State(health): State<Health>) -> Response {
    if health.ready.load(Ordering::Acquire) {
        return (StatusCode::OK, "ready").into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "not ready").into_response()
}

async fn metrics(State(health): State<Health>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (kind, health.telemetry.text()).into_response()
}

async fn counts(State(health): State<Health>) -> Json<Value> {
    Json(health.counted.counts().await)
}

/// Why a process cannot be reached over HTTP.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address is taken or not ours.
    #[error(
        "cannot listen on {address}; choose another address with --listen, port 0 takes any free one"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The file with the address cannot be written.
    #[error("cannot write the addresses file {}", path.display())]
    AddressesFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The server failed while it ran.
    #[error("the server on {address} failed")]
    Serve {
        /// Where it listened.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// A server that listens already, so that its address is known and announced.
#[derive(Debug)]
pub(crate) struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    pub(crate) async fn bind(config: &ServerConfig) -> Result<Self, ServerError> {
        let address = config.listen;
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|source| ServerError::Listen { address, source })?;
        let bound = listener.local_addr();
        let address = bound.map_err(|source| ServerError::Listen { address, source })?;
        if let Some(path) = &config.addresses_file {
            announce(path, address).map_err(|source| ServerError::AddressesFile {
                path: path.clone(),
                source,
            })?;
        }
        Ok(Self { listener, address })
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`; then takes no connection any more, and ends with the last open one, but within `drain_max`.
    pub(crate) async fn serve(
        self,
        router: Router,
        stop: CancellationToken,
        drain_max: Duration,
    ) -> Result<(), ServerError> {
        let address = self.address;
        let stopped = stop.clone();
        let serving = axum::serve(self.listener, router)
            .with_graceful_shutdown(async move { stopped.cancelled().await })
            .into_future();
        let overdue = async {
            stop.cancelled().await;
            tokio::time::sleep(drain_max).await;
        };
        tokio::select! {
            served = serving => served.map_err(|source| ServerError::Serve { address, source }),
            () = overdue => Ok(()),
        }
    }
}

/// Runs `work` beside its server; the server ends when the work does, and so does the work when the server fails.
pub(crate) async fn beside<T, E: From<ServerError>>(
    server: Server,
    router: Router,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let stop = CancellationToken::new();
    let serving = server.serve(router, stop.clone(), CLOSE_WAIT_MAX);
    tokio::pin!(serving);
    tokio::select! {
        served = &mut serving => match served {
            Ok(()) => unreachable!("a server ends when it is told to or fails"),
            Err(error) => Err(error.into()),
        },
        done = work => {
            stop.cancel();
            // Its answers are given; a peer that keeps its connection must not keep us.
            timeout(CLOSE_WAIT_MAX, serving).await.ok();
            done
        }
    }
}

/// Writes the address so that a reader sees all of it or nothing: a temporary file, then a rename.
fn announce(path: &Path, address: SocketAddr) -> io::Result<()> {
    let document = json!({"pid": std::process::id(), "listen": address.to_string()});
    write_whole(path, document.to_string().as_bytes())
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

/// A problem document (RFC 9457) as the answer.
pub(crate) fn problem(status: StatusCode, code: &str, detail: &str) -> Response {
    let document = BTreeMap::from([
        ("type", json!("about:blank")),
        ("title", json!(status.canonical_reason())),
        ("status", json!(status.as_u16())),
        ("code", json!(code)),
        ("detail", json!(detail)),
    ]);
    let kind = [(header::CONTENT_TYPE, "application/problem+json")];
    (status, kind, json!(document).to_string()).into_response()
}
