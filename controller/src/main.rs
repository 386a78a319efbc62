//! The program `friday`.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use friday::cli::{self, Cli};
use tracing_subscriber::EnvFilter;

/// The exit code after Ctrl-C, as shells have it.
const INTERRUPTED: i32 = 130;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    // Results go to standard output, so logs go to standard error. FRIDAY_LOG says how much: `info`, `friday=debug`.
    let filter = EnvFilter::try_from_env("FRIDAY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let has_colours = std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(has_colours)
        .init();
    if std::process::id() == 1 && !cli.serves() {
        // The first process of a container gets no signal that it has not asked for: Ctrl-C would do nothing.
        tokio::spawn(async {
            if friday::app::terminated().await.is_ok() {
                std::process::exit(INTERRUPTED);
            }
        });
    }
    cli::run(cli).await
}
