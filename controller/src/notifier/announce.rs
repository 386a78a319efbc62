//! Who is told what when a rollout moves. Pure: a rollout before and after make messages.

use rollout::{Cause, Ending, GitlabNotice, Phase};
use serde_json::{Value, json};

use super::letter::{Letter, What};
use super::text;
use crate::store::{NewMessage, Saved};
use crate::words;

/// The environment whose promotions make a release.
const PRODUCTION: &str = "production";

/// Whom messages can reach, and where they point: what the controller was started with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Audience {
    /// Whether there is a GitLab.
    pub has_gitlab: bool,
    /// Whether there is a project token for it. Without one, only what a job's own token may do is told.
    pub has_token: bool,
    /// Where people find the board, without a slash at the end.
    pub board: Option<String>,
}

impl Audience {
    /// Where people read on about a rollout.
    pub(super) fn link(&self, saved: &Saved) -> Option<String> {
        let board = self.board.as_deref()?;
        let rollout = &saved.rollout;
        Some(format!("{board}/#{}/{}", rollout.service, rollout.id))
    }

    /// A picture of the rollout as it is when it is looked at.
    pub(super) fn picture(&self, saved: &Saved) -> Option<String> {
        let board = self.board.as_deref()?;
        let id = &saved.rollout.id;
        Some(format!("{board}/api/v1/rollouts/{id}/card.svg"))
    }
}

/// What is to be told of the way from `before`, or from nothing, to `after`.
#[must_use]
pub fn announce(audience: &Audience, before: Option<&Saved>, after: &Saved) -> Vec<NewMessage> {
    let rollout = &after.rollout;
    let notify = &rollout.spec.notify;
    let has_moved =
        before.is_none_or(|before| before.rollout.phase.at_start() != rollout.phase.at_start());
    if notify.is_nothing() || !has_moved {
        return Vec::new();
    }
    let mut messages = Vec::new();
    if audience.has_gitlab {
        messages.extend(to_gitlab(audience, after));
    }
    let mut tell = |topic: String, what: What| {
        let letter = Letter { origin: None, what };
        messages.push(letter.about(&rollout.id, topic));
    };
    if let Some(alert) = &notify.alert
        && let Some((topic, payload)) = alert_payload(audience, after, before)
    {
        let what = What::Alert {
            url_file: alert.url_file.clone(),
            key_file: alert.key_file.clone(),
            payload,
        };
        tell(topic.to_owned(), what);
    }
    if let Some(file) = &notify.slack_url_file
        && let Some(text) = text::chat(audience, before, after)
    {
        let what = What::Slack {
            url_file: file.clone(),
            text,
        };
        tell(place(&rollout.phase), what);
    }
    if let Some(webhook) = &notify.webhook {
        let what = What::Webhook {
            url: webhook.url.clone(),
            secret_file: webhook.secret_file.clone(),
            payload: hook_payload(audience, before, after),
        };
        tell(place(&rollout.phase), what);
    }
    messages
}

/// The phase as a topic: a move to each place is told by itself.
fn place(phase: &Phase) -> String {
    match phase {
        Phase::Analyzing { step, .. } | Phase::Gated { step, .. } => {
            format!("{}-{}", phase.name(), step + 1)
        }
        Phase::Deploying { .. }
        | Phase::Baking { .. }
        | Phase::Warm { .. }
        | Phase::Paused { .. }
        | Phase::Promoting { .. }
        | Phase::RollingBack { .. }
        | Phase::Promoted
        | Phase::RolledBack { .. } => phase.name().to_owned(),
    }
}

