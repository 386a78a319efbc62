//! A look at a service: what is wanted, what is there, and which of it may get requests.

use std::collections::{BTreeMap, HashMap};
use std::sync::PoisonError;

use proxy_api::{Arm, Endpoint};
use rollout::{Release, ServiceName};
use serde_json::Value;

use super::engine::EngineError;
use super::model::{Service, Task};
use super::ready::Answer;
use super::{Pair, Reach, Swarm, spec, tasks};
use crate::orchestrator::{Group, OrchestratorError, ServiceState, Task as SeenTask, off_runtime};

impl Swarm {
    pub(super) async fn look(
        &self,
        service: &ServiceName,
    ) -> Result<ServiceState, OrchestratorError> {
        let failed = |error| self.engine.error(&format!("the service {service}"), error);
        let seen = match self.services_and_tasks(service).await {
            // A canary that was removed between the two calls. The next time it is not there from the beginning.
            Err(EngineError::NotFound(_)) => self.services_and_tasks(service).await,
            seen => seen,
        };
        let Some((pair, tasks)) = seen.map_err(failed)? else {
            return Err(self.unknown(service).await);
        };
        let reach = self.reach_of(service)?;
        self.learn_tags(service, &pair, &tasks).await?;
        self.learn_nodes(&tasks).await.map_err(failed)?;
        self.take_command(service, &pair).await;

        let stable_release = self.release_of(service, &pair.stable.spec).await?;
        let mut asked = Vec::new();
        let mut endpoints = HashMap::new();
        for task in tasks.iter().filter(|task| tasks::is_there(task)) {
            let address = tasks::address(task, self.network.as_deref())?;
            let endpoint = address.and_then(|address| tasks::endpoint(address, reach.port));
            if let Some(endpoint) = endpoint {
                if tasks::is_running(task) {
                    asked.push((task.id.clone(), endpoint.clone()));
                }
                endpoints.insert(task.id.clone(), endpoint);
            }
        }
        let answers = self
            .checks
            .answers(service, &asked, &reach.ready_path)
            .await;
        let seen = Seen {
            service,
            tasks: &tasks,
            endpoints,
            answers,
        };
        let stable = self.group(&seen, Arm::Stable, &pair.stable, stable_release);
        let canary = pair.canary.as_ref().and_then(|canary| {
            // Ours always name their digest; one that somebody changed by hand is as if it were not there, and made anew.
            let release = spec::release(&canary.spec, |_| None)?;
            Some(self.group(&seen, Arm::Canary, canary, release))
        });
        Ok(ServiceState { stable, canary })
    }

    async fn services_and_tasks(
        &self,
        service: &ServiceName,
    ) -> Result<Option<(Pair, Vec<Task>)>, EngineError> {
        let Some(pair) = self.pair(service).await? else {
            return Ok(None);
        };
        let canary = pair.canary.as_ref().map(|canary| canary.id.as_str());
        let stable = Some(pair.stable.id.as_str()).filter(|_| !pair.stable.is_removed());
        let ids: Vec<&str> = stable.into_iter().chain(canary).collect();
        let tasks = self.engine.tasks(&ids).await?;
        Ok(Some((pair, tasks)))
    }

    fn reach_of(&self, service: &ServiceName) -> Result<Reach, OrchestratorError> {
        let known = self.reach.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(service).cloned().ok_or_else(|| OrchestratorError::Refused {
            what: format!("a look at {service}"),
            reason: "nothing says which port its tasks listen on: deploy it with its friday.yml, or name that with --service".to_owned(),
        })
    }

    /// The release that a spec of the service runs.
    pub(super) async fn release_of(
        &self,
        service: &ServiceName,
        spec: &Value,
    ) -> Result<Release, OrchestratorError> {
        let release = spec::release(spec, |image| self.images.meaning(service, image));
        release.ok_or_else(|| OrchestratorError::Refused {
            what: format!("the image {:?} of {service}", spec::image(spec)),
            reason: "it names no digest, and this engine does not have it to look it up: update the service to an image with its digest".to_owned(),
        })
    }

    /// An image without a digest is what its tag meant on this engine when it was first seen with the service. It may mean
    /// another on another node, or later: `friday lint` warns of such images.
    async fn learn_tags(
        &self,
        service: &ServiceName,
        pair: &Pair,
        tasks: &[Task],
    ) -> Result<(), OrchestratorError> {
        let images = tasks
            .iter()
            .map(|task| task.spec.container_spec.image.as_str())
            .chain([spec::image(&pair.stable.spec)]);
        let mut tags = BTreeMap::new();
        for image in images.filter(|image| spec::is_floating(image)) {
            if tags.contains_key(image) {
                continue;
            }
            let known = self.images.meaning(service, image);
            let digest = match known {
                Some(digest) => Some(digest),
                None => self.local_digest(image).await?,
            };
            tags.extend(digest.map(|digest| (image.to_owned(), digest)));
        }
        let images = self.images.clone();
        let service = service.clone();
        off_runtime(move || images.meanings(&service, tags)).await
    }

