//! What is released: a service that users call, and the immutable versions of it.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The name of what users call: the Swarm service's name. Letters, digits, `-`, `_` and `.`, at most 63.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct ServiceName(String);

/// Why a text is no service name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a service name: expected 1 to 63 letters, digits, '-', '_' or '.', beginning with a letter or digit"
)]
pub struct ServiceNameError(pub String);

impl ServiceName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ServiceName {
    type Error = ServiceNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let begins = text
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric());
        if begins && text.len() <= 63 && text.bytes().all(allowed) {
            Ok(Self(text))
        } else {
            Err(ServiceNameError(text))
        }
    }
}

impl std::str::FromStr for ServiceName {
    type Err = ServiceNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::try_from(text.to_owned())
    }
}

impl From<ServiceName> for String {
    fn from(name: ServiceName) -> Self {
        name.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The identity of a release: the first twelve hexadecimal digits of its image's digest. Two tags with one digest are
/// one release; one tag that moved is two.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct ReleaseId(String);

impl ReleaseId {
    /// How many digits of the digest it keeps: 48 bits, as git and docker show them.
    pub const DIGITS: usize = 12;

    /// The id of the image with this digest, with or without `sha256:` before it.
    #[must_use]
    pub fn of_digest(digest: &str) -> Self {
        let digits = digest.rsplit(':').next().unwrap_or(digest);
        Self(digits.chars().take(Self::DIGITS).collect())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ReleaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One immutable version of a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Release {
    /// Its identity.
    pub id: ReleaseId,
    /// The image as its author wrote it, for people: `registry/worker:v2`.
    pub image: String,
    /// The digest the image had when the release was made: `sha256:…`. What runs is this, whatever the tag says later.
    pub digest: String,
    /// The commit it was built from, if its author said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
}

impl Release {
    /// The release of `image` as it was at `digest`.
    #[must_use]
    pub fn new(
        image: impl Into<String>,
        digest: impl Into<String>,
        commit: Option<String>,
    ) -> Self {
        let digest = digest.into();
        Self {
            id: ReleaseId::of_digest(&digest),
            image: image.into(),
            digest,
            commit,
        }
    }
}

/// The name of one rollout: `SERVICE-NUMBER`, numbered from 1 by service.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct RolloutId(String);

impl RolloutId {
    /// The `number`th rollout of `service`.
    #[must_use]
    pub fn new(service: &ServiceName, number: u64) -> Self {
        Self(format!("{service}-{number}"))
    }

    /// An id that came from outside, by its text; whether there is such a rollout is another question.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RolloutId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_releases_apart_by_digest_and_not_by_tag() {
        let first = Release::new("worker:latest", "sha256:0123456789abcdef0123", None);
        let moved = Release::new("worker:latest", "sha256:fedcba9876543210fedc", None);
        assert_eq!(first.id.as_str(), "0123456789ab");
        assert_ne!(first.id, moved.id);
    }

    #[test]
    fn refuses_names_that_swarm_would_refuse() {
        for text in ["", "-a", "a b", "a/b", "ä", &"a".repeat(64)] {
            assert!(text.parse::<ServiceName>().is_err(), "{text}");
        }
        assert!("tweets-worker_1.x".parse::<ServiceName>().is_ok());
    }
}
