//! Where clients hand in tweets of their own: `POST /ingest` takes lines of JSON, whole or not at all; so does a
//! [`directory`] into which they drop files.
//!
//! An upload is read to its end, then every line is checked, then all are appended to topic "tweets"; the answer comes once
//! they are durable. So a client that hears nothing sends the same again, and what was there already is stored once.
//! Which answer means what:
//!
//! | status | |
//! |---|---|
//! | 202 | all records are in the bus: `{"accepted": N}` |
//! | 400 | the body or the Idempotency-Key is damaged |
//! | 401, 403 | no token or one that nobody has; the client is switched off |
//! | 408 | the body did not arrive in time |
//! | 409 | an upload with this Idempotency-Key is on its way |
//! | 413, 415 | too large; neither JSON lines nor gzip or zstd |
//! | 422 | a line is no tweet (`line` says which), or the key was used for another body |
//! | 429 | too many uploads or a slow bus; come back after `Retry-After` |
//! | 503 | the bus did not take it all in time; send it again |

mod answers;
mod clients;
mod config;
mod directory;
mod http;
mod whole;

use std::io::Cursor;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_LENGTH;
use axum::response::Response;
use axum::{Router, routing};
use bytes::Bytes;
use prometheus::{IntCounter, IntCounterVec};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::bus::{Bus, BusError};
use crate::server::{self, Counted, Health, Server, ServerError, problem};
use crate::source::lines::{Lines, Packing};
use crate::telemetry::{Telemetry, chain};
use answers::{Answer, Answers, InUse};
use clients::{Client, Clients};
use directory::Directory;
use http::{
    Outcome, again, body_of, denied, fingerprint, forgetful, key_of, packing_of, respond,
    retry_after, too_large, too_many,
};
use whole::{AppendError, append, check};

pub use clients::{ClientLimits, ClientsError};
pub use config::{IngestArgs, IngestConfig, UploadLimits, UploadsConfig};

/// How long a body may take to arrive: 8 MiB at 140 KiB a second.
const BODY_WAIT_MAX: Duration = Duration::from_secs(60);

/// How long a batch may wait for the bus before the client is told to send all of it again.
const BUS_WAIT_MAX: Duration = Duration::from_secs(30);

/// When to come back while the bus is slow.
const SLOW_RETRY_AFTER: Duration = Duration::from_secs(5);

/// What was taken in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Ingested {
    /// Records that are durable in the bus.
    pub tasks_produced: u64,
}

