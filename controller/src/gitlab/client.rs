//! Asking GitLab: REST API v4, by the rules of its documentation (docs.gitlab.com/api/rest).
//!
//! One call is one request, and nothing here tries again: whoever calls knows whether that could do a thing twice. What is
//! told apart is what the caller can do: GitLab is away, it wants to be asked later, it says no, or it makes no sense.

mod exchange;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use friday_tls::{Authorities, TlsError};
use http::header::{
    ACCEPT, CONTENT_TYPE, DATE, HeaderName, HeaderValue, LINK, LOCATION, RETRY_AFTER,
};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::Full;
use reqwest::Url;
use rollout::Duration;
use serde_json::Value;

use crate::client::transport::{Transport, Trust, is_loopback};
pub use exchange::ExchangeError;
pub(crate) use exchange::answered;
use exchange::{Exchanged, exchange};

/// Longest answer that is read. A page of 100 merge requests is about 500 KiB.
const BODY_BYTES_MAX: usize = 4 << 20;

/// Longest wait for a whole answer. GitLab itself gives a request up after 60 s.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// Most times that one call is sent on to another address: a project was moved, and moved again.
const REDIRECTS_MAX: usize = 3;

/// Longest part of a refusal's words that is kept, in characters: enough for every sentence of GitLab's, and not a page
/// of HTML that something before it sends.
const MESSAGE_CHARS_MAX: usize = 300;

/// Longest time that an answer may tell us to wait: whoever says more is mistaken, or is not GitLab.
const WAIT_MAX: Duration = Duration::from_secs(60 * 60);

const PRIVATE_TOKEN: HeaderName = HeaderName::from_static("private-token");
const JOB_TOKEN: HeaderName = HeaderName::from_static("job-token");
const RATE_LIMIT_RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

/// A token, or another secret of one line. Nothing prints it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The secret in a text, without the blanks around it; `None` where there is none, or where it is not of visible
    /// ASCII characters.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let text = text.trim();
        let fits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        fits.then(|| Self(text.to_owned()))
    }

    /// The secret itself, for the one place that sends or signs with it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    fn header(&self, prefix: &str) -> HeaderValue {
        let mut value = HeaderValue::try_from(format!("{prefix}{}", self.0))
            .expect("a secret is of visible ASCII characters");
        value.set_sensitive(true);
        value
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// As whom GitLab is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// The project or group token that the controller was started with.
    Project,
    /// A job's own token (`CI_JOB_TOKEN`): it may do less, and dies with the job.
    Job(Secret),
    /// Nobody: for what is public.
    Nobody,
}

/// What GitLab answered; the status was a good one.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// From 200 to 299. Which of them says nothing: GitLab's document and its server do not agree.
    pub status: u16,
    /// The body; null where there was none.
    pub body: Value,
    /// Where the next page is, as a whole address, if there is one.
    pub next: Option<String>,
}

/// Why there is no answer to work with.
#[derive(Debug, thiserror::Error)]
pub enum GitlabError {
    /// No connection, no answer in time, or a connection that broke. What was asked may have been done.
    #[error("could not {action}: GitLab at {base} is out of reach")]
    Unreachable {
        /// What was tried: method and path.
        action: String,
        /// On which GitLab.
        base: String,
        /// What happened.
        source: ExchangeError,
    },
    /// The answer has more in it than is read: one thing of many people's making, and no fault of GitLab's.
    #[error("could not {action}: the answer is longer than {bytes_max} bytes")]
    TooLong {
        /// What was tried.
        action: String,
        /// The limit.
        bytes_max: usize,
    },
    /// Too many requests; nothing was done.
    #[error("could not {action}: GitLab wants fewer requests (429)")]
    Limited {
        /// What was tried.
        action: String,
        /// How long to wait, if it said so: at most an hour.
        after: Option<Duration>,
    },
    /// It said no, or that something went wrong with it.
    #[error("could not {action}: GitLab answered {status}: {message}")]
    Refused {
        /// What was tried.
        action: String,
        /// From 300 to 599, but 429.
        status: u16,
        /// Its words, cut to a sentence.
        message: String,
    },
    /// The answer is none of GitLab's.
    #[error("could not {action}: the answer makes no sense: {reason}")]
    Malformed {
        /// What was tried.
        action: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The call needs the project token, and there is none.
    #[error(
        "could not {action}: it takes a project access token with scope api; start the controller with --gitlab-token-file FILE"
    )]
    NoToken {
        /// What was tried.
        action: String,
    },
    /// The job's token is not known, or none any more, and there is no other.
    #[error(
        "could not {action}: no job waits whose token could do it; start the controller with --gitlab-token-file FILE to need none"
    )]
    NoJob {
        /// What was tried.
        action: String,
    },
}

