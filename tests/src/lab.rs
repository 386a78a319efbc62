//! Docker engines of a test's own, in one swarm: the script `tests/swarm-lab`, and images made of the programs here.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sched::{CloneFlags, setns};
use tempfile::TempDir;

use crate::machine::running_of;
use crate::{programs, rootfs};

/// The overlay network that the lab's services, and the tests themselves, are on.
pub const NETWORK: &str = "mesh";

/// The port of every service of the lab.
pub const PORT: u16 = 9000;

/// The image that all others of the lab are made of.
const BASE: &str = "base:1";

/// What has to be there, by program, and the Debian package that brings it.
const NEEDED: [(&str, &str); 8] = [
    ("dockerd", "docker.io"),
    ("docker", "docker.io"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("unshare", "util-linux"),
    ("docker-registry", "docker-registry"),
    ("sshd", "openssh-server"),
    ("ssh", "openssh-client"),
];

/// Lines of an engine's log that a failed test shows.
const WORDS_SHOWN: usize = 20;

/// How often it is looked, after a [`pause`] each, whether something that was started is there: for ten seconds.
pub const START_TRIES: u32 = 200;

/// Some engines in one swarm. All of it ends and goes when it is dropped, or when this process ends in any way.
#[derive(Debug)]
pub struct Lab {
    dir: TempDir,
    keeper: Child,
    orders: Orders,
    /// The network of a container on the overlay.
    overlay: Option<Arc<File>>,
}

/// What a lab is told to do, and its answers.
#[derive(Debug, Clone)]
pub struct Orders(Arc<Mutex<Option<Script>>>);

/// What goes to the lab's script, and what it says.
type Script = (ChildStdin, BufReader<ChildStdout>);

impl Orders {
    /// Power off, power on, cable out, cable in: `kill`, `start`, `cut`, `heal`.
    ///
    /// # Panics
    /// It cannot be done.
    pub fn give(&self, order: &str, node: u32) {
        let mut pipes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (orders, answers) = pipes.as_mut().expect("it runs");
        writeln!(orders, "{order} {node}").expect("the lab takes orders");
        expect_answer(answers, "done");
    }
}

fn expect_answer(answers: &mut BufReader<ChildStdout>, expected: &str) {
    let mut line = String::new();
    answers
        .read_line(&mut line)
        .expect("the lab's output can be read");
    assert_eq!(line.trim(), expected, "the lab failed; it said why above");
}

impl Lab {
    /// Starts so many nodes, each a manager, with the image `base:1` and an attachable overlay network.
    ///
    /// # Panics
    /// Something is missing (then the panic says how to install it), or does not start.
    #[must_use]
    pub fn start(nodes: u32) -> Self {
        Self::start_with(nodes, |_| {})
    }

    /// The same, after something was put into the lab's folder.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[must_use]
    pub fn start_with(nodes: u32, prepare: impl FnOnce(&Path)) -> Self {
        let mut lab = Self::boot(nodes, "swarm", prepare);
        lab.make_base();
        lab.docker(
            1,
            &[
                "network",
                "create",
                "--driver",
                "overlay",
                "--attachable",
                NETWORK,
            ],
        );
        lab.overlay = Some(Arc::new(lab.attach()));
        lab
    }

    /// Starts so many engines that are in no swarm and have no image.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[must_use]
    pub fn engines(nodes: u32) -> Self {
        Self::boot(nodes, "engines", |_| {})
    }

    fn boot(nodes: u32, what: &str, prepare: impl FnOnce(&Path)) -> Self {
        require();
        let dir = tempfile::Builder::new()
            .prefix(&format!("friday-lab-{}-", std::process::id()))
            .rand_bytes(4)
            .tempdir()
            .expect("a temporary folder can be made");
        prepare(dir.path());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("swarm-lab");
        let mut keeper = Command::new(&script)
            .arg(dir.path())
            .arg(nodes.to_string())
            .arg(what)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{} cannot be run: {error}", script.display()));
        let orders = keeper.stdin.take().expect("it was piped");
        let mut answers = BufReader::new(keeper.stdout.take().expect("it was piped"));
        expect_answer(&mut answers, "ready");
        Self {
            dir,
            keeper,
            orders: Orders(Arc::new(Mutex::new(Some((orders, answers))))),
            overlay: None,
        }
    }

    /// The lab's folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The socket of a node's engine.
    #[must_use]
    pub fn socket(&self, node: u32) -> PathBuf {
        self.dir.path().join(format!("n{node}/docker.sock"))
    }

    /// Power off, power on, cable out, cable in: `kill`, `start`, `cut`, `heal`.
    ///
    /// # Panics
    /// It cannot be done.
    pub fn order(&mut self, order: &str, node: u32) {
        self.orders.give(order, node);
    }

    /// To give orders from within a test.
    #[must_use]
    pub fn orders(&self) -> Orders {
        self.orders.clone()
    }

    /// What the docker command line prints, asked of a node's engine.
    ///
    /// # Panics
    /// It fails.
    pub fn docker(&self, node: u32, arguments: &[&str]) -> String {
        self.docker_with(node, arguments, Stdio::null())
    }

    fn docker_with(&self, node: u32, arguments: &[&str], input: Stdio) -> String {
        self.try_docker(node, arguments, input)
            .unwrap_or_else(|said| panic!("docker {}: {said}", arguments.join(" ")))
    }

    /// The same where it may fail.
    ///
    /// # Errors
    /// It did; what it said.
    ///
    /// # Panics
    /// There is no docker.
    pub fn try_docker(
        &self,
        node: u32,
        arguments: &[&str],
        input: Stdio,
    ) -> Result<String, String> {
        let output = Command::new("docker")
            .arg("--host")
            .arg(format!("unix://{}", self.socket(node).display()))
            .args(arguments)
            // Nobody's own settings, and the builder that needs no plug-in.
            .env("DOCKER_CONFIG", self.docker_config())
            .env("DOCKER_BUILDKIT", "0")
            .stdin(input)
            .output()
            .expect("docker can be run");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(text(&output.stderr))
        }
    }

    /// The folder of Docker's configuration that the lab's command line uses: `docker login` writes there.
    #[must_use]
    pub fn docker_config(&self) -> PathBuf {
        self.dir.path().join("docker")
    }

    /// The image that all others are made of: the tiny service and the libraries that it is linked with, and nothing
    /// else. No static build is needed for that, nor an image from anywhere.
    fn make_base(&self) {
        let root = self.dir.path().join("base");
        rootfs::add_program(&root, &programs::tiny_service(), "/tiny-service");
        let tar = self.dir.path().join("base.tar");
        let packed = Command::new("tar")
            .arg("--create")
            .arg("--file")
            .arg(&tar)
            .arg("--directory")
            .arg(&root)
            .arg(".")
            .status()
            .expect("tar can be run");
        assert!(packed.success(), "the image cannot be packed");
        let input = File::open(&tar).expect("it was just written");
        self.docker_with(1, &["import", "-", BASE], input.into());
        self.spread(&[BASE]);
    }

    /// Copies images of node 1 to the others. What they would make themselves would have other ids, and without a
    /// registry an image is pinned by its id.
    ///
    /// # Panics
    /// An engine does not take them.
    pub fn spread(&self, images: &[&str]) {
        let others: Vec<u32> = self.nodes().into_iter().filter(|node| *node != 1).collect();
        if others.is_empty() {
            return;
        }
        let tar = self.dir.path().join("image.tar");
        let to = tar.display().to_string();
        let save = [&["save", "--output", &to], images].concat();
        self.docker(1, &save);
        for node in others {
            self.docker(node, &["load", "--quiet", "--input", &to]);
        }
    }

    fn nodes(&self) -> Vec<u32> {
        (1..10)
            .filter(|node| self.dir.path().join(format!("n{node}/pid")).exists())
            .collect()
    }

    /// Makes an image on every node: the tiny service with these arguments. Its own health check asks its `/ready`.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn image(&self, name: &str, arguments: &[&str]) {
        let health = "HEALTHCHECK --interval=1s --timeout=2s --retries=3 CMD [\"/tiny-service\", \"check\"]\n";
        self.build(name, arguments, health);
    }

    /// The same without a health check: Swarm takes it for well as soon as it runs.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn image_unchecked(&self, name: &str, arguments: &[&str]) {
        self.build(name, arguments, "");
    }

    fn build(&self, name: &str, arguments: &[&str], health: &str) {
        let file = self.dir.path().join("Dockerfile");
        let text = format!(
            "FROM {BASE}\nENV PORT={PORT} HOST=0.0.0.0\n{health}ENTRYPOINT [\"/tiny-service\"]\nCMD {arguments:?}\n"
        );
        fs::write(&file, text).expect("a folder of ours can be written to");
        let input = File::open(&file).expect("it was just written");
        self.docker_with(1, &["build", "--quiet", "--tag", name, "-"], input.into());
        self.spread(&[name]);
    }

    /// The node that the test stands on, with the controller and the proxies: the last. The first leads the swarm at
    /// first.
    #[must_use]
    pub fn home(&self) -> u32 {
        self.nodes().last().copied().unwrap_or(1)
    }

    /// Whether the engine of every node answers.
    #[must_use]
    pub fn is_well(&self) -> bool {
        let asked = |node| self.try_docker(node, &["node", "ls"], Stdio::null());
        self.nodes().into_iter().all(|node| asked(node).is_ok())
    }

    /// Waits until no task of a service that was removed runs any more. Else the names of those that do.
    ///
    /// # Errors
    /// They still run after ten seconds.
    ///
    /// # Panics
    /// An engine does not answer.
    pub fn wait_for_rest(&self) -> Result<(), Vec<String>> {
        let mut left = Vec::new();
        for _ in 0..START_TRIES {
            left = self.running_tasks();
            if left.is_empty() {
                return Ok(());
            }
            pause();
        }
        Err(left)
    }

    fn running_tasks(&self) -> Vec<String> {
        let ask = [
            "ps",
            "--filter",
            "label=com.docker.swarm.task",
            "--format",
            "{{.Names}} {{.Status}}",
        ];
        let asked = self.nodes().into_iter().map(|node| self.docker(node, &ask));
        let answers: Vec<String> = asked.collect();
        let lines = answers.iter().flat_map(|answer| answer.lines());
        lines.map(str::to_owned).collect()
    }

    /// Prints what each engine said when it crashed, or else last.
    pub fn print_words(&self) {
        for node in self.nodes() {
            eprintln!("--- node {node}'s engine:\n{}", self.words(node));
        }
    }

    fn words(&self, node: u32) -> String {
        let log = self.dir.path().join(format!("n{node}/log"));
        let text = fs::read(&log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let is_crash = |line: &&str| line.starts_with("fatal error:") || line.starts_with("panic:");
        let last = lines.len().saturating_sub(WORDS_SHOWN);
        let from = lines.iter().position(is_crash).unwrap_or(last);
        let shown: Vec<&str> = lines.into_iter().skip(from).take(WORDS_SHOWN).collect();
        shown.join("\n")
    }

    /// A container that does nothing but stand in the overlay network; the network, as it sees it.
    fn attach(&self) -> File {
        self.image_unchecked("gate:1", &[]);
        let mark = format!("gate-{}", self.dir.path().display());
        self.docker(
            self.home(),
            &[
                "run",
                "--detach",
                "--network",
                NETWORK,
                "gate:1",
                "tag",
                &mark,
            ],
        );
        // Docker answers when it is made, and it may still be on its way to its program.
        let gate = (0..START_TRIES).find_map(|_| {
            let found = running_of(Path::new(&mark))
                .into_iter()
                .find(|process| process.command.starts_with("/tiny-service"));
            if found.is_none() {
                pause();
            }
            found
        });
        let gate = gate.expect("the container that was just started runs");
        File::open(format!("/proc/{}/ns/net", gate.pid)).expect("root may look into processes")
    }

    /// Starts a program in a node's own network, where its engine finds it on loopback.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn spawn_in_node(&self, node: u32, mut command: Command) -> Child {
        let network = self.network_of_node(node);
        let spawning = std::thread::spawn(move || {
            setns(&*network, CloneFlags::CLONE_NEWNET).expect("root may enter a network");
            command.spawn().expect("the program can be run")
        });
        spawning.join().expect("it was started")
    }

    fn network_of_node(&self, node: u32) -> Arc<File> {
        let engine = running_of(&self.socket(node))
            .into_iter()
            .find(|process| process.command.starts_with("dockerd"));
        let engine = engine.expect("the node's engine runs");
        let network = File::open(format!("/proc/{}/ns/net", engine.pid));
        Arc::new(network.expect("root may look into processes"))
    }

    /// Runs a test in the overlay network, where controller and proxy stand: every thread of its runtime, and so every
    /// process that it starts. Addresses of the overlay lead nowhere, or elsewhere, from outside of it.
    ///
    /// # Panics
    /// The test does.
    pub fn within<F: Future<Output = ()>>(&self, test: impl FnOnce() -> F + Send + 'static) {
        let network = self.overlay.clone().expect("it was attached at the start");
        within(network, test);
    }

    /// The same in a node's own network, where its engine listens.
    ///
    /// # Panics
    /// The test does.
    pub fn within_node<F: Future<Output = ()>>(
        &self,
        node: u32,
        test: impl FnOnce() -> F + Send + 'static,
    ) {
        within(self.network_of_node(node), test);
    }
}

