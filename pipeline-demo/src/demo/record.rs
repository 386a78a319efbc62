//! What a release looked like from outside, and the record of it.

use std::fmt;
use std::time::Duration;

use friday::api::types::RolloutView;
use rollout::Ending;
use serde::Serialize;
use serde_json::Value;

use super::scenario::word;
use super::scrape::{Scrape, sum};
use super::{Addresses, exit_code, is_decided};
use crate::worker::Fault;

/// What was seen of a release.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Seconds since the demo began to release.
    pub(super) seconds: f64,
    ending: Option<Ending>,
    refused: bool,
    reason: String,
    weights: Vec<f64>,
    first_canary_request: Option<f64>,
    decided: Option<f64>,
}

impl Outcome {
    /// A release that was not started.
    pub(super) fn refused(reason: String) -> Self {
        Self {
            refused: true,
            reason,
            ..Self::default()
        }
    }

    /// A release that did not end in time.
    pub(super) fn unfinished(mut outcome: Self, reason: String) -> Self {
        outcome.reason = reason;
        outcome
    }

    /// Takes in one look at the rollout.
    pub(super) fn see(&mut self, view: &RolloutView, since: Duration) {
        self.seconds = since.as_secs_f64();
        let weight = view.weight.set_percent;
        if self.weights.last() != Some(&weight) {
            self.weights.push(weight);
        }
        if view.canary.signals.requests_per_second > 0.0 && self.first_canary_request.is_none() {
            self.first_canary_request = Some(self.seconds);
        }
        if is_decided(&view.phase) && self.decided.is_none() {
            self.decided = Some(self.seconds);
        }
    }

    /// Takes in how it ended.
    pub(super) fn end(&mut self, ending: Ending, reason: String) {
        self.ending = Some(ending);
        self.reason = reason;
    }

    /// That of `friday deploy --wait`.
    pub(super) fn exit_code(&self) -> u8 {
        match self.ending {
            Some(ending) => exit_code(ending),
            None if self.refused => 20,
            None => 1,
        }
    }

    fn word(&self) -> &'static str {
        match self.ending {
            Some(Ending::Promoted) => "promoted",
            Some(Ending::RolledBack) => "rolled_back",
            Some(Ending::Aborted) => "aborted",
            Some(Ending::Superseded) => "superseded",
            Some(Ending::InsufficientEvidence) => "insufficient_evidence",
            Some(Ending::NotReady) => "not_ready",
            None if self.refused => "refused",
            None => "error",
        }
    }
}

/// The record of one release, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(super) struct Record {
    /// What differed on the canary.
    pub scenario: String,
    /// How it ended.
    pub outcome: &'static str,
    /// From the canary's first request to the decision to roll back, or to the promotion; without one, from the start.
    pub(super) seconds_to_verdict: f64,
    /// Requests that the proxy routed.
    pub requests_total: u64,
    /// Of these, to the canary.
    pub requests_canary: u64,
    /// Final answers of the proxy that failed, before any retry of the feeder.
    pub failed_requests_user: u64,
    /// Failed calls of the canary, also those that the shield hid.
    pub failed_requests_canary: u64,
    /// Records in the bus.
    pub tasks_produced: u64,
    /// Tasks done whose result is durable.
    pub tasks_completed: u64,
    /// Records that are no tweets, kept as dead letters.
    pub tasks_malformed: u64,
    /// Produced, less completed, less malformed.
    pub tasks_lost: i64,
    /// Different tweets in the results' table.
    pub tasks_stored: u64,
    /// Dead letters in their table.
    pub malformed_stored: u64,
    /// The canary's shares, in percent, as they followed each other.
    pub weights: Vec<f64>,
    /// Why it ended, in words.
    pub reason: String,
}

impl Record {
    /// Asks every part for its counts; `produced` is the producer's record if it has ended.
    pub(super) async fn gather(
        scenario: Fault,
        outcome: &Outcome,
        produced: Option<Value>,
        scrape: &Scrape,
        at: &Addresses,
    ) -> anyhow::Result<Self> {
        let counts = |address: &str| {
            let url = format!("http://{address}/counts");
            async move { scrape.json(&url).await }
        };
        let producer = match produced {
            Some(record) => record,
            None => counts(&at.producer).await?,
        };
        let feeder = counts(&at.feeder).await?;
        let sink = counts(&at.sink).await?;
        let proxy = scrape
            .get(&format!("http://{}/metrics", at.proxy_admin))
            .await?;
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let requests = |wanted: &[&str], unwanted: &[&str]| {
            sum(&proxy, "friday_proxy_requests_total", wanted, unwanted)
        };
        let (produced, completed, malformed) = (
            number(&producer["tasks_produced"]),
            number(&feeder["tasks_completed"]),
            number(&feeder["tasks_malformed"]),
        );
        let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let canary = "arm=\"canary\"";
        Ok(Self {
            scenario: word(scenario),
            outcome: outcome.word(),
            seconds_to_verdict: outcome.decided.unwrap_or(outcome.seconds)
                - outcome.first_canary_request.unwrap_or(0.0),
            requests_total: requests(&[], &[]),
            requests_canary: requests(&[canary], &[]),
            failed_requests_user: sum(&proxy, "friday_proxy_failed_to_user_total", &[], &[]),
            failed_requests_canary: requests(&[canary], &["outcome=\"ok\""]),
            tasks_produced: produced,
            tasks_completed: completed,
            tasks_malformed: malformed,
            tasks_lost: signed(produced) - signed(completed) - signed(malformed),
            tasks_stored: number(&sink["results"]),
            malformed_stored: number(&sink["malformed"]),
            weights: outcome.weights.clone(),
            reason: outcome.reason.clone(),
        })
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "outcome:    {} after {:.1} s: {}",
            self.outcome, self.seconds_to_verdict, self.reason
        )?;
        writeln!(
            f,
            "requests:   {} in all, {} to the canary; {} failed at the canary, {} failed for users",
            self.requests_total,
            self.requests_canary,
            self.failed_requests_canary,
            self.failed_requests_user
        )?;
        write!(
            f,
            "tasks:      {} produced, {} completed, {} malformed, {} lost; {} tweets stored",
            self.tasks_produced,
            self.tasks_completed,
            self.tasks_malformed,
            self.tasks_lost,
            self.tasks_stored
        )
    }
}
