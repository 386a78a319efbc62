//! Clients that take their time: heads, bodies and readers.

use std::time::Duration;

use friday_proxy::config::Source;
use futures::future::join_all;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use proxy_api::RouteTable;
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::answers;
use super::floods::beside_a_good_client;
use super::frames::{END_HEADERS, END_STREAM, Event, HEADERS, Raw, frame, request};
use super::recorder::Recorder;
use crate::world::{Backend, PATIENCE, Proxy, eventually, table, text};

/// What an impatient proxy waits for a head, and for an answer to be taken.
const WAIT_MAX: Duration = Duration::from_millis(500);

/// Connections of a slow client.
const CONNECTIONS: usize = 300;

#[tokio::test]
async fn heads_that_come_byte_by_byte_hold_nobody_up() {
    let recorder = Recorder::new().await;
    let proxy = Proxy::alone(&table(1, &[recorder.address], json!({}))).await;
    let head = "GET /slow HTTP/1.1\r\nhost: a\r\nx: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyy";
    let mut slow = Vec::new();
    beside_a_good_client(proxy.listen, async {
        for _ in 0..CONNECTIONS {
            slow.push(TcpStream::connect(proxy.listen).await.unwrap());
        }
        for byte in head.as_bytes() {
            for stream in &mut slow {
                stream.write_all(&[*byte]).await.unwrap();
            }
        }
    })
    .await;
    drop(slow);
    proxy.stop().await;
    let log = recorder.end().await;
    assert!(log.cut.is_empty() && log.faults.is_empty(), "{log:?}");
    assert!(log.whole.iter().all(|seen| seen.target == "/good"));
}

/// A proxy that waits for clients no longer than [`WAIT_MAX`], and where its table is.
async fn impatient(table: &RouteTable) -> (Proxy, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("routes.json");
    std::fs::write(&file, serde_json::to_vec(table).unwrap()).unwrap();
    let proxy = Proxy::with(Source::File(file), PATIENCE, |config| {
        config.clients.head_max = WAIT_MAX;
    });
    (proxy.await.unwrap(), directory)
}

/// The same for clients that have nothing to ask for twice as long.
async fn restless(table: &RouteTable) -> (Proxy, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("routes.json");
    std::fs::write(&file, serde_json::to_vec(table).unwrap()).unwrap();
    let proxy = Proxy::with(Source::File(file), PATIENCE, |config| {
        config.clients.head_max = WAIT_MAX;
        config.clients.idle_max = 2 * WAIT_MAX;
    });
    (proxy.await.unwrap(), directory)
}

