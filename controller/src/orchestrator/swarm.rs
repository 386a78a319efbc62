//! Docker Swarm: the stable group is the user's own service, the canary group a service beside it, `<service>-canary`,
//! cloned from it for as long as a rollout lasts.
//!
//! What there is, is asked of a manager at every look; nothing is cached but what images mean, so that a controller that
//! is started anew sees what the one before saw. Tasks have no events, so they are polled: a look costs two calls of some
//! milliseconds. What events there are, of services, nodes and this node's containers, only bring the next look forward,
//! and let a service at rest be looked at less often. An engine that does not answer is an error after
//! 2.5 s and never an empty list. A task gets requests if it shall run, runs, and answers our own ready check; its
//! address comes from the task and never from DNS, which brings back the dead. Whether a canary makes progress is judged
//! by the rollout's own deadline: an update whose tasks stay pending never fails in Swarm's eyes.
//!
//! Read on in this order: `spec` and `tasks` (pure), `look`, `resolve`, `ready`, `engine`, `events`, `model`, `wire`,
//! `address`, `auth`, `image`, `record`; `visit` and `preview` are for the command line.

mod address;
mod auth;
pub(crate) mod engine;
mod events;
mod image;
mod look;
mod model;
mod preview;
mod ready;
mod record;
mod resolve;
pub(crate) mod spec;
mod tasks;
mod visit;
mod wire;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use proxy_api::Arm;
use rollout::{Release, ServiceName, Spec};

pub use address::{AddressError, DEFAULT_ENGINE, EngineAddress};
pub use preview::Preview;
pub use visit::{Found, Holder, Network, SwarmNode, Visit, VisitError};

use auth::Credentials;
use engine::{Conflicts, Engine, EngineError};
use events::Events;
use model::Service;
use ready::ReadyChecks;
use record::Images;
use tasks::Ends;

use crate::clock::Clock;
use crate::orchestrator::{Orchestrator, OrchestratorError, ServiceState, off_runtime};

/// Where the swarm is, and what is kept here of it.
#[derive(Debug, Clone)]
pub struct SwarmConfig {
    /// A manager's engine.
    pub engine: EngineAddress,
    /// What images were when they were resolved is kept here; made if need be.
    pub state_dir: PathBuf,
    /// The overlay network that proxy, controller and tasks share; `None` where every service is on one alone.
    pub network: Option<String>,
    /// The folder of Docker's own configuration, which says who we are to registries.
    pub docker_config: Option<PathBuf>,
}

/// How a service's tasks are reached: `friday.yml` says it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reach {
    port: u16,
    ready_path: String,
}

/// The services of a swarm.
#[derive(Debug)]
pub struct Swarm {
    engine: Arc<Engine>,
    events: Events,
    network: Option<String>,
    credentials: Credentials,
    images: Arc<Images>,
    checks: ReadyChecks,
    clock: Arc<dyn Clock>,
    /// Of the controller that commands; what a newer one wrote is left alone.
    term: AtomicU64,
    reach: Mutex<HashMap<ServiceName, Reach>>,
    nodes: Mutex<HashMap<String, String>>,
    ends: Mutex<HashMap<(ServiceName, Arm), Ends>>,
    /// The digest that each stable service was last told to run, to know it when the engine takes that back.
    told: Mutex<HashMap<ServiceName, String>>,
}

/// A service and its canary, as the engine has them.
struct Pair {
    stable: Service,
    canary: Option<Service>,
}

/// Why something was not written: the engine's trouble, which may pass, or a reason of our own.
enum WriteError {
    Engine(EngineError),
    Ours(OrchestratorError),
}

