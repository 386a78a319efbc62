//! The words of messages: notes and tickets in GitLab's Markdown, lines for chats. Facts in, text out.
//!
//! Names and reasons come from people and pipelines. In Markdown they could ping everybody, close issues by a quick action,
//! or break the table; so each is made plain first.

use reqwest::Url;
use rollout::judge::ArmCounts;
use rollout::{Ending, Phase};

use super::announce::Audience;
use crate::store::Saved;
use crate::words;

/// Longest description of a commit status, in characters. GitLab keeps 255.
const LINE_CHARS_MAX: usize = 250;

/// Longest piece of text from outside in a message, in characters.
const PIECE_CHARS_MAX: usize = 500;

/// A hidden comment by which what is about this rollout is found again. A rollout's number begins anew with a new store, its
/// beginning does not come twice.
pub(super) fn marker(saved: &Saved) -> String {
    let rollout = &saved.rollout;
    let environment = bare(&rollout.environment);
    format!(
        "<!-- friday:rollout={} environment={environment} since={} -->",
        rollout.id, rollout.created
    )
}

/// What is a name anywhere of a text from outside.
fn bare(text: &str) -> String {
    text.chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '/'))
        .take(PIECE_CHARS_MAX)
        .collect()
}

/// Text from outside for Markdown: one line, no markup, no mention, no quick action.
pub(super) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars().take(PIECE_CHARS_MAX) {
        match c {
            // After an invisible joiner it names nobody.
            '@' => plain.push_str("@\u{2060}"),
            '<' => plain.push_str("&lt;"),
            '>' => plain.push_str("&gt;"),
            '&' => plain.push_str("&amp;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '(' | ')' | '|' | '~' | '#' | '!' | '$' => {
                plain.push('\\');
                plain.push(c);
            }
            // A `/` that begins a line is an order to GitLab; there is one line, and it begins with our words.
            c if c.is_control() => plain.push(' '),
            c => plain.push(c),
        }
    }
    plain
}

/// Text from outside as code.
fn code(text: &str) -> String {
    let is_kept = |c: &char| !c.is_control() && !matches!(c, '`' | '|');
    let kept: String = text.chars().filter(is_kept).take(PIECE_CHARS_MAX).collect();
    if kept.trim().is_empty() {
        "–".to_owned()
    } else {
        format!("`{kept}`")
    }
}

/// Where the rollout is, in a word or two.
fn state(saved: &Saved) -> String {
    let rollout = &saved.rollout;
    match (rollout.ending(), &rollout.phase) {
        (Some(ending), _) => words::ending(ending).to_owned(),
        (None, Phase::Gated { .. }) => "waits for approval".to_owned(),
        (None, Phase::RollingBack { .. }) => "is rolled back".to_owned(),
        (None, Phase::Analyzing { .. }) => format!("on trial with {}", rollout.desired().weight),
        (None, phase) => phase.name().replace('_', " "),
    }
}

/// The state in a line, for a commit status.
pub(super) fn line(saved: &Saved) -> String {
    let message = words::message(&saved.rollout, saved.verdict.as_ref());
    let line = format!("{}: {message}", state(saved));
    line.chars().take(LINE_CHARS_MAX).collect()
}

fn sign(saved: &Saved) -> &'static str {
    match saved.rollout.ending() {
        None => ":hourglass:",
        Some(Ending::Promoted) => ":white_check_mark:",
        Some(Ending::RolledBack | Ending::NotReady) => ":rewind:",
        Some(Ending::Aborted | Ending::Superseded | Ending::InsufficientEvidence) => {
            ":no_entry_sign:"
        }
    }
}

/// The note about a rollout in its merge request.
pub(super) fn note(audience: &Audience, saved: &Saved) -> String {
    let rollout = &saved.rollout;
    format!(
        "{}\n**Friday** {} {} to {}: **{}**\n\n{}",
        marker(saved),
        sign(saved),
        code(rollout.id.as_str()),
        code(&rollout.environment),
        plain(&state(saved)),
        evidence(audience, saved),
    )
}

/// A ticket's title.
pub(super) fn title(saved: &Saved) -> String {
    let rollout = &saved.rollout;
    // A title too mentions people and other tickets, and knows no markup that would keep it from that.
    let environment = bare(&rollout.environment);
    format!("Release {} to {environment}", rollout.id)
}

