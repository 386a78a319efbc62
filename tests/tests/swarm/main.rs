//! The Swarm orchestrator on real Docker engines: the contract that all share, and what is Swarm's own.
//!
//! Needs root and Docker's engine (`tests/run` installs it): every test starts engines in networks of their own.

#![expect(
    clippy::unwrap_used,
    reason = "clippy excuses test functions alone, not what helps them"
)]

mod adopt;
mod agents;
mod by_the_readme;
mod constant_load;
mod contract;
mod crowd;
mod engines;
mod events;
mod failures;
mod managers;
mod own;
mod owners;
mod releases;
mod seats;
mod stage;
mod world;
