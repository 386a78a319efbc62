//! The worker: an HTTP service that finds out things about a tweet. This is the service that Friday releases.
//!
//! `POST /tasks` takes a record and answers 200 with the result, 422 with a problem document for a record that is no
//! tweet, or 500. It keeps nothing, knows no bus, and may be asked the same twice. Every task takes a service time of its
//! own, which depends on the tweet's id alone; so two releases differ in latency only if their code does, or the fault
//! that a scenario asks for.

mod fault;
mod service_time;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Router, routing};
use bytes::BytesMut;
use friday_traces::{Kind, StartError, Tracer, Traces};
use futures::StreamExt;
use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, Opts};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::features;
use crate::feeder::WORKER_RELEASE_HEADER;
use crate::server::{self, Counted, Health, Server, ServerConfig, ServerError, problem};
use crate::telemetry::{self, Identity, Telemetry};
use crate::tweet::{self, Malformed, RECORD_BYTES_MAX, Tweet};
use crate::workflow::Workflow;
use fault::Symptoms;

pub use fault::{CRASH_CODE, Fault};
use service_time::ServiceTime;

/// How long the body of a task may take to arrive.
const BODY_WAIT_MAX: Duration = Duration::from_secs(10);

/// How long a worker that was told to stop still takes new requests. Who sends them has been told to stop before; this
/// is for those that were on their way, and shorter than anyone waits for a worker to end.
const LINGER: Duration = Duration::from_millis(250);

/// How long the requests in flight may take once the worker is told to stop, unless told otherwise: the slowest task of
/// the slowest scenario takes 0.8 s.
pub const DRAIN_WAIT_DEFAULT: Duration = Duration::from_secs(10);

/// Bounds of the duration histogram, in seconds: around 20 ms with steps of about 25 %, where releases are compared;
/// wider beyond.
const DURATION_BUCKETS: [f64; 20] = [
    0.002, 0.005, 0.008, 0.010, 0.0125, 0.016, 0.020, 0.025, 0.032, 0.040, 0.050, 0.063, 0.080,
    0.100, 0.160, 0.250, 0.500, 1.0, 2.5, 5.0,
];

/// What a worker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerConfig {
    /// Where it listens; [`listen_default`] knows of `PORT`.
    pub server: ServerConfig,
    /// Whose release it is; `release` is also written into each result.
    pub identity: Identity,
    /// What it does with each tweet.
    pub workflow: Workflow,
    /// What is wrong with it.
    pub fault: Fault,
    /// How long requests in flight may take once it is told to stop.
    pub drain_wait_max: Duration,
    /// Where traces go, and how many; without it none are recorded.
    pub traces: Option<friday_traces::Config>,
}

/// Where a worker listens if nobody says: on loopback, at the port that an orchestrator gives in `PORT`, or any free one.
#[must_use]
pub fn listen_default(port: Option<u16>) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port.unwrap_or(0)).into()
}

/// The result of a task: the body of the 200, the record in topic "results", and the row in the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// The tweet, and the key of the row.
    pub tweet_id: String,
    /// Who wrote it.
    pub author_id: Option<String>,
    /// When, as the API wrote it.
    pub created_at: Option<String>,
    /// The release that found this out.
    pub release: String,
    /// What was found out, by the feature's name.
    pub features: Map<String, Value>,
}

