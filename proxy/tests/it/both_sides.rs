//! TLS on both sides at once: every version of HTTP with every other, upgrades, and answers that are cut off.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use friday_proxy::config::Source;
use friday_tls::testing::Pki;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use proxy_api::{Cell, Outcome};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::client::TlsStream as ClientTls;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::server::TlsStream as ServerTls;

use crate::controller::Controller;
use crate::transport::{UPGRADE, connector, pki};
use crate::world::{Client, PATIENCE, Proxy, table};

/// What an endpoint does with a connection on which TLS was agreed on.
#[derive(Debug, Clone, Copy)]
enum Manner {
    /// It says every body back, with a trailer.
    Echo,
    /// It takes an upgrade, and then says back what it hears.
    Parrot,
    /// It answers the first head by that and says goodbye (`close_notify`).
    Says(&'static str),
    /// It answers the first head by that and closes without a word: so could anybody in between.
    BreaksOff(&'static str),
}

/// An endpoint that speaks TLS.
struct Endpoint {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Endpoint {
    async fn new(pki: &Pki, manner: Manner) -> Self {
        let certificates = friday_tls::certificates(&pki.path("server.pem")).unwrap();
        let key = friday_tls::private_key(&pki.path("server.key")).unwrap();
        let config = ServerConfig::builder().with_no_client_auth();
        let mut config = config.with_single_cert(certificates, key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve(stream, manner).await;
                    }
                });
            }
        });
        Self { address, task }
    }
}

async fn serve(mut stream: ServerTls<TcpStream>, manner: Manner) {
    match manner {
        Manner::Echo => echo(stream).await,
        Manner::Parrot => {
            let head = head(&mut stream).await.to_ascii_lowercase();
            assert!(head.contains("upgrade: parrot\r\n"), "{head}");
            let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: parrot\r\n\r\nhello ";
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            let (mut read, mut write) = tokio::io::split(stream);
            drop(tokio::io::copy(&mut read, &mut write).await);
        }
        Manner::Says(answer) | Manner::BreaksOff(answer) => {
            head(&mut stream).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            if matches!(manner, Manner::Says(_)) {
                stream.shutdown().await.unwrap();
            } else {
                // TCP alone is closed in order.
                stream.get_mut().0.shutdown().await.unwrap();
            }
            // Until the proxy has closed as well.
            let mut rest = Vec::new();
            drop(timeout(PATIENCE, stream.get_mut().0.read_to_end(&mut rest)).await);
        }
    }
}

async fn head(stream: &mut ServerTls<TcpStream>) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return String::new(),
        }
    }
    String::from_utf8(head).unwrap()
}

async fn echo(stream: ServerTls<TcpStream>) {
    let service = service_fn(|request: Request<Incoming>| async move {
        let proto = request.headers()["x-forwarded-proto"].clone();
        let version = HeaderValue::try_from(format!("{:?}", request.version())).unwrap();
        let body = request.into_body().collect().await.unwrap();
        let mut trailers = body.trailers().cloned().unwrap_or_default();
        trailers.insert("x-sum", HeaderValue::from_static("42"));
        let frames = [Frame::data(body.to_bytes()), Frame::trailers(trailers)];
        let frames = futures::stream::iter(frames.map(Ok::<_, Infallible>));
        let mut response = Response::new(StreamBody::new(frames));
        let headers = response.headers_mut();
        headers.insert("x-saw", proto);
        headers.insert("x-version", version);
        headers.insert("trailer", HeaderValue::from_static("x-sum, x-check"));
        Ok::<_, Infallible>(response)
    });
    let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let stream = TokioIo::new(stream);
    // When the proxy closes, it may do so in the midst of something.
    if is_h2 {
        let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        drop(http.serve_connection(stream, service).await);
    } else {
        let http = hyper::server::conn::http1::Builder::new();
        drop(http.serve_connection(stream, service).await);
    }
}

/// The keys of a route to endpoints that speak TLS.
fn transport(pki: &Pki, protocol: &str) -> Value {
    let tls = json!({ "server_name": "server.test", "ca_file": pki.text("root.pem") });
    json!({ "transport": { "protocol": protocol, "tls": tls } })
}