impl From<EngineError> for WriteError {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

impl From<OrchestratorError> for WriteError {
    fn from(error: OrchestratorError) -> Self {
        Self::Ours(error)
    }
}

impl Swarm {
    /// Reads what is kept, and asks whether the engine is a manager's.
    ///
    /// # Errors
    /// It is not; certificates or the saved file cannot be used. An engine that does not answer is no error: it may come
    /// later, and until then nothing is known.
    pub async fn open(
        config: SwarmConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, OrchestratorError> {
        let checks = ReadyChecks::new().map_err(|error| OrchestratorError::Unreachable {
            what: "the HTTP client for ready checks".to_owned(),
            source: io::Error::other(error),
        })?;
        let (address, state_dir) = (config.engine.clone(), config.state_dir);
        let (engine, images) =
            off_runtime(move || Ok((Engine::new(address)?, Arc::new(Images::open(&state_dir)?))))
                .await?;
        match engine.is_manager().await {
            Ok(true) => {}
            Ok(false) => {
                return Err(OrchestratorError::Refused {
                    what: format!("the engine at {}", config.engine),
                    reason: "it is no manager of a swarm: name a manager's with --engine or DOCKER_HOST, or make it one with docker swarm init".to_owned(),
                });
            }
            Err(error @ EngineError::Unreachable(_)) => {
                tracing::warn!(engine = %config.engine, error = error.words(), "the engine does not answer yet");
            }
            Err(error) => return Err(engine.error("who it is", error)),
        }
        let engine = Arc::new(engine);
        Ok(Arc::new(Self {
            events: Events::of(engine.clone()),
            engine,
            network: config.network,
            credentials: Credentials::of(config.docker_config),
            images,
            checks,
            clock,
            term: AtomicU64::new(0),
            reach: Mutex::default(),
            nodes: Mutex::default(),
            ends: Mutex::default(),
            told: Mutex::default(),
        }))
    }

    /// A service and its canary; `None` where there is no such service. One that was removed while it had a canary is there
    /// still, without tasks, as it was last seen: it can be made again (F15).
    async fn pair(&self, service: &ServiceName) -> Result<Option<Pair>, EngineError> {
        let found = self.engine.services(service.as_str()).await?;
        let mut stable = None;
        let mut canary = None;
        for candidate in found {
            if spec::is_canary(&candidate.spec, Some(service)) {
                canary = Some(candidate);
            } else if spec::name(&candidate.spec) == service.as_str()
                && !spec::is_canary(&candidate.spec, None)
            {
                stable = Some(candidate);
            }
        }
        let stable = stable.or_else(|| {
            let spec = self.images.spec(service).filter(|_| canary.is_some())?;
            Some(Service::removed(spec::scaled_to(&spec, 0)))
        });
        Ok(stable.map(|stable| Pair { stable, canary }))
    }

    async fn unknown(&self, service: &ServiceName) -> OrchestratorError {
        match self.services().await {
            Ok(known) => OrchestratorError::UnknownService {
                service: service.to_string(),
                known: known.iter().map(ToString::to_string).collect(),
            },
            Err(error) => error,
        }
    }

    /// The same where there must be one.
    async fn known_pair(&self, service: &ServiceName) -> Result<Pair, WriteError> {
        match self.pair(service).await? {
            Some(pair) => Ok(pair),
            None => Err(self.unknown(service).await.into()),
        }
    }

    /// Makes a change of a service, again from the start when somebody else has changed the service meanwhile.
    async fn write<F: Future<Output = Result<(), WriteError>>>(
        &self,
        what: &str,
        service: &ServiceName,
        change: impl Fn() -> F,
    ) -> Result<(), OrchestratorError> {
        let mut conflicts = Conflicts::default();
        loop {
            match change().await {
                Err(WriteError::Engine(error)) if conflicts.again(&error) => {}
                outcome => return self.written(what, service, outcome),
            }
        }
    }

    /// One try to write the stable service.
    async fn write_stable(
        &self,
        service: &ServiceName,
        release: &Release,
    ) -> Result<(), WriteError> {
        let Pair { stable, .. } = self.known_pair(service).await?;
        let before = self.release_of(service, &stable.spec).await;
        if before.is_ok_and(|before| before.digest == release.digest) {
            return match stopped(&stable) {
                Some(words) => Err(WriteError::Ours(OrchestratorError::Refused {
                    what: format!("the update of {service} to {}", release.image),
                    reason: format!("the engine stopped it: {words}"),
                })),
                None => Ok(()),
            };
        }
        self.fence(&stable)?;
        if let Some((digest, words)) = self.taken_back(service, &stable)
            && digest == release.digest
        {
            return Err(WriteError::Ours(OrchestratorError::Refused {
                what: format!("the update of {service} to {}", release.image),
                reason: format!("the engine took it back: {words}"),
            }));
        }
        let pinned = self.pinned(service, release).await?;
        let auth = self.auth(release).await;
        let spec = spec::with_release(&stable.spec, release, &pinned, self.term());
        self.engine.update(&stable, &spec, auth.as_deref()).await?;
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.insert(service.clone(), release.digest.clone());
        tracing::info!(%service, release = %release.id, image = pinned, "the stable service is updated");
        Ok(())
    }

    /// One try to give the stable service its tasks back.
    async fn write_restored(
        &self,
        service: &ServiceName,
        release: &Release,
        replicas: u32,
    ) -> Result<(), WriteError> {
        let Pair { stable, .. } = self.known_pair(service).await?;
        if spec::replicas(&stable.spec) != Some(0) && !stable.is_removed() {
            return Ok(());
        }
        self.fence(&stable)?;
        let pinned = self.pinned(service, release).await?;
        let auth = self.auth(release).await;
        let spec = spec::with_release(&stable.spec, release, &pinned, self.term());
        let spec = spec::scaled_to(&spec, replicas);
        if stable.is_removed() {
            self.engine.create(&spec, auth.as_deref()).await?;
        } else {
            self.engine.update(&stable, &spec, auth.as_deref()).await?;
        }
        tracing::warn!(%service, release = %release.id, replicas, "somebody took every task of the stable service away: it gets them back before requests return to it");
        Ok(())
    }

    /// One try to write the canary service.
    async fn write_canary(
        &self,
        service: &ServiceName,
        release: &Release,
        replicas: u32,
    ) -> Result<(), WriteError> {
        let Pair { stable, canary } = self.known_pair(service).await?;
        let name = spec::canary_name(service)?;
        if !stable.is_removed() {
            let (images, name, spec) = (self.images.clone(), service.clone(), stable.spec.clone());
            off_runtime(move || images.keep_spec(&name, spec)).await?;
        }
        let pinned = self.pinned(service, release).await?;
        let auth = self.auth(release).await;
        let whole = || {
            spec::canary(
                &stable,
                &name,
                service,
                release,
                &pinned,
                replicas,
                self.term(),
            )
        };
        let Some(canary) = canary else {
            let made = self.engine.create(&whole(), auth.as_deref()).await;
            if matches!(made, Err(EngineError::OutOfSequence(_)))
                && self.is_taken(&name, service).await?
            {
                return Err(WriteError::Ours(OrchestratorError::Refused {
                    what: format!("a canary of {service}"),
                    reason: format!(
                        "there is a service {name} already and it is none of ours: rename or remove it"
                    ),
                }));
            }
            made?;
            tracing::info!(%service, release = %release.id, image = pinned, replicas, "a canary service is made");
            return Ok(());
        };
        self.fence(&canary)?;
        let runs = spec::release(&canary.spec, |_| None);
        let spec = if runs.is_some_and(|runs| runs == *release) {
            if spec::replicas(&canary.spec) == Some(replicas) {
                return Ok(());
            }
            spec::with_replicas(&canary.spec, replicas, self.term())
        } else {
            whole()
        };
        self.engine.update(&canary, &spec, auth.as_deref()).await?;
        tracing::info!(%service, release = %release.id, image = pinned, replicas, "the canary service is updated");
        Ok(())
    }

    /// Whether a service of that name is not this service's canary.
    async fn is_taken(&self, name: &str, of: &ServiceName) -> Result<bool, EngineError> {
        let named = self.engine.services(name).await?;
        let mut named = named.iter().filter(|found| spec::name(&found.spec) == name);
        Ok(named.any(|found| !spec::is_canary(&found.spec, Some(of))))
    }

    /// One try to remove the canary service.
    async fn remove_canary(&self, service: &ServiceName) -> Result<(), WriteError> {
        let Some(canary) = self.known_pair(service).await?.canary else {
            return Ok(());
        };
        self.fence(&canary)?;
        self.engine.remove(&canary.id).await?;
        tracing::info!(%service, "the canary service is removed");
        Ok(())
    }

    fn written(
        &self,
        what: &str,
        service: &ServiceName,
        outcome: Result<(), WriteError>,
    ) -> Result<(), OrchestratorError> {
        outcome.map_err(|error| match error {
            WriteError::Ours(error) => error,
            WriteError::Engine(error) => self.engine.error(&format!("{what} of {service}"), error),
        })
    }

    /// Whether this controller may write what it has read: not what a newer one has written.
    fn fence(&self, service: &Service) -> Result<(), OrchestratorError> {
        let (ours, theirs) = (self.term(), spec::term(&service.spec));
        if theirs <= ours {
            return Ok(());
        }
        Err(OrchestratorError::Refused {
            what: format!("a change of {}", spec::name(&service.spec)),
            reason: format!(
                "the controller of term {theirs} commands it, and this one is of term {ours}"
            ),
        })
    }

    fn term(&self) -> u64 {
        self.term.load(Ordering::Relaxed)
    }

    /// What a registry wants to know before it gives out the image of a release.
    async fn auth(&self, release: &Release) -> Option<String> {
        let reference = image::Reference::parse(&release.image)?;
        if reference.name.is_empty() {
            return None;
        }
        self.credentials.header(reference.registry()).await
    }

    /// Why the stable service will not run what it was told to: the engine took the update back (F35).
    fn taken_back(&self, service: &ServiceName, stable: &Service) -> Option<(String, String)> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let digest = told.get(service)?.clone();
        let status = stable.update_status.as_ref()?;
        status
            .state
            .starts_with("rollback")
            .then(|| (digest, tasks::shortened(&status.message)))
    }
}

#[async_trait]
impl Orchestrator for Swarm {
    fn lead(&self, term: u64) {
        self.term.store(term, Ordering::Relaxed);
    }

