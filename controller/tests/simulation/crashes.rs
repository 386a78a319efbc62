//! The controller dies, at every boundary and anywhere between.

use rollout::judge::SAMPLE_PERIOD;
use rollout::{Duration, Phase, Weight};

use crate::world::{FAILING, World, is_fenced};
use friday::store::{Change, Store};

/// Same step, same elapsed time, same weights.
fn same(before: &rollout::Rollout, after: &rollout::Rollout) {
    assert_eq!(after.phase, before.phase);
    assert_eq!(after.elapsed, before.elapsed);
    assert_eq!(after.desired(), before.desired());
}

#[tokio::test]
async fn f24_killed_at_every_phase_boundary_it_resumes_where_it_was() {
    let mut world = World::new().await;
    world.deploy("web:v2").await.unwrap();
    let mut seen = Vec::new();
    let mut last = String::new();
    while !world.rollout().await.phase.is_ended() {
        let rollout = world.rollout().await;
        let place = format!("{:?}", rollout.phase.at_start());
        if place != last {
            let weight = world.proxies[0].weight();
            world.crash().await;
            let resumed = world.rollout().await;
            same(&rollout, &resumed);
            assert_eq!(
                world.proxies[0].weight(),
                weight,
                "the proxy goes on by its table"
            );
            seen.push(rollout.phase.name());
            last = place;
        }
        world.step().await;
        assert!(seen.len() < 100);
    }
    assert_eq!(world.rollout().await.phase, Phase::Promoted);
    world.assert_users_are_well();
    seen.dedup();
    assert_eq!(
        seen,
        ["deploying", "analyzing", "baking", "warm", "promoting"]
    );
    assert!(world.store.verify().await.unwrap().is_ok());
}

#[tokio::test]
async fn f24_killed_anywhere_between_looking_saving_and_acting_nothing_is_lost() {
    // Every 3rd turn may die, after another number of waits, so that over a rollout every wait is hit.
    let mut world = World::new().await;
    world.deploy("web:v2").await.unwrap();
    let (mut turn, mut deaths) = (0u32, 0u32);
    let mut highest = Duration::ZERO;
    while !world.rollout().await.phase.is_ended() {
        turn += 1;
        if turn.is_multiple_of(3) {
            deaths += u32::from(world.step_and_die_after(turn / 3 % 7).await);
        } else {
            world.step().await;
        }
        let rollout = world.rollout().await;
        assert!(rollout.elapsed >= highest, "saved time never goes back");
        highest = rollout.elapsed;
        assert!(world.published() <= rollout.desired().weight.max(world.proxies[0].weight()));
        assert!(turn < 2_000, "{:?}", rollout.phase);
    }
    assert_eq!(world.rollout().await.phase, Phase::Promoted);
    assert!(deaths > 20, "only {deaths} deaths");
    world.assert_users_are_well();
    assert!(world.store.verify().await.unwrap().is_ok());
}

#[tokio::test]
async fn f24_controllers_that_never_live_as_long_as_between_two_samples_of_gauges_come_to_an_ending()
 {
    let mut world = World::new().await;
    world.deploy("web:v2").await.unwrap();
    world
        .until_phase("analyzing", Duration::from_secs(10))
        .await;
    // Long enough for a first sample; from then on the judge wants more of them.
    world.pass(SAMPLE_PERIOD + Duration::from_secs(2)).await;
    let mut turn = 0;
    while !world.rollout().await.phase.is_ended() {
        turn += 1;
        if turn % 8 == 0 {
            world.crash().await;
        }
        world.step().await;
        assert!(turn < 2_000, "{:?}", world.rollout().await.phase);
    }
    assert_eq!(world.rollout().await.phase, Phase::Promoted);
}

