//! The catalog: which images there are on this machine, and which services run.
//!
//! ```yaml
//! images:
//!   worker:v1: { command: [/opt/worker, --serve], env: { KEY: value } }
//! services:
//!   tweets-worker: { image: worker:v1, replicas: 2, ready: /ready, memory_limit: 256MiB }
//! ```
//!
//! An image here is a command and its environment; its digest is over both, so a tag that is given another meaning is
//! another release (F34).

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;

use rollout::ServiceName;
use serde::{Deserialize, Serialize};
use serde_saphyr::Spanned;
use sha2::{Digest, Sha256};

use crate::orchestrator::OrchestratorError;

/// The largest catalog that is read: a thousand images with a generous kilobyte each.
const CATALOG_BYTES_MAX: u64 = 1024 * 1024;

/// The most tasks of one group on one machine. More would be a slip of the finger.
pub(super) const REPLICAS_MAX: u32 = 64;

/// Asked for readiness when the catalog does not say.
const DEFAULT_READY: &str = "/ready";

/// Variables with this prefix, and `PORT`, are ours to set.
const OWN_PREFIX: &str = "FRIDAY_";

/// What an image is on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Definition {
    /// The program and its arguments; never empty.
    pub(super) command: Vec<String>,
    /// What is added to its environment.
    #[serde(default)]
    pub(super) env: BTreeMap<String, String>,
}

impl Definition {
    /// `sha256:…` over command and environment. Each text goes in behind its length, so that no two definitions have
    /// the same encoding.
    pub(super) fn digest(&self) -> String {
        let mut hash = Sha256::new_with_prefix(b"friday process image 1\n");
        let mut text = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        };
        text(&self.command.len().to_string());
        for argument in &self.command {
            text(argument);
        }
        for (key, value) in &self.env {
            text(key);
            text(value);
        }
        let digits: String = hash
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("sha256:{digits}")
    }
}

/// How a service's tasks are run, apart from what they run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// The path that answers 2xx when the task may get requests.
    pub(super) ready: String,
    /// The most resident memory of one task.
    pub(super) memory_bytes_max: Option<u64>,
}

/// One service of the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CatalogService {
    /// What its first release is.
    pub(super) image: String,
    /// How many stable tasks.
    pub(super) replicas: u32,
    /// The rest.
    pub(super) settings: Settings,
}

