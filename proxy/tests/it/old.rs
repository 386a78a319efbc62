//! HTTP/1.0 on either side: no chunks, no second request unless asked for, and an end that may be the connection's.

use std::net::SocketAddr;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::world::{Backend, Client, PATIENCE, Proxy, table};

/// An endpoint that says the same to each head, and then closes or breaks its connection, or goes on.
struct Endpoint {
    address: SocketAddr,
    task: JoinHandle<()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Closes,
    Breaks,
    GoesOn,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Endpoint {
    async fn new(answer: &'static str, then: Then) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, answer, then));
            }
        });
        Self { address, task }
    }
}

async fn serve(mut stream: TcpStream, answer: &'static str, then: Then) {
    let mut head = Vec::new();
    while let Ok(1..) = stream.read_buf(&mut head).await {
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        // The proxy may have gone.
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
        head.clear();
        match then {
            Then::GoesOn => {}
            Then::Closes => return,
            Then::Breaks => {
                stream.set_zero_linger().unwrap();
                return;
            }
        }
    }
}

/// Sends that, and reads until the proxy closes.
async fn exchange(proxy: &Proxy, sent: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(proxy.listen).await.unwrap();
    stream.write_all(sent.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    read.expect("it ends")?;
    Ok(String::from_utf8(answer).unwrap())
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_any_answer_whole_and_without_chunks() {
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n4\r\nfour\r\n0\r\nx-sum: 1\r\n\r\n";
    let answers = [
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfour",
            Then::GoesOn,
        ),
        (chunked, Then::GoesOn),
        (
            "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nfour",
            Then::Closes,
        ),
        ("HTTP/1.0 200 OK\r\n\r\nfour", Then::Closes),
    ];
    for (answer, then) in answers {
        let endpoint = Endpoint::new(answer, then).await;
        let proxy = Proxy::alone(&table(1, &[endpoint.address], json!({}))).await;
        // A host is not asked of it.
        for lines in ["", "host: a\r\n", "te: trailers\r\nconnection: te\r\n"] {
            let sent = format!("GET / HTTP/1.0\r\n{lines}\r\n");
            let got = exchange(&proxy, &sent).await.unwrap();
            let case = format!("{answer:?} to {sent:?}: {got:?}");
            let (head, body) = got.split_once("\r\n\r\n").unwrap();
            let head = head.to_lowercase();
            assert!(
                head.starts_with("http/1.") && head.contains(" 200 ok"),
                "{case}"
            );
            assert_eq!(body, "four", "{case}");
            assert!(!head.contains("transfer-encoding"), "{case}");
            assert!(!head.contains("connection: keep-alive"), "{case}");
        }
        proxy.stop().await;
    }
}

#[tokio::test]
async fn a_client_of_http_1_0_that_asks_for_it_keeps_its_connection_where_the_length_is_known() {
    let backend = Backend::named("four").await;
    let proxy = Proxy::alone(&table(1, &[backend.address], json!({}))).await;
    let mut client = TcpStream::connect(proxy.listen).await.unwrap();
    for method in ["GET", "HEAD", "GET"] {
        let sent = format!("{method} / HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n");
        client.write_all(sent.as_bytes()).await.unwrap();
        let end = match method {
            "HEAD" => "\r\n\r\n",
            _ => "\r\n\r\nfour",
        };
        let mut heard = Vec::new();
        while !heard.ends_with(end.as_bytes()) {
            let read = timeout(PATIENCE, client.read_buf(&mut heard)).await;
            let heard = String::from_utf8_lossy(&heard);
            assert!(read.expect("an answer").unwrap() > 0, "{method}: {heard}");
        }
        let head = String::from_utf8(heard).unwrap().to_lowercase();
        assert!(head.contains("connection: keep-alive\r\n"), "{head}");
        assert!(head.contains("content-length: 4\r\n"), "{head}");
    }
    // Of unknown length, the answer ends with the connection.
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nfour\r\n0\r\n\r\n";
    let endpoint = Endpoint::new(chunked, Then::GoesOn).await;
    proxy.put(&table(2, &[endpoint.address], json!({}))).await;
    let sent = "GET / HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n";
    let got = exchange(&proxy, sent).await.unwrap().to_lowercase();
    assert!(got.ends_with("\r\n\r\nfour"), "{got}");
    assert!(!got.contains("content-length"), "{got}");
    proxy.stop().await;
}

#[tokio::test]
async fn an_endpoint_of_http_1_0_answers_every_client() {
    let answers = [
        ("HTTP/1.0 200 OK\r\n\r\nfour", Then::Closes),
        (
            "HTTP/1.0 200 OK\r\ncontent-length: 4\r\n\r\nfour",
            Then::Closes,
        ),
        (
            "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 4\r\n\r\nfour",
            Then::GoesOn,
        ),
    ];
    for (answer, then) in answers {
        let endpoint = Endpoint::new(answer, then).await;
        let proxy = Proxy::alone(&table(1, &[endpoint.address], json!({}))).await;
        for client in [Client::new(), Client::h2()] {
            for _ in 0..3 {
                let got = client.get(&proxy.url("/"), &[]).await.unwrap();
                assert_eq!(
                    (got.status.as_u16(), &*got.body),
                    (200, "four"),
                    "{answer:?}"
                );
                assert_eq!(got.header("connection"), "", "{answer:?}");
            }
        }
        let ok = ["outcome=\"ok\""];
        let counted = proxy.metric("friday_proxy_requests_total", &ok).await;
        assert_eq!(counted, 6.0, "{answer:?}");
        proxy.stop().await;
    }
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_is_none_if_that_breaks() {
    let answers = [
        "HTTP/1.0 200 OK\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhalf",
    ];
    for answer in answers {
        let endpoint = Endpoint::new(answer, Then::Breaks).await;
        let proxy = Proxy::alone(&table(1, &[endpoint.address], json!({}))).await;
        for client in [Client::new(), Client::h2()] {
            let got = client.get(&proxy.url("/"), &[]).await;
            // If the break overtakes the head, the proxy says so itself.
            let is_success = matches!(&got, Ok(got) if got.status.is_success());
            assert!(!is_success, "{answer:?}: {got:?}");
        }
        let got = exchange(&proxy, "GET / HTTP/1.0\r\nhost: a\r\n\r\n").await;
        let is_success = matches!(&got, Ok(got) if got.contains(" 200 OK\r\n"));
        assert!(!is_success, "{answer:?}: {got:?}");
        let reset = ["outcome=\"reset\""];
        let counted = proxy.metric("friday_proxy_requests_total", &reset).await;
        assert_eq!(counted, 3.0, "{answer:?}");
        proxy.stop().await;
    }
}
