//! Starts the real programs and watches them from outside: what the scenarios in `tests/` are made of.
//!
//! Every [`Scene`] has a folder and ports of its own, so any number of them run at once. Whatever a scene started ends
//! with it, also when its test panics; then the last lines of every part's log are shown.

mod broker;
mod browser;
mod disk;
pub mod images;
mod lab;
mod load;
mod machine;
mod part;
mod port;
mod postgres;
mod programs;
mod rootfs;
mod scene;
mod ssh;
pub mod stack;
mod stream;

pub use broker::{Broker, TANSU_VERSION, tansu};
pub use browser::{Browser, DESK, ENTER, ESCAPE, PHONE};
pub use disk::SmallDisk;
pub use lab::{Lab, NETWORK, Orders, PORT, START_TRIES, pause};
pub use load::{Load, Outcome};
pub use machine::{Running, is_alive, listening, running_of};
pub use part::{Ended, Part, run};
pub use postgres::{Server as Postgres, find as postgres_program};
pub use programs::{friday, pipeline_demo, proxy, tiny_service};
pub use scene::{PATIENCE, SERVICE, SPEC, Scene, deploy_request, end_tasks, order_request, place};
pub use ssh::SshDaemons;
pub use stream::TweetStream;

/// An address on loopback that is free, and stays so although nobody listens there: of what has to be known before it is
/// started, or found again after it was away.
#[must_use]
pub fn free_address() -> std::net::SocketAddr {
    port::free_address()
}
