//! A part of the topic sent again: by time, by place, to one release.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use friday::clock::{Clock, SystemClock};
use jiff::Timestamp;
use pipeline_demo::bus::{Bus, RESULTS, TWEETS};
use pipeline_demo::tweet::Tweet;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::sleep;

use crate::failures::{Feeding, drained, result_of};
use crate::support::{Broker, any_port, kafka_bus, local_bus, record, tweet};

/// The releases that tasks asked for, by tweet; "" for the weights' choice.
type Asked = Arc<Mutex<BTreeMap<u64, Vec<String>>>>;

/// A worker in the proxy's place that notes them, and answers as the release that is asked for. Tweet 13 always fails.
async fn noting() -> (SocketAddr, Asked) {
    async fn task(State(asked): State<Asked>, headers: HeaderMap, body: Bytes) -> Response {
        let tweet = Tweet::parse(&body).unwrap();
        let release = headers.get("x-friday-release");
        let release = release.map_or("", |release| release.to_str().unwrap());
        let id: u64 = tweet.id.parse().unwrap();
        let mut asked = asked.lock().unwrap();
        asked.entry(id).or_default().push(release.to_owned());
        if release == "canary" && id == 13 {
            return StatusCode::BAD_GATEWAY.into_response();
        }
        named(&headers, result_of(&tweet))
    }
    async fn who(headers: HeaderMap) -> Response {
        named(&headers, StatusCode::METHOD_NOT_ALLOWED.into_response())
    }
    fn named(headers: &HeaderMap, mut answer: Response) -> Response {
        let canary = headers.get("x-friday-release") == Some(&HeaderValue::from_static("canary"));
        let name = HeaderValue::from_static(if canary { "r2" } else { "r1" });
        answer.headers_mut().insert("x-release", name);
        answer
    }
    let asked = Asked::default();
    let app = Router::new()
        .route("/tasks", post(task).get(who))
        .with_state(asked.clone());
    let listener = TcpListener::bind(any_port().listen).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (address, asked)
}

pub(crate) async fn replay(args: &[&str]) -> (Option<i32>, Value, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pipeline-demo"))
        .arg("replay")
        .args(args)
        .output()
        .await
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let record = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code(), record, said)
}

async fn produce(bus: &Arc<dyn Bus>, ids: std::ops::RangeInclusive<u64>) {
    let appended = ids.map(|id| bus.produce(TWEETS, record(tweet(id))));
    futures::future::try_join_all(appended).await.unwrap();
}

/// A moment between two records: their times are whole milliseconds, by clocks that may differ by some.
async fn between() -> Timestamp {
    let moment = Duration::from_millis(200);
    sleep(moment).await;
    let now = SystemClock::new().now();
    sleep(moment).await;
    now
}

/// What both buses do: `bus_args` tell the program which one.
async fn a_part_is_replayed(bus: &Arc<dyn Bus>, bus_args: &[&str]) {
    let (proxy, asked) = noting().await;
    produce(bus, 1..=40).await;
    let from = between().await.to_string();
    produce(bus, 41..=90).await;
    let to = between().await.to_string();
    produce(bus, 91..=120).await;
    let url = format!("http://{proxy}");
    let with = |more: &[&str]| -> Vec<String> {
        let all = [bus_args, &["--proxy", &url], more].concat();
        all.into_iter().map(str::to_owned).collect()
    };
    let run = async |more: &[&str]| {
        let args = with(more);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        replay(&args).await
    };

    let (code, did, said) = run(&["--from", &from, "--to", &to, "--pin", "canary"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(did["tasks_completed"], 50, "{did}");
    assert_eq!(
        (&did["records_read"], &did["release"]),
        (&json!(50), &json!("canary"))
    );
    let seen: Vec<u64> = asked.lock().unwrap().keys().copied().collect();
    assert_eq!(seen, (41..=90).collect::<Vec<_>>());
    assert_eq!(bus.lag(RESULTS, "nobody").await.unwrap(), 50);
    // The feeder's group stands where it stood: all is still before it.
    assert_eq!(bus.lag(TWEETS, "feeder").await.unwrap(), 120);

    // By place, in the two partitions that have most.
    let ends = bus.ends(TWEETS).await.unwrap();
    let mut partitions: Vec<usize> = (0..ends.len()).collect();
    partitions.sort_by_key(|partition| -ends[*partition].1);
    let (one, two) = (partitions[0], partitions[1]);
    let (first, last) = (ends[one].1 - 4, ends[two].1);
    let places = format!("{one}:{first}..99999,{two}:0..{last}");
    let (code, did, said) = run(&["--offsets", &places, "--discard-results"]).await;
    assert_eq!(code, Some(0), "{said}");
    let expected = json!([{"partition": one, "from": first, "to": first + 4},
        {"partition": two, "from": 0, "to": last}]);
    assert_eq!(did["spans"], expected, "{did}");
    assert_eq!(did["tasks_completed"], 4 + last, "{did}");
    let kept = bus.lag(RESULTS, "nobody").await.unwrap();
    assert_eq!(kept, 50, "no answer is kept");

    // A record that no attempt brings through is said, with an exit code.
    let all = ["--from", "1h", "--pin", "canary", "--attempts", "2"];
    let (code, did, _) = run(&all).await;
    assert_eq!(code, Some(1), "{did}");
    assert_eq!(
        (&did["tasks_failed"], &did["tasks_completed"]),
        (&json!(1), &json!(119))
    );
    assert_eq!(
        asked.lock().unwrap()[&13]
            .iter()
            .filter(|r| *r == "canary")
            .count(),
        2
    );

    let (code, _, said) = run(&["--offsets", "9:0..5"]).await;
    assert_eq!(code, Some(1));
    assert!(said.contains("there is no partition 9"), "{said}");
}

#[tokio::test]
async fn a_part_of_the_local_log_is_sent_again_to_one_release() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bus");
    let bus = local_bus(&path).await;
    let path = path.display().to_string();
    a_part_is_replayed(&bus, &["--bus", &path]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn real_broker_a_part_of_the_topic_is_sent_again_to_one_release_and_no_group_moves() {
    let directory = tempfile::tempdir().unwrap();
    let broker = Broker::start(directory.path());
    let bus = kafka_bus(&broker).await;
    let address = broker.address();
    a_part_is_replayed(&bus, &["--kafka", &address]).await;
    // A feeder afterwards does all, and a replay while it has everything behind it moves nothing.
    let (proxy, _) = noting().await;
    let feeding = Feeding::start(&bus, proxy);
    drained(&bus, TWEETS, "feeder").await;
    let url = format!("http://{proxy}");
    let args = ["--kafka", &address, "--proxy", &url, "--from", "1h"];
    let (code, did, said) = replay(&args).await;
    assert_eq!(
        (code, &did["tasks_completed"]),
        (Some(0), &json!(120)),
        "{said}"
    );
    assert_eq!(bus.lag(TWEETS, "feeder").await.unwrap(), 0);
    assert_eq!(feeding.stop().await.tasks_completed, 120);
}
