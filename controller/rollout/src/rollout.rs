//! One attempt to make a canary the stable release: where it is, and what moves it.
//!
//! ```text
//! Deploying → Analyzing{step} ⇄ Gated{step} → Baking → Warm → Promoting → Promoted
//!      └───────────┴───────────────┴───────────┴───────┴─────────┴→ RollingBack → RolledBack
//! ```
//! Any of the upper row may be paused and resumed.

mod desired;
mod transitions;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::desired::Observed;
use crate::judge::Position;
use crate::plan::{Hold, Spec, Step};
use crate::policy::{Admission, Emergency, same_person};
use crate::release::{Release, ReleaseId, RolloutId, ServiceName};
use crate::serial::millis;
use crate::weight::Weight;
use crate::{Duration, Timestamp};

/// Longest wait for requests in flight to a release that traffic has left, and for proxies to say that they left it.
/// Longer than the proxies' default response time-out of 10 s with a retry, short enough for a person who watches.
pub const DRAIN_MAX: Duration = Duration::from_secs(30);

/// Longest wait for the canary's tasks to be gone before the rollout counts as ended. An ended rollout still asks for
/// their removal, so nothing is left over; only its ending need not wait for a slow engine.
pub const REMOVE_MAX: Duration = Duration::from_secs(60);

/// Where a rollout is. What matters in one phase only lives in that phase. Elapsed time counts only while the
/// controller is up and the rollout not paused: it is saved as it passes, so neither downtime nor a jump of the clock
/// moves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Phase {
    /// The canary's tasks are starting; it gets no request.
    Deploying {
        /// Time in this phase.
        #[serde(rename = "elapsed_ms", with = "millis")]
        #[schemars(with = "u64")]
        elapsed: Duration,
    },
    /// The canary gets the step's weight and is judged.
    Analyzing {
        /// Index of the step in the plan, from 0.
        step: usize,
        /// Time in this step.
        #[serde(rename = "elapsed_ms", with = "millis")]
        #[schemars(with = "u64")]
        elapsed: Duration,
    },
    /// Waits for a person at the weight before.
    Gated {
        /// Index of the gate in the plan, from 0.
        step: usize,
        /// Time at this gate.
        #[serde(rename = "elapsed_ms", with = "millis")]
        #[schemars(with = "u64")]
        elapsed: Duration,
    },
    /// The last comparison, most requests on the canary.
    Baking {
        /// Time in this phase.
        #[serde(rename = "elapsed_ms", with = "millis")]
        #[schemars(with = "u64")]
        elapsed: Duration,
    },
    /// Every request on the canary, stable up and idle.
    Warm {
        /// Time in this phase.
        #[serde(rename = "elapsed_ms", with = "millis")]
        #[schemars(with = "u64")]
        elapsed: Duration,
    },
    /// A person stopped it where it was; requests go on as they went.
    Paused {
        /// Where it goes on.
        at: Box<Phase>,
    },
    /// The stable group is being brought to the canary's release.
    Promoting {
        /// How far that is.
        stage: Promotion,
        /// Time in this stage.
        #[serde(rename = "elapsed_ms", with = "millis")]
        #[schemars(with = "u64")]
        elapsed: Duration,
    },
    /// Requests go back to stable, and the canary goes.
    RollingBack {
        /// Why.
        cause: Cause,
        /// How far that is.
        stage: Retreat,
        /// Time in this stage.
        #[serde(rename = "elapsed_ms", with = "millis")]
        #[schemars(with = "u64")]
        elapsed: Duration,
    },
    /// Ended: the canary's release is the stable one.
    Promoted,
    /// Ended: the release before is the stable one, as it was.
    RolledBack {
        /// Why.
        cause: Cause,
    },
}

impl Phase {
    /// The same place with no time spent in it: equal for two phases that differ in elapsed time alone.
    #[must_use]
    pub fn at_start(&self) -> Self {
        let elapsed = Duration::ZERO;
        match self.clone() {
            Self::Deploying { .. } => Self::Deploying { elapsed },
            Self::Analyzing { step, .. } => Self::Analyzing { step, elapsed },
            Self::Gated { step, .. } => Self::Gated { step, elapsed },
            Self::Baking { .. } => Self::Baking { elapsed },
            Self::Warm { .. } => Self::Warm { elapsed },
            Self::Paused { at } => Self::Paused {
                at: Box::new(at.at_start()),
            },
            Self::Promoting { stage, .. } => Self::Promoting { stage, elapsed },
            Self::RollingBack { cause, stage, .. } => Self::RollingBack {
                cause,
                stage,
                elapsed,
            },
            ended @ (Self::Promoted | Self::RolledBack { .. }) => ended,
        }
    }

