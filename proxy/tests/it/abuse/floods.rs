//! HTTP/2 in quantities: the connection is ended or held up, memory stays bounded, and others are served meanwhile.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use http::StatusCode;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Event, HEADERS, PING, PRIORITY, RST_STREAM, Raw,
    SETTINGS, WINDOW_UPDATE, frame, request,
};
use super::recorder::{Log, Recorder};
use crate::world::{Backend, Client, PATIENCE, Proxy, table, text};

/// Most that this process may grow during a flood. Other tests run in it at the same time; what a flood must not do is
/// keep what it sends, and each sends frames that would make more than this.
const GROWTH_BYTES_MAX: i64 = 128 << 20;

/// Memory of this process.
pub(crate) fn resident_bytes() -> i64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: i64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4_096
}

/// Does something bad to a proxy while a good client asks again and again, and gives what came of the bad.
pub(crate) async fn beside_a_good_client<T>(proxy: SocketAddr, bad: impl Future<Output = T>) -> T {
    let over = AtomicBool::new(false);
    let before = resident_bytes();
    let good = async {
        let client = Client::new();
        let url = format!("http://{proxy}/good");
        let mut most = 0;
        // At least once behind it, too.
        loop {
            let last = over.load(Ordering::SeqCst);
            let answer = timeout(PATIENCE, client.get(&url, &[])).await;
            assert_eq!(answer.expect("in time").unwrap().status, StatusCode::OK);
            most = most.max(resident_bytes() - before);
            if last {
                return most;
            }
        }
    };
    let bad = async {
        let came = timeout(PATIENCE * 3, bad)
            .await
            .expect("it comes to an end");
        over.store(true, Ordering::SeqCst);
        came
    };
    let (came, most) = tokio::join!(bad, good);
    assert!(most < GROWTH_BYTES_MAX, "grew by {} MiB", most >> 20);
    came
}

/// What became of a flood.
#[derive(Debug)]
struct Flood {
    /// The end of the connection, if it came.
    end: Option<Event>,
    log: Log,
}

/// Sends these bytes so many times, reading what comes or not, and hangs up.
async fn flood(first: &[u8], piece: impl Fn(u32) -> Vec<u8>, times: u32, reads: bool) -> Flood {
    let recorder = Recorder::new().await;
    let proxy = Proxy::alone(&table(1, &[recorder.address], json!({}))).await;
    let end = beside_a_good_client(proxy.listen, async {
        let Raw { mut to, mut from } = Raw::new(proxy.listen, &[]).await;
        let flow = async |to: &mut tokio::net::tcp::OwnedWriteHalf| {
            if to.write_all(first).await.is_err() {
                return;
            }
            // Many frames in one write, as one would to do harm.
            let mut at = 0;
            while at < times {
                let until = (at + 500).min(times);
                let batch: Vec<u8> = (at..until).flat_map(&piece).collect();
                let sent = to.write_all(&batch);
                let sent = if reads {
                    sent.await
                } else {
                    // If the proxy takes no more because we do not read, that is the end of it.
                    match timeout(PATIENCE / 20, sent).await {
                        Ok(sent) => sent,
                        Err(_) => return,
                    }
                };
                if sent.is_err() {
                    return;
                }
                at = until;
            }
        };
        let watch = async {
            loop {
                match from.event().await {
                    end @ (Event::GoAway(1..) | Event::Closed) => return Some(end),
                    Event::Pong => return None,
                    Event::Answer(..) | Event::Reset(..) | Event::GoAway(0) => {}
                }
            }
        };
        if reads {
            let send = async {
                flow(&mut to).await;
                // Answered when all before it was read.
                drop(to.write_all(&frame(PING, 0, 0, &[0; 8])).await);
            };
            tokio::join!(watch, send).0
        } else {
            flow(&mut to).await;
            None
        }
    })
    .await;
    proxy.stop().await;
    let log = recorder.end().await;
    assert_eq!(log.faults, Vec::<String>::new());
    Flood { end, log }
}

fn stream(number: u32) -> u32 {
    number * 2 + 1
}

#[tokio::test]
async fn rapid_reset_ends_the_connection() {
    const TIMES: u32 = 20_000;
    let head = request("GET", "/reset");
    let piece = |at| {
        [
            frame(HEADERS, END_HEADERS | END_STREAM, stream(at), &head),
            frame(RST_STREAM, 0, stream(at), &8_u32.to_be_bytes()),
        ]
        .concat()
    };
    for reads in [true, false] {
        let Flood { end, log } = flood(&[], piece, TIMES, reads).await;
        assert!(!reads || end.is_some(), "it went on");
        let passed = log.whole.iter().filter(|seen| seen.target == "/reset");
        let passed = passed.count();
        assert!(passed < 2_000, "{passed} of {TIMES} reached the upstream");
    }
}

