//! Ending what a killed controller left behind.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use nix::sys::signal::Signal;
use rollout::Duration;
use tokio::time::{self, Instant};

use super::identity::{self, Identity};
use super::record::Records;
use super::supervisor::blocking;
use crate::orchestrator::OrchestratorError;

/// From SIGTERM to SIGKILL. Nobody routes requests any more, so nothing needs longer.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// How long the kernel may take to end what was sent SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// How often it is looked whether they have ended.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A process that was ended because its controller was gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// The task it belonged to.
    pub task: String,
    /// Its process id.
    pub pid: u32,
}

/// Ends every process that a controller with this state directory started and left: those whose saved pid and start
/// time still match, and those that bear the mark of the directory in their environment. No other process is touched.
/// What is wanted stays saved: a controller that is started again starts the tasks again.
///
/// # Errors
/// A controller still runs on this directory, or the directory cannot be used. A saved file that cannot be read is no
/// error: then the marks must do.
pub async fn end_leftovers(state_dir: &Path) -> Result<Vec<Leftover>, OrchestratorError> {
    if !state_dir.exists() {
        return Ok(Vec::new());
    }
    let records = Arc::new(Records::open(state_dir)?);
    let Some(_lock) = records.try_lock()? else {
        return Err(OrchestratorError::Refused {
            what: format!(
                "ending what was left by the controller of {}",
                state_dir.display()
            ),
            reason: "that controller still runs: stop it first".to_owned(),
        });
    };
    let left = blocking(records.clone(), |records| Ok(left(records))).await?;
    signal(&left, Signal::SIGTERM);
    wait_until_gone(&left, STOP_LIMIT).await;
    // Looked for again: what was being started by one of them meanwhile bears the mark too.
    let stubborn = blocking(records, |records| Ok(self::left(records))).await?;
    signal(&stubborn, Signal::SIGKILL);
    wait_until_gone(&stubborn, KILL_LIMIT).await;

    let all: BTreeMap<u32, String> = left
        .into_iter()
        .chain(stubborn)
        .map(|(process, task)| (process.pid, task))
        .collect();
    Ok(all
        .into_iter()
        .map(|(pid, task)| Leftover { task, pid })
        .collect())
}

fn left(records: &Records) -> Vec<(Identity, String)> {
    let mut left: Vec<(Identity, String)> = identity::marked(records.dir())
        .into_iter()
        .map(|marked| (marked.process, marked.task))
        .collect();
    let boot = identity::boot().unwrap_or_default();
    let saved = records.services().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read who was started; going by the marks");
        Vec::new()
    });
    for record in saved.into_iter().filter(|record| record.boot == boot) {
        for task in record.tasks() {
            if let Some(process) = task.process
                && process.is_alive()
                && !left.iter().any(|(other, _)| *other == process)
            {
                left.push((process, task.id.clone()));
            }
        }
    }
    left
}

fn signal(left: &[(Identity, String)], signal: Signal) {
    for (process, task) in left {
        let sent = process.signal(signal);
        tracing::info!(
            task,
            pid = process.pid,
            signal = signal.as_str(),
            sent,
            "ending a leftover"
        );
    }
}

async fn wait_until_gone(left: &[(Identity, String)], limit: Duration) {
    let deadline = Instant::now() + limit;
    while left.iter().any(|(process, _)| process.is_alive()) && Instant::now() < deadline {
        time::sleep(LOOK_EVERY).await;
    }
}
