//! Which alerts the test causes, and how much sooner they fire here than for people.

use std::fs;
use std::path::{Path, PathBuf};

use crate::boards::repository;

/// Those that fire here because of what happened, each with its cause.
pub(crate) const CAUSED: [(&str, &str); 10] = [
    ("FridayCanaryWorse", "the release that fails"),
    ("FridayRolledBack", "the same"),
    (
        "FridayRolloutWaitsForPerson",
        "the release that an incident holds",
    ),
    ("FridayAgentBlind", "the agent whose engine is away"),
    ("FridayAgentLost", "the agent that was killed"),
    (
        "FridaySplitMismatch",
        "one user who sends as much as all others",
    ),
    (
        "FridayRolloutStuck",
        "the release that is held because of that",
    ),
    ("FridayProxySilent", "the proxy that stands still"),
    ("PipelineLagGrowing", "the same: no task is done"),
    ("FridayControllerDown", "the controller that stands still"),
];

/// Those that only promtool's series cause: a service whose tasks fail on stable, an engine that does not answer, a disk that is
/// full, and a controller that never had a proxy, take parts that the demo does not have.
pub(crate) const LEFT: [&str; 4] = [
    "FridayUsersSeeFailures",
    "FridayServiceUnseen",
    "FridayNothingSaved",
    "FridayNoProxy",
];

/// What is shorter here than in the rules: the alert, the words there, and the words here. Thresholds of half an hour and more, and
/// waits, which are to keep people from being called for what passes by itself.
const SHORTER: [(&str, &str, &str); 8] = [
    ("FridayRolloutStuck", "> 1800", "> 8"),
    ("FridayRolloutStuck", "for: 1m", "for: 1s"),
    ("FridayRolloutWaitsForPerson", "> 3600", "> 3"),
    ("FridayRolloutWaitsForPerson", "for: 1m", "for: 1s"),
    ("FridaySplitMismatch", "for: 30s", "for: 2s"),
    ("FridayAgentBlind", "for: 1m", "for: 10s"),
    ("FridayControllerDown", "for: 1m", "for: 2s"),
    ("PipelineLagGrowing", "for: 5m", "for: 3s"),
];

/// The repository's alerts, some of them sooner, in a file of `dir`.
pub(crate) fn write_sooner(dir: &Path) -> PathBuf {
    let text = fs::read_to_string(repository().join("grafana/rules/alerts.yml")).unwrap();
    let mark = "- alert: ";
    let mut parts = text.split(mark);
    let mut sooner = parts.next().unwrap().to_owned();
    let mut names = Vec::new();
    for part in parts {
        let name = part.lines().next().unwrap();
        let mut rule = part.to_owned();
        for (_, words, instead) in SHORTER.iter().filter(|(alert, ..)| *alert == name) {
            assert_eq!(
                rule.matches(words).count(),
                1,
                "{name} has {words:?} once: {rule}"
            );
            rule = rule.replace(words, instead);
        }
        names.push(name.to_owned());
        sooner.push_str(mark);
        sooner.push_str(&rule);
    }
    let caused = CAUSED.iter().map(|(name, _)| *name);
    let mut known: Vec<&str> = caused.chain(LEFT).collect();
    known.sort_unstable();
    names.sort_unstable();
    assert_eq!(names, known, "each alert is caused here, or said not to be");
    let file = dir.join("alerts.yml");
    fs::write(&file, sooner).unwrap();
    file
}
