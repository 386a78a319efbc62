//! The controller's states as metrics, beside those in [`super::health`]: of itself, of each rollout's verdict, and of tasks.

use prometheus::{GaugeVec, Opts, Registry};
use rollout::judge::{Decision, HoldReason, Margin, Percentile};
use rollout::{Rollout, Verdict};

use super::Api;
use super::views::as_f64;
use crate::orchestrator::{Group, ServiceState};
use crate::reconciler::{ServiceSnapshot, Snapshot};

/// What labels a rollout.
const ROLLOUT: [&str; 3] = ["service", "environment", "release"];

/// Every decision of the judge.
const DECISIONS: [&str; 4] = ["inconclusive", "hold", "pass", "fail"];

/// Every reason to hold.
const REASONS: [&str; 4] = [
    "silence",
    "stable_in_trouble",
    "split_mismatch",
    "memory_trend",
];

/// Adds all of them.
///
/// # Errors
/// Two metrics of one name: a defect of ours.
pub(super) fn collect(api: &Api, registry: &Registry) -> prometheus::Result<()> {
    let snapshot = api.handle.snapshot.borrow().clone();
    itself(api, &snapshot, registry)?;
    let times = Times::new(registry)?;
    let verdicts = Verdicts::new(registry)?;
    let tasks = Tasks::new(registry)?;
    for service in snapshot.services.values() {
        let newest = service.open.first().or(service.last.as_ref());
        if let Some(saved) = newest {
            times.set(&saved.rollout);
            if let (Some(verdict), true) = (&saved.verdict, saved.rollout.position().is_some()) {
                verdicts.set(&saved.rollout, verdict);
            }
        }
        if let Some(state) = &service.state {
            tasks.set(service, state);
        }
    }
    Ok(())
}

fn gauge(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<GaugeVec> {
    let gauge = GaugeVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(gauge.clone()))?;
    Ok(gauge)
}

fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

/// Of the controller.
fn itself(api: &Api, snapshot: &Snapshot, registry: &Registry) -> prometheus::Result<()> {
    gauge(
        registry,
        "friday_build_info",
        "1; the version is in the label.",
        &["version"],
    )?
    .with_label_values(&[env!("CARGO_PKG_VERSION")])
    .set(1.0);
    let generation = api.fleet.table().borrow().generation;
    let part = gauge(
        registry,
        "friday_generation",
        "The number of the newest table: what every proxy should apply.",
        &["part"],
    )?;
    part.with_label_values(&["term"])
        .set(as_f64(generation.term));
    part.with_label_values(&["seq"]).set(as_f64(generation.seq));
    let up = gauge(
        registry,
        "friday_service_up",
        "1 if the service's tasks could be seen at the last look.",
        &["service"],
    )?;
    for (name, service) in &snapshot.services {
        up.with_label_values(&[name.as_str()])
            .set(flag(service.trouble.is_none() && service.state.is_some()));
    }
    let unsaved = snapshot.unsaved.as_ref().map_or(0.0, |(_, since)| {
        api.clock.elapsed().saturating_sub(*since).as_secs_f64()
    });
    let incident = gauge(
        registry,
        "friday_incident_open",
        "1 for each incident that is open and holds rollouts: of its service, or of all where it names none.",
        &["alert", "service"],
    )?;
    for view in super::alerts::views(snapshot) {
        let service = view.service.unwrap_or_default();
        incident
            .with_label_values(&[&view.alert, &service])
            .set(1.0);
    }
    let held = gauge(
        registry,
        "friday_rollout_held",
        "1 for a running rollout that an incident holds, else 0.",
        &ROLLOUT,
    )?;
    for service in snapshot.services.values() {
        if let Some(saved) = service.open.first() {
            held.with_label_values(&labels(&saved.rollout))
                .set(flag(snapshot.held.contains(&saved.rollout.id)));
        }
    }
    gauge(
        registry,
        "friday_store_unsaved_seconds",
        "For how long nothing could be saved; 0 while all is.",
        &[],
    )?
    .with_label_values::<&str>(&[])
    .set(unsaved);
    Ok(())
}

/// The labels of a rollout, in the order of [`ROLLOUT`].
fn labels(rollout: &Rollout) -> [&str; 3] {
    [
        rollout.service.as_str(),
        rollout.environment.as_str(),
        rollout.canary.id.as_str(),
    ]
}

/// When a rollout began and moved.
struct Times {
    created: GaugeVec,
    moved: GaugeVec,
    elapsed: GaugeVec,
}

