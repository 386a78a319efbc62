//! Four engines in no swarm, Terraform with a state of the test's own, and what is looked at from outside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};
use system_tests::{Lab, PATIENCE, SshDaemons, friday, pause};
use tempfile::TempDir;

/// Longest time of one command, in seconds: an apply waits for at most 120 in several places.
const COMMAND_SECONDS_MAX: &str = "240";

/// How often it is looked, after a pause of 50 ms and what the look takes, for what comes about by itself: for a minute at least.
const LOOKS_MAX: u32 = 1200;

/// How many engines there are.
const ENGINES: u32 = 4;

/// A tweet as the worker takes it.
const TWEET: &str = r#"{"data":{"id":"1","author_id":"7","text":"I love this #friday"}}"#;

/// What `swarm/build` makes: targets and images.
const IMAGES: [(&str, &str); 5] = [
    ("controller", "friday:tests"),
    ("agent", "friday-agent:tests"),
    ("proxy", "friday-proxy:tests"),
    ("worker", "tweets-worker:v1"),
    ("worker", "tweets-worker:v2"),
];

/// Engines that a test has left as it found them; those that are here at the end end with this process.
static LAB: Mutex<Option<Lab>> = Mutex::new(None);

/// Runs a test on bare engines that have the images, when no other test does.
pub(crate) fn with_engines(test: impl FnOnce(&Lab)) {
    // A test that failed has taken its engines along.
    let mut kept = LAB.lock().unwrap_or_else(PoisonError::into_inner);
    let lab = kept.take().unwrap_or_else(|| {
        require_terraform();
        let lab = Lab::engines(ENGINES);
        make_images(&lab);
        lab
    });
    test(&lab);
    *kept = Some(lab);
}

fn require_terraform() {
    let there = Command::new("terraform")
        .arg("version")
        .env("TF_CLI_CONFIG_FILE", "/dev/null")
        .env("CHECKPOINT_DISABLE", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(
        there.is_ok_and(|status| status.success()),
        "terraform is missing; https://developer.hashicorp.com/terraform/install has a zip with the one program in it: \
         put it into a folder of your PATH. Any version from 1.9 on will do"
    );
}

fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap().to_owned()
}

/// Runs a command, shows what it prints, and tells how it ended.
fn finish(what: &str, output: &std::process::Output) -> (Option<i32>, String) {
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    println!("$ {what}\n{said}");
    (output.status.code(), said)
}

/// Builds them on the first engine, and copies them to the others.
fn make_images(lab: &Lab) {
    for (target, image) in IMAGES {
        let mut command = Command::new("timeout");
        command
            .args([COMMAND_SECONDS_MAX, "swarm/build", target, image])
            .current_dir(repository())
            .env("DOCKER_HOST", format!("unix://{}", lab.socket(1).display()))
            .env("DOCKER_CONFIG", lab.docker_config())
            .env("DOCKER_BUILDKIT", "0")
            .env("CARGO_TARGET_DIR", lab.dir().join("built"))
            .env("FRIDAY_BINARIES", friday().parent().unwrap());
        let (code, said) = finish(image, &command.output().unwrap());
        assert_eq!(code, Some(0), "{image} cannot be built: {said}");
    }
    lab.spread(&IMAGES.map(|(_, image)| image));
}

/// Terraform on a lab's engines, with a folder of its own.
pub(crate) struct Bench<'a> {
    lab: &'a Lab,
    ssh: Option<&'a SshDaemons>,
    folder: TempDir,
}

impl<'a> Bench<'a> {
    /// By sockets, or by ssh alone.
    pub(crate) fn new(lab: &'a Lab, ssh: Option<&'a SshDaemons>) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("friday-terraform-")
            .tempdir()
            .unwrap();
        let bench = Self { lab, ssh, folder };
        let (code, said) = bench.terraform(&["init", "-input=false", "-no-color"]);
        assert_eq!(code, Some(0), "{said}");
        bench
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// The variables for both modules on these nodes, all managers.
    pub(crate) fn with_platform(&self, nodes: &[u32]) -> Value {
        self.variables(nodes, true)
    }

