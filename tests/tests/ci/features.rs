//! The script that adds a feature to the worker: what it commits, where that goes, and what follows with a GitLab and without.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::scripts::{copied, program, said};
use crate::site::{git, tool};

const ADDRESS: &str = "https://ann:glpat-0123456789@gitlab.example.com/shop/web.git";

/// A checkout of what the script needs, with a remote whose address is GitLab's and that is next door in truth.
struct Checkout {
    dir: TempDir,
}

impl Checkout {
    fn new() -> Self {
        let this = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let (folder, bare) = (this.folder(), this.bare());
        for name in [
            ".gitlab-ci.yml",
            "templates",
            "pipeline-demo/add-new-feature.sh",
            "pipeline-demo/pipeline.yml",
            "pipeline-demo/features",
            "pipeline-demo/src/features.rs",
            "pipeline-demo/src/features",
        ] {
            copied(name, &folder);
        }
        git(&folder, &["init", "--quiet", "--initial-branch", "main"]);
        let place = bare.to_str().unwrap();
        git(&folder, &["init", "--quiet", "--bare", place]);
        git(&folder, &["remote", "add", "gitlab", ADDRESS]);
        let next_door = format!("url.{place}.pushInsteadOf");
        git(&folder, &["config", &next_door, ADDRESS]);
        git(&folder, &["config", "user.name", "ada"]);
        git(&folder, &["config", "user.email", "ada@example.test"]);
        this.commit("before");
        this
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("project")
    }

    fn bare(&self) -> PathBuf {
        self.dir.path().join("bare.git")
    }

    fn commit(&self, message: &str) {
        git(&self.folder(), &["add", "--all"]);
        git(&self.folder(), &["commit", "--quiet", "--message", message]);
    }

    /// Runs the script.
    fn script(&self, args: &[&str], environment: &[(&str, &Path)]) -> Output {
        Command::new(self.folder().join("pipeline-demo/add-new-feature.sh"))
            .args(args)
            .env_remove("FRIDAY_DEMO")
            .env_remove("FRIDAY_GITLAB_CI_LOCAL")
            .envs(environment.iter().copied())
            .output()
            .unwrap()
    }

    /// The same, where it is to refuse: what it says.
    fn refused(&self, args: &[&str], environment: &[(&str, &Path)]) -> String {
        let before = asked(&self.folder(), &["rev-parse", "HEAD"]);
        let done = self.script(args, environment);
        assert_eq!(done.status.code(), Some(1), "{args:?}: {done:?}");
        assert_eq!(asked(&self.folder(), &["rev-parse", "HEAD"]), before);
        String::from_utf8(done.stderr).unwrap()
    }

    /// What stands in a file of it.
    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.folder().join(name)).unwrap()
    }

    fn has(&self, feature: &str) -> bool {
        let is_there = self
            .folder()
            .join(format!("pipeline-demo/src/features/{feature}.rs"))
            .exists();
        let list = self.text("pipeline-demo/src/features.rs");
        let is_listed = list.contains(&format!("\nmod {feature};\n"));
        let is_called = list.contains(&format!("    &{feature}::"));
        let workflow = self.text("pipeline-demo/pipeline.yml");
        let is_wanted = workflow.contains(&format!("\n  {feature}:\n"));
        let all = [is_there, is_listed, is_called, is_wanted];
        assert!(all == [all[0]; 4], "{feature}: {all:?}");
        is_there
    }
}

