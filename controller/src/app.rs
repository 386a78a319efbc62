//! `friday serve`: builds the adapters from the arguments, wires them, runs them, and stops them in order.

mod engine;
mod hooks;
mod tasks;
mod telling;
mod tls;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use rollout::{Duration, Spec};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::agents::Agents;
use crate::api::{Api, router};
use crate::auth::{Identities, Tokens};
use crate::cli::{Usage, path};
use crate::clock::{Clock, SystemClock};
use crate::fleet::Fleet;
use crate::gitlab::GitlabArgs;
use crate::metrics_source::{MetricsSource, Prometheus};
use crate::orchestrator::Orchestrator;
use crate::origin::JobTokens;
use crate::reconciler::Reconciler;
use crate::server::Server;
use crate::spec::{self, ReadOptions};
use crate::store::{Sqlite, Store};

pub use engine::EngineArgs;
pub(crate) use engine::EngineIfAny;
pub use hooks::{HookArgs, Hooks, OnPipelineCancel};
use tasks::Tasks;
pub(crate) use tasks::docker_config;
pub use tasks::{Kind, TaskArgs};
pub use telling::{TellArgs, Telling};
pub use tls::TlsArgs;

/// Longest wait for requests that are being answered when the server stops.
const STOP_MAX: Duration = Duration::from_secs(5);

/// Runs the controller.
#[derive(Debug, Clone, clap::Args)]
pub struct ServeArgs {
    /// Address of the API and the board; port 0 takes a free one
    #[arg(
        long,
        env = "FRIDAY_LISTEN",
        default_value = "127.0.0.1:7070",
        value_name = "ADDR"
    )]
    pub listen: SocketAddr,
    /// Who may do what: a file of hashed tokens, of lines that `friday token` prints; read again when it changes
    #[arg(long, env = "FRIDAY_TOKENS", value_parser = path(), value_name = "FILE")]
    pub tokens: Option<PathBuf>,
    /// Whom GitLab vouches for, and what they may do: CI jobs by ID token, people by OpenID Connect; a YAML file
    #[arg(long, env = "FRIDAY_IDENTITIES", value_parser = path(), value_name = "FILE")]
    pub identities: Option<PathBuf>,
    /// TLS of our own
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Lets --listen be an address that other machines reach without TLS of our own: something in front speaks it, or the
    /// network is encrypted
    #[arg(long)]
    pub tls_in_front: bool,
    /// Folder of the state: rollouts, event log, tasks
    #[arg(
        long,
        env = "FRIDAY_STATE_DIR",
        default_value = "friday-state",
        value_name = "DIR"
    )]
    pub state_dir: PathBuf,
    /// A friday.yml whose service is served before its first rollout; may be given again
    #[arg(long = "service", value_name = "FILE")]
    pub services: Vec<PathBuf>,
    /// Who runs the tasks, and where
    #[command(flatten)]
    pub tasks: TaskArgs,
    /// Address of the Prometheus that guard.checks are asked of, such as http://prometheus:9090
    #[arg(long, env = "FRIDAY_PROMETHEUS", value_name = "URL")]
    pub prometheus: Option<String>,
    /// The GitLab that releases come from
    #[command(flatten)]
    pub gitlab: GitlabArgs,
    /// What is taken from it
    #[command(flatten)]
    pub hooks: HookArgs,
    /// Files and links of what others are told
    #[command(flatten)]
    pub tell: TellArgs,
    /// Write the address that was taken to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub addresses_file: Option<PathBuf>,
}

/// Runs the controller until SIGTERM or Ctrl-C.
///
/// # Errors
/// It could not start, or another controller took over. The message says what to do.
pub async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let signals = stop.clone();
    tokio::spawn(async move {
        if let Err(error) = terminated().await {
            tracing::error!(%error, "cannot wait for signals");
        }
        signals.cancel();
    });
    serve_until(args, stop).await
}

/// Waits for SIGTERM or Ctrl-C.
///
/// # Errors
/// Signals cannot be waited for.
pub async fn terminated() -> std::io::Result<()> {
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = term.recv() => Ok(()),
        result = tokio::signal::ctrl_c() => result,
    }
}

fn read_specs(args: &ServeArgs) -> anyhow::Result<Vec<Spec>> {
    let mut specs = Vec::new();
    for file in &args.services {
        let name = file.display().to_string();
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("--service {name} cannot be read"))?;
        match spec::read(
            &text,
            &name,
            &ReadOptions {
                plan: None,
                environment: None,
            },
        ) {
            Ok(spec) => specs.push(spec),
            Err(findings) => {
                let all: Vec<String> = findings.iter().map(ToString::to_string).collect();
                bail!(
                    "{name} has {} mistakes:\n{}",
                    findings.len(),
                    all.join("\n")
                );
            }
        }
    }
    Ok(specs)
}

