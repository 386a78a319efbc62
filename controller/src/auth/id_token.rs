//! ID tokens of CI jobs: from the bytes of one to claims that may be believed. Pure: keys and time are arguments.
//!
//! The rules, in this order: size, form, algorithm, header, key; signature, issuer, audience, times; the claims that must be
//! there; the project, and that the pipeline is the project's own. What the job then asks for is `terms`.

use rollout::{Duration, Timestamp};
use serde_json::Value;

use super::identity::{Identity, is_login};
use super::jws::{KeySet, Members, Unverified};
use super::refusal::Refusal;

/// How far the clocks of the issuer and of this machine may be apart.
const LEEWAY_SECONDS: i64 = 60;

/// Longest lifetime where the file of identities does not say. GitLab makes a token for as long as its job may take, and
/// the component's job may wait three hours for its release.
pub(super) const LIFETIME_MAX: Duration = Duration::from_secs(3 * 60 * 60);

/// Longest text of a claim that is kept.
const CLAIM_BYTES_MAX: usize = 1_024;

/// What a token must be to be believed, whoever's it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IdTokenPolicy {
    /// Its issuer, as it stands in `iss`.
    pub(super) issuer: String,
    /// Who we are in `aud`.
    pub(super) audience: String,
    /// Longest time from `iat` to `exp`.
    pub(super) lifetime_max: Duration,
    /// Projects that may act here at all.
    pub(super) projects: Vec<u64>,
}

/// What GitLab says of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// The issuer.
    pub issuer: String,
    /// The token's name.
    pub token_id: String,
    /// When it ends, in seconds since 1970.
    pub expires: i64,
    /// The project whose job it is.
    pub project_id: u64,
    /// Its path, for people.
    pub project_path: String,
    /// The pipeline.
    pub pipeline_id: u64,
    /// How the pipeline came about: `push`, `web`, …
    pub pipeline_source: String,
    /// The job.
    pub job_id: u64,
    /// Who started the job.
    pub user_id: u64,
    /// Their login.
    pub user_login: String,
    /// The commit.
    pub sha: String,
    /// The branch or tag.
    pub reference: String,
    /// `branch` or `tag`.
    pub reference_kind: String,
    /// Whether the reference is protected.
    pub is_protected: bool,
    /// The job's environment.
    pub environment: Option<String>,
    /// Its tier.
    pub tier: Option<String>,
    /// The runner.
    pub runner_id: Option<u64>,
    /// `gitlab-hosted` or `self-hosted`.
    pub runner_environment: Option<String>,
    /// Where the pipeline's definition is from.
    pub definition: Option<String>,
}

impl Claims {
    /// Who the job acts for.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity {
            provider: self.issuer.clone(),
            user_id: Some(self.user_id),
            login: self.user_login.clone(),
            project_id: Some(self.project_id),
            project_path: Some(self.project_path.clone()),
            pipeline_id: Some(self.pipeline_id),
            job_id: Some(self.job_id),
            environment: self.environment.clone(),
            sha: Some(self.sha.clone()),
            ref_name: Some(self.reference.clone()),
            ref_is_tag: self.reference_kind == "tag",
        }
    }
}

/// What a token says, if it is to be believed.
///
/// # Errors
/// It is not; the refusal names the rule.
pub(super) fn verify(
    token: Unverified<'_>,
    keys: &KeySet,
    policy: &IdTokenPolicy,
    now: Timestamp,
) -> Result<Claims, Refusal> {
    let members = token.verify(keys)?;
    check_issuer(&members, &policy.issuer)?;
    check_audience(&members, &policy.audience)?;
    let expires = check_times(&members, policy.lifetime_max, now)?;
    let claims = read(&members, expires)?;
    if !policy.projects.contains(&claims.project_id) {
        return Err(Refusal::Project {
            id: claims.project_id,
            path: claims.project_path,
        });
    }
    // In a fork's merge request the token is the fork's, and the pipeline ours.
    match members.0.get("job_project_id") {
        None | Some(Value::Null) => {}
        Some(_) if members.number("job_project_id") == Ok(claims.project_id) => {}
        Some(other) => {
            return Err(Refusal::Fork {
                project: claims.project_id,
                job_project: shown(other),
            });
        }
    }
    Ok(claims)
}

