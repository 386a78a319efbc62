//! From what the loop knows to what people see.

use std::collections::BTreeMap;

use proxy_api::{Arm, Endpoint};
use rollout::signals::bucket_edge_us;
use rollout::{
    Check, Duration, LatencyHistogram, Phase, Release, Rollout, ServiceName, Step, Weight,
};

use super::Api;
use super::types::{
    ArmView, CheckState, CheckView, RolloutSummary, RolloutView, ServiceView, SignalsView,
    StepState, StepView, TaskView, WeightView,
};
use crate::fleet::{Fleet, TaskWork};
use crate::incidents::Incident;
use crate::orchestrator::{Group, Task};
use crate::reconciler::ServiceSnapshot;
use crate::saturation::ArmUsage;
use crate::store::Saved;
use crate::words;

#[expect(
    clippy::cast_precision_loss,
    reason = "for display; counts below 2^53 are exact"
)]
pub(crate) fn as_f64(value: u64) -> f64 {
    value as f64
}

fn percent(weight: Weight) -> f64 {
    f64::from(weight.basis_points()) / 100.0
}

/// The upper edge of the bucket that holds the `q`th share of the latencies, in seconds.
pub(super) fn quantile(histogram: &LatencyHistogram, q: f64) -> Option<f64> {
    let total = histogram.total();
    let rank = q * as_f64(total);
    let mut below = 0;
    histogram.iter().find_map(|(bucket, count)| {
        below += u64::from(count);
        (as_f64(below) >= rank).then(|| bucket_edge_us(bucket + 1) / 1e6)
    })
}

/// The golden signals of one arm, as the proxies last reported them.
pub(super) fn signals(
    fleet: &Fleet,
    service: &ServiceName,
    arm: Arm,
    now: Duration,
    usage: ArmUsage,
) -> SignalsView {
    let recent = fleet.recent(service.as_str(), arm, now);
    let seconds = recent.window.as_secs_f64();
    SignalsView {
        requests_per_second: if seconds > 0.0 {
            as_f64(recent.requests) / seconds
        } else {
            0.0
        },
        error_ratio: (recent.requests > 0).then(|| as_f64(recent.bad) / as_f64(recent.requests)),
        latency_p50_seconds: quantile(&recent.latency, 0.50),
        latency_p90_seconds: quantile(&recent.latency, 0.90),
        latency_p99_seconds: quantile(&recent.latency, 0.99),
        memory_bytes: usage.memory_bytes,
        cpu_cores: usage.cpu_cores,
    }
}

fn task(task: &Task, work: &BTreeMap<Endpoint, TaskWork>) -> TaskView {
    let work = work.get(&task.endpoint).copied().unwrap_or_default();
    TaskView {
        id: task.id.clone(),
        release: task.release.to_string(),
        endpoint: task.endpoint.to_string(),
        node: task.node.clone(),
        ready: task.ready,
        memory_bytes: task.memory_bytes,
        memory_bytes_max: task.memory_bytes_max,
        cpu_seconds: task.cpu.map(|cpu| cpu.as_secs_f64()),
        done: work.done,
        failed: work.failed,
        in_flight: work.in_flight,
    }
}

fn arm(
    release: &Release,
    group: Option<&Group>,
    work: &BTreeMap<Endpoint, TaskWork>,
    signals: SignalsView,
) -> ArmView {
    ArmView {
        release: release.clone(),
        tasks: group
            .map(|group| group.tasks.iter().map(|at| task(at, work)).collect())
            .unwrap_or_default(),
        replicas: group.map_or(0, |group| group.replicas),
        restarts: group.map_or(0, |group| group.restarts),
        trouble: group.and_then(|group| group.trouble.clone()),
        signals,
    }
}