    async fn learn_nodes(&self, tasks: &[Task]) -> Result<(), EngineError> {
        let is_new = {
            let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
            let mut ids = tasks.iter().map(|task| &task.node);
            ids.any(|id| !id.is_empty() && !nodes.contains_key(id))
        };
        if is_new {
            let known = self.engine.nodes().await?;
            let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
            nodes.extend(known);
            // A node that has left the swarm is not asked for again at every look.
            for task in tasks {
                nodes
                    .entry(task.node.clone())
                    .or_insert_with(|| task.node.clone());
            }
        }
        Ok(())
    }

    /// Writes our term over an earlier controller's on the canary: what that one still wants to write is refused from
    /// then on. It restarts no task. On the stable service it is written with the next update: until then nothing of it
    /// is ours.
    async fn take_command(&self, service: &ServiceName, pair: &Pair) {
        let Some(canary) = &pair.canary else { return };
        let term = self.term();
        if spec::term(&canary.spec) >= term {
            return;
        }
        let spec = spec::with_term(&canary.spec, term);
        if let Err(error) = self.engine.update(canary, &spec, None).await {
            tracing::warn!(%service, error = error.words(), "cannot take the canary over from an earlier controller; tried again");
        }
    }

    fn group(&self, seen: &Seen<'_>, arm: Arm, service: &Service, release: Release) -> Group {
        let of_service: Vec<&Task> = seen
            .tasks
            .iter()
            .filter(|task| task.service == service.id)
            .collect();
        let release_of = |task: &Task| {
            let image = &task.spec.container_spec.image;
            spec::release_of_image(image, |image| self.images.meaning(seen.service, image))
        };
        let wanted: Vec<&Task> = of_service
            .iter()
            .copied()
            .filter(|task| release_of(task).as_ref() == Some(&release.id))
            .collect();
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let there = of_service.iter().filter_map(|task| {
            let endpoint = seen.endpoints.get(&task.id)?;
            Some(SeenTask {
                id: task.id.clone(),
                release: release_of(task)?,
                endpoint: endpoint.clone(),
                node: nodes.get(&task.node).unwrap_or(&task.node).clone(),
                ready: tasks::is_running(task)
                    && seen.answers.get(&task.id) == Some(&Answer::Ready),
                memory_bytes: None,
                memory_bytes_max: None,
                cpu: None,
            })
        });
        let there: Vec<SeenTask> = there.collect();
        drop(nodes);
        let replicas = spec::replicas(&service.spec).unwrap_or_else(|| {
            let everywhere = of_service
                .iter()
                .filter(|task| task.desired_state == "running");
            u32::try_from(everywhere.count()).unwrap_or(u32::MAX)
        });
        let restarts = {
            let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
            let ends = ends.entry((seen.service.clone(), arm)).or_default();
            ends.count(&release.id, &wanted, self.clock.elapsed(), self.clock.now())
        };
        let trouble = self
            .update_trouble(seen.service, arm, service)
            .or_else(|| tasks::trouble(wanted.iter().copied()))
            .or_else(|| unready(&there, &seen.answers))
            .or_else(|| tasks::waiting(wanted.iter().copied()));
        Group {
            release,
            replicas,
            tasks: there,
            restarts,
            trouble,
        }
    }

    /// What the engine says of an update that it gave up (F35).
    fn update_trouble(&self, name: &ServiceName, arm: Arm, service: &Service) -> Option<String> {
        if arm == Arm::Stable
            && let Some((_, words)) = self.taken_back(name, service)
        {
            return Some(format!("the engine took the update back: {words}"));
        }
        super::stopped(service).map(|words| format!("the engine stopped the update: {words}"))
    }
}

/// What one look found.
struct Seen<'a> {
    service: &'a ServiceName,
    tasks: &'a [Task],
    endpoints: HashMap<String, Endpoint>,
    answers: HashMap<String, Answer>,
}

/// Why a running task is not ready.
fn unready(tasks: &[SeenTask], answers: &HashMap<String, Answer>) -> Option<String> {
    tasks.iter().find_map(|task| match answers.get(&task.id)? {
        Answer::Unready(why) => Some(tasks::shortened(&format!(
            "it runs on {} and is not ready: {why}",
            task.node
        ))),
        Answer::None | Answer::Ready => None,
    })
}