    /// The variables for the swarm on these nodes and nothing on it.
    pub(crate) fn swarm_alone(&self, nodes: &[u32]) -> Value {
        self.variables(nodes, false)
    }

    fn variables(&self, nodes: &[u32], with_platform: bool) -> Value {
        let hosts: Map<String, Value> = nodes
            .iter()
            .map(|node| {
                let labels = if *node == 1 {
                    json!({ "friday.state": "here" })
                } else {
                    json!({})
                };
                let docker_host = match self.ssh {
                    Some(daemons) => daemons.docker_host(*node),
                    None => format!("unix://{}", self.lab.socket(*node).display()),
                };
                let host = json!({
                    "docker_host": docker_host,
                    "advertise_address": address(*node),
                    "role": "manager",
                    "labels": labels,
                });
                (format!("n{node}"), host)
            })
            .collect();
        json!({
            "hosts": hosts,
            "with_platform": with_platform,
            "images": {
                "controller": "friday:tests",
                "agent": "friday-agent:tests",
                "proxy": "friday-proxy:tests",
                "worker": "tweets-worker:v1",
            },
            // Each engine of the lab listens elsewhere, and is called as its folder is.
            "docker_socket": format!("{}/{{{{.Node.Hostname}}}}/docker.sock", self.lab.dir().display()),
            "secrets_folder": self.path("secrets"),
            "secrets_revision": "1",
        })
    }

    /// Runs Terraform in the first node's network, where the other nodes can be reached.
    fn terraform(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let root = repository().join("tests/tests/terraform/root");
        let mut command = Command::new("timeout");
        command
            .args(["--kill-after=10", COMMAND_SECONDS_MAX, "terraform"])
            .arg(format!("-chdir={}", root.display()))
            .args(arguments);
        self.run(&arguments.join(" "), command)
    }

    fn run(&self, what: &str, mut command: Command) -> (Option<i32>, String) {
        command
            .env("TF_CLI_CONFIG_FILE", "/dev/null")
            .env("TF_DATA_DIR", self.path("data"))
            .env("TF_IN_AUTOMATION", "1")
            .env("CHECKPOINT_DISABLE", "1")
            .env("DOCKER_CONFIG", self.lab.docker_config())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for name in [
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "http_proxy",
            "https_proxy",
            "DOCKER_CONTEXT",
            "FRIDAY_URL",
        ] {
            command.env_remove(name);
        }
        if let Some(daemons) = self.ssh {
            command.env("PATH", daemons.search_path());
        }
        let child = self.lab.spawn_in_node(1, command);
        finish(what, &child.wait_with_output().unwrap())
    }

    fn change(&self, order: &str, variables: &Value) -> (Option<i32>, String) {
        let (file, state) = (self.path("variables.json"), self.path("state"));
        fs::write(&file, variables.to_string()).unwrap();
        let arguments = [
            order,
            "-input=false",
            "-no-color",
            "-auto-approve",
            &format!("-state={state}"),
            &format!("-var-file={file}"),
        ];
        self.terraform(&arguments)
    }

    /// Applies these variables; what Terraform said.
    pub(crate) fn apply(&self, variables: &Value) -> String {
        let (code, said) = self.change("apply", variables);
        assert_eq!(code, Some(0), "apply: {said}\n{}", self.words());
        said
    }

