//! The link to the proxies: they pull their table and push their reports (DESIGN 6).

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use proxy_api::{Generation, Report, ReportAck, RouteTable};
use rollout::Duration;
use serde::Deserialize;

use super::Api;
use super::error::ApiError;
use super::types::{Problem, ProxyView};

/// Longest wait of a long poll. Middle boxes cut what is silent for a minute.
const WAIT_SECONDS_MAX: u64 = 30;

/// Longest version of a proxy that is kept.
const VERSION_BYTES_MAX: usize = 64;

/// What a proxy has, and how long it waits for more.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub struct TableQuery {
    /// The table it has, `TERM.SEQ`.
    generation: Option<String>,
    /// How long it waits for a newer one, at most 30.
    #[serde(default)]
    wait_seconds: u64,
}

/// The newest table, as soon as it is newer than the one the proxy has.
#[utoipa::path(get, path = "/api/v1/proxies/{name}/table", params(("name" = String, Path, description = "the proxy's name"), TableQuery),
    responses((status = 200, body = RouteTable), (status = 204, description = "nothing newer within the wait"), (status = 400, body = Problem)))]
pub async fn table(
    State(api): State<Api>,
    Path(_name): Path<String>,
    query: Result<Query<TableQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query?;
    let have: Generation = query
        .generation
        .as_deref()
        .unwrap_or("0.0")
        .parse()
        .map_err(|error: proxy_api::TableError| {
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_query", error.to_string())
        })?;
    let mut newest = api.fleet.table();
    let mut stopping = api.stopping.clone();
    let wait = Duration::from_secs(query.wait_seconds.min(WAIT_SECONDS_MAX));
    let found = tokio::select! {
        found = newest.wait_for(|table| table.generation > have) => found.ok().map(|table| table.clone()),
        _ = stopping.wait_for(|stopping| *stopping) => None,
        () = tokio::time::sleep(wait) => None,
    };
    Ok(found.map_or_else(
        || StatusCode::NO_CONTENT.into_response(),
        |table| Json(&*table).into_response(),
    ))
}

/// What became of the requests that a proxy routed.
#[utoipa::path(post, path = "/api/v1/proxies/{name}/reports", params(("name" = String, Path, description = "the proxy's name")),
    request_body = Report, responses((status = 200, body = ReportAck), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub async fn report(
    State(api): State<Api>,
    Path(name): Path<String>,
    headers: HeaderMap,
    report: Result<Json<Report>, JsonRejection>,
) -> Result<Json<ReportAck>, ApiError> {
    let Json(report) = report?;
    let ack = api.fleet.report(&name, report, api.clock.elapsed())?;
    api.fleet.introduce(&name, version(&headers));
    Ok(Json(ack))
}

/// The version in `user-agent: friday-proxy/VERSION`.
fn version(headers: &HeaderMap) -> Option<String> {
    let agent = headers.get(header::USER_AGENT)?.to_str().ok()?;
    let version = agent.strip_prefix("friday-proxy/")?;
    (version.len() <= VERSION_BYTES_MAX).then(|| version.to_owned())
}

/// The proxies.
#[utoipa::path(get, path = "/api/v1/proxies", responses((status = 200, body = Vec<ProxyView>)))]
pub async fn list(State(api): State<Api>) -> Json<Vec<ProxyView>> {
    let all = api.fleet.status(api.clock.elapsed());
    let view = |proxy: crate::fleet::ProxyStatus| ProxyView {
        name: proxy.name,
        generation: proxy.generation.to_string(),
        silent_seconds: proxy.silent.as_secs_f64(),
        version: proxy.version,
    };
    Json(all.into_iter().map(view).collect())
}
