//! What tests are made of: backends, a proxy, a client.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use friday_proxy::app::{App, AppError};
use friday_proxy::config::{Clients, Config, Source};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client as PooledClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use proxy_api::{Generation, RouteTable};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Threads of a proxy: more than one, so that what they share is shared.
const WORKERS: NonZeroUsize = NonZeroUsize::new(2).unwrap();

/// Longest wait for anything that should happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `look` finds something, and gives it; after [`PATIENCE`] it fails with what was waited for.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// A server behind the proxy. Dropped, it is gone, with its connections.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    hits: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Backend {
    /// Answers every request by `answer`.
    pub(crate) async fn new<F, B>(
        answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Response<B>> + Send + 'static,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, answer)
    }

    /// The same on a port that was chosen before.
    pub(crate) fn on<F, B>(
        listener: TcpListener,
        answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Response<B>> + Send + 'static,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let address = listener.local_addr().unwrap();
        let hits = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&hits);
        let task = tokio::spawn(async move {
            // Aborted with the task, so connections end with the backend.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, counter) = (answer.clone(), Arc::clone(&counter));
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        counter.fetch_add(1, Ordering::SeqCst);
                        let answer = answer(request);
                        async move { Ok::<_, Infallible>(answer.await) }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    drop(http.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Self {
            address,
            hits,
            task,
        }
    }

    /// Answers 200 with `name`.
    pub(crate) async fn named(name: &'static str) -> Self {
        Self::with_status(name, StatusCode::OK).await
    }

    /// Answers with `name` and that status.
    pub(crate) async fn with_status(name: &'static str, status: StatusCode) -> Self {
        Self::new(move |_| async move { text(status, name) }).await
    }

    /// Takes a request and breaks the connection, as a task does that is killed while it works.
    pub(crate) async fn killed() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let hits = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&hits);
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = [0; 4096];
                // A probe connects and says nothing.
                if matches!(stream.read(&mut buffer).await, Ok(1..)) {
                    counter.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        Self {
            address,
            hits,
            task,
        }
    }

    /// Sends this part of an answer, and breaks the connection.
    pub(crate) async fn broken_off(part: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let hits = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&hits);
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = [0; 4096];
                if matches!(stream.read(&mut buffer).await, Ok(1..)) {
                    counter.fetch_add(1, Ordering::SeqCst);
                    stream.write_all(part.as_bytes()).await.unwrap();
                }
            }
        });
        Self {
            address,
            hits,
            task,
        }
    }

    /// How many requests it has seen.
    pub(crate) fn hits(&self) -> u32 {
        self.hits.load(Ordering::SeqCst)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An address where nobody listens: bound once, and let go.
pub(crate) async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

/// An answer of one short text.
pub(crate) fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
}

/// A side of a route, as it stands in a table.
pub(crate) fn side(release: &str, endpoints: &[SocketAddr]) -> Value {
    json!({ "release": release, "endpoints": endpoints.iter().map(SocketAddr::to_string).collect::<Vec<_>>() })
}

/// A table of the one route `web`, with `more` keys of that route.
pub(crate) fn table(seq: u64, stable: &[SocketAddr], more: Value) -> RouteTable {
    let mut route = json!({ "name": "web", "stable": side("v1", stable) });
    route
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let table = json!({ "generation": { "term": 1, "seq": seq }, "routes": [route] });
    serde_json::from_value(table).unwrap()
}

/// A proxy in this process.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) shutdown: CancellationToken,
    serving: Option<JoinHandle<Result<(), AppError>>>,
    /// Of its table file, if it is alone.
    _directory: Option<TempDir>,
}

