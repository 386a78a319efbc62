//! What the stand-in keeps, and what it answers: the rules of GitLab's that our side depends on.

use serde_json::{Value, json};

use super::{PROJECT, Seen};

/// What it was told.
#[derive(Debug, Default)]
pub struct Records {
    /// Deployments, oldest first.
    pub deployments: Vec<Value>,
    /// Commit statuses, one for each name.
    pub statuses: Vec<Value>,
    /// Notes of merge requests, with `noteable_iid`.
    pub notes: Vec<Value>,
    /// Merge requests of every commit.
    pub merge_requests: Vec<Value>,
    /// Issues.
    pub issues: Vec<Value>,
    /// Releases.
    pub releases: Vec<Value>,
    /// Freeze periods, oldest first.
    pub freeze_periods: Vec<Value>,
    /// Pipelines.
    pub pipelines: Vec<Value>,
    /// Jobs.
    pub jobs: Vec<Value>,
    /// What came to the alert endpoint.
    pub alerts: Vec<Value>,
    /// What came to the chat.
    pub lines: Vec<Value>,
    /// What came to the webhook.
    pub hooks: Vec<Seen>,
    /// Whether job tokens are none any more.
    pub job_has_ended: bool,
    last_id: u64,
}

/// A sample of GitLab's.
pub(super) fn sample(text: &str) -> Value {
    serde_json::from_str(text).expect("our samples are JSON")
}

/// A sample's form with these fields in place of its own.
fn like(text: &str, fields: Value) -> Value {
    let mut value = sample(text);
    if let (Some(value), Value::Object(fields)) = (value.as_object_mut(), fields) {
        value.extend(fields);
    }
    value
}

type Answer = (u16, Value);

fn refused(status: u16, message: &str) -> Answer {
    (status, json!({ "message": message }))
}

impl Records {
    /// A merge request of every commit, in this state.
    pub fn add_merge_request(&mut self, iid: u64, state: &str) {
        let samples = sample(include_str!(
            "../../../../tests/data/gitlab/rest-commit-merge-requests.json"
        ));
        let mut one = samples[0].clone();
        one["iid"] = json!(iid);
        one["state"] = json!(state);
        self.merge_requests.push(one);
    }

    /// A deployment that a job made by itself.
    pub fn add_deployment_of_job(&mut self, environment: &str, sha: &str, pipeline: u64) {
        let id = self.id();
        self.deployments.push(like(
            include_str!("../../../../tests/data/gitlab/rest-deployment-created.json"),
            json!({
                "id": id, "sha": sha, "environment": { "name": environment }, "status": "running",
                "deployable": { "id": 1, "pipeline": { "id": pipeline } },
            }),
        ));
    }

    /// A freeze from one cron to the next of the other, both by UTC.
    pub fn add_freeze_period(&mut self, start: &str, end: &str) {
        let samples = sample(include_str!(
            "../../../../tests/data/gitlab/rest-freeze-periods.json"
        ));
        let mut one = samples[0].clone();
        one["id"] = json!(self.id());
        one["freeze_start"] = json!(start);
        one["freeze_end"] = json!(end);
        one["cron_timezone"] = json!("UTC");
        self.freeze_periods.push(one);
    }

    /// A pipeline in this state, in place of what it was in.
    pub fn set_pipeline(&mut self, id: u64, status: &str) {
        self.pipelines.retain(|one| one["id"] != id);
        self.pipelines.push(like(
            include_str!("../../../../tests/data/gitlab/rest-pipeline.json"),
            json!({ "id": id, "status": status }),
        ));
    }

    /// A job in this state, in place of what it was in.
    pub fn set_job(&mut self, id: u64, status: &str) {
        self.jobs.retain(|one| one["id"] != id);
        self.jobs.push(like(
            include_str!("../../../../tests/data/gitlab/rest-manual-job.json"),
            json!({ "id": id, "status": status }),
        ));
    }

    /// Every deployment is some job's own from now on: GitLab moves it with the job, and lets nobody else.
    pub fn give_deployments_to_their_jobs(&mut self, pipeline: u64) {
        for one in &mut self.deployments {
            one["deployable"] = json!({ "id": 1, "pipeline": { "id": pipeline } });
        }
    }

