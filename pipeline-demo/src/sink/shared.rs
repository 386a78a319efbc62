//! What both engines do with the same words: comparing, reading counts, keeping book of jobs.
//!
//! The statements are the common part of both dialects (`$1`, `CAST`, no arrays); only the types of connections differ,
//! so the code is a macro that each engine expands once. What a dialect does better in its own words stands beside it.

#[macro_use]
mod jobs;
#[macro_use]
mod reconcile;
#[macro_use]
mod stats;
