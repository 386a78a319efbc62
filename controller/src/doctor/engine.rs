//! What an engine says, beside what the controller believes.

use super::{Facts, Finding, Level};
use crate::orchestrator::swarm::SwarmNode;

/// An engine, as it answered.
#[derive(Debug, Clone)]
pub struct EngineFacts {
    /// Its address.
    pub address: String,
    /// What it says, or why it says nothing.
    pub answer: Result<EngineAnswer, String>,
}

/// What a manager's engine says.
#[derive(Debug, Clone)]
pub struct EngineAnswer {
    /// Its version.
    pub version: String,
    /// The swarm's nodes.
    pub nodes: Vec<SwarmNode>,
    /// The services of users, by name.
    pub services: Vec<String>,
    /// Our canaries: name, and whose it is.
    pub canaries: Vec<(String, String)>,
}

pub(super) fn engine(engine: &EngineFacts, facts: &Facts<'_>) -> Vec<Finding> {
    let answer = match &engine.answer {
        Ok(answer) => answer,
        Err(words) => {
            return vec![Finding::of(
                Level::Fail,
                "engine",
                words.clone(),
                "until it answers nothing can be started, scaled or removed; requests go on by the last table",
            )];
        }
    };
    let mut found = vec![Finding::ok(
        "engine",
        format!(
            "{} answers, version {}, {} in the swarm",
            engine.address,
            answer.version,
            match answer.nodes.len() {
                1 => "1 node".to_owned(),
                many => format!("{many} nodes"),
            }
        ),
    )];
    for node in &answer.nodes {
        let about = format!("node {}", node.name);
        if node.state != "ready" {
            let level = if node.is_manager {
                Level::Fail
            } else {
                Level::Warn
            };
            found.push(Finding::of(
                level,
                about,
                format!("it is {}", node.state),
                "start its engine, or take it out: docker node rm --force; managers need a majority of themselves",
            ));
        } else if node.availability != "active" {
            found.push(Finding::of(
                Level::Warn,
                about,
                format!("it takes no new tasks ({})", node.availability),
                format!(
                    "docker node update --availability active {}, when it may again",
                    node.name
                ),
            ));
        }
    }
    for sight in &facts.health.services {
        if !answer.services.contains(&sight.service) {
            found.push(Finding::of(
                Level::Fail,
                format!("service {}", sight.service),
                format!(
                    "the controller looks after it, and {} has no such service",
                    engine.address
                ),
                "deploy its stack again, or ask the engine that the controller asks",
            ));
        }
    }
    for (name, of) in &answer.canaries {
        let is_wanted = facts.rollouts.iter().any(|rollout| rollout.service == *of);
        if !is_wanted {
            found.push(Finding::of(
                Level::Warn,
                format!("service {name}"),
                format!("a canary of {of} that no open rollout wants"),
                format!("docker service rm {name}, unless another controller looks after {of}"),
            ));
        }
    }
    found
}