/// `iss` is the configured text, to the letter.
pub(super) fn check_issuer(members: &Members, expected: &str) -> Result<(), Refusal> {
    let found = members.0.get("iss");
    if found.and_then(Value::as_str) == Some(expected) {
        return Ok(());
    }
    Err(Refusal::Issuer {
        found: found.map_or_else(|| "nothing".to_owned(), shown),
        expected: expected.to_owned(),
    })
}

/// `aud` is ours alone: whoever else it is for could use it here.
pub(super) fn check_audience(members: &Members, expected: &str) -> Result<(), Refusal> {
    let is_ours = |value: &Value| value.as_str() == Some(expected);
    let found = members.0.get("aud");
    let fits = match found {
        Some(Value::Array(all)) => !all.is_empty() && all.iter().all(is_ours),
        Some(one) => is_ours(one),
        None => false,
    };
    if fits {
        return Ok(());
    }
    Err(Refusal::Audience {
        found: found.map_or_else(|| "nothing".to_owned(), shown),
        expected: expected.to_owned(),
    })
}

/// `exp`, `nbf` and `iat`, all three there; when it ends.
pub(super) fn check_times(
    members: &Members,
    lifetime_max: Duration,
    now: Timestamp,
) -> Result<i64, Refusal> {
    let (expires, made) = (members.seconds("exp")?, members.seconds("iat")?);
    // GitLab's tokens for people have none.
    let from = match members.0.get("nbf") {
        None => made,
        Some(_) => members.seconds("nbf")?,
    };
    let now = now.as_second();
    let ahead = |seconds: i64| Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    if expires + LEEWAY_SECONDS <= now {
        return Err(Refusal::Expired(ahead(now - expires)));
    }
    if from > now + LEEWAY_SECONDS {
        return Err(Refusal::NotYet(ahead(from - now)));
    }
    if made > now + LEEWAY_SECONDS {
        return Err(Refusal::FromTheFuture(ahead(made - now)));
    }
    if expires <= made {
        return Err(Refusal::Claim("exp"));
    }
    let found = ahead(expires - made);
    if found > lifetime_max {
        return Err(Refusal::Lifetime {
            found,
            max: lifetime_max,
        });
    }
    Ok(expires)
}

/// The claims, of which most must be there.
fn read(members: &Members, expires: i64) -> Result<Claims, Refusal> {
    let text = |name: &'static str| {
        let text = members.text(name)?;
        if text.len() > CLAIM_BYTES_MAX || text.chars().any(char::is_control) {
            return Err(Refusal::Claim(name));
        }
        Ok(text.to_owned())
    };
    let text_if_any = |name: &'static str| match members.text_if_any(name)? {
        None => Ok(None),
        Some(_) => text(name).map(Some),
    };
    let job_id = members.number("job_id")?;
    let pipeline_id = members.number("pipeline_id")?;
    let sha = text("sha")?;
    let is_hex = sha.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if !matches!(sha.len(), 40 | 64) || !is_hex {
        return Err(Refusal::Claim("sha"));
    }
    let project_id = members.number("project_id")?;
    let is_protected = match text_if_any("ref_protected")?.as_deref() {
        Some("true") => true,
        Some("false") | None => false,
        Some(_) => return Err(Refusal::Claim("ref_protected")),
    };
    let runner_id = match members.0.get("runner_id") {
        None | Some(Value::Null) => None,
        Some(id) => Some(id.as_u64().ok_or(Refusal::Claim("runner_id"))?),
    };
    let user_login = text("user_login")?;
    if !is_login(&user_login) {
        return Err(Refusal::Claim("user_login"));
    }
    Ok(Claims {
        issuer: text("iss")?,
        token_id: text("jti")?,
        expires,
        project_id,
        project_path: text("project_path")?,
        pipeline_id,
        pipeline_source: text("pipeline_source")?,
        job_id,
        user_id: members.number("user_id")?,
        user_login,
        sha,
        reference: text("ref")?,
        reference_kind: text("ref_type")?,
        is_protected,
        environment: text_if_any("environment")?,
        tier: text_if_any("deployment_tier")?,
        runner_id,
        runner_environment: text_if_any("runner_environment")?,
        definition: text_if_any("ci_config_ref_uri")?,
    })
}

/// A claim as a refusal repeats it.
fn shown(value: &Value) -> String {
    /// Longest piece of a claim that is repeated, in characters.
    const SHOWN_MAX: usize = 80;
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            value.to_string()
        }
    };
    text.chars().take(SHOWN_MAX).collect()
}

#[cfg(test)]
mod tests;
