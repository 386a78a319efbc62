//! What callers of the HTTP API are told.

use axum::body::Body;
use axum::http::response::Parts;
use axum::http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::world::{FRIDAY_YML, World};
use rollout::Duration;

/// Sends one request, while the loop turns.
pub(crate) async fn call(
    world: &mut World,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> (StatusCode, Value) {
    let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .body(body)
        .unwrap();
    let (head, body) = answer(world, request).await;
    (head.status, body)
}

/// The answer to a request, its body read as JSON, while the loop turns.
pub(crate) async fn answer(world: &mut World, request: Request<Body>) -> (Parts, Value) {
    let mut answering = std::pin::pin!(world.api().oneshot(request));
    let answer = loop {
        // A poll hands a request to the loop, if there is one; a turn answers it.
        tokio::select! {
            biased;
            answer = &mut answering => break answer.unwrap(),
            () = tokio::task::yield_now() => {}
        }
        world.step().await;
    };
    let (head, body) = answer.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    (head, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

fn deploy(image: &str, spec: &str) -> Value {
    json!({ "spec": spec, "image": image, "author": "ada" })
}

#[tokio::test]
async fn starts_moves_and_tells_a_rollout() {
    let mut world = World::new().await;
    let (status, made) = call(
        &mut world,
        Method::POST,
        "/api/v1/rollouts",
        Some(deploy("web:v2", FRIDAY_YML)),
    )
    .await;
    assert_eq!(
        (status, made["id"].as_str()),
        (StatusCode::CREATED, Some("web-1")),
        "{made}"
    );
    world
        .until_phase("analyzing", Duration::from_secs(10))
        .await;
    let (_, seen) = call(&mut world, Method::GET, "/api/v1/rollouts/web", None).await;
    assert_eq!(seen["phase"]["name"], "analyzing");
    assert_eq!(seen["weight"]["set_percent"], 10.0);
    assert_eq!(seen["steps"][0]["state"], "current");
    let order = json!({ "order": "abort", "by": "bob", "reason": "numbers look odd" });
    let (status, seen) = call(
        &mut world,
        Method::POST,
        "/api/v1/rollouts/web-1/orders",
        Some(order.clone()),
    )
    .await;
    assert_eq!(
        (status, &seen["weight"]["set_percent"]),
        (StatusCode::OK, &json!(0.0))
    );
    world
        .until_phase("rolled_back", Duration::from_secs(60))
        .await;
    let (status, problem) = call(
        &mut world,
        Method::POST,
        "/api/v1/rollouts/web-1/orders",
        Some(order),
    )
    .await;
    assert_eq!(
        (status, problem["code"].as_str()),
        (StatusCode::CONFLICT, Some("not_now")),
        "{problem}"
    );
    let (_, events) = call(
        &mut world,
        Method::GET,
        "/api/v1/rollouts/web-1/events?limit=1000",
        None,
    )
    .await;
    let kinds: Vec<_> = events
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds.first(), Some(&"started"));
    let at = kinds
        .iter()
        .position(|kind| *kind == "order")
        .expect("the order is in the log");
    assert_eq!(events[at]["author"], "bob");
    assert_eq!(events[at]["data"]["reason"], "numbers look odd");
}

#[tokio::test]
async fn refuses_what_cannot_be_and_says_what_can() {
    let mut world = World::new().await;
    let cases = [
        (
            Method::GET,
            "/api/v1/rollouts/nope",
            None,
            404,
            "services: web",
        ),
        (
            Method::GET,
            "/api/v1/rollouts/web",
            None,
            404,
            "friday deploy",
        ),
        (Method::GET, "/api/v1/nope", None, 404, "openapi.json"),
        (
            Method::POST,
            "/api/v1/rollouts",
            Some(deploy("web:v9", FRIDAY_YML)),
            422,
            "web:v9",
        ),
        (
            Method::POST,
            "/api/v1/rollouts",
            Some(deploy("web:v1", FRIDAY_YML)),
            409,
            "already",
        ),
        (
            Method::POST,
            "/api/v1/rollouts",
            Some(deploy("web:v2", "servise: web\n")),
            422,
            "friday.yml:1",
        ),
        (
            Method::POST,
            "/api/v1/rollouts",
            Some(deploy(" ", FRIDAY_YML)),
            422,
            "image",
        ),
        (
            Method::POST,
            "/api/v1/rollouts",
            Some(json!({ "imagine": 1 })),
            422,
            "imagine",
        ),
        (
            Method::POST,
            "/api/v1/rollouts/web-7/orders",
            Some(json!({ "order": "pause", "by": "bob" })),
            404,
            "web-7",
        ),
        (
            Method::POST,
            "/api/v1/services/nope/undo",
            Some(json!({ "by": "bob" })),
            404,
            "known: web",
        ),
        (
            Method::POST,
            "/api/v1/services/web/undo",
            Some(json!({ "by": "bob" })),
            404,
            "earlier release",
        ),
        (
            Method::GET,
            "/api/v1/proxies/p/table?generation=x",
            None,
            400,
            "3.14",
        ),
        (
            Method::GET,
            "/api/v1/rollouts?limit=many",
            None,
            400,
            "limit",
        ),
    ];
    for (method, path, body, status, words) in cases {
        let (seen, problem) = call(&mut world, method.clone(), path, body).await;
        assert_eq!(seen.as_u16(), status, "{method} {path}: {problem}");
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(words), "{method} {path}: {detail}");
        assert_eq!(problem["status"], status);
    }
}

#[tokio::test]
async fn who_watches_is_asked_again_after_a_while() {
    let mut world = World::new().await;
    world.deploy("web:v2").await.unwrap();
    let watch = Request::get("/api/v1/stream?rollout=web").body(Body::empty());
    let answer = world.api().oneshot(watch.unwrap()).await.unwrap();
    let mut body = answer.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(first.starts_with(b"event: rollout"));
    world.clock.pass(Duration::from_secs(15 * 60));
    let ends = async { while body.frame().await.is_some() {} };
    let ends = tokio::time::timeout(Duration::from_secs(5), ends).await;
    ends.expect("the stream ends, before another heartbeat");
}

#[tokio::test]
async fn keeps_no_label_that_is_long_or_has_lines() {
    let mut world = World::new().await;
    let long = "x".repeat(256);
    for field in ["environment", "commit", "plan"] {
        for label in ["", "two\nlines", long.as_str()] {
            let mut body = deploy("web:v2", FRIDAY_YML);
            body[field] = json!(label);
            let (status, problem) =
                call(&mut world, Method::POST, "/api/v1/rollouts", Some(body)).await;
            assert_eq!(status.as_u16(), 422, "{field} {label:?}");
            assert_eq!(problem["code"], "invalid_body", "{field} {label:?}");
        }
    }
    let mut body = deploy("web:v2", FRIDAY_YML);
    body["spec_name"] = json!("x".repeat(1_001));
    let (_, problem) = call(&mut world, Method::POST, "/api/v1/rollouts", Some(body)).await;
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.starts_with("spec_name must have 1 to"), "{problem}");
    let lock = json!({ "by": "ada", "reason": "migration", "environment": long });
    let path = "/api/v1/services/web/lock";
    let (status, _) = call(&mut world, Method::PUT, path, Some(lock)).await;
    assert_eq!(status.as_u16(), 422);
}

