//! The process orchestrator with real processes: the contract, and what is its own.

#![expect(clippy::unwrap_used, reason = "this is a test, its helpers too")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use controller_testing::contract::{self, IMAGE, NEXT_IMAGE, REPLICAS};
use controller_testing::{eventually, orchestrator_contract};
use friday::clock::SystemClock;
use friday::orchestrator::process::{Process, ProcessConfig, end_leftovers};
use friday::orchestrator::{Orchestrator, OrchestratorError, ServiceState};
use rollout::{Duration, Release, ServiceName};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The program that is run as a task.
const TINY: &str = env!("CARGO_BIN_EXE_tiny-service");

/// How long any one change may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// A folder with a catalog and a state directory; its leftovers are ended with it.
struct World {
    folder: TempDir,
    arguments: [String; 2],
    limit_mib: u32,
}

impl World {
    /// A world in which `worker:v2` is the tiny service with these arguments, and `worker:v1` the plain one.
    fn new(next: &str) -> Self {
        let world = Self {
            folder: tempfile::tempdir().unwrap(),
            arguments: [String::new(), next.to_owned()],
            limit_mib: 256,
        };
        world.write_catalog();
        world
    }

    fn write_catalog(&self) {
        let command = |arguments: &str| {
            let words: Vec<String> = std::iter::once(TINY)
                .chain(arguments.split_whitespace())
                .map(|word| format!("{word:?}"))
                .collect();
            words.join(", ")
        };
        let [first, next] = self
            .arguments
            .each_ref()
            .map(|arguments| command(arguments));
        let text = format!(
            "images:\n  {IMAGE}: {{ command: [{first}], env: {{ KEY: value }} }}\n  {NEXT_IMAGE}: {{ command: [{next}] }}\n\
             services:\n  worker: {{ image: {IMAGE}, replicas: {REPLICAS}, ready: /ready, memory_limit: {}MiB }}\n",
            self.limit_mib
        );
        std::fs::write(self.catalog(), text).unwrap();
    }

    fn catalog(&self) -> PathBuf {
        self.folder.path().join("catalog.yml")
    }

    fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn record_path(&self) -> PathBuf {
        self.state_dir().join("services/worker.json")
    }

    fn record(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.record_path()).unwrap()).unwrap()
    }

    fn change_record(&self, change: impl FnOnce(&mut Value)) {
        let mut record = self.record();
        change(&mut record);
        std::fs::write(self.record_path(), record.to_string()).unwrap();
    }

    /// Limits long enough to be seen, and short enough to be waited for.
    fn config(&self) -> ProcessConfig {
        ProcessConfig {
            drain: Duration::from_millis(500),
            stop_limit: Duration::from_secs(2),
            ..ProcessConfig::new(self.state_dir(), self.catalog())
        }
    }

    async fn open(&self) -> Arc<Process> {
        Process::open(self.config(), SystemClock::new())
            .await
            .unwrap()
    }

    /// Opened, with the first tasks ready.
    async fn started(&self) -> Arc<Process> {
        let process = self.open().await;
        until(&process, "the first tasks are ready", |state| {
            state.stable.ready(&state.stable.release.id) == REPLICAS
        })
        .await;
        process
    }
}

impl Drop for World {
    /// Whatever a failed test left. What is marked is found in `/proc`, as the orchestrator itself would.
    fn drop(&mut self) {
        for pid in marked(&self.state_dir()) {
            kill(pid);
        }
    }
}

/// Ends a process as the kernel would; one that has just ended by itself is no matter.
fn kill(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    let sent = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    assert!(
        matches!(sent, Ok(()) | Err(nix::errno::Errno::ESRCH)),
        "{sent:?}"
    );
}

/// The live processes of a state directory, by the mark in their environment.
fn marked(state_dir: &Path) -> BTreeSet<u32> {
    let mark = format!("FRIDAY_STATE_DIR={}", state_dir.display());
    let pids = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ
            .split(|byte| *byte == 0)
            .any(|entry| entry == mark.as_bytes())
    })
    .collect()
}

