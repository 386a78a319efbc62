//! The feeder: takes tweets from the bus, sends each as an HTTP task to the proxy, and makes its answer durable.
//!
//! The feeder, not the worker, appends to topics "results" and "malformed". So the release on trial is a plain HTTP
//! service that needs no bus; its latency, which is compared with stable's, has no bus in it; an attempt that failed on
//! the canary and was replayed on stable leaves one result, the one the user got; and the order *result durable, then
//! offset committed* is kept in one place. A worker that dies takes nothing with it but the attempt, which is made again.
//!
//! A record is done when its answer is durable: 200 in "results", 422 in "malformed". Anything else (no connection, a
//! time-out, any other status) is tried again for as long as it takes, because whoever does not answer one does not answer
//! others either: a worker, a proxy, a network that is away. A record that fails while others are answered, again and
//! again, is itself at fault, and holds back all that comes after it; it is kept in "malformed" after some minutes of that
//! ([`FeederConfig::letter_after`]), from where `replay` can send it again once a release can do it. Offsets
//! are committed in order, so a feeder that is killed does some records again; whoever reads results must store them by
//! tweet id.

mod counts;
mod delivery;
mod feeding;
mod lanes;
mod pinned;
mod progress;
mod slots;
mod upstream;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use friday_traces::{StartError, Tracer, Traces};
use serde::{Deserialize, Serialize};
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::backoff::Hush;
use crate::bus::{Bus, BusConfig, BusError, Position, TWEETS};
use crate::server::{self, Health, Server, ServerConfig, ServerError};
use crate::telemetry::{self, Identity, Telemetry};
use feeding::Feeding;

pub(crate) use counts::Counts;
pub(crate) use delivery::{Delivered, Delivery};
pub(crate) use lanes::{Lane, Lanes};
pub(crate) use upstream::Upstream;

pub use pinned::PinError;
pub(crate) use upstream::WORKER_RELEASE_HEADER;
pub use upstream::{Pin, UpstreamError};

/// The feeder's group.
pub const GROUP: &str = "feeder";

/// Tasks in flight unless told otherwise. With 20 ms a task, 64 carry 3,000 tasks a second.
pub const IN_FLIGHT_DEFAULT: usize = 64;

/// How long one attempt may take unless told otherwise: far beyond the slowest task of a sick release (0.8 s).
pub const ATTEMPT_WAIT_DEFAULT: Duration = Duration::from_secs(10);

/// Attempts that fail while others are answered, after which a record is kept as a dead letter, unless told otherwise: with up
/// to 2 s between two of them, about five minutes. Of 1,000 tasks that each fail nine times of ten for other reasons, none
/// comes that far.
pub const LETTER_AFTER_DEFAULT: u32 = 200;

/// What the feeder does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeederConfig {
    /// Where from, and where the answers go.
    pub bus: BusConfig,
    /// The proxy, such as `http://127.0.0.1:8080`; tasks go to its `/tasks`.
    pub proxy: String,
    /// Most tasks in flight, at least 1.
    pub in_flight_max: usize,
    /// How long one attempt may take.
    pub attempt_wait_max: Duration,
    /// Attempts of a record that fail while other tasks are answered, after which it is kept as a dead letter; without it,
    /// it is tried for ever.
    pub letter_after: Option<u32>,
    /// Sends every task to one release, whatever the weights. With the canary it ends once there is none.
    pub pin: Option<Pin>,
    /// Where to show the counts.
    pub server: ServerConfig,
    /// Labels of the metrics.
    pub identity: Identity,
    /// Where traces go, and how many; without it none are recorded.
    pub traces: Option<friday_traces::Config>,
}

/// What the feeder did since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Fed {
    /// Tasks answered with 200 whose result is durable.
    pub tasks_completed: u64,
    /// Records answered with 422 whose dead letter is durable.
    pub tasks_malformed: u64,
    /// Attempts sent.
    pub attempts: u64,
    /// Attempts that ended in neither 200 nor 422.
    pub attempts_failed: u64,
    /// Records taken from the bus and not done yet.
    pub in_flight: u64,
    /// Records not committed yet, at the last look (once a second); `/counts` looks anew.
    pub lag: u64,
}

