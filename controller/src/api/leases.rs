//! Leases of rollouts: taken by the job that waits, renewed while it does, given back when it is cancelled.

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};
use rollout::RolloutId;

use super::Api;
use super::error::ApiError;
use super::rollouts::{ask, check_text, require_for};
use super::types::{LeaseOrder, Problem, RolloutView};
use crate::auth::{Caller, Rule};
use crate::lease::Terms;
use crate::origin::{JOB_TOKEN_HEADER, JobToken, Origin};
use crate::reconciler::{LeaseRequest, Request};

/// Takes, renews or gives back a lease: who waits for a rollout, and what happens when they are heard no more.
#[utoipa::path(post, path = "/api/v1/rollouts/{name}/lease", params(("name" = String, Path, description = "a rollout")),
    request_body = LeaseOrder, responses((status = 200, body = RolloutView), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub async fn lease(
    State(api): State<Api>,
    caller: Option<Extension<Caller>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Result<Json<LeaseOrder>, JsonRejection>,
) -> Result<Json<RolloutView>, ApiError> {
    let Json(order) = body?;
    let request = match order {
        LeaseOrder::Take { terms } => {
            check(None, Some(&terms))?;
            LeaseRequest::Take(terms)
        }
        LeaseOrder::Renew { holder } => LeaseRequest::Renew { holder },
        LeaseOrder::GiveBack { holder, reason } => {
            if let Some(reason) = &reason {
                check_text("reason", reason)?;
            }
            LeaseRequest::GiveBack { holder, reason }
        }
    };
    // A lease that is lost is an order.
    require_for(&api, caller.as_ref(), Rule::Operate, &name, false).await?;
    let id = RolloutId::from_text(&name);
    let view = ask(&api, |reply| Request::Lease { id, request, reply }).await?;
    keep_token(&api, &headers, &view.id);
    Ok(view)
}

/// Whether what a job says of itself is within the limits.
pub(super) fn check(origin: Option<&Origin>, terms: Option<&Terms>) -> Result<(), ApiError> {
    let checked = origin
        .map_or(Ok(()), Origin::check)
        .and_then(|()| terms.map_or(Ok(()), Terms::check));
    checked
        .map_err(|detail| ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_body", detail))
}

/// Keeps the credential that the job sent along, for as long as this process lives.
pub(super) fn keep_token(api: &Api, headers: &HeaderMap, rollout: &str) {
    let shown = headers.get(JOB_TOKEN_HEADER);
    let token = shown.and_then(|value| JobToken::new(value.to_str().ok()?));
    if let Some(token) = token {
        api.job_tokens.keep(&RolloutId::from_text(rollout), token);
    }
}
