//! A swarm with one service, on a lab that tests hand to each other.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use controller_testing::contract::{IMAGE, NEXT_IMAGE, REPLICAS};
use controller_testing::eventually;
use friday::clock::SystemClock;
use friday::orchestrator::swarm::{EngineAddress, Swarm, SwarmConfig};
use friday::orchestrator::{Orchestrator, ServiceState};
use friday::spec::{ReadOptions, read};
use rollout::{ServiceName, Spec};
use system_tests::Lab;

use crate::seats::Seats;

/// How long any one change may take on a busy machine: Swarm gives a task 3 s before it tells it to stop.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Labs that no test uses now. A lab takes seconds to start; those left here end with this process.
static LABS: Mutex<Vec<Lab>> = Mutex::new(Vec::new());

/// A lab with images and without services, and the seats of its engine.
pub(crate) struct World {
    lab: Option<Lab>,
    /// Those of a lab of the test's own are the test's.
    _seats: Option<Seats>,
}

impl World {
    /// A lab that is free, or a new one.
    pub(crate) fn new() -> Self {
        Self::with_load(0)
    }

    /// The same for a test with a load that takes so many seats beside the engine's own.
    pub(crate) fn with_load(load: u32) -> Self {
        let seats = Seats::take(1 + load);
        let lab = free().unwrap_or_else(|| Lab::start(1));
        lab.image(IMAGE, &["tag", "one"]);
        lab.image(NEXT_IMAGE, &["tag", "next"]);
        Self {
            lab: Some(lab),
            _seats: Some(seats),
        }
    }

    /// A lab of the test's own, which has taken seats for it.
    pub(crate) fn of(lab: Lab) -> Self {
        Self {
            lab: Some(lab),
            _seats: None,
        }
    }

    /// The lab, for no other test.
    pub(crate) fn into_lab(mut self) -> Lab {
        self.lab.take().unwrap()
    }

    pub(crate) fn lab(&self) -> &Lab {
        self.lab.as_ref().unwrap()
    }

    /// Makes the service that users call, as they would: `docker service create`.
    pub(crate) fn create(&self, more: &[&str]) {
        let replicas = REPLICAS.to_string();
        let mut arguments = vec![
            "service",
            "create",
            "--detach",
            "--quiet",
            "--no-resolve-image",
        ];
        arguments.extend([
            "--name",
            "worker",
            "--replicas",
            &replicas,
            "--network",
            "mesh",
        ]);
        arguments.extend(["--endpoint-mode", "dnsrr", "--update-order", "start-first"]);
        arguments.extend(["--stop-grace-period", "2s", "--restart-delay", "200ms"]);
        arguments.extend(more);
        arguments.push(IMAGE);
        self.lab().docker(1, &arguments);
    }
}

/// A lab that no test uses now, and on which nothing of the last one runs. One whose engine is gone was in nobody's hands when that
/// happened, and one whose engine does not stop what it was told to remove is no clean start: they are left, with their words.
fn free() -> Option<Lab> {
    loop {
        let lab = LABS.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        if !lab.is_well() {
            println!("a lab's engine died between two tests, and another takes its place");
        } else if let Err(left) = lab.wait_for_rest() {
            println!(
                "a lab's engine still runs {left:?} of services that are gone, and another takes its place"
            );
        } else {
            return Some(lab);
        }
        lab.print_words();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let Some(lab) = self.lab.take() else { return };
        // A failed test's lab is in no known state.
        if std::thread::panicking() {
            return;
        }
        let services = lab.docker(1, &["service", "ls", "--quiet"]);
        for service in services.lines() {
            lab.docker(1, &["service", "rm", service]);
        }
        LABS.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(lab);
    }
}

/// What the docker command line prints, asked of an engine.
pub(crate) fn docker(socket: &Path, arguments: &[&str]) -> String {
    try_docker(socket, arguments).unwrap_or_else(|said| panic!("docker {arguments:?}: {said}"))
}

/// What the docker command line prints, or says in error.
pub(crate) fn try_docker(socket: &Path, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("docker")
        .arg("--host")
        .arg(format!("unix://{}", socket.display()))
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap().trim().to_owned();
    if output.status.success() {
        Ok(text(output.stdout))
    } else {
        Err(text(output.stderr))
    }
}

pub(crate) fn service() -> ServiceName {
    controller_testing::contract::service()
}

/// What friday.yml says of the service.
pub(crate) fn spec() -> Spec {
    let text = "service: worker\nport: 9000\nready: { path: /ready }\n";
    read(text, "friday.yml", &ReadOptions::default()).unwrap()
}

/// The orchestrator on an engine's socket, in a test that runs in the overlay network.
pub(crate) async fn open(socket: PathBuf, state_dir: PathBuf) -> Arc<Swarm> {
    let config = SwarmConfig {
        engine: EngineAddress::Unix(socket),
        state_dir,
        network: None,
        docker_config: None,
    };
    let swarm = Swarm::open(config, SystemClock::new()).await.unwrap();
    swarm.lead(1);
    swarm.know(&spec());
    swarm
}

pub(crate) async fn until(
    swarm: &Swarm,
    what: &str,
    holds: impl FnMut(&ServiceState) -> bool,
) -> ServiceState {
    let look = async || swarm.observe(&service()).await.unwrap();
    eventually(what, LIMIT, look, holds).await
}
