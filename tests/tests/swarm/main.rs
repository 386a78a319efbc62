//! The Swarm orchestrator on real Docker engines: the contract that all share, and what is Swarm's own.
//!
//! Needs root and Docker's engine (`tests/run` installs it): every test starts engines in networks of their own.

#![expect(
    clippy::unwrap_used,
    reason = "clippy excuses test functions alone, not what helps them"
)]

mod contract;
mod engines;
mod failures;
mod own;
mod releases;
mod stage;
mod world;