    fn know(&self, spec: &Spec) {
        let reach = Reach {
            port: spec.port,
            ready_path: spec.ready.path.clone(),
        };
        let mut known = self.reach.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(spec.service.clone(), reach);
    }

    async fn changed(&self) {
        self.events.changed().await;
    }

    fn tells(&self) -> bool {
        self.events.are_live()
    }

    async fn services(&self) -> Result<Vec<ServiceName>, OrchestratorError> {
        let services = self.engine.services("").await;
        let services = services.map_err(|error| self.engine.error("its services", error))?;
        let stable = services
            .iter()
            .filter(|service| !spec::is_canary(&service.spec, None));
        let mut names: Vec<ServiceName> = stable
            .filter_map(|service| spec::name(&service.spec).parse().ok())
            .collect();
        names.sort();
        Ok(names)
    }

    async fn resolve(
        &self,
        service: &ServiceName,
        image: &str,
        commit: Option<String>,
    ) -> Result<Release, OrchestratorError> {
        let pair = self.pair(service).await;
        if pair
            .map_err(|error| self.engine.error(&format!("the service {service}"), error))?
            .is_none()
        {
            return Err(self.unknown(service).await);
        }
        let digest = self.resolve_image(service, image).await?;
        Ok(Release::new(image, digest, commit))
    }

