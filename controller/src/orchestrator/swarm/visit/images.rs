//! Who has an image, and what it brings along.

use serde_json::Value;

use super::super::engine::EngineError;
use super::super::image::Reference;
use super::{Visit, VisitError};

/// Who has an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// Its registry, or the only node there is.
    Found,
    /// This engine, of so many nodes; the registry's words.
    HereAlone {
        /// Nodes that take tasks.
        nodes: usize,
        /// Why the others cannot get it.
        words: String,
    },
    /// Nobody; the registry's words.
    Nobody {
        /// Its words, or why it could not be asked.
        words: String,
        /// What this engine has of that name.
        here: Vec<String>,
    },
}

impl Visit {
    /// What an image brings along, its `Config`; `None` where this engine does not have it.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn image_config(&self, image: &str) -> Result<Option<Value>, VisitError> {
        let Some(reference) = Reference::parse(image) else {
            return Ok(None);
        };
        for name in names(&reference) {
            match self
                .engine
                .get::<Value>(&format!("images/{name}/json"), &[])
                .await
            {
                Ok(mut image) => return Ok(Some(image["Config"].take())),
                Err(EngineError::NotFound(_)) => {}
                Err(error) => return Err(self.failed(&format!("the image {image}"), error)),
            }
        }
        Ok(None)
    }

    /// Who has an image: what a task's node needs when it starts.
    ///
    /// # Errors
    /// The engine does not answer. A registry that does not is nobody who has it.
    pub async fn holder(&self, image: &str) -> Result<Holder, VisitError> {
        let Some(reference) = Reference::parse(image) else {
            return Ok(Holder::Nobody {
                words: "that is no image: expected REGISTRY/NAME:TAG or NAME@sha256:DIGEST"
                    .to_owned(),
                here: Vec::new(),
            });
        };
        let mut is_here = false;
        for name in names(&reference) {
            match self.engine.image(&name).await {
                Ok(_) => is_here = true,
                Err(EngineError::NotFound(_)) => {}
                Err(error) => return Err(self.failed(&format!("the image {image}"), error)),
            }
        }
        // A worker cannot say how many there are; then it is not alone.
        let nodes = match self.nodes().await {
            Ok(nodes) => nodes
                .iter()
                .filter(|node| node.availability != "drain" && node.state != "down")
                .count(),
            Err(VisitError::Refused { .. } | VisitError::Unreachable { .. }) => usize::MAX,
            Err(error) => return Err(error),
        };
        if is_here && nodes <= 1 {
            return Ok(Holder::Found);
        }
        let words = if reference.name.is_empty() {
            "it is an id, which no registry knows".to_owned()
        } else {
            let auth = self.credentials.header(reference.registry()).await;
            let asked = match &reference.digest {
                Some(digest) => format!("{}@{digest}", reference.repository()),
                None => reference.name.clone(),
            };
            match self.engine.registry_digest(&asked, auth.as_deref()).await {
                Ok(_) => return Ok(Holder::Found),
                Err(error) => format!("{} says: {}", reference.registry(), error.words()),
            }
        };
        if is_here {
            return Ok(Holder::HereAlone { nodes, words });
        }
        let here = if reference.name.is_empty() {
            Vec::new()
        } else {
            // Advice alone: without it the answer is the same.
            self.engine
                .tags(reference.repository())
                .await
                .unwrap_or_default()
        };
        Ok(Holder::Nobody { words, here })
    }
}

/// What an engine may know an image by.
fn names(reference: &Reference) -> Vec<String> {
    match &reference.digest {
        // By its registry's digest, or, where it never was in one, by its id.
        Some(digest) if !reference.name.is_empty() => {
            vec![
                format!("{}@{digest}", reference.repository()),
                digest.clone(),
            ]
        }
        Some(digest) => vec![digest.clone()],
        None => vec![reference.name.clone()],
    }
}
