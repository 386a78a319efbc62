//! Our own ready check, as every orchestrator asks it: whether a task answers its `ready.path` with 2xx.

use rollout::Duration;

/// The time an answer may take. A task that needs longer to say that it is ready is not.
const TIMEOUT: Duration = Duration::from_secs(1);

/// What it is asked with: a new connection each time, as the proxy's first request would open. A task that serves its old
/// connections and takes no new ones is not ready. No proxy of the environment stands in between.
pub(super) fn client() -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .pool_max_idle_per_host(0)
        .timeout(TIMEOUT)
        .build()
}
