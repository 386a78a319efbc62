//! A directory into which clients drop files of tweets, plain or packed: each is taken whole or refused.
//!
//! The rules, for those who drop them:
//!
//! - A name that begins with a dot or ends in `.tmp` or `.part` is not looked at: write under such a name, then rename.
//!   Folders, links and pipes are not looked at either.
//! - Any other file is taken once it has been there unchanged for two seconds, in size and time. So a writer that cannot
//!   rename is waited for as well, unless it pauses for longer.
//! - It moves to `done/` when all of it is in the bus, or to `refused/` when a line is no tweet, with the line and the
//!   reason in `NAME.reason.txt` beside it. A name that is there already gets a number. Nobody empties these two but you.
//!
//! A file stays where it is until it is done with. After a crash it is taken again from the start, and what was in the bus
//! already is stored once.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use prometheus::IntCounterVec;
use tokio::fs::File;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::Intake;
use super::whole::{AppendError, Fault, append, check};
use crate::source::lines::Lines;
use crate::telemetry::chain;

/// How often the directory is looked at. By looking, because a notice does not come from every file system.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How long a file must have been left alone. A writer that pauses for longer should rename.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// Names that are looked at at once; the others have their turn when these are done.
const NAMES_MAX: usize = 10_000;

/// Largest file after unpacking: it is read as a stream, so this bounds time and not memory. 1 TiB.
const UNPACKED_BYTES_MAX: u64 = 1 << 40;

/// Numbers that are tried for a name that is there already.
const NUMBERS_MAX: u32 = 100_000;

/// The directory, and what was seen in it.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    done: PathBuf,
    refused: PathBuf,
    seen: HashMap<OsString, Seen>,
    files: IntCounterVec,
}

/// What tells one content of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    bytes: u64,
    modified: Option<SystemTime>,
}

#[derive(Debug)]
struct Seen {
    version: Version,
    since: Instant,
    /// It is done with, but cannot be moved away.
    stuck: bool,
}

impl Directory {
    /// Makes sure that the directory and its two folders are there and can be written to: else a file could be taken and
    /// not be moved away.
    pub(super) fn open(path: &Path, files: IntCounterVec) -> io::Result<Self> {
        let (done, refused) = (path.join("done"), path.join("refused"));
        for folder in [&done, &refused] {
            std::fs::create_dir_all(folder)?;
            tempfile::tempfile_in(folder)?;
        }
        Ok(Self {
            path: path.to_owned(),
            done,
            refused,
            seen: HashMap::new(),
            files,
        })
    }

