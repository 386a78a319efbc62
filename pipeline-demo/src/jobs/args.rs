//! `pipeline-demo jobs`: a node's jobs as a process of its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Args;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::runner::Runner;
use super::tasks::Tasks;
use crate::bus::BusConfig;
use crate::server::{self, Health, Server, ServerConfig, ServerError};
use crate::sink::{DatabaseArgs, DatabaseConfig};
use crate::telemetry::Identity;
use crate::workflow::Pipeline;

/// What `pipeline-demo jobs` is told.
#[derive(Debug, Args)]
#[group(skip)]
pub struct JobsArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// The pipeline.yml whose jobs are run; without it, or without jobs in it, the usual three
    #[arg(long, value_name = "FILE")]
    pipeline: Option<PathBuf>,
}

/// Runs jobs until `shutdown`.
///
/// # Errors
/// When the pipeline.yml is wrong, or the store or the address cannot be used.
pub async fn run(
    args: JobsArgs,
    bus: BusConfig,
    server: ServerConfig,
    identity: Identity,
    shutdown: CancellationToken,
) -> anyhow::Result<Value> {
    let jobs = Pipeline::of(args.pipeline.as_deref())?.jobs;
    let database = DatabaseConfig::try_from(args.database)?;
    let Some(store) = database.open_when_there(&shutdown).await? else {
        return Ok(Value::Null);
    };
    let server = Server::bind(&server).await?;
    // Two processes of one machine are two nodes.
    let node = match identity.node.as_str() {
        "" => format!("{} {}", server.address(), std::process::id()),
        node => format!("{node} {}", std::process::id()),
    };
    let runner = Runner::new(Tasks::new(store, bus), jobs, &node, &identity);
    info!(listen = %server.address(), %database, node, "jobs: started");
    let routes = server::routes(Health {
        telemetry: runner.telemetry.clone(),
        ready: Arc::new(AtomicBool::new(true)),
        counted: runner.metrics.clone(),
    });
    let work = async {
        runner.run(&shutdown).await;
        Ok::<(), ServerError>(())
    };
    server::beside(server, routes, work).await?;
    info!("jobs: ended");
    Ok(json!({"node": node}))
}
