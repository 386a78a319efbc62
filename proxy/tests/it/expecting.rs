//! Clients that wait for `100 Continue` before they send a body (RFC 9110, 10.1.1), and endpoints that never say it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::world::{Client, PATIENCE, Proxy, table};

/// The body that clients hold back.
const BODY: &str = "the body";

/// What an endpoint does with a request for `/upload`; any other it answers with 200 and `other`.
#[derive(Debug, Clone, Copy)]
enum Manner {
    /// It reads the body and says it back, and never says 100.
    Silent,
    /// It says 100 twice, and 103 between, and does the same.
    Talkative,
    /// It answers the head by that, and goes on reading.
    AtOnce(&'static str),
    /// It answers the head by that, and closes.
    Closing(&'static str),
}

/// An endpoint, and the head of each request that came to it.
#[derive(Debug)]
struct Endpoint {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Endpoint {
    async fn new(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let noted = Arc::clone(&heads);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, manner, Arc::clone(&noted)));
            }
        });
        Self {
            address,
            heads,
            task,
        }
    }

    /// The request lines and whether any head asked for 100.
    fn seen(&self) -> (Vec<String>, bool) {
        let heads = self.heads.lock().unwrap();
        let line = |head: &String| head.lines().next().unwrap_or_default().to_owned();
        let expects = heads
            .iter()
            .any(|head| head.to_lowercase().contains("\r\nexpect:"));
        (heads.iter().map(line).collect(), expects)
    }
}

