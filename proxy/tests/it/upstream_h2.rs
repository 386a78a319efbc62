//! Connections of HTTP/2 to endpoints: as many as requests need, and what endpoints say that they did nothing with.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use friday_proxy::config::Source;
use futures::future::join_all;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use proxy_api::RouteTable;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::world::{Client, PATIENCE, Proxy, eventually, nobody, table};

/// A proxy of one thread, so that a connection is one for all, with its table's folder.
async fn proxy_of_one_thread(table: &RouteTable) -> (Proxy, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("routes.json");
    std::fs::write(&file, serde_json::to_vec(table).unwrap()).unwrap();
    let proxy = Proxy::with(Source::File(file), PATIENCE, |config| {
        config.threads = NonZeroUsize::MIN;
    });
    (proxy.await.unwrap(), directory)
}

/// A route to endpoints of HTTP/2, with `more` keys.
fn by_h2(endpoints: &[SocketAddr], more: &Value) -> RouteTable {
    let mut keys = json!({ "transport": { "protocol": "h2" } });
    let more = more.as_object().unwrap().clone();
    keys.as_object_mut().unwrap().extend(more);
    table(1, endpoints, keys)
}

/// An endpoint that takes only so many requests at a time on a connection, and answers them when it is told to.
struct Narrow {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    go: watch::Sender<bool>,
    /// Whether it takes connections.
    listens: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Narrow {
    async fn new(streams_max: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::<AtomicUsize>::default();
        let requests = Arc::<AtomicUsize>::default();
        let (go, wait) = watch::channel(true);
        let (listens, mut listening) = watch::channel(true);
        let counts = (Arc::clone(&connections), Arc::clone(&requests));
        let task = tokio::spawn(async move {
            let (connections, requests) = counts;
            let mut open = tokio::task::JoinSet::new();
            loop {
                let stream = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap().0,
                    _ = listening.wait_for(|listens| !listens) => break,
                };
                let (wait, requests) = (wait.clone(), Arc::clone(&requests));
                let connections = Arc::clone(&connections);
                open.spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        requests.fetch_add(1, Ordering::SeqCst);
                        let mut wait = wait.clone();
                        async move {
                            let sent = request.into_body().collect().await.unwrap().to_bytes();
                            wait.wait_for(|go| *go).await.unwrap();
                            Ok::<_, Infallible>(Response::new(Full::new(sent)))
                        }
                    });
                    connections.fetch_add(1, Ordering::SeqCst);
                    let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .max_concurrent_streams(streams_max)
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                    drop(http);
                    connections.fetch_sub(1, Ordering::SeqCst);
                });
            }
            drop(listener);
            while open.join_next().await.is_some() {}
        });
        Self {
            address,
            connections,
            requests,
            go,
            listens,
            task,
        }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Narrow {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn further_connections_are_opened_where_an_endpoint_takes_few_requests_on_each() {
    let endpoint = Narrow::new(2).await;
    let (proxy, _directory) = proxy_of_one_thread(&by_h2(&[endpoint.address], &json!({}))).await;
    let client = Client::new();
    let url = proxy.url("/");
    // Some of these are refused, as the endpoint has not said yet how many it takes: and made again.
    endpoint.go.send_replace(false);
    let answers = {
        let (client, url) = (client.clone(), url.clone());
        tokio::spawn(async move {
            let post = |_| client.call(Method::POST, &url, &[], "sent");
            join_all((0..9).map(post)).await
        })
    };
    eventually("all requests at the endpoint", async || {
        (endpoint.requests.load(Ordering::SeqCst) >= 9).then_some(())
    })
    .await;
    assert!(endpoint.connections() >= 5, "{}", endpoint.connections());
    endpoint.go.send_replace(true);
    for answer in answers.await.unwrap() {
        let answer = answer.unwrap();
        assert_eq!((answer.status, &*answer.body), (StatusCode::OK, "sent"));
    }
    assert_eq!(endpoint.requests.load(Ordering::SeqCst), 9);
    let ok = proxy.metric("friday_proxy_requests_total", &["outcome=\"ok\""]);
    assert_eq!(ok.await, 9.0);
    assert_eq!(
        proxy.metric("friday_proxy_requests_total", &[]).await,
        9.0,
        "nothing is held against the release"
    );
    // One is enough when all is quiet.
    eventually("one connection is left", async || {
        (endpoint.connections() == 1).then_some(())
    })
    .await;
    let again = client.get(&url, &[]).await.unwrap();
    assert_eq!(again.status, StatusCode::OK);
    proxy.stop().await;
}

#[tokio::test]
async fn a_request_that_waits_for_its_place_is_not_held_against_the_time_to_answer() {
    let endpoint = Narrow::new(1).await;
    let timeouts = json!({ "timeouts": { "connect_ms": 1_000, "response_ms": 60_000 } });
    let (proxy, _directory) = proxy_of_one_thread(&by_h2(&[endpoint.address], &timeouts)).await;
    let client = Client::new();
    let url = proxy.url("/");
    client.get(&url, &[]).await.unwrap();
    endpoint.go.send_replace(false);
    let send = |count: usize| {
        let (client, url) = (client.clone(), url.clone());
        tokio::spawn(async move { join_all((0..count).map(|_| client.get(&url, &[]))).await })
    };
    let first = send(32);
    eventually("as many connections as there may be", async || {
        (endpoint.requests.load(Ordering::SeqCst) == 33).then_some(())
    })
    .await;
    for answer in send(5).await.unwrap() {
        let answer = answer.unwrap();
        assert_eq!(answer.header("x-friday-refusal"), "connect", "{answer:?}");
    }
    assert_eq!(endpoint.requests.load(Ordering::SeqCst), 33);
    let outcome = |outcome: &str| {
        let label = format!("outcome={outcome:?}");
        let proxy = &proxy;
        async move {
            let labels = [&*label];
            proxy.metric("friday_proxy_requests_total", &labels).await
        }
    };
    assert_eq!(outcome("connect").await, 5.0);
    assert_eq!(outcome("timeout").await, 0.0);
    // Those that wait get the places that come free.
    let waiting = send(5);
    eventually("they wait", async || {
        let requests = proxy.metric("friday_proxy_in_flight", &[]).await;
        (requests >= 37.0).then_some(())
    })
    .await;
    endpoint.go.send_replace(true);
    for answers in [first, waiting] {
        for answer in answers.await.unwrap() {
            assert_eq!(answer.unwrap().status, StatusCode::OK);
        }
    }
    proxy.stop().await;
}

#[tokio::test]
async fn an_endpoint_that_takes_no_further_connection_serves_on_by_those_that_it_has() {
    let endpoint = Narrow::new(2).await;
    let patient = json!({ "timeouts": { "connect_ms": 20_000, "response_ms": 20_000 } });
    let (proxy, _directory) = proxy_of_one_thread(&by_h2(&[endpoint.address], &patient)).await;
    let client = Client::new();
    let url = proxy.url("/");
    client.get(&url, &[]).await.unwrap();
    endpoint.go.send_replace(false);
    endpoint.listens.send_replace(false);
    let answers = {
        let (client, url) = (client.clone(), url.clone());
        tokio::spawn(async move { join_all((0..5).map(|_| client.get(&url, &[]))).await })
    };
    eventually("five in flight, two of them at the endpoint", async || {
        let in_flight = proxy.metric("friday_proxy_in_flight", &[]).await;
        let at_endpoint = endpoint.requests.load(Ordering::SeqCst);
        (in_flight == 5.0 && at_endpoint == 3).then_some(())
    })
    .await;
    let healthy = proxy.metric("friday_proxy_endpoint_healthy", &[]).await;
    assert_eq!(healthy, 1.0);
    endpoint.go.send_replace(true);
    for answer in answers.await.unwrap() {
        assert_eq!(answer.unwrap().status, StatusCode::OK);
    }
    proxy.stop().await;
}

/// How an endpoint says that it did nothing with a request.
#[derive(Debug, Clone, Copy)]
enum Says {
    /// REFUSED_STREAM, when its body is here.
    Refused,
    /// GOAWAY, with a last stream before the first.
    GoAway,
}

/// An endpoint that does nothing with the first requests, and says back what it hears of the others, behind the name that it
/// was called by.
async fn reluctant(says: Says, times: usize) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let left = Arc::new(AtomicUsize::new(times));
    let task = tokio::spawn(async move {
        let mut open = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let left = Arc::clone(&left);
            open.spawn(async move {
                match says {
                    Says::GoAway if take_one(&left) => go_away(stream).await,
                    Says::GoAway | Says::Refused => echo(stream, &left).await,
                }
            });
        }
    });
    (address, task)
}