/// Why the worker ended early.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// It cannot listen.
    #[error("the worker cannot serve")]
    Server(#[from] ServerError),
    /// Traces cannot be sent.
    #[error("the worker's traces cannot be recorded")]
    Traces(#[from] StartError),
}

/// Works until `shutdown`; then `/ready` says no, requests in flight finish within the drain time, and it returns.
///
/// With [`Fault::Crash`] the process ends abruptly, so only a process of its own should run that.
///
/// # Errors
/// When it cannot listen, or traces are wanted and cannot be sent.
pub async fn run(config: WorkerConfig, shutdown: CancellationToken) -> Result<(), WorkerError> {
    let traces = telemetry::traces(config.traces.as_ref(), "worker", &config.identity)?;
    let tracer = traces.as_ref().map(Traces::tracer);
    let worker = Arc::new(Worker::new(&config, tracer));
    // The lexicon is parsed now, not in the first task.
    worker.warm_up();
    let server = Server::bind(&config.server).await?;
    info!(listen = %server.address(), release = config.identity.release, fault = ?config.fault, "work: started");
    let sick = tokio::spawn(worker.symptoms.clone().act());
    let stop = CancellationToken::new();
    let drain_wait_max = config.drain_wait_max.saturating_sub(LINGER);
    let serving = server.serve(router(worker.clone()), stop.clone(), drain_wait_max);
    let draining = async {
        shutdown.cancelled().await;
        worker.ready.store(false, Ordering::Release);
        info!(in_flight = worker.metrics.in_flight.get(), "work: draining");
        sleep(LINGER).await;
        stop.cancel();
        // The server's own end is awaited in the other branch.
        std::future::pending::<()>().await;
    };
    let served = tokio::select! {
        served = serving => served,
        () = draining => Ok(()),
    };
    sick.abort();
    if let Some(traces) = traces {
        traces.end().await;
    }
    info!(abandoned = worker.metrics.in_flight.get(), "work: ended");
    Ok(served?)
}

struct Worker {
    release: String,
    workflow: Workflow,
    symptoms: Arc<Symptoms>,
    ready: Arc<AtomicBool>,
    in_flight: Semaphore,
    telemetry: Arc<Telemetry>,
    metrics: Metrics,
    /// What records traces, if they are.
    tracer: Option<Tracer>,
}

struct Metrics {
    duration: Histogram,
    tasks: IntCounterVec,
    malformed: IntCounter,
    in_flight: IntGauge,
}

impl Worker {
    fn new(config: &WorkerConfig, tracer: Option<Tracer>) -> Self {
        let telemetry = Telemetry::new(&config.identity);
        let metrics = Metrics {
            duration: telemetry.histogram(
                "pipeline_task_duration_seconds",
                "Time from the request's head to the answer, of tasks that were completed.",
                DURATION_BUCKETS.to_vec(),
            ),
            tasks: telemetry.counters(
                "pipeline_tasks_total",
                "Tasks answered, by outcome.",
                &["outcome"],
            ),
            malformed: telemetry.counter(
                "pipeline_tasks_malformed_total",
                "Tasks whose record is no tweet.",
            ),
            in_flight: telemetry.gauge(Opts::new(
                "pipeline_tasks_in_flight",
                "Tasks being worked on.",
            )),
        };
        Self {
            release: config.identity.release.clone(),
            workflow: config.workflow.clone(),
            symptoms: Arc::new(Symptoms::new(config.fault, u64::from(std::process::id()))),
            ready: Arc::new(AtomicBool::new(true)),
            in_flight: Semaphore::new(config.workflow.parallel()),
            telemetry: Arc::new(telemetry),
            metrics,
            tracer,
        }
    }

    fn warm_up(&self) {
        let found = features::all_of(&Tweet {
            id: "0".to_owned(),
            author_id: None,
            created_at: None,
            lang: None,
            kinds: vec![tweet::Kind::Original],
            text: "A first tweet, to be ready for the others.".to_owned(),
        });
        debug!(?found, "work: warm");
    }

    /// One task, from the request to the answer.
    async fn task(&self, request: Request) -> (Outcome, Response) {
        let started = Instant::now();
        let Ok(_permit) = self.in_flight.try_acquire() else {
            let detail = "the worker has as many tasks as it takes";
            let busy = problem(StatusCode::SERVICE_UNAVAILABLE, "busy", detail);
            return (Outcome::Refused, busy);
        };
        let bytes = match timeout(BODY_WAIT_MAX, body_of(request)).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(BodyError::TooLarge)) => return malformed(Malformed::TooLarge),
            Ok(Err(BodyError::Broken)) => return refused("the task's body broke off"),
            Err(_) => return refused("the task's body did not arrive in time"),
        };
        let tweet = match Tweet::parse(&bytes) {
            Ok(tweet) => tweet,
            Err(reason) => return malformed(reason),
        };
        let service_time = ServiceTime::of(&tweet.id);
        let treatment = self.symptoms.treat(&tweet.id, service_time);
        let mut features = self.workflow.run(&tweet);
        if treatment.flip {
            features::flip_sentiment(&mut features);
        }
        // The computing is part of the service time, so a slow machine adds nothing while it keeps up.
        // A timer goes by milliseconds, so one that is over already would wait for the next of them.
        if !treatment.takes.is_zero() {
            sleep_until(started + treatment.takes).await;
        }
        if treatment.fails {
            let detail = "the fault of this scenario";
            let failed = problem(StatusCode::INTERNAL_SERVER_ERROR, "fault", detail);
            return (Outcome::Failed, failed);
        }
        let result = TaskResult {
            tweet_id: tweet.id,
            author_id: tweet.author_id,
            created_at: tweet.created_at,
            release: self.release.clone(),
            features,
        };
        self.metrics
            .duration
            .observe(started.elapsed().as_secs_f64());
        let kind = [(header::CONTENT_TYPE, "application/json")];
        let sentiment = kind_of(&result.features);
        let body = serde_json::to_vec(&result).expect("its keys are text");
        let mut answer = (StatusCode::OK, kind, body).into_response();
        if let Some(sentiment) = sentiment {
            answer.headers_mut().insert(SENTIMENT_HEADER, sentiment);
        }
        (Outcome::Completed, answer)
    }
}

