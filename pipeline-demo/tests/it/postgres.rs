//! A PostgreSQL server of a test's own: in a temporary folder, on a free port of loopback, gone with the test.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pipeline_demo::sink::{PostgresConfig, PostgresStorage};
use sqlx::{Connection, PgConnection, PgPool};
use tempfile::TempDir;

use crate::support::until;

const INSTALL: &str = "PostgreSQL is missing; tests/run installs it: apt-get install postgresql";

/// A server. Dropped, it is stopped and its folder removed.
pub(crate) struct Postgres {
    folder: TempDir,
    port: u16,
    server: Option<Child>,
}

impl Postgres {
    /// A new cluster, and its server running. Nothing is synchronised to the disk: the machine does not crash in a test,
    /// and what a killed server wrote is in the system's memory.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let free = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        // It refuses to run as root.
        if let Some((user, group)) = user() {
            chown(folder.path(), Some(user), Some(group)).unwrap();
        }
        let mut postgres = Self {
            folder,
            port,
            server: None,
        };
        let made = postgres
            .command("initdb")
            .args([
                "--auth=trust",
                "--username=postgres",
                "--no-sync",
                "--encoding=UTF8",
                "--locale=C",
            ])
            .arg("--pgdata")
            .arg(postgres.data())
            .output()
            .expect(INSTALL);
        assert!(
            made.status.success(),
            "initdb failed in {}, where its user must be able to write: {}",
            postgres.folder.path().display(),
            String::from_utf8_lossy(&made.stderr)
        );
        postgres.start_again().await;
        postgres
    }

    /// Starts the server that was stopped, and waits until it answers.
    pub(crate) async fn start_again(&mut self) {
        assert!(self.server.is_none(), "it is running");
        let log = fs::File::create(self.folder.path().join("log")).unwrap();
        let server = self
            .command("postgres")
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(self.folder.path())
            .args(["-p", &self.port.to_string(), "-F"])
            .args([
                "-c",
                "listen_addresses=127.0.0.1",
                "-c",
                "max_connections=60",
            ])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect(INSTALL);
        self.server = Some(server);
        until("PostgreSQL answers", async || {
            let ended = self.server.as_mut().unwrap().try_wait().unwrap();
            let log = self.folder.path().join("log");
            assert_eq!(ended, None, "{}", fs::read_to_string(log).unwrap());
            let connection = PgConnection::connect(&self.url()).await;
            match connection {
                Ok(connection) => connection.close().await,
                Err(error) => Err(error),
            }
        })
        .await;
    }

    /// Ends it at once, as a crash does: no transaction finishes, connections break.
    pub(crate) fn stop(&mut self) {
        let Some(mut server) = self.server.take() else {
            return;
        };
        let pid = Pid::from_raw(server.id().cast_signed());
        kill(pid, Signal::SIGQUIT).unwrap();
        server.wait().unwrap();
    }

    pub(crate) fn url(&self) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/postgres", self.port)
    }

    pub(crate) fn config(&self) -> PostgresConfig {
        PostgresConfig::new(&self.url(), None).unwrap()
    }

    pub(crate) async fn storage(&self) -> Arc<PostgresStorage> {
        Arc::new(PostgresStorage::open(&self.config()).await.unwrap())
    }

    /// For a test's own questions.
    pub(crate) async fn pool(&self) -> PgPool {
        PgPool::connect(&self.url()).await.unwrap()
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
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

/// User and group of `postgres`, if we are root and have to become somebody else.
fn user() -> Option<(u32, u32)> {
    // Root's processes are root's.
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.starts_with("postgres:"));
    let fields: Vec<&str> = line.expect(INSTALL).split(':').collect();
    Some((fields[2].parse().unwrap(), fields[3].parse().unwrap()))
}

/// Debian keeps the programs of each version in a folder of their own; elsewhere they are in the path.
fn find(program: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut found: Vec<PathBuf> = versions
        .filter_map(|entry| Some(entry.ok()?.path().join("bin").join(program)))
        .filter(|path| path.is_file())
        .collect();
    found.sort();
    let in_path = || Path::new(program).to_owned();
    found.pop().unwrap_or_else(in_path)
}