    /// Time spent in this place; of a paused one, in the place it paused at.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        match self {
            Self::Deploying { elapsed }
            | Self::Analyzing { elapsed, .. }
            | Self::Gated { elapsed, .. }
            | Self::Baking { elapsed }
            | Self::Warm { elapsed }
            | Self::Promoting { elapsed, .. }
            | Self::RollingBack { elapsed, .. } => *elapsed,
            Self::Paused { at } => at.elapsed(),
            Self::Promoted | Self::RolledBack { .. } => Duration::ZERO,
        }
    }

    /// The phase's name, as it stands in JSON, metrics and on the terminal.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Deploying { .. } => "deploying",
            Self::Analyzing { .. } => "analyzing",
            Self::Gated { .. } => "gated",
            Self::Baking { .. } => "baking",
            Self::Warm { .. } => "warm",
            Self::Paused { .. } => "paused",
            Self::Promoting { .. } => "promoting",
            Self::RollingBack { .. } => "rolling_back",
            Self::Promoted => "promoted",
            Self::RolledBack { .. } => "rolled_back",
        }
    }

    /// Whether nothing moves it any more.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(self, Self::Promoted | Self::RolledBack { .. })
    }
}

/// How far a promotion in place is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Promotion {
    /// Every request moves to the canary.
    Shifting,
    /// The stable group, which serves nothing, is updated to the release.
    Updating,
    /// Requests move back to the stable group, which is ready and runs the release.
    Returning,
    /// The canary group is removed.
    Removing,
}

/// How far a rollback is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Retreat {
    /// Somebody took all of stable's tasks away, by scaling it to nothing or removing it. It gets them back first; the
    /// canary keeps what it has, as far as stable cannot carry it yet.
    Regaining {
        /// The canary's share until then.
        weight: Weight,
    },
    /// The service's owner deploys another release themselves. The canary keeps what the stable group's ready tasks cannot
    /// carry, whichever release they run, until all of them can.
    Yielding {
        /// The canary's share at most.
        weight: Weight,
    },
    /// Promotion had begun: the stable group goes back to the release before. Until it is ready the canary keeps what
    /// stable cannot carry.
    Restoring {
        /// Whether the canary group is still there to carry anything.
        canary: bool,
    },
    /// The canary gets nothing; requests in flight finish.
    Leaving,
    /// The canary group is removed.
    Removing,
}

/// Why a rollout ended early.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Cause {
    /// The judge: the canary is worse.
    Evidence {
        /// The signal that weighed most: `errors`, `latency`, `saturation`, `warm_up`, `restarts`.
        signal: String,
    },
    /// Somebody ended it.
    Person {
        /// Who.
        by: String,
        /// Their words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Somebody refused at a gate.
    Rejected {
        /// Who.
        by: String,
        /// Their words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A newer release took its place.
    Superseded {
        /// The newer rollout.
        by: RolloutId,
    },
    /// The service's owner deployed something else to it meanwhile, past this rollout.
    Overtaken {
        /// What the service runs now.
        release: ReleaseId,
    },
    /// The step found neither harm nor proof before its deadline.
    InsufficientEvidence,
    /// Nobody answered at a gate.
    GateUnanswered,
    /// The whole took too long.
    Deadline,
    /// The canary never became ready.
    NotReady {
        /// Why its last task ended or could not start.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        trouble: Option<String>,
    },
}

/// How a rollout ended, as callers tell endings apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The canary's release is the stable one.
    Promoted,
    /// On evidence.
    RolledBack,
    /// By a person.
    Aborted,
    /// By a newer release, of ours or of the service's owner.
    Superseded,
    /// Not enough evidence, or no answer, before a deadline.
    InsufficientEvidence,
    /// The canary never became ready.
    NotReady,
}

impl Cause {
    /// The ending it leads to.
    #[must_use]
    pub fn ending(&self) -> Ending {
        match self {
            Self::Evidence { .. } => Ending::RolledBack,
            Self::Person { .. } | Self::Rejected { .. } => Ending::Aborted,
            Self::Superseded { .. } | Self::Overtaken { .. } => Ending::Superseded,
            Self::InsufficientEvidence | Self::GateUnanswered | Self::Deadline => {
                Ending::InsufficientEvidence
            }
            Self::NotReady { .. } => Ending::NotReady,
        }
    }
}

