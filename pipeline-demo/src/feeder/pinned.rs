//! Whether the release that all tasks are to go to is there, asked by requests that are no tasks.
//!
//! What asks the proxy for the canary goes to stable where there is none, and where the canary fails: right for a tester, wrong
//! for records that are meant for the canary alone. The proxy does not say who answered; a worker does, by its name
//! ([`WORKER_RELEASE_HEADER`]). So the name that answers for the canary is asked for, and is the canary's if stable has another.

use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, Url};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::upstream::{AttemptError, Pin, RELEASE_HEADER, WORKER_RELEASE_HEADER};

/// How long what was found out holds. A canary that is promoted leaves answers of its name behind, by stable; so it is asked
/// again and again: with two requests a second, beside thousands of tasks.
const ASKED_EVERY: Duration = Duration::from_secs(1);

/// Why no task may go to the canary. Trying again does not mend it; a person does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// There is no canary, or it takes no requests.
    #[error("no canary takes requests now ({release} answers in its place)")]
    NoCanary {
        /// Who answers in its place: stable, or a canary that bears stable's name.
        release: String,
    },
    /// Nobody could tell the canary's answers from stable's.
    #[error("the answers do not say which release gave them (header {WORKER_RELEASE_HEADER})")]
    Unnamed,
}

impl PinError {
    /// What to do about it.
    #[must_use]
    pub const fn mend(&self) -> &'static str {
        match self {
            Self::NoCanary { .. } => "start one or drop --pin",
            Self::Unnamed => "give the workers a name (--release) or drop --pin",
        }
    }
}

/// What is known of the canary.
#[derive(Debug, Default)]
pub(super) struct Pinned {
    last: Mutex<Option<Heard>>,
}

/// When it was asked, and the name that answers of the canary bear.
type Heard = (Instant, Result<Arc<str>, PinError>);

impl Pinned {
    /// The name that answers of the canary bear.
    pub(super) async fn canary(
        &self,
        client: &Client,
        tasks: &Url,
    ) -> Result<Arc<str>, AttemptError> {
        // One asks, and the others wait for what it hears.
        let mut last = self.last.lock().await;
        let known = match &*last {
            Some((at, known)) if at.elapsed() < ASKED_EVERY => known.clone(),
            Some(_) | None => {
                let canary = ask(client, tasks, Pin::Canary).await?;
                let stable = ask(client, tasks, Pin::Stable).await?;
                let known = tell_apart(canary, stable);
                *last = Some((Instant::now(), known.clone()));
                known
            }
        };
        Ok(known?)
    }

    /// An answer came from another release: who is who is asked before the next task.
    pub(super) async fn doubt(&self) {
        *self.last.lock().await = None;
    }
}

/// The name of the canary, from who answered for each side. Pure.
fn tell_apart(canary: Option<String>, stable: Option<String>) -> Result<Arc<str>, PinError> {
    match (canary, stable) {
        (Some(canary), Some(stable)) if canary != stable => Ok(canary.into()),
        (Some(release), Some(_)) => Err(PinError::NoCanary { release }),
        (None, _) | (_, None) => Err(PinError::Unnamed),
    }
}

/// Who answers for that side: a worker says so also to a method that it does not take, and it is no task.
async fn ask(client: &Client, tasks: &Url, side: Pin) -> Result<Option<String>, AttemptError> {
    let asked = client
        .get(tasks.clone())
        .header(RELEASE_HEADER, side.name())
        .send();
    let answer = asked.await.map_err(AttemptError::Unanswered)?;
    if answer.status().is_server_error() {
        return Err(AttemptError::Status(answer.status()));
    }
    let release = answer.headers().get(WORKER_RELEASE_HEADER);
    Ok(release.and_then(|name| Some(name.to_str().ok()?.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_canary_is_who_answers_for_it_under_another_name_than_stable() {
        let told = |canary: &str, stable: &str| {
            let name = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            tell_apart(name(canary), name(stable))
        };
        assert_eq!(told("r2", "r1"), Ok("r2".into()));
        let release = "r1".to_owned();
        assert_eq!(told("r1", "r1"), Err(PinError::NoCanary { release }));
        for (canary, stable) in [("", ""), ("r2", ""), ("", "r1")] {
            assert_eq!(told(canary, stable), Err(PinError::Unnamed));
        }
    }
}
