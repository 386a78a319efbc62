//! The filtered stream of X's API v2: rules kept in step, a connection that is taken up again whenever it is lost, and
//! a count of what may have been missed meanwhile.
//!
//! A task of its own asks for it ([`api`], [`connection`]), cuts it into lines ([`frames`]) and passes tweets on; how long
//! it waits after a failure is [`schedule`]'s to say. Records are passed on as X wrote them.

mod api;
mod connection;
mod frames;
mod gap;
mod rules;
mod schedule;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use friday::clock::Clock;
use http_body_util::BodyExt;
use hyper::Method;
use hyper::header::HeaderValue;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts};
use rollout::Timestamp;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use super::{Source, SourceError, SourceRecord};
use crate::telemetry::{Telemetry, chain};
use crate::tweet::Ids;
use api::Api;
use connection::{Answer, Server};
use frames::{Frame, Frames};
use gap::Gap;
use schedule::{Backoff, Failure};

pub use rules::{RULES_MAX, Rule, TAG_PREFIX};
pub use schedule::Schedule;

/// Where X's API is.
pub const X_URL: &str = "https://api.x.com";

/// Longest backfill that X gives, in minutes.
pub const BACKFILL_MINUTES_MAX: u8 = 5;

/// Records that wait for the bus. When they are this many we stop reading, and X ends the connection if that lasts. With
/// records of the greatest size it is 64 MiB.
const QUEUE_MAX: usize = 256;

/// Longest token file. A bearer token has about 120 characters.
const TOKEN_BYTES_MAX: u64 = 4 * 1024;

/// Fields that the pipeline reads; by default X gives the id and the text alone.
const FIELDS: &str = "tweet.fields=author_id,created_at,lang,referenced_tweets";

/// Which stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XConfig {
    /// The API's address, [`X_URL`] but for tests and proxies.
    pub base: String,
    /// The file with the bearer token. It is read before each connection, so a new token is taken up without a restart.
    pub token_file: PathBuf,
    /// The rules in our name; the stream's other rules are left alone.
    pub rules: Vec<Rule>,
    /// Most minutes to ask X for again after a gap, 1 to [`BACKFILL_MINUTES_MAX`], where the plan includes it.
    pub backfill_minutes_max: Option<u8>,
    /// When to come back after a failure.
    pub schedule: Schedule,
}

/// Why there is no stream, and trying again does not mend it.
#[derive(Debug, thiserror::Error)]
pub enum XError {
    /// The address is none.
    #[error("{address:?} is no address of an API; expected one such as {X_URL}")]
    Address {
        /// What was given.
        address: String,
    },
    /// The token file is readable for others.
    #[error(
        "others may read the token file {} (mode {mode:04o}); `chmod 600` it, or 400", path.display()
    )]
    TokenMode {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The token file cannot be read.
    #[error("cannot read the token file {}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The token file holds no token.
    #[error("the token file {} must hold one bearer token in one line", path.display())]
    Token {
        /// The file.
        path: PathBuf,
    },
    /// This machine trusts nobody, so it cannot trust X.
    #[error(
        "this machine has no root certificates; install the package ca-certificates or set SSL_CERT_FILE"
    )]
    NoCertificates,
    /// X does not take a rule.
    #[error("X refuses the rule {value:?}: {reason}")]
    Rule {
        /// The rule's text.
        value: String,
        /// X's words.
        reason: String,
    },
}

/// The stream as a source; dropping it ends the connection.
#[derive(Debug)]
pub struct XStream {
    records: mpsc::Receiver<Result<SourceRecord, XError>>,
    _task: AbortOnDropHandle<()>,
}

