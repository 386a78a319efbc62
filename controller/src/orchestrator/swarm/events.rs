//! The engine's own word that something may have changed, so that a look comes at once and not at its next time.
//!
//! A hint and nothing more: what there is, is asked for all the same. A manager tells of every service and node, but of
//! containers only of its own node; so a lost stream, or a word that never came, costs a look's delay and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http_body_util::BodyExt;
use rollout::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::engine::Engine;

/// Pause before the first try to have a lost stream again; doubled with each, up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(250);

/// Longest pause between tries: without events looks are as frequent as ever, so nothing presses.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// A stream that lasted so long was well: trying to have it again begins with the shortest pause.
const WELL_AFTER: Duration = Duration::from_secs(30);

/// A stream of events that is followed for as long as this lives.
#[derive(Debug)]
pub(super) struct Events {
    told: Arc<Told>,
    following: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Told {
    changed: Notify,
    is_live: AtomicBool,
}

impl Drop for Events {
    fn drop(&mut self) {
        self.following.abort();
    }
}

impl Events {
    /// Follows the events of an engine, from the next moment on that it answers.
    pub(super) fn of(engine: Arc<Engine>) -> Self {
        let told = Arc::new(Told::default());
        let following = tokio::spawn(follow(engine, told.clone()));
        Self { told, following }
    }

    /// Waits for a word that was not heard yet.
    ///
    /// # Cancel safety
    /// Safe: a word is kept for the next call.
    pub(super) async fn changed(&self) {
        self.told.changed.notified().await;
    }

    /// Whether words come at present.
    pub(super) fn are_live(&self) -> bool {
        self.told.is_live.load(Ordering::Relaxed)
    }
}

async fn follow(engine: Arc<Engine>, told: Arc<Told>) {
    let mut pause = PAUSE_MIN;
    loop {
        let began = Instant::now();
        match engine.events().await {
            Ok((mut body, _connection)) => {
                told.is_live.store(true, Ordering::Relaxed);
                // What happened while nobody listened is seen by a look.
                told.changed.notify_one();
                while let Some(Ok(frame)) = body.frame().await {
                    // Which one it is does not matter: a look sees all.
                    if frame.is_data() {
                        told.changed.notify_one();
                    }
                }
                told.is_live.store(false, Ordering::Relaxed);
                tracing::debug!("the engine's events ended; followed again");
            }
            Err(error) => tracing::debug!(error = error.words(), "no events of the engine"),
        }
        if began.elapsed() >= WELL_AFTER {
            pause = PAUSE_MIN;
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}
