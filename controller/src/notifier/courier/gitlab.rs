//! Bringing a message to GitLab: each makes a state true, and looks for what it may have made before it makes it.

use http::Method;
use rollout::{Duration, Timestamp};
use serde_json::{Value, json};

use super::Undelivered;
use crate::gitlab::client::encode;
use crate::gitlab::{Answer, Credential, Gitlab, GitlabError, Secret};
use crate::notifier::letter::What;
use crate::origin::{JobTokens, Origin};
use crate::store::Store;
use crate::store::outbox::Message;

/// Pages of 20 in which a record of ours is looked for. A merge request with more notes than that has other worries.
const PAGES_MAX: usize = 50;

/// Deployments of one environment among which that of a rollout, or of its job, is looked for. So many since either began
/// are not.
const DEPLOYMENTS_MAX: usize = 100;

/// How much GitLab's clock may be behind ours. A record that was made before its rollout by more is not its own.
const CLOCKS_MAX: Duration = Duration::from_secs(300);

/// The status that a deployment begins with.
const RUNNING: &str = "running";

/// One message on its way to GitLab.
#[derive(Debug)]
pub(super) struct Errand<'a> {
    pub(super) store: &'a dyn Store,
    pub(super) gitlab: &'a Gitlab,
    pub(super) job_tokens: &'a JobTokens,
    pub(super) message: &'a Message,
    pub(super) origin: &'a Origin,
}

/// What came about, by its id there.
type Told = Result<Option<String>, Undelivered>;

