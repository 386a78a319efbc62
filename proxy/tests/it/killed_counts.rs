//! What is counted while tasks are killed under load: every request once, every failed attempt where it failed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use proxy_api::{Arm, Cell, Outcome};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

use crate::controller::Controller;
use crate::world::{Answer, Client, Proxy, eventually, side, table, text};

/// How long a task works on a request: long enough to be killed meanwhile.
const WORK: Duration = Duration::from_millis(2);

/// Clients at a time.
const CLIENTS: u32 = 8;

/// Requests that are waited for before and after each change.
const SOME: usize = 200;

/// What the tasks did, by the ids of requests.
#[derive(Debug, Default)]
struct Done {
    /// Worked on to the end, how often.
    finished: BTreeMap<u32, u32>,
    /// Taken and not answered, because the task had been told to die.
    failed: BTreeMap<u32, u32>,
}

/// A task; dropped, it is gone, with its connections.
#[derive(Debug)]
struct Task {
    address: SocketAddr,
    hits: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Task {
    /// One at that address, as soon as the one before it is gone. While `is_dying`, it takes requests and breaks their
    /// connections.
    async fn start(
        address: Option<SocketAddr>,
        name: &'static str,
        done: &Arc<Mutex<Done>>,
        is_dying: &Arc<AtomicBool>,
    ) -> Self {
        let address = address.unwrap_or_else(|| "127.0.0.1:0".parse().unwrap());
        let listener = eventually("the port to be free", async || {
            TcpListener::bind(address).await.ok()
        });
        let listener = listener.await;
        let address = listener.local_addr().unwrap();
        let hits = Arc::<AtomicU32>::default();
        let (done, is_dying, counter) = (Arc::clone(done), Arc::clone(is_dying), Arc::clone(&hits));
        let task = tokio::spawn(async move {
            // Aborted with the task, so connections end with it.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (done, is_dying) = (Arc::clone(&done), Arc::clone(&is_dying));
                let counter = Arc::clone(&counter);
                connections.spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        let id = request.headers()["x-id"].to_str().unwrap().parse().unwrap();
                        counter.fetch_add(1, Ordering::SeqCst);
                        let (done, is_dying) = (Arc::clone(&done), Arc::clone(&is_dying));
                        async move {
                            if is_dying.load(Ordering::SeqCst) {
                                *done.lock().unwrap().failed.entry(id).or_default() += 1;
                                return Err(io::Error::other("killed"));
                            }
                            tokio::time::sleep(WORK).await;
                            *done.lock().unwrap().finished.entry(id).or_default() += 1;
                            Ok(text(StatusCode::OK, name))
                        }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    drop(http.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Self {
            address,
            hits,
            task,
        }
    }
}

/// Clients that never pause, and what they were answered, by the ids of their requests.
struct Load {
    clients: JoinSet<()>,
    stop: Arc<AtomicBool>,
    next_id: Arc<AtomicU32>,
    answers: Arc<Mutex<BTreeMap<u32, Answer>>>,
}

impl Load {
    /// Requests that may be repeated alone, with ids from `first` on.
    fn start(url: &str, first: u32) -> Self {
        let mut load = Self {
            clients: JoinSet::new(),
            stop: Arc::default(),
            next_id: Arc::new(AtomicU32::new(first)),
            answers: Arc::default(),
        };
        for number in 0..CLIENTS {
            let client = match number % 4 {
                0 => Client::h2(),
                _ => Client::new(),
            };
            let (url, next_id) = (url.to_owned(), Arc::clone(&load.next_id));
            let (stop, answers) = (Arc::clone(&load.stop), Arc::clone(&load.answers));
            load.clients.spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let id = next_id.fetch_add(1, Ordering::SeqCst);
                    // A POST with a key may be repeated as well.
                    let (method, key) = match id % 3 {
                        0 => (Method::GET, "x-no-key"),
                        1 => (Method::PUT, "x-no-key"),
                        _ => (Method::POST, "idempotency-key"),
                    };
                    let text = id.to_string();
                    let headers = [("x-id", text.as_str()), (key, text.as_str())];
                    let answer = client.call(method, &url, &headers, "work").await.unwrap();
                    let before = answers.lock().unwrap().insert(id, answer);
                    assert!(before.is_none(), "{id} was answered twice");
                }
            });
        }
        load
    }

    /// Waits until that many more are answered.
    async fn more(&self, requests: usize) {
        let answered = || self.answers.lock().unwrap().len();
        let enough = answered() + requests;
        eventually("more answers", async || {
            (answered() >= enough).then_some(())
        })
        .await;
    }

    /// Ends it: all answers. As many as were sent, and none of them is a failure.
    async fn end(mut self, first: u32) -> BTreeMap<u32, Answer> {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(client) = self.clients.join_next().await {
            client.unwrap();
        }
        let answers = std::mem::take(&mut *self.answers.lock().unwrap());
        let sent = self.next_id.load(Ordering::SeqCst) - first;
        assert_eq!(answers.len(), sent as usize, "answers to users");
        for (id, answer) in &answers {
            assert_eq!(answer.status, StatusCode::OK, "{id}: {answer:?}");
        }
        answers
    }
}

/// The sum over all cells of an arm.
fn sum<'a>(cells: impl Iterator<Item = &'a Cell>, arm: Arm, count: impl Fn(&Cell) -> u32) -> u32 {
    cells.filter(|cell| cell.arm == arm).map(count).sum()
}

