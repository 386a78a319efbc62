//! One simulated release: the real state machine and the real judge, on synthetic traffic.

use rollout::judge::{Decision, Grounds, Judged, Proof};
use rollout::plan::{Ready, RouteMatch, Sticky};
use rollout::rollout::{Ruling, Stage};
use rollout::{
    Cause, Command, Deadlines, Desired, Duration, Event, Guard, Judge, Observed, Phase, Placement,
    Release, Rollout, RolloutId, ServiceName, Spec, Timestamp, Verdict,
};

use super::traffic::{Model, TICK, World};
use crate::reconciler::signal_name;

/// The deadlines of `friday.yml`, by default.
const DEADLINES: Deadlines = Deadlines {
    ready: Duration::from_secs(5 * 60),
    evidence: Duration::from_secs(30 * 60),
    rollout: Duration::from_secs(2 * 60 * 60),
};

/// No release is followed for longer than this: a plan whose deadlines are weeks would never come to an end here.
const FOLLOWED_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How one release ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Outcome {
    pub(super) end: End,
    /// From the canary's first second to the verdict that ended it; from when it began to differ, if that is when it was alone.
    pub(super) seconds: f64,
    /// The steps that it passed, in order; not the bake.
    pub(super) passed: Vec<Passed>,
    /// Requests that the canary got.
    pub(super) canary_requests: f64,
    /// The canary's failed requests until then.
    pub(super) failed: f64,
    /// Of these, those that would not have failed on stable, in the mean.
    pub(super) excess: f64,
}

/// A step that was passed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Passed {
    /// Its index in the plan.
    pub(super) step: usize,
    /// How long it took, with the wait for a weight that is not in force yet.
    pub(super) seconds: f64,
    /// Canary requests that counted for a proof by then, in this step and before.
    pub(super) counted: u64,
    /// The proofs that were not there when its time was over; none where all were.
    pub(super) unproven: Vec<Proof>,
}

/// In what it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// The bake was over and the judge calm, and while stable was kept warm nothing spoke against the canary. Stable is not
    /// yet replaced.
    Promoted,
    /// On evidence, by this signal.
    RolledBack(String),
    /// On a deadline.
    Undecided,
}

/// A rollout whose canary is ready and about to get its first request, as all rollouts of a model begin.
pub(super) fn beginning(model: &Model) -> Rollout {
    let release = &model.scenario.plan;
    let service = ServiceName::try_from("simulated".to_owned()).expect("letters are a name");
    let spec = Spec {
        service,
        port: 80,
        ready: Ready {
            path: "/".to_owned(),
        },
        route: RouteMatch {
            host: "*".to_owned(),
            path: "/".to_owned(),
        },
        sticky: Sticky::None,
        shield: false,
        proxy: rollout::proxy::ProxySpec::default(),
        plan: release.plan.clone(),
        bake: release.bake,
        keep_warm: release.keep_warm,
        deadlines: DEADLINES,
        policy: rollout::Policy::default(),
        guard: Guard {
            warm_up: release.warm_up,
            ..Guard::default()
        },
        notify: rollout::Notify::default(),
    };
    begin(spec, model)
}

/// A rollout by this spec, at the same point.
pub(super) fn begin(spec: Spec, model: &Model) -> Rollout {
    let service = spec.service.clone();
    let rollout = Rollout::new(
        RolloutId::new(&service, 1),
        service,
        String::new(),
        String::new(),
        Release::new("stable", "sha256:1", None),
        Release::new("canary", "sha256:2", None),
        spec,
        false,
        Timestamp::UNIX_EPOCH,
    );
    let tasks = model.scenario.nodes.stable.0;
    // Tasks are always ready in time here: what is judged is traffic, and a canary that never starts has none. By the rate
    // the rollout itself passes over steps that are too small for it (JUDGE 2.10).
    let observed = Observed {
        stable_replicas: tasks,
        stable_ready: tasks,
        canary_exists: true,
        canary_ready: tasks,
        requests_per_second: Some(model.rate),
        ..Observed::default()
    };
    rollout.on(Event::Observed(observed), Timestamp::UNIX_EPOCH)
}

