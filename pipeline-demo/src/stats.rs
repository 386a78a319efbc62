//! What the store's counts say, over HTTP: for people (a page), programs (JSON, described by OpenAPI) and other sources
//! (counters of their own).
//!
//! Everything asked is bounded: ranges, rows, pages, answers in the cache, questions at once. Answers are at most some
//! seconds old, and say so.

mod api;
mod args;
mod cache;
mod counters;
mod page;
mod store;
mod types;

pub use api::{Document, Stats, router};
pub use args::{StatsArgs, run};
pub use counters::{CounterPost, NewCounter};
pub(crate) use store::fingerprint;
pub use store::{Added, StatsStore, Window};