async fn observe(process: &Process) -> ServiceState {
    process.observe(&service()).await.unwrap()
}

async fn until(
    process: &Process,
    what: &str,
    holds: impl FnMut(&ServiceState) -> bool,
) -> ServiceState {
    eventually(what, LIMIT, async || observe(process).await, holds).await
}

async fn canary(process: &Process, replicas: u32) -> Release {
    let release = process.resolve(&service(), NEXT_IMAGE, None).await.unwrap();
    process
        .ensure_canary(&service(), &release, replicas)
        .await
        .unwrap();
    release
}

fn canary_ready(state: &ServiceState) -> u32 {
    state
        .canary
        .as_ref()
        .map_or(0, |group| group.ready(&group.release.id))
}

fn service() -> ServiceName {
    contract::service()
}

async fn ask(endpoint: &str, path: &str) -> reqwest::Result<String> {
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(5))
        .build()?;
    client
        .get(format!("http://{endpoint}{path}"))
        .send()
        .await?
        .error_for_status()?
        .text()
        .await
}

/// Endpoint and process id of each stable task.
async fn stable_processes(state: &ServiceState) -> Vec<(String, u32)> {
    let mut processes = Vec::new();
    for task in &state.stable.tasks {
        let pid = ask(task.endpoint.as_str(), "/pid").await.unwrap();
        processes.push((task.endpoint.to_string(), pid.parse().unwrap()));
    }
    processes
}

struct Processes {
    world: std::sync::Mutex<World>,
    process: Arc<Process>,
}

#[async_trait]
impl contract::Harness for Processes {
    fn orchestrator(&self) -> Arc<dyn Orchestrator> {
        self.process.clone()
    }

    async fn redefine(&self, image: &str) {
        assert_eq!(image, NEXT_IMAGE);
        let mut world = self.world.lock().unwrap();
        world.arguments[1] = "tag redefined".to_owned();
        world.write_catalog();
    }
}

async fn processes() -> Processes {
    let world = World::new("tag next");
    let process = world.open().await;
    Processes {
        world: std::sync::Mutex::new(world),
        process,
    }
}

orchestrator_contract!(processes);

#[tokio::test]
async fn a_task_knows_who_it_is_and_nothing_of_the_controllers_environment() {
    let world = World::new("tag next");
    let process = world.started().await;
    let state = observe(&process).await;
    let task = &state.stable.tasks[0];
    for (name, value) in [
        ("KEY", "value"),
        ("FRIDAY_RELEASE", state.stable.release.id.as_str()),
        ("FRIDAY_SERVICE", "worker"),
        ("FRIDAY_ARM", "stable"),
        ("FRIDAY_TASK", &task.id),
        ("FRIDAY_NODE", &task.node),
    ] {
        assert_eq!(
            ask(task.endpoint.as_str(), &format!("/env/{name}"))
                .await
                .unwrap(),
            value,
            "{name}"
        );
    }
    assert!(
        ask(task.endpoint.as_str(), "/env/CARGO_MANIFEST_DIR")
            .await
            .is_err()
    );
    assert!(
        task.node.ends_with("-1") && state.stable.tasks[1].node.ends_with("-2"),
        "{state:?}"
    );
    assert_eq!(task.memory_bytes_max, Some(256 << 20));
    until(&process, "memory and CPU time are known", |state| {
        state
            .stable
            .tasks
            .iter()
            .all(|task| task.memory_bytes > Some(100_000) && task.cpu.is_some())
    })
    .await;
    process.stop_all().await;
    assert_eq!(marked(&world.state_dir()), BTreeSet::new());
}

