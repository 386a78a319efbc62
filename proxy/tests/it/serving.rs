//! HTTP through the proxy.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use http::header::{HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper_util::client::legacy::Client as PooledClient;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::world::{Backend, Client, PATIENCE, Proxy, Seen, eventually, table, text};

#[tokio::test]
async fn passes_method_target_head_and_body_both_ways_over_http1_and_h2c() {
    let seen = Seen::default();
    let noted = seen.clone();
    let echo = Backend::new(move |request| {
        noted.note(request.headers());
        async move {
            let line = format!("{} {} ", request.method(), request.uri());
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let mut response = Response::new(Full::from([line.as_bytes(), &body].concat()));
            *response.status_mut() = StatusCode::IM_A_TEAPOT;
            response
                .headers_mut()
                .insert("x-mine", HeaderValue::from_static("yes"));
            response
                .headers_mut()
                .insert("keep-alive", HeaderValue::from_static("timeout=9"));
            response
        }
    })
    .await;
    let proxy = Proxy::alone(&table(1, &[echo.address], json!({}))).await;
    for client in [Client::new(), Client::h2()] {
        let headers = [("x-yours", "1"), ("x-forwarded-for", "10.1.1.1")];
        let answer = client
            .call(
                Method::POST,
                &proxy.url("/a%20b?c=d&e"),
                &headers,
                "the body",
            )
            .await
            .unwrap();
        assert_eq!(answer.status, StatusCode::IM_A_TEAPOT);
        assert_eq!(answer.body, "POST /a%20b?c=d&e the body");
        assert_eq!(
            (answer.header("x-mine"), answer.header("keep-alive")),
            ("yes", "")
        );
        let head = seen.last();
        let field = |name: &str| head.get(name).map_or("", |value| value.to_str().unwrap());
        let address = proxy.listen.to_string();
        assert_eq!(field("x-yours"), "1");
        assert_eq!(field("host"), address);
        assert_eq!(field("x-forwarded-host"), address);
        assert_eq!(field("x-forwarded-proto"), "http");
        assert_eq!(field("x-forwarded-for"), "10.1.1.1, 127.0.0.1");
        assert_eq!(field("x-request-id").len(), 32);
        assert_eq!(field("content-length"), "8");
    }
}

#[tokio::test]
async fn many_streams_of_one_h2c_connection_are_served_at_once() {
    let backend = Backend::named("one").await;
    let proxy = Proxy::alone(&table(1, &[backend.address], json!({}))).await;
    let client = Client::h2();
    let url = proxy.url("/");
    for answer in join_all((0..200).map(|_| client.get(&url, &[]))).await {
        assert_eq!(answer.unwrap().body, "one");
    }
    assert_eq!(backend.hits(), 200);
}

