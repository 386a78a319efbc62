//! The watch: the canary has every request, stable is kept warm and has none.

use friday::replay::{Entry, replay, what_if};
use rollout::judge::{Decision, Missing};
use rollout::{Cause, Duration, Ending, Weight};

use crate::world::{Behaviour, GOOD, World};

const MINUTE: Duration = Duration::from_secs(60);

/// A rollout whose canary got every request ten seconds ago, and has two minutes of it.
async fn warm() -> World {
    let mut world = World::new().await;
    world.spec.keep_warm = 2 * MINUTE;
    world.deploy("web:v2").await.unwrap();
    world.until_phase("warm", 3 * MINUTE).await;
    world.pass(Duration::from_secs(10)).await;
    assert_eq!(world.published(), Weight::ALL);
    world
}

async fn entries(world: &World) -> Vec<Entry> {
    let events = world.events(&world.rollout().await.id).await;
    let entry = |event: friday::store::Event| Entry {
        seq: event.seq,
        at: event.at,
        kind: event.kind,
        data: event.data,
    };
    events.into_iter().map(entry).collect()
}

#[tokio::test]
async fn a_canary_that_breaks_down_with_every_request_on_it_goes_back_in_one_flip() {
    let mut world = warm().await;
    let all_fail = Behaviour { fails: 1.0, ..GOOD };
    world.behave("web:v2", all_fail).await;
    // Nothing can be compared; five blocks of a second and a way there and back.
    world
        .until_phase("rolling_back", Duration::from_secs(8))
        .await;
    world.step().await;
    assert_eq!(world.published(), Weight::ZERO, "all at once");
    world.until_phase("rolled_back", MINUTE).await;
    let rollout = world.rollout().await;
    assert_eq!(rollout.ending(), Some(Ending::RolledBack));
    assert_eq!(
        rollout.cause(),
        Some(&Cause::Evidence {
            signal: "errors_alone".into()
        })
    );
    assert_eq!(world.state().await.stable.release.image, "web:v1");
    world.assert_users_are_well();

    let entries = entries(&world).await;
    let again = replay(&entries).unwrap();
    assert!(again.verdicts > 50, "{}", again.verdicts);
    assert_eq!(again.differences, []);
    let mut unwatched = world.spec.guard.clone();
    unwatched.watch = false;
    let otherwise = what_if(&entries, &unwatched).unwrap();
    assert!(otherwise.failed.is_some() && otherwise.fails.is_none());
    assert_eq!(
        otherwise.gates.len(),
        4,
        "three steps and the bake, and nothing to wait for after"
    );
}

#[tokio::test]
async fn a_good_canary_is_watched_and_promoted_also_when_the_controller_dies_meanwhile() {
    let mut world = warm().await;
    let twice_as_slow = Behaviour {
        slower: 1.6,
        ..GOOD
    };
    // A weaker comparison: a little of everything is forgiven, for it may be the world's doing.
    world.behave("web:v2", twice_as_slow).await;
    world.pass(MINUTE).await;
    world.crash().await;
    let verdict = world.saved().await.verdict.unwrap();
    let watched = verdict.watched.expect("it is watched");
    assert!(watched.errors_before.is_some());
    let Decision::Inconclusive { missing } = verdict.decision else {
        panic!("{:?}", verdict.decision)
    };
    assert!(matches!(missing[..], [Missing::Time { .. }]), "{missing:?}");
    world.until_phase("promoted", 3 * MINUTE).await;
    assert_eq!(world.state().await.stable.release.image, "web:v2");
    assert_eq!(replay(&entries(&world).await).unwrap().differences, []);
    world.assert_users_are_well();
}

#[tokio::test]
async fn a_canary_without_requests_in_the_watch_is_no_failure() {
    let mut world = warm().await;
    world.proxies[0].rate = 0.0;
    world.until_phase("promoted", 5 * MINUTE).await;
}

#[tokio::test]
async fn nobody_watches_where_the_guard_says_so() {
    let mut world = World::new().await;
    world.spec.keep_warm = Duration::from_secs(30);
    world.spec.guard.watch = false;
    world.deploy("web:v2").await.unwrap();
    world.until_phase("warm", 3 * MINUTE).await;
    let all_fail = Behaviour { fails: 1.0, ..GOOD };
    world.pass(Duration::from_secs(2)).await;
    world.behave("web:v2", all_fail).await;
    world.until_phase("promoted", 3 * MINUTE).await;
}
