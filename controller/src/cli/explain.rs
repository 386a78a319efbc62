//! `friday explain`: why a rollout is where it is. Each verdict of the event log on a line, the last one as a table.

use clap::Args;
use rollout::Verdict;
use rollout::judge::{Decision, Margin, Missing, Percentile, Watched};

use super::output::{Context, Format, plain, table};
use super::{Refusal, name};
use crate::api::types::{EventView, RolloutView};
use crate::client::Client;
use crate::story::{self, Entry};
use crate::words::{self, odds, percent};

/// Entries of the event log in one answer.
const PAGE: u32 = 1000;

/// Pages that are read: a verdict each second for a day would be 86.
const PAGES_MAX: usize = 100;

/// Explains a rollout.
#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// A service, for its newest rollout, or a rollout
    #[arg(value_parser = name)]
    name: String,
    /// Every verdict as a table, not only the last
    #[arg(long)]
    full: bool,
}

pub(super) async fn explain(
    args: ExplainArgs,
    context: &Context,
    client: &Client,
) -> anyhow::Result<u8> {
    let view = client.rollout(&args.name).await?;
    let events = all_events(client, &view.id).await?;
    match context.format {
        Format::Json => {
            let told = |event: &&EventView| matches!(entry(event), Entry::Verdict(_));
            let verdicts: Vec<_> = events.iter().filter(told).collect();
            context.say(&serde_json::to_string_pretty(&verdicts)?)?;
        }
        Format::Text => context.say(&text(&view, &events, args.full))?,
    }
    Ok(0)
}

/// The whole event log of a rollout.
pub(super) async fn all_events(client: &Client, id: &str) -> anyhow::Result<Vec<EventView>> {
    let mut events: Vec<EventView> = Vec::new();
    for _ in 0..PAGES_MAX {
        let after = events.last().map_or(0, |event| event.seq);
        let page = client.events(id, after, PAGE).await?;
        let is_last = page.len() < PAGE as usize;
        anyhow::ensure!(
            page.iter().all(|event| event.seq > after),
            Refusal(format!(
                "the controller at {} repeats its events; is it of another version?",
                client.url()
            ))
        );
        events.extend(page);
        if is_last {
            break;
        }
    }
    Ok(events)
}

fn entry(event: &EventView) -> Entry {
    story::entry(&event.kind, &event.author, &event.data)
}

/// The whole story.
fn text(view: &RolloutView, events: &[EventView], full: bool) -> String {
    let (stable, canary) = (
        plain(&view.stable.release.image),
        plain(&view.canary.release.image),
    );
    let mut lines = vec![
        format!("{}: {canary} (canary) against {stable} (stable)", view.id),
        String::new(),
    ];
    let mut last = None;
    for event in events {
        let time = event.at.strftime("%H:%M:%SZ");
        match entry(event) {
            Entry::Verdict(verdict) => {
                lines.push(format!("{time}  {}", line(&verdict, view)));
                if full {
                    lines.extend(
                        details(&verdict, view)
                            .lines()
                            .map(|line| format!("    {line}")),
                    );
                }
                last = Some(verdict);
            }
            Entry::Line(line) => lines.push(format!("{time}  {}", plain(&line))),
            Entry::Nothing => {}
        }
    }
    lines.push(String::new());
    match last {
        Some(verdict) if !full => {
            lines.push(format!("The last verdict:\n{}", details(&verdict, view)))
        }
        Some(_) => {}
        None => lines.push("Nothing was judged: no block of requests had closed.".to_owned()),
    }
    lines.push(format!("\nNow: {}", plain(&view.message)));
    // Names of nodes and reasons come from elsewhere, and have a say in single lines.
    lines
        .join("\n")
        .split('\n')
        .map(plain)
        .collect::<Vec<_>>()
        .join("\n")
}

/// The step that was judged; after the last comes the bake.
fn place(verdict: &Verdict, view: &RolloutView) -> String {
    let kind = view.steps.get(verdict.step).map(|step| step.kind.as_str());
    let step = match kind {
        Some(kind @ ("bake" | "warm")) => kind.to_owned(),
        Some(_) | None => format!("step {}", verdict.step + 1),
    };
    format!("{step} at {}", verdict.weight)
}

/// A verdict on one line.
fn line(verdict: &Verdict, view: &RolloutView) -> String {
    let (canary, stable) = (&verdict.in_step.canary, &verdict.in_step.stable);
    if verdict.watched.is_some() {
        return format!(
            "{}: failed {}/{} on the canary; {}",
            place(verdict, view),
            canary.bad,
            canary.requests,
            words::verdict(verdict),
        );
    }
    format!(
        "{}: failed {}/{} on the canary, {}/{} on stable; harm {}, rolled back at {}; {}",
        place(verdict, view),
        canary.bad,
        canary.requests,
        stable.bad,
        stable.requests,
        odds(verdict.evidence.total),
        odds(verdict.rollback_at),
        words::verdict(verdict),
    )
}

