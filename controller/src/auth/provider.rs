//! Asking the identity provider: its discovery document, its keys, and tokens for people who sign in.
//!
//! Nothing follows a redirect, and every endpoint is at the issuer's own scheme: what the discovery document says cannot send
//! a secret into the clear.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use friday_tls::{Authorities, TlsError};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use reqwest::Url;
use rollout::Duration;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::client::transport::{Transport, TransportError, Trust, is_loopback};

/// Longest wait for an answer. A person waits for it in front of the board, a job in front of its log.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Longest answer. A set of keys has some 2 KiB, a person with a thousand groups 64 KiB.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Why the provider gave no answer to work with.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// Nobody could be trusted.
    #[error("the authorities that the issuer is verified with cannot be used")]
    Authorities(#[source] TlsError),
    /// No answer.
    #[error("{url} is out of reach")]
    Unreachable {
        /// What was asked.
        url: String,
        /// What happened.
        source: TransportError,
    },
    /// It says no.
    #[error("{url} answered {status}: {reason}")]
    Refused {
        /// What was asked.
        url: String,
        /// The HTTP status.
        status: StatusCode,
        /// Its `error`, as RFC 6749 names it; empty where it has none.
        error: String,
        /// Its words.
        reason: String,
    },
    /// It answers what makes no sense.
    #[error("{url} answered, but not as OpenID Connect asks: {reason}")]
    Malformed {
        /// What was asked.
        url: String,
        /// What is wrong.
        reason: String,
    },
}

/// Where things are, as the provider says (OpenID Connect Discovery 1.0, section 3).
#[derive(Debug, Clone)]
pub(super) struct Endpoints {
    pub(super) authorize: Url,
    pub(super) token: Url,
    pub(super) keys: Url,
    pub(super) user: Url,
    /// RFC 8628. GitLab has it, and does not always say so.
    pub(super) device: Url,
}

#[derive(Deserialize)]
struct RawEndpoints {
    issuer: String,
    authorization_endpoint: Option<String>,
    token_endpoint: Option<String>,
    jwks_uri: String,
    userinfo_endpoint: Option<String>,
    device_authorization_endpoint: Option<String>,
}

/// The provider at one address.
#[derive(Debug)]
pub(super) struct Provider {
    transport: Transport,
    issuer: String,
    endpoints: OnceCell<Arc<Endpoints>>,
}

impl Provider {
    /// One that nobody has asked yet. Reads the authorities from the disk.
    pub(super) fn new(issuer: &str, ca: Option<&Path>) -> Result<Self, ProviderError> {
        let url = Url::parse(issuer).ok();
        let is_tls = url.as_ref().is_some_and(|url| url.scheme() == "https");
        let is_near = url
            .as_ref()
            .and_then(Url::host_str)
            .is_some_and(is_loopback);
        let authorities = match (is_tls, ca) {
            (true, Some(file)) => Authorities::from_file(file).map(Some),
            (true, None) => Authorities::of_system().map(Some),
            (false, _) => Ok(None),
        };
        let made = authorities
            .and_then(|authorities| Transport::new(authorities.map(Trust::Signed), is_near));
        Ok(Self {
            transport: made.map_err(ProviderError::Authorities)?,
            issuer: issuer.to_owned(),
            endpoints: OnceCell::new(),
        })
    }

    /// Its `iss`.
    pub(super) fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Where things are; asked for once.
    pub(super) async fn endpoints(&self) -> Result<Arc<Endpoints>, ProviderError> {
        let found = self.endpoints.get_or_try_init(|| async {
            let text = format!("{}/.well-known/openid-configuration", self.issuer);
            let url = Url::parse(&text).map_err(|error| malformed(&text, &error))?;
            let document = self.get(&url, None).await?;
            self.read_endpoints(&text, &document).map(Arc::new)
        });
        found.await.cloned()
    }

