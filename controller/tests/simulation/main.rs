//! The whole controller on virtual time: the real loop, store, judge and proxy link; tasks and proxies are simulated.
//! Hours pass in milliseconds, and a crash can be put at any point.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test may panic, and names only what it is about"
)]

mod agents;
mod answers;
mod api;
mod board;
mod busy;
mod checks;
mod crashes;
mod first_step;
mod health;
mod hooks;
mod identities;
mod incidents;
mod leases;
mod orders;
mod policy;
mod stories;
mod tokens;
mod trouble;
mod watch;
mod world;