/// A proxy that speaks TLS on both sides, and where its table is.
async fn proxy(pki: &Pki, endpoint: &Endpoint, protocol: &str) -> (Proxy, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("routes.json");
    let routes = table(1, &[endpoint.address], transport(pki, protocol));
    std::fs::write(&file, serde_json::to_vec(&routes).unwrap()).unwrap();
    let files = pki.files("server");
    let proxy = Proxy::with(Source::File(file), PATIENCE, |config| {
        config.certificate = Some(files);
    });
    (proxy.await.unwrap(), directory)
}

async fn connect(pki: &Pki, proxy: &Proxy, alpn: &str) -> ClientTls<TcpStream> {
    let stream = TcpStream::connect(proxy.listen).await.unwrap();
    let name = ServerName::try_from("server.test").unwrap();
    let connecting = connector(pki, &[alpn]).connect(name, stream);
    connecting.await.unwrap()
}

#[tokio::test]
async fn bodies_and_trailers_pass_by_tls_on_both_sides_in_every_version() {
    const PART: usize = 48 << 10;
    let pki = pki();
    let endpoint = Endpoint::new(&pki, Manner::Echo).await;
    for (protocol, version) in [("http1", "HTTP/1.1"), ("h2", "HTTP/2.0")] {
        let (proxy, _directory) = proxy(&pki, &endpoint, protocol).await;
        for alpn in ["http/1.1", "h2"] {
            // Collected for a possible repetition as far as that goes, and passed on.
            for (method, parts) in [("PUT", 1), ("PUT", 8), ("POST", 8)] {
                let mut trailers = HeaderMap::new();
                trailers.insert("x-check", HeaderValue::from_static("7"));
                let data = (0..parts).map(|part| Frame::data(Bytes::from(vec![part; PART])));
                let frames: Vec<_> = data
                    .chain([Frame::trailers(trailers)])
                    .map(Ok::<_, Infallible>)
                    .collect();
                let body = StreamBody::new(futures::stream::iter(frames));
                let uri = match alpn {
                    "h2" => "https://server.test/",
                    _ => "/",
                };
                let request = Request::builder()
                    .method(method)
                    .uri(uri)
                    .header("host", "server.test")
                    .header("te", "trailers")
                    .header("trailer", "x-check")
                    .body(body)
                    .unwrap();
                let stream = TokioIo::new(connect(&pki, &proxy, alpn).await);
                let asked = async {
                    if alpn == "h2" {
                        let executor = TokioExecutor::new();
                        let made = hyper::client::conn::http2::handshake(executor, stream).await;
                        let (mut sender, driver) = made.unwrap();
                        tokio::spawn(driver);
                        sender.send_request(request).await.unwrap()
                    } else {
                        let made = hyper::client::conn::http1::handshake(stream).await;
                        let (mut sender, driver) = made.unwrap();
                        tokio::spawn(driver);
                        sender.send_request(request).await.unwrap()
                    }
                };
                let response = timeout(PATIENCE, asked).await.expect("an answer in time");
                let case = format!("{method} of {parts} parts by {alpn} and {protocol}");
                assert_eq!(response.status(), StatusCode::OK, "{case}");
                let (head, body) = response.into_parts();
                assert_eq!(head.headers["x-saw"], "https", "{case}");
                assert_eq!(head.headers["x-version"], version, "{case}");
                let body = timeout(PATIENCE, body.collect()).await;
                let body = body.expect("a body in time").unwrap();
                let trailers = body.trailers().unwrap();
                assert_eq!(trailers["x-sum"], "42", "{case}");
                assert_eq!(trailers["x-check"], "7", "{case}");
                let body = body.to_bytes();
                assert_eq!(body.len(), usize::from(parts) * PART, "{case}");
                let is_same = body
                    .chunks(PART)
                    .zip(0..parts)
                    .all(|(chunk, part)| chunk.iter().all(|byte| *byte == part));
                assert!(is_same, "{case}");
            }
        }
        proxy.stop().await;
    }
}