/// Why the endpoint ended early.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The clients are not known.
    #[error("the clients are not known")]
    Clients(#[from] ClientsError),
    /// Answers cannot be remembered.
    #[error("cannot remember answers in {}", path.display())]
    State {
        /// The directory.
        path: PathBuf,
        /// What the file system or SQLite said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Files cannot be taken from the directory.
    #[error("cannot take files from {}; its done/ and refused/ must be writable", path.display())]
    Watch {
        /// The directory.
        path: PathBuf,
        /// What the file system said.
        source: std::io::Error,
    },
    /// The bus cannot be opened.
    #[error("the bus failed")]
    Bus(#[from] BusError),
    /// The process cannot be reached.
    #[error("the server of uploads failed")]
    Server(#[from] ServerError),
}

/// Takes uploads until `shutdown`; those on their way are finished.
///
/// # Errors
/// When the file of clients is wrong, or the bus or the directory cannot be opened.
pub async fn run(
    config: IngestConfig,
    shutdown: CancellationToken,
) -> Result<Ingested, IngestError> {
    let telemetry = Arc::new(Telemetry::new(&config.identity));
    let watched = match &config.watch {
        None => None,
        Some(path) => {
            let files = telemetry.counters(
                "pipeline_ingest_files_total",
                "Files of the watched directory, by what became of them.",
                &["outcome"],
            );
            let watched = Directory::open(path, files).map_err(|source| IngestError::Watch {
                path: path.clone(),
                source,
            });
            Some(watched?)
        }
    };
    let admission = match &config.uploads {
        None => None,
        Some(uploads) => Some(admission(uploads, &config).await?),
    };
    let bus = tokio::select! {
        bus = config.bus.open() => bus?,
        () = shutdown.cancelled() => return Ok(Ingested::default()),
    };
    let server = Server::bind(&config.server).await?;
    let intake = Arc::new(Intake {
        bus,
        slow: Slow::default(),
        produced: telemetry.counter(
            "pipeline_produced_total",
            "Records appended to the topic of tweets, durably.",
        ),
    });
    let health = Health {
        telemetry: telemetry.clone(),
        ready: Arc::new(AtomicBool::new(true)),
        counted: intake.clone(),
    };
    let mut routes = server::routes(health);
    let running = TaskTracker::new();
    if let Some((clients, answers)) = admission {
        let ingest = Ingest {
            clients,
            answers,
            intake: intake.clone(),
            limits: config.limits,
            at_once: Semaphore::new(config.limits.at_once_max),
            running: running.clone(),
            uploads: telemetry.counters(
                "pipeline_ingest_uploads_total",
                "Uploads, by what became of them.",
                &["outcome"],
            ),
        };
        let post = Router::new().route("/ingest", routing::post(post));
        routes = routes.merge(post.with_state(Arc::new(ingest)));
    }
    info!(listen = %server.address(), watch = ?config.watch, "ingest: started");
    // An upload that was read may still wait for the bus.
    let serving = server.serve(routes, shutdown.clone(), BUS_WAIT_MAX);
    let watching = async {
        if let Some(watched) = watched {
            watched.run(&intake, shutdown).await;
        }
    };
    // A server that fails ends both; the files that are left are taken after the next start.
    tokio::pin!(watching);
    let mut is_watching = true;
    tokio::pin!(serving);
    loop {
        tokio::select! {
            served = &mut serving => break served?,
            () = &mut watching, if is_watching => is_watching = false,
        }
    }
    running.close();
    if timeout(BUS_WAIT_MAX, running.wait()).await.is_err() {
        warn!(
            uploads = running.len(),
            "ingest: gave up uploads the bus did not take"
        );
    }
    let ingested = intake.now();
    info!(?ingested, "ingest: ended");
    Ok(ingested)
}

async fn admission(
    uploads: &UploadsConfig,
    config: &IngestConfig,
) -> Result<(Clients, Answers), IngestError> {
    let clients = Clients::read(&uploads.clients, config.client_limits)?;
    let failed = |source| IngestError::State {
        path: uploads.state_dir.clone(),
        source,
    };
    std::fs::create_dir_all(&uploads.state_dir).map_err(|error| failed(error.into()))?;
    let answers = Answers::open(&uploads.state_dir.join("answers.sqlite")).await;
    Ok((clients, answers.map_err(|error| failed(error.into()))?))
}

/// The way into the bus, for uploads and files.
#[derive(Debug)]
struct Intake {
    bus: Arc<dyn Bus>,
    slow: Slow,
    produced: IntCounter,
}

impl Intake {
    fn now(&self) -> Ingested {
        Ingested {
            tasks_produced: self.produced.get(),
        }
    }
}

#[async_trait]
impl Counted for Intake {
    async fn counts(&self) -> Value {
        json!(self.now())
    }
}

/// How many uploads wait for a slow bus.
#[derive(Debug, Default)]
struct Slow(AtomicUsize);

struct SlowOne<'a>(&'a AtomicUsize);

impl Slow {
    fn one_more(&self) -> SlowOne<'_> {
        self.0.fetch_add(1, Ordering::AcqRel);
        SlowOne(&self.0)
    }

    fn is_slow(&self) -> bool {
        self.0.load(Ordering::Acquire) > 0
    }
}

impl Drop for SlowOne<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The endpoint.
#[derive(Debug)]
struct Ingest {
    clients: Clients,
    answers: Answers,
    intake: Arc<Intake>,
    limits: UploadLimits,
    at_once: Semaphore,
    uploads: IntCounterVec,
    /// Uploads that are not answered yet, also those whose client is gone.
    running: TaskTracker,
}

/// The server drops its call when the client hangs up. An upload that was read goes on all the same: half of one would be
/// neither accepted nor refused.
async fn post(State(ingest): State<Arc<Ingest>>, request: Request) -> Response {
    let running = ingest.running.clone();
    let uploading = running.spawn(async move {
        let outcome = ingest.upload(request).await.unwrap_or_else(|early| early);
        ingest.uploads.with_label_values(&[outcome.label]).inc();
        *outcome.response
    });
    uploading.await.unwrap_or_else(|error| {
        error!(error = chain(&error), "ingest: an upload ended early");
        let detail =
            "a defect of this service; send the same again, what is there already is stored once";
        problem(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    })
}

impl Ingest {
    async fn upload(&self, request: Request) -> Result<Outcome, Outcome> {
        let headers = request.headers();
        let client = self.clients.who(headers).map_err(denied)?;
        let packing = packing_of(headers)?;
        let key = key_of(headers)?;
        let limit = self.limits.body_bytes_max;
        let announced = headers.get(CONTENT_LENGTH);
        let announced = announced.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > limit as u64) {
            return Err(too_large(limit));
        }
        let _client_permit = self.clients.admit(&client).map_err(denied)?;
        if self.intake.slow.is_slow() {
            let detail = "the bus is slow; send this again later";
            return Err(too_many(SLOW_RETRY_AFTER, detail));
        }
        let Ok(_permit) = self.at_once.try_acquire() else {
            let detail = "there are as many uploads as can be taken at once";
            return Err(too_many(Duration::from_secs(1), detail));
        };
        let in_use = match &key {
            None => None,
            Some(key) => Some(self.answers.begin(&client.name, key).ok_or_else(|| {
                let detail =
                    "an upload with this Idempotency-Key is on its way; wait for its answer";
                Outcome::new(
                    "conflict",
                    problem(StatusCode::CONFLICT, "in_progress", detail),
                )
            })?),
        };
        let body = match timeout(BODY_WAIT_MAX, body_of(request.into_body(), limit)).await {
            Ok(body) => body?,
            Err(_) => {
                let detail = "the body did not arrive in time";
                let answer = problem(StatusCode::REQUEST_TIMEOUT, "no_body", detail);
                return Err(Outcome::new("broken", answer));
            }
        };
        let fingerprint = fingerprint(packing, &body);
        if let Some(in_use) = &in_use
            && let Some(given) = self.answers.find(in_use).await.map_err(forgetful)?
        {
            return Ok(again(&given, fingerprint));
        }
        let (outcome, status, document) = self.take(&client, packing, body).await?;
        let answer = Answer {
            fingerprint,
            status: status.as_u16(),
            body: document.to_string(),
        };
        if let Some(in_use) = &in_use {
            self.remember(in_use, &answer).await;
        }
        Ok(Outcome::new(outcome, respond(&answer)))
    }

    /// Checks all lines, then appends them all.
    async fn take(
        &self,
        client: &Client,
        packing: Packing,
        body: Bytes,
    ) -> Result<(&'static str, StatusCode, Value), Outcome> {
        let limits = self.limits;
        let lines = || {
            Lines::of(
                Cursor::new(body.clone()),
                packing,
                limits.unpacked_bytes_max,
            )
        };
        if let Err(fault) = check(lines(), limits.records_max).await {
            let status = if fault.too_large {
                StatusCode::PAYLOAD_TOO_LARGE
            } else {
                StatusCode::UNPROCESSABLE_ENTITY
            };
            info!(
                client = client.name,
                line = fault.line,
                code = fault.code,
                "ingest: refused"
            );
            let document = json!({
                "type": "about:blank",
                "title": status.canonical_reason(),
                "status": status.as_u16(),
                "code": fault.code,
                "detail": format!("{fault}; nothing of this upload was taken"),
                "line": fault.line,
            });
            return Ok(("refused", status, document));
        }
        let intake = &self.intake;
        match append(lines(), &*intake.bus, &intake.slow, Some(BUS_WAIT_MAX)).await {
            Ok(records) => {
                intake.produced.inc_by(records);
                info!(client = client.name, records, "ingest: accepted");
                Ok((
                    "accepted",
                    StatusCode::ACCEPTED,
                    json!({"accepted": records}),
                ))
            }
            Err(error) => {
                let slow = matches!(error, AppendError::Slow { .. });
                warn!(
                    client = client.name,
                    error = chain(&error),
                    "ingest: not taken"
                );
                let detail = "the bus did not take all of it; send the same again, what is there already is stored once";
                let mut answer = problem(StatusCode::SERVICE_UNAVAILABLE, "bus", detail);
                retry_after(&mut answer, SLOW_RETRY_AFTER);
                Err(Outcome::new(if slow { "slow" } else { "failed" }, answer))
            }
        }
    }

    async fn remember(&self, in_use: &InUse, answer: &Answer) {
        if let Err(error) = self.answers.keep(in_use, answer).await {
            // The records are in the bus: to say that they are not would be worse than to take them twice.
            error!(error = chain(&error), "ingest: cannot remember an answer");
        }
    }
}
