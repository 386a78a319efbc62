//! Open incidents, as an Alertmanager tells of them: while one is open no rollout that it is about takes a further step.
//! Rollbacks go on, whoever orders them.
//!
//! An alert counts that bears the label `friday_hold="true"`. It is about the service of its label `service`, or about every
//! service where that names none that this controller looks after: whatever burns, it is no time to release. An Alertmanager
//! tells of a firing alert again and again; one that it has not told of for [`INCIDENT_LIVE`] is over, so that a dead
//! Alertmanager holds nothing for ever. Pure; who saves and acts is the loop.

use std::collections::{BTreeMap, BTreeSet};

use rollout::{Duration, Phase, Rollout, RolloutId, ServiceName, Timestamp};
use serde::{Deserialize, Serialize};

/// The label by which an alert asks for rollouts to be held, and its value.
pub const HOLD_LABEL: (&str, &str) = ("friday_hold", "true");

/// How long an incident stays open that nobody tells of. Five times the `repeat_interval` of one minute that
/// `grafana/alertmanager.yml` has: four messages may be lost. Counted from the controller's start for those it had open then.
pub const INCIDENT_LIVE: Duration = Duration::from_secs(300);

/// Most incidents that are open at once; one more is left out, and the log says so. Dozens are a catastrophe already.
pub const INCIDENTS_MAX: usize = 1_000;

/// Longest name or summary that is kept, in characters.
pub const TEXT_MAX: usize = 300;

/// Who holds and lets go, in the event log.
pub const AUTHOR: &str = "alertmanager";

/// One alert of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alert {
    /// What tells it from others: the hash of its labels.
    pub fingerprint: String,
    /// Its name, `alertname`.
    pub name: String,
    /// Its label `service`.
    pub service: Option<String>,
    /// What is wrong, in its own words.
    pub summary: String,
    /// Whether it fires; else it is resolved.
    pub is_firing: bool,
    /// Whether it asks for rollouts to be held.
    pub holds: bool,
}

/// An incident that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    /// What tells it from others.
    pub fingerprint: String,
    /// The alert's name.
    pub alert: String,
    /// The service that the alert names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// What is wrong.
    pub summary: String,
    /// When it was first heard of.
    pub since: Timestamp,
}

impl Incident {
    /// What it is called in words for people.
    #[must_use]
    pub fn words(&self) -> String {
        match self.summary.as_str() {
            "" => self.alert.clone(),
            summary => format!("{}: {summary}", self.alert),
        }
    }
}

/// What is saved of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedIncidents {
    /// Those that are open.
    pub open: Vec<Incident>,
    /// Rollouts that are paused for them, and go on after.
    pub held: BTreeSet<RolloutId>,
}

/// Why an incident is open no more, or that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// It has begun.
    Opened,
    /// Its alert fires no more.
    Resolved,
    /// Nobody has told of it for [`INCIDENT_LIVE`].
    Expired,
}

impl News {
    /// Its word in the event log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Resolved => "resolved",
            Self::Expired => "expired",
        }
    }
}

/// What an incident means for a rollout now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hold {
    /// It stays as it is, and moves as it would.
    Leave,
    /// It is to be paused, for this.
    Pause(String),
    /// What held it is over.
    Resume,
}

#[derive(Debug, Clone)]
struct Open {
    incident: Incident,
    /// The clock's elapsed time when it was last told of.
    heard: Duration,
}

/// All that are open.
#[derive(Debug, Clone, Default)]
pub struct Incidents {
    open: BTreeMap<String, Open>,
    held: BTreeSet<RolloutId>,
    /// Whether there is something that is not saved.
    is_changed: bool,
}

impl Incidents {
    /// Those that were saved, each heard of just now: whoever tells of them has the time to do so.
    #[must_use]
    pub fn restored(saved: SavedIncidents, now: Duration) -> Self {
        let open = saved.open.into_iter().map(|incident| {
            let key = incident.fingerprint.clone();
            (
                key,
                Open {
                    incident,
                    heard: now,
                },
            )
        });
        Self {
            open: open.collect(),
            held: saved.held,
            is_changed: false,
        }
    }

    /// What is to be saved, if anything changed since [`Incidents::was_saved`].
    #[must_use]
    pub fn unsaved(&self) -> Option<SavedIncidents> {
        self.is_changed.then(|| SavedIncidents {
            open: self.list(),
            held: self.held.clone(),
        })
    }

    /// What there was to save is saved.
    pub fn was_saved(&mut self) {
        self.is_changed = false;
    }

    /// Those that are open, by fingerprint.
    #[must_use]
    pub fn list(&self) -> Vec<Incident> {
        self.open
            .values()
            .map(|open| open.incident.clone())
            .collect()
    }