#[tokio::test]
async fn f24_tasks_outlive_the_controller_and_are_adopted_as_they_were() {
    let world = World::new("tag next");
    let process = world.started().await;
    canary(&process, 1).await;
    until(&process, "a canary", |state| canary_ready(state) == 1).await;
    let before = observe(&process).await;
    let pids = stable_processes(&before).await;
    drop(process);

    let process = world.open().await;
    let after = observe(&process).await;
    assert_eq!(stable_processes(&after).await, pids);
    let essence = |state: &ServiceState| {
        let canary = state.canary.as_ref();
        let groups = std::iter::once(&state.stable)
            .chain(canary)
            .flat_map(|group| {
                group
                    .tasks
                    .iter()
                    .map(|task| (task.id.clone(), task.endpoint.clone(), task.ready))
            });
        (
            groups.collect::<Vec<_>>(),
            state.stable.release.clone(),
            canary.map(|group| group.release.clone()),
        )
    };
    assert_eq!(essence(&after), essence(&before));
    assert_eq!(
        (after.stable.restarts, after.stable.trouble.clone()),
        (0, None)
    );

    // Adopted tasks are no children of ours, but their end is seen and mended all the same.
    kill(pids[0].1);
    let mended = until(&process, "the killed task is replaced", |state| {
        state.stable.restarts == 1 && state.stable.ready(&state.stable.release.id) == REPLICAS
    })
    .await;
    assert!(
        mended
            .stable
            .trouble
            .unwrap()
            .contains("earlier controller")
    );
    process.ensure_no_canary(&service()).await.unwrap();
    until(&process, "the adopted canary is gone", |state| {
        state.canary.is_none()
    })
    .await;
    process.stop_all().await;
    assert_eq!(marked(&world.state_dir()), BTreeSet::new());
}

#[tokio::test]
async fn f24_a_task_whose_start_was_not_saved_is_found_by_its_mark() {
    let world = World::new("tag next");
    let process = world.started().await;
    let pids = stable_processes(&observe(&process).await).await;
    process.shutdown_detached().await;
    assert!(observe_fails(&process).await.is_transient());

    // As if it had been killed after it saved that it would start the task, and before it saved that it had.
    world.change_record(|record| record["stable"]["tasks"][0]["process"] = Value::Null);
    let process = world.open().await;
    let after = observe(&process).await;
    assert_eq!(stable_processes(&after).await, pids);
    assert_eq!(after.stable.restarts, 0);
    process.stop_all().await;
}

async fn observe_fails(process: &Process) -> OrchestratorError {
    process.observe(&service()).await.unwrap_err()
}

#[tokio::test]
async fn a_task_that_ended_while_no_controller_ran_is_counted_and_replaced() {
    let world = World::new("tag next");
    let process = world.started().await;
    let pids = stable_processes(&observe(&process).await).await;
    process.shutdown_detached().await;
    kill(pids[0].1);
    // Its port may be closed before it has ended: found alive, it would end while a controller runs.
    eventually(
        "it is gone",
        LIMIT,
        async || marked(&world.state_dir()),
        |left| !left.contains(&pids[0].1),
    )
    .await;
    let process = world.started().await;
    let after = observe(&process).await;
    assert_eq!(
        (after.stable.restarts, after.stable.trouble.as_deref()),
        (1, Some("ended while no controller ran"))
    );
    assert!(stable_processes(&after).await.contains(&pids[1]));
    process.stop_all().await;
}

#[tokio::test]
async fn a_crash_loop_backs_off_and_says_why() {
    let world = World::new("crash-after 10");
    let process = world.started().await;
    canary(&process, 1).await;
    let begin = tokio::time::Instant::now();
    let state = until(&process, "four restarts", |state| {
        state.canary.as_ref().unwrap().restarts >= 4
    })
    .await;
    // Waits of 0.2, 0.4 and 0.8 s lie before the fourth.
    assert!(
        begin.elapsed() >= Duration::from_millis(1400),
        "{:?}",
        begin.elapsed()
    );
    let trouble = state.canary.unwrap().trouble.unwrap();
    assert!(
        trouble.starts_with("exited with code 70 after 0."),
        "{trouble}"
    );
    assert!(
        trouble.ends_with(" s: tiny-service: told to crash"),
        "{trouble}"
    );
    assert_eq!(state.stable.restarts, 0);
    process.stop_all().await;
}

