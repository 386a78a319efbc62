//! Users of every kind, who count: with connections that are kept and new ones, with answers that take a minute.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// Users with one request at a time. Every third opens a connection for each.
const USERS: u32 = 60;

/// Between two of those whose answers take [`LONG`].
const LONG_EVERY: Duration = Duration::from_secs(2);

/// How long such an answer takes.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Longest wait for any answer: the longest of them, and as much again as anything may take here.
const ANSWER_MAX: Duration = Duration::from_secs(90);

/// Failures that are kept in words; the others are only counted.
const FAILURES_SHOWN: usize = 200;

/// Requests that go on until [`Crowd::end`]. All of them may be repeated: every other is a POST with an
/// `Idempotency-Key`. Each has a name of its own, which the task that answers it writes down.
pub(crate) struct Crowd {
    shared: Arc<Shared>,
    users: JoinSet<()>,
}

/// What became of all requests.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    /// Answers with 200 that came whole.
    pub(crate) answered: u64,
    /// Of these, those that took a minute.
    pub(crate) long: u64,
    /// Everything else.
    pub(crate) failed: u64,
    /// The first failures: when each was asked, since the crowd came, and what became of it.
    pub(crate) failures: Vec<(Duration, String)>,
    /// Requests a second, while they were made.
    pub(crate) rate: f64,
}

struct Shared {
    began: Instant,
    address: &'static str,
    stop: AtomicBool,
    answered: AtomicU64,
    long: AtomicU64,
    failed: AtomicU64,
    failures: Mutex<Vec<(Duration, String)>>,
}

impl Crowd {
    /// `rate` requests a second to the proxy at `address`, and, if so wished, those that take a minute.
    pub(crate) fn start(address: &'static str, rate: u32, with_long: bool) -> Self {
        let shared = Arc::new(Shared {
            began: Instant::now(),
            address,
            stop: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            long: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            failures: Mutex::default(),
        });
        let mut users = JoinSet::new();
        for number in 0..USERS {
            users.spawn(user(shared.clone(), number, rate));
        }
        if with_long {
            users.spawn(long(shared.clone()));
        }
        Self { shared, users }
    }

    /// One more request, whose answer is waited for at the end.
    pub(crate) fn ask(&mut self, kind: &'static str, number: u32) {
        let shared = self.shared.clone();
        self.users.spawn(async move {
            let path = format!("{kind}/{}/{kind}-more-{number}", LONG.as_secs());
            let asked = Instant::now();
            let outcome = ask(&client(0), shared.address, &path, false).await;
            shared.note(&path, asked, outcome, true);
        });
    }

    /// How long it has been there.
    pub(crate) fn age(&self) -> Duration {
        self.shared.began.elapsed()
    }

    /// What became of the requests so far.
    pub(crate) fn outcome(&self) -> Outcome {
        let read = |count: &AtomicU64| count.load(Ordering::SeqCst);
        let answered = read(&self.shared.answered);
        let failures = &self.shared.failures;
        Outcome {
            answered,
            long: read(&self.shared.long),
            failed: read(&self.shared.failed),
            failures: failures
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
            rate: answered as f64 / self.shared.began.elapsed().as_secs_f64(),
        }
    }

    /// Stops, waits for the answers that are due, and says what became of all.
    pub(crate) async fn end(mut self) -> Outcome {
        self.shared.stop.store(true, Ordering::SeqCst);
        let rate = self.outcome().rate;
        while let Some(ended) = self.users.join_next().await {
            ended.unwrap();
        }
        Outcome {
            rate,
            ..self.outcome()
        }
    }
}

impl Shared {
    fn note(&self, path: &str, asked: Instant, outcome: Result<(), String>, is_long: bool) {
        match outcome {
            Ok(()) => {
                self.answered.fetch_add(1, Ordering::SeqCst);
                self.long.fetch_add(is_long.into(), Ordering::SeqCst);
            }
            Err(words) => {
                self.failed.fetch_add(1, Ordering::SeqCst);
                let took = asked.elapsed();
                let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
                if failures.len() < FAILURES_SHOWN {
                    let words = format!("{path}: {words}, after {took:?}");
                    failures.push((asked.duration_since(self.began), words));
                }
            }
        }
    }
}

/// With so many connections kept when nothing is asked.
fn client(kept: usize) -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .pool_max_idle_per_host(kept)
        .timeout(ANSWER_MAX)
        .build()
        .unwrap()
}

async fn user(shared: Arc<Shared>, user: u32, rate: u32) {
    let client = client(usize::from(!user.is_multiple_of(3)));
    let mut due = interval(Duration::from_secs(1) * USERS / rate);
    // What was late is made up for: the rate is that of the whole.
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut number = 0;
    while !shared.stop.load(Ordering::SeqCst) {
        due.tick().await;
        number += 1;
        let path = format!("work/{user}-{number}");
        let asked = Instant::now();
        let outcome = ask(&client, shared.address, &path, number % 2 == 0).await;
        shared.note(&path, asked, outcome, false);
    }
}

async fn long(shared: Arc<Shared>) {
    let mut due = interval(LONG_EVERY);
    let mut asked = JoinSet::new();
    let mut number = 0;
    while !shared.stop.load(Ordering::SeqCst) {
        due.tick().await;
        number += 1;
        let shared = shared.clone();
        asked.spawn(async move {
            let path = format!("drip/{}/long-{number}", LONG.as_secs());
            let asked = Instant::now();
            let outcome = ask(&client(0), shared.address, &path, false).await;
            shared.note(&path, asked, outcome, true);
        });
    }
    while let Some(ended) = asked.join_next().await {
        ended.unwrap();
    }
}

async fn ask(
    client: &reqwest::Client,
    address: &str,
    path: &str,
    posts: bool,
) -> Result<(), String> {
    let url = format!("http://{address}/{path}");
    let request = if posts {
        client.post(url).header("idempotency-key", path)
    } else {
        client.get(url)
    };
    let answer = request.send().await.map_err(|error| words(&error))?;
    let status = answer.status();
    let text = answer.text().await.map_err(|error| words(&error))?;
    if status == 200 {
        Ok(())
    } else {
        Err(format!("answered {status}: {text}"))
    }
}

/// An error with its causes.
fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    text
}

/// How often each request was answered with 200, by what the tasks wrote down in this folder.
pub(crate) fn counted(folder: &Path) -> HashMap<String, u32> {
    let mut counted = HashMap::new();
    for name in of_tasks(folder).into_values().flatten() {
        *counted.entry(name).or_default() += 1;
    }
    counted
}

/// The requests that each task answered, by its id.
pub(crate) fn of_tasks(folder: &Path) -> HashMap<String, Vec<String>> {
    let files = fs::read_dir(folder).unwrap().map(Result::unwrap);
    let read = |file: fs::DirEntry| {
        let text = fs::read_to_string(file.path()).unwrap();
        let names = text.lines().map(str::to_owned).collect();
        (file.file_name().into_string().unwrap(), names)
    };
    files.map(read).collect()
}
