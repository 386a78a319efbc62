//! Bringing one message to whom it is for.

mod gitlab;
mod post;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use rollout::Duration;

use crate::clock::Clock;
use crate::gitlab::{Gitlab, GitlabError};
use crate::notifier::letter::{Letter, What};
use crate::origin::JobTokens;
use crate::reconciler::chain;
use crate::store::outbox::Message;
use crate::store::{Store, StoreError};
use post::Post;

/// Whom a failure keeps waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Every message to this destination: it is away, or wants fewer.
    Everything,
    /// The messages about this rollout.
    Rollout,
    /// Nobody: this message can never be told.
    Never,
}

/// Why a message was not told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undelivered {
    /// Whom that keeps waiting.
    pub reach: Reach,
    /// How long to wait at the least, if anybody said so.
    pub after: Option<Duration>,
    /// What happened, without a secret.
    pub words: String,
}

impl Undelivered {
    fn never(words: impl Into<String>) -> Self {
        Self {
            reach: Reach::Never,
            after: None,
            words: words.into(),
        }
    }

    fn later(words: impl Into<String>) -> Self {
        Self {
            reach: Reach::Rollout,
            after: None,
            words: words.into(),
        }
    }
}

impl From<StoreError> for Undelivered {
    fn from(error: StoreError) -> Self {
        Self {
            reach: Reach::Everything,
            after: None,
            words: chain(&error),
        }
    }
}

impl From<GitlabError> for Undelivered {
    fn from(error: GitlabError) -> Self {
        let (reach, after) = match &error {
            GitlabError::Unreachable { .. } => (Reach::Everything, None),
            // What one project or merge request holds may be the reason: that is no reason to keep others waiting.
            GitlabError::TooLong { .. } | GitlabError::Malformed { .. } => (Reach::Rollout, None),
            GitlabError::Limited { after, .. } => (Reach::Everything, *after),
            // The token ran out: with another one all that waits is told.
            GitlabError::Refused { status: 401, .. } => (Reach::Everything, None),
            GitlabError::NoJob { .. } => (Reach::Rollout, None),
            GitlabError::Refused { .. } if error.is_temporary() => (Reach::Rollout, None),
            GitlabError::Refused { .. } | GitlabError::NoToken { .. } => (Reach::Never, None),
        };
        Self {
            reach,
            after,
            words: chain(&error),
        }
    }
}

/// Whoever brings messages.
#[async_trait]
pub trait Courier: fmt::Debug + Send + Sync {
    /// Brings about what a message says, however often it is called: what that became there, if it has an id.
    ///
    /// # Errors
    /// It is not certain that it came about.
    async fn tell(&self, message: &Message) -> Result<Option<String>, Undelivered>;
}

/// The courier that goes out: to GitLab, and to whatever address a file holds.
#[derive(Debug)]
pub struct Outgoing {
    /// What is remembered of things told before.
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    gitlab: Option<Gitlab>,
    job_tokens: Arc<JobTokens>,
    post: Post,
}

impl Outgoing {
    /// A courier that has met nobody yet. `secrets` is the folder below which messages may name files, and `ca` what GitLab's
    /// alert endpoint is verified with, in place of the system's authorities.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        gitlab: Option<Gitlab>,
        job_tokens: Arc<JobTokens>,
        secrets: PathBuf,
        ca: Option<PathBuf>,
    ) -> Self {
        Self {
            store,
            clock,
            gitlab,
            job_tokens,
            post: Post::new(secrets, ca),
        }
    }

    /// The same; whether a `friday.yml` may name a webhook at http:// of this machine. Whoever may deploy could then send to
    /// whatever listens here.
    #[must_use]
    pub fn open_to_loopback(mut self, is_open: bool) -> Self {
        self.post.is_open_to_near = is_open;
        self
    }
}

#[async_trait]
impl Courier for Outgoing {
    async fn tell(&self, message: &Message) -> Result<Option<String>, Undelivered> {
        let letter: Letter = serde_json::from_value(message.body.clone()).map_err(|error| {
            Undelivered::never(format!("written by another version of friday ({error})"))
        })?;
        match &letter.what {
            What::Status { .. }
            | What::Note { .. }
            | What::Deployment { .. }
            | What::Release { .. }
            | What::Ticket { .. } => {
                let (Some(gitlab), Some(origin)) = (&self.gitlab, &letter.origin) else {
                    return Err(Undelivered::never(
                        "this controller was started without --gitlab-url",
                    ));
                };
                let errand = gitlab::Errand {
                    store: &*self.store,
                    gitlab,
                    job_tokens: &self.job_tokens,
                    message,
                    origin,
                };
                errand.bring(&letter.what).await
            }
            What::Alert {
                url_file,
                key_file,
                payload,
            } => self
                .post
                .alert(url_file, key_file, payload)
                .await
                .map(|()| None),
            What::Slack { url_file, text } => self.post.slack(url_file, text).await.map(|()| None),
            What::Webhook {
                url,
                secret_file,
                payload,
            } => {
                let id = format!(
                    "friday_{}_{}_{}",
                    message.rollout, message.id, message.version
                );
                // Receivers refuse a signature that is minutes old: its time is that of the attempt.
                let seconds = self.clock.now().as_second();
                let sent = self.post.webhook(url, secret_file, &id, seconds, payload);
                sent.await.map(|()| None)
            }
        }
    }
}