fn take_one(left: &AtomicUsize) -> bool {
    let fewer = |left: usize| left.checked_sub(1);
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer)
        .is_ok()
}

async fn echo(stream: TcpStream, refusals: &AtomicUsize) {
    // A probe connects and says nothing.
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let (head, mut body) = request.into_parts();
        let is_refused = take_one(refusals);
        let mut heard = head.uri.authority().unwrap().to_string().into_bytes();
        tokio::spawn(async move {
            while let Some(Ok(data)) = body.data().await {
                body.flow_control().release_capacity(data.len()).unwrap();
                heard.extend_from_slice(&data);
            }
            if is_refused {
                respond.send_reset(h2::Reason::REFUSED_STREAM);
            } else {
                let mut answer = respond.send_response(Response::new(()), false).unwrap();
                answer.send_data(Bytes::from(heard), true).unwrap();
            }
        });
    }
}

/// Waits for a request, says that it gets none, and stays.
async fn go_away(mut stream: TcpStream) {
    let mut preface = [0; 24];
    if stream.read_exact(&mut preface).await.is_err() {
        return;
    }
    stream
        .write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])
        .await
        .unwrap();
    let mut header = [0; 9];
    loop {
        stream.read_exact(&mut header).await.unwrap();
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        let mut rest = vec![0; length as usize];
        stream.read_exact(&mut rest).await.unwrap();
        if header[3] == 1 {
            break;
        }
    }
    let goaway = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    stream.write_all(&goaway).await.unwrap();
    // Until the other side goes.
    drop(stream.read_to_end(&mut Vec::new()).await);
}

