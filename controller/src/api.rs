//! The HTTP API: what people, pipelines and proxies ask and tell.
//!
//! Under `/api/v1`, JSON, with an OpenAPI document at `/api/v1/openapi.json`. Domain errors become problems (RFC 9457)
//! in [`error`] and nowhere else. The board is at `/`.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use tokio::sync::watch;
use utoipa::OpenApi;

use crate::admission::Freezes;
use crate::agents::Agents;
use crate::auth::{self, Tokens};
use crate::clock::Clock;
use crate::fleet::Fleet;
use crate::metrics_source::MetricsSource;
use crate::origin::JobTokens;
use crate::reconciler::Handle;
use crate::store::Store;

pub mod agents;
pub mod alerts;
pub mod board;
pub mod card;
pub mod error;
pub mod events;
pub mod health;
pub mod leases;
pub mod locks;
pub mod me;
mod metrics;
mod origins;
pub mod proxies;
mod reads;
pub mod rollouts;
pub mod series;
pub mod sign_in;
pub mod types;
pub mod views;
pub mod webhooks;

/// Longest request body. The longest there is, a proxy's report after some silence with hundreds of tasks, is some megabytes.
pub const BODY_BYTES_MAX: usize = 64 << 20;

/// What every handler may use.
#[derive(Debug, Clone)]
pub struct Api {
    /// The saved past.
    pub store: Arc<dyn Store>,
    /// The proxies.
    pub fleet: Arc<Fleet>,
    /// The nodes' agents.
    pub agents: Arc<Agents>,
    /// The loop.
    pub handle: Handle,
    /// What the checks of guards are asked of, if anybody.
    pub metrics: Option<Arc<dyn MetricsSource>>,
    /// Who may do what; `None` lets everybody do everything.
    pub tokens: Option<Arc<Tokens>>,
    /// The credentials of the jobs that wait for rollouts.
    pub job_tokens: Arc<JobTokens>,
    /// Where GitLab's hooks come in, if they are taken.
    pub webhooks: Option<Arc<webhooks::Webhooks>>,
    /// The address of the GitLab that is told and asked, if one is named.
    pub gitlab: Option<String>,
    /// Which freezes are on.
    pub freezes: Freezes,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Turns true when the server stops: waits and streams end.
    pub stopping: watch::Receiver<bool>,
}

/// The OpenAPI document.
#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "Friday",
        description = "Progressive delivery for GitLab and Docker Swarm: rollouts, and what the judge says of them."
    ),
    paths(
        rollouts::deploy,
        rollouts::list,
        rollouts::get_one,
        rollouts::order,
        leases::lease,
        rollouts::events,
        rollouts::log,
        series::series,
        card::card,
        rollouts::services,
        rollouts::undo,
        rollouts::retry,
        webhooks::gitlab,
        locks::list,
        locks::take,
        locks::give_back,
        events::stream,
        me::me,
        proxies::table,
        proxies::report,
        proxies::list,
        agents::report,
        agents::list,
        alerts::receive,
        health::ready,
        health::health,
    ),
    components(schemas(
        types::Problem,
        proxy_api::RouteTable,
        proxy_api::Report,
        proxy_api::ReportAck
    ))
)]
pub struct Document;

/// All routes.
pub fn router(api: Api) -> Router {
    Router::new()
        .route(
            "/api/v1/rollouts",
            post(rollouts::deploy).get(rollouts::list),
        )
        .route("/api/v1/rollouts/{name}", get(rollouts::get_one))
        .route("/api/v1/rollouts/{name}/orders", post(rollouts::order))
        .route("/api/v1/rollouts/{name}/lease", post(leases::lease))
        .route("/api/v1/rollouts/{name}/events", get(rollouts::events))
        .route("/api/v1/events", get(rollouts::log))
        .route("/api/v1/rollouts/{name}/series", get(series::series))
        .route("/api/v1/rollouts/{name}/card.svg", get(card::card))
        .route("/api/v1/me", get(me::me))
        .route("/api/v1/services", get(rollouts::services))
        .route("/api/v1/services/{name}/undo", post(rollouts::undo))
        .route("/api/v1/services/{name}/retry", post(rollouts::retry))
        .route(
            "/api/v1/services/{name}/lock",
            get(locks::list).put(locks::take).delete(locks::give_back),
        )
        // It reads its body itself, within its own limits.
        .route("/api/v1/webhooks/gitlab", post(webhooks::gitlab))
        .route("/api/v1/stream", get(events::stream))
        .route("/api/v1/proxies", get(proxies::list))
        .route("/api/v1/proxies/{name}/table", get(proxies::table))
        .route("/api/v1/proxies/{name}/reports", post(proxies::report))
        .route("/api/v1/agents", get(agents::list))
        .route(
            "/api/v1/agents/{node}/reports",
            post(agents::report).layer(DefaultBodyLimit::max(types::agents::REPORT_BYTES_MAX)),
        )
        .route(
            "/api/v1/alerts",
            post(alerts::receive).layer(DefaultBodyLimit::max(types::alerts::ALERTS_BYTES_MAX)),
        )
        .route("/api/v1/health", get(health::health))
        .route(
            "/api/v1/openapi.json",
            get(|| async { axum::Json(Document::openapi()) }),
        )
        .route("/live", get(health::live))
        .route("/ready", get(health::ready))
        .route("/metrics", get(health::metrics))
        .route("/", get(board::page))
        .route("/board.css", get(board::style))
        .route("/board.js", get(board::script))
        .route("/board-draw.js", get(board::drawing))
        .merge(sign_in::routes())
        .fallback(error::no_such_path)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(from_fn_with_state(api.tokens.clone(), auth::check))
        .with_state(api)
}
