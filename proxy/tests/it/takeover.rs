//! A new proxy takes the place of an old one while clients never pause.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::header::CONNECTION;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::program::{Running, run, table_file};
use crate::world::{Backend, Client, eventually, table};

/// Clients of each kind.
const CLIENTS: usize = 4;

/// Requests that are waited for before and after each change.
const SOME: u32 = 300;

/// Takeovers in a row, by proxies of so many threads; the first has two.
const TAKEOVERS: [&str; 5] = ["2", "1", "3", "2", "2"];

/// What clients have done.
#[derive(Default)]
struct Tally {
    answered: AtomicU32,
    failures: Mutex<Vec<String>>,
    stop: AtomicBool,
}

impl Tally {
    async fn more(&self, requests: u32) {
        let enough = self.answered.load(Ordering::SeqCst) + requests;
        eventually("more answers", async || {
            (self.answered.load(Ordering::SeqCst) >= enough).then_some(())
        })
        .await;
    }

    fn failed(&self, what: &str, error: &dyn std::fmt::Debug) {
        let mut failures = self.failures.lock().unwrap();
        failures.push(format!("{what}: {error:?}"));
    }

    /// Sends requests on one connection, until the answer says that it is the last there or the connection ends before
    /// the next. Nothing is ever sent twice.
    async fn connection(&self, address: &str, requests_max: usize) {
        let kind = if requests_max > 1 { "kept" } else { "new" };
        let failed = |what: &str, error: &dyn std::fmt::Debug| {
            self.failed(&format!("{kind} connection, {what}"), error);
        };
        let stream = match TcpStream::connect(address).await {
            Ok(stream) => stream,
            Err(error) => return failed("connect", &error),
        };
        let (mut sender, driver) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(driver);
        for _ in 0..requests_max {
            if self.stop.load(Ordering::SeqCst) || sender.ready().await.is_err() {
                return;
            }
            let request = Request::get("/").header("host", address);
            let request = request.body(Empty::<Bytes>::new()).unwrap();
            let response = match sender.send_request(request).await {
                Ok(response) => response,
                Err(error) => return failed("request", &error),
            };
            let (head, body) = response.into_parts();
            match body.collect().await {
                Ok(_) if head.status == StatusCode::OK => {}
                other => return failed("answer", &(head.status, other)),
            }
            self.answered.fetch_add(1, Ordering::SeqCst);
            let last = head.headers.get(CONNECTION);
            if last.is_some_and(|value| value == "close") {
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_takeover_under_load_fails_no_request_of_kept_or_new_connections() {
    let backend = Backend::named("served").await;
    let directory = tempfile::tempdir().unwrap();
    let file = table_file(directory.path(), &table(1, &[backend.address], json!({})));
    let options = ["--routes", &file, "--threads"];
    let mut old = Running::start(directory.path(), &[&options[..], &["2"]].concat()).await;
    let address = old.listen.clone();
    let tally = Arc::new(Tally::default());
    let mut clients = JoinSet::new();
    for number in 0..2 * CLIENTS {
        let (tally, address) = (Arc::clone(&tally), address.clone());
        // Half of them keep their connection as long as they may, the others make a new one for each request.
        let requests_max = if number < CLIENTS { usize::MAX } else { 1 };
        clients.spawn(async move {
            while !tally.stop.load(Ordering::SeqCst) {
                tally.connection(&address, requests_max).await;
            }
        });
    }
    for _ in 0..2 {
        let (tally, url, client) = (Arc::clone(&tally), old.url("/"), Client::h2());
        clients.spawn(async move {
            while !tally.stop.load(Ordering::SeqCst) {
                match client.get(&url, &[]).await {
                    Ok(answer) if answer.status == StatusCode::OK => {
                        tally.answered.fetch_add(1, Ordering::SeqCst);
                    }
                    // Not sent: this library gives it back when it finds that the connection takes no more requests,
                    // and the next connection is for it to choose (RFC 9113, 6.8).
                    Err(error) if error.contains("GoAway") && error.contains("NO_ERROR") => {}
                    other => tally.failed("h2", &other),
                }
            }
        });
    }
    for threads in TAKEOVERS {
        tally.more(SOME).await;
        let own = tempfile::tempdir().unwrap();
        let options = [&options[..], &[threads, "--takeover"]].concat();
        let new = Running::start_at(&address, own.path(), &options).await;
        new.logs("took over the sockets", 1).await;
        tally.more(SOME).await;
        old.signal(Signal::SIGTERM);
        assert_eq!(old.ended().await, Some(0));
        old = new;
    }
    tally.more(SOME).await;
    tally.stop.store(true, Ordering::SeqCst);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    let answered = tally.answered.load(Ordering::SeqCst);
    let failures = tally.failures.lock().unwrap();
    println!("{answered} answers, {} failures", failures.len());
    assert!(failures.is_empty(), "{failures:#?}");
    assert_eq!(backend.hits(), answered, "none doubled");
}

#[tokio::test]
async fn a_second_proxy_that_is_not_told_to_take_over_is_refused() {
    let backend = Backend::named("served").await;
    let directory = tempfile::tempdir().unwrap();
    let file = table_file(directory.path(), &table(1, &[backend.address], json!({})));
    let first = Running::start(directory.path(), &["--routes", &file]).await;
    let ports = ["--listen", &first.listen, "--admin", "127.0.0.1:0"];
    let (code, log) = run(&[&ports[..], &["--routes", &file]].concat()).await;
    assert_eq!(code, Some(1), "{log}");
    assert!(
        log.contains(&first.listen) && log.contains("--listen changes it"),
        "{log}"
    );
    let answer = Client::new().get(&first.url("/"), &[]).await.unwrap();
    assert_eq!(answer.body, "served", "the first serves on");
}

#[tokio::test]
async fn a_proxy_that_finds_nobody_to_take_over_starts_all_the_same_and_says_so() {
    let backend = Backend::named("served").await;
    let directory = tempfile::tempdir().unwrap();
    let file = table_file(directory.path(), &table(1, &[backend.address], json!({})));
    let options = ["--routes", &file, "--takeover"];
    let proxy = Running::start(directory.path(), &options).await;
    proxy.logs("no sockets to take over", 1).await;
    let answer = Client::new().get(&proxy.url("/"), &[]).await.unwrap();
    assert_eq!(answer.body, "served");
}
