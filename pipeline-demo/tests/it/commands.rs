//! The subcommands as processes.

use std::time::Duration;

use pipeline_demo::bus::TWEETS;
use serde_json::json;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::support::{Process, get, local_bus, tweet, until};

#[tokio::test]
async fn tweets_go_all_the_way_through_four_processes() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (bus, db) = (at("bus"), at("store.sqlite"));
    let args = ["work", "--release", "abc", "--arm", "stable"];
    let worker = Process::start(directory.path(), "work", &args).await;
    let proxy = format!("http://{}", worker.address);
    let args = ["feed", "--bus", &bus, "--proxy", &proxy, "--pin", "stable"];
    let feeder = Process::start(directory.path(), "feed", &args).await;
    let args = ["sink", "--bus", &bus, "--db", &db];
    let sink = Process::start(directory.path(), "sink", &args).await;
    let args = [
        "produce",
        "--bus",
        &bus,
        "--rate",
        "300",
        "--seconds",
        "3",
        "--malformed-share",
        "0.1",
    ];
    let producer = Process::start(directory.path(), "produce", &args).await;
    let started = Instant::now();
    let (code, produced) = producer.end().await;
    assert_eq!(code, Some(0));
    let took = started.elapsed();
    assert!((2.0..6.0).contains(&took.as_secs_f64()), "{took:?}");
    let tasks = produced["tasks_produced"].as_u64().unwrap();
    let malformed = produced["malformed_produced"].as_u64().unwrap();
    assert!((850..=901).contains(&tasks), "{produced}");
    assert!((40..160).contains(&malformed), "{produced}");
    let expected = json!({"results": tasks - malformed, "malformed": malformed, "lag": 0});
    until("all is stored", async || {
        let (fed, stored) = (feeder.counts().await, sink.counts().await);
        if stored == expected && fed["lag"] == 0 {
            Ok(())
        } else {
            Err((fed, stored))
        }
    })
    .await;
    let fed = feeder.counts().await;
    assert_eq!(fed["tasks_completed"], tasks - malformed);
    assert_eq!(fed["tasks_malformed"], malformed);
    let metrics = get(worker.address, "/metrics")
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    for name in [
        "pipeline_task_duration_seconds_bucket{",
        "pipeline_tasks_total{",
        "pipeline_tasks_malformed_total{",
        "process_cpu_seconds_total{",
        "process_resident_memory_bytes{",
        "release=\"abc\"",
        "arm=\"stable\"",
    ] {
        assert!(metrics.contains(name), "{name}: {metrics}");
    }
    let metrics = get(feeder.address, "/metrics")
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(metrics.contains("pipeline_consumer_lag{"), "{metrics}");
    for process in [feeder, sink, worker] {
        process.terminate();
        assert_eq!(process.end().await.0, Some(0));
    }
    let query = Command::new(env!("CARGO_BIN_EXE_pipeline-demo"))
        .args(["query", "--db", &db])
        .output();
    let counts: serde_json::Value = serde_json::from_slice(&query.await.unwrap().stdout).unwrap();
    assert_eq!(
        counts,
        json!({"results": tasks - malformed, "malformed": malformed})
    );
}

#[tokio::test]
async fn a_worker_told_to_stop_finishes_what_it_has_and_says_it_is_not_ready() {
    let directory = tempfile::tempdir().unwrap();
    let worker = Process::start(directory.path(), "work", &["work"]).await;
    let url = format!("http://{}/tasks", worker.address);
    let client = reqwest::Client::new();
    let sent: Vec<_> = (1..=50)
        .map(|id| tokio::spawn(client.post(&url).body(tweet(id)).send()))
        .collect();
    until("they are in flight", async || {
        let counts = worker.counts().await;
        if counts["in_flight"].as_u64() > Some(10) {
            Ok(())
        } else {
            Err(counts)
        }
    })
    .await;
    worker.terminate();
    let ready = until("it is not ready", async || {
        match get(worker.address, "/ready").await {
            Ok(answer) if answer.status() == 200 => Err("ready"),
            Ok(answer) => Ok(Some(answer.status())),
            // On a slow machine it may have ended between two looks.
            Err(_) => Ok(None),
        }
    })
    .await;
    assert!(ready.is_none_or(|status| status == 503), "{ready:?}");
    for answer in sent {
        assert_eq!(answer.await.unwrap().unwrap().status(), 200);
    }
    assert_eq!(worker.end().await.0, Some(0));
}

