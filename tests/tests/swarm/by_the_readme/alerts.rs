//! Alertmanager in the stack: ready with the stack's own configuration, and heard by the controller, by TLS and with its token.

use serde_json::Value;
use system_tests::{pause, stack};

use super::OwnSwarm;

/// Longest wait for an alert to come to the controller, in looks of a second or so.
const HEARD_LOOKS_MAX: u32 = 30;

/// What happened, in the words of whoever wrote the alert.
const SUMMARY: &str = "the warehouse burns";

/// Fires an alert that asks for rollouts to be held, and waits until the controller knows of it.
pub(super) fn reach_the_controller(swarm: &OwnSwarm) {
    let alertmanager = stack::container(&swarm.lab, 1, "friday_alertmanager");
    let url = "http://127.0.0.1:9093";
    let ready = format!("{url}/-/ready");
    swarm.docker(&[
        "exec",
        &alertmanager,
        "wget",
        "-q",
        "-O",
        "/dev/null",
        &ready,
    ]);
    swarm.docker(&[
        "exec",
        &alertmanager,
        "amtool",
        &format!("--alertmanager.url={url}"),
        "alert",
        "add",
        "alertname=Fire",
        "friday_hold=true",
        "service=friday_tweets-worker",
        &format!("--annotation=summary={SUMMARY}"),
    ]);
    let mut said = String::new();
    for _ in 0..HEARD_LOOKS_MAX {
        said = swarm.run("swarm/friday doctor -o json");
        let findings: Value = serde_json::from_str(&said).unwrap();
        let heard = findings.as_array().unwrap().iter().any(|finding| {
            finding["about"] == "incident Fire" && finding["what"].to_string().contains(SUMMARY)
        });
        if heard {
            return;
        }
        pause();
    }
    panic!(
        "the controller heard of no incident: {said}{}",
        swarm.words()
    );
}
