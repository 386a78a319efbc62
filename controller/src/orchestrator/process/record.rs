//! What is saved: the wishes, the tasks and the images' definitions, one small file each. All of it blocks.
//!
//! ```text
//! STATE_DIR/lock                   held by the controller that runs
//! STATE_DIR/services/NAME.json     what is wanted of a service, and the tasks it has
//! STATE_DIR/images/DIGEST.json     what an image was when it was resolved
//! STATE_DIR/logs/TASK.{out,err}    what a task wrote
//! ```
//!
//! A file is written beside its place, synced and renamed, and so is the folder: it holds the old text or the new one.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rollout::{Release, ServiceName};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::catalog::{Definition, Settings};
use super::identity::Identity;
use crate::orchestrator::OrchestratorError;

/// How a service's file is laid out. Another number is another program's file, and is refused.
const FORMAT: u32 = 1;

/// How many definitions are kept. An undo goes back a few releases; a thousand is years of them.
const IMAGES_MAX: usize = 1000;

/// One service, as saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceRecord {
    format: u32,
    /// The run of the machine in which the tasks' processes were started.
    pub(super) boot: String,
    /// Its name.
    pub(super) service: ServiceName,
    /// How its tasks are run.
    pub(super) settings: Settings,
    /// What users call.
    pub(super) stable: GroupRecord,
    /// The clone on trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) canary: Option<GroupRecord>,
}

impl ServiceRecord {
    /// The record of a service in this program's format.
    pub(super) fn new(
        boot: String,
        service: ServiceName,
        settings: Settings,
        stable: GroupRecord,
        canary: Option<GroupRecord>,
    ) -> Self {
        Self {
            format: FORMAT,
            boot,
            service,
            settings,
            stable,
            canary,
        }
    }

    /// The tasks of both groups.
    pub(super) fn tasks(&self) -> impl Iterator<Item = &TaskRecord> {
        let canary = self.canary.iter().flat_map(|group| &group.tasks);
        self.stable.tasks.iter().chain(canary)
    }

    /// Whether `other` says the same, apart from how far the restarts are on their way to being forgotten.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        fn timeless(record: &ServiceRecord) -> ServiceRecord {
            let mut record = record.clone();
            let ServiceRecord { stable, canary, .. } = &mut record;
            for group in std::iter::once(stable).chain(canary) {
                group.restarts_remembered_ms.clear();
            }
            record
        }
        timeless(self) == timeless(other)
    }
}

/// One group, as saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GroupRecord {
    /// What shall run.
    pub(super) release: Release,
    /// How many.
    pub(super) replicas: u32,
    /// Whether the group is on its way out.
    #[serde(default)]
    pub(super) removing: bool,
    /// The tasks there are, or were about to be started.
    pub(super) tasks: Vec<TaskRecord>,
    /// For each restart that still counts, how much longer it does.
    #[serde(default)]
    pub(super) restarts_remembered_ms: Vec<u64>,
    /// Why the last one happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) trouble: Option<String>,
}

/// One task, as saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TaskRecord {
    /// Its identity, and the mark in its environment.
    pub(super) id: String,
    /// Its place in the group, from 1.
    pub(super) slot: u32,
    /// What it runs.
    pub(super) release: Release,
    /// Where it listens.
    pub(super) port: u16,
    /// Its process; `None` while it is about to be started.
    pub(super) process: Option<Identity>,
    /// Whether it shall go: it gets no more requests.
    #[serde(default)]
    pub(super) leaving: bool,
}

/// The state directory.
#[derive(Debug)]
pub(super) struct Records {
    dir: PathBuf,
    /// Held while an image is written: two services may ask for the same one, and it is written beside its place.
    writes_image: Mutex<()>,
}

impl Records {
    /// The state directory at `dir`, made if need be.
    pub(super) fn open(dir: &Path) -> Result<Self, OrchestratorError> {
        let failed = |source| OrchestratorError::State {
            what: format!("cannot use the state directory {}", dir.display()),
            source,
        };
        for folder in ["services", "images", "logs"] {
            fs::create_dir_all(dir.join(folder)).map_err(failed)?;
        }
        // The full path is the tasks' mark: it must not depend on the folder the controller was started in.
        Ok(Self {
            dir: dir.canonicalize().map_err(failed)?,
            writes_image: Mutex::default(),
        })
    }

