//! Real connections, with certificates as OpenSSL makes them.

use axum::body::Body;
use axum::routing::get;
use friday_tls::testing::Pki;
use friday_tls::{Authorities, server_name};
use http_body_util::Empty;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;

/// A server of one page, by TLS.
struct World {
    pki: Pki,
    address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl World {
    async fn new(router: Router) -> Self {
        let pki = Pki::new();
        pki.sign("server", &["127.0.0.1"]);
        let certificate = Arc::new(Certificate::load(pki.files("server")).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let server = Server::new(listener, Some(certificate));
        let serving = tokio::spawn(server.serve(router, stop.clone()));
        Self {
            pki,
            address,
            stop,
            serving,
        }
    }

    async fn connect(&self, alpn: &[&str]) -> TlsStream<TcpStream> {
        let authorities = Authorities::from_file(&self.pki.path("root.pem")).unwrap();
        let config = authorities.client(None, alpn).unwrap();
        let stream = TcpStream::connect(self.address).await.unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(server_name("127.0.0.1").unwrap(), stream)
            .await
            .unwrap()
    }
}

fn page() -> Router {
    Router::new().route("/", get(|| async { "here" }))
}

async fn text(answer: hyper::Response<Incoming>) -> String {
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

#[tokio::test]
async fn serves_by_both_versions_of_http_and_by_the_one_that_the_client_prefers() {
    let world = World::new(page()).await;
    let stream = world.connect(&["h2", "http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, driver) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(driver);
    let url = format!("https://{}/", world.address);
    let request = Request::get(&url).body(Empty::<&[u8]>::new()).unwrap();
    assert_eq!(
        text(sender.send_request(request).await.unwrap()).await,
        "here"
    );

    let stream = world.connect(&[]).await;
    let (mut sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(driver);
    let request = Request::get("/").header(header::HOST, "x");
    let request = request.body(Empty::<&[u8]>::new()).unwrap();
    assert_eq!(
        text(sender.send_request(request).await.unwrap()).await,
        "here"
    );
    world.stop.cancel();
    world.serving.await.unwrap();
}

#[tokio::test]
async fn a_client_in_the_clear_is_told_what_to_do_and_gets_nothing_else() {
    let world = World::new(page()).await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let body = "x".repeat(100_000);
    let length = body.len();
    let head = format!(
        "POST / HTTP/1.1\r\nhost: x\r\nauthorization: Bearer s3cret\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut heard = String::new();
    stream.read_to_string(&mut heard).await.unwrap();
    assert!(heard.starts_with("HTTP/1.1 400 "), "{heard}");
    assert!(heard.contains("\"code\":\"tls_required\""), "{heard}");
    assert!(heard.contains("use https://"), "{heard}");
    assert!(!heard.contains("here"), "{heard}");
}

#[tokio::test]
async fn clients_that_say_nothing_do_not_hinder_others() {
    let world = World::new(page()).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(world.address).await.unwrap());
    }
    // Begun, and not gone on with: a record of the handshake that says it is longer.
    for stream in &mut silent[..25] {
        stream.write_all(&[HANDSHAKE, 3, 1, 2, 0, 1]).await.unwrap();
    }
    let mut agreed = Vec::new();
    for alpn in ["h2", "http/1.1"].repeat(5) {
        agreed.push(world.connect(&[alpn]).await);
    }
    let mut stream = timeout(HANDSHAKE_MAX / 2, world.connect(&["http/1.1"]))
        .await
        .expect("nobody waits for the silent ones");
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut heard = String::new();
    stream.read_to_string(&mut heard).await.unwrap();
    assert!(heard.ends_with("here"), "{heard}");
    drop((silent, agreed));
}

#[tokio::test]
async fn whoever_waits_for_an_answer_when_it_stops_gets_it_and_nobody_else_comes_in() {
    let (asked, was_asked) = oneshot::channel();
    let (go, went) = oneshot::channel::<()>();
    let once = Arc::new(std::sync::Mutex::new(Some((asked, went))));
    let slow = move || async move {
        let (asked, went) = once.lock().unwrap().take().unwrap();
        asked.send(()).unwrap();
        went.await.unwrap();
        Body::from("late")
    };
    let world = World::new(Router::new().route("/", get(slow))).await;
    let mut stream = world.connect(&["http/1.1"]).await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    was_asked.await.unwrap();
    world.stop.cancel();
    // The listener goes before the last answer does.
    while TcpStream::connect(world.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    go.send(()).unwrap();
    let mut heard = String::new();
    stream.read_to_string(&mut heard).await.unwrap();
    assert!(heard.ends_with("late"), "{heard}");
    world.serving.await.unwrap();
}
