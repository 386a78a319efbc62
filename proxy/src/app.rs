//! Builds the proxy from its [`Config`], runs it, drains it.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use friday_traces::{Service, StartError, Traces};
use proxy_api::{BootId, RouteTable};
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::access_log::{self, AccessLog};
use crate::admin::{self, Admin};
use crate::body::SilenceMax;
use crate::chain;
use crate::config::{Config, Source};
use crate::drain::{self, WorkerError};
use crate::durable;
use crate::forward::{Forward, MIRRORED_MAX};
use crate::handover::{self, Offer};
use crate::link::{LAST_REPORT_MAX, Link};
pub use crate::routes::LoadError;
use crate::routes::{self, Routes, Save};
use crate::signals::{EPOCH_LENGTH, EPOCHS_WAITING_MAX, Signals};
use crate::telemetry::Telemetry;
use crate::tls::{Asking, AskingError, Certificate, TlsError};
use crate::token::{Token, TokenError};
use crate::upstream::{Dial, Peers};

/// The file of the last table, below the state directory.
const TABLE_FILE: &str = "table.json";

/// Clients whose connections the kernel makes before a worker takes them; the kernel has a limit of its own, too.
pub(crate) const BACKLOG: u32 = 4_096;

/// Longest wait for the parts of the proxy to end after the last client left. They have nothing to wait for but the
/// last report.
const END_MAX: std::time::Duration = LAST_REPORT_MAX.saturating_mul(2);

/// Why the proxy does not run, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The file of `--routes` is no table.
    #[error("the route table of --routes is refused")]
    Routes {
        /// What is wrong with it.
        source: LoadError,
    },
    /// The saved table cannot be used. It is left as it is.
    #[error(
        "the saved route table is damaged; mend {path}, or move it away to start without a table", path = .path.display()
    )]
    SavedTable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: LoadError,
    },
    /// The state directory cannot be used.
    #[error("cannot use the state directory {path}; --state-dir changes it", path = .path.display())]
    StateDir {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The access log cannot be written.
    #[error("cannot open the access log {path}; --access-log changes it", path = .path.display())]
    AccessLog {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Traces cannot be sent.
    #[error("traces cannot be recorded")]
    Traces {
        /// Why not.
        source: StartError,
    },
    /// The certificate for clients cannot be used.
    #[error("the certificate of --tls-cert and --tls-key is refused")]
    Certificate {
        /// What is wrong with it.
        source: TlsError,
    },
    /// The controller cannot be verified.
    #[error(
        "the controller at https:// cannot be verified; --controller-ca names the PEM file of its authorities"
    )]
    Authorities {
        /// Why not.
        source: AskingError,
    },
    /// The token for the controller cannot be used.
    #[error("the token of --token-file is refused")]
    Token {
        /// What is wrong with it.
        source: TokenError,
    },
    /// The route table of --routes cannot be put in force.
    #[error("the route table is refused")]
    Table {
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}; {option} changes it")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The option it came from.
        option: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The addresses in use cannot be written.
    #[error("cannot write the addresses to {path}; --addresses-file changes it", path = .path.display())]
    Addresses {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The system does not let the proxy hear of SIGHUP.
    #[error("cannot listen for SIGHUP")]
    Signal {
        /// Why not.
        source: io::Error,
    },
    /// A defect of ours, found at the start.
    #[error("cannot make the metrics")]
    Metrics {
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The threads that serve clients do not run.
    #[error("cannot serve clients")]
    Workers {
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A part of the proxy ended by a panic: a defect of ours.
    #[error("a part of the proxy panicked")]
    Panicked {
        /// Which, and how.
        source: JoinError,
    },
    /// The admin address stopped being served.
    #[error("cannot serve the admin address")]
    Admin {
        /// Why not.
        source: io::Error,
    },
}

impl AppError {
    /// The exit code of a program that ends for this reason: 2 if its arguments or the file they name are wrong, else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Routes { .. }
            | Self::Traces { .. }
            | Self::Certificate { .. }
            | Self::Authorities { .. }
            | Self::Token { .. }
            | Self::Table { .. } => 2,
            Self::SavedTable { .. }
            | Self::StateDir { .. }
            | Self::Bind { .. }
            | Self::Addresses { .. }
            | Self::Signal { .. }
            | Self::Metrics { .. }
            | Self::Workers { .. }
            | Self::AccessLog { .. }
            | Self::Panicked { .. }
            | Self::Admin { .. } => 1,
        }
    }
}

