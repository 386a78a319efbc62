//! Which release an image is at this moment: looked up before the loop hears of it. A registry that hangs delays nobody
//! but who deploys the same service: no verdict, no abort, no other release waits for it.

use std::sync::Arc;

use rollout::{Duration, Release, ServiceName};
use tokio::sync::{Mutex as Line, OwnedMutexGuard};
use tokio::time::timeout;

use super::error::RequestError;
use super::queue::Places;
use super::request::Deploy;
use crate::orchestrator::{Orchestrator, OrchestratorError};

/// Releases of one service that may wait for their registry; one more is refused at once.
const LINE_MAX: usize = 8;

/// Longest wait for a registry, and for the releases of the same service that came before: twice what an engine gives it,
/// and less than a client waits for its answer.
const RESOLVED_MAX: Duration = Duration::from_secs(20);

/// The registries, asked by the orchestrator.
#[derive(Debug)]
pub struct Registry {
    orchestrator: Arc<dyn Orchestrator>,
    /// Those who wait, by service: first come, first served, so that the last one to come supersedes the others.
    lines: Places<Line<()>>,
}

/// A rollout to start, with the release that its image is.
#[derive(Debug)]
pub struct Resolved {
    pub(super) deploy: Deploy,
    pub(super) canary: Release,
    /// The next one of the service is looked up when the loop has answered this one.
    pub(super) turn: OwnedMutexGuard<()>,
}

impl Registry {
    pub(super) fn new(orchestrator: Arc<dyn Orchestrator>) -> Arc<Self> {
        Arc::new(Self {
            orchestrator,
            lines: Places::new(LINE_MAX),
        })
    }

    /// Looks up the release that is to be deployed.
    ///
    /// # Errors
    /// No such service or image, out of reach or too late, or too many wait already.
    ///
    /// # Cancel safety
    /// Who asks no more gives its place away, and nothing was done.
    pub async fn resolve(&self, deploy: Deploy) -> Result<Resolved, RequestError> {
        let service = &deploy.spec.service;
        let line = self.lines.take(service.as_str());
        let line = line.ok_or_else(|| RequestError::Busy {
            service: service.clone(),
        })?;
        let looked_up = async {
            let turn = line.lock_owned().await;
            let commit = deploy.commit.clone();
            let release = self.orchestrator.resolve(service, &deploy.image, commit);
            Ok::<_, OrchestratorError>((turn, release.await?))
        };
        let late = |_| OrchestratorError::Unreachable {
            what: format!("the registry of {}", deploy.image),
            source: std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                format!(
                    "no answer within {} s, the wait for earlier releases of {} included",
                    RESOLVED_MAX.as_secs(),
                    service
                ),
            ),
        };
        let (turn, canary) = timeout(RESOLVED_MAX, looked_up).await.map_err(late)??;
        Ok(Resolved {
            deploy,
            canary,
            turn,
        })
    }

    /// Whether the orchestrator has a service of this name.
    ///
    /// # Errors
    /// Out of reach.
    pub async fn has(&self, service: &ServiceName) -> Result<bool, OrchestratorError> {
        Ok(self.orchestrator.services().await?.contains(service))
    }
}
