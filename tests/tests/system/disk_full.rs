//! The disk of the state is full: no new release, and always a way back.

use controller_testing::eventually;
use friday::api::types::Order;
use friday::client::ClientError;
use rollout::Ending;
use system_tests::{PATIENCE, Scene, SmallDisk};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f40_on_a_full_disk_no_release_starts_and_an_abort_still_takes_the_traffic_back() {
    let disk = SmallDisk::mount().await;
    let mut scene = Scene::prepare();
    scene.keep_state_in(&disk.path().join("controller"));
    scene.start_controller().await;
    scene.start_proxy().await;
    let load = scene.load(100);
    let view = scene.deploy("worker:v2").await;
    let id = view.id.clone();
    scene
        .until(&id, "the first step", PATIENCE, |view| {
            view.phase.name() == "analyzing"
        })
        .await;
    scene.until_weight(1_000).await;

    // The controller gives up its reserve; then that is used up too.
    let reserve = scene.state_dir().join("friday.reserve");
    assert!(reserve.exists());
    let ballast = disk.fill();
    eventually(
        "the reserve is given up",
        PATIENCE,
        async || reserve.exists(),
        |exists| !exists,
    )
    .await;
    disk.fill();
    let refused = eventually(
        "a new release is refused",
        PATIENCE,
        async || {
            disk.fill();
            scene.try_deploy("worker:v3").await
        },
        Result::is_err,
    )
    .await;
    let refused = refused.expect_err("that was waited for");
    assert!(
        matches!(
            refused,
            ClientError::Failed { .. } | ClientError::Unavailable { .. }
        ),
        "{refused:?}"
    );
    let words = refused.to_string();
    // Whichever file could not be written first.
    let state = scene.state_dir().display().to_string();
    assert!(
        words.contains(&state) && (words.contains("full") || words.contains("No space left")),
        "{words}"
    );

    let view = scene.rollout(&id).await;
    assert!(
        view.ending.is_none(),
        "the first one runs on: {}",
        view.message
    );
    scene
        .order(&id, Order::Abort)
        .await
        .expect("there is always a way back");
    scene.until_weight(0).await;
    assert!(
        scene.saved(&id).await.rollout.ending().is_none(),
        "it could not be saved"
    );

    std::fs::remove_file(ballast).unwrap();
    let ended = scene
        .until(&id, "it ends", 2 * PATIENCE, |view| view.ending.is_some())
        .await;
    assert_eq!(ended.ending, Some(Ending::Aborted), "{}", ended.message);
    let saved = async || scene.saved(&id).await.rollout.ending();
    eventually("it is saved", PATIENCE, saved, |ending| {
        *ending == Some(Ending::Aborted)
    })
    .await;
    scene.kill_controller();
    scene.start_controller().await;
    assert_eq!(scene.rollout(&id).await.ending, Some(Ending::Aborted));
    assert_eq!(scene.weight().await, 0);
    let next = scene.deploy("worker:v3").await;
    assert_ne!(next.id, id);

    let outcome = load.end().await;
    assert_eq!(outcome.failed, 0, "{outcome:#?}");
    // The disk goes after those who use it.
    drop(scene);
    drop(disk);
}
