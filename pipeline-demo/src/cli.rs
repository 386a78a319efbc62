//! The command line: a subcommand for each step of the pipeline.

use std::io::IsTerminal;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use friday_proxy::health;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing_subscriber::EnvFilter;

use crate::bus::BusArgs;
use crate::demo::{self, DemoArgs};
use crate::feeder::{self, FeederConfig, Pin};
use crate::ingest::{self, IngestArgs, IngestConfig};
use crate::jobs::{self, JobsArgs};
use crate::producer::{self, ProducerConfig};
use crate::replay::{self, ReplayArgs};
use crate::server::ServerConfig;
use crate::sink::{self, DatabaseArgs, DatabaseConfig, SinkArgs, SinkConfig};
use crate::source::SourceConfig;
use crate::stats::{self, StatsArgs};
use crate::subscriber::{self, StreamArgs, SubscriberConfig};
use crate::telemetry::Identity;
use crate::worker::{self, Fault, WorkerConfig};
use crate::workflow::{self, LintArgs, Pipeline, ReadFileError};

/// A pipeline of tweets to try releases on.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Cli {
    /// Write the logs as JSON, one object a line
    #[arg(long, global = true)]
    log_json: bool,
    #[command(subcommand)]
    command: Command,
}

/// A step of the pipeline.
#[derive(Debug, Subcommand)]
enum Command {
    /// Append tweets to the bus at an even rate; prints what it produced
    Produce(Produce),
    /// Append the tweets of X's filtered stream to the bus, as they come; prints what it appended
    Subscribe(Subscribe),
    /// Take tweets from clients at POST /ingest, each upload whole or not at all; prints what it took
    Ingest(Ingest),
    /// Send each tweet of the bus to the proxy and keep the answers; prints what it did
    Feed(Feed),
    /// Send a part of the tweets again, by time or by place; prints what it did
    Replay(ReplayArgs),
    /// Serve tasks: the service that is released
    Work(Work),
    /// Check a pipeline.yml
    Lint(LintArgs),
    /// Store results and dead letters; prints how many there are
    Sink(SinkCommand),
    /// Print how many results and dead letters are stored
    Query(Query),
    /// Serve statistics of what is stored: a page, JSON, and counters of others
    Stats(StatsCommand),
    /// Run periodic jobs: fold counts, remove old rows, compare the store with the bus
    Jobs(JobsCommand),
    /// Ask a running part whether it works: for the health check of its container
    Health(Health),
    /// Try the whole system on this machine: all parts, a release, and what became of it
    Demo(DemoArgs),
    /// The command line of the controller: `pipeline-demo friday get tweets-worker`
    #[command(disable_help_flag = true)]
    Friday {
        /// What follows `friday`
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGS"
        )]
        args: Vec<std::ffi::OsString>,
    },
    /// Run the controller, as `friday serve` does
    Serve(friday::app::ServeArgs),
    /// Run the proxy, as `friday-proxy` does
    Proxy(friday_proxy::config::Args),
}

#[derive(Debug, Args)]
struct Served {
    /// Where to answer /live, /ready, /metrics and /counts; port 0 takes any free one
    #[arg(long, env = "PIPELINE_LISTEN", value_name = "HOST:PORT")]
    listen: Option<SocketAddr>,
    /// File to write the address to, once it listens
    #[arg(long, value_name = "FILE")]
    addresses_file: Option<PathBuf>,
}

impl Served {
    fn or(self, default: SocketAddr) -> ServerConfig {
        ServerConfig {
            listen: self.listen.unwrap_or(default),
            addresses_file: self.addresses_file,
        }
    }

    fn or_any_port(self) -> ServerConfig {
        self.or((Ipv4Addr::LOCALHOST, 0).into())
    }
}

#[derive(Debug, Args)]
struct Threads {
    /// Threads: cores that it can use at most. On one it spends the least for each task; more instances use more cores too
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: u32,
}

#[derive(Debug, Args)]
struct Labels {
    /// Label of the metrics
    #[arg(long, env = "FRIDAY_SERVICE", default_value = "")]
    service: String,
    /// Label of the metrics, and of each result
    #[arg(long, env = "FRIDAY_RELEASE", default_value = "")]
    release: String,
    /// Label of the metrics: stable or canary
    #[arg(long, env = "FRIDAY_ARM", default_value = "")]
    arm: String,
    /// Label of the metrics
    #[arg(long, env = "FRIDAY_NODE", default_value = "")]
    node: String,
    /// Label of the metrics
    #[arg(long, env = "FRIDAY_ENVIRONMENT", default_value = "")]
    environment: String,
}

