//! What stops half-way: heads of HTTP/2, answers, streams; and what goes on at an endpoint that left the table.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use friday_proxy::config::{Clients, Source};
use futures::future::join_all;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client as PooledClient;
use hyper_util::rt::TokioExecutor;
use proxy_api::RouteTable;
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::program::{Running, table_file};
use crate::transport::{UPGRADE, parrot};
use crate::world::{Backend, Client, PATIENCE, Proxy, eventually, table};

/// A proxy with other limits, and its table's folder.
async fn proxy_with(table: &RouteTable, change: impl FnOnce(&mut Clients)) -> (Proxy, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("routes.json");
    std::fs::write(&file, serde_json::to_vec(table).unwrap()).unwrap();
    let proxy = Proxy::with(Source::File(file), PATIENCE, |config| {
        change(&mut config.clients);
    });
    (proxy.await.unwrap(), directory)
}

/// What each client of an endpoint gets, with pauses in between. Behind the last piece comes nothing more; the endpoint tells
/// when its connection ends.
async fn pieces(
    pieces: &'static [&'static str],
    pause: Duration,
) -> (SocketAddr, mpsc::UnboundedReceiver<()>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (ended, ends) = mpsc::unbounded_channel();
    let task = tokio::spawn(async move {
        let mut open = tokio::task::JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let ended = ended.clone();
            open.spawn(async move {
                let mut buffer = [0; 4096];
                // A probe connects and says nothing.
                if !matches!(stream.read(&mut buffer).await, Ok(1..)) {
                    return;
                }
                for (index, piece) in pieces.iter().enumerate() {
                    if index > 0 {
                        sleep(pause).await;
                    }
                    if stream.write_all(piece.as_bytes()).await.is_err() {
                        break;
                    }
                }
                while let Ok(1..) = stream.read(&mut buffer).await {}
                // Nobody waits for it any more at the end of a test.
                let _gone = ended.send(()).is_err();
            });
        }
    });
    (address, ends, task)
}

/// A stream of events of which only the first comes.
const EVENTS: &[&str] = &[
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
];

const SHORT: Duration = Duration::from_secs(1);

/// What comes, and the limits for answers and for streams.
type Case = (&'static [&'static str], Duration, Duration);

#[tokio::test]
async fn an_answer_that_stops_is_broken_off_and_counts_against_its_release() {
    let half: &[&str] = &["HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nhalf"];
    let chunk: &[&str] = &["HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"];
    let (long, short) = (Duration::from_secs(60), SHORT);
    let cases: [Case; 3] = [
        (half, short, long),
        (chunk, short, long),
        (EVENTS, long, short),
    ];
    let with_client = |case| [(case, Client::new()), (case, Client::h2())];
    let broken_off = async |((what, answer, stream), client): (Case, Client)| {
        let (address, mut ends, server) = pieces(what, Duration::ZERO).await;
        let all = table(1, &[address], json!({}));
        let (proxy, _directory) = proxy_with(&all, |clients| {
            clients.answer_idle_max = answer;
            clients.stream_idle_max = stream;
        })
        .await;
        let begun = Instant::now();
        let url = proxy.url("/");
        let answer = timeout(PATIENCE, client.get(&url, &[])).await;
        let broken = answer.expect("it ends").expect_err("no good end");
        assert!(begun.elapsed() >= short, "{what:?}: {broken}");
        timeout(PATIENCE, ends.recv())
            .await
            .expect("the endpoint hears of it");
        let stopped = ["reason=\"answer_stopped\""];
        let stopped = proxy.metric("friday_proxy_refusals_total", &stopped).await;
        let label = ["outcome=\"timeout\"", "release=\"v1\""];
        let counted = proxy.metric("friday_proxy_requests_total", &label).await;
        let failed = proxy.metric("friday_proxy_failed_to_user_total", &[]).await;
        assert_eq!((stopped, counted, failed), (1.0, 1.0, 1.0), "{what:?}");
        proxy.stop().await;
        server.abort();
    };
    join_all(cases.into_iter().flat_map(with_client).map(broken_off)).await;
}

