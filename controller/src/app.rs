//! `friday serve`: builds the adapters from the arguments, wires them, runs them, and stops them in order.

mod tasks;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use rollout::{Duration, Spec};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::{Api, router};
use crate::clock::{Clock, SystemClock};
use crate::fleet::Fleet;
use crate::metrics_source::{MetricsSource, Prometheus};
use crate::orchestrator::Orchestrator;
use crate::reconciler::Reconciler;
use crate::spec::{self, ReadOptions};
use crate::store::{Sqlite, Store};

use tasks::Tasks;
pub use tasks::{Kind, TaskArgs};

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
    if !args.listen.ip().is_loopback() {
        bail!(
            "--listen {}: without accounts the controller listens on loopback only; take 127.0.0.1:{} and let a proxy with sign-in and TLS stand before it",
            args.listen,
            args.listen.port()
        );
    }
    let specs = read_specs(&args)?;
    // An empty variable is one that is not set.
    let prometheus = args.prometheus.as_deref().filter(|url| !url.is_empty());
    let prometheus = prometheus
        .map(Prometheus::at)
        .transpose()
        .context("--prometheus")?;
    let metrics = prometheus.map(|prometheus| Arc::new(prometheus) as Arc<dyn MetricsSource>);
    std::fs::create_dir_all(&args.state_dir)
        .with_context(|| format!("--state-dir {} cannot be made", args.state_dir.display()))?;
    let listener = TcpListener::bind(args.listen).await.with_context(|| {
        format!(
            "cannot listen on {}: choose another address with --listen, or port 0",
            args.listen
        )
    })?;
    let clock: Arc<dyn Clock> = SystemClock::new();
    let store: Arc<dyn Store> = Arc::new(Sqlite::open(&args.state_dir.join("friday.db")).await?);
    let tasks = Tasks::open(&args.tasks, &args.state_dir, Arc::clone(&clock)).await?;
    let orchestrator = tasks.orchestrator();
    let address = listener
        .local_addr()
        .context("the address that was taken cannot be read")?;
    if let Some(file) = &args.addresses_file {
        write_whole(file, &serde_json::json!({ "listen": address }).to_string())
            .with_context(|| format!("--addresses-file {} cannot be written", file.display()))?;
    }
    tracing::info!(%address, "the controller listens: board at http://{address}/");
    let outcome = run(
        listener,
        Arc::clone(&store),
        orchestrator,
        clock,
        specs,
        metrics,
        stop,
    )
    .await;
    store.close().await;
    tasks.close().await;
    outcome
}

/// Writes a file so that whoever reads it finds all of it or nothing.
fn write_whole(file: &std::path::Path, text: &str) -> std::io::Result<()> {
    let partial = file.with_extension("partial");
    std::fs::write(&partial, text)?;
    std::fs::rename(&partial, file)
}

/// The controller on these adapters, until told to stop. This is what tests call, with the adapters they like.
///
/// # Errors
/// The store cannot be read, or another controller took over.
pub async fn run(
    listener: TcpListener,
    store: Arc<dyn Store>,
    orchestrator: Arc<dyn Orchestrator>,
    clock: Arc<dyn Clock>,
    specs: Vec<Spec>,
    metrics: Option<Arc<dyn MetricsSource>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let fleet = Fleet::new();
    let (reconciler, handle) = Reconciler::start(
        Arc::clone(&store),
        orchestrator,
        Arc::clone(&fleet),
        Arc::clone(&clock),
        specs,
    )
    .await?;
    let reconciler = reconciler.with_metrics(metrics);
    let (stopping, stopped) = watch::channel(false);
    let api = Api {
        store,
        fleet,
        handle,
        clock,
        stopping: stopped,
    };
    let loop_stop = stop.child_token();
    let mut turning = tokio::spawn(reconciler.run(loop_stop.clone()));
    let server_stop = CancellationToken::new();
    let graceful = server_stop.clone();
    let server = axum::serve(listener, router(api))
        .with_graceful_shutdown(async move { graceful.cancelled().await });
    let mut serving = tokio::spawn(async move { server.await });
    let ended = tokio::select! {
        () = stop.cancelled() => None,
        ended = &mut turning => Some(ended),
        ended = &mut serving => {
            ended.context("the server panicked")?.context("the server failed")?;
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
    loop_stop.cancel();
    let outcome = match ended {
        Some(ended) => ended,
        None => turning.await,
    };
    outcome
        .context("the loop panicked")?
        .context("the loop ended")?;
    Ok(())
}
