//! The proxy on real sockets: real clients in front, real servers behind, and a controller on the other end of its
//! protocol.

#![expect(
    clippy::unwrap_used,
    reason = "a test says what went wrong by failing there"
)]

mod abuse;
mod choosing;
mod controller;
mod draining;
mod failing;
mod program;
mod reports;
mod serving;
mod tables;
mod transport;
mod world;
