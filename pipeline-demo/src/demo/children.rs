//! The parts as child processes: started with an address file, ended gently, killed when they do not listen.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use super::log_file;

/// Set for every child: it ends when the demo dies without ending it (see [`die_with_parent`]).
const DEMO_CHILD: &str = "FRIDAY_DEMO_CHILD";

/// Longest wait for a part to end after SIGTERM. The controller drains and stops its tasks in this time.
const END_MAX: Duration = Duration::from_secs(20);

/// Lines of a dead part's log that are shown.
const LOG_LINES: usize = 8;

/// A part that listens.
#[derive(Debug)]
pub(super) struct Child {
    name: &'static str,
    addresses: Value,
}

impl Child {
    /// One of its addresses.
    pub(super) fn address(&self, key: &str) -> anyhow::Result<String> {
        let address = self.addresses[key].as_str();
        address
            .map(str::to_owned)
            .with_context(|| format!("the {} did not say its address {key:?}", self.name))
    }
}

#[derive(Debug)]
struct Running {
    name: &'static str,
    process: tokio::process::Child,
    log: PathBuf,
    out: PathBuf,
}

/// All parts, in the order they were started.
#[derive(Debug, Default)]
pub(super) struct Children {
    running: Vec<Running>,
}

/// Makes this process end when the demo that started it does, even if that was killed. To be called first in `main`.
pub fn die_with_parent() {
    if std::env::var_os(DEMO_CHILD).is_some()
        && let Err(error) = nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)
    {
        eprintln!("pipeline-demo: will not end by itself if the demo is killed: {error}");
    }
}

impl Children {
    /// Starts this program as `args` and waits until it has written where it listens.
    pub(super) async fn start(
        &mut self,
        name: &'static str,
        args: &[&str],
        dir: &Path,
        limit: Duration,
    ) -> anyhow::Result<Child> {
        let program = std::env::current_exe().context("this program cannot find itself")?;
        let log = log_file(dir, name);
        let addresses_file = dir.join(format!("{name}.addresses"));
        let folder = log.parent().context("a log has a folder")?;
        std::fs::create_dir_all(folder)
            .with_context(|| format!("{} cannot be made", folder.display()))?;
        // A folder that is used again has the addresses of the time before.
        drop(std::fs::remove_file(&addresses_file));
        let out = log.with_extension("out");
        let create = |path: &Path| {
            std::fs::File::create(path)
                .with_context(|| format!("{} cannot be written", path.display()))
        };
        let process = Command::new(program)
            .args(args)
            .arg("--addresses-file")
            .arg(&addresses_file)
            .env(DEMO_CHILD, "1")
            .env("FRIDAY_ENVIRONMENT", super::ENVIRONMENT)
            .stdin(Stdio::null())
            .stdout(create(&out)?)
            .stderr(create(&log)?)
            // Ctrl-C at the terminal is the demo's; the parts end in its order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("the {name} cannot be started"))?;
        self.running.push(Running {
            name,
            process,
            log: log.clone(),
            out,
        });
        let began = Instant::now();
        loop {
            if let Ok(text) = std::fs::read_to_string(&addresses_file) {
                let addresses = serde_json::from_str(&text)
                    .with_context(|| format!("addresses of the {name}"))?;
                return Ok(Child { name, addresses });
            }
            if let Some(died) = self.ended() {
                return Err(died);
            }
            if began.elapsed() >= limit {
                bail!("the {name} did not listen within {limit:?}\n{}", tail(&log));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// The first part that ended by itself, with its last words.
    fn ended(&mut self) -> Option<anyhow::Error> {
        self.running
            .iter_mut()
            .find_map(|part| match part.process.try_wait() {
                Ok(None) => None,
                Ok(Some(status)) => Some(dead(part.name, status, &part.log)),
                Err(error) => Some(
                    anyhow::Error::new(error)
                        .context(format!("the {} cannot be watched", part.name)),
                ),
            })
    }

    /// Waits until a part ends by itself; that is always an error.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost.
    pub(super) async fn any_ends(&mut self) -> anyhow::Error {
        loop {
            if let Some(died) = self.ended() {
                return died;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Ends one part; the record that it prints as its last line.
    pub(super) async fn finish(&mut self, name: &str) -> anyhow::Result<Value> {
        let Some(at) = self.running.iter().position(|part| part.name == name) else {
            bail!("there is no {name}")
        };
        let part = self.running.remove(at);
        let out = part.out.clone();
        end_one(part).await;
        let text = std::fs::read_to_string(&out)
            .with_context(|| format!("{} cannot be read", out.display()))?;
        let last = text
            .lines()
            .last()
            .with_context(|| format!("the {name} printed no record"))?;
        serde_json::from_str(last)
            .with_context(|| format!("the {name} printed {last:?}, which is no record"))
    }

    /// Ends every part: who feeds first, who is fed last, and the controller, which ends its tasks, after all of them.
    pub(super) async fn end(&mut self) {
        while let Some(part) = self.running.pop() {
            end_one(part).await;
        }
    }
}

async fn end_one(mut part: Running) {
    if let Some(pid) = part.process.id().and_then(|pid| i32::try_from(pid).ok())
        && let Err(error) = kill(Pid::from_raw(pid), Signal::SIGTERM)
    {
        tracing::debug!(name = part.name, %error, "not told to end; it may have ended this very moment");
    }
    if timeout(END_MAX, part.process.wait()).await.is_err() {
        eprintln!(
            "demo: the {} did not end within {END_MAX:?} and is killed",
            part.name
        );
        if let Err(error) = part.process.kill().await {
            eprintln!("demo: the {} cannot be killed: {error}", part.name);
        }
    }
}

fn dead(name: &str, status: ExitStatus, log: &Path) -> anyhow::Error {
    anyhow::anyhow!("the {name} ended by itself ({status})\n{}", tail(log))
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(LOG_LINES);
    format!(
        "last lines of {}:\n{}",
        log.display(),
        lines[from..].join("\n")
    )
}