/// The steps of a rollout, the bake and the warm phase, and which is behind, here or ahead.
fn steps(rollout: &Rollout) -> Vec<StepView> {
    let plan = rollout.spec.plan.steps();
    let (bake, warm, past) = (plan.len(), plan.len() + 1, plan.len() + 2);
    // An ended rollout went as far as it went: of a rolled back one nothing is current.
    let here = match rollout.running_phase() {
        Phase::Analyzing { step, .. } | Phase::Gated { step, .. } => Some(*step),
        Phase::Baking { .. } => Some(bake),
        Phase::Warm { .. } => Some(warm),
        Phase::Promoting { .. } | Phase::Promoted => Some(past),
        Phase::Deploying { .. }
        | Phase::Paused { .. }
        | Phase::RollingBack { .. }
        | Phase::RolledBack { .. } => None,
    };
    let skipped = rollout.skipped.map_or(0, |skipped| skipped.steps);
    let state = |index: usize| match here {
        _ if index < skipped => StepState::Skipped,
        Some(here) if index < here => StepState::Done,
        Some(here) if index == here => StepState::Current,
        Some(_) | None => StepState::Pending,
    };
    let seconds = |duration: Duration| duration.as_secs_f64();
    let mut views: Vec<StepView> = plan
        .iter()
        .enumerate()
        .map(|(index, step)| match step {
            Step::Weight { weight, hold } => StepView {
                kind: "weight".into(),
                weight_percent: Some(percent(*weight)),
                approvers: None,
                least_seconds: seconds(hold.least),
                most_seconds: Some(seconds(hold.most)),
                state: state(index),
            },
            Step::Gate { approvers } => StepView {
                kind: "gate".into(),
                weight_percent: None,
                approvers: Some(approvers.clone()),
                least_seconds: 0.0,
                most_seconds: None,
                state: state(index),
            },
        })
        .collect();
    let last = |kind: &str, weight: Weight, period: Duration, index: usize| StepView {
        kind: kind.into(),
        weight_percent: Some(percent(weight)),
        approvers: None,
        least_seconds: seconds(period),
        most_seconds: None,
        state: state(index),
    };
    views.push(last(
        "bake",
        rollout.spec.bake.weight,
        rollout.spec.bake.period,
        bake,
    ));
    views.push(last("warm", Weight::ALL, rollout.spec.keep_warm, warm));
    views
}

/// The checks of a rollout's guard, as its last verdict has them; before the first, without data.
fn checks(saved: &Saved) -> Vec<CheckView> {
    let seen = saved
        .verdict
        .as_ref()
        .map_or(&[][..], |verdict| &verdict.checks);
    let view = |check: &Check| match seen.iter().find(|seen| seen.name == check.name) {
        Some(seen) => CheckView {
            name: check.name.clone(),
            bound: words::bound(&check.bound),
            canary: seen.canary,
            stable: seen.stable,
            limit: check.bound.limit(seen.stable),
            state: words::check_state(seen, check.grace),
            message: words::check(seen),
        },
        None => CheckView {
            name: check.name.clone(),
            bound: words::bound(&check.bound),
            canary: None,
            stable: None,
            limit: check.bound.limit(None),
            state: CheckState::NoData,
            message: format!("check {:?}: nothing judged yet", check.name),
        },
    };
    saved.rollout.spec.guard.checks.iter().map(view).collect()
}

/// What is said of a rollout that an incident holds.
fn held(api: &Api, rollout: &Rollout) -> Option<String> {
    let snapshot = api.handle.snapshot.borrow().clone();
    let is_paused = matches!(rollout.phase, Phase::Paused { .. });
    if !is_paused || !snapshot.held.contains(&rollout.id) {
        return None;
    }
    let about = |incident: &&Incident| {
        let service = incident.service.as_deref();
        let names = |name: &ServiceName| service == Some(name.as_str());
        names(&rollout.service) || !snapshot.services.keys().any(names)
    };
    let incident = snapshot.incidents.iter().find(about)?;
    Some(format!(
        "held by the incident {}; it goes on when that is resolved, `friday abort {}` goes back now",
        incident.words(),
        rollout.id
    ))
}

