//! Four engines in no swarm, and Terraform with a state of the test's own.

mod looks;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value, json};
use system_tests::{Lab, SshDaemons, friday, images};
use tempfile::TempDir;

/// Longest time of one command, in seconds: an apply waits for at most 120 in several places.
const COMMAND_SECONDS_MAX: &str = "240";

/// How many engines there are.
const ENGINES: u32 = 4;

/// What `swarm/build` makes: targets and images.
const IMAGES: [(&str, &str); 7] = [
    ("controller", "friday:tests"),
    ("agent", "friday-agent:tests"),
    ("proxy", "friday-proxy:tests"),
    ("pipeline", "tweets-pipeline:tests"),
    ("producer", "tweets-producer:tests"),
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

/// Builds them on the first engine, and copies to the others what may run there.
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
    // Whoever keeps data does so on the first node.
    images::make(lab);
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

    /// The variables for both modules on these nodes, all managers: what releases, and a service that nobody calls but the
    /// test.
    pub(crate) fn with_platform(&self, nodes: &[u32]) -> Value {
        self.variables(nodes, true)
    }

    /// The same with all parts that this machine has programs for.
    pub(crate) fn with_all_parts(&self, nodes: &[u32]) -> Value {
        let mut variables = self.with_platform(nodes);
        variables["parts"] = json!(["agent", "pipeline", "prometheus", "worker"]);
        variables
    }

    /// The variables for the swarm on these nodes and nothing on it.
    pub(crate) fn swarm_alone(&self, nodes: &[u32]) -> Value {
        self.variables(nodes, false)
    }

    /// The variables for the swarm alone on these nodes, with their roles and labels.
    pub(crate) fn swarm_of(&self, nodes: &[(u32, &str, Value)]) -> Value {
        let hosts = nodes
            .iter()
            .map(|(node, role, labels)| self.host(*node, role, labels.clone()))
            .collect();
        self.variables_of(hosts, false)
    }

    fn variables(&self, nodes: &[u32], with_platform: bool) -> Value {
        let hosts = nodes
            .iter()
            .map(|node| {
                let labels = if *node == 1 {
                    json!({ "friday.state": "here" })
                } else {
                    json!({})
                };
                self.host(*node, "manager", labels)
            })
            .collect();
        self.variables_of(hosts, with_platform)
    }

    fn host(&self, node: u32, role: &str, labels: Value) -> (String, Value) {
        let host = json!({
            "docker_host": self.docker_host(node),
            "advertise_address": address(node),
            "role": role,
            "labels": labels,
        });
        (format!("n{node}"), host)
    }

    fn docker_host(&self, node: u32) -> String {
        match self.ssh {
            Some(daemons) => daemons.docker_host(node),
            None => format!("unix://{}", self.lab.socket(node).display()),
        }
    }

    fn variables_of(&self, hosts: Map<String, Value>, with_platform: bool) -> Value {
        json!({
            "hosts": hosts,
            "with_platform": with_platform,
            "images": {
                "controller": "friday:tests",
                "agent": "friday-agent:tests",
                "proxy": "friday-proxy:tests",
                "worker": "tweets-worker:v1",
                "pipeline": "tweets-pipeline:tests",
                "producer": "tweets-producer:tests",
                "kafka": images::KAFKA,
                "postgres": images::POSTGRES,
                "prometheus": images::PROMETHEUS,
            },
            "parts": ["agent", "worker"],
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

    /// Destroys what was applied by these variables; what Terraform said.
    pub(crate) fn destroy(&self, variables: &Value) -> String {
        let (code, said) = self.change("destroy", variables);
        assert_eq!(code, Some(0), "destroy: {said}\n{}", self.words());
        said
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

    /// Joins an engine to the swarm of another, as somebody else would.
    pub(crate) fn join(&self, node: u32, token: &str, to: u32) {
        let (from, to) = (address(node), format!("{}:2377", address(to)));
        let join = [
            "swarm",
            "join",
            "--token",
            token,
            "--advertise-addr",
            &from,
            &to,
        ];
        self.lab.docker(node, &join);
    }

    /// Makes a volume as a stack of the same name would, which is not the module's.
    pub(crate) fn make_volume(&self, node: u32, name: &str) {
        let label = "com.docker.stack.namespace=friday";
        let create = ["volume", "create", "--label", label, name];
        self.lab.docker(node, &create);
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
}

/// Where a node is.
fn address(node: u32) -> String {
    format!("10.77.0.{}", 10 + node)
}
