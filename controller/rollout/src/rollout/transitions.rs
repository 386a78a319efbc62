//! Which phase follows: after time, after what was seen, after the judge's ruling, after an order.

use super::{
    Cause, Command, DRAIN_MAX, Phase, Promotion, REMOVE_MAX, Retreat, Rollout, Ruling, Skipped,
    Stage,
};
use crate::Duration;
use crate::judge::first_step;
use crate::plan::{Spec, Step};
use crate::weight::Weight;

impl Rollout {
    pub(super) fn after_time(&mut self, phase: Phase, time: Duration) -> Phase {
        if matches!(
            phase,
            Phase::Paused { .. } | Phase::Promoted | Phase::RolledBack { .. }
        ) {
            return phase;
        }
        // A freeze is nobody's delay.
        if self.is_frozen() {
            return phase;
        }
        self.elapsed += time;
        let late = self.elapsed >= self.spec.deadlines.rollout;
        let deadlines = self.spec.deadlines;
        match phase {
            Phase::Deploying { .. } if self.awaits_approval() => {
                if late {
                    self.retreat(phase, Cause::GateUnanswered)
                } else {
                    phase
                }
            }
            Phase::Deploying { elapsed } if elapsed + time >= deadlines.ready => {
                let trouble = self.observed.trouble.clone();
                self.retreat(Phase::Deploying { elapsed }, Cause::NotReady { trouble })
            }
            Phase::Analyzing { elapsed, .. } | Phase::Baking { elapsed }
                if elapsed + time >= deadlines.evidence =>
            {
                self.retreat(phase, Cause::InsufficientEvidence)
            }
            Phase::Gated { .. } if late => self.retreat(phase, Cause::GateUnanswered),
            Phase::Deploying { .. }
            | Phase::Analyzing { .. }
            | Phase::Baking { .. }
            | Phase::Warm { .. }
            | Phase::Promoting {
                stage: Promotion::Shifting | Promotion::Updating,
                ..
            } if late => self.retreat(phase, Cause::Deadline),
            // What returns to a stable group that is not ready again by now, does not return.
            Phase::Promoting {
                stage: Promotion::Returning,
                ..
            } if late && self.left_by_stable(self.observed.stable_updated) != Weight::ZERO => {
                self.retreat(phase, Cause::Deadline)
            }
            Phase::Deploying { elapsed } => Phase::Deploying {
                elapsed: elapsed + time,
            },
            Phase::Analyzing { step, elapsed } => Phase::Analyzing {
                step,
                elapsed: elapsed + time,
            },
            Phase::Gated { step, elapsed } => Phase::Gated {
                step,
                elapsed: elapsed + time,
            },
            Phase::Baking { elapsed } => Phase::Baking {
                elapsed: elapsed + time,
            },
            Phase::Warm { elapsed } if elapsed + time >= self.spec.keep_warm => {
                promoting(Promotion::Shifting)
            }
            Phase::Warm { elapsed } => Phase::Warm {
                elapsed: elapsed + time,
            },
            Phase::Promoting {
                stage: Promotion::Returning,
                elapsed,
            } if elapsed + time >= DRAIN_MAX
                && self.left_by_stable(self.observed.stable_updated) == Weight::ZERO =>
            {
                promoting(Promotion::Removing)
            }
            Phase::Promoting {
                stage: Promotion::Removing,
                elapsed,
            } if elapsed + time >= REMOVE_MAX => Phase::Promoted,
            Phase::Promoting { stage, elapsed } => Phase::Promoting {
                stage,
                elapsed: elapsed + time,
            },
            Phase::RollingBack {
                cause,
                stage: Retreat::Leaving,
                elapsed,
            } if elapsed + time >= DRAIN_MAX => rolling_back(cause, Retreat::Removing),
            Phase::RollingBack {
                cause,
                stage: Retreat::Removing,
                elapsed,
            } if elapsed + time >= REMOVE_MAX => Phase::RolledBack { cause },
            Phase::RollingBack {
                cause,
                stage,
                elapsed,
            } => Phase::RollingBack {
                cause,
                stage,
                elapsed: elapsed + time,
            },
            Phase::Paused { .. } | Phase::Promoted | Phase::RolledBack { .. } => phase,
        }
    }

    /// The step to begin with, and a record of those before it.
    fn begin(&mut self) -> Phase {
        let Spec { plan, guard, .. } = &self.spec;
        let rate = self.observed.requests_per_second;
        let step = rate.map_or(0, |rate| first_step(plan, rate, guard));
        self.skipped = rate.filter(|_| step > 0).map(|rate| Skipped {
            steps: step,
            requests_per_second: rate,
            canary_rate_min: guard.tuning.canary_rate_min,
        });
        Phase::Analyzing {
            step,
            elapsed: Duration::ZERO,
        }
    }

