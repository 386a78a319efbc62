//! The node as a whole, by the kernel's own files. In a container they show the node's, not the container's.

use std::io;
use std::path::Path;

use crate::api::types::agents::HostUse;

/// CPU time of all CPUs since the start, in the kernel's ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticks {
    busy: u64,
    all: u64,
}

/// The node now, compared with the sample before. What cannot be read is absent.
pub(super) async fn sample(before: &mut Option<Ticks>) -> HostUse {
    let stat = read("stat").await.unwrap_or_default();
    let memory = read("meminfo").await.unwrap_or_default();
    let now = ticks(&stat);
    let cpu_ratio = before.zip(now).and_then(|(before, now)| ratio(before, now));
    *before = now;
    let bytes = |key| kibibytes(&memory, key).map(|kib| kib << 10);
    let (all, available) = (bytes("MemTotal:"), bytes("MemAvailable:"));
    HostUse {
        cpu_ratio,
        cpus: cpus(&stat),
        memory_bytes: all
            .zip(available)
            .map(|(all, available)| all.saturating_sub(available)),
        memory_bytes_max: all,
    }
}

async fn read(file: &str) -> io::Result<String> {
    tokio::fs::read_to_string(Path::new("/proc").join(file)).await
}

/// The sum over all CPUs: user, nice, system, idle, iowait, irq, softirq, steal (proc(5)). What guests use is in user already.
fn ticks(stat: &str) -> Option<Ticks> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let numbers: Option<Vec<u64>> = line
        .split_whitespace()
        .take(8)
        .map(|number| number.parse().ok())
        .collect();
    let numbers = numbers?;
    let all: u64 = numbers.iter().sum();
    let idle = numbers.get(3)? + numbers.get(4)?;
    Some(Ticks {
        busy: all - idle,
        all,
    })
}

fn ratio(before: Ticks, now: Ticks) -> Option<f64> {
    let all = now.all.checked_sub(before.all).filter(|all| *all > 0)?;
    // Iowait has been seen to go back.
    let busy = now.busy.saturating_sub(before.busy).min(all);
    Some(super::stats::as_f64(busy) / super::stats::as_f64(all))
}

fn cpus(stat: &str) -> Option<u32> {
    let is_one = |line: &&str| {
        let number = line.strip_prefix("cpu");
        number.is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
    };
    let count = stat.lines().filter(is_one).count();
    u32::try_from(count).ok().filter(|count| *count > 0)
}

fn kibibytes(memory: &str, key: &str) -> Option<u64> {
    let line = memory.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  100 10 50 800 40 0 5 2 7 0\ncpu0 50 5 25 400 20 0 3 1 7 0\ncpu1 50 5 25 400 20 0 2 1 0 0\nintr 5\n";

    #[test]
    fn reads_the_kernels_files() {
        let before = ticks(STAT).unwrap();
        assert_eq!((before.busy, before.all), (167, 1007));
        let now = ticks("cpu  150 10 50 840 50 0 5 2 7 0\n").unwrap();
        assert_eq!(ratio(before, now), Some(0.5));
        assert_eq!(ratio(now, now), None);
        assert_eq!(cpus(STAT), Some(2));
        let memory = "MemTotal:        8040452 kB\nMemFree:  1 kB\nMemAvailable:    6113916 kB\n";
        assert_eq!(kibibytes(memory, "MemAvailable:"), Some(6_113_916));
        assert_eq!(
            (ticks(""), cpus(""), kibibytes("", "x")),
            (None, None, None)
        );
    }

    #[tokio::test]
    async fn knows_this_machine() {
        let mut before = None;
        let first = sample(&mut before).await;
        assert_eq!(first.cpu_ratio, None);
        assert!(
            first.cpus >= Some(1) && first.memory_bytes > Some(0),
            "{first:?}"
        );
        assert!(first.memory_bytes_max > first.memory_bytes, "{first:?}");
        assert!(before.is_some());
    }
}
