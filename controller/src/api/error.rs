//! From what went wrong to what the caller is told: a problem document (RFC 9457). Causes go to the log.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

use super::types::Problem;
use crate::agents::AgentError;
use crate::auth::Refusal;
use crate::fleet::ReportError;
use crate::orchestrator::OrchestratorError;
use crate::reconciler::{RequestError, chain};
use crate::store::StoreError;

/// A problem on its way to a caller.
#[derive(Debug, Clone)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    detail: String,
}

impl ApiError {
    /// A problem of this kind.
    #[must_use]
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
        }
    }

    /// Its stable name.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// Its words for the caller.
    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    /// The loop has ended, or is so busy that it takes no more.
    #[must_use]
    pub fn busy() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            "the controller is stopping, or has too many requests waiting; try again in a moment",
        )
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let problem = Problem {
            code: self.code.to_owned(),
            status: self.status.as_u16(),
            title: self.status.canonical_reason().unwrap_or("error").to_owned(),
            detail: self.detail,
        };
        let mut response = (self.status, Json(problem)).into_response();
        let kind = header::HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        tracing::error!(error = %chain(&error), "the store failed");
        let status = match &error {
            StoreError::Full { .. } => StatusCode::INSUFFICIENT_STORAGE,
            StoreError::Fenced { .. }
            | StoreError::Corrupt { .. }
            | StoreError::Database { .. } => StatusCode::SERVICE_UNAVAILABLE,
        };
        let code = match &error {
            StoreError::Full { .. } => "store_full",
            StoreError::Fenced { .. } => "fenced",
            StoreError::Corrupt { .. } | StoreError::Database { .. } => "store_failed",
        };
        Self::new(status, code, error.to_string())
    }
}

impl From<OrchestratorError> for ApiError {
    fn from(error: OrchestratorError) -> Self {
        let (status, code) = match &error {
            OrchestratorError::UnknownService { .. } => (StatusCode::NOT_FOUND, "unknown_service"),
            OrchestratorError::UnknownImage { .. } => {
                (StatusCode::UNPROCESSABLE_ENTITY, "unknown_image")
            }
            OrchestratorError::Refused { .. } => (StatusCode::CONFLICT, "refused"),
            OrchestratorError::Unreachable { .. } | OrchestratorError::State { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, "orchestrator_failed")
            }
        };
        if status == StatusCode::SERVICE_UNAVAILABLE {
            tracing::error!(error = %chain(&error), "the orchestrator failed");
        }
        Self::new(status, code, chain(&error))
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let detail = error.to_string();
        let (status, code) = match error {
            RequestError::UnknownService { .. } => (StatusCode::NOT_FOUND, "unknown_service"),
            RequestError::UnknownRollout { .. } => (StatusCode::NOT_FOUND, "unknown_rollout"),
            RequestError::AlreadyStable { .. } => (StatusCode::CONFLICT, "already_stable"),
            RequestError::RolledBackBefore { .. } => (StatusCode::CONFLICT, "rolled_back_before"),
            RequestError::LeaseHeld { .. } => (StatusCode::CONFLICT, "lease_held"),
            RequestError::OtherEnvironment { .. } => (StatusCode::CONFLICT, "other_environment"),
            RequestError::NotBack { .. } => (StatusCode::CONFLICT, "not_back"),
            RequestError::NotNow { .. } => (StatusCode::CONFLICT, "not_now"),
            RequestError::NeedsApprover { .. } => (StatusCode::FORBIDDEN, "forbidden"),
            RequestError::Held { .. } => (StatusCode::CONFLICT, "held"),
            RequestError::NoMetricsSource { .. } => {
                (StatusCode::UNPROCESSABLE_ENTITY, "no_metrics_source")
            }
            RequestError::NoSuchRelease { .. } => (StatusCode::NOT_FOUND, "no_such_release"),
            RequestError::Busy { .. } => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            RequestError::NotAdmitted(refused) => (StatusCode::CONFLICT, refused.code()),
            RequestError::HeldByRules { refused, .. } => (StatusCode::CONFLICT, refused.code()),
            RequestError::Store(error) => return error.into(),
            RequestError::Orchestrator(error) => return error.into(),
        };
        Self::new(status, code, detail)
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let detail = format!("rule {:?}: {refusal}", refusal.rule());
        let (status, code) = if matches!(refusal, Refusal::NoKeys { .. }) {
            (StatusCode::SERVICE_UNAVAILABLE, "keys_unreachable")
        } else if matches!(refusal, Refusal::JobUnknown { .. }) {
            (StatusCode::SERVICE_UNAVAILABLE, "job_unknown")
        } else if refusal.is_about_the_token() {
            (StatusCode::UNAUTHORIZED, "token_refused")
        } else {
            (StatusCode::FORBIDDEN, "forbidden")
        };
        Self::new(status, code, detail)
    }
}

impl From<ReportError> for ApiError {
    fn from(error: ReportError) -> Self {
        Self::new(StatusCode::CONFLICT, "report_refused", error.to_string())
    }
}

impl From<AgentError> for ApiError {
    fn from(error: AgentError) -> Self {
        let status = match &error {
            AgentError::Unfit { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            AgentError::TooMany(_) | AgentError::Name(..) | AgentError::Twice(_) => {
                StatusCode::CONFLICT
            }
        };
        Self::new(status, "report_refused", error.to_string())
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), "invalid_body", rejection.body_text())
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), "invalid_query", rejection.body_text())
    }
}

/// What is answered where nothing is.
pub(super) async fn no_such_path(uri: Uri) -> ApiError {
    let detail = format!(
        "there is nothing at {}; /api/v1/openapi.json says what there is",
        uri.path()
    );
    ApiError::new(StatusCode::NOT_FOUND, "no_such_path", detail)
}
