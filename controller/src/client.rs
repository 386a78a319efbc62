//! A small client of the HTTP API, for the command line.
//!
//! Everything has a limit: connecting, answering, the length of an answer and of one streamed event. What went wrong is
//! told apart by what the caller can do: the controller is out of reach (try again, or look where it runs), it refused
//! (its words say why), or its answer makes no sense.

mod error;
mod events;
mod sign_in;
mod token;
pub(crate) mod transport;

use std::path::Path;

use bytes::Bytes;
use friday_tls::{Authorities, Trouble};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use proxy_api::TLS_REQUIRED;
use reqwest::Url;
use rollout::Duration;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};

use crate::api::types::agents::{AgentReport, AgentView};
use crate::api::types::health::HealthView;
use crate::api::types::locks::{LockRequest, LockView, UnlockRequest};
use crate::api::types::me::MeView;
use crate::api::types::series::SeriesView;
use crate::api::types::{
    DeployRequest, EventView, LeaseOrder, OrderRequest, Problem, ProxyView, RolloutSummary,
    RolloutView, ServiceView, UndoRequest,
};
use crate::origin::{JOB_TOKEN_HEADER, JobToken};
pub use error::ClientError;
pub use events::Changes;
pub use sign_in::{DeviceAnswer, Look, SessionAnswer, TokenAnswer, slower};
pub use token::{Token, TokenError};
pub use transport::TransportError;
use transport::{Transport, Trust, is_loopback};

/// Longest wait for a whole answer. A deploy looks up a digest at the registry, which may take ten seconds.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Longest answer. A rollout of 100 steps and 1,000 tasks is 400 KiB; a page of 1,000 events about as much.
const BODY_BYTES_MAX: usize = 16 << 20;

/// The pause before a request is made again, growing up to the greatest.
const RETRY: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// For how long requests are made again, and who hears of it.
#[derive(Debug, Clone, Copy)]
struct Patience {
    limit: Duration,
    until: Instant,
    said: fn(&ClientError, Duration),
}

/// The controller at one address.
#[derive(Debug, Clone)]
pub struct Client {
    transport: Transport,
    base: Url,
    token: Option<Token>,
    job_token: Option<JobToken>,
    patience: Option<Patience>,
}

impl Client {
    /// The controller at `url`, a whole one or `HOST:PORT`. One at https:// is verified with the authorities that the
    /// system trusts, which are read from the disk.
    ///
    /// # Errors
    /// `url` is no address of a controller, or the system trusts nobody.
    pub fn new(url: &str, token: Option<Token>) -> Result<Self, ClientError> {
        Self::trusting(None, url, token)
    }

    /// The same, and one at https:// is verified with the authorities in the PEM file `ca` alone, if there is one.
    ///
    /// # Errors
    /// `url` is no address of a controller, or there are no such authorities.
    pub fn trusting(
        ca: Option<&Path>,
        url: &str,
        token: Option<Token>,
    ) -> Result<Self, ClientError> {
        let base = address(url)?;
        let authorities = match (base.scheme(), ca) {
            ("https", Some(file)) => Authorities::from_file(file).map(Some),
            ("https", None) => Authorities::of_system().map(Some),
            _ => Ok(None),
        };
        let made = authorities.and_then(|authorities| {
            let is_near = base.host_str().is_some_and(is_loopback);
            Transport::new(authorities.map(Trust::Signed), is_near)
        });
        let transport = made.map_err(|source| ClientError::Authorities { source })?;
        Ok(Self {
            transport,
            base,
            token,
            job_token: None,
            patience: None,
        })
    }

    /// How a controller's address is written in full, as [`Client::url`] has it; `None` where it is none.
    pub(crate) fn full_url(url: &str) -> Option<String> {
        let base = address(url).ok()?;
        Some(base.as_str().trim_end_matches('/').to_owned())
    }

