//! Where tables come from, which are refused, and what lasts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use friday_proxy::app::AppError;
use http::StatusCode;
use proxy_api::Generation;
use serde_json::json;

use crate::controller::Controller;
use crate::world::{Backend, Client, Proxy, in_band, nobody, side, table};

#[tokio::test]
async fn without_a_table_it_says_so_and_is_not_ready() {
    let controller = Controller::new(None).await;
    let state = tempfile::tempdir().unwrap();
    let proxy = Proxy::led(controller.address, state.path()).await.unwrap();
    let client = Client::new();
    let answer = client.get(&proxy.url("/"), &[]).await.unwrap();
    let refusal = (answer.status, answer.header("x-friday-refusal"));
    assert_eq!(refusal, (StatusCode::SERVICE_UNAVAILABLE, "no_table"));
    let (status, why) = proxy.ask("/ready").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(why.contains("no route table"), "{why}");
    assert_eq!(proxy.ask("/live").await.0, StatusCode::OK);

    let backend = Backend::named("one").await;
    controller.set(table(1, &[backend.address], json!({})));
    proxy.has(1).await;
    assert_eq!(proxy.ask("/ready").await.0, StatusCode::OK);
    assert_eq!(client.get(&proxy.url("/"), &[]).await.unwrap().body, "one");
    assert_eq!(
        proxy.put(&table(2, &[], json!({}))).await.0,
        StatusCode::CONFLICT
    );
    proxy.stop().await;
}

#[tokio::test]
async fn f25_a_restart_without_the_controller_comes_back_with_the_last_durable_weights() {
    let stable = Backend::named("stable").await;
    let canary = Backend::named("canary").await;
    let at = |seq, share: u16| {
        let more = json!({ "canary_bp": share, "canary": side("v2", &[canary.address]) });
        table(seq, &[stable.address], more)
    };
    let controller = Controller::new(Some(at(1, 100))).await;
    let state = tempfile::tempdir().unwrap();
    let proxy = Proxy::led(controller.address, state.path()).await.unwrap();
    proxy.has(1).await;
    controller.set(at(2, 5_000));
    proxy.has(2).await;
    let gone = controller.address;
    drop(controller);
    proxy.stop().await;

    let proxy = Proxy::led(gone, state.path()).await.unwrap();
    assert_eq!(proxy.ask("/ready").await.0, StatusCode::OK, "ready at once");
    assert_eq!(
        proxy.generation().await,
        Some(Generation { term: 1, seq: 2 })
    );
    let client = Client::new();
    let mut hits = 0;
    for _ in 0..1_000 {
        let answer = client.get(&proxy.url("/"), &[]).await.unwrap();
        hits += usize::from(answer.body == "canary");
    }
    assert!(in_band(hits, 1_000, 0.5), "{hits} of 1000 at 50 %");
    proxy.stop().await;
}

#[tokio::test]
async fn a_damaged_saved_table_is_named_and_left_alone() {
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("table.json");
    std::fs::write(&file, b"{\"generation\":{\"term\":1,").unwrap();
    let refused = Proxy::led(nobody().await, state.path()).await.unwrap_err();
    assert!(
        matches!(refused, AppError::SavedTable { .. }),
        "{refused:?}"
    );
    let text = refused.to_string();
    assert!(
        text.contains(file.to_str().unwrap()) && text.contains("move it away"),
        "{text}"
    );
    assert_eq!(
        std::fs::read(&file).unwrap(),
        b"{\"generation\":{\"term\":1,"
    );
}

#[tokio::test]
async fn an_older_table_is_refused_and_the_newer_serves_on() {
    let new = Backend::named("new").await;
    let old = Backend::named("old").await;
    let proxy = Proxy::alone(&table(7, &[new.address], json!({}))).await;
    for seq in [6, 7] {
        let (status, why) = proxy.put(&table(seq, &[old.address], json!({}))).await;
        assert_eq!(status, StatusCode::CONFLICT, "{why}");
        assert!(why.contains("1.7"), "{why}");
    }
    let answer = Client::new().get(&proxy.url("/"), &[]).await.unwrap();
    assert_eq!(answer.body, "new");
    let (status, _) = proxy.put(&table(8, &[old.address], json!({}))).await;
    assert_eq!(status, StatusCode::OK);
    let answer = Client::new().get(&proxy.url("/"), &[]).await.unwrap();
    assert_eq!(answer.body, "old");
    assert_eq!(
        proxy
            .metric("friday_proxy_generation", &["part=\"seq\""])
            .await,
        8.0
    );
}

#[tokio::test]
async fn a_malformed_table_is_refused_with_its_place_and_the_old_one_serves_on() {
    let backend = Backend::named("one").await;
    let proxy = Proxy::alone(&table(1, &[backend.address], json!({}))).await;
    let (status, why) = proxy.put_text(b"{\n \"rotes\": []\n}".to_vec()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(why.starts_with("body:2:8: unknown field `rotes`"), "{why}");
    let answer = Client::new().get(&proxy.url("/"), &[]).await.unwrap();
    assert_eq!(answer.body, "one");
}

#[tokio::test]
async fn swapping_tables_under_load_loses_no_request() {
    let stable = [
        Backend::named("stable").await,
        Backend::named("stable").await,
    ];
    let canary = [
        Backend::named("canary").await,
        Backend::named("canary").await,
    ];
    let at = |seq: u64| {
        // Weights and endpoints change with each table.
        let one = usize::from(seq.is_multiple_of(2));
        let more =
            json!({ "canary_bp": seq * 97 % 10_001, "canary": side("v2", &[canary[one].address]) });
        table(seq, &[stable[1 - one].address], more)
    };
    let proxy = Proxy::alone(&at(1)).await;
    let stop = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicU32::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (client, url) = (Client::new(), proxy.url("/"));
        let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
        clients.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let answer = client.get(&url, &[]).await.unwrap();
                assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
                sent.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    for seq in 2..200 {
        let (status, why) = proxy.put(&at(seq)).await;
        assert_eq!(status, StatusCode::OK, "{why}");
    }
    stop.store(true, Ordering::SeqCst);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    let sent = sent.load(Ordering::SeqCst);
    let hits: u32 = stable.iter().chain(&canary).map(Backend::hits).sum();
    assert!(sent > 100, "too little load to tell: {sent}");
    assert_eq!(hits, sent, "none lost, none doubled");
}
