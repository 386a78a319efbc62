//! One program that runs as a child process.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use controller_testing::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::time::timeout;

use crate::scene::PATIENCE;

/// Lines of a log that a failed test shows.
const LOG_LINES: usize = 60;

/// A program that serves. Killed when it is dropped; if that is because of a panic, its last words are shown.
#[derive(Debug)]
pub struct Part {
    name: String,
    child: Child,
    log: PathBuf,
    addresses: Value,
}

impl Part {
    /// Starts `program` as `args` and waits until it has written where it listens.
    ///
    /// # Panics
    /// It ended, or did not listen in time. Its last words are shown.
    pub async fn start(name: &str, program: &Path, args: &[&str], dir: &Path) -> Self {
        let file = dir.join(format!("{name}.addresses"));
        // The file of the run before says where that one listened.
        drop(fs::remove_file(&file));
        let logs = dir.join("logs");
        fs::create_dir_all(&logs).expect("a folder of ours can be written to");
        let log = logs.join(format!("{name}.log"));
        let to = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .expect("a folder of ours can be written to");
        let child = Command::new(program)
            .args(args)
            .arg("--addresses-file")
            .arg(&file)
            .env_remove("RUST_LOG")
            .env_remove("FRIDAY_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(to)
            .spawn()
            .unwrap_or_else(|error| panic!("{} cannot be started: {error}", program.display()));
        let mut part = Self {
            name: name.to_owned(),
            child,
            log,
            addresses: Value::Null,
        };
        let document = eventually(
            &format!("the {name} says where it listens"),
            PATIENCE,
            async || {
                assert_eq!(
                    part.child.try_wait().ok().flatten(),
                    None,
                    "the {name} has ended"
                );
                fs::read(&file)
                    .ok()
                    .and_then(|text| serde_json::from_slice::<Value>(&text).ok())
            },
            Option::is_some,
        )
        .await;
        part.addresses = document.expect("that was waited for");
        part
    }

    /// Where it listens, by its own name for that.
    ///
    /// # Panics
    /// It did not say.
    #[must_use]
    pub fn address(&self, key: &str) -> SocketAddr {
        let address = self.addresses[key]
            .as_str()
            .and_then(|text| text.parse().ok());
        address.unwrap_or_else(|| panic!("the {} says no {key:?}: {}", self.name, self.addresses))
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGKILL: it does nothing more from this moment on.
    ///
    /// # Panics
    /// It had ended before.
    pub fn kill(mut self) {
        assert_eq!(
            self.child.try_wait().ok().flatten(),
            None,
            "the {} has ended by itself",
            self.name
        );
        self.child.kill().expect("a child of ours may be killed");
        self.child.wait().expect("a killed child can be waited for");
    }

    /// SIGHUP: it reads its files again.
    ///
    /// # Panics
    /// It has ended.
    pub fn signal_hangup(&self) {
        self.signal(Signal::SIGHUP);
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("process ids are small");
        kill(Pid::from_raw(pid), signal).expect("a child of ours may be sent a signal");
    }

    /// SIGTERM, and its end.
    ///
    /// # Panics
    /// It did not end in time.
    pub async fn stop(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        let what = format!("the {} ends", self.name);
        let ended = eventually(
            &what,
            PATIENCE,
            async || self.child.try_wait().ok().flatten(),
            Option::is_some,
        )
        .await;
        ended.expect("that was waited for")
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // It may have ended before.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
            eprintln!("--- last lines of the {}:\n{}", self.name, last.join("\n"));
        }
    }
}

/// A program that has ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Its exit code; -1 after a signal.
    pub code: i32,
    /// What it printed.
    pub out: String,
    /// What it said beside that.
    pub err: String,
}

/// Runs a program that ends by itself.
///
/// # Panics
/// It does not, within `limit`.
pub async fn run(program: &Path, args: &[&str], limit: Duration) -> Ended {
    let output = tokio::process::Command::new(program)
        .args(args)
        .env_remove("RUST_LOG")
        .env_remove("FRIDAY_LOG")
        .env_remove("FRIDAY_URL")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let shown = || format!("{} {}", program.display(), args.join(" "));
    let output = timeout(limit, output)
        .await
        .unwrap_or_else(|_| panic!("{} did not end within {limit:?}", shown()));
    let output = output.unwrap_or_else(|error| panic!("{} cannot be run: {error}", shown()));
    Ended {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