    /// The same, and rollouts that are started by it are told to GitLab with the credential of this job, as long as it
    /// runs. It goes to a controller at https:// or on this machine; to another it would be shown to the network.
    #[must_use]
    pub fn with_job_token(self, job_token: Option<JobToken>) -> Self {
        let is_safe =
            self.base.scheme() == "https" || self.base.host_str().is_some_and(is_loopback);
        Self {
            job_token: job_token.filter(|_| is_safe),
            ..self
        }
    }

    /// The same, and from now on for this long a request that got no answer is made again, as long as that cannot do a
    /// thing twice. `said` hears of the first failure of each, and of the limit.
    #[must_use]
    pub fn patient(self, limit: Duration, said: fn(&ClientError, Duration)) -> Self {
        let patience = Patience {
            limit,
            until: Instant::now() + limit,
            said,
        };
        Self {
            patience: Some(patience),
            ..self
        }
    }

    /// The controller's address, for messages.
    #[must_use]
    pub fn url(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// Starts a rollout.
    ///
    /// # Errors
    /// See [`ClientError`]; so for all that follow.
    pub async fn deploy(&self, request: &DeployRequest) -> Result<RolloutView, ClientError> {
        let action = "start a rollout";
        let request = self.with_body(action, &self.at(&["rollouts"]), request)?;
        // Who asks for the same release again is told of the rollout that it has.
        let request = self.for_job(request);
        self.answer_or(action, request, ClientError::is_transient)
            .await
    }

    /// Takes, renews or gives back the lease of the rollout with this id.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn lease(&self, id: &str, order: &LeaseOrder) -> Result<RolloutView, ClientError> {
        let verb = match order {
            LeaseOrder::Take { .. } => "take",
            LeaseOrder::Renew { .. } => "renew",
            LeaseOrder::GiveBack { .. } => "give back",
        };
        let action = format!("{verb} the lease of {id}");
        let request = self.with_body(&action, &self.at(&["rollouts", id, "lease"]), order)?;
        self.answer(&action, self.for_job(request)).await
    }

    /// The request with the job's credential, if there is one.
    fn for_job(&self, mut request: Request<Full<Bytes>>) -> Request<Full<Bytes>> {
        if let Some(token) = &self.job_token {
            let name = HeaderName::from_static(JOB_TOKEN_HEADER);
            request.headers_mut().insert(name, token.header());
        }
        request
    }

