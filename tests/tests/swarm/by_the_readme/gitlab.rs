//! README's section "From your GitLab", on the swarm that "On your Swarm" has made: the stack learns of a GitLab, and the
//! component releases the worker from a fresh project. GitLab's part is a server of its keys, and its runner that of
//! gitlab-ci-local; the tokens are signed as GitLab signs them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use controller_testing::identity::Signer;
use friday::clock::{Clock as _, SystemClock};
use friday_tls::testing::Pki;
use serde_json::{Value, json};
use system_tests::friday;

use super::uploads::PORTS;
use super::{OwnSwarm, repository};

/// GitLab, as the swarm's node and its containers reach it.
const GITLAB: &str = "https://10.77.0.11:8443";

/// What GitLab says of a job.
const CLAIMS: &str = include_str!("../../../data/gitlab/id-token-claims.json");

/// The runner's stand-in makes up numbers of its own: the job is to know the ones that GitLab's token has.
const AS_THE_TOKEN_HAS_IT: &str =
    "#!/bin/sh\nexport CI_PROJECT_ID=4711 CI_PIPELINE_ID=90001 CI_JOB_ID=500123\n";

/// How long its tokens are good for: as long as the component's job may take.
const LIFETIME_SECONDS: i64 = 3 * 60 * 60;

/// The options with which the stack is deployed from here on.
pub(super) struct GitLab {
    folder: tempfile::TempDir,
    keys: Child,
}

impl Drop for GitLab {
    fn drop(&mut self) {
        // It may have ended before.
        drop(self.keys.kill());
        drop(self.keys.wait());
    }
}

impl GitLab {
    /// Starts the server of its keys.
    pub(super) fn start(swarm: &OwnSwarm) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pki = Pki::new();
        pki.sign("gitlab", &["10.77.0.11"]);
        let files = folder.path().join("files");
        fs::create_dir_all(files.join(".well-known")).unwrap();
        let document = json!({ "issuer": GITLAB, "jwks_uri": format!("{GITLAB}/keys") });
        let write = |name: &str, text: &Value| fs::write(files.join(name), text.to_string());
        write(".well-known/openid-configuration", &document).unwrap();
        write("keys", &json!({ "keys": [Signer::first().public()] })).unwrap();
        for (from, to) in [
            ("root.pem", "gitlab-ca.pem"),
            ("gitlab.pem", "gitlab.pem"),
            ("gitlab.key", "gitlab.key"),
        ] {
            fs::copy(pki.path(from), folder.path().join(to)).unwrap();
        }
        let mut server = Command::new("openssl");
        server
            .args(["s_server", "-WWW", "-quiet", "-accept", "8443"])
            .args(["-cert", "../gitlab.pem", "-key", "../gitlab.key"])
            .current_dir(&files)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let keys = swarm.lab.spawn_in_node(1, server);
        let gitlab = Self { folder, keys };
        gitlab.write_identities();
        gitlab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The README's file, for this GitLab and the worker.
    fn write_identities(&self) {
        let text = block_of_readme("issuer: ");
        let text = text
            .replace(
                "https://gitlab.example.com",
                &format!("{GITLAB}\nca: /run/secrets/gitlab-ca"),
            )
            .replace("shop_web", "friday_tweets-worker");
        fs::write(self.path("identities.yml"), text).unwrap();
    }

    /// How `swarm/up` is told of it.
    pub(super) fn up(&self, variables: &str) -> String {
        format!(
            "{variables} swarm/up {PORTS} --board-port 7443 --identities {} --secret gitlab-ca={}",
            self.path("identities.yml").display(),
            self.path("gitlab-ca.pem").display()
        )
    }