#[tokio::test]
async fn a_lock_is_of_a_service_that_there_is() {
    let mut world = World::new().await;
    let other = "web-b".parse().unwrap();
    // Known to the orchestrator, and about to be released for the first time.
    world.orchestrator.add_service(&other, "web:v1", 1);
    for (service, expected) in [("web", 200), ("web-b", 200), ("nope", 404)] {
        let path = format!("/api/v1/services/{service}/lock");
        let lock = json!({ "by": "ada", "reason": "migration" });
        let (status, answer) = call(&mut world, Method::PUT, &path, Some(lock)).await;
        assert_eq!(status.as_u16(), expected, "{service}: {answer}");
    }
}

#[tokio::test]
async fn the_document_names_every_path_that_is_served() {
    let mut world = World::new().await;
    let (_, document) = call(&mut world, Method::GET, "/api/v1/openapi.json", None).await;
    let paths: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
    insta::assert_json_snapshot!(paths);
}

#[tokio::test]
async fn tells_prometheus_where_the_rollout_is() {
    let mut world = World::new().await;
    world.deploy("web:v2").await.unwrap();
    world
        .until_phase("analyzing", Duration::from_secs(10))
        .await;
    world.pass(Duration::from_secs(3)).await;
    let request = Request::builder()
        .uri("/metrics")
        .body(Body::empty())
        .unwrap();
    let answer = world.api().oneshot(request).await.unwrap();
    let text = String::from_utf8(
        answer
            .into_body()
            .collect()
            .await
            .unwrap()
            .to_bytes()
            .to_vec(),
    )
    .unwrap();
    let release = world.rollout().await.canary.id.to_string();
    for line in [
        format!(
            "friday_rollout_weight_ratio{{environment=\"test\",kind=\"seen\",release=\"{release}\",service=\"web\"}} 0.1"
        ),
        format!(
            "friday_rollout_phase{{environment=\"test\",phase=\"analyzing\",release=\"{release}\",service=\"web\"}} 1"
        ),
        format!(
            "friday_rollout_phase{{environment=\"test\",phase=\"promoted\",release=\"{release}\",service=\"web\"}} 0"
        ),
    ] {
        assert!(text.contains(&line), "{line}\nnot in\n{text}");
    }
}
