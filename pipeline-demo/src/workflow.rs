//! `pipeline.yml`: what a worker does with each tweet, what differs by release, and what runs beside it.
//!
//! The features themselves are code ([`FEATURES`](crate::features::FEATURES)); the file says which of them run, after which others, and for which
//! tweets. [`read`] turns its text into a [`Pipeline`] that is valid, or every reason why there is none; without a file
//! there is [`Pipeline::default`], in which every feature runs for every tweet.
//!
//! ```yaml
//! features:                       # those that are named run, each after what it asks about
//!   language:
//!   hashtags:
//!   sentiment:
//!     after: [hashtags]           # only an order
//!     when: { language.code: [eng, und] }   # else there is no such key in the result
//! routes:                         # which stages a tweet takes: those of the first route that may be its own, else all
//!   tagged: { when: { lang: [en, de], has: hashtags }, stages: [language, hashtags] }
//!   sample: { when: { kind: original, author_share: 5% }, stages: [language, hashtags, sentiment] }
//!   others: { stages: language }
//! parallel: 1024                  # tasks at once in one worker
//! releases:                       # by the release's name, or by its arm: stable, canary
//!   canary: { without: [hashtags], parallel: 256 }
//! stream: { rules: { rust: "(rust OR cargo) lang:en" }, backfill_minutes: 5 }
//! jobs:
//!   clean-up: { task: clean_up, cron: "15 3 * * *", keep: 30d }     # in UTC
//!   aggregate: { task: aggregate, every: 1m, catch_up: true, deadline: 30s }
//! late_after: 60s                 # of the sink: a result stored later than this is late
//! ```

mod jobs;
mod lint;
mod read;
mod route;
mod routes;
mod stages;
mod stream;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

pub use lint::{LintArgs, ReadFileError, lint, refuse};
pub use read::read;
pub use route::Route;
pub use stages::{Condition, Stage, Workflow};
pub use stream::StreamSpec;

use crate::jobs::JobSpec;
use crate::sink::LATE_AFTER_DEFAULT;

/// Tasks that one worker takes at once where the file does not say. A thousand tasks of 20 ms are 50,000 a second, far
/// beyond what a worker computes; what waits longer than that is better sent elsewhere.
pub const PARALLEL_DEFAULT: usize = 1_024;

/// Most tasks at once that can be asked for: with records of the greatest size it is 1 GiB.
pub const PARALLEL_MAX: usize = 4_096;

/// What `pipeline.yml` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pipeline {
    /// What a worker does.
    pub workflow: Workflow,
    /// The same for releases that differ, by the release's name or its arm.
    pub releases: BTreeMap<String, Workflow>,
    /// What is asked of the stream of X, if it says so.
    pub stream: Option<StreamSpec>,
    /// What runs beside, by time; [`JobSpec::defaults`] where the file does not say.
    pub jobs: Vec<JobSpec>,
    /// How long after its tweet was appended a result is late, for the sink.
    pub late_after: Duration,
}

impl Default for Pipeline {
    fn default() -> Self {
        Self {
            workflow: Workflow::default(),
            releases: BTreeMap::new(),
            stream: None,
            jobs: JobSpec::defaults(),
            late_after: LATE_AFTER_DEFAULT,
        }
    }
}

impl Pipeline {
    /// What a worker of this release does: the entry of its name, else of its arm, else what all do.
    #[must_use]
    pub fn workflow_for(&self, release: &str, arm: &str) -> &Workflow {
        let by_name = self.releases.get(release);
        by_name
            .or_else(|| self.releases.get(arm))
            .unwrap_or(&self.workflow)
    }
}
