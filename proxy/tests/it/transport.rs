//! What is spoken on either side: upgrades, HTTP/2 to endpoints, TLS.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use friday_proxy::config::Source;
use friday_tls::Authorities;
use friday_tls::testing::Pki;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::program::{Running, table_file};
use crate::world::{Backend, Client, PATIENCE, Proxy, eventually, table, text};

/// A server that answers any request for an upgrade, and then says back what it hears.
pub(crate) async fn parrot() -> (std::net::SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
                assert!(head.contains("upgrade: parrot\r\n"), "{head}");
                assert!(head.contains("connection: upgrade\r\n"), "{head}");
                // The first bytes of the other protocol come with the answer.
                let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: parrot\r\n\r\nhello ";
                stream.write_all(answer).await.unwrap();
                let (mut read, mut write) = stream.split();
                drop(tokio::io::copy(&mut read, &mut write).await);
            });
        }
    });
    (address, task)
}

pub(crate) const UPGRADE: &[u8] =
    b"GET /chat HTTP/1.1\r\nhost: x\r\nconnection: keep-alive, Upgrade\r\nupgrade: parrot\r\n\r\nfirst ";

#[tokio::test]
async fn an_upgraded_connection_passes_bytes_both_ways_and_counts_as_in_flight_until_it_ends() {
    let (address, server) = parrot().await;
    let proxy = Proxy::alone(&table(1, &[address], json!({}))).await;
    let mut client = TcpStream::connect(proxy.listen).await.unwrap();
    client.write_all(UPGRADE).await.unwrap();
    let mut heard = String::new();
    let mut buffer = [0; 1024];
    while !heard.ends_with("hello first ") {
        let length = client.read(&mut buffer).await.unwrap();
        assert!(length > 0, "{heard:?}");
        heard.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
    let head = heard.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    assert!(
        head.contains("upgrade: parrot\r\n") && head.contains("connection: upgrade\r\n"),
        "{head}"
    );
    let large = vec![b'x'; 3 << 20];
    let sent = large.clone();
    let (mut read, mut write) = client.into_split();
    let writing = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write
    });
    let mut back = vec![0; large.len()];
    read.read_exact(&mut back).await.unwrap();
    assert!(back == large);
    let labels = ["service=\"web\""];
    assert_eq!(proxy.metric("friday_proxy_in_flight", &labels).await, 1.0);
    assert_eq!(
        proxy
            .metric("friday_proxy_answers_total", &["code=\"1xx\""])
            .await,
        1.0
    );
    drop((writing.await.unwrap(), read));
    eventually("the end of the upgraded connection", async || {
        (proxy.metric("friday_proxy_in_flight", &labels).await == 0.0).then_some(())
    })
    .await;
    proxy.stop().await;
    server.abort();
}

#[tokio::test]
async fn f22_a_drain_leaves_an_upgraded_connection_its_time_and_then_cuts_it() {
    let (address, server) = parrot().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("routes.json");
    std::fs::write(
        &file,
        serde_json::to_vec(&table(1, &[address], json!({}))).unwrap(),
    )
    .unwrap();
    let limit = std::time::Duration::from_millis(300);
    let proxy = Proxy::start(Source::File(file), limit).await.unwrap();
    let mut client = TcpStream::connect(proxy.listen).await.unwrap();
    client.write_all(UPGRADE).await.unwrap();
    let mut heard = [0; 4096];
    assert!(client.read(&mut heard).await.unwrap() > 0);
    let stopping = tokio::spawn(proxy.stop());
    // Still there while it drains, and gone when it has ended.
    client.write_all(b"late").await.unwrap();
    let mut rest = Vec::new();
    drop(
        tokio::time::timeout(PATIENCE, client.read_to_end(&mut rest))
            .await
            .expect("it is cut"),
    );
    assert!(String::from_utf8_lossy(&rest).ends_with("late"), "{rest:?}");
    stopping.await.unwrap();
    server.abort();
}

/// A server of HTTP/2 alone that answers with the trailers of gRPC.
async fn grpc() -> (std::net::SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (address, tokio::spawn(serve_grpc(listener)))
}