/// What git answers in this folder.
fn asked(folder: &Path, args: &[&str]) -> String {
    let done = Command::new("git")
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(done.status.success(), "git {args:?}: {done:?}");
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_token_in_the_address_of_a_remote_is_not_shown() {
    let checkout = Checkout::new();
    let done = checkout.script(&["--feature", "emoji", "--remote", "gitlab"], &[]);
    let said = said(&done);
    assert!(!said.contains("glpat"), "{said}");
    let page = "https://gitlab.example.com/shop/web/-/pipelines";
    assert!(said.contains(page), "{said}");
    assert!(checkout.has("emoji"));
}

#[test]
fn bad_features_and_their_reverts_are_commits_that_are_pushed() {
    let checkout = Checkout::new();
    let folder = checkout.folder();
    let tree = || asked(&folder, &["rev-parse", "HEAD^{tree}"]);
    let pushed = || asked(&checkout.bare(), &["rev-parse", "main"]);
    let head = || asked(&folder, &["rev-parse", "HEAD"]);
    let before = tree();
    let touched = |name: &str| {
        let changed = asked(&folder, &["show", "--name-only", "--format=", "HEAD"]);
        let expected = format!(
            "pipeline-demo/pipeline.yml\npipeline-demo/src/features.rs\npipeline-demo/src/features/{name}.rs"
        );
        assert_eq!(changed, expected);
        assert_eq!(asked(&folder, &["status", "--porcelain"]), "");
    };

    let done = said(&checkout.script(&["--bad", "--remote", "gitlab"], &[]));
    assert!(done.contains("rolled back on latency"), "{done}");
    assert!(checkout.has("shouting"));
    touched("shouting");
    assert_eq!(pushed(), head());
    let with_one = tree();

    // Committed, and no more.
    let done = said(&checkout.script(&["--bad", "--no-push"], &[]));
    assert!(done.contains("rolled back on errors"), "{done}");
    assert!(done.contains("git push"), "{done}");
    assert!(checkout.has("topic"));
    touched("topic");
    assert_ne!(pushed(), head());
    let none_left = checkout.refused(&["--bad", "--remote", "gitlab"], &[]);
    assert!(
        none_left.contains("every bad feature is there already"),
        "{none_left}"
    );

    // The newest goes first, and nothing of it stays.
    for (name, after) in [("topic", &with_one), ("shouting", &before)] {
        let done = said(&checkout.script(&["--revert", "--remote", "gitlab"], &[]));
        assert!(
            done.contains(&format!("takes out the feature {name}")),
            "{done}"
        );
        assert!(!checkout.has(name));
        touched(name);
        assert_eq!((&tree(), pushed()), (after, head()));
    }
    let nothing = checkout.refused(&["--revert", "--remote", "gitlab"], &[]);
    assert!(nothing.contains("nothing to take out"), "{nothing}");

    // What somebody else works on is not swept into the commit.
    fs::write(folder.join("pipeline-demo/src/features/mine.rs"), "").unwrap();
    let mine = checkout.refused(&["--bad", "--remote", "gitlab"], &[]);
    assert!(mine.contains("not committed"), "{mine}");
}

/// The runner is the real one, which lists the jobs in place of running them: they would build the worker.
#[test]
fn without_a_gitlab_the_pushed_commit_is_given_to_the_runner_and_its_end_is_the_scripts() {
    let checkout = Checkout::new();
    let dir = checkout.dir.path();
    let (demo, home) = (dir.join("demo"), dir.join("home"));
    let listed = dir.join("listed.json");
    let nowhere = checkout.script(&["--bad"], &[("FRIDAY_DEMO", &demo)]);
    assert_eq!(nowhere.status.code(), Some(1));
    let words = String::from_utf8(nowhere.stderr).unwrap();
    assert!(words.contains("no demo runs"), "{words}");
    assert!(checkout.has("shouting"), "it is committed all the same");

    for folder in [&demo, &home] {
        fs::create_dir(folder).unwrap();
    }
    fs::write(demo.join("processes.yml"), "services: {}\n").unwrap();
    let addresses = json!({ "listen": "127.0.0.1:7999" }).to_string();
    fs::write(demo.join("controller.addresses"), addresses).unwrap();
    let runner = dir.join("runner");
    let text = format!(
        "#!/bin/sh\necho \"$FRIDAY_URL\" >'{}'\nHOME='{}' exec '{}' \"$@\" --list-json >'{}'\n",
        dir.join("url").display(),
        home.display(),
        tool("FRIDAY_GITLAB_CI_LOCAL", "gitlab-ci-local").display(),
        listed.display(),
    );
    program(&runner, &text);
    let environment = [
        ("FRIDAY_DEMO", demo.as_path()),
        ("FRIDAY_GITLAB_CI_LOCAL", runner.as_path()),
    ];
    let done = said(&checkout.script(&["--bad"], &environment));
    assert!(
        done.contains("http://127.0.0.1:7999/") && done.contains("explain tweets-worker"),
        "{done}"
    );
    // The pipeline is that of the commit, in a checkout of its own, as it releases into a demo.
    let head = asked(&checkout.folder(), &["rev-parse", "HEAD"]);
    let bare = demo.join("gitlab.git");
    assert_eq!(asked(&bare, &["rev-parse", "main"]), head);
    assert_eq!(asked(&bare.join("checkout"), &["rev-parse", "HEAD"]), head);
    let url = fs::read_to_string(dir.join("url")).unwrap();
    assert_eq!(url, "http://127.0.0.1:7999\n");
    let jobs: Vec<Value> = serde_json::from_str(&fs::read_to_string(&listed).unwrap()).unwrap();
    let by_itself = jobs.iter().filter(|job| job["when"] == "on_success");
    let mut names: Vec<&str> = by_itself.map(|job| job["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    let expected = [
        "canary: tweets-worker in demo",
        "container",
        "files",
        "format",
        "programs",
    ];
    assert_eq!(names, expected);

    // A pipeline that fails is a script that fails.
    let file = checkout.folder().join(".gitlab-ci.yml");
    let broken = "\nbroken: { stage: nowhere, script: \"true\" }\n";
    fs::write(&file, checkout.text(".gitlab-ci.yml") + broken).unwrap();
    checkout.commit("a stage that is not there");
    let done = checkout.script(&["--revert"], &environment);
    let words = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(1), "{words}");
    assert!(words.contains("stage:nowhere not found"), "{words}");
    assert!(!checkout.has("topic"));
}
