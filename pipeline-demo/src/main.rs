//! The program `pipeline-demo`: arguments, logs, run, exit code.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use pipeline_demo::cli::Cli;

/// A record is a dozen small pieces, which one thread allocates and another frees; the system's allocator costs a tenth of
/// a task. No huge pages (`no_thp`), as in friday-proxy: they would be resident whole.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    pipeline_demo::demo::die_with_parent();
    let cli = Cli::parse();
    cli.start_logs();
    let ended = cli
        .runtime()
        .context("no threads could be started")
        .and_then(|runtime| runtime.block_on(cli.run()));
    match ended {
        Ok(code) => code,
        Err(error) => {
            // The whole chain, once.
            eprintln!("pipeline-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}
