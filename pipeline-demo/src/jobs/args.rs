//! `pipeline-demo jobs`: a node's jobs as a process of its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::runner::Runner;
use super::spec::{JobSpec, RawJob};
use super::tasks::Tasks;
use crate::bus::BusConfig;
use crate::server::{self, Health, Server, ServerConfig, ServerError};
use crate::sink::{DatabaseArgs, DatabaseConfig};
use crate::telemetry::Identity;

/// Longest file of jobs.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What `pipeline-demo jobs` is told.
#[derive(Debug, Args)]
#[group(skip)]
pub struct JobsArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// Jobs to run, a JSON list of objects as in pipeline.yml under jobs; without it, the usual three
    #[arg(long, value_name = "FILE.json")]
    jobs: Option<PathBuf>,
}

/// Runs jobs until `shutdown`.
///
/// # Errors
/// When a job is none, or the store or the address cannot be used.
pub async fn run(
    args: JobsArgs,
    bus: BusConfig,
    server: ServerConfig,
    identity: Identity,
    shutdown: CancellationToken,
) -> anyhow::Result<Value> {
    let jobs = match &args.jobs {
        Some(path) => {
            read(path).with_context(|| format!("cannot use the jobs of {}", path.display()))?
        }
        None => JobSpec::defaults(),
    };
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

fn read(path: &PathBuf) -> anyhow::Result<Vec<JobSpec>> {
    anyhow::ensure!(
        std::fs::metadata(path)?.len() <= FILE_BYTES_MAX,
        "it has more than {FILE_BYTES_MAX} bytes"
    );
    let raw: Vec<RawJob> = serde_json::from_slice(&std::fs::read(path)?)?;
    let mut names = std::collections::BTreeSet::new();
    let mut jobs = Vec::new();
    for raw in raw {
        anyhow::ensure!(
            names.insert(raw.name.clone()),
            "two jobs are called {:?}; each needs a name of its own",
            raw.name
        );
        jobs.push(JobSpec::try_from(raw)?);
    }
    Ok(jobs)
}
