//! `friday agent`: one on each node. Says what the node and the swarm's tasks on it use, to Prometheus and to the
//! controller, whose judge holds the canary's saturation against stable's with it.
//!
//! Only a node's own engine tells what its containers use: a manager knows the tasks of all, and the stats of none but its
//! own. So a sample is taken here, about once a second, and only the newest one matters: it replaces the one before in
//! `/metrics`, and what could not be sent is never sent later. Neither an engine nor a controller that is away ends the
//! agent. The report says that the engine is away, and what its tasks use is unknown then, never zero.
//!
//! Read on in this order: `sampler`, `stats` (pure), `host`, `telemetry`.

mod host;
mod sampler;
mod stats;
mod telemetry;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use rollout::Duration;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::api::types::agents::AgentReport;
use crate::app::{EngineArgs, announce, bind, terminated};
use crate::cli::Usage;
use crate::client::Client;
use crate::clock::SystemClock;
use crate::orchestrator::swarm::engine::Engine;
use sampler::Sampler;

/// Between two samples. A leak of 8 MiB/s fills a limit of 256 MiB in half a minute; a sample costs the engine 3 ms a task.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// Longest wait for the controller to take a report; the next one is due by then.
const REPORT_MAX: Duration = Duration::from_secs(3);

/// Pause after the first report in vain; doubled with each, up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// Longest pause: a controller that is back knows of every node again within this time.
const PAUSE_MAX: Duration = Duration::from_secs(8);

/// Longest name of a node, in bytes: it stands in URLs and labels.
const NAME_BYTES_MAX: usize = 64;

/// Longest wait for whoever reads `/metrics` when the agent stops.
const STOP_MAX: Duration = Duration::from_secs(2);

/// Says what a node and its tasks use.
#[derive(Debug, Clone, clap::Args)]
pub struct AgentArgs {
    /// The engine of this node
    #[command(flatten)]
    engine: EngineArgs,
    /// Report to this controller, such as https://controller:7070; without it there is /metrics alone
    #[arg(
        long,
        env = "FRIDAY_CONTROLLER",
        hide_env_values = true,
        value_name = "URL"
    )]
    controller: Option<String>,
    /// Where /metrics, /ready and /live are served: ADDRESS:PORT, port 0 for a free one
    #[arg(long, default_value = "127.0.0.1:7071", value_name = "ADDR")]
    listen: SocketAddr,
    /// Lets --listen be an address that other machines reach; there is no sign-in
    #[arg(long)]
    listen_anywhere: bool,
    /// The node's name, as `docker node ls` shows it; the engine is asked where it is not given
    #[arg(long, value_parser = name)]
    name: Option<String>,
    /// Write the address that was taken to this file, as JSON
    #[arg(long, value_name = "FILE")]
    addresses_file: Option<PathBuf>,
}

impl AgentArgs {
    /// The controller's address, if there is one. An empty variable is one that is not set.
    pub(crate) fn controller(&self) -> Option<&str> {
        self.controller.as_deref().filter(|url| !url.is_empty())
    }
}

fn name(text: &str) -> Result<String, String> {
    let fits = !text.is_empty() && text.len() <= NAME_BYTES_MAX && as_name(text) == text;
    fits.then(|| text.to_owned())
        .ok_or_else(|| "expected 1 to 64 letters, digits, dots, hyphens or underscores".to_owned())
}

/// A host's name as it may stand in a URL.
fn as_name(host: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_');
    let letters = host.chars().map(|it| if plain(it) { it } else { '-' });
    letters.take(NAME_BYTES_MAX).collect()
}

/// What the agent knows, for whoever asks it.
#[derive(Debug, Clone)]
struct Known {
    newest: watch::Receiver<Option<Arc<AgentReport>>>,
    /// Whether the controller took the last report; `None` without a controller.
    reporting: Option<watch::Receiver<bool>>,
}

/// Runs the agent until SIGTERM or Ctrl-C. `controller` is where its reports go.
///
/// # Errors
/// It could not start. The message says what to do.
pub(crate) async fn run(args: AgentArgs, controller: Option<Client>) -> anyhow::Result<()> {
    if !args.listen.ip().is_loopback() && !args.listen_anywhere {
        return Err(Usage(format!(
            "--listen {}: everyone who reaches it can read what runs here, and it has no sign-in; expected a loopback address, or --listen-anywhere",
            args.listen
        ))
        .into());
    }
    let address = args.engine.address()?;
    let engine = tokio::task::spawn_blocking(move || Engine::new(address))
        .await
        .context("a thread that reads certificates panicked")??;
    let listener = bind(args.listen).await?;
    let address = announce(&listener, args.addresses_file.as_deref())?;
    tracing::info!(%address, "the agent listens: metrics at http://{address}/metrics");

    let stop = CancellationToken::new();
    let (newest, seen) = watch::channel(None);
    let (taken, reporting) = watch::channel(false);
    let sampler = Sampler::new(engine, args.name, SystemClock::new());
    let mut sampling = tokio::spawn(sample(sampler, newest, stop.clone()));
    let known = Known {
        newest: seen.clone(),
        reporting: controller.is_some().then_some(reporting),
    };
    let reporting = tokio::spawn(report(controller, seen, taken, stop.clone()));
    let graceful = stop.clone();
    let server = axum::serve(listener, router(known))
        .with_graceful_shutdown(async move { graceful.cancelled().await });
    let mut serving = tokio::spawn(async move { server.await });
    let outcome = tokio::select! {
        ended = terminated() => ended.context("cannot wait for signals"),
        ended = &mut sampling => match ended {
            Ok(()) => Err(anyhow::anyhow!("the sampler ended by itself")),
            Err(error) => Err(anyhow::Error::new(error).context("the sampler panicked")),
        },
        ended = &mut serving => match ended {
            Ok(ended) => ended.context("the server failed"),
            Err(error) => Err(anyhow::Error::new(error).context("the server panicked")),
        },
    };
    stop.cancel();
    let abort = serving.abort_handle();
    if timeout(STOP_MAX, async {
        drop((sampling.await, reporting.await, serving.await))
    })
    .await
    .is_err()
    {
        abort.abort();
    }
    outcome
}

