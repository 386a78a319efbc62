//! `friday deploy --wait` as the script of a job: where it comes from, its lease, and what it leaves behind.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rollout::Duration;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::controller::{Controller, Request};
use crate::{SPEC, analyzing, deploy, file, friday, output, promoted, rolled_back, run};

/// The command in a job of GitLab's.
fn in_job(url: &str, arguments: &str) -> Command {
    let mut command = friday(url, arguments);
    let variables = [
        ("CI", "true"),
        ("GITLAB_CI", "true"),
        ("CI_PROJECT_ID", "42"),
        ("CI_PROJECT_PATH", "shop/web"),
        ("CI_PIPELINE_ID", "1001"),
        ("CI_JOB_ID", "7"),
        ("CI_JOB_NAME", "canary: production"),
        ("CI_JOB_TOKEN", "s3cret"),
        ("CI_COMMIT_SHA", "0123abc"),
    ];
    command.envs(variables);
    command
}

/// What was asked about the lease of the rollout.
fn leases(controller: &Controller) -> Vec<Request> {
    let requests = controller.requests().into_iter();
    requests
        .filter(|request| request.path == "/api/v1/rollouts/web-3/lease")
        .collect()
}

fn read(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).unwrap()
}

#[tokio::test]
async fn f38_a_job_says_who_it_is_renews_its_lease_and_gives_it_back_when_it_is_cancelled() {
    for (on_lost, code) in [("abort", 11), ("hold", 1)] {
        let controller = Controller::start(vec![analyzing()]).await;
        let (folder, spec) = file(SPEC);
        let report = folder.path().join("report");
        let more = format!(
            "--wait --lease 3s --on-lost {on_lost} --report {}",
            report.display()
        );
        let mut command = in_job(&controller.url(), &deploy(&spec, &more));
        command.stdout(std::process::Stdio::piped());
        command.stderr(std::process::Stdio::piped());
        let child = command.spawn().unwrap();
        let renewed = async {
            while leases(&controller).len() < 2 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), renewed)
            .await
            .unwrap();
        let pid = i32::try_from(child.id().unwrap()).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(30), child.wait_with_output())
            .await
            .unwrap()
            .unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(code), "{said}");
        assert!(said.contains("its job was told to stop: web-3"), "{said}");

        let started = controller.requests().remove(0);
        assert_eq!(started.job_token.as_deref(), Some("s3cret"));
        assert_eq!(started.body["origin"]["job_id"], 7);
        assert_eq!(started.body["origin"]["job_name"], "canary: production");
        let terms = &started.body["lease"];
        assert_eq!(
            (&terms["period_ms"], &terms["on_lost"]),
            (&json!(3000), &json!(on_lost))
        );
        let asked = leases(&controller);
        let (last, renewals) = asked.split_last().unwrap();
        for renewal in renewals {
            assert_eq!(renewal.body["action"], "renew");
            assert_eq!(renewal.body["holder"], terms["holder"]);
            assert_eq!(renewal.job_token.as_deref(), Some("s3cret"));
        }
        assert_eq!(last.body["action"], "give_back");
        assert_eq!(last.body["holder"], terms["holder"]);
        assert!(read(&report, "friday.env").contains("FRIDAY_ROLLOUT=web-3\n"));
        for name in ["friday.json", "junit.xml", "metrics.txt", "friday.env"] {
            assert!(!read(&report, name).contains("s3cret"), "{name}");
        }
    }
}

#[tokio::test]
async fn f38_a_job_that_gives_up_waiting_gives_its_lease_back() {
    let controller = Controller::start(vec![analyzing()]).await;
    let (_folder, spec) = file(SPEC);
    let ended = output(in_job(
        &controller.url(),
        &deploy(&spec, "--wait --timeout 1s"),
    ))
    .await;
    assert_eq!(ended.status.code(), Some(11));
    let asked = leases(&controller);
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(asked[0].body["action"], "give_back");
}

#[tokio::test]
async fn whoever_does_not_wait_in_a_job_holds_no_lease() {
    let (_folder, spec) = file(SPEC);
    for (more, in_ci) in [("--wait", false), ("", true), ("--wait --lease off", true)] {
        let controller = Controller::start(vec![analyzing(), promoted()]).await;
        let arguments = deploy(&spec, more);
        let command = if in_ci {
            in_job(&controller.url(), &arguments)
        } else {
            friday(&controller.url(), &arguments)
        };
        assert_eq!(output(command).await.status.code(), Some(0), "{more}");
        let started = controller.requests().remove(0);
        assert_eq!(started.body["lease"], Value::Null, "{more}");
        assert_eq!(started.body["origin"].is_null(), !in_ci, "{more}");
        assert_eq!(leases(&controller).len(), 0, "{more}");
    }
}