async fn serve_grpc(listener: TcpListener) {
    // Aborted with the task, so connections end with the server.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(async move {
            let service = service_fn(|request: Request<Incoming>| async move {
                assert_eq!(request.version(), Version::HTTP_2);
                assert!(request.headers().get("transfer-encoding").is_none());
                let said = format!(
                    "{} {}",
                    request.uri().authority().unwrap(),
                    request.headers()["te"].to_str().unwrap()
                );
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                let frames = [
                    Frame::data(Bytes::from(said)),
                    Frame::data(body),
                    Frame::trailers(trailers),
                ];
                let frames = futures::stream::iter(frames.map(Ok::<_, Infallible>));
                Ok::<_, Infallible>(Response::new(StreamBody::new(frames)))
            });
            let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            drop(http.serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

#[tokio::test]
async fn grpc_passes_over_http2_on_both_sides_with_its_trailers() {
    let (address, server) = grpc().await;
    let more = json!({ "transport": { "protocol": "h2" } });
    let proxy = Proxy::alone(&table(1, &[address], more)).await;
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http::<Full<Bytes>>();
    for _ in 0..50 {
        let request = Request::post(proxy.url("/pkg.Service/Method"))
            .header("te", "trailers")
            .header("content-type", "application/grpc")
            .body(Full::from("ping"))
            .unwrap();
        let response = client.request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
        let said = format!("{} trailersping", proxy.listen);
        assert_eq!(body.to_bytes(), said);
    }
    server.abort();
}

#[tokio::test]
async fn an_http2_endpoint_that_goes_away_is_left_and_its_connection_is_made_anew() {
    let (address, server) = grpc().await;
    let more = json!({ "transport": { "protocol": "h2" } });
    let proxy = Proxy::alone(&table(1, &[address], more)).await;
    let client = Client::new();
    let te = [("te", "trailers")];
    assert_eq!(
        client.get(&proxy.url("/"), &te).await.unwrap().status,
        StatusCode::OK
    );
    server.abort();
    drop(server.await);
    eventually("a refusal", async || {
        let answer = client.get(&proxy.url("/"), &te).await.unwrap();
        (answer.status == StatusCode::BAD_GATEWAY).then_some(())
    })
    .await;
    let listener = TcpListener::bind(address).await.unwrap();
    let again = tokio::spawn(serve_grpc(listener));
    eventually("the endpoint probed back", async || {
        let answer = client.get(&proxy.url("/"), &te).await.unwrap();
        (answer.status == StatusCode::OK).then_some(())
    })
    .await;
    again.abort();
}

/// A root that has signed a server's and a client's certificate.
pub(crate) fn pki() -> Pki {
    let pki = Pki::new();
    pki.sign("server", &["server.test"]);
    pki.sign("client", &["proxy.test"]);
    pki
}

fn roots(pki: &Pki) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for root in friday_tls::certificates(&pki.path("root.pem")).unwrap() {
        roots.add(root).unwrap();
    }
    roots
}

/// A client of TLS that knows the root and offers those protocols.
pub(crate) fn connector(pki: &Pki, alpn: &[&str]) -> TlsConnector {
    let authorities = Authorities::from_file(&pki.path("root.pem")).unwrap();
    TlsConnector::from(Arc::new(authorities.client(None, alpn).unwrap()))
}

#[tokio::test]
async fn clients_are_served_by_tls_in_the_version_they_choose_and_a_new_certificate_needs_no_restart()
 {
    let backend = Backend::new(|request: Request<Incoming>| async move {
        let proto = request.headers()["x-forwarded-proto"].clone();
        let mut response = text(StatusCode::OK, "safe");
        response.headers_mut().insert("x-saw", proto);
        response
    })
    .await;
    let pki = pki();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("routes.json");
    let routes = table(1, &[backend.address], json!({}));
    std::fs::write(&file, serde_json::to_vec(&routes).unwrap()).unwrap();
    let files = pki.files("server");
    let proxy = Proxy::with(Source::File(file), PATIENCE, |config| {
        config.certificate = Some(files)
    })
    .await
    .unwrap();
    let connect = async |name: &str, alpn: &[&str]| {
        let stream = TcpStream::connect(proxy.listen).await.unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        connector(&pki, alpn).connect(name, stream).await
    };

    let stream = connect("server.test", &["http/1.1"]).await.unwrap();
    let (mut sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(driver);
    let request = Request::get("/")
        .header("host", "server.test")
        .body(Full::<Bytes>::default());
    let response = sender.send_request(request.unwrap()).await.unwrap();
    assert_eq!(
        (response.status(), &response.headers()["x-saw"]),
        (StatusCode::OK, &HeaderValue::from_static("https"))
    );

    let stream = connect("server.test", &["h2", "http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, driver) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(driver);
    let request = Request::get("https://server.test/").body(Full::<Bytes>::default());
    let response = sender.send_request(request.unwrap()).await.unwrap();
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "safe"
    );

    // Whoever speaks in the clear is sent away, and counted.
    assert!(Client::new().get(&proxy.url("/"), &[]).await.is_err());
    eventually("the refusal", async || {
        (proxy
            .metric("friday_proxy_refusals_total", &["reason=\"tls\""])
            .await
            >= 1.0)
            .then_some(())
    })
    .await;

    assert!(
        connect("other.test", &[]).await.is_err(),
        "not its name yet"
    );
    pki.sign("server", &["other.test"]);
    eventually("the new certificate", async || {
        connect("other.test", &[]).await.ok()
    })
    .await;
    proxy.stop().await;
}

#[tokio::test]
async fn endpoints_are_spoken_to_by_tls_with_both_certificates_checked() {
    let pki = pki();
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots(&pki)))
        .build()
        .unwrap();
    let mut config = ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            friday_tls::certificates(&pki.path("server.pem")).unwrap(),
            friday_tls::private_key(&pki.path("server.key")).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let service = service_fn(|request: Request<Incoming>| async move {
                    let version = format!("{:?}", request.version());
                    Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(version)))
                });
                let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let stream = TokioIo::new(stream);
                if is_h2 {
                    let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    drop(http.serve_connection(stream, service).await);
                } else {
                    let http = hyper::server::conn::http1::Builder::new();
                    drop(http.serve_connection(stream, service).await);
                }
            });
        }
    });
    let transport = |protocol: &str, name: &str, own: bool| {
        let mut tls = json!({ "server_name": name, "ca_file": pki.text("root.pem") });
        if own {
            tls["certificate_file"] = json!(pki.text("client.pem"));
            tls["key_file"] = json!(pki.text("client.key"));
        }
        json!({ "transport": { "protocol": protocol, "tls": tls } })
    };
    let proxy = Proxy::alone(&table(
        1,
        &[address],
        transport("http1", "server.test", true),
    ))
    .await;
    let client = Client::new();
    let get = async || {
        let answer = client.get(&proxy.url("/"), &[]).await.unwrap();
        (answer.status.as_u16(), answer.body)
    };
    assert_eq!(get().await, (200, "HTTP/1.1".to_owned()));
    let (status, _) = proxy
        .put(&table(2, &[address], transport("h2", "server.test", true)))
        .await;
    assert_eq!(
        (status, get().await),
        (StatusCode::OK, (200, "HTTP/2.0".to_owned()))
    );
    for (seq, name, own) in [(3, "other.test", true), (4, "server.test", false)] {
        let (status, text) = proxy
            .put(&table(seq, &[address], transport("http1", name, own)))
            .await;
        assert_eq!(status, StatusCode::OK, "{text}");
        assert_eq!(get().await.0, 502, "{name} {own}");
    }
    let mut nowhere = transport("http1", "server.test", false);
    nowhere["transport"]["tls"]["ca_file"] = json!("/nowhere.pem");
    let (status, text) = proxy.put(&table(5, &[address], nowhere)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(
        text.contains("\"web\"") && text.contains("/nowhere.pem"),
        "{text}"
    );
    server.abort();
}