    fn read_endpoints(&self, at: &str, document: &[u8]) -> Result<Endpoints, ProviderError> {
        let raw: RawEndpoints =
            serde_json::from_slice(document).map_err(|error| malformed(at, &error))?;
        if raw.issuer != self.issuer {
            let reason = format!("its issuer is {:?}, not {:?}", raw.issuer, self.issuer);
            return Err(malformed(at, &reason));
        }
        let endpoint = |given: Option<String>, default: &str| {
            let text = given.unwrap_or_else(|| format!("{}{default}", self.issuer));
            let url = Url::parse(&text).map_err(|error| malformed(at, &error))?;
            let is_tls = url.scheme() == "https";
            let is_near = url.scheme() == "http"
                && self.issuer.starts_with("http:")
                && url.host_str().is_some_and(is_loopback);
            if is_tls || is_near {
                Ok(url)
            } else {
                Err(malformed(at, &format!("{text} is not at https://")))
            }
        };
        Ok(Endpoints {
            authorize: endpoint(raw.authorization_endpoint, "/oauth/authorize")?,
            token: endpoint(raw.token_endpoint, "/oauth/token")?,
            keys: endpoint(Some(raw.jwks_uri), "")?,
            user: endpoint(raw.userinfo_endpoint, "/oauth/userinfo")?,
            device: endpoint(raw.device_authorization_endpoint, "/oauth/authorize_device")?,
        })
    }

    /// The document of its keys.
    pub(super) async fn keys(&self) -> Result<Bytes, ProviderError> {
        let url = self.endpoints().await?.keys.clone();
        self.get(&url, None).await
    }

    /// Who the bearer of an access token is.
    pub(super) async fn user(&self, access_token: &str) -> Result<Value, ProviderError> {
        let url = self.endpoints().await?.user.clone();
        let body = self.get(&url, Some(access_token)).await?;
        serde_json::from_slice(&body).map_err(|error| malformed(url.as_str(), &error))
    }

    /// What GitLab says of a job (`GET /projects/:id/jobs/:job_id`), asked with a token that may read it.
    pub(super) async fn job_state(
        &self,
        project: u64,
        job: u64,
        token: &str,
    ) -> Result<String, ProviderError> {
        let text = format!("{}/api/v4/projects/{project}/jobs/{job}", self.issuer);
        let url = Url::parse(&text).map_err(|error| malformed(&text, &error))?;
        let mut request = request(Method::GET, &url, Bytes::new());
        let mut shown = HeaderValue::try_from(token)
            .map_err(|_| malformed(&text, &"the token for it is no header"))?;
        shown.set_sensitive(true);
        request.headers_mut().insert("private-token", shown);
        let body = self.exchange(&url, request).await?;
        let said: Value =
            serde_json::from_slice(&body).map_err(|error| malformed(&text, &error))?;
        let state = said.get("status").and_then(Value::as_str);
        state
            .map(|state| state.chars().take(40).collect())
            .ok_or_else(|| malformed(&text, &"it has no status"))
    }

    /// Sends a form, as the token endpoint wants it (RFC 6749, appendix B).
    pub(super) async fn post(
        &self,
        url: &Url,
        form: &[(&str, &str)],
    ) -> Result<Value, ProviderError> {
        let mut encoded = url.clone();
        encoded.query_pairs_mut().clear().extend_pairs(form);
        let body = encoded.query().unwrap_or_default().to_owned();
        let mut request = request(Method::POST, url, body.into());
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        request.headers_mut().insert(CONTENT_TYPE, kind);
        let body = self.exchange(url, request).await?;
        serde_json::from_slice(&body).map_err(|error| malformed(url.as_str(), &error))
    }

