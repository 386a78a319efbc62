//! GitLab: where it is, how it is asked, and with what.
//!
//! [`client`] asks it. What is told to it, and when, is the notifier's; what it tells us is the API's.

pub mod client;
pub mod freeze;
pub mod webhook;

use std::path::PathBuf;

use anyhow::Context as _;

pub use client::{Answer, Credential, Gitlab, GitlabError, Secret};

use crate::cli::{Usage, path};

/// A GitLab, as the arguments of `friday serve` name it.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "GitLab")]
pub struct GitlabArgs {
    /// Address of the GitLab that releases come from, such as https://gitlab.example.com
    #[arg(long, env = "FRIDAY_GITLAB_URL", value_name = "URL")]
    pub gitlab_url: Option<String>,
    /// Trust only the certificate authorities in this PEM file for GitLab, in place of the system's
    #[arg(long, env = "FRIDAY_GITLAB_CA", value_parser = path(), value_name = "FILE")]
    pub gitlab_ca: Option<PathBuf>,
    /// File of a project or group access token with scope api: for commit statuses, notes, tickets and freeze periods
    #[arg(long, env = "FRIDAY_GITLAB_TOKEN_FILE", value_parser = path(), value_name = "FILE")]
    pub gitlab_token_file: Option<PathBuf>,
}

impl GitlabArgs {
    /// The GitLab that is named, if one is. An empty variable is one that is not set.
    ///
    /// # Errors
    /// The address is none, or a file cannot be used; the message says which and what was expected.
    pub fn open(&self) -> anyhow::Result<Option<Gitlab>> {
        let given = |path: &Option<PathBuf>| {
            let path = path.as_ref();
            path.filter(|path| !path.as_os_str().is_empty()).cloned()
        };
        let (ca, token_file) = (given(&self.gitlab_ca), given(&self.gitlab_token_file));
        let Some(url) = self.gitlab_url.as_deref().filter(|url| !url.is_empty()) else {
            if token_file.is_some() || ca.is_some() {
                let text = "--gitlab-token-file and --gitlab-ca say how GitLab is asked, and nobody says where it is; expected --gitlab-url URL too";
                return Err(Usage(text.to_owned()).into());
            }
            return Ok(None);
        };
        let token = match token_file {
            None => None,
            Some(file) => {
                let text = std::fs::read_to_string(&file).with_context(|| {
                    format!("--gitlab-token-file {} cannot be read", file.display())
                })?;
                let token = Secret::from_text(&text).with_context(|| {
                    format!(
                        "--gitlab-token-file {} holds no token: expected one line of visible ASCII characters",
                        file.display()
                    )
                })?;
                Some(token)
            }
        };
        let gitlab = Gitlab::new(url, ca.as_deref(), token).context("--gitlab-url")?;
        Ok(Some(gitlab))
    }
}
