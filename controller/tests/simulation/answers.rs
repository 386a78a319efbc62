//! What a release answers: one that answers other things than stable is rolled back by that, however quick it is.

use friday::spec::{self, ReadOptions};
use friday::words;
use rollout::judge::{Decision, Missing, Signal};
use rollout::{Cause, Duration, Ending, Judge};
use serde_json::Value;

use crate::world::{Behaviour, FRIDAY_YML, GOOD, WRONG, World, replays_the_same};

const MINUTE: Duration = Duration::from_secs(60);

/// A world whose deploys compare answers.
async fn world() -> World {
    let mut world = World::new().await;
    let text = format!("{FRIDAY_YML}guard:\n  answers: {{ header: X-Mood }}\n");
    let options = ReadOptions {
        plan: None,
        environment: None,
    };
    world.spec =
        spec::read(&text, "friday.yml", &options).unwrap_or_else(|findings| panic!("{findings:?}"));
    world
}

#[tokio::test]
async fn a_release_that_answers_the_same_is_promoted() {
    let mut world = world().await;
    world.behave("web:v2", GOOD).await;
    world.deploy("web:v2").await.unwrap();
    world.until_phase("promoted", 6 * MINUTE).await;
    let verdict = world.saved().await.verdict.unwrap();
    let kinds: Vec<&str> = verdict.kinds.iter().map(|kind| &*kind.name).collect();
    assert_eq!(kinds, ["glad", "sad"]);
    replays_the_same(&world, 10).await;
    world.assert_users_are_well();
}

#[tokio::test]
async fn a_release_that_answers_other_things_is_rolled_back_by_that_and_the_kind_is_named() {
    let mut world = world().await;
    world.behave("web:v2", WRONG).await;
    world.deploy("web:v2").await.unwrap();
    world.until_phase("analyzing", MINUTE).await;
    // What was seen of the answers outlives the controller.
    world.crash().await;
    world.until_phase("rolled_back", 3 * MINUTE).await;
    let saved = world.saved().await;
    assert_eq!(saved.rollout.ending(), Some(Ending::RolledBack));
    assert_eq!(
        saved.rollout.cause(),
        Some(&Cause::Evidence {
            signal: "answers".into()
        })
    );
    let verdict = saved.verdict.unwrap();
    let Decision::Fail {
        signal: Signal::Answers { kind, .. },
        ..
    } = &verdict.decision
    else {
        panic!("{:?}", verdict.decision)
    };
    assert_eq!(kind, "sad");
    let message = words::message(&saved.rollout, Some(&verdict));
    let begin = "rolled back to web:v1: the canary answers other things than stable: ";
    assert!(message.starts_with(begin), "{message}");
    replays_the_same(&world, 3).await;
}

#[tokio::test]
async fn no_gate_opens_while_stable_names_no_kind() {
    let mut world = world().await;
    // The canary is the first to send the header.
    let mute = Behaviour { sad: None, ..GOOD };
    world.behave("web:v1", mute).await;
    world.deploy("web:v2").await.unwrap();
    world.until_phase("analyzing", MINUTE).await;
    // The hold of at most a minute is over, the deadline for evidence is not.
    world.pass(MINUTE + MINUTE / 2).await;
    let saved = world.saved().await;
    assert_eq!(saved.rollout.desired().weight.basis_points(), 1_000);
    let Decision::Inconclusive { missing } = saved.verdict.unwrap().decision else {
        panic!("decided")
    };
    let header = "x-mood".to_owned();
    assert!(
        missing.contains(&Missing::Answers { header }),
        "{missing:?}"
    );
}

#[tokio::test]
async fn what_was_saved_before_answers_were_compared_still_loads() {
    let world = world().await;
    let judge = Judge::new(&world.spec.guard, &rollout::judge::Baseline::default());
    let mut saved = serde_json::to_value(&judge).unwrap();
    let mut guard = serde_json::to_value(&world.spec.guard).unwrap();
    let drop_key = |value: &mut Value, key: &str| value.as_object_mut().unwrap().remove(key);
    assert!(drop_key(&mut saved, "kinds").is_some());
    assert!(drop_key(&mut guard, "answers").is_some());
    assert_eq!(serde_json::from_value::<Judge>(saved).unwrap(), judge);
    let guard: rollout::Guard = serde_json::from_value(guard).unwrap();
    assert_eq!(guard.answers, None);
}
