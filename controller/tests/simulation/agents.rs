//! What nodes' agents say of the tasks, and what becomes of it.

use axum::http::{Method, StatusCode};
use friday::api::types::agents::{AgentReport, TaskUse};
use friday::orchestrator::Task;
use proxy_api::{Arm, BootId};
use rollout::{Duration, Ending};
use serde_json::{Value, json};

use crate::api::call;
use crate::world::World;

const MINUTE: Duration = Duration::from_secs(60);

/// The limit of every task.
const LIMIT: u64 = 256 << 20;

/// What an agent says: stable's tasks use 50 MiB, the canary's `canary`.
async fn report(world: &World, number: u64, canary: u64) -> AgentReport {
    let state = world.state().await;
    let used = |arm: Arm, bytes: u64| {
        move |task: &Task| TaskUse {
            id: task.id.clone(),
            name: task.id.clone(),
            service: "web".to_owned(),
            arm,
            release: task.release.to_string(),
            cpu_seconds: None,
            cpu_cores: None,
            cpu_cores_max: None,
            memory_bytes: Some(bytes),
            memory_bytes_max: Some(LIMIT),
        }
    };
    let of_canary = state.canary.iter().flat_map(|group| &group.tasks);
    let tasks = state.stable.tasks.iter().map(used(Arm::Stable, 50 << 20));
    AgentReport {
        node: "n1".to_owned(),
        node_id: None,
        boot: BootId(1),
        number,
        trouble: None,
        host: Default::default(),
        tasks: tasks
            .chain(of_canary.map(used(Arm::Canary, canary)))
            .collect(),
        tasks_left_out: 0,
    }
}

#[tokio::test]
async fn a_canary_that_its_nodes_agent_sees_at_its_limit_is_rolled_back() {
    let mut world = World::new().await;
    world.deploy("web:v2").await.unwrap();
    world.until_phase("analyzing", MINUTE).await;
    for number in 0..4 {
        let report = report(&world, number, 100 << 20).await;
        let now = world.now();
        world.agents.report("n1", report, now).unwrap();
        world.pass(Duration::from_secs(1)).await;
    }
    let (_, seen) = call(&mut world, Method::GET, "/api/v1/rollouts/web", None).await;
    assert_eq!(seen["phase"]["name"], "analyzing", "{}", seen["message"]);
    assert_eq!(seen["canary"]["tasks"][0]["memory_bytes"], 100 << 20);
    assert_eq!(seen["stable"]["signals"]["memory_bytes"], 100 << 20);

    let report = report(&world, 9, LIMIT - (4 << 20)).await;
    let now = world.now();
    world.agents.report("n1", report, now).unwrap();
    world.until_phase("rolled_back", MINUTE).await;
    let rollout = world.rollout().await;
    assert_eq!(rollout.ending(), Some(Ending::RolledBack));
    let (_, seen) = call(&mut world, Method::GET, "/api/v1/rollouts/web", None).await;
    let words = seen["message"].as_str().unwrap();
    assert!(words.contains("limit of memory"), "{words}");
}

#[tokio::test]
async fn f02_what_an_agent_no_longer_says_is_unknown_and_never_zero() {
    let mut world = World::new().await;
    let document = serde_json::to_value(report(&world, 1, 0).await).unwrap();
    let path = "/api/v1/agents/n1/reports";
    let (status, _) = call(&mut world, Method::POST, path, Some(document.clone())).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    world.step().await;
    let memory = |seen: &Value| seen[0]["stable"]["signals"]["memory_bytes"].clone();
    let (_, seen) = call(&mut world, Method::GET, "/api/v1/services", None).await;
    assert_eq!(memory(&seen), 100 << 20);
    world.pass(Duration::from_secs(6)).await;
    let (_, seen) = call(&mut world, Method::GET, "/api/v1/services", None).await;
    assert_eq!(memory(&seen), Value::Null);
    let (_, agents) = call(&mut world, Method::GET, "/api/v1/agents", None).await;
    assert_eq!(agents[0]["is_live"], false);
    assert_eq!(agents[0]["report"]["node"], "n1");

    let other = call(
        &mut world,
        Method::POST,
        "/api/v1/agents/n2/reports",
        Some(document),
    )
    .await;
    assert_eq!(
        (other.0, &other.1["code"]),
        (StatusCode::CONFLICT, &json!("report_refused"))
    );
    let large = json!({ "node": "n1", "padding": "x".repeat(600 << 10) });
    let (status, _) = call(&mut world, Method::POST, path, Some(large)).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
}
