//! The controller dies, and the proxy: what runs goes on, and the next one goes on with it.

use std::time::Duration;

use controller_testing::eventually;
use friday::api::types::{Order, RolloutView};
use rollout::{Ending, Phase};
use system_tests::{Load, PATIENCE, Scene, is_alive, place};

/// Requests a second: enough for the judge to see a step through in seconds.
const RATE: u32 = 200;

/// How often the controller looks, and so how long something that happened may be unsaved.
const TICK: Duration = friday::reconciler::TICK;

/// Longest wait for a step to be judged.
const STEP_MAX: Duration = Duration::from_secs(90);

/// A scene whose service is under load, and whose judge knows what stable is like.
async fn under_load() -> (Scene, Load) {
    let scene = Scene::start().await;
    let load = scene.load(RATE);
    eventually(
        "the load runs",
        PATIENCE,
        async || load.outcome(),
        |seen| seen.answered > u64::from(RATE),
    )
    .await;
    (scene, load)
}

/// Kills the controller where it is, starts the next one, and checks that it goes on from there. `while_dead` is what
/// happens meanwhile.
async fn killed_and_started_again(
    scene: &mut Scene,
    before: &RolloutView,
    while_dead: impl AsyncFnOnce(&mut Scene),
) {
    let id = before.id.clone();
    let asked = tokio::time::Instant::now();
    let tasks = scene.tasks();
    scene.kill_controller();
    // What may have passed since `before` was said: until the kill, and since the turn that it was said of.
    let unseen = asked.elapsed() + 2 * TICK;
    let saved = scene.saved(&id).await.rollout;
    // Nothing that was said is lost, but what is less than a millisecond: whole ones are saved. It may have moved on
    // between the answer and the kill.
    let (kept, said) = (saved.elapsed.as_secs_f64(), before.elapsed_seconds);
    assert!(kept > said - 0.001, "{kept} s is less than {said} s");
    let here = place(&saved.phase);
    let weight = scene.weight().await;

    while_dead(scene).await;
    assert_eq!(
        scene.weight().await,
        weight,
        "the proxy goes on by its table"
    );

    let started = tokio::time::Instant::now();
    scene.start_controller().await;
    let after = scene.rollout(&id).await;
    let most = saved.phase.elapsed() + unseen + started.elapsed();
    if place(&after.phase) == here {
        assert!(
            after.phase.elapsed() >= saved.phase.elapsed(),
            "{:?} is less than {:?}",
            after.phase,
            saved.phase
        );
        assert!(
            after.phase.elapsed() <= most,
            "{:?} is more than {most:?}",
            after.phase.elapsed()
        );
        // The share is that of the step, as far as the canary's ready tasks can carry it; more may be ready by now.
        let mut seen = saved.clone();
        let ready = after.canary.tasks.iter().filter(|task| task.ready).count();
        seen.observed.canary_ready = u32::try_from(ready).expect("a handful");
        let expected = [&saved, &seen].map(|rollout| rollout.desired().weight.ratio() * 100.0);
        assert!(
            expected.contains(&after.weight.set_percent),
            "{} is of {expected:?}",
            after.weight.set_percent
        );
    } else {
        // It has done the next step already; then it did so from here.
        let moves = scene.moves(&id, 0).await;
        assert!(
            moves.iter().any(|(_, from, _)| place(from) == here),
            "{here} is in {moves:?}"
        );
    }
    let adopted = scene.tasks();
    let lost: Vec<&u32> = tasks
        .iter()
        .filter(|pid| !adopted.contains(pid) && is_alive(**pid))
        .collect();
    assert!(
        lost.is_empty(),
        "{lost:?} run and belong to nobody; before {tasks:?}, now {adopted:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f24_killed_at_every_phase_boundary_the_next_controller_goes_on_from_there_and_no_request_fails()
 {
    let (mut scene, load) = under_load().await;
    let stable = scene.tasks();
    assert_eq!(stable.len(), 2);
    let mut view = scene.deploy("worker:v2").await;
    let (id, canary) = (view.id.clone(), view.canary.release.id.clone());
    let mut seen = Vec::new();
    while view.ending.is_none() {
        let here = place(&view.phase);
        killed_and_started_again(&mut scene, &view, async |_| {}).await;
        if !matches!(view.phase, Phase::Promoting { .. }) {
            let tasks = scene.tasks();
            assert!(
                stable
                    .iter()
                    .all(|pid| tasks.contains(pid) && is_alive(*pid)),
                "{stable:?} are still {tasks:?}"
            );
        }
        seen.push(view.phase.name());
        let what = format!("it moves on from {here}");
        view = scene
            .until(&id, &what, STEP_MAX, |view| place(&view.phase) != here)
            .await;
    }
    assert_eq!(view.ending, Some(Ending::Promoted), "{}", view.message);
    let steps = seen.iter().filter(|name| **name == "analyzing").count();
    assert_eq!(steps, 3, "{seen:?}");
    seen.dedup();
    assert_eq!(
        seen,
        ["deploying", "analyzing", "baking", "warm", "promoting"]
    );
    // The log knows of no way but forward, and of none twice.
    let places: Vec<String> = scene
        .moves(&id, 0)
        .await
        .iter()
        .map(|(_, _, to)| place(to))
        .collect();
    let mut unique = places.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), places.len(), "{places:?}");

    scene.until_weight(0).await;
    let outcome = load.end().await;
    assert_eq!(outcome.failed, 0, "{outcome:#?}");
    assert!(outcome.by_release[canary.as_str()] > 500, "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f24_three_seconds_without_a_controller_do_not_count_and_no_request_fails() {
    let (mut scene, load) = under_load().await;
    let view = scene.deploy("worker:v2").await;
    let quarter = |view: &RolloutView| matches!(view.phase, Phase::Analyzing { step: 1, .. });
    let view = scene.until(&view.id, "25 %", STEP_MAX, quarter).await;
    scene.until_weight(2_500).await;
    let canary = view.canary.release.id.clone();
    let before = load.outcome();
    let waited = tokio::time::Instant::now();
    killed_and_started_again(&mut scene, &view, async |_| {
        let three_seconds = before.answered + 3 * u64::from(RATE);
        let what = "requests of three seconds are answered";
        eventually(
            what,
            PATIENCE,
            async || load.outcome(),
            |seen| seen.answered >= three_seconds,
        )
        .await;
    })
    .await;
    assert!(
        waited.elapsed() > Duration::from_secs(2),
        "the controller was away for {:?}",
        waited.elapsed()
    );
    let since = load.outcome();
    let count = |outcome: &system_tests::Outcome| {
        outcome
            .by_release
            .get(canary.as_str())
            .copied()
            .unwrap_or(0)
    };
    assert!(
        count(&since) > count(&before),
        "the canary got its share meanwhile"
    );
    let ended = scene
        .until(&view.id, "it ends", 2 * STEP_MAX, |view| {
            view.ending.is_some()
        })
        .await;
    assert_eq!(ended.ending, Some(Ending::Promoted), "{}", ended.message);
    let outcome = load.end().await;
    assert_eq!(outcome.failed, 0, "{outcome:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f25_a_proxy_that_restarts_without_a_controller_serves_by_its_last_table() {
    let (mut scene, load) = under_load().await;
    let view = scene.deploy("worker:v2").await;
    let quarter = |view: &RolloutView| matches!(view.phase, Phase::Analyzing { step: 1, .. });
    let view = scene.until(&view.id, "25 %", STEP_MAX, quarter).await;
    scene.until_weight(2_500).await;
    scene.kill_controller();
    // Nobody sends while the proxy is away: without it there is nothing to answer.
    let outcome = load.end().await;
    assert_eq!(outcome.failed, 0, "{outcome:#?}");
    scene.kill_proxy();
    scene.start_proxy().await;
    assert_eq!(scene.weight().await, 2_500);

    let load = scene.load(RATE);
    let enough = |seen: &system_tests::Outcome| seen.by_release.values().sum::<u64>() >= 600;
    eventually(
        "600 tasks are done",
        PATIENCE,
        async || load.outcome(),
        enough,
    )
    .await;
    let seen = load.outcome();
    let total: u64 = seen.by_release.values().sum();
    let canary = seen
        .by_release
        .get(view.canary.release.id.as_str())
        .copied()
        .unwrap_or(0);
    // Binomial: 25 % of 600 are 150, one standard deviation is 10.6; beyond five of them is one case in a million.
    #[expect(clippy::cast_precision_loss, reason = "some hundreds")]
    let share = canary as f64 / total as f64;
    assert!((0.16..0.34).contains(&share), "{canary} of {total}");

    scene.start_controller().await;
    let after = scene.rollout(&view.id).await;
    assert!(after.ending.is_none(), "{}", after.message);
    let ended = scene
        .until(&view.id, "it ends", 2 * STEP_MAX, |view| {
            view.ending.is_some()
        })
        .await;
    assert_eq!(ended.ending, Some(Ending::Promoted), "{}", ended.message);
    let outcome = load.end().await;
    assert_eq!(outcome.failed, 0, "{outcome:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f24_a_rollback_that_was_only_decided_is_carried_out_by_the_next_controller() {
    let (mut scene, load) = under_load().await;
    let view = scene.deploy("worker:v2").await;
    let id = view.id.clone();
    scene
        .until(&id, "the first step", STEP_MAX, |view| {
            matches!(view.phase, Phase::Analyzing { .. })
        })
        .await;
    scene.until_weight(1_000).await;
    let stable = scene.tasks();
    scene
        .order(&id, Order::Abort)
        .await
        .expect("a running rollout can be aborted");
    scene.kill_controller();
    let saved = scene.saved(&id).await.rollout;
    assert!(
        matches!(saved.phase, Phase::RollingBack { .. }),
        "what was answered is saved: {:?}",
        saved.phase
    );

    scene.start_controller().await;
    let ended = scene
        .until(&id, "it ends", PATIENCE * 2, |view| view.ending.is_some())
        .await;
    assert_eq!(ended.ending, Some(Ending::Aborted), "{}", ended.message);
    scene.until_weight(0).await;
    eventually(
        "only stable's tasks are left",
        PATIENCE,
        async || scene.tasks(),
        |tasks| tasks.len() == 2,
    )
    .await;
    let left = scene.tasks();
    assert!(
        left.iter()
            .all(|pid| stable.contains(pid) && is_alive(*pid)),
        "{left:?} are of {stable:?}"
    );
    let outcome = load.end().await;
    assert_eq!(outcome.failed, 0, "{outcome:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f24_a_controller_that_is_told_to_stop_leaves_its_tasks_to_the_next_one() {
    let (mut scene, load) = under_load().await;
    let tasks = scene.tasks();
    let status = scene.stop_controller().await;
    assert!(status.success(), "{status}");
    scene.start_controller().await;
    assert_eq!(scene.tasks(), tasks);
    assert!(tasks.iter().all(|pid| is_alive(*pid)));
    let outcome = load.end().await;
    assert_eq!(outcome.failed, 0, "{outcome:#?}");
}
