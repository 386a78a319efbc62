//! The program `pipeline-demo`: arguments, logs, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use pipeline_demo::cli::Cli;

#[tokio::main]
async fn main() -> ExitCode {
    pipeline_demo::demo::die_with_parent();
    pipeline_demo::tls::ensure_provider();
    let cli = Cli::parse();
    cli.start_logs();
    match cli.run().await {
        Ok(code) => code,
        Err(error) => {
            // The whole chain, once.
            eprintln!("pipeline-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}
