//! Which alerts the tests cause, and how much sooner they fire here than for people.

use std::fs;
use std::path::{Path, PathBuf};

use crate::boards::repository;

/// Those that fire beside the demo because of what happened, each with its cause.
pub(crate) const OF_THE_DEMO: [(&str, &str); 11] = [
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
    (
        "FridayUsersSeeFailures",
        "the release that fails, promoted by a person all the same",
    ),
    ("FridayProxySilent", "the proxy that stands still"),
    ("PipelineLagGrowing", "the same: no task is done"),
    ("FridayControllerDown", "the controller that stands still"),
];

/// Those of a controller that is alone, in the order of their causes.
pub(crate) const OF_ONE_ALONE: [(&str, &str); 3] = [
    ("FridayNoProxy", "none was ever started"),
    ("FridayNothingSaved", "the disk that is full"),
    ("FridayServiceUnseen", "the engine that was killed"),
];

/// What is shorter here than in the rules: the alert, the words there, and the words here. Thresholds of half an hour and more, and
/// waits, which are to keep people from being called for what passes by itself.
const SHORTER: [(&str, &str, &str); 14] = [
    ("FridayRolloutStuck", "> 1800", "> 8"),
    ("FridayRolloutStuck", "for: 1m", "for: 1s"),
    ("FridayRolloutWaitsForPerson", "> 3600", "> 3"),
    ("FridayRolloutWaitsForPerson", "for: 1m", "for: 1s"),
    ("FridaySplitMismatch", "for: 30s", "for: 2s"),
    (
        "FridayUsersSeeFailures",
        "failed_to_user_total{service!=\"none\"}[2m]",
        "failed_to_user_total{service!=\"none\"}[10s]",
    ),
    (
        "FridayUsersSeeFailures",
        "answers_total{service!=\"none\"}[2m]",
        "answers_total{service!=\"none\"}[10s]",
    ),
    ("FridayUsersSeeFailures", "for: 30s", "for: 2s"),
    ("FridayAgentBlind", "for: 1m", "for: 10s"),
    ("FridayControllerDown", "for: 1m", "for: 2s"),
    ("FridayNoProxy", "for: 1m", "for: 1s"),
    ("FridayNothingSaved", "> 30", "> 5"),
    ("FridayServiceUnseen", "for: 1m", "for: 1s"),
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
    let caused = OF_THE_DEMO.iter().chain(&OF_ONE_ALONE);
    let mut known: Vec<&str> = caused.map(|(name, _)| *name).collect();
    known.sort_unstable();
    names.sort_unstable();
    assert_eq!(names, known, "each alert is caused here");
    let file = dir.join("alerts.yml");
    fs::write(&file, sooner).unwrap();
    file
}
