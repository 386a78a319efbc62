//! What GitLab says from its side: freeze periods, and hooks that hint at what happened.
//!
//! Hints are in memory alone. One that was taken just before the controller ended is lost: a release whose job waits goes
//! back by its lease all the same, one that nobody waits for goes on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use http::Method;
use rollout::{Cause, Command, Duration, RolloutId};
use serde_json::Value;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::admission::Freezes;
use crate::api::webhooks::Webhooks;
use crate::auth::read_limited;
use crate::cli::{Usage, path};
use crate::clock::Clock;
use crate::gitlab::freeze::FreezePeriods;
use crate::gitlab::webhook::{Hint, Keys};
use crate::gitlab::{Credential, Gitlab};
use crate::reconciler::{Handle, Request, chain};

/// Largest file of a webhook's token. GitLab's signing tokens have 50 characters.
const KEY_FILE_BYTES_MAX: u64 = 4 << 10;

/// How often a pipeline's state is asked for before a hint is believed that nothing contradicts.
const ASKED_MAX: u32 = 3;

/// Between two of these questions.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// What a cancelled pipeline does to the rollouts it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum OnPipelineCancel {
    /// Back to stable: whoever cancels a pipeline wants its release gone
    #[default]
    Abort,
    /// Stays at its weight until somebody says go on, or back
    Hold,
    /// Nothing
    Ignore,
}

/// What is taken from GitLab, and with which keys.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "GitLab")]
pub struct HookArgs {
    /// GitLab project whose freeze periods hold every rollout, by its number or path; needs --gitlab-url and its token
    #[arg(long, env = "FRIDAY_FREEZE_PROJECT", value_name = "PROJECT")]
    pub freeze_project: Option<String>,
    /// File of the secret token of GitLab's webhooks; they go to /api/v1/webhooks/gitlab
    #[arg(long, env = "FRIDAY_WEBHOOK_SECRET_FILE", value_parser = path(), value_name = "FILE")]
    pub webhook_secret_file: Option<PathBuf>,
    /// File of their signing token (whsec_…), GitLab 19.0 and later; with both, both must fit
    #[arg(long, env = "FRIDAY_WEBHOOK_SIGNING_KEY_FILE", value_parser = path(), value_name = "FILE")]
    pub webhook_signing_key_file: Option<PathBuf>,
    /// What a cancelled pipeline does to the rollouts that it started; a hook is lost if the controller ends just then, the
    /// lease of a job that waits is not
    #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
    pub on_pipeline_cancel: OnPipelineCancel,
}

/// What is taken from GitLab, ready to be started.
#[derive(Debug, Default)]
pub struct Hooks {
    /// The freezes of files, and GitLab's if they are wanted.
    pub freezes: Freezes,
    /// Where hooks come in, if they are taken.
    pub webhooks: Option<Arc<Webhooks>>,
    periods: Option<FreezePeriods>,
    hints: Option<mpsc::Receiver<Hint>>,
    gitlab: Option<Gitlab>,
    on_cancel: OnPipelineCancel,
    sooner: Arc<Notify>,
}

impl HookArgs {
    /// Reads the keys, and says what is missing.
    ///
    /// # Errors
    /// A file cannot be used, or freeze periods are wanted of a GitLab that nobody named.
    pub fn open(&self, gitlab: Option<&Gitlab>, clock: &Arc<dyn Clock>) -> anyhow::Result<Hooks> {
        let sooner = Arc::new(Notify::new());
        let mut hooks = Hooks {
            gitlab: gitlab.cloned(),
            on_cancel: self.on_pipeline_cancel,
            sooner: Arc::clone(&sooner),
            ..Hooks::default()
        };
        // An empty variable is one that is not set.
        if let Some(project) = self
            .freeze_project
            .as_deref()
            .filter(|text| !text.is_empty())
        {
            let Some(gitlab) = gitlab.filter(|gitlab| gitlab.has_token()) else {
                let text = "--freeze-project: expected --gitlab-url URL and --gitlab-token-file FILE too: freeze periods are read with a project token";
                return Err(Usage(text.to_owned()).into());
            };
            let (reader, periods) =
                FreezePeriods::new(gitlab.clone(), project, Arc::clone(clock), sooner);
            hooks.freezes = Freezes::with_gitlab(periods);
            hooks.periods = Some(reader);
        }
        let secret = key("--webhook-secret-file", self.webhook_secret_file.as_deref())?;
        let signing = key(
            "--webhook-signing-key-file",
            self.webhook_signing_key_file.as_deref(),
        )?;
        let keys = Keys::new(secret.as_deref(), signing.as_deref())
            .context("--webhook-secret-file or --webhook-signing-key-file")?;
        if !keys.is_empty() {
            let (webhooks, hints) = Webhooks::new(keys);
            hooks.webhooks = Some(webhooks);
            hooks.hints = Some(hints);
        }
        Ok(hooks)
    }
}

