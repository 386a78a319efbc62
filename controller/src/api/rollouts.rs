//! Rollouts: to start, to read, to move.

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};
use rollout::{Cause, Command, RolloutId, ServiceName};
use serde::Deserialize;
use tokio::sync::oneshot;

use super::Api;
use super::error::ApiError;
use super::reads::{find_as, find_for, may_read, may_read_service, newest, unknown_service};
use super::types::{
    DeployRequest, EventView, Order, OrderRequest, Problem, RolloutSummary, RolloutView,
    SPEC_BYTES_MAX, ServiceView, UndoRequest,
};
use super::{leases, origins, views};
use crate::auth::{Caller, Rule, Target};
use crate::orchestrator::OrchestratorError;
use crate::reconciler::{DEFAULT_ENVIRONMENT, Deploy, Reply, Request, RequestError};
use crate::spec::{self, ReadOptions};
use crate::store::Saved;

/// Most entries of one page.
const LIMIT_MAX: u32 = 1_000;

/// Entries of a page when nobody says.
const LIMIT: u32 = 50;

/// Longest text of a name, an author or a reason.
const TEXT_MAX: usize = 1_000;

/// A part of a list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub struct ListQuery {
    /// Of one service.
    service: Option<String>,
    /// At most so many, 1 to 1000; 50 by default.
    limit: Option<u32>,
    /// Only those that are older than the rollout of this name: the last of the page before.
    before: Option<String>,
}

/// A part of the event log.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub struct EventsQuery {
    /// After the entry of this number.
    #[serde(default)]
    after: i64,
    /// At most so many, 1 to 1000; 50 by default.
    limit: Option<u32>,
}

fn limit(asked: Option<u32>) -> u32 {
    asked.unwrap_or(LIMIT).clamp(1, LIMIT_MAX)
}

pub(super) fn check_text(name: &str, text: &str) -> Result<(), ApiError> {
    if text.trim().is_empty() || text.len() > TEXT_MAX {
        let detail = format!(
            "{name} must have 1 to {TEXT_MAX} characters; it has {}",
            text.trim().len()
        );
        return Err(ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid_body",
            detail,
        ));
    }
    Ok(())
}

/// Whether a label is one that may be kept for ever and shown on one line: as long as GitLab's names of environments.
pub(super) fn check_label(name: &str, label: Option<&str>) -> Result<(), ApiError> {
    if label.is_none_or(spec::is_environment) {
        return Ok(());
    }
    let detail = format!(
        "{name} must have 1 to {} bytes, and no line breaks or other control characters",
        spec::ENVIRONMENT_BYTES_MAX
    );
    Err(ApiError::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "invalid_body",
        detail,
    ))
}

fn check_words(by: &str, reason: Option<&str>) -> Result<(), ApiError> {
    check_text("by", by)?;
    reason.map_or(Ok(()), |reason| check_text("reason", reason))
}

/// Who gives an order, for the event log: with tokens the name of theirs is the beginning.
pub(super) fn author(caller: Option<&Extension<Caller>>, claimed: String) -> String {
    match caller {
        Some(Extension(caller)) => caller.author(&claimed),
        None => claimed,
    }
}

/// Whether a caller may do this to the rollout of this name, or to the newest of the service of this name. `grows` says
/// whether its release goes further by it: a job may let only that of its own commit, while it runs. A token of ours was
/// asked for its role before.
pub(super) async fn require_for(
    api: &Api,
    who: Option<&Extension<Caller>>,
    rule: Rule,
    name: &str,
    grows: bool,
) -> Result<(), ApiError> {
    let Some(Extension(caller)) = who.filter(|caller| caller.identity.is_some()) else {
        return Ok(());
    };
    let saved = find_as(api, who, name).await?;
    caller.require_for(rule, &target(&saved, grows))?;
    match &api.tokens {
        Some(tokens) if grows => tokens.check_running(caller).await,
        Some(_) | None => Ok(()),
    }
}

