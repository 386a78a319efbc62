//! Large bodies: passed on as they come, never gathered.

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

use crate::program::{Running, table_file};
use crate::world::{Backend, table};

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