#[tokio::test]
async fn f24_evidence_is_neither_lost_nor_counted_twice_by_a_crash() {
    let mut world = World::new().await;
    world.behave("web:v2", FAILING).await;
    world.proxies[0].keep_history();
    let id = world.deploy("web:v2").await.unwrap();
    let mut turn = 0;
    while !world.rollout().await.phase.is_ended() {
        turn += 1;
        // Every epoch has another number of requests: a sum tells which of them are in it.
        world.proxies[0].rate = 400.0 + 40.0 * f64::from(turn % 17);
        if turn % 3 == 0 {
            world.crash().await;
        } else if turn % 5 == 0 {
            world.step_and_die_after(turn % 7).await;
        }
        world.step().await;
    }
    let mut judged = (0, 0);
    for event in world
        .events(&id)
        .await
        .iter()
        .filter(|event| event.kind == "verdict")
    {
        let block: rollout::Block = serde_json::from_value(event.data["block"].clone()).unwrap();
        judged.0 += block.canary.iter().map(|cell| cell.requests).sum::<u64>();
        judged.1 += block.stable.iter().map(|cell| cell.requests).sum::<u64>();
    }
    assert!(judged.0 > 0);
    let mut stretches = world.proxies[0].sums_with_the_first_canary_request();
    assert!(
        stretches.any(|sum| sum == judged),
        "{judged:?} is no unbroken stretch of what was routed"
    );
}

#[tokio::test]
async fn f25_a_proxy_that_restarts_while_the_controller_is_down_serves_by_its_last_table() {
    let mut world = World::new().await;
    world.deploy("web:v2").await.unwrap();
    let quarter = Weight::from_percent(25).unwrap();
    world
        .until("25 %", Duration::from_secs(60), |world, _| {
            world.proxies[0].weight() == quarter
        })
        .await;
    world.proxies[0].restart();
    world.crash().await;
    assert_eq!(world.proxies[0].weight(), quarter);
    world.step().await;
    assert_eq!(world.proxies[0].weight(), quarter);
    world
        .until_phase("promoted", Duration::from_secs(120))
        .await;
}

#[tokio::test]
async fn f26_a_controller_that_was_replaced_can_save_nothing() {
    let world = World::new().await;
    let ours = world.store.take_over().await.unwrap();
    let theirs = world.store.take_over().await.unwrap();
    assert!(theirs > ours);
    let now = crate::world::timestamp("2026-11-20T16:00:00Z");
    let event = friday::store::NewEvent {
        rollout: None,
        kind: "order",
        author: "late".into(),
        data: serde_json::json!({}),
    };
    let change = Change {
        events: vec![event],
        ..Change::default()
    };
    assert!(is_fenced(
        &world.store.save(ours, now, &change).await.unwrap_err()
    ));
    world.store.save(theirs, now, &change).await.unwrap();
}

#[tokio::test]
async fn every_verdict_comes_out_again_from_the_log_alone_also_over_crashes() {
    let mut world = World::new().await;
    world
        .behave(
            "web:v2",
            crate::world::Behaviour {
                fails: 0.004,
                slower: 1.05,
                ..crate::world::GOOD
            },
        )
        .await;
    let id = world.deploy("web:v2").await.unwrap();
    let mut turn = 0;
    while !world.rollout().await.phase.is_ended() {
        turn += 1;
        if turn % 40 == 0 {
            world.crash().await;
        }
        world.step().await;
    }
    let entries: Vec<friday::replay::Entry> = world
        .events(&id)
        .await
        .into_iter()
        .map(|event| friday::replay::Entry {
            seq: event.seq,
            at: event.at,
            kind: event.kind,
            data: event.data,
        })
        .collect();
    let replay = friday::replay::replay(&entries).unwrap();
    assert!(replay.verdicts > 10, "{}", replay.verdicts);
    assert_eq!(replay.differences, []);
    assert_eq!(replay.rules_then, [replay.rules_now]);

    let strict = rollout::Guard {
        alpha: 0.2,
        ..rollout::Guard::default()
    };
    let other = friday::replay::what_if(&entries, &strict).unwrap();
    assert_eq!(other.blocks, replay.verdicts);
    let mut altered = entries.clone();
    let at = altered
        .iter()
        .rposition(|entry| entry.kind == "verdict")
        .unwrap();
    altered[at].data["block"]["canary"][0]["bad"] = serde_json::json!(7);
    assert_eq!(
        friday::replay::replay(&altered).unwrap().differences.len(),
        1,
        "a changed block shows"
    );
}
