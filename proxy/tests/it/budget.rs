//! What second attempts may cost when everything fails: each costs what five requests save, and a hundred are saved at most.

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use proxy_api::{Arm, Outcome};
use serde_json::json;
use tokio::net::TcpStream;

use crate::controller::Controller;
use crate::world::{Backend, Client, Proxy, side, table};

/// What a second attempt costs, in requests.
const COST: u32 = 5;

/// Most that a worker saves, in requests.
const SAVED_MAX: u32 = 100 * COST;

/// Workers of the proxy in tests: each saves by itself.
const WORKERS: u32 = 2;

/// What a worker's requests have saved.
struct Savings(u32);

impl Savings {
    /// How many of so many requests in a row are made twice, if all of them fail.
    fn spend(&mut self, requests: u32) -> u32 {
        (0..requests)
            .filter(|_| {
                self.0 = (self.0 + 1).min(SAVED_MAX);
                let may_retry = self.0 >= COST;
                if may_retry {
                    self.0 -= COST;
                }
                may_retry
            })
            .count() as u32
    }

    /// So many succeed.
    fn save(&mut self, requests: u32) {
        self.0 = (self.0 + requests).min(SAVED_MAX);
    }
}

#[tokio::test]
async fn when_every_request_fails_a_hundred_and_then_each_fifth_is_made_twice_and_the_others_once()
{
    let dying = [Backend::killed().await, Backend::killed().await];
    let alive = Backend::named("alive").await;
    let failing = |seq| table(seq, &[dying[0].address, dying[1].address], json!({}));
    let proxy = Proxy::alone(&failing(1)).await;
    // One request after the other by one connection, so that all of them come to the same worker.
    let stream = TcpStream::connect(proxy.listen).await.unwrap();
    let (mut sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(driver);
    let mut get = async |times: u32, expected: StatusCode| {
        for _ in 0..times {
            sender.ready().await.unwrap();
            let request = Request::get("/").header("host", "a");
            let request = request.body(Empty::<Bytes>::new()).unwrap();
            let answer = sender.send_request(request).await.unwrap();
            assert_eq!(answer.status(), expected, "{answer:?}");
            let is_own = answer.headers().contains_key("x-friday-refusal");
            assert_eq!(is_own, expected == StatusCode::BAD_GATEWAY, "{answer:?}");
            answer.into_body().collect().await.unwrap();
        }
    };
    let retries = async || proxy.metric("friday_proxy_retries_total", &[]).await as u32;
    let attempts = || dying[0].hits() + dying[1].hits();
    let mut savings = Savings(SAVED_MAX);

    get(1_000, StatusCode::BAD_GATEWAY).await;
    let spent = savings.spend(1_000);
    assert!(spent <= SAVED_MAX / COST + 1_000 / COST, "{spent}");
    assert_eq!(retries().await, spent);
    assert_eq!(attempts(), 1_000 + spent);

    // Requests that succeed save for those that do not.
    proxy.put(&table(2, &[alive.address], json!({}))).await;
    get(300, StatusCode::OK).await;
    savings.save(300);
    assert_eq!(retries().await, spent, "nothing to retry");
    proxy.put(&failing(3)).await;
    get(200, StatusCode::BAD_GATEWAY).await;
    let spent = spent + savings.spend(200);
    assert_eq!(retries().await, spent);
    assert_eq!(attempts(), 1_200 + spent);

    for (metric, label) in [
        ("friday_proxy_requests_total", "outcome=\"reset\""),
        ("friday_proxy_refusals_total", "reason=\"reset\""),
        ("friday_proxy_answers_total", "code=\"5xx\""),
    ] {
        assert_eq!(proxy.metric(metric, &[label]).await, 1_200.0, "{metric}");
    }
    let failed = proxy.metric("friday_proxy_failed_to_user_total", &[]).await;
    assert_eq!(failed, 1_200.0);
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_fails_for_many_clients_at_a_time_is_asked_a_fifth_more_and_stable_no_more_than_it_would_be()
 {
    const REQUESTS: u32 = 2_000;
    const AT_A_TIME: usize = 16;
    // All saved at first, and what the requests save.
    let retries_max = WORKERS * SAVED_MAX / COST + REQUESTS / COST;
    let dying = [Backend::killed().await, Backend::killed().await];
    let addresses = [dying[0].address, dying[1].address];
    let stable = Backend::named("stable").await;
    let on_canary = |shield: &str| {
        let canary = side("v2", &addresses);
        json!({ "canary_bp": 10_000, "canary": canary, "shield": shield })
    };
    // Where the failing release is stable or has no shield, it is tried again; the shield needs no second attempt there.
    let cases = [
        (table(1, &addresses, json!({})), Arm::Stable, true),
        (
            table(1, &[stable.address], on_canary("off")),
            Arm::Canary,
            true,
        ),
        (
            table(1, &[stable.address], on_canary("idempotent")),
            Arm::Canary,
            false,
        ),
    ];
    for (routes, failing, is_retried) in cases {
        let controller = Controller::new(Some(routes)).await;
        let state = tempfile::tempdir().unwrap();
        let proxy = Proxy::led(controller.address, state.path()).await.unwrap();
        proxy.has(1).await;
        let (before, before_stable) = (dying[0].hits() + dying[1].hits(), stable.hits());
        let url = proxy.url("/");
        let clients = [Client::new(), Client::h2()];
        let mut answers = futures::stream::iter(0..REQUESTS)
            .map(|number| {
                let method = [Method::GET, Method::PUT][number as usize / 2 % 2].clone();
                let client = &clients[number as usize % 2];
                client.call(method, &url, &[], "work")
            })
            .buffer_unordered(AT_A_TIME);
        let expected = match is_retried {
            true => (StatusCode::BAD_GATEWAY, "reset"),
            false => (StatusCode::OK, ""),
        };
        while let Some(answer) = answers.next().await {
            let answer = answer.unwrap();
            let refusal = answer.header("x-friday-refusal");
            assert_eq!((answer.status, refusal), expected, "{answer:?}");
        }
        let attempts = dying[0].hits() + dying[1].hits() - before;
        let retries = proxy.metric("friday_proxy_retries_total", &[]).await as u32;
        println!("{failing:?}: {REQUESTS} requests, {attempts} attempts, {retries} retries");
        assert_eq!(attempts, REQUESTS + retries, "at the endpoints");
        if is_retried {
            assert!(
                (REQUESTS / COST - WORKERS..=retries_max).contains(&retries),
                "{retries}"
            );
            assert_eq!(stable.hits(), before_stable);
        } else {
            assert_eq!(retries, 0);
            assert_eq!(stable.hits() - before_stable, REQUESTS, "once each");
        }
        controller.all_ended(REQUESTS).await;
        controller.look(|ledger| {
            let mut counted = (0, 0);
            for cell in ledger.cells() {
                assert_eq!(cell.arm, failing);
                counted.0 += cell.outcomes[Outcome::Reset as usize];
                counted.1 += cell.failed_to_user;
            }
            let to_users = if is_retried { REQUESTS } else { 0 };
            assert_eq!(counted, (REQUESTS, to_users));
        });
        proxy.stop().await;
    }
}
