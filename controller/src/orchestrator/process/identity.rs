//! Processes of this machine as Linux shows them under `/proc`: who they are, whether they live, what they use.
//!
//! A pid is given again after its process has ended, so a pid alone names nobody. Here a process is its pid and its
//! start time, and a signal goes only to one that still matches both.

use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rollout::Duration;
use serde::{Deserialize, Serialize};

/// The variable that holds a task's id: the mark by which its processes are found again.
pub(super) const TASK_VARIABLE: &str = "FRIDAY_TASK";

/// The variable that holds the state directory a task belongs to, so that two controllers on one machine never take
/// each other's tasks.
pub(super) const STATE_VARIABLE: &str = "FRIDAY_STATE_DIR";

/// What Linux counts CPU time and start times in, whatever the kernel was built with (`USER_HZ`, proc(5)).
const TICKS_PER_SECOND: u64 = 100;

/// The most that is read of a process's environment. Linux allows more, but ours stand at its beginning as a rule:
/// what is inherited is a handful of short variables.
const ENVIRON_BYTES_MAX: u64 = 256 * 1024;

/// One process, and no later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Identity {
    /// The process id.
    pub(super) pid: u32,
    /// When it was started, in ticks since the machine was.
    pub(super) start_ticks: u64,
}

/// What a process used, as last seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sample {
    /// Its resident memory. Its children's is not in it.
    pub(super) memory_bytes: Option<u64>,
    /// CPU time since its start, of all its threads.
    pub(super) cpu: Option<Duration>,
}

impl Identity {
    /// Who has this pid now.
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        let stat = Stat::read(pid)?;
        Ok(Self {
            pid,
            start_ticks: stat.start_ticks,
        })
    }

    /// Whether it still runs. A zombie does not.
    pub(super) fn is_alive(self) -> bool {
        self.stat().is_some()
    }

    /// What it uses; `None` when it has ended.
    pub(super) fn sample(self) -> Option<Sample> {
        let stat = self.stat()?;
        Some(Sample {
            memory_bytes: resident_bytes(self.pid),
            cpu: Some(ticks(stat.cpu_ticks)),
        })
    }

    /// How long it has run, given that it does.
    pub(super) fn age(self) -> Duration {
        let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
        let seconds = uptime
            .split(' ')
            .next()
            .and_then(|text| text.parse::<f64>().ok())
            .unwrap_or(0.0);
        Duration::try_from_secs_f64(seconds)
            .unwrap_or_default()
            .saturating_sub(ticks(self.start_ticks))
    }

    /// Sends a signal, if it still is this process; tells whether one was sent.
    pub(super) fn signal(self, signal: Signal) -> bool {
        let Ok(pid) = i32::try_from(self.pid) else {
            return false;
        };
        // Between the check and the call the pid could in theory be given to another; the kernel goes through all
        // other pids first, which takes far longer than this line.
        self.is_alive() && kill(Pid::from_raw(pid), signal).is_ok()
    }

    fn stat(self) -> Option<Stat> {
        let stat = Stat::read(self.pid).ok()?;
        (stat.start_ticks == self.start_ticks && !matches!(stat.state, 'Z' | 'X' | 'x'))
            .then_some(stat)
    }
}

/// What we need of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    cpu_ticks: u64,
    start_ticks: u64,
}

impl Stat {
    fn read(pid: u32) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Self::parse(&text)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat")))
    }

    /// Fields are numbered as in proc(5). The second, the name, may hold spaces and brackets: counting begins after
    /// the last bracket.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            state: fields.first()?.chars().next()?,
            cpu_ticks: number(14)?.checked_add(number(15)?)?,
            start_ticks: number(22)?,
        })
    }
}

fn ticks(count: u64) -> Duration {
    Duration::from_millis(count.saturating_mul(1000 / TICKS_PER_SECOND))
}

/// From `status` rather than `statm`, which counts in pages of a size that only a system call tells.
fn resident_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// A process that bears the mark of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Marked {
    /// Who it is.
    pub(super) process: Identity,
    /// The task it was started for, or by.
    pub(super) task: String,
}

/// Every live process that was started for a task of `state_dir`, or by such a process, the oldest first.
///
/// Reads all of `/proc`: call it where blocking is allowed. Processes of other users cannot be read and are left out.
pub(super) fn marked(state_dir: &Path) -> Vec<Marked> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let own = std::process::id();
    let mut found: Vec<Marked> = pids
        .filter(|pid| *pid != own)
        .filter_map(|pid| {
            let process = Identity::of(pid).ok()?;
            let task = mark_of(pid, state_dir)?;
            process.is_alive().then_some(Marked { process, task })
        })
        .collect();
    found.sort_by_key(|marked| (marked.process.start_ticks, marked.process.pid));
    found
}

fn mark_of(pid: u32, state_dir: &Path) -> Option<String> {
    let mut environ = Vec::new();
    let file = fs::File::open(format!("/proc/{pid}/environ")).ok()?;
    file.take(ENVIRON_BYTES_MAX)
        .read_to_end(&mut environ)
        .ok()?;
    let value = |name: &str| {
        environ
            .split(|byte| *byte == 0)
            .find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    };
    if value(STATE_VARIABLE)? != state_dir.as_os_str().as_bytes() {
        return None;
    }
    String::from_utf8(value(TASK_VARIABLE)?.to_vec()).ok()
}

/// A name for this run of the machine: after a restart of it, no earlier identity means anything.
pub(super) fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// The machine's name; `localhost` if it has none.
pub(super) fn hostname() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() {
        "localhost".to_owned()
    } else {
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_stat_line_whose_name_has_brackets_and_spaces() {
        let line =
            "4242 (a b) c) S 1 4242 4242 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 9 0 987654 1 2 3";
        let stat = Stat::parse(line).unwrap();
        assert_eq!(
            stat,
            Stat {
                state: 'S',
                cpu_ticks: 200,
                start_ticks: 987_654
            }
        );
    }

    #[test]
    fn knows_itself_and_not_another_with_its_pid() {
        let own = Identity::of(std::process::id()).unwrap();
        assert!(own.is_alive());
        assert!(own.sample().unwrap().memory_bytes.unwrap() > 1024 * 1024);
        let other = Identity {
            start_ticks: own.start_ticks + 1,
            ..own
        };
        assert!(!other.is_alive());
        // If this were sent, the test would end here.
        assert!(!other.signal(Signal::SIGKILL));
    }
}
