//! What odd upstreams answer: the client gets all of it or an error, never a part that looks whole, and the next answer is
//! the next answer.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::world::{Client, Proxy, table};

/// An upstream that says `odd` to each request for `/odd` and `good` to all others, and closes no connection by itself.
async fn odd(odd: Vec<u8>) -> (std::net::SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(answer(stream, odd.clone()));
        }
    });
    (address, task)
}

async fn answer(mut stream: TcpStream, odd: Vec<u8>) {
    let mut head = Vec::new();
    while let Ok(byte) = stream.read_u8().await {
        head.push(byte);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        let answer: &[u8] = match head.starts_with(b"GET /odd ") {
            true => &odd,
            false => b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood",
        };
        // The proxy may have closed already.
        if stream.write_all(answer).await.is_err() {
            return;
        }
        head.clear();
    }
}

/// An answer with those lines in its head, and that body.
fn with(lines: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\n{body}")
}

#[tokio::test]
async fn an_odd_answer_is_whole_for_the_client_or_none() {
    let long = "x".repeat(100);
    let chunks = format!("64\r\n{long}\r\n0\r\n\r\n");
    // The answer; what the client gets, and what is counted.
    let cases = [
        (
            with("content-length: 5\r\ntransfer-encoding: chunked", &chunks),
            (200, long.as_str()),
            "ok",
        ),
        (
            with("transfer-encoding: chunked\r\ncontent-length: 5", &chunks),
            (200, long.as_str()),
            "ok",
        ),
        (
            with("transfer-encoding: Chunked\r\ncontent-length: 500", &chunks),
            (200, long.as_str()),
            "ok",
        ),
        (
            with("transfer-encoding: chunked\r\ncontent-length: x", &chunks),
            (200, long.as_str()),
            "ok",
        ),
        (
            with("content-length: 5\r\ncontent-length: 5", "hello"),
            (200, "hello"),
            "ok",
        ),
        (
            with("content-length: 5\r\ncontent-length: 6", "hello"),
            (502, "the upstream broke the connection before its answer\n"),
            "reset",
        ),
        (
            with("content-length: 5\r\ncontent-length: -5", "hello"),
            (502, "the upstream broke the connection before its answer\n"),
            "reset",
        ),
        (
            with("content-length: 5", "hello and more"),
            (200, "hello"),
            "ok",
        ),
        (
            with(
                "content-length: 5",
                "helloHTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad",
            ),
            (200, "hello"),
            "ok",
        ),
        (
            with(
                "transfer-encoding: chunked",
                "5\r\nhello\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            ),
            (200, "hello"),
            "ok",
        ),
        (
            "HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\nhello".to_owned(),
            (204, ""),
            "ok",
        ),
    ];
    for h2 in [false, true] {
        for (sent, expected, outcome) in &cases {
            let (address, server) = odd(sent.clone().into_bytes()).await;
            let proxy = Proxy::alone(&table(1, &[address], json!({}))).await;
            let client = if h2 { Client::h2() } else { Client::new() };
            let get = async |path: &str| {
                let answer = client.get(&proxy.url(path), &[]).await?;
                Ok::<_, String>((answer.status.as_u16(), answer.body))
            };
            let case = format!("{sent:?}, h2 {h2}");
            let expected = (expected.0, expected.1.to_owned());
            assert_eq!(get("/odd").await, Ok(expected), "{case}");
            for _ in 0..3 {
                assert_eq!(get("/").await, Ok((200, "good".to_owned())), "{case}");
            }
            let outcome = format!("outcome=\"{outcome}\"");
            let counted = proxy
                .metric("friday_proxy_requests_total", &[&outcome])
                .await;
            let good = if outcome.contains("ok") { 4.0 } else { 1.0 };
            assert_eq!(counted, good, "{case}");
            proxy.stop().await;
            server.abort();
        }
    }
}