#[tokio::test]
async fn an_upgraded_connection_passes_by_tls_on_both_sides() {
    let pki = pki();
    let endpoint = Endpoint::new(&pki, Manner::Parrot).await;
    let (proxy, _directory) = proxy(&pki, &endpoint, "http1").await;
    let mut client = connect(&pki, &proxy, "http/1.1").await;
    client.write_all(UPGRADE).await.unwrap();
    let mut heard = Vec::new();
    while !heard.ends_with(b"hello first ") {
        let read = timeout(PATIENCE, client.read_buf(&mut heard)).await;
        assert!(read.expect("the first word").unwrap() > 0);
    }
    let large = vec![b'x'; 1 << 20];
    let sent = large.clone();
    let (mut read, mut write) = tokio::io::split(client);
    let writing = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.flush().await.unwrap();
        write
    });
    let mut back = vec![0; large.len()];
    timeout(PATIENCE, read.read_exact(&mut back))
        .await
        .expect("all of it in time")
        .unwrap();
    assert!(back == large);
    drop((writing.await.unwrap(), read));
    proxy.stop().await;
}

/// An answer that ends with its connection.
const OPEN_END: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhalf";

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_is_whole_only_if_tls_says_goodbye() {
    let pki = pki();
    for (manner, is_whole) in [
        (Manner::Says(OPEN_END), true),
        (Manner::BreaksOff(OPEN_END), false),
    ] {
        let endpoint = Endpoint::new(&pki, manner).await;
        let routes = table(1, &[endpoint.address], transport(&pki, "http1"));
        let controller = Controller::new(Some(routes)).await;
        let state = tempfile::tempdir().unwrap();
        let proxy = Proxy::led(controller.address, state.path()).await.unwrap();
        proxy.has(1).await;
        for client in [Client::new(), Client::h2()] {
            let answer = client.get(&proxy.url("/"), &[]).await;
            let body = answer.map(|answer| answer.body);
            match is_whole {
                true => assert_eq!(body, Ok("half".to_owned())),
                false => assert!(body.is_err(), "{body:?}"),
            }
        }
        let mut old = TcpStream::connect(proxy.listen).await.unwrap();
        let request = b"GET / HTTP/1.0\r\nhost: a\r\n\r\n";
        old.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        let ended = timeout(PATIENCE, old.read_to_end(&mut answer)).await;
        let ended = ended.expect("it ends");
        assert_eq!(ended.is_ok(), is_whole, "{}", answer.escape_ascii());
        assert!(!is_whole || answer.ends_with(b"half"));
        controller.all_ended(3).await;
        controller.look(|ledger| {
            let resets = ledger
                .cells()
                .map(|cell| cell.outcomes[Outcome::Reset as usize]);
            let bad: u32 = ledger.cells().map(Cell::bad).sum();
            let expected = if is_whole { 0 } else { 3 };
            assert_eq!((resets.sum::<u32>(), bad), (expected, expected));
        });
        proxy.stop().await;
    }
}

#[tokio::test]
async fn half_an_answer_is_not_said_goodbye_to_for_a_client_of_tls() {
    // What the client cannot know the length of.
    let halves = [
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        OPEN_END,
    ];
    let pki = pki();
    for half in halves {
        let endpoint = Endpoint::new(&pki, Manner::BreaksOff(half)).await;
        let (proxy, _directory) = proxy(&pki, &endpoint, "http1").await;
        for version in ["1.0", "1.1"] {
            let mut client = connect(&pki, &proxy, "http/1.1").await;
            let request = format!("GET / HTTP/{version}\r\nhost: a\r\n\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
            client.flush().await.unwrap();
            let mut answer = Vec::new();
            let ended = timeout(PATIENCE, client.read_to_end(&mut answer)).await;
            let ended = ended.expect("it ends");
            let answer = answer.escape_ascii().to_string();
            // HTTP/1.1 has chunks, and the last of them is missing.
            let seems_whole = match version {
                "1.0" => ended.is_ok(),
                _ => answer.ends_with("\\r\\n0\\r\\n\\r\\n"),
            };
            assert!(!seems_whole, "HTTP/{version} {half:?}: {answer}");
        }
        proxy.stop().await;
    }
    // The whole one is.
    let whole = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n\r\n";
    let endpoint = Endpoint::new(&pki, Manner::Says(whole)).await;
    let (proxy, _directory) = proxy(&pki, &endpoint, "http1").await;
    let mut client = connect(&pki, &proxy, "http/1.1").await;
    let request = b"GET / HTTP/1.0\r\nhost: a\r\n\r\n";
    client.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let ended = timeout(PATIENCE, client.read_to_end(&mut answer)).await;
    ended.expect("it ends").unwrap();
    assert!(
        answer.ends_with(b"\r\n\r\nhalf"),
        "{}",
        answer.escape_ascii()
    );
    proxy.stop().await;
}
