//! A collector for tests: it reads what is sent to it as a real one does, by the published types.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::{span, status};
use prost::Message;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};

use crate::tracer::Kind;

/// Longest wait for spans to come. Generous: whole systems are started meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a collector behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// It takes everything.
    Well,
    /// It takes everything but spans of the name `refused`, and says so.
    Picky,
    /// It answers 503.
    Refusing,
    /// It takes requests and says nothing.
    Silent,
    /// Nobody listens there.
    Away,
}

/// A span, as it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// 32 hexadecimal digits.
    pub trace: String,
    /// 16 of them.
    pub span: String,
    /// The span that asked for it; empty for the first of a trace.
    pub parent: String,
    /// What tracing systems added for themselves.
    pub state: String,
    /// What it is called.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Whether it failed.
    pub is_error: bool,
    /// Its nanoseconds.
    pub lasted: u64,
    attributes: BTreeMap<String, String>,
    resource: BTreeMap<String, String>,
}

impl Received {
    /// An attribute as text; empty if it is not there.
    #[must_use]
    pub fn attribute(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", String::as_str)
    }

    /// An attribute of whoever recorded it; empty if it is not there.
    #[must_use]
    pub fn resource(&self, key: &str) -> &str {
        self.resource.get(key).map_or("", String::as_str)
    }
}

/// A collector on a free port of this machine. Dropped, it is gone.
#[derive(Debug)]
pub struct Receiver {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Received>>>,
    serving: JoinHandle<()>,
}

impl Receiver {
    /// Starts one.
    ///
    /// # Panics
    /// There is no free port.
    pub async fn start(mood: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("there is a free port");
        let address = listener.local_addr().expect("it is bound");
        let spans = Arc::<Mutex<Vec<Received>>>::default();
        let serving = match mood {
            Mood::Away => tokio::spawn(async move { drop(listener) }),
            Mood::Well | Mood::Picky | Mood::Refusing | Mood::Silent => {
                tokio::spawn(serve(listener, mood, Arc::clone(&spans)))
            }
        };
        Self {
            address,
            spans,
            serving,
        }
    }

    /// What goes into `--otlp-endpoint`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it was told so far.
    #[must_use]
    pub fn spans(&self) -> Vec<Received> {
        self.spans
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until what it was told has something to it, and gives that.
    ///
    /// # Panics
    /// It was not told in time; what it was told is shown.
    pub async fn until<T>(&self, what: &str, look: impl Fn(&[Received]) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let spans = self.spans();
            if let Some(found) = look(&spans) {
                return found;
            }
            assert!(
                Instant::now() < deadline,
                "waited in vain: {what}; of {} spans the last are {:#?}",
                spans.len(),
                &spans[spans.len().saturating_sub(5)..]
            );
            sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, mood: Mood, spans: Arc<Mutex<Vec<Received>>>) {
    // Aborted with the task, so connections end with the collector.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let spans = Arc::clone(&spans);
        connections.spawn(async move {
            let answer = service_fn(|request| answer(request, mood, &spans));
            let http = http1::Builder::new();
            drop(http.serve_connection(TokioIo::new(stream), answer).await);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    mood: Mood,
    spans: &Mutex<Vec<Received>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let is_for_traces = request.method() == Method::POST
        && request.uri().path() == "/v1/traces"
        && request.headers()["content-type"] == "application/x-protobuf";
    let body = request.into_body().collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let mut response = Response::new(Full::default());
    match (mood, ExportTraceServiceRequest::decode(body)) {
        (Mood::Silent, _) => std::future::pending::<()>().await,
        (Mood::Well, Ok(batch)) if is_for_traces => {
            let mut all = spans.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend(received(batch));
        }
        (Mood::Picky, Ok(batch)) if is_for_traces => {
            let (refused, taken): (Vec<_>, Vec<_>) = received(batch)
                .into_iter()
                .partition(|span| span.name == "refused");
            let mut all = spans.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend(taken);
            let partial = ExportTracePartialSuccess {
                rejected_spans: refused.len() as i64,
                error_message: "of their name".to_owned(),
            };
            let answer = ExportTraceServiceResponse {
                partial_success: Some(partial).filter(|partial| partial.rejected_spans > 0),
            };
            *response.body_mut() = Full::from(answer.encode_to_vec());
        }
        (Mood::Well | Mood::Picky, _) => *response.status_mut() = StatusCode::BAD_REQUEST,
        (Mood::Refusing | Mood::Away, _) => {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
    }
    Ok(response)
}

fn received(batch: ExportTraceServiceRequest) -> Vec<Received> {
    let mut all = Vec::new();
    for of_resource in batch.resource_spans {
        let resource = of_resource.resource.unwrap_or_default();
        let resource = texts(&resource.attributes);
        let spans = of_resource.scope_spans.into_iter();
        for span in spans.flat_map(|scope| scope.spans) {
            let is_client = span.kind == span::SpanKind::Client as i32;
            let status = span.status.as_ref().map(|status| status.code);
            all.push(Received {
                trace: hex(&span.trace_id),
                span: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                kind: if is_client {
                    Kind::Client
                } else {
                    Kind::Server
                },
                is_error: status == Some(status::StatusCode::Error as i32),
                lasted: span
                    .end_time_unix_nano
                    .saturating_sub(span.start_time_unix_nano),
                attributes: texts(&span.attributes),
                resource: resource.clone(),
                state: span.trace_state,
                name: span.name,
            });
        }
    }
    all
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Option<AnyValue>| match value.as_ref().and_then(|any| any.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::BoolValue(value)) => value.to_string(),
        Some(any_value::Value::IntValue(value)) => value.to_string(),
        other => format!("{other:?}"),
    };
    attributes
        .iter()
        .map(|pair| (pair.key.clone(), text(&pair.value)))
        .collect()
}
