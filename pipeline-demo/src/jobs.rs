//! Periodic jobs: folding counts, removing old rows, comparing the store with the bus.
//!
//! Every node may run the same list. A run belongs to one of them: in PostgreSQL by an advisory lock, which ends with its
//! connection; in SQLite by a lease. What a node had begun and did not end is taken over. Jobs start at times of their own
//! (a hash of the name), each run has a deadline, and each run is a row that says when it was due, began and ended.

mod args;
mod metrics;
mod runner;
mod schedule;
pub mod spec;
pub(crate) mod store;
mod tasks;

pub use args::{JobsArgs, run};
pub use runner::Runner;
pub use schedule::Schedule;
pub use spec::{JobSpec, Task};
pub use store::{Begun, JobRun, JobStore, Lock, Outcome, RunPlace};
pub use tasks::Tasks;