/// Runs a proxy until `shutdown`, and then until it is drained.
///
/// # Errors
/// See [`AppError`].
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), AppError> {
    App::build(config).await?.serve(shutdown).await
}

/// A proxy that has its table and its addresses and serves nobody yet.
#[derive(Debug)]
pub struct App {
    config: Config,
    access_log: Option<(AccessLog, access_log::Writer)>,
    traces: Option<Traces>,
    certificate: Option<Arc<Certificate>>,
    /// How the controller is connected to.
    dial: Dial,
    token: Option<Arc<Token>>,
    /// Of each worker.
    listeners: Vec<Vec<std::net::TcpListener>>,
    offer: Option<Offer>,
    admin: TcpListener,
    listen_address: SocketAddr,
    admin_address: SocketAddr,
    routes: Arc<Routes>,
    signals: Arc<Signals>,
    telemetry: Arc<Telemetry>,
}

impl App {
    /// Reads the table, binds both addresses, and tells them.
    ///
    /// # Errors
    /// See [`AppError`]; nothing is left behind.
    pub async fn build(config: Config) -> Result<Self, AppError> {
        let (table, file, waiting_max) = match &config.source {
            Source::File(file) => {
                let table = routes::load(file).map_err(|source| AppError::Routes { source })?;
                (Some(table), file.clone(), 0)
            }
            Source::Controller { state_dir, .. } => {
                let file = state_dir.join(TABLE_FILE);
                (saved_table(state_dir, &file)?, file, EPOCHS_WAITING_MAX)
            }
        };
        let telemetry = Telemetry::new().map_err(|error| AppError::Metrics {
            source: error.into(),
        })?;
        let telemetry = Arc::new(telemetry);
        let boot = BootId(rand::random());
        let workers = config.threads.get();
        let signals = Arc::new(Signals::new(boot, waiting_max, workers, Instant::now()));
        let routes = Arc::new(Routes::new(
            file,
            Arc::clone(&signals),
            Arc::clone(&telemetry),
            Arc::new(Peers::new(workers).leaving_within(config.clients.leaving_max)),
        ));
        if let Some(table) = table {
            let applied = routes.apply(table, Save::No).await;
            applied.map_err(|error| AppError::Table {
                source: error.into(),
            })?;
        }
        let access_log = match &config.access_log {
            None => None,
            Some((path, share)) => {
                let opened = AccessLog::open(path, *share, telemetry.access_log_dropped.clone());
                Some(opened.map_err(|source| AppError::AccessLog {
                    path: path.clone(),
                    source,
                })?)
            }
        };
        let certificate = config.certificate.clone().map(Certificate::load);
        let certificate = certificate
            .transpose()
            .map_err(|source| AppError::Certificate { source })?
            .map(Arc::new);

        let token = match &config.source {
            Source::Controller {
                token_file: Some(file),
                ..
            } => {
                let opened = Token::open(file).map_err(|source| AppError::Token { source })?;
                Some(Arc::new(opened))
            }
            Source::Controller { .. } | Source::File(_) => None,
        };
        let dial = match &config.source {
            Source::Controller { controller, ca, .. } if controller.is_tls => {
                let asking = Asking::controller(&controller.host, ca.as_deref());
                let asking = asking.map_err(|source| AppError::Authorities { source })?;
                Dial::by_tls(asking)
            }
            Source::Controller { .. } | Source::File(_) => Dial::default(),
        };
        let (admin, admin_address) = bind(config.admin, "--admin").await?;
        let taken = if config.takeover {
            taken(config.listen).await
        } else {
            Vec::new()
        };
        let shared = bind_shared(config.listen, workers, config.takeover, taken);
        let (listeners, offer, listen_address) = shared.map_err(|source| AppError::Bind {
            address: config.listen,
            option: "--listen",
            source,
        })?;
        let traces = config.traces.as_ref().map(|traces| {
            let instance = match &config.source {
                Source::Controller { name, .. } => name.clone(),
                Source::File(_) => boot.to_string(),
            };
            let service = Service {
                name: "friday-proxy".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                instance,
            };
            Traces::start(traces, &service).map_err(|source| AppError::Traces { source })
        });
        let traces = traces.transpose()?;
        info!(listen = %listen_address, admin = %admin_address, %boot, "listening");
        if let Some(path) = &config.addresses_file {
            let addresses = serde_json::json!({
                "listen": listen_address.to_string(),
                "admin": admin_address.to_string(),
            });
            durable::write(path, addresses.to_string().as_bytes()).map_err(|source| {
                AppError::Addresses {
                    path: path.clone(),
                    source,
                }
            })?;
        }
        Ok(Self {
            config,
            access_log,
            traces,
            certificate,
            dial,
            token,
            listeners,
            offer,
            admin,
            listen_address,
            admin_address,
            routes,
            signals,
            telemetry,
        })
    }

