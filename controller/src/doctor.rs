//! What is wrong, what each rollout waits for, and what to do about it. Pure: facts in, findings out.
//!
//! A finding fails where a release cannot go on, or users may be without an answer; it warns where somebody should look. What
//! is well is said in a line too, so that silence is never taken for health.

mod engine;
mod gitlab;
mod outbox;
mod rollouts;

use std::collections::BTreeSet;

use reqwest::Url;
use rollout::Timestamp;
use serde::Serialize;

use crate::agents::AGENT_LIVE;
use crate::api::types::agents::AgentView;
use crate::api::types::alerts::IncidentView;
use crate::api::types::health::HealthView;
use crate::api::types::{ProxyView, RolloutView, ServiceView};
use crate::fleet::PROXY_LIVE;
use crate::words::rounded;

pub use engine::{EngineAnswer, EngineFacts};

/// Clocks may differ by so much: events of both are put in order by people.
const CLOCKS_MAX_SECONDS: i64 = 5;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// All is well.
    Ok,
    /// Somebody should look.
    Warn,
    /// A release cannot go on, or users may be without an answer.
    Fail,
}

impl Level {
    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What it is about: `controller`, `proxy edge-1`, `rollout web-3`.
    pub about: String,
    /// How it is.
    pub what: String,
    /// What to do; `null` where nothing is to be done.
    pub mend: Option<String>,
}

impl Finding {
    pub(crate) fn ok(about: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            about: about.into(),
            what: what.into(),
            mend: None,
        }
    }

    pub(crate) fn of(
        level: Level,
        about: impl Into<String>,
        what: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            level,
            about: about.into(),
            what: what.into(),
            mend: Some(mend.into()),
        }
    }
}

/// What the controller says.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// Its address.
    pub url: &'a str,
    /// The time here when it was asked.
    pub now: Timestamp,
    /// How it is.
    pub health: &'a HealthView,
    /// The services, each with its newest rollout.
    pub services: &'a [ServiceView],
    /// The rollouts that have not ended, oldest first.
    pub rollouts: &'a [RolloutView],
    /// The proxies.
    pub proxies: &'a [ProxyView],
    /// Proxies that were behind for longer than a table takes, by name.
    pub behind: &'a BTreeSet<String>,
    /// The agents.
    pub agents: &'a [AgentView],
    /// What an engine says, if one was asked.
    pub engine: Option<&'a EngineFacts>,
}

/// Everything that was looked at, in the order in which one would: what others depend on first.
#[must_use]
pub fn diagnose(facts: &Facts<'_>) -> Vec<Finding> {
    let mut found = controller(facts);
    if let Some(facts_of_engine) = facts.engine {
        found.extend(engine::engine(facts_of_engine, facts));
    }
    found.extend(services(facts));
    found.extend(proxies(facts));
    found.extend(agents(facts));
    found.extend(metrics(facts));
    found.extend(incidents(facts));
    let late = outbox::outbox(facts.health);
    found.extend(gitlab::gitlab(facts.health, &late));
    found.extend(late);
    found.extend(rollouts::rollouts(facts));
    found
}

fn incidents(facts: &Facts<'_>) -> Vec<Finding> {
    let finding = |incident: &IncidentView| {
        let since = facts
            .health
            .now
            .duration_since(incident.since)
            .as_secs_f64();
        let lasts = rounded(seconds(since.max(0.0)));
        let whose = match &incident.service {
            Some(service) => format!("rollouts of {service}"),
            None => "every rollout".to_owned(),
        };
        Finding::of(
            Level::Warn,
            format!("incident {}", incident.alert),
            format!("{}; for {lasts} it holds {whose}", incident.summary),
            "mend what it is about, or silence it in Alertmanager; friday abort still goes back, and without word of it for 5m it counts as over",
        )
    };
    facts.health.incidents.iter().map(finding).collect()
}

/// Whether a token may travel to this address in the clear: it stays on this machine, or is encrypted.
#[must_use]
pub fn is_private(url: &str) -> bool {
    let Ok(url) = Url::parse(url) else {
        return false;
    };
    let host = url.host_str().unwrap_or_default();
    let is_here = host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse()
            .is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    url.scheme() == "https" || is_here
}

