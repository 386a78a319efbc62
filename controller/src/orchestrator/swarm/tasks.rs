//! From the engine's tasks to what a rollout sees of them. Pure.

use std::collections::{BTreeSet, HashMap};

use proxy_api::Endpoint;
use rollout::{Duration, ReleaseId, Timestamp};

use super::model::{Attachment, Task, TaskStatus};
use crate::orchestrator::{OrchestratorError, RESTART_WINDOW};

/// States from which a task does not come back.
const ENDED: [&str; 6] = [
    "complete", "shutdown", "failed", "rejected", "remove", "orphaned",
];

/// Longest that is said of a trouble: a line on a board.
const TROUBLE_CHARS_MAX: usize = 300;

/// The most ends of a service that are remembered.
const ENDS_MAX: usize = 1000;

/// Where a task can be reached: an address on the network that it shares with proxy and controller.
pub(super) fn address<'a>(
    task: &'a Task,
    network: Option<&str>,
) -> Result<Option<&'a str>, OrchestratorError> {
    let attachments = task.networks_attachments.as_deref().unwrap_or_default();
    let is_shared = |attachment: &&Attachment| {
        let network = &attachment.network;
        let driver = network.driver_state.as_ref();
        !network.spec.ingress && driver.is_none_or(|driver| driver.name == "overlay")
    };
    let mut shared: Vec<&Attachment> = attachments.iter().filter(is_shared).collect();
    if let Some(wanted) = network {
        shared.retain(|attachment| attachment.network.spec.name == wanted);
    }
    let names: BTreeSet<&str> = shared
        .iter()
        .map(|attachment| attachment.network.spec.name.as_str())
        .collect();
    if names.len() > 1 {
        return Err(OrchestratorError::Refused {
            what: "finding the addresses of its tasks".to_owned(),
            reason: format!(
                "they are on several networks ({}): say which one proxy and controller share with `friday serve --network`",
                names.into_iter().collect::<Vec<_>>().join(", ")
            ),
        });
    }
    if is_running(task) && shared.is_empty() {
        return Err(OrchestratorError::Refused {
            what: "finding the addresses of its tasks".to_owned(),
            reason: match network {
                Some(name) => format!("they are not on the network {name}: attach the service to it"),
                None => "they are on no overlay network: attach the service to the one that proxy and controller are on".to_owned(),
            },
        });
    }
    // With its prefix length: 10.0.1.5/24.
    let address = shared.first().and_then(|attachment| {
        let address = attachment.addresses.first()?;
        Some(
            address
                .split_once('/')
                .map_or(address.as_str(), |(address, _)| address),
        )
    });
    Ok(address)
}

/// The address with the service's port.
pub(super) fn endpoint(address: &str, port: u16) -> Option<Endpoint> {
    let host = if address.contains(':') {
        format!("[{address}]")
    } else {
        address.to_owned()
    };
    format!("{host}:{port}").parse().ok()
}

/// Whether it shall run, and does, as the engine sees it. Only such a task may get requests: another one has been
/// replaced, even if it still answers.
pub(super) fn is_running(task: &Task) -> bool {
    task.desired_state == "running" && task.status.state == "running"
}

/// Whether it has a node and has not ended there.
pub(super) fn is_there(task: &Task) -> bool {
    !task.node.is_empty() && !ENDED.contains(&task.status.state.as_str())
}

/// Whether it ended, and nobody had asked it to: who is asked to go ends as `shutdown`.
fn has_crashed(task: &Task) -> bool {
    matches!(task.status.state.as_str(), "failed" | "complete")
}

/// What the engine says is wrong with tasks of a release, the newest of it: why one failed, was rejected, or has no
/// node. Nothing while all is well.
pub(super) fn trouble<'a>(tasks: impl Iterator<Item = &'a Task>) -> Option<String> {
    let newest = tasks
        .filter(|task| !task.status.err.is_empty() || task.status.state == "complete")
        .max_by_key(|task| task.status.timestamp)?;
    let TaskStatus { state, err, .. } = &newest.status;
    let words = match (state.as_str(), err.as_str()) {
        ("pending", err) => format!("no node takes it: {err}"),
        // Of a health check that failed the engine keeps no word if the task then ended in good order.
        ("complete", "") => "it ended by itself with exit code 0, or its image's health check failed and it was ended".to_owned(),
        (state, err) => format!("{state}: {err}"),
    };
    Some(shortened(&words))
}

/// What a task that has started is waiting for, if any is.
pub(super) fn waiting<'a>(mut tasks: impl Iterator<Item = &'a Task>) -> Option<String> {
    let starting = tasks.any(|task| task.status.state == "starting");
    starting.then(|| "it has started, and its image's health check has not passed yet".to_owned())
}

/// The words, at most a line of them.
pub(super) fn shortened(words: &str) -> String {
    let line = words.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(TROUBLE_CHARS_MAX).collect()
}

/// The ends of one group's tasks that count as restarts. The engine forgets a slot's tasks after five; this does not.
#[derive(Debug, Default)]
pub(super) struct Ends {
    release: Option<ReleaseId>,
    /// When each is forgotten.
    forget_at: HashMap<String, Duration>,
}

