//! When upstreams fail: what is tried again, what is shielded, what is counted, and what the user sees.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use proxy_api::{Arm, Outcome};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::controller::Controller;
use crate::world::{Backend, Client, Proxy, eventually, nobody, side, table, text};

const KEY: (&str, &str) = ("idempotency-key", "k-1");

#[tokio::test]
async fn the_shield_replays_what_the_canary_failed_and_the_judge_still_sees_it() {
    let stable = Backend::named("stable").await;
    let canary = Backend::with_status("broken", StatusCode::INTERNAL_SERVER_ERROR).await;
    let more = json!({ "canary_bp": 10_000, "shield": "idempotent", "canary": side("v2", &[canary.address]) });
    let controller = Controller::new(Some(table(1, &[stable.address], more))).await;
    let state = tempfile::tempdir().unwrap();
    let proxy = Proxy::led(controller.address, state.path()).await.unwrap();
    proxy.has(1).await;
    let client = Client::new();
    let url = proxy.url("/");
    for _ in 0..10 {
        let answer = client.get(&url, &[]).await.unwrap();
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (StatusCode::OK, "stable")
        );
    }
    let keyed = client
        .call(Method::POST, &url, &[KEY], "work")
        .await
        .unwrap();
    assert_eq!(keyed.body, "stable", "a POST with a key is repeated");
    let bare = client.call(Method::POST, &url, &[], "work").await.unwrap();
    assert_eq!(bare.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(
        (bare.body.as_str(), bare.header("x-friday-refusal")),
        ("broken", "")
    );
    assert_eq!((canary.hits(), stable.hits()), (12, 11));

    controller.all_ended(12).await;
    controller.look(|ledger| {
        for cell in ledger.cells() {
            assert_eq!((cell.arm, cell.release.as_str()), (Arm::Canary, "v2"));
        }
        let bad: u32 = ledger
            .cells()
            .map(|cell| cell.outcomes[Outcome::ServerError as usize])
            .sum();
        let to_user: u32 = ledger.cells().map(|cell| cell.failed_to_user).sum();
        assert_eq!((bad, to_user), (12, 1));
    });
    assert_eq!(proxy.metric("friday_proxy_shielded_total", &[]).await, 11.0);
    assert_eq!(
        proxy.metric("friday_proxy_failed_to_user_total", &[]).await,
        1.0
    );
    proxy.stop().await;
}

#[tokio::test]
async fn without_the_shield_the_user_gets_what_the_canary_answers() {
    let stable = Backend::named("stable").await;
    let canary = Backend::with_status("broken", StatusCode::SERVICE_UNAVAILABLE).await;
    let more = json!({ "canary_bp": 10_000, "canary": side("v2", &[canary.address]) });
    let proxy = Proxy::alone(&table(1, &[stable.address], more)).await;
    let answer = Client::new().get(&proxy.url("/"), &[]).await.unwrap();
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "broken")
    );
    assert_eq!(stable.hits(), 0);

    let more = json!({ "canary_bp": 10_000, "canary": side("v2", &[nobody().await]) });
    proxy.put(&table(2, &[stable.address], more)).await;
    let answer = Client::new().get(&proxy.url("/"), &[]).await.unwrap();
    assert_eq!(
        (answer.status, answer.header("x-friday-refusal")),
        (StatusCode::BAD_GATEWAY, "connect")
    );
    assert_eq!(
        proxy
            .metric("friday_proxy_refusals_total", &["reason=\"connect\""])
            .await,
        1.0
    );
}

#[tokio::test]
async fn a_body_too_long_to_keep_is_passed_on_and_not_replayed() {
    let stable = Backend::named("stable").await;
    let canary = Backend::with_status("broken", StatusCode::INTERNAL_SERVER_ERROR).await;
    let more = json!({
        "canary_bp": 10_000, "shield": "idempotent", "canary": side("v2", &[canary.address]),
        "limits": { "replay_bytes_max": 4 },
    });
    let proxy = Proxy::alone(&table(1, &[stable.address], more)).await;
    let client = Client::new();
    let url = proxy.url("/");
    let short = client.call(Method::PUT, &url, &[], "1234").await.unwrap();
    assert_eq!(short.body, "stable");
    let long = client.call(Method::PUT, &url, &[], "12345").await.unwrap();
    assert_eq!(long.body, "broken");
}

