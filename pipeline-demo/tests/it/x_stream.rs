//! F45: the stream of X is cut, rate limited or sends only keep-alives.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use friday::clock::{Clock, SystemClock};
use pipeline_demo::bus::TWEETS;
use pipeline_demo::source::x::{Rule, Schedule, XConfig, XError, XStream};
use pipeline_demo::source::{Source, SourceError};
use pipeline_demo::telemetry::{Identity, Telemetry};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::support::{Process, get, local_bus, tweet, until};
use crate::x_server::{Script, Step, XServer};

/// Tests run this many times as quick as X asks for: silence is 1.05 s, which a busy machine does not reach by itself.
const QUICKER: u32 = 20;

struct Subject {
    stream: XStream,
    telemetry: Telemetry,
    _token: tempfile::NamedTempFile,
}

pub(crate) fn token_file() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "s3cret-token\n").unwrap();
    file
}

fn subscribe(server: &XServer, rules: &[(&str, &str)], backfill: Option<u8>) -> Subject {
    subscribe_quicker(server, rules, backfill, QUICKER)
}

fn subscribe_quicker(
    server: &XServer,
    rules: &[(&str, &str)],
    backfill: Option<u8>,
    times: u32,
) -> Subject {
    let token = token_file();
    let config = XConfig {
        base: server.url(),
        token_file: token.path().to_owned(),
        rules: rules
            .iter()
            .map(|(tag, value)| Rule::new(tag, value).unwrap())
            .collect(),
        backfill_minutes_max: backfill,
        schedule: Schedule::X.sped_up(times),
    };
    let telemetry = Telemetry::new(&Identity::default());
    let stream = XStream::start(config, &telemetry, SystemClock::new()).unwrap();
    Subject {
        stream,
        telemetry,
        _token: token,
    }
}

impl Subject {
    async fn next(&mut self) -> Value {
        let next = timeout(Duration::from_secs(30), self.stream.next()).await;
        let record = next.expect("a record in time").unwrap().unwrap();
        serde_json::from_slice(&record.value).unwrap()
    }

    /// The ids of the next records.
    async fn ids(&mut self, records: usize) -> Vec<u64> {
        let mut ids = Vec::new();
        for _ in 0..records {
            let record = self.next().await;
            ids.push(record["data"]["id"].as_str().unwrap().parse().unwrap());
        }
        ids
    }

    fn metric(&self, name: &str) -> f64 {
        let text = self.telemetry.text();
        let line = text.lines().find(|line| {
            let after = line.strip_prefix(name);
            after.is_some_and(|rest| rest.starts_with(' '))
        });
        let value = line.and_then(|line| line.rsplit(' ').next());
        value
            .unwrap_or_else(|| panic!("{name} in {text}"))
            .parse()
            .unwrap()
    }
}

fn line(id: u64) -> Vec<u8> {
    [&tweet(id)[..], b"\r\n"].concat()
}

/// A stream of these tweets that then stays.
pub(crate) fn staying(ids: impl IntoIterator<Item = u64>) -> Script {
    let mut steps: Vec<Step> = ids.into_iter().map(|id| Step::Send(line(id))).collect();
    steps.push(Step::KeepAlives(Duration::from_millis(100)));
    Script::Stream(steps)
}

