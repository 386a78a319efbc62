//! How many tasks workers have in hand. Pure but for the wake-up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Places for tasks that no worker has answered yet.
#[derive(Debug, Default)]
pub(super) struct Slots {
    busy: AtomicUsize,
    freed: Notify,
}

impl Slots {
    /// Takes a place until it is dropped. How many there are is up to the caller.
    pub(super) fn take(self: &Arc<Self>) -> Slot {
        self.busy.fetch_add(1, Ordering::AcqRel);
        Slot(Arc::clone(self))
    }

    /// Places that are taken.
    pub(super) fn busy(&self) -> usize {
        self.busy.load(Ordering::Acquire)
    }

    /// Waits until a place was given back since the last time.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(super) async fn freed(&self) {
        self.freed.notified().await;
    }
}

/// A place that is taken.
#[derive(Debug)]
pub(super) struct Slot(Arc<Slots>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::AcqRel);
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_place_that_is_given_back_is_told_also_to_who_asks_later() {
        let slots = Arc::new(Slots::default());
        let (one, other) = (slots.take(), slots.take());
        assert_eq!(slots.busy(), 2);
        drop(one);
        slots.freed().await;
        assert_eq!(slots.busy(), 1);
        drop(other);
        slots.freed().await;
        assert_eq!(slots.busy(), 0);
    }
}
