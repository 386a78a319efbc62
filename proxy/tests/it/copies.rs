//! What users do not see: copies of their requests for the canary, and a line for each in the access log.

use std::time::Duration;

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use proxy_api::BasisPoints;
use serde_json::{Value, json};

use friday_proxy::config::Source;

use crate::world::{Backend, Client, PATIENCE, Proxy, Seen, eventually, nobody, side, table, text};

#[tokio::test]
async fn copies_go_to_the_canary_and_only_stable_answers_and_is_waited_for() {
    let stable = Backend::named("stable").await;
    let seen = Seen::default();
    let noted = seen.clone();
    // Never answers: whoever waited for it would wait for ever.
    let canary = Backend::new(move |request: Request<Incoming>| {
        noted.note(request.headers());
        async move {
            std::future::pending::<()>().await;
            text(StatusCode::OK, "never")
        }
    })
    .await;
    let more = json!({ "canary": side("v2", &[canary.address]), "mirror_bp": 10_000, "timeouts": { "response_ms": 500 } });
    let proxy = Proxy::alone(&table(1, &[stable.address], more)).await;
    let client = Client::new();
    for method in [Method::GET, Method::POST] {
        let answer = client
            .call(method, &proxy.url("/"), &[], "body")
            .await
            .unwrap();
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (StatusCode::OK, "stable")
        );
    }
    eventually("both copies", async || (canary.hits() == 2).then_some(())).await;
    assert_eq!(seen.last()["x-friday-mirror"], "1");
    assert_eq!(stable.hits(), 2, "no copy at stable");
    eventually("the copies' end", async || {
        let failed = ["outcome=\"failed\""];
        (proxy.metric("friday_proxy_mirrored_total", &failed).await == 2.0).then_some(())
    })
    .await;
    // They are in no count that the judge reads.
    let canary = ["arm=\"canary\""];
    assert_eq!(
        proxy.metric("friday_proxy_requests_total", &canary).await,
        0.0
    );
    proxy.stop().await;
}

#[tokio::test]
async fn copies_that_are_too_many_are_left_out_and_counted() {
    let stable = Backend::named("stable").await;
    let silent = Backend::new(|_: Request<Incoming>| async {
        std::future::pending::<()>().await;
        text(StatusCode::OK, "never")
    })
    .await;
    let more = json!({ "canary": side("v2", &[silent.address]), "mirror_bp": 10_000 });
    let proxy = Proxy::alone(&table(1, &[stable.address], more)).await;
    let client = Client::new();
    for _ in 0..600 {
        let answer = client.get(&proxy.url("/"), &[]).await.unwrap();
        assert_eq!(answer.body, "stable");
    }
    let left_out = ["outcome=\"left_out\""];
    assert!(proxy.metric("friday_proxy_mirrored_total", &left_out).await >= 600.0 - 2.0 * 128.0);
    assert!(silent.hits() <= 2 * 128);
}

#[tokio::test]
async fn an_endpoint_that_takes_connections_and_never_answers_is_avoided_but_never_the_last() {
    let good = Backend::named("good").await;
    let silent = Backend::new(|_: Request<Incoming>| async {
        std::future::pending::<()>().await;
        text(StatusCode::OK, "never")
    })
    .await;
    let limits = json!({ "timeouts": { "response_ms": 100 } });
    let proxy = Proxy::alone(&table(1, &[good.address, silent.address], limits.clone())).await;
    let client = Client::new();
    let mut timeouts = 0;
    for _ in 0..200 {
        let answer = client.get(&proxy.url("/"), &[]).await.unwrap();
        timeouts += u32::from(answer.status == StatusCode::GATEWAY_TIMEOUT);
    }
    assert_eq!(timeouts, 3, "then it is avoided");
    assert_eq!(
        proxy.metric("friday_proxy_endpoint_healthy", &[]).await,
        1.0
    );
    let (status, _) = proxy.put(&table(2, &[silent.address], limits)).await;
    assert_eq!(status, StatusCode::OK);
    let before = silent.hits();
    let answer = client.get(&proxy.url("/"), &[]).await.unwrap();
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(
        silent.hits(),
        before + 1,
        "tried all the same: there is no other"
    );
}

#[tokio::test]
async fn every_request_has_a_line_in_the_access_log_without_what_may_be_secret() {
    let stable = Backend::named("stable").await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("routes.json");
    let path = directory.path().join("access.log");
    let more = json!({
        "match": { "host": "127.0.0.1", "path": "/" },
        "canary": side("v2", &[nobody().await]),
        "canary_bp": 10_000,
        "shield": "idempotent",
    });
    let routes = table(1, &[stable.address], more);
    std::fs::write(&file, serde_json::to_vec(&routes).unwrap()).unwrap();
    let log = (path.clone(), BasisPoints::ALL);
    let proxy = Proxy::with(Source::File(file), PATIENCE, |config| {
        config.access_log = Some(log);
    })
    .await
    .unwrap();
    let client = Client::new();
    let headers = [("cookie", "session=hush"), ("x-request-id", "mine")];
    client
        .get(&proxy.url("/a?token=hush"), &headers)
        .await
        .unwrap();
    client
        .get(&proxy.url("/b"), &[("host", "elsewhere.example")])
        .await
        .unwrap();
    proxy.stop().await;
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(!text.contains("hush"), "{text}");
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let [served, refused] = &lines[..] else {
        panic!("{text}")
    };
    let fields = |line: &Value, names: &[&str]| {
        names
            .iter()
            .map(|name| line[name].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        fields(
            served,
            &[
                "method",
                "path",
                "status",
                "end",
                "service",
                "arm",
                "release",
                "shielded",
                "request_id",
                "client"
            ]
        ),
        [
            json!("GET"),
            json!("/a"),
            json!(200),
            json!("ok"),
            json!("web"),
            json!("canary"),
            json!("v2"),
            json!(true),
            json!("mine"),
            json!("127.0.0.1")
        ]
    );
    assert_eq!(served["endpoint"], stable.address.to_string());
    let milliseconds = served["duration_ms"].as_f64().unwrap();
    assert!(milliseconds > 0.0 && milliseconds < Duration::from_secs(60).as_secs_f64() * 1e3);
    assert_eq!(
        fields(refused, &["status", "end", "refusal", "host"]),
        [
            json!(404),
            json!("refused"),
            json!("no_route"),
            json!("elsewhere.example")
        ]
    );
}

#[tokio::test]
async fn a_line_in_the_access_log_is_short_whatever_the_client_writes() {
    let stable = Backend::named("stable").await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("routes.json");
    let path = directory.path().join("access.log");
    let routes = table(1, &[stable.address], json!({}));
    std::fs::write(&file, serde_json::to_vec(&routes).unwrap()).unwrap();
    let log = (path.clone(), BasisPoints::ALL);
    let proxy = Proxy::with(Source::File(file), PATIENCE, |config| {
        config.access_log = Some(log);
    })
    .await
    .unwrap();
    let long = "x".repeat(15_000);
    let method = Method::from_bytes(long.as_bytes()).unwrap();
    let url = proxy.url(&format!("/{long}"));
    let headers = [("host", &*long), ("x-request-id", &*long)];
    let answer = Client::new().call(method, &url, &headers, "").await;
    assert_eq!(answer.unwrap().header("x-friday-refusal"), "bad_host");
    proxy.stop().await;
    let line: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (field, bytes) in [
        ("method", 128),
        ("host", 260),
        ("path", 1_024),
        ("request_id", 128),
    ] {
        let text = line[field].as_str().unwrap();
        assert_eq!(text.len(), bytes, "{field}");
    }
}