impl GitlabError {
    /// Whether the same may succeed later, with nobody doing anything about it. An answer without sense counts: something
    /// before GitLab sends such while GitLab is away.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::TooLong { .. }
            | Self::Limited { .. }
            | Self::Malformed { .. } => true,
            // 409: another update of the same thing runs.
            Self::Refused { status, .. } => matches!(status, 408 | 409 | 425 | 500..=599),
            Self::NoToken { .. } => false,
            // The job's next request brings its token.
            Self::NoJob { .. } => true,
        }
    }

    /// The status of a refusal.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Limited { .. } => Some(429),
            Self::Unreachable { .. }
            | Self::TooLong { .. }
            | Self::Malformed { .. }
            | Self::NoToken { .. }
            | Self::NoJob { .. } => None,
        }
    }
}

/// Why there can be no client.
#[derive(Debug, thiserror::Error)]
pub enum GitlabAddressError {
    /// The address is none.
    #[error(
        "{url:?} is no address of a GitLab: {reason}; expected one such as https://gitlab.example.com"
    )]
    Address {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The authorities cannot be used.
    #[error(
        "the authorities that GitLab is verified with cannot be used; --gitlab-ca names their PEM file"
    )]
    Authorities {
        /// What is wrong with them.
        source: TlsError,
    },
}

/// A GitLab. Cheap to clone; its clones share connections.
#[derive(Debug, Clone)]
pub struct Gitlab {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    transport: Transport,
    base: Url,
    token: Option<Secret>,
}

