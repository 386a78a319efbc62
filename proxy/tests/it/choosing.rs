//! Which release a request goes to.

use futures::future::join_all;
use serde_json::json;

use crate::world::{Backend, Client, Proxy, in_band, side, table};

async fn two_releases() -> (Backend, Backend) {
    (
        Backend::named("stable").await,
        Backend::named("canary").await,
    )
}

#[tokio::test]
async fn the_canary_gets_its_share_and_metrics_say_so() {
    let (stable, canary) = two_releases().await;
    let more = json!({ "canary_bp": 3_700, "canary": side("v2", &[canary.address]) });
    let proxy = Proxy::alone(&table(1, &[stable.address], more)).await;
    let client = Client::new();
    let mut hits = 0;
    for _ in 0..30 {
        let url = proxy.url("/");
        let answers = join_all((0..100).map(|_| client.get(&url, &[]))).await;
        hits += answers
            .into_iter()
            .filter(|answer| answer.as_ref().unwrap().body == "canary")
            .count();
    }
    assert!(in_band(hits, 3_000, 0.37), "{hits} of 3000 at 37 %");
    assert_eq!(canary.hits() as usize, hits);
    let of_canary = [
        "arm=\"canary\"",
        "outcome=\"ok\"",
        "release=\"v2\"",
        "service=\"web\"",
    ];
    let counted = proxy
        .metric("friday_proxy_requests_total", &of_canary)
        .await;
    assert_eq!(counted as usize, hits);
    let set = proxy
        .metric("friday_proxy_weight_ratio", &["kind=\"set\""])
        .await;
    let seen = proxy
        .metric("friday_proxy_weight_ratio", &["kind=\"seen\""])
        .await;
    assert_eq!((set, (seen * 3_000.0).round() as usize), (0.37, hits));
    let answers = proxy
        .metric("friday_proxy_answers_total", &["code=\"2xx\""])
        .await;
    assert_eq!(answers as usize, 3_000);
}

#[tokio::test]
async fn a_tester_gets_the_release_he_names_and_the_header_goes_no_further() {
    let seen = crate::world::Seen::default();
    let noted = seen.clone();
    let canary = Backend::new(move |request| {
        noted.note(request.headers());
        async { crate::world::text(http::StatusCode::OK, "canary") }
    })
    .await;
    let stable = Backend::named("stable").await;
    let more = json!({ "canary_bp": 0, "canary": side("v2", &[canary.address]) });
    let proxy = Proxy::alone(&table(1, &[stable.address], more)).await;
    let client = Client::new();
    let url = proxy.url("/");
    let pinned = client
        .get(&url, &[("x-friday-release", "canary")])
        .await
        .unwrap();
    assert_eq!(pinned.body, "canary");
    assert!(seen.last().get("x-friday-release").is_none());

    let more = json!({ "canary_bp": 10_000, "canary": side("v2", &[canary.address]) });
    proxy.put(&table(2, &[stable.address], more)).await;
    let pinned = client
        .get(&url, &[("x-friday-release", "stable")])
        .await
        .unwrap();
    assert_eq!(pinned.body, "stable");

    proxy.put(&table(3, &[stable.address], json!({}))).await;
    let pinned = client
        .get(&url, &[("x-friday-release", "canary")])
        .await
        .unwrap();
    assert_eq!(pinned.body, "stable", "there is no canary any more");
}

#[tokio::test]
async fn a_sticky_cookie_keeps_a_client_with_its_release_while_the_weight_grows() {
    let (stable, canary) = two_releases().await;
    let at = |seq, share: u16| {
        let more = json!({
            "canary_bp": share, "sticky": { "by": "cookie" }, "canary": side("v2", &[canary.address]),
        });
        table(seq, &[stable.address], more)
    };
    let proxy = Proxy::alone(&at(1, 3_000)).await;
    // Another proxy of the same service: it knows nothing of the first.
    let replica = Proxy::alone(&at(1, 3_000)).await;
    let client = Client::new();
    let mut clients = Vec::new();
    for _ in 0..60 {
        let first = client.get(&proxy.url("/"), &[]).await.unwrap();
        let cookie = first.header("set-cookie").to_owned();
        assert!(
            cookie.starts_with("friday-key=")
                && cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax"),
            "{cookie}"
        );
        let pair = cookie.split(';').next().unwrap().to_owned();
        clients.push((pair, first.body));
    }
    assert!(clients.iter().any(|(_, arm)| arm == "canary"));
    let mut share = 3_000;
    for seq in 2..5 {
        for (cookie, arm) in &mut clients {
            for proxy in [&proxy, &replica] {
                let headers = [("cookie", cookie.as_str())];
                let again = client.get(&proxy.url("/"), &headers).await.unwrap();
                assert_eq!(again.header("set-cookie"), "");
                assert!(
                    again.body == *arm || again.body == "canary",
                    "{cookie} was moved back at {share} bp"
                );
                *arm = again.body;
            }
        }
        share += 2_000;
        proxy.put(&at(seq, share)).await;
        replica.put(&at(seq, share)).await;
    }
}

#[tokio::test]
async fn a_sticky_header_and_a_key_decide_alone() {
    let (stable, canary) = two_releases().await;
    let client = Client::new();
    for (sticky, header) in [
        (json!({ "by": "header", "name": "x-tenant" }), "x-tenant"),
        (json!({ "by": "key" }), "idempotency-key"),
    ] {
        let more = json!({ "canary_bp": 5_000, "sticky": sticky, "canary": side("v2", &[canary.address]) });
        let proxy = Proxy::alone(&table(1, &[stable.address], more)).await;
        let mut arms = Vec::new();
        for key in 0..32 {
            let key = format!("key-{key}");
            let mut last = String::new();
            for _ in 0..3 {
                let answer = client
                    .get(&proxy.url("/"), &[(header, &key)])
                    .await
                    .unwrap();
                assert!(last.is_empty() || last == answer.body, "{key} was moved");
                last = answer.body;
            }
            arms.push(last);
        }
        assert!(arms.contains(&"stable".to_owned()) && arms.contains(&"canary".to_owned()));
    }
}
