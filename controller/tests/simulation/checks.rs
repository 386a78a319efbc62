//! Checks of the user's own: they roll back by their name, wait for data, and never hold the loop.

use std::sync::Arc;

use axum::http::Method;
use controller_testing::FakeMetricsSource;
use friday::clock::Clock as _;
use friday::metrics_source::Query;
use friday::reconciler::RequestError;
use friday::spec::{self, ReadOptions};
use friday::words;
use rollout::judge::{Decision, Missing, Signal};
use rollout::{Cause, Command, Duration, Ending, Weight};
use serde_json::json;

use crate::api::call;
use crate::world::{FRIDAY_YML, World, replays_the_same};

const MINUTE: Duration = Duration::from_secs(60);

const LAG: &str =
    r#"{ name: consumer lag, prometheus: 'max(lag{release="$release"})', max: 1000 }"#;
const COST: &str = r#"{ name: cost, prometheus: 'sum(rate(cost{arm="$arm"}[10s]))', above_stable: +25%, lag: 5s }"#;

/// A world whose deploys have this check, and a source in which all is well.
async fn world_with(check: &str) -> (World, Arc<FakeMetricsSource>) {
    let mut world = World::new().await;
    let text = format!("{FRIDAY_YML}guard:\n  checks:\n    - {check}\n");
    let options = ReadOptions {
        plan: None,
        environment: None,
    };
    world.spec =
        spec::read(&text, "friday.yml", &options).unwrap_or_else(|findings| panic!("{findings:?}"));
    let source = Arc::new(FakeMetricsSource::default());
    source.set("lag", Some(12.0));
    source.set("cost", Some(3.0));
    world.metrics = Some(Arc::clone(&source));
    // The controller starts again, now with somebody to ask.
    world.crash().await;
    world.step().await;
    (world, source)
}

#[tokio::test]
async fn a_release_that_keeps_its_checks_is_promoted() {
    for check in [LAG, COST] {
        let (mut world, _) = world_with(check).await;
        world.deploy("web:v2").await.unwrap();
        world.until_phase("promoted", 6 * MINUTE).await;
        replays_the_same(&world, 10).await;
        world.assert_users_are_well();
    }
}

#[tokio::test]
async fn a_release_beyond_a_limit_is_rolled_back_by_the_name_of_the_check() {
    let (mut world, source) = world_with(LAG).await;
    world.deploy("web:v2").await.unwrap();
    world.until_phase("analyzing", MINUTE).await;
    source.set("lag", Some(1200.0));
    world.until_phase("rolled_back", 2 * MINUTE).await;
    let saved = world.saved().await;
    assert_eq!(
        saved.rollout.cause(),
        Some(&Cause::Evidence {
            signal: "check".into()
        })
    );
    let verdict = saved.verdict.unwrap();
    let Decision::Fail {
        signal: Signal::Check { name, value, limit },
        ..
    } = &verdict.decision
    else {
        panic!("{:?}", verdict.decision)
    };
    assert_eq!(
        (name.as_str(), *value, *limit),
        ("consumer lag", 1200.0, 1000.0)
    );
    assert_eq!(
        words::message(&saved.rollout, Some(&verdict)),
        "rolled back to web:v1: check \"consumer lag\": the canary's value is 1200, its limit 1000"
    );
    replays_the_same(&world, 10).await;
}

#[tokio::test]
async fn the_board_is_told_how_each_check_stands() {
    let (mut world, source) = world_with(COST).await;
    world.deploy("web:v2").await.unwrap();
    let told = async |world: &mut World| {
        let (_, view) = call(world, Method::GET, "/api/v1/rollouts/web", None).await;
        view["checks"][0].clone()
    };
    assert_eq!(told(&mut world).await["state"], "no_data");
    world.pass(MINUTE).await;
    let kept = told(&mut world).await;
    assert_eq!(
        (
            &kept["name"],
            &kept["bound"],
            &kept["canary"],
            &kept["stable"],
            &kept["limit"],
            &kept["state"]
        ),
        (
            &json!("cost"),
            &json!("at most 25% above stable's"),
            &json!(3.0),
            &json!(3.0),
            &json!(3.75),
            &json!("kept")
        )
    );
    source.set("arm=\"canary\"", Some(4.0));
    world.pass(MINUTE).await;
    let beyond = told(&mut world).await;
    assert_eq!(
        (&beyond["canary"], &beyond["state"]),
        (&json!(4.0), &json!("beyond"))
    );
    assert!(
        beyond["message"]
            .as_str()
            .unwrap()
            .contains("to be at most 25% above stable's (3.75): beyond it"),
        "{beyond}"
    );
}

#[tokio::test]
async fn a_release_that_costs_more_than_stable_is_rolled_back() {
    let (mut world, source) = world_with(COST).await;
    // Signs are slow (150 s); a rollout of a minute is over by then.
    world.spec.bake.period = 6 * MINUTE;
    world.spec.deadlines.evidence = 10 * MINUTE;
    world.spec.deadlines.rollout = 20 * MINUTE;
    source.set("arm=\"canary\"", Some(4.0));
    world.deploy("web:v2").await.unwrap();
    world.until_phase("rolled_back", 9 * MINUTE).await;
    let saved = world.saved().await;
    assert_eq!(
        saved.rollout.cause(),
        Some(&Cause::Evidence {
            signal: "check".into()
        })
    );
    replays_the_same(&world, 10).await;
}

