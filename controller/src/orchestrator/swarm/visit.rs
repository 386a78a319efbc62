//! A look at an engine from the command line, for `friday lint`, `adopt` and `doctor`: nothing is written and nothing kept.

mod images;

use std::io;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use super::address::EngineAddress;
use super::auth::Credentials;
use super::engine::{Engine, EngineError};
use super::preview::{Preview, preview};
use super::spec;
use crate::orchestrator::OrchestratorError;
use crate::yaml::nearest;

pub use images::Holder;

/// Most names that an error lists.
const NAMED_MAX: usize = 12;

/// Why an engine said nothing to work with.
#[derive(Debug, thiserror::Error)]
pub enum VisitError {
    /// No connection, or no answer in time.
    #[error(
        "the engine at {engine}, asked for {what}, is out of reach: is it running, and is --engine (or DOCKER_HOST) right?"
    )]
    Unreachable {
        /// Its address.
        engine: String,
        /// What was asked.
        what: String,
        /// What happened.
        source: io::Error,
    },
    /// Its certificates cannot be used.
    #[error("the engine at {engine} cannot be asked")]
    Certificates {
        /// Its address.
        engine: String,
        /// What is wrong.
        source: OrchestratorError,
    },
    /// It knows no services.
    #[error(
        "the engine at {engine} is no manager of a swarm: name a manager's with --engine or DOCKER_HOST, or make it one with docker swarm init"
    )]
    NoManager {
        /// Its address.
        engine: String,
    },
    /// It has no such service.
    #[error("there is no service {service:?} at {engine}; {known}")]
    UnknownService {
        /// What was asked for.
        service: String,
        /// The engine's address.
        engine: String,
        /// The one that was meant, or those there are.
        known: String,
    },
    /// The service is none that has canaries.
    #[error("{service} {reason}")]
    Unfit {
        /// Which.
        service: String,
        /// Why, and what to do.
        reason: String,
    },
    /// It refused.
    #[error("the engine at {engine} refused {what}: {words}")]
    Refused {
        /// Its address.
        engine: String,
        /// What was asked.
        what: String,
        /// Its words.
        words: String,
    },
}

impl VisitError {
    /// The exit code of a command that ends with it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unreachable { .. } => 30,
            Self::Certificates { .. } => 2,
            Self::NoManager { .. }
            | Self::UnknownService { .. }
            | Self::Unfit { .. }
            | Self::Refused { .. } => 20,
        }
    }
}

/// A network that a service is attached to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Network {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `overlay` for one that reaches over nodes.
    pub driver: String,
    /// Whether it is the one that carries published ports.
    #[serde(default)]
    pub ingress: bool,
}

/// A node of the swarm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwarmNode {
    /// Its name.
    pub name: String,
    /// `ready`, `down`, …
    pub state: String,
    /// `active`, `pause` or `drain`.
    pub availability: String,
    /// Whether it takes part in leading the swarm.
    pub is_manager: bool,
}

/// A service, as its engine has it.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its spec, the engine's own JSON.
    pub spec: Value,
}