/// What a person, or a pipeline for them, may order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// On to the next step without further proof; ends a pause first.
    Promote,
    /// All the way, without further steps.
    PromoteFull,
    /// Stay as it is.
    Pause,
    /// End the pause.
    Resume,
    /// Back to stable. Wins over everything that arrives with it.
    Abort(Cause),
    /// The gate may open.
    Approve {
        /// Who says so.
        by: String,
    },
}

/// The part of a rollout that the judge ruled on, so that a late ruling cannot move another step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// A step of the plan.
    Step(usize),
    /// The bake.
    Bake,
    /// The watch over a canary that has every request, while stable is kept warm.
    Warm,
}

/// What the judge's verdict means for the rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ruling {
    /// Proven no worse than the margin.
    Pass,
    /// Not known yet.
    Hold,
    /// Worse.
    Fail {
        /// The signal that weighed most.
        signal: String,
    },
}

/// What happens to a rollout.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// So much time passed while the controller was up.
    Passed(Duration),
    /// The world was looked at.
    Observed(Observed),
    /// The judge ruled.
    Judged {
        /// On which part.
        stage: Stage,
        /// What.
        ruling: Ruling,
    },
    /// Somebody ordered something.
    Ordered(Command),
    /// A freeze began, in words for people, or none is on.
    Frozen(Option<String>),
}

/// Steps that a rollout passed over because they are too small for its traffic: the canary would have had fewer requests
/// than anything can be proven with (JUDGE 2.10).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Skipped {
    /// How many: it began with the step of this index.
    pub steps: usize,
    /// Requests a second to the service before the canary's first.
    pub requests_per_second: f64,
    /// Canary requests a second that a first step should have, as the guard says.
    pub canary_rate_min: f64,
}

/// One attempt to make a canary the stable release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// Its name.
    pub id: RolloutId,
    /// What is released.
    pub service: ServiceName,
    /// Where, as its author named it: `staging`, `production`; a label.
    pub environment: String,
    /// Who started it.
    pub author: String,
    /// When, for people.
    pub created: Timestamp,
    /// When it last moved to another phase, for people.
    pub moved: Timestamp,
    /// The release served by default; what an abort goes back to.
    pub stable: Release,
    /// The release on trial.
    pub canary: Release,
    /// What it goes by. Its own copy.
    pub spec: Spec,
    /// Whether it goes all the way as soon as it is ready, without analysis: the release was stable before.
    pub full: bool,
    /// Where it is.
    pub phase: Phase,
    /// Time since its start.
    #[serde(rename = "elapsed_ms", with = "millis")]
    pub elapsed: Duration,
    /// The steps that were passed over when it began, if any were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Skipped>,
    /// What holds it that is no evidence: a freeze, missing approvals.
    #[serde(default, skip_serializing_if = "Admission::is_plain")]
    pub admission: Admission,
    /// How many tasks the stable group wanted when it last wanted any; 0 until it was seen.
    #[serde(default)]
    pub stable_replicas: u32,
    /// What was last seen.
    pub observed: Observed,
}

