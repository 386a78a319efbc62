//! Large tables.

use std::time::Duration;

use proxy_api::RouteTable;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::controller::Controller;
use crate::world::{Backend, Client, Proxy, side};

/// Routes of ten endpoints each.
const ROUTES: u32 = 1_000;

/// The longest time a weight change may take to every proxy.
const REACHES_MAX: Duration = Duration::from_secs(1);

#[tokio::test]
async fn f48_with_a_thousand_routes_and_ten_thousand_endpoints_a_weight_change_is_in_force_within_a_second()
 {
    let stable = Backend::named("stable").await;
    let canary = Backend::named("canary").await;
    // Nobody ever connects to the endpoints of the other routes.
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
    let at = |seq: u64| -> RouteTable {
        let mut routes: Vec<_> = (1..ROUTES).map(|number| route(number, seq * 100)).collect();
        routes.push(json!({
            "name": "web", "stable": side("v1", &[stable.address]),
            "canary_bp": seq % 2 * 10_000, "canary": side("v2", &[canary.address]),
        }));
        let table = json!({ "generation": { "term": 1, "seq": seq }, "routes": routes });
        serde_json::from_value(table).unwrap()
    };
    let controller = Controller::new(Some(at(2))).await;
    let state = tempfile::tempdir().unwrap();
    let proxy = Proxy::led(controller.address, state.path()).await.unwrap();
    proxy.has(2).await;
    let client = Client::new();
    let url = proxy.url("/");
    for seq in 3..8 {
        let name = ["stable", "canary"][(seq % 2) as usize];
        let next = at(seq);
        let began = Instant::now();
        controller.set(next);
        while client.get(&url, &[]).await.unwrap().body != name {}
        let reached = began.elapsed();
        println!("table {seq} was in force after {reached:?}");
        assert!(reached < REACHES_MAX, "{reached:?}");
    }
    proxy.stop().await;
}
