//! What is Swarm's own: what is cloned and written, who may write, what the engine does by itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use controller_testing::contract::{NEXT_IMAGE, REPLICAS};
use friday::orchestrator::swarm::Swarm;
use friday::orchestrator::{Group, Orchestrator, OrchestratorError, ServiceState};
use rollout::Release;
use serde_json::Value;

use crate::world::{World, docker, open, service, try_docker, until};

/// Runs a test on a service made with these options, in the overlay network: the orchestrator, and the engine's socket.
fn with_service<F: Future<Output = ()>>(
    options: &[&str],
    test: impl FnOnce(Arc<Swarm>, PathBuf) -> F + Send + 'static,
) {
    let world = World::new();
    world.lab().image("worker:crash", &["crash-after", "300"]);
    world.create(options);
    let socket = world.lab().socket(1);
    world.lab().within(move || async move {
        let state = tempfile::tempdir().unwrap();
        let swarm = open(socket.clone(), state.path().to_owned()).await;
        until(&swarm, "the first tasks are ready", |state| {
            runs(&state.stable, REPLICAS)
        })
        .await;
        test(swarm, socket).await;
    });
}

fn runs(group: &Group, replicas: u32) -> bool {
    group.ready(&group.release.id) == replicas && u32::try_from(group.tasks.len()) == Ok(replicas)
}

fn inspect(socket: &Path, name: &str) -> Value {
    let text = docker(socket, &["service", "inspect", name]);
    let services: Value = serde_json::from_str(&text).unwrap();
    services[0]["Spec"].clone()
}

async fn next(swarm: &Swarm) -> Release {
    swarm.resolve(&service(), NEXT_IMAGE, None).await.unwrap()
}

fn canary_runs(state: &ServiceState, replicas: u32) -> bool {
    state
        .canary
        .as_ref()
        .is_some_and(|group| runs(group, replicas))
}

#[test]
fn a_canary_is_a_clone_without_what_leads_past_the_proxy_and_a_promotion_keeps_everything_else() {
    let options = [
        "--publish",
        "mode=host,target=9000,published=19000",
        "--replicas",
        "1",
        "--label",
        "com.docker.stack.namespace=app",
        "--env",
        "KEY=value",
        "--health-interval",
        "1s",
        "--health-retries",
        "7",
        "--update-order",
        "stop-first",
        "--update-delay",
        "1s",
    ];
    let world = World::new();
    world.create(&options);
    let socket = world.lab().socket(1);
    world.lab().within(move || async move {
        let state = tempfile::tempdir().unwrap();
        let swarm = open(socket.clone(), state.path().to_owned()).await;
        until(&swarm, "the first task is ready", |state| {
            runs(&state.stable, 1)
        })
        .await;
        let release = next(&swarm).await;
        swarm.ensure_canary(&service(), &release, 2).await.unwrap();
        // Beside a stable task that has the port.
        until(&swarm, "two canary tasks", |state| canary_runs(state, 2)).await;
        let before = inspect(&socket, "worker");
        let canary = inspect(&socket, "worker-canary");
        assert_eq!(canary["EndpointSpec"]["Ports"], Value::Null);
        assert_eq!(canary["Labels"]["com.docker.stack.namespace"], Value::Null);
        assert_eq!(canary["Labels"]["friday.canary-of"], "worker");
        let container = |spec: &Value| spec["TaskTemplate"]["ContainerSpec"].clone();
        for key in ["Healthcheck", "Env", "StopGracePeriod"] {
            assert!(!container(&before)[key].is_null(), "{key}");
            assert_eq!(container(&canary)[key], container(&before)[key]);
        }

        swarm.ensure_stable(&service(), &release).await.unwrap();
        let mut after = inspect(&socket, "worker");
        // INFRA: what the engine writes is `Healthcheck`; lost, it would restart every task and check none.
        assert_eq!(
            container(&after)["Healthcheck"],
            container(&before)["Healthcheck"]
        );
        assert_eq!(container(&after)["Image"], container(&canary)["Image"]);
        assert_eq!(
            container(&after)["Labels"]["friday.release"],
            release.id.as_str()
        );
        after["TaskTemplate"]["ContainerSpec"]["Image"] = container(&before)["Image"].clone();
        after["TaskTemplate"]["ContainerSpec"]["Labels"] = container(&before)["Labels"].clone();
        for label in ["image", "digest", "term"] {
            let labels = after["Labels"].as_object_mut().unwrap();
            assert!(
                labels.remove(&format!("friday.{label}")).is_some(),
                "{label}"
            );
        }
        assert_eq!(after, {
            let mut before = before;
            if container(&before)["Labels"].is_null() {
                before["TaskTemplate"]["ContainerSpec"]["Labels"] = Value::Null;
            }
            before
        });
        until(&swarm, "the new release", |state| {
            state.stable.release == release && runs(&state.stable, 1)
        })
        .await;
    });
}

#[test]
fn f27_changes_of_others_in_between_are_kept_and_ours_is_made_all_the_same() {
    with_service(&[], async |swarm, socket| {
        let release = next(&swarm).await;
        let others = std::thread::spawn(move || {
            for number in 0..15 {
                let label = format!("number={number}");
                let order = ["service", "update", "--detach", "--quiet", "--label-add"];
                let order = [&order[..], &[&label, "worker"]].concat();
                // Whoever comes second is refused, and a person asks again: here it is now them and now us.
                while let Err(said) = try_docker(&socket, &order) {
                    assert!(said.contains("out of sequence"), "{said}");
                }
            }
            socket
        });
        for replicas in [1, 2, 3, 2, 1] {
            swarm
                .ensure_canary(&service(), &release, replicas)
                .await
                .unwrap();
        }
        swarm.ensure_stable(&service(), &release).await.unwrap();
        let socket = others.join().unwrap();
        let spec = inspect(&socket, "worker");
        assert_eq!(spec["Labels"]["number"], "14");
        assert_eq!(spec["Labels"]["friday.digest"], release.digest);
    });
}