#[tokio::test]
async fn a_report_is_left_of_every_ending_and_of_a_refusal() {
    let cause = json!({ "kind": "evidence", "signal": "errors" });
    let failed = rolled_back(cause, "rolled_back");
    for (outcome, code, last) in [("promoted", 0, promoted()), ("rolled_back", 10, failed)] {
        let controller = Controller::start(vec![analyzing(), last]).await;
        let (folder, spec) = file(SPEC);
        let report = folder.path().join("report");
        let more = format!("--wait --report {}", report.display());
        let ended = output(in_job(&controller.url(), &deploy(&spec, &more))).await;
        assert_eq!(ended.status.code(), Some(code));
        let record: Value = serde_json::from_str(&read(&report, "friday.json")).unwrap();
        assert_eq!(record["outcome"], outcome);
        assert_eq!(record["rollout"]["id"], "web-3");
        assert_eq!(record["origin"]["pipeline_id"], 1001);
        assert!(read(&report, "friday.env").contains(&format!("FRIDAY_OUTCOME={outcome}\n")));
    }
    let problem = json!({
        "code": "frozen", "status": 409, "title": "Conflict", "detail": "production is frozen",
    });
    let controller = Controller::refuse(409, problem).await;
    let (folder, spec) = file(SPEC);
    let report = folder.path().join("report");
    let more = format!("--wait --report {}", report.display());
    let ended = output(in_job(&controller.url(), &deploy(&spec, &more))).await;
    assert_eq!(ended.status.code(), Some(20));
    let record: Value = serde_json::from_str(&read(&report, "friday.json")).unwrap();
    assert_eq!(
        (&record["outcome"], &record["rollout"]),
        (&json!("refused"), &Value::Null)
    );
    assert!(read(&report, "junit.xml").contains("production is frozen"));
}

#[tokio::test]
async fn a_job_asks_again_while_the_controller_restarts() {
    let (_folder, spec) = file(SPEC);
    let busy = json!({ "code": "busy", "status": 503, "title": "No", "detail": "too many" });
    for first in [busy, json!("<html>")] {
        let controller = Controller::refuse(503, first).await;
        let (url, address) = (controller.url(), controller.address());
        let arguments = deploy(&spec, "--wait");
        let job = tokio::spawn(output(in_job(&url, &arguments)));
        controller.asked(2).await;
        controller.end().await;
        let restarted = Controller::start_at(address, vec![analyzing(), promoted()]).await;
        let ended = job.await.unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(0), "{said}");
        assert!(said.contains("trying again for 1m"), "{said}");
        let started = restarted.requests().remove(0);
        assert_eq!(started.path, "/api/v1/rollouts");
        assert_eq!(started.body["lease"]["period_ms"], 90_000);
    }
}

#[tokio::test]
async fn an_order_of_a_job_waits_for_the_controller_and_is_given_once() {
    let controller = Controller::start(vec![analyzing()]).await;
    let (url, address) = (controller.url(), controller.address());
    controller.end().await;
    let mut command = in_job(&url, "approve web");
    command.stderr(Stdio::piped());
    let mut job = command.spawn().unwrap();
    let mut said = BufReader::new(job.stderr.take().unwrap()).lines();
    let line = tokio::time::timeout(Duration::from_secs(30), said.next_line());
    let line = line.await.unwrap().unwrap().unwrap();
    assert!(line.contains("trying again for 1m"), "{line}");
    let restarted = Controller::start_at(address, vec![analyzing()]).await;
    let ended = tokio::time::timeout(Duration::from_secs(30), job.wait()).await;
    assert!(ended.unwrap().unwrap().success());
    let mut posts = restarted.requests();
    posts.retain(|request| request.method == "POST");
    assert_eq!(posts.len(), 1, "{posts:?}");
    // A person sees at once that nobody is there.
    restarted.end().await;
    let (code, _, err) = run(&url, "approve web").await;
    assert_eq!(code, 30, "{err}");
    assert!(!err.contains("trying again"), "{err}");
}