#[tokio::test]
async fn what_an_endpoint_says_it_did_nothing_with_is_sent_again_whatever_its_method() {
    let host = ("host", "shop.example");
    // (how, how often, what is sent, the answer, how it counts)
    let cases: [(Says, usize, Method, &'static str, &str, &str); 6] = [
        (
            Says::Refused,
            1,
            Method::POST,
            "sent",
            "shop.examplesent",
            "ok",
        ),
        (Says::Refused, 2, Method::GET, "", "shop.example", "ok"),
        (
            Says::GoAway,
            1,
            Method::POST,
            "sent",
            "shop.examplesent",
            "ok",
        ),
        (Says::GoAway, 2, Method::PATCH, "", "shop.example", "ok"),
        (Says::Refused, 99, Method::POST, "sent", "", "connect"),
        (Says::GoAway, 99, Method::GET, "", "", "connect"),
    ];
    for (says, times, method, sent, heard, outcome) in cases {
        let what = format!("{says:?} {times} {method} {sent}");
        let (address, server) = reluctant(says, times).await;
        let (proxy, _directory) = proxy_of_one_thread(&by_h2(&[address], &json!({}))).await;
        let (client, url) = (Client::new(), proxy.url("/"));
        let answer = client.call(method, &url, &[host], sent).await.unwrap();
        if outcome == "ok" {
            assert_eq!(
                (answer.status, &*answer.body),
                (StatusCode::OK, heard),
                "{what}"
            );
        } else {
            assert_eq!(answer.header("x-friday-refusal"), "connect", "{what}");
        }
        let all = proxy.metric("friday_proxy_requests_total", &[]).await;
        let label = format!("outcome={outcome:?}");
        let so = proxy.metric("friday_proxy_requests_total", &[&label]).await;
        assert_eq!((all, so), (1.0, 1.0), "{what}");
        proxy.stop().await;
        server.abort();
    }
}

#[tokio::test]
async fn a_refused_request_goes_back_where_no_further_connection_can_be_had() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        drop(listener);
        echo(stream, &AtomicUsize::new(1)).await;
    });
    let (proxy, _directory) = proxy_of_one_thread(&by_h2(&[address], &json!({}))).await;
    let (client, url) = (Client::new(), proxy.url("/"));
    let host = ("host", "shop.example");
    let answer = client.call(Method::POST, &url, &[host], "sent").await;
    let answer = answer.unwrap();
    assert_eq!(
        (answer.status, &*answer.body),
        (StatusCode::OK, "shop.examplesent")
    );
    proxy.stop().await;
    server.abort();
}

#[tokio::test]
async fn what_one_endpoint_refuses_another_gets_and_it_is_called_by_its_name_there() {
    for first in ["nobody", "refuses"] {
        let (refusing, server) = reluctant(Says::Refused, 99).await;
        let (other, other_server) = reluctant(Says::Refused, 0).await;
        let failing = if first == "nobody" {
            nobody().await
        } else {
            refusing
        };
        // Chosen by chance: so often that it is almost sure to go wrong at first.
        let (proxy, _directory) = proxy_of_one_thread(&by_h2(&[failing, other], &json!({}))).await;
        for _ in 0..20 {
            let answer = Client::new()
                .call(
                    Method::POST,
                    &proxy.url("/"),
                    &[("host", "shop.example")],
                    "sent",
                )
                .await
                .unwrap();
            assert_eq!(
                (answer.status, &*answer.body),
                (StatusCode::OK, "shop.examplesent"),
                "{first}"
            );
        }
        let resets = proxy.metric("friday_proxy_requests_total", &["outcome=\"reset\""]);
        assert_eq!(resets.await, 0.0, "{first}");
        proxy.stop().await;
        server.abort();
        other_server.abort();
    }
}