/// Runs the controller until told to stop.
///
/// # Errors
/// As [`serve`].
pub async fn serve_until(args: ServeArgs, stop: CancellationToken) -> anyhow::Result<()> {
    check_reach(&args)?;
    let specs = read_specs(&args)?;
    // An empty variable is one that is not set.
    let prometheus = args.prometheus.as_deref().filter(|url| !url.is_empty());
    let prometheus = prometheus
        .map(Prometheus::at)
        .transpose()
        .context("--prometheus")?;
    let metrics = prometheus.map(|prometheus| Arc::new(prometheus) as Arc<dyn MetricsSource>);
    args.tell.check_own([
        (
            "--gitlab-token-file",
            args.gitlab.gitlab_token_file.as_ref(),
        ),
        (
            "--webhook-secret-file",
            args.hooks.webhook_secret_file.as_ref(),
        ),
        (
            "--webhook-signing-key-file",
            args.hooks.webhook_signing_key_file.as_ref(),
        ),
        ("--tls-key", args.tls.tls_key.as_ref()),
        ("--tokens", args.tokens.as_ref()),
    ])?;
    let telling = Telling::open(&args.gitlab, &args.tell)?;
    std::fs::create_dir_all(&args.state_dir)
        .with_context(|| format!("--state-dir {} cannot be made", args.state_dir.display()))?;
    let certificate = args.tls.open(&stop)?;
    let listener = bind(args.listen).await?;
    let clock: Arc<dyn Clock> = SystemClock::new();
    let tokens = who_may(&args, &clock, &stop)?;
    let gitlab = args.gitlab.open()?;
    let hooks = args.hooks.open(gitlab.as_ref(), &clock)?;
    let store: Arc<dyn Store> = Arc::new(Sqlite::open(&args.state_dir.join("friday.db")).await?);
    let tasks = Tasks::open(&args.tasks, &args.state_dir, Arc::clone(&clock)).await?;
    let orchestrator = tasks.orchestrator();
    let address = announce(&listener, args.addresses_file.as_deref())?;
    let scheme = if certificate.is_some() {
        "https"
    } else {
        "http"
    };
    tracing::info!(%address, "the controller listens: board at {scheme}://{address}/");
    let outcome = run(
        Server::new(listener, certificate),
        Adapters {
            store: Arc::clone(&store),
            orchestrator,
            clock,
            specs,
            metrics,
            tokens,
            hooks,
            telling,
        },
        stop,
    )
    .await;
    store.close().await;
    tasks.close().await;
    outcome
}

/// Who may do what; `None` where everybody may do everything.
fn who_may(
    args: &ServeArgs,
    clock: &Arc<dyn Clock>,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Arc<Tokens>>> {
    let (file, identities) = (given(&args.tokens), given(&args.identities));
    let identities = identities
        .map(|file| Identities::open(file, Arc::clone(clock)))
        .transpose()
        .context("--identities")?;
    if let Some(identities) = &identities {
        let own = identities.secret_files();
        args.tell
            .check_own(own.map(|file| ("--identities", file)))?;
    }
    if file.is_none() && identities.is_none() {
        return Ok(None);
    }
    let with_identities = identities.is_some();
    let tokens = Tokens::with(file.map(PathBuf::as_path), identities).context("--tokens")?;
    tracing::info!(
        count = tokens.count(),
        with_identities,
        "requests need a token or a session"
    );
    if let Some(file) = file {
        let watching = Arc::clone(&tokens).keep_watch(file.clone(), stop.child_token());
        tokio::spawn(async move {
            if let Err(error) = watching.await {
                tracing::error!(%error, "cannot wait for SIGHUP: the tokens stay as they are");
            }
        });
    }
    Ok(Some(tokens))
}

/// An empty variable is one that is not set.
fn given(path: &Option<PathBuf>) -> Option<&PathBuf> {
    path.as_ref().filter(|path| !path.as_os_str().is_empty())
}

/// Whoever reaches the API commands releases. Elsewhere than on this machine it takes tokens, and TLS so that none is read on
/// its way.
fn check_reach(args: &ServeArgs) -> Result<(), Usage> {
    let listen = args.listen;
    let is_tls = args.tls.files()?.is_some() || args.tls_in_front;
    if listen.ip().is_loopback() {
        return Ok(());
    }
    if given(&args.tokens).is_none() && given(&args.identities).is_none() {
        return Err(Usage(format!(
            "--listen {listen}: other machines reach it, and everybody there could command releases; expected a loopback address, or --tokens FILE (`friday token NAME --role ROLE` prints its lines) and TLS: --tls-cert FILE with --tls-key FILE, or --tls-in-front"
        )));
    }
    if !is_tls {
        return Err(Usage(format!(
            "--listen {listen}: other machines reach it, and tokens would go there in the clear; expected a loopback address, --tls-cert FILE with --tls-key FILE, or --tls-in-front if something in front speaks TLS or the network is encrypted"
        )));
    }
    Ok(())
}

/// What the controller works with.
#[derive(Debug)]
pub struct Adapters {
    /// Where its state is kept.
    pub store: Arc<dyn Store>,
    /// Who runs the tasks.
    pub orchestrator: Arc<dyn Orchestrator>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Services that are served before their first rollout.
    pub specs: Vec<Spec>,
    /// What the checks of guards are asked of.
    pub metrics: Option<Arc<dyn MetricsSource>>,
    /// Who may do what; `None` lets everybody do everything.
    pub tokens: Option<Arc<Tokens>>,
    /// What is taken from GitLab.
    pub hooks: Hooks,
    /// Whom it may tell how releases go.
    pub telling: Telling,
}

/// Takes the address of `--listen`.
///
/// # Errors
/// It is taken, or not this machine's.
pub(crate) async fn bind(listen: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(listen).await.with_context(|| {
        format!("cannot listen on {listen}: choose another address with --listen, or port 0")
    })
}

/// The address that was taken, which is also written to the `--addresses-file`.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn announce(listener: &TcpListener, file: Option<&Path>) -> anyhow::Result<SocketAddr> {
    let address = listener
        .local_addr()
        .context("the address that was taken cannot be read")?;
    if let Some(file) = file {
        write_whole(file, &serde_json::json!({ "listen": address }).to_string())
            .with_context(|| format!("--addresses-file {} cannot be written", file.display()))?;
    }
    Ok(address)
}

