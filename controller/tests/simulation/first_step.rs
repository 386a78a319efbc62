//! The step that a rollout begins with: large enough for the traffic that was there before it.

use friday::spec::{self, ReadOptions};
use friday::words;
use rollout::{Duration, Phase, Rollout};
use serde_json::{Value, json};

use crate::world::{FRIDAY_YML, World, replays_the_same};

const MINUTE: Duration = Duration::from_secs(60);

/// Requests a second of which 10 % would be too few for the canary, and 25 % not.
const FEW: f64 = 3.0;

/// A world that has had so many requests a second for so long.
async fn world_of(rate: f64, watched: Duration, more: &str) -> World {
    let mut world = World::new().await;
    let text = format!("{FRIDAY_YML}{more}");
    world.spec = spec::read(&text, "friday.yml", &ReadOptions::default())
        .unwrap_or_else(|findings| panic!("{findings:?}"));
    world.proxies[0].rate = rate;
    // What the first seconds were like is forgotten with the controller, once the proxy reported them.
    world.pass(Duration::from_secs(1)).await;
    world.crash().await;
    world.pass(watched).await;
    world
}

/// The step that a release of this world begins with.
async fn begin(world: &mut World) -> (usize, Rollout) {
    world.deploy("web:v2").await.unwrap();
    world.until_phase("analyzing", MINUTE).await;
    let rollout = world.rollout().await;
    let Phase::Analyzing { step, .. } = rollout.phase else {
        panic!("{:?}", rollout.phase)
    };
    (step, rollout)
}

async fn events_of(world: &World, kind: &str) -> Vec<Value> {
    let id = world.rollout().await.id;
    let events = world.events(&id).await.into_iter();
    events
        .filter(|event| event.kind == kind)
        .map(|event| event.data)
        .collect()
}

#[tokio::test]
async fn a_quiet_service_begins_with_the_first_step_that_brings_requests() {
    let mut world = world_of(FEW, MINUTE, "").await;
    let (step, rollout) = begin(&mut world).await;
    assert_eq!(step, 1);
    let skipped = rollout.skipped.unwrap();
    assert_eq!((skipped.steps, skipped.canary_rate_min), (1, 0.5));
    assert!(
        (skipped.requests_per_second - 3.0).abs() < 0.05,
        "{skipped:?}"
    );
    assert!(
        words::message(&rollout, None).ends_with(
            "; began with step 2 (25%): 10% of 3 requests/s would be fewer than 0.5/s for the canary"
        ),
        "{}",
        words::message(&rollout, None)
    );

    // The log has it once, with its numbers, before the step begins; and so has the next controller.
    world.crash().await;
    world.pass(MINUTE).await;
    let told = events_of(&world, "skipped").await;
    assert_eq!(
        told,
        [json!({
            "step": 1, "weight_percent": 25.0, "skipped_percent": [10.0],
            "requests_per_second": skipped.requests_per_second, "canary_rate_min": 0.5,
        })]
    );
    assert_eq!(
        events_of(&world, "phase").await[0]["to"]["step"],
        1,
        "no step before it"
    );
    assert_eq!(world.rollout().await.skipped, Some(skipped));
    replays_the_same(&world, 3).await;
    world.assert_users_are_well();
}

#[tokio::test]
async fn a_service_that_was_hardly_seen_begins_with_the_first_step_as_written() {
    // The controller has just started, and knows of ten seconds.
    let mut world = world_of(FEW, Duration::from_secs(10), "").await;
    let (step, rollout) = begin(&mut world).await;
    assert_eq!((step, rollout.skipped), (0, None));
    assert_eq!(events_of(&world, "skipped").await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_silent_service_begins_with_the_first_step_as_written() {
    let mut world = world_of(0.0, 5 * MINUTE, "").await;
    assert_eq!(begin(&mut world).await.0, 0);
}

#[tokio::test]
async fn a_guard_may_want_the_first_step_whatever_the_traffic() {
    let mut world = world_of(FEW, MINUTE, "guard: { start: first }\n").await;
    let (step, rollout) = begin(&mut world).await;
    assert_eq!((step, rollout.skipped), (0, None));
}

#[tokio::test]
async fn a_gate_is_not_passed_over_however_little_comes() {
    let mut world = world_of(FEW, MINUTE, "").await;
    let gated = FRIDAY_YML.replace(
        "  - { weight: 25%, hold: 10s..60s }\n",
        "  - { gate: release-managers }\n",
    );
    world.spec = spec::read(&gated, "friday.yml", &ReadOptions::default()).unwrap();
    assert_eq!(begin(&mut world).await.0, 0);
}