#[tokio::test]
async fn f02_a_query_without_a_result_never_promotes_and_says_so() {
    let (mut world, source) = world_with(LAG).await;
    source.set("lag", None);
    world.deploy("web:v2").await.unwrap();
    world.until_phase("analyzing", MINUTE).await;
    world.pass(MINUTE).await;
    assert_eq!(
        world.published(),
        Weight::from_percent(10).unwrap(),
        "holds its first weight"
    );
    let verdict = world.saved().await.verdict.unwrap();
    let said = words::verdict(&verdict);
    assert!(
        said.contains("data for check \"consumer lag\", which has had none for"),
        "{said}"
    );
    world.until_phase("rolled_back", 3 * MINUTE).await;
    assert_eq!(
        world.rollout().await.ending(),
        Some(Ending::InsufficientEvidence)
    );
    replays_the_same(&world, 10).await;
}

#[tokio::test]
async fn f03_f11_a_source_that_is_down_holds_the_rollout_and_then_ends_it_without_blaming_the_release()
 {
    let (mut world, source) = world_with(LAG).await;
    world.deploy("web:v2").await.unwrap();
    let quarter = Weight::from_percent(25).unwrap();
    world
        .until("25 %", 2 * MINUTE, |world, _| world.published() == quarter)
        .await;
    source.go_down();
    world.pass(MINUTE).await;
    assert_eq!(world.published(), quarter, "holds");
    let verdict = world.saved().await.verdict.unwrap();
    let seen = words::check(&verdict.checks[0]);
    assert!(
        seen.contains("12 on the canary") && seen.contains("no data since") && seen.contains("503"),
        "{seen}"
    );
    world.until_phase("rolled_back", 3 * MINUTE).await;
    let rollout = world.rollout().await;
    assert_eq!(rollout.ending().map(words::exit_code), Some(13));
    // It was not the release's fault, so it may try again as it is.
    source.get_well();
    world.deploy("web:v2").await.unwrap();
    world.until_phase("promoted", 6 * MINUTE).await;
}

#[tokio::test]
async fn f11_a_source_that_never_answers_does_not_stop_the_loop() {
    let (mut world, source) = world_with(LAG).await;
    source.get_stuck();
    let id = world.deploy("web:v2").await.unwrap();
    world.until_phase("analyzing", MINUTE).await;
    world.pass(MINUTE).await;
    assert_eq!(
        source.asked().len(),
        1,
        "nobody asks again who was not answered"
    );
    let verdict = world.saved().await.verdict.unwrap();
    let Decision::Inconclusive { missing } = &verdict.decision else {
        panic!("{:?}", verdict.decision)
    };
    assert!(
        missing
            .iter()
            .any(|missing| matches!(missing, Missing::Check { .. })),
        "{missing:?}"
    );
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
    assert_eq!(world.published(), Weight::ZERO);
}

#[tokio::test]
async fn f05_f08_a_step_waits_for_a_sample_of_its_own_and_nobody_asks_for_what_is_not_there_yet() {
    let (mut world, source) = world_with(
        r#"{ name: slow, prometheus: 'max(lag{release="$release"})', max: 1000, lag: 40s }"#,
    )
    .await;
    world.deploy("web:v2").await.unwrap();
    world.until_phase("analyzing", MINUTE).await;
    let mut seconds = 0;
    while world.published() == Weight::from_percent(10).unwrap() {
        assert!(seconds < 120);
        world.pass(Duration::from_secs(1)).await;
        seconds += 1;
        let (_, at) = source.asked().pop().unwrap();
        assert!(at + Duration::from_secs(40) <= world.clock.now());
    }
    assert!(
        seconds >= 40,
        "the first step lasted {seconds} s: its sample was of the time before it"
    );
}

#[tokio::test]
async fn asks_for_each_arm_with_its_own_release() {
    let (mut world, source) = world_with(
        r#"{ name: cost, prometheus: 'cost{r="$release",s="$service",e="$environment",a="$arm"}', above_stable: +25% }"#,
    )
    .await;
    world.deploy("web:v2").await.unwrap();
    world.until_phase("analyzing", MINUTE).await;
    world.pass(Duration::from_secs(1)).await;
    let rollout = world.rollout().await;
    let asked: Vec<String> = source.asked().into_iter().map(|(query, _)| query).collect();
    let expected = [
        (&rollout.canary.id, "canary"),
        (&rollout.stable.id, "stable"),
    ]
    .map(|(release, arm)| format!("cost{{r=\"{release}\",s=\"web\",e=\"test\",a=\"{arm}\"}}"));
    assert_eq!(asked, expected);
    assert!(Query::parse(&asked[0]).is_ok());
}

#[tokio::test]
async fn refuses_a_release_with_checks_that_nobody_could_answer() {
    let (mut world, _) = world_with(LAG).await;
    world.metrics = None;
    world.crash().await;
    world.step().await;
    let refused = world.deploy("web:v2").await.unwrap_err();
    assert!(
        matches!(refused, RequestError::NoMetricsSource { .. }),
        "{refused:?}"
    );
    let said = refused.to_string();
    assert!(
        said.contains("consumer lag") && said.contains("--prometheus URL"),
        "{said}"
    );
}