fn key(option: &str, file: Option<&Path>) -> anyhow::Result<Option<String>> {
    let Some(file) = file.filter(|file| !file.as_os_str().is_empty()) else {
        return Ok(None);
    };
    read_limited(file, KEY_FILE_BYTES_MAX)
        .map(Some)
        .with_context(|| format!("{option} {} cannot be read", file.display()))
}

impl Hooks {
    /// The address of the GitLab that is asked, if one is named.
    #[must_use]
    pub fn gitlab_url(&self) -> Option<String> {
        self.gitlab.as_ref().map(|gitlab| gitlab.url().to_owned())
    }

    /// Reads freeze periods and works on hints until told to stop.
    pub async fn run(self, handle: Handle, stop: CancellationToken) {
        let Self {
            periods,
            hints,
            gitlab,
            on_cancel,
            sooner,
            ..
        } = self;
        let reading = async {
            if let Some(periods) = periods {
                periods.run(stop.clone()).await;
            }
        };
        let working = async {
            let Some(mut hints) = hints else { return };
            let worker = Worker {
                gitlab,
                handle,
                on_cancel,
                sooner,
            };
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    hint = hints.recv() => match hint {
                        Some(hint) => worker.work(hint).await,
                        None => return,
                    },
                }
            }
        };
        tokio::join!(reading, working);
    }
}

/// Whoever acts on hints.
struct Worker {
    gitlab: Option<Gitlab>,
    handle: Handle,
    on_cancel: OnPipelineCancel,
    sooner: Arc<Notify>,
}

impl Worker {
    async fn work(&self, hint: Hint) {
        match hint {
            // Permits do not add up: a hundred pushes are one reading.
            Hint::Push { .. } => self.sooner.notify_one(),
            Hint::Pipeline {
                project_id,
                pipeline_id,
                status,
            } if Hint::is_cancelled(&status) && self.on_cancel != OnPipelineCancel::Ignore => {
                self.cancelled(project_id, pipeline_id).await;
            }
            Hint::Pipeline { .. } | Hint::Other => {}
        }
    }

    async fn cancelled(&self, project_id: u64, pipeline_id: u64) {
        let rollouts = self.rollouts_of(project_id, pipeline_id);
        if rollouts.is_empty() || !self.is_cancelled(project_id, pipeline_id).await {
            return;
        }
        for id in rollouts {
            let by = "gitlab".to_owned();
            let reason = Some(format!(
                "pipeline {pipeline_id} of project {project_id} was cancelled"
            ));
            let command = match self.on_cancel {
                OnPipelineCancel::Abort => Command::Abort(Cause::Person {
                    by: by.clone(),
                    reason: reason.clone(),
                }),
                OnPipelineCancel::Hold => Command::Pause,
                OnPipelineCancel::Ignore => return,
            };
            let (reply, answer) = oneshot::channel();
            let request = Request::Order {
                id: id.clone(),
                command,
                by,
                reason,
                emergency: None,
                may_approve: false,
                reply,
            };
            if self.handle.requests.send(request).await.is_err() {
                return;
            }
            match answer.await {
                Ok(Ok(_)) => {
                    tracing::info!(rollout = %id, pipeline_id, "its pipeline was cancelled");
                }
                Ok(Err(error)) => {
                    tracing::info!(rollout = %id, pipeline_id, error = chain(&error), "its pipeline was cancelled, and nothing was to be done");
                }
                Err(_) => return,
            }
        }
    }

