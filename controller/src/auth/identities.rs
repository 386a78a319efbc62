//! Whoever an identity provider vouches for: CI jobs by their ID tokens, people by their sessions.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rollout::Duration;

use super::Caller;
use super::directory::{self, Directory};
use super::file::read_limited;
use super::id_token::verify;
use super::identity::Identity;
use super::jws::Unverified;
use super::keys::{Keys, KeysState};
use super::people::{Back, Next, OnDevice, SignIn, SignInError, SignedIn};
use super::provider::{Provider, ProviderError};
use super::refusal::Refusal;
use super::replay::Seen;
use super::sessions::Secret;
use crate::api::types::SPEC_BYTES_MAX;
use crate::clock::Clock;
use crate::reconciler::chain;
use crate::yaml::Finding;

/// Largest file of an application's secret.
const SECRET_BYTES_MAX: u64 = 4 << 10;

/// Why nobody is let in.
#[derive(Debug, thiserror::Error)]
pub enum IdentitiesError {
    /// A file cannot be read.
    #[error("cannot read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is wrong.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Wrong(Vec<Finding>),
    /// The provider cannot be asked.
    #[error("the issuer cannot be asked")]
    Provider(#[from] ProviderError),
}

/// The identities of one provider.
#[derive(Debug)]
pub struct Identities {
    directory: Directory,
    provider: Provider,
    keys: Keys,
    seen: Seen,
    sign_in: Option<SignIn>,
    /// What GitLab is asked with whether a job still runs, if it is asked.
    running: Option<Secret>,
    clock: Arc<dyn Clock>,
}

impl Identities {
    /// The files of secrets that its file names, as far as it does.
    #[must_use]
    pub fn secret_files(&self) -> [Option<&PathBuf>; 2] {
        let Directory { people, jobs, .. } = &self.directory;
        let people = people.as_ref();
        let jobs = jobs.as_ref();
        [
            people.and_then(|people| people.secret_file.as_ref()),
            jobs.and_then(|jobs| jobs.running_token_file.as_ref()),
        ]
    }

    /// Those of a file. Blocks on the disk; the provider is asked once somebody comes.
    ///
    /// # Errors
    /// A file cannot be read, or is not as it should be.
    pub fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self, IdentitiesError> {
        let read = |path: &Path, bytes_max| {
            read_limited(path, bytes_max).map_err(|source| IdentitiesError::Read {
                path: path.to_owned(),
                source,
            })
        };
        let text = read(path, SPEC_BYTES_MAX as u64 + 1)?;
        let name = path.display().to_string();
        let directory = directory::read(&text, &name).map_err(IdentitiesError::Wrong)?;
        let provider = Provider::new(&directory.issuer, directory.ca.as_deref())?;
        let sign_in = match &directory.people {
            None => None,
            Some(people) => {
                let secret = people.secret_file.as_ref();
                let secret = secret
                    .map(|file| read(file, SECRET_BYTES_MAX))
                    .transpose()?;
                let secret = secret.map(|text| Secret(text.trim().to_owned()));
                Some(SignIn::new(people.clone(), secret, Arc::clone(&clock)))
            }
        };
        let running = directory
            .jobs
            .as_ref()
            .and_then(|jobs| jobs.running_token_file.as_ref())
            .map(|file| read(file, SECRET_BYTES_MAX))
            .transpose()?;
        Ok(Self {
            running: running.map(|text| Secret(text.trim().to_owned())),
            directory,
            provider,
            keys: Keys::new(Arc::clone(&clock)),
            seen: Seen::default(),
            sign_in,
            clock,
        })
    }

    /// Whether a bearer token looks like one of a CI job, and such are let in.
    pub(super) fn takes(&self, token: &str) -> bool {
        self.directory.jobs.is_some() && token.matches('.').count() >= 2
    }

    /// The job whose ID token this is.
    pub(super) async fn job(&self, token: &str) -> Result<Caller, Refusal> {
        let Some(jobs) = &self.directory.jobs else {
            return Err(Refusal::Form("jobs are not let in here"));
        };
        let unverified = Unverified::read(token)?;
        let keys = self.keys.with(unverified.key_id(), &self.provider).await?;
        let now = self.clock.now();
        let claims = verify(unverified, &keys, &jobs.policy, now)?;
        self.seen.note(&claims, now)?;
        let grants = jobs.of(claims.project_id);
        let (id, path) = (claims.project_id, claims.project_path.clone());
        Caller::of_identity(claims.identity(), grants, Some(claims))
            .ok_or(Refusal::Project { id, path })
    }

    /// Whether the caller's job still runs, if that is to be asked; its token may outlive it.
    pub(super) async fn check_running(&self, identity: &Identity) -> Result<(), Refusal> {
        let (Some(Secret(token)), Some(project), Some(job)) =
            (&self.running, identity.project_id, identity.job_id)
        else {
            return Ok(());
        };
        match self.provider.job_state(project, job, token).await {
            Ok(state) if state == "running" => Ok(()),
            Ok(state) => Err(Refusal::JobOver { job, state }),
            Err(error) => {
                tracing::warn!(job, error = %chain(&error), "whether a job still runs cannot be asked");
                Err(Refusal::JobUnknown { job })
            }
        }
    }

    /// Whether jobs of this project are let in, or nobody says of which.
    pub(crate) fn knows(&self, project: u64) -> bool {
        let jobs = self.directory.jobs.as_ref();
        jobs.is_none_or(|jobs| jobs.policy.projects.contains(&project))
    }

    /// Whoever vouches.
    pub(crate) fn issuer(&self) -> &str {
        self.provider.issuer()
    }

    /// How the issuer's keys are; it is asked for at most `limit`.
    pub(crate) async fn keys(&self, limit: Duration) -> KeysState {
        self.keys.state(&self.provider, limit).await
    }

    /// Signing in, if people are let in.
    pub(crate) fn sign_in(&self) -> Option<&SignIn> {
        self.sign_in.as_ref()
    }

    /// See [`SignIn::begin`].
    pub(crate) async fn begin(
        &self,
        sign_in: &SignIn,
        next: Next,
    ) -> Result<(reqwest::Url, Secret), SignInError> {
        sign_in.begin(&self.provider, next).await
    }

    /// See [`SignIn::finish`].
    pub(crate) async fn finish(
        &self,
        sign_in: &SignIn,
        back: (&str, &str),
        code: Result<&str, &str>,
    ) -> Result<Back, SignInError> {
        sign_in.finish(&self.provider, &self.keys, back, code).await
    }

    /// See [`SignIn::begin_on_device`].
    pub(crate) async fn begin_on_device(&self, sign_in: &SignIn) -> Result<OnDevice, SignInError> {
        sign_in.begin_on_device(&self.provider).await
    }

    /// See [`SignIn::look_on_device`].
    pub(crate) async fn look_on_device(
        &self,
        sign_in: &SignIn,
        name: &str,
    ) -> Result<SignedIn, SignInError> {
        sign_in.look_on_device(&self.provider, name).await
    }

    /// See [`SignIn::refresh`].
    pub(crate) async fn refresh(
        &self,
        sign_in: &SignIn,
        token: &str,
    ) -> Result<SignedIn, SignInError> {
        sign_in.refresh(&self.provider, token).await
    }
}
