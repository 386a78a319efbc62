//! What is remembered, in one small file: images, so that a release is run as it was resolved, also after a restart and
//! while its registry is away; and the specs of services that had a canary, so that one which somebody removes meanwhile
//! can be made again. Specs may hold secrets: the file is its owner's alone.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rollout::ServiceName;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::orchestrator::OrchestratorError;

/// How many resolved images are remembered: more than anybody undoes.
const IMAGES_MAX: usize = 1000;

/// The format of the file.
const FORMAT: u32 = 1;

/// An image that was resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Resolved {
    digest: String,
    /// What a service spec is given for it.
    pinned: String,
}

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    format: u32,
    /// The newest last.
    images: Vec<Resolved>,
    /// What the tags of services that name no digest meant when they were first seen.
    tags: BTreeMap<ServiceName, BTreeMap<String, String>>,
    /// The specs of stable services, as they were when their canary was last written.
    #[serde(default)]
    specs: BTreeMap<ServiceName, Value>,
}

/// The memory, in the file and beside it.
#[derive(Debug)]
pub(super) struct Images {
    path: PathBuf,
    record: Mutex<Record>,
}

impl Images {
    /// Reads the file of a state directory; without one nothing is known yet. Blocks on the disk.
    pub(super) fn open(dir: &Path) -> Result<Self, OrchestratorError> {
        let path = dir.join("images.json");
        let failed = |what: &str, source| OrchestratorError::State {
            what: format!("cannot {what} {}", path.display()),
            source,
        };
        fs::create_dir_all(dir).map_err(|source| failed("make the folder of", source))?;
        let record = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|error| error.to_string())
                .and_then(|record: Record| {
                    if record.format == FORMAT {
                        Ok(record)
                    } else {
                        Err(format!("it is in format {}; expected {FORMAT}", record.format))
                    }
                })
                .map_err(|reason| OrchestratorError::Refused {
                    what: format!("the saved state in {}", path.display()),
                    reason: format!(
                        "{reason}; nothing was changed: mend the file, or move it away to start anew"
                    ),
                })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Record {
                format: FORMAT,
                images: Vec::new(),
                tags: BTreeMap::new(),
                specs: BTreeMap::new(),
            },
            Err(error) => return Err(failed("read", error)),
        };
        Ok(Self {
            path,
            record: Mutex::new(record),
        })
    }

    /// What a service spec is given for a digest, if it was resolved before.
    pub(super) fn pinned(&self, digest: &str) -> Option<String> {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let found = record.images.iter().find(|image| image.digest == digest);
        found.map(|image| image.pinned.clone())
    }

    /// Remembers a resolved image. Blocks on the disk.
    pub(super) fn resolved(&self, digest: &str, pinned: &str) -> Result<(), OrchestratorError> {
        self.change(|record| {
            let image = Resolved {
                digest: digest.to_owned(),
                pinned: pinned.to_owned(),
            };
            if record.images.last() == Some(&image) {
                return;
            }
            record.images.retain(|known| known.digest != digest);
            record.images.push(image);
            let surplus = record.images.len().saturating_sub(IMAGES_MAX);
            record.images.drain(..surplus);
        })
    }

    /// The spec of a stable service, as it was when its canary was last written.
    pub(super) fn spec(&self, service: &ServiceName) -> Option<Value> {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        record.specs.get(service).cloned()
    }

    /// Remembers it. Blocks on the disk.
    pub(super) fn keep_spec(
        &self,
        service: &ServiceName,
        spec: Value,
    ) -> Result<(), OrchestratorError> {
        self.change(|record| {
            record.specs.insert(service.clone(), spec);
        })
    }

    /// What a service's tag meant when it was first seen there.
    pub(super) fn meaning(&self, service: &ServiceName, image: &str) -> Option<String> {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        record.tags.get(service)?.get(image).cloned()
    }

    /// Remembers what tags mean for a service, and forgets those that it has no more. Blocks on the disk.
    pub(super) fn meanings(
        &self,
        service: &ServiceName,
        tags: BTreeMap<String, String>,
    ) -> Result<(), OrchestratorError> {
        self.change(|record| {
            if tags.is_empty() {
                record.tags.remove(service);
            } else {
                record.tags.insert(service.clone(), tags);
            }
        })
    }

    /// In the file first: what is not written is not remembered either.
    fn change(&self, change: impl FnOnce(&mut Record)) -> Result<(), OrchestratorError> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = record.clone();
        change(&mut next);
        if next == *record {
            return Ok(());
        }
        replace(&self.path, &next).map_err(|source| OrchestratorError::State {
            what: format!("cannot write {}", self.path.display()),
            source,
        })?;
        *record = next;
        Ok(())
    }
}

/// Whoever reads the file finds all of it or what was there before, also after a power cut.
fn replace(path: &Path, record: &Record) -> io::Result<()> {
    let beside = path.with_extension("tmp");
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(&serde_json::to_vec_pretty(record)?)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_resolved_is_known_after_a_restart_and_the_oldest_is_forgotten_first() {
        let folder = tempfile::tempdir().unwrap();
        let service: ServiceName = "worker".parse().unwrap();
        let images = Images::open(folder.path()).unwrap();
        images.resolved("sha256:1", "worker:v1@sha256:1").unwrap();
        let tags = BTreeMap::from([("worker:v1".to_owned(), "sha256:1".to_owned())]);
        images.meanings(&service, tags).unwrap();
        let again = Images::open(folder.path()).unwrap();
        assert_eq!(
            again.pinned("sha256:1").as_deref(),
            Some("worker:v1@sha256:1")
        );
        assert_eq!(again.pinned("sha256:2"), None);
        assert_eq!(
            again.meaning(&service, "worker:v1").as_deref(),
            Some("sha256:1")
        );
        assert_eq!(again.meaning(&service, "worker:v2"), None);
        again.meanings(&service, BTreeMap::new()).unwrap();
        assert_eq!(again.meaning(&service, "worker:v1"), None);

        let many = |record: &mut Record| {
            record.images = (0..IMAGES_MAX)
                .map(|at| Resolved {
                    digest: format!("sha256:{at}"),
                    pinned: String::new(),
                })
                .collect();
        };
        again.change(many).unwrap();
        again.resolved("sha256:new", "new").unwrap();
        assert_eq!(again.pinned("sha256:0"), None);
        assert!(again.pinned("sha256:1").is_some());
    }

    #[test]
    fn a_file_that_cannot_be_understood_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("images.json");
        fs::write(&file, "{\"format\":9,\"images\":[],\"tags\":{}}").unwrap();
        let words = Images::open(folder.path()).unwrap_err().to_string();
        assert!(words.contains("format 9"), "{words}");
        assert!(file.exists());
    }
}