/// The header by which an answer says of what kind it is, for the guard of a release (`guard.answers`): so a release that
/// finds out other things than the one before is noticed, whatever its latency and its errors.
const SENTIMENT_HEADER: HeaderName = HeaderName::from_static("x-sentiment");

/// The sentiment that was found, if it was looked for.
fn kind_of(features: &Map<String, Value>) -> Option<HeaderValue> {
    let label = features.get("sentiment")?.get("label")?.as_str()?;
    HeaderValue::from_str(label).ok()
}

/// What became of a task: the metric's label.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    Completed,
    Malformed,
    Failed,
    Refused,
}

impl Outcome {
    const fn label(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Malformed => "malformed",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

/// Why there is no whole body.
enum BodyError {
    TooLarge,
    Broken,
}

async fn body_of(request: Request) -> Result<BytesMut, BodyError> {
    let mut body = request.into_body().into_data_stream();
    let mut bytes = BytesMut::new();
    while let Some(chunk) = body.next().await {
        bytes.extend_from_slice(&chunk.map_err(|_| BodyError::Broken)?);
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(BodyError::TooLarge);
        }
    }
    Ok(bytes)
}

fn refused(detail: &str) -> (Outcome, Response) {
    let answer = problem(StatusCode::REQUEST_TIMEOUT, "no_body", detail);
    (Outcome::Refused, answer)
}

fn malformed(reason: Malformed) -> (Outcome, Response) {
    let status = StatusCode::UNPROCESSABLE_ENTITY;
    let answer = problem(status, reason.code(), &reason.to_string());
    (Outcome::Malformed, answer)
}

fn router(worker: Arc<Worker>) -> Router {
    let health = Health {
        telemetry: worker.telemetry.clone(),
        ready: worker.ready.clone(),
        counted: worker.clone(),
    };
    Router::new()
        .route("/tasks", routing::post(task))
        .with_state(worker.clone())
        .merge(server::routes(health))
        .layer(middleware::from_fn_with_state(worker, leave))
}

async fn task(State(worker): State<Arc<Worker>>, mut request: Request) -> Response {
    let in_flight = InFlight::one_more(&worker.metrics.in_flight);
    let tracer = worker.tracer.as_ref();
    let span = tracer.and_then(|tracer| tracer.begin(request.headers_mut(), Kind::Server, "work"));
    let (outcome, response) = worker.task(request).await;
    if let Some(mut span) = span {
        let status = response.status();
        span.set("pipeline.outcome", outcome.label());
        span.set("friday.release", worker.release.clone());
        span.set("http.response.status_code", i64::from(status.as_u16()));
        if status.is_server_error() {
            span.fail(outcome.label());
        }
    }
    worker
        .metrics
        .tasks
        .with_label_values(&[outcome.label()])
        .inc();
    if matches!(outcome, Outcome::Malformed) {
        worker.metrics.malformed.inc();
    }
    drop(in_flight);
    response
}

/// Each answer names its release, for a record that is refused has no other word of it; and while the worker drains, asks
/// its peer not to use the connection again.
async fn leave(State(worker): State<Arc<Worker>>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if let Ok(release) = HeaderValue::from_str(&worker.release)
        && !release.is_empty()
    {
        response
            .headers_mut()
            .insert(WORKER_RELEASE_HEADER, release);
    }
    if !worker.ready.load(Ordering::Acquire) {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
}

/// Counts a task as in flight as long as it lives, also if its request is dropped.
struct InFlight(IntGauge);

impl InFlight {
    fn one_more(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[async_trait]
impl Counted for Worker {
    async fn counts(&self) -> Value {
        let tasks = |outcome: Outcome| {
            let counter = self.metrics.tasks.with_label_values(&[outcome.label()]);
            counter.get()
        };
        json!({
            "completed": tasks(Outcome::Completed),
            "malformed": tasks(Outcome::Malformed),
            "failed": tasks(Outcome::Failed),
            "refused": tasks(Outcome::Refused),
            "in_flight": self.metrics.in_flight.get(),
        })
    }
}
