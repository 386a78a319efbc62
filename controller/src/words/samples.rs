//! Made-up rollouts and verdicts, for the tests of what people read.

use rollout::desired::Observed;
use rollout::judge::{ArmCounts, Counts, Decision, Evidence, Margin, Percentile, Proof};
use rollout::{Duration, Phase, Release, Rollout, RolloutId, Timestamp, Verdict, Weight};

use crate::api::types::{
    ArmView, RolloutView, SignalsView, StepState, StepView, TaskView, WeightView,
};
use crate::spec::{self, ReadOptions};

pub(crate) fn timestamp(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// `tweets-worker-3`, from v1 to v2, with a gate.
pub(crate) fn rollout(phase: Phase) -> Rollout {
    let text = "service: tweets-worker\nport: 9000\nplan:\n  - { weight: 1% }\n  - { weight: 10% }\n  \
                - { gate: release-managers }\n  - { weight: 50% }\n";
    let spec = spec::read(text, "friday.yml", &ReadOptions::default()).unwrap();
    let release =
        |image: &str, digest: &str| Release::new(image, digest, Some("c0ffee123456".into()));
    let mut rollout = Rollout::new(
        RolloutId::new(&spec.service, 3),
        spec.service.clone(),
        "production".into(),
        "ann".into(),
        release("worker:v1", "sha256:1111111111112222"),
        release("worker:v2", "sha256:aaaaaaaaaaaabbbb"),
        spec,
        false,
        timestamp("2025-03-07T09:00:00Z"),
    );
    rollout.observed = Observed {
        stable_replicas: 2,
        stable_ready: 2,
        canary_ready: 1,
        weight_seen: Weight::from_percent(10),
        ..Observed::default()
    };
    rollout.phase = phase;
    rollout
}

/// A verdict on the second step with this decision.
pub(crate) fn verdict(decision: Decision) -> Verdict {
    let counts = |requests, bad, slow| ArmCounts {
        requests,
        bad,
        timed: requests - bad,
        slow,
    };
    Verdict {
        rules: 1,
        step: 1,
        weight: Weight::from_percent(10).unwrap(),
        decision,
        evidence: Evidence {
            warm_up: f64::NEG_INFINITY,
            late_nodes: f64::NEG_INFINITY,
            errors: 2.4,
            latency: [-0.3, 0.1, 0.7],
            saturation: 0.0,
            checks: 0.0,
            total: 1.6,
        },
        rollback_at: 100_f64.ln(),
        block: Counts {
            canary: counts(12, 1, [6, 1, 0]),
            stable: counts(108, 0, [54, 11, 1]),
        },
        in_step: Counts {
            canary: counts(60, 12, [20, 5, 1]),
            stable: counts(540, 2, [270, 55, 6]),
        },
        step_elapsed: Duration::from_millis(14_400),
        idle: Duration::ZERO,
        canary_cold: 7,
        thresholds_us: [Some(21_000.0), Some(38_500.0), None],
        dispersion: [1.0; 4],
        stable_error_rate: 0.0037,
        excess_errors: Some(0.19),
        bound: None,
        proofs: vec![
            Proof {
                margin: Margin::Errors { excess: 0.02 },
                log_e: 2.5,
                needed: 10_f64.ln(),
            },
            Proof {
                margin: Margin::Latency {
                    percentile: Percentile::P50,
                    factor: 1.41,
                },
                log_e: 1.1,
                needed: 10_f64.ln(),
            },
        ],
        split_mismatch: 0.0,
        checks: Vec::new(),
        kinds: Vec::new(),
        watched: None,
    }
}

fn arm(release: &Release, tasks: &[(&str, bool)], replicas: u32) -> ArmView {
    let task = |(id, ready): &(&str, bool)| TaskView {
        id: (*id).into(),
        release: release.id.to_string(),
        endpoint: "127.0.0.1:9001".into(),
        node: "node-a".into(),
        ready: *ready,
        memory_bytes: Some(13 << 20),
        memory_bytes_max: Some(256 << 20),
        cpu_seconds: Some(4.2),
        done: 200,
        failed: 1,
        in_flight: 3,
    };
    ArmView {
        release: release.clone(),
        tasks: tasks.iter().map(task).collect(),
        replicas,
        restarts: 0,
        trouble: None,
        signals: SignalsView {
            requests_per_second: 20.04,
            error_ratio: Some(0.0012),
            latency_p50_seconds: Some(0.0204),
            latency_p99_seconds: Some(0.0661),
            ..SignalsView::default()
        },
    }
}

/// What the API says of such a rollout while it is at its second step, or of one that ended.
pub(crate) fn view(phase: Phase, verdict: Option<Verdict>) -> RolloutView {
    let rollout = rollout(phase);
    let step = |kind: &str, percent, state| StepView {
        kind: kind.into(),
        weight_percent: percent,
        approvers: (kind == "gate").then(|| "release-managers".into()),
        least_seconds: 10.0,
        most_seconds: Some(300.0),
        state,
    };
    let (ended, promoted) = (rollout.phase.is_ended(), rollout.phase == Phase::Promoted);
    let state = |running| if promoted { StepState::Done } else { running };
    let none: &[(&str, bool)] = &[];
    let set = if ended { 0.0 } else { 10.0 };
    let stable = [("t-11", true), ("t-12", true)];
    let canary = [("t-31", true), ("t-32", false)];
    RolloutView {
        id: rollout.id.to_string(),
        number: 3,
        service: rollout.service.to_string(),
        environment: rollout.environment.clone(),
        author: rollout.author.clone(),
        created: rollout.created,
        moved: rollout.moved,
        elapsed_seconds: 34.0,
        message: super::message(&rollout, verdict.as_ref()),
        admission: rollout::Admission::default(),
        weight: WeightView {
            set_percent: set,
            seen_percent: Some(set),
        },
        steps: vec![
            step("weight", Some(1.0), state(StepState::Done)),
            step("weight", Some(10.0), state(StepState::Current)),
            step("gate", None, state(StepState::Pending)),
            step("weight", Some(50.0), state(StepState::Pending)),
            step("bake", Some(80.0), state(StepState::Pending)),
            step("warm", Some(100.0), state(StepState::Pending)),
        ],
        stable: arm(&rollout.stable, &stable, 2),
        canary: if ended {
            arm(&rollout.canary, none, 0)
        } else {
            arm(&rollout.canary, &canary, 2)
        },
        skipped: rollout.skipped,
        checks: Vec::new(),
        verdict,
        ending: rollout.ending(),
        origin: None,
        lease: None,
        superseded_by: None,
        phase: rollout.phase,
    }
}