/// The whole file, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Catalog {
    images: BTreeMap<String, Definition>,
    /// Every service's image is one of the images.
    pub(super) services: BTreeMap<ServiceName, CatalogService>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCatalog {
    images: BTreeMap<String, Spanned<Definition>>,
    services: BTreeMap<String, Spanned<RawService>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawService {
    image: Spanned<String>,
    replicas: Spanned<u32>,
    ready: Option<Spanned<String>>,
    memory_limit: Option<Spanned<String>>,
}

impl Catalog {
    /// Reads the file; blocking.
    pub(super) fn read(path: &Path) -> Result<Self, OrchestratorError> {
        let failed = |source| OrchestratorError::State {
            what: format!("cannot read the catalog {}", path.display()),
            source,
        };
        let mut text = String::new();
        let file = fs::File::open(path).map_err(failed)?;
        file.take(CATALOG_BYTES_MAX + 1)
            .read_to_string(&mut text)
            .map_err(failed)?;
        if text.len() as u64 > CATALOG_BYTES_MAX {
            return Err(refused(
                path,
                1,
                format!("longer than {CATALOG_BYTES_MAX} bytes"),
            ));
        }
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, OrchestratorError> {
        let raw: RawCatalog = serde_saphyr::from_str(text).map_err(|error| {
            let line = error.location().map_or(1, |location| location.line());
            refused(path, line, error.without_snippet().to_string())
        })?;

        let mut images = BTreeMap::new();
        for (image, definition) in raw.images {
            let line = definition.defined.line();
            check_definition(&image, &definition.value)
                .map_err(|reason| refused(path, line, reason))?;
            images.insert(image, definition.value);
        }
        let mut services = BTreeMap::new();
        for (name, service) in raw.services {
            let line = service.defined.line();
            let name = ServiceName::try_from(name)
                .map_err(|error| refused(path, line, error.to_string()))?;
            services.insert(name, check_service(path, service.value, &images)?);
        }
        Ok(Self { images, services })
    }

    /// What `image` is now; the error is the list of those there are.
    pub(super) fn image(&self, image: &str) -> Result<&Definition, String> {
        self.images.get(image).ok_or_else(|| known(&self.images))
    }
}

fn known(images: &BTreeMap<String, Definition>) -> String {
    let names: Vec<&str> = images.keys().map(String::as_str).collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

fn refused(path: &Path, line: u64, reason: String) -> OrchestratorError {
    OrchestratorError::Refused {
        what: format!("{}:{line}", path.display()),
        reason,
    }
}

fn check_definition(image: &str, definition: &Definition) -> Result<(), String> {
    if definition.command.first().is_none_or(String::is_empty) {
        return Err(format!(
            "image {image:?} has no command; expected a program and its arguments, as in [/opt/worker, --serve]"
        ));
    }
    if definition.command.iter().any(|text| text.contains('\0')) {
        return Err(format!(
            "the command of image {image:?} has a NUL in it; expected plain text"
        ));
    }
    for (key, value) in &definition.env {
        if key == "PORT" || key.starts_with(OWN_PREFIX) {
            return Err(format!(
                "image {image:?} sets {key:?}; expected another: PORT and {OWN_PREFIX}... are set by the orchestrator"
            ));
        }
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            return Err(format!(
                "image {image:?} sets {key:?}; expected a name without '=', and no NUL"
            ));
        }
    }
    Ok(())
}

fn check_service(
    path: &Path,
    raw: RawService,
    images: &BTreeMap<String, Definition>,
) -> Result<CatalogService, OrchestratorError> {
    if !images.contains_key(&raw.image.value) {
        let reason = format!(
            "image {:?} is not under images; expected one of: {}",
            raw.image.value,
            known(images)
        );
        return Err(refused(path, raw.image.defined.line(), reason));
    }
    if !(1..=REPLICAS_MAX).contains(&raw.replicas.value) {
        let reason = format!(
            "replicas is {}; expected 1 to {REPLICAS_MAX}",
            raw.replicas.value
        );
        return Err(refused(path, raw.replicas.defined.line(), reason));
    }
    let ready = match raw.ready {
        None => DEFAULT_READY.to_owned(),
        Some(ready) if is_path(&ready.value) => ready.value,
        Some(ready) => {
            let reason = format!(
                "ready is {:?}; expected a path that begins with '/', as in /ready",
                ready.value
            );
            return Err(refused(path, ready.defined.line(), reason));
        }
    };
    let memory_bytes_max = match raw.memory_limit {
        None => None,
        Some(limit) => Some(bytes(&limit.value).ok_or_else(|| {
            let reason = format!(
                "memory_limit is {:?}; expected a whole size such as 256MiB or 1GiB",
                limit.value
            );
            refused(path, limit.defined.line(), reason)
        })?),
    };
    Ok(CatalogService {
        image: raw.image.value,
        replicas: raw.replicas.value,
        settings: Settings {
            ready,
            memory_bytes_max,
        },
    })
}

fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// `256MiB` in bytes; 0 is no size.
fn bytes(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 4] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("B", 1),
    ];
    let (number, unit) = UNITS
        .iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))?;
    number
        .trim_end()
        .parse::<u64>()
        .ok()?
        .checked_mul(unit)
        .filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Catalog, String> {
        Catalog::parse(Path::new("catalog.yml"), text).map_err(|error| error.to_string())
    }

    const GOOD: &str = "images:\n  worker:v1: { command: [/bin/worker, work], env: { KEY: value } }\n\
                        services:\n  tweets-worker: { image: worker:v1, replicas: 2, memory_limit: 256MiB }\n";

    #[test]
    fn reads_images_and_services() {
        let catalog = parse(GOOD).unwrap();
        assert_eq!(
            catalog.image("worker:v1").unwrap().command,
            ["/bin/worker", "work"]
        );
        let service = catalog.services.values().next().unwrap();
        assert_eq!(service.settings.ready, "/ready");
        assert_eq!(service.settings.memory_bytes_max, Some(256 << 20));
    }

    #[test]
    fn names_the_line_the_value_and_what_was_expected() {
        let cases = [
            (
                GOOD.replace("image: worker:v1", "image: worker:v9"),
                "catalog.yml:4",
                "expected one of: worker:v1",
            ),
            (
                GOOD.replace("replicas: 2", "replicas: 0"),
                "catalog.yml:4",
                "expected 1 to 64",
            ),
            (
                GOOD.replace("256MiB", "256 megs"),
                "catalog.yml:4",
                "\"256 megs\"; expected a whole size",
            ),
            (
                GOOD.replace("replicas: 2", "copies: 2"),
                "catalog.yml:4",
                "copies",
            ),
            (
                GOOD.replace("KEY", "PORT"),
                "catalog.yml:2",
                "set by the orchestrator",
            ),
            (
                GOOD.replace("[/bin/worker, work]", "[]"),
                "catalog.yml:2",
                "has no command",
            ),
            (
                GOOD.replace("replicas: 2", "replicas: 2, ready: ready"),
                "catalog.yml:4",
                "begins with '/'",
            ),
            ("images: {".to_owned(), "catalog.yml:1", "refused"),
        ];
        for (text, place, words) in cases {
            let error = parse(&text).unwrap_err();
            assert!(
                error.contains(place) && error.contains(words),
                "{error}\nfor\n{text}"
            );
        }
    }

    #[test]
    fn f34_a_digest_is_of_the_definition_and_not_of_the_tag() {
        let definition = |command: &[&str], env: &[(&str, &str)]| Definition {
            command: command.iter().map(|&text| text.to_owned()).collect(),
            env: env
                .iter()
                .map(|&(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        };
        let digests = [
            definition(&["/w", "a"], &[]).digest(),
            definition(&["/w", "b"], &[]).digest(),
            definition(&["/w", "a"], &[("K", "v")]).digest(),
            definition(&["/w", "a", "K", "v"], &[]).digest(),
            definition(&["/wa"], &[]).digest(),
        ];
        for (i, digest) in digests.iter().enumerate() {
            assert_eq!(digest.len(), "sha256:".len() + 64);
            assert!(!digests[..i].contains(digest), "{i}");
        }
        assert_eq!(digests[0], definition(&["/w", "a"], &[]).digest());
    }
}
