//! Starting a task's process, and looking into its end.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use nix::sys::signal::Signal;
use proxy_api::Arm;
use rollout::{Duration, ServiceName};
use tokio::process::{Child, Command};

use super::catalog::Definition;
use super::group::{End, Task, node};
use super::identity::{self, Identity, STATE_VARIABLE, TASK_VARIABLE};
use super::record::{Records, keep_newest};

/// The longest that is said of an end, with the last words of the task: a line on a board.
const TROUBLE_CHARS_MAX: usize = 300;

/// How far from the end of a log its last line is looked for.
const LAST_LINE_BYTES: u64 = 4096;

/// The largest log of a living task. One that grows beyond is emptied: nobody else is there to do it, and a full disk
/// stops more than a task.
pub(super) const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// How many logs of ended tasks are kept, two for each: the last twenty-five ends can be looked into.
const OLD_LOGS_MAX: usize = 50;

/// How often another port is asked for when the one that was given is another task's.
const PORT_TRIES_MAX: usize = 100;

/// What a task inherits of the controller's environment. No more: the controller's holds secrets.
const INHERITED: [&str; 9] = [
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "TZ",
    "TMPDIR",
    "RUST_BACKTRACE",
    "RUST_LOG",
    "LLVM_PROFILE_FILE",
];

/// A name for a task that no other task has.
pub(super) fn task_id(service: &ServiceName, arm: Arm, slot: u32) -> String {
    // The keys of a `RandomState` come from the system's random numbers.
    let random = RandomState::new().build_hasher().finish();
    format!("{service}-{}-{slot}-{random:016x}", arm.as_str())
}

/// A port that nobody listens on at this moment, and that is none of `taken`.
pub(super) fn free_port(taken: &HashSet<u16>) -> io::Result<u16> {
    for _ in 0..PORT_TRIES_MAX {
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        if !taken.contains(&port) {
            return Ok(port);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrInUse,
        "no free port on 127.0.0.1",
    ))
}

/// The two files that a task writes to: standard output and standard error.
fn logs(records: &Records, task: &str) -> [PathBuf; 2] {
    ["out", "err"].map(|stream| records.logs().join(format!("{task}.{stream}")))
}

/// Starts `task`, whose intent is saved. It is a process group of its own, so that a signal to the controller's group
/// does not reach it, and it goes on when the controller ends.
pub(super) fn start(
    records: &Records,
    hostname: &str,
    (service, arm): (&ServiceName, Arm),
    task: &Task,
    definition: &Definition,
) -> io::Result<(Child, Identity)> {
    let (program, arguments) = definition
        .command
        .split_first()
        .ok_or(io::ErrorKind::InvalidInput)?;
    let [out, err] =
        logs(records, &task.id).map(|path| File::options().create(true).append(true).open(path));

    let inherited = INHERITED
        .iter()
        .filter_map(|name| Some((name, std::env::var_os(name)?)));
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(inherited)
        .envs(&definition.env)
        .env("PORT", task.port.to_string())
        .env("FRIDAY_RELEASE", task.release.id.as_str())
        .env("FRIDAY_SERVICE", service.as_str())
        .env("FRIDAY_ARM", arm.as_str())
        .env("FRIDAY_NODE", node(hostname, task.slot))
        .env(TASK_VARIABLE, &task.id)
        .env(STATE_VARIABLE, records.dir())
        .stdin(Stdio::null())
        .stdout(out?)
        .stderr(err?)
        .process_group(0)
        .kill_on_drop(false)
        .spawn()
        .map_err(|error| {
            io::Error::new(error.kind(), format!("could not start {program}: {error}"))
        })?;
    // It is our child and nobody has waited for it, so its pid is its own, even if it has ended already.
    match child
        .id()
        .ok_or_else(|| io::ErrorKind::NotFound.into())
        .and_then(Identity::of)
    {
        Ok(process) => Ok((child, process)),
        Err(error) => {
            child.start_kill()?;
            Err(error)
        }
    }
}

/// Looks into the end of a task whose process is gone: ends what that process left behind, and finds words. Blocking.
pub(super) fn look_into(records: &Records, task: &str, port: u16, how: &str) -> End {
    end_marked(records.dir(), |mark| mark == task);
    let port_taken = TcpListener::bind(("127.0.0.1", port))
        .is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse);
    let [_, err] = logs(records, task);
    let words = match last_line(&err) {
        Some(line) => format!("{how}: {line}"),
        None => how.to_owned(),
    };
    End {
        words: shortened(&words),
        port_taken,
    }
}

