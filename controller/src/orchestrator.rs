//! What the controller needs of whoever runs the tasks: child processes on this machine, or Docker Swarm.
//!
//! A service has up to two groups of tasks. The *stable* group is the service that users call; it is there before and
//! after every rollout. The *canary* group is a clone of it, with another release and a replica count of its own, for
//! as long as a rollout lasts. Every `ensure_…` says what should be and may be repeated; it returns when the wish is
//! taken down durably, not when it has come true: [`Orchestrator::observe`] tells that.

use std::fmt;

use async_trait::async_trait;
use proxy_api::Endpoint;
use rollout::{Duration, Release, ReleaseId, ServiceName, Spec};

pub mod process;
mod ready;
pub mod swarm;

/// One task of a service: a process, or a Swarm task.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// Its identity; a restarted task is another task.
    pub id: String,
    /// The release it runs.
    pub release: ReleaseId,
    /// Where it listens.
    pub endpoint: Endpoint,
    /// The node it runs on.
    pub node: String,
    /// Whether it answered our own ready check, and is not about to stop: only such a task may get requests.
    pub ready: bool,
    /// Memory it uses, if that is known.
    pub memory_bytes: Option<u64>,
    /// The most memory it may use, if there is a limit.
    pub memory_bytes_max: Option<u64>,
    /// CPU time it has used since its start, if that is known.
    pub cpu: Option<Duration>,
}

/// One group of tasks: what is wanted, and what is there.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// The release that is wanted. Tasks of an earlier one may still be there.
    pub release: Release,
    /// How many tasks are wanted.
    pub replicas: u32,
    /// The tasks that are there, starting and stopping ones too.
    pub tasks: Vec<Task>,
    /// Tasks of that release that ended without being asked to, in the last [`RESTART_WINDOW`].
    pub restarts: u32,
    /// Why the last one ended or could not start, in the words of whoever ran it.
    pub trouble: Option<String>,
}

impl Group {
    /// How many tasks of `release` may get requests.
    #[must_use]
    pub fn ready(&self, release: &ReleaseId) -> u32 {
        let ready = self
            .tasks
            .iter()
            .filter(|task| task.ready && task.release == *release);
        u32::try_from(ready.count()).unwrap_or(u32::MAX)
    }

    /// How many tasks may get requests, whichever release they run.
    #[must_use]
    pub fn serving(&self) -> u32 {
        let ready = self.tasks.iter().filter(|task| task.ready);
        u32::try_from(ready.count()).unwrap_or(u32::MAX)
    }
}

/// How far back [`Group::restarts`] looks. The judge's rule counts restarts in 5 minutes (JUDGE 2.8).
pub const RESTART_WINDOW: Duration = Duration::from_secs(300);

/// All there is of a service.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceState {
    /// What users call.
    pub stable: Group,
    /// The clone on trial, if there is one; also while it is being removed.
    pub canary: Option<Group>,
}

/// Why an order was not taken, or nothing could be seen.
#[derive(Debug, thiserror::Error)]
pub enum OrchestratorError {
    /// There is no such service.
    #[error("there is no service {service:?}; known: {}", list(known))]
    UnknownService {
        /// What was asked for.
        service: String,
        /// What there is.
        known: Vec<String>,
    },
    /// There is no such image.
    #[error("there is no image {image:?} for service {service:?}: {reason}")]
    UnknownImage {
        /// What was asked for.
        image: String,
        /// For which service.
        service: String,
        /// The words of whoever keeps the images.
        reason: String,
    },
    /// It does not answer, or not in time.
    #[error("{what} is out of reach")]
    Unreachable {
        /// Which part.
        what: String,
        /// What happened.
        source: std::io::Error,
    },
    /// Its own files cannot be read or written.
    #[error("{what}")]
    State {
        /// Which file, what was tried.
        what: String,
        /// What happened.
        source: std::io::Error,
    },
    /// It refused, and will refuse again.
    #[error("{what} was refused: {reason}")]
    Refused {
        /// What was tried.
        what: String,
        /// Its words.
        reason: String,
    },
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

impl OrchestratorError {
    /// Whether trying again, later, may help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::State { .. } => true,
            Self::UnknownService { .. } | Self::UnknownImage { .. } | Self::Refused { .. } => false,
        }
    }
}

/// Whoever runs the tasks.
#[async_trait]
pub trait Orchestrator: fmt::Debug + Send + Sync {
    /// Wishes come from the controller of this term from now on. Whoever others may command too refuses those of an
    /// earlier term once it has seen this one.
    fn lead(&self, _term: u64) {}

    /// What `friday.yml` says of how a service's tasks are reached: said before the first look at it, and at each change.
    /// Of no use to who chooses ports.
    fn know(&self, _spec: &Spec) {}

    /// Waits until something may have changed. A hint: it may come for nothing, late or never; who has none to give waits
    /// for ever. A word that comes while nobody waits is kept.
    async fn changed(&self) {
        std::future::pending().await
    }

    /// Whether [`Self::changed`] tells of changes at present, so that what is at rest may be looked at less often.
    fn tells(&self) -> bool {
        false
    }

    /// The names of the services there are, sorted.
    ///
    /// # Errors
    /// Out of reach.
    async fn services(&self) -> Result<Vec<ServiceName>, OrchestratorError>;

    /// The release that `image` is at this moment: its digest is looked up once, here, and used from then on.
    ///
    /// # Errors
    /// No such service or image, or out of reach.
    async fn resolve(
        &self,
        service: &ServiceName,
        image: &str,
        commit: Option<String>,
    ) -> Result<Release, OrchestratorError>;

    /// What there is of a service now. An error is never an empty answer: keep what was known before.
    ///
    /// # Errors
    /// No such service, or out of reach.
    async fn observe(&self, service: &ServiceName) -> Result<ServiceState, OrchestratorError>;

    /// The stable group shall run `release`, with the replicas it has: new tasks are started before old ones are
    /// drained and stopped.
    ///
    /// # Errors
    /// The wish was not taken down.
    async fn ensure_stable(
        &self,
        service: &ServiceName,
        release: &Release,
    ) -> Result<(), OrchestratorError>;

    /// The stable group, from which somebody took all tasks, shall run `release` with `replicas` of them again. For who
    /// scales and removes no service by another's word, it is [`Self::ensure_stable`].
    ///
    /// # Errors
    /// The wish was not taken down.
    async fn restore_stable(
        &self,
        service: &ServiceName,
        release: &Release,
        _replicas: u32,
    ) -> Result<(), OrchestratorError> {
        self.ensure_stable(service, release).await
    }

    /// There shall be a canary group: a clone of the stable group that runs `release` with `replicas` tasks.
    ///
    /// # Errors
    /// The wish was not taken down.
    async fn ensure_canary(
        &self,
        service: &ServiceName,
        release: &Release,
        replicas: u32,
    ) -> Result<(), OrchestratorError>;

    /// There shall be no canary group: its tasks are drained and stopped, and its record goes.
    ///
    /// # Errors
    /// The wish was not taken down.
    async fn ensure_no_canary(&self, service: &ServiceName) -> Result<(), OrchestratorError>;
}

/// Runs what blocks on the disk off the runtime.
async fn off_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, OrchestratorError> + Send + 'static,
) -> Result<T, OrchestratorError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => Err(OrchestratorError::Unreachable {
            what: "the thread that reads files".to_owned(),
            source: std::io::Error::other(error),
        }),
    }
}
