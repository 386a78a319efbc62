//! What the engine says of services, tasks, nodes and images, as far as it is read.

use serde::Deserialize;
use serde_json::Value;

/// A service as the engine has it. The spec stays as it was written.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Service {
    #[serde(rename = "ID")]
    pub(super) id: String,
    pub(super) version: Version,
    pub(super) spec: Value,
    #[serde(default)]
    pub(super) update_status: Option<UpdateStatus>,
}

impl Service {
    /// One that is not there any more, as it was last seen.
    pub(super) fn removed(spec: Value) -> Self {
        Self {
            id: String::new(),
            version: Version { index: 0 },
            spec,
            update_status: None,
        }
    }

    /// Whether it is not there any more.
    pub(super) fn is_removed(&self) -> bool {
        self.id.is_empty()
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Version {
    pub(super) index: u64,
}

/// How far the engine is with an update.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct UpdateStatus {
    pub(super) state: String,
    pub(super) message: String,
}

/// A task as the engine has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Task {
    #[serde(rename = "ID")]
    pub(super) id: String,
    #[serde(rename = "ServiceID")]
    pub(super) service: String,
    #[serde(rename = "NodeID", default)]
    pub(super) node: String,
    #[serde(default)]
    pub(super) spec: TaskSpec,
    #[serde(default)]
    pub(super) status: TaskStatus,
    #[serde(default)]
    pub(super) desired_state: String,
    #[serde(default)]
    pub(super) networks_attachments: Option<Vec<Attachment>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct TaskSpec {
    pub(super) container_spec: ContainerSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct ContainerSpec {
    pub(super) image: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct TaskStatus {
    pub(super) timestamp: Option<rollout::Timestamp>,
    pub(super) state: String,
    pub(super) err: String,
}

/// A task's place in one network.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Attachment {
    pub(super) network: Network,
    pub(super) addresses: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Network {
    pub(super) spec: NetworkSpec,
    pub(super) driver_state: Option<Driver>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct NetworkSpec {
    pub(super) name: String,
    pub(super) ingress: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Driver {
    pub(super) name: String,
}

/// An image that the engine has.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Image {
    pub(super) id: String,
    #[serde(default)]
    pub(super) repo_digests: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Node {
    #[serde(rename = "ID")]
    pub(super) id: String,
    pub(super) description: NodeDescription,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct NodeDescription {
    pub(super) hostname: String,
}
