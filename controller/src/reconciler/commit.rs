//! What was decided, saved before it is acted upon.

use rollout::Phase;
use rollout::judge::Baseline;

use super::service::Service;
use super::{Reconciler, chain};
use crate::notifier::announce;
use crate::store::{Change, NewEvent, NewMessage, Saved, StoreError};

impl Reconciler {
    /// Saves a change and makes it true in memory. If it cannot be saved and `backwards` is allowed, what only goes back
    /// to stable becomes true all the same, and is saved as soon as that is possible. The inner result says whether it
    /// was saved.
    pub(super) async fn commit(
        &mut self,
        mut change: Change,
        backwards: bool,
    ) -> Result<Result<(), StoreError>, StoreError> {
        let messages = self.announcements(&change);
        change.messages = self.unsaved.messages.clone();
        change.messages.extend(messages);
        change
            .events
            .splice(0..0, self.unsaved.events.iter().cloned());
        for waiting in &self.unsaved.rollouts {
            if !change
                .rollouts
                .iter()
                .any(|saved| saved.rollout.id == waiting.rollout.id)
            {
                change.rollouts.push(waiting.clone());
            }
        }
        match self.store.save(self.term, self.clock.now(), &change).await {
            Ok(()) => {
                self.unsaved = Change::default();
                self.save_trouble = None;
                if change.incidents.is_some() {
                    self.incidents.was_saved();
                }
                self.fleet.acknowledge(&change.marks);
                if !change.messages.is_empty() {
                    self.mail
                        .send_modify(|count| *count = count.wrapping_add(1));
                }
                self.take_in(change);
                Ok(Ok(()))
            }
            Err(error @ StoreError::Fenced { .. }) => Err(error),
            Err(error) => {
                let words = chain(&error);
                let since = self
                    .save_trouble
                    .take()
                    .map_or_else(|| self.clock.elapsed(), |(_, since)| since);
                self.save_trouble = Some((words.clone(), since));
                tracing::error!(
                    error = words,
                    "not saved; only rollbacks go ahead until it can be"
                );
                if backwards {
                    let goes_back = |saved: &Saved| {
                        matches!(
                            saved.rollout.phase,
                            Phase::RollingBack { .. } | Phase::RolledBack { .. }
                        )
                    };
                    let rollouts: Vec<Saved> =
                        change.rollouts.into_iter().filter(goes_back).collect();
                    let tells = |event: &NewEvent| {
                        // Verdicts come again with the blocks, which were not acknowledged.
                        event.kind != "verdict"
                            && rollouts
                                .iter()
                                .any(|saved| event.rollout.as_ref() == Some(&saved.rollout.id))
                    };
                    let events = change.events.into_iter().filter(tells).collect();
                    let is_about = |message: &NewMessage| {
                        rollouts
                            .iter()
                            .any(|saved| message.rollout == saved.rollout.id)
                    };
                    let messages = change.messages.into_iter().filter(is_about).collect();
                    self.unsaved = Change {
                        events,
                        messages,
                        rollouts,
                        ..Change::default()
                    };
                    self.take_in(Change {
                        rollouts: self.unsaved.rollouts.clone(),
                        ..Change::default()
                    });
                }
                Ok(Err(error))
            }
        }
    }

    /// What others are to be told of a change, while the state before it is still in memory.
    fn announcements(&self, change: &Change) -> Vec<NewMessage> {
        let started = change.started.iter();
        let mut messages: Vec<NewMessage> = started
            .flat_map(|saved| announce(&self.audience, None, saved))
            .collect();
        for saved in &change.rollouts {
            let service = self.services.get(&saved.rollout.service);
            let mut open = service.into_iter().flat_map(|service| &service.open);
            let before = open.find(|open| open.rollout.id == saved.rollout.id);
            // One that has ended already has been told of.
            if before.is_some() {
                messages.extend(announce(&self.audience, before, saved));
            }
        }
        messages
    }

    pub(super) fn take_in(&mut self, change: Change) {
        for slot in change.locks {
            self.locks.put(slot);
        }
        for saved in change.started {
            let name = saved.rollout.service.clone();
            let service = self
                .services
                .entry(name)
                .or_insert_with(|| Service::new(saved.rollout.spec.clone()));
            self.delivery.began(&saved.rollout);
            service.open.push(saved);
        }
        for saved in change.rollouts {
            let Some(service) = self.services.get_mut(&saved.rollout.service) else {
                continue;
            };
            let Some(at) = service
                .open
                .iter()
                .position(|open| open.rollout.id == saved.rollout.id)
            else {
                continue;
            };
            let before = &service.open[at].rollout;
            self.delivery
                .moved(before, &saved.rollout, self.clock.elapsed());
            if saved.rollout.phase.is_ended() {
                service.open.remove(at);
                if saved.rollout.phase == Phase::Promoted {
                    service.spec = saved.rollout.spec.clone();
                    // Another release is stable now: what was known of the one before says little of it.
                    service.baseline = Baseline::default();
                }
                service.last = Some(saved);
            } else {
                service.open[at] = saved;
            }
        }
    }
}
