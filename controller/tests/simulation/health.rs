//! What the controller says of itself: what it sees, saves and asks.

use std::sync::Arc;

use axum::http::{Method, StatusCode};
use controller_testing::{Call, FakeMetricsSource};
use rollout::{Command, Duration};
use serde_json::{Value, json};

use crate::api::call;
use crate::world::World;

async fn health(world: &mut World) -> Value {
    let (status, health) = call(world, Method::GET, "/api/v1/health", None).await;
    assert_eq!(status, StatusCode::OK, "{health}");
    health
}

#[tokio::test]
async fn what_is_well_is_told() {
    let mut world = World::new().await;
    let source = Arc::new(FakeMetricsSource::default());
    world.metrics = Some(Arc::clone(&source));
    world.pass(Duration::from_secs(2)).await;
    let told = health(&mut world).await;
    assert_eq!(
        told["services"],
        json!([{ "service": "web", "is_seen": true }])
    );
    assert_eq!(
        (&told["store"], &told["needs_token"]),
        (&Value::Null, &json!(false))
    );
    assert_eq!(told["metrics"], json!({}));
    let (_, proxies) = call(&mut world, Method::GET, "/api/v1/proxies", None).await;
    assert_eq!(told["generation"], proxies[0]["generation"]);
    source.go_down();
    let told = health(&mut world).await;
    assert!(told["metrics"]["trouble"].is_string(), "{told}");
}

#[tokio::test]
async fn f40_a_disk_that_is_full_is_told_until_there_is_room_again() {
    let mut world = World::new().await;
    let id = world.deploy("web:v2").await.unwrap();
    world
        .until_phase("analyzing", Duration::from_secs(60))
        .await;
    world.store.limit_pages(1);
    world.pass(Duration::from_secs(20)).await;
    let told = health(&mut world).await;
    let words = told["store"]["words"].as_str().unwrap_or_default();
    assert!(words.contains("the disk is full"), "{told}");
    assert!(told["store"]["seconds"].as_f64() > Some(1.0), "{told}");
    world.store.limit_pages(1 << 30);
    world.order(&id, Command::Pause).await.unwrap();
    world.pass(Duration::from_secs(2)).await;
    assert_eq!(health(&mut world).await["store"], Value::Null);
}

#[tokio::test]
async fn an_orchestrator_that_fails_is_told_until_it_answers_again() {
    let mut world = World::new().await;
    world.pass(Duration::from_secs(1)).await;
    world.orchestrator.fail(Call::Observe, 1000);
    world.pass(Duration::from_secs(1)).await;
    let told = health(&mut world).await;
    let service = &told["services"][0];
    assert_eq!(service["is_seen"], true, "what was known is in force");
    assert!(service["trouble"].is_string(), "{told}");
    world.orchestrator.fail(Call::Observe, 0);
    world.pass(Duration::from_secs(1)).await;
    assert_eq!(
        health(&mut world).await["services"][0]["trouble"],
        Value::Null
    );
}