/// Waits until so many were refused for that reason.
async fn refused(proxy: &Proxy, reason: &str, times: f64) {
    let label = format!("reason=\"{reason}\"");
    eventually(reason, async || {
        let refused = proxy.metric("friday_proxy_refusals_total", &[&label]).await;
        (refused >= times).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_head_that_does_not_come_to_its_end_ends_the_connection_however_it_trickles() {
    let recorder = Recorder::new().await;
    let (proxy, _directory) = impatient(&table(1, &[recorder.address], json!({}))).await;
    beside_a_good_client(proxy.listen, async {
        let all = (0..50).map(|_| async {
            let stream = TcpStream::connect(proxy.listen).await.unwrap();
            let (mut from, mut to) = stream.into_split();
            let trickle = async {
                let mut ticks = tokio::time::interval(WAIT_MAX / 10);
                while to.write_all(b"x").await.is_ok() {
                    ticks.tick().await;
                }
            };
            let mut got = Vec::new();
            let read = async {
                // A reset behind the answer is an end, too.
                while let Ok(1..) = from.read_buf(&mut got).await {}
            };
            tokio::select! {
                () = trickle => {}
                () = read => {}
            }
            let answer = answers(&got).unwrap();
            assert!(["", "408"].contains(&answer.as_str()), "{answer}");
        });
        join_all(all).await;
    })
    .await;
    refused(&proxy, "head_timeout", 50.0).await;
    proxy.stop().await;
    let log = recorder.end().await;
    assert!(log.cut.is_empty() && log.faults.is_empty(), "{log:?}");
}

#[tokio::test]
async fn an_answer_that_is_not_taken_ends_the_connection() {
    let large: &'static str = Box::leak("x".repeat(16 << 20).into_boxed_str());
    let backend = Backend::new(move |_| async move { text(StatusCode::OK, large) }).await;
    let (proxy, _directory) = impatient(&table(1, &[backend.address], json!({}))).await;
    let mut readers = Vec::new();
    for version in ["1.1", "1.0"].repeat(10) {
        let mut stream = TcpStream::connect(proxy.listen).await.unwrap();
        let sent = format!("GET /large HTTP/{version}\r\nhost: a\r\n\r\n");
        stream.write_all(sent.as_bytes()).await.unwrap();
        readers.push((version, stream));
    }
    refused(&proxy, "answer_unread", 20.0).await;
    eventually("nothing in flight", async || {
        (proxy.metric("friday_proxy_in_flight", &[]).await == 0.0).then_some(())
    })
    .await;
    for (version, mut stream) in readers {
        let ended = stream.read_to_end(&mut Vec::new()).await;
        assert!(version == "1.1" || ended.is_err(), "it looks whole");
    }
}

#[tokio::test]
async fn a_body_that_stops_is_refused_with_408_and_never_complete() {
    let recorder = Recorder::new().await;
    let more = json!({ "timeouts": { "response_ms": 300 } });
    let proxy = Proxy::alone(&table(1, &[recorder.address], more)).await;
    let heads = [
        "content-length: 50\r\n\r\nhello",
        "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ];
    beside_a_good_client(proxy.listen, async {
        for head in heads {
            let all = (0..50).map(|_| async {
                let mut stream = TcpStream::connect(proxy.listen).await.unwrap();
                let sent = format!("POST /slow HTTP/1.1\r\nhost: a\r\n{head}");
                stream.write_all(sent.as_bytes()).await.unwrap();
                let mut got = Vec::new();
                // A reset behind the answer is an end, too.
                while let Ok(1..) = stream.read_buf(&mut got).await {}
                assert_eq!(answers(&got).as_deref(), Ok("408"));
            });
            join_all(all).await;
        }
    })
    .await;
    let refused = proxy.metric("friday_proxy_refusals_total", &["reason=\"body_timeout\""]);
    assert_eq!(refused.await, 100.0);
    proxy.stop().await;
    let log = recorder.end().await;
    assert!(log.faults.is_empty(), "{:?}", log.faults);
    assert!(log.whole.iter().all(|seen| seen.target == "/good"));
}

#[tokio::test]
async fn readers_that_do_not_read_keep_no_answer_in_memory() {
    // 16 MiB each for 300 connections: 4.7 GiB, if it came.
    let large: &'static str = Box::leak("x".repeat(16 << 20).into_boxed_str());
    let backend = Backend::new(move |request| async move {
        let body = if request.uri().path() == "/large" {
            large
        } else {
            "ok"
        };
        text(StatusCode::OK, body)
    })
    .await;
    let proxy = Proxy::alone(&table(1, &[backend.address], json!({}))).await;
    beside_a_good_client(proxy.listen, async {
        let mut readers = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut stream = TcpStream::connect(proxy.listen).await.unwrap();
            let sent = b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n";
            stream.write_all(sent).await.unwrap();
            // A little, so that the answer has begun.
            stream.read_exact(&mut [0; 100]).await.unwrap();
            readers.push(stream);
        }
        assert!(backend.hits() >= u32::try_from(CONNECTIONS).unwrap());
    })
    .await;
    // They are gone: so is what was held for them.
    eventually("nothing in flight", async || {
        (proxy.metric("friday_proxy_in_flight", &[]).await == 0.0).then_some(())
    })
    .await;
}
#[tokio::test]
async fn an_answer_that_no_window_is_opened_for_does_not_hold_the_upstream() {
    let large: &'static str = Box::leak("x".repeat(16 << 20).into_boxed_str());
    let backend = Backend::new(move |_| async move { text(StatusCode::OK, large) }).await;
    let (proxy, _directory) = impatient(&table(1, &[backend.address], json!({}))).await;
    let mut raw = Raw::new(proxy.listen, &[(4, 0)]).await;
    let head = frame(HEADERS, END_HEADERS | END_STREAM, 1, &request("GET", "/"));
    assert!(raw.send(&head).await);
    assert_eq!(raw.from.event().await, Event::Answer(1, 200));
    eventually("the end of it", async || {
        (proxy.metric("friday_proxy_in_flight", &[]).await == 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn who_says_nothing_by_http2_is_let_go_in_the_end() {
    let backend = Backend::named("one").await;
    let (proxy, _directory) = restless(&table(1, &[backend.address], json!({}))).await;
    let head = request("GET", "/");
    let whole = frame(HEADERS, END_HEADERS | END_STREAM, 1, &head);
    // None of them says that it heard GOAWAY.
    let all = [vec![], frame(HEADERS, END_STREAM, 1, &head), whole];
    let all = all.iter().map(|sent| async {
        let mut raw = Raw::new(proxy.listen, &[]).await;
        assert!(raw.send(sent).await);
        while raw.from.event().await != Event::Closed {}
    });
    join_all(all).await;
    assert_eq!(backend.hits(), 1);
    proxy.stop().await;
}

#[tokio::test]
async fn who_says_nothing_by_http2_does_not_hold_a_drain_up() {
    let backend = Backend::named("one").await;
    let (proxy, _directory) = impatient(&table(1, &[backend.address], json!({}))).await;
    let mut raw = Raw::new(proxy.listen, &[]).await;
    let head = frame(HEADERS, END_HEADERS | END_STREAM, 1, &request("GET", "/"));
    assert!(raw.send(&head).await);
    assert_eq!(raw.from.event().await, Event::Answer(1, 200));
    // It could take as long as all of our patience.
    let stopped = timeout(PATIENCE / 2, proxy.stop()).await;
    stopped.expect("it does not wait for who does not answer");
}

#[tokio::test]
async fn a_body_that_comes_behind_its_head_is_no_head_and_what_comes_behind_the_body_is() {
    let backend = Backend::new(|request: Request<Incoming>| async move {
        drop(request.into_body().collect().await);
        text(StatusCode::OK, "ok")
    })
    .await;
    let (proxy, _directory) = impatient(&table(1, &[backend.address], json!({}))).await;
    let get = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let long = "content-length: 4\r\n\r\n";
    let chunked = "transfer-encoding: chunked\r\n\r\n";
    // The last two have half a head behind the body, and in the same read.
    let all = [
        (long, "body", get, "200 200"),
        (chunked, "4\r\nbody\r\n0\r\n\r\n", get, "200 200"),
        (long, "bodyGET", "", "200 408"),
        (chunked, "4\r\nbody\r\n0\r\n\r\nGET", "", "200 408"),
    ];
    let mut begun = Vec::new();
    for (head, ..) in all {
        let mut stream = TcpStream::connect(proxy.listen).await.unwrap();
        let head = format!("POST / HTTP/1.1\r\nhost: a\r\n{head}");
        stream.write_all(head.as_bytes()).await.unwrap();
        begun.push(stream);
    }
    eventually("the heads at the backend", async || {
        (backend.hits() == 4).then_some(())
    })
    .await;
    let cases = begun.into_iter().zip(all);
    let cases = cases.map(|(mut stream, (_, body, later, expected))| async move {
        stream.write_all(body.as_bytes()).await.unwrap();
        let mut got = Vec::new();
        while !got.ends_with(b"\r\n\r\nok") {
            assert!(stream.read_buf(&mut got).await.unwrap() > 0, "{body}");
        }
        if !later.is_empty() {
            // For longer than half a head may take.
            tokio::time::sleep(4 * WAIT_MAX).await;
        }
        stream.write_all(later.as_bytes()).await.unwrap();
        let rest = timeout(PATIENCE, stream.read_to_end(&mut got)).await;
        rest.expect("it ends").unwrap();
        assert_eq!(answers(&got).as_deref(), Ok(expected), "{body}");
    });
    join_all(cases).await;
    proxy.stop().await;
}
