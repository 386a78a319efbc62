//! What a waiting job leaves behind (`--report DIR`): the decision with its evidence, for people and for the next jobs.
//!
//! Four files, also when the release failed, was refused or was never heard of again: `friday.json`, all of it;
//! `junit.xml`, a test case for each signal, which GitLab shows in the merge request; `metrics.txt`, OpenMetrics; and
//! `friday.env`, variables for the jobs that follow.

mod junit;
mod metrics;

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use rollout::{Duration, Ending, Phase, Timestamp, Verdict};
use serde::{Deserialize as _, Serialize};

use super::exit_code;
use super::explain::all_events;
use super::output::{Context, plain};
use crate::api::types::{DeployRequest, EventView, RolloutView};
use crate::client::Client;
use crate::origin::Origin;
use crate::replay::JudgedEntry;

/// Longest time to ask for what is to be written. The job waits for it, and may have been told to stop.
const ASK_MAX: Duration = Duration::from_secs(10);

/// Longest value of a variable. GitLab takes 5 KiB for the whole file.
const VALUE_CHARS_MAX: usize = 400;

/// Kinds of entries of the event log that say what was decided, without the requests it was decided on: these are
/// megabytes, and `friday replay` reads them from the controller.
const DECISIONS: [&str; 7] = [
    "started", "skipped", "phase", "weight", "order", "refused", "proxy",
];

/// Where a record of the release is left.
#[derive(Debug, Clone, Args)]
pub(super) struct ReportArgs {
    /// Folder to leave the decision in, also of a release that fails: friday.json, junit.xml, metrics.txt, friday.env
    #[arg(
        long,
        env = "FRIDAY_REPORT",
        hide_env_values = true,
        value_parser = super::path(),
        value_name = "DIR"
    )]
    report: Option<PathBuf>,
}

impl ReportArgs {
    /// The folder, if one is wanted: an empty variable is one that is not set.
    pub(super) fn folder(self) -> Option<PathBuf> {
        self.report.filter(|path| !path.as_os_str().is_empty())
    }
}

/// The decision, with what it rests on.
#[derive(Debug, Serialize)]
pub(super) struct Record {
    /// The version of this document.
    format: u32,
    /// When it was written.
    written: Timestamp,
    /// `promoted`, `rolled_back`, `aborted`, `superseded`, `insufficient_evidence`, `not_ready`, `refused`,
    /// `unreachable`, `running` or `error`.
    outcome: &'static str,
    /// The exit code of the command.
    exit_code: u8,
    /// One sentence for people.
    message: String,
    service: String,
    environment: String,
    /// As it was asked for.
    image: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<Origin>,
    /// The rollout as it was last seen; absent where none was started.
    rollout: Option<RolloutView>,
    /// The last verdict that compared both releases, for tables: what is judged while every request is on the canary has
    /// nothing beside it.
    #[serde(skip)]
    compared: Option<Verdict>,
    /// What was decided, in order.
    events: Vec<EventView>,
    /// The last entry of the event log that was seen, by which `friday audit verify` finds this place again.
    log: Option<LogMark>,
    /// Why the rollout or its log is not in here, if it could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
}

/// A place in the event log.
#[derive(Debug, Serialize)]
struct LogMark {
    seq: i64,
    hash: String,
}

/// What was asked for: known before anything was answered.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub(super) service: &'a str,
    pub(super) request: &'a DeployRequest,
    /// The rollout that it became.
    pub(super) id: Option<&'a str>,
}

/// Writes the record of a command that has ended so. What cannot be written is said, and changes nothing of how it ended.
pub(super) async fn leave(
    folder: &Path,
    asked: &Asked<'_>,
    ended: &anyhow::Result<u8>,
    context: &Context,
    client: &Client,
) {
    let (view, events, trouble) = match asked.id {
        Some(id) => look(id, client).await,
        None => (None, Vec::new(), None),
    };
    let record = Record::new(asked, ended, context.clock.now(), view, events, trouble);
    if let Err(error) = record.write(folder) {
        let shown = folder.display();
        // There is nowhere left to say it.
        drop(context.note(&format!("friday: no report in {shown}: {error:#}")));
    }
}

/// The rollout and its log, as far as they can be had in time.
async fn look(id: &str, client: &Client) -> (Option<RolloutView>, Vec<EventView>, Option<String>) {
    let view = tokio::time::timeout(ASK_MAX, client.rollout(id)).await;
    let (view, trouble) = match view {
        Ok(Ok(view)) => (Some(view), None),
        Ok(Err(error)) => (None, Some(format!("{:#}", anyhow::Error::new(error)))),
        Err(_) => (None, Some(format!("no answer within {ASK_MAX:?}"))),
    };
    if trouble.is_some() {
        return (view, Vec::new(), trouble);
    }
    match tokio::time::timeout(ASK_MAX, all_events(client, id)).await {
        Ok(Ok(events)) => (view, events, None),
        Ok(Err(error)) => (view, Vec::new(), Some(format!("{error:#}"))),
        Err(_) => (view, Vec::new(), Some(format!("no log within {ASK_MAX:?}"))),
    }
}