/// A verdict with its numbers: each signal on both sides, the evidence against its bound, and what is missing.
fn details(verdict: &Verdict, view: &RolloutView) -> String {
    if let Some(watched) = &verdict.watched {
        return watch_details(verdict, watched, view);
    }
    let (canary, stable) = (&verdict.in_step.canary, &verdict.in_step.stable);
    let share = |part: u64, all: u64| {
        #[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
        let ratio = part as f64 / all.max(1) as f64;
        if all == 0 {
            "-".to_owned()
        } else {
            percent(ratio)
        }
    };
    let count = |part: u64, all: u64| format!("{} ({part} of {all})", share(part, all));
    let evidence = &verdict.evidence;
    let mut rows = vec![[
        "errors".to_owned(),
        count(canary.bad, canary.requests),
        count(stable.bad, stable.requests),
        odds(evidence.errors),
    ]];
    for percentile in Percentile::ALL {
        let index = percentile as usize;
        let name = match verdict.thresholds_us[index] {
            Some(us) => format!(
                "slower than {} of {:.1} ms",
                words::percentile_name(percentile),
                us / 1000.0
            ),
            None => format!(
                "slower than {}, not known yet",
                words::percentile_name(percentile)
            ),
        };
        rows.push([
            name,
            count(canary.slow[index], canary.timed),
            count(stable.slow[index], stable.timed),
            odds(evidence.latency[index]),
        ]);
    }
    rows.push([
        "saturation".to_owned(),
        String::new(),
        String::new(),
        odds(evidence.saturation),
    ]);
    rows.push([
        "warm-up".to_owned(),
        format!("{} left out", verdict.canary_cold),
        String::new(),
        odds(evidence.warm_up),
    ]);
    rows.push([
        "tasks that came later".to_owned(),
        String::new(),
        String::new(),
        odds(evidence.late_nodes),
    ]);
    rows.push([
        "together".to_owned(),
        String::new(),
        String::new(),
        odds(evidence.total),
    ]);
    if !verdict.kinds.is_empty() || verdict.checks.iter().any(|check| check.bound.compares()) {
        rows.insert(
            rows.len() - 3,
            [
                "checks, answers".to_owned(),
                String::new(),
                String::new(),
                odds(evidence.checks),
            ],
        );
    }
    let table = table(["SIGNAL", "CANARY", "STABLE", "EVIDENCE OF HARM"], &rows);

    let mut lines = vec![
        format!(
            "{}, {} with requests: {}",
            place(verdict, view),
            words::rounded(verdict.step_elapsed),
            words::verdict(verdict)
        ),
        table,
        format!("Rolled back at {}.", odds(verdict.rollback_at)),
    ];
    lines.extend(verdict.checks.iter().map(words::check));
    lines.extend(verdict.kinds.iter().map(words::kind));
    if let Some(bound) = verdict.bound {
        lines.push(format!("Excess errors proven below {}.", percent(bound)));
    }
    if !verdict.proofs.is_empty() || matches!(verdict.decision, Decision::Inconclusive { .. }) {
        lines.push("To advance:".to_owned());
    }
    for proof in &verdict.proofs {
        let mark = if proof.is_done() { "✔" } else { "◌" };
        let (have, needed) = (odds(proof.log_e), odds(proof.needed));
        lines.push(format!(
            "  {mark} proof that {}: {have} of {needed}",
            words::margin(&proof.margin)
        ));
    }
    if let Decision::Inconclusive { missing } = &verdict.decision {
        let is_listed =
            |margin: &Margin| verdict.proofs.iter().any(|proof| proof.margin == *margin);
        for missing in missing {
            if let Missing::Proof { margin } = missing
                && is_listed(margin)
            {
                continue;
            }
            lines.push(format!("  ◌ {}", words::missing(missing)));
        }
    }
    lines.join("\n")
}

/// The same of a canary that has every request.
fn watch_details(verdict: &Verdict, watched: &Watched, view: &RolloutView) -> String {
    let canary = &verdict.in_step.canary;
    let count = |part: u64, all: u64| {
        if all == 0 {
            return "-".to_owned();
        }
        #[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
        let ratio = part as f64 / all as f64;
        format!("{} ({part} of {all})", percent(ratio))
    };
    let before = watched
        .errors_before
        .map_or_else(|| "not known".to_owned(), percent);
    let mut rows = vec![[
        "errors".to_owned(),
        count(canary.bad, canary.requests),
        format!(
            "at most {} (stable at worst {before})",
            percent(watched.errors_allowed)
        ),
        odds(watched.errors),
    ]];
    for (percentile, tail) in Percentile::ALL.into_iter().zip(["50%", "10%", "1%"]) {
        let index = percentile as usize;
        let name = words::percentile_name(percentile);
        rows.push([
            match verdict.thresholds_us[index] {
                Some(us) => format!("slower than twice {name}, {:.1} ms", 2.0 * us / 1000.0),
                None => format!("slower than twice {name}, not known"),
            },
            count(canary.slow[index], canary.timed),
            format!("at most {tail}"),
            odds(watched.latency[index]),
        ]);
    }
    rows.push([
        "tasks that came later".to_owned(),
        format!("{} left out", verdict.canary_cold),
        String::new(),
        odds(watched.cold),
    ]);
    rows.push([
        "together".to_owned(),
        String::new(),
        String::new(),
        odds(watched.total),
    ]);
    let mut lines = vec![
        format!(
            "{}, {} with requests: {}",
            place(verdict, view),
            words::rounded(verdict.step_elapsed),
            words::verdict(verdict)
        ),
        table(
            [
                "SIGNAL",
                "CANARY",
                "STABLE'S LAST HOUR ALLOWS",
                "EVIDENCE OF HARM",
            ],
            &rows,
        ),
        format!(
            "Rolled back at {}. Stable gets no requests, so this is no comparison at the same time: what changes in the world \
             meanwhile speaks against the canary.",
            odds(watched.rollback_at)
        ),
    ];
    lines.extend(verdict.checks.iter().map(words::check));
    lines.extend(verdict.kinds.iter().map(words::kind));
    lines.join("\n")
}

#[cfg(test)]
mod tests;
