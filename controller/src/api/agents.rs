//! The nodes' agents: what they report, and the list of them.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;

use super::Api;
use super::error::ApiError;
use super::types::Problem;
use super::types::agents::{AgentReport, AgentView};

/// What the tasks of one node use.
#[utoipa::path(post, path = "/api/v1/agents/{node}/reports", params(("node" = String, Path, description = "the node's name")),
    request_body = AgentReport, responses((status = 204, description = "taken"), (status = 409, body = Problem), (status = 413, body = Problem), (status = 422, body = Problem)))]
pub async fn report(
    State(api): State<Api>,
    Path(node): Path<String>,
    report: Result<Json<AgentReport>, JsonRejection>,
) -> Result<StatusCode, ApiError> {
    let Json(report) = report?;
    api.agents.report(&node, report, api.clock.elapsed())?;
    Ok(StatusCode::NO_CONTENT)
}

/// The agents, each with its last report.
#[utoipa::path(get, path = "/api/v1/agents", responses((status = 200, body = Vec<AgentView>)))]
pub async fn list(State(api): State<Api>) -> Json<Vec<AgentView>> {
    Json(api.agents.status(api.clock.elapsed()))
}