fn to_gitlab(audience: &Audience, after: &Saved) -> Vec<NewMessage> {
    let rollout = &after.rollout;
    let Some(origin) = &after.origin else {
        return Vec::new();
    };
    let mut told = Vec::new();
    for notice in &rollout.spec.notify.gitlab {
        let (topic, what) = match notice {
            GitlabNotice::Status if audience.has_token => (
                "status",
                What::Status {
                    state: state(after).to_owned(),
                    name: format!("friday/{}", rollout.environment),
                    description: text::line(after),
                    target_url: audience.link(after),
                },
            ),
            GitlabNotice::Note if audience.has_token => (
                "note",
                What::Note {
                    marker: text::marker(after),
                    body: text::note(audience, after),
                },
            ),
            GitlabNotice::Deployment => (
                "deployment",
                What::Deployment {
                    environment: rollout.environment.clone(),
                    status: state(after).to_owned(),
                    since: rollout.created,
                },
            ),
            GitlabNotice::Release
                if rollout.phase == Phase::Promoted && rollout.environment == PRODUCTION =>
            {
                let tag = if origin.ref_is_tag {
                    origin.ref_name.clone()
                } else {
                    rollout.id.to_string()
                };
                (
                    "release",
                    What::Release {
                        name: format!("{} {tag}", rollout.service),
                        tag,
                        description: text::evidence(audience, after),
                    },
                )
            }
            GitlabNotice::Ticket if audience.has_token => (
                "ticket",
                What::Ticket {
                    marker: text::marker(after),
                    title: text::title(after),
                    description: text::ticket(audience, after),
                    is_over: rollout.phase.is_ended(),
                },
            ),
            GitlabNotice::Status
            | GitlabNotice::Note
            | GitlabNotice::Release
            | GitlabNotice::Ticket => continue,
        };
        let letter = Letter {
            origin: Some(origin.clone()),
            what,
        };
        told.push(letter.about(&rollout.id, topic));
    }
    told
}

/// In GitLab's words for deployments and commit statuses alike.
fn state(after: &Saved) -> &'static str {
    match after.rollout.ending() {
        None => "running",
        Some(Ending::Promoted) => "success",
        Some(Ending::Superseded) => "canceled",
        Some(
            Ending::RolledBack | Ending::Aborted | Ending::InsufficientEvidence | Ending::NotReady,
        ) => "failed",
    }
}

/// An alert when a release goes back on evidence, and its end when every request is on stable again. Two topics: were both
/// one, nobody would hear of an alert that ended while GitLab was away.
fn alert_payload(
    audience: &Audience,
    after: &Saved,
    before: Option<&Saved>,
) -> Option<(&'static str, Value)> {
    let rollout = &after.rollout;
    let went_back = |phase: &Phase| {
        matches!(
            phase,
            Phase::RollingBack {
                cause: Cause::Evidence { .. },
                ..
            } | Phase::RolledBack {
                cause: Cause::Evidence { .. }
            }
        )
    };
    if !went_back(&rollout.phase) {
        return None;
    }
    let title = format!("{} rolled back in {}", rollout.service, rollout.environment);
    let fingerprint = format!("friday:{}:{}", rollout.environment, rollout.id);
    // `critical`, the endpoint's default, would start GitLab's own rollback of what is rolled back already.
    let severity = "high";
    if rollout.phase.is_ended() {
        let payload = json!({
            "title": title, "end_time": rollout.moved, "severity": severity, "fingerprint": fingerprint,
            "gitlab_environment_name": rollout.environment,
        });
        return Some(("alert-end", payload));
    }
    if before.is_some_and(|before| went_back(&before.rollout.phase)) {
        return None;
    }
    let payload = json!({
        "title": title, "description": words::message(rollout, after.verdict.as_ref()),
        "start_time": rollout.moved, "service": rollout.service, "monitoring_tool": "friday",
        "severity": severity, "fingerprint": fingerprint,
        "gitlab_environment_name": rollout.environment,
        "rollout": { "id": rollout.id, "url": audience.link(after) },
    });
    Some(("alert", payload))
}

fn hook_payload(audience: &Audience, before: Option<&Saved>, after: &Saved) -> Value {
    let rollout = &after.rollout;
    json!({
        "type": "rollout.moved",
        "timestamp": rollout.moved,
        "data": {
            "rollout": rollout.id,
            "service": rollout.service,
            "environment": rollout.environment,
            "author": rollout.author,
            "from": before.map(|before| before.rollout.phase.name()),
            "phase": rollout.phase.name(),
            "ending": rollout.ending(),
            "message": words::message(rollout, after.verdict.as_ref()),
            "stable": rollout.stable,
            "canary": rollout.canary,
            "weight_percent": rollout.desired().weight.ratio() * 100.0,
            "requests": after.verdict.as_ref().map(|verdict| json!({
                "canary": verdict.in_step.canary.requests, "canary_failed": verdict.in_step.canary.bad,
                "stable": verdict.in_step.stable.requests, "stable_failed": verdict.in_step.stable.bad,
            })),
            "origin": after.origin,
            "url": audience.link(after),
        },
    })
}

#[cfg(test)]
mod tests;