impl Gitlab {
    /// The GitLab at `base`, which may have a path; nothing is sent yet. One at https:// is verified with the authorities in
    /// the PEM file `ca` alone, or with the system's. `token` is what [`Credential::Project`] stands for.
    ///
    /// # Errors
    /// `base` is no address, tokens would go to another machine in the clear, or there are no authorities.
    pub fn new(
        base: &str,
        ca: Option<&Path>,
        token: Option<Secret>,
    ) -> Result<Self, GitlabAddressError> {
        let wrong = |reason: &str| GitlabAddressError::Address {
            url: base.to_owned(),
            reason: reason.to_owned(),
        };
        let url = Url::parse(base).map_err(|error| wrong(&error.to_string()))?;
        let host = url.host_str().ok_or_else(|| wrong("it names no host"))?;
        let is_near = is_loopback(host);
        if !url.username().is_empty() || url.password().is_some() {
            let reason = "it holds a name or a password; --gitlab-token-file is for that";
            return Err(GitlabAddressError::Address {
                url: "the address".to_owned(),
                reason: reason.to_owned(),
            });
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("it has a query or a fragment"));
        }
        let authorities = match (url.scheme(), ca) {
            ("https", Some(file)) => Authorities::from_file(file).map(Some),
            ("https", None) => Authorities::of_system().map(Some),
            ("http", _) if is_near => Ok(None),
            ("http", _) => {
                return Err(wrong(
                    "tokens would go there in the clear; it takes https://",
                ));
            }
            _ => return Err(wrong("its scheme is neither https nor http")),
        };
        let made = authorities
            .and_then(|authorities| Transport::new(authorities.map(Trust::Signed), is_near));
        let transport = made.map_err(|source| GitlabAddressError::Authorities { source })?;
        Ok(Self {
            inner: Arc::new(Inner {
                transport,
                base: url,
                token,
            }),
        })
    }

    /// Its address, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> &str {
        self.inner.base.as_str().trim_end_matches('/')
    }

    /// Whether there is a token for [`Credential::Project`].
    #[must_use]
    pub fn has_token(&self) -> bool {
        self.inner.token.is_some()
    }

    /// Asks. `path` is below `/api/v4` and begins with a slash; its parts are encoded already. A moved project is followed to
    /// where it is now, within this GitLab.
    ///
    /// # Errors
    /// See [`GitlabError`].
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        credential: Credential,
    ) -> Result<Answer, GitlabError> {
        let url = format!("{}/api/v4{path}", self.url());
        self.ask(method, &url, body, credential).await
    }

    /// The next page of an answer, by the same credential as the first.
    ///
    /// # Errors
    /// See [`GitlabError`].
    pub async fn next(&self, next: &str, credential: Credential) -> Result<Answer, GitlabError> {
        self.ask(Method::GET, next, None, credential).await
    }

    /// What is at a whole address of this GitLab, as nobody in particular.
    ///
    /// # Errors
    /// See [`GitlabError`]; an address of another host is [`GitlabError::Malformed`] and not asked.
    pub async fn get_json(&self, url: &str) -> Result<Value, GitlabError> {
        let answer = self.ask(Method::GET, url, None, Credential::Nobody);
        answer.await.map(|answer| answer.body)
    }

    async fn ask(
        &self,
        method: Method,
        url: &str,
        body: Option<&Value>,
        credential: Credential,
    ) -> Result<Answer, GitlabError> {
        let mut target = self.within(&method, url)?;
        let action = format!("{method} {}", target.path());
        for _ in 0..=REDIRECTS_MAX {
            let request = self.request(&method, &target, body, &credential, &action)?;
            let sent = exchange(&self.inner.transport, request, ANSWER_MAX, BODY_BYTES_MAX);
            let exchanged = sent.await.map_err(|error| {
                let action = action.clone();
                match error {
                    ExchangeError::TooLong { bytes_max } => {
                        GitlabError::TooLong { action, bytes_max }
                    }
                    source @ (ExchangeError::Transport(_) | ExchangeError::Body { .. }) => {
                        GitlabError::Unreachable {
                            action,
                            base: self.url().to_owned(),
                            source,
                        }
                    }
                }
            })?;
            // The method stays: what is at the new address is the same thing (docs.gitlab.com/api/rest#redirects).
            if matches!(exchanged.status.as_u16(), 301 | 302 | 307 | 308)
                && let Some(location) = text(&exchanged.headers, &LOCATION)
            {
                let moved = target
                    .join(location)
                    .map_err(|error| GitlabError::Malformed {
                        action: action.clone(),
                        reason: format!("its Location: {error}"),
                    })?;
                target = self.within(&method, moved.as_str())?;
                continue;
            }
            return read(action, &exchanged);
        }
        Err(GitlabError::Malformed {
            action,
            reason: format!("it was sent on more than {REDIRECTS_MAX} times"),
        })
    }

    /// An address of this GitLab. To others our tokens are not shown.
    fn within(&self, method: &Method, url: &str) -> Result<Url, GitlabError> {
        let base = &self.inner.base;
        let elsewhere = |reason: String| GitlabError::Malformed {
            action: format!("{method} {url}"),
            reason,
        };
        let parsed = Url::parse(url).map_err(|error| elsewhere(error.to_string()))?;
        if parsed.origin() != base.origin() {
            return Err(elsewhere(format!(
                "the address is not below {}",
                self.url()
            )));
        }
        Ok(parsed)
    }

    fn request(
        &self,
        method: &Method,
        target: &Url,
        body: Option<&Value>,
        credential: &Credential,
        action: &str,
    ) -> Result<Request<Full<Bytes>>, GitlabError> {
        let bytes = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let mut request = Request::new(Full::new(bytes));
        *request.method_mut() = method.clone();
        *request.uri_mut() = target
            .as_str()
            .parse()
            .map_err(|error| GitlabError::Malformed {
                action: action.to_owned(),
                reason: format!("its address: {error}"),
            })?;
        let json = HeaderValue::from_static("application/json");
        let headers = request.headers_mut();
        headers.insert(ACCEPT, json.clone());
        if body.is_some() {
            headers.insert(CONTENT_TYPE, json);
        }
        match credential {
            Credential::Nobody => {}
            Credential::Job(token) => {
                headers.insert(JOB_TOKEN, token.header(""));
            }
            Credential::Project => {
                let token = self.inner.token.as_ref();
                let token = token.ok_or_else(|| GitlabError::NoToken {
                    action: action.to_owned(),
                })?;
                headers.insert(PRIVATE_TOKEN, token.header(""));
            }
        }
        Ok(request)
    }
}