    async fn observe(&self, service: &ServiceName) -> Result<ServiceState, OrchestratorError> {
        self.look(service).await
    }

    async fn ensure_stable(
        &self,
        service: &ServiceName,
        release: &Release,
    ) -> Result<(), OrchestratorError> {
        self.write("the update", service, || {
            self.write_stable(service, release)
        })
        .await
    }

    async fn restore_stable(
        &self,
        service: &ServiceName,
        release: &Release,
        replicas: u32,
    ) -> Result<(), OrchestratorError> {
        self.write("the restoring", service, || {
            self.write_restored(service, release, replicas)
        })
        .await
    }

    async fn ensure_canary(
        &self,
        service: &ServiceName,
        release: &Release,
        replicas: u32,
    ) -> Result<(), OrchestratorError> {
        self.write("the canary", service, || {
            self.write_canary(service, release, replicas)
        })
        .await
    }

    async fn ensure_no_canary(&self, service: &ServiceName) -> Result<(), OrchestratorError> {
        let outcome = self.remove_canary(service).await;
        self.written("the removal of the canary", service, outcome)
    }
}

/// What the engine says of an update that it stopped half way, which it does not go on with by itself (F35).
fn stopped(service: &Service) -> Option<String> {
    let status = service.update_status.as_ref()?;
    (status.state == "paused").then(|| tasks::shortened(&status.message))
}