impl Times {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            created: gauge(
                registry,
                "friday_rollout_created_timestamp_seconds",
                "When the service's newest rollout was ordered.",
                &ROLLOUT,
            )?,
            moved: gauge(
                registry,
                "friday_rollout_moved_timestamp_seconds",
                "When it last came to another step or phase.",
                &ROLLOUT,
            )?,
            elapsed: gauge(
                registry,
                "friday_rollout_elapsed_seconds",
                "How long it has run; neither pauses nor the controller's absence count.",
                &ROLLOUT,
            )?,
        })
    }

    fn set(&self, rollout: &Rollout) {
        let labels = labels(rollout);
        let seconds = |at: rollout::Timestamp| at.as_duration().as_secs_f64();
        self.created
            .with_label_values(&labels)
            .set(seconds(rollout.created));
        self.moved
            .with_label_values(&labels)
            .set(seconds(rollout.moved));
        self.elapsed
            .with_label_values(&labels)
            .set(rollout.elapsed.as_secs_f64());
    }
}

/// What the judge last said.
struct Verdicts {
    decision: GaugeVec,
    hold: GaugeVec,
    signal: GaugeVec,
    proof: GaugeVec,
}

impl Verdicts {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        let with = |last: &'static str| [ROLLOUT[0], ROLLOUT[1], ROLLOUT[2], last];
        Ok(Self {
            decision: gauge(
                registry,
                "friday_verdict_decision",
                "1 for what the last verdict decided, 0 for the others.",
                &with("decision"),
            )?,
            hold: gauge(
                registry,
                "friday_verdict_hold",
                "1 for the reason for which the last verdict holds, 0 for the others.",
                &with("reason"),
            )?,
            signal: gauge(
                registry,
                "friday_verdict_signal_evidence_ratio",
                "Evidence that the canary is worse by one signal, as a share of what it takes to roll back.",
                &with("signal"),
            )?,
            proof: gauge(
                registry,
                "friday_verdict_proof_ratio",
                "How far a margin of the gate is proven, on a logarithmic scale: 1 is proven, below 0 speaks against it.",
                &with("margin"),
            )?,
        })
    }

    fn set(&self, rollout: &Rollout, verdict: &Verdict) {
        let labels = labels(rollout);
        let with = |last: &'static str| [labels[0], labels[1], labels[2], last];
        let (decided, reason) = match &verdict.decision {
            Decision::Inconclusive { .. } => ("inconclusive", None),
            Decision::Hold { reason } => ("hold", Some(reason_name(reason))),
            Decision::Pass { .. } => ("pass", None),
            Decision::Fail { .. } => ("fail", None),
        };
        for name in DECISIONS {
            self.decision
                .with_label_values(&with(name))
                .set(flag(name == decided));
        }
        for name in REASONS {
            self.hold
                .with_label_values(&with(name))
                .set(flag(Some(name) == reason));
        }
        let evidence = &verdict.evidence;
        let latency = evidence
            .latency
            .iter()
            .copied()
            .fold(f64::NEG_INFINITY, f64::max);
        for (name, log) in [
            ("warm_up", evidence.warm_up),
            ("errors", evidence.errors),
            ("latency", latency),
            ("saturation", evidence.saturation),
            ("checks", evidence.checks),
            ("late_nodes", evidence.late_nodes),
        ] {
            self.signal
                .with_label_values(&with(name))
                .set((log - verdict.rollback_at).exp());
        }
        for proof in &verdict.proofs {
            let done = if proof.needed > 0.0 {
                proof.log_e / proof.needed
            } else {
                flag(proof.is_done())
            };
            self.proof
                .with_label_values(&with(margin_name(&proof.margin)))
                .set(done);
        }
    }
}

fn reason_name(reason: &HoldReason) -> &'static str {
    match reason {
        HoldReason::Silence => "silence",
        HoldReason::StableInTrouble { .. } => "stable_in_trouble",
        HoldReason::SplitMismatch { .. } => "split_mismatch",
        HoldReason::MemoryTrend { .. } => "memory_trend",
    }
}

fn margin_name(margin: &Margin) -> &'static str {
    match margin {
        Margin::Errors { .. } => "errors",
        Margin::Latency { percentile, .. } => match percentile {
            Percentile::P50 => "latency_p50",
            Percentile::P90 => "latency_p90",
            Percentile::P99 => "latency_p99",
        },
    }
}

/// What runs, and what it uses.
struct Tasks {
    wanted: GaugeVec,
    ready: GaugeVec,
    restarts: GaugeVec,
    memory: GaugeVec,
    memory_max: GaugeVec,
    cpu: GaugeVec,
}