    /// Where clients connect.
    #[must_use]
    pub fn listen_address(&self) -> SocketAddr {
        self.listen_address
    }

    /// Where the proxy itself can be asked.
    #[must_use]
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Serves until `shutdown`, drains, and sends the last report.
    ///
    /// # Errors
    /// See [`AppError`].
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), AppError> {
        // Cancelled when the last client has left.
        let end = CancellationToken::new();
        let mut parts = Parts::default();
        let due = Arc::new(Notify::new());
        parts.spawn(keep_time(
            Arc::clone(&self.signals),
            Arc::clone(&due),
            end.clone(),
        ));
        let peers = Arc::clone(self.routes.peers());
        parts.spawn(peers.keep_watch(end.clone()));
        let admin = admin::router(Admin {
            routes: Arc::clone(&self.routes),
            telemetry: Arc::clone(&self.telemetry),
            draining: shutdown.clone(),
            alone: matches!(self.config.source, Source::File(_)),
        });
        let ended = end.clone();
        let admin = axum::serve(self.admin, admin)
            .with_graceful_shutdown(async move { ended.cancelled().await });
        parts.spawn_fallible(async move {
            let served = admin.await;
            served.map_err(|source| AppError::Admin { source })
        });
        match self.config.source {
            Source::File(file) => {
                let hangups =
                    signal(SignalKind::hangup()).map_err(|source| AppError::Signal { source })?;
                parts.spawn(reload(hangups, file, Arc::clone(&self.routes), end.clone()));
            }
            Source::Controller {
                controller, name, ..
            } => {
                let link = Arc::new(Link::new(
                    controller,
                    self.dial,
                    self.token,
                    name,
                    Arc::clone(&self.routes),
                    Arc::clone(&self.signals),
                    due,
                ));
                let (polling, ended) = (Arc::clone(&link), end.clone());
                parts.spawn(async move { polling.poll(&ended).await });
                let ended = end.clone();
                parts.spawn(async move {
                    link.report(&ended).await;
                    link.report_last().await;
                });
            }
        }
        let (log, writer) = self.access_log.unzip();
        let log = log.map(Arc::new);
        let tracer = self.traces.as_ref().map(Traces::tracer);
        let workers = self.listeners.into_iter().enumerate();
        let workers = workers.map(|(worker, listeners)| {
            let forward = Arc::new(Forward {
                worker,
                headers_max: self.config.clients.headers_max,
                silence_max: SilenceMax {
                    answer: self.config.clients.answer_idle_max,
                    stream: self.config.clients.stream_idle_max,
                },
                routes: Arc::clone(&self.routes),
                shard: Arc::clone(self.signals.shard(worker)),
                telemetry: Arc::clone(&self.telemetry),
                mirrored: Arc::new(Semaphore::new(MIRRORED_MAX)),
                log: log.clone(),
                tracer: tracer.clone(),
            });
            (listeners, forward)
        });
        let workers = workers.collect();
        drop(log);
        if let Some(certificate) = &self.certificate {
            parts.spawn(Arc::clone(certificate).keep_watch(end.clone()));
        }
        if let Some(offer) = self.offer {
            parts.spawn(offer.serve(shutdown.clone()));
        }
        let (clients, certificate) = (self.config.clients, self.certificate);
        let drain_max = self.config.drain_max;
        let drained = end.clone();
        parts.spawn_fallible(async move {
            let served = drain::serve(workers, clients, certificate, shutdown, drain_max).await;
            drained.cancel();
            served.map_err(|error: WorkerError| AppError::Workers {
                source: error.into(),
            })
        });
        let ended = parts.join(&end).await;
        if let Some(writer) = writer {
            // The workers have ended, and with them everybody who writes.
            drop(timeout(END_MAX, tokio::task::spawn_blocking(|| writer.finish())).await);
        }
        if let Some(traces) = self.traces {
            traces.end().await;
        }
        ended
    }
}

