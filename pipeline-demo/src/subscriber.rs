//! The subscriber: takes tweets from the filtered stream of X and appends them to topic "tweets", as they come.
//!
//! It does not filter out what a backfill gives again: results are stored by the tweet's id, once.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;
use clap::Args;
use friday::clock::{Clock, SystemClock};
use prometheus::IntCounter;
use serde::Serialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::backoff::Hush;
use crate::bus::{Bus, BusConfig, BusError};
use crate::intake::{BATCH_MAX, append_all};
use crate::server::{self, Counted, Health, Server, ServerConfig, ServerError};
use crate::source::x::{BACKFILL_MINUTES_MAX, RULES_MAX, Rule, Schedule, X_URL, XConfig, XStream};
use crate::source::{Source, SourceError};
use crate::telemetry::{Identity, Telemetry};
use crate::workflow::Pipeline;

/// How long the records on their way may take once the subscriber is told to stop.
const STOP_WAIT_MAX: Duration = Duration::from_secs(5);

/// Which stream: the options of `subscribe`.
#[derive(Debug, Args)]
pub struct StreamArgs {
    /// File with the bearer token of an X project, readable for its owner alone
    #[arg(long, value_name = "FILE")]
    x_token_file: PathBuf,
    /// A rule of the stream, in X's words; give it again for more. Rules with other tags than ours stay as they are
    #[arg(long = "x-rule", value_name = "TAG=RULE", value_parser = Rule::parse)]
    x_rules: Vec<Rule>,
    /// A pipeline.yml whose `stream` has rules and the backfill
    #[arg(long, value_name = "FILE")]
    pipeline: Option<PathBuf>,
    /// Most minutes to ask for again after a gap, where the plan has it; by default as the pipeline.yml says, else none
    #[arg(long, value_name = "MINUTES",
        value_parser = clap::value_parser!(u8).range(1..=i64::from(BACKFILL_MINUTES_MAX)))]
    x_backfill_minutes: Option<u8>,
    /// Address of X's API
    #[arg(long, value_name = "URL", default_value = X_URL)]
    x_url: String,
}

impl StreamArgs {
    /// The stream that they describe.
    ///
    /// # Errors
    /// When the pipeline.yml is wrong, or there are no rules or more than X takes: a stream without rules never sends anything.
    pub fn config(self) -> anyhow::Result<XConfig> {
        let pipeline = Pipeline::of(self.pipeline.as_deref())?;
        let stream = pipeline.stream.unwrap_or_default();
        let mut rules = stream.rules;
        rules.extend(self.x_rules);
        anyhow::ensure!(
            (1..=RULES_MAX).contains(&rules.len()),
            "{} rules; expected 1 to {RULES_MAX}: give one with --x-rule 'rust=(rust OR cargo) lang:en', or in the \
             pipeline.yml's stream",
            rules.len()
        );
        Ok(XConfig {
            base: self.x_url,
            token_file: self.x_token_file,
            rules,
            backfill_minutes_max: self.x_backfill_minutes.or(stream.backfill_minutes),
            schedule: Schedule::X,
        })
    }
}

/// What the subscriber does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriberConfig {
    /// Where to.
    pub bus: BusConfig,
    /// Where from.
    pub stream: XConfig,
    /// Where to show the counts.
    pub server: ServerConfig,
    /// Labels of the metrics.
    pub identity: Identity,
}

/// What was taken from the stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Subscribed {
    /// Records that are durable in the bus.
    pub tasks_produced: u64,
}

/// Why the subscriber ended early.
#[derive(Debug, thiserror::Error)]
pub enum SubscriberError {
    /// The stream cannot be had.
    #[error("there is no stream to subscribe to")]
    Source(#[from] SourceError),
    /// The bus failed in a way that trying again does not mend.
    #[error("the bus failed")]
    Bus(#[from] BusError),
    /// The process cannot be reached.
    #[error("the subscriber's server failed")]
    Server(#[from] ServerError),
}

/// Subscribes until `shutdown`; all it counted is durable when it returns.
///
/// # Errors
/// When the bus cannot be opened, or for the stream a person has to mend something. An X or a bus that is away is waited
/// for.
pub async fn run(
    config: SubscriberConfig,
    shutdown: CancellationToken,
) -> Result<Subscribed, SubscriberError> {
    let bus = tokio::select! {
        bus = config.bus.open() => bus?,
        () = shutdown.cancelled() => return Ok(Subscribed::default()),
    };
    let server = Server::bind(&config.server).await?;
    let telemetry = Arc::new(Telemetry::new(&config.identity));
    let clock: Arc<dyn Clock> = SystemClock::new();
    let base = config.stream.base.clone();
    let stream = XStream::start(config.stream, &telemetry, clock).map_err(SourceError::from)?;
    info!(listen = %server.address(), stream = base, "subscribe: started");
    let produced = telemetry.counter(
        "pipeline_produced_total",
        "Records appended to the topic of tweets, durably.",
    );
    let counts = Arc::new(Counts(produced));
    let health = Health {
        telemetry,
        ready: Arc::new(AtomicBool::new(true)),
        counted: counts.clone(),
    };
    let work = subscribe(stream, &*bus, &counts, shutdown);
    let subscribed = server::beside(server, server::routes(health), work).await?;
    info!(?subscribed, "subscribe: ended");
    Ok(subscribed)
}

/// The subscriber's count, live.
#[derive(Debug)]
struct Counts(IntCounter);

impl Counts {
    fn now(&self) -> Subscribed {
        Subscribed {
            tasks_produced: self.0.get(),
        }
    }
}

#[async_trait]
impl Counted for Counts {
    async fn counts(&self) -> Value {
        json!(self.now())
    }
}

async fn subscribe(
    mut stream: XStream,
    bus: &dyn Bus,
    counts: &Counts,
    shutdown: CancellationToken,
) -> Result<Subscribed, SubscriberError> {
    let hush = Hush::default();
    loop {
        let first = tokio::select! {
            biased;
            // What is here already is appended all the same: X sends it to nobody else.
            () = shutdown.cancelled() => None,
            first = stream.next() => first?,
        };
        let is_last = first.is_none();
        let mut batch: Vec<_> = first.into_iter().collect();
        while batch.len() < BATCH_MAX {
            match stream.try_next() {
                Some(record) => batch.push(record?),
                None => break,
            }
        }
        if batch.is_empty() {
            return Ok(counts.now());
        }
        let records = batch.len();
        let overdue = async {
            shutdown.cancelled().await;
            tokio::time::sleep(STOP_WAIT_MAX).await;
        };
        tokio::select! {
            appended = append_all(bus, batch, &hush) => appended?,
            () = overdue => {
                warn!(records, "subscribe: gave up records the bus did not take");
                return Ok(counts.now());
            }
        }
        counts.0.inc_by(records as u64);
        if is_last {
            return Ok(counts.now());
        }
    }
}
