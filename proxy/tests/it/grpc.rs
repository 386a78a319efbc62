//! gRPC streams in both directions at once, over HTTP/2 in the clear on both sides.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::future::join_all;
use futures::stream::{BoxStream, StreamExt, unfold};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::world::{PATIENCE, Proxy, eventually, table};

type Frames = StreamBody<BoxStream<'static, io::Result<Frame<Bytes>>>>;

/// So many messages are enough for the method of that name.
const ENOUGH: u32 = 3;

/// A message as gRPC frames it: not compressed, its length, itself.
fn message(text: &[u8]) -> Bytes {
    let length = u32::try_from(text.len()).unwrap().to_be_bytes();
    [&[0], &length[..], text].concat().into()
}

/// Messages of a stream, wherever the proxy cuts it into pieces.
struct Messages {
    body: Incoming,
    bytes: BytesMut,
    trailers: HeaderMap,
}

impl Messages {
    fn of(body: Incoming) -> Self {
        Self {
            body,
            bytes: BytesMut::new(),
            trailers: HeaderMap::new(),
        }
    }

    /// The next; `None` at the end, with the trailers.
    async fn next(&mut self) -> Result<Option<Bytes>, hyper::Error> {
        loop {
            if let Some(head) = self.bytes.first_chunk::<5>() {
                let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
                if self.bytes.len() >= 5 + length {
                    self.bytes.advance(5);
                    return Ok(Some(self.bytes.split_to(length).freeze()));
                }
            }
            let Some(frame) = self.body.frame().await else {
                assert!(self.bytes.is_empty(), "it ended within a message");
                return Ok(None);
            };
            match frame?.into_data() {
                Ok(data) => self.bytes.extend_from_slice(&data),
                Err(frame) => self.trailers = frame.into_trailers().unwrap_or_default(),
            }
        }
    }
}