/// What a request about a rollout is about. `grows` says whether its release goes further by it.
fn target(saved: &Saved, grows: bool) -> Target<'_> {
    let rollout = &saved.rollout;
    // The way back leads to an older commit than that of any job.
    let is_release = grows && !rollout.admission.goes_back;
    Target {
        service: rollout.service.as_str(),
        environment: &rollout.environment,
        commit: rollout.canary.commit.as_deref().filter(|_| is_release),
        project: saved.origin.as_ref().map(|origin| origin.project_id),
    }
}

/// Whether a caller may approve what an order would take further.
async fn may_approve(
    api: &Api,
    who: Option<&Extension<Caller>>,
    name: &str,
) -> Result<bool, ApiError> {
    let Some(Extension(caller)) = who else {
        return Ok(true);
    };
    if caller.identity.is_none() {
        return Ok(Rule::Approve.takes(caller.role));
    }
    let saved = find_as(api, who, name).await?;
    Ok(caller.may(Rule::Approve, &target(&saved, true)))
}

/// Sends a request to the loop and waits for the rollout it made or moved.
pub(super) async fn ask(
    api: &Api,
    make: impl FnOnce(Reply) -> Request,
) -> Result<Json<RolloutView>, ApiError> {
    let (reply, answer) = oneshot::channel();
    api.handle
        .requests
        .try_send(make(reply))
        .map_err(|_| ApiError::busy())?;
    let id = answer.await.map_err(|_| ApiError::busy())??;
    Ok(Json(view(api, &find(api, id.as_str()).await?)))
}

/// A rollout as people see it.
pub(super) fn view(api: &Api, saved: &Saved) -> RolloutView {
    let snapshot = api.handle.snapshot.borrow().clone();
    views::rollout(api, saved, snapshot.services.get(&saved.rollout.service))
}

/// The rollout of this name, or the newest of the service of this name.
pub(super) async fn find(api: &Api, name: &str) -> Result<Saved, ApiError> {
    let snapshot = api.handle.snapshot.borrow().clone();
    let open = snapshot.services.values().flat_map(|service| &service.open);
    if let Some(saved) = open.clone().find(|saved| saved.rollout.id.as_str() == name) {
        return Ok(saved.clone());
    }
    if let Ok(service) = name.parse::<ServiceName>()
        && let Some(found) = snapshot.services.get(&service)
    {
        // The store may know of one that the loop has just saved and not published yet.
        let saved = api
            .store
            .history(Some(&service), 1)
            .await?
            .into_iter()
            .next();
        let live = saved.as_ref().and_then(|saved| {
            found
                .open
                .iter()
                .find(|open| open.rollout.id == saved.rollout.id)
        });
        return live.cloned().or(saved).ok_or_else(|| {
            let detail = format!("{service} has no rollout yet; `friday deploy` starts one");
            ApiError::new(StatusCode::NOT_FOUND, "unknown_rollout", detail)
        });
    }
    if let Some(saved) = api.store.rollout(&RolloutId::from_text(name)).await? {
        return Ok(saved);
    }
    let services: Vec<&str> = snapshot.services.keys().map(ServiceName::as_str).collect();
    let newest = api.store.history(None, 10).await?;
    let rollouts: Vec<&str> = newest
        .iter()
        .map(|saved| saved.rollout.id.as_str())
        .collect();
    let none = |names: Vec<&str>| {
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    };
    let detail = format!(
        "there is no service or rollout {name:?}; services: {}; newest rollouts: {}",
        none(services),
        none(rollouts)
    );
    Err(ApiError::new(
        StatusCode::NOT_FOUND,
        "unknown_rollout",
        detail,
    ))
}

