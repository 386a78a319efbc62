//! What people order, and what must not follow from it.

use friday::reconciler::RequestError;
use rollout::{Cause, Command, Duration, Ending, Phase, Placement, Weight};

use crate::world::{FAILING, World};

fn abort() -> Command {
    Command::Abort(Cause::Person {
        by: "bob".into(),
        reason: None,
    })
}

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn f14_an_aborted_canary_gets_nothing_and_is_not_scaled_up_over_restarts() {
    let mut world = World::new().await;
    let id = world.deploy("web:v2").await.unwrap();
    world.until_phase("analyzing", MINUTE).await;
    world.order(&id, abort()).await.unwrap();
    let replicas = world.state().await.canary.map_or(0, |group| group.replicas);
    for turn in 0..40 {
        if turn % 7 == 0 {
            world.crash().await;
        }
        world.step().await;
        assert_eq!(world.published(), Weight::ZERO);
        assert!(world.state().await.canary.map_or(0, |group| group.replicas) <= replicas);
    }
    assert_eq!(world.rollout().await.ending(), Some(Ending::Aborted));
}

#[tokio::test]
async fn f17_a_second_release_takes_over_from_the_last_promoted_one() {
    let mut world = World::new().await;
    let first = world.deploy("web:v2").await.unwrap();
    let quarter = Weight::from_percent(25).unwrap();
    world
        .until("25 %", MINUTE, |world, _| world.published() == quarter)
        .await;
    let second = world.deploy("web:v3").await.unwrap();
    assert_eq!(world.published(), Weight::ZERO, "back to stable first");
    world
        .until("started", MINUTE, |world, _| {
            world.published() > Weight::ZERO
        })
        .await;
    use friday::store::Store as _;
    let old = world.store.rollout(&first).await.unwrap().unwrap().rollout;
    assert_eq!(old.ending(), Some(Ending::Superseded));
    assert!(matches!(old.cause(), Some(Cause::Superseded { by }) if *by == second));
    let new = world.rollout().await;
    assert_eq!(
        (new.stable.image.as_str(), new.canary.image.as_str()),
        ("web:v1", "web:v3")
    );
    world.until_phase("promoted", 3 * MINUTE).await;
    world.assert_users_are_well();
    assert_eq!(world.state().await.stable.release.image, "web:v3");
}

#[tokio::test]
async fn f17_the_same_release_again_is_the_same_rollout() {
    let mut world = World::new().await;
    let first = world.deploy("web:v2").await.unwrap();
    world.until_phase("analyzing", MINUTE).await;
    assert_eq!(world.deploy("web:v2").await.unwrap(), first);
    world.until_phase("promoted", 3 * MINUTE).await;
    assert_eq!(
        world.deploy("web:v2").await.unwrap(),
        first,
        "a job that is run again finds what it did"
    );
}

#[tokio::test]
async fn f31_a_release_that_was_rolled_back_does_not_start_again_by_itself() {
    let mut world = World::new().await;
    world.behave("web:v2", FAILING).await;
    let first = world.deploy("web:v2").await.unwrap();
    world.until_phase("rolled_back", MINUTE).await;
    world.crash().await;
    world.pass(2 * MINUTE).await;
    assert_eq!(world.rollout().await.id, first, "nothing started");
    assert_eq!(world.published(), Weight::ZERO);
    assert_eq!(world.state().await.canary, None);
    let again = world.deploy("web:v2").await;
    assert!(
        matches!(again, Err(RequestError::RolledBackBefore { ref rollout, .. }) if *rollout == first),
        "{again:?}"
    );
    let third = world.deploy("web:v3").await.unwrap();
    world
        .until("a new release starts", MINUTE, |world, _| {
            world.published() > Weight::ZERO
        })
        .await;
    world.order(&third, abort()).await.unwrap();
    world.until_phase("rolled_back", MINUTE).await;
    let retried = world.deploy_with("web:v2", true).await.unwrap();
    assert_ne!(retried, first);
    world.until_phase("rolled_back", MINUTE).await;
    let by_word = world.retry().await.unwrap();
    assert_ne!(by_word, retried);
}

#[tokio::test]
async fn f32_an_order_hits_the_rollout_it_names_and_no_newer_one() {
    let mut world = World::new().await;
    let first = world.deploy("web:v2").await.unwrap();
    world.until_phase("analyzing", MINUTE).await;
    let second = world.deploy("web:v3").await.unwrap();
    world
        .until("the second runs", MINUTE, |world, _| {
            world.published() > Weight::ZERO
        })
        .await;
    let late = world.order(&first, Command::PromoteFull).await;
    assert!(matches!(late, Err(RequestError::NotNow { .. })), "{late:?}");
    assert_eq!(world.rollout().await.id, second);
    assert_eq!(world.rollout().await.phase.name(), "analyzing");
    let unknown = world
        .order(&rollout::RolloutId::from_text("web-99"), abort())
        .await
        .unwrap_err();
    assert!(unknown.to_string().contains("web-2"), "{unknown}");
}

#[tokio::test]
async fn f30_abort_wins_after_promote_full() {
    let mut world = World::new().await;
    let id = world.deploy("web:v2").await.unwrap();
    world.until_phase("analyzing", MINUTE).await;
    world.order(&id, Command::PromoteFull).await.unwrap();
    world.order(&id, abort()).await.unwrap();
    world.until_phase("rolled_back", 2 * MINUTE).await;
    assert_eq!(world.state().await.stable.release.image, "web:v1");
    world.assert_users_are_well();
}

