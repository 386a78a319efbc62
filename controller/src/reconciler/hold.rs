//! Incidents, and the rollouts that are held for them.

use rollout::{Command, Event, Rollout, RolloutId, ServiceName, Timestamp};
use serde_json::json;

use super::Reconciler;
use super::error::RequestError;
use super::ledger::{Ledger, describe};
use crate::api::types::alerts::AlertsView;
use crate::incidents::{AUTHOR, Alert, Hold, INCIDENT_LIVE, Incident, News, may_be_held};
use crate::store::{Change, NewEvent};

impl Reconciler {
    /// Takes in what an Alertmanager says. It holds from now on also if that cannot be saved: then the Alertmanager is told, and
    /// says it again.
    pub(super) async fn hear(&mut self, alerts: Vec<Alert>) -> Result<AlertsView, RequestError> {
        let now = self.clock.elapsed();
        let (news, left_out) = self.incidents.hear(alerts, now, self.clock.now());
        if left_out > 0 {
            tracing::error!(left_out, "too many incidents are open: these hold nothing");
        }
        let count = |what| news.iter().filter(|(news, _)| *news == what).count();
        let view = AlertsView {
            opened: count(News::Opened),
            resolved: count(News::Resolved),
            left_out,
            open: self.incidents.list().len(),
        };
        let change = Change {
            events: news.iter().map(event).collect(),
            incidents: self.incidents.unsaved(),
            ..Change::default()
        };
        if !change.is_empty() {
            self.commit(change, false).await??;
        }
        Ok(view)
    }

    /// Ends incidents that nobody tells of any more.
    pub(super) fn expire_incidents(&mut self, change: &mut Change) {
        let ended = self.incidents.expire(self.clock.elapsed());
        for (_, incident) in &ended {
            tracing::warn!(alert = incident.alert, silent = ?INCIDENT_LIVE, "an incident was not told of any more and counts as over: does the Alertmanager live?");
        }
        change.events.extend(ended.iter().map(event));
    }

    /// The incident that is about a service.
    pub(super) fn incident(&self, service: &ServiceName) -> Option<&Incident> {
        let is_known = |name: &str| self.services.keys().any(|known| known.as_str() == name);
        self.incidents.about(service, is_known)
    }

    /// What incidents mean for the running rollout of a service.
    pub(super) fn hold(&mut self, service: &ServiceName) -> Hold {
        let incident = self.incident(service).cloned();
        let open = self
            .services
            .get(service)
            .and_then(|known| known.open.first());
        open.map_or(Hold::Leave, |saved| {
            self.incidents.judge(&saved.rollout, incident.as_ref())
        })
    }

    /// Forgets rollouts that ended while they were held.
    pub(super) fn forget_held(&mut self) {
        let services = &self.services;
        let is_open = |id: &RolloutId| {
            let mut open = services.values().flat_map(|service| &service.open);
            open.any(|saved| saved.rollout.id == *id)
        };
        self.incidents.keep(is_open);
    }

    /// Why an order has to wait for an incident, if it does: whatever would take a further step.
    pub(super) fn refusal(&self, rollout: &Rollout, command: &Command) -> Option<RequestError> {
        match command {
            Command::Pause | Command::Abort(_) => return None,
            Command::Promote | Command::PromoteFull | Command::Resume | Command::Approve { .. } => {
            }
        }
        let incident = self
            .incident(&rollout.service)
            .filter(|_| may_be_held(rollout))?;
        let (order, _) = describe(command, None);
        Some(RequestError::Held {
            order,
            rollout: rollout.id.clone(),
            incident: incident.words(),
        })
    }
}

/// The rollout, paused or resumed as an incident wants it.
pub(super) fn held(rollout: Rollout, hold: Hold, ledger: &mut Ledger, now: Timestamp) -> Rollout {
    let (command, reason) = match hold {
        Hold::Leave => return rollout,
        Hold::Pause(incident) => (Command::Pause, format!("incident {incident}")),
        Hold::Resume => (Command::Resume, "the incident is over".to_owned()),
    };
    let (order, data) = describe(&command, Some(reason));
    tracing::warn!(rollout = %rollout.id, order, "by an incident");
    ledger.events.push(ledger.event("order", AUTHOR, data));
    rollout.on(Event::Ordered(command), now)
}

fn event((news, incident): &(News, Incident)) -> NewEvent {
    let data = json!({
        "alert": incident.alert, "service": incident.service, "summary": incident.summary, "state": news.as_str(),
    });
    NewEvent {
        rollout: None,
        kind: "incident",
        author: AUTHOR.to_owned(),
        data,
    }
}