#[tokio::test]
async fn hop_by_hop_fields_stay_on_their_connection() {
    let seen = Seen::default();
    let noted = seen.clone();
    let backend = Backend::new(move |request| {
        noted.note(request.headers());
        async { text(StatusCode::OK, "ok") }
    })
    .await;
    let proxy = Proxy::alone(&table(1, &[backend.address], json!({}))).await;
    let mut raw = TcpStream::connect(proxy.listen).await.unwrap();
    let request = "GET / HTTP/1.1\r\nhost: a.example\r\nconnection: close, x-secret\r\nx-secret: 1\r\n\
        keep-alive: timeout=5\r\nproxy-connection: keep-alive\r\nproxy-authorization: x\r\nte: gzip\r\n\
        upgrade: h2c\r\nx-stays: 1\r\n\r\n";
    raw.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    raw.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    let head = seen.last();
    for name in [
        "connection",
        "x-secret",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "te",
        "upgrade",
    ] {
        assert!(head.get(name).is_none(), "{name}");
    }
    assert!(head.get("x-stays").is_some());
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let seen = Seen::default();
    let noted = seen.clone();
    let backend = Backend::new(move |request| {
        let noted = noted.clone();
        async move {
            let body = request.into_body().collect().await.unwrap();
            noted.note(&body.trailers().cloned().unwrap_or_default());
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", HeaderValue::from_static("42"));
            let frames = [
                Frame::data(Bytes::from_static(b"data")),
                Frame::trailers(trailers),
            ];
            let frames = futures::stream::iter(frames.map(Ok::<_, Infallible>));
            let mut response = Response::new(StreamBody::new(frames));
            response
                .headers_mut()
                .insert("trailer", HeaderValue::from_static("x-sum"));
            response
        }
    })
    .await;
    let proxy = Proxy::alone(&table(1, &[backend.address], json!({}))).await;
    for h2 in [false, true] {
        // Collected for a possible repetition, and streamed.
        for method in [Method::PUT, Method::POST] {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-check", HeaderValue::from_static("7"));
            let frames = [
                Frame::data(Bytes::from_static(b"up")),
                Frame::trailers(trailers),
            ];
            let body = StreamBody::new(futures::stream::iter(frames.map(Ok::<_, Infallible>)));
            let request = Request::builder()
                .method(method)
                .uri(proxy.url("/"))
                .header("te", "trailers")
                .header("trailer", "x-check")
                .body(body)
                .unwrap();
            let client: PooledClient<_, _> = PooledClient::builder(TokioExecutor::new())
                .http2_only(h2)
                .build_http();
            let answer = client
                .request(request)
                .await
                .unwrap()
                .collect()
                .await
                .unwrap();
            assert_eq!(answer.trailers().unwrap()["x-sum"], "42");
            assert_eq!(seen.last()["x-check"], "7");
        }
    }
}

#[tokio::test]
async fn head_has_a_length_and_no_body() {
    let backend = Backend::named("four").await;
    let proxy = Proxy::alone(&table(1, &[backend.address], json!({}))).await;
    for client in [Client::new(), Client::h2()] {
        for _ in 0..2 {
            let answer = client
                .call(Method::HEAD, &proxy.url("/"), &[], "")
                .await
                .unwrap();
            assert_eq!(
                (answer.header("content-length"), answer.body.as_str()),
                ("4", "")
            );
        }
    }
    assert_eq!(
        proxy
            .metric("friday_proxy_requests_total", &["outcome=\"ok\""])
            .await,
        4.0
    );
}

#[tokio::test]
async fn a_large_body_flows_with_bounded_buffering() {
    const PART: usize = 64 << 10;
    const PARTS: u64 = 1_024;
    let (release, wait) = watch::channel(false);
    let backend = Backend::new(move |request: Request<hyper::body::Incoming>| {
        let mut wait = wait.clone();
        async move {
            wait.wait_for(|released| *released).await.unwrap();
            // What comes in goes out again.
            Response::new(request.into_body())
        }
    })
    .await;
    let proxy = Proxy::alone(&table(1, &[backend.address], json!({}))).await;
    let taken = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&taken);
    let parts = futures::stream::iter(0..PARTS).map(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        Ok::<_, Infallible>(Frame::data(Bytes::from(vec![7; PART])))
    });
    let stream = TcpStream::connect(proxy.listen).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::post("/")
        .header("host", "a")
        .body(StreamBody::new(parts))
        .unwrap();
    let answer = tokio::spawn(async move { sender.send_request(request).await.unwrap() });
    // It stops by itself while nobody reads at the other end: the sockets' buffers are full, and the proxy takes no more.
    let mut last = 0;
    let stuck = eventually("the upload stops", async || {
        let before = std::mem::replace(&mut last, taken.load(Ordering::SeqCst));
        tokio::time::sleep(Duration::from_millis(200)).await;
        (before > 0 && before == taken.load(Ordering::SeqCst)).then_some(before)
    })
    .await;
    assert!(stuck < PARTS / 2, "{stuck} of {PARTS} parts went in");
    release.send_replace(true);
    let mut body = answer.await.unwrap().into_body();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame.unwrap().into_data().unwrap().len() as u64;
    }
    assert_eq!(bytes, PARTS * PART as u64);
    assert_eq!(backend.hits(), 1);
}

