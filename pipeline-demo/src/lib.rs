//! A pipeline that finds out things about tweets: something real to release, and the demo of the whole system.
//!
//! ```text
//! source ─▶ producer ─▶ bus "tweets" ─▶ feeder ─HTTP─▶ proxy ─▶ worker (stable, canary)
//!                                         │ ◀── 200 result, 422 malformed ──┘
//!                                         ▼
//!                          bus "results", "malformed" ─▶ sink ─▶ store
//! ```
//!
//! Each step is a module with a `run(config, shutdown)`, and a subcommand that calls it; so a step runs as well inside
//! another process as in one of its own. A record is never lost on the way: every step makes its output durable before it
//! commits its input, and every output has a key under which doing it twice leaves one.
//!
//! The number that shows it is `tasks_lost = tasks_produced - tasks_completed - tasks_malformed`, once the lag is 0: the
//! first is the producer's, the others are the feeder's.

pub mod source;
pub mod tweet;

pub mod bus;

pub mod producer;

pub mod ingest;
pub mod subscriber;

pub mod feeder;
pub mod replay;

pub mod features;
pub mod worker;
pub mod workflow;

pub mod origin;
pub mod sink;

pub mod jobs;
pub mod stats;

pub mod cli;
pub mod demo;
pub mod server;
pub mod telemetry;

mod backoff;
mod file_lock;
mod intake;
mod request;
mod seeded;
