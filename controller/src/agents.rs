//! The nodes' agents, as the controller knows them: the last report of each, and what it says of the tasks that the
//! orchestrator sees.
//!
//! What is old is unknown, and what is unknown is never zero: the judge passes over it, and its own rules say for how long.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rollout::Duration;

use crate::api::types::agents::{AgentReport, AgentView, TASKS_MAX, TaskUse};
use crate::orchestrator::{ServiceState, Task};

/// What an agent said so long ago is not believed any more: it reports once a second.
pub const AGENT_LIVE: Duration = Duration::from_secs(5);

/// An agent that was silent for so long is forgotten. Long enough for a person to see it in a list.
const AGENT_KEPT: Duration = Duration::from_secs(600);

/// Most agents known at once; a report of one more is refused.
pub const AGENTS_MAX: usize = 500;

/// Longest name, id or word of a report that is kept, in bytes. A task's name is a service's of 63, a number and an id of 25.
const TEXT_BYTES_MAX: usize = 512;

/// Why a report was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AgentError {
    /// Too many agents.
    #[error("there are {AGENTS_MAX} agents already; the agent of {0:?} is one too many")]
    TooMany(String),
    /// The report names another node than the address it was sent to.
    #[error("the report of node {0:?} came under the name {1:?}")]
    Name(String, String),
    /// Two nodes of one name.
    #[error(
        "two nodes call themselves {0:?}: give each agent a name of its own with --name, the one that `docker node ls` shows"
    )]
    Twice(String),
    /// Too many tasks, or too long a text.
    #[error("the report of {node:?} {what}")]
    Unfit {
        /// Which.
        node: String,
        /// What is wrong with it.
        what: String,
    },
}

#[derive(Debug)]
struct Agent {
    report: AgentReport,
    /// Where each task stands in the report.
    places: HashMap<String, usize>,
    /// The clock's elapsed time when it came.
    heard: Duration,
}

impl Agent {
    fn is_live(&self, now: Duration) -> bool {
        now.saturating_sub(self.heard) < AGENT_LIVE
    }
}

/// All agents.
#[derive(Debug, Default)]
pub struct Agents(Mutex<HashMap<String, Agent>>);

impl Agents {
    /// No agents yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Agent>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a report in. One that is older than what is known changes nothing.
    ///
    /// # Errors
    /// The report is not for us.
    pub fn report(&self, node: &str, report: AgentReport, now: Duration) -> Result<(), AgentError> {
        if report.node != node {
            return Err(AgentError::Name(report.node, node.to_owned()));
        }
        check(&report)?;
        let mut agents = self.lock();
        if let Some(known) = agents.get(node) {
            let is_same = known.report.boot == report.boot;
            if is_same && known.report.number >= report.number {
                return Ok(());
            }
            let is_other = |(ours, theirs): (&String, &String)| ours != theirs;
            let ids = known.report.node_id.as_ref().zip(report.node_id.as_ref());
            if !is_same && known.is_live(now) && ids.is_some_and(is_other) {
                return Err(AgentError::Twice(node.to_owned()));
            }
        } else if agents.len() >= AGENTS_MAX {
            agents.retain(|_, agent| now.saturating_sub(agent.heard) < AGENT_KEPT);
            if agents.len() >= AGENTS_MAX {
                return Err(AgentError::TooMany(node.to_owned()));
            }
        }
        let ids = report.tasks.iter().map(|task| task.id.clone());
        let places = ids.enumerate().map(|(at, id)| (id, at)).collect();
        let agent = Agent {
            report,
            places,
            heard: now,
        };
        agents.insert(node.to_owned(), agent);
        Ok(())
    }

    /// Writes what the agents know of its tasks into what the orchestrator saw of a service. What the orchestrator knows
    /// itself stays.
    pub fn fill(&self, state: &mut ServiceState, now: Duration) {
        let agents = self.lock();
        let live: Vec<&Agent> = agents.values().filter(|agent| agent.is_live(now)).collect();
        if live.is_empty() {
            return;
        }
        let canary = state.canary.iter_mut().flat_map(|group| &mut group.tasks);
        for task in state.stable.tasks.iter_mut().chain(canary) {
            let known = live.iter().find_map(|agent| {
                let place = *agent.places.get(&task.id)?;
                let age = now.saturating_sub(agent.heard);
                Some((agent.report.tasks.get(place)?, age))
            });
            if let Some((used, age)) = known {
                fill(task, used, age);
            }
        }
    }

