//! A project's pipeline, from a commit to production: run by gitlab-ci-local as a shell runner would, with the programs as
//! they are built, and child processes for tasks.
//!
//! `FRIDAY_GITLAB_CI_LOCAL` names the program gitlab-ci-local, `FRIDAY_CHECK_JSONSCHEMA` check-jsonschema; `tests/run`
//! installs both. The project is `tests/data/gitlab-project`, as somebody would write it who includes our components.

#![expect(
    clippy::unwrap_used,
    reason = "clippy excuses test functions alone, not what helps them"
)]

mod cancelled;
mod features;
mod files;
mod policy;
mod releases;
mod scripts;
mod site;
