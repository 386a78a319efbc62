//! A small client of the HTTP API, for the command line.
//!
//! Everything has a limit: connecting, answering, the length of an answer and of one streamed event. What went wrong is
//! told apart by what the caller can do: the controller is out of reach (try again, or look where it runs), it refused
//! (its words say why), or its answer makes no sense.

use std::fmt;
use std::str::FromStr;

use futures::StreamExt;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url, header};
use rollout::Duration;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::types::{
    DeployRequest, EventView, OrderRequest, Problem, RolloutSummary, RolloutView, ServiceView,
    UndoRequest,
};

/// Longest wait for a connection. A controller in the same data centre answers in milliseconds.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// Longest wait for a whole answer. A deploy looks up a digest at the registry, which may take ten seconds.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Longest silence of a stream, heartbeats included, before it counts as broken. The controller's heartbeats come
/// several times in this.
const STREAM_SILENCE_MAX: Duration = Duration::from_secs(60);

/// Longest answer. A rollout of 100 steps and 1,000 tasks is 400 KiB; a page of 1,000 events about as much.
const BODY_BYTES_MAX: usize = 16 << 20;

/// A bearer token, or none where it is empty. Nothing prints it.
#[derive(Clone)]
pub struct Token(String);

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        // An empty variable is what a CI system makes of one that is not set: no token.
        let fits = text.bytes().all(|b| b.is_ascii_graphic());
        fits.then(|| Self(text.to_owned())).ok_or(TokenError)
    }
}

/// Why a text is no token. The text is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a token: expected visible ASCII characters without blanks")]
pub struct TokenError;

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Why the controller gave no answer to work with.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is none.
    #[error(
        "{url:?} is not the address of a controller: {reason}; set --url or FRIDAY_URL, such as http://127.0.0.1:7070"
    )]
    Address {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No connection, no answer in time, or a connection that broke.
    #[error(
        "could not {action}: {url} is out of reach (is `friday serve` running there? set --url or FRIDAY_URL)"
    )]
    Unreachable {
        /// What was tried.
        action: String,
        /// On what.
        url: String,
        /// What happened.
        source: reqwest::Error,
    },
    /// It answered that something it needs is out of reach, or that it is not ready.
    #[error("could not {action}: the controller at {url} cannot do it now: {}", problem.detail)]
    Unavailable {
        /// What was tried.
        action: String,
        /// On what.
        url: String,
        /// Its words.
        problem: Box<Problem>,
    },
    /// It refused, and will refuse again.
    #[error("could not {action}: {}", problem.detail)]
    Refused {
        /// What was tried.
        action: String,
        /// Its words.
        problem: Box<Problem>,
    },
    /// It failed.
    #[error("could not {action}: the controller at {url} failed: {}; its log says more", problem.detail)]
    Failed {
        /// What was tried.
        action: String,
        /// On what.
        url: String,
        /// Its words.
        problem: Box<Problem>,
    },
    /// Something answered that does not speak our protocol, or another version of it.
    #[error(
        "could not {action}: {url} answered {status}, but not as a Friday controller does: {reason}; set --url or FRIDAY_URL"
    )]
    Alien {
        /// What was tried.
        action: String,
        /// On what.
        url: String,
        /// The HTTP status.
        status: StatusCode,
        /// What is wrong with the answer.
        reason: String,
    },
}

impl ClientError {
    /// Whether trying again may help: the controller may be restarting.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Unavailable { .. } => true,
            Self::Address { .. }
            | Self::Refused { .. }
            | Self::Failed { .. }
            | Self::Alien { .. } => false,
        }
    }

    /// The exit code of a command that ends with it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Address { .. } => 2,
            Self::Refused { .. } => 20,
            Self::Unreachable { .. } | Self::Unavailable { .. } | Self::Alien { .. } => 30,
            Self::Failed { .. } => 1,
        }
    }
}

/// The controller at one address.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<Token>,
}

