//! Where a release comes from: the GitLab job that asked for it, as the job's own variables say.
//!
//! It is the caller's word. What a signed identity says counts where the two differ; here it is for links, for the event
//! log, and for finding the pipeline again to talk back to.

use reqwest::Url;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

mod job_token;

pub use job_token::{JOB_TOKEN_HEADER, JobToken, JobTokens};

/// Longest text of an origin, in bytes. GitLab's limits are 255 characters for names of jobs, branches and projects,
/// each of at most four bytes, and an address holds two of them.
const TEXT_BYTES_MAX: usize = 4 << 10;

/// Digits of a commit's hash, by SHA-256; by SHA-1 it has 40.
const SHA_DIGITS_MAX: usize = 64;

/// The job, its pipeline, commit and person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// `CI_PROJECT_ID`.
    pub project_id: u64,
    /// `CI_PROJECT_PATH`: `group/project`.
    #[serde(default)]
    pub project_path: String,
    /// `CI_PIPELINE_ID`.
    pub pipeline_id: u64,
    /// `CI_JOB_ID`.
    pub job_id: u64,
    /// `CI_JOB_NAME`.
    #[serde(default)]
    pub job_name: String,
    /// `CI_COMMIT_SHA`.
    #[serde(default)]
    pub sha: String,
    /// `CI_COMMIT_REF_NAME`: a branch or a tag.
    #[serde(default)]
    pub ref_name: String,
    /// Whether that is a tag: `CI_COMMIT_TAG` is set.
    #[serde(default)]
    pub ref_is_tag: bool,
    /// `GITLAB_USER_LOGIN`: who pushed, or pressed play.
    #[serde(default)]
    pub user_login: String,
    /// `GITLAB_USER_ID`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<u64>,
    /// `CI_MERGE_REQUEST_IID`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge_request_iid: Option<u64>,
    /// `CI_PIPELINE_URL`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline_url: Option<String>,
    /// `CI_JOB_URL`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_url: Option<String>,
    /// `CI_SERVER_URL`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_url: Option<String>,
}

impl Origin {
    /// What the variables of a GitLab job say; `None` outside of one, which has no project, pipeline or job of a number.
    ///
    /// The variables are those of <https://docs.gitlab.com/ci/variables/predefined_variables/>.
    #[must_use]
    pub fn from_environment(variable: &dyn Fn(&str) -> Option<String>) -> Option<Self> {
        let filled = |name: &str| {
            let value = variable(name)?;
            let value = value.trim();
            (!value.is_empty()).then(|| value.to_owned())
        };
        let number = |name: &str| filled(name)?.parse::<u64>().ok();
        let text = |name: &str| filled(name).unwrap_or_default();
        // One that nobody could follow is left out: the rest is still worth saying.
        let link = |name: &str| filled(name).filter(|text| is_link(text));
        Some(Self {
            project_id: number("CI_PROJECT_ID")?,
            project_path: text("CI_PROJECT_PATH"),
            pipeline_id: number("CI_PIPELINE_ID")?,
            job_id: number("CI_JOB_ID")?,
            job_name: text("CI_JOB_NAME"),
            sha: text("CI_COMMIT_SHA"),
            ref_name: text("CI_COMMIT_REF_NAME"),
            ref_is_tag: filled("CI_COMMIT_TAG").is_some(),
            user_login: text("GITLAB_USER_LOGIN"),
            user_id: number("GITLAB_USER_ID"),
            merge_request_iid: number("CI_MERGE_REQUEST_IID"),
            pipeline_url: link("CI_PIPELINE_URL"),
            job_url: link("CI_JOB_URL"),
            server_url: link("CI_SERVER_URL"),
        })
    }

    /// Whether it is one that may be kept and shown.
    ///
    /// # Errors
    /// A text is too long, an address is none of the web, or a commit or a branch has a name that none can have: the field,
    /// and what was expected.
    pub fn check(&self) -> Result<(), String> {
        let texts = [
            ("project_path", Some(&self.project_path)),
            ("job_name", Some(&self.job_name)),
            ("sha", Some(&self.sha)),
            ("ref_name", Some(&self.ref_name)),
            ("user_login", Some(&self.user_login)),
            ("pipeline_url", self.pipeline_url.as_ref()),
            ("job_url", self.job_url.as_ref()),
            ("server_url", self.server_url.as_ref()),
        ];
        for (name, text) in texts {
            let length = text.map_or(0, String::len);
            if length > TEXT_BYTES_MAX {
                return Err(format!(
                    "origin.{name} has {length} bytes, more than the {TEXT_BYTES_MAX} allowed"
                ));
            }
        }
        let links = [
            ("pipeline_url", &self.pipeline_url),
            ("job_url", &self.job_url),
            ("server_url", &self.server_url),
        ];
        for (name, link) in links {
            if link.as_deref().is_some_and(|link| !is_link(link)) {
                return Err(format!(
                    "origin.{name} is not an address: expected https://HOST/… or http://HOST/…"
                ));
            }
        }
        // In a path, which GitLab is asked at, dots would be another path.
        if self.sha.len() > SHA_DIGITS_MAX || !self.sha.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format!(
                "origin.sha is no commit: expected at most {SHA_DIGITS_MAX} hexadecimal digits"
            ));
        }
        if matches!(self.ref_name.as_str(), "." | "..") {
            return Err("origin.ref_name is no branch and no tag".to_owned());
        }
        Ok(())
    }
}

/// Whether a text may stand in a link: `javascript:` may not, nor one of more than a word, which a parser would mend and a
/// reader takes for what comes after the link.
fn is_link(text: &str) -> bool {
    let is_word = !text.chars().any(|c| c.is_control() || c.is_whitespace());
    is_word
        && Url::parse(text).is_ok_and(|url| {
            matches!(url.scheme(), "https" | "http")
                && url.host_str().is_some_and(|host| !host.is_empty())
        })
}

#[cfg(test)]
mod tests;