impl Found {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        spec::name(&self.spec)
    }

    /// The image of its tasks.
    #[must_use]
    pub fn image(&self) -> &str {
        spec::image(&self.spec)
    }

    /// How many tasks it wants; `None` for one that runs on every node, or whose tasks end.
    #[must_use]
    pub fn replicas(&self) -> Option<u32> {
        spec::replicas(&self.spec)
    }

    /// Whose canary it is, if it is one of ours.
    #[must_use]
    pub fn canary_of(&self) -> Option<&str> {
        self.spec["Labels"][spec::CANARY_OF].as_str()
    }

    /// The networks that it is attached to, by id or name.
    #[must_use]
    pub fn networks(&self) -> Vec<&str> {
        let places = ["/TaskTemplate/Networks", "/Networks"];
        let lists = places
            .into_iter()
            .filter_map(|place| self.spec.pointer(place)?.as_array());
        let targets = lists
            .flatten()
            .filter_map(|network| network["Target"].as_str());
        targets.collect()
    }

    /// What its canary would be.
    #[must_use]
    pub fn preview(&self) -> Preview {
        preview(&self.spec)
    }

    /// Whether a release of it can have a canary.
    ///
    /// # Errors
    /// It runs on every node, its tasks end, or it is a canary.
    pub fn fits(&self) -> Result<(), VisitError> {
        let unfit = |reason: String| {
            Err(VisitError::Unfit {
                service: self.name().to_owned(),
                reason,
            })
        };
        if let Some(of) = self.canary_of() {
            return unfit(format!(
                "is the canary of {of}, which friday made and will remove: adopt {of}"
            ));
        }
        let mode = self.spec["Mode"].as_object();
        let mode = mode.and_then(|mode| mode.keys().next()).map(String::as_str);
        match mode {
            Some("Replicated") => Ok(()),
            Some("Global") => unfit(
                "runs on every node (mode global): its share of requests has no number of tasks that a canary could have a part of; make it again with --replicas, perhaps with --replicas-max-per-node 1".to_owned(),
            ),
            Some("ReplicatedJob" | "GlobalJob") => unfit(
                "is a job: its tasks end by themselves and serve no requests, so there is nothing to compare".to_owned(),
            ),
            other => unfit(format!(
                "is of the mode {}, which friday does not know: it releases replicated services",
                other.unwrap_or("that the engine does not name")
            )),
        }
    }
}

/// An engine that is asked.
#[derive(Debug)]
pub struct Visit {
    engine: Engine,
    address: String,
    credentials: Credentials,
}

impl Visit {
    /// The engine at an address; nobody is asked yet. `docker_config` is the folder that says who we are to registries.
    ///
    /// # Errors
    /// Its certificates cannot be used.
    pub async fn at(
        address: EngineAddress,
        docker_config: Option<PathBuf>,
    ) -> Result<Self, VisitError> {
        let shown = address.to_string();
        let made = tokio::task::spawn_blocking(move || Engine::new(address)).await;
        let failed = |source| VisitError::Certificates {
            engine: shown.clone(),
            source,
        };
        let engine = match made {
            Ok(made) => made.map_err(failed)?,
            Err(error) => {
                return Err(VisitError::Unreachable {
                    engine: shown,
                    what: "its certificates".to_owned(),
                    source: io::Error::other(error),
                });
            }
        };
        Ok(Self {
            engine,
            address: shown,
            credentials: Credentials::of(docker_config),
        })
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    fn failed(&self, what: &str, error: EngineError) -> VisitError {
        match error {
            EngineError::Unreachable(source) => VisitError::Unreachable {
                engine: self.address.clone(),
                what: what.to_owned(),
                source,
            },
            EngineError::NotFound(words)
            | EngineError::OutOfSequence(words)
            | EngineError::Refused(words) => VisitError::Refused {
                engine: self.address.clone(),
                what: what.to_owned(),
                words,
            },
        }
    }

    /// Makes sure that it may be asked for services; its version.
    ///
    /// # Errors
    /// It is no manager's, or does not answer.
    pub async fn manager(&self) -> Result<String, VisitError> {
        let info: Value = self
            .engine
            .get("info", &[])
            .await
            .map_err(|error| self.failed("who it is", error))?;
        if info["Swarm"]["ControlAvailable"].as_bool() == Some(true) {
            Ok(info["ServerVersion"].as_str().unwrap_or("?").to_owned())
        } else {
            Err(VisitError::NoManager {
                engine: self.address.clone(),
            })
        }
    }

    /// All its services, by name.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn services(&self) -> Result<Vec<Found>, VisitError> {
        let services = self.engine.services("").await;
        let services = services.map_err(|error| self.failed("its services", error))?;
        let mut found: Vec<Found> = services
            .into_iter()
            .map(|service| Found { spec: service.spec })
            .collect();
        found.sort_by(|a, b| a.name().cmp(b.name()));
        Ok(found)
    }