#[tokio::test]
async fn f21_a_task_killed_mid_request_costs_no_idempotent_request_and_doubles_no_post() {
    let killed = Backend::killed().await;
    let alive = Backend::named("alive").await;
    for more in [
        json!({}),
        json!({ "canary_bp": 10_000, "canary": side("v2", &[killed.address, alive.address]) }),
    ] {
        let proxy = Proxy::alone(&table(1, &[killed.address, alive.address], more)).await;
        let client = Client::new();
        let url = proxy.url("/");
        let before = (killed.hits(), alive.hits());
        for _ in 0..40 {
            let answer = client.get(&url, &[]).await.unwrap();
            assert_eq!(answer.body, "alive");
        }
        let (tried, answered) = (killed.hits() - before.0, alive.hits() - before.1);
        assert_eq!(answered, 40);
        assert!((1..=40).contains(&tried), "each at most once: {tried}");
        let retries = proxy.metric("friday_proxy_retries_total", &[]).await;
        assert_eq!(retries as u32, tried);

        let before = (killed.hits(), alive.hits());
        let mut failed = 0;
        for _ in 0..40 {
            let answer = client.call(Method::POST, &url, &[], "pay").await.unwrap();
            if answer.status == StatusCode::BAD_GATEWAY {
                assert_eq!(answer.header("x-friday-refusal"), "reset");
                failed += 1;
            }
        }
        let (tried, answered) = (killed.hits() - before.0, alive.hits() - before.1);
        assert!(failed > 0);
        assert_eq!((tried, answered), (failed, 40 - failed), "sent once each");
    }
}

#[tokio::test]
async fn f21_an_idempotent_request_is_tried_at_most_twice_when_every_task_dies() {
    let (one, two, three) = (
        Backend::killed().await,
        Backend::killed().await,
        Backend::killed().await,
    );
    let all = [one.address, two.address, three.address];
    let proxy = Proxy::alone(&table(1, &all, json!({}))).await;
    let answer = Client::new().get(&proxy.url("/"), &[]).await.unwrap();
    assert_eq!(
        (answer.status, answer.header("x-friday-refusal")),
        (StatusCode::BAD_GATEWAY, "reset")
    );
    assert_eq!(one.hits() + two.hits() + three.hits(), 2);
}