async fn serve(stream: TcpStream, manner: Manner, heads: Arc<Mutex<Vec<String>>>) {
    let mut peer = Side::new(stream);
    while let Some(head) = peer.head().await {
        heads.lock().unwrap().push(head.clone());
        let is_upload = head.contains(" /upload ");
        let early = match manner {
            Manner::AtOnce(answer) | Manner::Closing(answer) if is_upload => Some(answer),
            Manner::Silent | Manner::Talkative | Manner::AtOnce(_) | Manner::Closing(_) => None,
        };
        if let Some(answer) = early {
            if peer.stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
            if matches!(manner, Manner::AtOnce(_)) {
                // Whatever comes is of the body that nobody wanted.
                while peer.more().await {}
            }
            return;
        }
        if is_upload && matches!(manner, Manner::Talkative) {
            let words = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n";
            peer.stream.write_all(words.as_bytes()).await.unwrap();
        }
        let body = match length_of(&head) {
            Some(length) => peer.exactly(length).await,
            None if head.to_lowercase().contains("chunked") => peer.until("0\r\n\r\n").await,
            None => String::new(),
        };
        let body = if is_upload { &body } else { "other" };
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        if peer.stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

fn length_of(head: &str) -> Option<usize> {
    let head = head.to_lowercase();
    let (_, value) = head.split_once("\r\ncontent-length: ")?;
    value.lines().next()?.parse().ok()
}

/// One end of a connection, read piece by piece.
#[derive(Debug)]
struct Side {
    stream: TcpStream,
    heard: Vec<u8>,
}

impl Side {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            heard: Vec::new(),
        }
    }

    /// A client that has sent this.
    async fn client(proxy: SocketAddr, sent: &str) -> Self {
        let mut stream = TcpStream::connect(proxy).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        Self::new(stream)
    }

    /// Whether more came; `false` at the end, be it a reset.
    async fn more(&mut self) -> bool {
        let read = self.stream.read_buf(&mut self.heard);
        let read = timeout(PATIENCE, read).await.expect("more, or the end");
        matches!(read, Ok(1..))
    }

    /// All up to and with `end`; `None` if the other side ended before.
    async fn up_to(&mut self, end: &str) -> Option<String> {
        loop {
            let windows = self.heard.windows(end.len());
            let found = windows
                .into_iter()
                .position(|window| window == end.as_bytes());
            if let Some(at) = found {
                let read: Vec<u8> = self.heard.drain(..at + end.len()).collect();
                return Some(String::from_utf8(read).unwrap());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    async fn head(&mut self) -> Option<String> {
        self.up_to("\r\n\r\n").await
    }

    async fn until(&mut self, end: &str) -> String {
        self.up_to(end).await.unwrap()
    }

    async fn exactly(&mut self, length: usize) -> String {
        while self.heard.len() < length {
            assert!(self.more().await, "ended within a body");
        }
        let read: Vec<u8> = self.heard.drain(..length).collect();
        String::from_utf8(read).unwrap()
    }

    /// The status and the body of the next answer; `None` if the other side ended before.
    async fn answer(&mut self) -> Option<(u16, String)> {
        let head = self.head().await?;
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = match status {
            100..=199 => String::new(),
            _ => self.exactly(length_of(&head).expect("a length")).await,
        };
        Some((status, body))
    }
}

/// The head of an upload that waits for 100.
fn waiting(method: &Method, version: &str, length: usize) -> String {
    format!(
        "{method} /upload HTTP/{version}\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
    )
}

#[tokio::test]
async fn a_client_that_waits_is_told_to_go_on_once_whatever_the_endpoint_says() {
    for manner in [Manner::Silent, Manner::Talkative] {
        let endpoint = Endpoint::new(manner).await;
        let proxy = Proxy::alone(&table(1, &[endpoint.address], json!({}))).await;
        // Collected, so that it could be repeated, and passed on as it comes.
        for method in [Method::PUT, Method::POST] {
            let head = waiting(&method, "1.1", BODY.len());
            let mut client = Side::client(proxy.listen, &head).await;
            for upload in 0..3 {
                if upload > 0 {
                    client.stream.write_all(head.as_bytes()).await.unwrap();
                }
                let case = format!("{manner:?} {method} {upload}");
                let word = client.answer().await;
                assert_eq!(word, Some((100, String::new())), "{case}");
                assert!(client.heard.is_empty(), "{case}: not only 100");
                client.stream.write_all(BODY.as_bytes()).await.unwrap();
                let answer = client.answer().await;
                assert_eq!(answer, Some((200, BODY.to_owned())), "{case}");
            }
        }
        let (lines, expects) = endpoint.seen();
        assert_eq!(lines.len(), 6, "{manner:?}: {lines:?}");
        assert!(!expects, "the expectation is the proxy's to meet");
        proxy.stop().await;
    }
}

#[tokio::test]
async fn a_final_answer_in_place_of_100_reaches_a_client_that_never_sends_its_body() {
    const REFUSED: &str = "HTTP/1.1 413 Payload Too Large\r\ncontent-length: 4\r\n\r\nlong";
    const UNMET: &str = "HTTP/1.1 417 Expectation Failed\r\ncontent-length: 5\r\n\r\nunmet";
    let cases = [
        (Manner::AtOnce(REFUSED), (413, "long")),
        (Manner::Closing(REFUSED), (413, "long")),
        (Manner::AtOnce(UNMET), (417, "unmet")),
        (Manner::Closing(UNMET), (417, "unmet")),
    ];
    for (manner, (status, body)) in cases {
        let endpoint = Endpoint::new(manner).await;
        let proxy = Proxy::alone(&table(1, &[endpoint.address], json!({}))).await;
        // Long, so that no buffer makes up for a body that does not come.
        let head = waiting(&Method::POST, "1.1", 1 << 20);
        let mut client = Side::client(proxy.listen, &head).await;
        let mut answer = client.answer().await;
        if answer == Some((100, String::new())) {
            answer = client.answer().await;
        }
        assert_eq!(answer, Some((status, body.to_owned())), "{manner:?}");
        // Whatever it sends now, what comes behind half a body is no request.
        let late = format!("{BODY}GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n");
        drop(client.stream.write_all(late.as_bytes()).await);
        assert_eq!(client.answer().await, None, "{manner:?}");

        // The endpoint is asked by another connection, or by the same when it is done with that body.
        let others = Client::new();
        for _ in 0..3 {
            let answer = others.get(&proxy.url("/"), &[]).await.unwrap();
            let answer = (answer.status, answer.body.as_str());
            assert_eq!(answer, (StatusCode::OK, "other"), "{manner:?}");
        }
        let (lines, expects) = endpoint.seen();
        let expected = [
            "POST /upload HTTP/1.1",
            "GET / HTTP/1.1",
            "GET / HTTP/1.1",
            "GET / HTTP/1.1",
        ];
        let expected = Vec::from(expected.map(str::to_owned));
        assert_eq!((lines, expects), (expected, false));
        // The answer was the release's own, and no failure of it.
        let ok = ["outcome=\"ok\""];
        let counted = proxy.metric("friday_proxy_requests_total", &ok).await;
        assert_eq!(counted, 4.0, "{manner:?}");
        proxy.stop().await;
    }
}

#[tokio::test]
async fn an_early_answer_is_not_lost_to_a_client_that_sends_its_body_all_the_same() {
    const REFUSED: &str = "HTTP/1.1 413 Payload Too Large\r\ncontent-length: 4\r\n\r\nlong";
    const LENGTH: usize = 256 << 10;
    for manner in [Manner::AtOnce(REFUSED), Manner::Closing(REFUSED)] {
        let endpoint = Endpoint::new(manner).await;
        let proxy = Proxy::alone(&table(1, &[endpoint.address], json!({}))).await;
        let head = waiting(&Method::POST, "1.1", LENGTH);
        let mut client = Side::client(proxy.listen, &head).await;
        // It waits for any word, and then sends all it has: the proxy may have closed already.
        assert!(client.more().await);
        let body = "x".repeat(LENGTH);
        drop(client.stream.write_all(body.as_bytes()).await);
        let mut answer = client.answer().await;
        if answer == Some((100, String::new())) {
            answer = client.answer().await;
        }
        assert_eq!(answer, Some((413, "long".to_owned())), "{manner:?}");
        proxy.stop().await;
    }
}

#[tokio::test]
async fn what_the_proxy_refuses_by_itself_is_refused_without_asking_for_the_body() {
    let endpoint = Endpoint::new(Manner::Silent).await;
    let more =
        json!({ "match": { "host": "a", "path": "/upload" }, "limits": { "body_bytes_max": 4 } });
    let proxy = Proxy::alone(&table(1, &[endpoint.address], more)).await;
    for method in [Method::PUT, Method::POST] {
        let too_long = waiting(&method, "1.1", BODY.len());
        let nowhere = too_long.replace("/upload", "/nowhere");
        let no_host = too_long.replace("host: a", "host: a b");
        for (head, expected) in [(too_long, 413), (nowhere, 404), (no_host, 400)] {
            let mut client = Side::client(proxy.listen, &head).await;
            let (status, why) = client.answer().await.unwrap();
            assert_eq!(status, expected, "{head}: {why}");
            // Sent all the same, the body is one, or nobody listens any more.
            let late = "GET /nowhere HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
            let late = format!("{BODY}{late}");
            drop(client.stream.write_all(late.as_bytes()).await);
            let next = client.answer().await.map(|(status, _)| status);
            assert!(matches!(next, None | Some(404)), "{head}: {next:?}");
        }
    }
    assert_eq!(endpoint.seen().0, Vec::<String>::new());
    proxy.stop().await;
}

#[tokio::test]
async fn who_cannot_wait_is_not_told_to_go_on() {
    let endpoint = Endpoint::new(Manner::Silent).await;
    let proxy = Proxy::alone(&table(1, &[endpoint.address], json!({}))).await;
    for method in [Method::PUT, Method::POST] {
        // HTTP/1.0 has no such answer (RFC 9110, 10.1.1), and an empty body none to wait for.
        let old = waiting(&method, "1.0", BODY.len()) + BODY;
        let empty = waiting(&method, "1.1", 0);
        for (sent, expected) in [(old, BODY), (empty, "")] {
            let mut client = Side::client(proxy.listen, &sent).await;
            let answer = client.answer().await;
            assert_eq!(answer, Some((200, expected.to_owned())), "{sent}");
        }
        // HTTP/2 has streams, and nobody need wait.
        let headers = [("expect", "100-continue")];
        let url = proxy.url("/upload");
        let sent = Client::h2().call(method, &url, &headers, BODY).await;
        let answer = sent.unwrap();
        assert_eq!((answer.status, &*answer.body), (StatusCode::OK, BODY));
    }
    assert!(!endpoint.seen().1);
    proxy.stop().await;
}