/// Writes a file so that whoever reads it finds all of it or nothing.
fn write_whole(file: &Path, text: &str) -> std::io::Result<()> {
    let partial = file.with_extension("partial");
    std::fs::write(&partial, text)?;
    std::fs::rename(&partial, file)
}

/// The controller on these adapters, until told to stop. This is what tests call, with the adapters they like.
///
/// # Errors
/// The store cannot be read, or another controller took over.
pub async fn run(
    server: impl Into<Server>,
    adapters: Adapters,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let Adapters {
        store,
        orchestrator,
        clock,
        specs,
        metrics,
        tokens,
        hooks,
        telling,
    } = adapters;
    let fleet = Fleet::new();
    let (reconciler, handle) = Reconciler::start(
        Arc::clone(&store),
        orchestrator,
        Arc::clone(&fleet),
        Arc::clone(&clock),
        specs,
    )
    .await?;
    let agents = Agents::new();
    let reconciler = reconciler
        .with_metrics(metrics.clone())
        .with_agents(Arc::clone(&agents))
        .with_freezes(hooks.freezes.clone())
        .with_audience(telling.audience.clone());
    let webhooks = hooks.webhooks.clone();
    let (gitlab, freezes) = (hooks.gitlab_url(), hooks.freezes.clone());
    let hooks_stop = CancellationToken::new();
    let mut hooked = tokio::spawn(hooks.run(handle.clone(), hooks_stop.clone()));
    let job_tokens: Arc<JobTokens> = Arc::default();
    let telling_stop = CancellationToken::new();
    let telling = telling.start(
        Arc::clone(&store),
        reconciler.term(),
        Arc::clone(&clock),
        Arc::clone(&job_tokens),
        reconciler.wake(),
        telling_stop.clone(),
    );
    let (stopping, stopped) = watch::channel(false);
    let api = Api {
        store,
        fleet,
        agents,
        handle,
        metrics,
        tokens,
        job_tokens,
        webhooks,
        gitlab,
        freezes,
        clock,
        stopping: stopped,
    };
    let loop_stop = stop.child_token();
    let mut turning = tokio::spawn(reconciler.run(loop_stop.clone()));
    let server_stop = CancellationToken::new();
    let graceful = server_stop.clone();
    let mut serving = tokio::spawn(server.into().serve(router(api), graceful));
    let ended = tokio::select! {
        () = stop.cancelled() => None,
        ended = &mut turning => Some(ended),
        ended = &mut serving => {
            ended.context("the server panicked")?;
            bail!("the server ended by itself");
        }
    };
    // Waits and streams end first, then connections, then the loop that they might ask.
    stopping.send_replace(true);
    server_stop.cancel();
    if tokio::time::timeout(STOP_MAX, &mut serving).await.is_err() {
        tracing::warn!(limit = ?STOP_MAX, "some callers did not finish in time; they were cut off");
        serving.abort();
    }
    hooks_stop.cancel();
    if tokio::time::timeout(STOP_MAX, &mut hooked).await.is_err() {
        hooked.abort();
    }
    loop_stop.cancel();
    let outcome = match ended {
        Some(ended) => ended,
        None => turning.await,
    };
    // Last, so that what the loop's last turn wrote may still be told.
    telling_stop.cancel();
    telling::end(telling).await;
    outcome
        .context("the loop panicked")?
        .context("the loop ended")?;
    Ok(())
}