fn controller(facts: &Facts<'_>) -> Vec<Finding> {
    let HealthView {
        version,
        now,
        needs_token,
        store,
        ..
    } = facts.health;
    let mut found = vec![Finding::ok(
        "controller",
        format!("{} answers, version {version}", facts.url),
    )];
    let ours = env!("CARGO_PKG_VERSION");
    if version != ours {
        found.push(Finding::of(
            Level::Warn,
            "controller",
            format!("it has version {version}, this command line {ours}"),
            "use the same of both: what one knows the other may not",
        ));
    }
    if let Some(store) = store {
        let lasts = rounded(seconds(store.seconds));
        found.push(Finding::of(
            Level::Fail,
            "state",
            format!(
                "the last change could not be saved, for {lasts}: {}; only rollbacks go ahead",
                store.words
            ),
            "make room on the disk of --state-dir, or mend what is said there; the controller tries again by itself",
        ));
    }
    let apart = (facts.now.as_second() - now.as_second()).abs();
    if apart > CLOCKS_MAX_SECONDS {
        found.push(Finding::of(
            Level::Warn,
            "clock",
            format!("the controller's is {apart}s away from this machine's: {now} there"),
            "set both by NTP; deadlines do not depend on it, the times in events and queries to Prometheus do",
        ));
    }
    match (needs_token, is_private(facts.url)) {
        (true, true) => found.push(Finding::ok("tokens", "requests need one")),
        (true, false) => found.push(Finding::of(
            Level::Warn,
            "tokens",
            format!("{} is on another machine and not https: the token goes there in the clear", facts.url),
            "use https, or a tunnel, or run this beside the controller",
        )),
        (false, true) => found.push(Finding::ok(
            "tokens",
            "none are needed: everybody on this machine may command releases",
        )),
        (false, false) => found.push(Finding::of(
            Level::Warn,
            "tokens",
            "none are needed, and the controller is on another machine: whoever reaches it commands releases",
            "start it with --tokens FILE (friday token prints its lines)",
        )),
    }
    found
}

fn services(facts: &Facts<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    for sight in &facts.health.services {
        let about = format!("service {}", sight.service);
        if let Some(trouble) = &sight.trouble {
            let known = if sight.is_seen {
                "what was known of them stays in force"
            } else {
                "they were never seen, so nothing of it can be released"
            };
            found.push(Finding::of(
                Level::Fail,
                about,
                format!("its tasks cannot be seen ({trouble}); {known}"),
                "look at the engine: friday doctor --engine URL",
            ));
        } else if !sight.is_seen {
            found.push(Finding::of(
                Level::Warn,
                about,
                "its tasks were not seen yet",
                "ask again in some seconds",
            ));
        }
    }
    for view in facts.services {
        let about = format!("service {}", view.service);
        let stable = &view.stable;
        let id = stable.release.id.as_str();
        let ready = stable
            .tasks
            .iter()
            .filter(|task| task.ready && task.release == id)
            .count();
        let trouble = stable
            .trouble
            .as_ref()
            .map(|trouble| format!("; last trouble: {trouble}"))
            .unwrap_or_default();
        let wanted = stable.replicas;
        let what = format!("{ready} of {wanted} stable tasks are ready{trouble}");
        // While a release is promoted in place, stable's tasks are replaced.
        let is_replaced = view
            .rollout
            .as_ref()
            .is_some_and(|rollout| rollout.ending.is_none() && rollout.phase.name() == "promoting");
        if u32::try_from(ready).unwrap_or(u32::MAX) >= wanted && wanted > 0 || is_replaced {
            found.push(Finding::ok(about, what));
        } else {
            let level = if ready == 0 { Level::Fail } else { Level::Warn };
            found.push(Finding::of(
                level,
                about,
                what,
                "see why a task is not ready: friday get SERVICE, docker service ps SERVICE; the ready check is `ready.path` of friday.yml",
            ));
        }
    }
    if found.is_empty() {
        found.push(Finding::of(
            Level::Warn,
            "services",
            "the controller looks after none",
            "friday deploy -f friday.yml makes one known, friday serve --service friday.yml from the start; friday adopt SERVICE writes that file",
        ));
    }
    found
}

