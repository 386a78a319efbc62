//! Tables that change while clients never pause.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use proxy_api::RouteTable;
use serde_json::json;
use tokio::time::Instant;

use crate::controller::Controller;
use crate::world::{Backend, Client, Proxy, side, table, text};

/// Tables after the first: each eleventh changes endpoints, the others weights.
const CHANGES: u64 = 1_100;

/// Endpoints of a release; a table has all but one of them.
const STABLE: [&str; 3] = ["stable 0", "stable 1", "stable 2"];
const CANARY: [&str; 3] = ["canary 0", "canary 1", "canary 2"];

/// The canary's weight by that table: often all or nothing, so that a request by an older table shows.
fn weight(seq: u64) -> u64 {
    match seq % 5 {
        0 => 0,
        1 => 10_000,
        _ => seq * 97 % 10_001,
    }
}

/// Which endpoints that table has, of either release.
fn members(seq: u64) -> [usize; 2] {
    let first = (seq / 11) as usize % 3;
    [first, (first + 1) % 3]
}

/// Whether a request routed by that table may be answered by that endpoint.
fn may_answer(seq: u64, name: &str) -> bool {
    let among = |names: [&str; 3]| members(seq).iter().any(|&member| names[member] == name);
    (weight(seq) < 10_000 && among(STABLE)) || (weight(seq) > 0 && among(CANARY))
}

/// The ids of requests, as often as each came to any backend.
type Arrived = Arc<Mutex<HashMap<u64, u32>>>;

async fn recording(name: &'static str, arrived: &Arrived) -> Backend {
    let arrived = Arc::clone(arrived);
    Backend::new(move |request: Request<Incoming>| {
        let id = request.headers()["x-id"].to_str().unwrap().parse().unwrap();
        *arrived.lock().unwrap().entry(id).or_default() += 1;
        async move {
            request.into_body().collect().await.unwrap();
            text(StatusCode::OK, name)
        }
    })
    .await
}

/// What the clients and whoever changes tables know of each other.
#[derive(Default)]
struct Progress {
    next_id: AtomicU64,
    /// The table whose change was begun last.
    begun: AtomicU64,
    /// The table whose change was acknowledged last.
    acknowledged: AtomicU64,
    stop: AtomicBool,
}

