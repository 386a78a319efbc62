//! A PostgreSQL server of a test's own: in a temporary folder, on a port of loopback, gone with the test.
//!
//! This file is a module of two crates: of this one, and of the tests of `pipeline-demo`, which cannot depend on it.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::port::free_address;

const INSTALL: &str = "PostgreSQL is missing; tests/run installs it: apt-get install postgresql";

/// How long a server may take to answer after its start; after a crash it first repeats what it has in its log.
const START_MAX: Duration = Duration::from_secs(60);

/// A server. Dropped, it is stopped and its folder removed.
#[derive(Debug)]
pub struct Server {
    folder: TempDir,
    address: SocketAddr,
    child: Option<Child>,
}

impl Server {
    /// A new cluster, and its server running. Nothing is synchronised to the disk: the machine does not crash in a test,
    /// and what a killed server wrote is in the system's memory.
    ///
    /// # Panics
    /// It is not installed (then the panic says how to), or does not answer in time.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        // It refuses to run as root.
        if let Some((user, group)) = user() {
            chown(folder.path(), Some(user), Some(group)).expect("root may give a folder away");
        }
        let mut server = Self {
            folder,
            address: free_address(),
            child: None,
        };
        let made = server
            .command("initdb")
            .args([
                "--auth=trust",
                "--username=postgres",
                "--no-sync",
                "--encoding=UTF8",
                "--locale=C",
            ])
            .arg("--pgdata")
            .arg(server.data())
            .output()
            .expect(INSTALL);
        assert!(
            made.status.success(),
            "initdb failed in {}, where its user must be able to write: {}",
            server.folder.path().display(),
            String::from_utf8_lossy(&made.stderr)
        );
        server.start_again().await;
        server
    }

    /// Starts the server that was stopped, at the same address, and waits until it answers.
    ///
    /// # Panics
    /// It runs already, or does not answer in time.
    pub async fn start_again(&mut self) {
        assert!(self.child.is_none(), "PostgreSQL runs already");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))
            .expect("a folder of ours can be written to");
        let mut child = self
            .command("postgres")
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(self.folder.path())
            .args(["-p", &self.address.port().to_string(), "-F"])
            .args([
                "-c",
                "listen_addresses=127.0.0.1",
                "-c",
                "max_connections=60",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect(INSTALL);
        let deadline = Instant::now() + START_MAX;
        loop {
            let ended = child.try_wait().expect("a child can be asked for its end");
            assert_eq!(ended, None, "PostgreSQL ended: {}", self.last_words());
            match PgConnection::connect(&self.url()).await {
                Ok(connection) => {
                    drop(connection.close().await);
                    self.child = Some(child);
                    return;
                }
                Err(error) => assert!(
                    Instant::now() < deadline,
                    "PostgreSQL does not answer: {error}: {}",
                    self.last_words()
                ),
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends it at once, as a crash does: no transaction finishes, connections break.
    ///
    /// # Panics
    /// It cannot be sent a signal.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let pid = Pid::from_raw(child.id().cast_signed());
        kill(pid, Signal::SIGQUIT).expect("a child of ours may be sent a signal");
        child.wait().expect("a child that ends can be waited for");
    }

    /// Where it is, as a client is told: user, address and name.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgresql://postgres@{}/postgres", self.address)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(find(program));
        command.current_dir(self.folder.path());
        if let Some((user, group)) = user() {
            command.uid(user).gid(group);
        }
        command
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("--- last lines of PostgreSQL:\n{}", self.last_words());
        }
    }
}

/// User and group of `postgres`, if we are root and have to become somebody else.
fn user() -> Option<(u32, u32)> {
    // Root's processes are root's.
    if fs::metadata("/proc/self").expect("Linux has /proc").uid() != 0 {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").expect("there are users");
    let line = users.lines().find(|line| line.starts_with("postgres:"));
    let fields: Vec<&str> = line.expect(INSTALL).split(':').collect();
    let number = |at: usize| fields[at].parse().expect("users have numbers");
    Some((number(2), number(3)))
}

/// Where a program of PostgreSQL is. Debian keeps those of each version in a folder of their own; elsewhere they are in the
/// path.
#[must_use]
pub fn find(program: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut found: Vec<PathBuf> = versions
        .filter_map(|entry| Some(entry.ok()?.path().join("bin").join(program)))
        .filter(|path| path.is_file())
        .collect();
    found.sort();
    let in_path = || Path::new(program).to_owned();
    found.pop().unwrap_or_else(in_path)
}
