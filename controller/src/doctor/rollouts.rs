//! What each open rollout waits for, since when, and who can end the wait.

use std::collections::BTreeSet;

use rollout::Phase;

use super::{Facts, Finding, Level, seconds};
use crate::api::types::{CheckState, RolloutView};
use crate::words::rounded;

pub(super) fn rollouts(facts: &Facts<'_>) -> Vec<Finding> {
    if facts.rollouts.is_empty() {
        return vec![Finding::ok("rollouts", "none is running")];
    }
    let mut found = Vec::new();
    // The oldest of a service runs, the others wait for it.
    let mut running: BTreeSet<&str> = BTreeSet::new();
    for view in facts.rollouts {
        if running.insert(&view.service) {
            found.push(rollout(facts, view));
            found.extend(checks(view));
        } else {
            let first = facts
                .rollouts
                .iter()
                .find(|other| other.service == view.service);
            let first = first.map_or("", |first| first.id.as_str());
            found.push(Finding::of(
                Level::Ok,
                format!("rollout {}", view.id),
                format!("waits for {first}, which goes back to stable for it"),
                format!("nothing; friday get {first} -w shows how far that is"),
            ));
        }
    }
    found
}

fn rollout(facts: &Facts<'_>, view: &RolloutView) -> Finding {
    let id = &view.id;
    // By the controller's own clock, in which `moved` was written.
    let since = facts.health.now.duration_since(view.moved).as_secs_f64();
    let since = rounded(seconds(since.max(0.0)));
    let what = format!(
        "{} ({}, last moved {since} ago)",
        view.message, view.service
    );
    let about = format!("rollout {id}");
    let are_proxies_apart = view.weight.seen_percent.is_none();
    let is_about_it = |service: &Option<String>| match service {
        Some(service) => *service == view.service,
        None => true,
    };
    let incidents = &facts.health.incidents;
    let is_held = incidents
        .iter()
        .any(|incident| is_about_it(&incident.service));
    let (level, mend) = match &view.phase {
        Phase::Paused { .. } if is_held => (
            Level::Warn,
            format!("see the line on the incident; friday abort {id} goes back now"),
        ),
        Phase::Paused { .. } => (
            Level::Warn,
            format!("a person paused it: friday resume {id}, or friday abort {id}"),
        ),
        Phase::Gated { .. } => (
            Level::Warn,
            format!("a person decides: friday approve {id}, or friday reject {id}"),
        ),
        Phase::Deploying { .. } if view.canary.trouble.is_some() => (
            Level::Fail,
            format!(
                "mend the release and deploy again, or friday abort {id}; deadlines.ready ends it else"
            ),
        ),
        Phase::Deploying { .. } => (
            Level::Ok,
            "nothing: its tasks start; deadlines.ready ends the wait".to_owned(),
        ),
        Phase::Promoting { .. }
        | Phase::RollingBack { .. }
        | Phase::Analyzing { .. }
        | Phase::Baking { .. }
        | Phase::Warm { .. }
            if are_proxies_apart =>
        {
            (
                Level::Fail,
                "let proxies report, and apply one table: see the lines on proxies".to_owned(),
            )
        }
        Phase::Analyzing { .. } | Phase::Baking { .. } => {
            let canary = view.canary.signals.requests_per_second;
            if canary > 0.0 {
                (
                    Level::Ok,
                    format!(
                        "nothing: evidence grows with requests; friday explain {id} says how far it is"
                    ),
                )
            } else {
                (
                    Level::Warn,
                    format!(
                        "the canary got no request lately: is there traffic, and does it come by the proxy? friday explain {id} says more"
                    ),
                )
            }
        }
        Phase::Warm { .. } => (
            Level::Ok,
            format!("nothing; friday abort {id} still goes back at once"),
        ),
        Phase::Promoting { .. } | Phase::RollingBack { .. } => (
            Level::Ok,
            format!("nothing; friday get {id} -w shows how it goes on"),
        ),
        Phase::Promoted | Phase::RolledBack { .. } => (Level::Ok, "nothing: it ended".to_owned()),
    };
    Finding::of(level, about, what, mend)
}

/// Checks of the guard that say nothing, or speak against it.
fn checks(view: &RolloutView) -> Vec<Finding> {
    let judged = view.verdict.is_some();
    let checks = view.checks.iter().filter(|_| judged);
    let finding = |check: &crate::api::types::CheckView| {
        let about = format!("check {:?} of {}", check.name, view.id);
        match check.state {
            CheckState::Kept => None,
            CheckState::Beyond => Some(Finding::of(
                Level::Warn,
                about,
                check.message.clone(),
                "nothing: three times in a row rolls back",
            )),
            CheckState::NoData => Some(Finding::of(
                Level::Warn,
                about,
                format!("{}; no gate opens without it", check.message),
                "friday lint --prometheus URL friday.yml tries the query; does the canary export the metric, with the release in its labels?",
            )),
        }
    };
    checks.filter_map(finding).collect()
}
