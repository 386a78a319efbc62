//! Who may ask the API for what, and what the event log says of it.

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use friday::audit::Audit;
use friday::auth::{NewToken, Role, Tokens};
use friday::store::Event;
use rollout::{Duration, RolloutId, Weight};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::api::answer;
use crate::world::{FRIDAY_YML, World};

/// A world that wants tokens, one of each role.
async fn guarded() -> (World, impl Fn(Role) -> String) {
    use Role::{Admin, Agent, Approver, Operator, Proxy, Viewer};
    let all = [Proxy, Agent, Viewer, Operator, Approver, Admin];
    let tokens = all.map(|role| NewToken::random(&format!("the-{role}"), role));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens");
    let lines: Vec<&str> = tokens.iter().map(|token| token.line.as_str()).collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let mut world = World::new().await;
    world.tokens = Some(Tokens::open(&file).unwrap());
    let token_of = move |role| {
        let found = tokens.iter().find(|token| token.role == role);
        found.unwrap().token.clone()
    };
    (world, token_of)
}

/// Asks with a token, while the loop turns.
async fn ask(
    world: &mut World,
    token: Option<&str>,
    method: &str,
    path: &str,
    body: Value,
) -> (StatusCode, Value) {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json");
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Body::from(body.to_string())).unwrap();
    let (head, body) = answer(world, request).await;
    if head.status == StatusCode::UNAUTHORIZED {
        assert_eq!(head.headers[header::WWW_AUTHENTICATE], "Bearer");
    }
    (head.status, body)
}

