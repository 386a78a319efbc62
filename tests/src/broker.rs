//! A Kafka broker of a test's own: `tansu`, on loopback, with its records in a file.
//!
//! This file is a module of two crates: of this one, and of the tests of `pipeline-demo`, which cannot depend on it.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::port::free_address;

/// The version that the tests were written with.
pub const TANSU_VERSION: &str = "0.6.0";

/// How long a broker may take to answer after its start.
const START_MAX: Duration = Duration::from_secs(30);

/// A broker. It is killed when it is dropped.
#[derive(Debug)]
pub struct Broker {
    directory: PathBuf,
    address: SocketAddr,
    child: Option<Child>,
}

impl Broker {
    /// Starts a broker that keeps its records and its log in `directory`, and waits until it listens.
    ///
    /// # Panics
    /// It is not installed (then the panic says how to), or does not listen in time.
    #[must_use]
    pub fn start(directory: &Path) -> Self {
        let mut broker = Self {
            directory: directory.to_owned(),
            address: free_address(),
            child: None,
        };
        broker.start_again();
        broker
    }

    /// `HOST:PORT`, the same all its life.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// SIGKILL: as if its machine had lost power.
    ///
    /// # Panics
    /// It does not run.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the broker runs");
        child.kill().expect("a child of ours may be killed");
        child.wait().expect("a killed child can be waited for");
    }

    /// Starts it at the same address, with the records it had.
    ///
    /// # Panics
    /// It runs already, is not installed, or does not listen in time.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "the broker runs already");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.join("broker.log"))
            .expect("a folder of ours can be written to");
        let url = format!("tcp://{}", self.address);
        let program = tansu();
        let mut child = Command::new(&program)
            .args(["broker", "--listener-url", &url])
            .args(["--advertised-listener-url", &url])
            .args(["--storage-engine", "sqlite://broker.db"])
            // Its path is relative.
            .current_dir(&self.directory)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file has several handles"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{} cannot be started: {error}", program.display()));
        for _ in 0..START_MAX.as_millis() / 20 {
            if TcpStream::connect(self.address).is_ok() {
                self.child = Some(child);
                return;
            }
            if let Ok(Some(status)) = child.try_wait() {
                panic!("the broker ended with {status}: {}", self.last_words());
            }
            pause();
        }
        child.kill().ok();
        child.wait().ok();
        panic!("the broker does not listen: {}", self.last_words());
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.directory.join("broker.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
        if std::thread::panicking() {
            eprintln!("--- last lines of the broker:\n{}", self.last_words());
        }
    }
}

/// The program that `FRIDAY_TANSU` names, or the one in the cache that `tests/run` fills.
///
/// # Panics
/// There is none; the panic says how to install it.
#[must_use]
pub fn tansu() -> PathBuf {
    if let Some(named) = std::env::var_os("FRIDAY_TANSU") {
        return named.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"),
        PathBuf::from,
    );
    let root = cache.join(format!("friday/tansu-{TANSU_VERSION}"));
    let program = root.join("bin/tansu");
    assert!(
        program.is_file(),
        "the Kafka broker of the tests is missing; install it (it takes about 10 minutes) with:\n  \
         cargo install tansu --version {TANSU_VERSION} --features dynostore,libsql --locked --root {}\n\
         tests/run does so by itself; FRIDAY_TANSU names a program elsewhere",
        root.display()
    );
    program
}

/// A moment between two looks. The broker is started from synchronous code, before anything else runs.
fn pause() {
    std::thread::park_timeout(Duration::from_millis(20));
}
