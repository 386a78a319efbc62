//! Periodic jobs on several nodes: one at a time, taken over, made up for.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pipeline_demo::bus::{Bus, BusConfig};
use pipeline_demo::jobs::spec::{DEADLINE_DEFAULT, KEEP_DEFAULT};
use pipeline_demo::jobs::{JobSpec, Runner, Schedule, Task, Tasks};
use pipeline_demo::sink::{DatabaseConfig, Store};
use pipeline_demo::telemetry::Identity;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::postgres::Postgres;
use crate::support::{Process, local_bus, until};

fn job(name: &str, task: Task) -> JobSpec {
    JobSpec {
        name: name.into(),
        task,
        schedule: Schedule::every(Duration::from_secs(1)),
        catch_up: false,
        deadline: DEADLINE_DEFAULT,
    }
}

/// A node in this process.
struct Node {
    runner: Arc<Runner>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Node {
    fn start(store: &Arc<dyn Store>, bus: &Arc<dyn Bus>, name: &str, jobs: &[JobSpec]) -> Self {
        let tasks = Tasks::on(
            store.clone(),
            BusConfig::Local("unused".into()),
            bus.clone(),
        );
        let runner = Runner::new(tasks, jobs.to_vec(), name, &Identity::default());
        let (runner, stop) = (Arc::new(runner), CancellationToken::new());
        let (running, told) = (runner.clone(), stop.clone());
        let task = tokio::spawn(async move { running.run(&told).await });
        Self { runner, stop, task }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// Three nodes have the same jobs: each due time is run once, by one of them.
async fn one_at_a_time(config: DatabaseConfig, directory: &Path) {
    let bus = local_bus(&directory.join("bus")).await;
    let jobs = [
        job("fold", Task::Aggregate),
        job("old", Task::CleanUp { keep: KEEP_DEFAULT }),
        job("compare", Task::Reconcile),
    ];
    let mut nodes = Vec::new();
    for name in ["one", "two", "three"] {
        let store = config.open().await.unwrap();
        nodes.push(Node::start(&store, &bus, name, &jobs));
    }
    let store = config.open().await.unwrap();
    let runs = until("each job ran a few times", async || {
        let runs = store.runs(None, None, 500).await.unwrap();
        let ran = |name: &str| {
            runs.iter()
                .filter(|run| run.job == name && run.outcome == "done")
                .count()
        };
        let enough = ["fold", "old", "compare"].iter().all(|name| ran(name) >= 3);
        if enough { Ok(runs) } else { Err(runs) }
    })
    .await;
    let mut by_due = BTreeMap::new();
    for run in &runs {
        assert!(run.delay_ms >= 0, "{run:?}");
        *by_due.entry((&run.job, run.due_ms)).or_insert(0) += 1;
    }
    assert!(by_due.values().all(|times| *times == 1), "{runs:?}");
    let metrics: String = nodes.iter().map(|node| node.runner.metrics()).collect();
    for part in [
        "pipeline_job_runs_total{job=\"fold\",outcome=\"done\"}",
        "pipeline_job_delay_seconds_count{job=\"old\"}",
    ] {
        assert!(metrics.contains(part), "{part}: {metrics}");
    }
    for node in nodes {
        node.stop().await;
    }
}

/// A node took the job's lock and is gone without a word. Another one runs the job.
async fn taken_over(config: DatabaseConfig, directory: &Path) {
    let bus = local_bus(&directory.join("bus")).await;
    let store = config.open().await.unwrap();
    let due_ms = now_ms() - 5_000;
    store.last_due("fold", due_ms).await.unwrap();
    // Dropped, not given back: its lease runs out.
    let lock = store.lock("fold", "dead", now_ms()).await.unwrap();
    assert!(lock.is_some());
    drop(lock);
    let node = Node::start(&store, &bus, "alive", &[job("fold", Task::Aggregate)]);
    let begun = until("another node runs it", async || {
        let runs = store.runs(Some("fold"), None, 100).await.unwrap();
        match runs
            .iter()
            .find(|run| run.node == "alive" && run.outcome == "done")
        {
            Some(run) => Ok(run.clone()),
            None => Err(runs),
        }
    })
    .await;
    assert!(begun.due_ms > due_ms, "{begun:?}");
    node.stop().await;
}

#[expect(
    clippy::disallowed_methods,
    reason = "the time of day that the nodes of this test have"
)]
fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_sqlite_runs_once_for_each_due_time_on_many_nodes() {
    let directory = tempfile::tempdir().unwrap();
    let config = DatabaseConfig::Sqlite(directory.path().join("store.sqlite"));
    one_at_a_time(config, directory.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_real_postgres_runs_once_for_each_due_time_on_many_nodes() {
    let directory = tempfile::tempdir().unwrap();
    let postgres = Postgres::start().await;
    one_at_a_time(
        DatabaseConfig::Postgres(postgres.config()),
        directory.path(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lease_of_a_dead_node_runs_out_and_another_takes_over() {
    let directory = tempfile::tempdir().unwrap();
    let config = DatabaseConfig::Sqlite(directory.path().join("store.sqlite"));
    taken_over(config, directory.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lock_of_a_node_killed_in_its_run_is_free_at_once_in_real_postgres() {
    let directory = tempfile::tempdir().unwrap();
    let postgres = Postgres::start().await;
    let config = DatabaseConfig::Postgres(postgres.config());
    let store = config.open().await.unwrap();
    let bus = local_bus(&directory.path().join("bus")).await;
    let (path, url) = (directory.path().join("bus"), postgres.url());
    // The table that the job needs is locked, so the run is in its middle for as long as we like.
    let pool = postgres.pool().await;
    let mut hold = pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE aggregates")
        .execute(&mut *hold)
        .await
        .unwrap();
    let jobs = directory.path().join("pipeline.yml");
    std::fs::write(&jobs, "jobs: { fold: { task: aggregate, every: 1s } }").unwrap();
    let (path, file) = (path.to_str().unwrap(), jobs.to_str().unwrap());
    let args = [
        "jobs",
        "--bus",
        path,
        "--database",
        &url,
        "--pipeline",
        file,
    ];
    let mut first = Process::start(directory.path(), "first", &args).await;
    let running = until("it is in the middle", async || {
        let runs = store.runs(Some("fold"), None, 10).await.unwrap();
        let running = runs.iter().find(|run| run.outcome == "running").cloned();
        running.ok_or(runs)
    })
    .await;
    first.child.kill().await.unwrap();
    hold.rollback().await.unwrap();
    let node = Node::start(&store, &bus, "second", &[job("fold", Task::Aggregate)]);
    let again = until("the other one runs it", async || {
        let runs = store.runs(Some("fold"), None, 100).await.unwrap();
        let again = runs
            .iter()
            .find(|run| run.due_ms == running.due_ms && run.attempt == 2);
        again
            .filter(|run| run.outcome == "done")
            .cloned()
            .ok_or(runs)
    })
    .await;
    assert_eq!(again.node, "second");
    let runs = store.runs(Some("fold"), None, 500).await.unwrap();
    let killed = runs
        .iter()
        .find(|run| run.due_ms == running.due_ms && run.attempt == 1);
    assert_eq!(killed.unwrap().outcome, "abandoned");
    node.stop().await;
}

#[tokio::test]
async fn missed_runs_are_made_up_for_one_by_one_or_named_as_missed() {
    let directory = tempfile::tempdir().unwrap();
    let bus = local_bus(&directory.path().join("bus")).await;
    let config = DatabaseConfig::Sqlite(directory.path().join("store.sqlite"));
    let store = config.open().await.unwrap();
    // Both were last run five and a half minutes ago.
    let minutely = |name: &str, catch_up| JobSpec {
        schedule: Schedule::every(Duration::from_secs(60)),
        catch_up,
        ..job(name, Task::Aggregate)
    };
    for name in ["makes-up", "lets-go"] {
        store.last_due(name, now_ms() - 330_000).await.unwrap();
    }
    let node = Node::start(
        &store,
        &bus,
        "one",
        &[minutely("makes-up", true), minutely("lets-go", false)],
    );
    let runs = until("both are up to date", async || {
        let runs = store.runs(None, None, 100).await.unwrap();
        let of = |name: &str| {
            runs.iter()
                .filter(|run| run.job == name && run.ended_ms.is_some())
                .count()
        };
        if of("makes-up") >= 5 && of("lets-go") >= 5 {
            Ok(runs)
        } else {
            Err(runs)
        }
    })
    .await;
    node.stop().await;
    let outcomes = |name: &str, outcome: &str| {
        runs.iter()
            .filter(|run| run.job == name && run.outcome == outcome)
            .count()
    };
    assert!(outcomes("makes-up", "done") >= 5, "{runs:?}");
    assert_eq!(outcomes("makes-up", "missed"), 0);
    // The latest may be young enough to be run.
    assert!(
        outcomes("lets-go", "missed") >= 4 && outcomes("lets-go", "done") <= 1,
        "{runs:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_takes_too_long_is_ended_and_the_next_one_comes_with_real_postgres() {
    let directory = tempfile::tempdir().unwrap();
    let postgres = Postgres::start().await;
    let config = DatabaseConfig::Postgres(postgres.config());
    let store = config.open().await.unwrap();
    let bus = local_bus(&directory.path().join("bus")).await;
    let pool = postgres.pool().await;
    let mut hold = pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE aggregates")
        .execute(&mut *hold)
        .await
        .unwrap();
    let mut hold = Some(hold);
    let slow = JobSpec {
        deadline: Duration::from_secs(1),
        ..job("fold", Task::Aggregate)
    };
    let node = Node::start(&store, &bus, "one", &[slow]);
    for outcome in ["deadline", "done"] {
        until(outcome, async || {
            let runs = store.runs(Some("fold"), None, 100).await.unwrap();
            if runs.iter().any(|run| run.outcome == outcome) {
                Ok(())
            } else {
                Err(runs)
            }
        })
        .await;
        if let Some(hold) = hold.take() {
            hold.rollback().await.unwrap();
        }
    }
    node.stop().await;
}
