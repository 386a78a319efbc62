//! Whole releases, told: what happened, in order, compared with the file.

use std::fmt::Write as _;

use rollout::{Cause, Command, Duration, Placement, Rollout, Weight};

use crate::world::{FAILING, World, service};
use proxy_api::Arm;

/// Watches a release until it has ended, and tells each change.
async fn tell(world: &mut World, limit: Duration) -> String {
    let mut story = String::new();
    let mut before = String::new();
    let start = world.clock_seconds();
    let end = start + limit.as_secs_f64();
    loop {
        let rollout = world.rollout().await;
        let line = line(&rollout, world);
        if line != before {
            writeln!(story, "{:6.1} s  {line}", world.clock_seconds() - start).unwrap();
            before = line;
        }
        if rollout.phase.is_ended() {
            return story;
        }
        assert!(world.clock_seconds() < end, "not ended:\n{story}");
        world.step().await;
    }
}

fn line(rollout: &Rollout, world: &World) -> String {
    let phase = match &rollout.phase {
        rollout::Phase::Analyzing { step, .. } => format!("analyzing step {}", step + 1),
        rollout::Phase::Promoting { stage, .. } => format!("promoting: {stage:?}"),
        rollout::Phase::RollingBack { stage, cause, .. } => {
            format!("rolling back ({}): {stage:?}", why(cause))
        }
        rollout::Phase::RolledBack { cause } => format!("rolled back ({})", why(cause)),
        phase => phase.name().to_owned(),
    };
    let canary = match rollout.desired().canary {
        Placement::Absent => "no canary".to_owned(),
        Placement::Keep => "canary kept".to_owned(),
        Placement::Run { replicas, .. } => format!("canary {replicas}"),
    };
    let applied = world.proxies[0].weight().to_string();
    format!(
        "{phase:34} {canary:12} set {:>5}  applied {applied:>5}",
        rollout.desired().weight.to_string()
    )
}

fn why(cause: &Cause) -> String {
    match cause {
        Cause::Evidence { signal } => signal.clone(),
        cause => format!("{:?}", cause.ending()),
    }
}

impl World {
    fn clock_seconds(&self) -> f64 {
        use friday::clock::Clock as _;
        self.clock.elapsed().as_secs_f64()
    }
}

#[tokio::test]
async fn a_good_canary_is_promoted() {
    let mut world = World::new().await;
    world.deploy("web:v2").await.unwrap();
    insta::assert_snapshot!(tell(&mut world, Duration::from_secs(180)).await);
    world.assert_users_are_well();
    let state = world.state().await;
    assert_eq!(
        (state.stable.release.image.as_str(), state.canary),
        ("web:v2", None)
    );
}

#[tokio::test]
async fn a_bad_canary_is_rolled_back() {
    let mut world = World::new().await;
    world.behave("web:v2", FAILING).await;
    world.deploy("web:v2").await.unwrap();
    insta::assert_snapshot!(tell(&mut world, Duration::from_secs(60)).await);
    world.assert_users_are_well();
    let state = world.state().await;
    assert_eq!(
        (state.stable.release.image.as_str(), state.canary),
        ("web:v1", None)
    );
}

#[tokio::test]
async fn the_controller_dies_at_25_percent() {
    let mut world = World::new().await;
    world.deploy("web:v2").await.unwrap();
    let quarter = Weight::from_percent(25).unwrap();
    world
        .until("25 %", Duration::from_secs(60), |world, _| {
            world.published() == quarter
        })
        .await;
    world.pass(Duration::from_secs(4)).await;
    world.crash().await;
    insta::assert_snapshot!(tell(&mut world, Duration::from_secs(180)).await);
    world.assert_users_are_well();
}

#[tokio::test]
async fn a_person_aborts_while_stable_is_being_replaced() {
    let mut world = World::new().await;
    let id = world.deploy("web:v2").await.unwrap();
    world
        .orchestrator
        .set_ready_pace(controller_testing::Pace::WhenTold);
    world.orchestrator.make_ready(&service(), Arm::Canary);
    world.order(&id, Command::PromoteFull).await.unwrap();
    for _ in 0..8 {
        world.orchestrator.make_ready(&service(), Arm::Canary);
        world.step().await;
    }
    assert_eq!(world.rollout().await.phase.name(), "promoting");
    let by = Cause::Person {
        by: "bob".into(),
        reason: Some("numbers look odd".into()),
    };
    world.order(&id, Command::Abort(by)).await.unwrap();
    world
        .orchestrator
        .set_ready_pace(controller_testing::Pace::AtOnce);
    world.orchestrator.make_ready(&service(), Arm::Stable);
    insta::assert_snapshot!(tell(&mut world, Duration::from_secs(120)).await);
    world.assert_users_are_well();
    assert_eq!(world.state().await.stable.release.image, "web:v1");
}