/// How a process ended, as far as its exit status tells.
pub(super) fn how_it_ended(status: &io::Result<ExitStatus>, age: Duration) -> String {
    use std::os::unix::process::ExitStatusExt;
    let after = age.as_secs_f64();
    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exited with code {code} after {after:.1} s"),
            (None, Some(signal)) => {
                let name = Signal::try_from(signal).map_or("unknown", Signal::as_str);
                format!("was ended by signal {signal} ({name}) after {after:.1} s")
            }
            (None, None) => format!("ended after {after:.1} s"),
        },
        Err(error) => {
            format!("ended after {after:.1} s, with an exit code that cannot be read ({error})")
        }
    }
}

/// At most [`TROUBLE_CHARS_MAX`] characters of `words`.
pub(super) fn shortened(words: &str) -> String {
    if words.chars().count() <= TROUBLE_CHARS_MAX {
        return words.to_owned();
    }
    words
        .chars()
        .take(TROUBLE_CHARS_MAX - 1)
        .chain(['…'])
        .collect()
}

fn last_line(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LAST_LINE_BYTES)))
        .ok()?;
    let mut tail = Vec::new();
    file.take(LAST_LINE_BYTES).read_to_end(&mut tail).ok()?;
    let text = String::from_utf8_lossy(&tail);
    let line = text
        .lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty())?;
    // A log may hold anything; a board and a terminal show the text only.
    Some(line.chars().filter(|c| !c.is_control()).collect())
}

/// Ends at once, by SIGKILL, the processes of this state directory whose task `is_over`. Blocking.
pub(super) fn end_marked(state_dir: &Path, is_over: impl Fn(&str) -> bool) {
    for marked in identity::marked(state_dir) {
        if is_over(&marked.task) && marked.process.signal(Signal::SIGKILL) {
            tracing::info!(
                task = marked.task,
                pid = marked.process.pid,
                "ended a process that its task left behind"
            );
        }
    }
}

/// Empties the logs of `task` that have grown too long. Blocking.
pub(super) fn bound_logs(records: &Records, task: &str) {
    for path in logs(records, task) {
        let is_long = fs::metadata(&path).is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX);
        // The task writes at the end of the file, wherever that is: it goes on at its new beginning.
        if is_long
            && let Err(error) = File::options()
                .write(true)
                .open(&path)
                .and_then(|file| file.set_len(0))
        {
            tracing::warn!(path = %path.display(), %error, "cannot empty a log that is too long");
        }
    }
}

/// Removes old logs of tasks that are not among the `living`. Blocking.
pub(super) fn remove_old_logs(records: &Records, living: &HashSet<String>) {
    keep_newest(&records.logs(), OLD_LOGS_MAX, |path| {
        path.file_stem()
            .and_then(|task| task.to_str())
            .is_none_or(|task| !living.contains(task))
    });
}

/// The process of each task that bears the mark of this state directory. Blocking.
pub(super) fn by_mark(state_dir: &Path) -> HashMap<String, Identity> {
    let mut by_mark = HashMap::new();
    for marked in identity::marked(state_dir) {
        // The oldest process of a task is the one that was started for it; the others are its children.
        by_mark.entry(marked.task).or_insert(marked.process);
    }
    by_mark
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_how_a_process_ended() {
        use std::os::unix::process::ExitStatusExt;
        let two_seconds = Duration::from_secs(2);
        let cases = [
            (70 << 8, "exited with code 70 after 2.0 s"),
            (9, "was ended by signal 9 (SIGKILL) after 2.0 s"),
        ];
        for (raw, words) in cases {
            assert_eq!(
                how_it_ended(&Ok(ExitStatus::from_raw(raw)), two_seconds),
                words
            );
        }
    }

    #[test]
    fn takes_the_last_line_that_says_something_and_not_too_much_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(
            &path,
            format!("{}\nfirst\n\x1b[31mlast\n\n  \n", "x".repeat(10_000)),
        )
        .unwrap();
        assert_eq!(last_line(&path).unwrap(), "[31mlast");
        fs::write(&path, "ä".repeat(10_000)).unwrap();
        assert_eq!(
            shortened(&last_line(&path).unwrap()).chars().count(),
            TROUBLE_CHARS_MAX
        );
        assert_eq!(last_line(&folder.path().join("none")), None);
    }
}
