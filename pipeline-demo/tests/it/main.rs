//! The pipeline's steps together: real sockets, real files, real processes.

#![expect(
    clippy::unwrap_used,
    reason = "in a test, a panic is how it says that it failed"
)]

mod bus_contract;
mod commands;
mod failures;
mod handover;
mod real_broker;
mod real_tweets;
mod replay;
mod support;
