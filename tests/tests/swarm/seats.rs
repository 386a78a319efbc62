//! How much of the machine a test takes: engines and loads of all tests together have to leave two cores time to answer.

use std::sync::{Condvar, Mutex, PoisonError};

/// All there are: an engine with a load of its own takes about a sixth of two cores.
const SEATS: u32 = 6;

static ROOM: Room = Room {
    state: Mutex::new(State {
        free: SEATS,
        next: 0,
        served: 0,
    }),
    changed: Condvar::new(),
};

struct Room {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    free: u32,
    /// The number that who comes next draws.
    next: u64,
    /// Whose turn it is. In the order in which they came: who needs many would wait for ever for those who need few.
    served: u64,
}

/// Some seats, until they are dropped.
#[derive(Debug)]
pub(crate) struct Seats(u32);

impl Seats {
    /// Waits until so many are free. Who has some already may wait for more only if nobody else does so.
    pub(crate) fn take(count: u32) -> Self {
        assert!(count <= SEATS, "there are {SEATS} seats");
        let mut state = ROOM.state.lock().unwrap_or_else(PoisonError::into_inner);
        let number = state.next;
        state.next += 1;
        let waits = |state: &mut State| state.served != number || state.free < count;
        let waited = ROOM.changed.wait_while(state, waits);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.free -= count;
        state.served += 1;
        ROOM.changed.notify_all();
        Self(count)
    }
}

impl Drop for Seats {
    fn drop(&mut self) {
        let mut state = ROOM.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.free += self.0;
        ROOM.changed.notify_all();
    }
}
