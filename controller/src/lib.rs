//! The control plane: decides what runs and who gets which requests, and says why.
//!
//! [`reconciler`] is the heart: one loop that owns every rollout. Around it stand what it needs of the world
//! ([`orchestrator`], [`store`], [`fleet`], [`metrics_source`], [`clock`]) and what the world needs of it ([`api`], [`cli`]). What a rollout
//! is, and how it is judged, is the crate `rollout`, which knows none of this.

pub mod admission;
pub mod adopt;
pub mod agent;
pub mod agents;
pub mod api;
pub mod app;
pub mod audit;
pub mod auth;
pub mod checks;
pub mod cli;
pub mod client;
pub mod clock;
pub mod delivery;
pub mod doctor;
pub mod fleet;
pub mod gitlab;
pub mod incidents;
pub mod lease;
pub mod metrics_source;
pub mod notifier;
pub mod orchestrator;
pub mod origin;
pub mod reconciler;
pub mod replay;
mod request_rate;
pub mod routing;
pub mod saturation;
pub mod server;
pub mod simulate;
pub mod spec;
pub mod stack;
pub mod store;
mod story;
pub mod words;
pub mod yaml;
