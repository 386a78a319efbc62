//! How tasks are looked at: ready checks, samples of what they use, and why they ended.

use std::collections::HashMap;
use std::sync::Arc;

use nix::sys::signal::Signal;
use rollout::Duration;
use tokio::process::Child;
use tokio::sync::mpsc;

use super::super::group::Phase;
use super::super::identity::{Identity, Sample};
use super::super::launch;
use super::super::ready::ReadyCheck;
use super::super::record::Records;
use super::{Event, Running, every, send};
use crate::clock::Clock;

/// How often a task is asked whether it is ready.
const CHECK_EVERY: Duration = Duration::from_millis(200);

/// One mebibyte, for words.
const MIB: u64 = 1024 * 1024;

impl Running {
    pub(super) fn sampled(&mut self, id: &str, sample: Option<Sample>) {
        let service = self
            .parts
            .services
            .values_mut()
            .find(|service| service.tasks().any(|task| task.id == id));
        let Some(service) = service else { return };
        let limit = service.settings.memory_bytes_max;
        let Some(task) = service.groups_mut().find_map(|(_, group)| group.task(id)) else {
            return;
        };
        let Some(process) = task.process else { return };
        let Some(sample) = sample else {
            // Of our children we are told, with the exit code.
            if task.adopted && !task.has_ended {
                task.has_ended = true;
                let age = process.age().as_secs_f64();
                let how =
                    format!("ended after {age:.1} s; its exit code went to an earlier controller");
                let (events, records) = (self.events.clone(), self.parts.records.clone());
                self.jobs
                    .spawn(report_end(events, records, id.to_owned(), task.port, how));
            }
            return;
        };
        task.sample = sample;
        if let (Some(used), Some(limit)) = (sample.memory_bytes, limit)
            && used > limit
            && task.is_checked()
        {
            let reason = format!(
                "used {} MiB of its limit of {} MiB",
                used.div_ceil(MIB),
                limit / MIB
            );
            tracing::warn!(
                task = id,
                reason,
                "ending a task that is above its memory limit"
            );
            task.phase = Phase::OverLimit { reason };
            process.signal(Signal::SIGKILL);
        }
    }

    /// Has exactly those tasks checked whose ready check is of interest.
    pub(super) fn watch(&mut self) {
        let mut wanted = HashMap::new();
        for service in self.parts.services.values() {
            for task in service.tasks().filter(|task| task.is_checked()) {
                wanted.insert(task.id.clone(), (task.port, service.settings.ready.clone()));
            }
        }
        self.checks.retain(|id, check| {
            let stays = wanted.remove(id).is_some();
            if !stays {
                check.abort();
            }
            stays
        });
        for (id, (port, path)) in wanted {
            let checking = check(
                self.parts.ready_check.clone(),
                self.events.clone(),
                id.clone(),
                port,
                path,
            );
            let handle = self.jobs.spawn(checking);
            self.checks.insert(id, handle);
        }
    }

    /// Looks at all processes, away from the runtime's threads; one look at a time.
    pub(super) fn sample(&mut self) {
        if self.is_sampling {
            return;
        }
        self.is_sampling = true;
        let processes: Vec<(String, Identity)> = self.processes().collect();
        let (events, records) = (self.events.clone(), self.parts.records.clone());
        self.jobs.spawn(async move {
            let looking = tokio::task::spawn_blocking(move || {
                let look = |(id, process): (String, Identity)| {
                    launch::bound_logs(&records, &id);
                    (id, process.sample())
                };
                processes.into_iter().map(look).collect()
            });
            match looking.await {
                Ok(samples) => send(&events, Event::Sampled { samples }).await,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(error) => {
                    tracing::debug!(%error, "the runtime ends before processes were looked at")
                }
            }
        });
    }
}

async fn check(
    ready_check: ReadyCheck,
    events: mpsc::Sender<Event>,
    task: String,
    port: u16,
    path: String,
) {
    let mut tick = every(CHECK_EVERY);
    loop {
        tick.tick().await;
        let answered = ready_check.is_ready(port, &path).await;
        send(
            &events,
            Event::Checked {
                task: task.clone(),
                answered,
            },
        )
        .await;
    }
}

pub(super) async fn wait_for(
    mut child: Child,
    events: mpsc::Sender<Event>,
    records: Arc<Records>,
    clock: Arc<dyn Clock>,
    task: String,
    port: u16,
) {
    let started = clock.elapsed();
    let status = child.wait().await;
    let how = launch::how_it_ended(&status, clock.elapsed().saturating_sub(started));
    send(&events, Event::Gone { task: task.clone() }).await;
    report_end(events, records, task, port, how).await;
}

async fn report_end(
    events: mpsc::Sender<Event>,
    records: Arc<Records>,
    task: String,
    port: u16,
    how: String,
) {
    let id = task.clone();
    let looking = tokio::task::spawn_blocking(move || launch::look_into(&records, &id, port, &how));
    match looking.await {
        Ok(end) => send(&events, Event::Ended { task, end }).await,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => {
            tracing::debug!(%error, "the runtime ends before a task's end was looked into")
        }
    }
}
