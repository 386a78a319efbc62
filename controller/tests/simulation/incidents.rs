//! An open incident holds rollouts, and nothing else.

use axum::http::{Method, StatusCode};
use friday::incidents::INCIDENT_LIVE;
use friday::reconciler::RequestError;
use rollout::{Cause, Command, Duration, Ending, Weight};
use serde_json::{Value, json};

use crate::api::call;
use crate::world::{FAILING, World};

const MINUTE: Duration = Duration::from_secs(60);

fn message(status: &str, service: &str) -> Value {
    json!({
        "version": "4", "status": status, "receiver": "friday",
        "alerts": [{
            "status": status, "fingerprint": "c0ffee",
            "labels": { "alertname": "Down", "service": service, "friday_hold": "true" },
            "annotations": { "summary": "half of the answers fail" },
        }],
    })
}

async fn tell(world: &mut World, status: &str, service: &str) -> Value {
    let (code, answer) = call(
        world,
        Method::POST,
        "/api/v1/alerts",
        Some(message(status, service)),
    )
    .await;
    assert_eq!(code, StatusCode::OK, "{answer}");
    answer
}

async fn said(world: &mut World) -> String {
    let (_, seen) = call(world, Method::GET, "/api/v1/rollouts/web", None).await;
    seen["message"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn an_open_incident_holds_every_step_until_it_is_resolved() {
    let mut world = World::new().await;
    let id = world.deploy("web:v2").await.unwrap();
    let ten = Weight::from_percent(10).unwrap();
    world
        .until("10 %", MINUTE, |world, _| world.published() == ten)
        .await;
    // Of what there is no such service: it is about all of them.
    assert_eq!(tell(&mut world, "firing", "postgres").await["opened"], 1);
    for _ in 0..5 {
        world.pass(MINUTE).await;
        assert_eq!(tell(&mut world, "firing", "postgres").await["opened"], 0);
        assert_eq!(world.published(), ten);
    }
    assert!(
        said(&mut world)
            .await
            .contains("held by the incident Down: half of the answers fail")
    );
    for command in [Command::Resume, Command::Promote, Command::PromoteFull] {
        let refused = world.order(&id, command).await;
        assert!(
            matches!(refused, Err(RequestError::Held { .. })),
            "{refused:?}"
        );
    }
    let (_, health) = call(&mut world, Method::GET, "/api/v1/health", None).await;
    assert_eq!(health["incidents"][0]["alert"], "Down", "{health}");
    // The controller dies, and knows of it all the same.
    world.crash().await;
    world.pass(MINUTE).await;
    assert_eq!(world.published(), ten);
    assert_eq!(
        tell(&mut world, "resolved", "postgres").await["resolved"],
        1
    );
    world.until_phase("promoted", 3 * MINUTE).await;
    let orders: Vec<Value> = world
        .events(&id)
        .await
        .into_iter()
        .filter(|event| event.kind == "order" && event.author == "alertmanager")
        .map(|event| event.data["order"].clone())
        .collect();
    assert_eq!(orders, ["pause", "resume"]);
    world.assert_users_are_well();
}

#[tokio::test]
async fn rollbacks_go_on_under_an_incident() {
    let mut world = World::new().await;
    world.behave("web:v2", FAILING).await;
    tell(&mut world, "firing", "web").await;
    world.deploy("web:v2").await.unwrap();
    world.pass(20 * crate::world::STEP).await;
    assert_eq!(world.published(), Weight::ZERO, "not even the first step");
    tell(&mut world, "resolved", "web").await;
    world
        .until("it has requests", MINUTE, |world, _| {
            world.published() > Weight::ZERO
        })
        .await;
    tell(&mut world, "firing", "web").await;
    // The judge goes on.
    world.until_phase("rolled_back", 2 * MINUTE).await;
    assert_eq!(world.rollout().await.ending(), Some(Ending::RolledBack));
    // And so does a person.
    let second = world.deploy("web:v3").await.unwrap();
    world.pass(MINUTE).await;
    let cause = Cause::Person {
        by: "bob".into(),
        reason: None,
    };
    world.order(&second, Command::Abort(cause)).await.unwrap();
    world.until_phase("rolled_back", MINUTE).await;
    assert_eq!(world.rollout().await.ending(), Some(Ending::Aborted));
}

#[tokio::test]
async fn a_return_to_the_release_before_is_not_held() {
    let mut world = World::new().await;
    world.promote_now("web:v2").await;
    tell(&mut world, "firing", "web").await;
    world.undo(None).await.unwrap();
    world.until_phase("promoted", 2 * MINUTE).await;
    assert_eq!(world.state().await.stable.release.image, "web:v1");
}

#[tokio::test]
async fn an_alertmanager_that_is_dead_holds_nothing_for_ever() {
    let mut world = World::new().await;
    world.deploy("web:v2").await.unwrap();
    world.until_phase("analyzing", MINUTE).await;
    tell(&mut world, "firing", "web").await;
    world.pass(INCIDENT_LIVE - MINUTE).await;
    assert_eq!(world.rollout().await.phase.name(), "paused");
    world.until_phase("promoted", 6 * MINUTE).await;
}

#[tokio::test]
async fn what_a_person_paused_stays_paused() {
    let mut world = World::new().await;
    let id = world.deploy("web:v2").await.unwrap();
    world.until_phase("analyzing", MINUTE).await;
    tell(&mut world, "firing", "web").await;
    world.pass(MINUTE).await;
    world.order(&id, Command::Pause).await.unwrap();
    tell(&mut world, "resolved", "web").await;
    world.pass(MINUTE).await;
    assert_eq!(world.rollout().await.phase.name(), "paused");
    world.order(&id, Command::Resume).await.unwrap();
    world.until_phase("promoted", 3 * MINUTE).await;
}

#[tokio::test]
async fn a_message_that_is_none_is_refused_and_changes_nothing() {
    let mut world = World::new().await;
    for (body, code) in [
        (json!({ "version": "3", "alerts": [] }), "invalid_body"),
        (json!({ "version": "4" }), "invalid_body"),
        (json!("firing"), "invalid_body"),
    ] {
        let (status, answer) = call(&mut world, Method::POST, "/api/v1/alerts", Some(body)).await;
        assert!(status.is_client_error(), "{status} {answer}");
        assert_eq!(answer["code"], code);
    }
}