#[tokio::test]
async fn refuses_by_itself_with_a_code_and_counts_it() {
    let (release, wait) = watch::channel(false);
    let backend = Backend::new(move |request: Request<hyper::body::Incoming>| {
        let mut wait = wait.clone();
        async move {
            if request.uri().path() == "/held" {
                wait.wait_for(|released| *released).await.unwrap();
            }
            drop(request.into_body().collect().await);
            text(StatusCode::OK, "ok")
        }
    })
    .await;
    let more = json!({
        "match": { "host": "127.0.0.1", "path": "/" },
        "limits": { "body_bytes_max": 4, "in_flight_max": 1 },
    });
    let proxy = Proxy::alone(&table(1, &[backend.address], more)).await;
    let client = Client::new();
    let url = proxy.url("/");
    let cases = [
        (
            client.get(&url, &[("host", "other.example")]).await,
            404,
            "no_route",
        ),
        (
            client.call(Method::PUT, &url, &[], "12345").await,
            413,
            "body_too_large",
        ),
        (
            client.call(Method::POST, &url, &[], "12345").await,
            413,
            "body_too_large",
        ),
    ];
    for (answer, status, code) in cases {
        let answer = answer.unwrap();
        assert_eq!(
            (answer.status.as_u16(), answer.header("x-friday-refusal")),
            (status, code)
        );
        assert!(answer.body.len() > 10, "{answer:?}");
    }
    for method in [Method::PUT, Method::POST] {
        let parts = futures::stream::iter(["123", "456"]);
        let parts = parts.map(|part| Ok::<_, Infallible>(Frame::data(Bytes::from(part))));
        let chunked = Request::builder()
            .method(method)
            .uri(&url)
            .body(StreamBody::new(parts))
            .unwrap();
        let pooled = PooledClient::builder(TokioExecutor::new()).build_http();
        let answer = pooled.request(chunked).await.unwrap();
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }
    let held = {
        let (client, url) = (client.clone(), proxy.url("/held"));
        tokio::spawn(async move { client.get(&url, &[]).await.unwrap() })
    };
    let at_backend = ["service=\"web\""];
    eventually("a request in flight", async || {
        (proxy.metric("friday_proxy_in_flight", &at_backend).await == 1.0).then_some(())
    })
    .await;
    let full = client.get(&url, &[]).await.unwrap();
    assert_eq!(
        (full.status.as_u16(), full.header("x-friday-refusal")),
        (503, "in_flight")
    );
    release.send_replace(true);
    assert_eq!(held.await.unwrap().body, "ok");
    for (code, times) in [
        ("no_route", 1.0),
        ("body_too_large", 4.0),
        ("in_flight", 1.0),
    ] {
        let label = format!("reason=\"{code}\"");
        assert_eq!(
            proxy.metric("friday_proxy_refusals_total", &[&label]).await,
            times,
            "{code}"
        );
    }
    // The client's mistakes are not held against the release.
    let bad = proxy
        .metric("friday_proxy_requests_total", &["outcome=\"reset\""])
        .await;
    assert_eq!(bad, 0.0);
}