/// Takes samples until `stop`.
async fn sample(
    mut sampler: Sampler,
    newest: watch::Sender<Option<Arc<AgentReport>>>,
    stop: CancellationToken,
) {
    let mut due = interval(SAMPLE_EVERY);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut health = Health::new("the engine answers again");
    while stop.run_until_cancelled(due.tick()).await.is_some() {
        let Some(report) = stop.run_until_cancelled(sampler.sample()).await else {
            return;
        };
        if let Some(words) = health.note(report.trouble.as_deref()) {
            tracing::warn!(error = words, "cannot see what the tasks use; tried again");
        }
        if report.tasks_left_out > 0 {
            tracing::debug!(
                left_out = report.tasks_left_out,
                "more tasks than one report holds"
            );
        }
        newest.send_replace(Some(Arc::new(report)));
    }
}

/// Sends the newest sample whenever there is one, until `stop`; after one in vain it pauses, and then sends the newest.
async fn report(
    controller: Option<Client>,
    mut newest: watch::Receiver<Option<Arc<AgentReport>>>,
    taken: watch::Sender<bool>,
    stop: CancellationToken,
) {
    let Some(controller) = controller else { return };
    let mut health = Health::new("the controller takes reports again");
    let mut pause = PAUSE_MIN;
    while let Some(Ok(())) = stop.run_until_cancelled(newest.changed()).await {
        let report = newest.borrow_and_update().clone();
        // Without a name there is nowhere to send it: the engine has not answered yet.
        let Some(report) = report.filter(|report| !report.node.is_empty()) else {
            continue;
        };
        let send = timeout(REPORT_MAX, controller.report_agent(&report));
        let Some(sent) = stop.run_until_cancelled(send).await else {
            return;
        };
        let trouble = match sent {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{:#}", anyhow::Error::new(error))),
            Err(_) => Some(format!("no answer within {REPORT_MAX:?}")),
        };
        taken.send_replace(trouble.is_none());
        if let Some(words) = health.note(trouble.as_deref()) {
            tracing::warn!(error = words, "the controller takes no report; tried again");
        }
        if trouble.is_none() {
            pause = PAUSE_MIN;
            continue;
        }
        // Jitter keeps the agents of a hundred nodes from coming back in step.
        let wait = pause.mul_f64(rand::random_range(0.5..=1.0));
        pause = (pause * 2).min(PAUSE_MAX);
        if stop.run_until_cancelled(sleep(wait)).await.is_none() {
            return;
        }
    }
}

/// Tells when something stops working and when it works again, not each time in between.
struct Health {
    well: &'static str,
    failing: Option<String>,
}

impl Health {
    fn new(well: &'static str) -> Self {
        Self {
            well,
            failing: None,
        }
    }

    /// The words to be logged, if they are new.
    fn note<'a>(&mut self, trouble: Option<&'a str>) -> Option<&'a str> {
        let Some(words) = trouble else {
            if self.failing.take().is_some() {
                tracing::info!("{}", self.well);
            }
            return None;
        };
        if self.failing.as_deref() == Some(words) {
            return None;
        }
        self.failing = Some(words.to_owned());
        Some(words)
    }
}

fn router(known: Known) -> Router {
    Router::new()
        .route("/live", get(async || "live\n"))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(known)
}

/// Whether the engine answered the last time. The controller may be away: there is `/metrics` all the same.
async fn ready(State(known): State<Known>) -> (StatusCode, String) {
    let newest = known.newest.borrow().clone();
    let trouble = match &newest {
        None => Some("no sample was taken yet"),
        Some(report) => report.trouble.as_deref(),
    };
    match trouble {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(words) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {words}\n"),
        ),
    }
}

async fn metrics(State(known): State<Known>) -> Response {
    let newest = known.newest.borrow().clone();
    let is_reporting = known.reporting.as_ref().map(|taken| *taken.borrow());
    match telemetry::render(newest.as_deref(), is_reporting) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_fits_into_a_url_whatever_the_host_is_called() {
        assert_eq!(name("node-1.example_a"), Ok("node-1.example_a".to_owned()));
        for wrong in ["", "a/b", "a b", &"x".repeat(65)] {
            assert!(name(wrong).is_err(), "{wrong}");
        }
        assert_eq!(as_name("a b/ä"), "a-b--");
    }

    #[test]
    fn trouble_is_said_once_and_again_when_it_changes() {
        let mut health = Health::new("well");
        assert_eq!(health.note(None), None);
        assert_eq!(health.note(Some("a")), Some("a"));
        assert_eq!(health.note(Some("a")), None);
        assert_eq!(health.note(Some("b")), Some("b"));
        assert_eq!(health.note(None), None);
        assert_eq!(health.note(Some("b")), Some("b"));
    }
}