impl Rollout {
    /// A rollout at its start.
    #[must_use]
    #[expect(
        clippy::too_many_arguments,
        reason = "all of them are the rollout; a builder would hide a missing one"
    )]
    pub fn new(
        id: RolloutId,
        service: ServiceName,
        environment: String,
        author: String,
        stable: Release,
        canary: Release,
        spec: Spec,
        full: bool,
        now: Timestamp,
    ) -> Self {
        Self {
            id,
            service,
            environment,
            author,
            created: now,
            moved: now,
            stable,
            canary,
            spec,
            full,
            phase: Phase::Deploying {
                elapsed: Duration::ZERO,
            },
            elapsed: Duration::ZERO,
            skipped: None,
            admission: Admission::default(),
            stable_replicas: 0,
            observed: Observed::default(),
        }
    }

    /// The rollout after `event`. An event that is late, or of another step, changes nothing but what was observed.
    #[must_use]
    pub fn on(mut self, event: Event, now: Timestamp) -> Self {
        let before = self.phase.at_start();
        let phase = self.phase.clone();
        self.phase = match event {
            Event::Passed(time) => self.after_time(phase, time),
            Event::Observed(observed) => {
                self.observed = observed;
                if self.observed.stable_replicas > 0 {
                    self.stable_replicas = self.observed.stable_replicas;
                }
                self.after_observation(phase)
            }
            Event::Judged { stage, ruling } => self.after_ruling(phase, stage, ruling),
            Event::Ordered(command) => self.after_order(phase, command),
            Event::Frozen(frozen) => {
                self.admission.frozen = frozen;
                phase
            }
        };
        if self.phase.at_start() != before {
            self.moved = now;
        }
        self
    }

    /// The same, and no freeze holds it from now on.
    #[must_use]
    pub fn in_emergency(mut self, by: &str, reason: &str) -> Self {
        self.admission.emergency = Some(Emergency {
            by: by.to_owned(),
            reason: reason.to_owned(),
        });
        self
    }

    /// Whether a freeze holds it where it is: time stands still, and no more requests go to the canary. It is still judged,
    /// and the way back is open. Once every request is on the canary there is nothing left to hold: it goes on to its end.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        let grows = match self.running_phase() {
            Phase::Deploying { .. }
            | Phase::Analyzing { .. }
            | Phase::Gated { .. }
            | Phase::Baking { .. } => true,
            Phase::Warm { .. }
            | Phase::Paused { .. }
            | Phase::Promoting { .. }
            | Phase::RollingBack { .. }
            | Phase::Promoted
            | Phase::RolledBack { .. } => false,
        };
        grows && self.admission.is_frozen()
    }

    /// Whether it may not have its first request yet, because people have to approve that.
    #[must_use]
    pub fn lacks_approvals(&self) -> bool {
        matches!(self.running_phase(), Phase::Deploying { .. })
            && self.admission.approvals_missing() > 0
    }

    /// Whether it is ready for its first request and waits for people to approve that.
    #[must_use]
    pub fn awaits_approval(&self) -> bool {
        self.lacks_approvals() && self.observed.canary_ready >= self.first_replicas()
    }

    /// Whether this person may not open its gates: an environment that asks for approvals asks for those of others.
    #[must_use]
    pub fn needs_other_eyes(&self, by: &str) -> bool {
        self.admission.approvals_min > 0 && same_person(&self.author, by)
    }

    /// How it ended, once it has.
    #[must_use]
    pub fn ending(&self) -> Option<Ending> {
        if self.phase == Phase::Promoted {
            Some(Ending::Promoted)
        } else if let Phase::RolledBack { cause } = &self.phase {
            Some(cause.ending())
        } else {
            None
        }
    }

    /// Why it is going back, or went.
    #[must_use]
    pub fn cause(&self) -> Option<&Cause> {
        if let Phase::RollingBack { cause, .. } | Phase::RolledBack { cause } = &self.phase {
            Some(cause)
        } else {
            None
        }
    }

    /// The phase it is in, or would be in if it were not paused.
    #[must_use]
    pub fn running_phase(&self) -> &Phase {
        if let Phase::Paused { at } = &self.phase {
            at
        } else {
            &self.phase
        }
    }

    /// What the judge must know of where the rollout is; `None` while there is nothing to compare.
    #[must_use]
    pub fn position(&self) -> Option<(Stage, Position)> {
        let plan = &self.spec.plan;
        match self.running_phase() {
            Phase::Analyzing { step, .. } => Some((Stage::Step(*step), self.position_of(*step))),
            // A gate waits at the step before it; the judge goes on watching there.
            Phase::Gated { step, .. } => {
                Some((Stage::Step(*step), self.position_of(step.saturating_sub(1))))
            }
            Phase::Baking { .. } => Some((
                Stage::Bake,
                Position {
                    step: plan.steps().len(),
                    weight: self.spec.bake.weight,
                    next: None,
                    last_gate: false,
                    hold: Hold {
                        least: self.spec.bake.period,
                        most: self.spec.deadlines.evidence,
                    },
                },
            )),
            Phase::Warm { .. } if self.spec.guard.watch => Some((
                Stage::Warm,
                Position {
                    step: plan.steps().len() + 1,
                    weight: Weight::ALL,
                    next: None,
                    last_gate: false,
                    hold: Hold {
                        least: self.spec.keep_warm,
                        most: self.spec.deadlines.rollout,
                    },
                },
            )),
            Phase::Deploying { .. }
            | Phase::Warm { .. }
            | Phase::Paused { .. }
            | Phase::Promoting { .. }
            | Phase::RollingBack { .. }
            | Phase::Promoted
            | Phase::RolledBack { .. } => None,
        }
    }

    fn position_of(&self, step: usize) -> Position {
        let plan = &self.spec.plan;
        let hold = match plan.steps().get(step) {
            Some(Step::Weight { hold, .. }) => *hold,
            Some(Step::Gate { .. }) | None => Hold {
                least: Duration::ZERO,
                most: self.spec.deadlines.evidence,
            },
        };
        let after = plan.weight_after(step);
        Position {
            step,
            weight: plan.weight_at(step),
            next: Some(after.unwrap_or(self.spec.bake.weight)),
            last_gate: after.is_none(),
            hold,
        }
    }
}

#[cfg(test)]
mod tests;