#[tokio::test]
async fn a_dead_endpoint_is_left_at_once_and_probed_back() {
    let alive = Backend::named("alive").await;
    let dead = nobody().await;
    let proxy = Proxy::alone(&table(1, &[dead, alive.address], json!({}))).await;
    let client = Client::new();
    let url = proxy.url("/");
    // Also requests that may not be repeated: nothing was sent.
    let work = |_| client.call(Method::POST, &url, &[], "work");
    for answer in join_all((0..50).map(work)).await {
        assert_eq!(answer.unwrap().body, "alive");
    }
    let tried = proxy
        .metric("friday_proxy_requests_total", &["outcome=\"connect\""])
        .await;
    for _ in 0..100 {
        client.get(&url, &[]).await.unwrap();
    }
    let tried_since = proxy
        .metric("friday_proxy_requests_total", &["outcome=\"connect\""])
        .await;
    assert!(
        tried >= 1.0 && tried_since <= tried + 1.0,
        "avoided: {tried}, then {tried_since}"
    );

    let listener = TcpListener::bind(dead).await.unwrap();
    let back = Backend::on(listener, |_| async { text(StatusCode::OK, "back") });
    eventually("the endpoint gets requests again", async || {
        client.get(&url, &[]).await.unwrap();
        (back.hits() > 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_canary_that_is_down_altogether_fails_nobody_behind_the_shield() {
    let stable = Backend::named("stable").await;
    let canary = [nobody().await, nobody().await];
    let more =
        json!({ "canary_bp": 10_000, "shield": "idempotent", "canary": side("v2", &canary) });
    let controller = Controller::new(Some(table(1, &[stable.address], more))).await;
    let state = tempfile::tempdir().unwrap();
    let proxy = Proxy::led(controller.address, state.path()).await.unwrap();
    proxy.has(1).await;
    let client = Client::new();
    let url = proxy.url("/");
    for method in [Method::GET, Method::POST] {
        for answer in join_all((0..100).map(|_| client.call(method.clone(), &url, &[], "x"))).await
        {
            assert_eq!(answer.unwrap().body, "stable");
        }
    }
    controller.all_ended(200).await;
    controller.look(|ledger| {
        let failed: u32 = ledger
            .cells()
            .map(|cell| cell.outcomes[Outcome::Connect as usize])
            .sum();
        assert_eq!(
            failed, 200,
            "every failed attempt counts against the canary"
        );
        assert_eq!(
            ledger.cells().map(|cell| cell.failed_to_user).sum::<u32>(),
            0
        );
    });

    // A canary without any endpoint is the same.
    let more = json!({ "canary_bp": 10_000, "shield": "idempotent", "canary": side("v2", &[]) });
    controller.set(table(2, &[stable.address], more));
    proxy.has(2).await;
    assert_eq!(client.get(&url, &[]).await.unwrap().body, "stable");
    controller.all_ended(201).await;
    controller.look(|ledger| {
        let cell = ledger.cells().find(|cell| cell.endpoint.is_none()).unwrap();
        assert_eq!((cell.arm, cell.outcomes), (Arm::Canary, [0, 0, 0, 1, 0]));
    });
    proxy.stop().await;
}

#[tokio::test]
async fn a_silent_upstream_is_a_timeout_and_shielded_on_the_canary() {
    let stable = Backend::named("stable").await;
    let silent = Backend::new(|_| async {
        std::future::pending::<()>().await;
        text(StatusCode::OK, "never")
    })
    .await;
    let timeouts = json!({ "response_ms": 100 });
    let more = json!({
        "canary_bp": 10_000, "shield": "idempotent", "canary": side("v2", &[silent.address]), "timeouts": timeouts,
    });
    let proxy = Proxy::alone(&table(1, &[stable.address], more)).await;
    let client = Client::new();
    assert_eq!(
        client.get(&proxy.url("/"), &[]).await.unwrap().body,
        "stable"
    );
    proxy
        .put(&table(
            2,
            &[silent.address],
            json!({ "timeouts": timeouts }),
        ))
        .await;
    let answer = client.get(&proxy.url("/"), &[]).await.unwrap();
    assert_eq!(
        (answer.status, answer.header("x-friday-refusal")),
        (StatusCode::GATEWAY_TIMEOUT, "timeout")
    );
    for arm in ["arm=\"canary\"", "arm=\"stable\""] {
        let labels = [arm, "outcome=\"timeout\""];
        assert_eq!(
            proxy.metric("friday_proxy_requests_total", &labels).await,
            1.0
        );
    }
}

#[tokio::test]
async fn a_request_that_is_given_up_is_taken_back_from_the_network() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let timeouts = json!({ "response_ms": 100 });
    let address = listener.local_addr().unwrap();
    let proxy = Proxy::alone(&table(1, &[address], json!({ "timeouts": timeouts }))).await;
    let asking = tokio::spawn({
        let url = proxy.url("/");
        async move { Client::new().get(&url, &[]).await.unwrap().status }
    });
    let (mut upstream, _) = listener.accept().await.unwrap();
    let mut head = vec![0; 4096];
    assert!(upstream.read(&mut head).await.unwrap() > 0);
    assert_eq!(asking.await.unwrap(), StatusCode::GATEWAY_TIMEOUT);
    // Not closed in order: what was not delivered by now is thrown away, and arrives at no time.
    let ended = upstream.read(&mut head).await.unwrap_err();
    assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset);
    proxy.stop().await;
}

/// Halves of answers: of a known length, between two chunks, within a chunk, and where only the end is missing.
const HALVES: [&str; 4] = [
    "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n8\r\nhalf",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n",
];

#[tokio::test]
async fn an_answer_that_breaks_off_is_no_success_for_the_user_and_a_reset_of_the_release() {
    for half in HALVES {
        let broken = Backend::broken_off(half).await;
        let controller = Controller::new(Some(table(1, &[broken.address], json!({})))).await;
        let state = tempfile::tempdir().unwrap();
        let proxy = Proxy::led(controller.address, state.path()).await.unwrap();
        proxy.has(1).await;
        for client in [Client::new(), Client::h2()] {
            let answer = client.get(&proxy.url("/"), &[]).await;
            assert!(answer.is_err(), "{half:?}: {answer:?}");
        }
        // Where the end of the connection may be the end of the answer, it must be a bad one.
        let mut old = TcpStream::connect(proxy.listen).await.unwrap();
        let request = b"GET / HTTP/1.0\r\nhost: a\r\n\r\n";
        old.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        let ended = old.read_to_end(&mut answer).await;
        assert!(ended.is_err(), "{half:?}: {}", answer.escape_ascii());
        controller.all_ended(3).await;
        controller.look(|ledger| {
            for cell in ledger.cells() {
                let resets = [0, 0, 0, 0, cell.requests];
                assert_eq!(
                    (cell.outcomes, cell.failed_to_user),
                    (resets, cell.requests)
                );
            }
        });
        let broken_off = proxy
            .metric("friday_proxy_answers_total", &["code=\"failed\""])
            .await;
        assert_eq!(broken_off, 3.0, "{half:?}");
        assert_eq!(
            broken.hits(),
            3,
            "what the user has seen of it is not repeated"
        );
        proxy.stop().await;
    }
}

#[tokio::test]
async fn a_client_that_goes_away_is_not_held_against_the_release() {
    let silent = Backend::new(|_| async {
        std::future::pending::<()>().await;
        text(StatusCode::OK, "never")
    })
    .await;
    let controller = Controller::new(Some(table(1, &[silent.address], json!({})))).await;
    let state = tempfile::tempdir().unwrap();
    let proxy = Proxy::led(controller.address, state.path()).await.unwrap();
    proxy.has(1).await;
    let client = Client::new();
    let url = proxy.url("/");
    let impatient = tokio::time::timeout(Duration::from_millis(200), client.get(&url, &[])).await;
    assert!(impatient.is_err());
    drop(client);
    controller.all_ended(1).await;
    controller.look(|ledger| {
        let cell = ledger.cells().next().unwrap();
        assert_eq!((cell.outcomes, cell.failed_to_user), ([1, 0, 0, 0, 0], 0));
        assert_eq!(cell.latency.len(), 1, "the time until then is its latency");
    });
    proxy.stop().await;
}

#[tokio::test]
async fn a_kept_connection_that_the_server_closes_doubles_and_loses_nothing() {
    // Closes each connection after its second request, without saying so before.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let bodies = Arc::<Mutex<BTreeMap<String, u32>>>::default();
    let noted = Arc::clone(&bodies);
    let server = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let noted = Arc::clone(&noted);
            tokio::spawn(async move {
                let (served, enough) = (AtomicU32::new(0), Notify::new());
                let service = service_fn(|request: Request<Incoming>| {
                    let id = request.headers()["x-id"].to_str().unwrap().to_owned();
                    *noted.lock().unwrap().entry(id).or_default() += 1;
                    if served.fetch_add(1, Ordering::SeqCst) == 1 {
                        enough.notify_one();
                    }
                    async { Ok::<_, Infallible>(text(StatusCode::OK, "done")) }
                });
                let http = hyper::server::conn::http1::Builder::new();
                let connection = http.serve_connection(TokioIo::new(stream), service);
                tokio::select! {
                    // First, so that the second answer is written before the connection is closed.
                    biased;
                    _ = connection => {}
                    () = enough.notified() => {}
                }
            });
        }
    });
    let proxy = Proxy::alone(&table(1, &[address], json!({}))).await;
    let client = Client::new();
    let url = proxy.url("/");
    let mut failed = 0;
    for id in 0..300 {
        let id = id.to_string();
        let answer = client
            .call(Method::POST, &url, &[("x-id", &id)], "pay")
            .await
            .unwrap();
        failed += u32::from(answer.status != StatusCode::OK);
    }
    assert!(
        bodies.lock().unwrap().values().all(|&times| times == 1),
        "no POST twice"
    );
    // A server that closes while a request is on its way loses it, whatever the proxy does.
    assert!(failed < 60, "{failed} of 300");
    server.abort();
}

