//! Large and slow bodies: passed on as they come, gathered only as far as they may have to be repeated.

use std::convert::Infallible;
use std::pin::Pin;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::client::legacy::Client as PooledClient;
use hyper_util::rt::TokioExecutor;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::program::{Running, table_file};
use crate::world::{Backend, PATIENCE, Proxy, side, table};

/// Length of a body in MiB, unless this variable says another: for 1 GiB by hand it is 1024.
const MIB: u64 = 256;
const MIB_VARIABLE: &str = "FRIDAY_TEST_BODY_MIB";

/// Most memory that bodies on their way may cost the proxy.
const GROWTH_BYTES_MAX: u64 = 10 << 20;

type Frames = Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>;

/// A body of so many MiB.
fn body(mib: u64) -> StreamBody<Frames> {
    static PART: [u8; 64 << 10] = [b'x'; 64 << 10];
    let parts = futures::stream::iter(0..mib * 16);
    let frames = parts.map(|_| Ok(Frame::data(Bytes::from_static(&PART))));
    StreamBody::new(frames.boxed())
}

/// The memory that the process has now.
fn resident_bytes(process: u32) -> u64 {
    let pages = std::fs::read_to_string(format!("/proc/{process}/statm")).unwrap();
    let pages: u64 = pages.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4_096
}

