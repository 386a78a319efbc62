//! Whom `friday serve` may tell how releases go.

use std::path::PathBuf;
use std::sync::Arc;

use rollout::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::cli::{Usage, path};
use crate::clock::Clock;
use crate::gitlab::{Gitlab, GitlabArgs};
use crate::notifier::courier::Outgoing;
use crate::notifier::{Audience, Notifier, Pace};
use crate::origin::JobTokens;
use crate::store::{Store, StoreError};

/// Longest wait for a message that is on its way when the controller stops. What is cut off is told by the next one, which
/// looks for it first.
const STOP_MAX: Duration = Duration::from_secs(5);

/// Where secrets of notify are, and where links lead.
#[derive(Debug, Clone, clap::Args)]
pub struct TellArgs {
    /// Folder of the files that `notify` in a friday.yml may name: addresses and keys. Nothing outside of it is read, and
    /// none of the controller's own secrets may be in it
    #[arg(
        long,
        env = "FRIDAY_SECRETS_DIR",
        default_value = "/run/secrets/notify",
        value_parser = path(),
        value_name = "DIR"
    )]
    pub secrets_dir: PathBuf,
    /// Let `notify` in a friday.yml name webhooks at http:// of this machine: who may deploy then reaches what listens here
    #[arg(long)]
    pub notify_loopback: bool,
    /// Where people find the board, for links in messages, such as https://friday.example.com
    #[arg(long, env = "FRIDAY_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<String>,
}

impl TellArgs {
    /// Refuses a folder with secrets of the controller's own, given by these options: whoever writes a friday.yml could name
    /// one and have it sent to an address of theirs.
    ///
    /// # Errors
    /// There is one, whichever links lead there.
    pub(super) fn check_own<'a>(
        &self,
        own: impl IntoIterator<Item = (&'static str, Option<&'a PathBuf>)>,
    ) -> Result<(), Usage> {
        let Ok(folder) = self.secrets_dir.canonicalize() else {
            // There is none, or none that can be read: then nothing is read of it.
            return Ok(());
        };
        for (option, file) in own {
            let Some(path) = file.and_then(|file| file.canonicalize().ok()) else {
                continue;
            };
            if path.starts_with(&folder) {
                return Err(Usage(format!(
                    "--secrets-dir {}: {} of {option} is in it, and every friday.yml may have sent away what is in it; expected a folder that only holds what notify names, such as /run/secrets/notify",
                    self.secrets_dir.display(),
                    path.display(),
                )));
            }
        }
        Ok(())
    }
}

/// Whom the controller may tell.
#[derive(Debug, Clone, Default)]
pub struct Telling {
    /// GitLab, if there is one.
    pub gitlab: Option<Gitlab>,
    /// Whom messages can reach, and where they point.
    pub audience: Audience,
    /// The folder below which messages may name files.
    pub secrets: PathBuf,
    /// Whether a `friday.yml` may name webhooks of this machine.
    pub loopback: bool,
    /// What GitLab's alert endpoint is verified with, in place of the system's authorities.
    pub ca: Option<PathBuf>,
}

impl Telling {
    /// What the arguments say.
    ///
    /// # Errors
    /// An address is none, or a file cannot be used.
    pub(super) fn open(gitlab: &GitlabArgs, tell: &TellArgs) -> anyhow::Result<Self> {
        let board = tell.public_url.as_deref().filter(|url| !url.is_empty());
        if let Some(url) = board {
            let is_web = reqwest::Url::parse(url)
                .is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
            if !is_web {
                return Err(Usage(format!(
                    "--public-url {url:?} is no address; expected one such as https://friday.example.com"
                ))
                .into());
            }
        }
        let client = gitlab.open()?;
        let audience = Audience {
            has_gitlab: client.is_some(),
            has_token: client.as_ref().is_some_and(Gitlab::has_token),
            board: board.map(|url| url.trim_end_matches('/').to_owned()),
        };
        if audience.has_gitlab && !audience.has_token {
            tracing::warn!(
                "no --gitlab-token-file: commit statuses, notes and tickets are not told; deployment records are, by the job's token"
            );
        }
        let ca = gitlab.gitlab_ca.as_ref();
        Ok(Self {
            gitlab: client,
            audience,
            secrets: tell.secrets_dir.clone(),
            loopback: tell.notify_loopback,
            ca: ca.filter(|path| !path.as_os_str().is_empty()).cloned(),
        })
    }

    /// Tells what is in the outbox, until told to stop.
    pub(super) fn start(
        self,
        store: Arc<dyn Store>,
        term: u64,
        clock: Arc<dyn Clock>,
        job_tokens: Arc<JobTokens>,
        wake: watch::Receiver<u64>,
        stop: CancellationToken,
    ) -> JoinHandle<Result<(), StoreError>> {
        let courier = Outgoing::new(
            Arc::clone(&store),
            Arc::clone(&clock),
            self.gitlab,
            job_tokens,
            self.secrets,
            self.ca,
        )
        .open_to_loopback(self.loopback);
        let notifier = Notifier {
            store,
            term,
            clock,
            courier: Arc::new(courier),
            wake,
            pace: Pace::default(),
        };
        tokio::spawn(notifier.run(stop))
    }
}

/// Waits for the notifier's end. Why it ended is the loop's to say too: both know the same store.
pub(super) async fn end(mut telling: JoinHandle<Result<(), StoreError>>) {
    match tokio::time::timeout(STOP_MAX, &mut telling).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => tracing::warn!(%error, "telling ended"),
        Ok(Err(error)) => tracing::error!(%error, "telling panicked"),
        Err(_) => telling.abort(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_notify_holds_no_secret_of_the_controllers_own() {
        let folder = tempfile::tempdir().unwrap();
        let secrets = folder.path().join("secrets");
        let notify = secrets.join("notify");
        std::fs::create_dir_all(&notify).unwrap();
        let own = secrets.join("gitlab-token");
        std::fs::write(&own, "glpat-x").unwrap();
        let linked = folder.path().join("linked");
        std::os::unix::fs::symlink(&own, &linked).unwrap();
        let missing = folder.path().join("missing");
        let check = |dir: &PathBuf, file: &PathBuf| {
            let args = TellArgs {
                secrets_dir: dir.clone(),
                notify_loopback: false,
                public_url: None,
            };
            args.check_own([("--tokens", None), ("--gitlab-token-file", Some(file))])
        };
        for file in [&own, &linked] {
            let said = check(&secrets, file).unwrap_err().to_string();
            assert!(said.contains("of --gitlab-token-file is in it"), "{said}");
            assert!(!said.contains("glpat"), "{said}");
            assert!(check(&notify, file).is_ok());
        }
        assert!(check(&missing, &own).is_ok());
        assert!(check(&secrets, &missing).is_ok());
    }
}
