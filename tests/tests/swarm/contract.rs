//! What every orchestrator must do.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use async_trait::async_trait;
use controller_testing::contract::Harness;
use controller_testing::orchestrator_contract;
use friday::orchestrator::Orchestrator;
use friday::orchestrator::swarm::Swarm;

use crate::world::{World, open};

/// The orchestrator, and the engine that it commands.
pub(crate) struct Services {
    swarm: Arc<Swarm>,
    socket: PathBuf,
}

#[async_trait]
impl Harness for Services {
    fn orchestrator(&self) -> Arc<dyn Orchestrator> {
        self.swarm.clone()
    }

    async fn redefine(&self, image: &str) {
        let mut building = Command::new("docker")
            .arg("--host")
            .arg(format!("unix://{}", self.socket.display()))
            .args(["build", "--quiet", "--tag", image, "-"])
            .env("DOCKER_BUILDKIT", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let file = format!("FROM {image}\nCMD [\"tag\", \"redefined\"]\n");
        std::io::Write::write_all(&mut building.stdin.take().unwrap(), file.as_bytes()).unwrap();
        assert!(building.wait().unwrap().success());
    }
}

fn run(test: impl AsyncFnOnce(Services) + Send + 'static) {
    let world = World::new();
    world.create(&[]);
    let socket = world.lab().socket(1);
    world.lab().within(move || async move {
        let state = tempfile::tempdir().unwrap();
        let swarm = open(socket.clone(), state.path().to_owned()).await;
        test(Services { swarm, socket }).await;
    });
}

orchestrator_contract!(within run);