#[tokio::test]
async fn f45_a_cut_stream_is_taken_up_again_at_once_and_the_gap_is_counted() {
    let half = line(3);
    let cut = Script::Stream(vec![
        // A chunk ends within a line, within a character even, and another holds two lines.
        Step::Send(line(1)[..20].to_vec()),
        Step::Send(line(1)[20..].to_vec()),
        Step::KeepAlive,
        Step::Send([line(2), half[..half.len() / 2].to_vec()].concat()),
    ]);
    let ended = Script::Stream(vec![Step::Send(line(4)), Step::End]);
    let server = XServer::start([cut, ended, staying([5])]).await;
    let mut subject = subscribe(&server, &[("rust", "rust")], Some(5));
    // What was cut in the middle of a line is no record: the backfill, where there is one, sends it again.
    assert_eq!(subject.ids(4).await, [1, 2, 4, 5]);
    assert_eq!(subject.metric("pipeline_source_gaps_total"), 2.0);
    assert!(subject.metric("pipeline_source_gap_seconds_total") > 0.0);
    assert!(subject.metric("pipeline_source_gap_seconds_total") < 10.0);
    let connects = server.connects();
    let backfills = [
        "backfill_minutes=5",
        "backfill_minutes=1",
        "backfill_minutes=1",
    ];
    for (connect, backfill) in connects.iter().zip(backfills) {
        assert!(connect.target.ends_with(backfill), "{connect:?}");
        assert!(
            connect
                .target
                .contains("tweet.fields=author_id,created_at,lang")
        );
        let authorization = connect.authorization.as_deref();
        assert_eq!(authorization, Some("Bearer s3cret-token"));
    }
    let second = connects[1].at - connects[0].at;
    assert!(second < Duration::from_secs(2), "{second:?}");
}

#[tokio::test]
async fn f45_a_429_is_waited_out_until_its_reset() {
    let reset = SystemClock::new().now().as_second() + 5;
    let limited = Script::Refuse(
        429,
        vec![("x-rate-limit-reset", reset.to_string())],
        json!({"title": "Too Many Requests", "detail": "Too Many Requests"}).to_string(),
    );
    let bare = Script::Refuse(429, vec![], String::new());
    let server = XServer::start([limited, bare, staying([1])]).await;
    // A minute is 1.2 s.
    let mut subject = subscribe_quicker(&server, &[("rust", "rust")], None, 50);
    assert_eq!(subject.ids(1).await, [1]);
    assert!(SystemClock::new().now().as_second() >= reset);
    let connects = server.connects();
    let waits: Vec<Duration> = connects.windows(2).map(|w| w[1].at - w[0].at).collect();
    // The reset lay 4 to 5 s ahead, less what it took to connect; the second 429 in a row asks for two minutes.
    assert!(waits[0] >= Duration::from_secs(3), "{waits:?}");
    assert!(waits[1] >= Duration::from_millis(2_400), "{waits:?}");
    assert_eq!(subject.metric("pipeline_source_gaps_total"), 1.0);
    assert!(subject.metric("pipeline_source_gap_seconds_total") > 5.0);
    let limited = "pipeline_source_failures_total{kind=\"limited\"}";
    assert_eq!(subject.metric(limited), 2.0);
}

#[tokio::test]
async fn f45_errors_of_http_are_waited_out_twice_as_long_each_time_and_those_of_the_network_a_step_longer()
 {
    let refuse = |status| Script::Refuse(status, vec![], "<html>".to_owned());
    let scripts = [
        refuse(503),
        refuse(503),
        refuse(500),
        Script::Drop,
        Script::Drop,
        staying([1]),
    ];
    let server = XServer::start(scripts).await;
    let mut subject = subscribe(&server, &[("rust", "rust")], None);
    assert_eq!(subject.ids(1).await, [1]);
    let connects = server.connects();
    let waits: Vec<Duration> = connects.windows(2).map(|w| w[1].at - w[0].at).collect();
    // 5, 10 and 20 s, then 250 and 500 ms, all a twentieth.
    for (wait, least_ms) in waits.iter().zip([250, 500, 1_000, 12, 25]) {
        assert!(*wait >= Duration::from_millis(least_ms), "{waits:?}");
        assert!(
            *wait <= Duration::from_millis(least_ms + 2_000),
            "{waits:?}"
        );
    }
    let kind = |kind| format!("pipeline_source_failures_total{{kind=\"{kind}\"}}");
    assert_eq!(subject.metric(&kind("http")), 3.0);
    assert_eq!(subject.metric(&kind("network")), 2.0);
}

