//! The proxy on real sockets: real clients in front, real servers behind, and a controller on the other end of its
//! protocol.

#![expect(
    clippy::unwrap_used,
    reason = "a test says what went wrong by failing there"
)]

mod abuse;
mod both_sides;
mod budget;
mod choosing;
mod controller;
mod copies;
mod draining;
mod expecting;
mod failing;
mod fencing;
mod gone;
mod grpc;
mod killed;
mod killed_counts;
mod limits;
mod load;
mod long_lived;
mod old;
mod program;
mod reports;
mod scale;
mod serving;
mod share;
mod streaming;
mod tables;
mod takeover;
mod traces;
mod transport;
mod upstream_h2;
mod windows;
mod world;