impl XStream {
    /// Starts to connect. Metrics of the stream go into `telemetry`.
    ///
    /// # Errors
    /// When the address or the token file cannot be used. An X that is out of reach is waited for.
    pub fn start(
        config: XConfig,
        telemetry: &Telemetry,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, XError> {
        let server = Server::at(&config.base)?;
        read_token(&config.token_file)?;
        let (sender, records) = mpsc::channel(QUEUE_MAX);
        let subscriber = Subscriber {
            backoff: Backoff::new(config.schedule),
            gap: Gap::new(telemetry, clock.now()),
            metrics: Metrics::new(telemetry),
            api: Api { server },
            config,
            clock,
            sender,
        };
        Ok(Self {
            records,
            _task: AbortOnDropHandle::new(tokio::spawn(subscriber.run())),
        })
    }

    /// A record that has arrived already, if there is one.
    pub fn try_next(&mut self) -> Option<Result<SourceRecord, SourceError>> {
        let record = self.records.try_recv().ok()?;
        Some(record.map_err(SourceError::from))
    }
}

#[async_trait]
impl Source for XStream {
    /// # Cancel safety
    /// A call that is dropped took nothing.
    async fn next(&mut self) -> Result<Option<SourceRecord>, SourceError> {
        Ok(self.records.recv().await.transpose()?)
    }
}

/// Reads the bearer token. As with ssh's keys, nobody else may read the file.
fn read_token(path: &Path) -> Result<HeaderValue, XError> {
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    let failed = |source| XError::TokenFile {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(XError::TokenMode {
            path: path.to_owned(),
            mode,
        });
    }
    let mut text = String::new();
    let read = file.take(TOKEN_BYTES_MAX).read_to_string(&mut text);
    read.map_err(failed)?;
    let token = text.trim();
    let no_token = || XError::Token {
        path: path.to_owned(),
    };
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(no_token());
    }
    let value = HeaderValue::from_str(&format!("Bearer {token}"));
    let mut value = value.map_err(|_| no_token())?;
    value.set_sensitive(true);
    Ok(value)
}

/// The task that holds the connection.
struct Subscriber {
    config: XConfig,
    api: Api,
    backoff: Backoff,
    gap: Gap,
    metrics: Metrics,
    clock: Arc<dyn Clock>,
    sender: mpsc::Sender<Result<SourceRecord, XError>>,
}

