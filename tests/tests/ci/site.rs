//! A controller with two services, a proxy before them, users, and a project whose pipeline releases both.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use controller_testing::eventually;
use friday::api::types::RolloutView;
use friday::client::Client;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::json;
use system_tests::{Load, PATIENCE, Part, end_tasks, friday, pipeline_demo, proxy, running_of};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// The service in staging.
pub(crate) const STAGING: &str = "web-staging";

/// The service in production.
pub(crate) const PRODUCTION: &str = "web";

/// Requests in a second to each service: some 50 reach a canary of half of them, which proves the margins in seconds.
const RATE: u32 = 100;

/// Longest run of a pipeline, and of a release.
pub(crate) const PIPELINE_MAX: Duration = Duration::from_secs(150);

/// Where the sources of this repository are.
pub(crate) fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("tests/ is in it").to_owned()
}

/// A program that `tests/run` installs.
pub(crate) fn tool(variable: &str, name: &str) -> PathBuf {
    let named = std::env::var_os(variable).map(PathBuf::from);
    named.unwrap_or_else(|| {
        panic!("{variable} is not set: tests/run installs {name} and says where it is")
    })
}

/// All of it. What was started ends with it.
#[derive(Debug)]
pub(crate) struct Site {
    controller: Option<Part>,
    proxy: Option<Part>,
    /// Users; they are not asked how they were served.
    _users: Vec<Load>,
    pub(crate) client: Client,
    url: String,
    /// Last, because things are dropped in this order: programs whose test failed show their logs, which are in it.
    dir: TempDir,
}

impl Site {
    /// The file of the catalog: JSON is YAML, but a build adds a line at its end, so the images come last.
    fn catalog() -> String {
        let program = pipeline_demo().display().to_string();
        let image = json!({ "command": [program, "work", "--fault", "good"], "env": { "WORKER_VERSION": "v1" } });
        let service = json!({ "image": "web:v1", "replicas": 1, "ready": "/ready", "memory_limit": "256MiB" });
        format!(
            "services:\n  {STAGING}: {service}\n  {PRODUCTION}: {service}\nimages:\n  \"web:v1\": {image}\n"
        )
    }

    /// Starts all of it and waits until both services answer.
    pub(crate) async fn start() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("friday-ci-")
            .tempdir()
            .unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        fs::write(dir.path().join("processes.yml"), Self::catalog()).unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        symlink(friday(), dir.path().join("bin/friday")).unwrap();
        lay_out(&dir.path().join("project"));
        let project = |name: &str| dir.path().join("project").join(name).display().to_string();
        let (state, catalog) = (path("controller"), path("processes.yml"));
        let (staging, production) = (project("friday.staging.yml"), project("friday.yml"));
        let args = [
            ["--listen", "127.0.0.1:0"],
            ["--state-dir", &state],
            ["--service", &staging],
            ["--service", &production],
            ["--processes", &catalog],
        ];
        let mut serve = vec!["serve"];
        serve.extend(args.concat());
        let controller = Part::start("controller", &friday(), &serve, dir.path()).await;
        let url = format!("http://{}", controller.address("listen"));
        let state = path("proxy");
        let args = [
            ["--listen", "127.0.0.1:0"],
            ["--admin", "127.0.0.1:0"],
            ["--controller", &url],
            ["--state-dir", &state],
            ["--name", "ci"],
            ["--drain-seconds", "5"],
        ];
        let proxy = Part::start("proxy", &proxy(), &args.concat(), dir.path()).await;
        let at = proxy.address("listen");
        answers(at, "staging.test").await;
        answers(at, "example.test").await;
        Self {
            dir,
            controller: Some(controller),
            proxy: Some(proxy),
            _users: vec![
                Load::start_for(at, Some("staging.test"), RATE),
                Load::start_for(at, Some("example.test"), RATE),
            ],
            client: Client::new(&url, None).unwrap(),
            url,
        }
    }

    pub(crate) fn project(&self) -> PathBuf {
        self.dir.path().join("project")
    }

    /// The project's pipeline, or those of its jobs that are named, in the folder of a checkout.
    pub(crate) fn pipeline_in(&self, checkout: &Path, name: &str, jobs: &[&str]) -> Pipeline {
        let log = self.dir.path().join(format!("{name}.log"));
        let out = File::create(&log).unwrap();
        let path = std::env::var("PATH").unwrap_or_default();
        let bin = self.dir.path().join("bin");
        let catalog = self.dir.path().join("processes.yml");
        let mut command = Command::new(tool("FRIDAY_GITLAB_CI_LOCAL", "gitlab-ci-local"));
        command
            .args(["--force-shell-executor", "--shell-isolation"])
            .args(jobs)
            .current_dir(checkout)
            .env("PATH", format!("{}:{path}", bin.display()))
            .env("HOME", self.dir.path())
            .env("STAGING_URL", &self.url)
            .env("PRODUCTION_URL", &self.url)
            .env("STAGING_CATALOG", &catalog)
            .env("PRODUCTION_CATALOG", &catalog)
            .env("WORKER", pipeline_demo())
            .env("NO_COLOR", "1");
        for inherited in [
            "FRIDAY_URL",
            "FRIDAY_TOKEN",
            "FRIDAY_ENVIRONMENT",
            "FRIDAY_LOG",
        ] {
            command.env_remove(inherited);
        }
        command
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .process_group(0)
            .kill_on_drop(true);
        Pipeline {
            child: command.spawn().unwrap(),
            log,
        }
    }

    /// The same in the project's own folder.
    pub(crate) fn pipeline(&self, name: &str, jobs: &[&str]) -> Pipeline {
        self.pipeline_in(&self.project(), name, jobs)
    }

    /// Runs it to its end.
    pub(crate) async fn run(&self, name: &str, jobs: &[&str]) -> Log {
        self.pipeline(name, jobs).end().await
    }

    /// A file of the last report of a service.
    pub(crate) fn report(&self, service: &str, file: &str) -> String {
        let environment = if service == STAGING {
            "staging"
        } else {
            "production"
        };
        let reports = self.project().join("friday-report");
        let path = reports.join(environment).join(service).join(file);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Waits until the service's newest rollout is as `what` says.
    pub(crate) async fn until(
        &self,
        service: &str,
        what: &str,
        holds: impl Fn(&RolloutView) -> bool,
    ) -> RolloutView {
        let seen = eventually(
            what,
            PIPELINE_MAX,
            async || {
                self.client
                    .rollout(service)
                    .await
                    .map_err(|error| error.to_string())
            },
            |seen| seen.as_ref().is_ok_and(&holds),
        )
        .await;
        seen.expect("that was waited for")
    }

    /// How many rollouts a service has had.
    pub(crate) async fn count(&self, service: &str) -> usize {
        self.client
            .rollouts(Some(service), 100)
            .await
            .unwrap()
            .len()
    }

    /// The commands that wait for a release.
    pub(crate) fn waiting(&self) -> Vec<u32> {
        let running = running_of(self.dir.path()).into_iter();
        let is_waiting = |command: &str| {
            let program = command.split(' ').next().unwrap_or_default();
            program.ends_with("friday") && command.contains(" deploy ")
        };
        running
            .filter(|process| is_waiting(&process.command))
            .map(|process| process.pid)
            .collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // The controller first: it would start again what ends.
        drop(self.controller.take());
        end_tasks(&self.dir.path().join("controller"));
        drop(self.proxy.take());
    }
}

