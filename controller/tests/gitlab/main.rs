//! The controller's GitLab side against a stand-in: a real server on this machine that answers, and fails, as GitLab does.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod notes;