impl Record {
    fn new(
        asked: &Asked<'_>,
        ended: &anyhow::Result<u8>,
        now: Timestamp,
        rollout: Option<RolloutView>,
        events: Vec<EventView>,
        trouble: Option<String>,
    ) -> Self {
        let code = ended.as_ref().map_or_else(exit_code, |code| *code);
        let message = match (&rollout, ended) {
            // Why it was not waited for to the end is more than where it is.
            (Some(view), Ok(_)) => view.message.clone(),
            (None, Ok(_)) => String::new(),
            (_, Err(error)) => format!("{error:#}"),
        };
        let log = events.last().map(|event| LogMark {
            seq: event.seq,
            hash: event.hash.clone(),
        });
        let compared =
            compared(&events).or_else(|| rollout.as_ref().and_then(|view| view.verdict.clone()));
        let request = asked.request;
        Self {
            format: 1,
            written: now,
            outcome: outcome(rollout.as_ref(), code),
            exit_code: code,
            message: plain(&message),
            service: asked.service.to_owned(),
            environment: request
                .environment
                .clone()
                .unwrap_or_else(|| "default".to_owned()),
            image: request.image.clone(),
            commit: request.commit.clone(),
            origin: request.origin.clone(),
            rollout,
            compared,
            events: events
                .into_iter()
                .filter(|event| DECISIONS.contains(&event.kind.as_str()))
                .collect(),
            log,
            trouble,
        }
    }

    fn write(&self, folder: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(folder)?;
        let files = [
            ("friday.json", serde_json::to_string_pretty(self)?),
            ("junit.xml", junit::text(self)),
            ("metrics.txt", metrics::text(self)),
            ("friday.env", self.variables()),
        ];
        for (name, text) in files {
            fs::write(folder.join(name), text)?;
        }
        Ok(())
    }

    /// Variables for the jobs that follow. None of them is one that a command of ours reads: GitLab ranks them above a
    /// job's own, so that `FRIDAY_ENVIRONMENT` of this release would be that of the next one too.
    fn variables(&self) -> String {
        let rollout = self.rollout.as_ref();
        let release = rollout.map(|view| &view.canary.release);
        let text = |text: Option<String>| text.unwrap_or_default();
        let all = [
            ("FRIDAY_OUTCOME", self.outcome.to_owned()),
            ("FRIDAY_EXIT_CODE", self.exit_code.to_string()),
            ("FRIDAY_ROLLOUT", text(rollout.map(|view| view.id.clone()))),
            ("FRIDAY_RELEASE", text(release.map(|it| it.id.to_string()))),
            (
                "FRIDAY_RELEASE_DIGEST",
                text(release.map(|it| it.digest.clone())),
            ),
            ("FRIDAY_RELEASE_IMAGE", self.image.clone()),
            ("FRIDAY_RELEASE_SERVICE", self.service.clone()),
            ("FRIDAY_RELEASE_ENVIRONMENT", self.environment.clone()),
            (
                "FRIDAY_STABLE_RELEASE",
                text(rollout.map(|view| view.stable.release.id.to_string())),
            ),
        ];
        let line = |(name, value): &(&str, String)| {
            let value: String = plain(value).chars().take(VALUE_CHARS_MAX).collect();
            format!("{name}={value}\n")
        };
        all.iter().map(line).collect()
    }

    /// How long the release took, in seconds.
    fn seconds(&self) -> f64 {
        self.rollout
            .as_ref()
            .map_or(0.0, |view| view.elapsed_seconds)
    }
}

/// The last verdict of a log that compared both releases.
fn compared(events: &[EventView]) -> Option<Verdict> {
    let verdict = |event: &EventView| {
        let judged = JudgedEntry::deserialize(&event.data);
        let judged = judged.ok().filter(|_| event.kind == "verdict")?;
        judged.verdict.watched.is_none().then_some(judged.verdict)
    };
    events.iter().rev().find_map(verdict)
}

/// How it ended, in the words of the contract.
fn outcome(rollout: Option<&RolloutView>, code: u8) -> &'static str {
    let ending = rollout.and_then(|view| match &view.phase {
        // Decided, and only the way back is not over.
        Phase::RollingBack { cause, .. } => Some(cause.ending()),
        Phase::Deploying { .. }
        | Phase::Analyzing { .. }
        | Phase::Gated { .. }
        | Phase::Baking { .. }
        | Phase::Warm { .. }
        | Phase::Paused { .. }
        | Phase::Promoting { .. }
        | Phase::Promoted
        | Phase::RolledBack { .. } => view.ending,
    });
    match (ending, code) {
        (Some(Ending::Promoted), _) => "promoted",
        (Some(Ending::RolledBack), _) => "rolled_back",
        (Some(Ending::Aborted), _) => "aborted",
        (Some(Ending::Superseded), _) => "superseded",
        (Some(Ending::InsufficientEvidence), _) => "insufficient_evidence",
        (Some(Ending::NotReady), _) => "not_ready",
        (None, 14) => "not_ready",
        (None, 20) => "refused",
        (None, 30) => "unreachable",
        (None, _) if rollout.is_some() => "running",
        (None, _) => "error",
    }
}

#[cfg(test)]
mod tests;