#[tokio::test]
async fn faults_show_from_outside() {
    let directory = tempfile::tempdir().unwrap();
    let crashing = Process::start(directory.path(), "crash", &["work", "--fault", "crash"]).await;
    let leaking = Process::start(directory.path(), "leak", &["work", "--fault", "leak"]).await;
    let failing = Process::start(directory.path(), "errors", &["work", "--fault", "errors"]).await;
    let wrong = Process::start(directory.path(), "wrong", &["work", "--fault", "wrong"]).await;
    let resident = async || {
        let text = get(leaking.address, "/metrics")
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        let line = text
            .lines()
            .find(|l| l.starts_with("process_resident_memory_bytes"));
        line.unwrap()
            .split(' ')
            .next_back()
            .unwrap()
            .parse::<f64>()
            .unwrap()
    };
    let before = (resident().await, Instant::now());
    let client = reqwest::Client::new();
    let answers = (1..=200).map(|id| {
        let url = format!("http://{}/tasks", failing.address);
        client.post(url).body(tweet(id)).send()
    });
    let answers = futures::future::try_join_all(answers).await.unwrap();
    let failed = answers
        .iter()
        .filter(|answer| answer.status() == 500)
        .count();
    assert!((15..70).contains(&failed), "{failed} of 200");
    let url = format!("http://{}/tasks", wrong.address);
    let answer = client.post(url).body(tweet(1)).send().await.unwrap();
    let result: serde_json::Value = answer.json().await.unwrap();
    assert_eq!(
        result["features"]["sentiment"]["label"], "negative",
        "{result}"
    );
    assert_eq!(
        crashing.end().await.0,
        Some(pipeline_demo::worker::CRASH_CODE)
    );
    sleep(Duration::from_secs(1)).await;
    let rate = (resident().await - before.0) / before.1.elapsed().as_secs_f64() / 1024.0 / 1024.0;
    assert!((6.0..10.0).contains(&rate), "{rate} MiB/s");
}

#[tokio::test]
async fn a_file_read_once_is_in_the_bus_once() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let lines: Vec<String> = (1..=50)
        .map(|id| String::from_utf8(tweet(id).to_vec()).unwrap())
        .collect();
    std::fs::write(at("tweets.jsonl"), lines.join("\n")).unwrap();
    let (path, input) = (at("bus"), at("tweets.jsonl"));
    let args = [
        "produce", "--bus", &path, "--input", &input, "--once", "--rate", "1000",
    ];
    let producer = Process::start(directory.path(), "produce", &args).await;
    let (code, produced) = producer.end().await;
    assert_eq!(
        (code, produced),
        (
            Some(0),
            json!({"tasks_produced": 50, "malformed_produced": 0})
        )
    );
    let bus = local_bus(&directory.path().join("bus")).await;
    let mut consumer = bus.consumer(TWEETS, "test").await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 50 {
        let records = consumer.next(50).await.unwrap();
        seen.extend(
            records
                .iter()
                .map(|r| String::from_utf8(r.value.to_vec()).unwrap()),
        );
    }
    seen.sort();
    let mut expected = lines;
    expected.sort();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_taken_port_is_named_with_the_option_that_changes_it() {
    let directory = tempfile::tempdir().unwrap();
    let worker = Process::start(directory.path(), "work", &["work"]).await;
    let second = Command::new(env!("CARGO_BIN_EXE_pipeline-demo"))
        .args(["work", "--listen", &worker.address.to_string()])
        .output();
    let second = second.await.unwrap();
    let text = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(
        text.contains(&worker.address.to_string()) && text.contains("--listen"),
        "{text}"
    );
}

#[tokio::test]
async fn the_port_of_the_environment_is_taken() {
    let free = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let mut worker = Command::new(env!("CARGO_BIN_EXE_pipeline-demo"))
        .arg("work")
        .env("PORT", address.port().to_string())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    until("it is ready where PORT says", async || {
        match get(address, "/ready").await {
            Ok(answer) if answer.status() == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    worker.kill().await.unwrap();
}

#[tokio::test]
async fn health_asks_a_part_where_it_listens() {
    let directory = tempfile::tempdir().unwrap();
    let worker = Process::start(directory.path(), "work", &["work"]).await;
    let ask = async |port: u16| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline-demo"));
        // As a container has it: the part listens on all addresses and is asked on loopback.
        command
            .arg("health")
            .env("PIPELINE_LISTEN", format!("0.0.0.0:{port}"));
        let output = command.output().await.unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        (output.status.code(), said)
    };
    let (code, said) = ask(worker.address.port()).await;
    assert_eq!(
        (code, said),
        (Some(0), format!("ready: {}\n", worker.address))
    );
    let port = worker.address.port();
    worker.terminate();
    worker.end().await;
    let (code, said) = ask(port).await;
    assert_eq!(code, Some(1), "{said}");
}
