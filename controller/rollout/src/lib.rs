//! The core of Friday: what a rollout is, how it moves, and how it is judged.
//!
//! Pure: no runtime, no I/O, no clock. Time comes in as an argument ([`Timestamp`] for the record, [`Duration`] for what
//! has passed); randomness would be a seed. Three functions carry the project:
//!
//! - [`Rollout::on`]: a rollout and an event make the next rollout;
//! - [`Rollout::desired`]: what a rollout asks of the world;
//! - [`Judge::observe`]: a block of requests and what was known before it make a [`Verdict`].
//!
//! Read on in this order: [`release`], [`weight`], [`plan`], [`rollout`], [`desired`], [`signals`], [`judge`].

pub mod release;
pub mod weight;

pub mod notify;
pub mod plan;
pub mod policy;
pub mod proxy;

pub mod desired;
pub mod rollout;

pub mod judge;
pub mod signals;

mod serial;

pub use std::time::Duration;

pub use jiff::Timestamp;

pub use desired::{Desired, Observed, Placement};
pub use judge::{Judge, Verdict};
pub use notify::{AlertNotice, GitlabNotice, Notify, WebhookNotice};
pub use plan::{Bake, Bound, Check, Deadlines, Guard, Hold, Plan, Spec, Step};
pub use policy::{Admission, Policy};
pub use release::{Release, ReleaseId, RolloutId, ServiceName};
pub use rollout::{Cause, Command, Ending, Event, Phase, Rollout, Skipped};
pub use serial::Millis;
pub use signals::{Block, Cell, LatencyHistogram};
pub use weight::{Split, Weight};