#[tokio::test]
async fn another_protocol_that_nobody_asked_for_is_a_reset_of_the_release() {
    const SWITCHED: &str =
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
    let stable = Backend::named("stable").await;
    let canary = Backend::broken_off(SWITCHED).await;
    let with = |shield: &str| json!({ "canary_bp": 10_000, "canary": side("v2", &[canary.address]), "shield": shield });
    let controller = Controller::new(Some(table(1, &[stable.address], with("off")))).await;
    let state = tempfile::tempdir().unwrap();
    let proxy = Proxy::led(controller.address, state.path()).await.unwrap();
    proxy.has(1).await;
    let client = Client::new();
    let answer = client.get(&proxy.url("/"), &[]).await.unwrap();
    let refusal = (answer.status, answer.header("x-friday-refusal"));
    assert_eq!(refusal, (StatusCode::BAD_GATEWAY, "reset"));
    controller.set(table(2, &[stable.address], with("idempotent")));
    proxy.has(2).await;
    let answer = client.get(&proxy.url("/"), &[]).await.unwrap();
    assert_eq!((answer.status, &*answer.body), (StatusCode::OK, "stable"));
    controller.all_ended(2).await;
    controller.look(|ledger| {
        let mut counted = ([0; 5], 0);
        for cell in ledger.cells() {
            assert_eq!(cell.arm, Arm::Canary);
            for (sum, count) in counted.0.iter_mut().zip(cell.outcomes) {
                *sum += count;
            }
            counted.1 += cell.failed_to_user;
        }
        assert_eq!(counted, ([0, 0, 0, 0, 2], 1), "{ledger:?}");
    });
    proxy.stop().await;
}