async fn retries(proxy: &Proxy, arm: &str) -> u32 {
    let label = format!("arm=\"{arm}\"");
    let retries = proxy.metric("friday_proxy_retries_total", &[&label]).await;
    retries as u32
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f21_tasks_of_either_release_killed_under_load_lose_nothing_and_each_failed_attempt_counts_where_it_failed()
 {
    let (done, alive) = (Arc::<Mutex<Done>>::default(), Arc::default());
    let mut stable = Vec::new();
    let mut canary = Vec::new();
    for _ in 0..3 {
        stable.push(Task::start(None, "stable", &done, &alive).await);
        canary.push(Task::start(None, "canary", &done, &alive).await);
    }
    let addresses = |tasks: &[Task]| tasks.iter().map(|task| task.address).collect::<Vec<_>>();
    let more = json!({ "canary_bp": 5_000, "canary": side("v2", &addresses(&canary)) });
    let controller = Controller::new(Some(table(1, &addresses(&stable), more))).await;
    let state = tempfile::tempdir().unwrap();
    let proxy = Proxy::led(controller.address, state.path()).await.unwrap();
    proxy.has(1).await;
    let mut requests = 0;
    let mut failed = [0; 2];
    for (round, name) in ["canary", "canary", "stable", "stable"]
        .into_iter()
        .enumerate()
    {
        let tasks = match name {
            "canary" => &mut canary,
            _ => &mut stable,
        };
        let load = Load::start(&proxy.url("/"), requests);
        load.more(SOME).await;
        // Killed, with all it has begun.
        let address = tasks.remove(0).address;
        load.more(SOME).await;
        let again = Task::start(Some(address), name, &done, &alive).await;
        eventually("requests at the new task", async || {
            (again.hits.load(Ordering::SeqCst) > 0).then_some(())
        })
        .await;
        tasks.push(again);
        let answers = load.end(requests).await;
        requests += answers.len() as u32;
        controller.all_ended(requests).await;
        for (arm, label) in [(Arm::Stable, "stable"), (Arm::Canary, "canary")] {
            let bad = controller.look(|ledger| sum(ledger.cells(), arm, Cell::bad));
            let retries = retries(&proxy, label).await;
            println!("round {round}, a {name} killed: {bad} of {arm:?} failed so far");
            // Each was made once more, and that was enough.
            assert_eq!(bad, retries, "{arm:?}");
            let before = std::mem::replace(&mut failed[arm as usize], bad);
            assert!(
                label == name || bad == before,
                "{arm:?} failed where nobody was killed"
            );
        }
    }
    assert!(failed.iter().all(|&failed| failed > 0), "{failed:?}");
    controller.look(|ledger| {
        let all = |count: fn(&Cell) -> u32| ledger.cells().map(count).sum::<u32>();
        assert_eq!(all(|cell| cell.requests), requests);
        assert_eq!(all(|cell| cell.outcomes.iter().sum()), requests);
        assert_eq!(all(|cell| cell.failed_to_user), 0);
    });
    let done = std::mem::take(&mut *done.lock().unwrap());
    let finished: Vec<u32> = done.finished.keys().copied().collect();
    assert_eq!(finished, (0..requests).collect::<Vec<_>>(), "worked on");
    let attempts: u32 = done.finished.values().sum();
    assert!(
        attempts <= requests + failed[0] + failed[1],
        "{attempts} attempts"
    );
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_failed_attempt_at_a_canary_that_is_down_altogether_counts_against_it_and_no_other_does()
 {
    let (done, alive, dying) = (
        Arc::<Mutex<Done>>::default(),
        Arc::default(),
        Arc::<AtomicBool>::default(),
    );
    let stable = Task::start(None, "stable", &done, &alive).await;
    let canary = [
        Task::start(None, "canary", &done, &dying).await,
        Task::start(None, "canary", &done, &dying).await,
    ];
    let endpoints = [canary[0].address, canary[1].address];
    let more =
        json!({ "canary_bp": 5_000, "shield": "idempotent", "canary": side("v2", &endpoints) });
    let controller = Controller::new(Some(table(1, &[stable.address], more))).await;
    let state = tempfile::tempdir().unwrap();
    let proxy = Proxy::led(controller.address, state.path()).await.unwrap();
    proxy.has(1).await;
    let shielded = async || proxy.metric("friday_proxy_shielded_total", &[]).await as u32;

    // Both of its tasks break every connection from one moment on.
    let load = Load::start(&proxy.url("/"), 0);
    load.more(SOME).await;
    dying.store(true, Ordering::SeqCst);
    load.more(2 * SOME).await;
    let answers = load.end(0).await;
    let by_canary = answers.values().filter(|answer| answer.body == "canary");
    let by_canary = by_canary.count() as u32;
    let requests = answers.len() as u32;
    controller.all_ended(requests).await;
    let seen = std::mem::take(&mut *done.lock().unwrap());
    let attempts: u32 = seen.failed.values().sum();
    let failed = seen.failed.len() as u32;
    let retries_then = retries(&proxy, "canary").await;
    println!("{requests} requests, {by_canary} by the canary, {attempts} attempts failed there");
    assert!(failed > 0, "the canary was asked when it was down");
    // What the tasks saw fail is what is counted, one for each request, and all of it came to stable.
    assert_eq!(attempts, failed + retries_then);
    controller.look(|ledger| {
        let routed = sum(ledger.cells(), Arm::Canary, |cell| cell.requests);
        let reset = |cell: &Cell| cell.outcomes[Outcome::Reset as usize];
        assert_eq!(routed, by_canary + failed);
        assert_eq!(sum(ledger.cells(), Arm::Canary, reset), failed);
        assert_eq!(sum(ledger.cells(), Arm::Canary, Cell::bad), failed);
        assert_eq!(sum(ledger.cells(), Arm::Stable, Cell::bad), 0);
    });
    assert_eq!(shielded().await, failed);
    assert_eq!(retries(&proxy, "stable").await, 0);
    let finished: BTreeSet<u32> = seen.finished.keys().copied().collect();
    assert_eq!(finished, (0..requests).collect(), "worked on");
    assert!(seen.finished.values().all(|&times| times == 1), "once each");

    // Now nobody listens there any more.
    drop(canary);
    for address in endpoints {
        eventually("a refused connection", async || {
            tokio::net::TcpStream::connect(address).await.err()
        })
        .await;
    }
    let load = Load::start(&proxy.url("/"), requests);
    load.more(2 * SOME).await;
    let answers = load.end(requests).await;
    assert!(answers.values().all(|answer| answer.body == "stable"));
    let all = requests + answers.len() as u32;
    controller.all_ended(all).await;
    controller.look(|ledger| {
        let of = |outcome: Outcome| move |cell: &Cell| cell.outcomes[outcome as usize];
        let count = |count: &dyn Fn(&Cell) -> u32| sum(ledger.cells(), Arm::Canary, count);
        let connect = count(&of(Outcome::Connect));
        let bad = count(&Cell::bad);
        println!("then {connect} found nobody there, {bad} failed in all");
        assert!(connect > 0);
        assert_eq!(bad, connect + count(&of(Outcome::Reset)));
        assert_eq!(count(&|cell| cell.requests), by_canary + bad);
        assert_eq!(sum(ledger.cells(), Arm::Stable, Cell::bad), 0);
        assert_eq!(
            sum(ledger.cells(), Arm::Stable, |cell| cell.failed_to_user),
            0
        );
        assert_eq!(count(&|cell| cell.failed_to_user), 0);
    });
    let bad = controller.look(|ledger| sum(ledger.cells(), Arm::Canary, Cell::bad));
    assert_eq!(shielded().await, bad);
    let finished = std::mem::take(&mut *done.lock().unwrap()).finished;
    let finished: BTreeSet<u32> = finished.keys().copied().collect();
    assert_eq!(finished, (requests..all).collect(), "worked on");
    proxy.stop().await;
}
