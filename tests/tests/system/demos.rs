//! The demo, as people run it: every scenario, with real tweets where there are any.
//!
//! Two at once, on one machine, each with its own folder and ports: that they do not disturb each other is a part of
//! what is shown here.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use controller_testing::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use system_tests::{Ended, PATIENCE, SERVICE, friday, listening, pipeline_demo, run, running_of};
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

/// Demos at once. One uses about half of a core.
static AT_ONCE: Semaphore = Semaphore::const_new(2);

/// Longest that a demo may take, from its start to its end: three steps, the bake, each with as much as the judge may ask
/// for. Most take a minute.
const DEMO_MAX: Duration = Duration::from_secs(300);

/// Longest that a good release may take.
const GOOD_MAX: Duration = Duration::from_secs(180);

/// How often it is looked who listens where.
const LOOK: Duration = Duration::from_secs(1);

/// A demo that has ended.
#[derive(Debug)]
struct Played {
    code: i32,
    record: Value,
    took: Duration,
    said: String,
}

impl Played {
    fn word(&self, key: &str) -> &str {
        self.record[key]
            .as_str()
            .unwrap_or_else(|| panic!("{key} is a text in {}", self.record))
    }

    fn count(&self, key: &str) -> u64 {
        self.record[key]
            .as_u64()
            .unwrap_or_else(|| panic!("{key} is a count in {}", self.record))
    }

    fn number(&self, key: &str) -> f64 {
        self.record[key]
            .as_f64()
            .unwrap_or_else(|| panic!("{key} is a number in {}", self.record))
    }

    /// Fails unless it ended so; with all that it said.
    #[track_caller]
    fn assert_ended(&self, outcome: &str, code: i32) {
        assert_eq!(
            (self.word("outcome"), self.code),
            (outcome, code),
            "{}\n{}",
            self.record,
            self.said
        );
    }

    /// Nothing was lost and nobody saw a failure, whatever the canary did.
    #[track_caller]
    fn assert_nobody_was_harmed(&self) {
        assert_eq!(
            self.count("failed_requests_user"),
            0,
            "{}\n{}",
            self.record,
            self.said
        );
        self.assert_nothing_was_lost();
    }

    /// What was produced is done.
    #[track_caller]
    fn assert_nothing_was_lost(&self) {
        assert_eq!(
            self.record["tasks_lost"], 0,
            "{}\n{}",
            self.record, self.said
        );
        let (produced, done) = (
            self.count("tasks_produced"),
            self.count("tasks_completed") + self.count("tasks_malformed"),
        );
        assert_eq!(produced, done, "{}", self.record);
        assert!(produced > 1_000, "{}", self.record);
    }

    /// The shares that the canary had, one after the other.
    fn weights(&self) -> Vec<f64> {
        let weights = self.record["weights"]
            .as_array()
            .expect("weights is a list");
        weights.iter().filter_map(Value::as_f64).collect()
    }
}

/// The file of real tweets, if there is one.
fn tweets() -> Option<PathBuf> {
    std::env::var_os("FRIDAY_TWEETS")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}

/// How many different tweets a file has.
fn different(file: &Path) -> usize {
    let text =
        std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let id = |line: &str| {
        let value: Value = serde_json::from_str(line).ok()?;
        Some(value["data"]["id"].as_str()?.to_owned())
    };
    text.lines().filter_map(id).collect::<BTreeSet<_>>().len()
}

/// Fails as soon as a process of the demo listens beyond loopback.
async fn watch_addresses(scenario: &str, dir: &Path, demo: u32) -> Infallible {
    loop {
        let mut pids: Vec<u32> = running_of(dir).iter().map(|running| running.pid).collect();
        pids.push(demo);
        for address in listening(&pids) {
            assert!(
                address.ip().is_loopback(),
                "{scenario} listens on {address}"
            );
        }
        sleep(LOOK).await;
    }
}

