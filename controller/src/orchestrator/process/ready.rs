//! Our own ready check: whether a task answers `GET http://127.0.0.1:PORT/ready` with 2xx.

use crate::orchestrator::ready::client;

/// Asks tasks whether they may get requests.
#[derive(Debug, Clone)]
pub(super) struct ReadyCheck {
    client: reqwest::Client,
}

impl ReadyCheck {
    /// A check that has asked nobody yet.
    pub(super) fn new() -> Result<Self, reqwest::Error> {
        client().map(|client| Self { client })
    }

    /// Whether the task on this port says that it is ready. No answer is a no.
    pub(super) async fn is_ready(&self, port: u16, path: &str) -> bool {
        let answer = self
            .client
            .get(format!("http://127.0.0.1:{port}{path}"))
            .send()
            .await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }
}