impl Progress {
    /// Sends requests without a pause. Each must be answered by a table that was in force at some time between.
    async fn send(&self, client: &Client, url: &str) {
        while !self.stop.load(Ordering::SeqCst) {
            let id = self.next_id.fetch_add(1, Ordering::SeqCst);
            let method = [Method::GET, Method::POST][(id % 2) as usize].clone();
            let since = self.acknowledged.load(Ordering::SeqCst);
            let headers = [("x-id", &*id.to_string())];
            let answer = client.call(method, url, &headers, "work").await.unwrap();
            let until = self.begun.load(Ordering::SeqCst);
            assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
            assert!(
                (since..=until).any(|seq| may_answer(seq, &answer.body)),
                "request {id} was answered by {}, by none of the tables {since} to {until}",
                answer.body
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_weight_changes_and_a_hundred_of_endpoints_under_load_fail_double_and_misroute_nothing()
 {
    let arrived = Arrived::default();
    let (mut stable, mut canary) = (Vec::new(), Vec::new());
    for member in 0..3 {
        stable.push(recording(STABLE[member], &arrived).await);
        canary.push(recording(CANARY[member], &arrived).await);
    }
    let at = |seq| {
        let of = |all: &[Backend]| members(seq).map(|member| all[member].address);
        let more = json!({ "canary_bp": weight(seq), "canary": side("v2", &of(&canary)) });
        table(seq, &of(&stable), more)
    };
    let proxy = Proxy::alone(&at(1)).await;
    let progress = Arc::new(Progress::default());
    progress.begun.store(1, Ordering::SeqCst);
    progress.acknowledged.store(1, Ordering::SeqCst);
    let mut clients = tokio::task::JoinSet::new();
    let h2 = Client::h2();
    let h1 = || Client::new();
    for client in [h1(), h1(), h1(), h1(), h1(), h1(), h2.clone(), h2] {
        let (progress, url) = (Arc::clone(&progress), proxy.url("/"));
        clients.spawn(async move { progress.send(&client, &url).await });
    }
    let began = Instant::now();
    for seq in 2..CHANGES + 2 {
        progress.begun.store(seq, Ordering::SeqCst);
        let (status, why) = proxy.put(&at(seq)).await;
        assert_eq!(status, StatusCode::OK, "{why}");
        progress.acknowledged.store(seq, Ordering::SeqCst);
    }
    let lasted = began.elapsed();
    progress.stop.store(true, Ordering::SeqCst);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    let sent = progress.next_id.load(Ordering::SeqCst);
    println!("{sent} requests and {CHANGES} tables in {lasted:?}");
    assert!(sent > CHANGES, "too little load to tell: {sent}");
    let arrived = std::mem::take(&mut *arrived.lock().unwrap());
    assert_eq!(arrived.len() as u64, sent, "none lost");
    assert!(arrived.values().all(|&times| times == 1), "none doubled");
    proxy.stop().await;
}

/// Tables by which all requests go to one of two releases, in turn, and what either answers.
struct Turns {
    stable: Backend,
    canary: Backend,
    client: Client,
}

impl Turns {
    async fn new() -> Self {
        Self {
            stable: Backend::named("stable").await,
            canary: Backend::named("canary").await,
            client: Client::new(),
        }
    }

    fn at(&self, seq: u64) -> RouteTable {
        let more = json!({
            "canary_bp": seq % 2 * 10_000, "canary": side("v2", &[self.canary.address])
        });
        table(seq, &[self.stable.address], more)
    }

    async fn is_by(&self, seq: u64, url: &str) -> bool {
        let answer = self.client.get(url, &[]).await.unwrap();
        answer.body == ["stable", "canary"][(seq % 2) as usize]
    }

    /// Sends requests until the first that goes by that table: how long after `began` it was answered.
    async fn first_by(&self, seq: u64, url: &str, began: Instant) -> Duration {
        while !self.is_by(seq, url).await {}
        began.elapsed()
    }
}

/// Prints the median and the longest of the times, and gives the median.
fn median(what: &str, mut times: Vec<Duration>) -> Duration {
    times.sort();
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{what}: in force after {median:?}, at most {longest:?}");
    median
}

/// The aim is 10 ms on a machine that has nothing else to do; this bound is for one that has.
const IN_FORCE_MAX: Duration = Duration::from_millis(50);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_was_put_is_in_force_at_once_and_for_every_request_after_it_was_acknowledged()
{
    let turns = Turns::new().await;
    let proxy = Proxy::alone(&turns.at(1)).await;
    let url = proxy.url("/");
    let mut times = Vec::new();
    for seq in 2..102 {
        let (next, began) = (turns.at(seq), Instant::now());
        let ((status, why), time) =
            tokio::join!(proxy.put(&next), turns.first_by(seq, &url, began));
        assert_eq!(status, StatusCode::OK, "{why}");
        times.push(time);
        for _ in 0..5 {
            assert!(turns.is_by(seq, &url).await, "by an older table than {seq}");
        }
    }
    assert!(median("put", times) < IN_FORCE_MAX);
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_from_the_controller_is_in_force_at_once() {
    let turns = Turns::new().await;
    let controller = Controller::new(Some(turns.at(1))).await;
    let state = tempfile::tempdir().unwrap();
    let proxy = Proxy::led(controller.address, state.path()).await.unwrap();
    proxy.has(1).await;
    let url = proxy.url("/");
    let mut times = Vec::new();
    for seq in 2..102 {
        let began = Instant::now();
        controller.set(turns.at(seq));
        times.push(turns.first_by(seq, &url, began).await);
        for _ in 0..5 {
            assert!(turns.is_by(seq, &url).await, "by an older table than {seq}");
        }
    }
    assert!(median("given by the controller", times) < IN_FORCE_MAX);
    proxy.stop().await;
}

/// Clients of the full load.
const LOADING: usize = 32;

/// The aim is the same; but here the request that shows it stands in line with those of the load, and all of them, clients and
/// backends as well, share two processors.
const IN_FORCE_LOADED_MAX: Duration = Duration::from_millis(250);

/// Requests without a pause until it is ended.
struct FullLoad {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: tokio::task::JoinSet<()>,
}

impl FullLoad {
    fn start(url: &str) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            answered: Arc::default(),
            clients: tokio::task::JoinSet::new(),
        };
        for _ in 0..LOADING {
            let (stop, answered) = (Arc::clone(&load.stop), Arc::clone(&load.answered));
            let (client, url) = (Client::new(), url.to_owned());
            load.clients.spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let answer = client.get(&url, &[]).await.unwrap();
                    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        load
    }

    /// How many were answered, all of them well.
    async fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(client) = self.clients.join_next().await {
            client.unwrap();
        }
        self.answered.load(Ordering::SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_full_load_a_table_is_in_force_as_soon_and_no_request_after_it_goes_by_an_older_one() {
    let turns = Turns::new().await;
    let proxy = Proxy::alone(&turns.at(1)).await;
    let url = proxy.url("/");
    let controller = Controller::new(Some(turns.at(1))).await;
    let state = tempfile::tempdir().unwrap();
    let led = Proxy::led(controller.address, state.path()).await.unwrap();
    led.has(1).await;
    let led_url = led.url("/");

    let load = FullLoad::start(&url);
    let (mut times, mut acknowledged) = (Vec::new(), Vec::new());
    for seq in 2..102 {
        let (next, began) = (turns.at(seq), Instant::now());
        let put = async {
            let (status, why) = proxy.put(&next).await;
            assert_eq!(status, StatusCode::OK, "{why}");
            began.elapsed()
        };
        let (put, time) = tokio::join!(put, turns.first_by(seq, &url, began));
        acknowledged.push(put);
        times.push(time);
        for _ in 0..5 {
            assert!(turns.is_by(seq, &url).await, "by an older table than {seq}");
        }
    }
    let answered = load.end().await;
    println!("put, {answered} requests meanwhile");
    median("acknowledged", acknowledged);
    assert!(median("put at full load", times) < IN_FORCE_LOADED_MAX);
    assert!(answered > 1_000, "too little load to tell: {answered}");

    let load = FullLoad::start(&led_url);
    let mut times = Vec::new();
    for seq in 2..102 {
        let began = Instant::now();
        controller.set(turns.at(seq));
        times.push(turns.first_by(seq, &led_url, began).await);
        for _ in 0..5 {
            assert!(
                turns.is_by(seq, &led_url).await,
                "by an older table than {seq}"
            );
        }
    }
    let answered = load.end().await;
    println!("given, {answered} requests meanwhile");
    assert!(median("given by the controller at full load", times) < IN_FORCE_LOADED_MAX);
    assert!(answered > 1_000, "too little load to tell: {answered}");
    proxy.stop().await;
    led.stop().await;
}