    /// Takes in what an Alertmanager says. What is new in it, and how many found no place.
    pub fn hear(
        &mut self,
        alerts: Vec<Alert>,
        now: Duration,
        at: Timestamp,
    ) -> (Vec<(News, Incident)>, usize) {
        let mut news = Vec::new();
        let mut left_out = 0;
        for alert in alerts {
            if !alert.is_firing {
                // Also one whose label was taken from it meanwhile.
                let ended = self.open.remove(&alert.fingerprint);
                news.extend(ended.map(|open| (News::Resolved, open.incident)));
                continue;
            }
            if !alert.holds {
                continue;
            }
            if let Some(open) = self.open.get_mut(&alert.fingerprint) {
                open.heard = now;
            } else if self.open.len() >= INCIDENTS_MAX {
                left_out += 1;
            } else {
                let incident = Incident {
                    fingerprint: alert.fingerprint.clone(),
                    alert: cut(&alert.name),
                    service: alert.service.as_deref().map(cut),
                    summary: cut(&alert.summary),
                    since: at,
                };
                let open = Open {
                    incident: incident.clone(),
                    heard: now,
                };
                self.open.insert(alert.fingerprint, open);
                news.push((News::Opened, incident));
            }
        }
        self.is_changed |= !news.is_empty();
        (news, left_out)
    }

    /// Ends those that nobody has told of for too long.
    pub fn expire(&mut self, now: Duration) -> Vec<(News, Incident)> {
        let is_over = |open: &Open| now.saturating_sub(open.heard) >= INCIDENT_LIVE;
        let over: Vec<String> = self
            .open
            .iter()
            .filter(|(_, open)| is_over(open))
            .map(|(key, _)| key.clone())
            .collect();
        let ended = over.iter().filter_map(|key| self.open.remove(key));
        let news: Vec<_> = ended.map(|open| (News::Expired, open.incident)).collect();
        self.is_changed |= !news.is_empty();
        news
    }

    /// The incident that is about `service`, the oldest if there are several. `is_known` says whether a name is that of a
    /// service of this controller.
    #[must_use]
    pub fn about(
        &self,
        service: &ServiceName,
        is_known: impl Fn(&str) -> bool,
    ) -> Option<&Incident> {
        let concerns = |incident: &&Incident| match &incident.service {
            Some(name) if is_known(name) => name == service.as_str(),
            Some(_) | None => true,
        };
        let all = self.open.values().map(|open| &open.incident);
        all.filter(concerns).min_by_key(|incident| incident.since)
    }

    /// What `incident`, the one that is about the rollout's service, means for the rollout. Remembers which rollouts are held.
    pub fn judge(&mut self, rollout: &Rollout, incident: Option<&Incident>) -> Hold {
        let is_held = self.held.contains(&rollout.id);
        let is_paused = matches!(rollout.phase, Phase::Paused { .. });
        match incident.filter(|_| may_be_held(rollout)) {
            Some(_) if is_paused => Hold::Leave,
            Some(incident) => {
                self.is_changed |= self.held.insert(rollout.id.clone());
                Hold::Pause(incident.words())
            }
            // Forgotten once it has moved on: were this resumption not saved, it would be lost else.
            None if is_held && is_paused => Hold::Resume,
            None => {
                self.is_changed |= self.held.remove(&rollout.id);
                Hold::Leave
            }
        }
    }

    /// Whether a rollout is paused for an incident.
    #[must_use]
    pub fn holds(&self, id: &RolloutId) -> bool {
        self.held.contains(id)
    }

    /// The rollouts that are.
    #[must_use]
    pub fn held(&self) -> &BTreeSet<RolloutId> {
        &self.held
    }

    /// A person paused a rollout that was held: it stays so when the incident is over. Whether it was held.
    pub fn hand_over(&mut self, id: &RolloutId) -> bool {
        let was_held = self.held.remove(id);
        self.is_changed |= was_held;
        was_held
    }

    /// Forgets rollouts that are no more.
    pub fn keep(&mut self, is_open: impl Fn(&RolloutId) -> bool) {
        let before = self.held.len();
        self.held.retain(|id| is_open(id));
        self.is_changed |= self.held.len() != before;
    }
}

/// Whether a further step of it may be held. A promotion that has begun goes on, since half of one is worse than either end;
/// so does every way back, and a return to a release that was stable before.
#[must_use]
pub fn may_be_held(rollout: &Rollout) -> bool {
    match rollout.running_phase() {
        Phase::Deploying { .. }
        | Phase::Analyzing { .. }
        | Phase::Gated { .. }
        | Phase::Baking { .. }
        | Phase::Warm { .. } => !rollout.full,
        Phase::Paused { .. }
        | Phase::Promoting { .. }
        | Phase::RollingBack { .. }
        | Phase::Promoted
        | Phase::RolledBack { .. } => false,
    }
}

fn cut(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}

#[cfg(test)]
mod tests;