#[tokio::test]
async fn a_paused_rollout_keeps_its_weight_and_its_time_until_it_is_resumed() {
    let mut world = World::new().await;
    let id = world.deploy("web:v2").await.unwrap();
    world.until_phase("analyzing", MINUTE).await;
    world.order(&id, Command::Pause).await.unwrap();
    let before = world.rollout().await;
    world.pass(20 * MINUTE).await;
    let after = world.rollout().await;
    assert_eq!(after.elapsed, before.elapsed);
    assert_eq!(world.published(), before.desired().weight);
    world.order(&id, Command::Resume).await.unwrap();
    world.until_phase("promoted", 3 * MINUTE).await;
}

#[tokio::test]
async fn undo_goes_back_at_once_and_drops_nothing() {
    let mut world = World::new().await;
    world.promote_now("web:v2").await;
    assert_eq!(world.state().await.stable.release.image, "web:v2");
    world.undo(None).await.unwrap();
    world.until_phase("promoted", MINUTE).await;
    assert_eq!(world.state().await.stable.release.image, "web:v1");
    world.assert_users_are_well();
    assert!(world.undo(Some(77)).await.is_err());
}

#[tokio::test]
async fn undo_pressed_again_never_puts_up_again_what_was_undone() {
    let mut world = World::new().await;
    world.promote_now("web:v2").await;
    world.promote_now("web:v3").await;
    let back = world.undo(None).await.unwrap();
    // Again while it goes there: it is the same way.
    assert_eq!(world.undo(None).await.unwrap(), back);
    world.until_phase("promoted", MINUTE).await;
    assert_eq!(world.state().await.stable.release.image, "web:v2");
    // The release that was undone is forward, and so is a newer one from further back.
    let forward = world.undo(Some(2)).await;
    assert!(
        matches!(forward, Err(RequestError::NotBack { ref rollout, .. }) if rollout.as_str() == "web-2"),
        "{forward:?}"
    );
    let further = world.undo(None).await.unwrap();
    world
        .until("promoted", MINUTE, |_, rollout| {
            rollout.id == further && rollout.phase == Phase::Promoted
        })
        .await;
    assert_eq!(world.state().await.stable.release.image, "web:v1");
    let last = world.undo(None).await;
    assert!(
        matches!(last, Err(RequestError::NoSuchRelease { .. })),
        "{last:?}"
    );
    assert!(matches!(
        world.undo(Some(1)).await,
        Err(RequestError::NotBack { .. })
    ));
    world.assert_users_are_well();
}

#[tokio::test]
async fn f32_two_who_undo_the_release_that_they_see_go_back_one_release() {
    let mut world = World::new().await;
    world.promote_now("web:v2").await;
    let seen = world.promote_now("web:v3").await;
    let back = world.undo_of(Some(&seen), None).await.unwrap();
    // While it goes there, and when it is there: the question on the other's screen is still about the release that is gone.
    assert_eq!(world.undo_of(Some(&seen), None).await.unwrap(), back);
    world.until_phase("promoted", MINUTE).await;
    for to in [None, Some(1)] {
        let late = world.undo_of(Some(&seen), to).await.unwrap_err();
        let words = "undo does nothing for web-2: it is not the newest rollout of web, web-3 is";
        assert_eq!(late.to_string(), words);
    }
    assert_eq!(world.state().await.stable.release.image, "web:v2");
    // Who sees where it is may go on.
    world.undo_of(Some(&back), None).await.unwrap();
    world.pass(MINUTE).await;
    assert_eq!(world.state().await.stable.release.image, "web:v1");
    let last = world.undo_of(Some(&seen), None).await;
    assert!(matches!(last, Err(RequestError::NotNow { .. })), "{last:?}");
}

#[tokio::test]
async fn undo_to_a_number_goes_back_over_several() {
    let mut world = World::new().await;
    world.promote_now("web:v2").await;
    world.promote_now("web:v3").await;
    world.undo(None).await.unwrap();
    world.until_phase("promoted", MINUTE).await;
    world.promote_now("web:v1").await;
    let id = world.undo(Some(1)).await.unwrap();
    world
        .until("promoted", MINUTE, |_, rollout| {
            rollout.id == id && rollout.phase == Phase::Promoted
        })
        .await;
    assert_eq!(world.state().await.stable.release.image, "web:v2");
}

#[tokio::test]
async fn what_is_left_over_of_an_ended_rollout_is_removed() {
    let mut world = World::new().await;
    let id = world.deploy("web:v2").await.unwrap();
    world.until_phase("analyzing", MINUTE).await;
    world
        .orchestrator
        .set_stop_pace(controller_testing::Pace::WhenTold);
    world.order(&id, abort()).await.unwrap();
    world.until_phase("rolled_back", 3 * MINUTE).await;
    assert_eq!(world.rollout().await.desired().canary, Placement::Absent);
    world
        .orchestrator
        .finish_stopping(&crate::world::service(), proxy_api::Arm::Canary);
    world.step().await;
    assert_eq!(world.state().await.canary, None);
}