    /// The way out of `phase` where the service's owner deployed a release of their own to it: theirs is the last word on what
    /// users get, so requests go to whatever the stable group runs, and nothing of ours is written over it.
    fn after_owner(&self, phase: Phase) -> Phase {
        let Some(release) = &self.observed.stable_wants else {
            return phase;
        };
        if *release == self.stable.id || *release == self.canary.id {
            return phase;
        }
        let weight = self.desired_in(&phase).weight;
        let out = |cause| {
            let stage = match weight {
                Weight::ZERO => Retreat::Leaving,
                weight => Retreat::Yielding { weight },
            };
            rolling_back(cause, stage)
        };
        match phase {
            Phase::RollingBack {
                cause,
                stage: Retreat::Regaining { .. } | Retreat::Restoring { .. },
                ..
            } => out(cause),
            Phase::RollingBack { .. } | Phase::Promoted | Phase::RolledBack { .. } => phase,
            Phase::Deploying { .. }
            | Phase::Analyzing { .. }
            | Phase::Gated { .. }
            | Phase::Baking { .. }
            | Phase::Warm { .. }
            | Phase::Paused { .. }
            | Phase::Promoting { .. } => out(Cause::Overtaken {
                release: release.clone(),
            }),
        }
    }

    pub(super) fn after_observation(&mut self, phase: Phase) -> Phase {
        let phase = self.after_owner(phase);
        let full = self.full();
        let seen = &self.observed;
        let left = seen.weight_seen == Some(Weight::ZERO) && seen.canary_in_flight == 0;
        match phase {
            // No deadline need be waited for.
            Phase::Deploying { .. }
            | Phase::Promoting {
                stage: Promotion::Shifting | Promotion::Updating,
                ..
            } if seen.refused.is_some() => {
                let trouble = seen.refused.clone();
                self.retreat(phase, Cause::NotReady { trouble })
            }
            Phase::Deploying { .. }
                if seen.canary_ready >= self.first_replicas()
                    && seen.stable_replicas > 0
                    && !self.admission.is_frozen()
                    && self.admission.approvals_missing() == 0 =>
            {
                if self.full {
                    promoting(Promotion::Shifting)
                } else {
                    self.begin()
                }
            }
            Phase::Promoting {
                stage: Promotion::Shifting,
                ..
            } if seen.canary_ready >= full && seen.weight_seen == Some(Weight::ALL) => {
                promoting(Promotion::Updating)
            }
            Phase::Promoting {
                stage: Promotion::Updating,
                ..
            } if seen.stable_updated >= full => promoting(Promotion::Returning),
            Phase::Promoting {
                stage: Promotion::Returning,
                ..
            } if left && seen.stable_updated >= full => promoting(Promotion::Removing),
            Phase::Promoting {
                stage: Promotion::Removing,
                ..
            } if !seen.canary_exists => Phase::Promoted,
            // Ready is not enough: while the group still wants the new release, its old tasks are about to go.
            Phase::RollingBack {
                ref cause,
                stage: Retreat::Regaining { .. } | Retreat::Restoring { .. },
                ..
            } if seen.stable_ready >= full
                && seen.stable_wants.as_ref() == Some(&self.stable.id) =>
            {
                rolling_back(cause.clone(), Retreat::Leaving)
            }
            Phase::RollingBack {
                ref cause,
                stage: Retreat::Yielding { .. },
                ..
            } if seen.stable_serving >= full => rolling_back(cause.clone(), Retreat::Leaving),
            Phase::RollingBack {
                ref cause,
                stage: Retreat::Leaving,
                ..
            } if left => rolling_back(cause.clone(), Retreat::Removing),
            Phase::RollingBack {
                ref cause,
                stage: Retreat::Removing,
                ..
            } if !seen.canary_exists => Phase::RolledBack {
                cause: cause.clone(),
            },
            Phase::Deploying { .. }
            | Phase::Analyzing { .. }
            | Phase::Gated { .. }
            | Phase::Baking { .. }
            | Phase::Warm { .. }
            | Phase::Paused { .. }
            | Phase::Promoting { .. }
            | Phase::RollingBack { .. }
            | Phase::Promoted
            | Phase::RolledBack { .. } => phase,
        }
    }

    pub(super) fn after_ruling(&self, phase: Phase, stage: Stage, ruling: Ruling) -> Phase {
        let current = match self.stage_of(&phase) {
            Some(current) if current == stage => current,
            _ => return phase,
        };
        match (phase, ruling) {
            // The harm test goes on while a person holds the rollout: a pause must not keep users on a bad release.
            (phase, Ruling::Fail { signal }) => self.retreat(phase, Cause::Evidence { signal }),
            (Phase::Analyzing { .. } | Phase::Baking { .. }, Ruling::Pass) if !self.is_frozen() => {
                self.after_stage(current)
            }
            (phase, Ruling::Pass | Ruling::Hold) => phase,
        }
    }