    /// The agents, by name.
    #[must_use]
    pub fn status(&self, now: Duration) -> Vec<AgentView> {
        let agents = self.lock();
        let mut all: Vec<AgentView> = agents
            .values()
            .map(|agent| AgentView {
                report: agent.report.clone(),
                silent_seconds: now.saturating_sub(agent.heard).as_secs_f64(),
                is_live: agent.is_live(now),
            })
            .collect();
        all.sort_by(|a, b| a.report.node.cmp(&b.report.node));
        all
    }
}

fn check(report: &AgentReport) -> Result<(), AgentError> {
    let unfit = |what: String| AgentError::Unfit {
        node: report.node.chars().take(TEXT_BYTES_MAX).collect(),
        what,
    };
    if report.tasks.len() > TASKS_MAX {
        return Err(unfit(format!(
            "has {} tasks, more than the {TASKS_MAX} allowed",
            report.tasks.len()
        )));
    }
    let own = [
        Some(&report.node),
        report.node_id.as_ref(),
        report.trouble.as_ref(),
    ];
    let of_tasks = report
        .tasks
        .iter()
        .flat_map(|task| [&task.id, &task.name, &task.service, &task.release]);
    let is_long = |text: &String| text.len() > TEXT_BYTES_MAX;
    if own.into_iter().flatten().chain(of_tasks).any(is_long) {
        return Err(unfit(format!(
            "has a text of more than the {TEXT_BYTES_MAX} bytes allowed"
        )));
    }
    Ok(())
}

/// What was reported `age` ago. CPU time goes on as it went: reports come once a second and looks four times, so that else
/// two seconds would hold the use of one, or of three.
fn fill(task: &mut Task, used: &TaskUse, age: Duration) {
    task.memory_bytes = task.memory_bytes.or(used.memory_bytes);
    task.memory_bytes_max = task.memory_bytes_max.or(used.memory_bytes_max);
    let since = used.cpu_cores.unwrap_or(0.0) * age.as_secs_f64();
    let cpu = used
        .cpu_seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds + since).ok());
    task.cpu = task.cpu.or(cpu);
}

#[cfg(test)]
mod tests {
    use proxy_api::{Arm, BootId};
    use rollout::Release;

    use super::*;
    use crate::api::types::agents::HostUse;
    use crate::orchestrator::Group;

    const NOW: Duration = Duration::from_secs(1000);

    fn used(id: &str) -> TaskUse {
        TaskUse {
            id: id.to_owned(),
            name: format!("web.1.{id}"),
            service: "web".to_owned(),
            arm: Arm::Stable,
            release: "0123456789ab".to_owned(),
            cpu_seconds: Some(10.0),
            cpu_cores: Some(0.5),
            cpu_cores_max: None,
            memory_bytes: Some(100),
            memory_bytes_max: Some(256),
        }
    }

    fn report(boot: u64, number: u64) -> AgentReport {
        AgentReport {
            node: "n1".to_owned(),
            node_id: Some("id1".to_owned()),
            boot: BootId(boot),
            number,
            trouble: None,
            host: HostUse::default(),
            tasks: vec![used("a")],
            tasks_left_out: 0,
        }
    }

    fn state() -> ServiceState {
        let release = Release::new("web:v1", format!("sha256:{}", "1".repeat(64)), None);
        let task = |id: &str| Task {
            id: id.to_owned(),
            release: release.id.clone(),
            endpoint: "10.0.0.1:9000".parse().unwrap(),
            node: "n1".to_owned(),
            ready: true,
            memory_bytes: None,
            memory_bytes_max: None,
            cpu: None,
        };
        let group = Group {
            tasks: vec![task("a"), task("b")],
            replicas: 2,
            restarts: 0,
            trouble: None,
            release: release.clone(),
        };
        ServiceState {
            stable: group,
            canary: None,
        }
    }