#[tokio::test]
async fn a_program_that_is_not_there_is_the_groups_trouble() {
    let world = World::new("tag next");
    let missing = world.folder.path().join("no-such-program");
    let text = std::fs::read_to_string(world.catalog()).unwrap();
    std::fs::write(
        world.catalog(),
        text.replace(
            &format!("[{TINY:?}, \"tag\""),
            &format!("[{missing:?}, \"tag\""),
        ),
    )
    .unwrap();
    let process = world.started().await;
    canary(&process, 1).await;
    let state = until(&process, "two failed starts", |state| {
        state.canary.as_ref().unwrap().restarts >= 2
    })
    .await;
    let trouble = state.canary.unwrap().trouble.unwrap();
    assert!(
        trouble.starts_with("could not start ") && trouble.contains("no-such-program"),
        "{trouble}"
    );
    process.stop_all().await;
}

#[tokio::test]
async fn a_task_that_never_is_ready_stays_unready_and_the_old_ones_stay() {
    let world = World::new("never-ready");
    let process = world.started().await;
    let old = observe(&process).await.stable.release;
    let next = process.resolve(&service(), NEXT_IMAGE, None).await.unwrap();
    process.ensure_stable(&service(), &next).await.unwrap();
    until(&process, "the new tasks run", |state| {
        state.stable.tasks.len() == 4
    })
    .await;
    let wait = tokio::time::Instant::now() + Duration::from_secs(2);
    until(&process, "two seconds pass", |state| {
        assert_eq!(
            (state.stable.ready(&old.id), state.stable.ready(&next.id)),
            (REPLICAS, 0)
        );
        tokio::time::Instant::now() >= wait
    })
    .await;
    process.ensure_stable(&service(), &old).await.unwrap();
    until(&process, "back to the old release alone", |state| {
        assert_eq!(state.stable.ready(&old.id), REPLICAS);
        state.stable.tasks.len() == 2
    })
    .await;
    process.stop_all().await;
}

#[tokio::test]
async fn a_task_that_shall_go_is_unready_while_it_still_answers_and_is_killed_when_it_ignores_sigterm()
 {
    let world = World::new("ignore-sigterm");
    let process = world.started().await;
    canary(&process, 1).await;
    let state = until(&process, "a canary", |state| canary_ready(state) == 1).await;
    let endpoint = state.canary.unwrap().tasks[0].endpoint.to_string();
    let begin = tokio::time::Instant::now();
    process.ensure_no_canary(&service()).await.unwrap();
    assert_eq!(canary_ready(&observe(&process).await), 0);
    ask(&endpoint, "/pid")
        .await
        .expect("unready, but not stopped yet");
    let last = until(&process, "the canary is gone", |state| {
        state.canary.is_none()
    })
    .await;
    // 0.5 s of drain, 2 s of stop limit.
    assert!(
        begin.elapsed() >= Duration::from_millis(2500),
        "{:?}",
        begin.elapsed()
    );
    assert!(ask(&endpoint, "/pid").await.is_err());
    assert_eq!(last.stable.restarts, 0);
    process.stop_all().await;
}

#[tokio::test]
async fn a_task_that_shall_go_gets_sigterm_only_after_the_drain() {
    let world = World::new("tag next");
    let mut config = world.config();
    config.drain = Duration::from_millis(1500);
    let process = Process::open(config, SystemClock::new()).await.unwrap();
    canary(&process, 1).await;
    let state = until(&process, "a canary", |state| canary_ready(state) == 1).await;
    let endpoint = state.canary.unwrap().tasks[0].endpoint.to_string();
    let begin = tokio::time::Instant::now();
    process.ensure_no_canary(&service()).await.unwrap();
    assert_eq!(canary_ready(&observe(&process).await), 0);
    eventually(
        "it takes no more requests",
        LIMIT,
        async || ask(&endpoint, "/pid").await.is_err(),
        |gone| *gone,
    )
    .await;
    assert!(
        begin.elapsed() >= Duration::from_millis(1500),
        "{:?}",
        begin.elapsed()
    );
    process.stop_all().await;
}