fn within<F: Future<Output = ()>>(network: Arc<File>, test: impl FnOnce() -> F + Send + 'static) {
    let enter = move || {
        setns(&*network, CloneFlags::CLONE_NEWNET).expect("root may enter a network");
    };
    let running = std::thread::spawn(move || {
        enter();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .on_thread_start(enter)
            .enable_all()
            .build()
            .expect("a runtime can be made");
        runtime.block_on(test());
    });
    if let Err(panic) = running.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_words();
        }
        // The end of its input is the order to end.
        let mut pipes = self.orders.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(pipes.take());
        drop(self.keeper.wait());
    }
}

/// A moment between two looks at programs that are not of a test's own runtime. Nothing else runs meanwhile.
pub fn pause() {
    std::thread::park_timeout(std::time::Duration::from_millis(50));
}

/// Fails with the line that installs what is missing.
fn require() {
    let paths = std::env::var("PATH").unwrap_or_default();
    let is_there = |program: &str| {
        let mut folders = paths.split(':').chain(["/usr/sbin", "/sbin"]);
        folders.any(|folder| Path::new(folder).join(program).is_file())
    };
    let mut missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(program, _)| !is_there(program))
        .map(|(_, package)| *package)
        .collect();
    missing.dedup();
    assert!(
        missing.is_empty(),
        "tests on a real swarm need more; install it with:\n  apt-get install --no-install-recommends {}\n\
         tests/run does so by itself. No engine has to run: the tests start their own",
        missing.join(" ")
    );
    assert!(
        nix::unistd::geteuid().is_root(),
        "tests on a real swarm start engines and networks of their own: run them as root"
    );
}
