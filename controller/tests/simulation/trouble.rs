//! Silence, crashes of tasks, jumping clocks, full disks, engines that fail.

use controller_testing::{Call, Pace};
use friday::reconciler::RequestError;
use friday::store::StoreError;
use proxy_api::Arm;
use rollout::{Cause, Command, Duration, Ending, Weight};

use crate::world::{FAILING, STEP, World, service, timestamp};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn f01_a_canary_without_requests_is_never_promoted() {
    let mut world = World::new().await;
    world.proxies[0].rate = 0.0;
    world.deploy("web:v2").await.unwrap();
    world.until_phase("rolled_back", 5 * MINUTE).await;
    assert_eq!(
        world.rollout().await.ending(),
        Some(Ending::InsufficientEvidence)
    );
    assert_eq!(world.state().await.stable.release.image, "web:v1");
}

#[tokio::test]
async fn f11_reports_that_stop_hold_the_rollout_and_then_end_it() {
    let mut world = World::new().await;
    world.deploy("web:v2").await.unwrap();
    world.until_phase("analyzing", MINUTE).await;
    world.proxies[0].linked = false;
    world.pass(MINUTE).await;
    assert_eq!(world.rollout().await.phase.name(), "analyzing", "holds");
    world.until_phase("rolled_back", 3 * MINUTE).await;
    assert_eq!(
        world.rollout().await.ending(),
        Some(Ending::InsufficientEvidence)
    );
}

#[tokio::test]
async fn f28_a_canary_that_never_becomes_ready_ends_with_its_words() {
    let mut world = World::new().await;
    world.orchestrator.set_ready_pace(Pace::WhenTold);
    world.deploy("web:v2").await.unwrap();
    for _ in 0..200 {
        world
            .orchestrator
            .end_task(&service(), Arm::Canary, "exited with code 70");
        world.step().await;
        assert_eq!(world.published(), Weight::ZERO);
    }
    let rollout = world.rollout().await;
    assert_eq!(rollout.ending(), Some(Ending::NotReady));
    let Some(Cause::NotReady {
        trouble: Some(words),
    }) = rollout.cause()
    else {
        panic!("{rollout:?}")
    };
    assert!(words.contains("exited with code 70"), "{words}");
}

#[tokio::test]
async fn f28_a_canary_that_keeps_dying_is_rolled_back() {
    let mut world = World::new().await;
    world.deploy("web:v2").await.unwrap();
    world.until_phase("analyzing", MINUTE).await;
    for _ in 0..3 {
        world.pass(Duration::from_secs(2)).await;
        world
            .orchestrator
            .end_task(&service(), Arm::Canary, "exited with code 70");
    }
    world.until_phase("rolled_back", MINUTE).await;
    assert_eq!(
        world.rollout().await.cause(),
        Some(&Cause::Evidence {
            signal: "restarts".into()
        })
    );
}

#[tokio::test]
async fn f29_nothing_fires_while_no_rollout_runs() {
    let mut world = World::new().await;
    let id = world.promote_now("web:v2").await;
    let events = world.events(&id).await.len();
    world.pass(60 * MINUTE).await;
    assert_eq!(world.events(&id).await.len(), events);
    assert_eq!(world.rollout().await.ending(), Some(Ending::Promoted));
}

#[tokio::test]
async fn f33_a_promotion_whose_update_fails_at_first_recovers() {
    let mut world = World::new().await;
    let id = world.deploy("web:v2").await.unwrap();
    world.until_phase("analyzing", MINUTE).await;
    world.orchestrator.fail(Call::EnsureStable, 20);
    world.orchestrator.fail(Call::EnsureNoCanary, 20);
    world.order(&id, Command::PromoteFull).await.unwrap();
    world.pass(Duration::from_secs(3)).await;
    assert_eq!(
        world.published(),
        Weight::ALL,
        "traffic stays on the copy that works (F18)"
    );
    world.until_phase("promoted", 2 * MINUTE).await;
    assert_eq!(world.state().await.stable.release.image, "web:v2");
    world.assert_users_are_well();
}

#[tokio::test]
async fn f39_a_wall_clock_that_jumps_moves_no_timer() {
    let seconds = async |jump: bool| {
        let mut world = World::new().await;
        world.deploy("web:v2").await.unwrap();
        let mut turns = 0;
        while !world.rollout().await.phase.is_ended() {
            if jump && turns % 20 == 0 {
                let hour = if turns % 40 == 0 {
                    "2026-11-20T17:00:00Z"
                } else {
                    "2026-11-20T15:00:00Z"
                };
                world.clock.set_now(timestamp(hour));
            }
            world.step().await;
            turns += 1;
        }
        (world.rollout().await.ending(), turns)
    };
    assert_eq!(seconds(true).await, seconds(false).await);
}

