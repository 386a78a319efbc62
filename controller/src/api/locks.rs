//! Locks of services and environments: to see, to take, to give back.

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use rollout::{Duration, ServiceName};
use tokio::sync::oneshot;

use super::Api;
use super::error::ApiError;
use super::reads::{may_read_service, unknown_service};
use super::rollouts::{author, check_text, service_name};
use super::types::Problem;
use super::types::locks::{LockRequest, LockView, UnlockRequest};
use crate::admission::lock::Slot;
use crate::admission::{Lock, LockKey, Locks};
use crate::auth::{Caller, Rule, Target};
use crate::reconciler::{LockAct, LockOrder, Request};

/// Longest time of a lock: a freeze of a month is one for `friday.yml`.
const LOCK_FOR_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);

fn view(key: &LockKey, fence: u64, lock: &Lock) -> LockView {
    LockView {
        service: key.service.to_string(),
        environment: Some(key.environment.clone()).filter(|name| !name.is_empty()),
        owner: lock.owner.clone(),
        reason: lock.reason.clone(),
        taken: lock.taken,
        until: lock.until,
        fence,
    }
}

fn invalid(detail: String) -> ApiError {
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_body", detail)
}

async fn ask(api: &Api, order: LockOrder) -> Result<Json<LockView>, ApiError> {
    let key = order.key.clone();
    let (reply, answer) = oneshot::channel();
    api.handle
        .requests
        .try_send(Request::Lock(order, reply))
        .map_err(|_| ApiError::busy())?;
    let (fence, lock) = answer.await.map_err(|_| ApiError::busy())??;
    Ok(Json(view(&key, fence, &lock)))
}

/// Whether there is such a service: known here, or about to be released for the first time.
async fn check_service(
    api: &Api,
    caller: Option<&Extension<Caller>>,
    service: &ServiceName,
) -> Result<(), ApiError> {
    let snapshot = api.handle.snapshot.borrow().clone();
    if snapshot.services.contains_key(service) || api.handle.registry.has(service).await? {
        return Ok(());
    }
    Err(unknown_service(caller, service, snapshot.services.keys()))
}

fn key(service: &str, environment: Option<String>) -> Result<LockKey, ApiError> {
    super::rollouts::check_label("environment", environment.as_deref())?;
    Ok(LockKey {
        service: service_name(service)?,
        environment: environment.unwrap_or_default(),
    })
}

/// Whether the caller may do this to the lock, there: one of every environment takes a role in every one.
fn may(caller: Option<&Extension<Caller>>, rule: Rule, key: &LockKey) -> Result<(), ApiError> {
    let Some(Extension(caller)) = caller else {
        return Ok(());
    };
    let target = Target {
        service: key.service.as_str(),
        environment: &key.environment,
        commit: None,
        project: None,
    };
    caller.require_for(rule, &target)
}

/// Whether the caller may read of a lock. One of every environment is read by whoever may read of the service in one.
fn may_read(caller: Option<&Extension<Caller>>, key: &LockKey) -> bool {
    if key.environment.is_empty() {
        return may_read_service(caller, &key.service);
    }
    let target = Target {
        service: key.service.as_str(),
        environment: &key.environment,
        commit: None,
        project: None,
    };
    caller.is_none_or(|Extension(caller)| caller.may(Rule::Read, &target))
}

/// The locks of a service that are in force: the one for everywhere, and those of environments.
#[utoipa::path(get, path = "/api/v1/services/{name}/lock", params(("name" = String, Path, description = "a service")),
    responses((status = 200, body = Vec<LockView>), (status = 404, body = Problem)))]
pub async fn list(
    State(api): State<Api>,
    caller: Option<Extension<Caller>>,
    Path(name): Path<String>,
) -> Result<Json<Vec<LockView>>, ApiError> {
    let service = service_name(&name)?;
    let now = api.clock.now();
    let slots = api.store.locks().await?;
    let keys: Vec<LockKey> = slots
        .iter()
        .map(|slot: &Slot| slot.key.clone())
        .filter(|key| key.service == service && may_read(caller.as_ref(), key))
        .collect();
    let locks = Locks::of(slots);
    let held = keys.iter().filter_map(|key| {
        let (fence, lock) = locks.held(key, now)?;
        Some(view(key, fence, lock))
    });
    Ok(Json(held.collect()))
}

/// Takes a lock, or renews it: until it ends, nobody else begins a rollout there.
#[utoipa::path(put, path = "/api/v1/services/{name}/lock", params(("name" = String, Path, description = "a service")),
    request_body = LockRequest, responses((status = 200, body = LockView), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub async fn take(
    State(api): State<Api>,
    caller: Option<Extension<Caller>>,
    Path(name): Path<String>,
    body: Result<Json<LockRequest>, JsonRejection>,
) -> Result<Json<LockView>, ApiError> {
    let Json(body) = body?;
    check_text("by", &body.by)?;
    check_text("reason", &body.reason)?;
    let period = body.for_seconds.map(Duration::from_secs);
    if period.is_some_and(|period| period.is_zero() || period > LOCK_FOR_MAX) {
        return Err(invalid(format!(
            "for_seconds must be 1 to {}",
            LOCK_FOR_MAX.as_secs()
        )));
    }
    let key = key(&name, body.environment)?;
    may(caller.as_ref(), Rule::Operate, &key)?;
    check_service(&api, caller.as_ref(), &key.service).await?;
    let order = LockOrder {
        key,
        by: author(caller.as_ref(), body.by),
        reason: body.reason,
        act: LockAct::Take { period },
    };
    ask(&api, order).await
}

/// Gives a lock back. To break somebody else's takes a reason, and with tokens the role of an administrator.
#[utoipa::path(delete, path = "/api/v1/services/{name}/lock", params(("name" = String, Path, description = "a service")),
    request_body = UnlockRequest, responses((status = 200, body = LockView), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub async fn give_back(
    State(api): State<Api>,
    caller: Option<Extension<Caller>>,
    Path(name): Path<String>,
    body: Result<Json<UnlockRequest>, JsonRejection>,
) -> Result<Json<LockView>, ApiError> {
    let Json(body) = body?;
    check_text("by", &body.by)?;
    if let Some(reason) = &body.reason {
        check_text("reason", reason)?;
    } else if body.breaks {
        return Err(invalid(
            "to break a lock takes a reason, which the event log keeps".to_owned(),
        ));
    }
    let key = key(&name, body.environment)?;
    let rule = if body.breaks {
        Rule::Administer
    } else {
        Rule::Operate
    };
    may(caller.as_ref(), rule, &key)?;
    let order = LockOrder {
        key,
        by: author(caller.as_ref(), body.by),
        reason: body.reason.unwrap_or_default(),
        act: LockAct::GiveBack {
            fence: body.fence,
            breaks: body.breaks,
        },
    };
    ask(&api, order).await
}