impl Client {
    /// The controller at `url`, a whole one or `HOST:PORT`.
    ///
    /// # Errors
    /// `url` is no address of a controller.
    pub fn new(url: &str, token: Option<Token>) -> Result<Self, ClientError> {
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
        match base.scheme() {
            "http" => {}
            "https" => {
                return Err(bad(
                    "https is not supported by this version, use http on this machine or through a tunnel",
                ));
            }
            _ => return Err(bad("expected http://HOST:PORT")),
        }
        let Some(host) = base.host_str().filter(|_| !base.cannot_be_a_base()) else {
            return Err(bad("expected http://HOST:PORT"));
        };
        if !base.username().is_empty() || base.password().is_some() || base.query().is_some() {
            return Err(bad(
                "expected no user, password or query in it; a token goes to FRIDAY_TOKEN",
            ));
        }
        // A token goes to whom it is for: no redirects, and nobody in between on this machine.
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("friday/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_MAX);
        if host == "localhost"
            || host
                .trim_matches(['[', ']'])
                .parse()
                .is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
        {
            http = http.no_proxy();
        }
        let http = http.build().map_err(|error| bad(&error.to_string()))?;
        Ok(Self { http, base, token })
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
        self.post("start a rollout", &["rollouts"], request).await
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
        let request = self
            .request(Method::GET, &["rollouts"])
            .query(&[("limit", limit)]);
        let request = match service {
            Some(service) => request.query(&[("service", service)]),
            None => request,
        };
        self.answer("list rollouts", request).await
    }

    /// A rollout by its id, or the newest of a service.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn rollout(&self, name: &str) -> Result<RolloutView, ClientError> {
        let request = self.request(Method::GET, &["rollouts", name]);
        self.answer(&format!("get rollout {name}"), request).await
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
        let request = self
            .request(Method::GET, &["rollouts", id, "events"])
            .query(&[("after", after)]);
        self.answer(
            &format!("read the events of {id}"),
            request.query(&[("limit", limit)]),
        )
        .await
    }

    /// The services, each with its newest rollout.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn services(&self) -> Result<Vec<ServiceView>, ClientError> {
        self.answer("list services", self.request(Method::GET, &["services"]))
            .await
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

