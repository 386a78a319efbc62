//! From the engine's answers to what a task uses. Pure.

use std::collections::HashMap;

use proxy_api::Arm;
use rollout::{Duration, ReleaseId};
use serde::Deserialize;

use crate::api::types::agents::TaskUse;
use crate::orchestrator::swarm::spec::{RELEASE, SERVICE};

/// On a container of the swarm's: the task that it is.
pub(super) const TASK_ID: &str = "com.docker.swarm.task.id";

/// The same, by name.
const TASK_NAME: &str = "com.docker.swarm.task.name";

/// The service whose task it is.
const SERVICE_NAME: &str = "com.docker.swarm.service.name";

/// The engine counts CPU time, and limits of it, in billionths.
const NANO: f64 = 1e9;

/// Who the engine is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Info {
    /// The node's name, as `docker node ls` shows it.
    pub(super) name: String,
    pub(super) swarm: SwarmInfo,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct SwarmInfo {
    /// Empty outside of a swarm.
    #[serde(rename = "NodeID")]
    pub(super) node_id: String,
}

/// A container in the engine's list.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Container {
    pub(super) id: String,
    /// As its spec has it, with its digest where that has one.
    pub(super) image: String,
    #[serde(rename = "ImageID")]
    pub(super) image_id: String,
    pub(super) labels: HashMap<String, String>,
}

/// A container as it was set up.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Inspected {
    host_config: HostConfig,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HostConfig {
    memory: u64,
    nano_cpus: u64,
    cpu_quota: i64,
    cpu_period: u64,
}

/// What it may use at most.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Limits {
    pub(super) memory_bytes: Option<u64>,
    pub(super) cpu_cores: Option<f64>,
}

impl Inspected {
    /// Its limits. The engine has zeros where there are none; the limit in its stats would be the node's memory then.
    pub(super) fn limits(&self) -> Limits {
        let HostConfig {
            memory,
            nano_cpus,
            cpu_quota,
            cpu_period,
        } = self.host_config;
        let cpu_cores = if nano_cpus > 0 {
            Some(as_f64(nano_cpus) / NANO)
        } else {
            let quota = u64::try_from(cpu_quota).ok().filter(|quota| *quota > 0);
            // Where only a quota is given the kernel's period is 100 ms.
            let period = if cpu_period > 0 { cpu_period } else { 100_000 };
            quota.map(|quota| as_f64(quota) / as_f64(period))
        };
        Limits {
            memory_bytes: Some(memory).filter(|memory| *memory > 0),
            cpu_cores,
        }
    }
}