    fn id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(super) fn answer(&mut self, seen: &Seen) -> Answer {
        match seen.path.as_str() {
            "/alert" => {
                self.alerts.push(seen.body.clone());
                return (200, json!([]));
            }
            "/chat" => {
                self.lines.push(seen.body.clone());
                return (200, json!("ok"));
            }
            "/hook" => {
                self.hooks.push(seen.clone());
                return (200, Value::Null);
            }
            _ => {}
        }
        let prefix = format!("/api/v4/projects/{PROJECT}/");
        let Some(path) = seen.path.strip_prefix(&prefix) else {
            return refused(404, "404 Project Not Found");
        };
        let is_known = seen.token == "project" || (seen.token == "job" && !self.job_has_ended);
        if !is_known {
            return refused(401, "401 Unauthorized");
        }
        let parts: Vec<&str> = path.split('/').collect();
        let needs_project = matches!(
            (seen.method.as_str(), parts.as_slice()),
            ("POST", ["statuses", _])
                | ("POST" | "PUT", ["merge_requests", _, "notes", ..])
                | ("POST" | "PUT", ["issues", ..])
                | ("GET", ["freeze_periods"] | ["jobs", _])
        );
        if needs_project && seen.token != "project" {
            return refused(403, "403 Forbidden");
        }
        match (seen.method.as_str(), parts.as_slice()) {
            ("GET", ["deployments"]) => {
                let wanted = parameter(&seen.query, "environment");
                let mut all = self.deployments.clone();
                all.retain(|one| one["environment"]["name"] == wanted.as_str());
                all.reverse();
                (200, json!(all))
            }
            ("POST", ["deployments"]) => self.deploy(&seen.body),
            ("PUT", ["deployments", id]) => self.move_deployment(id, &seen.body),
            ("POST", ["statuses", sha]) => self.set_status(sha, &seen.body),
            ("GET", ["repository", "commits", _, "merge_requests"]) => {
                (200, json!(self.merge_requests))
            }
            ("GET", ["merge_requests", iid, "notes"]) => {
                let mut all = self.notes.clone();
                all.retain(|note| is(note.get("noteable_iid"), iid));
                all.reverse();
                (200, json!(all))
            }
            ("POST", ["merge_requests", iid, "notes"]) => {
                let iid: u64 = iid.parse().unwrap_or(0);
                let id = self.id();
                let note = like(
                    include_str!("../../../../tests/data/gitlab/rest-note.json"),
                    json!({ "id": id, "noteable_iid": iid, "body": seen.body["body"] }),
                );
                self.notes.push(note.clone());
                (201, note)
            }
            ("PUT", ["merge_requests", iid, "notes", id]) => {
                let found = self
                    .notes
                    .iter_mut()
                    .find(|note| is(note.get("id"), id) && is(note.get("noteable_iid"), iid));
                let Some(note) = found else {
                    return refused(404, "404 Not found");
                };
                note["body"] = seen.body["body"].clone();
                (200, note.clone())
            }
            ("GET", ["issues"]) => {
                let wanted = parameter(&seen.query, "search");
                let is_wanted = |issue: &&Value| {
                    issue["title"]
                        .as_str()
                        .is_some_and(|title| title.contains(&wanted))
                };
                let found: Vec<&Value> = self.issues.iter().filter(is_wanted).collect();
                (200, json!(found))
            }
            ("POST", ["issues"]) => {
                let iid = self.id();
                let issue = json!({
                    "id": 9_000 + iid, "iid": iid, "state": "opened", "title": seen.body["title"],
                    "description": seen.body["description"],
                });
                self.issues.push(issue.clone());
                (201, issue)
            }
            ("PUT", ["issues", iid]) => {
                let found = self
                    .issues
                    .iter_mut()
                    .find(|issue| is(issue.get("iid"), iid));
                let Some(issue) = found else {
                    return refused(404, "404 Not found");
                };
                issue["description"] = seen.body["description"].clone();
                if seen.body["state_event"] == "close" {
                    issue["state"] = json!("closed");
                }
                (200, issue.clone())
            }
            ("GET", ["releases", tag]) => {
                let found = self
                    .releases
                    .iter()
                    .find(|release| release["tag_name"] == *tag);
                found.map_or_else(|| refused(404, "404 Not Found"), |one| (200, one.clone()))
            }
            ("POST", ["releases"]) => {
                let is_there = |release: &Value| release["tag_name"] == seen.body["tag_name"];
                if self.releases.iter().any(is_there) {
                    return refused(409, "Release already exists");
                }
                self.releases.push(seen.body.clone());
                (201, seen.body.clone())
            }
            ("GET", ["freeze_periods"]) => (200, json!(self.freeze_periods)),
            ("GET", ["pipelines", id]) => one_of(&self.pipelines, id),
            ("GET", ["jobs", id]) => one_of(&self.jobs, id),
            _ => refused(404, "404 Not Found"),
        }
    }