    /// Pushes a commit of a fresh project that includes the component as the README shows it, and runs its pipeline.
    pub(super) fn push(&self, swarm: &OwnSwarm, image: &str) {
        let project = self.path("project");
        fs::create_dir_all(project.join("templates")).unwrap();
        let copy = |from: &str, to: &str| {
            fs::copy(repository().join(from), project.join(to)).unwrap();
        };
        copy("templates/canary.yml", "templates/canary.yml");
        copy("swarm/friday.yml", "friday.yml");
        // The runner's stand-in finds components of the same project alone.
        let include = block_of_readme("include:")
            .replace(
                "/platform/friday/canary@main",
                "/$CI_PROJECT_PATH/canary@$CI_COMMIT_SHA",
            )
            .replace("shop_web", "friday_tweets-worker")
            .replace("$CI_REGISTRY_IMAGE:$CI_COMMIT_SHORT_SHA", image);
        fs::write(
            project.join(".gitlab-ci.yml"),
            format!("stages: [deploy]\n{include}"),
        )
        .unwrap();
        let head = commit_all(&project);
        let bin = self.path("bin");
        fs::create_dir_all(&bin).unwrap();
        let program = bin.join("friday");
        let real = friday().display().to_string();
        fs::write(
            &program,
            format!("{AS_THE_TOKEN_HAS_IT}exec {real} \"$@\"\n"),
        )
        .unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let path = std::env::var("PATH").unwrap();
        let secrets = swarm.variable("FRIDAY_SECRETS");
        let runner = std::env::var_os("FRIDAY_GITLAB_CI_LOCAL")
            .expect("FRIDAY_GITLAB_CI_LOCAL is set: tests/run installs it and says where it is");
        let mut command = Command::new("timeout");
        command
            .args(["--kill-after=10", super::STEP_SECONDS_MAX])
            .arg(runner)
            .args(["--force-shell-executor", "--shell-isolation"])
            .current_dir(&project)
            .env_clear()
            .env("PATH", format!("{}:{path}", bin.display()))
            .env("HOME", self.folder.path())
            .env("NO_COLOR", "1")
            .env("FRIDAY_URL", "https://10.77.0.11:7443")
            .env("FRIDAY_CA", format!("{secrets}/ca.pem"))
            .env("FRIDAY_ID_TOKEN", token(&head))
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let output = swarm.lab.spawn_in_node(1, command);
        let output = output.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        println!("{said}");
        assert!(output.status.success(), "{}\n{said}", output.status);
        let report = project.join("friday-report/production/friday_tweets-worker/friday.json");
        let report: Value = serde_json::from_str(&fs::read_to_string(report).unwrap()).unwrap();
        assert_eq!(report["outcome"], "promoted", "{said}");
    }
}

/// The block of the section that begins so, without what it is set in by.
fn block_of_readme(begins: &str) -> String {
    let text = fs::read_to_string(repository().join("README.md")).unwrap();
    let (_, section) = text.split_once("\n## From your GitLab\n").unwrap();
    let at = section.find(&format!("```yaml\n   {begins}")).unwrap();
    let (_, block) = section[at..].split_once('\n').unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let lines = block.lines();
    lines
        .map(|line| line.strip_prefix("   ").unwrap_or(line))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// The token of a job that runs now, for a pipeline of this commit.
fn token(commit: &str) -> String {
    let now = SystemClock::new().now().as_second();
    let mut claims: Value = serde_json::from_str(CLAIMS).unwrap();
    claims["iss"] = json!(GITLAB);
    claims["aud"] = json!("friday");
    claims["sha"] = json!(commit);
    claims["iat"] = json!(now);
    claims["nbf"] = json!(now - 5);
    claims["exp"] = json!(now + LIFETIME_SECONDS);
    Signer::first().token(&claims)
}

/// Makes a repository of the folder, with one commit that is pushed to the default branch; its name.
fn commit_all(project: &Path) -> String {
    let git = |arguments: &[&str]| {
        let done = Command::new("git")
            .args(["-c", "user.name=dana", "-c", "user.email=dana@example.test"])
            .args(arguments)
            .current_dir(project)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "git {}: {said}", arguments.join(" "));
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    };
    let origin = "git@gitlab.example.com:acme/shop.git";
    git(&["init", "--quiet", "--initial-branch", "main"]);
    git(&["remote", "add", "origin", origin]);
    git(&["add", "--all"]);
    git(&["commit", "--quiet", "--message", "the first"]);
    git(&["update-ref", "refs/remotes/origin/main", "HEAD"]);
    let head = "refs/remotes/origin/HEAD";
    git(&["symbolic-ref", head, "refs/remotes/origin/main"]);
    git(&["rev-parse", "HEAD"])
}
