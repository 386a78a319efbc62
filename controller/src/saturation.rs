//! What the tasks use, sampled for the judge and summed for people.

use std::collections::HashMap;

use proxy_api::Arm;
use rollout::judge::{NodeGauges, SAMPLE_PERIOD, SaturationSample};
use rollout::{Block, Duration};

use crate::orchestrator::{Group, ServiceState, Task};

/// Shortest time over which CPU use is shown to people: CPU time is counted in ticks of 10 ms.
const SHOWN_OVER: Duration = Duration::from_secs(2);

/// What the tasks of each arm use.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    /// The stable group's.
    pub stable: ArmUsage,
    /// The canary group's.
    pub canary: ArmUsage,
}

/// What the tasks of one arm use together.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ArmUsage {
    /// Memory; `None` where nobody knows.
    pub memory_bytes: Option<u64>,
    /// CPU seconds in a second; `None` before it was seen twice.
    pub cpu_cores: Option<f64>,
}

/// A task that uses this share of its limit is near it: where the judge's own rule begins (JUDGE 2.7).
const NEAR_LIMIT: f64 = 0.95;

/// CPU time of every task at one moment.
#[derive(Debug, Clone, Default)]
struct Moment {
    at: Duration,
    cpu: HashMap<String, Duration>,
}

impl Moment {
    fn of(state: &ServiceState, at: Duration) -> Self {
        let groups = std::iter::once(&state.stable).chain(&state.canary);
        let cpu = groups
            .flat_map(|group| &group.tasks)
            .filter_map(|task| Some((task.id.clone(), task.cpu?)))
            .collect();
        Self { at, cpu }
    }

    /// CPU time that a task used since; `None` if it was not there then.
    fn since(&self, task: &Task) -> Option<Duration> {
        Some(task.cpu?.saturating_sub(*self.cpu.get(&task.id)?))
    }

    /// CPU seconds in a second that a group used since, `passed` ago; `None` if no task of it was there then.
    fn cores(&self, group: &Group, passed: Duration) -> Option<f64> {
        let used = group
            .tasks
            .iter()
            .filter_map(|task| self.since(task))
            .reduce(|a, b| a + b)?;
        Some(used.as_secs_f64() / passed.as_secs_f64())
    }
}

/// Remembers enough to tell what was used since.
#[derive(Debug, Default)]
pub struct Saturation {
    shown: Option<Moment>,
    usage: Usage,
    sampled: Option<Moment>,
    /// The judge was given a sample since this controller started.
    has_sampled: bool,
    requests: HashMap<(Arm, String), u64>,
}

impl Saturation {
    /// Takes in what was seen of the tasks.
    pub fn see(&mut self, state: &ServiceState, now: Duration) {
        self.usage.stable.memory_bytes = memory_of_all(&state.stable);
        self.usage.canary.memory_bytes = state.canary.as_ref().and_then(memory_of_all);
        if let Some(before) = &self.shown {
            let passed = now.saturating_sub(before.at);
            if passed < SHOWN_OVER {
                return;
            }
            self.usage.stable.cpu_cores = before.cores(&state.stable, passed);
            self.usage.canary.cpu_cores = state
                .canary
                .as_ref()
                .and_then(|group| before.cores(group, passed));
        }
        self.shown = Some(Moment::of(state, now));
    }

    /// Counts the requests that each node served.
    pub fn served(&mut self, block: &Block) {
        for (arm, cells) in [(Arm::Canary, &block.canary), (Arm::Stable, &block.stable)] {
            for cell in cells {
                *self.requests.entry((arm, cell.node.clone())).or_default() += cell.requests;
            }
        }
    }

    /// What the tasks use, for people.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// The tasks' memory, if one of the canary's is near its limit. A leak goes from there to the limit in a second or
    /// two, long before the next sample.
    #[must_use]
    pub fn at_limit(&self, state: &ServiceState) -> Option<SaturationSample> {
        let canary = state.canary.as_ref()?;
        let near = |task: &Task| {
            let (Some(used), Some(max)) = (task.memory_bytes, task.memory_bytes_max) else {
                return false;
            };
            as_f64(used) >= NEAR_LIMIT * as_f64(max)
        };
        if !canary.tasks.iter().any(near) {
            return None;
        }
        let gauges = |group: &Group| group.tasks.iter().map(memory_of).collect();
        Some(SaturationSample {
            canary: gauges(canary),
            stable: gauges(&state.stable),
        })
    }

    /// The next sample for the judge, if it is time for one. `waited` is how long the judge has had none: a controller that was
    /// started in the middle of a rollout gives its first one when it is due, without CPU, of which it knows too little yet. Or
    /// those that never live for a whole period would leave the judge without gauges, and its gates closed.
    pub fn sample(
        &mut self,
        state: &ServiceState,
        now: Duration,
        waited: Option<Duration>,
    ) -> Option<SaturationSample> {
        let before = self.sampled.get_or_insert_with(|| Moment::of(state, now));
        let is_whole = now.saturating_sub(before.at) >= SAMPLE_PERIOD;
        let is_due = !self.has_sampled && waited.is_some_and(|waited| waited >= SAMPLE_PERIOD);
        if !is_whole && !is_due {
            return None;
        }
        let requests = std::mem::take(&mut self.requests);
        let gauges = |arm: Arm, group: &Group| -> Vec<NodeGauges> {
            let ready: Vec<&Task> = group.tasks.iter().filter(|task| task.ready).collect();
            let beside = |node: &str| ready.iter().filter(|task| task.node == node).count();
            ready
                .iter()
                .map(|task| {
                    // Requests are counted by node: each of its tasks has served its share of them.
                    let on_node = requests.get(&(arm, task.node.clone())).copied();
                    let share = as_f64(beside(&task.node) as u64);
                    NodeGauges {
                        cpu_seconds: before
                            .since(task)
                            .filter(|_| is_whole)
                            .map(|used| used.as_secs_f64()),
                        requests: on_node.map(|requests| as_f64(requests) / share),
                        ..memory_of(task)
                    }
                })
                .collect()
        };
        let sample = SaturationSample {
            canary: state
                .canary
                .as_ref()
                .map(|group| gauges(Arm::Canary, group))
                .unwrap_or_default(),
            stable: gauges(Arm::Stable, &state.stable),
        };
        self.sampled = Some(Moment::of(state, now));
        self.has_sampled = true;
        Some(sample)
    }
}

fn memory_of_all(group: &Group) -> Option<u64> {
    group
        .tasks
        .iter()
        .filter_map(|task| task.memory_bytes)
        .reduce(|a, b| a + b)
}

fn memory_of(task: &Task) -> NodeGauges {
    NodeGauges {
        node: task.node.clone(),
        memory_bytes: task.memory_bytes.map(as_f64),
        memory_limit_bytes: task.memory_bytes_max.map(as_f64),
        ..NodeGauges::default()
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "bytes and counts below 2^53 are exact"
)]
fn as_f64(value: u64) -> f64 {
    value as f64
}