#[tokio::test]
async fn f45_keep_alives_alone_are_a_quiet_stream_and_silence_is_a_lost_one() {
    let quiet = Script::Stream(vec![
        Step::KeepAlive,
        Step::Pause(Duration::from_millis(500)),
        Step::KeepAlive,
        Step::Pause(Duration::from_millis(500)),
        Step::KeepAlive,
        Step::Pause(Duration::from_millis(500)),
        Step::Send(line(1)),
        Step::Silence,
    ]);
    let server = XServer::start([quiet, staying([2])]).await;
    let mut subject = subscribe(&server, &[("rust", "rust")], None);
    // 1.5 s with keep-alives alone are longer than the silence allowed.
    assert_eq!(subject.ids(1).await, [1]);
    assert_eq!(server.connects().len(), 1);
    assert_eq!(subject.metric("pipeline_source_gaps_total"), 0.0);
    assert_eq!(subject.metric("pipeline_source_connected"), 1.0);
    assert!(subject.metric("pipeline_source_keep_alives_total") >= 3.0);
    assert_eq!(subject.ids(1).await, [2]);
    let connects = server.connects();
    let silence = connects[1].at - connects[0].at;
    assert!(silence >= Duration::from_millis(2_550), "{silence:?}");
    assert_eq!(subject.metric("pipeline_source_gaps_total"), 1.0);
    // The gap began with the silence, not when it was noticed.
    assert!(subject.metric("pipeline_source_gap_seconds_total") >= 1.0);
}

#[tokio::test]
async fn f45_a_stream_that_ends_because_the_bus_held_us_up_has_a_gap_from_then_on() {
    // More than we keep for the bus; X would end it for not being read.
    let mut steps: Vec<Step> = (1..=400).map(|id| Step::Send(line(id))).collect();
    steps.push(Step::End);
    let server = XServer::start([Script::Stream(steps), staying([401])]).await;
    let mut subject = subscribe(&server, &[("rust", "rust")], None);
    let held_up = Duration::from_secs(2);
    tokio::time::sleep(held_up).await;
    assert_eq!(server.connects().len(), 1);
    assert_eq!(subject.ids(401).await, (1..=401).collect::<Vec<_>>());
    assert_eq!(subject.metric("pipeline_source_gaps_total"), 1.0);
    assert!(subject.metric("pipeline_source_gap_seconds_total") > 1.5);
}

#[tokio::test]
async fn what_the_stream_says_of_itself_is_no_tweet_and_what_is_no_json_goes_on() {
    let disconnect = json!({"errors": [{"title": "operational-disconnect",
        "disconnect_type": "UpstreamOperationalDisconnect", "detail": "bye"}]});
    let long = [vec![b'x'; 300 * 1024], b"\r\n".to_vec()].concat();
    let partial = json!({"data": {"id": "7", "text": "x", "author_id": "1"}, "errors": [{"title": "Not Found"}]});
    let server = XServer::start([Script::Stream(vec![
        Step::Send(format!("{disconnect}\r\n").into_bytes()),
        Step::Send(long),
        Step::Send(format!("{partial}\r\n").into_bytes()),
        Step::Send(b"{broken\r\n".to_vec()),
        Step::KeepAlives(Duration::from_millis(50)),
    ])])
    .await;
    let mut subject = subscribe(&server, &[("rust", "rust")], None);
    assert_eq!(subject.ids(1).await, [7], "a tweet with an error beside it");
    let broken = subject.stream.next().await.unwrap().unwrap();
    assert_eq!(&broken.value[..], b"{broken");
    assert_eq!(subject.metric("pipeline_source_too_long_total"), 1.0);
}

