//! `pipeline.yml` as a file: checked by `lint`, and what a worker does by it.

use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::{Process, get, local_bus, record, until};

async fn lint(directory: &Path, args: &[&str]) -> Output {
    let program = Command::new(env!("CARGO_BIN_EXE_pipeline-demo"))
        .arg("lint")
        .args(args)
        .current_dir(directory)
        .output();
    program.await.unwrap()
}

#[tokio::test]
async fn lint_tells_by_its_exit_code_and_in_words_or_json_what_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    write("pipeline.yml", "features:\n  language:\n");
    write("wrong.yml", "features:\n  language:\n  sentimnt:\n");
    let right = lint(directory.path(), &[]).await;
    assert_eq!(right.status.code(), Some(0));
    assert_eq!(right.stdout, b"pipeline.yml: ok, 1 stages and 3 jobs\n");
    let wrong = lint(directory.path(), &["pipeline.yml", "wrong.yml"]).await;
    assert_eq!(wrong.status.code(), Some(20));
    let text = String::from_utf8(wrong.stdout).unwrap();
    let finding = "wrong.yml:3:3: features.sentimnt: \"sentimnt\": unknown stage: ";
    assert!(
        text.contains(finding) && text.contains("did you mean sentiment?"),
        "{text}"
    );
    let wrong = lint(directory.path(), &["-o", "json", "wrong.yml"]).await;
    assert_eq!(wrong.status.code(), Some(20));
    let findings: Value = serde_json::from_slice(&wrong.stdout).unwrap();
    assert_eq!(findings[0]["line"], 3);
    assert_eq!(findings[0]["mend"], "did you mean sentiment?");
    let right = lint(directory.path(), &["-o", "json"]).await;
    assert_eq!(
        serde_json::from_slice::<Value>(&right.stdout).unwrap(),
        json!([])
    );
    for usage in [&["missing.yml"][..], &["--no-such-option"]] {
        assert_eq!(
            lint(directory.path(), usage).await.status.code(),
            Some(2),
            "{usage:?}"
        );
    }
}