    async fn get(&self, url: &Url, bearer: Option<&str>) -> Result<Bytes, ProviderError> {
        let mut request = request(Method::GET, url, Bytes::new());
        if let Some(token) = bearer {
            let mut shown = HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_| malformed(url.as_str(), &"its access token is no header"))?;
            shown.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, shown);
        }
        self.exchange(url, request).await
    }

    async fn exchange(
        &self,
        url: &Url,
        request: Request<Full<Bytes>>,
    ) -> Result<Bytes, ProviderError> {
        let unreachable = |source| ProviderError::Unreachable {
            url: url.to_string(),
            source,
        };
        let exchange = async {
            let answer = self.transport.send(request).await.map_err(unreachable)?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| malformed(url.as_str(), &error))?;
            Ok((head.status, body.to_bytes()))
        };
        let late = |_| unreachable(TransportError::Late(ANSWER_MAX));
        let (status, body) = timeout(ANSWER_MAX, exchange).await.map_err(late)??;
        if status.is_success() {
            return Ok(body);
        }
        let said: Value = serde_json::from_slice(&body).unwrap_or_default();
        let text = |name: &str| {
            let text = said.get(name).and_then(Value::as_str).unwrap_or_default();
            text.chars().take(200).collect::<String>()
        };
        let (error, words) = (text("error"), text("error_description"));
        Err(ProviderError::Refused {
            url: url.to_string(),
            status,
            reason: if words.is_empty() {
                error.clone()
            } else {
                words
            },
            error,
        })
    }
}

fn request(method: Method, url: &Url, body: Bytes) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = Uri::try_from(url.as_str()).expect("a URL of http is a URI");
    let json = HeaderValue::from_static("application/json");
    request.headers_mut().insert(ACCEPT, json);
    request
}

fn malformed(url: &str, reason: &dyn std::fmt::Display) -> ProviderError {
    ProviderError::Malformed {
        url: url.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use controller_testing::gitlab::{Gitlab as StandIn, PROJECT, PROJECT_TOKEN};

    use super::*;

    const DOCUMENT: &str = include_str!("../../../tests/data/gitlab/openid-configuration.json");

    #[test]
    fn takes_endpoints_of_the_issuer_alone_and_none_in_the_clear() {
        let provider = Provider {
            transport: Transport::new(None, false).unwrap(),
            issuer: "https://gitlab.example.com".to_owned(),
            endpoints: OnceCell::new(),
        };
        let read = |document: &str| provider.read_endpoints("there", document.as_bytes());
        let found = read(DOCUMENT).unwrap();
        let keys = "https://gitlab.example.com/oauth/discovery/keys";
        assert_eq!(found.keys.as_str(), keys);
        // GitLab does not list them in this document.
        let (user, device) = (found.user.as_str(), found.device.as_str());
        assert_eq!(user, "https://gitlab.example.com/oauth/userinfo");
        assert_eq!(device, "https://gitlab.example.com/oauth/authorize_device");
        let other = DOCUMENT.replacen("gitlab.example.com", "gitlab.example.net", 1);
        assert!(read(&other).unwrap_err().to_string().contains("its issuer"));
        let clear = DOCUMENT.replace(keys, "http://gitlab.example.com/keys");
        assert!(read(&clear).unwrap_err().to_string().contains("https://"));
        let near = DOCUMENT.replace(keys, "http://127.0.0.1/keys");
        assert!(read(&near).is_err(), "not even to this machine");
        assert!(read("[]").is_err());
    }

    #[tokio::test]
    async fn contract_a_job_is_asked_for_as_gitlab_documents() {
        let stand_in = StandIn::start_checked().await.unwrap();
        stand_in.records(|records| records.set_job(500_123, "running"));
        let provider = Provider::new(&stand_in.url(), None).unwrap();
        let state = |job| provider.job_state(PROJECT, job, PROJECT_TOKEN);
        assert_eq!(state(500_123).await.unwrap(), "running");
        let unknown = state(1).await.unwrap_err();
        assert!(
            matches!(unknown, ProviderError::Refused { .. }),
            "{unknown:?}"
        );
        assert_eq!(stand_in.seen().len(), 2);
        assert_eq!(stand_in.mistakes(), Vec::<String>::new());
    }
}
