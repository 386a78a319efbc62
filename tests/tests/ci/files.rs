//! The pipeline files themselves: that GitLab takes them, and that they mean what they should.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use system_tests::friday;

use crate::site::{repository_copy, tool};

fn output(command: &mut Command) -> Output {
    let done = command.output().unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    assert!(done.status.success(), "{command:?}:\n{out}\n{err}");
    done
}

/// What gitlab-ci-local makes of the pipeline in this folder.
fn expanded(checkout: &Path, home: &Path, more: &[&str]) -> String {
    let mut command = Command::new(tool("FRIDAY_GITLAB_CI_LOCAL", "gitlab-ci-local"));
    command.args(more).current_dir(checkout).env("HOME", home);
    String::from_utf8(output(&mut command).stdout).unwrap()
}

/// That the file is one by GitLab's own schema.
fn is_valid(file: &Path) {
    let checker = tool("FRIDAY_CHECK_JSONSCHEMA", "check-jsonschema");
    let schema = [
        "--builtin-schema",
        "vendor.gitlab-ci",
        "--data-transform",
        "gitlab-ci",
    ];
    output(Command::new(checker).args(schema).arg(file));
}

fn jobs(text: &str) -> Vec<(String, String, bool)> {
    let jobs: Vec<Value> =
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let word = |job: &Value, key: &str| job[key].as_str().unwrap_or_default().to_owned();
    jobs.iter()
        .map(|job| {
            (
                word(job, "name"),
                word(job, "when"),
                job["allow_failure"] == true,
            )
        })
        .collect()
}

#[test]
fn the_pipelines_are_valid_and_hold_what_they_promise() {
    for example in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let checkout = dir.path().join("project");
        repository_copy(&checkout, example);
        is_valid(&checkout.join(".gitlab-ci.yml"));
        let whole = dir.path().join("whole.yml");
        let text = expanded(&checkout, dir.path(), &["--preview"]);
        assert!(!text.contains("$[["), "an input was not filled in: {text}");
        assert!(
            !text.contains("exit_codes"),
            "runners take it for a pass: {text}"
        );
        fs::write(&whole, &text).unwrap();
        is_valid(&whole);
        let jobs = jobs(&expanded(&checkout, dir.path(), &["--list-json"]));
        let service = if example {
            "web"
        } else {
            "friday_tweets-worker"
        };
        let staging = if example { "web-staging" } else { service };
        let find = |name: &str| {
            let job = jobs.iter().find(|(job, ..)| job == name);
            job.map(|(_, when, may_fail)| (when.as_str(), *may_fail))
        };
        assert_eq!(
            find(&format!("canary: {staging} in staging")),
            Some(("on_success", false)),
            "{jobs:?}"
        );
        // A gate that blocks, and a button that does not.
        assert_eq!(
            find(&format!("canary: {service} in production")),
            Some(("manual", false)),
            "{jobs:?}"
        );
        assert_eq!(
            find(&format!("rollback: {service} in production")),
            Some(("manual", true)),
            "{jobs:?}"
        );
        for (name, when, _) in &jobs {
            let is_by_hand = ["rollback:", "approve:"]
                .iter()
                .any(|begin| name.starts_with(begin));
            assert!(
                !is_by_hand || when != "on_success",
                "{name} would run by itself"
            );
        }
    }
}

#[test]
fn the_files_of_the_example_are_ones_that_lint_takes() {
    let dir = tempfile::tempdir().unwrap();
    let checkout = dir.path().join("project");
    repository_copy(&checkout, true);
    for file in ["friday.yml", "friday.staging.yml"] {
        output(Command::new(friday()).arg("lint").arg(checkout.join(file)));
    }
}
