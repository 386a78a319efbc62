//! From an image as somebody wrote it to the digest that is run, and back to what a service spec is given for it.

use rollout::{Release, ServiceName};

use super::Swarm;
use super::engine::EngineError;
use super::image::Reference;
use super::model::Image;
use crate::orchestrator::{OrchestratorError, off_runtime};

impl Swarm {
    /// The digest of an image now: its registry's word, or, where that has none, this engine's own copy. What is run for
    /// it is remembered.
    pub(super) async fn resolve_image(
        &self,
        service: &ServiceName,
        image: &str,
    ) -> Result<String, OrchestratorError> {
        let unknown = |reason: String| OrchestratorError::UnknownImage {
            image: image.to_owned(),
            service: service.to_string(),
            reason,
        };
        let reference = Reference::parse(image).ok_or_else(|| OrchestratorError::Refused {
            what: format!("image {image:?}"),
            reason: "that is no image: expected REGISTRY/NAME:TAG or NAME@sha256:DIGEST".to_owned(),
        })?;
        if let Some(digest) = &reference.digest {
            let pinned = self.found(&reference, digest).await.map_err(unknown)?;
            return self.remember(digest.clone(), pinned).await;
        }
        let auth = self.credentials.header(reference.registry()).await;
        let asked = self
            .engine
            .registry_digest(&reference.name, auth.as_deref())
            .await;
        let words = match asked {
            Ok(digest) => {
                let pinned = reference.pinned(&digest);
                return self.remember(digest, pinned).await;
            }
            Err(error) => error.words(),
        };
        match self.engine.image(&reference.name).await {
            Ok(local) => {
                tracing::warn!(%service, image, words, "its registry gives no digest of this image: taken from this engine, and every node has to have it");
                let (digest, pinned) = of_local(&reference, &local);
                self.remember(digest, pinned).await
            }
            Err(EngineError::NotFound(_)) => {
                let here = self.engine.tags(reference.repository()).await;
                let here = here.unwrap_or_default();
                let here = if here.is_empty() {
                    "none of that name".to_owned()
                } else {
                    here.join(", ")
                };
                Err(unknown(format!(
                    "{} says: {words}; this engine has: {here}",
                    reference.registry()
                )))
            }
            Err(error) => Err(self.engine.error(&format!("the image {image}"), error)),
        }
    }

    /// What a service spec is given for a release. One that was resolved before is not looked for again: going back must
    /// not need a registry.
    pub(super) async fn pinned(
        &self,
        service: &ServiceName,
        release: &Release,
    ) -> Result<String, OrchestratorError> {
        if let Some(pinned) = self.images.pinned(&release.digest) {
            return Ok(pinned);
        }
        let unknown = |reason: String| OrchestratorError::UnknownImage {
            image: release.image.clone(),
            service: service.to_string(),
            reason,
        };
        let reference = Reference::parse(&release.image)
            .ok_or_else(|| unknown("that is no image".to_owned()))?;
        let pinned = self
            .found(&reference, &release.digest)
            .await
            .map_err(unknown)?;
        self.remember(release.digest.clone(), pinned.clone())
            .await?;
        Ok(pinned)
    }

    /// What is run for a digest, if this engine or the registry has it; else the registry's words.
    async fn found(&self, reference: &Reference, digest: &str) -> Result<String, String> {
        let is_known_by_name = async || {
            let pinned = format!("{}@{digest}", reference.repository());
            self.engine.image(&pinned).await.is_ok()
        };
        if !reference.name.is_empty() && is_known_by_name().await {
            return Ok(reference.pinned(digest));
        }
        // An image that never was in a registry has no digest there: its id is all there is, and pins it as well.
        if self.engine.image(digest).await.is_ok() {
            return Ok(digest.to_owned());
        }
        if reference.name.is_empty() {
            return Err(format!("this engine has no image with the id {digest}"));
        }
        let pinned = format!("{}@{digest}", reference.repository());
        let auth = self.credentials.header(reference.registry()).await;
        match self.engine.registry_digest(&pinned, auth.as_deref()).await {
            Ok(_) => Ok(reference.pinned(digest)),
            Err(error) => Err(format!("{} says: {}", reference.registry(), error.words())),
        }
    }

    /// The digest of a tag on this engine; `None` if it does not have it.
    pub(super) async fn local_digest(
        &self,
        image: &str,
    ) -> Result<Option<String>, OrchestratorError> {
        let Some(reference) = Reference::parse(image) else {
            return Ok(None);
        };
        match self.engine.image(image).await {
            Ok(local) => {
                let (digest, pinned) = of_local(&reference, &local);
                self.remember(digest, pinned).await.map(Some)
            }
            Err(EngineError::NotFound(_)) => Ok(None),
            Err(error) => Err(self.engine.error(&format!("the image {image}"), error)),
        }
    }

    async fn remember(&self, digest: String, pinned: String) -> Result<String, OrchestratorError> {
        let images = self.images.clone();
        off_runtime(move || {
            images.resolved(&digest, &pinned)?;
            Ok(digest)
        })
        .await
    }
}

/// Digest and reference of an image that this engine has: those of its registry if it came from there.
fn of_local(reference: &Reference, local: &Image) -> (String, String) {
    let known = local.repo_digests.iter().flatten().find_map(|known| {
        let (repository, digest) = known.split_once('@')?;
        (repository == reference.repository()).then(|| digest.to_owned())
    });
    match known {
        Some(digest) => {
            let pinned = reference.pinned(&digest);
            (digest, pinned)
        }
        None => (local.id.clone(), local.id.clone()),
    }
}