#[tokio::test]
async fn f40_a_full_disk_refuses_new_releases_and_still_rolls_back() {
    let mut world = World::new().await;
    world.behave("web:v2", FAILING).await;
    let id = world.deploy("web:v2").await.unwrap();
    world.until_phase("analyzing", MINUTE).await;
    world.store.limit_pages(1);
    // Fill what is left of the last pages.
    world.pass(Duration::from_secs(2)).await;
    let refused = world.deploy("web:v3").await;
    assert!(
        matches!(refused, Err(RequestError::Store(StoreError::Full { .. }))),
        "{refused:?}"
    );
    assert_eq!(world.in_memory().id, id, "the running one was not touched");
    world
        .order(
            &id,
            Command::Abort(Cause::Person {
                by: "bob".into(),
                reason: None,
            }),
        )
        .await
        .unwrap();
    world.step().await;
    assert_eq!(world.published(), Weight::ZERO);
    assert_eq!(world.proxies[0].weight(), Weight::ZERO);
    world.pass(MINUTE).await;
    assert_eq!(world.state().await.canary, None);
    // Room again: what happened is written down.
    world.store.limit_pages(1 << 30);
    world.pass(Duration::from_secs(2)).await;
    assert_eq!(world.in_memory().ending(), Some(Ending::Aborted));
    world.crash().await;
    world.step().await;
    assert_eq!(world.published(), Weight::ZERO);
    assert_eq!(world.rollout().await.ending(), Some(Ending::Aborted));
    assert!(
        friday::store::Store::verify(&*world.store)
            .await
            .unwrap()
            .is_ok()
    );
}

#[tokio::test]
async fn an_engine_that_does_not_answer_changes_nothing() {
    let mut world = World::new().await;
    world.deploy("web:v2").await.unwrap();
    let quarter = Weight::from_percent(25).unwrap();
    world
        .until("25 %", MINUTE, |world, _| {
            world.proxies[0].weight() == quarter
        })
        .await;
    let generation = world.proxies[0].generation();
    world.orchestrator.fail(Call::Observe, 8);
    world.pass(STEP * 3).await;
    assert_eq!(world.published(), quarter);
    assert_eq!(
        world.proxies[0].generation(),
        generation,
        "an error is no empty list"
    );
    world.until_phase("promoted", 3 * MINUTE).await;
}

#[tokio::test]
async fn f15_an_abort_while_somebody_scaled_stable_to_nothing_brings_it_back_before_traffic_moves()
{
    let mut world = World::new().await;
    let id = world.deploy("web:v2").await.unwrap();
    let half = Weight::from_percent(50).unwrap();
    world
        .until("50 %", 2 * MINUTE, |world, _| {
            world.proxies[0].weight() == half
        })
        .await;
    let before = world.state().await.stable.replicas;
    world.orchestrator.set_ready_pace(Pace::WhenTold);
    world.orchestrator.scale(&service(), 0);
    world.pass(STEP * 2).await;
    let bob = Cause::Person {
        by: "bob".into(),
        reason: None,
    };
    world.order(&id, Command::Abort(bob)).await.unwrap();
    world.pass(Duration::from_secs(2)).await;
    assert_eq!(world.state().await.stable.replicas, before);
    assert_eq!(world.published(), half, "nobody else is there yet");
    world.orchestrator.make_ready(&service(), Arm::Stable);
    world.pass(STEP * 2).await;
    assert_eq!(world.published(), Weight::ZERO);
    world.until_phase("rolled_back", MINUTE).await;
    assert_eq!(world.rollout().await.ending(), Some(Ending::Aborted));
    assert_eq!(world.state().await.stable.replicas, before);
}

#[tokio::test]
async fn a_proxy_that_lags_keeps_its_canary_until_it_has_let_go() {
    let mut world = World::new().await;
    world.add_proxy("p2");
    let id = world.deploy("web:v2").await.unwrap();
    world.until_phase("analyzing", MINUTE).await;
    world.pass(Duration::from_secs(2)).await;
    world.proxies[1].linked = false;
    world
        .order(
            &id,
            Command::Abort(Cause::Person {
                by: "bob".into(),
                reason: None,
            }),
        )
        .await
        .unwrap();
    world.pass(Duration::from_secs(3)).await;
    assert!(
        world
            .state()
            .await
            .canary
            .is_some_and(|group| group.replicas > 0),
        "p2 may still send to it"
    );
    world.proxies[1].linked = true;
    world.until_phase("rolled_back", MINUTE).await;
    world.assert_users_are_well();
}
