//! What a delivery hints at. Fields that nobody here reads may be anything.

use serde::Deserialize;

/// What something happened to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// Commits came to a branch or a tag, or it went.
    Push {
        /// The project's number.
        project_id: u64,
    },
    /// A pipeline is in this state now, or was when the hook was sent.
    Pipeline {
        /// The project's number.
        project_id: u64,
        /// The pipeline's number.
        pipeline_id: u64,
        /// `running`, `canceled`, …
        status: String,
    },
    /// Something that nothing here acts on.
    Other,
}

impl Hint {
    /// Whether it says that a pipeline was cancelled, or is being.
    #[must_use]
    pub fn is_cancelled(status: &str) -> bool {
        matches!(status, "canceled" | "canceling")
    }
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    object_kind: String,
    #[serde(default)]
    project_id: Option<u64>,
    #[serde(default)]
    project: Option<RawProject>,
    #[serde(default)]
    object_attributes: Option<RawAttributes>,
}

#[derive(Deserialize)]
struct RawProject {
    #[serde(default)]
    id: Option<u64>,
}

#[derive(Deserialize)]
struct RawAttributes {
    #[serde(default)]
    id: Option<u64>,
    #[serde(default)]
    status: Option<String>,
}

/// What the body of a delivery hints at; it was verified before.
///
/// # Errors
/// It is no JSON object, or a field that is read has another type. The words hold nothing of the body.
pub fn hint(body: &[u8]) -> Result<Hint, String> {
    let raw: Raw = serde_json::from_slice(body)
        .map_err(|error| format!("line {}, column {}", error.line(), error.column()))?;
    let project = raw
        .project
        .and_then(|project| project.id)
        .or(raw.project_id);
    let hint = match (raw.object_kind.as_str(), project, raw.object_attributes) {
        ("push" | "tag_push", Some(project_id), _) => Hint::Push { project_id },
        (
            "pipeline",
            Some(project_id),
            Some(RawAttributes {
                id: Some(pipeline_id),
                status: Some(status),
            }),
        ) => Hint::Pipeline {
            project_id,
            pipeline_id,
            status,
        },
        _ => Hint::Other,
    };
    Ok(hint)
}