/// Starts a rollout. A release that runs as a canary already, or was promoted last, is answered with its rollout.
#[utoipa::path(post, path = "/api/v1/rollouts", request_body = DeployRequest,
    responses((status = 201, body = RolloutView), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub async fn deploy(
    State(api): State<Api>,
    caller: Option<Extension<Caller>>,
    headers: HeaderMap,
    body: Result<Json<DeployRequest>, JsonRejection>,
) -> Result<(StatusCode, Json<RolloutView>), ApiError> {
    let Json(body) = body?;
    check_text("author", &body.author)?;
    check_text("image", &body.image)?;
    check_text("spec_name", &body.spec_name)?;
    check_label("environment", body.environment.as_deref())?;
    check_label("commit", body.commit.as_deref())?;
    check_label("plan", body.plan.as_deref())?;
    leases::check(body.origin.as_ref(), body.lease.as_ref())?;
    if body.spec.len() > SPEC_BYTES_MAX {
        let detail = format!(
            "{} has {} bytes, more than the {SPEC_BYTES_MAX} allowed",
            body.spec_name,
            body.spec.len()
        );
        return Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "invalid_spec",
            detail,
        ));
    }
    let options = ReadOptions {
        plan: body.plan.as_deref(),
        environment: body.environment.as_deref(),
    };
    let spec = spec::read(&body.spec, &body.spec_name, &options).map_err(|findings| {
        let all: Vec<String> = findings.iter().map(ToString::to_string).collect();
        ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid_spec",
            all.join("\n"),
        )
    })?;
    let environment = body
        .environment
        .unwrap_or_else(|| DEFAULT_ENVIRONMENT.to_owned());
    if let Some(Extension(caller)) = &caller {
        let target = Target {
            service: spec.service.as_str(),
            environment: &environment,
            commit: body.commit.as_deref(),
            project: None,
        };
        caller.require_for(Rule::Operate, &target)?;
        if body.change_rules {
            caller.require(Rule::Administer)?;
        }
        // A token outlives its job.
        if let Some(tokens) = &api.tokens {
            tokens.check_running(caller).await?;
        }
    }
    let who = caller.as_ref().map(|Extension(caller)| caller);
    let identities = api.tokens.as_ref().and_then(|tokens| tokens.identities());
    let origin = origins::of(body.origin, who, |project| {
        identities.is_none_or(|identities| identities.knows(project))
    })?;
    let of_job = who.and_then(Caller::commit);
    let deploy = Deploy {
        spec,
        image: body.image,
        commit: body.commit.or_else(|| of_job.map(str::to_owned)),
        environment,
        author: author(caller.as_ref(), body.author),
        retry: body.retry,
        emergency: body.emergency,
        fence: body.fence,
        change_rules: body.change_rules,
        origin,
        lease: body.lease,
    };
    let service = deploy.spec.service.clone();
    let resolved = match api.handle.registry.resolve(deploy).await {
        Err(RequestError::Orchestrator(OrchestratorError::UnknownService { known, .. })) => {
            let known = known.iter().filter_map(|name| name.parse().ok());
            let known: Vec<ServiceName> = known.collect();
            return Err(unknown_service(caller.as_ref(), &service, &known));
        }
        resolved => resolved?,
    };
    let made = ask(&api, |reply| Request::Deploy(Box::new(resolved), reply)).await?;
    leases::keep_token(&api, &headers, &made.id);
    Ok((StatusCode::CREATED, made))
}

