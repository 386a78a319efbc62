//! A stand-in for GitLab: a real server on this machine that keeps what it is told, answers as GitLab's samples do, checks
//! every request against GitLab's own API document where that is at hand, and fails in every way that GitLab does, when it
//! is told to.

mod contract;
mod rest;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub use contract::{Contract, contract_folder};
pub use rest::Records;

/// The project that it has.
pub const PROJECT: u64 = 4711;

/// The project token that it knows.
pub const PROJECT_TOKEN: &str = "glpat-for-tests-alone";

/// The job token that it knows.
pub const JOB_TOKEN: &str = "job-token-for-tests-alone";

/// What it does with a request in place of what it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: it answers as it should. For the requests before the one that is meant.
    Well,
    /// 429 with `Retry-After`, as its rate limit answers.
    Limited,
    /// 429 with nothing else.
    LimitedWithoutWords,
    /// 500.
    Internal,
    /// 502 with a page for people, as a proxy before it answers.
    BadGateway,
    /// The connection is closed before anything is done.
    Closed,
    /// It is done, and then the connection is closed.
    ClosedAfterwards,
    /// It is done, and the answer is no JSON.
    Nonsense,
    /// It is done, and the answer comes later.
    Slow,
    /// It is done, and the answer is 500.
    InternalAfterwards,
}

impl Fault {
    /// Everything that goes wrong.
    pub const ALL: [Self; 9] = [
        Self::Limited,
        Self::LimitedWithoutWords,
        Self::Internal,
        Self::BadGateway,
        Self::Closed,
        Self::ClosedAfterwards,
        Self::Nonsense,
        Self::Slow,
        Self::InternalAfterwards,
    ];
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its method.
    pub method: String,
    /// Its path, without the query.
    pub path: String,
    /// Its query, as it came.
    pub query: String,
    /// Which kind of token it showed: `project`, `job`, or none.
    pub token: &'static str,
    /// The headers of what goes to a webhook, by lower-case name.
    pub headers: Vec<(String, String)>,
    /// Its body; null where there was none.
    pub body: Value,
    /// The body as it came.
    pub text: String,
}

#[derive(Debug, Default)]
struct State {
    records: Records,
    faults: VecDeque<Fault>,
    has_failed: bool,
    seen: Vec<Seen>,
    contract: Option<Contract>,
    mistakes: Vec<String>,
}

/// The stand-in. It ends with its value.
#[derive(Debug)]
pub struct Gitlab {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    serving: JoinHandle<()>,
}

impl Gitlab {
    /// One on a free port, with an empty project.
    ///
    /// # Errors
    /// There is no free port.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::clone(&state);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                let service = service_fn(move |request| answer(Arc::clone(&state), request));
                // One task for each connection; they end with it, and it with the client.
                tokio::spawn(async move {
                    let connection =
                        http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                    // That it broke was the wish.
                    drop(connection.await);
                });
            }
        });
        Ok(Self {
            address,
            state,
            serving,
        })
    }

    /// The same, which checks every request from the first on.
    ///
    /// # Errors
    /// There is no free port.
    ///
    /// # Panics
    /// Nobody says where GitLab's document is.
    pub async fn start_checked() -> io::Result<Self> {
        let folder = contract_folder().expect(
            "FRIDAY_GITLAB_CONTRACT names the folder of GitLab's API document; leave this test out with --skip contract_",
        );
        let gitlab = Self::start().await?;
        gitlab.check(Contract::read(&folder));
        Ok(gitlab)
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on every request of the REST API is checked.
    pub fn check(&self, contract: Contract) {
        self.state().contract = Some(contract);
    }

    /// What was wrong with the requests that were checked.
    #[must_use]
    pub fn mistakes(&self) -> Vec<String> {
        self.state().mistakes.clone()
    }

    /// The next requests fail like this, one after the other.
    pub fn fail(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state().faults.extend(faults);
    }

    /// Whether a fault has happened.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.state().has_failed
    }

    /// What it keeps, to be looked at or changed.
    pub fn records<T>(&self, with: impl FnOnce(&mut Records) -> T) -> T {
        with(&mut self.state().records)
    }

    /// The requests so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }
}

impl Drop for Gitlab {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// How long a slow answer takes: longer than every other, and short enough for a test.
const SLOW: Duration = Duration::from_millis(200);

/// The connection is closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("closed, as it was told to")]
struct Close;

async fn answer(
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Close> {
    let (head, body) = request.into_parts();
    let bytes = body.collect().await.map_err(|_| Close)?.to_bytes();
    let header = |name: &str| {
        let value = head.headers.get(name)?;
        value.to_str().ok()
    };
    let token = match (header("private-token"), header("job-token")) {
        (Some(PROJECT_TOKEN), _) => "project",
        (_, Some(JOB_TOKEN)) => "job",
        _ => "none",
    };
    let seen = Seen {
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        token,
        headers: head
            .headers
            .iter()
            .map(|(name, value)| {
                (
                    name.to_string(),
                    value.to_str().unwrap_or_default().to_owned(),
                )
            })
            .collect(),
        body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        text: String::from_utf8_lossy(&bytes).into_owned(),
    };
    let (fault, rest) = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state.seen.push(seen.clone());
        if let Some(contract) = &state.contract
            && let Some(path) = seen.path.strip_prefix("/api/v4")
        {
            let mistakes = contract.check(&seen.method, path, &seen.query, &seen.body);
            state.mistakes.extend(mistakes);
        }
        let fault = state.faults.pop_front();
        state.has_failed |= !matches!(fault, None | Some(Fault::Well));
        let is_done = !matches!(
            fault,
            Some(
                Fault::Limited
                    | Fault::LimitedWithoutWords
                    | Fault::Internal
                    | Fault::BadGateway
                    | Fault::Closed
            )
        );
        let answer = is_done.then(|| state.records.answer(&seen));
        (fault, answer)
    };
    let text = |status: u16, text: &str| (status, "text/html", text.to_owned());
    let (status, kind, body) = match (fault, rest) {
        (Some(Fault::Closed | Fault::ClosedAfterwards), _) => return Err(Close),
        (Some(Fault::Limited), _) => return Ok(limited()),
        (Some(Fault::LimitedWithoutWords), _) => text(429, ""),
        (Some(Fault::Internal | Fault::InternalAfterwards), _) => {
            let body = json!({ "message": "500 Internal Server Error" });
            (500, "application/json", body.to_string())
        }
        (Some(Fault::BadGateway), _) => text(502, "<html>GitLab is not responding</html>"),
        (Some(Fault::Nonsense), _) => text(200, "<html>Deploy in progress</html>"),
        (Some(Fault::Slow), Some((status, body))) => {
            tokio::time::sleep(SLOW).await;
            (status, "application/json", body.to_string())
        }
        (None | Some(Fault::Well), Some((status, body))) => {
            (status, "application/json", body.to_string())
        }
        (None | Some(Fault::Well | Fault::Slow), None) => return Err(Close),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::IM_A_TEAPOT);
    response
        .headers_mut()
        .insert("content-type", http::HeaderValue::from_static(kind));
    Ok(response)
}

/// As in the sample, but that it says to come back at once: tests wait for nothing.
fn limited() -> Response<Full<Bytes>> {
    let sample: Value = rest::sample(include_str!(
        "../../../tests/data/gitlab/rest-rate-limited.json"
    ));
    let mut response = Response::new(Full::new(Bytes::from(
        sample["body"].as_str().unwrap_or_default().to_owned(),
    )));
    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    response
        .headers_mut()
        .insert("retry-after", http::HeaderValue::from_static("0"));
    response
}
