//! `friday replay` and `friday whatif`: the past, judged again.

use std::path::PathBuf;

use clap::Args;

use super::explain::all_events;
use super::output::Context;
use super::rollouts::read_text;
use super::{Refusal, Wrong, name};
use crate::client::Client;
use crate::replay::{Entry, Replay, WhatIf};
use crate::spec::{self, ReadOptions};
use crate::words;

/// Differing verdicts that are shown; the JSON has all.
const SHOWN_MAX: usize = 10;

/// Derives verdicts again.
#[derive(Debug, Args)]
pub(super) struct ReplayArgs {
    /// A service, for its newest rollout, or a rollout
    #[arg(value_parser = name)]
    name: String,
}

/// Judges by other rules.
#[derive(Debug, Args)]
pub(super) struct WhatIfArgs {
    /// A service, for its newest rollout, or a rollout
    #[arg(value_parser = name)]
    name: String,
    /// The friday.yml whose guard is tried
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
}

async fn entries(client: &Client, name: &str) -> anyhow::Result<(String, Vec<Entry>)> {
    let view = client.rollout(name).await?;
    let events = all_events(client, &view.id).await?;
    let entry = |event: crate::api::types::EventView| Entry {
        seq: event.seq,
        at: event.at,
        kind: event.kind,
        data: event.data,
    };
    Ok((view.id, events.into_iter().map(entry).collect()))
}

/// Exit code 0 if every verdict comes out again, 1 if not.
pub(super) async fn replay(
    args: ReplayArgs,
    context: &Context,
    client: &Client,
) -> anyhow::Result<u8> {
    let (id, entries) = entries(client, &args.name).await?;
    let replay = crate::replay::replay(&entries)?;
    context.show(&replay, |replay| replay_text(&id, replay))?;
    Ok(u8::from(!replay.differences.is_empty()))
}

fn replay_text(id: &str, replay: &Replay) -> String {
    let Replay {
        verdicts,
        differences,
        rules_then,
        rules_now,
    } = replay;
    if *verdicts == 0 {
        return format!(
            "{id}: its log has no verdict: it ended, or stands, before anything could be judged"
        );
    }
    let mut lines = Vec::new();
    if differences.is_empty() {
        lines.push(format!(
            "{id}: all {verdicts} verdicts come out again, bit for bit"
        ));
    } else {
        lines.push(format!(
            "{id}: {} of {verdicts} verdicts come out differently",
            differences.len()
        ));
    }
    if rules_then.iter().any(|rules| rules != rules_now) {
        let then: Vec<String> = rules_then.iter().map(ToString::to_string).collect();
        lines.push(format!(
            "the rules have changed since: version {} then, {rules_now} now",
            then.join(", ")
        ));
    }
    for difference in differences.iter().take(SHOWN_MAX) {
        let time = difference.at.strftime("%H:%M:%SZ");
        lines.push(format!("{time}  event {}", difference.seq));
        lines.push(format!("    then  {}", words::verdict(&difference.logged)));
        lines.push(format!("    now   {}", words::verdict(&difference.now)));
    }
    if differences.len() > SHOWN_MAX {
        lines.push(format!(
            "… and {} more; `-o json` has all of them",
            differences.len() - SHOWN_MAX
        ));
    }
    lines.join("\n")
}

pub(super) async fn what_if(
    args: WhatIfArgs,
    context: &Context,
    client: &Client,
) -> anyhow::Result<u8> {
    let options = ReadOptions {
        plan: None,
        environment: None,
    };
    let spec = spec::read(
        &read_text(&args.file)?,
        &args.file.display().to_string(),
        &options,
    )
    .map_err(Wrong)?;
    let (id, entries) = entries(client, &args.name).await?;
    let outcome = crate::replay::what_if(&entries, &spec.guard)?;
    if outcome.blocks == 0 {
        return Err(Refusal(format!(
            "{id} has no verdict in its log: there is nothing to judge again"
        ))
        .into());
    }
    context.show(&outcome, |outcome| what_if_text(&id, outcome))?;
    Ok(0)
}

fn what_if_text(id: &str, outcome: &WhatIf) -> String {
    let time = |at: Option<rollout::Timestamp>| {
        at.map_or("-".to_owned(), |at| at.strftime("%H:%M:%SZ").to_string())
    };
    let mut lines = vec![format!(
        "{id}: {} blocks, routed as they were, judged by the other guard",
        outcome.blocks
    )];
    lines.push(match (&outcome.fails, outcome.failed) {
        (Some((at, verdict)), None) => {
            format!(
                "rolled back at {}, where it was not: {}",
                time(Some(*at)),
                words::verdict(verdict)
            )
        }
        (Some((at, verdict)), Some(was)) => {
            format!(
                "rolled back at {} instead of {}: {}",
                time(Some(*at)),
                time(Some(was)),
                words::verdict(verdict)
            )
        }
        (None, Some(was)) => format!(
            "not rolled back within the log; it was, at {}",
            time(Some(was))
        ),
        (None, None) => "not rolled back, as it was not".to_owned(),
    });
    for gate in &outcome.gates {
        let (then, was) = (time(gate.then), time(gate.was));
        lines.push(format!(
            "stage {}: gate open at {then}; it was at {was}",
            gate.step + 1
        ));
    }
    lines.join("\n")
}