/// The newest rollouts, newest first.
#[utoipa::path(get, path = "/api/v1/rollouts", params(ListQuery), responses((status = 200, body = Vec<RolloutSummary>), (status = 404, body = Problem)))]
pub async fn list(
    State(api): State<Api>,
    caller: Option<Extension<Caller>>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Vec<RolloutSummary>>, ApiError> {
    let Query(query) = query?;
    let service = match &query.service {
        None => None,
        Some(text) => Some(text.parse::<ServiceName>().map_err(|error| {
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_query", error.to_string())
        })?),
    };
    let most = limit(query.limit);
    let before = query.before.as_deref().map(RolloutId::from_text);
    let who = caller.as_ref();
    let saved = newest(&api, who, service.as_ref(), before, most).await?;
    // A service without a rollout has an empty list; a misspelt one has none.
    if let Some(service) = service.filter(|_| saved.is_empty() && query.before.is_none()) {
        let known = api.handle.snapshot.borrow().clone();
        if !known.services.contains_key(&service) {
            return Err(unknown_service(who, &service, known.services.keys()));
        }
    }
    Ok(Json(saved.iter().map(views::summary).collect()))
}

/// One rollout, or the newest of a service.
#[utoipa::path(get, path = "/api/v1/rollouts/{name}", params(("name" = String, Path, description = "a rollout or a service")),
    responses((status = 200, body = RolloutView), (status = 404, body = Problem)))]
pub async fn get_one(
    State(api): State<Api>,
    caller: Option<Extension<Caller>>,
    Path(name): Path<String>,
) -> Result<Json<RolloutView>, ApiError> {
    let saved = find_for(&api, caller.as_ref(), &name).await?;
    Ok(Json(view(&api, &saved)))
}

/// Moves a running rollout. The rollout is named, so that an order meant for one never moves another.
#[utoipa::path(post, path = "/api/v1/rollouts/{name}/orders", params(("name" = String, Path, description = "a rollout")),
    request_body = OrderRequest, responses((status = 200, body = RolloutView), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub async fn order(
    State(api): State<Api>,
    caller: Option<Extension<Caller>>,
    Path(name): Path<String>,
    body: Result<Json<OrderRequest>, JsonRejection>,
) -> Result<Json<RolloutView>, ApiError> {
    let Json(OrderRequest {
        order,
        by,
        reason,
        emergency,
    }) = body?;
    check_words(&by, reason.as_deref())?;
    let (rule, grows) = match order {
        Order::Approve => (Rule::Approve, true),
        Order::Reject => (Rule::Approve, false),
        Order::Promote | Order::PromoteFull | Order::Resume => (Rule::Operate, true),
        Order::Pause | Order::Abort => (Rule::Operate, false),
    };
    if let Some(Extension(who)) = &caller {
        who.require(rule)?;
    }
    require_for(&api, caller.as_ref(), rule, &name, grows).await?;
    // Where the rollout is when the loop comes to it decides whether this order opens a gate.
    let may_approve = match order {
        Order::Promote | Order::PromoteFull => may_approve(&api, caller.as_ref(), &name).await?,
        Order::Approve => true,
        Order::Reject | Order::Resume | Order::Pause | Order::Abort => false,
    };
    let by = author(caller.as_ref(), by);
    let command = match order {
        Order::Promote => Command::Promote,
        Order::PromoteFull => Command::PromoteFull,
        Order::Pause => Command::Pause,
        Order::Resume => Command::Resume,
        Order::Abort => Command::Abort(Cause::Person {
            by: by.clone(),
            reason: reason.clone(),
        }),
        Order::Reject => Command::Abort(Cause::Rejected {
            by: by.clone(),
            reason: reason.clone(),
        }),
        Order::Approve => Command::Approve { by: by.clone() },
    };
    let id = RolloutId::from_text(&name);
    ask(&api, |reply| Request::Order {
        id,
        command,
        by,
        reason,
        emergency,
        may_approve,
        reply,
    })
    .await
}

/// The event log of a rollout, oldest first.
#[utoipa::path(get, path = "/api/v1/rollouts/{name}/events", params(("name" = String, Path, description = "a rollout or a service"), EventsQuery),
    responses((status = 200, body = Vec<EventView>), (status = 404, body = Problem)))]
