//! Talking back: what a rollout does is told to GitLab, to chats and to webhooks, until each has acknowledged it.
//!
//! [`announce`] says who is told what when a rollout moves; the loop saves that with the move. Here it is told: in order for
//! each rollout and destination, with growing pauses while somebody is away, never given up before a week. A crash or a
//! broken connection may leave open whether something was done there; so whatever makes a record looks for it first. Only a
//! chat cannot be asked what it has: it may hear a line twice, rather than never.

pub mod announce;
pub mod courier;
pub mod letter;
mod pause;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::future::try_join_all;
use rollout::{Duration, RolloutId, Timestamp};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use announce::{Audience, announce};
pub use courier::{Courier, Reach, Undelivered};
pub use letter::{Letter, What};
pub use pause::Pace;

use crate::clock::Clock;
use crate::reconciler::chain;
use crate::store::StoreError;
use crate::store::outbox::{Destination, Message, Outbox, Settled};
use pause::Pause;

/// Messages that are read at once, for one destination.
const BATCH_MAX: u32 = 1_000;

/// Longest time between two looks into the outbox. A new message wakes the notifier; this is for what it did not hear.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// How long a message is tried. A token that ran out, or a GitLab that is moved, is noticed within a week of working days.
const AGE_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// How often it is tried at the least: about an hour. A clock that is a week ahead for a moment ends no message.
const ATTEMPTS_MIN: u32 = 20;

/// Longest wait for one message to be told; its requests have limits of their own.
const TELL_MAX: Duration = Duration::from_secs(10 * 60);

/// Tells what is in the outbox.
#[derive(Debug, Clone)]
pub struct Notifier {
    /// Where the outbox is.
    pub store: Arc<dyn Outbox>,
    /// Our term: a controller that was replaced writes nothing.
    pub term: u64,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Who tells.
    pub courier: Arc<dyn Courier>,
    /// Changes when there is a new message.
    pub wake: watch::Receiver<u64>,
    /// How long it pauses after a failure.
    pub pace: Pace,
}

/// What keeps messages of one destination waiting.
#[derive(Debug, Default)]
struct Lane {
    /// All of them.
    away: Pause,
    /// About whom the message was that began it.
    doubted: Option<RolloutId>,
    /// Those of some rollouts.
    held: BTreeMap<RolloutId, Pause>,
}

impl Lane {
    /// When what is about this rollout may be told, by the clock's elapsed time.
    fn free_from(&self, rollout: &RolloutId) -> Duration {
        let held = self.held.get(rollout).map(Pause::until);
        held.unwrap_or_default().max(self.away.until())
    }
}

impl Notifier {
    /// Tells until told to stop. What was not told then is told by the next controller.
    ///
    /// # Errors
    /// Another controller took over.
    pub async fn run(self, stop: CancellationToken) -> Result<(), StoreError> {
        let lanes = Destination::ALL.map(|destination| self.clone().lane(destination, &stop));
        try_join_all(lanes).await.map(drop)
    }