    /// Takes files until `shutdown`. A file that is on its way then is taken again next time.
    pub(super) async fn run(mut self, intake: &Intake, shutdown: CancellationToken) {
        let work = async {
            loop {
                for name in self.settled().await {
                    self.take(&name, intake).await;
                }
                sleep(LOOK_EVERY).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// Names of the files that nobody seems to write any more, the oldest first.
    async fn settled(&mut self) -> Vec<OsString> {
        let path = self.path.clone();
        let listed = spawn_blocking(move || list(&path)).await;
        let listed = match listed {
            Ok(Ok(listed)) => listed,
            Ok(Err(error)) => {
                warn!(directory = %self.path.display(), error = chain(&error), "ingest: cannot look");
                return Vec::new();
            }
            // The process is ending.
            Err(_) => return Vec::new(),
        };
        let now = Instant::now();
        self.seen.retain(|name, _| listed.contains_key(name));
        for (name, version) in listed {
            let fresh = Seen {
                version,
                since: now,
                stuck: false,
            };
            let seen = self.seen.entry(name).or_insert(fresh);
            if seen.version != version {
                *seen = Seen {
                    version,
                    since: now,
                    stuck: false,
                };
            }
        }
        let is_settled = |seen: &&Seen| !seen.stuck && now - seen.since >= SETTLED_AFTER;
        let entries = self.seen.iter().filter(|(_, seen)| is_settled(seen));
        let mut settled: Vec<_> = entries
            .map(|(name, seen)| (seen.version.modified, name.clone()))
            .collect();
        settled.sort();
        settled.into_iter().map(|(_, name)| name).collect()
    }

    /// One file, from the first look into it to where it is moved.
    async fn take(&mut self, name: &OsStr, intake: &Intake) {
        let path = self.path.join(name);
        let shown = name.display();
        let outcome = match take_file(&path, intake).await {
            Ok(Taken::Whole { records }) => {
                intake.produced.inc_by(records);
                info!(file = %shown, records, "ingest: accepted a file");
                self.put(&path, name, None)
            }
            Ok(Taken::Refused(fault)) => {
                info!(file = %shown, line = fault.line, code = fault.code, "ingest: refused a file");
                self.put(&path, name, Some(&fault))
            }
            Err(error) => {
                // It changed, it is gone, or the bus failed: it is looked at anew.
                warn!(file = %shown, error = chain(&*error), "ingest: a file was not taken, trying again");
                self.files.with_label_values(&["failed"]).inc();
                self.seen.remove(name);
                return;
            }
        };
        if let Err(error) = outcome {
            error!(file = %shown, error = chain(&error), "ingest: done with a file that cannot be moved away; move it");
            if let Some(seen) = self.seen.get_mut(name) {
                seen.stuck = true;
            }
        }
    }

    /// Moves a file to where it belongs. The reason is there first: a file that was refused is never without.
    fn put(&self, path: &Path, name: &OsStr, fault: Option<&Fault>) -> io::Result<()> {
        let folder = if fault.is_some() {
            &self.refused
        } else {
            &self.done
        };
        let target = free_name(folder, name)?;
        if let Some(fault) = fault {
            let text = format!(
                "{}:{}: {} ({})\nNothing of this file was taken. Mend it and drop it again.\n",
                name.display(),
                fault.line,
                fault.reason,
                fault.code,
            );
            let mut reason = target.clone().into_os_string();
            reason.push(".reason.txt");
            std::fs::write(reason, text)?;
        }
        std::fs::rename(path, &target)?;
        let outcome = if fault.is_some() {
            "refused"
        } else {
            "accepted"
        };
        self.files.with_label_values(&[outcome]).inc();
        Ok(())
    }
}

/// What became of a file.
enum Taken {
    Whole { records: u64 },
    Refused(Fault),
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn take_file(path: &Path, intake: &Intake) -> Result<Taken, Failure> {
    let before = version_of(&tokio::fs::symlink_metadata(path).await?);
    let lines = async || Lines::detect(File::open(path).await?, UNPACKED_BYTES_MAX).await;
    if let Err(fault) = check(lines().await?, u64::MAX).await {
        if version_of(&tokio::fs::symlink_metadata(path).await?) != before {
            return Err("it was changed while it was read".into());
        }
        return Ok(Taken::Refused(fault));
    }
    let appended = append(lines().await?, &*intake.bus, &intake.slow, None).await;
    let records = appended.map_err(|error: AppendError| Box::new(error))?;
    if version_of(&tokio::fs::symlink_metadata(path).await?) != before {
        return Err("it was changed while it was read".into());
    }
    Ok(Taken::Whole { records })
}

/// The files that are to be looked at.
fn list(directory: &Path) -> io::Result<HashMap<OsString, Version>> {
    let mut files = HashMap::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if !is_finished(&name) {
            continue;
        }
        // Gone since it was listed: then there is nothing to look at. Does not follow links.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        if metadata.is_file() {
            files.insert(name, version_of(&metadata));
        }
        if files.len() >= NAMES_MAX {
            break;
        }
    }
    Ok(files)
}

fn version_of(metadata: &std::fs::Metadata) -> Version {
    Version {
        bytes: metadata.len(),
        modified: metadata.modified().ok(),
    }
}

/// Whether the name is not one under which files are still written.
fn is_finished(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    !(name.starts_with(b".") || name.ends_with(b".tmp") || name.ends_with(b".part"))
}

fn free_name(folder: &Path, name: &OsStr) -> io::Result<PathBuf> {
    let mut target = folder.join(name);
    for number in 1..NUMBERS_MAX {
        if !target.try_exists()? {
            return Ok(target);
        }
        let mut numbered = name.to_owned();
        numbered.push(format!(".{number}"));
        target = folder.join(numbered);
    }
    Err(io::Error::other("there are too many files of this name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_under_which_files_are_written_are_left_alone() {
        for (name, finished) in [
            ("a.jsonl", true),
            ("a.jsonl.gz", true),
            (".a.jsonl", false),
            ("a.jsonl.tmp", false),
            ("a.part", false),
            ("part", true),
        ] {
            assert_eq!(is_finished(OsStr::new(name)), finished, "{name}");
        }
    }

    #[test]
    fn a_name_that_is_taken_gets_a_number() {
        let folder = tempfile::tempdir().unwrap();
        let name = OsStr::new("a.jsonl");
        for expected in ["a.jsonl", "a.jsonl.1", "a.jsonl.2"] {
            let free = free_name(folder.path(), name).unwrap();
            assert_eq!(free, folder.path().join(expected));
            std::fs::write(free, "").unwrap();
        }
    }
}