/// One sample of a container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Stats {
    cpu_stats: CpuStats,
    memory_stats: MemoryStats,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct CpuStats {
    cpu_usage: CpuUsage,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct CpuUsage {
    total_usage: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct MemoryStats {
    usage: Option<u64>,
    stats: HashMap<String, u64>,
}

impl Stats {
    /// Memory in use without what the kernel can drop at once, as `docker stats` shows it: a worker that reads files is
    /// not one that leaks. The key says which cgroup version the node has. `None` for a container that has just ended.
    pub(super) fn memory_bytes(&self) -> Option<u64> {
        let MemoryStats { usage, stats } = &self.memory_stats;
        let usage = usage.filter(|usage| *usage > 0)?;
        let cache = stats
            .get("total_inactive_file")
            .or_else(|| stats.get("inactive_file"));
        // More cache than use has been seen right after a start.
        let used = cache.and_then(|cache| usage.checked_sub(*cache));
        Some(used.unwrap_or(usage))
    }

    /// CPU time since its start. `None` for a container that has just ended: one that runs has used some.
    pub(super) fn cpu(&self) -> Option<Duration> {
        let nanoseconds = self.cpu_stats.cpu_usage.total_usage;
        (nanoseconds > 0).then(|| Duration::from_nanos(nanoseconds))
    }
}

/// CPU seconds in a second, between two samples; `None` if no time has passed, or the count began anew.
pub(super) fn cores(before: (Duration, Duration), now: (Duration, Duration)) -> Option<f64> {
    let passed = now.0.checked_sub(before.0).filter(|it| !it.is_zero())?;
    let used = now.1.checked_sub(before.1)?;
    Some(used.as_secs_f64() / passed.as_secs_f64())
}

/// A task's use, by its container; `None` for one that is no task of the swarm.
pub(super) fn task(
    container: &Container,
    limits: Limits,
    stats: &Stats,
    cores: Option<f64>,
) -> Option<TaskUse> {
    let label = |name: &str| container.labels.get(name);
    let id = label(TASK_ID)?;
    let of = label(SERVICE);
    Some(TaskUse {
        id: id.clone(),
        name: label(TASK_NAME).unwrap_or(id).clone(),
        service: of
            .or_else(|| label(SERVICE_NAME))
            .cloned()
            .unwrap_or_default(),
        arm: if of.is_some() {
            Arm::Canary
        } else {
            Arm::Stable
        },
        release: release(container),
        cpu_seconds: stats.cpu().map(|used| used.as_secs_f64()),
        cpu_cores: cores,
        cpu_cores_max: limits.cpu_cores,
        memory_bytes: stats.memory_bytes(),
        memory_bytes_max: limits.memory_bytes,
    })
}

/// Its release, by the label that the controller writes; a service that was never released by it runs the image of its
/// digest, or of its own id where no registry has it.
fn release(container: &Container) -> String {
    if let Some(release) = container.labels.get(RELEASE) {
        return release.clone();
    }
    let digest = container.image.split_once('@').map(|(_, digest)| digest);
    ReleaseId::of_digest(digest.unwrap_or(&container.image_id)).to_string()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "bytes and counts below 2^53 are exact"
)]
pub(super) fn as_f64(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// As engine 20.10 (API 1.41) answers on a node with cgroup v1, shortened where nothing is read.
    const V1: &str = r#"{
        "read": "2026-11-21T20:10:11.123456789Z", "preread": "0001-01-01T00:00:00Z",
        "pids_stats": { "current": 3 },
        "blkio_stats": { "io_service_bytes_recursive": [], "io_serviced_recursive": null },
        "num_procs": 0, "storage_stats": {},
        "cpu_stats": {
            "cpu_usage": { "total_usage": 1521049838, "percpu_usage": [737000123, 784049715],
                "usage_in_kernelmode": 310000000, "usage_in_usermode": 1170000000 },
            "system_cpu_usage": 175890760000000, "online_cpus": 2,
            "throttling_data": { "periods": 0, "throttled_periods": 0, "throttled_time": 0 }
        },
        "precpu_stats": { "cpu_usage": { "total_usage": 0 }, "throttling_data": {} },
        "memory_stats": {
            "usage": 88203264, "max_usage": 88551424,
            "stats": { "active_anon": 67108864, "cache": 8110080, "inactive_file": 4096000,
                "rss": 69206016, "total_cache": 8110080, "total_inactive_file": 6086656, "total_rss": 69206016 },
            "limit": 268435456
        },
        "name": "/worker.1.k2p8y0", "id": "8f1c", "networks": { "eth0": { "rx_bytes": 1 } }
    }"#;

    /// The same with cgroup v2: no `max_usage`, no totals.
    const V2: &str = r#"{
        "cpu_stats": { "cpu_usage": { "total_usage": 2000000, "usage_in_kernelmode": 1000000, "usage_in_usermode": 1000000 },
            "system_cpu_usage": 23890000000, "online_cpus": 8, "throttling_data": {} },
        "memory_stats": { "usage": 7000000, "limit": 8233422848,
            "stats": { "anon": 4000000, "file": 2500000, "inactive_file": 2000000, "slab": 300000 } }
    }"#;

    /// What both answer for a container that ended in between.
    const ENDED: &str = r#"{ "read": "0001-01-01T00:00:00Z", "pids_stats": {},
        "cpu_stats": { "cpu_usage": { "total_usage": 0 }, "throttling_data": {} }, "memory_stats": {} }"#;

    fn stats(text: &str) -> Stats {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn reads_memory_without_the_cache_of_either_cgroup_version_and_cpu_time() {
        let (v1, v2) = (stats(V1), stats(V2));
        assert_eq!(v1.memory_bytes(), Some(88_203_264 - 6_086_656));
        assert_eq!(v2.memory_bytes(), Some(5_000_000));
        assert_eq!(v1.cpu(), Some(Duration::from_nanos(1_521_049_838)));
        assert_eq!(v2.cpu(), Some(Duration::from_millis(2)));
        let odd = r#"{ "memory_stats": { "usage": 5, "stats": { "inactive_file": 9 } } }"#;
        assert_eq!(stats(odd).memory_bytes(), Some(5));
    }

    #[test]
    fn a_container_that_has_ended_uses_what_nobody_knows_and_not_nothing() {
        let ended = stats(ENDED);
        assert_eq!((ended.memory_bytes(), ended.cpu()), (None, None));
        // Without a memory controller the engine has no numbers at all.
        assert_eq!(stats("{}").memory_bytes(), None);
    }

    #[test]
    fn cpu_is_the_difference_of_two_samples() {
        let at = |milliseconds, used| {
            let duration = Duration::from_millis;
            (duration(milliseconds), duration(used))
        };
        assert_eq!(cores(at(1000, 500), at(3000, 1500)), Some(0.5));
        assert_eq!(cores(at(1000, 500), at(1000, 500)), None);
        assert_eq!(cores(at(1000, 500), at(2000, 100)), None);
    }

    #[test]
    fn limits_are_what_the_container_was_given() {
        let limits = |host: serde_json::Value| {
            let inspected: Inspected =
                serde_json::from_value(json!({ "Id": "8f1c", "HostConfig": host })).unwrap();
            let Limits {
                memory_bytes,
                cpu_cores,
            } = inspected.limits();
            (memory_bytes, cpu_cores)
        };
        let none = json!({ "Memory": 0, "NanoCpus": 0, "CpuQuota": 0, "CpuPeriod": 0 });
        assert_eq!(limits(none), (None, None));
        let both = json!({ "Memory": 268_435_456, "NanoCpus": 500_000_000 });
        assert_eq!(limits(both), (Some(256 << 20), Some(0.5)));
        let quota = json!({ "CpuQuota": 50_000, "CpuPeriod": 25_000 });
        assert_eq!(limits(quota), (None, Some(2.0)));
    }

    fn container(image: &str, labels: serde_json::Value) -> Container {
        serde_json::from_value(json!({
            "Id": "8f1c", "Names": ["/worker.1.k2p8y0"], "Image": image,
            "ImageID": format!("sha256:{}", "a".repeat(64)), "Labels": labels, "State": "running",
        }))
        .unwrap()
    }

    fn use_of(container: &Container) -> Option<TaskUse> {
        task(container, Limits::default(), &stats(V1), Some(0.25))
    }

    #[test]
    fn a_container_is_a_task_of_its_service_and_release() {
        let digest = format!("sha256:{}", "b".repeat(64));
        let stable = container(
            &format!("registry:5000/worker:v1@{digest}"),
            json!({ TASK_ID: "k2p8y0", TASK_NAME: "worker.1.k2p8y0", SERVICE_NAME: "worker" }),
        );
        let seen = use_of(&stable).unwrap();
        assert_eq!(
            (seen.service.as_str(), seen.arm, seen.release.as_str()),
            ("worker", Arm::Stable, "bbbbbbbbbbbb")
        );
        assert_eq!(seen.cpu_cores, Some(0.25));
        let canary = container(
            "worker:v2",
            json!({
                TASK_ID: "x", SERVICE_NAME: "worker-canary", SERVICE: "worker", RELEASE: "cccccccccccc",
            }),
        );
        let seen = use_of(&canary).unwrap();
        assert_eq!(
            (seen.service.as_str(), seen.arm, seen.release.as_str()),
            ("worker", Arm::Canary, "cccccccccccc")
        );
        assert_eq!(seen.name, "x");
        let local = container("worker:v1", json!({ TASK_ID: "y" }));
        assert_eq!(use_of(&local).unwrap().release, "aaaaaaaaaaaa");
        assert_eq!(use_of(&container("worker:v1", json!({}))), None);
    }
}
