//! The Engine API, as far as a rollout needs it.
//!
//! Spoken directly and not through bollard, whose types drop what they do not know: its task has no addresses, its
//! service spec reads `HealthCheck` where the engine writes `Healthcheck`, so that reading a service and writing it back
//! removes the health check and restarts every task. Here a spec is the engine's own JSON from end to end. What is left
//! to speak is a dozen calls, which are no reason for a second client library. The node agent asks its engine through it too.

use std::io;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use reqwest::Url;
use rollout::Duration;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio::time;

use super::address::EngineAddress;
use super::model::{Image, Node, Service, Task};
use super::wire::{Connection, Wire};
use crate::orchestrator::OrchestratorError;

/// Longest wait for an answer. Calls take milliseconds; without a leader they hang for 10 s, and what was known before
/// is better than nothing for so long.
const ANSWER_MAX: Duration = Duration::from_millis(2500);

/// Longest wait for a registry, which the engine asks on our behalf.
const REGISTRY_MAX: Duration = Duration::from_secs(8);

/// The newest version of the API that this was written for.
const VERSION_MAX: ApiVersion = ApiVersion(1, 47);

/// So often a change is made again when somebody else changed the service in between.
const CONFLICTS_MAX: usize = 5;

/// Why a call did not do what it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    #[error("the engine does not answer")]
    Unreachable(#[source] io::Error),
    /// Something is not there; its words.
    #[error("{0}")]
    NotFound(String),
    /// Somebody else was quicker.
    #[error("{0}")]
    OutOfSequence(String),
    /// Its words.
    #[error("{0}")]
    Refused(String),
}

impl EngineError {
    /// The engine's words, or what became of the call.
    pub(crate) fn words(&self) -> String {
        match self {
            Self::Unreachable(source) => source.to_string(),
            Self::NotFound(words) | Self::OutOfSequence(words) | Self::Refused(words) => {
                words.clone()
            }
        }
    }

    fn of_status(status: StatusCode, words: String) -> Self {
        if status == StatusCode::NOT_FOUND {
            Self::NotFound(words)
        } else if words.contains("update out of sequence") {
            Self::OutOfSequence(words)
        } else if status.is_server_error() {
            // No leader, no answer from another manager: the next one may do.
            Self::Unreachable(io::Error::other(words))
        } else {
            Self::Refused(words)
        }
    }
}

/// `1.41`, ordered by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct ApiVersion(u32, u32);

impl ApiVersion {
    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        Some(Self(major.parse().ok()?, minor.parse().ok()?))
    }
}

/// One engine.
#[derive(Debug)]
pub(crate) struct Engine {
    wire: Wire,
    version: OnceCell<String>,
}

impl Engine {
    /// The engine at an address; nobody is asked yet. Blocks on the disk where there are certificates.
    pub(crate) fn new(address: EngineAddress) -> Result<Self, OrchestratorError> {
        Ok(Self {
            wire: Wire::new(address)?,
            version: OnceCell::new(),
        })
    }

    /// The same error as the controller knows them: about `what`.
    pub(super) fn error(&self, what: &str, error: EngineError) -> OrchestratorError {
        match error {
            EngineError::Unreachable(source) => OrchestratorError::Unreachable {
                what: format!("the engine at {}, asked for {what},", self.wire.address()),
                source,
            },
            EngineError::OutOfSequence(words) => OrchestratorError::Unreachable {
                what: format!("{what}, which others kept changing,"),
                source: io::Error::other(words),
            },
            EngineError::NotFound(reason) | EngineError::Refused(reason) => {
                OrchestratorError::Refused {
                    what: what.to_owned(),
                    reason,
                }
            }
        }
    }

    /// Whether it may be asked for services: only a manager of a swarm may. Its words if not.
    pub(super) async fn is_manager(&self) -> Result<bool, EngineError> {
        let info: Value = self.get("info", &[]).await?;
        Ok(info["Swarm"]["ControlAvailable"].as_bool() == Some(true))
    }

    /// The services whose names begin with `prefix`; all of them for an empty one.
    pub(super) async fn services(&self, prefix: &str) -> Result<Vec<Service>, EngineError> {
        if prefix.is_empty() {
            return self.get("services", &[]).await;
        }
        let filters = json!({ "name": [prefix] }).to_string();
        self.get("services", &[("filters", &filters)]).await
    }

    /// The tasks of these services, those that have ended too, as far as the swarm remembers them.
    pub(super) async fn tasks(&self, services: &[&str]) -> Result<Vec<Task>, EngineError> {
        let filters = json!({ "service": services }).to_string();
        self.get("tasks", &[("filters", &filters)]).await
    }

    /// Ids and host names of the swarm's nodes.
    pub(super) async fn nodes(&self) -> Result<Vec<(String, String)>, EngineError> {
        let nodes: Vec<Node> = self.get("nodes", &[]).await?;
        let named = |node: Node| (node.id, node.description.hostname);
        Ok(nodes.into_iter().map(named).collect())
    }