    /// The service of this name among `services`.
    ///
    /// # Errors
    /// There is none; the error names what was probably meant.
    pub fn named<'a>(&self, services: &'a [Found], name: &str) -> Result<&'a Found, VisitError> {
        let found = services.iter().find(|service| service.name() == name);
        found.ok_or_else(|| {
            let users = services.iter().filter(|found| found.canary_of().is_none());
            let names: Vec<&str> = users.map(Found::name).collect();
            VisitError::UnknownService {
                service: name.to_owned(),
                engine: self.address.clone(),
                known: near(name, &names),
            }
        })
    }

    /// The swarm's nodes, by name.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn nodes(&self) -> Result<Vec<SwarmNode>, VisitError> {
        let nodes: Vec<Value> = self
            .engine
            .get("nodes", &[])
            .await
            .map_err(|error| self.failed("its nodes", error))?;
        let text = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
        let read = |node: &Value| SwarmNode {
            name: text(&node["Description"]["Hostname"]),
            state: text(&node["Status"]["State"]),
            availability: text(&node["Spec"]["Availability"]),
            is_manager: node["ManagerStatus"].is_object(),
        };
        let mut nodes: Vec<SwarmNode> = nodes.iter().map(read).collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(nodes)
    }

    /// The networks of the swarm.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn networks(&self) -> Result<Vec<Network>, VisitError> {
        self.engine
            .get("networks", &[])
            .await
            .map_err(|error| self.failed("its networks", error))
    }
}

/// What was probably meant by a name, or what there is.
fn near(name: &str, names: &[&str]) -> String {
    // `docker stack` puts its own name before those of its services.
    let of_stack = names.iter().find(|known| {
        let rest = known.strip_suffix(name);
        rest.is_some_and(|rest| rest.ends_with('_'))
    });
    if let Some(known) = of_stack.copied().or_else(|| nearest(name, names)) {
        return format!("did you mean {known}?");
    }
    match names {
        [] => "there is none at all".to_owned(),
        names => {
            let first: Vec<&str> = names.iter().copied().take(NAMED_MAX).collect();
            let more = names.len().saturating_sub(NAMED_MAX);
            let more = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            format!("there are: {}{more}", first.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_name_that_is_none_leads_to_the_one_that_was_meant() {
        let names = ["shop_web", "shop_worker", "worker-api"];
        assert_eq!(near("worker", &names), "did you mean shop_worker?");
        assert_eq!(near("shop_wbe", &names), "did you mean shop_web?");
        assert_eq!(
            near("nothing-like-it", &names),
            "there are: shop_web, shop_worker, worker-api"
        );
        assert_eq!(near("x", &[]), "there is none at all");
    }

    #[test]
    fn what_can_have_no_canary_is_refused_with_what_to_do() {
        let refused = |spec: Value| {
            let error = Found { spec }.fits().unwrap_err();
            assert_eq!(error.exit_code(), 20);
            error.to_string()
        };
        let global = refused(json!({ "Name": "web", "Mode": { "Global": {} } }));
        assert!(
            global.contains("mode global") && global.contains("--replicas"),
            "{global}"
        );
        let job = refused(json!({ "Name": "web", "Mode": { "ReplicatedJob": {} } }));
        assert!(job.contains("is a job"), "{job}");
        let canary = refused(json!({
            "Name": "web-canary", "Labels": { "friday.canary-of": "web" }, "Mode": { "Replicated": { "Replicas": 1 } },
        }));
        assert!(canary.contains("adopt web"), "{canary}");
        let fits = Found {
            spec: json!({ "Name": "web", "Mode": { "Replicated": {} } }),
        };
        assert!(fits.fits().is_ok());
        assert_eq!(fits.replicas(), Some(0));
    }
}
