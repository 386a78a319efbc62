//! The link with the controller: tables come by long polls, reports go twice a second.
//!
//! Nothing here can stop the proxy from serving: without an answer it keeps the table it has, keeps its counts, and
//! tries again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use friday_tls::Trouble;
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT,
};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use proxy_api::{Generation, ReportAck, RouteTable, TLS_REQUIRED};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::body::{Download, Outgoing};
use crate::config::Controller;
use crate::routes::{ApplyError, Routes, Save};
use crate::signals::Signals;
use crate::token::Token;
use crate::upstream::{Dial, Failure, Peer};

/// How long the controller may keep a poll without news. Below the 30 s after which many a middlebox ends a silent
/// connection.
const POLL_WAIT_SECONDS: u64 = 25;

/// Longest wait for the answer to a poll: what the controller may take, and 5 s for the way.
const POLL_ANSWER_MAX: Duration = Duration::from_secs(POLL_WAIT_SECONDS + 5);

/// Longest wait for the answer to a report: it only has to be stored.
const REPORT_ANSWER_MAX: Duration = Duration::from_secs(5);

/// Longest wait for a connection.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// Longest table that is read: 1 000 routes of 10 endpoints make about 1 MiB.
const TABLE_BYTES_MAX: usize = 64 << 20;

/// Longest answer to a report that is read.
const ACK_BYTES_MAX: usize = 64 << 10;

/// Pause after the first poll in vain; doubled with each, up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// Longest pause between polls: a controller that is back has every proxy again within this time.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Longest wait for the last report on shutdown.
pub(crate) const LAST_REPORT_MAX: Duration = Duration::from_secs(2);

/// Why the controller gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("the controller takes no connection")]
    Connect,
    #[error("the controller is not trusted: {0}{advice}", advice = advice(.0))]
    Untrusted(Trouble),
    #[error("the controller speaks TLS; --controller takes its address with https://")]
    InTheClear,
    #[error("the controller broke the connection")]
    Reset,
    #[error("the controller did not answer in time")]
    Timeout,
    #[error(
        "the controller does not know this proxy's token ({0}); --token-file names the file of one that its --tokens has"
    )]
    Token(StatusCode),
    #[error("the controller answered {0}")]
    Status(StatusCode),
    #[error("the controller's answer broke off or is too long: {0}")]
    Body(String),
    #[error("the controller's answer cannot be read: {0}")]
    Malformed(serde_json::Error),
    #[error("cannot write the report: {0}")]
    Report(serde_json::Error),
    #[error("the controller's table is not put in force: {0:#}")]
    Apply(ApplyChain),
}

/// What a person can do about it here.
fn advice(trouble: &Trouble) -> &'static str {
    if trouble.is_of_authority() {
        "; --controller-ca names the PEM file of the right one"
    } else {
        ""
    }
}

/// An [`ApplyError`] with its source on one line.
#[derive(Debug)]
pub(crate) struct ApplyChain(ApplyError);

impl std::fmt::Display for ApplyChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        match std::error::Error::source(&self.0) {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

/// The proxy's side of the link.
#[derive(Debug)]
pub(crate) struct Link {
    peer: Arc<Peer>,
    controller: Controller,
    token: Option<Arc<Token>>,
    name: String,
    routes: Arc<Routes>,
    signals: Arc<Signals>,
    /// Wakes the reporter.
    due: Arc<Notify>,
}

impl Link {
    /// A link that says nothing yet, and will by `dial`. It reports whenever `due` is notified.
    pub(crate) fn new(
        controller: Controller,
        dial: Dial,
        token: Option<Arc<Token>>,
        name: String,
        routes: Arc<Routes>,
        signals: Arc<Signals>,
        due: Arc<Notify>,
    ) -> Self {
        Self {
            peer: Arc::new(Peer::new(controller.endpoint.clone(), dial, 1)),
            controller,
            token,
            name,
            routes,
            signals,
            due,
        }
    }