    /// An image that this engine has, by reference or id.
    pub(super) async fn image(&self, reference: &str) -> Result<Image, EngineError> {
        self.get(&format!("images/{reference}/json"), &[]).await
    }

    /// The tags that this engine has of a repository.
    pub(super) async fn tags(&self, repository: &str) -> Result<Vec<String>, EngineError> {
        let filters = json!({ "reference": [repository] }).to_string();
        let images: Vec<Value> = self.get("images/json", &[("filters", &filters)]).await?;
        let tags = images
            .iter()
            .filter_map(|image| image["RepoTags"].as_array());
        let mut tags: Vec<String> = tags
            .flatten()
            .filter_map(|tag| tag.as_str().map(str::to_owned))
            .collect();
        tags.sort();
        Ok(tags)
    }

    /// The digest that the image's registry has for it now.
    pub(super) async fn registry_digest(
        &self,
        reference: &str,
        auth: Option<&str>,
    ) -> Result<String, EngineError> {
        let path = self
            .path(&format!("distribution/{reference}/json"), &[])
            .await?;
        let answer: Value = self
            .call(Method::GET, &path, None, auth, REGISTRY_MAX)
            .await
            .and_then(|body| read(&body))?;
        let digest = answer["Descriptor"]["digest"].as_str();
        digest.map(str::to_owned).ok_or_else(|| {
            EngineError::Refused(format!("the registry gives no digest for {reference}"))
        })
    }

    /// Makes a service. One of that name that is there already is somebody else's: out of sequence.
    pub(super) async fn create(&self, spec: &Value, auth: Option<&str>) -> Result<(), EngineError> {
        let path = self.path("services/create", &[]).await?;
        let made = self
            .call(Method::POST, &path, Some(spec), auth, ANSWER_MAX)
            .await;
        match made {
            Err(EngineError::Refused(words)) if words.contains("name conflicts") => {
                Err(EngineError::OutOfSequence(words))
            }
            made => made.map(drop),
        }
    }

    /// Writes a service's whole spec over the version that was read.
    pub(super) async fn update(
        &self,
        service: &Service,
        spec: &Value,
        auth: Option<&str>,
    ) -> Result<(), EngineError> {
        let index = service.version.index.to_string();
        let path = self
            .path(
                &format!("services/{}/update", service.id),
                &[("version", &index)],
            )
            .await?;
        self.call(Method::POST, &path, Some(spec), auth, ANSWER_MAX)
            .await
            .map(drop)
    }

    /// Removes a service; one that is not there is gone already.
    pub(super) async fn remove(&self, id: &str) -> Result<(), EngineError> {
        let path = self.path(&format!("services/{id}"), &[]).await?;
        match self
            .call(Method::DELETE, &path, None, None, ANSWER_MAX)
            .await
        {
            Ok(_) | Err(EngineError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// What happens from now on to services, nodes and this node's containers, as it happens. Health checks run inside of
    /// containers several times a second; of them only the outcome is told.
    pub(super) async fn events(&self) -> Result<(Incoming, Connection), EngineError> {
        let filters = json!({
            "type": ["service", "node", "container"],
            "event": ["create", "update", "remove", "start", "health_status", "kill", "die", "destroy"],
        });
        let path = self
            .path("events", &[("filters", &filters.to_string())])
            .await?;
        let request = Self::request(Method::GET, &path, None, None)?;
        let answer = time::timeout(ANSWER_MAX, self.wire.open(request)).await;
        let (answer, connection) = in_time(ANSWER_MAX, answer)?;
        if answer.status().is_success() {
            return Ok((answer.into_body(), connection));
        }
        let status = answer.status();
        Err(EngineError::of_status(status, "no events".to_owned()))
    }

    /// What a path of the API shows.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, EngineError> {
        let path = self.path(path, query).await?;
        let body = self
            .call(Method::GET, &path, None, None, ANSWER_MAX)
            .await?;
        read(&body)
    }

    /// The path with the version that both sides speak.
    async fn path(&self, path: &str, query: &[(&str, &str)]) -> Result<String, EngineError> {
        let version = self
            .version
            .get_or_try_init(async || self.negotiate().await)
            .await?;
        Ok(encoded(&format!("/v{version}/{path}"), query))
    }

    async fn negotiate(&self) -> Result<String, EngineError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            api_version: String,
        }
        let body = self
            .call(Method::GET, "/version", None, None, ANSWER_MAX)
            .await?;
        let Answer { api_version } = read(&body)?;
        let theirs = ApiVersion::parse(&api_version).ok_or_else(|| {
            EngineError::Refused(format!("{api_version:?} is no version of the Engine API"))
        })?;
        let ApiVersion(major, minor) = theirs.min(VERSION_MAX);
        Ok(format!("{major}.{minor}"))
    }