/// A rollout, whole. What runs of it is known only while it is in charge of its service.
pub(super) fn rollout(api: &Api, saved: &Saved, service: Option<&ServiceSnapshot>) -> RolloutView {
    let rollout = &saved.rollout;
    let now = api.clock.elapsed();
    let newest = |snapshot: &&ServiceSnapshot| {
        snapshot
            .open
            .first()
            .or(snapshot.last.as_ref())
            .is_some_and(|first| first.rollout.id == rollout.id)
    };
    let in_charge = service.filter(newest);
    let state = in_charge.and_then(|snapshot| snapshot.state.as_ref());
    let usage = in_charge.map(|snapshot| snapshot.usage).unwrap_or_default();
    let signals_of = |side: Arm, usage: ArmUsage| match in_charge {
        Some(_) => signals(&api.fleet, &rollout.service, side, now, usage),
        None => SignalsView::default(),
    };
    let work = match in_charge {
        Some(_) => api.fleet.work(rollout.service.as_str(), now),
        None => BTreeMap::new(),
    };
    let superseded_by = match rollout.cause() {
        Some(rollout::Cause::Superseded { by }) => Some(by.to_string()),
        Some(_) | None => None,
    };
    RolloutView {
        id: rollout.id.to_string(),
        number: saved.number,
        service: rollout.service.to_string(),
        environment: rollout.environment.clone(),
        author: rollout.author.clone(),
        created: rollout.created,
        moved: rollout.moved,
        elapsed_seconds: rollout.elapsed.as_secs_f64(),
        phase: rollout.phase.clone(),
        message: held(api, rollout)
            .unwrap_or_else(|| words::message(rollout, saved.verdict.as_ref())),
        admission: rollout.admission.clone(),
        weight: WeightView {
            set_percent: percent(rollout.desired().weight),
            seen_percent: in_charge
                .and_then(|_| api.fleet.weight_seen(rollout.service.as_str(), now))
                .map(percent),
        },
        steps: steps(rollout),
        skipped: rollout.skipped,
        checks: checks(saved),
        stable: arm(
            &rollout.stable,
            state.map(|state| &state.stable),
            &work,
            signals_of(Arm::Stable, usage.stable),
        ),
        canary: arm(
            &rollout.canary,
            state.and_then(|state| state.canary.as_ref()),
            &work,
            signals_of(Arm::Canary, usage.canary),
        ),
        verdict: saved.verdict.clone(),
        ending: rollout.ending(),
        origin: saved.origin.clone(),
        lease: saved.lease.clone(),
        superseded_by,
    }
}

/// A rollout in a list.
pub(super) fn summary(saved: &Saved) -> RolloutSummary {
    let rollout = &saved.rollout;
    RolloutSummary {
        id: rollout.id.to_string(),
        number: saved.number,
        service: rollout.service.to_string(),
        environment: rollout.environment.clone(),
        author: rollout.author.clone(),
        created: rollout.created,
        moved: rollout.moved,
        canary: rollout.canary.clone(),
        phase: rollout.phase.clone(),
        weight_percent: percent(rollout.desired().weight),
        message: words::message(rollout, saved.verdict.as_ref()),
        ending: rollout.ending(),
    }
}

/// A service and its newest rollout.
pub(super) fn service(
    api: &Api,
    name: &ServiceName,
    snapshot: &ServiceSnapshot,
) -> Option<ServiceView> {
    let state = snapshot.state.as_ref()?;
    let now = api.clock.elapsed();
    let signals = signals(&api.fleet, name, Arm::Stable, now, snapshot.usage.stable);
    let work = api.fleet.work(name.as_str(), now);
    Some(ServiceView {
        service: name.to_string(),
        stable: arm(&state.stable.release, Some(&state.stable), &work, signals),
        rollout: snapshot.open.last().or(snapshot.last.as_ref()).map(summary),
    })
}
