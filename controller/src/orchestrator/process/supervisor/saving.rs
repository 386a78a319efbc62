//! What is known of the tasks, written where the next controller finds it.

use rollout::ServiceName;

use super::super::launch;
use super::super::record::{Records, ServiceRecord};
use super::{Running, SAVE_RETRY, Unsaved, blocking};
use crate::orchestrator::OrchestratorError;

impl Running {
    /// Saves what changed of a service since it was last saved, and tells whether all is saved. What failed is tried
    /// again after [`SAVE_RETRY`].
    pub(super) async fn save_changes(&mut self, name: &ServiceName) -> bool {
        let now = self.parts.clock.elapsed();
        if self
            .unsaved
            .get(name)
            .is_some_and(|unsaved| now < unsaved.retry_at)
        {
            return false;
        }
        let Some(service) = self.parts.services.get(name) else {
            return true;
        };
        let record = service.record(&self.parts.boot, name, now);
        match self.save_if_new(name, record).await {
            Ok(()) => {
                self.unsaved.remove(name);
                true
            }
            Err(error) => {
                let why = launch::shortened(&with_source(&error));
                tracing::error!(service = %name, why, "no task is started until the state can be saved");
                self.unsaved.insert(
                    name.clone(),
                    Unsaved {
                        retry_at: now + SAVE_RETRY,
                        why,
                    },
                );
                false
            }
        }
    }

    /// Wishes are repeated, and most events change nothing that is saved: then nothing is written.
    pub(super) async fn save_if_new(
        &mut self,
        name: &ServiceName,
        record: ServiceRecord,
    ) -> Result<(), OrchestratorError> {
        let saved = self
            .parts
            .services
            .get(name)
            .and_then(|service| service.saved.as_ref());
        if saved.is_some_and(|saved| saved.is_like(&record)) {
            return Ok(());
        }
        let copy = record.clone();
        self.blocking(move |records| records.save_service(&copy))
            .await?;
        if let Some(service) = self.parts.services.get_mut(name) {
            service.saved = Some(record);
        }
        Ok(())
    }

    /// Reads or writes the state directory where blocking is allowed.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Records) -> Result<T, OrchestratorError> + Send + 'static,
    ) -> Result<T, OrchestratorError> {
        blocking(self.parts.records.clone(), work).await
    }
}

/// An error with its cause, for a line on a board or in a log.
fn with_source(error: &dyn std::error::Error) -> String {
    error
        .source()
        .map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}