    fn memory(agents: &Agents, now: Duration) -> [Option<u64>; 2] {
        let mut state = state();
        agents.fill(&mut state, now);
        [0, 1].map(|at| state.stable.tasks[at].memory_bytes)
    }

    #[test]
    fn tells_of_the_tasks_it_knows_and_of_no_other() {
        let agents = Agents::new();
        assert_eq!(memory(&agents, NOW), [None, None]);
        agents.report("n1", report(1, 1), NOW).unwrap();
        let mut state = state();
        agents.fill(&mut state, NOW + Duration::from_secs(1));
        let [a, b] = [&state.stable.tasks[0], &state.stable.tasks[1]];
        assert_eq!((a.memory_bytes, a.memory_bytes_max), (Some(100), Some(256)));
        assert_eq!(a.cpu, Some(Duration::from_millis(10_500)));
        assert_eq!((b.memory_bytes, b.cpu), (None, None));
    }

    #[test]
    fn f02_what_is_old_or_was_not_seen_is_unknown_and_never_zero() {
        let agents = Agents::new();
        agents.report("n1", report(1, 1), NOW).unwrap();
        let just = Duration::from_millis(1);
        assert_eq!(memory(&agents, NOW + AGENT_LIVE - just), [Some(100), None]);
        assert_eq!(memory(&agents, NOW + AGENT_LIVE), [None, None]);
        assert!(!agents.status(NOW + AGENT_LIVE)[0].is_live);
        let blind = AgentReport {
            trouble: Some("the engine does not answer".to_owned()),
            tasks: vec![],
            ..report(1, 2)
        };
        agents.report("n1", blind, NOW).unwrap();
        assert_eq!(memory(&agents, NOW), [None, None]);
    }

    #[test]
    fn a_late_report_replaces_none_that_is_newer_and_a_new_life_begins_anew() {
        let agents = Agents::new();
        let number = || agents.status(NOW)[0].report.number;
        agents.report("n1", report(1, 7), NOW).unwrap();
        agents.report("n1", report(1, 6), NOW).unwrap();
        assert_eq!(number(), 7);
        agents.report("n1", report(2, 1), NOW).unwrap();
        assert_eq!(number(), 1);
    }

    #[test]
    fn refuses_what_is_too_much_and_nodes_of_one_name() {
        let agents = Agents::new();
        let name = |at: usize| format!("n{at}");
        for at in 0..AGENTS_MAX {
            let node = name(at);
            let report = AgentReport {
                node: node.clone(),
                ..report(1, 1)
            };
            agents.report(&node, report, NOW).unwrap();
        }
        let node = name(AGENTS_MAX);
        let more = AgentReport {
            node: node.clone(),
            ..report(1, 1)
        };
        let refused = agents.report(&node, more.clone(), NOW);
        assert!(matches!(refused, Err(AgentError::TooMany(_))));
        // Those that are long gone make room.
        agents.report(&node, more, NOW + AGENT_KEPT).unwrap();

        let now = NOW + AGENT_KEPT;
        agents.report("n1", report(1, 1), now).unwrap();
        let other = AgentReport {
            node_id: Some("id2".to_owned()),
            ..report(2, 1)
        };
        let refused = agents.report("n1", other.clone(), now);
        assert_eq!(refused, Err(AgentError::Twice("n1".to_owned())));
        agents.report("n1", other, now + AGENT_LIVE).unwrap();

        let many = AgentReport {
            tasks: vec![used("a"); TASKS_MAX + 1],
            ..report(1, 2)
        };
        let long = AgentReport {
            trouble: Some("x".repeat(TEXT_BYTES_MAX + 1)),
            ..report(1, 2)
        };
        for report in [many, long] {
            let refused = agents.report("n1", report, now);
            assert!(matches!(refused, Err(AgentError::Unfit { .. })));
        }
        let alien = agents.report("n2", report(1, 9), now);
        assert!(matches!(alien, Err(AgentError::Name(..))));
    }
}
