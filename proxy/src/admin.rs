//! What the proxy says about itself: `/ready`, `/live`, `/metrics`, and `/routes` to read and, alone, to replace.

use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::chain;
use crate::openmetrics;
use crate::routes::{self, ApplyError, Routes, Save};
use crate::telemetry::Telemetry;

/// Longest table that is taken: 1 000 routes of 10 endpoints make about 1 MiB.
const TABLE_BYTES_MAX: usize = 64 << 20;

/// What the admin address needs to know.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    pub(crate) routes: Arc<Routes>,
    pub(crate) telemetry: Arc<Telemetry>,
    /// Cancelled when the proxy begins to drain.
    pub(crate) draining: CancellationToken,
    /// Whether there is no controller, so that tables may be put here.
    pub(crate) alone: bool,
}

/// The admin address's routes.
pub(crate) fn router(admin: Admin) -> Router {
    Router::new()
        .route("/live", get(async || "live\n"))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/routes", get(show).put(replace))
        .layer(DefaultBodyLimit::max(TABLE_BYTES_MAX))
        .with_state(admin)
}

async fn ready(State(admin): State<Admin>) -> (StatusCode, &'static str) {
    if admin.draining.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready: draining\n")
    } else if admin.routes.current().is_none() {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "not ready: no route table yet\n",
        )
    } else {
        (StatusCode::OK, "ready\n")
    }
}

async fn metrics(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    let table = admin.routes.current();
    let (table, peers) = ((*table).as_deref(), admin.routes.peers());
    let accept = headers.get_all(ACCEPT).iter();
    let accept: Vec<&str> = accept.filter_map(|field| field.to_str().ok()).collect();
    let (kind, text) = if openmetrics::is_wanted(&accept.join(",")) {
        let text = admin.telemetry.render_openmetrics(table, peers);
        (
            openmetrics::CONTENT_TYPE,
            text.map_err(|error| error.to_string()),
        )
    } else {
        let text = admin.telemetry.render(table, peers);
        (
            prometheus::TEXT_FORMAT,
            text.map_err(|error| error.to_string()),
        )
    };
    match text {
        Ok(text) => ([(CONTENT_TYPE, kind), (VARY, "accept")], text).into_response(),
        Err(error) => {
            error!(%error, "metrics cannot be written as text");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn show(State(admin): State<Admin>) -> Response {
    match &*admin.routes.current() {
        Some(table) => axum::Json(table.document()).into_response(),
        None => (StatusCode::NOT_FOUND, "no route table yet\n").into_response(),
    }
}

async fn replace(State(admin): State<Admin>, body: Bytes) -> Response {
    if !admin.alone {
        let text = "tables come from the controller; ask it, or run the proxy with --routes\n";
        return (StatusCode::CONFLICT, text).into_response();
    }
    let table = match routes::parse(Path::new("body"), &body) {
        Ok(table) => table,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    };
    match admin.routes.apply_by_hand(table, Save::Yes).await {
        Ok(()) => show(State(admin)).await,
        Err(refused) => {
            let status = match &refused {
                ApplyError::Invalid(_) | ApplyError::Tls { .. } => StatusCode::BAD_REQUEST,
                ApplyError::NotNewer { .. } => StatusCode::CONFLICT,
                ApplyError::Save { .. } => {
                    warn!(error = %chain(&refused), "a table is refused");
                    StatusCode::INTERNAL_SERVER_ERROR
                }
            };
            (status, format!("{}\n", chain(&refused))).into_response()
        }
    }
}