#[tokio::test]
async fn an_answer_may_take_long_as_long_as_it_goes_on_and_a_stream_may_be_silent() {
    let slow: &[&str] = &[
        "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\na",
        "b",
        "c",
        "d",
        "e",
        "f",
    ];
    let events: &[&str] = &[
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n4\r\nabcd\r\n",
        "2\r\nef\r\n0\r\n\r\n",
    ];
    for (what, pause) in [(slow, SHORT / 2), (events, 2 * SHORT)] {
        let (address, _ends, server) = pieces(what, pause).await;
        let all = table(1, &[address], json!({}));
        let (proxy, _directory) = proxy_with(&all, |clients| clients.answer_idle_max = SHORT).await;
        let answer = Client::new().get(&proxy.url("/"), &[]).await.unwrap();
        assert_eq!((answer.status, &*answer.body), (StatusCode::OK, "abcdef"));
        let ok = proxy.metric("friday_proxy_requests_total", &["outcome=\"ok\""]);
        assert_eq!(ok.await, 1.0);
        proxy.stop().await;
        server.abort();
    }
}

#[tokio::test]
async fn interim_answers_are_left_out_and_the_answer_comes() {
    let hints: &[&str] = &[
        "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n",
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
    ];
    let (address, _ends, server) = pieces(hints, SHORT / 10).await;
    let proxy = Proxy::alone(&table(1, &[address], json!({}))).await;
    for client in [Client::new(), Client::h2()] {
        let answer = client.get(&proxy.url("/"), &[]).await;
        assert_eq!(answer.unwrap().body, "ok");
    }
    proxy.stop().await;
    server.abort();
}

#[tokio::test]
async fn an_upgraded_connection_on_which_nothing_passes_is_ended() {
    let (address, server) = parrot().await;
    let all = table(1, &[address], json!({}));
    let (proxy, _directory) = proxy_with(&all, |clients| clients.stream_idle_max = SHORT).await;
    let mut chat = TcpStream::connect(proxy.listen).await.unwrap();
    chat.write_all(UPGRADE).await.unwrap();
    // It lasts longer than the limit while it is used.
    let mut heard = String::new();
    let mut buffer = [0; 1024];
    for round in 0..6 {
        chat.write_all(format!("{round} ").as_bytes())
            .await
            .unwrap();
        while !heard.ends_with(&format!("{round} ")) {
            let length = chat.read(&mut buffer).await.unwrap();
            assert!(length > 0, "{heard:?}");
            heard.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
        }
        sleep(SHORT / 4).await;
    }
    let end = timeout(PATIENCE, chat.read(&mut buffer)).await;
    assert!(matches!(end.expect("it ends"), Ok(0) | Err(_)));
    eventually("it is counted", async || {
        let stopped = ["reason=\"answer_stopped\""];
        let stopped = proxy.metric("friday_proxy_refusals_total", &stopped).await;
        (stopped == 1.0).then_some(())
    })
    .await;
    let in_flight = proxy.metric("friday_proxy_in_flight", &[]).await;
    assert_eq!(in_flight, 0.0);
    proxy.stop().await;
    server.abort();
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    let header = [0, 0, length, kind, flags, 0, 0, 0, stream];
    [&header[..], payload].concat()
}

#[tokio::test]
async fn half_a_head_of_http_2_has_its_time_also_while_other_requests_go_on() {
    /// `GET http://a/`, by the static table of RFC 7541.
    const GET: [u8; 6] = [0x82, 0x86, 0x84, 0x41, 0x01, b'a'];
    let hello = [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
        &frame(4, 0, 0, &[]),
    ]
    .concat();
    let whole = frame(1, 5, 1, &GET);
    let unended = frame(1, 1, 3, &GET);
    let cut = frame(1, 5, 3, &GET)[..11].to_vec();
    let continued = [unended.clone(), frame(9, 0, 3, &[])].concat();
    let cases = [
        (unended.clone(), false),
        (unended, true),
        (cut, true),
        (continued, true),
    ];
    let closed = async |(rest, has_other): (Vec<u8>, bool)| {
        // Its answer does not end.
        let (address, _ends, server) = pieces(EVENTS, Duration::ZERO).await;
        let all = table(1, &[address], json!({}));
        let (proxy, _directory) = proxy_with(&all, |clients| clients.head_max = SHORT).await;
        let mut client = TcpStream::connect(proxy.listen).await.unwrap();
        client.write_all(&hello).await.unwrap();
        if has_other {
            client.write_all(&whole).await.unwrap();
        }
        client.write_all(&rest).await.unwrap();
        let begun = Instant::now();
        let end = timeout(PATIENCE, client.read_to_end(&mut Vec::new())).await;
        assert!(matches!(end.expect("it is closed"), Ok(_) | Err(_)));
        assert!(begun.elapsed() >= SHORT);
        let late = ["reason=\"head_timeout\""];
        let late = proxy.metric("friday_proxy_refusals_total", &late).await;
        assert_eq!(late, 1.0, "{rest:?} {has_other}");
        proxy.stop().await;
        server.abort();
    };
    join_all(cases.map(closed)).await;
}