#[tokio::test]
async fn endpoints_of_another_authority_are_trusted_when_its_file_is_there_and_the_table_is_read_again()
 {
    let [old, new] = [pki(), pki()];
    let acceptor = |pki: &Pki| {
        let certificates = friday_tls::certificates(&pki.path("server.pem")).unwrap();
        let key = friday_tls::private_key(&pki.path("server.key")).unwrap();
        let config = ServerConfig::builder().with_no_client_auth();
        TlsAcceptor::from(Arc::new(
            config.with_single_cert(certificates, key).unwrap(),
        ))
    };
    let (shown, showing) = tokio::sync::watch::channel(acceptor(&old));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = showing.borrow().clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let service = service_fn(|_: Request<Incoming>| async {
                    Ok::<_, Infallible>(text(StatusCode::OK, "safe"))
                });
                // Each request needs a connection of its own.
                let mut http = hyper::server::conn::http1::Builder::new();
                http.keep_alive(false);
                drop(http.serve_connection(TokioIo::new(stream), service).await);
            });
        }
    });
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    let trust = |pki: &Pki| std::fs::copy(pki.path("root.pem"), &ca).unwrap();
    trust(&old);
    let tls = json!({ "server_name": "server.test", "ca_file": ca.to_str().unwrap() });
    let routes = table(1, &[address], json!({ "transport": { "tls": tls } }));
    let file = table_file(directory.path(), &routes);
    let proxy = Running::start(directory.path(), &["--routes", &file]).await;
    let client = Client::new();
    let url = proxy.url("/");
    let status = async || client.get(&url, &[]).await.unwrap().status.as_u16();
    assert_eq!(status().await, 200);

    shown.send_replace(acceptor(&new));
    trust(&new);
    assert_eq!(status().await, 502, "not read yet");
    // The table is the same.
    proxy.signal(Signal::SIGHUP);
    eventually("the new authority", async || {
        (status().await == 200).then_some(())
    })
    .await;
    // By a person's hand as well.
    shown.send_replace(acceptor(&old));
    trust(&old);
    proxy.put(&routes).await;
    assert_eq!(status().await, 200);
    server.abort();
}

