//! The program `friday`.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use friday::cli::{self, Cli};
use tracing_subscriber::EnvFilter;

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
    cli::run(cli).await
}