async fn bind(
    address: SocketAddr,
    option: &'static str,
) -> Result<(TcpListener, SocketAddr), AppError> {
    let failed = |source| AppError::Bind {
        address,
        option,
        source,
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let chosen = listener.local_addr().map_err(failed)?;
    Ok((listener, chosen))
}

/// The sockets of the proxy whose place is to be taken; none if it does not hand them over, and then the address is
/// shared.
async fn taken(address: SocketAddr) -> Vec<std::net::TcpListener> {
    handover::take(address).await.unwrap_or_else(|error| {
        let error = chain(&error);
        warn!(%address, error, "no sockets to take over: clients that just connect to an old proxy when it ends are reset");
        Vec::new()
    })
}

/// At least one listening socket for each worker, all at the same address: those that were taken, and new ones as
/// needed. Unless it is to be taken over, nobody else may listen there: the sockets share the address
/// (`SO_REUSEPORT`), and a second proxy started by mistake would get half of the clients. With them comes what the next
/// proxy may have.
fn bind_shared(
    address: SocketAddr,
    workers: usize,
    takeover: bool,
    mut taken: Vec<std::net::TcpListener>,
) -> io::Result<(Vec<Vec<std::net::TcpListener>>, Option<Offer>, SocketAddr)> {
    let bound = |address: SocketAddr, shared: bool| {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        socket.set_reuseport(shared)?;
        socket.bind(address)?;
        Ok::<_, io::Error>(socket)
    };
    if !takeover {
        drop(bound(address, false)?);
    }
    let mut chosen = address;
    while taken.len() < workers {
        let listener = bound(chosen, true)?.listen(BACKLOG)?.into_std()?;
        chosen = listener.local_addr()?;
        taken.push(listener);
    }
    let again = taken.iter().map(std::net::TcpListener::try_clone);
    let offer = Offer::new(chosen, again.collect::<io::Result<_>>()?)
        .inspect_err(|error| warn!(%error, "the next proxy cannot take the sockets over"));
    let mut listeners = Vec::new();
    listeners.resize_with(workers, Vec::new);
    for (number, listener) in taken.into_iter().enumerate() {
        listeners[number % workers].push(listener);
    }
    Ok((listeners, offer.ok(), chosen))
}

/// The last table in the state directory, which is made if it is missing.
fn saved_table(state_dir: &Path, file: &Path) -> Result<Option<RouteTable>, AppError> {
    std::fs::create_dir_all(state_dir).map_err(|source| AppError::StateDir {
        path: state_dir.to_owned(),
        source,
    })?;
    match routes::load(file) {
        Ok(table) => Ok(Some(table)),
        Err(LoadError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(AppError::SavedTable {
            path: file.to_owned(),
            source,
        }),
    }
}

/// Ends epochs, and says when a report is due.
async fn keep_time(signals: Arc<Signals>, due: Arc<Notify>, end: CancellationToken) {
    let mut ticks = interval(EPOCH_LENGTH);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick is at once, and nothing has happened yet.
    ticks.tick().await;
    while end.run_until_cancelled(ticks.tick()).await.is_some() {
        signals.tick(Instant::now());
        due.notify_one();
    }
}

/// Reads the table again at each SIGHUP. A bad file changes nothing.
async fn reload(
    mut hangups: tokio::signal::unix::Signal,
    file: PathBuf,
    routes: Arc<Routes>,
    end: CancellationToken,
) {
    while let Some(Some(())) = end.run_until_cancelled(hangups.recv()).await {
        match routes::load(&file) {
            Err(error) => {
                error!(error = %chain(&error), "the new route table is refused, the old one serves on");
            }
            Ok(table) => {
                if let Err(error) = routes.apply_by_hand(table, Save::No).await {
                    error!(error = %chain(&error), file = %file.display(), "the new route table is refused, the old one serves on");
                }
            }
        }
    }
}

/// The tasks that make up the proxy. If one of them fails, all end.
#[derive(Debug, Default)]
struct Parts {
    tasks: JoinSet<Result<(), AppError>>,
}

impl Parts {
    fn spawn(&mut self, part: impl Future<Output = ()> + Send + 'static) {
        self.spawn_fallible(async move {
            part.await;
            Ok(())
        });
    }

    fn spawn_fallible(
        &mut self,
        part: impl Future<Output = Result<(), AppError>> + Send + 'static,
    ) {
        self.tasks.spawn(part);
    }

    /// Waits for all of them; for long only until `end`.
    async fn join(mut self, end: &CancellationToken) -> Result<(), AppError> {
        let all = async {
            while let Some(joined) = self.tasks.join_next().await {
                joined.map_err(|source| AppError::Panicked { source })??;
            }
            Ok(())
        };
        let late = async {
            end.cancelled().await;
            timeout(END_MAX, std::future::pending::<()>()).await
        };
        tokio::select! {
            joined = all => joined,
            _ = late => {
                error!("parts of the proxy did not end in time");
                Ok(())
            }
        }
    }
}