impl Proxy {
    /// One that runs alone with that table.
    pub(crate) async fn alone(table: &RouteTable) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("routes.json");
        std::fs::write(&file, serde_json::to_vec(table).unwrap()).unwrap();
        let mut proxy = Self::start(Source::File(file), PATIENCE).await.unwrap();
        proxy._directory = Some(directory);
        proxy
    }

    /// One that is led by a controller.
    pub(crate) async fn led(controller: SocketAddr, state_dir: &Path) -> Result<Self, AppError> {
        let source = Source::Controller {
            ca: None,
            token_file: None,
            controller: format!("http://{controller}").parse().unwrap(),
            state_dir: state_dir.to_owned(),
            name: "edge".to_owned(),
        };
        Self::start(source, PATIENCE).await
    }

    /// One that drains for at most so long.
    pub(crate) async fn start(source: Source, drain_max: Duration) -> Result<Self, AppError> {
        Self::with(source, drain_max, |_| {}).await
    }

    /// The same with other settings.
    pub(crate) async fn with(
        source: Source,
        drain_max: Duration,
        change: impl FnOnce(&mut Config),
    ) -> Result<Self, AppError> {
        let any = "127.0.0.1:0".parse().unwrap();
        let mut config = Config {
            listen: any,
            admin: any,
            source,
            addresses_file: None,
            clients: Clients::default(),
            certificate: None,
            access_log: None,
            traces: None,
            threads: WORKERS,
            takeover: false,
            drain_max,
        };
        change(&mut config);
        let app = App::build(config).await?;
        let shutdown = CancellationToken::new();
        Ok(Self {
            listen: app.listen_address(),
            admin: app.admin_address(),
            serving: Some(tokio::spawn(app.serve(shutdown.clone()))),
            shutdown,
            _directory: None,
        })
    }

    /// Gives the proxy another table, as a person would.
    pub(crate) async fn put(&self, table: &RouteTable) -> (StatusCode, String) {
        self.put_text(serde_json::to_vec(table).unwrap()).await
    }

    /// The same with any text.
    pub(crate) async fn put_text(&self, text: Vec<u8>) -> (StatusCode, String) {
        let request = Request::put(format!("http://{}/routes", self.admin))
            .body(Full::from(text))
            .unwrap();
        let answer = Client::new().send(request).await.unwrap();
        (answer.status, answer.body)
    }

    /// What it says on its admin address.
    pub(crate) async fn ask(&self, path: &str) -> (StatusCode, String) {
        let answer = Client::new()
            .get(&format!("http://{}{path}", self.admin), &[])
            .await
            .unwrap();
        (answer.status, answer.body)
    }

    /// The sum of a metric's series whose labels hold all of `labels`.
    pub(crate) async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let (_, text) = self.ask("/metrics").await;
        text.lines()
            .filter(|line| {
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with(['{', ' ']))
                    && labels.iter().all(|label| line.contains(label))
            })
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
    }

    /// The table in force.
    pub(crate) async fn generation(&self) -> Option<Generation> {
        let (status, body) = self.ask("/routes").await;
        let table = |_| {
            serde_json::from_str::<RouteTable>(&body)
                .unwrap()
                .generation
        };
        (status == StatusCode::OK).then_some(()).map(table)
    }

    /// Waits until that table is in force.
    pub(crate) async fn has(&self, seq: u64) {
        let what = format!("table 1.{seq} in force");
        eventually(&what, async || {
            (self.generation().await? == Generation { term: 1, seq }).then_some(())
        })
        .await;
    }

    /// The URL of a path at the proxy.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.listen)
    }

    /// Ends it, and waits until it has ended.
    pub(crate) async fn stop(mut self) {
        self.shutdown.cancel();
        let serving = self.serving.take().unwrap();
        tokio::time::timeout(PATIENCE * 2, serving)
            .await
            .expect("the proxy ends")
            .unwrap()
            .unwrap();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    /// A header's value, empty if it is not there.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

/// A client that keeps its connections.
#[derive(Debug, Clone)]
pub(crate) struct Client(PooledClient<HttpConnector, Full<Bytes>>);

impl Client {
    /// Speaks HTTP/1.1.
    pub(crate) fn new() -> Self {
        Self(PooledClient::builder(TokioExecutor::new()).build_http())
    }

    /// Speaks HTTP/2 without asking.
    pub(crate) fn h2() -> Self {
        Self(
            PooledClient::builder(TokioExecutor::new())
                .http2_only(true)
                .build_http(),
        )
    }

    /// Sends a request and reads the answer.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Answer, String> {
        let response = self
            .0
            .request(request)
            .await
            .map_err(|error| format!("{error:?}"))?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| error.to_string())?;
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body: String::from_utf8(body.to_bytes().to_vec()).unwrap(),
        })
    }

    /// GET with some headers.
    pub(crate) async fn get(&self, url: &str, headers: &[(&str, &str)]) -> Result<Answer, String> {
        self.call(Method::GET, url, headers, "").await
    }

    /// Any method, headers and body.
    pub(crate) async fn call(
        &self,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        body: &'static str,
    ) -> Result<Answer, String> {
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(Full::from(body)).unwrap()).await
    }
}

/// Whether `hits` of `n` is where a share of `p` puts it but once in a million runs: 4.9 standard deviations.
pub(crate) fn in_band(hits: usize, n: usize, p: f64) -> bool {
    let mean = n as f64 * p;
    (hits as f64 - mean).abs() <= 4.9 * (mean * (1.0 - p)).sqrt() + 1.0
}

/// What a backend saw, to be looked at by the test.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<Vec<HeaderMap>>>);

impl Seen {
    /// Takes note of a request.
    pub(crate) fn note(&self, headers: &HeaderMap) {
        self.0.lock().unwrap().push(headers.clone());
    }

    /// The last one.
    pub(crate) fn last(&self) -> HeaderMap {
        self.0.lock().unwrap().last().unwrap().clone()
    }
}
