//! Our own ready check: whether a task answers `GET http://ADDRESS:PORT/ready` with 2xx, apart from its image's own
//! health check. Asked from the overlay network, where proxy and tasks meet: the controller is attached to it.
//!
//! Every running task is asked by a task of ours, at its own pace, so that one that hangs delays no other and no look.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use futures::future::join_all;
use proxy_api::Endpoint;
use rollout::{Duration, ServiceName};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time;

use crate::orchestrator::ready::client;

/// How often a task is asked until it is ready: it shall get requests within a second (F23).
const UNTIL_READY: Duration = Duration::from_millis(100);

/// How often afterwards.
const WHILE_READY: Duration = Duration::from_millis(500);

/// So many in a row must fail before a ready task gets no more requests: one that refuses is out after a second, and one
/// slow answer takes none out.
const MISSES_MAX: u32 = 3;

/// How long a look waits for the first answer of tasks that are new to it: those of the controller before us are ready,
/// and shall not lose their requests for a turn.
const FIRST_ANSWER: Duration = Duration::from_millis(300);

/// What a task answered last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nothing yet.
    None,
    /// That it is ready.
    Ready,
    /// Something else, or nothing; why.
    Unready(String),
}

/// One task that is asked again and again.
#[derive(Debug)]
struct Checked {
    endpoint: Endpoint,
    path: String,
    answer: watch::Receiver<Answer>,
    asking: JoinHandle<()>,
}

impl Drop for Checked {
    fn drop(&mut self) {
        self.asking.abort();
    }
}

/// The tasks of every service that are asked.
#[derive(Debug)]
pub(super) struct ReadyChecks {
    client: reqwest::Client,
    services: Mutex<HashMap<ServiceName, HashMap<String, Checked>>>,
}

impl ReadyChecks {
    /// Checks of no task yet.
    pub(super) fn new() -> Result<Self, reqwest::Error> {
        Ok(Self {
            client: client()?,
            services: Mutex::default(),
        })
    }

    /// What these tasks of a service answered last. From now on they are asked, and no others of it.
    pub(super) async fn answers(
        &self,
        service: &ServiceName,
        tasks: &[(String, Endpoint)],
        path: &str,
    ) -> HashMap<String, Answer> {
        let mut answers = self.follow(service, tasks, path);
        let first = answers.values_mut().map(async |answer| {
            answer
                .wait_for(|answer| *answer != Answer::None)
                .await
                .is_ok()
        });
        // Whoever has not answered by then has not answered.
        drop(time::timeout(FIRST_ANSWER, join_all(first)).await);
        answers
            .into_iter()
            .map(|(id, answer)| (id, answer.borrow().clone()))
            .collect()
    }

    fn follow(
        &self,
        service: &ServiceName,
        tasks: &[(String, Endpoint)],
        path: &str,
    ) -> HashMap<String, watch::Receiver<Answer>> {
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = services.remove(service).unwrap_or_default();
        let mut now = HashMap::new();
        for (id, endpoint) in tasks {
            let known = before
                .remove(id)
                .filter(|checked| checked.endpoint == *endpoint && checked.path == path);
            let checked = known.unwrap_or_else(|| self.ask(endpoint.clone(), path.to_owned()));
            now.insert(id.clone(), checked);
        }
        let answers = now
            .iter()
            .map(|(id, checked)| (id.clone(), checked.answer.clone()))
            .collect();
        services.insert(service.clone(), now);
        answers
    }

    fn ask(&self, endpoint: Endpoint, path: String) -> Checked {
        let (sender, answer) = watch::channel(Answer::None);
        let client = self.client.clone();
        let url = format!("http://{endpoint}{path}");
        let asking = tokio::spawn(async move {
            let mut misses = 0;
            loop {
                let outcome = ask_once(&client, &url).await;
                misses = if outcome.is_ok() { 0 } else { misses + 1 };
                sender.send_if_modified(|last| {
                    let next = match outcome {
                        Ok(()) => Answer::Ready,
                        Err(_) if *last == Answer::Ready && misses < MISSES_MAX => Answer::Ready,
                        Err(why) => Answer::Unready(why),
                    };
                    let differs = *last != next;
                    *last = next;
                    differs
                });
                let is_ready = *sender.borrow() == Answer::Ready;
                time::sleep(if is_ready { WHILE_READY } else { UNTIL_READY }).await;
            }
        });
        Checked {
            endpoint,
            path,
            answer,
            asking,
        }
    }
}

async fn ask_once(client: &reqwest::Client, url: &str) -> Result<(), String> {
    let failed = |error: reqwest::Error| format!("GET {url}: {}", root(&error));
    let answer = client.get(url).send().await.map_err(failed)?;
    if answer.status().is_success() {
        Ok(())
    } else {
        Err(format!("GET {url} answers {}", answer.status()))
    }
}

/// The last cause of an error: `Connection refused`, not that a request could not be sent.
fn root(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