#[tokio::test]
async fn rules_in_our_name_become_the_configured_ones_and_others_stay() {
    let server = XServer::start([staying([1])]).await;
    server.set_rules(vec![
        json!({"id": "1", "tag": "friday:kept", "value": "rust"}),
        json!({"id": "2", "tag": "friday:old", "value": "cobol"}),
        json!({"id": "3", "tag": "theirs", "value": "zig"}),
        json!({"id": "4", "tag": "friday:before", "value": "cargo"}),
        json!({"id": "5", "value": "no tag"}),
    ]);
    let rules = [("kept", "rust"), ("new", "tokio"), ("after", "cargo")];
    let mut subject = subscribe(&server, &rules, None);
    subject.ids(1).await;
    let mut now: Vec<(Value, Value)> = server
        .rules()
        .into_iter()
        .map(|rule| (rule["tag"].clone(), rule["value"].clone()))
        .collect();
    now.sort_by_key(|(_, value)| value.to_string());
    let expected = [
        (json!("friday:after"), json!("cargo")),
        (json!(null), json!("no tag")),
        (json!("friday:kept"), json!("rust")),
        (json!("friday:new"), json!("tokio")),
        (json!("theirs"), json!("zig")),
    ];
    assert_eq!(now, expected);
    // Nothing to change means that nothing is changed.
    let changes =
        |seen: &[crate::x_server::Seen]| seen.iter().filter(|s| s.method == "POST").count();
    let before = changes(&server.seen());
    let mut again = subscribe(&server, &rules, None);
    again.ids(1).await;
    assert_eq!(changes(&server.seen()), before);
}

#[tokio::test]
async fn a_rule_that_x_refuses_ends_the_subscriber_with_xs_words() {
    let server = XServer::start([staying([1])]).await;
    server.answer_rules(
        400,
        json!({"errors": [{"title": "UnprocessableEntity", "value": "lang:", "details": ["no viable alternative"]}]}),
    );
    let mut subject = subscribe(&server, &[("rust", "lang:")], None);
    let error = subject.stream.next().await.unwrap_err();
    let SourceError::X(XError::Rule { value, reason }) = error else {
        panic!("{error:?}");
    };
    assert_eq!((&*value, &*reason), ("lang:", "no viable alternative"));
    assert_eq!(server.connects().len(), 0);
}

#[tokio::test]
async fn a_token_that_others_may_read_is_refused_before_anything_is_sent() {
    let token = token_file();
    std::fs::set_permissions(token.path(), PermissionsExt::from_mode(0o644)).unwrap();
    let config = XConfig {
        base: "http://127.0.0.1:9".to_owned(),
        token_file: token.path().to_owned(),
        rules: vec![],
        backfill_minutes_max: None,
        schedule: Schedule::X,
    };
    let telemetry = Telemetry::new(&Identity::default());
    let refused = XStream::start(config, &telemetry, SystemClock::new());
    let text = refused.unwrap_err().to_string();
    assert!(
        text.contains("0644") && text.contains("chmod 600"),
        "{text}"
    );
}

#[tokio::test]
async fn subscribed_tweets_are_in_the_bus_and_the_token_is_in_no_log() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let refuse = Script::Refuse(401, vec![], json!({"title": "Unauthorized"}).to_string());
    let ids = 1..=300;
    let server = XServer::start([staying(ids.clone())]).await;
    let token = token_file();
    let (bus, url, token) = (at("bus"), server.url(), token.path().to_str().unwrap());
    let args = [
        "subscribe",
        "--bus",
        &bus,
        "--x-url",
        &url,
        "--x-token-file",
        token,
        "--x-rule",
        "rust=rust lang:en",
    ];
    let subscriber = Process::start(directory.path(), "subscribe", &args).await;
    until("all are produced", async || {
        let counts = subscriber.counts().await;
        if counts["tasks_produced"] == 300 {
            Ok(())
        } else {
            Err(counts)
        }
    })
    .await;
    let metrics = get(subscriber.address, "/metrics").await.unwrap();
    let metrics = metrics.text().await.unwrap();
    assert!(metrics.contains("pipeline_source_connected 1"), "{metrics}");
    subscriber.terminate();
    assert_eq!(
        subscriber.end().await,
        (Some(0), json!({"tasks_produced": 300}))
    );
    let bus = local_bus(&directory.path().join("bus")).await;
    let mut consumer = bus.consumer(TWEETS, "test").await.unwrap();
    let mut of_author: Vec<u64> = Vec::new();
    let mut seen = 0;
    while seen < 300 {
        for record in consumer.next(300).await.unwrap() {
            seen += 1;
            let record: Value = serde_json::from_slice(&record.value).unwrap();
            if record["data"]["author_id"] == "3" {
                of_author.push(record["data"]["id"].as_str().unwrap().parse().unwrap());
            }
        }
    }
    assert!(
        of_author.len() > 40 && of_author.is_sorted(),
        "{of_author:?}"
    );
    // The most that could be logged, of a subscriber that is refused.
    let refusing = XServer::start([refuse]).await;
    let (bus, url) = (at("bus2"), refusing.url());
    let log = std::fs::File::create(at("log")).unwrap();
    let mut process = tokio::process::Command::new(env!("CARGO_BIN_EXE_pipeline-demo"))
        .args([
            "subscribe",
            "--bus",
            &bus,
            "--x-url",
            &url,
            "--x-token-file",
            token,
        ])
        .args(["--x-rule", "rust=rust"])
        .env("RUST_LOG", "trace")
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let text = until("the refusal is logged", async || {
        let text = std::fs::read_to_string(at("log")).unwrap();
        if text.contains("Unauthorized") {
            Ok(text)
        } else {
            Err(text)
        }
    })
    .await;
    process.kill().await.unwrap();
    assert!(!text.contains("s3cret-token"), "{text}");
}

