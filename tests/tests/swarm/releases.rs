//! Whole releases on a swarm, under load: a good one, a bad one, and controllers that die in between.

use std::time::Duration;

use controller_testing::contract::NEXT_IMAGE;
use rollout::{Ending, Phase};

use crate::stage::Stage;
use crate::world::World;

/// Longest that a whole release may take here; about 35 s on a machine that does nothing else.
const RELEASE_MAX: Duration = Duration::from_secs(180);

#[test]
fn a_good_release_ends_as_the_users_own_service_although_its_controller_is_killed_on_the_way() {
    let world = World::new();
    world.create(&[]);
    let socket = world.lab().socket(1);
    let image = world
        .lab()
        .docker(1, &["image", "inspect", "--format", "{{.Id}}", NEXT_IMAGE]);
    world.lab().within(move || async move {
        let mut stage = Stage::start(socket.clone()).await;
        let id = stage.deploy(NEXT_IMAGE).await.id;
        type Place = fn(&Phase) -> bool;
        let places: [(&str, Place); 4] = [
            ("its tasks start", |phase| {
                matches!(phase, Phase::Deploying { .. })
            }),
            ("it is analyzed", |phase| {
                matches!(phase, Phase::Analyzing { .. })
            }),
            ("it is warm", |phase| matches!(phase, Phase::Warm { .. })),
            ("it is promoted in place", |phase| {
                matches!(phase, Phase::Promoting { .. })
            }),
        ];
        for (what, is_there) in places {
            let before = stage
                .until(&id, what, RELEASE_MAX, |view| is_there(&view.phase))
                .await;
            stage.kill_controller();
            stage.start_controller().await;
            let after = stage.rollout(&id).await;
            assert!(
                after.elapsed_seconds >= before.elapsed_seconds - 1.0,
                "{what}: {} s became {} s",
                before.elapsed_seconds,
                after.elapsed_seconds
            );
        }
        let (view, _) = stage.end_of(&id, RELEASE_MAX).await;
        assert_eq!(view.ending, Some(Ending::Promoted), "{}", view.message);
        assert_eq!(stage.exit_code(&["status", &id]).await, 0);
        stage.until_alone(&format!("worker {image} 2/2")).await;
        let (answered, failed) = stage.end().await;
        assert!(answered > 1000, "{answered} were answered");
        assert_eq!(failed, 0, "of {answered}");
    });
}

#[test]
fn f35_a_promotion_that_the_engine_takes_back_ends_at_once_on_the_release_that_was_good() {
    let world = World::new();
    // A good canary, and a bad task of the users' own service.
    world.lab().image("worker:half", &["crash-in", "worker"]);
    let options = [
        "--env",
        "SELF={{.Service.Name}}",
        "--update-failure-action",
        "rollback",
        "--update-monitor",
        "2s",
    ];
    world.create(&options);
    let socket = world.lab().socket(1);
    world.lab().within(move || async move {
        let stage = Stage::start(socket.clone()).await;
        let id = stage.deploy("worker:half").await.id;
        let (view, most) = stage.end_of(&id, RELEASE_MAX).await;
        assert_eq!(most, 10_000, "it came to its promotion: {}", view.message);
        assert_eq!(view.ending, Some(Ending::NotReady), "{}", view.message);
        assert!(
            view.message.contains("the engine took it back"),
            "{}",
            view.message
        );
        assert_eq!(stage.exit_code(&["status", &id]).await, 14);
        stage.until_alone("worker worker:v1 2/2").await;
        let (answered, failed) = stage.end().await;
        assert_eq!(failed, 0, "of {answered}");
    });
}

#[test]
fn a_bad_release_is_rolled_back_and_users_see_nothing_of_it() {
    let world = World::new();
    world.lab().image("worker:bad", &["fail", "20"]);
    world.create(&[]);
    let socket = world.lab().socket(1);
    world.lab().within(move || async move {
        let stage = Stage::start(socket.clone()).await;
        let id = stage.deploy("worker:bad").await.id;
        let (view, most) = stage.end_of(&id, RELEASE_MAX).await;
        assert_eq!(view.ending, Some(Ending::RolledBack), "{}", view.message);
        assert_eq!(most, 2500, "no more than the first step's share");
        assert_eq!(stage.exit_code(&["status", &id]).await, 10);
        stage.until_alone("worker worker:v1 2/2").await;
        let (answered, failed) = stage.end().await;
        assert_eq!(failed, 0, "of {answered}");
    });
}