    /// Takes tables from the controller until `stop`.
    pub(crate) async fn poll(&self, stop: &CancellationToken) {
        let mut state = Health::new("tables");
        let mut pause = PAUSE_MIN;
        while let Some(polled) = stop.run_until_cancelled(self.poll_once()).await {
            let began = Instant::now();
            state.note(polled.as_ref().err());
            match polled {
                // One poll after the other, but a controller that answers 204 at once must not be flooded.
                Ok(Polled::News) => {
                    pause = PAUSE_MIN;
                    continue;
                }
                Ok(Polled::Nothing(waited)) => {
                    pause = PAUSE_MIN;
                    if waited >= PAUSE_MIN {
                        continue;
                    }
                }
                Err(_) => pause = (pause * 2).min(PAUSE_MAX),
            }
            // Jitter keeps a hundred proxies from coming back in step.
            let pause = pause.mul_f64(rand::random_range(0.5..=1.0));
            debug!(after = ?began.elapsed(), ?pause, "polling again soon");
            if stop.run_until_cancelled(sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    async fn poll_once(&self) -> Result<Polled, LinkError> {
        let began = Instant::now();
        let request = poll_request(&self.controller, &self.name, self.routes.generation());
        let (status, body) = self
            .exchange(request, POLL_ANSWER_MAX, TABLE_BYTES_MAX)
            .await?;
        match read_poll(status, &body)? {
            None => Ok(Polled::Nothing(began.elapsed())),
            Some(table) => {
                let applied = self.routes.apply(table, Save::Yes).await;
                applied.map_err(|error| LinkError::Apply(ApplyChain(error)))?;
                Ok(Polled::News)
            }
        }
    }

    /// Reports whenever a report is due and after each new table, until `stop`.
    pub(crate) async fn report(&self, stop: &CancellationToken) {
        let mut state = Health::new("reports");
        let mut applied = self.routes.applied();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.due.notified() => {}
                Ok(()) = applied.changed() => {}
            }
            let reported = tokio::select! {
                () = stop.cancelled() => return,
                reported = self.report_once() => reported,
            };
            state.note(reported.as_ref().err());
        }
    }

    /// The last report, when nothing is in flight any more.
    pub(crate) async fn report_last(&self) {
        self.signals.tick(Instant::now());
        match timeout(LAST_REPORT_MAX, self.report_once()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "the last report was not taken"),
            Err(_) => warn!("the last report was not answered in time"),
        }
    }

    /// Tells all that waits, the oldest first, in as many reports as it takes: one follows the other at once.
    async fn report_once(&self) -> Result<(), LinkError> {
        // Final epochs that the controller was told and has not made safe yet.
        let mut told = Vec::new();
        let mut from = Some(0);
        while let Some(first) = from {
            // A report of a minute is large: it is only written when there is somebody to read it.
            if !self.peer.is_healthy() && !self.peer.probe().await {
                return Err(self.unconnected());
            }
            let peers = self.routes.peers();
            let in_flight = || peers.in_flight_report();
            let (report, next) = self
                .signals
                .report(&self.name, first, Instant::now(), in_flight);
            let body = serde_json::to_vec(&report).map_err(LinkError::Report)?;
            let request = report_request(&self.controller, &self.name, body);
            let (status, body) = self
                .exchange(request, REPORT_ANSWER_MAX, ACK_BYTES_MAX)
                .await?;
            let ack = read_ack(status, &body)?;
            let finals = report.epochs.iter().filter(|epoch| epoch.is_final);
            told.extend(finals.map(|epoch| epoch.number));
            self.signals.acknowledge(&mut told, ack);
            from = next;
        }
        Ok(())
    }

    async fn exchange(
        &self,
        mut request: Request<Outgoing>,
        wait_max: Duration,
        bytes_max: usize,
    ) -> Result<(StatusCode, Bytes), LinkError> {
        let shown = self.token.as_ref().map(|token| token.header());
        if let Some(header) = shown.clone() {
            request.headers_mut().insert(AUTHORIZATION, header);
        }
        let exchange = async {
            let sent = self
                .peer
                .send(0, Box::new(request), Instant::now(), CONNECT_MAX, wait_max)
                .await;
            let (response, connection) = sent.map_err(|failure| match failure {
                Failure::Connect(_) => self.unconnected(),
                Failure::Reset | Failure::Refused | Failure::Client(_) => LinkError::Reset,
                Failure::Timeout => LinkError::Timeout,
            })?;
            let status = response.status();
            let body = Download::new(response.into_body(), connection, None);
            let body = Limited::new(body, bytes_max)
                .collect()
                .await
                .map_err(|error| LinkError::Body(error.to_string()))?
                .to_bytes();
            Ok((status, body))
        };
        let (status, body) = timeout(wait_max, exchange)
            .await
            .map_err(|_| LinkError::Timeout)??;
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            if let Some((token, shown)) = self.token.as_ref().zip(shown) {
                token.reread(&shown).await;
            }
            return Err(LinkError::Token(status));
        }
        if status == StatusCode::BAD_REQUEST && wants_tls(&body) {
            return Err(LinkError::InTheClear);
        }
        Ok((status, body))
    }

    /// Why there is no connection.
    fn unconnected(&self) -> LinkError {
        match self.peer.trouble() {
            Some(trouble) => LinkError::Untrusted(trouble),
            None => LinkError::Connect,
        }
    }
}

enum Polled {
    News,
    /// No news, after so long.
    Nothing(Duration),
}

