//! A service with a long past.

use std::time::Duration;

use friday::spec::{self, ReadOptions};
use friday::store::{Change, Saved, Sqlite, Store};
use rollout::{Cause, Phase, Release, Rollout, RolloutId, Timestamp};
use system_tests::{Browser, PATIENCE, SPEC, Scene};

use crate::turn;

/// Rollouts that were before.
const ROLLOUTS: u64 = 10_000;

/// By when the page can be used.
const USABLE: Duration = Duration::from_secs(1);

/// A rollout of long ago that somebody aborted.
fn aborted(number: u64) -> Saved {
    let spec = spec::read(SPEC, "friday.yml", &ReadOptions::default()).unwrap();
    let release = |image: &str, digit: &str| {
        Release::new(image, format!("sha256:{}", digit.repeat(64)), None)
    };
    let now: Timestamp = "2025-03-07T09:00:00Z".parse().unwrap();
    let mut rollout = Rollout::new(
        RolloutId::new(&spec.service, number),
        spec.service.clone(),
        "default".to_owned(),
        "ada".to_owned(),
        release("worker:v1", "1"),
        release("worker:v2", "2"),
        spec,
        false,
        now,
    );
    rollout.phase = Phase::RolledBack {
        cause: Cause::Person {
            by: "ada".to_owned(),
            reason: None,
        },
    };
    Saved {
        number,
        rollout,
        judge: None,
        verdict: None,
        origin: None,
        lease: None,
    }
}

#[tokio::test]
async fn is_usable_in_a_second_after_ten_thousand_rollouts() {
    let _turn = turn().await;
    let mut scene = Scene::prepare();
    std::fs::create_dir_all(scene.state_dir()).unwrap();
    let store = Sqlite::open(&scene.state_dir().join("friday.db"))
        .await
        .unwrap();
    let term = store.take_over().await.unwrap();
    let now: Timestamp = "2025-03-07T10:00:00Z".parse().unwrap();
    let change = Change {
        started: (1..=ROLLOUTS).map(aborted).collect(),
        ..Change::default()
    };
    store.save(term, now, &change).await.unwrap();
    store.close().await;
    scene.start_controller().await;
    let browser = Browser::start().await;
    // Anything takes longer the first time; what is promised is how it is from then on.
    let mut best = Duration::MAX;
    for _ in 0..3 {
        browser.open(&scene.url()).await;
        let passed = browser
            .run_to_done(
                "const look = () => document.querySelectorAll('#history-rows tr').length >= 20 && document.querySelector('#title').innerText
                    ? done(performance.now()) : requestAnimationFrame(look);
                look();",
            )
            .await;
        best = best.min(Duration::from_secs_f64(passed.as_f64().unwrap() / 1000.0));
    }
    assert!(best < USABLE, "usable after {best:?}");
    browser.click("#older").await;
    let more = "document.querySelectorAll('#history-rows tr').length === 40";
    browser
        .until("older rollouts are shown", PATIENCE, more)
        .await;
    let last = browser.text("#history-rows tr:last-child a").await;
    assert_eq!(last, format!("{}-{}", system_tests::SERVICE, ROLLOUTS - 39));
    assert_eq!(browser.errors().await, Vec::<String>::new());
}
