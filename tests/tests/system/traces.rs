//! One tweet's trace: from the feeder through the proxy to the worker, each a program of its own, told to a collector.

use std::collections::BTreeMap;
use std::process::Stdio;

use friday_traces::Kind;
use friday_traces::testing::{Mood, Received, Receiver};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use system_tests::{PATIENCE, SERVICE, pipeline_demo};
use tokio::process::Command;
use tokio::time::timeout;

/// Tweets a second: every one is a trace here.
const RATE: &str = "20";

/// Traces that must be whole.
const WHOLE_MIN: usize = 20;

/// The three spans of each trace that has them: feed, proxy, work. Without those of tweets that took several attempts: they have
/// more, and not all may have come.
fn whole(spans: &[Received]) -> Vec<[Received; 3]> {
    let mut traces: BTreeMap<&str, Vec<&Received>> = BTreeMap::new();
    for span in spans {
        traces.entry(&span.trace).or_default().push(span);
    }
    let three = |spans: Vec<&Received>| {
        let of = |name: &str| {
            let found = spans.iter().find(|span| span.name == name);
            found.map(|span| (*span).clone())
        };
        let proxy = format!("POST {SERVICE}");
        let is_first = |feed: &Received| feed.attribute("pipeline.attempts") == "1";
        of("feed").filter(is_first)?;
        Some([of("feed")?, of(&proxy)?, of("work")?])
    };
    traces.into_values().filter_map(three).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tweet_leaves_one_trace_from_the_feeder_to_the_worker() {
    let receiver = Receiver::start(Mood::Well).await;
    let dir = tempfile::Builder::new()
        .prefix("friday-traces-")
        .tempdir()
        .unwrap();
    let log = std::fs::File::create(dir.path().join("demo.log")).unwrap();
    let url = receiver.url();
    let mut demo = Command::new(pipeline_demo())
        .args(["demo", "--rate", RATE, "--seconds", "0", "--port", "0"])
        .args(["--otlp-endpoint", &url, "--trace-percent", "100"])
        .arg("--dir")
        .arg(dir.path())
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap();

    let enough = |spans: &[Received]| {
        let whole = whole(spans);
        (whole.len() >= WHOLE_MIN).then_some(whole)
    };
    let traces = receiver.until("whole traces", enough).await;
    for [feed, proxy, work] in &traces {
        assert_eq!(feed.parent, "", "{feed:#?}");
        assert_eq!(proxy.parent, feed.span, "{proxy:#?}");
        assert_eq!(work.parent, proxy.span, "{work:#?}");
        let kinds = [feed.kind, proxy.kind, work.kind];
        assert_eq!(kinds, [Kind::Client, Kind::Server, Kind::Server]);
        assert!(
            feed.lasted >= proxy.lasted && proxy.lasted >= work.lasted,
            "{feed:#?} {proxy:#?} {work:#?}"
        );
        assert_eq!(feed.attribute("messaging.destination.name"), "tweets");
        assert_eq!(feed.attribute("pipeline.outcome"), "completed");
        assert_eq!(proxy.attribute("friday.service"), SERVICE);
        assert_eq!(proxy.attribute("http.response.status_code"), "200");
        assert_eq!(work.attribute("pipeline.outcome"), "completed");
        let names = [feed, proxy, work].map(|span| span.resource("service.name"));
        assert_eq!(names[..2], ["feeder", "friday-proxy"]);
        // The one that the orchestrator says, or the program's own.
        assert!([SERVICE, "worker"].contains(&names[2]), "{names:?}");
    }

    let pid = demo.id().expect("it runs");
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGTERM).unwrap();
    let ended = timeout(2 * PATIENCE, demo.wait()).await;
    let said = std::fs::read_to_string(dir.path().join("demo.log")).unwrap_or_default();
    let ended = ended.unwrap_or_else(|_| panic!("the demo does not end:\n{said}"));
    assert!(ended.unwrap().success(), "{said}");
}