/// Waits until a task of the service of this host answers.
async fn answers(at: SocketAddr, host: &'static str) {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let ask = async || {
        let request = http.get(format!("http://{at}/live")).header("host", host);
        match request.send().await {
            Ok(answer) => answer.status().as_u16(),
            Err(_) => 0,
        }
    };
    eventually(&format!("{host} answers"), PATIENCE, ask, |status| {
        *status == 200
    })
    .await;
}

/// Copies the example project into a repository of its own. That of the components is this one, as far as GitLab's
/// stand-in can tell: it finds components of the same project alone.
fn lay_out(into: &Path) {
    let repository = repository();
    let example = repository.join("tests/data/gitlab-project");
    fs::create_dir_all(into.join("templates")).unwrap();
    for entry in fs::read_dir(&example).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), into.join(entry.file_name())).unwrap();
    }
    for name in ["canary.yml", "rollback.yml"] {
        fs::copy(
            repository.join("templates").join(name),
            into.join("templates").join(name),
        )
        .unwrap();
    }
    let file = into.join(".gitlab-ci.yml");
    let text = fs::read_to_string(&file).unwrap();
    let text = text.replace("/platform/friday/", "/$CI_PROJECT_PATH/");
    fs::write(&file, text.replace("@main\n", "@$CI_COMMIT_SHA\n")).unwrap();
    become_a_repository(into);
}

fn become_a_repository(into: &Path) {
    git(into, &["init", "--quiet", "--initial-branch", "main"]);
    git(
        into,
        &[
            "remote",
            "add",
            "origin",
            "git@gitlab.example.com:shop/web.git",
        ],
    );
    commit(into, "the first commit");
    git(
        into,
        &[
            "symbolic-ref",
            "refs/remotes/origin/HEAD",
            "refs/remotes/origin/main",
        ],
    );
}

/// A repository with the pipeline of this one, or of the example, and nothing else.
pub(crate) fn repository_copy(into: &Path, example: bool) {
    if example {
        return lay_out(into);
    }
    let repository = repository();
    fs::create_dir_all(into.join("templates")).unwrap();
    for name in [
        ".gitlab-ci.yml",
        "templates/canary.yml",
        "templates/rollback.yml",
    ] {
        fs::copy(repository.join(name), into.join(name)).unwrap();
    }
    become_a_repository(into);
}

/// Commits all that was changed; it is pushed as far as the pipeline can tell.
pub(crate) fn commit(checkout: &Path, message: &str) {
    git(checkout, &["add", "--all"]);
    git(
        checkout,
        &["commit", "--quiet", "--allow-empty", "--message", message],
    );
    git(
        checkout,
        &["update-ref", "refs/remotes/origin/main", "HEAD"],
    );
}

pub(crate) fn git(checkout: &Path, args: &[&str]) {
    let done = std::process::Command::new("git")
        .args(["-c", "user.name=ada", "-c", "user.email=ada@example.test"])
        .args(args)
        .current_dir(checkout)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "git {}: {said}", args.join(" "));
}

/// A pipeline that runs. Killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Pipeline {
    child: Child,
    log: PathBuf,
}

/// A pipeline that has ended.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) code: i32,
    pub(crate) text: String,
}

impl Pipeline {
    /// Waits for its end.
    pub(crate) async fn end(mut self) -> Log {
        let ended = timeout(PIPELINE_MAX, self.child.wait()).await;
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let ended = ended.unwrap_or_else(|_| panic!("not done within {PIPELINE_MAX:?}:\n{text}"));
        Log {
            code: ended.unwrap().code().unwrap_or(-1),
            text,
        }
    }

    /// SIGKILL to all of it: the machine of the runner is gone.
    pub(crate) fn vanish(&self) {
        if let Some(group) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // It may have ended before.
            let _gone = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.vanish();
    }
}

/// Sends a signal to a process of ours.
pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).expect("process ids are small");
    // It may have ended in this very moment.
    let _gone = kill(Pid::from_raw(pid), signal);
}
