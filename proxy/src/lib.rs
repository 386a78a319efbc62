//! The data plane: a weighted reverse proxy that reports what became of every request.
//!
//! It serves from the last route table it knows and asks nobody while it serves a request. A table comes from a file
//! (alone) or from a controller (with its last table on disk); reports go back to the controller. In reading order:
//! [`config`] and [`app`] start and stop it; `routes` holds the table and `pick` chooses from it; `forward` takes a
//! request to an upstream, with `retry` saying what may be tried again; `signals` counts what became of it, in epochs, and
//! `kinds` of what kinds answers are;
//! `link` talks with the controller, `admin` with people and Prometheus; `drain` accepts and lets go of clients, `session`
//! serves one of them, and `stream` and [`tls`] are its bytes. `passage` is a request's span in a trace, `exemplars` lead from
//! `/metrics` to it.
//!
//! What it leaves to others: which weights are right, and whether a release is good.

pub mod app;
pub mod config;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod health;
pub mod pick;
pub mod tls;
pub mod token;

mod access_log;
mod admin;
mod body;
mod drain;
mod durable;
mod exemplars;
mod forward;
mod frames;
mod handover;
mod headers;
mod kinds;
mod link;
mod openmetrics;
mod passage;
mod refusal;
mod retry;
mod routes;
mod session;
mod signals;
mod socket;
mod stream;
mod telemetry;
mod upstream;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, also after another thread panicked while it held the lock: what our locks guard is whole between any two
/// statements that could panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error with what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
