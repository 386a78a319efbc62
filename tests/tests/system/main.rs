//! The whole system, with real parts: programs as they are started on any machine, sockets, files, signals.
//!
//! Needs the programs to be built (`tests/run` does it), Linux, and for a full disk the right to mount one.

#![expect(
    clippy::unwrap_used,
    reason = "clippy excuses test functions alone, not what helps them"
)]

mod bad_input;
mod demos;
mod disk_full;
mod pipeline;
mod restarts;
mod tls;
mod tokens;
mod traces;
