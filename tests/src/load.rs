//! A steady stream of requests through the proxy, and what became of each.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::Client;
use reqwest::header::{HOST, HeaderMap, HeaderValue};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// Connections that are kept and used in turn. A task takes about 20 ms, so 16 carry 500 a second.
const CONNECTIONS: u32 = 16;

/// Failures that are kept in words; the others are only counted.
const FAILURES_SHOWN: usize = 20;

/// Longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// Requests that go on until [`Load::end`]. Two thirds are POSTs with an `Idempotency-Key`, one third are GETs.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
}

/// What became of all requests.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Answers with 200.
    pub answered: u64,
    /// Everything else.
    pub failed: u64,
    /// The first failures, in words.
    pub failures: Vec<String>,
    /// Tasks done, by the release that did them.
    pub by_release: BTreeMap<String, u64>,
}

#[derive(Debug)]
struct Shared {
    began: Instant,
    stop: AtomicBool,
    number: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
    told: Mutex<(Vec<String>, BTreeMap<String, u64>)>,
}

impl Load {
    /// Sends `rate` requests a second to the proxy at `address`.
    ///
    /// # Panics
    /// No HTTP client can be made.
    #[must_use]
    pub fn start(address: SocketAddr, rate: u32) -> Self {
        Self::start_for(address, None, rate)
    }

    /// The same for the service that the proxy finds by this host.
    ///
    /// # Panics
    /// No HTTP client can be made.
    #[must_use]
    pub fn start_for(address: SocketAddr, host: Option<&str>, rate: u32) -> Self {
        let mut headers = HeaderMap::new();
        if let Some(host) = host {
            let host = HeaderValue::from_str(host).expect("a host is a header's value");
            headers.insert(HOST, host);
        }
        let shared = Arc::new(Shared {
            began: Instant::now(),
            stop: AtomicBool::new(false),
            number: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            told: Mutex::default(),
        });
        let mut clients = JoinSet::new();
        for _ in 0..CONNECTIONS {
            // One client each: a client of its own keeps one connection, as a user does.
            let client = Client::builder()
                .no_proxy()
                .timeout(ANSWER_MAX)
                .pool_max_idle_per_host(1)
                .default_headers(headers.clone())
                .build();
            let client = client.expect("a client without TLS and proxies can be made");
            let every = Duration::from_secs(1) * CONNECTIONS / rate;
            clients.spawn(stream(
                Arc::clone(&shared),
                client,
                format!("http://{address}"),
                every,
            ));
        }
        Self { shared, clients }
    }

    /// What became of the requests so far.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        let (failures, by_release) = self
            .shared
            .told
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        Outcome {
            answered: self.shared.answered.load(Ordering::SeqCst),
            failed: self.shared.failed.load(Ordering::SeqCst),
            failures,
            by_release,
        }
    }

    /// Stops, waits for the answers that are due, and says what became of all.
    pub async fn end(mut self) -> Outcome {
        self.shared.stop.store(true, Ordering::SeqCst);
        while self.clients.join_next().await.is_some() {}
        self.outcome()
    }
}

async fn stream(shared: Arc<Shared>, client: Client, base: String, every: Duration) {
    let mut due = interval(every);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !shared.stop.load(Ordering::SeqCst) {
        due.tick().await;
        let number = shared.number.fetch_add(1, Ordering::SeqCst);
        let outcome = if number.is_multiple_of(3) {
            look(&client, &base).await
        } else {
            task(&client, &base, number).await
        };
        let mut told = shared.told.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(release) => {
                shared.answered.fetch_add(1, Ordering::SeqCst);
                if let Some(release) = release {
                    *told.1.entry(release).or_default() += 1;
                }
            }
            Err(words) => {
                shared.failed.fetch_add(1, Ordering::SeqCst);
                if told.0.len() < FAILURES_SHOWN {
                    let at = shared.began.elapsed().as_secs_f64();
                    told.0.push(format!("{at:.2} s, request {number}: {words}"));
                }
            }
        }
    }
}

/// A GET that every worker answers.
async fn look(client: &Client, base: &str) -> Result<Option<String>, String> {
    let answer = client
        .get(format!("{base}/live"))
        .send()
        .await
        .map_err(words)?;
    body(answer).await.map(|_| None)
}

/// A task as the feeder sends it; the release that did it.
async fn task(client: &Client, base: &str, number: u64) -> Result<Option<String>, String> {
    let text = format!("What a lovely day number {number} #friday");
    let tweet =
        json!({ "data": { "id": (number + 1).to_string(), "author_id": "7", "text": text } });
    let request = client
        .post(format!("{base}/tasks"))
        .header("idempotency-key", (number + 1).to_string())
        .json(&tweet);
    let text = body(request.send().await.map_err(words)?).await?;
    let result: Value =
        serde_json::from_str(&text).map_err(|error| format!("{error} in {text}"))?;
    let release = result["release"]
        .as_str()
        .ok_or_else(|| format!("no release in {text}"))?;
    Ok(Some(release.to_owned()))
}

async fn body(answer: reqwest::Response) -> Result<String, String> {
    let status = answer.status();
    let text = answer.text().await.map_err(words)?;
    if status == 200 {
        Ok(text)
    } else {
        Err(format!("answered {status}: {text}"))
    }
}

/// An error with its causes.
fn words(error: reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    text
}
