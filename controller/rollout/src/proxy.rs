//! How the proxy passes a service's requests on.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::serial::millis;
use crate::{Duration, Weight};

/// What `friday.yml` says under `proxy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ProxySpec {
    /// The share of stable's requests that are also sent to the canary, whose answers to them nobody gets.
    pub mirror: Weight,
    /// The version of HTTP that tasks are spoken to in.
    pub protocol: TaskProtocol,
    /// How tasks prove who they are; without it they are spoken to in the clear.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TaskTls>,
    /// Longest wait for a connection to a task.
    #[serde(rename = "connect_ms", with = "millis")]
    #[schemars(with = "u64")]
    pub connect: Duration,
    /// Longest wait for the head of an answer.
    #[serde(rename = "answer_ms", with = "millis")]
    #[schemars(with = "u64")]
    pub answer: Duration,
}

impl Default for ProxySpec {
    /// As the proxy has it where nobody says otherwise.
    fn default() -> Self {
        Self {
            mirror: Weight::ZERO,
            protocol: TaskProtocol::default(),
            tls: None,
            connect: Duration::from_secs(1),
            answer: Duration::from_secs(10),
        }
    }
}

/// The version of HTTP that tasks are spoken to in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TaskProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 from the first byte, as gRPC servers expect it.
    H2,
}

/// How tasks prove who they are, and how the proxy does. The files are the proxy's, in PEM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TaskTls {
    /// The name that a task's certificate must be for.
    pub server_name: String,
    /// The certificates of those who may sign it.
    pub ca_file: String,
    /// The proxy's own certificate, for tasks that ask for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_file: Option<String>,
    /// Its private key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<String>,
}
