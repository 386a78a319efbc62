//! Large tables.

use std::time::Duration;

use futures::future::join_all;
use proxy_api::RouteTable;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::controller::Controller;
use crate::program::Running;
use crate::world::{Backend, Client, PATIENCE, Proxy, side};

/// Routes of ten endpoints each.
const ROUTES: u32 = 1_000;

/// The longest time a weight change may take to every proxy.
const REACHES_MAX: Duration = Duration::from_secs(1);

/// Who answers all requests by which table.
const ANSWERS: [&str; 2] = ["stable", "canary"];

/// The releases of the one route that is used, and of all others endpoints that nobody ever connects to.
struct Large {
    stable: Backend,
    canary: Backend,
}

impl Large {
    async fn new() -> Self {
        Self {
            stable: Backend::named(ANSWERS[0]).await,
            canary: Backend::named(ANSWERS[1]).await,
        }
    }

    fn at(&self, seq: u64) -> RouteTable {
        let route = |number: u32, share: u64| -> Value {
            let endpoint = |n: u32| format!("10.{}.{}.{n}:80", number / 250, number % 250);
            let endpoints = |range: std::ops::Range<u32>| range.map(endpoint).collect::<Vec<_>>();
            let host = format!("app-{number}.example.com");
            json!({
                "name": format!("app-{number}"), "match": { "host": host }, "canary_bp": share,
                "stable": { "release": "v1", "endpoints": endpoints(0..5) },
                "canary": { "release": "v2", "endpoints": endpoints(5..10) },
            })
        };
        let mut routes: Vec<_> = (1..ROUTES).map(|number| route(number, seq * 100)).collect();
        routes.push(json!({
            "name": "web", "stable": side("v1", &[self.stable.address]),
            "canary_bp": seq % 2 * 10_000, "canary": side("v2", &[self.canary.address]),
        }));
        let table = json!({ "generation": { "term": 1, "seq": seq }, "routes": routes });
        serde_json::from_value(table).unwrap()
    }
}

#[tokio::test]
async fn f48_with_a_thousand_routes_and_ten_thousand_endpoints_a_weight_change_is_in_force_within_a_second()
 {
    let large = Large::new().await;
    let controller = Controller::new(Some(large.at(2))).await;
    let state = tempfile::tempdir().unwrap();
    let proxy = Proxy::led(controller.address, state.path()).await.unwrap();
    proxy.has(2).await;
    let client = Client::new();
    let url = proxy.url("/");
    for seq in 3..8 {
        let name = ANSWERS[(seq % 2) as usize];
        let next = large.at(seq);
        let began = Instant::now();
        controller.set(next);
        while client.get(&url, &[]).await.unwrap().body != name {}
        let reached = began.elapsed();
        println!("table {seq} was in force after {reached:?}");
        assert!(reached < REACHES_MAX, "{reached:?}");
    }
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f48_a_weight_change_of_a_thousand_routes_reaches_three_proxies_and_their_reports_say_so() {
    const CHANGES: std::ops::Range<u64> = 3..8;
    let large = Large::new().await;
    let controller = Controller::new(Some(large.at(2))).await;
    let url = format!("http://{}", controller.address);
    let mut proxies = Vec::new();
    for name in ["edge", "edge-2", "edge-3"] {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let led = [
            "--controller",
            &url,
            "--state-dir",
            state.to_str().unwrap(),
            "--name",
            name,
        ];
        let proxy = Running::start(directory.path(), &led).await;
        proxies.push((name, proxy, Client::new(), directory));
    }
    // Each process is asked again and again until it answers by that table.
    let reached = async |expected: &str| {
        let asked = proxies.iter().map(|(name, proxy, client, _)| async move {
            let url = proxy.url("/");
            let by_it = async { while client.get(&url, &[]).await.unwrap().body != expected {} };
            let by_it = timeout(PATIENCE, by_it).await;
            by_it.unwrap_or_else(|_| panic!("{name} never answered by {expected}"));
            Instant::now()
        });
        join_all(asked).await
    };
    reached(ANSWERS[0]).await;
    let mut times = Vec::new();
    for seq in CHANGES {
        let expected = ANSWERS[(seq % 2) as usize];
        let next = large.at(seq);
        let began = Instant::now();
        controller.set(next);
        let each = reached(expected).await;
        let each: Vec<Duration> = each.into_iter().map(|at| at - began).collect();
        println!("table {seq} was in force after {each:?}");
        times.push(each.into_iter().max().unwrap());
        for (name, proxy, client, _) in &proxies {
            for _ in 0..5 {
                let answer = client.get(&proxy.url("/"), &[]).await.unwrap();
                assert_eq!(answer.body, expected, "{name} by an older table than {seq}");
            }
            let told = format!("a report of {name} by table {seq}");
            controller
                .eventually(&told, |ledger| {
                    let reports = ledger.reports.iter().rev();
                    let last = reports.into_iter().find(|report| report.proxy == *name)?;
                    (last.generation.seq == seq).then_some(())
                })
                .await;
        }
    }
    times.sort();
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    println!("all three: {median:?}, at most {longest:?}");
    assert!(median < REACHES_MAX, "{median:?}");
    // What each of them did is reported by it alone.
    let answered = large.stable.hits() + large.canary.hits();
    controller
        .eventually("all requests in reports", |ledger| {
            (ledger.requests() == (answered, 0)).then_some(())
        })
        .await;
    for (_, proxy, _, _) in proxies {
        proxy.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(proxy.ended().await, Some(0));
    }
}
