//! The controller's task dies in the middle of a release: Swarm starts another one, which goes on from the volume of the first.

use serde_json::Value;
use system_tests::{pause, stack};

use super::{OwnSwarm, STEP_SECONDS_MAX};

/// Longest wait for the canary to get requests, in looks of a second or so.
const TRIAL_LOOKS_MAX: u32 = 90;

/// Runs a step that waits for a release of the worker, and kills the controller's container while a canary is on trial.
pub(super) fn while_it_runs(swarm: &OwnSwarm, step: &str) {
    let said = std::thread::scope(|scope| {
        let killing = scope.spawn(|| kill_the_controller_on_trial(swarm));
        let said = swarm.run(step);
        killing
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        said
    });
    assert!(
        said.contains("the controller answers again"),
        "whoever waits for a release waits for the controller too: {said}"
    );
    let tasks = swarm.docker(&[
        "service",
        "ps",
        "--no-trunc",
        "--format",
        "{{.DesiredState}} {{.Error}}",
        "friday_controller",
    ]);
    assert!(tasks.contains("non-zero exit (137)"), "{tasks}");
    // The same rollout, to its end: nothing began again.
    let ended = rollout(swarm).unwrap();
    assert_eq!(ended["id"], "friday_tweets-worker-1", "{ended:#}");
    assert_eq!(ended["ending"], "promoted", "{ended:#}");
}

/// SIGKILL, as soon as a canary has a share of the requests at every proxy.
fn kill_the_controller_on_trial(swarm: &OwnSwarm) {
    for _ in 0..TRIAL_LOOKS_MAX {
        let view = rollout(swarm).unwrap_or_default();
        if view["weight"]["seen_percent"].as_f64() > Some(0.0) {
            let controller = stack::container(&swarm.lab, 1, "friday_controller");
            swarm.docker(&["kill", &controller]);
            println!("killed the controller's container at {}", view["phase"]);
            return;
        }
        pause();
    }
    panic!("no canary was on trial, {STEP_SECONDS_MAX} s is the longest that a step may take");
}

/// The worker's newest rollout; `None` before there is one.
fn rollout(swarm: &OwnSwarm) -> Option<Value> {
    let shown = swarm.output("swarm/friday get friday_tweets-worker -o json");
    serde_json::from_slice(&shown.stdout).ok()
}