impl From<Labels> for Identity {
    fn from(labels: Labels) -> Self {
        Self {
            service: labels.service,
            release: labels.release,
            arm: labels.arm,
            node: labels.node,
            environment: labels.environment,
        }
    }
}

#[derive(Debug, Args)]
struct Produce {
    #[command(flatten)]
    bus: BusArgs,
    /// File of tweets, one JSON object a line, looped; without it, tweets are made up
    #[arg(long, value_name = "FILE.jsonl")]
    input: Option<PathBuf>,
    /// End with the file instead of looping it
    #[arg(long, requires = "input")]
    once: bool,
    /// Records a second; max for as many as the bus takes (-1 is understood as well)
    #[arg(long, visible_alias = "throughput", default_value = "200", value_parser = rate, allow_negative_numbers = true)]
    rate: f64,
    /// End after this many seconds
    #[arg(long, value_name = "N", value_parser = seconds)]
    seconds: Option<Duration>,
    /// Share of malformed records, added to the good ones, from 0 to 0.9
    #[arg(long, value_name = "SHARE", default_value = "0", value_parser = share)]
    malformed_share: f64,
    /// Seed of what is made up
    #[arg(long, default_value = "1")]
    seed: u64,
    #[command(flatten)]
    served: Served,
    #[command(flatten)]
    labels: Labels,
}

#[derive(Debug, Args)]
struct Subscribe {
    #[command(flatten)]
    bus: BusArgs,
    #[command(flatten)]
    stream: StreamArgs,
    #[command(flatten)]
    served: Served,
    #[command(flatten)]
    labels: Labels,
}

#[derive(Debug, Args)]
struct Ingest {
    #[command(flatten)]
    bus: BusArgs,
    #[command(flatten)]
    uploads: IngestArgs,
    #[command(flatten)]
    served: Served,
    #[command(flatten)]
    labels: Labels,
}

#[derive(Debug, Args)]
struct Feed {
    #[command(flatten)]
    bus: BusArgs,
    /// The proxy; tasks go to its /tasks
    #[arg(long, value_name = "URL")]
    proxy: String,
    /// Most tasks in flight
    #[arg(long, value_name = "N", default_value_t = feeder::IN_FLIGHT_DEFAULT as u32,
        value_parser = clap::value_parser!(u32).range(1..=4096))]
    in_flight: u32,
    /// How long one attempt may take
    #[arg(long, value_name = "N", default_value = "10", value_parser = seconds)]
    attempt_seconds: Duration,
    /// Keep a tweet as a dead letter once so many attempts of it have failed while other tasks were answered, so that it holds
    /// back nothing for longer; 0: never
    #[arg(long, value_name = "ATTEMPTS", default_value_t = feeder::LETTER_AFTER_DEFAULT)]
    letter_after: u32,
    /// Send every task to one release, whatever the weights; once there is no canary, what is for it alone is not sent
    #[arg(long, value_enum)]
    pin: Option<Pin>,
    #[command(flatten)]
    threads: Threads,
    #[command(flatten)]
    served: Served,
    #[command(flatten)]
    labels: Labels,
    #[command(flatten)]
    traces: friday_traces::Args,
}

#[derive(Debug, Args)]
struct Work {
    #[command(flatten)]
    served: Served,
    /// Port on loopback to listen on, unless --listen is given
    #[arg(long, env = "PORT")]
    port: Option<u16>,
    #[command(flatten)]
    labels: Labels,
    /// The pipeline.yml that says what is done with each tweet; without it, everything
    #[arg(long, value_name = "FILE")]
    pipeline: Option<PathBuf>,
    /// What is wrong with this release
    #[arg(long, value_enum, default_value = "good")]
    fault: Fault,
    #[command(flatten)]
    threads: Threads,
    /// How long requests in flight may take once told to stop
    #[arg(long, value_name = "N", default_value = "10", value_parser = seconds)]
    drain_seconds: Duration,
    #[command(flatten)]
    traces: friday_traces::Args,
}

#[derive(Debug, Args)]
struct SinkCommand {
    #[command(flatten)]
    bus: BusArgs,
    #[command(flatten)]
    sink: SinkArgs,
    #[command(flatten)]
    served: Served,
    #[command(flatten)]
    labels: Labels,
}

#[derive(Debug, Args)]
struct StatsCommand {
    #[command(flatten)]
    stats: StatsArgs,
    #[command(flatten)]
    served: Served,
    #[command(flatten)]
    labels: Labels,
}

#[derive(Debug, Args)]
struct JobsCommand {
    #[command(flatten)]
    bus: BusArgs,
    #[command(flatten)]
    jobs: JobsArgs,
    #[command(flatten)]
    served: Served,
    #[command(flatten)]
    labels: Labels,
}

