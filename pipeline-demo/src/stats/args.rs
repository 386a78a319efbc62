//! `pipeline-demo stats`: the statistics as a process of their own.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use async_trait::async_trait;
use clap::Args;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::api::{Stats, router};
use crate::server::{self, Counted, Health, Server, ServerConfig, ServerError};
use crate::sink::{DatabaseArgs, DatabaseConfig, Store};
use crate::telemetry::{Identity, Telemetry};

/// What `pipeline-demo stats` is told.
#[derive(Debug, Args)]
#[group(skip)]
pub struct StatsArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// File with the token that POST /stats has to bring; without it no counters are taken
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Serves until `shutdown`.
///
/// # Errors
/// When the store, the token or the address cannot be used.
pub async fn run(
    args: StatsArgs,
    server: ServerConfig,
    identity: Identity,
    shutdown: CancellationToken,
) -> anyhow::Result<Value> {
    let token = match &args.token_file {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the token of {}", path.display()))?;
            let token = text.trim().to_owned();
            anyhow::ensure!(
                token.len() >= 16,
                "the token of {} is shorter than 16 characters; write a longer one, such as openssl rand -hex 32 makes",
                path.display()
            );
            Some(token)
        }
        None => None,
    };
    let database = DatabaseConfig::try_from(args.database)?;
    let Some(store) = database.open_when_there(&shutdown).await? else {
        return Ok(Value::Null);
    };
    let server = Server::bind(&server).await?;
    let stats = Stats::new(store.clone(), token.as_deref());
    info!(listen = %server.address(), %database, "stats: started");
    let routes = router(stats).merge(server::routes(Health {
        telemetry: Arc::new(Telemetry::new(&identity)),
        ready: Arc::new(AtomicBool::new(true)),
        counted: Arc::new(Rows(store)),
    }));
    let work = async {
        shutdown.cancelled().await;
        Ok::<(), ServerError>(())
    };
    server::beside(server, routes, work).await?;
    info!("stats: ended");
    Ok(Value::Null)
}

/// The rows of the store, for `/counts`.
struct Rows(Arc<dyn Store>);

#[async_trait]
impl Counted for Rows {
    async fn counts(&self) -> Value {
        self.0
            .stored()
            .await
            .map_or(Value::Null, |stored| json!(stored))
    }
}
