//! For tests alone: fakes of what the controller needs of the world, and the contract that each fake shares with the
//! real adapter, so that the fake stays honest.
//!
//! - [`FakeClock`]: time that passes, and a time of day, set apart from each other;
//! - [`FakeOrchestrator`]: tasks in memory that do as they are told;
//! - [`FakeMetricsSource`]: a source of metrics that answers as it is told, fails, or never answers;
//! - [`gitlab`]: a server that answers as GitLab does, and fails as it does;
//! - [`contract`]: what every orchestrator must do, run for the fake here and for child processes in `tests/`;
//! - [`identity`]: tokens as an identity provider signs them, and as nobody should;
//! - [`eventually`]: waits for a condition and reports the last state seen.

pub mod contract;
pub mod gitlab;
pub mod identity;

mod clock;
mod eventually;
mod metrics_source;
mod orchestrator;

pub use clock::FakeClock;
pub use eventually::eventually;
pub use metrics_source::FakeMetricsSource;
pub use orchestrator::{Call, FakeOrchestrator, Pace};