/// What an exchange means.
fn read(action: String, exchanged: &Exchanged) -> Result<Answer, GitlabError> {
    let Exchanged {
        status,
        headers,
        body,
    } = exchanged;
    if *status == StatusCode::TOO_MANY_REQUESTS {
        return Err(GitlabError::Limited {
            action,
            after: wait(headers),
        });
    }
    if !status.is_success() {
        return Err(GitlabError::Refused {
            action,
            status: status.as_u16(),
            message: message(body),
        });
    }
    let body = if body.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(body).map_err(|error| GitlabError::Malformed {
            action,
            reason: format!("it is no JSON ({error})"),
        })?
    };
    Ok(Answer {
        status: status.as_u16(),
        body,
        next: text(headers, &LINK).and_then(next_page),
    })
}

/// How long an answer says to wait: by `Retry-After` in seconds or as a date (RFC 9110, 10.2.3), else by
/// `RateLimit-Reset`, a time of day in seconds, counted from the answer's own `Date`.
pub(crate) fn wait(headers: &HeaderMap) -> Option<Duration> {
    let date = |text: &str| {
        jiff::fmt::rfc2822::parse(text)
            .ok()
            .map(|date| date.timestamp())
    };
    let now = text(headers, &DATE).and_then(date);
    let until = |then: jiff::Timestamp| {
        let left = then.as_second().saturating_sub(now?.as_second());
        Some(Duration::from_secs(u64::try_from(left).unwrap_or(0)))
    };
    let after = text(headers, &RETRY_AFTER).and_then(|text| {
        let seconds = text.trim().parse().ok().map(Duration::from_secs);
        seconds.or_else(|| until(date(text)?))
    });
    let reset = || {
        let second = text(headers, &RATE_LIMIT_RESET)?.trim().parse().ok()?;
        until(jiff::Timestamp::from_second(second).ok()?)
    };
    after.or_else(reset).map(|wait| wait.min(WAIT_MAX))
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The address with `rel="next"` of a `Link` header (RFC 8288).
fn next_page(link: &str) -> Option<String> {
    link.split(',').find_map(|part| {
        let (address, parameters) = part.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = parameters
            .split(';')
            .any(|one| matches!(one.trim(), "rel=\"next\"" | "rel=next"));
        is_next.then(|| address.to_owned())
    })
}

/// The words of a refusal: `message` as a text or by field, `error` with its description, or plain text.
fn message(body: &[u8]) -> String {
    let words = match serde_json::from_slice::<Value>(body) {
        Ok(Value::Object(fields)) => {
            let of = |key: &str| fields.get(key).map(flat);
            match (of("message"), of("error"), of("error_description")) {
                (Some(message), _, _) => message,
                (None, Some(error), Some(more)) => format!("{error}: {more}"),
                (None, Some(error), None) => error,
                (None, None, _) => "no words".to_owned(),
            }
        }
        Ok(other) => flat(&other),
        Err(_) => String::from_utf8_lossy(body).trim().to_owned(),
    };
    let is_plain = |c: &char| !c.is_control();
    let short: String = words
        .chars()
        .filter(is_plain)
        .take(MESSAGE_CHARS_MAX)
        .collect();
    if short.is_empty() {
        "no words".to_owned()
    } else {
        short
    }
}

fn flat(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().map(flat).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => {
            let each = |(key, value): (&String, &Value)| format!("{key}: {}", flat(value));
            fields.iter().map(each).collect::<Vec<_>>().join("; ")
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// One part of a path, such as a project's path or an environment's name, encoded so that it stays one.
#[must_use]
pub fn encode(part: &str) -> String {
    use std::fmt::Write as _;
    part.bytes()
        .fold(String::with_capacity(part.len()), |mut text, byte| {
            if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
                text.push(char::from(byte));
            } else {
                // Writing to a String cannot fail.
                let _infallible = write!(text, "%{byte:02X}");
            }
            text
        })
}

#[cfg(test)]
mod tests;
