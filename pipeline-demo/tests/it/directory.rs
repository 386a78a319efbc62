//! Files that clients drop into a directory.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use pipeline_demo::bus::TWEETS;
use serde_json::Value;

use crate::support::{Process, local_bus, tweet, until};

fn lines(ids: impl IntoIterator<Item = u64>) -> String {
    ids.into_iter()
        .map(|id| format!("{}\n", String::from_utf8(tweet(id).to_vec()).unwrap()))
        .collect()
}

async fn start(directory: &Path) -> Process {
    let at = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let (bus, inbox) = (at("bus"), at("inbox"));
    Process::start(
        directory,
        "ingest",
        &["ingest", "--bus", &bus, "--watch", &inbox],
    )
    .await
}

fn drop_file(inbox: &Path, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
    let hidden = inbox.join(format!(".{name}"));
    std::fs::write(&hidden, text).unwrap();
    let path = inbox.join(name);
    std::fs::rename(hidden, &path).unwrap();
    path
}

async fn exists(path: &Path) {
    until("the file is moved", async || match path.exists() {
        true => Ok(()),
        false => Err(path.to_owned()),
    })
    .await;
}

/// The ids in the bus, as often as they are there.
async fn ids(directory: &Path) -> Vec<u64> {
    let bus = local_bus(&directory.join("bus")).await;
    let records = bus.lag(TWEETS, "test").await.unwrap() as usize;
    let mut consumer = bus.consumer(TWEETS, "test").await.unwrap();
    let mut ids = Vec::new();
    while ids.len() < records {
        for record in consumer.next(1_000).await.unwrap() {
            let value: Value = serde_json::from_slice(&record.value).unwrap();
            ids.push(value["data"]["id"].as_str().unwrap().parse().unwrap());
        }
    }
    ids.sort_unstable();
    ids
}

#[tokio::test]
async fn a_dropped_file_is_taken_whole_or_refused_with_the_line_at_fault() {
    let directory = tempfile::tempdir().unwrap();
    let inbox = directory.path().join("inbox");
    let process = start(directory.path()).await;
    drop_file(&inbox, "good.jsonl", lines(1..=700));
    let wrong = format!("{}\n{{\"data\":{{}}}}\n", lines(701..=1_400));
    drop_file(&inbox, "wrong.jsonl", &wrong);
    let mut gzip = std::process::Command::new("gzip");
    std::fs::write(inbox.join(".plain"), lines(2_001..=2_100)).unwrap();
    let packed = gzip.arg("-c").arg(inbox.join(".plain")).output().unwrap();
    drop_file(&inbox, "packed", packed.stdout);
    // What is still being written, and what is no file.
    std::fs::write(inbox.join("later.jsonl.tmp"), lines(3_000..=3_001)).unwrap();
    std::fs::create_dir(inbox.join("folder.jsonl")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", inbox.join("link.jsonl")).unwrap();
    for moved in ["done/good.jsonl", "done/packed", "refused/wrong.jsonl"] {
        exists(&inbox.join(moved)).await;
    }
    let reason = std::fs::read_to_string(inbox.join("refused/wrong.jsonl.reason.txt")).unwrap();
    assert!(
        reason.starts_with("wrong.jsonl:702: data.id is missing"),
        "{reason}"
    );
    let kept = std::fs::read_to_string(inbox.join("refused/wrong.jsonl")).unwrap();
    assert_eq!(kept, wrong);
    // The same name again.
    drop_file(&inbox, "good.jsonl", lines(701..=701));
    exists(&inbox.join("done/good.jsonl.1")).await;
    for left in ["later.jsonl.tmp", "folder.jsonl", "link.jsonl"] {
        assert!(inbox.join(left).symlink_metadata().is_ok(), "{left}");
    }
    process.terminate();
    let (code, ended) = process.end().await;
    assert_eq!((code, &ended["tasks_produced"]), (Some(0), &801.into()));
    let expected: Vec<u64> = (1..=701).chain(2_001..=2_100).collect();
    assert_eq!(ids(directory.path()).await, expected);
}

#[tokio::test]
async fn a_crash_in_the_middle_of_a_file_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let inbox = directory.path().join("inbox");
    std::fs::create_dir(&inbox).unwrap();
    let records = 30_000;
    drop_file(&inbox, "many.jsonl", lines(1..=records));
    let mut process = start(directory.path()).await;
    let bus = local_bus(&directory.path().join("bus")).await;
    until("some of it is in the bus", async || {
        match bus.lag(TWEETS, "nobody").await.unwrap() {
            0 => Err(0),
            some => Ok(some),
        }
    })
    .await;
    process.child.kill().await.unwrap();
    let some = bus.lag(TWEETS, "nobody").await.unwrap();
    assert!(
        some < records,
        "the crash came too late to show anything: {some}"
    );
    drop(bus);
    let process = start(directory.path()).await;
    exists(&inbox.join("done/many.jsonl")).await;
    process.terminate();
    assert_eq!(process.end().await.0, Some(0));
    let ids = ids(directory.path()).await;
    assert_eq!(ids.len() as u64, some + records, "some of them twice");
    let each: BTreeSet<u64> = ids.into_iter().collect();
    assert_eq!(each, (1..=records).collect());
}