    /// The running rollouts that jobs of this pipeline started.
    fn rollouts_of(&self, project_id: u64, pipeline_id: u64) -> Vec<RolloutId> {
        let snapshot = self.handle.snapshot.borrow().clone();
        let open = snapshot.services.values().flat_map(|service| &service.open);
        let of_pipeline = open.filter(|saved| {
            saved.origin.as_ref().is_some_and(|origin| {
                origin.project_id == project_id && origin.pipeline_id == pipeline_id
            })
        });
        of_pipeline.map(|saved| saved.rollout.id.clone()).collect()
    }

    /// Whether the pipeline was cancelled, as far as that can be read back. Without a token the hint is believed.
    async fn is_cancelled(&self, project_id: u64, pipeline_id: u64) -> bool {
        match self.gitlab.as_ref().filter(|gitlab| gitlab.has_token()) {
            Some(gitlab) => is_cancelled(gitlab, project_id, pipeline_id, ASK_AGAIN_AFTER).await,
            None => true,
        }
    }
}

/// Whether GitLab itself says that the pipeline was cancelled; where it does not answer, it is asked again after `pause`, and
/// at last the hint is believed: it was proven, and what follows only goes back or stands still.
async fn is_cancelled(gitlab: &Gitlab, project_id: u64, pipeline_id: u64, pause: Duration) -> bool {
    let path = format!("/projects/{project_id}/pipelines/{pipeline_id}");
    for asked in 1..=ASKED_MAX {
        let answer = gitlab
            .call(Method::GET, &path, None, Credential::Project)
            .await;
        match answer {
            Ok(answer) => {
                let status = answer.body.get("status").and_then(Value::as_str);
                return status.is_some_and(Hint::is_cancelled);
            }
            Err(error) if error.is_temporary() && asked < ASKED_MAX => {
                tokio::time::sleep(pause).await;
            }
            Err(error) => {
                tracing::warn!(
                    pipeline_id,
                    error = chain(&error),
                    "whether the pipeline was cancelled cannot be read back; its hook is believed"
                );
                return true;
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use controller_testing::gitlab::{Fault, Gitlab as StandIn, PROJECT, PROJECT_TOKEN};

    use super::*;
    use crate::gitlab::Secret;

    const PIPELINE: u64 = 90_001;

    async fn asks(stand_in: &StandIn, pipeline: u64) -> bool {
        let token = Secret::from_text(PROJECT_TOKEN);
        let gitlab = Gitlab::new(&stand_in.url(), None, token).unwrap();
        is_cancelled(&gitlab, PROJECT, pipeline, Duration::from_millis(1)).await
    }

    #[tokio::test]
    async fn a_hint_is_believed_unless_gitlab_itself_contradicts_it() {
        use Fault::{BadGateway, Internal, Limited, Nonsense};
        for (status, faults, expected, asked) in [
            ("canceled", &[][..], true, 1),
            ("canceling", &[], true, 1),
            ("running", &[], false, 1),
            ("success", &[], false, 1),
            ("running", &[Internal, BadGateway], false, 3),
            ("canceled", &[Limited, Nonsense], true, 3),
            // It does not answer: the hint was proven, and what follows only goes back.
            ("running", &[Internal, Internal, Internal], true, 3),
        ] {
            let stand_in = StandIn::start().await.unwrap();
            stand_in.records(|records| records.set_pipeline(PIPELINE, status));
            stand_in.fail(faults.iter().copied());
            let believed = asks(&stand_in, PIPELINE).await;
            let seen = stand_in.seen().len();
            assert_eq!((believed, seen), (expected, asked), "{status} {faults:?}");
        }
        let stand_in = StandIn::start().await.unwrap();
        assert!(asks(&stand_in, 1).await, "nobody knows that pipeline");
        assert_eq!(stand_in.seen().len(), 1, "404 does not pass by itself");
    }

    #[tokio::test]
    async fn contract_a_pipeline_is_read_back_as_gitlab_documents() {
        let stand_in = StandIn::start_checked().await.unwrap();
        stand_in.records(|records| records.set_pipeline(PIPELINE, "canceled"));
        assert!(asks(&stand_in, PIPELINE).await);
        assert_eq!(stand_in.seen().len(), 1);
        assert_eq!(stand_in.mistakes(), Vec::<String>::new());
    }
}
