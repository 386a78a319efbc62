//! The agent's metrics, in Prometheus' text format: the last sample, read when it is asked for.

use prometheus::{Gauge, GaugeVec, Opts, Registry, TextEncoder};

use super::stats::as_f64;
use crate::api::types::agents::{AgentReport, HostUse, TaskUse};

/// All of them.
///
/// # Errors
/// A metric that cannot be written as text: a defect of ours.
pub(super) fn render(
    report: Option<&AgentReport>,
    is_reporting: Option<bool>,
) -> prometheus::Result<String> {
    let registry = Registry::new();
    let flag = |name: &str, help: &str, is_up: bool| -> prometheus::Result<()> {
        let gauge = Gauge::new(name, help)?;
        gauge.set(f64::from(u8::from(is_up)));
        registry.register(Box::new(gauge))
    };
    flag(
        "friday_agent_engine_up",
        "1 if the engine answered the last time.",
        report.is_some_and(|report| report.trouble.is_none()),
    )?;
    if let Some(is_up) = is_reporting {
        flag(
            "friday_agent_controller_up",
            "1 if the controller took the last report.",
            is_up,
        )?;
    }
    if let Some(report) = report {
        tasks(&registry, report)?;
        host(&registry, report)?;
    }
    TextEncoder::new().encode_to_string(&registry.gather())
}

fn tasks(registry: &Registry, report: &AgentReport) -> prometheus::Result<()> {
    let all: [Kind<TaskUse>; 4] = [
        (
            "friday_agent_cpu_ratio",
            "CPU seconds that a task uses in a second: 1 is one CPU, all the time.",
            |task| task.cpu_cores,
        ),
        (
            "friday_agent_cpu_limit_ratio",
            "The most CPU seconds that it may use in a second; absent without a limit.",
            |task| task.cpu_cores_max,
        ),
        (
            "friday_agent_memory_bytes",
            "Memory that a task uses, without page cache that can be dropped.",
            |task| task.memory_bytes.map(as_f64),
        ),
        (
            "friday_agent_memory_limit_bytes",
            "The most memory that it may use; absent without a limit.",
            |task| task.memory_bytes_max.map(as_f64),
        ),
    ];
    let labels = ["service", "arm", "release", "node", "task"];
    let values = |task: &TaskUse| {
        [
            task.service.clone(),
            task.arm.as_str().to_owned(),
            task.release.clone(),
            report.node.clone(),
            task.name.clone(),
        ]
    };
    gauges(registry, all, labels, &report.tasks, values)
}

fn host(registry: &Registry, report: &AgentReport) -> prometheus::Result<()> {
    let all: [Kind<HostUse>; 4] = [
        (
            "friday_agent_node_cpu_ratio",
            "The share of all the node's CPUs that is in use, 0 to 1.",
            |host| host.cpu_ratio,
        ),
        ("friday_agent_node_cpus", "CPUs of the node.", |host| {
            host.cpus.map(f64::from)
        }),
        (
            "friday_agent_node_memory_bytes",
            "Memory of the node that is not available to programs.",
            |host| host.memory_bytes.map(as_f64),
        ),
        (
            "friday_agent_node_memory_limit_bytes",
            "All memory of the node.",
            |host| host.memory_bytes_max.map(as_f64),
        ),
    ];
    let hosts = std::slice::from_ref(&report.host);
    gauges(registry, all, ["node"], hosts, |_| [report.node.clone()])
}

/// A metric: its name, its help, and its value where it is known.
type Kind<T> = (&'static str, &'static str, fn(&T) -> Option<f64>);

/// Registers a gauge of each kind, with a series for each of `items` whose value is known.
fn gauges<T, const K: usize, const L: usize>(
    registry: &Registry,
    kinds: [Kind<T>; K],
    labels: [&str; L],
    items: &[T],
    values_of: impl Fn(&T) -> [String; L],
) -> prometheus::Result<()> {
    for (name, help, value) in kinds {
        let gauge = GaugeVec::new(Opts::new(name, help), &labels)?;
        for item in items {
            if let Some(value) = value(item) {
                gauge.with_label_values(&values_of(item)).set(value);
            }
        }
        registry.register(Box::new(gauge))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proxy_api::{Arm, BootId};

    use super::*;

    #[test]
    fn shows_what_is_known_and_nothing_for_what_is_not() {
        let report = AgentReport {
            node: "n1".to_owned(),
            node_id: None,
            boot: BootId(1),
            number: 1,
            trouble: None,
            host: HostUse {
                memory_bytes_max: Some(8 << 30),
                ..HostUse::default()
            },
            tasks: vec![TaskUse {
                id: "a".to_owned(),
                name: "web.1.a".to_owned(),
                service: "web".to_owned(),
                arm: Arm::Canary,
                release: "0123456789ab".to_owned(),
                cpu_seconds: Some(1.0),
                cpu_cores: None,
                cpu_cores_max: Some(0.5),
                memory_bytes: Some(1024),
                memory_bytes_max: None,
            }],
            tasks_left_out: 0,
        };
        let labels =
            r#"{arm="canary",node="n1",release="0123456789ab",service="web",task="web.1.a"}"#;
        let text = render(Some(&report), Some(false)).unwrap();
        let mut lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                "friday_agent_controller_up 0".to_owned(),
                format!("friday_agent_cpu_limit_ratio{labels} 0.5"),
                "friday_agent_engine_up 1".to_owned(),
                format!("friday_agent_memory_bytes{labels} 1024"),
                r#"friday_agent_node_memory_limit_bytes{node="n1"} 8589934592"#.to_owned(),
            ]
        );
        assert_eq!(
            render(None, None).unwrap().lines().last(),
            Some("friday_agent_engine_up 0")
        );
    }
}