impl Errand<'_> {
    pub(super) async fn bring(&self, what: &What) -> Told {
        match what {
            What::Status {
                state,
                name,
                description,
                target_url,
            } => {
                self.status(state, name, description, target_url.as_deref())
                    .await
            }
            What::Note { marker, body } => self.note(marker, body).await,
            What::Deployment {
                environment,
                status,
                since,
            } => self.deployment(environment, status, *since).await,
            What::Release {
                tag,
                name,
                description,
            } => self.release(tag, name, description).await,
            What::Ticket {
                marker,
                title,
                description,
                is_over,
            } => self.ticket(marker, title, description, *is_over).await,
            What::Alert { .. } | What::Slack { .. } | What::Webhook { .. } => {
                Err(Undelivered::never("this is not for GitLab's API"))
            }
        }
    }

    fn project(&self, path: &str) -> String {
        format!("/projects/{}{path}", self.origin.project_id)
    }

    /// What only the project token may do.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, GitlabError> {
        let path = self.project(path);
        self.gitlab
            .call(method, &path, body, Credential::Project)
            .await
    }

    /// What the job's own token may do as well, as long as its job runs: the project token is not shown where it need not be.
    async fn ask_as_job(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, GitlabError> {
        let no_job = || GitlabError::NoJob {
            action: format!("{method} {path}"),
        };
        let token = self.job_tokens.of(&self.message.rollout);
        let token = token.and_then(|token| Secret::from_text(token.reveal()));
        if token.is_none() && !self.gitlab.has_token() {
            return Err(no_job());
        }
        if let Some(token) = token {
            let path = self.project(path);
            let as_job = Credential::Job(token);
            let asked = self.gitlab.call(method.clone(), &path, body, as_job).await;
            let is_refused = asked
                .as_ref()
                .is_err_and(|error| matches!(error.status(), Some(401 | 403 | 404)));
            if !is_refused || !self.gitlab.has_token() {
                // It died with its job. That keeps this rollout waiting, and nobody else.
                return match asked {
                    Err(error) if error.status() == Some(401) => Err(no_job()),
                    asked => asked,
                };
            }
        }
        self.ask(method, path, body).await
    }

    async fn remembered(&self) -> Result<Option<String>, Undelivered> {
        let Message { rollout, topic, .. } = self.message;
        Ok(self.store.told(rollout, topic).await?)
    }

    /// The first entry of a list, page by page, for which `pick` finds something. People write what is in it, and may write
    /// more than is read: then there is none. A record that is made twice is better than one that a stranger prevents.
    async fn find<T>(
        &self,
        path: &str,
        mut pick: impl FnMut(&Value) -> Option<T>,
    ) -> Result<Option<T>, Undelivered> {
        let mut asked = self.ask_as_job(Method::GET, path, None).await;
        for _ in 0..PAGES_MAX {
            let answer = match asked {
                Err(error @ GitlabError::TooLong { .. }) => {
                    tracing::warn!(rollout = %self.message.rollout, topic = self.message.topic, %error, "a record of ours is not looked for further");
                    return Ok(None);
                }
                asked => asked?,
            };
            let entries = entries(&answer.body)?;
            if let Some(found) = entries.iter().find_map(&mut pick) {
                return Ok(Some(found));
            }
            let Some(next) = answer.next else {
                return Ok(None);
            };
            let credential = if self.gitlab.has_token() {
                Credential::Project
            } else {
                let token = self.job_tokens.of(&self.message.rollout);
                let token = token.and_then(|token| Secret::from_text(token.reveal()));
                token.map_or(Credential::Nobody, Credential::Job)
            };
            asked = self.gitlab.next(&next, credential).await;
        }
        Ok(None)
    }

    async fn status(
        &self,
        state: &str,
        name: &str,
        description: &str,
        target_url: Option<&str>,
    ) -> Told {
        let Origin {
            sha,
            ref_name,
            pipeline_id,
            ..
        } = self.origin;
        let mut body = json!({
            "state": state, "name": name, "ref": ref_name, "description": description, "pipeline_id": pipeline_id,
        });
        if let (Some(url), Some(fields)) = (target_url, body.as_object_mut()) {
            fields.insert("target_url".to_owned(), json!(url));
        }
        let path = format!("/statuses/{}", encode(sha));
        match self.ask(Method::POST, &path, Some(&body)).await {
            // GitLab finds a status again by its name: it is this one already.
            Err(error) if is_so_already(&error) => Ok(None),
            answer => Ok(id(&answer?.body)),
        }
    }

    /// The merge request of the commit: the pipeline's own, else an open one, else one that was merged.
    async fn merge_request(&self) -> Result<Option<u64>, Undelivered> {
        if let Some(iid) = self.origin.merge_request_iid {
            return Ok(Some(iid));
        }
        let sha = encode(&self.origin.sha);
        let path = format!("/repository/commits/{sha}/merge_requests?per_page=20");
        let answer = match self.ask_as_job(Method::GET, &path, None).await {
            // People filled their descriptions with more than is read: as good as none.
            Err(error @ GitlabError::TooLong { .. }) => {
                tracing::warn!(rollout = %self.message.rollout, %error, "the commit's merge requests cannot be read");
                return Ok(None);
            }
            asked => asked?,
        };
        let all = entries(&answer.body)?;
        let of = |state: &str| {
            let found = all.iter().find(|one| one["state"] == state)?;
            found["iid"].as_u64()
        };
        Ok(of("opened").or_else(|| of("merged")))
    }

    async fn note(&self, marker: &str, body: &str) -> Told {
        let content = json!({ "body": body });
        // Remembered as IID/NOTE.
        let remembered = self.remembered().await?;
        if let Some((iid, note)) = remembered.as_deref().and_then(|both| both.split_once('/')) {
            let path = format!("/merge_requests/{iid}/notes/{note}");
            match self.ask(Method::PUT, &path, Some(&content)).await {
                Ok(_) => return Ok(remembered),
                // Somebody removed it: it is made anew.
                Err(error) if error.status() == Some(404) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let Some(iid) = self.merge_request().await? else {
            // A commit without a merge request has nobody to tell.
            return Ok(None);
        };
        let notes = format!("/merge_requests/{iid}/notes");
        let query = format!("{notes}?order_by=created_at&sort=desc&per_page=20");
        let ours = self.find(&query, |note| {
            let is_ours = note["body"]
                .as_str()
                .is_some_and(|text| text.contains(marker));
            is_ours.then(|| note["id"].as_u64()).flatten()
        });
        if let Some(note) = ours.await? {
            let path = format!("{notes}/{note}");
            match self.ask(Method::PUT, &path, Some(&content)).await {
                Ok(_) => return Ok(Some(format!("{iid}/{note}"))),
                // Somebody copied our words into a note of theirs.
                Err(error) if matches!(error.status(), Some(403 | 404)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let made = self.ask(Method::POST, &notes, Some(&content)).await?;
        let note = required_id(&made.body)?;
        Ok(Some(format!("{iid}/{note}")))
    }

    async fn deployment(&self, environment: &str, status: &str, since: Timestamp) -> Told {
        let id = match self.remembered().await? {
            Some(id) => Some(id),
            None => match self.look_for_deployment(environment, since).await? {
                Some(Deployed::ByJob) => return Ok(None),
                Some(Deployed::ByUs { id, status: seen }) if seen == status => {
                    return Ok(Some(id));
                }
                Some(Deployed::ByUs { id, .. }) => Some(id),
                None => None,
            },
        };
        if let Some(id) = id {
            if status == RUNNING {
                // It began with that, and nothing goes back to it.
                return Ok(Some(id));
            }
            let path = format!("/deployments/{}", encode(&id));
            let body = json!({ "status": status });
            return match self.ask_as_job(Method::PUT, &path, Some(&body)).await {
                Ok(_) => Ok(Some(id)),
                // 403: a job's own, which follows the job; 404: somebody removed it. Both are for others to say.
                Err(error) if matches!(error.status(), Some(403 | 404)) => Ok(None),
                Err(error) if is_so_already(&error) => Ok(Some(id)),
                Err(error) => Err(error.into()),
            };
        }
        let Origin {
            sha,
            ref_name,
            ref_is_tag,
            ..
        } = self.origin;
        let body = json!({
            "environment": environment, "sha": sha, "ref": ref_name, "tag": ref_is_tag, "status": status,
        });
        let made = self
            .ask_as_job(Method::POST, "/deployments", Some(&body))
            .await?;
        required_id(&made.body).map(Some)
    }

    /// The record of this rollout, or of the job that asked for it.
    async fn look_for_deployment(
        &self,
        environment: &str,
        since: Timestamp,
    ) -> Result<Option<Deployed>, Undelivered> {
        let path = format!(
            "/deployments?environment={}&order_by=id&sort=desc&per_page=20",
            encode(environment)
        );
        let mut read = 0;
        let mut candidates = Vec::new();
        let of_job = |one: &Value| {
            let job = &one["deployable"];
            job["pipeline"]["id"].as_u64() == Some(self.origin.pipeline_id)
                || job["id"].as_u64() == Some(self.origin.job_id)
        };
        let is_by_job = self.find(&path, |one| {
            read += 1;
            let is_of_commit = one["sha"] == self.origin.sha.as_str();
            if is_of_commit && one["deployable"].is_null() {
                let made = one["created_at"].as_str().and_then(|at| at.parse().ok());
                let is_old = made.is_some_and(|made: Timestamp| made + CLOCKS_MAX < since);
                let status = one["status"].as_str().unwrap_or_default().to_owned();
                candidates.extend(id(one).filter(|_| !is_old).map(|id| (id, status)));
            }
            let is_by_job = is_of_commit && of_job(one);
            (is_by_job || read >= DEPLOYMENTS_MAX).then_some(is_by_job)
        });
        let is_by_job = is_by_job.await?.unwrap_or_default();
        let Message { rollout, topic, .. } = self.message;
        for (id, status) in candidates {
            if !self.store.is_anothers(rollout, topic, &id).await? {
                return Ok(Some(Deployed::ByUs { id, status }));
            }
        }
        Ok(is_by_job.then_some(Deployed::ByJob))
    }

    async fn release(&self, tag: &str, name: &str, description: &str) -> Told {
        let path = format!("/releases/{}", encode(tag));
        match self.ask_as_job(Method::GET, &path, None).await {
            // It is there: by us, or by people, whose words stay.
            Ok(_) => return Ok(Some(tag.to_owned())),
            Err(error) if error.status() == Some(404) => {}
            Err(error) => return Err(error.into()),
        }
        let body = json!({
            "tag_name": tag, "ref": self.origin.sha, "name": name, "description": description,
        });
        match self
            .ask_as_job(Method::POST, "/releases", Some(&body))
            .await
        {
            Ok(_) => Ok(Some(tag.to_owned())),
            // Between the two somebody made it.
            Err(GitlabError::Refused { status: 409, .. }) => Ok(Some(tag.to_owned())),
            Err(error) => Err(error.into()),
        }
    }

    async fn ticket(&self, marker: &str, title: &str, description: &str, is_over: bool) -> Told {
        let iid = match self.remembered().await? {
            Some(iid) => Some(iid),
            None => {
                let path = format!(
                    "/issues?scope=all&in=title&search={}&order_by=created_at&sort=desc&per_page=20",
                    encode(title)
                );
                self.find(&path, |issue| {
                    let text = issue["description"].as_str().unwrap_or_default();
                    text.contains(marker)
                        .then(|| issue["iid"].as_u64())
                        .flatten()
                })
                .await?
                .map(|iid| iid.to_string())
            }
        };
        let iid = match iid {
            Some(iid) => iid,
            None => {
                let body = json!({
                    "title": title, "description": description, "labels": ["friday", "change"],
                });
                let made = self.ask(Method::POST, "/issues", Some(&body)).await?;
                let iid = made.body["iid"].as_u64();
                let iid =
                    iid.ok_or_else(|| Undelivered::later("GitLab's answer names no issue"))?;
                if !is_over {
                    return Ok(Some(iid.to_string()));
                }
                iid.to_string()
            }
        };
        let mut body = json!({ "description": description });
        if let (true, Some(fields)) = (is_over, body.as_object_mut()) {
            fields.insert("state_event".to_owned(), json!("close"));
        }
        let path = format!("/issues/{}", encode(&iid));
        match self.ask(Method::PUT, &path, Some(&body)).await {
            // Somebody removed it: it is not for us to bring it back.
            Err(error) if error.status() == Some(404) => Ok(None),
            answer => answer.map(|_| Some(iid)).map_err(Undelivered::from),
        }
    }
}

/// A deployment record that is there.
enum Deployed {
    ByJob,
    ByUs { id: String, status: String },
}

/// A transition to the state that it has, or that is behind it.
fn is_so_already(error: &GitlabError) -> bool {
    match error {
        GitlabError::Refused {
            status: 400,
            message,
            ..
        } => message.contains("Cannot transition status"),
        GitlabError::Refused { .. }
        | GitlabError::Unreachable { .. }
        | GitlabError::TooLong { .. }
        | GitlabError::Limited { .. }
        | GitlabError::Malformed { .. }
        | GitlabError::NoToken { .. }
        | GitlabError::NoJob { .. } => false,
    }
}

fn entries(body: &Value) -> Result<&Vec<Value>, Undelivered> {
    let list = body.as_array();
    list.ok_or_else(|| Undelivered::later("GitLab's answer is no list"))
}

fn id(body: &Value) -> Option<String> {
    body["id"].as_u64().map(|id| id.to_string())
}

fn required_id(body: &Value) -> Result<String, Undelivered> {
    id(body).ok_or_else(|| Undelivered::later("GitLab's answer has no id"))
}