pub async fn events(
    State(api): State<Api>,
    caller: Option<Extension<Caller>>,
    Path(name): Path<String>,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Result<Json<Vec<EventView>>, ApiError> {
    let Query(query) = query?;
    let id = find_for(&api, caller.as_ref(), &name).await?.rollout.id;
    let events = api
        .store
        .events(Some(&id), query.after, limit(query.limit))
        .await?;
    Ok(Json(events.into_iter().map(EventView::from).collect()))
}

/// The whole event log, oldest first: what `friday audit` reads.
#[utoipa::path(get, path = "/api/v1/events", params(EventsQuery), responses((status = 200, body = Vec<EventView>)))]
pub async fn log(
    State(api): State<Api>,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Result<Json<Vec<EventView>>, ApiError> {
    let Query(query) = query?;
    let limit = limit(query.limit);
    let events = api.store.events(None, query.after, limit).await?;
    Ok(Json(events.into_iter().map(EventView::from).collect()))
}

/// The services and their newest rollouts.
#[utoipa::path(get, path = "/api/v1/services", responses((status = 200, body = Vec<ServiceView>)))]
pub async fn services(
    State(api): State<Api>,
    caller: Option<Extension<Caller>>,
) -> Json<Vec<ServiceView>> {
    let snapshot = api.handle.snapshot.borrow().clone();
    let who = caller.as_ref();
    Json(
        snapshot
            .services
            .iter()
            .filter(|(name, service)| {
                let newest = service.open.last().or(service.last.as_ref());
                newest.map_or_else(|| may_read_service(who, name), |saved| may_read(who, saved))
            })
            .filter_map(|(name, service)| views::service(&api, name, service))
            .collect(),
    )
}

pub(super) fn service_name(text: &str) -> Result<ServiceName, ApiError> {
    text.parse()
        .map_err(|error: rollout::release::ServiceNameError| {
            ApiError::new(StatusCode::NOT_FOUND, "unknown_service", error.to_string())
        })
}

/// Makes an earlier release stable again, at once.
#[utoipa::path(post, path = "/api/v1/services/{name}/undo", params(("name" = String, Path, description = "a service")),
    request_body = UndoRequest, responses((status = 201, body = RolloutView), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub async fn undo(
    State(api): State<Api>,
    caller: Option<Extension<Caller>>,
    Path(name): Path<String>,
    body: Result<Json<UndoRequest>, JsonRejection>,
) -> Result<(StatusCode, Json<RolloutView>), ApiError> {
    let Json(UndoRequest { to, of, by, reason }) = body?;
    check_words(&by, reason.as_deref())?;
    if let Some(of) = &of {
        check_text("of", of)?;
    }
    let service = service_name(&name)?;
    // Back is never further: no commit is asked for.
    let who = caller.as_ref();
    require_for(&api, who, Rule::Operate, service.as_str(), false).await?;
    let by = author(caller.as_ref(), by);
    let of = of.as_deref().map(RolloutId::from_text);
    let made = ask(&api, |reply| Request::Undo {
        service,
        to,
        of,
        by,
        reason,
        reply,
    })
    .await?;
    Ok((StatusCode::CREATED, made))
}

/// Tries the last release again that did not make it.
#[utoipa::path(post, path = "/api/v1/services/{name}/retry", params(("name" = String, Path, description = "a service")),
    request_body = UndoRequest, responses((status = 201, body = RolloutView), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub async fn retry(
    State(api): State<Api>,
    caller: Option<Extension<Caller>>,
    Path(name): Path<String>,
    body: Result<Json<UndoRequest>, JsonRejection>,
) -> Result<(StatusCode, Json<RolloutView>), ApiError> {
    let Json(UndoRequest { by, reason, .. }) = body?;
    check_words(&by, reason.as_deref())?;
    let service = service_name(&name)?;
    let who = caller.as_ref();
    require_for(&api, who, Rule::Operate, service.as_str(), true).await?;
    let by = author(caller.as_ref(), by);
    let made = ask(&api, |reply| Request::Retry {
        service,
        by,
        reason,
        reply,
    })
    .await?;
    Ok((StatusCode::CREATED, made))
}