#[tokio::test]
async fn a_client_of_http2_that_only_pings_is_no_slow_head() {
    let backend = Backend::named("one").await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("routes.json");
    let routes = table(1, &[backend.address], json!({}));
    std::fs::write(&file, serde_json::to_vec(&routes).unwrap()).unwrap();
    let head_max = Duration::from_secs(1);
    let proxy = Proxy::with(Source::File(file), PATIENCE, |config| {
        config.clients.head_max = head_max;
    })
    .await
    .unwrap();
    let stream = TcpStream::connect(proxy.listen).await.unwrap();
    let (mut sender, driver) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_millis(100))
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(driver);
    for _ in 0..2 {
        let request = Request::get(proxy.url("/")).body(Full::<Bytes>::default());
        let response = sender.send_request(request.unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        tokio::time::sleep(3 * head_max).await;
    }
    assert!(!sender.is_closed());
}

#[tokio::test]
async fn a_client_of_http2_by_tls_that_says_nothing_is_let_go() {
    let backend = Backend::named("one").await;
    let pki = pki();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("routes.json");
    let routes = table(1, &[backend.address], json!({}));
    std::fs::write(&file, serde_json::to_vec(&routes).unwrap()).unwrap();
    let files = pki.files("server");
    let proxy = Proxy::with(Source::File(file), PATIENCE, |config| {
        config.certificate = Some(files);
        config.clients.head_max = Duration::from_millis(500);
    })
    .await
    .unwrap();
    // Not a word, and not all of the preface.
    for said in ["", "PRI * HTTP/2.0\r\n"] {
        let stream = TcpStream::connect(proxy.listen).await.unwrap();
        let name = ServerName::try_from("server.test").unwrap();
        let mut stream = connector(&pki, &["h2"])
            .connect(name, stream)
            .await
            .unwrap();
        stream.write_all(said.as_bytes()).await.unwrap();
        let mut heard = Vec::new();
        let gone = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut heard));
        // With or without a farewell.
        drop(gone.await.expect("it is let go"));
    }
    let refused = proxy.metric("friday_proxy_refusals_total", &["reason=\"head_timeout\""]);
    assert_eq!(refused.await, 2.0);
    proxy.stop().await;
}