    /// Rollouts, newest first, of one service or of all.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn rollouts(
        &self,
        service: Option<&str>,
        limit: u32,
    ) -> Result<Vec<RolloutSummary>, ClientError> {
        let mut url = self.at(&["rollouts"]);
        url.query_pairs_mut()
            .append_pair("limit", &limit.to_string());
        if let Some(service) = service {
            url.query_pairs_mut().append_pair("service", service);
        }
        self.get("list rollouts", &url).await
    }

    /// Rollouts of all services that are older than this one, newest first.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn rollouts_before(
        &self,
        before: &str,
        limit: u32,
    ) -> Result<Vec<RolloutSummary>, ClientError> {
        let mut url = self.at(&["rollouts"]);
        url.query_pairs_mut()
            .append_pair("limit", &limit.to_string())
            .append_pair("before", before);
        self.get("list rollouts", &url).await
    }

    /// A rollout by its id, or the newest of a service.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn rollout(&self, name: &str) -> Result<RolloutView, ClientError> {
        let url = self.at(&["rollouts", name]);
        self.get(&format!("get rollout {name}"), &url).await
    }

    /// Orders something of the rollout with this id.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn order(&self, id: &str, order: &OrderRequest) -> Result<RolloutView, ClientError> {
        let verb = serde_json::to_value(order.order).ok();
        let verb = verb
            .as_ref()
            .and_then(|verb| verb.as_str())
            .unwrap_or("order")
            .replace('_', " ");
        self.post(&format!("{verb} {id}"), &["rollouts", id, "orders"], order)
            .await
    }

    /// Entries of the event log about a rollout, those after number `after`, oldest first.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn events(
        &self,
        id: &str,
        after: i64,
        limit: u32,
    ) -> Result<Vec<EventView>, ClientError> {
        let mut url = self.at(&["rollouts", id, "events"]);
        url.query_pairs_mut()
            .append_pair("after", &after.to_string())
            .append_pair("limit", &limit.to_string());
        self.get(&format!("read the events of {id}"), &url).await
    }

    /// Entries of the whole event log, those after number `after`, oldest first.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn log(&self, after: i64, limit: u32) -> Result<Vec<EventView>, ClientError> {
        let mut url = self.at(&["events"]);
        url.query_pairs_mut()
            .append_pair("after", &after.to_string())
            .append_pair("limit", &limit.to_string());
        self.get("read the event log", &url).await
    }

    /// How the rollout with this id went over time, of the entries of its log after number `after`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn series(&self, id: &str, after: i64) -> Result<SeriesView, ClientError> {
        let mut url = self.at(&["rollouts", id, "series"]);
        url.query_pairs_mut()
            .append_pair("after", &after.to_string());
        self.get(&format!("read the series of {id}"), &url).await
    }

    /// Who we are to the controller, and what is allowed to us.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn me(&self) -> Result<MeView, ClientError> {
        self.get("ask who we are", &self.at(&["me"])).await
    }

    /// The services, each with its newest rollout.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn services(&self) -> Result<Vec<ServiceView>, ClientError> {
        self.get("list services", &self.at(&["services"])).await
    }

    /// Starts a rollout back to an earlier release of a service.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn undo(
        &self,
        service: &str,
        request: &UndoRequest,
    ) -> Result<RolloutView, ClientError> {
        self.post(
            &format!("undo {service}"),
            &["services", service, "undo"],
            request,
        )
        .await
    }

    /// Starts a rollout of a service's release that was rolled back before.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn retry(
        &self,
        service: &str,
        request: &UndoRequest,
    ) -> Result<RolloutView, ClientError> {
        self.post(
            &format!("retry {service}"),
            &["services", service, "retry"],
            request,
        )
        .await
    }

    /// The locks of a service that are in force.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn locks(&self, service: &str) -> Result<Vec<LockView>, ClientError> {
        let url = self.at(&["services", service, "lock"]);
        self.get(&format!("read the locks of {service}"), &url)
            .await
    }

    /// Takes a lock, or renews it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn lock(
        &self,
        service: &str,
        request: &LockRequest,
    ) -> Result<LockView, ClientError> {
        let action = format!("lock {service}");
        let url = self.at(&["services", service, "lock"]);
        let mut request = self.with_body(&action, &url, request)?;
        *request.method_mut() = Method::PUT;
        self.answer(&action, request).await
    }

    /// Gives a lock back, or breaks it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn unlock(
        &self,
        service: &str,
        request: &UnlockRequest,
    ) -> Result<LockView, ClientError> {
        let action = format!("unlock {service}");
        let url = self.at(&["services", service, "lock"]);
        let mut request = self.with_body(&action, &url, request)?;
        *request.method_mut() = Method::DELETE;
        self.answer(&action, request).await
    }

    /// The changes of the rollout with this id, as they happen.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn watch(&self, id: &str) -> Result<Changes, ClientError> {
        let action = format!("watch rollout {id}");
        let mut url = self.at(&["stream"]);
        url.query_pairs_mut().append_pair("rollout", id);
        let mut request = self.request(Method::GET, &url, Bytes::new());
        let stream = HeaderValue::from_static("text/event-stream");
        request.headers_mut().insert(ACCEPT, stream);
        match timeout(ANSWER_MAX, self.transport.send(request)).await {
            Ok(Ok(answer)) if answer.status().is_success() => {
                Ok(Changes::of(Some(answer.into_body())))
            }
            Ok(Ok(answer)) => {
                let status = answer.status();
                let body = timeout(ANSWER_MAX, self.body(&action, answer)).await;
                Err(self.read_refusal(&action, status, &body.unwrap_or(Ok(Bytes::new()))?))
            }
            Ok(Err(source)) => Err(self.unreachable(&action, source)),
            // As if there had been no stream: whoever follows a rollout asks for it by itself too.
            Err(_) => Ok(Changes::of(None)),
        }
    }

    /// Tells what the tasks of a node use.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn report_agent(&self, report: &AgentReport) -> Result<(), ClientError> {
        let url = self.at(&["agents", &report.node, "reports"]);
        let action = format!("report node {}", report.node);
        let request = self.with_body(&action, &url, report)?;
        self.exchange(&action, request).await.map(drop)
    }

    /// The nodes' agents, each with its last report.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn agents(&self) -> Result<Vec<AgentView>, ClientError> {
        self.get("list agents", &self.at(&["agents"])).await
    }

    /// How the controller is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn health(&self) -> Result<HealthView, ClientError> {
        self.get("ask the controller how it is", &self.at(&["health"]))
            .await
    }

    /// The proxies, by name.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn proxies(&self) -> Result<Vec<ProxyView>, ClientError> {
        self.get("list proxies", &self.at(&["proxies"])).await
    }

    /// The address of something below `/api/v1`.
    fn at(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["api", "v1"]).extend(path);
        }
        url
    }

    fn request(&self, method: Method, url: &Url, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = Uri::try_from(url.as_str()).expect("a URL of http is a URI");
        if let Some(shown) = self.token.as_ref().and_then(Token::header) {
            request.headers_mut().insert(AUTHORIZATION, shown);
        }
        request
    }

    fn with_body(
        &self,
        action: &str,
        url: &Url,
        body: &impl Serialize,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Unwritable {
            action: action.to_owned(),
            source: error,
        })?;
        let mut request = self.request(Method::POST, url, body.into());
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(CONTENT_TYPE, json);
        Ok(request)
    }

    async fn get<T: DeserializeOwned>(&self, action: &str, url: &Url) -> Result<T, ClientError> {
        let request = self.request(Method::GET, url, Bytes::new());
        self.answer(action, request).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        action: &str,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let request = self.with_body(action, &self.at(path), body)?;
        self.answer(action, request).await
    }

    async fn answer<T: DeserializeOwned>(
        &self,
        action: &str,
        request: Request<Full<Bytes>>,
    ) -> Result<T, ClientError> {
        let may_repeat = if request.method() == Method::GET {
            ClientError::is_transient
        } else {
            ClientError::is_untouched
        };
        self.answer_or(action, request, may_repeat).await
    }

    /// The answer; after a failure that `may_repeat` likes it is asked for again, as long as there is patience.
    async fn answer_or<T: DeserializeOwned>(
        &self,
        action: &str,
        request: Request<Full<Bytes>>,
        may_repeat: fn(&ClientError) -> bool,
    ) -> Result<T, ClientError> {
        let mut failures = 0;
        let (status, body) = loop {
            let error = match self.exchange(action, request.clone()).await {
                Ok(answer) => break answer,
                Err(error) => error,
            };
            let patience = self.patience.filter(|_| may_repeat(&error));
            let Some(patience) = patience.filter(|one| Instant::now() < one.until) else {
                return Err(error);
            };
            if failures == 0 {
                (patience.said)(&error, patience.limit);
            }
            tokio::time::sleep(pause(failures)).await;
            failures += 1;
        };
        serde_json::from_slice(&body).map_err(|error| self.alien(action, status, error.to_string()))
    }

    /// Sends a request and reads an answer that is a success.
    async fn exchange(
        &self,
        action: &str,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let exchange = async {
            let answer = self.transport.send(request).await;
            let answer = answer.map_err(|source| self.unreachable(action, source))?;
            let status = answer.status();
            Ok((status, self.body(action, answer).await?))
        };
        let late = |_| self.unreachable(action, TransportError::Late(ANSWER_MAX));
        let (status, body) = timeout(ANSWER_MAX, exchange).await.map_err(late)??;
        if status.is_success() {
            Ok((status, body))
        } else {
            Err(self.read_refusal(action, status, &body))
        }
    }

    async fn body(&self, action: &str, answer: Response<Incoming>) -> Result<Bytes, ClientError> {
        let (head, body) = answer.into_parts();
        match Limited::new(body, BODY_BYTES_MAX).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) => Err(match error.downcast::<hyper::Error>() {
                Ok(broken) => self.unreachable(action, TransportError::Broken(*broken)),
                Err(_) => self.alien(
                    action,
                    head.status,
                    format!("more than {BODY_BYTES_MAX} bytes"),
                ),
            }),
        }
    }

    /// What an answer that is no success means.
    fn read_refusal(&self, action: &str, status: StatusCode, body: &[u8]) -> ClientError {
        let (action, url) = (action.to_owned(), self.url().to_owned());
        match serde_json::from_slice::<Box<Problem>>(body) {
            Ok(problem) if problem.code == TLS_REQUIRED => ClientError::InTheClear { action, url },
            // A full disk refuses what is new and goes on with what runs (F40); waiting does not mend it.
            Ok(problem)
                if status.is_client_error() || status == StatusCode::INSUFFICIENT_STORAGE =>
            {
                ClientError::Refused { action, problem }
            }
            Ok(problem) if status == StatusCode::INTERNAL_SERVER_ERROR => ClientError::Failed {
                action,
                url,
                problem,
            },
            Ok(problem) if status.is_server_error() => ClientError::Unavailable {
                action,
                url,
                problem,
            },
            // Something that takes TLS off, say, while the controller behind it restarts.
            Err(_) if matches!(status.as_u16(), 429 | 502..=504) => ClientError::Unavailable {
                action,
                url,
                problem: Box::new(in_front(status)),
            },
            Ok(_) | Err(_) => self.alien(&action, status, "no problem document".to_owned()),
        }
    }

    fn unreachable(&self, action: &str, source: TransportError) -> ClientError {
        let (action, url) = (action.to_owned(), self.url().to_owned());
        match source.trouble() {
            // It may be on its way up or down.
            None | Some(Trouble::BrokenOff) => ClientError::Unreachable {
                action,
                url,
                source,
            },
            Some(trouble) => ClientError::Untrusted {
                action,
                url,
                trouble: trouble.clone(),
            },
        }
    }

    fn alien(&self, action: &str, status: StatusCode, reason: String) -> ClientError {
        ClientError::Alien {
            action: action.to_owned(),
            url: self.url().to_owned(),
            status,
            reason,
        }
    }
}

