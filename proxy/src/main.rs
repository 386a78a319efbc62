//! The proxy as a program of its own.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use friday_proxy::config::{Args, Config};
use friday_proxy::{app, health};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

/// Each thread allocates and frees what its own requests need, a dozen small pieces for each. This allocator keeps them
/// apart by thread; the system's costs a tenth of a request more. It asks for no huge pages (`no_thp`): with them a buffer of
/// 8 KiB of which 200 bytes are used takes all of its room.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A weighted reverse proxy that reports what became of every request.
#[derive(Debug, Parser)]
#[command(
    name = "friday-proxy",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(flatten)]
    args: Args,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What it does instead of serving.
#[derive(Debug, Subcommand)]
enum Command {
    /// Ask a running proxy whether it works: for the health check of its container
    Health(health::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(Command::Health(args)) = cli.command {
        return health::run(args).await;
    }
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let config = match Config::try_from(cli.args) {
        Ok(config) => config,
        Err(error) => {
            error!("{error}");
            return ExitCode::from(2);
        }
    };
    let shutdown = CancellationToken::new();
    let (mut term, mut int) = match (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) {
        (Ok(term), Ok(int)) => (term, int),
        (Err(error), _) | (_, Err(error)) => {
            error!(%error, "cannot listen for SIGTERM and SIGINT");
            return ExitCode::FAILURE;
        }
    };
    let asked = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => info!("SIGTERM"),
            _ = int.recv() => info!("SIGINT"),
        }
        asked.cancel();
    });
    match app::run(config, shutdown).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = error.exit_code();
            error!("{:#}", anyhow::Error::new(error));
            ExitCode::from(code)
        }
    }
}
