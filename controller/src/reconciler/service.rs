//! One service, as the loop knows it.

use std::collections::HashMap;

use rollout::judge::Baseline;
use rollout::{Block, Duration, Rollout, RolloutId, ServiceName, Spec};

use crate::delivery::{Delivery, Served};
use crate::orchestrator::{Group, ServiceState};
use crate::request_rate::RequestRate;
use crate::saturation::Saturation;
use crate::store::Saved;

/// Endpoints whose node is remembered, so that late reports of a dead task find it.
const NODES_MAX: usize = 10_000;

/// What is known of it.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) spec: Spec,
    pub(super) state: Option<ServiceState>,
    pub(super) open: Vec<Saved>,
    pub(super) last: Option<Saved>,
    pub(super) baseline: Baseline,
    pub(super) learning: Block,
    pub(super) rate: RequestRate,
    pub(super) nodes: HashMap<String, String>,
    pub(super) saturation: Saturation,
    /// Restarts of the canary and of stable, as the judge was last told.
    pub(super) restarts: (u32, u32),
    /// Why the last wish of a rollout was refused for good.
    pub(super) refused: Option<(RolloutId, String)>,
    /// Why the last look failed, if it did; said once, not at every turn.
    pub(super) blind: Option<String>,
    /// When it was looked at last.
    pub(super) looked: Option<Duration>,
}

impl Service {
    pub(super) fn new(spec: Spec) -> Self {
        Self {
            spec,
            state: None,
            open: Vec::new(),
            last: None,
            baseline: Baseline::default(),
            learning: Block::default(),
            rate: RequestRate::default(),
            nodes: HashMap::new(),
            saturation: Saturation::default(),
            restarts: (0, 0),
            refused: None,
            blind: None,
            looked: None,
        }
    }

    /// Whether nothing is under way: no rollout, and every task there that is wanted, and no other.
    pub(super) fn is_at_rest(&self) -> bool {
        let Some(state) = &self.state else {
            return false;
        };
        let Group {
            release,
            replicas,
            tasks,
            ..
        } = &state.stable;
        self.open.is_empty()
            && self.blind.is_none()
            && state.canary.is_none()
            && state.stable.ready(&release.id) == *replicas
            && u32::try_from(tasks.len()) == Ok(*replicas)
    }

    /// The rollout whose wishes count: the oldest that has not ended, else the newest that has.
    pub(super) fn in_charge(&self) -> Option<&Rollout> {
        self.open
            .first()
            .or(self.last.as_ref())
            .map(|saved| &saved.rollout)
    }

    /// What the service goes by now.
    pub(super) fn spec(&self) -> &Spec {
        self.open
            .first()
            .map_or(&self.spec, |saved| &saved.rollout.spec)
    }

    /// Counts the requests of a block, its cells by node.
    pub(super) fn count(&self, delivery: &Delivery, name: &ServiceName, block: &Block) {
        let Some(state) = &self.state else { return };
        let rollout = self.in_charge();
        let whose = Served {
            service: name.as_str(),
            // As a rollout whose author names none has it.
            environment: rollout.map_or("default", |rollout| rollout.environment.as_str()),
            stable: state.stable.release.id.as_str(),
            canary: rollout.map(|rollout| rollout.canary.id.as_str()),
        };
        let running = self.open.first().map(|saved| &saved.rollout.id);
        delivery.served(whose, running, block);
    }

    pub(super) fn remember_nodes(&mut self) {
        let Some(state) = &self.state else { return };
        if self.nodes.len() > NODES_MAX {
            self.nodes.clear();
        }
        for task in state
            .stable
            .tasks
            .iter()
            .chain(state.canary.iter().flat_map(|group| &group.tasks))
        {
            self.nodes
                .insert(task.endpoint.to_string(), task.node.clone());
        }
    }

    /// The block with nodes in place of the addresses that proxies know.
    pub(super) fn by_node(&self, block: &Block) -> Block {
        let translate = |cells: &[rollout::Cell]| {
            let mut named = Vec::with_capacity(cells.len());
            for cell in cells {
                let node = self
                    .nodes
                    .get(&cell.node)
                    .cloned()
                    .unwrap_or_else(|| cell.node.clone());
                rollout::signals::merge_cells(
                    &mut named,
                    &[rollout::Cell {
                        node,
                        ..cell.clone()
                    }],
                );
            }
            named
        };
        Block {
            canary: translate(&block.canary),
            stable: translate(&block.stable),
            ..block.clone()
        }
    }
}
