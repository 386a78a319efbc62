//! Whether the controller works, and its own metrics.

mod gitlab;
mod outbox;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus::{GaugeVec, Opts, Registry, TextEncoder};
use proxy_api::Arm;
use rollout::{Duration, ServiceName, Timestamp};
use serde_json::{Value, json};

use super::Api;
use super::types::Problem;
use super::types::health::{HealthView, MetricsView, SightView, TroubleView};
use crate::metrics_source::MetricsSource;
use crate::reconciler::{ServiceSnapshot, chain};

/// Longest wait for a source of metrics, when somebody asks how the controller is.
const METRICS_MAX: Duration = Duration::from_secs(5);

/// The process answers.
pub async fn live() -> &'static str {
    "live\n"
}

/// The loop has looked at every service.
#[utoipa::path(get, path = "/ready", responses((status = 200, description = "every service was seen"), (status = 503, body = Problem)))]
pub async fn ready(State(api): State<Api>) -> Result<Json<Value>, super::error::ApiError> {
    let snapshot = api.handle.snapshot.borrow().clone();
    let unseen: Vec<&str> = snapshot
        .services
        .iter()
        .filter(|(_, service)| service.state.is_none())
        .map(|(name, _)| name.as_str())
        .collect();
    if snapshot.services.is_empty() || !unseen.is_empty() {
        let detail = format!(
            "not every service was seen yet; missing: {}",
            unseen.join(", ")
        );
        return Err(super::error::ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "not_ready",
            detail,
        ));
    }
    Ok(Json(json!({ "services": snapshot.services.len() })))
}

/// How the controller is: what it sees, saves and asks. A source of metrics is asked for it.
#[utoipa::path(get, path = "/api/v1/health", responses((status = 200, body = HealthView)))]
pub async fn health(State(api): State<Api>) -> Json<HealthView> {
    let snapshot = api.handle.snapshot.borrow().clone();
    let sight = |(name, service): (&ServiceName, &ServiceSnapshot)| SightView {
        service: name.to_string(),
        is_seen: service.state.is_some(),
        trouble: service.trouble.clone(),
    };
    let store = snapshot.unsaved.clone().map(|(words, since)| TroubleView {
        words,
        seconds: api.clock.elapsed().saturating_sub(since).as_secs_f64(),
    });
    let metrics = match &api.metrics {
        Some(source) => Some(MetricsView {
            trouble: metrics_trouble(&**source, api.clock.now()).await,
        }),
        None => None,
    };
    let generation = api.fleet.table().borrow().generation;
    let (outbox, untold) = outbox::views(&api).await;
    Json(HealthView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        now: api.clock.now(),
        generation: generation.to_string(),
        needs_token: api.tokens.is_some(),
        services: snapshot.services.iter().map(sight).collect(),
        store,
        metrics,
        incidents: super::alerts::views(&snapshot),
        outbox,
        untold,
        gitlab: gitlab::view(&api).await,
    })
}

/// Why a source does not answer a question that needs no data.
async fn metrics_trouble(source: &dyn MetricsSource, now: Timestamp) -> Option<String> {
    match tokio::time::timeout(METRICS_MAX, source.ask("vector(1)", now)).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(chain(&error)),
        Err(_) => Some(format!("no answer within {METRICS_MAX:?}")),
    }
}

/// Our own metrics, in Prometheus' text format. All of them are states, so they are read when they are asked for.
pub async fn metrics(State(api): State<Api>) -> Result<Response, super::error::ApiError> {
    let registry = Registry::new();
    let outbox = outbox::state(&api).await;
    let collected = collect(&api, &registry)
        .and_then(|()| super::metrics::collect(&api, &registry))
        .and_then(|()| outbox::collect(&outbox, &api, &registry));
    collected.map_err(|error| {
        tracing::error!(%error, "metrics cannot be collected");
        super::error::ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "metrics_failed",
            error.to_string(),
        )
    })?;
    let mut all = registry.gather();
    all.extend(api.handle.delivery.gather());
    let text = TextEncoder::new().encode_to_string(&all).map_err(|error| {
        super::error::ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "metrics_failed",
            error.to_string(),
        )
    })?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response())
}

fn collect(api: &Api, registry: &Registry) -> prometheus::Result<()> {
    let gauge = |name: &str, help: &str, labels: &[&str]| -> prometheus::Result<GaugeVec> {
        let gauge = GaugeVec::new(Opts::new(name, help), labels)?;
        registry.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    };
    let rollout_labels = ["service", "environment", "release"];
    let weight = gauge(
        "friday_rollout_weight_ratio",
        "The canary's share of requests: as decided (set), and as every living proxy applies it (seen).",
        &["service", "environment", "release", "kind"],
    )?;
    let phase = gauge(
        "friday_rollout_phase",
        "1 for the phase that the service's newest rollout is in, 0 for the others.",
        &["service", "environment", "release", "phase"],
    )?;
    let evidence = gauge(
        "friday_verdict_evidence_ratio",
        "Evidence that the canary is worse, as a share of what it takes to roll back.",
        &rollout_labels,
    )?;
    let silent = gauge(
        "friday_proxy_silent_seconds",
        "Time since a proxy last reported.",
        &["proxy"],
    )?;
    let silent_agent = gauge(
        "friday_agent_silent_seconds",
        "Time since a node's agent last reported.",
        &["node"],
    )?;
    let blind_agent = gauge(
        "friday_agent_engine_up",
        "1 if the node's agent gets answers from its engine.",
        &["node"],
    )?;
    let rate = gauge(
        "friday_requests_per_second",
        "Requests routed lately, by side.",
        &["service", "arm"],
    )?;

    let snapshot = api.handle.snapshot.borrow().clone();
    let now = api.clock.elapsed();
    for (name, service) in &snapshot.services {
        for arm in [Arm::Stable, Arm::Canary] {
            let recent = super::views::signals(&api.fleet, name, arm, now, Default::default());
            rate.with_label_values(&[name.as_str(), arm.as_str()])
                .set(recent.requests_per_second);
        }
        let Some(saved) = service.open.first().or(service.last.as_ref()) else {
            continue;
        };
        let rollout = &saved.rollout;
        let labels = [
            name.as_str(),
            rollout.environment.as_str(),
            rollout.canary.id.as_str(),
        ];
        let with = |last: &'static str| [labels[0], labels[1], labels[2], last];
        weight
            .with_label_values(&with("set"))
            .set(rollout.desired().weight.ratio());
        if let Some(seen) = api.fleet.weight_seen(name.as_str(), now) {
            weight.with_label_values(&with("seen")).set(seen.ratio());
        }
        for name in PHASES {
            phase
                .with_label_values(&with(name))
                .set(f64::from(u8::from(name == rollout.phase.name())));
        }
        if let (Some(verdict), true) = (&saved.verdict, rollout.position().is_some()) {
            evidence
                .with_label_values(&labels)
                .set(verdict.nearness().exp());
        }
    }
    for proxy in api.fleet.status(now) {
        silent
            .with_label_values(&[proxy.name.as_str()])
            .set(proxy.silent.as_secs_f64());
    }
    for agent in api.agents.status(now) {
        let node = [agent.report.node.as_str()];
        silent_agent
            .with_label_values(&node)
            .set(agent.silent_seconds);
        blind_agent
            .with_label_values(&node)
            .set(f64::from(u8::from(agent.report.trouble.is_none())));
    }
    Ok(())
}

const PHASES: [&str; 10] = [
    "deploying",
    "analyzing",
    "gated",
    "baking",
    "warm",
    "paused",
    "promoting",
    "rolling_back",
    "promoted",
    "rolled_back",
];
