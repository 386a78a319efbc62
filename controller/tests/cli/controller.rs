//! A controller that answers from a script.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use futures::StreamExt;
use rollout::Duration;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What was asked.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    /// The job's credential for GitLab.
    pub(crate) job_token: Option<String>,
    pub(crate) body: Value,
}

#[derive(Debug, Default)]
struct Script {
    /// The rollout as it is, and as it will be: each look takes one, and the last one stays.
    views: Vec<Value>,
    refusal: Option<(StatusCode, Value)>,
    requests: Vec<Request>,
}

impl Script {
    fn look(&mut self) -> Value {
        if self.views.len() > 1 {
            self.views.remove(0)
        } else {
            self.views[0].clone()
        }
    }
}

type Shared = Arc<Mutex<Script>>;

/// The server; gone with all its connections when it is dropped.
#[derive(Debug)]
pub(crate) struct Controller {
    address: SocketAddr,
    script: Shared,
    task: JoinHandle<()>,
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Controller {
    pub(crate) async fn start(views: Vec<Value>) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), views).await
    }

    pub(crate) async fn start_at(address: SocketAddr, views: Vec<Value>) -> Self {
        Self::serve(
            address,
            Script {
                views,
                ..Script::default()
            },
        )
        .await
    }

    /// One that answers everything with this.
    pub(crate) async fn refuse(status: u16, body: Value) -> Self {
        Self::refuse_at("127.0.0.1:0".parse().unwrap(), status, body).await
    }

    pub(crate) async fn refuse_at(address: SocketAddr, status: u16, body: Value) -> Self {
        let refusal = Some((StatusCode::from_u16(status).unwrap(), body));
        Self::serve(
            address,
            Script {
                refusal,
                ..Script::default()
            },
        )
        .await
    }

    async fn serve(address: SocketAddr, script: Script) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(script));
        let router = Router::new().fallback(answer).with_state(script.clone());
        // In a runtime of its own, so that dropping it breaks the connections as a dead process would.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = listener.into_std().unwrap();
        let (gone, dropped) = tokio::sync::oneshot::channel::<Infallible>();
        std::thread::spawn(move || {
            runtime.spawn(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                axum::serve(listener, router).await.unwrap();
            });
            assert!(dropped.blocking_recv().is_err());
            runtime.shutdown_background();
        });
        let task = tokio::spawn(async move {
            let _gone = gone;
            std::future::pending().await
        });
        Self {
            address,
            script,
            task,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.script.lock().unwrap().requests.clone()
    }

    /// Ends it, and waits until nobody listens there: another one may come in its place.
    pub(crate) async fn end(self) {
        let address = self.address;
        drop(self);
        let gone = async {
            while TcpStream::connect(address).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), gone)
            .await
            .unwrap();
    }

    /// Waits until so many requests have come.
    pub(crate) async fn asked(&self, count: usize) {
        let enough = async {
            while self.requests().len() < count {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), enough)
            .await
            .unwrap();
    }
}

async fn answer(
    State(script): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let shown = |name: &str| {
        headers
            .get(name)
            .map(|value| value.to_str().unwrap().to_owned())
    };
    let authorization = shown(header::AUTHORIZATION.as_str());
    let job_token = shown("x-friday-job-token");
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let path = uri.path().to_owned();
    let mut state = script.lock().unwrap();
    state.requests.push(Request {
        method: method.to_string(),
        path: path.clone(),
        authorization,
        job_token,
        body,
    });
    if let Some((status, body)) = &state.refusal {
        return (*status, Json(body.clone())).into_response();
    }
    let created = |view: Value| (StatusCode::CREATED, Json(view)).into_response();
    match (method.as_str(), path.as_str()) {
        (
            "POST",
            "/api/v1/rollouts" | "/api/v1/services/web/undo" | "/api/v1/services/web/retry",
        ) => created(state.look()),
        ("POST", _) => Json(state.look()).into_response(),
        ("GET", "/api/v1/stream") => stream(script.clone()),
        ("GET", "/api/v1/rollouts") => Json(json!([summary(&state.look())])).into_response(),
        ("GET", "/api/v1/services") => {
            let view = state.look();
            let service =
                json!({ "service": "web", "stable": view["stable"], "rollout": summary(&view) });
            Json(json!([service])).into_response()
        }
        ("GET", "/api/v1/me") => {
            let me =
                json!({ "name": "ann", "role": null, "may_operate": true, "may_approve": false });
            Json(me).into_response()
        }
        ("GET", path) if path.ends_with("/events") => Json(json!([])).into_response(),
        _ => Json(state.look()).into_response(),
    }
}

/// A change every 100 ms, between comments and events of other kinds.
fn stream(script: Shared) -> Response {
    let events = futures::stream::unfold(script, |script| async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let view = script.lock().unwrap().look();
        let event = Event::default().event("rollout").data(view.to_string());
        Some((
            [
                Event::default().comment("beat"),
                Event::default().event("other").data("x"),
                event,
            ],
            script,
        ))
    });
    Sse::new(events.flat_map(|events| futures::stream::iter(events.map(Ok::<_, Infallible>))))
        .into_response()
}

fn summary(view: &Value) -> Value {
    let mut summary = view.clone();
    summary["canary"] = view["canary"]["release"].clone();
    summary["weight_percent"] = view["weight"]["set_percent"].clone();
    summary
}

/// A rollout of the service `web` as the API describes it.
pub(crate) fn view(number: u64, phase: Value, ending: Option<&str>) -> Value {
    let release = |image: &str, digit: &str| {
        let id = digit.repeat(12);
        json!({ "id": id, "image": image, "digest": format!("sha256:{id}") })
    };
    let signals = json!({
        "requests_per_second": 10.0, "error_ratio": null, "latency_p50_seconds": null, "latency_p90_seconds": null,
        "latency_p99_seconds": null, "memory_bytes": null, "cpu_cores": null,
    });
    let arm = |release| json!({ "release": release, "tasks": [], "replicas": 1, "restarts": 0, "signals": signals });
    json!({
        "id": format!("web-{number}"), "number": number, "service": "web", "environment": "default", "author": "ann",
        "created": "2025-03-07T09:00:00Z", "moved": "2025-03-07T09:00:00Z", "elapsed_seconds": 1.0,
        "phase": phase, "message": format!("message of web-{number}"),
        "weight": { "set_percent": 10.0, "seen_percent": 10.0 },
        "steps": [{ "kind": "weight", "weight_percent": 10.0, "least_seconds": 10.0, "state": "current" }],
        "stable": arm(release("worker:v1", "1")), "canary": arm(release("worker:v2", "2")),
        "ending": ending, "superseded_by": null,
    })
}
