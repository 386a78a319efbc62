//! Where an Alertmanager sends its messages: an open incident holds rollouts.

use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::{Extension, Json};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use super::Api;
use super::error::ApiError;
use super::types::Problem;
use super::types::alerts::{AlertBody, AlertStatus, AlertsRequest, AlertsView, IncidentView};
use crate::auth::{Caller, Rule};
use crate::incidents::{Alert, HOLD_LABEL, Incident};
use crate::reconciler::{Request, Snapshot};
use crate::store::hex;

/// The version of the format that is read.
const VERSION: &str = "4";

/// Longest fingerprint that is believed. Alertmanager's has 16 digits.
const FINGERPRINT_BYTES_MAX: usize = 64;

/// Holds rollouts while an alert fires that bears `friday_hold="true"`, and lets them go on when it is resolved, or was not
/// told of for five minutes. Who tells needs a role for every service: a machine's token has one, a CI job never. A message
/// that is not saved is answered with 5xx, and an Alertmanager sends it again.
#[utoipa::path(post, path = "/api/v1/alerts", request_body = AlertsRequest,
    responses((status = 200, body = AlertsView), (status = 422, body = Problem), (status = 503, body = Problem)))]
pub async fn receive(
    State(api): State<Api>,
    caller: Option<Extension<Caller>>,
    body: Result<Json<AlertsRequest>, JsonRejection>,
) -> Result<Json<AlertsView>, ApiError> {
    // One that names no service holds them all, and what is resolved lets go whatever it held.
    if let Some(Extension(caller)) = &caller {
        caller.require_everywhere(Rule::Operate)?;
    }
    let Json(message) = body?;
    if message.version != VERSION {
        let detail = format!(
            "version {:?} of Alertmanager's messages is not known; expected {VERSION:?}",
            message.version
        );
        return Err(ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid_body",
            detail,
        ));
    }
    if message.truncated > 0 {
        tracing::warn!(
            left_out = message.truncated,
            "an Alertmanager left alerts out of its message: set max_alerts of its webhook_config to 0"
        );
    }
    let alerts = message.alerts.into_iter().map(alert).collect();
    let (reply, answer) = oneshot::channel();
    api.handle
        .requests
        .try_send(Request::Alerts(alerts, reply))
        .map_err(|_| ApiError::busy())?;
    Ok(Json(answer.await.map_err(|_| ApiError::busy())??))
}

/// An alert, as the loop knows it. Pure.
fn alert(body: AlertBody) -> Alert {
    let AlertBody {
        status,
        labels,
        annotations,
        fingerprint,
    } = body;
    let label = |name: &str| labels.get(name).filter(|value| !value.is_empty()).cloned();
    Alert {
        fingerprint: fingerprint
            .filter(|text| (1..=FINGERPRINT_BYTES_MAX).contains(&text.len()))
            .unwrap_or_else(|| hex(&Sha256::digest(format!("{labels:?}")))),
        name: label("alertname").unwrap_or_else(|| "alert".to_owned()),
        service: label("service"),
        summary: annotations.get("summary").cloned().unwrap_or_default(),
        is_firing: status == AlertStatus::Firing,
        holds: label(HOLD_LABEL.0).as_deref() == Some(HOLD_LABEL.1),
    }
}

/// The incidents that are open, for people.
pub(super) fn views(snapshot: &Snapshot) -> Vec<IncidentView> {
    let is_known = |name: &str| {
        let mut names = snapshot.services.keys();
        names.any(|known| known.as_str() == name)
    };
    let view = |incident: &Incident| IncidentView {
        alert: incident.alert.clone(),
        service: incident.service.clone().filter(|name| is_known(name)),
        summary: incident.summary.clone(),
        since: incident.since,
    };
    snapshot.incidents.iter().map(view).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// As an Alertmanager 0.25 sends it.
    #[test]
    fn reads_what_an_alertmanager_says() {
        let body = json!({
            "receiver": "friday", "status": "firing", "version": "4", "groupKey": "{}:{alertname=\"Down\"}",
            "truncatedAlerts": 0, "groupLabels": { "alertname": "Down" }, "commonLabels": {}, "commonAnnotations": {},
            "externalURL": "http://alertmanager:9093",
            "alerts": [
                {
                    "status": "firing", "startsAt": "2026-11-20T16:00:00Z", "endsAt": "0001-01-01T00:00:00Z",
                    "generatorURL": "http://prometheus:9090/graph", "fingerprint": "c0ffee",
                    "labels": { "alertname": "Down", "service": "web", "friday_hold": "true" },
                    "annotations": { "summary": "half of the answers fail" },
                },
                { "status": "resolved", "labels": { "alertname": "Slow", "friday_hold": "no", "service": "" } },
            ],
        });
        let message: AlertsRequest = serde_json::from_value(body).unwrap();
        let alerts: Vec<Alert> = message.alerts.into_iter().map(alert).collect();
        assert_eq!(
            alerts[0],
            Alert {
                fingerprint: "c0ffee".into(),
                name: "Down".into(),
                service: Some("web".into()),
                summary: "half of the answers fail".into(),
                is_firing: true,
                holds: true,
            }
        );
        let second = &alerts[1];
        assert!(!second.is_firing && !second.holds && second.service.is_none());
        assert_eq!(second.fingerprint.len(), 64, "of its labels: {second:?}");
        for wrong in [
            json!({ "version": "4" }),
            json!({ "version": "4", "alerts": [{ "status": "odd", "labels": {} }] }),
        ] {
            assert!(serde_json::from_value::<AlertsRequest>(wrong).is_err());
        }
    }
}