    fn deploy(&mut self, body: &Value) -> Answer {
        let id = self.id();
        let now = rollout::Timestamp::UNIX_EPOCH.to_string();
        let deployment = like(
            include_str!("../../../../tests/data/gitlab/rest-deployment-created.json"),
            json!({
                "id": id, "sha": body["sha"], "ref": body["ref"], "status": body["status"],
                "environment": { "name": body["environment"] }, "created_at": null, "updated_at": now,
            }),
        );
        self.deployments.push(deployment.clone());
        (201, deployment)
    }

    fn move_deployment(&mut self, id: &str, body: &Value) -> Answer {
        let found = self
            .deployments
            .iter_mut()
            .find(|one| is(one.get("id"), id));
        let Some(one) = found else {
            return refused(404, "404 Not found");
        };
        if !one["deployable"].is_null() {
            let sample = sample(include_str!(
                "../../../../tests/data/gitlab/rest-deployment-update-refused.json"
            ));
            return (403, sample["body"].clone());
        }
        if one["status"] == body["status"] || body["status"] == "running" {
            return cannot_transition(&one["status"]);
        }
        one["status"] = body["status"].clone();
        (200, one.clone())
    }

    fn set_status(&mut self, sha: &str, body: &Value) -> Answer {
        let fields = json!({
            "sha": sha, "ref": body["ref"], "status": body["state"], "name": body["name"],
            "description": body["description"], "pipeline_id": body["pipeline_id"], "target_url": body["target_url"],
        });
        let found = self
            .statuses
            .iter_mut()
            .find(|one| one["name"] == body["name"]);
        let Some(one) = found else {
            let id = self.id();
            let mut made = like(
                include_str!("../../../../tests/data/gitlab/rest-commit-status.json"),
                fields,
            );
            made["id"] = json!(id);
            self.statuses.push(made.clone());
            return (201, made);
        };
        if one["status"] == body["state"] {
            return cannot_transition(&one["status"]);
        }
        if let (Some(one), Value::Object(fields)) = (one.as_object_mut(), fields) {
            one.extend(fields);
        }
        (201, one.clone())
    }
}

fn cannot_transition(from: &Value) -> Answer {
    let from = from.as_str().unwrap_or_default();
    let text = format!("Cannot transition status via :run from :{from}");
    (400, json!({ "message": { "status": [text] } }))
}

/// A parameter of a query, decoded.
fn parameter(query: &str, name: &str) -> String {
    let value = query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key == name).then_some(value)
    });
    decode(value.unwrap_or_default())
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next().unwrap_or(b'0'), rest.next().unwrap_or(b'0')];
            let digits = String::from_utf8_lossy(&digits).into_owned();
            bytes.push(u8::from_str_radix(&digits, 16).unwrap_or(b'?'));
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The record with this id.
fn one_of(all: &[Value], id: &str) -> Answer {
    let found = all.iter().find(|one| is(one.get("id"), id));
    found.map_or_else(|| refused(404, "404 Not found"), |one| (200, one.clone()))
}

/// Whether a number of a record is the one in a path.
fn is(number: Option<&Value>, path: &str) -> bool {
    let asked: Option<u64> = path.parse().ok();
    asked.is_some() && number.and_then(Value::as_u64) == asked
}