#[tokio::test]
async fn nobody_gets_in_without_a_token_and_everybody_sees_whether_it_lives() {
    let (mut world, _) = guarded().await;
    let paths = ["/metrics", "/api/v1/services", "/api/v1/openapi.json", "/x"];
    for path in paths {
        let (status, problem) = ask(&mut world, None, "GET", path, Value::Null).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(problem["code"], "token_missing");
        let (status, problem) = ask(&mut world, Some("x"), "GET", path, Value::Null).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(problem["code"], "token_unknown");
    }
    for path in ["/live", "/ready", "/"] {
        let (status, _) = ask(&mut world, None, "GET", path, Value::Null).await;
        assert_eq!(status, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn each_role_may_do_what_its_name_says_and_no_more() {
    let (mut world, token_of) = guarded().await;
    let orders = "/api/v1/rollouts/web-1/orders";
    let order = |order: &str| json!({ "order": order, "by": "ada" });
    let deploy = json!({ "spec": FRIDAY_YML, "image": "web:v2", "author": "ada" });
    let refused = [
        (
            Role::Viewer,
            "POST",
            "/api/v1/rollouts",
            deploy.clone(),
            "operate",
        ),
        (Role::Agent, "GET", "/api/v1/services", Value::Null, "read"),
        (Role::Proxy, "GET", "/metrics", Value::Null, "read-all"),
        (
            Role::Agent,
            "GET",
            "/api/v1/proxies/p1/table",
            Value::Null,
            "proxies",
        ),
        (
            Role::Operator,
            "POST",
            "/api/v1/proxies/p1/reports",
            Value::Null,
            "proxies",
        ),
        (
            Role::Proxy,
            "POST",
            "/api/v1/agents/n1/reports",
            Value::Null,
            "agents",
        ),
        (Role::Operator, "POST", orders, order("approve"), "approve"),
        (Role::Operator, "POST", orders, order("reject"), "approve"),
    ];
    for (role, method, path, body, rule) in refused {
        let token = token_of(role);
        let (status, problem) = ask(&mut world, Some(&token), method, path, body).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{role} {method} {path}");
        assert_eq!(problem["code"], "forbidden");
        let words = problem["detail"].as_str().unwrap();
        assert!(
            words.starts_with(&format!("rule {rule:?} takes")),
            "{words}"
        );
    }
    let viewer = token_of(Role::Viewer);
    let (status, _) = ask(&mut world, Some(&viewer), "GET", "/metrics", Value::Null).await;
    assert_eq!(status, StatusCode::OK);
    // It waits for the first table, which the loop may not have made yet.
    let table = "/api/v1/proxies/p1/table?wait_seconds=5";
    let (status, _) = ask(
        &mut world,
        Some(&token_of(Role::Proxy)),
        "GET",
        table,
        Value::Null,
    )
    .await;
    assert_eq!(status, StatusCode::OK);

    let operator = token_of(Role::Operator);
    let (status, made) = ask(
        &mut world,
        Some(&operator),
        "POST",
        "/api/v1/rollouts",
        deploy,
    )
    .await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    assert_eq!(made["author"], "the-operator (for ada)");
    world
        .until_phase("analyzing", Duration::from_secs(10))
        .await;
    // There is no gate to open; it is the loop that says so, and no rule.
    let approver = token_of(Role::Approver);
    let (status, _) = ask(
        &mut world,
        Some(&approver),
        "POST",
        orders,
        order("approve"),
    )
    .await;
    assert_eq!(status, StatusCode::CONFLICT);
    let (status, _) = ask(&mut world, Some(&operator), "POST", orders, order("abort")).await;
    assert_eq!(status, StatusCode::OK);
    let events = "/api/v1/rollouts/web-1/events";
    let (_, log) = ask(&mut world, Some(&viewer), "GET", events, Value::Null).await;
    let of_kind = |kind: &str| {
        let mut log = log.as_array().unwrap().iter();
        log.find(|event| event["kind"] == kind).unwrap()["author"].clone()
    };
    assert_eq!(of_kind("started"), "the-operator (for ada)");
    assert_eq!(of_kind("order"), "the-operator (for ada)");
    assert_eq!(world.published(), Weight::ZERO);
}

/// What the loop says to an order.
async fn order(world: &mut World, token: &str, order: &str) -> (StatusCode, String) {
    let path = "/api/v1/rollouts/web-1/orders";
    let body = json!({ "order": order, "by": "bob" });
    let (status, answer) = ask(world, Some(token), "POST", path, body).await;
    let words = answer["detail"].as_str().unwrap_or_default();
    (status, words.to_owned())
}

#[tokio::test]
async fn a_gate_is_opened_by_who_may_approve_whatever_the_order_is_called() {
    let (mut world, token_of) = guarded().await;
    let (operator, approver) = (token_of(Role::Operator), token_of(Role::Approver));
    let gated = FRIDAY_YML.replace(
        "  - { weight: 25%, hold: 10s..60s }\n",
        "  - { gate: release-managers }\n",
    );
    let deploy = json!({ "spec": gated, "image": "web:v2", "author": "ada" });
    let rollouts = "/api/v1/rollouts";
    let (status, made) = ask(&mut world, Some(&operator), "POST", rollouts, deploy).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let refused = async |world: &mut World, orders: &[&str]| {
        for name in orders {
            let (status, words) = order(world, &operator, name).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{name}: {words}");
            assert!(words.starts_with("rule \"approve\" takes"), "{words}");
        }
    };
    refused(&mut world, &["promote_full"]).await;
    world
        .until_phase("analyzing", Duration::from_secs(10))
        .await;
    refused(&mut world, &["promote_full"]).await;
    // To the gate, and no further; not by a pause in between either.
    assert_eq!(
        order(&mut world, &operator, "promote").await.0,
        StatusCode::OK
    );
    assert_eq!(world.rollout().await.phase.name(), "gated");
    refused(&mut world, &["promote", "promote_full", "approve"]).await;
    assert_eq!(
        order(&mut world, &operator, "pause").await.0,
        StatusCode::OK
    );
    refused(&mut world, &["promote_full", "approve"]).await;
    assert_eq!(
        order(&mut world, &operator, "resume").await.0,
        StatusCode::OK
    );
    assert_eq!(world.rollout().await.phase.name(), "gated");
    // What is paused goes on by `promote` too, to the same gate: that takes nobody's approval, and is none.
    for token in [&operator, &approver] {
        for (name, phase) in [("pause", "paused"), ("promote", "gated")] {
            let (status, words) = order(&mut world, token, name).await;
            assert_eq!(status, StatusCode::OK, "{name}: {words}");
            assert_eq!(world.rollout().await.phase.name(), phase);
        }
    }
    let events = world.events(&RolloutId::from_text("web-1")).await;
    let is_approval = |event: &Event| event.data["approves"] == true;
    assert!(!events.iter().any(is_approval), "{events:?}");
    assert_eq!(
        order(&mut world, &approver, "promote").await.0,
        StatusCode::OK
    );
    assert_eq!(world.rollout().await.phase.name(), "analyzing");
    // No gate is ahead.
    assert_eq!(
        order(&mut world, &operator, "promote").await.0,
        StatusCode::OK
    );
    let mut audit = Audit::default();
    for event in world.events(&RolloutId::from_text("web-1")).await {
        audit.take(&event);
    }
    assert_eq!(audit.finish()[0].approved_by, ["the-approver (for bob)"]);
}

#[tokio::test]
async fn who_may_not_approve_arms_no_full_release_before_the_approvals() {
    let (mut world, token_of) = guarded().await;
    let spec = format!("{FRIDAY_YML}environments: {{ production: {{ approvals: 1 }} }}\n");
    let deploy =
        json!({ "spec": spec, "image": "web:v2", "author": "ada", "environment": "production" });
    let operator = token_of(Role::Operator);
    let rollouts = "/api/v1/rollouts";
    let (status, made) = ask(&mut world, Some(&operator), "POST", rollouts, deploy).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let (status, words) = order(&mut world, &operator, "promote_full").await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{words}");
    assert!(words.contains("approvals that are missing"), "{words}");
    assert!(!world.rollout().await.full);
}

#[tokio::test]
async fn without_accounts_no_page_of_another_site_commands_it_by_a_name_of_its_own() {
    let (guarded, token_of) = guarded().await;
    let token = format!("Bearer {}", token_of(Role::Viewer));
    let open = World::new().await;
    for (world, path, host, expected) in [
        (&open, "/api/v1/services", "127.0.0.1:7070", StatusCode::OK),
        (
            &open,
            "/api/v1/services",
            "evil.example:7070",
            StatusCode::FORBIDDEN,
        ),
        (&open, "/live", "evil.example:7070", StatusCode::OK),
        // A token is proof enough, by whatever name.
        (
            &guarded,
            "/api/v1/services",
            "friday.example.com",
            StatusCode::OK,
        ),
    ] {
        let request = Request::builder()
            .uri(path)
            .header(header::HOST, host)
            .header(header::AUTHORIZATION, &token)
            .body(Body::empty())
            .unwrap();
        let answer = world.api().oneshot(request).await.unwrap();
        assert_eq!(answer.status(), expected, "{path} {host}");
    }
}
