//! Connections that live longer than their release: streams of events and upgraded ones.

use std::convert::Infallible;

use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::client::legacy::Client as PooledClient;
use hyper_util::rt::TokioExecutor;
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::broadcast;

use crate::program::{Running, table_file};
use crate::transport::{UPGRADE, parrot};
use crate::world::{Backend, Client, PATIENCE, Proxy, eventually, table};

/// A task that streams events to each of its clients, the first at once.
struct Events {
    backend: Backend,
    sender: broadcast::Sender<Bytes>,
}

impl Events {
    async fn new() -> Self {
        let (sender, _) = broadcast::channel::<Bytes>(16);
        let source = sender.clone();
        let backend = Backend::new(move |_: Request<Incoming>| {
            let receiver = source.subscribe();
            async move {
                let first = futures::stream::iter([Bytes::from_static(b"first")]);
                let rest = futures::stream::unfold(receiver, |mut receiver| async move {
                    Some((receiver.recv().await.ok()?, receiver))
                });
                let frames = first
                    .chain(rest)
                    .map(|data| Ok::<_, Infallible>(Frame::data(data)));
                Response::new(StreamBody::new(frames.boxed()))
            }
        })
        .await;
        Self { backend, sender }
    }

    fn send(&self, event: &'static str) {
        let event = Bytes::from_static(event.as_bytes());
        self.sender.send(event).unwrap();
    }
}

/// The next event; `None` if the stream broke off. It never ends well.
async fn next(stream: &mut Incoming) -> Option<String> {
    let frame = tokio::time::timeout(PATIENCE, stream.frame()).await;
    let frame = frame.expect("something happens").expect("no good end");
    let event = frame.ok()?.into_data().unwrap();
    Some(String::from_utf8(event.to_vec()).unwrap())
}

#[tokio::test]
async fn a_client_that_says_nothing_is_asked_whether_its_machine_is_there() {
    let backend = Backend::named("one").await;
    let proxy = Proxy::alone(&table(1, &[backend.address], json!({}))).await;
    let client = TcpStream::connect(proxy.listen).await.unwrap();
    // As the kernel writes the two ends, seen from the proxy.
    let end = |port: u16| format!("0100007F:{port:04X}");
    let theirs = end(client.local_addr().unwrap().port());
    let ends = [end(proxy.listen.port()), theirs];
    eventually("a timer for the next question", async || {
        let all = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        let mut lines = all.lines().map(|line| line.split_whitespace().collect());
        let line = lines.find(|fields: &Vec<&str>| fields[1..3] == ends)?;
        // Which one, and when.
        line[5].starts_with("02:").then_some(())
    })
    .await;
    proxy.stop().await;
}

#[tokio::test]
async fn f22_long_lived_connections_outlive_their_release_until_its_task_ends_or_the_drain_does() {
    let (ending, lasting) = (Events::new().await, Events::new().await);
    let (parrot, server) = parrot().await;
    let after = Backend::named("after").await;
    let directory = tempfile::tempdir().unwrap();
    // One route for each kind of task, and all of them with another release in the second table.
    let at = |seq, tasks: [std::net::SocketAddr; 3]| {
        let mut all = table(seq, &[], json!({}));
        all.routes = ["/ending", "/lasting", "/chat"]
            .iter()
            .zip(tasks)
            .flat_map(|(path, task)| {
                let more = json!({ "name": path, "match": { "path": path } });
                table(seq, &[task], more).routes
            })
            .collect();
        all
    };
    let before = [ending.backend.address, lasting.backend.address, parrot];
    let file = table_file(directory.path(), &at(1, before));
    let options = ["--routes", &*file, "--drain-seconds", "1"];
    let proxy = Running::start(directory.path(), &options).await;

    let client: PooledClient<_, Full<Bytes>> =
        PooledClient::builder(TokioExecutor::new()).build_http();
    let open = async |path: &str| {
        let request = Request::get(proxy.url(path)).body(Full::default());
        let mut stream = client.request(request.unwrap()).await.unwrap().into_body();
        assert_eq!(next(&mut stream).await.unwrap(), "first");
        stream
    };
    let (mut ends, mut lasts) = (open("/ending").await, open("/lasting").await);
    let mut chat = TcpStream::connect(&proxy.listen).await.unwrap();
    chat.write_all(UPGRADE).await.unwrap();
    let hears = async |chat: &mut TcpStream, text: &str| {
        let mut heard = Vec::new();
        while !heard.ends_with(text.as_bytes()) {
            let mut buffer = [0; 1024];
            let length = chat.read(&mut buffer).await.unwrap();
            assert!(length > 0, "{heard:?}");
            heard.extend_from_slice(&buffer[..length]);
        }
    };
    hears(&mut chat, "first ").await;

    proxy.put(&at(2, [after.address; 3])).await;
    for path in ["/ending", "/lasting", "/chat"] {
        let answer = Client::new().get(&proxy.url(path), &[]).await.unwrap();
        assert_eq!(answer.body, "after", "{path}");
    }
    // The old connections go on.
    ending.send("second");
    lasting.send("second");
    assert_eq!(next(&mut ends).await.unwrap(), "second");
    assert_eq!(next(&mut lasts).await.unwrap(), "second");
    chat.write_all(b"still there ").await.unwrap();
    hears(&mut chat, "still there ").await;

    // The end of a task is the end of its streams, and no good one.
    drop(ending);
    assert_eq!(next(&mut ends).await, None);
    let told = "an endpoint that left the table broke off what it still had to do";
    proxy.logs(told, 1).await;
    lasting.send("third");
    assert_eq!(next(&mut lasts).await.unwrap(), "third");

    // A drain leaves them its time, and says what it cuts.
    proxy.signal(Signal::SIGTERM);
    proxy.logs("draining connections=", 1).await;
    lasting.send("fourth");
    assert_eq!(next(&mut lasts).await.unwrap(), "fourth");
    chat.write_all(b"late ").await.unwrap();
    hears(&mut chat, "late ").await;
    let cut =
        "the drain's limit is over: cutting what is left connections=2 requests=2 drain_seconds=1";
    proxy.logs(cut, 1).await;
    assert_eq!(next(&mut lasts).await, None);
    assert!(matches!(chat.read(&mut [0; 8]).await, Ok(0) | Err(_)));
    assert_eq!(proxy.ended().await, Some(0));
    server.abort();
}
