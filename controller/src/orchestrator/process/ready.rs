//! Our own ready check: whether a task answers `GET http://127.0.0.1:PORT/ready` with 2xx.

use rollout::Duration;

/// The time an answer may take. A task that needs longer to say that it is ready is not.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Asks tasks whether they may get requests.
#[derive(Debug, Clone)]
pub(super) struct ReadyCheck {
    client: reqwest::Client,
}

impl ReadyCheck {
    /// A check that opens a new connection each time, as the proxy's first request would: a task that serves its old
    /// connections and takes no new ones is not ready. No proxy of the environment stands in between.
    pub(super) fn new() -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(0)
            .timeout(TIMEOUT)
            .build()?;
        Ok(Self { client })
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