    /// An apply that fails; what it said, on one line as no console would have it.
    pub(crate) fn refuses(&self, variables: &Value) -> String {
        let (code, said) = self.change("apply", variables);
        assert_eq!(code, Some(1), "it should be refused: {said}");
        said.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    pub(crate) fn destroy(&self, variables: &Value) {
        let (code, said) = self.change("destroy", variables);
        assert_eq!(code, Some(0), "destroy: {said}\n{}", self.words());
    }

    /// A plan by these variables is empty.
    pub(crate) fn nothing_to_do(&self, variables: &Value) {
        let (file, state) = (self.path("variables.json"), self.path("state"));
        fs::write(&file, variables.to_string()).unwrap();
        let arguments = [
            "plan",
            "-input=false",
            "-no-color",
            "-detailed-exitcode",
            &format!("-state={state}"),
            &format!("-var-file={file}"),
        ];
        let (code, said) = self.terraform(&arguments);
        assert_eq!(code, Some(0), "2 is a plan that changes something: {said}");
    }

    /// Calls the command line beside the controller.
    pub(crate) fn friday(&self, arguments: &str) -> String {
        let mut command = Command::new("timeout");
        command
            .args(["--kill-after=10", COMMAND_SECONDS_MAX, "bash", "-c"])
            .arg(format!("swarm/friday {arguments}"))
            .current_dir(repository())
            .env(
                "DOCKER_HOST",
                format!("unix://{}", self.lab.socket(1).display()),
            )
            .env("FRIDAY_SECRETS", self.path("secrets"))
            .env("FRIDAY_AUTHOR", "tests");
        let (code, said) = self.run(arguments, command);
        assert_eq!(
            code,
            Some(0),
            "friday {arguments}: {said}\n{}",
            self.words()
        );
        said
    }

    fn docker(&self, arguments: &[&str]) -> String {
        self.lab.docker(1, arguments)
    }

    /// The last words of every service, for whoever looks for what went wrong.
    fn words(&self) -> String {
        let ask = |arguments: &[&str]| {
            self.lab
                .try_docker(1, arguments, Stdio::null())
                .unwrap_or_else(|said| said)
        };
        let mut words = ask(&["node", "ls"]);
        for service in ask(&["service", "ls", "--quiet"]).lines() {
            words += "\n";
            words += &ask(&["service", "ps", "--no-trunc", service]);
            words += "\n";
            words += &ask(&["service", "logs", "--raw", "--tail", "8", service]);
        }
        words
    }

    /// Waits until a look at the world shows what is expected.
    fn until(&self, what: &str, mut look: impl FnMut() -> Result<(), String>) {
        let mut last = String::new();
        for _ in 0..LOOKS_MAX {
            match look() {
                Ok(()) => return,
                Err(seen) => last = seen,
            }
            pause();
        }
        panic!("{what}: last seen {last}\n{}", self.words());
    }

    /// A request through a node's proxy reaches a worker.
    pub(crate) fn answers(&self, node: u32) {
        let url = format!("http://{}:8080/tasks", address(node));
        self.lab.within_node(1, move || async move {
            let client = reqwest::Client::builder()
                .no_proxy()
                .timeout(Duration::from_secs(5))
                .build()
                .unwrap();
            let ask = async || match client.post(&url).body(TWEET).send().await {
                Ok(answer) => answer.status().to_string(),
                Err(error) => error.to_string(),
            };
            let what = format!("a worker answers through {url}");
            controller_testing::eventually(&what, PATIENCE, ask, |seen| seen == "200 OK").await;
        });
    }

    /// Waits until the swarm has exactly these nodes, and they are managers that can be reached.
    pub(crate) fn are_managers(&self, nodes: &[u32]) {
        let expected: Vec<String> = nodes
            .iter()
            .map(|node| format!("n{node} Ready Active Reachable"))
            .collect();
        self.until(&format!("the swarm is {expected:?}"), || {
            let format = "{{.Hostname}} {{.Status}} {{.Availability}} {{.ManagerStatus}}";
            let list = ["node", "ls", "--format", format];
            // Who leads may have changed, and nobody may lead for a moment.
            let members = self.lab.try_docker(1, &list, Stdio::null())?;
            let members = members.replace("Leader", "Reachable");
            let mut seen: Vec<&str> = members.lines().collect();
            seen.sort_unstable();
            if seen == expected {
                Ok(())
            } else {
                Err(members)
            }
        });
    }

    /// Waits until of the managers exactly these can be reached.
    pub(crate) fn until_reachable(&self, nodes: &[u32]) {
        let expected: Vec<String> = nodes.iter().map(|node| format!("n{node}")).collect();
        self.until("the managers that can be reached", || {
            let format = "{{.Hostname}} {{.ManagerStatus}}";
            let list = ["node", "ls", "--format", format];
            // Nobody may lead for a moment.
            let members = self.lab.try_docker(1, &list, Stdio::null())?;
            let reachable = |line: &&str| line.ends_with("Reachable") || line.ends_with("Leader");
            let mut seen: Vec<&str> = members
                .lines()
                .filter(reachable)
                .filter_map(|line| line.split(' ').next())
                .collect();
            seen.sort_unstable();
            if seen == expected {
                Ok(())
            } else {
                Err(members)
            }
        });
    }

    /// What a node's engine says of its place in a swarm.
    pub(crate) fn membership(&self, node: u32) -> String {
        let format = "{{.Swarm.LocalNodeState}}";
        self.lab.docker(node, &["info", "--format", format])
    }

    /// The tasks of a service that run.
    pub(crate) fn tasks(&self, service: &str) -> Vec<String> {
        let filter = "desired-state=running";
        let format = "{{.ID}} {{.CurrentState}}";
        let list = [
            "service", "ps", "--filter", filter, "--format", format, service,
        ];
        let tasks = self.lab.try_docker(1, &list, Stdio::null());
        let running = |line: &&str| line.contains(" Running ");
        let id = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
        tasks
            .unwrap_or_default()
            .lines()
            .filter(running)
            .map(id)
            .collect()
    }

    pub(crate) fn until_running(&self, service: &str) {
        self.until(&format!("{service} runs"), || {
            if self.tasks(service).is_empty() {
                Err("no task of it".to_owned())
            } else {
                Ok(())
            }
        });
    }

    pub(crate) fn image_of(&self, service: &str) -> String {
        let format = "{{.Spec.TaskTemplate.ContainerSpec.Image}}";
        self.docker(&["service", "inspect", "--format", format, service])
    }

    /// Neither what opens the swarm, nor what opens the controller.
    pub(crate) fn no_secret_is_in_the_state(&self) {
        let state = fs::read_to_string(self.path("state")).unwrap();
        let secrets = self.folder.path().join("secrets");
        let mut kept = vec!["SWMTKN".to_owned()];
        for name in ["operator_token", "postgres_password", "tokens"] {
            let text = fs::read_to_string(secrets.join(name)).unwrap();
            kept.extend(text.lines().map(str::trim).map(str::to_owned));
        }
        kept.retain(|secret| !secret.is_empty());
        for secret in kept {
            assert!(!state.contains(&secret), "the state has a secret");
        }
    }

    /// Removes the volumes of a node that left the swarm while the stack was on it.
    pub(crate) fn forget_data(&self, node: u32) {
        for volume in self.lab.docker(node, &["volume", "ls", "--quiet"]).lines() {
            assert_eq!(volume, "friday_proxy", "data that nobody has lost");
            self.lab.docker(node, &["volume", "rm", volume]);
        }
    }

    /// Nothing on any engine, no secret here, nothing in the state.
    pub(crate) fn nothing_is_left(&self) {
        for node in 1..=ENGINES {
            // An engine takes a moment to clean up after a swarm.
            self.until(&format!("nothing is left on node {node}"), || {
                let left = self.left_on(node);
                if left.is_empty() {
                    Ok(())
                } else {
                    Err(left.join(", "))
                }
            });
        }
        assert!(
            !self.folder.path().join("secrets").exists(),
            "the folder of secrets is left"
        );
        let state = self.path("state");
        let (code, said) = self.terraform(&["state", "list", &format!("-state={state}")]);
        assert_eq!((code, said.trim()), (Some(0), ""), "the state is not empty");
    }

    fn left_on(&self, node: u32) -> Vec<String> {
        let mut left = Vec::new();
        let membership = self.membership(node);
        if membership != "inactive" {
            left.push(format!("it is {membership} in a swarm"));
        }
        // Every engine makes the last when it is first in a swarm, and keeps it.
        let own = ["bridge", "host", "none", "docker_gwbridge"];
        for (what, list) in [
            ("container", ["ps", "--all", "--format", "{{.Names}}"]),
            ("volume", ["volume", "ls", "--format", "{{.Name}}"]),
            ("network", ["network", "ls", "--format", "{{.Name}}"]),
        ] {
            let names = self.lab.docker(node, &list);
            let names = names.lines().filter(|name| !own.contains(name));
            left.extend(names.map(|name| format!("{what} {name}")));
        }
        left
    }
}

/// Where a node is.
fn address(node: u32) -> String {
    format!("10.77.0.{}", 10 + node)
}