fn request(
    controller: &Controller,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Request<Outgoing> {
    let target = format!("{}/api/v1/proxies/{path}", controller.base);
    let length = body.len();
    let mut request = Request::new(Outgoing::whole(body.into()));
    if length > 0 {
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    *request.method_mut() = method;
    *request.uri_mut() = target
        .parse()
        .expect("base, name and generation are made of what a URL may hold");
    let headers = request.headers_mut();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(
        USER_AGENT,
        HeaderValue::from_static(concat!("friday-proxy/", env!("CARGO_PKG_VERSION"))),
    );
    headers.insert(
        HOST,
        HeaderValue::from_str(&controller.authority).expect("it was part of a URL"),
    );
    request
}

fn poll_request(controller: &Controller, name: &str, have: Generation) -> Request<Outgoing> {
    let path = format!("{name}/table?generation={have}&wait_seconds={POLL_WAIT_SECONDS}");
    request(controller, Method::GET, &path, Vec::new())
}

fn report_request(controller: &Controller, name: &str, report: Vec<u8>) -> Request<Outgoing> {
    request(controller, Method::POST, &format!("{name}/reports"), report)
}

/// The newer table, or `None` if there is none.
fn read_poll(status: StatusCode, body: &[u8]) -> Result<Option<RouteTable>, LinkError> {
    match status {
        StatusCode::OK => serde_json::from_slice(body)
            .map(Some)
            .map_err(LinkError::Malformed),
        StatusCode::NO_CONTENT => Ok(None),
        other => Err(LinkError::Status(other)),
    }
}

/// Whether a refusal is that of a controller that was to be asked by TLS.
fn wants_tls(body: &[u8]) -> bool {
    let problem: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    problem.is_some_and(|problem| problem["code"] == TLS_REQUIRED)
}

fn read_ack(status: StatusCode, body: &[u8]) -> Result<ReportAck, LinkError> {
    if status.is_success() {
        serde_json::from_slice(body).map_err(LinkError::Malformed)
    } else {
        Err(LinkError::Status(status))
    }
}

/// Logs when something stops working and when it works again, not each time in between.
struct Health {
    what: &'static str,
    failing: Option<String>,
}

impl Health {
    fn new(what: &'static str) -> Self {
        Self {
            what,
            failing: None,
        }
    }

    fn note(&mut self, error: Option<&LinkError>) {
        let what = self.what;
        match error {
            None => {
                if self.failing.take().is_some() {
                    info!(what, "the controller answers again");
                }
            }
            Some(failure) => {
                let text = failure.to_string();
                if self.failing.as_ref() != Some(&text) {
                    match failure {
                        // These do not mend themselves.
                        LinkError::Malformed(_) | LinkError::Apply(_) | LinkError::Report(_) => {
                            error!(what, error = %text, "serving on without the controller");
                        }
                        LinkError::Connect
                        | LinkError::Untrusted(_)
                        | LinkError::InTheClear
                        | LinkError::Reset
                        | LinkError::Timeout
                        | LinkError::Token(_)
                        | LinkError::Status(_)
                        | LinkError::Body(_) => {
                            warn!(what, error = %text, "serving on without the controller");
                        }
                    }
                    self.failing = Some(text);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proxy_api::BootId;

    use super::*;

    #[test]
    fn builds_the_requests_of_the_contract() {
        let controller: Controller = "http://c:7070/friday".parse().unwrap();
        let have = Generation { term: 3, seq: 14 };
        let poll = poll_request(&controller, "edge-1", have);
        assert_eq!(
            poll.uri(),
            "/friday/api/v1/proxies/edge-1/table?generation=3.14&wait_seconds=25"
        );
        assert_eq!(poll.method(), Method::GET);
        assert_eq!(poll.headers()[HOST], "c:7070");
        let report = report_request(&controller, "edge-1", b"{}".to_vec());
        assert_eq!(report.uri(), "/friday/api/v1/proxies/edge-1/reports");
        assert_eq!(report.method(), Method::POST);
        assert_eq!(report.headers()[CONTENT_LENGTH], "2");
    }

    #[test]
    fn reads_the_answers_of_the_contract() {
        let table = br#"{"generation":{"term":1,"seq":2},"routes":[]}"#;
        assert_eq!(
            read_poll(StatusCode::OK, table)
                .unwrap()
                .unwrap()
                .generation
                .seq,
            2
        );
        assert!(read_poll(StatusCode::NO_CONTENT, b"").unwrap().is_none());
        assert!(matches!(
            read_poll(StatusCode::OK, b""),
            Err(LinkError::Malformed(_))
        ));
        assert!(matches!(
            read_poll(StatusCode::NOT_FOUND, b""),
            Err(LinkError::Status(_))
        ));
        let ack = br#"{"boot":"000000000000000a","acknowledged":4}"#;
        assert_eq!(
            read_ack(StatusCode::OK, ack).unwrap(),
            ReportAck {
                boot: BootId(10),
                acknowledged: 4
            }
        );
        assert!(read_ack(StatusCode::BAD_GATEWAY, ack).is_err());
    }
}