/// Runs a rollout to its end, as the reconciler would: each second what came is judged, and what was ruled is done. At a
/// gate somebody approves at once.
pub(super) fn run(model: &Model, beginning: &Rollout, seed: u64) -> Outcome {
    let mut rollout = beginning.clone();
    let guard = rollout.spec.guard.clone();
    let mut world = World::new(model, seed);
    let mut judge = Judge::new(&guard, &world.baseline(&guard));
    let (mut elapsed, mut failed, mut failed_on_stable) = (Duration::ZERO, 0, 0.0);
    let mut canary_requests = 0;
    let mut steps = Steps::default();
    let end = loop {
        let Desired { weight, canary, .. } = rollout.desired();
        let nodes = match canary {
            Placement::Run { replicas, .. } => replicas,
            Placement::Absent | Placement::Keep => 0,
        };
        if world.counts_from_now(weight) {
            (elapsed, failed, failed_on_stable) = (Duration::ZERO, 0, 0.0);
        }
        let slice = world.slice(weight, nodes);
        elapsed += TICK;
        failed += slice.failed;
        failed_on_stable += slice.failed_on_stable;
        canary_requests += slice.canary_requests();
        // Nothing here depends on the time of day.
        let now = Timestamp::UNIX_EPOCH;
        rollout = rollout.on(Event::Passed(TICK), now);
        if let Some((stage, position)) = rollout.position() {
            for Judged { verdict, .. } in judge.observe(&slice.block, &guard, &position) {
                steps.see(stage, &verdict, elapsed);
                let ruling = ruling(&verdict.decision);
                rollout = rollout.on(Event::Judged { stage, ruling }, now);
            }
        }
        if matches!(rollout.phase, Phase::Gated { .. }) {
            let by = String::new();
            rollout = rollout.on(Event::Ordered(Command::Approve { by }), now);
        }
        if let Some(end) = end(&rollout) {
            break end;
        }
        if elapsed >= FOLLOWED_MAX {
            break End::Undecided;
        }
    };
    Outcome {
        end,
        seconds: elapsed.as_secs_f64(),
        passed: steps.passed,
        canary_requests: canary_requests as f64,
        failed: failed as f64,
        excess: failed as f64 - failed_on_stable,
    }
}

/// The steps of one release, as they pass.
#[derive(Debug, Default)]
struct Steps {
    passed: Vec<Passed>,
    /// When the last of them did.
    since: Duration,
    /// Canary requests that counted before that.
    counted: u64,
}

impl Steps {
    /// Takes a verdict on one of them.
    fn see(&mut self, stage: Stage, verdict: &Verdict, elapsed: Duration) {
        let (Stage::Step(step), Decision::Pass { by }) = (stage, &verdict.decision) else {
            return;
        };
        // A verdict that came late speaks of a step that is over.
        if self.passed.last().is_some_and(|last| last.step >= step) {
            return;
        }
        self.counted += verdict.in_step.canary.requests;
        let unproven = match by {
            Grounds::Proof | Grounds::Calm => Vec::new(),
            Grounds::TimeOut { .. } => {
                let proofs = verdict.proofs.iter().copied();
                proofs.filter(|proof| !proof.is_done()).collect()
            }
        };
        self.passed.push(Passed {
            step,
            seconds: (elapsed - self.since).as_secs_f64(),
            counted: self.counted,
            unproven,
        });
        self.since = elapsed;
    }
}

/// What a decision means for the rollout.
fn ruling(decision: &Decision) -> Ruling {
    match decision {
        Decision::Pass { .. } => Ruling::Pass,
        Decision::Fail { signal, .. } => Ruling::Fail {
            signal: signal_name(signal).to_owned(),
        },
        Decision::Hold { .. } | Decision::Inconclusive { .. } => Ruling::Hold,
    }
}

/// Whether the judge's part is over, and how.
fn end(rollout: &Rollout) -> Option<End> {
    match &rollout.phase {
        Phase::Warm { .. } if rollout.spec.keep_warm > Duration::ZERO => None,
        Phase::Deploying { .. }
        | Phase::Analyzing { .. }
        | Phase::Gated { .. }
        | Phase::Baking { .. }
        | Phase::Paused { .. } => None,
        Phase::Warm { .. } | Phase::Promoting { .. } | Phase::Promoted => Some(End::Promoted),
        Phase::RollingBack {
            cause: Cause::Evidence { signal },
            ..
        }
        | Phase::RolledBack {
            cause: Cause::Evidence { signal },
        } => Some(End::RolledBack(signal.clone())),
        Phase::RollingBack { .. } | Phase::RolledBack { .. } => Some(End::Undecided),
    }
}