#[tokio::test]
async fn a_task_above_its_memory_limit_is_ended_and_the_words_say_so() {
    let mut world = World::new("eat 120");
    world.limit_mib = 64;
    world.write_catalog();
    let process = world.started().await;
    canary(&process, 1).await;
    let state = until(&process, "it is ended", |state| {
        state.canary.as_ref().unwrap().restarts >= 1
    })
    .await;
    let trouble = state.canary.unwrap().trouble.unwrap();
    assert!(
        trouble.starts_with("used ") && trouble.ends_with(" MiB of its limit of 64 MiB"),
        "{trouble}"
    );
    process.stop_all().await;
}

#[tokio::test]
async fn what_a_task_started_ends_with_it() {
    let world = World::new("with-child crash-after 300");
    let process = world.started().await;
    canary(&process, 1).await;
    until(&process, "a restart", |state| {
        state.canary.as_ref().unwrap().restarts >= 1
    })
    .await;
    process.ensure_no_canary(&service()).await.unwrap();
    until(&process, "the canary is gone", |state| {
        state.canary.is_none()
    })
    .await;
    let left = marked(&world.state_dir());
    assert_eq!(
        left.len(),
        REPLICAS as usize,
        "only the stable tasks: {left:?}"
    );
    process.stop_all().await;
}

#[tokio::test]
async fn leftovers_are_ended_and_nothing_else() {
    let world = World::new("with-child ignore-sigterm");
    let process = world.started().await;
    canary(&process, 1).await;
    until(&process, "a canary", |state| canary_ready(state) == 1).await;
    let refused = end_leftovers(&world.state_dir()).await.unwrap_err();
    assert!(refused.to_string().contains("still runs"), "{refused}");
    let all = marked(&world.state_dir());
    assert_eq!(
        all.len(),
        4,
        "two stable tasks, a canary and its child: {all:?}"
    );
    drop(process);

    // A process with a saved pid, but not the one that was saved: the pid was given again.
    let mut foreign = tokio::process::Command::new(TINY)
        .env("PORT", "0")
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let pid = foreign.id().unwrap();
    eventually(
        "the state directory is free",
        LIMIT,
        async || end_nothing(&world).await,
        |free| *free,
    )
    .await;
    world.change_record(|record| {
        record["stable"]["tasks"][0]["process"] = json!({ "pid": pid, "start_ticks": 1 });
    });
    let ended: BTreeSet<u32> = end_leftovers(&world.state_dir())
        .await
        .unwrap()
        .into_iter()
        .map(|leftover| leftover.pid)
        .collect();
    assert_eq!(ended, all);
    let gone = async || marked(&world.state_dir());
    eventually("all are gone", LIMIT, gone, BTreeSet::is_empty).await;
    assert!(
        foreign.try_wait().unwrap().is_none(),
        "the foreign process was ended"
    );

    // Nor does a controller that starts again touch it.
    let process = world.started().await;
    assert!(
        foreign.try_wait().unwrap().is_none(),
        "the foreign process was ended"
    );
    process.stop_all().await;
    assert!(
        foreign.try_wait().unwrap().is_none(),
        "the foreign process was ended"
    );
    foreign.kill().await.unwrap();
}

/// Whether no controller holds the state directory any more.
async fn end_nothing(world: &World) -> bool {
    let lock = std::fs::File::open(world.state_dir().join("lock")).unwrap();
    lock.try_lock().is_ok()
}