    async fn lane(
        mut self,
        destination: Destination,
        stop: &CancellationToken,
    ) -> Result<(), StoreError> {
        let mut lane = Lane::default();
        loop {
            self.wake.mark_unchanged();
            let until = match self.tell_all(destination, &mut lane, stop).await {
                Ok(until) => until,
                Err(error @ StoreError::Fenced { .. }) => return Err(error),
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "the outbox cannot be used; tried again");
                    self.clock.elapsed() + LOOK_EVERY
                }
            };
            let wait = until.saturating_sub(self.clock.elapsed()).min(LOOK_EVERY);
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
                changed = self.wake.changed() => if changed.is_err() {
                    // The loop has ended; so will we.
                    stop.cancelled().await;
                    return Ok(());
                },
            }
        }
    }

    /// Tells everything that may be told now: when to look again, by the clock's elapsed time.
    async fn tell_all(
        &self,
        destination: Destination,
        lane: &mut Lane,
        stop: &CancellationToken,
    ) -> Result<Duration, StoreError> {
        let mut messages = self.store.waiting(destination, BATCH_MAX).await?;
        let waiting: BTreeSet<&RolloutId> = messages.iter().map(|one| &one.rollout).collect();
        lane.held.retain(|rollout, _| waiting.contains(rollout));
        // First those that nothing is known against: one of them ends a pause of all that sick ones began. The sort is stable,
        // so what is about one rollout keeps its order.
        messages.sort_by_key(|one| lane.held.contains_key(&one.rollout));
        // What comes after a message that waits waits too, if it is about the same rollout.
        let mut behind: BTreeSet<&RolloutId> = BTreeSet::new();
        // When the first of those that wait may be told.
        let mut soonest: Option<Duration> = None;
        for message in &messages {
            if stop.is_cancelled() {
                break;
            }
            let from = lane.free_from(&message.rollout);
            if from > self.clock.elapsed() || behind.contains(&message.rollout) {
                behind.insert(&message.rollout);
                soonest = Some(soonest.map_or(from, |soonest| soonest.min(from)));
                continue;
            }
            let outcome = tokio::select! {
                () = stop.cancelled() => break,
                outcome = self.tell(message) => outcome,
            };
            let undelivered = match outcome {
                Ok(remote) => {
                    lane.away.end();
                    lane.held.remove(&message.rollout);
                    tracing::debug!(rollout = %message.rollout, destination = destination.as_str(), topic = message.topic, "told");
                    let settled = Settled::Told { remote };
                    self.store.settle(self.term, message, &settled).await?;
                    continue;
                }
                Err(undelivered) => undelivered,
            };
            let settled = self.judge(message, undelivered, lane);
            self.store.settle(self.term, message, &settled).await?;
            if matches!(settled, Settled::Failed { .. }) {
                behind.insert(&message.rollout);
                let from = lane.free_from(&message.rollout);
                soonest = Some(soonest.map_or(from, |soonest| soonest.min(from)));
            }
        }
        if messages.is_empty() {
            lane.away.end();
        }
        // A pause may be over by now, where saving what failed took longer: then it is time to look again, not to rest.
        Ok(soonest.unwrap_or_else(|| self.clock.elapsed() + LOOK_EVERY))
    }

    async fn tell(&self, message: &Message) -> Result<Option<String>, Undelivered> {
        let telling = self.courier.tell(message);
        match tokio::time::timeout(TELL_MAX, telling).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Undelivered {
                reach: Reach::Everything,
                after: None,
                words: format!("not told within {TELL_MAX:?}"),
            }),
        }
    }

    /// What follows from a failure: which messages wait, how long, or that this one is given up.
    fn judge(&self, message: &Message, undelivered: Undelivered, lane: &mut Lane) -> Settled {
        let Undelivered {
            reach,
            after,
            words: error,
        } = undelivered;
        let (rollout, topic) = (&message.rollout, &message.topic);
        let destination = message.destination.as_str();
        let now = self.clock.elapsed();
        let is_old =
            message.attempts >= ATTEMPTS_MIN && age(message.at, self.clock.now()) > AGE_MAX;
        if reach == Reach::Never || is_old {
            tracing::error!(%rollout, destination, topic, error, "given up: nobody is told");
            return Settled::Dead { error };
        }
        // What seems to be everybody's trouble may be that of this rollout alone. So another one is tried before it, and ends
        // the pause of all if it is told; and that pause grows only if another one meets the same.
        let after = match reach {
            Reach::Everything => {
                if lane.doubted.as_ref() == Some(rollout) {
                    lane.away.end();
                }
                lane.doubted = Some(rollout.clone());
                let away = lane.away.begin(now, after, self.pace);
                Some(away + self.pace.first)
            }
            Reach::Rollout | Reach::Never => after,
        };
        let held = lane.held.entry(rollout.clone()).or_default();
        let wait = held.begin(now, after, self.pace);
        tracing::warn!(%rollout, destination, topic, error, ?wait, "not told; tried again");
        Settled::Failed { error }
    }
}

/// How long a message waits; the time of day may jump, and then it waits longer.
fn age(at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(at)).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests;
