//! Tasks that are killed while they work, and clients that never pause.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use proxy_api::{Arm, Outcome};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::controller::Controller;
use crate::world::{Answer, Backend, Client, Proxy, eventually, side, table, text};

/// How long a task works on a request: long enough to be killed meanwhile.
const WORK: Duration = Duration::from_millis(2);

/// Clients at a time.
const CLIENTS: usize = 8;

/// Requests that are waited for before and after each change.
const SOME: u32 = 200;

/// Clients that never pause, and what came of it.
struct Load {
    clients: JoinSet<()>,
    stop: Arc<AtomicBool>,
    answers: Arc<Mutex<HashMap<u32, (Method, Answer)>>>,
}

impl Load {
    /// Each of the clients uses these methods in turn.
    fn start(url: &str, methods: &'static [Method]) -> Self {
        let mut load = Self {
            clients: JoinSet::new(),
            stop: Arc::default(),
            answers: Arc::default(),
        };
        let next_id = Arc::new(AtomicU32::new(0));
        for number in 0..CLIENTS {
            let client = if number < CLIENTS - 2 {
                Client::new()
            } else {
                Client::h2()
            };
            let (url, next_id) = (url.to_owned(), Arc::clone(&next_id));
            let (stop, answers) = (Arc::clone(&load.stop), Arc::clone(&load.answers));
            load.clients.spawn(async move {
                for method in methods.iter().cycle() {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let id = next_id.fetch_add(1, Ordering::SeqCst);
                    let headers = [("x-id", &*id.to_string())];
                    let answer = client.call(method.clone(), &url, &headers, "work");
                    let answer = answer.await.unwrap();
                    answers.lock().unwrap().insert(id, (method.clone(), answer));
                }
            });
        }
        load
    }

    /// Waits until that many more are answered.
    async fn more(&self, requests: u32) {
        let answered = || self.answers.lock().unwrap().len();
        let enough = answered() + requests as usize;
        eventually("more answers", async || {
            (answered() >= enough).then_some(())
        })
        .await;
    }

    /// Ends it: every request's method and answer by its id.
    async fn end(mut self) -> HashMap<u32, (Method, Answer)> {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(client) = self.clients.join_next().await {
            client.unwrap();
        }
        std::mem::take(&mut self.answers.lock().unwrap())
    }
}

/// How often each request began at any task.
type Begun = Arc<Mutex<HashMap<u32, u32>>>;

/// A task at that address; waits until the one before it is gone.
async fn task(address: Option<SocketAddr>, name: &'static str, begun: &Begun) -> Backend {
    let address = address.unwrap_or_else(|| "127.0.0.1:0".parse().unwrap());
    let listener = eventually("the port to be free", async || {
        TcpListener::bind(address).await.ok()
    });
    let begun = Arc::clone(begun);
    Backend::on(listener.await, move |request: Request<Incoming>| {
        let id = request.headers()["x-id"].to_str().unwrap().parse().unwrap();
        *begun.lock().unwrap().entry(id).or_default() += 1;
        async move {
            tokio::time::sleep(WORK).await;
            text(StatusCode::OK, name)
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f21_tasks_killed_under_load_fail_no_idempotent_request_and_double_no_post() {
    let begun = Begun::default();
    let mut tasks = Vec::new();
    for _ in 0..3 {
        tasks.push(task(None, "done", &begun).await);
    }
    let addresses: Vec<_> = tasks.iter().map(|task| task.address).collect();
    let proxy = Proxy::alone(&table(1, &addresses, json!({}))).await;
    let methods = &[Method::GET, Method::POST, Method::PUT];
    let load = Load::start(&proxy.url("/"), methods);
    for address in addresses.iter().cycle().take(5) {
        load.more(SOME).await;
        // Killed, with all it has begun.
        drop(tasks.remove(0));
        load.more(SOME).await;
        let again = task(Some(*address), "done", &begun).await;
        eventually("requests at the new task", async || {
            (again.hits() > 0).then_some(())
        })
        .await;
        tasks.push(again);
    }
    let answers = load.end().await;
    let begun = std::mem::take(&mut *begun.lock().unwrap());
    let mut lost = 0;
    for (id, (method, answer)) in &answers {
        let times = begun.get(id).copied().unwrap_or(0);
        if *method != Method::POST {
            assert_eq!(answer.status, StatusCode::OK, "{method} {answer:?}");
            assert!((1..=2).contains(&times), "{method} began {times} times");
        } else if answer.status == StatusCode::OK {
            assert_eq!(times, 1, "POST {id}");
        } else {
            assert_eq!(answer.header("x-friday-refusal"), "reset", "{answer:?}");
            assert!(times <= 1, "POST {id} began {times} times");
            lost += 1;
        }
    }
    let retries = proxy.metric("friday_proxy_retries_total", &[]).await;
    println!(
        "{} requests, {retries} retries, {lost} POSTs lost",
        answers.len()
    );
    assert!(retries > 0.0, "a task was killed while it worked");
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_killed_altogether_under_load_fails_nobody_and_all_its_failures_are_counted() {
    let begun = Begun::default();
    let stable = task(None, "stable", &begun).await;
    let canary = [
        task(None, "canary", &begun).await,
        task(None, "canary", &begun).await,
    ];
    let endpoints = [canary[0].address, canary[1].address];
    let more =
        json!({ "canary_bp": 5_000, "shield": "idempotent", "canary": side("v2", &endpoints) });
    let controller = Controller::new(Some(table(1, &[stable.address], more))).await;
    let state = tempfile::tempdir().unwrap();
    let proxy = Proxy::led(controller.address, state.path()).await.unwrap();
    proxy.has(1).await;
    let load = Load::start(&proxy.url("/"), &[Method::GET, Method::PUT]);
    load.more(SOME).await;
    drop(canary);
    load.more(2 * SOME).await;
    let answers = load.end().await;
    let mut by_canary = 0;
    for (method, answer) in answers.values() {
        assert_eq!(answer.status, StatusCode::OK, "{method} {answer:?}");
        by_canary += u32::from(answer.body == "canary");
    }
    let sent = answers.len() as u32;
    controller.all_ended(sent).await;
    let shielded = proxy.metric("friday_proxy_shielded_total", &[]).await as u32;
    controller.look(|ledger| {
        let sum = |arm, count: fn(&proxy_api::Cell) -> u32| {
            let cells = ledger.cells().filter(move |cell| cell.arm == arm);
            cells.map(count).sum::<u32>()
        };
        for cell in ledger.cells() {
            let outcomes: u32 = cell.outcomes.iter().sum();
            assert_eq!(
                (outcomes, cell.failed_to_user),
                (cell.requests, 0),
                "{cell:?}"
            );
        }
        let canary = sum(Arm::Canary, |cell| cell.requests);
        let bad = sum(Arm::Canary, proxy_api::Cell::bad);
        println!("{sent} requests, {canary} routed to the canary, {bad} failed there");
        assert_eq!(canary + sum(Arm::Stable, |cell| cell.requests), sent);
        assert_eq!(sum(Arm::Stable, proxy_api::Cell::bad), 0);
        assert_eq!(
            canary,
            by_canary + shielded,
            "what it did not answer, stable did"
        );
        // A second task of the canary may have answered what the first one refused.
        assert!(bad >= shielded && shielded > SOME / 2, "{bad}, {shielded}");
        let connect = sum(Arm::Canary, |cell| cell.outcomes[Outcome::Connect as usize]);
        assert!(connect > 0, "it took no connection in the end");
    });
    proxy.stop().await;
}
