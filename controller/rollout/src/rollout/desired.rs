//! What a rollout asks of the world, by its phase: weight, canary and stable.

use super::{Phase, Promotion, Retreat, Rollout};
use crate::desired::{Desired, Placement};
use crate::weight::Weight;

impl Rollout {
    /// What this rollout asks of the world.
    #[must_use]
    pub fn desired(&self) -> Desired {
        self.desired_in(&self.phase)
    }

    pub(super) fn desired_in(&self, phase: &Phase) -> Desired {
        let full = self.full();
        let run = |replicas| Placement::Run {
            release: self.canary.clone(),
            replicas,
        };
        let on_trial = |target: Weight| Desired {
            weight: self.carried(target),
            canary: run(target.replicas(full)),
            stable: None,
            stable_replicas: None,
        };
        let plan = &self.spec.plan;
        match phase {
            Phase::Paused { at } => self.desired_in(at),
            Phase::Deploying { .. } => Desired {
                weight: Weight::ZERO,
                canary: run(self.first_replicas()),
                stable: None,
                stable_replicas: None,
            },
            Phase::Analyzing { step, .. } | Phase::Gated { step, .. } => {
                on_trial(plan.weight_at(*step))
            }
            Phase::Baking { .. } => on_trial(self.spec.bake.weight),
            Phase::Warm { .. }
            | Phase::Promoting {
                stage: Promotion::Shifting,
                ..
            } => on_trial(Weight::ALL),
            Phase::Promoting {
                stage: Promotion::Updating,
                ..
            } => Desired {
                // Whatever the canary cannot carry goes to tasks of the stable group that are ready, whichever release
                // they run; with none there the canary keeps everything.
                weight: self.carried(Weight::ALL).max(
                    self.left_by_stable(self.observed.stable_ready + self.observed.stable_updated),
                ),
                canary: run(full),
                stable: Some(self.canary.clone()),
                stable_replicas: None,
            },
            Phase::Promoting {
                stage: Promotion::Returning,
                ..
            } => Desired {
                weight: self.left_by_stable(self.observed.stable_updated),
                canary: run(full),
                stable: Some(self.canary.clone()),
                stable_replicas: None,
            },
            Phase::Promoting {
                stage: Promotion::Removing,
                ..
            } => Desired {
                weight: Weight::ZERO,
                canary: Placement::Absent,
                stable: Some(self.canary.clone()),
                stable_replicas: None,
            },
            Phase::RollingBack {
                stage: Retreat::Regaining { weight },
                ..
            } => Desired {
                weight: self.left_by_stable(self.observed.stable_ready).min(*weight),
                canary: Placement::Keep,
                stable: Some(self.stable.clone()),
                stable_replicas: Some(full),
            },
            Phase::RollingBack {
                stage: Retreat::Yielding { weight },
                ..
            } => Desired {
                weight: self
                    .left_by_stable(self.observed.stable_serving)
                    .min(*weight),
                canary: Placement::Keep,
                stable: None,
                stable_replicas: None,
            },
            Phase::RollingBack {
                stage: Retreat::Restoring { canary: true },
                ..
            } => Desired {
                weight: self.left_by_stable(self.observed.stable_ready),
                canary: Placement::Keep,
                stable: Some(self.stable.clone()),
                stable_replicas: Some(full),
            },
            Phase::RollingBack {
                stage: Retreat::Restoring { canary: false },
                ..
            } => Desired {
                weight: Weight::ZERO,
                canary: Placement::Absent,
                stable: Some(self.stable.clone()),
                stable_replicas: Some(full),
            },
            Phase::RollingBack {
                stage: Retreat::Leaving,
                ..
            } => Desired {
                weight: Weight::ZERO,
                canary: Placement::Keep,
                stable: None,
                stable_replicas: None,
            },
            Phase::RollingBack {
                stage: Retreat::Removing,
                ..
            }
            | Phase::Promoted
            | Phase::RolledBack { .. } => Desired {
                weight: Weight::ZERO,
                canary: Placement::Absent,
                stable: None,
                stable_replicas: None,
            },
        }
    }

    /// The largest weight of the plan, not above `target`, that the canary's ready tasks can carry. Only the plan's own
    /// weights: a replica that comes or goes shall not make a new weight each time.
    fn carried(&self, target: Weight) -> Weight {
        let full = self.full();
        let capacity = Weight::carried_by(self.observed.canary_ready, full).min(target);
        if capacity == target {
            return target;
        }
        let plan = &self.spec.plan;
        let steps = (0..plan.steps().len()).map(|step| plan.weight_at(step));
        steps
            .chain([self.spec.bake.weight])
            .filter(|weight| *weight <= capacity)
            .max()
            .unwrap_or(Weight::ZERO)
    }

    /// What the canary must keep because `ready` tasks of the stable group cannot carry it; nothing if it has no ready
    /// task itself.
    pub(super) fn left_by_stable(&self, ready: u32) -> Weight {
        if self.observed.canary_ready == 0 {
            return Weight::ZERO;
        }
        Weight::carried_by(ready, self.full()).rest()
    }

    /// The tasks that carry the whole: as many as stable wants, or wanted before somebody took them all away.
    pub(super) fn full(&self) -> u32 {
        let wanted = self.observed.stable_replicas;
        if wanted == 0 {
            self.stable_replicas.max(1)
        } else {
            wanted
        }
    }

    /// Tasks that must be ready before the canary may get its first request.
    pub(super) fn first_replicas(&self) -> u32 {
        let first = if self.full {
            Weight::ALL
        } else {
            self.spec.plan.weight_at(0)
        };
        first.replicas(self.full())
    }
}
