//! Endpoints that leave what they are sent unread for longer than a machine may be without a sign of life: theirs lives.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::sleep;

use crate::transport::UPGRADE;
use crate::world::{Proxy, table};

/// How long they do not read. A machine without a sign of life is given up after five seconds.
const UNREAD_FOR: Duration = Duration::from_secs(7);

/// For an answer, more than that and less than `PATIENCE`.
const RESPONSE_MS: u64 = 15_000;

/// What an upstream has room for, roughly, while its program does not read.
const ROOM_BYTES: u32 = 8 << 10;

/// More than it has room for, also after the kernel's roundings.
const LARGE_BYTES: usize = 128 << 10;

/// A listener whose connections have little room.
fn narrow() -> TcpListener {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(ROOM_BYTES).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    socket.listen(16).unwrap()
}

/// Reads up to and with `end`, and nothing after it.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut read = Vec::new();
    while !read.ends_with(end.as_bytes()) {
        let byte = stream.read_u8().await;
        let heard = String::from_utf8_lossy(&read);
        read.push(byte.unwrap_or_else(|error| panic!("{error} after {heard:?}")));
    }
    String::from_utf8(read).unwrap()
}

#[tokio::test]
async fn an_upgraded_connection_waits_for_a_program_that_does_not_read_for_a_while() {
    let listener = narrow();
    let proxy = Proxy::alone(&table(1, &[listener.local_addr().unwrap()], json!({}))).await;
    let mut client = TcpStream::connect(proxy.listen).await.unwrap();
    client.write_all(UPGRADE).await.unwrap();
    let (mut upstream, _) = listener.accept().await.unwrap();
    read_until(&mut upstream, "\r\n\r\n").await;
    let answer =
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: parrot\r\n\r\n";
    upstream.write_all(answer.as_bytes()).await.unwrap();
    let answer = read_until(&mut client, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    read_until(&mut upstream, "first ").await;

    let large = vec![b'x'; LARGE_BYTES];
    let sent = large.clone();
    let (mut from, mut to) = client.into_split();
    let sending = tokio::spawn(async move {
        to.write_all(&sent).await.unwrap();
        to
    });
    sleep(UNREAD_FOR).await;
    let mut read = vec![0; LARGE_BYTES];
    upstream.read_exact(&mut read).await.unwrap();
    assert!(read == large);
    upstream.write_all(b"whole").await.unwrap();
    let mut heard = [0; 5];
    from.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"whole");
    drop(sending.await.unwrap());
    proxy.stop().await;
}

#[tokio::test]
async fn a_body_that_could_be_repeated_waits_as_well() {
    let listener = narrow();
    let more = json!({
        "limits": { "replay_bytes_max": LARGE_BYTES }, "timeouts": { "response_ms": RESPONSE_MS },
    });
    let proxy = Proxy::alone(&table(1, &[listener.local_addr().unwrap()], more)).await;
    let mut client = TcpStream::connect(proxy.listen).await.unwrap();
    let head = format!("PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: {LARGE_BYTES}\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all(&vec![b'x'; LARGE_BYTES]).await.unwrap();
    let (mut upstream, _) = listener.accept().await.unwrap();
    read_until(&mut upstream, "\r\n\r\n").await;
    sleep(UNREAD_FOR).await;
    let mut read = vec![0; LARGE_BYTES];
    upstream.read_exact(&mut read).await.unwrap();
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    upstream.write_all(answer.as_bytes()).await.unwrap();
    let answer = read_until(&mut client, "\r\n\r\nok").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let retries = proxy.metric("friday_proxy_retries_total", &[]).await;
    assert_eq!(retries, 0.0);
    proxy.stop().await;
}

#[tokio::test]
async fn after_a_long_upload_a_connection_breaks_again_when_it_is_dead_and_its_endpoint_is_left() {
    let listener = narrow();
    let more = json!({ "timeouts": { "response_ms": RESPONSE_MS } });
    let proxy = Proxy::alone(&table(1, &[listener.local_addr().unwrap()], more)).await;
    let mut client = TcpStream::connect(proxy.listen).await.unwrap();
    // An upload as long as it likes, for all that the proxy knows; and close behind it, so that it goes by the same
    // connection, a request whose head alone is more than there is room for.
    let field = "y".repeat(12 << 10);
    let requests = format!(
        "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n4\r\nwork\r\n0\r\n\r\n\
        POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\na: {field}\r\nb: {field}\r\nc: {field}\r\nd: {field}\r\n\r\n"
    );
    client.write_all(requests.as_bytes()).await.unwrap();
    let (mut upstream, _) = listener.accept().await.unwrap();
    read_until(&mut upstream, "0\r\n\r\n").await;

    // From here on it is as if nobody was there: no connection is taken, and what goes by the old one is not received.
    drop(listener);
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    upstream.write_all(answer.as_bytes()).await.unwrap();
    read_until(&mut client, "\r\n\r\nok").await;
    let answer = read_until(&mut client, "\r\n\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.1 502 ") && answer.contains("x-friday-refusal: reset\r\n"),
        "{answer}"
    );
    let healthy = proxy.metric("friday_proxy_endpoint_healthy", &[]).await;
    assert_eq!(healthy, 0.0, "left at once");
    drop(upstream);
    proxy.stop().await;
}