/// Reads a body to its end: how long it was, and the most memory the process had meanwhile.
async fn read(mut body: Incoming, process: u32) -> (u64, u64) {
    let (mut length, mut highest) = (0, 0);
    while let Some(frame) = body.frame().await {
        let part = frame.unwrap().into_data().unwrap().len() as u64;
        // Looked at once for each MiB.
        if length >> 20 != (length + part) >> 20 {
            highest = highest.max(resident_bytes(process));
        }
        length += part;
    }
    (length, highest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_both_ways_do_not_grow_the_proxy() {
    let mib = std::env::var(MIB_VARIABLE).map_or(MIB, |mib| mib.parse().unwrap());
    // Says back what it is sent, and else sends what it is asked for.
    let backend = Backend::new(|request: Request<Incoming>| async move {
        let body = if request.method() == Method::POST {
            request.into_body().map_err(Into::into).boxed_unsync()
        } else {
            let mib = request.uri().path()[1..].parse().unwrap();
            body(mib).map_err(Into::into).boxed_unsync()
        };
        let body: http_body_util::combinators::UnsyncBoxBody<
            _,
            Box<dyn std::error::Error + Send + Sync>,
        > = body;
        Response::new(body)
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let more = json!({ "limits": { "body_bytes_max": mib << 20 } });
    let file = table_file(directory.path(), &table(1, &[backend.address], more));
    let proxy = Running::start(directory.path(), &["--routes", &file]).await;
    let process = proxy.child.id();
    for h2 in [false, true] {
        let client = PooledClient::builder(TokioExecutor::new())
            .http2_only(h2)
            .build_http::<StreamBody<Frames>>();
        let fetch = async |method: &Method, mib: u64| {
            let sent = if *method == Method::POST { mib } else { 0 };
            let request = Request::builder()
                .method(method)
                .uri(proxy.url(&format!("/{mib}")))
                .body(body(sent));
            let response = client.request(request.unwrap()).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            let (length, highest) = read(response.into_body(), process).await;
            assert_eq!(length, mib << 20, "whole");
            highest
        };
        for method in [Method::GET, Method::POST] {
            // The first makes the buffers.
            fetch(&method, 4).await;
            let before = resident_bytes(process);
            let grown = fetch(&method, mib).await.saturating_sub(before);
            println!(
                "{method} of {mib} MiB, h2 {h2}: grew by {} KiB",
                grown >> 10
            );
            assert!(grown < GROWTH_BYTES_MAX, "{method} h2 {h2}: {grown} bytes");
        }
    }
}

/// Reads until the answer has that text in it.
async fn hears(client: &mut TcpStream, heard: &mut String, text: &str) {
    let mut buffer = [0; 1024];
    while !heard.contains(text) {
        let read = timeout(PATIENCE / 2, client.read(&mut buffer)).await;
        let length = read.expect("an answer in time").unwrap();
        assert!(length > 0, "{heard:?}");
        heard.push_str(str::from_utf8(&buffer[..length]).unwrap());
    }
}

#[tokio::test]
async fn an_upstream_may_answer_the_first_half_of_a_body_before_the_client_sends_the_second() {
    // Says back what it hears as it comes.
    let echo = || {
        Backend::new(|request: Request<Incoming>| async move { Response::new(request.into_body()) })
    };
    let (stable, canary) = (echo().await, echo().await);
    let mirror = json!({ "canary": side("v2", &[canary.address]), "mirror_bp": 10_000 });
    let kept =
        "idempotency-key: k\r\ncontent-type: application/grpc+proto\r\ncontent-length: 11\r\n";
    let cases = [
        (
            mirror.clone(),
            "content-length: 11\r\n",
            ["first", "second"],
            1.0,
        ),
        (
            mirror.clone(),
            "transfer-encoding: chunked\r\n",
            ["5\r\nfirst\r\n", "6\r\nsecond\r\n0\r\n\r\n"],
            1.0,
        ),
        (
            mirror,
            "content-length: 11\r\ncontent-type: Application/gRPC\r\n",
            ["first", "second"],
            1.0,
        ),
        (json!({}), kept, ["first", "second"], 0.0),
    ];
    for (more, lines, halves, left_out) in cases {
        let proxy = Proxy::alone(&table(1, &[stable.address], more)).await;
        let mut client = TcpStream::connect(proxy.listen).await.unwrap();
        let head = format!("POST / HTTP/1.1\r\nhost: a\r\n{lines}\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        let mut heard = String::new();
        for (half, text) in halves.iter().zip(["first", "second"]) {
            client.write_all(half.as_bytes()).await.unwrap();
            hears(&mut client, &mut heard, text).await;
        }
        assert!(heard.starts_with("HTTP/1.1 200 "), "{heard:?}");
        let labels = ["outcome=\"left_out\""];
        let counted = proxy.metric("friday_proxy_mirrored_total", &labels).await;
        assert_eq!(counted, left_out, "{lines}");
        drop(client);
        proxy.stop().await;
    }
    assert_eq!(canary.hits(), 0);
}

#[tokio::test]
async fn a_body_in_chunks_of_a_byte_costs_what_it_is_long() {
    const LENGTH: usize = 60 << 10;
    const CLIENTS: usize = 16;
    let backend = Backend::named("one").await;
    let directory = tempfile::tempdir().unwrap();
    let file = table_file(directory.path(), &table(1, &[backend.address], json!({})));
    let proxy = Running::start(directory.path(), &["--routes", &file]).await;
    let head = "PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    let before = resident_bytes(proxy.child.id());
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = TcpStream::connect(&proxy.listen).await.unwrap();
        client.write_all(head.as_bytes()).await.unwrap();
        let chunks = "1\r\nx\r\n".repeat(LENGTH);
        timeout(PATIENCE, client.write_all(chunks.as_bytes()))
            .await
            .expect("taken in time")
            .unwrap();
        clients.push(client);
    }
    // All of it is in the proxy: a client that is answered was read to the end.
    let mut highest = 0;
    for client in &mut clients {
        highest = highest.max(resident_bytes(proxy.child.id()));
        client.write_all(b"0\r\n\r\n").await.unwrap();
        hears(client, &mut String::new(), "one").await;
    }
    let grown = highest.saturating_sub(before);
    println!(
        "{CLIENTS} bodies of {LENGTH} bytes: grew by {} KiB",
        grown >> 10
    );
    // They are 1 MiB; the connections have their buffers, too.
    assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes");
}