    /// The changes of the rollout with this id, as they happen.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn watch(&self, id: &str) -> Result<Changes, ClientError> {
        let action = format!("watch rollout {id}");
        let request = self
            .request(Method::GET, &["stream"])
            .query(&[("rollout", id)]);
        let request = request.header(header::ACCEPT, "text/event-stream");
        let send = tokio::time::timeout(ANSWER_MAX, request.send());
        let response = match send.await {
            Ok(response) => response.map_err(|source| self.unreachable(&action, source))?,
            // As if there had been no stream: whoever follows a rollout asks for it by itself too.
            Err(_) => {
                return Ok(Changes {
                    stream: None,
                    decoder: Decoder::default(),
                });
            }
        };
        if !response.status().is_success() {
            return Err(self.refusal(&action, response).await);
        }
        Ok(Changes {
            stream: Some(response),
            decoder: Decoder::default(),
        })
    }

    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["api", "v1"]).extend(path);
        }
        let request = self.http.request(method, url);
        match &self.token {
            Some(token) if !token.0.is_empty() => request.bearer_auth(&token.0),
            Some(_) | None => request,
        }
    }

    async fn post<T: DeserializeOwned>(
        &self,
        action: &str,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.answer(action, self.request(Method::POST, path).json(body))
            .await
    }

    async fn answer<T: DeserializeOwned>(
        &self,
        action: &str,
        request: RequestBuilder,
    ) -> Result<T, ClientError> {
        let response = request.timeout(ANSWER_MAX).send().await;
        let response = response.map_err(|source| self.unreachable(action, source))?;
        let status = response.status();
        if !status.is_success() {
            return Err(self.refusal(action, response).await);
        }
        let body = self.body(action, response).await?;
        serde_json::from_slice(&body).map_err(|error| self.alien(action, status, error.to_string()))
    }

    async fn body(&self, action: &str, response: Response) -> Result<Vec<u8>, ClientError> {
        let status = response.status();
        let mut stream = response.bytes_stream();
        let mut body = Vec::new();
        while let Some(piece) = stream.next().await {
            body.extend_from_slice(&piece.map_err(|source| self.unreachable(action, source))?);
            if body.len() > BODY_BYTES_MAX {
                return Err(self.alien(
                    action,
                    status,
                    format!("more than {BODY_BYTES_MAX} bytes"),
                ));
            }
        }
        Ok(body)
    }

    async fn refusal(&self, action: &str, response: Response) -> ClientError {
        let status = response.status();
        match self.body(action, response).await {
            Ok(body) => self.read_refusal(action, status, &body),
            Err(error) => error,
        }
    }

    /// What an answer that is no success means.
    fn read_refusal(&self, action: &str, status: StatusCode, body: &[u8]) -> ClientError {
        let (action, url) = (action.to_owned(), self.url().to_owned());
        match serde_json::from_slice::<Box<Problem>>(body) {
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
            Ok(_) | Err(_) => self.alien(&action, status, "no problem document".to_owned()),
        }
    }

    fn unreachable(&self, action: &str, source: reqwest::Error) -> ClientError {
        // The address stands in our own words already.
        let source = source.without_url();
        ClientError::Unreachable {
            action: action.to_owned(),
            url: self.url().to_owned(),
            source,
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

/// The changes of one rollout.
#[derive(Debug)]
pub struct Changes {
    stream: Option<Response>,
    decoder: Decoder,
}

impl Changes {
    /// The next change. `None` once the stream ended, broke or fell silent: whoever wants to go on watches anew.
    ///
    /// # Cancel safety
    /// A call that is given up loses nothing that the next one would have returned.
    pub async fn next(&mut self) -> Option<RolloutView> {
        loop {
            if let Some(data) = self.decoder.take("rollout") {
                match serde_json::from_str(&data) {
                    Ok(view) => return Some(view),
                    // Another version's document. What is asked for by itself will say so.
                    Err(_) => return None,
                }
            }
            let stream = self.stream.as_mut()?;
            let piece = tokio::time::timeout(STREAM_SILENCE_MAX, stream.chunk()).await;
            match piece {
                Ok(Ok(Some(piece))) if self.decoder.push(&piece) => {}
                _ => self.stream = None,
            }
        }
    }
}

/// Server-sent events out of bytes (WHATWG HTML, 9.2.6), as much of them as the API uses: `event` and `data`.
#[derive(Debug, Default)]
struct Decoder {
    bytes: Vec<u8>,
}

impl Decoder {
    /// Takes more bytes; whether they fit.
    fn push(&mut self, bytes: &[u8]) -> bool {
        self.bytes.extend_from_slice(bytes);
        self.bytes.len() <= BODY_BYTES_MAX
    }

    /// The data of the next whole event of this kind. Other kinds and comments are passed over.
    fn take(&mut self, kind: &str) -> Option<String> {
        loop {
            let (end, next) = self.event_end()?;
            let event: Vec<u8> = self.bytes.drain(..next).collect();
            let text = String::from_utf8_lossy(&event[..end]);
            let (mut name, mut data) = ("message", Vec::new());
            for line in text.lines() {
                let (field, value) = line.split_once(':').unwrap_or((line, ""));
                let value = value.strip_prefix(' ').unwrap_or(value);
                match field {
                    "event" => name = value,
                    "data" => data.push(value),
                    _ => {}
                }
            }
            if name == kind && !data.is_empty() {
                return Some(data.join("\n"));
            }
        }
    }

    /// Where the first event ends, and where what follows the empty line after it begins.
    fn event_end(&self) -> Option<(usize, usize)> {
        let mut line_start = 0;
        for (at, byte) in self.bytes.iter().enumerate() {
            if *byte == b'\n' {
                let line = &self.bytes[line_start..at];
                if line.is_empty() || line == b"\r" {
                    return Some((line_start, at + 1));
                }
                line_start = at + 1;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(decoder: &mut Decoder) -> Vec<String> {
        std::iter::from_fn(|| decoder.take("rollout")).collect()
    }

    #[test]
    fn reads_events_however_their_bytes_are_cut() {
        let stream = ": heartbeat\n\nevent: rollout\ndata: {\"a\":\ndata: 1}\n\nevent: other\ndata: x\n\n\
                      event:rollout\r\ndata:2\r\n\r\ndata: no kind\n\nevent: rollout\n\nevent: rollout\ndata: unfinished";
        for cut in 0..stream.len() {
            let mut decoder = Decoder::default();
            assert!(decoder.push(&stream.as_bytes()[..cut]));
            let mut seen = take_all(&mut decoder);
            assert!(decoder.push(&stream.as_bytes()[cut..]));
            seen.extend(take_all(&mut decoder));
            assert_eq!(seen, ["{\"a\":\n1}", "2"], "cut at {cut}");
        }
    }

    #[test]
    fn refuses_an_event_without_end() {
        let mut decoder = Decoder::default();
        assert!(decoder.push(&vec![b'x'; BODY_BYTES_MAX]));
        assert!(!decoder.push(b"x"));
    }

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
                "\"ftp://localhost\" is not the address of a controller: expected http://HOST:PORT{hint}"
            )
        );
        assert!(
            said("https://friday.example.org").contains("https is not supported by this version")
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