    fn request(
        method: Method,
        path: &str,
        body: Option<&Value>,
        auth: Option<&str>,
    ) -> Result<Request<Full<Bytes>>, EngineError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "engine");
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(auth) = auth {
            request = request.header("X-Registry-Auth", auth);
        }
        let bytes = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        request
            .body(Full::new(bytes))
            .map_err(|error| EngineError::Refused(format!("{path}: {error}")))
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        auth: Option<&str>,
        limit: Duration,
    ) -> Result<Bytes, EngineError> {
        let request = Self::request(method, path, body, auth)?;
        self.wire.warm().await.map_err(EngineError::Unreachable)?;
        let answer = time::timeout(limit, self.wire.send(request)).await;
        let answer = in_time(limit, answer)?;
        let (head, body) = answer.into_parts();
        if head.status.is_success() {
            return Ok(body);
        }
        Err(EngineError::of_status(head.status, words(&body)))
    }
}

/// An answer that came in time.
fn in_time<T>(
    limit: Duration,
    answer: Result<io::Result<T>, time::error::Elapsed>,
) -> Result<T, EngineError> {
    let late = |_| {
        io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer within {limit:?}"),
        )
    };
    answer
        .map_err(late)
        .flatten()
        .map_err(EngineError::Unreachable)
}

/// What the engine says of an error.
fn words(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Problem {
        message: String,
    }
    serde_json::from_slice(body).map_or_else(
        |_| String::from_utf8_lossy(body).trim().to_owned(),
        |Problem { message }| message.trim().to_owned(),
    )
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, EngineError> {
    serde_json::from_slice(body).map_err(|error| {
        EngineError::Refused(format!(
            "the engine's answer cannot be read ({error}): is it a Docker engine?"
        ))
    })
}

fn encoded(path: &str, query: &[(&str, &str)]) -> String {
    let mut url = Url::parse("http://engine").expect("this is a URL");
    url.set_path(path);
    if !query.is_empty() {
        url.query_pairs_mut().extend_pairs(query);
    }
    let query = url.query().map(|query| format!("?{query}"));
    format!("{}{}", url.path(), query.unwrap_or_default())
}

/// How often a change was made again because somebody else was quicker (F27).
#[derive(Debug, Default)]
pub(super) struct Conflicts(usize);

impl Conflicts {
    /// Whether to read afresh and make the change again after this error.
    pub(super) fn again(&mut self, error: &EngineError) -> bool {
        self.0 += 1;
        let again = matches!(error, EngineError::OutOfSequence(_)) && self.0 < CONFLICTS_MAX;
        if again {
            tracing::debug!(%error, tries = self.0, "somebody else changed the service: read again");
        }
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_encoded_and_an_image_in_it_stays_readable() {
        assert_eq!(
            encoded(
                "/v1.41/distribution/registry:5000/a/b:1@sha256:00/json",
                &[]
            ),
            "/v1.41/distribution/registry:5000/a/b:1@sha256:00/json"
        );
        assert_eq!(
            encoded("/v1.41/tasks", &[("filters", "{\"name\":[\"a b\"]}")]),
            "/v1.41/tasks?filters=%7B%22name%22%3A%5B%22a+b%22%5D%7D"
        );
    }

    #[test]
    fn versions_are_compared_by_number() {
        let version = |text| ApiVersion::parse(text).unwrap();
        assert!(version("1.9") < version("1.41"));
        assert!(version("1.53") > VERSION_MAX);
        assert_eq!(ApiVersion::parse("latest"), None);
    }

    #[test]
    fn an_error_says_whether_another_try_may_help() {
        let error = |status, words: &str| EngineError::of_status(status, words.to_owned());
        let stale = "rpc error: code = Unknown desc = update out of sequence";
        assert!(matches!(
            error(StatusCode::INTERNAL_SERVER_ERROR, stale),
            EngineError::OutOfSequence(_)
        ));
        let leaderless = "rpc error: code = Unknown desc = The swarm does not have a leader.";
        assert!(matches!(
            error(StatusCode::INTERNAL_SERVER_ERROR, leaderless),
            EngineError::Unreachable(_)
        ));
        assert!(matches!(
            error(StatusCode::BAD_REQUEST, "EndpointSpec: port published"),
            EngineError::Refused(_)
        ));
        assert_eq!(
            words(br#"{"message":"no such service\n"}"#),
            "no such service"
        );
        assert_eq!(words(b"page not found\n"), "page not found");
    }

    #[test]
    fn f27_a_change_that_came_too_late_is_made_again_and_not_for_ever() {
        let late = EngineError::OutOfSequence("update out of sequence".to_owned());
        let mut conflicts = Conflicts::default();
        for _ in 1..CONFLICTS_MAX {
            assert!(conflicts.again(&late));
        }
        assert!(!conflicts.again(&late));
        let refused = EngineError::Refused("no".to_owned());
        assert!(!Conflicts::default().again(&refused));
    }
}
