//! Any bytes from an endpoint: no panic and no hang, and the beginning of an answer is never taken for another answer that is
//! whole.
//!
//! The whole proxy runs in here, on sockets of this machine: clients by HTTP/1.1 and HTTP/2, endpoints by both. What the endpoint
//! says is sent twice: only its beginning, then the connection breaks; and all of it, then the connection is closed in
//! order. Where the first looks like a success to the client, the second must be the same success, or a failure.

#![no_main]

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use friday_proxy::app::App;
use friday_proxy::config::{Clients, Config, Source};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use libfuzzer_sys::{Corpus, fuzz_target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Longest wait for anything: nothing here takes more than some milliseconds, but the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(8);

/// What the endpoint says next, and how it ends.
#[derive(Debug, Clone, Default)]
struct Says {
    bytes: Vec<u8>,
    breaks: bool,
}

/// A proxy and its only endpoint.
struct Rig {
    runtime: Runtime,
    proxy: SocketAddr,
    says: Arc<Mutex<Says>>,
}

static RIG: LazyLock<Rig> = LazyLock::new(Rig::new);

/// What is chosen by the first byte of the input; the second says where the beginning ends, the others are the answer.
#[derive(Debug, Clone)]
struct Asked {
    method: Method,
    client_h2: bool,
    endpoint_h2: bool,
}

/// An answer that is whole: its status, body and trailers.
type Whole = (StatusCode, Bytes, Option<HeaderMap>);

impl Rig {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let says = Arc::<Mutex<Says>>::default();
        let proxy = runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let endpoint = listener.local_addr().expect("it has an address");
            tokio::spawn(serve(listener, Arc::clone(&says)));
            start(endpoint).await
        });
        Self {
            runtime,
            proxy,
            says,
        }
    }

    /// What the client gets of an endpoint that says this, if it is whole and no answer of the proxy's own.
    fn ask(&self, asked: &Asked, bytes: &[u8], breaks: bool) -> Option<Whole> {
        *self.says.lock().unwrap_or_else(PoisonError::into_inner) = Says {
            bytes: bytes.to_vec(),
            breaks,
        };
        self.runtime.block_on(async {
            let answer = timeout(PATIENCE, send(self.proxy, asked)).await;
            answer.expect("the proxy does not hang")
        })
    }
}

/// The whole proxy, with a route to that endpoint by either version of HTTP.
async fn start(endpoint: SocketAddr) -> SocketAddr {
    let route = |path: &str, protocol: &str| {
        serde_json::json!({
            "name": protocol, "match": { "host": "*", "path": path },
            "stable": { "release": "v1", "endpoints": [endpoint.to_string()] },
            "transport": { "protocol": protocol }, "timeouts": { "response_ms": 2_000 },
        })
    };
    let routes = serde_json::json!({ "routes": [route("/1", "http1"), route("/2", "h2")] });
    let file = std::env::temp_dir().join(format!("friday-fuzz-{}.json", std::process::id()));
    std::fs::write(&file, routes.to_string()).expect("a folder for temporary files");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let app = App::build(Config {
        listen: any,
        admin: any,
        source: Source::File(file.clone()),
        addresses_file: None,
        clients: Clients::default(),
        certificate: None,
        access_log: None,
        traces: None,
        threads: std::num::NonZeroUsize::MIN,
        takeover: false,
        drain_max: Duration::ZERO,
    });
    let app = app.await.expect("a proxy");
    std::fs::remove_file(file).expect("it was written just now");
    let address = app.listen_address();
    tokio::spawn(async move {
        let ended = app.serve(CancellationToken::new()).await;
        panic!("the proxy ended: {ended:?}");
    });
    address
}

/// The endpoint.
async fn serve(listener: TcpListener, says: Arc<Mutex<Says>>) {
    loop {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let says = Arc::clone(&says);
        tokio::spawn(async move {
            let mut heard = [0; 4096];
            if !matches!(stream.read(&mut heard).await, Ok(1..)) {
                return;
            }
            let says = says.lock().unwrap_or_else(PoisonError::into_inner).clone();
            // The proxy may have had enough already.
            drop(stream.write_all(&says.bytes).await);
            if says.breaks {
                drop(stream.set_zero_linger());
            } else {
                drop(stream.shutdown().await);
                while let Ok(1..) = stream.read(&mut heard).await {}
            }
        });
    }
}

/// One request by a connection of its own.
async fn send(proxy: SocketAddr, asked: &Asked) -> Option<Whole> {
    let path = if asked.endpoint_h2 { "/2" } else { "/1" };
    let stream = TcpStream::connect(proxy).await.expect("the proxy listens");
    let stream = TokioIo::new(stream);
    let request = Request::builder().method(&asked.method).header("host", "a");
    let request = request.header("te", "trailers");
    let response = if asked.client_h2 {
        let request = request.uri(format!("http://a{path}")).body(Empty::<Bytes>::new());
        let made = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await;
        let (mut sender, driver) = made.ok()?;
        tokio::spawn(driver);
        sender.send_request(request.expect("a request")).await.ok()?
    } else {
        let request = request.uri(path).body(Empty::<Bytes>::new());
        let made = hyper::client::conn::http1::handshake(stream).await;
        let (mut sender, driver) = made.ok()?;
        tokio::spawn(driver);
        sender.send_request(request.expect("a request")).await.ok()?
    };
    whole(response).await
}

async fn whole(response: Response<Incoming>) -> Option<Whole> {
    let (head, body) = response.into_parts();
    let body = body.collect().await.ok()?;
    let is_own = head.headers.contains_key("x-friday-refusal");
    let trailers = body.trailers().cloned();
    (!is_own).then(|| (head.status, body.to_bytes(), trailers))
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let [how, cut, bytes @ ..] = input else {
        return Corpus::Reject;
    };
    let asked = Asked {
        // POST is not tried twice.
        method: [Method::POST, Method::GET, Method::HEAD, Method::POST][usize::from(how & 3)].clone(),
        client_h2: how & 4 != 0,
        endpoint_h2: how & 8 != 0,
    };
    let beginning = &bytes[..bytes.len() * usize::from(*cut) / 255];
    if let Some(part) = RIG.ask(&asked, beginning, true)
        && let Some(all) = RIG.ask(&asked, bytes, false)
    {
        assert_eq!(part, all, "{asked:?}: the beginning is another answer");
    }
    Corpus::Keep
});
