//! What owners do to their service while a rollout runs: it is noticed and handled, and never fought.

use std::fs;
use std::path::Path;

use controller_testing::contract::{IMAGE, NEXT_IMAGE};
use friday::api::types::Order;
use rollout::Ending;

use crate::stage::{SPEC, Stage};
use crate::world::{LIMIT, World, docker};

/// A rollout that is aborted after its service lost every task by this order.
fn aborted_without_stable(order: &'static [&'static str]) {
    let world = World::new();
    world.create(&[]);
    let socket = world.lab().socket(1);
    world.lab().within(move || async move {
        let stage = Stage::start(socket.clone()).await;
        let id = stage.on_trial(NEXT_IMAGE).await;
        docker(&socket, order);
        controller_testing::eventually(
            "no stable task gets requests",
            LIMIT,
            async || stage.endpoints(0).await.0,
            |stable| *stable == 0,
        )
        .await;
        stage.order(&id, Order::Abort).await;
        let view = controller_testing::eventually(
            "the rollout ends",
            LIMIT,
            async || {
                let table = stage.table(0).await;
                let route = &table["routes"][0];
                let stable = route["stable"]["endpoints"].as_array().unwrap().len();
                let weight = route["canary_bp"].as_u64().unwrap();
                assert!(
                    weight == 2500 || stable > 0,
                    "{weight} with {stable} stable tasks"
                );
                stage.rollout(&id).await
            },
            |view| view.ending.is_some(),
        )
        .await;
        assert_eq!(view.ending, Some(Ending::Aborted), "{}", view.message);
        // Pinned now: by its id, because no registry knows it.
        let image = docker(&socket, &["image", "inspect", "--format", "{{.Id}}", IMAGE]);
        stage.until_alone(&format!("worker {image} 2/2")).await;
    });
}

/// The owner's own deploys while a canary has a quarter of the requests: nobody writes over them.
fn overtaken(order: &'static [&'static str], ends: bool) {
    let world = World::new();
    world.lab().image("worker:own", &["tag", "own"]);
    world.create(&["--label", "of=before"]);
    let socket = world.lab().socket(1);
    world.lab().within(move || async move {
        let stage = Stage::start(socket.clone()).await;
        let id = stage.on_trial(NEXT_IMAGE).await;
        docker(&socket, order);
        if ends {
            superseded(&stage, &id).await;
            stage.until_alone("worker worker:own 2/2").await;
        } else {
            kept(&stage, &id, &socket, "worker").await;
        }
        nobody_noticed(stage).await;
    });
}

/// The rollout ends, because its service has another release now.
async fn superseded(stage: &Stage, id: &str) {
    let (view, most) = stage.end_of(id, LIMIT).await;
    assert_eq!(view.ending, Some(Ending::Superseded), "{}", view.message);
    assert!(
        view.message.contains("somebody deployed another release"),
        "{}",
        view.message
    );
    assert_eq!(stage.exit_code(&["status", id, "--no-wait"]).await, 0);
    assert_eq!(stage.exit_code(&["status", id]).await, 12);
    assert!(most <= 2500, "{most}");
}

/// The rollout goes on to its end, and the release runs with what the owner changed.
async fn kept(stage: &Stage, id: &str, socket: &Path, service: &str) {
    stage.order(id, Order::Resume).await;
    let (view, _) = stage.end_of(id, 2 * LIMIT).await;
    assert_eq!(view.ending, Some(Ending::Promoted), "{}", view.message);
    let format = "{{.Spec.Labels.of}} {{.Spec.TaskTemplate.ContainerSpec.Env}}";
    let seen = docker(socket, &["service", "inspect", "--format", format, service]);
    assert_eq!(seen, "owner [OF=owner]", "what the owner changed is kept");
}

async fn nobody_noticed(stage: Stage) {
    let (answered, failed) = stage.end().await;
    assert!(answered > 0);
    assert_eq!(failed, 0, "of {answered}");
}

/// A stack of one service, as its owner would write it.
fn stack_file(image: &str, of: &str) -> String {
    format!(
        "\
version: \"3.8\"
services:
  worker:
    image: {image}
    environment: {{ OF: {of} }}
    networks: [mesh]
    stop_grace_period: 2s
    deploy:
      replicas: 2
      endpoint_mode: dnsrr
      labels: {{ of: {of} }}
      update_config: {{ order: start-first }}
      restart_policy: {{ delay: 200ms }}
networks:
  mesh: {{ external: true }}
"
    )
}

/// `docker stack deploy`, which writes the whole of a service's spec and removes what its file does not have.
fn deploy_stack(socket: &Path, folder: &Path, image: &str, of: &str) {
    let file = folder.join("stack.yml");
    fs::write(&file, stack_file(image, of)).unwrap();
    let file = file.display().to_string();
    let options = ["--prune", "--resolve-image", "never"];
    let order = [&["stack", "deploy", "--compose-file", &file], &options[..]].concat();
    docker(socket, &[&order[..], &["shop"]].concat());
}

/// The owner deploys the whole stack file again, with this image, while a canary has a quarter of the requests.
fn deployed_again(image: &'static str, ends: bool) {
    let world = World::new();
    world.lab().image("worker:own", &["tag", "own"]);
    let socket = world.lab().socket(1);
    world.lab().within(move || async move {
        let folder = tempfile::tempdir().unwrap();
        deploy_stack(&socket, folder.path(), IMAGE, "before");
        let spec = SPEC.replace("service: worker", "service: shop_worker");
        let stage = Stage::start_by(socket.clone(), &spec).await;
        let id = stage.on_trial(NEXT_IMAGE).await;
        deploy_stack(&socket, folder.path(), image, "owner");
        if ends {
            superseded(&stage, &id).await;
            stage.until_alone("shop_worker worker:own 2/2").await;
        } else {
            let services = docker(&socket, &["service", "ls", "--format", "{{.Name}}"]);
            assert_eq!(
                services, "shop_worker\nshop_worker-canary",
                "--prune takes no canary along"
            );
            kept(&stage, &id, &socket, "shop_worker").await;
        }
        nobody_noticed(stage).await;
    });
}

#[test]
fn another_image_that_the_owner_deploys_during_a_rollout_ends_it_and_stays() {
    overtaken(
        &[
            "service",
            "update",
            "--detach",
            "--no-resolve-image",
            "--image",
            "worker:own",
            "worker",
        ],
        true,
    );
}

#[test]
fn what_else_the_owner_changes_during_a_rollout_is_kept_and_ends_nothing() {
    overtaken(
        &[
            "service",
            "update",
            "--detach",
            "--label-add",
            "of=owner",
            "--env-add",
            "OF=owner",
            "worker",
        ],
        false,
    );
}

#[test]
fn a_stack_with_another_image_deployed_during_a_rollout_ends_it_and_stays() {
    deployed_again("worker:own", true);
}

#[test]
fn a_stack_with_the_image_that_runs_deployed_during_a_rollout_is_kept_and_ends_nothing() {
    deployed_again(IMAGE, false);
}

#[test]
fn f15_an_abort_while_the_service_is_scaled_to_nothing_gives_it_its_tasks_back_before_traffic_moves()
 {
    aborted_without_stable(&["service", "scale", "--detach", "worker=0"]);
}

#[test]
fn f15_an_abort_while_the_service_is_removed_makes_it_again_before_traffic_moves() {
    aborted_without_stable(&["service", "rm", "worker"]);
}