fn proxies(facts: &Facts<'_>) -> Vec<Finding> {
    if facts.proxies.is_empty() {
        return vec![Finding::of(
            Level::Fail,
            "proxies",
            "none has ever reported to this controller: no request can be shared or counted",
            "start friday-proxy with --controller URL, and with --token-file where tokens are needed",
        )];
    }
    let newest = &facts.health.generation;
    let live = PROXY_LIVE.as_secs_f64();
    let is_silent = |proxy: &ProxyView| proxy.silent_seconds >= live;
    let are_all_silent = facts.proxies.iter().all(is_silent);
    let finding = |proxy: &ProxyView| {
        let about = format!("proxy {}", proxy.name);
        let generation = &proxy.generation;
        if is_silent(proxy) {
            let level = if are_all_silent {
                Level::Fail
            } else {
                Level::Warn
            };
            let lasts = rounded(seconds(proxy.silent_seconds));
            return Finding::of(
                level,
                about,
                format!(
                    "silent for {lasts}, last with table {generation}; it serves on by that table if it runs"
                ),
                "start it again, or let it reach the controller (its log says why not); one that was taken away is forgotten when the controller restarts",
            );
        }
        if facts.behind.contains(&proxy.name) {
            return Finding::of(
                Level::Fail,
                about,
                format!("behind: it applies table {generation}, the newest is {newest}"),
                "look at its log: a table may be refused there, or its disk be full (it saves a table before it applies it)",
            );
        }
        let ours = &facts.health.version;
        match &proxy.version {
            Some(version) if version != ours => Finding::of(
                Level::Warn,
                about,
                format!("it has version {version}, the controller {ours}"),
                "start the controller's version: friday-proxy --takeover takes over without losing a request",
            ),
            Some(_) | None => Finding::ok(about, format!("reports, with table {generation}")),
        }
    };
    facts.proxies.iter().map(finding).collect()
}

fn agents(facts: &Facts<'_>) -> Vec<Finding> {
    let mut found: Vec<Finding> = facts.agents.iter().map(agent).collect();
    let tasks = || {
        let tasks = facts.services.iter().flat_map(|view| &view.stable.tasks);
        tasks.filter(|task| task.memory_bytes.is_none())
    };
    let known: BTreeSet<&str> = facts
        .agents
        .iter()
        .map(|agent| agent.report.node.as_str())
        .collect();
    // Of tasks whose use is known without an agent there is nothing to say.
    let blind: BTreeSet<&str> = tasks()
        .map(|task| task.node.as_str())
        .filter(|node| !node.is_empty() && !known.contains(node))
        .collect();
    if !blind.is_empty() {
        let nodes: Vec<&str> = blind.into_iter().collect();
        found.push(Finding::of(
            Level::Warn,
            "agents",
            format!(
                "none on {}: what tasks use there is unknown, and guard.saturation judges nothing of it",
                nodes.join(", ")
            ),
            "run friday agent on every node, as a global service (swarm/stack.yml shows how)",
        ));
    }
    found
}

fn agent(agent: &AgentView) -> Finding {
    let about = format!("agent {}", agent.report.node);
    if !agent.is_live {
        let lasts = rounded(seconds(agent.silent_seconds));
        let live = rounded(AGENT_LIVE);
        return Finding::of(
            Level::Warn,
            about,
            format!("silent for {lasts}; after {live} what tasks use there is unknown"),
            "start it again; of a node that was taken away it is forgotten when the controller restarts",
        );
    }
    if let Some(trouble) = &agent.report.trouble {
        return Finding::of(
            Level::Warn,
            about,
            format!("it gets nothing from its engine: {trouble}"),
            "give it the node's socket (--engine), and the right to read it",
        );
    }
    match agent.report.tasks_left_out {
        0 => Finding::ok(about, format!("reports {} tasks", agent.report.tasks.len())),
        left_out => Finding::of(
            Level::Warn,
            about,
            format!("{left_out} tasks of its node found no place in its report"),
            "spread tasks over more nodes: of these nothing is known",
        ),
    }
}

fn metrics(facts: &Facts<'_>) -> Vec<Finding> {
    let has_checks = facts
        .rollouts
        .iter()
        .any(|rollout| !rollout.checks.is_empty());
    match &facts.health.metrics {
        Some(metrics) => match &metrics.trouble {
            None => vec![Finding::ok("metrics", "the Prometheus answers")],
            Some(trouble) => vec![Finding::of(
                Level::Fail,
                "metrics",
                format!("{trouble}: where a guard has checks no gate opens"),
                "start it, or correct friday serve --prometheus",
            )],
        },
        None if has_checks => vec![Finding::of(
            Level::Fail,
            "metrics",
            "a rollout has checks, and there is no Prometheus to ask",
            "start the controller with --prometheus URL",
        )],
        None => vec![Finding::ok(
            "metrics",
            "no Prometheus is set: guard.checks need one (friday serve --prometheus), the rest does not",
        )],
    }
}

/// Seconds of another machine, which may be anything.
pub(crate) fn seconds(seconds: f64) -> rollout::Duration {
    rollout::Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

#[cfg(test)]
mod tests;
