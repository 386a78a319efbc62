//! The scenarios: what differs on the canary, and the files that describe the demo's service.

use std::path::Path;

use clap::ValueEnum as _;
use serde_json::json;

use super::{ENVIRONMENT, SERVICE};
use crate::worker::Fault;

/// The word of a scenario, as it stands on command lines and in records.
pub(super) fn word(scenario: Fault) -> String {
    let value = scenario.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

/// The image of a scenario's canary.
pub(super) fn image(scenario: Fault) -> String {
    format!("worker:{}", word(scenario))
}

/// Every image that can be released, for people.
pub(super) fn images() -> Vec<String> {
    Fault::value_variants().iter().copied().map(image).collect()
}

/// The demo's own plan: quick steps, the comparison of every signal, short waits.
const FRIDAY_YML: &str = include_str!("friday.yml");

/// What stable is like in a scenario: nothing is wrong with it, and it is as fast as its canary should be.
fn stable_of(scenario: Option<Fault>) -> Fault {
    if scenario == Some(Fault::Fast) {
        Fault::Fast
    } else {
        Fault::Good
    }
}

/// Writes `friday.yml` and the catalog of what runs; `traces`: what each task is told of traces.
pub(super) fn write_files(
    dir: &Path,
    scenario: Option<Fault>,
    traces: &[String],
) -> std::io::Result<()> {
    std::fs::write(dir.join("friday.yml"), FRIDAY_YML)?;
    let program = std::env::current_exe()?.display().to_string();
    let definition = |release: &str, fault: Fault| {
        // The release's own name is part of the definition: two releases that behave alike are still two.
        let (fault, mut command) = (word(fault), vec![program.as_str(), "work", "--fault"]);
        command.push(&fault);
        command.extend(["--environment", ENVIRONMENT]);
        command.extend(traces.iter().map(String::as_str));
        json!({ "command": command, "env": { "WORKER_VERSION": release } })
    };
    let mut images = serde_json::Map::new();
    images.insert(
        "worker:v1".to_owned(),
        definition("v1", stable_of(scenario)),
    );
    for fault in Fault::value_variants() {
        images.insert(image(*fault), definition(&word(*fault), *fault));
    }
    let services = json!({ SERVICE: { "image": "worker:v1", "replicas": 2, "ready": "/ready", "memory_limit": "256MiB" } });
    let catalog = json!({ "images": images, "services": services });
    // JSON is YAML.
    std::fs::write(
        dir.join("processes.yml"),
        serde_json::to_string_pretty(&catalog)?,
    )
}