/// Why an attempt ended.
enum End {
    /// Try again.
    Failed(Failure),
    /// Nobody can mend it but a person.
    Final(XError),
    /// Nobody listens any more.
    Closed,
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Subscriber {
    async fn run(mut self) {
        loop {
            let failure = match self.attempt().await {
                End::Failed(failure) => failure,
                End::Final(error) => {
                    // Whoever reads the records says so.
                    self.sender.send(Err(error)).await.ok();
                    return;
                }
                End::Closed => return,
            };
            self.metrics.connected.set(0);
            self.gap.open();
            let kind = failure.label();
            self.metrics.failures.with_label_values(&[kind]).inc();
            let wait = self.backoff.wait(failure, self.clock.now());
            info!(kind, ?wait, "x: comes back after a wait");
            sleep(wait).await;
            self.gap.grow();
        }
    }

    /// One connection, from the rules to its end.
    async fn attempt(&mut self) -> End {
        let token = match read_token(&self.config.token_file) {
            Ok(token) => token,
            // It may be in the middle of being replaced; at the start it was there.
            Err(error) => {
                error!(error = chain(&error), "x: no token to connect with");
                return End::Failed(Failure::Http);
            }
        };
        if let Err(end) = self.api.keep_rules(&token, &self.config.rules).await {
            return end;
        }
        let target = match self.backfill_minutes() {
            Some(minutes) => {
                format!("/2/tweets/search/stream?{FIELDS}&backfill_minutes={minutes}")
            }
            None => format!("/2/tweets/search/stream?{FIELDS}"),
        };
        let answer = match self.api.ask(&token, Method::GET, &target, None).await {
            Ok(answer) => answer,
            Err(failure) => return End::Failed(failure),
        };
        self.metrics.connected.set(1);
        self.gap.close(self.clock.now());
        info!("x: connected to the stream");
        self.read(answer).await
    }

    /// How many minutes to ask for again: as many as the gap began, and after a start as many as there are.
    fn backfill_minutes(&self) -> Option<u64> {
        let max = u64::from(self.config.backfill_minutes_max?);
        let gap = self.gap.so_far().map_or(max, |gap| gap.as_secs() / 60 + 1);
        Some(gap.min(max))
    }

    /// Reads the stream until it ends.
    async fn read(&mut self, mut answer: Answer) -> End {
        let began = Instant::now();
        let mut frames = Frames::default();
        let silence_max = self.config.schedule.silence_max;
        // Since when and until when the bus held us up. X ends a stream that is not read, and what arrived before that is
        // still to be read then: if the stream ends soon after, records are missing from where we were held up on.
        let mut held: Option<((Instant, Timestamp), Instant)> = None;
        let why = loop {
            let chunk = match timeout(silence_max, answer.response.body_mut().frame()).await {
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(chunk) => chunk,
                    // Trailers.
                    Err(_) => continue,
                },
                Ok(Some(Err(error))) => {
                    warn!(error = chain(&error), "x: the stream broke off");
                    break Failure::Lost {
                        lived: began.elapsed(),
                    };
                }
                Ok(None) => {
                    warn!("x: the stream was ended by the other side");
                    break Failure::Lost {
                        lived: began.elapsed(),
                    };
                }
                Err(_) => {
                    warn!(?silence_max, "x: neither a tweet nor a keep-alive came");
                    break Failure::Lost {
                        lived: began.elapsed().saturating_sub(silence_max),
                    };
                }
            };
            frames.push(&chunk);
            while let Some(frame) = frames.next() {
                match frame {
                    Frame::KeepAlive => self.metrics.keep_alives.inc(),
                    Frame::TooLong => {
                        self.metrics.too_long.inc();
                        warn!("x: left out a line that is longer than a record may be");
                    }
                    Frame::Object(bytes) => {
                        let Some(record) = record_of(bytes) else {
                            continue;
                        };
                        let begun = (Instant::now(), self.clock.now());
                        if self.sender.send(Ok(record)).await.is_err() {
                            return End::Closed;
                        }
                        if begun.0.elapsed() >= silence_max / 4 {
                            let from = held.map_or(begun, |(from, _)| from);
                            held = Some((from, Instant::now()));
                        }
                    }
                }
            }
            self.gap.seen(self.clock.now());
            held = held.filter(|(_, until)| until.elapsed() < silence_max);
        };
        if let Some((from, _)) = held {
            self.gap.missed_since(from);
        }
        // The connection ends before its answer is waited for any longer.
        drop(answer.connection);
        End::Failed(why)
    }
}

/// A tweet, or anything that is not plainly a message of the stream about itself: those are logged and go no further.
fn record_of(bytes: Bytes) -> Option<SourceRecord> {
    let message: Option<Value> = serde_json::from_slice(&bytes).ok();
    if let Some(errors) = message.as_ref().and_then(|object| object.get("errors"))
        && message
            .as_ref()
            .is_some_and(|object| object.get("data").is_none())
    {
        let first = errors.get(0).cloned().unwrap_or_default();
        let word = |name: &str| first.get(name).and_then(Value::as_str).map(str::to_owned);
        warn!(
            title = word("title"),
            kind = word("disconnect_type"),
            detail = word("detail"),
            "x: a message of the stream"
        );
        return None;
    }
    Some(SourceRecord {
        key: Ids::of(&bytes).author.map(Bytes::from),
        value: bytes,
        malformed_on_purpose: false,
    })
}

/// What is counted besides gaps.
#[derive(Debug)]
struct Metrics {
    connected: IntGauge,
    keep_alives: IntCounter,
    too_long: IntCounter,
    failures: IntCounterVec,
}

impl Metrics {
    fn new(telemetry: &Telemetry) -> Self {
        Self {
            connected: telemetry.gauge(Opts::new(
                "pipeline_source_connected",
                "Whether the stream is connected.",
            )),
            keep_alives: telemetry.counter(
                "pipeline_source_keep_alives_total",
                "Blank lines by which the stream said that it lives.",
            ),
            too_long: telemetry.counter(
                "pipeline_source_too_long_total",
                "Lines left out because they are longer than a record may be.",
            ),
            failures: telemetry.counters(
                "pipeline_source_failures_total",
                "Connections that were lost and attempts that failed, by kind.",
                &["kind"],
            ),
        }
    }
}