    /// Its full path.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where tasks' logs are.
    pub(super) fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// The right to act on this directory, for as long as the file is open; `None` when another controller has it.
    pub(super) fn try_lock(&self) -> Result<Option<File>, OrchestratorError> {
        let path = self.dir.join("lock");
        let failed = |source| OrchestratorError::State {
            what: format!("cannot lock {}", path.display()),
            source,
        };
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// Every saved service. A file that cannot be understood is refused and left as it is.
    pub(super) fn services(&self) -> Result<Vec<ServiceRecord>, OrchestratorError> {
        let folder = self.dir.join("services");
        let failed = |source| OrchestratorError::State {
            what: format!("cannot list {}", folder.display()),
            source,
        };
        let mut records = Vec::new();
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            // What else may be here is a temporary file, left when a controller was killed while it wrote.
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                let record: ServiceRecord = read(&path)?;
                if record.format != FORMAT || path != self.service_path(&record.service) {
                    return Err(corrupt(
                        &path,
                        &format!(
                            "it holds service {} in format {}; expected the service of its name in format {FORMAT}",
                            record.service, record.format
                        ),
                    ));
                }
                records.push(record);
            }
        }
        Ok(records)
    }

    /// Saves one service durably.
    pub(super) fn save_service(&self, record: &ServiceRecord) -> Result<(), OrchestratorError> {
        write(&self.service_path(&record.service), record)
    }

    /// What the image with this digest was when it was resolved.
    pub(super) fn image(&self, digest: &str) -> Result<Option<Definition>, OrchestratorError> {
        let Some(path) = self.image_path(digest) else {
            return Ok(None);
        };
        if !path.exists() {
            return Ok(None);
        }
        let definition: Definition = read(&path)?;
        if definition.digest() != digest {
            return Err(corrupt(&path, "its digest is not that of its name"));
        }
        Ok(Some(definition))
    }

    /// Keeps what an image is now, under its digest, so that an undo finds it when the catalog has moved on. Saved
    /// again when it is used again: the file's time is that of its last use.
    pub(super) fn save_image(&self, definition: &Definition) -> Result<String, OrchestratorError> {
        let digest = definition.digest();
        let path = self.image_path(&digest).expect("a digest of ours is one");
        let writes = self.writes_image.lock();
        let _alone = writes.unwrap_or_else(PoisonError::into_inner);
        write(&path, definition)?;
        keep_newest(&self.dir.join("images"), IMAGES_MAX, |_| true);
        Ok(digest)
    }

    fn service_path(&self, service: &ServiceName) -> PathBuf {
        self.dir.join("services").join(format!("{service}.json"))
    }

    /// `None` for what is no digest: it may come from outside, and must not become a path.
    fn image_path(&self, digest: &str) -> Option<PathBuf> {
        let digits = digest.strip_prefix("sha256:")?;
        let is_hex = digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hex.then(|| self.dir.join("images").join(format!("{digits}.json")))
    }
}

/// Of the files of `folder` that `may_go`, removes all but the `count` that were written last. A file that cannot be
/// removed stays.
pub(super) fn keep_newest(folder: &Path, count: usize, may_go: impl Fn(&Path) -> bool) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    let mut files: Vec<_> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
        })
        .filter(|(_, path)| may_go(path))
        .collect();
    files.sort();
    let surplus = files.len().saturating_sub(count);
    for (_, path) in files.into_iter().take(surplus) {
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove an old file");
        }
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, OrchestratorError> {
    let text = fs::read(path).map_err(|source| OrchestratorError::State {
        what: format!("cannot read {}", path.display()),
        source,
    })?;
    serde_json::from_slice(&text).map_err(|error| corrupt(path, &error.to_string()))
}

fn corrupt(path: &Path, reason: &str) -> OrchestratorError {
    OrchestratorError::Refused {
        what: format!("the saved state in {}", path.display()),
        reason: format!(
            "{reason}; nothing was changed: mend the file, or move it away to start anew"
        ),
    }
}

fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), OrchestratorError> {
    let text = serde_json::to_vec_pretty(value)
        .expect("our own records have text keys and no infinite numbers");
    replace(path, &text).map_err(|source| OrchestratorError::State {
        what: format!("cannot write {}", path.display()),
        source,
    })
}

fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("tmp");
    let mut file = File::create(&beside)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(path.parent().expect("our files are in a folder"))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_may_resolve_one_image_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let definition = Definition {
            command: vec!["/bin/worker".to_owned(); 100],
            env: std::collections::BTreeMap::new(),
        };
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        records.save_image(&definition).unwrap();
                    }
                });
            }
        });
        let path = records.image_path(&definition.digest()).unwrap();
        let saved: Definition = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        assert_eq!(saved, definition);
    }
}
