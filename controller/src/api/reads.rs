//! Who may read what: the rollouts, services and locks that their grants are for. What is about all of them takes a role that
//! holds everywhere ([`Rule::ReadAll`]).

use axum::Extension;
use axum::http::StatusCode;
use rollout::{RolloutId, ServiceName};

use super::Api;
use super::error::ApiError;
use super::rollouts::find;
use crate::auth::{Caller, Rule, Target};
use crate::reconciler::RequestError;
use crate::store::Saved;

/// Rollouts that are looked at together for a caller who may read some of them.
const PAGE: u32 = 100;

/// Most such pages for one list: with ten thousand rollouts of their services in environments that are not theirs, there are
/// other ways to the rest.
const PAGES_MAX: usize = 100;

/// What reading of a rollout is about: its service and environment, whoever released which commit.
fn target(saved: &Saved) -> Target<'_> {
    Target {
        service: saved.rollout.service.as_str(),
        environment: &saved.rollout.environment,
        commit: None,
        project: None,
    }
}

/// Whether a caller may read of a rollout.
pub(super) fn may_read(caller: Option<&Extension<Caller>>, saved: &Saved) -> bool {
    caller.is_none_or(|Extension(caller)| caller.may(Rule::Read, &target(saved)))
}

/// Whether a caller may read of a service, in whichever environment.
pub(super) fn may_read_service(caller: Option<&Extension<Caller>>, service: &ServiceName) -> bool {
    caller.is_none_or(|Extension(caller)| caller.may_somewhere(Rule::Read, service.as_str()))
}

/// Whether a caller may read what is about all services.
pub(super) fn may_read_all(caller: Option<&Extension<Caller>>) -> bool {
    caller.is_none_or(|Extension(caller)| caller.may_everywhere(Rule::ReadAll))
}

/// That there is no service of this name, to whoever asks for it: the others are named as far as they may read of them.
pub(super) fn unknown_service<'n>(
    caller: Option<&Extension<Caller>>,
    name: &ServiceName,
    known: impl IntoIterator<Item = &'n ServiceName>,
) -> ApiError {
    let known: Vec<&str> = known
        .into_iter()
        .filter(|known| may_read_service(caller, known))
        .map(ServiceName::as_str)
        .collect();
    let known = if known.is_empty() {
        "none".to_owned()
    } else {
        known.join(", ")
    };
    let name = name.to_string();
    RequestError::UnknownService { name, known }.into()
}

/// The rollout of this name, or the newest of the service of this name; whoever may not read everything is not told what else
/// there is.
pub(super) async fn find_as(
    api: &Api,
    caller: Option<&Extension<Caller>>,
    name: &str,
) -> Result<Saved, ApiError> {
    let found = find(api, name).await;
    match found {
        Err(problem) if problem.code() == "unknown_rollout" && !may_read_all(caller) => {
            let detail = format!("there is no rollout {name:?}, and none of a service {name:?}");
            Err(ApiError::new(
                StatusCode::NOT_FOUND,
                "unknown_rollout",
                detail,
            ))
        }
        found => found,
    }
}

/// The same, for somebody who wants to read of it.
///
/// # Errors
/// There is none, or it is not theirs to read.
pub(super) async fn find_for(
    api: &Api,
    caller: Option<&Extension<Caller>>,
    name: &str,
) -> Result<Saved, ApiError> {
    let saved = find_as(api, caller, name).await?;
    if let Some(Extension(caller)) = caller {
        caller.require_for(Rule::Read, &target(&saved))?;
    }
    Ok(saved)
}

/// The newest rollouts, newest first, that a caller may read: at most so many, of one service, older than one.
///
/// # Errors
/// There is no such rollout, or the store failed.
pub(super) async fn newest(
    api: &Api,
    caller: Option<&Extension<Caller>>,
    service: Option<&ServiceName>,
    before: Option<RolloutId>,
    most: u32,
) -> Result<Vec<Saved>, ApiError> {
    let unknown = |before: &RolloutId| {
        let detail = format!("before={before}: there is no such rollout");
        ApiError::new(StatusCode::NOT_FOUND, "unknown_rollout", detail)
    };
    if may_read_all(caller) {
        return match &before {
            None => Ok(api.store.history(service, most).await?),
            Some(before) => {
                let older = api.store.older(service, before, most).await?;
                older.ok_or_else(|| unknown(before))
            }
        };
    }
    // What others release is not even looked at: it may be much, and the loop wants the store too.
    let mut services = match service {
        Some(service) => vec![service.clone()],
        None => api.store.released().await?,
    };
    services.retain(|service| may_read_service(caller, service));
    if services.is_empty() {
        return Ok(Vec::new());
    }
    let mut before = before;
    let mut found = Vec::new();
    for _ in 0..PAGES_MAX {
        let page = api.store.history_of(&services, before.as_ref(), PAGE);
        let page = match (page.await?, &before) {
            (Some(page), _) => page,
            (None, Some(before)) => return Err(unknown(before)),
            (None, None) => break,
        };
        let is_last = page.len() < PAGE as usize;
        before = page.last().map(|saved| saved.rollout.id.clone());
        found.extend(page.into_iter().filter(|saved| may_read(caller, saved)));
        if is_last || found.len() >= most as usize {
            break;
        }
    }
    found.truncate(most as usize);
    Ok(found)
}