impl Ends {
    /// How many tasks of the release ended by themselves in the window that ends `elapsed`, which is `now` of day.
    pub(super) fn count(
        &mut self,
        release: &ReleaseId,
        tasks: &[&Task],
        elapsed: Duration,
        now: Timestamp,
    ) -> u32 {
        if self.release.as_ref() != Some(release) {
            self.release = Some(release.clone());
            self.forget_at.clear();
        }
        for task in tasks.iter().filter(|task| has_crashed(task)) {
            if self.forget_at.len() >= ENDS_MAX || self.forget_at.contains_key(&task.id) {
                continue;
            }
            // One that ended before this controller was there is as old as the engine says.
            let age = task.status.timestamp.map_or(Duration::ZERO, |at| {
                Duration::try_from(now.duration_since(at)).unwrap_or_default()
            });
            self.forget_at.insert(
                task.id.clone(),
                (elapsed + RESTART_WINDOW).saturating_sub(age),
            );
        }
        let is_listed = |id: &String| tasks.iter().any(|task| task.id == *id);
        self.forget_at
            .retain(|id, at| *at > elapsed || is_listed(id));
        let count = self.forget_at.values().filter(|at| **at > elapsed).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn task(id: &str, state: &str, error: &str, second: i64) -> Task {
        let at = Timestamp::from_second(second).unwrap();
        serde_json::from_value(json!({
            "ID": id, "ServiceID": "s", "NodeID": "n", "DesiredState": "running",
            "Status": { "Timestamp": at, "State": state, "Err": error },
        }))
        .unwrap()
    }

    fn attached(networks: &[(&str, &str, bool)]) -> Task {
        let attachments: Vec<Value> = networks
            .iter()
            .map(|(name, address, ingress)| {
                json!({
                    "Network": {
                        "Spec": { "Name": name, "Ingress": ingress },
                        "DriverState": { "Name": "overlay" },
                    },
                    "Addresses": [address],
                })
            })
            .collect();
        let mut task = task("1", "running", "", 0);
        task.networks_attachments = serde_json::from_value(json!(attachments)).unwrap();
        task
    }

    #[test]
    fn the_address_is_on_the_network_that_is_shared() {
        let one = attached(&[
            ("ingress", "10.255.0.2/16", true),
            ("mesh", "10.0.1.5/24", false),
        ]);
        assert_eq!(address(&one, None).unwrap(), Some("10.0.1.5"));
        let two = attached(&[
            ("mesh", "10.0.1.5/24", false),
            ("data", "10.0.2.7/24", false),
        ]);
        assert_eq!(address(&two, Some("data")).unwrap(), Some("10.0.2.7"));
        let words = address(&two, None).unwrap_err().to_string();
        assert!(
            words.contains("data, mesh") && words.contains("--network"),
            "{words}"
        );
        let none = attached(&[("ingress", "10.255.0.2/16", true)]);
        assert!(address(&none, None).is_err());
        assert!(address(&two, Some("other")).is_err());
        let starting = task("1", "preparing", "", 0);
        assert_eq!(address(&starting, None).unwrap(), None);
        assert_eq!(endpoint("fd00::5", 80).unwrap().as_str(), "[fd00::5]:80");
    }

    #[test]
    fn the_trouble_is_the_newest_in_the_engines_words() {
        let tasks = [
            task("1", "failed", "task: non-zero exit (70)", 10),
            task("2", "rejected", "No such image: worker@sha256:1", 30),
            task("3", "running", "", 40),
        ];
        assert_eq!(
            trouble(tasks.iter()).as_deref(),
            Some("rejected: No such image: worker@sha256:1")
        );
        let pending = task("4", "pending", "no suitable node (1 node)", 50);
        assert_eq!(
            trouble([pending].iter()).as_deref(),
            Some("no node takes it: no suitable node (1 node)")
        );
        assert_eq!(trouble(tasks[2..].iter()), None);
        let unhealthy = trouble([task("5", "complete", "", 60)].iter()).unwrap();
        assert!(unhealthy.contains("health check failed"), "{unhealthy}");
        assert!(waiting([task("6", "starting", "", 70)].iter()).is_some());
        assert_eq!(waiting(tasks.iter()), None);
    }

    #[test]
    fn f28_ends_are_counted_for_the_window_also_when_the_engine_has_forgotten_them() {
        let release = ReleaseId::of_digest("sha256:1");
        let mut ends = Ends::default();
        let now = |second: i64| Timestamp::from_second(second).unwrap();
        let seconds = Duration::from_secs;
        let (first, second) = (
            task("1", "failed", "", 1000),
            task("2", "complete", "", 1010),
        );
        assert_eq!(ends.count(&release, &[&first], seconds(0), now(1000)), 1);
        assert_eq!(ends.count(&release, &[&second], seconds(10), now(1010)), 2);
        // The same again, and one that was asked to go.
        let asked = task("3", "shutdown", "", 1010);
        let count = ends.count(&release, &[&second, &asked], seconds(20), now(1020));
        assert_eq!(count, 2);
        assert_eq!(ends.count(&release, &[&second], seconds(305), now(1305)), 1);
        assert_eq!(ends.count(&release, &[&second], seconds(311), now(1311)), 0);
        assert_eq!(ends.count(&release, &[&second], seconds(900), now(1900)), 0);
        // Of the time before this controller only what is recent.
        let mut next = Ends::default();
        let old = task("0", "failed", "", 100);
        assert_eq!(
            next.count(&release, &[&old, &second], seconds(0), now(1015)),
            1
        );
        let other = ReleaseId::of_digest("sha256:2");
        assert_eq!(next.count(&other, &[], seconds(1), now(1016)), 0);
    }
}