/// The bus takes nothing while the subscriber is told to stop: what came before is in its queue, and nobody else has it.
#[tokio::test]
async fn a_subscriber_that_is_told_to_stop_gives_the_bus_what_waits_in_its_queue() {
    const IN_THE_QUEUE: u64 = 100;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bus");
    let (second, third) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let queued: Vec<u8> = (3..3 + IN_THE_QUEUE).flat_map(line).collect();
    let steps = vec![
        Step::Send(line(1)),
        Step::Told(second.clone()),
        Step::Send([line(2), b"\r\n".to_vec()].concat()),
        Step::Told(third.clone()),
        Step::Send([queued, b"\r\n".to_vec()].concat()),
        Step::Silence,
    ];
    let server = XServer::start([Script::Stream(steps)]).await;
    let token = token_file();
    let (bus, url, token) = (
        path.display().to_string(),
        server.url(),
        token.path().display().to_string(),
    );
    let args = [
        "subscribe",
        "--bus",
        &bus,
        "--x-url",
        &url,
        "--x-token-file",
        &token,
        "--x-rule",
        "rust=rust",
    ];
    let (subscriber, log) = Process::start_logged(directory.path(), "subscribe", &args).await;
    until("the first is produced", async || {
        match subscriber.counts().await {
            counts if counts["tasks_produced"] == 1 => Ok(()),
            counts => Err(counts),
        }
    })
    .await;
    // Whoever else writes to the log waits for this.
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path.join("log.sqlite"));
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    let holding = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let read = async |keep_alives: &str| {
        until("all that was sent is read", async || {
            let metrics = get(subscriber.address, "/metrics").await.unwrap();
            let metrics = metrics.text().await.unwrap();
            if metrics.contains(&format!(
                "pipeline_source_keep_alives_total {keep_alives}\n"
            )) {
                Ok(())
            } else {
                Err(metrics)
            }
        })
        .await;
    };
    // The second is on its way to the bus when the others come.
    second.notify_one();
    read("1").await;
    third.notify_one();
    read("2").await;
    subscriber.terminate();
    until("it is told", async || {
        let said = std::fs::read_to_string(&log).unwrap();
        if said.contains("told to stop by SIGTERM") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;
    assert_eq!(subscriber.counts().await, json!({"tasks_produced": 1}));
    holding.rollback().await.unwrap();
    let all = 2 + IN_THE_QUEUE;
    assert_eq!(
        subscriber.end().await,
        (Some(0), json!({"tasks_produced": all}))
    );
    let bus = local_bus(&path).await;
    assert_eq!(bus.lag(TWEETS, "nobody").await.unwrap(), all);
}
