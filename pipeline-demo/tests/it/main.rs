//! The pipeline's steps together: real sockets, real files, real processes.

#![expect(
    clippy::unwrap_used,
    reason = "in a test, a panic is how it says that it failed"
)]

mod bus_contract;
mod commands;
mod directory;
mod failures;
mod handover;
mod ingest;
mod periodic_jobs;
mod pinned;
mod postgres;
mod real_broker;
mod real_tweets;
mod replay;
mod sinks;
mod statistics;
mod storage_contract;
mod support;
mod unwilling;
mod workflow;
mod x_server;
mod x_stream;
mod x_tls;