#[test]
fn f26_what_a_newer_controller_wrote_an_older_one_leaves_alone() {
    with_service(&[], async |old, socket| {
        let release = next(&old).await;
        old.ensure_canary(&service(), &release, 1).await.unwrap();
        let state = tempfile::tempdir().unwrap();
        let new = open(socket, state.path().to_owned()).await;
        new.lead(2);
        // A look is enough to take over.
        until(&new, "the canary", |state| canary_runs(state, 1)).await;
        for refused in [
            old.ensure_canary(&service(), &release, 2).await,
            old.ensure_no_canary(&service()).await,
        ] {
            let error = refused.unwrap_err();
            assert!(
                matches!(error, OrchestratorError::Refused { .. }),
                "{error}"
            );
            assert!(error.to_string().contains("term 2"), "{error}");
        }
        // Its look writes nothing back either.
        old.observe(&service()).await.unwrap();
        new.ensure_canary(&service(), &release, 2).await.unwrap();
        new.ensure_no_canary(&service()).await.unwrap();
    });
}

#[test]
fn f35_an_update_that_the_engine_takes_back_or_stops_is_told_and_not_tried_for_ever() {
    let options = [
        "--update-failure-action",
        "rollback",
        "--update-monitor",
        "2s",
    ];
    with_service(&options, async |swarm, socket| {
        let crash = swarm
            .resolve(&service(), "worker:crash", None)
            .await
            .unwrap();
        let before = swarm.observe(&service()).await.unwrap().stable.release;
        swarm.ensure_stable(&service(), &crash).await.unwrap();
        let state = until(&swarm, "the engine takes it back", |state| {
            state.stable.release.id == before.id && state.stable.trouble.is_some()
        })
        .await;
        let trouble = state.stable.trouble.unwrap();
        assert!(trouble.contains("took the update back"), "{trouble}");
        let error = swarm.ensure_stable(&service(), &crash).await.unwrap_err();
        assert!(!error.is_transient(), "{error}");
        // Another release may be tried.
        let release = next(&swarm).await;
        swarm.ensure_stable(&service(), &release).await.unwrap();
        until(&swarm, "the other release", |state| {
            state.stable.release == release && runs(&state.stable, REPLICAS)
        })
        .await;

        docker(
            &socket,
            &[
                "service",
                "update",
                "--detach",
                "--update-failure-action",
                "pause",
                "worker",
            ],
        );
        swarm.ensure_stable(&service(), &crash).await.unwrap();
        let state = until(&swarm, "the engine stops", |state| {
            let trouble = state.stable.trouble.as_deref().unwrap_or_default();
            trouble.contains("stopped the update")
        })
        .await;
        assert_eq!(state.stable.release, crash);
        let error = swarm.ensure_stable(&service(), &crash).await.unwrap_err();
        assert!(!error.is_transient(), "{error}");
    });
}

#[test]
fn f23_a_new_task_is_used_once_it_is_ready_and_one_that_was_replaced_never_again() {
    with_service(&[], async |swarm, socket| {
        let before = swarm.observe(&service()).await.unwrap().stable.tasks;
        docker(&socket, &["service", "scale", "--detach", "worker=3"]);
        until(&swarm, "three tasks", |state| runs(&state.stable, 3)).await;
        let container = docker(
            &socket,
            &[
                "ps",
                "--quiet",
                "--filter",
                &format!("label=com.docker.swarm.task.id={}", before[0].id),
            ],
        );
        docker(&socket, &["kill", &container]);
        let after = until(&swarm, "three tasks, one of them new", |state| {
            let is_old = state
                .stable
                .tasks
                .iter()
                .any(|task| task.id == before[0].id);
            !is_old && runs(&state.stable, 3)
        })
        .await;
        assert_eq!(after.stable.restarts, 1);
        docker(&socket, &["service", "scale", "--detach", "worker=1"]);
        let state = until(&swarm, "one is to stay", |state| state.stable.replicas == 1).await;
        assert!(state.stable.ready(&state.stable.release.id) <= 3);
        until(&swarm, "one task", |state| runs(&state.stable, 1)).await;
    });
}

#[test]
fn f34_an_undo_by_a_tag_that_moved_runs_what_the_tag_meant() {
    with_service(&[], async |swarm, socket| {
        let first = next(&swarm).await;
        swarm.ensure_stable(&service(), &first).await.unwrap();
        docker(&socket, &["tag", "worker:crash", NEXT_IMAGE]);
        let moved = next(&swarm).await;
        assert_eq!(moved.image, first.image);
        assert_ne!(moved.digest, first.digest);
        swarm.ensure_stable(&service(), &moved).await.unwrap();
        // Back, by a controller that never resolved it and has nothing but the release from its store.
        let state = tempfile::tempdir().unwrap();
        let other = open(socket.clone(), state.path().to_owned()).await;
        other.ensure_stable(&service(), &first).await.unwrap();
        until(&other, "the first meaning", |state| {
            state.stable.release == first && runs(&state.stable, REPLICAS)
        })
        .await;
    });
}