#[tokio::test]
async fn a_corrupt_state_file_is_refused_named_and_kept() {
    let world = World::new("tag next");
    let process = world.started().await;
    process.stop_all().await;
    for text in ["", "{\"format\":1", "{\"format\":2}"] {
        std::fs::write(world.record_path(), text).unwrap();
        let error = Process::open(world.config(), SystemClock::new())
            .await
            .unwrap_err();
        assert!(!error.is_transient());
        assert!(
            error
                .to_string()
                .contains(world.record_path().to_str().unwrap()),
            "{error}"
        );
        assert_eq!(std::fs::read_to_string(world.record_path()).unwrap(), text);
        assert_eq!(marked(&world.state_dir()), BTreeSet::new());
    }
}

#[tokio::test]
async fn f40_what_cannot_be_saved_is_an_error_and_changes_nothing() {
    let world = World::new("tag next");
    let process = world.started().await;
    let pids = stable_processes(&observe(&process).await).await;
    let next = process.resolve(&service(), NEXT_IMAGE, None).await.unwrap();
    // As a full disk would: nothing can be written to where services are saved.
    let (folder, aside) = (
        world.state_dir().join("services"),
        world.state_dir().join("aside"),
    );
    std::fs::rename(&folder, &aside).unwrap();
    let error = process
        .ensure_canary(&service(), &next, 1)
        .await
        .unwrap_err();
    assert!(
        error.is_transient() && error.to_string().contains("cannot write"),
        "{error}"
    );
    assert_eq!(observe(&process).await.canary, None);
    // A task that ends now is not replaced, and why is said; the other one goes on.
    kill(pids[0].1);
    let state = until(&process, "the trouble is told", |state| {
        state
            .stable
            .trouble
            .as_ref()
            .is_some_and(|trouble| trouble.contains("cannot write"))
    })
    .await;
    assert_eq!(
        (
            state.stable.tasks.len(),
            state.stable.ready(&state.stable.release.id)
        ),
        (1, 1)
    );
    std::fs::rename(&aside, &folder).unwrap();
    until(&process, "it is replaced", |state| {
        state.stable.ready(&state.stable.release.id) == REPLICAS
    })
    .await;
    process.ensure_canary(&service(), &next, 1).await.unwrap();
    process.stop_all().await;
}

#[tokio::test]
async fn one_state_directory_has_one_controller() {
    let world = World::new("tag next");
    let process = world.started().await;
    let error = Process::open(world.config(), SystemClock::new())
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("another controller uses it"),
        "{error}"
    );
    process.stop_all().await;
}

#[tokio::test]
async fn two_controllers_with_two_state_directories_do_not_meet() {
    let (one, two) = (World::new("tag next"), World::new("tag next"));
    let (first, second) = tokio::join!(one.started(), two.started());
    first.stop_all().await;
    assert_eq!(marked(&one.state_dir()), BTreeSet::new());
    let state = observe(&second).await;
    assert_eq!(
        (
            state.stable.ready(&state.stable.release.id),
            state.stable.restarts
        ),
        (REPLICAS, 0)
    );
    second.stop_all().await;
}

#[tokio::test]
async fn an_undo_finds_an_image_that_the_catalog_no_longer_has() {
    let mut world = World::new("tag next");
    let process = world.started().await;
    let first = observe(&process).await.stable.release;
    let next = process.resolve(&service(), NEXT_IMAGE, None).await.unwrap();
    process.ensure_stable(&service(), &next).await.unwrap();
    until(&process, "the new release alone", |state| {
        state.stable.ready(&next.id) == REPLICAS && state.stable.tasks.len() == 2
    })
    .await;
    process.shutdown_detached().await;
    world.arguments[0] = "tag another".to_owned();
    world.write_catalog();
    let process = world.open().await;
    assert_eq!(
        observe(&process).await.stable.release,
        next,
        "the catalog does not undo a promotion"
    );
    process.ensure_stable(&service(), &first).await.unwrap();
    until(&process, "the first release alone", |state| {
        state.stable.ready(&first.id) == REPLICAS && state.stable.tasks.len() == 2
    })
    .await;
    process.stop_all().await;
}