#[derive(Debug, Args)]
struct Health {
    /// The --listen address of the part that is asked
    #[arg(long, env = "PIPELINE_LISTEN", value_name = "HOST:PORT")]
    listen: SocketAddr,
    #[command(flatten)]
    question: health::Question,
}

#[derive(Debug, Args)]
struct Query {
    #[command(flatten)]
    database: DatabaseArgs,
}

impl Cli {
    /// Logs go to standard error; `RUST_LOG` chooses which, by default from `info` on.
    pub fn start_logs(&self) {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        let logs = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal());
        if self.log_json {
            logs.json().init();
        } else {
            logs.init();
        }
    }

    /// What the subcommand runs on: one thread or more where it has `--threads`, else one for each core.
    ///
    /// A task in the pipeline waits a dozen times for a moment. Where threads share the work, each of these moments may wake another
    /// of them, and that costs more than the work.
    ///
    /// # Errors
    /// The system gives no threads or no descriptors.
    pub fn runtime(&self) -> std::io::Result<Runtime> {
        let threads = match &self.command {
            Command::Feed(Feed { threads, .. }) | Command::Work(Work { threads, .. }) => {
                Some(threads.threads)
            }
            Command::Produce(_)
            | Command::Subscribe(_)
            | Command::Ingest(_)
            | Command::Replay(_)
            | Command::Lint(_)
            | Command::Sink(_)
            | Command::Query(_)
            | Command::Stats(_)
            | Command::Jobs(_)
            | Command::Health(_)
            | Command::Demo(_)
            | Command::Friday { .. }
            | Command::Serve(_)
            | Command::Proxy(_) => None,
        };
        let mut builder = match threads {
            Some(1) => Builder::new_current_thread(),
            Some(_) | None => Builder::new_multi_thread(),
        };
        if let Some(threads) = threads {
            builder.worker_threads(threads as usize);
        }
        builder.enable_all().build()
    }

    /// Runs the subcommand until it ends or the process is told to stop, and prints its record. A `pipeline.yml` that is
    /// wrong is refused as `lint` does it.
    ///
    /// # Errors
    /// What went wrong, with its causes.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        self.step()
            .await
            .or_else(|error| match error.downcast_ref() {
                Some(ReadFileError::Refused { findings, .. }) => Ok(workflow::refuse(findings)),
                Some(ReadFileError::Read { .. }) | None => Err(error),
            })
    }

    async fn step(self) -> anyhow::Result<ExitCode> {
        let record = match self.command {
            Command::Produce(args) => produce(args, told_to_stop()?).await?,
            Command::Subscribe(args) => subscribe(args, told_to_stop()?).await?,
            Command::Ingest(args) => ingest(args, told_to_stop()?).await?,
            Command::Feed(args) => feed(args, told_to_stop()?).await?,
            Command::Replay(args) => {
                let config = args.try_into().map_err(anyhow::Error::msg)?;
                let replayed = replay::run(config, told_to_stop()?).await?;
                println!("{}", json!(replayed));
                // A part that failed is not for a script to overlook.
                return Ok(ExitCode::from(u8::from(!replayed.is_whole())));
            }
            Command::Work(args) => work(args, told_to_stop()?).await?,
            Command::Lint(args) => return Ok(workflow::lint(&args)),
            Command::Sink(args) => sink(args, told_to_stop()?).await?,
            Command::Query(args) => query(args).await?,
            Command::Stats(args) => {
                let (server, labels) = (args.served.or_any_port(), args.labels.into());
                stats::run(args.stats, server, labels, told_to_stop()?).await?
            }
            Command::Jobs(args) => {
                let (server, labels) = (args.served.or_any_port(), args.labels.into());
                jobs::run(args.jobs, args.bus.into(), server, labels, told_to_stop()?).await?
            }
            Command::Health(args) => return Ok(health::tell(args.listen, args.question).await),
            Command::Demo(args) => return demo::run(args, told_to_stop()?).await,
            Command::Friday { args } => {
                let words = std::iter::once("friday".into()).chain(args);
                return Ok(friday::cli::run(friday::cli::Cli::parse_from(words)).await);
            }
            Command::Serve(args) => {
                friday::app::serve(args).await?;
                Value::Null
            }
            Command::Proxy(args) => {
                let config = friday_proxy::config::Config::try_from(args)?;
                friday_proxy::app::run(config, told_to_stop()?).await?;
                Value::Null
            }
        };
        if !record.is_null() {
            println!("{record}");
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn produce(args: Produce, shutdown: CancellationToken) -> anyhow::Result<Value> {
    let config = ProducerConfig {
        bus: args.bus.into(),
        source: SourceConfig {
            input: args.input,
            once: args.once,
            seed: args.seed,
            malformed_share: args.malformed_share,
        },
        rate: args.rate,
        duration: args.seconds,
        server: args.served.or_any_port(),
        identity: args.labels.into(),
    };
    Ok(json!(producer::run(config, shutdown).await?))
}

async fn subscribe(args: Subscribe, shutdown: CancellationToken) -> anyhow::Result<Value> {
    let config = SubscriberConfig {
        bus: args.bus.into(),
        stream: args.stream.config()?,
        server: args.served.or_any_port(),
        identity: args.labels.into(),
    };
    Ok(json!(subscriber::run(config, shutdown).await?))
}

async fn ingest(args: Ingest, shutdown: CancellationToken) -> anyhow::Result<Value> {
    let (bus, server) = (args.bus.into(), args.served.or_any_port());
    let config = IngestConfig::new(args.uploads, bus, server, args.labels.into());
    Ok(json!(ingest::run(config, shutdown).await?))
}

async fn feed(args: Feed, shutdown: CancellationToken) -> anyhow::Result<Value> {
    let config = FeederConfig {
        bus: args.bus.into(),
        proxy: args.proxy,
        in_flight_max: args.in_flight as usize,
        attempt_wait_max: args.attempt_seconds,
        letter_after: (args.letter_after > 0).then_some(args.letter_after),
        pin: args.pin,
        server: args.served.or_any_port(),
        identity: args.labels.into(),
        traces: args.traces.try_into()?,
    };
    Ok(json!(feeder::run(config, shutdown).await?))
}

async fn work(args: Work, shutdown: CancellationToken) -> anyhow::Result<Value> {
    let identity: Identity = args.labels.into();
    let pipeline = Pipeline::of(args.pipeline.as_deref())?;
    let workflow = pipeline.workflow_for(&identity.release, &identity.arm);
    let config = WorkerConfig {
        server: args.served.or(worker::listen_default(args.port)),
        workflow: workflow.clone(),
        identity,
        fault: args.fault,
        drain_wait_max: args.drain_seconds,
        traces: args.traces.try_into()?,
    };
    worker::run(config, shutdown).await?;
    Ok(Value::Null)
}

async fn sink(args: SinkCommand, shutdown: CancellationToken) -> anyhow::Result<Value> {
    let pipeline = Pipeline::of(args.sink.pipeline.as_deref())?;
    let config = SinkConfig {
        bus: args.bus.into(),
        database: args.sink.database.try_into()?,
        batch_max: args.sink.batch as usize,
        late_after: args.sink.late_after.unwrap_or(pipeline.late_after),
        analytics: args.sink.analytics,
        server: args.served.or_any_port(),
        identity: args.labels.into(),
    };
    Ok(json!(sink::run(config, shutdown).await?))
}

async fn query(args: Query) -> anyhow::Result<Value> {
    let database = DatabaseConfig::try_from(args.database)?;
    let storage = database.open_to_read().await?;
    Ok(json!(storage.stored().await?))
}

/// Cancelled by SIGTERM or Ctrl-C.
fn told_to_stop() -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
    let token = CancellationToken::new();
    let told = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => info!("told to stop by SIGTERM"),
            _ = interrupt.recv() => info!("told to stop by Ctrl-C"),
        }
        told.cancel();
    });
    Ok(token)
}