    pub(super) fn after_order(&mut self, phase: Phase, command: Command) -> Phase {
        match (command, phase) {
            (
                _,
                phase @ (Phase::Promoted | Phase::RolledBack { .. } | Phase::RollingBack { .. }),
            ) => phase,
            (Command::Abort(cause), phase) => self.retreat(phase, cause),
            (Command::Pause, phase @ Phase::Paused { .. }) => phase,
            (Command::Pause, phase) => Phase::Paused {
                at: Box::new(phase),
            },
            (Command::Approve { by }, phase) if self.needs_other_eyes(&by) => phase,
            (Command::Approve { by }, phase @ Phase::Deploying { .. }) => {
                self.admission.approve(&self.author, &by);
                phase
            }
            (Command::Promote | Command::PromoteFull | Command::Approve { .. }, phase)
                if self.is_frozen() =>
            {
                phase
            }
            // It would go all the way, unjudged, as soon as somebody approves its first request alone.
            (Command::PromoteFull, phase) if self.lacks_approvals() => phase,
            (Command::Resume | Command::Promote, Phase::Paused { at }) => *at,
            (Command::Resume, phase) => phase,
            (Command::Promote, Phase::Analyzing { step, .. } | Phase::Gated { step, .. })
            | (Command::Approve { .. }, Phase::Gated { step, .. }) => {
                self.after_stage(Stage::Step(step))
            }
            (Command::Promote, Phase::Baking { .. }) => self.after_stage(Stage::Bake),
            (Command::Promote, Phase::Warm { .. }) => promoting(Promotion::Shifting),
            (Command::PromoteFull, phase @ Phase::Promoting { .. }) => phase,
            (Command::PromoteFull, Phase::Paused { at })
                if matches!(*at, Phase::Promoting { .. }) =>
            {
                *at
            }
            (Command::PromoteFull, Phase::Paused { at }) => {
                self.after_order(*at, Command::PromoteFull)
            }
            // Not ready yet: nothing is skipped but the analysis.
            (Command::PromoteFull, phase @ Phase::Deploying { .. }) => {
                self.full = true;
                phase
            }
            (Command::PromoteFull, _) => promoting(Promotion::Shifting),
            (Command::Promote | Command::Approve { .. }, phase) => phase,
        }
    }

    /// The way back from `phase`: straight away where stable was not touched, else by restoring it first.
    fn retreat(&self, phase: Phase, cause: Cause) -> Phase {
        match phase {
            Phase::Paused { at } => self.retreat(*at, cause),
            Phase::Promoting {
                stage: Promotion::Updating | Promotion::Returning,
                ..
            } => rolling_back(cause, Retreat::Restoring { canary: true }),
            Phase::Promoting {
                stage: Promotion::Removing,
                ..
            } => rolling_back(cause, Retreat::Restoring { canary: false }),
            Phase::Promoted | Phase::RolledBack { .. } | Phase::RollingBack { .. } => phase,
            Phase::Deploying { .. }
            | Phase::Analyzing { .. }
            | Phase::Gated { .. }
            | Phase::Baking { .. }
            | Phase::Warm { .. }
            | Phase::Promoting {
                stage: Promotion::Shifting,
                ..
            } => {
                let weight = self.desired_in(&phase).weight;
                let is_gone = self.observed.stable_replicas == 0 && self.stable_replicas > 0;
                if is_gone && weight > Weight::ZERO {
                    rolling_back(cause, Retreat::Regaining { weight })
                } else {
                    rolling_back(cause, Retreat::Leaving)
                }
            }
        }
    }

    pub(super) fn stage_of(&self, phase: &Phase) -> Option<Stage> {
        match phase {
            Phase::Analyzing { step, .. } | Phase::Gated { step, .. } => Some(Stage::Step(*step)),
            Phase::Baking { .. } => Some(Stage::Bake),
            Phase::Warm { .. } => Some(Stage::Warm),
            Phase::Paused { at } => self.stage_of(at),
            Phase::Deploying { .. }
            | Phase::Promoting { .. }
            | Phase::RollingBack { .. }
            | Phase::Promoted
            | Phase::RolledBack { .. } => None,
        }
    }

    fn after_stage(&self, stage: Stage) -> Phase {
        let elapsed = Duration::ZERO;
        match stage {
            Stage::Step(step) => match self.spec.plan.steps().get(step + 1) {
                Some(Step::Weight { .. }) => Phase::Analyzing {
                    step: step + 1,
                    elapsed,
                },
                Some(Step::Gate { .. }) => Phase::Gated {
                    step: step + 1,
                    elapsed,
                },
                None => Phase::Baking { elapsed },
            },
            Stage::Bake | Stage::Warm => Phase::Warm { elapsed },
        }
    }
}

fn promoting(stage: Promotion) -> Phase {
    Phase::Promoting {
        stage,
        elapsed: Duration::ZERO,
    }
}

fn rolling_back(cause: Cause, stage: Retreat) -> Phase {
    Phase::RollingBack {
        cause,
        stage,
        elapsed: Duration::ZERO,
    }
}