#[tokio::test]
async fn the_file_beside_the_sources_is_right() {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = lint(beside, &[]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[tokio::test]
async fn a_worker_does_what_its_release_is_told_to() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pipeline.yml");
    let text = "features: { language: , hashtags: , sentiment: { when: { language.code: eng } } }\nreleases: { canary: { without: hashtags } }\n";
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    for (arm, expected) in [
        ("stable", json!(["hashtags", "language", "sentiment"])),
        ("canary", json!(["language", "sentiment"])),
    ] {
        let args = ["work", "--release", "abc", "--arm", arm, "--pipeline", file];
        let worker = Process::start(directory.path(), arm, &args).await;
        let send = async |text: &str| -> Value {
            let tweet = json!({"data": {"id": "1", "author_id": "1", "text": text}});
            let url = format!("http://{}/tasks", worker.address);
            let answer = reqwest::Client::new()
                .post(url)
                .body(tweet.to_string())
                .send();
            let result: Value = answer.await.unwrap().json().await.unwrap();
            result["features"]
                .as_object()
                .unwrap()
                .keys()
                .cloned()
                .collect()
        };
        let english = "The weather has been wonderful this morning, hasn't it?";
        assert_eq!(send(english).await, expected, "{arm}");
        let german = send("Heute ist das Wetter endlich wieder richtig schön.").await;
        assert!(
            !german.as_array().unwrap().contains(&json!("sentiment")),
            "{german}"
        );
        assert_eq!(get(worker.address, "/ready").await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn a_worker_sends_each_tweet_by_the_route_that_is_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pipeline.yml");
    let text = "routes:\n  tagged: { when: { lang: en, has: hashtags }, stages: [language, hashtags] }\n  replies: { when: { kind: reply }, stages: mentions }\n";
    std::fs::write(&file, text).unwrap();
    let linted = lint(directory.path(), &[]).await;
    let words = "pipeline.yml: ok, 4 stages, 2 routes and 3 jobs\n";
    assert_eq!(String::from_utf8(linted.stdout).unwrap(), words);
    let args = ["work", "--pipeline", file.to_str().unwrap()];
    let worker = Process::start(directory.path(), "work", &args).await;
    let url = format!("http://{}/tasks", worker.address);
    let reply = json!([{"type": "replied_to", "id": "7"}]);
    for (lang, text, references, expected) in [
        ("en", "a #tag", &reply, &["hashtags", "language"][..]),
        ("de", "a #tag", &reply, &["mentions"]),
        (
            "en",
            "no tag",
            &json!([]),
            &["hashtags", "language", "mentions", "sentiment"],
        ),
    ] {
        let data = json!({"id": "1", "author_id": "1", "lang": lang, "text": text, "referenced_tweets": references});
        let tweet = json!({ "data": data }).to_string();
        let answer = reqwest::Client::new().post(&url).body(tweet).send();
        let result: Value = answer.await.unwrap().json().await.unwrap();
        let features = result["features"].as_object().unwrap();
        let found: Vec<&str> = features.keys().map(String::as_str).collect();
        assert_eq!(found, expected, "{lang} {text}");
    }
    std::fs::write(&file, text.replace("mentions", "mention")).unwrap();
    let wrong = lint(directory.path(), &[]).await;
    assert_eq!(wrong.status.code(), Some(20));
    let said = String::from_utf8(wrong.stdout).unwrap();
    let finding = "pipeline.yml:3:45: routes.replies.stages: \"mention\": unknown stage: ";
    assert!(said.starts_with(finding), "{said}");
}

#[tokio::test]
async fn nothing_starts_with_a_file_that_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    write(
        "wrong.yml",
        "jobs: { fold: { task: agregate, every: 1m } }\n",
    );
    write("token", "not a token of anybody");
    let lint = lint(directory.path(), &["wrong.yml"]).await;
    assert!(
        lint.stdout
            .starts_with(b"wrong.yml:1:23: jobs.fold.task: \"agregate\": unknown task")
    );
    for step in [
        &["work"][..],
        &["subscribe", "--bus", "bus", "--x-token-file", "token"],
        &["sink", "--bus", "bus", "--db", "db"],
        &["jobs", "--bus", "bus", "--db", "db"],
    ] {
        let start = async |file: &str| {
            let program = Command::new(env!("CARGO_BIN_EXE_pipeline-demo"))
                .args(step)
                .args(["--pipeline", file])
                .current_dir(directory.path())
                .output();
            program.await.unwrap()
        };
        let ended = start("wrong.yml").await;
        assert_eq!(ended.status.code(), Some(20), "{step:?}: {ended:?}");
        assert_eq!(ended.stdout, lint.stdout, "{step:?}");
        let missing = start("missing.yml").await;
        assert_eq!(missing.status.code(), Some(1), "{step:?}: {missing:?}");
    }
}

#[tokio::test]
async fn the_file_says_when_a_result_is_late_and_the_option_wins_over_it() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("pipeline.yml"), "late_after: 1ms\n").unwrap();
    let bus = local_bus(&directory.path().join("bus")).await;
    let (bus_path, file) = (at("bus"), at("pipeline.yml"));
    let written = written_ten_seconds_ago();
    for (name, option, late) in [
        ("file", &[][..], true),
        ("option", &["--late-after", "1000"], false),
    ] {
        let origin = json!({"partition": 0, "offset": 0});
        let result = json!({"tweet_id": name, "author_id": null, "created_at": written, "features": {}, "release": "r1",
            "origin": origin});
        let appended = bus.produce("results", record(result.to_string()));
        appended.await.unwrap();
        let db = at(&format!("{name}.db"));
        let args = ["sink", "--bus", &bus_path, "--db", &db, "--pipeline", &file];
        let sink = Process::start(directory.path(), name, &[&args[..], option].concat()).await;
        until("it is stored", async || match sink.counts().await {
            stored if stored["results"] == 1 && stored["lag"] == 0 => Ok(()),
            stored => Err(stored),
        })
        .await;
        let metrics = get(sink.address, "/metrics").await.unwrap();
        let metrics = metrics.text().await.unwrap();
        assert!(
            metrics.contains("pipeline_lateness_seconds_count{release=\"r1\"} 1"),
            "{metrics}"
        );
        let is_late = metrics.contains("pipeline_late_total{release=\"r1\"} 1");
        assert_eq!(is_late, late, "{name}: {metrics}");
        sink.terminate();
        assert_eq!(sink.end().await.0, Some(0));
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the time of day that the sink has"
)]
fn written_ten_seconds_ago() -> String {
    let ago = std::time::Duration::from_secs(10);
    (jiff::Timestamp::now() - ago).to_string()
}