impl Tasks {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        let group = ["service", "environment", "arm", "release"];
        let task = ["service", "environment", "arm", "release", "node", "task"];
        Ok(Self {
            wanted: gauge(
                registry,
                "friday_tasks_wanted",
                "Tasks that a group wants.",
                &group,
            )?,
            ready: gauge(
                registry,
                "friday_tasks_ready",
                "Tasks of a group on a node that answer the ready check.",
                &["service", "environment", "arm", "release", "node"],
            )?,
            restarts: gauge(
                registry,
                "friday_tasks_restarts",
                "Tasks of a group that ended by themselves in the last five minutes.",
                &group,
            )?,
            memory: gauge(
                registry,
                "friday_task_memory_bytes",
                "Memory that a task uses; absent where nobody knows.",
                &task,
            )?,
            memory_max: gauge(
                registry,
                "friday_task_memory_limit_bytes",
                "The most memory that it may use; absent without a limit.",
                &task,
            )?,
            cpu: gauge(
                registry,
                "friday_task_cpu_seconds_total",
                "CPU time that a task has used since its start; absent where nobody knows.",
                &task,
            )?,
        })
    }

    fn set(&self, service: &ServiceSnapshot, state: &ServiceState) {
        let rollout = service.open.first().or(service.last.as_ref());
        let environment = rollout.map_or("default", |saved| saved.rollout.environment.as_str());
        let name = service.spec.service.as_str();
        let groups = [
            ("stable", Some(&state.stable)),
            ("canary", state.canary.as_ref()),
        ];
        for (arm, group) in groups {
            if let Some(group) = group {
                self.group([name, environment, arm], group);
            }
        }
    }

    fn group(&self, [service, environment, arm]: [&str; 3], group: &Group) {
        let labels = [service, environment, arm, group.release.id.as_str()];
        self.wanted
            .with_label_values(&labels)
            .set(f64::from(group.replicas));
        self.restarts
            .with_label_values(&labels)
            .set(f64::from(group.restarts));
        for task in &group.tasks {
            let release = task.release.as_str();
            let node = task.node.as_str();
            self.ready
                .with_label_values(&[service, environment, arm, release, node])
                .add(flag(task.ready));
            let labels = [service, environment, arm, release, node, task.id.as_str()];
            if let Some(bytes) = task.memory_bytes {
                self.memory.with_label_values(&labels).set(as_f64(bytes));
            }
            if let Some(bytes) = task.memory_bytes_max {
                self.memory_max
                    .with_label_values(&labels)
                    .set(as_f64(bytes));
            }
            if let Some(cpu) = task.cpu {
                self.cpu.with_label_values(&labels).set(cpu.as_secs_f64());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;
    use rollout::{Duration, Phase};

    use super::*;
    use crate::words::samples;

    fn shown(registry: &Registry) -> Vec<String> {
        let text = TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(str::to_owned).collect()
    }

    #[test]
    fn a_verdict_is_shown_with_its_decision_its_reason_and_its_evidence() {
        let table = [
            (
                Decision::Inconclusive {
                    missing: Vec::new(),
                },
                "inconclusive",
                None,
            ),
            (
                Decision::Hold {
                    reason: HoldReason::Silence,
                },
                "hold",
                Some("silence"),
            ),
            (
                Decision::Hold {
                    reason: HoldReason::SplitMismatch {
                        expected: 10.0,
                        seen: 90,
                    },
                },
                "hold",
                Some("split_mismatch"),
            ),
        ];
        for (decision, name, reason) in table {
            let registry = Registry::new();
            let verdicts = Verdicts::new(&registry).unwrap();
            let rollout = samples::rollout(Phase::Analyzing {
                step: 1,
                elapsed: Duration::ZERO,
            });
            verdicts.set(&rollout, &samples::verdict(decision));
            let lines = shown(&registry);
            let ones: Vec<&String> = lines
                .iter()
                .filter(|line| line.contains("decision=") || line.contains("reason="))
                .filter(|line| line.ends_with(" 1"))
                .collect();
            assert_eq!(ones.len(), 1 + usize::from(reason.is_some()), "{lines:?}");
            assert!(
                ones.iter()
                    .any(|line| line.contains(&format!("decision=\"{name}\"")))
            );
            if let Some(reason) = reason {
                assert!(
                    ones.iter()
                        .any(|line| line.contains(&format!("reason=\"{reason}\"")))
                );
            }
            // 2.4 of ln 100: e^2.4 is 11, a ninth of the way. What is not known at all is no evidence.
            let of = |part: &str| {
                let line = lines.iter().find(|line| line.contains(part)).unwrap();
                line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()
            };
            assert!(
                (of("signal=\"errors\"") - 0.1102).abs() < 0.001,
                "{lines:?}"
            );
            assert_eq!(of("signal=\"warm_up\""), 0.0);
            // The worst percentile speaks for latency.
            assert!(
                (of("signal=\"latency\"") - 0.0201).abs() < 0.001,
                "{lines:?}"
            );
            assert!(of("margin=\"errors\"") > 1.0 && of("margin=\"latency_p50\"") < 1.0);
        }
    }

    #[test]
    fn a_rollout_is_shown_with_its_times() {
        let registry = Registry::new();
        let times = Times::new(&registry).unwrap();
        times.set(&samples::rollout(Phase::Promoted));
        let labels = r#"{environment="production",release="aaaaaaaaaaaa",service="tweets-worker"}"#;
        // 2025-03-07T09:00:00Z.
        let expected = format!("friday_rollout_created_timestamp_seconds{labels} 1741338000");
        assert!(
            shown(&registry).contains(&expected),
            "{:?}",
            shown(&registry)
        );
    }
}