#[tokio::test]
async fn f22_what_goes_on_at_an_endpoint_that_left_the_table_is_ended_at_a_limit_and_logged() {
    let (address, mut ends, server) = pieces(EVENTS, Duration::ZERO).await;
    let (stays, _stays_on, staying) = pieces(EVENTS, Duration::ZERO).await;
    let (parrot, parrots) = parrot().await;
    let after = Backend::named("after").await;
    let directory = tempfile::tempdir().unwrap();
    let at = |seq, tasks: [(SocketAddr, &str); 3]| {
        let mut all = table(seq, &[], json!({}));
        all.routes = ["/events", "/stays", "/chat"]
            .iter()
            .zip(tasks)
            .flat_map(|(path, (task, side))| {
                let of =
                    |release: &str| json!({ "release": release, "endpoints": [task.to_string()] });
                let more = json!({ "name": path, "match": { "path": path }, "canary_bp": 10_000 });
                let mut route = table(seq, &[after.address], more).routes.remove(0);
                let whole = serde_json::from_value(of("v2")).unwrap();
                match side {
                    "canary" => route.canary = Some(whole),
                    _ => {
                        route.stable = whole;
                        route.canary_bp = serde_json::from_value(json!(0)).unwrap();
                    }
                }
                [route]
            })
            .collect();
        all
    };
    let before = [address, stays, parrot].map(|task| (task, "canary"));
    let file = table_file(directory.path(), &at(1, before));
    let options = ["--routes", &*file, "--leaving-seconds", "1"];
    let proxy = Running::start(directory.path(), &options).await;

    let open = async |path: &str, h2_only: bool| {
        let client: PooledClient<_, Full<Bytes>> = PooledClient::builder(TokioExecutor::new())
            .http2_only(h2_only)
            .build_http();
        let request = Request::get(proxy.url(path)).body(Full::default());
        let mut stream = client.request(request.unwrap()).await.unwrap().into_body();
        let first = stream.frame().await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), "half");
        (stream, client)
    };
    let mut by_h1 = open("/events", false).await;
    let mut by_h2 = open("/events", true).await;
    let mut lasting = open("/stays", false).await;
    let mut chat = TcpStream::connect(&proxy.listen).await.unwrap();
    chat.write_all(UPGRADE).await.unwrap();
    let mut heard = [0; 1024];
    assert!(chat.read(&mut heard).await.unwrap() > 0);

    // The one that became stable stays.
    let now = [
        (after.address, "stable"),
        (stays, "stable"),
        (after.address, "stable"),
    ];
    proxy.put(&at(2, now)).await;
    let end = async |stream: &mut hyper::body::Incoming| {
        let frame = timeout(PATIENCE, stream.frame()).await.expect("it ends");
        frame.expect("no good end").expect_err("no further piece")
    };
    end(&mut by_h1.0).await;
    let broken = end(&mut by_h2.0).await;
    let broken = broken.source().and_then(|cause| cause.downcast_ref());
    let reason = broken.and_then(|reset: &h2::Error| reset.reason());
    assert_eq!(reason, Some(h2::Reason::CANCEL));
    let chats_end = async {
        // What it said before may still come.
        while let Ok(1..) = chat.read(&mut heard).await {}
    };
    timeout(PATIENCE, chats_end).await.expect("it ends");
    for _ in 0..2 {
        timeout(PATIENCE, ends.recv())
            .await
            .expect("the old task has nothing left to do");
    }
    let cut = "an endpoint left the table, and its limit is over: cutting what is left";
    proxy.logs(cut, 2).await;
    proxy.logs("requests=2 leaving_seconds=1", 1).await;
    proxy.logs("requests=1 leaving_seconds=1", 1).await;
    let more = timeout(SHORT, lasting.0.frame()).await;
    assert!(more.is_err(), "it goes on: {more:?}");
    drop(proxy);
    for task in [server, staying, parrots] {
        task.abort();
    }
}
