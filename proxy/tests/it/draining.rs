//! Letting clients go.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{Response, StatusCode};
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::controller::Controller;
use crate::world::{Backend, Client, Proxy, eventually, table, text};

/// A backend that answers once it is told to.
async fn held() -> (Backend, watch::Sender<bool>) {
    let (release, wait) = watch::channel(false);
    let backend = Backend::new(move |_| {
        let mut wait = wait.clone();
        async move {
            wait.wait_for(|released| *released).await.unwrap();
            text(StatusCode::OK, "done")
        }
    })
    .await;
    (backend, release)
}

#[tokio::test]
async fn requests_in_flight_finish_and_nobody_new_gets_in() {
    let (backend, release) = held().await;
    let controller = Controller::new(Some(table(1, &[backend.address], json!({})))).await;
    let state = tempfile::tempdir().unwrap();
    let proxy = Proxy::led(controller.address, state.path()).await.unwrap();
    proxy.has(1).await;
    let mut pending = Vec::new();
    for client in [Client::new(), Client::h2()] {
        let url = proxy.url("/");
        pending.push(tokio::spawn(
            async move { client.get(&url, &[]).await.unwrap() },
        ));
    }
    // One connection that says what it gets to the byte.
    let mut raw = TcpStream::connect(proxy.listen).await.unwrap();
    raw.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let mut idle = TcpStream::connect(proxy.listen).await.unwrap();
    eventually("three requests at the backend", async || {
        (backend.hits() == 3).then_some(())
    })
    .await;

    proxy.shutdown.cancel();
    eventually("not ready", async || {
        let (status, why) = proxy.ask("/ready").await;
        (status == StatusCode::SERVICE_UNAVAILABLE && why.contains("draining")).then_some(())
    })
    .await;
    eventually("no new connections", async || {
        TcpStream::connect(proxy.listen).await.err()
    })
    .await;
    assert_eq!(
        idle.read(&mut [0; 1]).await.unwrap(),
        0,
        "idle connections are closed"
    );

    release.send_replace(true);
    for answer in pending {
        assert_eq!(answer.await.unwrap().body, "done");
    }
    let mut answer = String::new();
    raw.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.to_lowercase().contains("connection: close"),
        "{answer}"
    );
    assert!(answer.ends_with("done"), "{answer}");
    proxy.stop().await;
    // The last report has it all.
    assert_eq!(controller.look(|ledger| ledger.requests()), (3, 0));
}

#[tokio::test]
async fn what_takes_too_long_is_cut() {
    let (backend, _release) = held().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("routes.json");
    let routes = serde_json::to_vec(&table(1, &[backend.address], json!({}))).unwrap();
    std::fs::write(&file, routes).unwrap();
    let source = friday_proxy::config::Source::File(file);
    let proxy = Proxy::start(source, Duration::from_millis(200))
        .await
        .unwrap();
    let (client, url) = (Client::new(), proxy.url("/"));
    let pending = tokio::spawn(async move { client.get(&url, &[]).await });
    eventually("a request at the backend", async || {
        (backend.hits() == 1).then_some(())
    })
    .await;
    proxy.stop().await;
    assert!(pending.await.unwrap().is_err());
}

#[tokio::test]
async fn an_answer_that_is_cut_ends_badly_for_http_1_0_too() {
    let backend = Backend::new(|_| async {
        let first = Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"first")));
        let frames = futures::stream::iter([first]).chain(futures::stream::pending());
        Response::new(StreamBody::new(frames))
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("routes.json");
    let routes = serde_json::to_vec(&table(1, &[backend.address], json!({}))).unwrap();
    std::fs::write(&file, routes).unwrap();
    let source = friday_proxy::config::Source::File(file);
    let proxy = Proxy::start(source, Duration::from_millis(200))
        .await
        .unwrap();
    let mut client = TcpStream::connect(proxy.listen).await.unwrap();
    let request = b"GET / HTTP/1.0\r\nhost: a\r\n\r\n";
    client.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"first") {
        assert!(client.read_buf(&mut answer).await.unwrap() > 0);
    }
    let head = String::from_utf8(answer).unwrap().to_lowercase();
    assert!(
        !head.contains("content-length") && !head.contains("chunked"),
        "{head}"
    );
    proxy.stop().await;
    let ended = client.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn what_a_quiet_client_asks_when_the_drain_has_begun_is_cut_at_its_limit_too() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let (backend, release) = held().await;
    release.send_replace(true);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("routes.json");
    let routes = table(1, &[backend.address], json!({}));
    std::fs::write(&file, serde_json::to_vec(&routes).unwrap()).unwrap();
    let source = friday_proxy::config::Source::File(file);
    let limit = std::time::Duration::from_secs(3);
    let proxy = Proxy::start(source, limit).await.unwrap();
    let mut client = tokio::net::TcpStream::connect(proxy.listen).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    client.write_all(request).await.unwrap();
    let mut heard = [0; 1024];
    assert!(client.read(&mut heard).await.unwrap() > 0);
    // Looked at twice, it is found quiet.
    tokio::time::sleep(std::time::Duration::from_millis(2_300)).await;
    release.send_replace(false);
    proxy.shutdown.cancel();
    client.write_all(request).await.unwrap();
    proxy.stop().await;
    assert_eq!(backend.hits(), 2, "it was heard");
}