/// The pause after so many failures before this one.
pub(crate) fn pause(failures: u32) -> Duration {
    /// 2^10 times the first pause is beyond the greatest.
    const DOUBLED_MAX: u32 = 10;
    let pause = RETRY.saturating_mul(1 << failures.min(DOUBLED_MAX));
    pause.min(RETRY_MAX)
}

/// What a proxy's answer says in place of the controller's.
fn in_front(status: StatusCode) -> Problem {
    Problem {
        code: "no_answer_behind_proxy".to_owned(),
        status: status.as_u16(),
        title: status.canonical_reason().unwrap_or("error").to_owned(),
        detail: format!("something in front of it answered {status}"),
    }
}

/// The address of a controller, out of a whole one or `HOST:PORT`.
///
/// # Errors
/// It is none.
pub(crate) fn address(url: &str) -> Result<Url, ClientError> {
    let bad = |reason: &str| ClientError::Address {
        url: url.to_owned(),
        reason: reason.to_owned(),
    };
    let whole = if url.contains("://") {
        url.to_owned()
    } else {
        format!("http://{url}")
    };
    let base = Url::parse(&whole).map_err(|error| bad(&error.to_string()))?;
    let is_web = matches!(base.scheme(), "http" | "https");
    if !is_web || base.cannot_be_a_base() || base.host_str().is_none() {
        return Err(bad("expected https://HOST:PORT or http://HOST:PORT"));
    }
    if !base.username().is_empty() || base.password().is_some() || base.query().is_some() {
        return Err(bad(
            "expected no user, password or query in it; a token goes to FRIDAY_TOKEN",
        ));
    }
    Ok(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_which_address_is_none() {
        let said = |url: &str| Client::new(url, None).unwrap_err().to_string();
        assert_eq!(
            Client::new("localhost:7070", None).unwrap().url(),
            "http://localhost:7070"
        );
        let hint = "; set --url or FRIDAY_URL, such as http://127.0.0.1:7070";
        assert_eq!(
            said("ftp://localhost"),
            format!(
                "\"ftp://localhost\" is not the address of a controller: expected https://HOST:PORT or http://HOST:PORT{hint}"
            )
        );
        assert!(said("http://user:secret@host").contains("a token goes to FRIDAY_TOKEN"));
        assert!(said("").contains("is not the address"));
        assert_eq!(
            Client::new("http://[::1]:7070/base/", None).unwrap().url(),
            "http://[::1]:7070/base"
        );
    }

    #[test]
    fn tells_refusals_from_failures_and_from_strangers() {
        let client = Client::new("http://127.0.0.1:7070", None).unwrap();
        let problem = br#"{"code":"busy","status":409,"title":"Busy","detail":"what to do"}"#;
        let code = |status, body: &[u8]| client.read_refusal("get x", status, body).exit_code();
        assert_eq!(code(StatusCode::CONFLICT, problem), 20);
        assert_eq!(code(StatusCode::FORBIDDEN, problem), 20);
        assert_eq!(code(StatusCode::INSUFFICIENT_STORAGE, problem), 20);
        assert_eq!(code(StatusCode::INTERNAL_SERVER_ERROR, problem), 1);
        assert_eq!(code(StatusCode::SERVICE_UNAVAILABLE, problem), 30);
        assert_eq!(code(StatusCode::NOT_FOUND, b"<html>"), 30);
        assert_eq!(code(StatusCode::FOUND, b""), 30);
    }

    #[test]
    fn a_proxy_whose_controller_restarts_is_no_stranger() {
        let client = Client::new("https://friday.example.com", None).unwrap();
        let refusal = |status: u16, body: &[u8]| {
            client.read_refusal("get x", StatusCode::from_u16(status).unwrap(), body)
        };
        let page = b"<html><h1>Bad Gateway</h1></html>";
        for status in [429, 502, 503, 504] {
            for body in [page.as_slice(), b"", b"{}", b"null"] {
                let error = refusal(status, body);
                assert!(error.is_transient(), "{error}");
                assert!(error.to_string().contains(&status.to_string()), "{error}");
            }
        }
        for status in [200, 302, 400, 404, 500, 501, 505] {
            assert!(!refusal(status, page).is_transient(), "{status}");
        }
    }

    #[test]
    fn an_order_is_given_again_only_where_nobody_heard_of_it() {
        let client = Client::new("https://friday.example.com", None).unwrap();
        let refusal = |code: &str| {
            let body =
                format!(r#"{{"code":"{code}","status":503,"title":"No","detail":"not now"}}"#);
            client.read_refusal(
                "approve web-3",
                StatusCode::SERVICE_UNAVAILABLE,
                body.as_bytes(),
            )
        };
        for (code, untouched) in [
            ("keys_unreachable", true),
            ("job_unknown", true),
            // It may have been done when the answer was lost.
            ("busy", false),
            ("store_failed", false),
            ("no_answer_behind_proxy", false),
        ] {
            let error = refusal(code);
            assert!(error.is_transient(), "{code}");
            assert_eq!(error.is_untouched(), untouched, "{code}");
        }
        let late = client.unreachable("approve web-3", TransportError::Late(ANSWER_MAX));
        assert!(late.is_transient() && !late.is_untouched());
    }

    #[test]
    fn prints_no_token() {
        let token: Token = "s3cret".parse().unwrap();
        let client = Client::new("http://127.0.0.1:7070", Some(token)).unwrap();
        assert!(!format!("{client:?}").contains("s3cret"));
        assert!(
            !"a b"
                .parse::<Token>()
                .unwrap_err()
                .to_string()
                .contains("a b")
        );
    }
}
