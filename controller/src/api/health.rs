//! Whether the controller works, and its own metrics.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus::{GaugeVec, Opts, Registry, TextEncoder};
use proxy_api::Arm;
use serde_json::{Value, json};

use super::Api;
use super::types::Problem;

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

/// Our own metrics, in Prometheus' text format. All of them are states, so they are read when they are asked for.
pub async fn metrics(State(api): State<Api>) -> Result<Response, super::error::ApiError> {
    let registry = Registry::new();
    collect(&api, &registry).map_err(|error| {
        tracing::error!(%error, "metrics cannot be collected");
        super::error::ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "metrics_failed",
            error.to_string(),
        )
    })?;
    let text = TextEncoder::new()
        .encode_to_string(&registry.gather())
        .map_err(|error| {
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