#[tokio::test]
async fn resets_that_the_proxy_is_made_to_send_end_the_connection() {
    // Each stream breaks its own rules at once, so that the proxy resets it (CVE-2025-8671).
    let head = request("POST", "/");
    let piece = |at| {
        [
            frame(HEADERS, END_HEADERS, stream(at), &head),
            frame(WINDOW_UPDATE, 0, stream(at), &[0; 4]),
        ]
        .concat()
    };
    let Flood { end, log } = flood(&[], piece, 20_000, true).await;
    assert!(end.is_some(), "it went on");
    assert!(
        log.cut.len() < 4_000,
        "{} reached the upstream",
        log.cut.len()
    );
}

#[tokio::test]
async fn heads_without_end_end_the_connection() {
    let head = frame(HEADERS, END_STREAM, 1, &request("GET", "/endless"));
    let field = [&[0, 1, b'x', 0x7f, 0xe9, 0x06][..], &[b'y'; 1_000]].concat();
    for payload in [&field[..], &[]] {
        let piece = |_| frame(CONTINUATION, 0, 1, payload);
        let Flood { end, log } = flood(&head, piece, 20_000, true).await;
        // The end of our own making, a ping inside a head, would be a PROTOCOL_ERROR.
        assert!(
            matches!(end, Some(Event::GoAway(11) | Event::Closed)),
            "{end:?}"
        );
        assert!(log.whole.iter().all(|seen| seen.target == "/good"));
    }
}

#[tokio::test]
async fn frames_without_work_are_read_or_refused_and_not_kept() {
    let open = frame(HEADERS, END_HEADERS, 1, &request("POST", "/open"));
    let one = 1_u32.to_be_bytes();
    // Pings of the flood would be taken for the answer to ours: those are sent without reading alone.
    let cases = [
        ("settings", SETTINGS, 0, &[][..], 100_000),
        (
            "settings of a table",
            SETTINGS,
            0,
            &[0, 1, 0, 0, 0x10, 0],
            50_000,
        ),
        ("pings", PING, 0, &[0; 8], 100_000),
        ("empty data", DATA, 1, &[], 100_000),
        ("empty data with padding", DATA, 1, &[255; 256], 20_000),
        ("windows of a stream", WINDOW_UPDATE, 1, &one, 50_000),
        ("windows", WINDOW_UPDATE, 0, &one, 100_000),
        ("priorities", PRIORITY, 3, &[0, 0, 0, 0, 9], 100_000),
        ("unknown frames", 99, 1, &[0; 64], 100_000),
    ];
    for (name, kind, stream, payload, times) in cases {
        for reads in [kind != PING, false] {
            let flags = if name.ends_with("padding") { 8 } else { 0 };
            let piece = |_| frame(kind, flags, stream, payload);
            let Flood { log, .. } = flood(&open, piece, times, reads).await;
            let whole = log.whole.iter().all(|seen| seen.target == "/good");
            assert!(whole, "{name}: a request without its end came whole");
        }
    }
}

#[tokio::test]
async fn streams_above_the_limit_are_refused_and_reach_no_upstream() {
    let head = request("POST", "/open");
    let piece = |at| frame(HEADERS, END_HEADERS, stream(at), &head);
    let Flood { log, .. } = flood(&[], piece, 2_000, true).await;
    assert!(log.whole.iter().all(|seen| seen.target == "/good"));
    assert!(log.cut.len() <= 250, "{} at the upstream", log.cut.len());
}

#[tokio::test]
async fn answers_nobody_takes_are_not_collected() {
    // 8 MiB each for 200 streams: 1.6 GiB, if it came.
    let large: &'static str = Box::leak("x".repeat(8 << 20).into_boxed_str());
    let backend = Backend::new(move |request| async move {
        let body = if request.uri().path() == "/large" {
            large
        } else {
            "ok"
        };
        text(StatusCode::OK, body)
    })
    .await;
    // 200 connections at a time to one busy thread.
    let more = json!({ "timeouts": { "connect_ms": 20_000, "response_ms": 20_000 } });
    let proxy = Proxy::alone(&table(1, &[backend.address], more)).await;
    beside_a_good_client(proxy.listen, async {
        // SETTINGS_INITIAL_WINDOW_SIZE is 0: heads come, bodies do not.
        let mut raw = Raw::new(proxy.listen, &[(4, 0)]).await;
        for at in 0..200 {
            let head = request("GET", "/large");
            let sent = frame(HEADERS, END_HEADERS | END_STREAM, stream(at), &head);
            assert!(raw.send(&sent).await);
        }
        for _ in 0..200 {
            let event = raw.from.event().await;
            assert!(matches!(event, Event::Answer(_, 200)), "{event:?}");
        }
        // Each window a byte wider, again and again.
        for _ in 0..20 {
            for at in 0..200 {
                let wider = frame(WINDOW_UPDATE, 0, stream(at), &1_u32.to_be_bytes());
                assert!(raw.send(&wider).await);
            }
        }
    })
    .await;
}
