//! Releases that never get ready: exit 14 with the engine's words, no request, and nothing left.

use std::time::Duration;

use controller_testing::eventually;
use rollout::Ending;
use system_tests::Lab;

use crate::seats::Seats;
use crate::stage::Stage;
use crate::world::{LIMIT, World};

/// Deploys an image that will never do, on a service made with these options.
fn never_ready(options: &[&str], prepare: impl FnOnce(&Lab), words: &'static [&'static str]) {
    let world = World::new();
    prepare(world.lab());
    ends_as_not_ready(&world, options, "worker:never", words);
}

/// The same in a world that is prepared.
pub(crate) fn ends_as_not_ready(
    world: &World,
    options: &[&str],
    image: &'static str,
    words: &'static [&'static str],
) {
    world.create(options);
    let socket = world.lab().socket(1);
    world.lab().within(move || async move {
        let stage = Stage::start(socket.clone()).await;
        let id = stage.deploy(image).await.id;
        let (view, most) = stage.end_of(&id, LIMIT).await;
        assert_eq!(view.ending, Some(Ending::NotReady), "{}", view.message);
        for word in words {
            assert!(view.message.contains(word), "{word:?} in {}", view.message);
        }
        assert_eq!(most, 0, "basis points that the canary got at most");
        assert_eq!(stage.exit_code(&["status", &id]).await, 14);
        stage.until_alone("worker worker:v1 2/2").await;
        let (answered, failed) = stage.end().await;
        assert_eq!(failed, 0, "of {answered}");
    });
}

#[test]
fn f28_a_crash_loop_is_given_up_at_our_deadline_although_tasks_keep_starting() {
    let prepare =
        |lab: &Lab| lab.image_unchecked("worker:never", &["never-ready", "crash-after", "300"]);
    never_ready(&[], prepare, &["non-zero exit (70)"]);
}

#[test]
fn a_task_that_is_never_healthy_is_given_up_with_the_engines_words() {
    let prepare = |lab: &Lab| lab.image("worker:never", &["never-ready"]);
    never_ready(&[], prepare, &["health check"]);
}

#[test]
fn a_task_that_runs_and_never_answers_our_check_gets_no_request() {
    let prepare = |lab: &Lab| lab.image_unchecked("worker:never", &["never-ready"]);
    never_ready(&[], prepare, &["GET http://10.", ":9000/ready", "503"]);
}

#[test]
fn f37_a_task_that_no_node_takes_is_given_up_at_our_deadline() {
    let prepare = |lab: &Lab| lab.image("worker:never", &["tag", "large"]);
    // Two of them fit, and a third does not.
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap();
    let total: u64 = memory
        .split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse().ok())
        .unwrap();
    let reserved = format!("{}k", total * 2 / 5);
    let options = ["--reserve-memory", &reserved];
    never_ready(
        &options,
        prepare,
        &["no node takes it", "insufficient resources"],
    );
}

#[test]
fn an_engine_that_is_away_is_an_error_in_time_and_never_an_empty_list() {
    let _seats = Seats::take(1);
    let mut lab = Lab::start(1);
    lab.image(controller_testing::contract::IMAGE, &["tag", "one"]);
    let world = World::of(lab);
    world.create(&[]);
    let socket = world.lab().socket(1);
    let state = tempfile::tempdir().unwrap();
    let folder = state.path().to_owned();
    let at = socket.clone();
    world.lab().within(move || async move {
        let swarm = crate::world::open(at, folder).await;
        crate::world::until(&swarm, "two tasks are ready", |state| {
            state.stable.ready(&state.stable.release.id) == 2
        })
        .await;
    });
    lab = world.into_lab();
    lab.order("kill", 1);
    // Outside of the overlay, which died with its node: no task is asked here.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let swarm = crate::world::open(socket, state.path().to_owned()).await;
        let name = crate::world::service();
        let asked = tokio::time::Instant::now();
        let looked = friday::orchestrator::Orchestrator::observe(&*swarm, &name);
        let error = looked.await.unwrap_err();
        assert!(error.is_transient(), "{error}");
        assert!(
            asked.elapsed() < Duration::from_secs(6),
            "{:?}",
            asked.elapsed()
        );
    });
    lab.order("start", 1);
    runtime.block_on(async {
        let swarm = crate::world::open(lab.socket(1), state.path().to_owned()).await;
        let back = eventually(
            "the engine knows its services again",
            LIMIT,
            async || friday::orchestrator::Orchestrator::services(&*swarm).await,
            Result::is_ok,
        )
        .await;
        assert_eq!(back.unwrap(), [crate::world::service()]);
    });
}
