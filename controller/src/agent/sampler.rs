//! Looks at the engine once in a while and makes a report of what it sees.

use std::collections::HashMap;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream;
use proxy_api::BootId;
use rollout::Duration;
use serde_json::json;

use super::host::{self, Ticks};
use super::stats::{self, Container, Info, Inspected, Limits, Stats};
use crate::api::types::agents::{AgentReport, TASKS_MAX, TaskUse};
use crate::clock::Clock;
use crate::orchestrator::swarm::engine::{Engine, EngineError};

/// Containers that are asked for at the same time: as many as the engine's client keeps connections. One takes 3 ms.
const AT_ONCE: usize = 4;

/// Longest piece of the engine's words that is passed on.
const WORDS_MAX: usize = 300;

/// What is remembered of a container.
#[derive(Debug, Clone, Copy)]
struct Known {
    limits: Limits,
    /// When it was last looked at, and its CPU time then.
    seen: Option<(Duration, Duration)>,
}

/// One node's engine, and what was seen of it.
#[derive(Debug)]
pub(super) struct Sampler {
    engine: Engine,
    clock: Arc<dyn Clock>,
    boot: BootId,
    number: u64,
    /// As it was given; else the engine says it.
    name: Option<String>,
    info: Option<Info>,
    /// Whether it may be another one: it was away since it said who it is.
    was_away: bool,
    known: HashMap<String, Known>,
    ticks: Option<Ticks>,
}

impl Sampler {
    pub(super) fn new(engine: Engine, name: Option<String>, clock: Arc<dyn Clock>) -> Self {
        Self {
            engine,
            clock,
            boot: BootId(rand::random()),
            number: 0,
            name,
            info: None,
            was_away: false,
            known: HashMap::new(),
            ticks: None,
        }
    }

    /// What the node and its tasks use now. The node has no name, and the report an empty one, until the engine has
    /// answered once or if it was given.
    pub(super) async fn sample(&mut self) -> AgentReport {
        self.number += 1;
        let host = host::sample(&mut self.ticks).await;
        let (seen, trouble) = match self.tasks().await {
            Ok(seen) => (seen, None),
            Err(error) => {
                self.was_away = true;
                let words = match &error {
                    EngineError::Unreachable(source) => format!("{error}: {source}"),
                    EngineError::NotFound(_)
                    | EngineError::OutOfSequence(_)
                    | EngineError::Refused(_) => error.words(),
                };
                (
                    Seen::default(),
                    Some(words.chars().take(WORDS_MAX).collect()),
                )
            }
        };
        let info = self.info.as_ref();
        let node = self.name.clone();
        AgentReport {
            node: node
                .or_else(|| info.map(|info| super::as_name(&info.name)))
                .unwrap_or_default(),
            node_id: info
                .map(|info| info.swarm.node_id.clone())
                .filter(|id| !id.is_empty()),
            boot: self.boot,
            number: self.number,
            trouble,
            host,
            tasks: seen.tasks,
            tasks_left_out: seen.left_out,
        }
    }

    async fn tasks(&mut self) -> Result<Seen, EngineError> {
        if self.info.is_none() || self.was_away {
            self.info = Some(self.engine.get("info", &[]).await?);
            self.was_away = false;
        }
        let filters = json!({ "label": [stats::TASK_ID], "status": ["running"] }).to_string();
        let mut containers: Vec<Container> = self
            .engine
            .get("containers/json", &[("filters", &filters)])
            .await?;
        // The same ones at every look, if there are too many.
        containers.sort_by(|a, b| a.id.cmp(&b.id));
        let left_out = containers.len().saturating_sub(TASKS_MAX);
        containers.truncate(TASKS_MAX);
        self.known
            .retain(|id, _| containers.iter().any(|container| container.id == *id));
        let (engine, clock, known) = (&self.engine, &self.clock, &self.known);
        let looks = stream::iter(containers).map(|container| async move {
            let before = known.get(&container.id).copied();
            let look = look(engine, clock.as_ref(), &container, before).await;
            (container, look)
        });
        let looks: Vec<_> = looks.buffer_unordered(AT_ONCE).collect().await;
        let mut tasks = Vec::with_capacity(looks.len());
        for (container, look) in looks {
            match look {
                Ok((now, task)) => {
                    self.known.insert(container.id, now);
                    tasks.extend(task);
                }
                // It has ended since it was listed, or it alone hangs: of it nothing is known, and of the others all is.
                Err(error) => {
                    tracing::debug!(container = container.id, error = error.words(), "not seen");
                }
            }
        }
        tasks.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(Seen {
            tasks,
            left_out: u32::try_from(left_out).unwrap_or(u32::MAX),
        })
    }
}

#[derive(Debug, Default)]
struct Seen {
    tasks: Vec<TaskUse>,
    left_out: u32,
}

async fn look(
    engine: &Engine,
    clock: &dyn Clock,
    container: &Container,
    before: Option<Known>,
) -> Result<(Known, Option<TaskUse>), EngineError> {
    let path = format!("containers/{}", container.id);
    let limits = match before {
        Some(known) => known.limits,
        // The swarm never changes a container: it makes another one.
        None => {
            let inspected: Inspected = engine.get(&format!("{path}/json"), &[]).await?;
            inspected.limits()
        }
    };
    // Without `one-shot` the engine takes two samples of its own, a second apart.
    let query = [("stream", "false"), ("one-shot", "true")];
    let stats: Stats = engine.get(&format!("{path}/stats"), &query).await?;
    let seen = stats.cpu().map(|used| (clock.elapsed(), used));
    let cores = before
        .and_then(|known| known.seen)
        .zip(seen)
        .and_then(|(before, now)| stats::cores(before, now));
    let task = stats::task(container, limits, &stats, cores);
    Ok((Known { limits, seen }, task))
}