/// A demo with its folder and ports of its own, which goes on until it is told to end.
fn demo(scenario: &str, dir: &Path) -> Command {
    let mut command = Command::new(pipeline_demo());
    command
        .args(["demo", "--scenario", scenario, "--port", "0", "--dir"])
        .arg(dir)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Plays a scenario to its end, and checks what holds for all of them: it ends, nothing of it is left, and nothing of
/// it listened beyond loopback.
async fn play(scenario: &str) -> Played {
    let _turn = AT_ONCE.acquire().await.expect("nobody closes it");
    let dir = tempfile::Builder::new()
        .prefix("friday-demo-")
        .tempdir()
        .expect("a temporary folder can be made");
    let mut command = demo(scenario, dir.path());
    command.args(["--rate", "200", "--exit", "--json"]);
    match tweets() {
        Some(file) => command.arg("--input").arg(file),
        None => {
            println!("FRIDAY_TWEETS is not set: {scenario} is played with made-up tweets");
            &mut command
        }
    };
    let began = Instant::now();
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the demo can be started");
    let pid = child.id().expect("it has just been started");
    let output = tokio::select! {
        output = timeout(DEMO_MAX, child.wait_with_output()) => output,
        never = watch_addresses(scenario, dir.path(), pid) => match never {},
    };
    let output = output.unwrap_or_else(|_| panic!("{scenario} did not end within {DEMO_MAX:?}"));
    let output = output.expect("a child of ours can be waited for");
    let took = began.elapsed();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let what = format!("nothing of {scenario} is left");
    eventually(
        &what,
        PATIENCE,
        async || running_of(dir.path()),
        Vec::is_empty,
    )
    .await;
    let last = out.lines().last().unwrap_or_default();
    let record = serde_json::from_str(last)
        .unwrap_or_else(|_| panic!("{scenario} printed no record: {out}\n{said}"));
    let played = Played {
        code: output.status.code().unwrap_or(-1),
        record,
        took,
        said,
    };
    println!(
        "{scenario}: exit {} after {:.0} s: {}",
        played.code,
        took.as_secs_f64(),
        played.record
    );
    assert_eq!(played.word("scenario"), scenario);
    played
}

#[tokio::test]
async fn good_is_promoted_and_every_tweet_is_stored() {
    let played = play("good").await;
    played.assert_ended("promoted", 0);
    played.assert_nobody_was_harmed();
    assert!(played.took <= GOOD_MAX, "{:?}", played.took);
    assert_eq!(played.count("failed_requests_canary"), 0);
    let weights = played.weights();
    for share in [10.0, 25.0, 50.0, 80.0, 100.0] {
        assert!(weights.contains(&share), "{share} is in {weights:?}");
    }
    match tweets() {
        Some(file) => assert_eq!(played.count("tasks_stored"), different(&file) as u64),
        None => assert_eq!(
            played.count("tasks_stored"),
            played.count("tasks_completed")
        ),
    }
}

#[tokio::test]
async fn errors_is_rolled_back_within_15_seconds_and_no_user_sees_one() {
    let played = play("errors").await;
    played.assert_ended("rolled_back", 10);
    played.assert_nobody_was_harmed();
    assert!(
        played.number("seconds_to_verdict") <= 15.0,
        "{}",
        played.record
    );
    let failed = played.count("failed_requests_canary");
    assert!(0 < failed && failed < 80, "{}", played.record);
    assert!(
        played.word("reason").contains("fails more than stable"),
        "{}",
        played.record
    );
}

#[tokio::test]
async fn crash_is_rolled_back_or_never_becomes_ready() {
    let played = play("crash").await;
    match played.code {
        10 => played.assert_ended("rolled_back", 10),
        _ => played.assert_ended("not_ready", 14),
    }
    played.assert_nobody_was_harmed();
}

#[tokio::test]
async fn coldstart_is_promoted_because_it_gets_warm() {
    let played = play("coldstart").await;
    played.assert_ended("promoted", 0);
    // Users do see failures here, in the end: the stable tasks are replaced by such that are cold once more, and then
    // there is no other release that could answer instead. The feeder tries again, so that no task is lost.
    played.assert_nothing_was_lost();
}

#[tokio::test]
async fn silent_ends_with_not_enough_evidence() {
    let played = play("silent").await;
    played.assert_ended("insufficient_evidence", 13);
    played.assert_nobody_was_harmed();
    assert_eq!(played.count("requests_canary"), 0);
}

#[tokio::test]
async fn malformed_is_promoted_and_every_malformed_record_is_a_dead_letter() {
    let played = play("malformed").await;
    played.assert_ended("promoted", 0);
    played.assert_nobody_was_harmed();
    let malformed = played.count("tasks_malformed");
    assert!(malformed > 0, "{}", played.record);
    assert_eq!(
        played.count("malformed_stored"),
        malformed,
        "{}",
        played.record
    );
}

#[tokio::test]
async fn slow_is_rolled_back_for_its_latency() {
    let played = play("slow").await;
    played.assert_ended("rolled_back", 10);
    played.assert_nobody_was_harmed();
    assert!(
        played.word("reason").contains("slower than stable"),
        "{}",
        played.record
    );
}

#[tokio::test]
async fn tail_is_rolled_back_for_its_slowest_requests() {
    let played = play("tail").await;
    played.assert_ended("rolled_back", 10);
    played.assert_nobody_was_harmed();
    assert!(
        played.word("reason").contains("slower than stable at p99"),
        "{}",
        played.record
    );
}

#[tokio::test]
async fn leak_is_rolled_back_before_its_memory_is_full() {
    let played = play("leak").await;
    played.assert_ended("rolled_back", 10);
    played.assert_nobody_was_harmed();
    assert!(
        played.word("reason").contains("memory"),
        "{}",
        played.record
    );
}

#[tokio::test]
async fn rare_errors_is_rolled_back_by_counting() {
    let played = play("rare-errors").await;
    played.assert_ended("rolled_back", 10);
    played.assert_nobody_was_harmed();
}

#[tokio::test]
async fn wrong_is_rolled_back_by_what_it_answers() {
    let played = play("wrong").await;
    played.assert_ended("rolled_back", 10);
    played.assert_nobody_was_harmed();
    let reason = played.word("reason");
    let names_the_kind = ["\"positive\"", "\"negative\""]
        .iter()
        .any(|kind| reason.contains(kind));
    assert!(
        reason.contains("answers other things than stable") && names_the_kind,
        "{}",
        played.record
    );
}

/// While the demo goes on: why it went back, by the command that people ask.
#[tokio::test]
async fn wrong_is_named_by_explain_for_people_and_for_programs() {
    let _turn = AT_ONCE.acquire().await.expect("nobody closes it");
    let dir = tempfile::Builder::new()
        .prefix("friday-demo-")
        .tempdir()
        .expect("a temporary folder can be made");
    let mut demo = demo("wrong", dir.path())
        .spawn()
        .expect("the demo can be started");
    let file = dir.path().join("controller.addresses");
    let url = eventually(
        "the controller listens",
        PATIENCE,
        async || {
            let document = serde_json::from_slice::<Value>(&std::fs::read(&file).ok()?).ok()?;
            Some(format!("http://{}", document["listen"].as_str()?))
        },
        Option::is_some,
    );
    let url = url.await.expect("that was waited for");
    let explain = async |more: &[&str]| {
        let args = [&["explain", SERVICE, "--url", &url], more].concat();
        run(&friday(), &args, PATIENCE).await
    };
    let names_it = |ended: &Ended| ended.out.contains("answers other things than stable");
    let what = "explain says what is wrong";
    eventually(what, DEMO_MAX, async || explain(&[]).await, names_it).await;
    let ended = explain(&["-o", "json"]).await;
    assert_eq!(ended.code, 0, "{}", ended.err);
    let document: Value = serde_json::from_str(&ended.out).expect("it is JSON");
    let verdicts = document.as_array().expect("a list of verdicts");
    let last = verdicts.last().expect("there is one");
    let answers = &last["data"]["verdict"]["decision"]["fail"]["signal"]["answers"];
    let kind = answers["kind"].as_str();
    assert!(
        matches!(kind, Some("positive" | "negative")) && answers["canary"] != answers["stable"],
        "{last:#}"
    );
    let pid = demo.id().expect("it runs").cast_signed();
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("a child of ours may be told to end");
    let ended = timeout(PATIENCE, demo.wait()).await;
    ended
        .expect("the demo ends when it is told to")
        .expect("a child of ours can be waited for");
}

#[tokio::test]
async fn fast_is_promoted_because_less_than_a_millisecond_is_not_slower() {
    // Two equal workers of 100 us, of which one has a tenth of the requests: it is the colder one, and its percentiles
    // are up to twice the other's.
    let played = play("fast").await;
    played.assert_ended("promoted", 0);
    played.assert_nobody_was_harmed();
    assert!(played.took <= GOOD_MAX, "{:?}", played.took);
    assert!(played.weights().contains(&10.0), "{}", played.record);
}