/// The ticket of change management.
pub(super) fn ticket(audience: &Audience, saved: &Saved) -> String {
    let rollout = &saved.rollout;
    let mut text = format!(
        "{}\nChange: {} in {} from {} to {}, asked for by {} at {}.\n\n",
        marker(saved),
        code(rollout.service.as_str()),
        code(&rollout.environment),
        code(&rollout.stable.image),
        code(&rollout.canary.image),
        code(&rollout.author),
        rollout.created,
    );
    if let Some(origin) = &saved.origin {
        let job = origin.job_url.as_deref().map_or_else(
            || code(&origin.job_id.to_string()),
            |url| format!("[{}]({})", origin.job_id, link(url)),
        );
        text.push_str(&format!(
            "Job {job} of pipeline {}, started by {}.\n\n",
            origin.pipeline_id,
            code(&origin.user_login)
        ));
    }
    text.push_str(&evidence(audience, saved));
    text
}

/// A URL that cannot end the link it is in, whoever wrote it: read anew, so that blanks and line breaks are gone from it.
fn link(url: &str) -> String {
    let Ok(url) = Url::parse(url) else {
        return String::new();
    };
    url.as_str()
        .replace('(', "%28")
        .replace(')', "%29")
        .replace('|', "%7C")
}

/// What the decision rests on: a sentence, a table, and where to read on.
pub(super) fn evidence(audience: &Audience, saved: &Saved) -> String {
    let rollout = &saved.rollout;
    let mut text = format!(
        "Says the judge: {}\n\n| | canary | stable |\n|---|---|---|\n",
        plain(&words::message(rollout, saved.verdict.as_ref()))
    );
    let mut row = |name: &str, canary: String, stable: String| {
        text.push_str(&format!("| {name} | {canary} | {stable} |\n"));
    };
    row(
        "image",
        code(&rollout.canary.image),
        code(&rollout.stable.image),
    );
    row(
        "digest",
        code(rollout.canary.id.as_str()),
        code(rollout.stable.id.as_str()),
    );
    let commit = |commit: &Option<String>| code(commit.as_deref().unwrap_or_default());
    row(
        "commit",
        commit(&rollout.canary.commit),
        commit(&rollout.stable.commit),
    );
    if let Some(verdict) = &saved.verdict {
        let (canary, stable) = (&verdict.in_step.canary, &verdict.in_step.stable);
        row(
            "requests in this step",
            canary.requests.to_string(),
            stable.requests.to_string(),
        );
        row(
            "failed",
            share(canary.bad, canary.requests),
            share(stable.bad, stable.requests),
        );
        row("slow at p99", slow(canary), slow(stable));
        text.push_str(&format!(
            "\nEvidence of harm is {}; the release goes back at {}.\n",
            words::odds(verdict.evidence.total),
            words::odds(verdict.rollback_at)
        ));
    }
    let admission = &rollout.admission;
    if !admission.approved_by.is_empty() {
        let names: Vec<String> = admission.approved_by.iter().map(|who| code(who)).collect();
        text.push_str(&format!("\nApproved by {}.\n", names.join(", ")));
    }
    if let Some(emergency) = &admission.emergency {
        text.push_str(&format!(
            "\nPast every freeze by the word of {}: {}\n",
            code(&emergency.by),
            plain(&emergency.reason)
        ));
    }
    text.push_str(&format!(
        "\nThe canary gets {} of the requests; started by {}.",
        rollout.desired().weight,
        code(&rollout.author)
    ));
    if let Some(url) = audience.link(saved) {
        text.push_str(&format!(" [Board]({})", link(&url)));
    }
    if let Some(url) = audience.picture(saved) {
        text.push_str(&format!(" [Picture]({})", link(&url)));
    }
    text.push('\n');
    text
}

fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "–".to_owned();
    }
    // Counts of requests are far below 2^53.
    let ratio = part as f64 / whole as f64;
    format!("{part} ({})", words::percent(ratio))
}

fn slow(arm: &ArmCounts) -> String {
    share(arm.slow[2], arm.timed)
}

/// A line for a chat, for the moves that people wait for: the start, a gate, the way back, and the end.
pub(super) fn chat(audience: &Audience, before: Option<&Saved>, after: &Saved) -> Option<String> {
    let rollout = &after.rollout;
    let turned_back = matches!(rollout.phase, Phase::RollingBack { .. })
        && !before.is_some_and(|before| matches!(before.rollout.phase, Phase::RollingBack { .. }));
    let is_told = before.is_none()
        || turned_back
        || rollout.phase.is_ended()
        || matches!(rollout.phase, Phase::Gated { .. });
    if !is_told {
        return None;
    }
    // Slack's three special characters (docs.slack.dev, "Formatting message text").
    let escape = |text: &str| {
        let short: String = text.chars().take(PIECE_CHARS_MAX).collect();
        let short = short.replace('&', "&amp;").replace('<', "&lt;");
        short.replace('>', "&gt;")
    };
    let mut text = format!(
        "*{}* to {}: {}",
        rollout.id,
        escape(&rollout.environment),
        escape(&line(after))
    );
    if let Some(url) = audience.link(after) {
        text.push_str(&format!(" (<{}|board>)", link(&url)));
    }
    Some(text)
}
