//! The section's second block: a service of the user's own, which runs already, and the commands of a person on the manager.

use system_tests::{START_TRIES, friday, pause};

use super::OwnSwarm;

/// How the person who types the steps is set up: the program is in the path, and the controller is known, by the board's
/// address that `swarm/up --board-port` published.
fn at_the_desk(swarm: &OwnSwarm, folder: &str) -> String {
    let programs = friday().parent().unwrap().display().to_string();
    let secrets = swarm.variable("FRIDAY_SECRETS");
    format!(
        "cd {folder}; export PATH={programs}:$PATH FRIDAY_URL=https://10.77.0.11:7443 FRIDAY_CA={secrets}/ca.pem \
         FRIDAY_TOKEN_FILE={secrets}/operator_token; "
    )
}

/// Makes the service, and does as the steps say.
pub(super) fn is_adopted(swarm: &OwnSwarm, steps: &[String]) {
    swarm.docker(&[
        "service",
        "create",
        "--detach",
        "--quiet",
        "--no-resolve-image",
        "--name=shop_web",
        "--replicas=2",
        "--network=friday_mesh",
        "--endpoint-mode=dnsrr",
        "--env=PORT=9000",
        "--update-order=start-first",
        "--update-monitor=60s",
        "--limit-cpu=0.50",
        "--limit-memory=128M",
        "tweets-worker:v1",
    ]);
    runs(swarm);
    let folder = tempfile::tempdir().unwrap();
    let desk = at_the_desk(swarm, &folder.path().display().to_string());
    let mut said = String::new();
    for step in steps {
        // The engine of the lab is not where a machine's own one is.
        let step = step.replace("unix:///var/run/docker.sock", swarm.variable("DOCKER_HOST"));
        said += &swarm.run(&format!("{desk}{step}"));
    }
    let written = std::fs::read_to_string(folder.path().join("friday.yml")).unwrap();
    assert!(written.contains("service: shop_web"), "{written}");
    for words in [
        "ok    engine",
        "ok    proxy ",
        "ok    service friday_tweets-worker",
        "ok    agent ",
    ] {
        assert!(said.contains(words), "{words:?} in {said}");
    }
    swarm.docker(&["service", "rm", "shop_web"]);
}

/// Waits until all its tasks answer.
fn runs(swarm: &OwnSwarm) {
    let list = [
        "service",
        "ls",
        "--filter=name=shop_web",
        "--format={{.Replicas}}",
    ];
    let mut seen = String::new();
    for _ in 0..START_TRIES {
        seen = swarm.docker(&list);
        if seen == "2/2" {
            return;
        }
        pause();
    }
    panic!("shop_web has {seen} tasks{}", swarm.words());
}