pub(crate) fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= 1e6 => Ok(number),
        Ok(_) | Err(_) => Err("expected a number above 0 and up to 1000000".to_owned()),
    }
}

/// A rate, or none: without a limit it is infinite.
fn rate(text: &str) -> Result<f64, String> {
    match text {
        "max" | "-1" => Ok(f64::INFINITY),
        text => positive(text).map_err(|expected| format!("{expected}, or max")),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=0.9).contains(&share) => Ok(share),
        Ok(_) | Err(_) => Err("expected a share from 0 to 0.9, such as 0.05".to_owned()),
    }
}

pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    positive(text).map(Duration::from_secs_f64)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_bus_is_needed_and_only_one() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["pipeline-demo"], args].concat());
        assert!(parse(&["produce"]).is_err());
        assert!(parse(&["produce", "--bus", "a", "--kafka", "b:1"]).is_err());
        assert!(parse(&["produce", "--kafka", "b:1"]).is_ok());
        assert!(parse(&["produce", "--bus", "a", "--rate", "0"]).is_err());
        assert!(parse(&["produce", "--bus", "a", "--rate", "max"]).is_ok());
        assert!(parse(&["produce", "--bus", "a", "--throughput", "-1"]).is_ok());
        assert!(
            parse(&[
                "feed",
                "--bus",
                "a",
                "--proxy",
                "http://b",
                "--partitions",
                "8"
            ])
            .is_err()
        );
    }
}