#[tokio::test]
async fn as_many_clients_are_served_as_may_be_and_the_next_is_told() {
    let backend = Backend::named("one").await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("routes.json");
    let routes = table(1, &[backend.address], json!({}));
    std::fs::write(&file, serde_json::to_vec(&routes).unwrap()).unwrap();
    let source = friday_proxy::config::Source::File(file);
    // As many as there are listeners, whichever of them gets the clients.
    let proxy = Proxy::with(source, PATIENCE, |config| {
        config.clients.connections_max = 2
    })
    .await
    .unwrap();
    let ask = async || {
        let mut client = TcpStream::connect(proxy.listen).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        client.write_all(request).await.unwrap();
        let mut heard = Vec::new();
        let is_over = |heard: &[u8]| heard.ends_with(b"\r\none") || heard.ends_with(b"\r\n\r\n");
        while !is_over(&heard) {
            let read = client.read_buf(&mut heard);
            let read = tokio::time::timeout(PATIENCE, read).await;
            assert!(read.expect("an answer").unwrap() > 0, "{heard:?}");
        }
        (client, String::from_utf8(heard).unwrap().to_lowercase())
    };
    for _ in 0..10 {
        // Those of the time before may not have left yet.
        let both = eventually("two places", async || {
            let (one, two) = tokio::join!(ask(), ask());
            let is_served = |heard: &str| heard.starts_with("http/1.1 200 ");
            (is_served(&one.1) && is_served(&two.1)).then_some((one.0, two.0))
        })
        .await;
        let (mut three, heard) = ask().await;
        assert!(heard.starts_with("http/1.1 503 "), "{heard}");
        for field in [
            "x-friday-refusal: connections",
            "retry-after: 1",
            "connection: close",
        ] {
            assert!(heard.contains(&format!("\r\n{field}\r\n")), "{heard}");
        }
        assert_eq!(three.read(&mut [0; 8]).await.unwrap(), 0);
        drop(both);
    }
    let refused = proxy.metric("friday_proxy_refusals_total", &["reason=\"connections\""]);
    assert!(refused.await >= 10.0);
    proxy.stop().await;
}

#[tokio::test]
async fn keeps_a_clients_connection_and_its_own_to_the_upstream() {
    let peers = Arc::<std::sync::Mutex<std::collections::HashSet<String>>>::default();
    let noted = Arc::clone(&peers);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        while let Ok((stream, peer)) = listener.accept().await {
            noted.lock().unwrap().insert(peer.to_string());
            tokio::spawn(async move {
                let service = hyper::service::service_fn(|_| async {
                    Ok::<_, Infallible>(text(StatusCode::OK, "ok"))
                });
                let http = hyper::server::conn::http1::Builder::new();
                drop(http.serve_connection(TokioIo::new(stream), service).await);
            });
        }
    });
    let proxy = Proxy::alone(&table(1, &[address], json!({}))).await;
    let client = Client::new();
    for _ in 0..200 {
        client.get(&proxy.url("/"), &[]).await.unwrap();
    }
    let connections = peers.lock().unwrap().len();
    assert!(
        connections <= 4,
        "{connections} connections for requests one after the other"
    );
    server.abort();
    tokio::time::timeout(PATIENCE, proxy.stop()).await.unwrap();
}

#[tokio::test]
async fn a_client_that_is_quiet_for_a_while_is_served_on_the_same_connection_and_let_go_in_the_end()
{
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let backend = Backend::named("one").await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("routes.json");
    let routes = table(1, &[backend.address], json!({}));
    std::fs::write(&file, serde_json::to_vec(&routes).unwrap()).unwrap();
    let source = friday_proxy::config::Source::File(file);
    let idle_max = std::time::Duration::from_secs(4);
    let proxy = Proxy::with(source, PATIENCE, |config| {
        config.clients.idle_max = idle_max
    })
    .await
    .unwrap();
    let mut client = tokio::net::TcpStream::connect(proxy.listen).await.unwrap();
    // Long enough to be looked at twice and be found quiet: the second time half way through a head.
    let quiet = std::time::Duration::from_millis(2_300);
    let whole = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut heard = Vec::new();
    for (request, pieces) in [
        (1, [whole, ""]),
        (2, [whole, ""]),
        (3, ["GET /b", " HTTP/1.1\r\nhost: a\r\n\r\n"]),
    ] {
        for piece in pieces {
            client.write_all(piece.as_bytes()).await.unwrap();
            tokio::time::sleep(quiet / 2).await;
        }
        let answers = |heard: &[u8]| heard.windows(5).filter(|text| *text == b"\r\none").count();
        while answers(&heard) < request {
            assert!(client.read_buf(&mut heard).await.unwrap() > 0, "{request}");
        }
    }
    assert_eq!(backend.hits(), 3);
    let gone = tokio::time::timeout(PATIENCE, client.read_buf(&mut heard));
    assert_eq!(gone.await.expect("it is let go").unwrap(), 0);
    proxy.stop().await;
}