/// A service whose methods greet the client and then say each message back as it comes: `/Echo` until the client's stream ends,
/// `/Enough` for [`ENOUGH`] messages.
struct Service {
    address: SocketAddr,
    /// Streams that have not ended, in whatever way.
    open: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the service does next.
enum Turn {
    Greet(Messages, Open),
    Listen(Messages, Open),
    Over,
}

impl Service {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let open = Arc::<AtomicU32>::default();
        let counter = Arc::clone(&open);
        let task = tokio::spawn(async move {
            // Aborted with the task, so connections end with the service.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let counter = Arc::clone(&counter);
                connections.spawn(async move {
                    let service = service_fn(|request: Request<Incoming>| {
                        let answer = answer(request, Arc::clone(&counter));
                        async move { Ok::<_, Infallible>(answer) }
                    });
                    let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    drop(http.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Self {
            address,
            open,
            task,
        }
    }
}

/// A stream that counts as open until it is dropped.
struct Open(Arc<AtomicU32>);

impl Open {
    fn new(open: Arc<AtomicU32>) -> Self {
        open.fetch_add(1, Ordering::SeqCst);
        Self(open)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn answer(request: Request<Incoming>, open: Arc<AtomicU32>) -> Response<Frames> {
    assert_eq!(request.headers()["te"], "trailers");
    assert_eq!(request.headers()["content-type"], "application/grpc+proto");
    let messages_max = match request.uri().path() {
        "/pkg.Service/Enough" => ENOUGH,
        _ => u32::MAX,
    };
    let first = Turn::Greet(Messages::of(request.into_body()), Open::new(open));
    let turns = unfold((first, 0), move |(turn, count)| async move {
        let (mut messages, open) = match turn {
            Turn::Greet(messages, open) => {
                let hello = Frame::data(message(b"hello"));
                return Some((Ok(hello), (Turn::Listen(messages, open), count)));
            }
            Turn::Listen(messages, open) => (messages, open),
            Turn::Over => return None,
        };
        let status = match messages.next().await {
            Ok(Some(said)) if count < messages_max => {
                let back = Frame::data(message(&said));
                return Some((Ok(back), (Turn::Listen(messages, open), count + 1)));
            }
            // RESOURCE_EXHAUSTED, while the client goes on.
            Ok(Some(_)) => "8",
            Ok(None) => "0",
            Err(error) => return Some((Err(io::Error::other(error)), (Turn::Over, count))),
        };
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static(status));
        trailers.insert("x-count", HeaderValue::from(count));
        Some((Ok(Frame::trailers(trailers)), (Turn::Over, count)))
    });
    let mut response = Response::new(StreamBody::new(turns.boxed()));
    let grpc = HeaderValue::from_static("application/grpc+proto");
    response.headers_mut().insert("content-type", grpc);
    response
}

/// A call that has begun: what the client says, and what it hears.
struct Call {
    says: mpsc::Sender<io::Result<Bytes>>,
    hears: Messages,
}

impl Call {
    /// The answer's head is here before the client has said anything.
    async fn begin(mut client: SendRequest<Frames>, proxy: &Proxy, method: &str) -> Self {
        let (says, said) = mpsc::channel::<io::Result<Bytes>>(1);
        let frames = unfold(said, |mut said| async move {
            let said_next = said.recv().await?;
            Some((said_next.map(Frame::data), said))
        });
        let request = Request::post(proxy.url(method))
            .header("te", "trailers")
            .header("content-type", "application/grpc+proto")
            .body(StreamBody::new(frames.boxed()));
        client.ready().await.unwrap();
        let response = client.send_request(request.unwrap());
        let response = timeout(PATIENCE, response).await.expect("a head").unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "application/grpc+proto");
        let mut hears = Messages::of(response.into_body());
        assert_eq!(hears.next().await.unwrap().unwrap(), "hello");
        Self { says, hears }
    }

    async fn say(&self, text: &[u8]) {
        self.says.send(Ok(message(text))).await.unwrap();
    }

    async fn heard(&mut self) -> Option<Bytes> {
        let next = timeout(PATIENCE, self.hears.next()).await;
        next.expect("a message in time").unwrap()
    }

    /// The client has said all; what the trailers say, the status and how many messages came.
    async fn end(mut self) -> (String, String) {
        drop(self.says);
        let next = timeout(PATIENCE, self.hears.next()).await;
        assert_eq!(next.expect("an end in time").unwrap(), None);
        let field = |name: &str| self.hears.trailers[name].to_str().unwrap().to_owned();
        (field("grpc-status"), field("x-count"))
    }
}

async fn client(proxy: &Proxy) -> SendRequest<Frames> {
    let stream = TcpStream::connect(proxy.listen).await.unwrap();
    let (client, driver) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(driver);
    client
}

async fn start() -> (Service, Proxy) {
    let service = Service::new().await;
    // An answer's head must come soon; the stream itself may be as long as it likes.
    let more = json!({ "transport": { "protocol": "h2" }, "timeouts": { "response_ms": 1_000 } });
    let proxy = Proxy::alone(&table(1, &[service.address], more)).await;
    (service, proxy)
}

async fn counted(proxy: &Proxy, outcome: &str) -> f64 {
    let label = format!("outcome=\"{outcome}\"");
    proxy.metric("friday_proxy_requests_total", &[&label]).await
}

async fn nothing_in_flight(proxy: &Proxy) {
    eventually("nothing in flight", async || {
        (proxy.metric("friday_proxy_in_flight", &[]).await == 0.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_go_both_ways_at_once_and_end_with_their_trailers() {
    const CALLS: u32 = 16;
    const MESSAGES: u32 = 50;
    let (service, proxy) = start().await;
    let client = client(&proxy).await;
    let calls = (0..CALLS).map(|number| {
        let client = client.clone();
        let proxy = &proxy;
        async move {
            let mut call = Call::begin(client, proxy, "/pkg.Service/Echo").await;
            if number == 0 {
                // Longer than the wait for the head of an answer: silence is no end.
                tokio::time::sleep(Duration::from_millis(1_500)).await;
            }
            if number % 2 == 0 {
                // In turns: each message is answered before the next is said.
                for turn in 0..MESSAGES {
                    let text = format!("{number}: {turn}");
                    call.say(text.as_bytes()).await;
                    assert_eq!(call.heard().await.unwrap(), text);
                }
            } else {
                // Together, and more than the windows hold.
                let texts = (0..MESSAGES).map(|turn| vec![turn as u8; 8 << 10]);
                let texts: Vec<_> = texts.collect();
                let says = call.says.clone();
                let say = async {
                    for text in &texts {
                        says.send(Ok(message(text))).await.unwrap();
                    }
                };
                let hear = async {
                    for text in &texts {
                        assert!(call.heard().await.unwrap() == *text);
                    }
                };
                tokio::join!(say, hear);
                drop(says);
            }
            assert_eq!(call.end().await, ("0".to_owned(), MESSAGES.to_string()));
        }
    });
    timeout(PATIENCE * 2, join_all(calls))
        .await
        .expect("in time");
    nothing_in_flight(&proxy).await;
    assert_eq!(counted(&proxy, "ok").await, f64::from(CALLS));
    assert_eq!(
        proxy.metric("friday_proxy_requests_total", &[]).await,
        f64::from(CALLS)
    );
    assert_eq!(service.open.load(Ordering::SeqCst), 0);
    proxy.stop().await;
}

#[tokio::test]
async fn a_service_that_has_enough_says_so_while_its_client_goes_on() {
    let (_service, proxy) = start().await;
    let client = client(&proxy).await;
    for _ in 0..10 {
        let mut call = Call::begin(client.clone(), &proxy, "/pkg.Service/Enough").await;
        for turn in 0..ENOUGH {
            let text = turn.to_string();
            call.say(text.as_bytes()).await;
            assert_eq!(call.heard().await.unwrap(), text);
        }
        // One more; the client's stream stays open.
        call.say(b"too much").await;
        assert_eq!(call.heard().await, None);
        assert_eq!(call.hears.trailers["grpc-status"], "8");
        assert_eq!(call.hears.trailers["x-count"], "3");
    }
    nothing_in_flight(&proxy).await;
    assert_eq!(counted(&proxy, "ok").await, 10.0);
    // The connection of all is as good as before.
    let call = Call::begin(client, &proxy, "/pkg.Service/Echo").await;
    assert_eq!(call.end().await, ("0".to_owned(), "0".to_owned()));
    proxy.stop().await;
}

#[tokio::test]
async fn a_call_that_the_client_takes_back_ends_at_the_service_and_counts_against_nobody() {
    let (service, proxy) = start().await;
    let client = client(&proxy).await;
    let mut call = Call::begin(client.clone(), &proxy, "/pkg.Service/Echo").await;
    let other = Call::begin(client, &proxy, "/pkg.Service/Echo").await;
    call.say(b"one").await;
    assert_eq!(call.heard().await.unwrap(), "one");
    assert_eq!(service.open.load(Ordering::SeqCst), 2);
    // RST_STREAM in place of an end.
    call.says
        .send(Err(io::Error::other("cancelled")))
        .await
        .unwrap();
    eventually("the end at the service", async || {
        (service.open.load(Ordering::SeqCst) == 1).then_some(())
    })
    .await;
    let ended = timeout(PATIENCE, call.hears.next()).await.expect("an end");
    assert!(ended.is_err(), "{ended:?}");
    assert_eq!(other.end().await, ("0".to_owned(), "0".to_owned()));
    nothing_in_flight(&proxy).await;
    assert_eq!(counted(&proxy, "ok").await, 2.0);
    let failed = proxy.metric("friday_proxy_failed_to_user_total", &[]).await;
    assert_eq!(failed, 0.0);
    proxy.stop().await;
}

#[tokio::test]
async fn a_service_that_dies_ends_its_streams_badly_and_never_as_if_they_were_whole() {
    let (service, proxy) = start().await;
    let client = client(&proxy).await;
    let mut calls = Vec::new();
    for _ in 0..4 {
        let mut call = Call::begin(client.clone(), &proxy, "/pkg.Service/Echo").await;
        call.say(b"one").await;
        assert_eq!(call.heard().await.unwrap(), "one");
        calls.push(call);
    }
    drop(service);
    for mut call in calls {
        let ended = timeout(PATIENCE, call.hears.next()).await.expect("an end");
        assert!(ended.is_err(), "{ended:?}");
        assert!(call.hears.trailers.is_empty());
    }
    nothing_in_flight(&proxy).await;
    assert_eq!(counted(&proxy, "reset").await, 4.0);
    let broken_off = ["code=\"failed\""];
    let broken_off = proxy.metric("friday_proxy_answers_total", &broken_off);
    assert_eq!(broken_off.await, 4.0);
    proxy.stop().await;
}