/// Why the feeder ended early.
#[derive(Debug, thiserror::Error)]
pub enum FeederError {
    /// The bus failed in a way that trying again does not mend.
    #[error("the bus failed")]
    Bus(#[from] BusError),
    /// No client could be made for the proxy.
    #[error("the proxy cannot be used")]
    Upstream(#[from] UpstreamError),
    /// Traces cannot be sent.
    #[error("the feeder's traces cannot be recorded")]
    Traces(#[from] StartError),
    /// The process cannot be reached.
    #[error("the feeder's server failed")]
    Server(#[from] ServerError),
    /// The release that all tasks are for takes none. What it did is committed, and nothing after it.
    #[error("{reason}: nothing more is sent; {}", .reason.mend())]
    Pin {
        /// Why.
        reason: PinError,
    },
    /// A defect of ours.
    #[error("a task of the feeder panicked")]
    Panicked(#[from] JoinError),
}

/// Feeds until `shutdown`, then lets what is in flight finish and commits it.
///
/// # Errors
/// When the bus cannot be opened or fails for good, or tasks are for the canary and there is none. A bus or a proxy that is
/// away for a while is waited for.
pub async fn run(config: FeederConfig, shutdown: CancellationToken) -> Result<Fed, FeederError> {
    let bus = tokio::select! {
        bus = config.bus.open() => bus?,
        () = shutdown.cancelled() => return Ok(Fed::default()),
    };
    let server = Server::bind(&config.server).await?;
    let traces = telemetry::traces(config.traces.as_ref(), "feeder", &config.identity)?;
    let tracer = traces.as_ref().map(Traces::tracer);
    let feeder = Feeder::traced(bus, &config, tracer)?;
    info!(listen = %server.address(), proxy = config.proxy, "feed: started");
    let routes = server::routes(feeder.health());
    let fed = server::beside(server, routes, feeder.run(shutdown)).await;
    if let Some(traces) = traces {
        traces.end().await;
    }
    let fed = fed?;
    info!(?fed, "feed: ended");
    Ok(fed)
}

/// A dead letter: a record that is no tweet, as topic "malformed" keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The topic the record stands in.
    pub topic: String,
    /// Where in that topic.
    #[serde(flatten)]
    pub position: Position,
    /// The stable word for what is wrong, such as `not_json`.
    pub code: String,
    /// What is wrong, in words.
    pub reason: String,
    /// The release that refused it, if its answer said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// The record's bytes, unchanged, in base64: they need not be text.
    pub original_base64: String,
}

/// The way from the bus through the proxy and back.
pub struct Feeder {
    bus: Arc<dyn Bus>,
    in_flight_max: usize,
    delivery: Arc<Delivery>,
    counts: Arc<Counts>,
    telemetry: Arc<Telemetry>,
}

impl fmt::Debug for Feeder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feeder")
            .field("bus", &self.bus)
            .field("fed", &self.counts.now())
            .finish_non_exhaustive()
    }
}

impl Feeder {
    /// A feeder from `bus` to the proxy that `config` names; its bus is not looked at.
    ///
    /// # Errors
    /// When the proxy's address is none.
    pub fn new(bus: Arc<dyn Bus>, config: &FeederConfig) -> Result<Self, UpstreamError> {
        Self::traced(bus, config, None)
    }

    /// The same, with what records traces.
    fn traced(
        bus: Arc<dyn Bus>,
        config: &FeederConfig,
        tracer: Option<Tracer>,
    ) -> Result<Self, UpstreamError> {
        let telemetry = Telemetry::new(&config.identity);
        let upstream = Upstream::new(&config.proxy, config.attempt_wait_max, config.pin)?;
        let counts = Arc::new(Counts::new(&telemetry, bus.clone()));
        let delivery = Delivery {
            answers_to: Some(bus.clone()),
            topic: TWEETS.to_owned(),
            upstream,
            attempts_max: None,
            letter_after: config.letter_after,
            counts: counts.clone(),
            hush: Hush::default(),
            tracer,
        };
        Ok(Self {
            bus,
            in_flight_max: config.in_flight_max.max(1),
            delivery: Arc::new(delivery),
            counts,
            telemetry: Arc::new(telemetry),
        })
    }

    /// What was done so far; may be asked while it runs.
    #[must_use]
    pub fn fed(&self) -> Fed {
        self.counts.now()
    }

    fn health(&self) -> Health {
        Health {
            telemetry: self.telemetry.clone(),
            ready: Arc::new(AtomicBool::new(true)),
            counted: self.counts.clone(),
        }
    }

    /// Feeds; see [`run`].
    ///
    /// # Errors
    /// As [`run`].
    pub async fn run(&self, shutdown: CancellationToken) -> Result<Fed, FeederError> {
        let consumer = self.bus.consumer(TWEETS, GROUP).await?;
        let delivery = self.delivery.clone();
        let feeding = Feeding::new(delivery, &self.counts, self.in_flight_max, consumer);
        tokio::select! {
            fed = feeding.run(shutdown) => fed?,
            () = self.counts.keep_looking() => {}
        }
        Ok(self.counts.now())
    }
}
