//! The one owner of what is known of the tasks: it takes orders, hears what became of processes, decides (in
//! [`group`](super::group)), saves, and then acts.

mod looking;
mod saving;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::sync::Arc;

use nix::sys::signal::Signal;
use proxy_api::Arm;
use rollout::{Duration, Release, ServiceName};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{self, MissedTickBehavior};

use super::catalog::{Definition, REPLICAS_MAX, Settings};
use super::group::{Action, End, Group, Limits, Task};
use super::identity::{Identity, Sample};
use super::launch;
use super::ready::ReadyCheck;
use super::record::{Records, ServiceRecord};
use crate::clock::Clock;
use crate::orchestrator::{OrchestratorError, ServiceState};
use looking::wait_for;

/// How often deadlines are looked at: a drain may last so much longer than asked.
const TICK: Duration = Duration::from_millis(100);

/// How often processes are looked at: a leak of 8 MiB/s is ended 2 MiB after its limit, and the end of a process that
/// is not our child is noticed as quickly as a failing ready check.
const SAMPLE_EVERY: Duration = Duration::from_millis(200);

/// The wait after a start that could not be saved, before it is tried again: a full disk is not freed sooner.
const SAVE_RETRY: Duration = Duration::from_secs(1);

/// How many orders and events may wait. Orders come from one reconciler and a few readers, and each sender waits for
/// its answer; events come five times a second from each task.
pub(super) const QUEUE_MAX: usize = 256;

type Reply<T> = oneshot::Sender<Result<T, OrchestratorError>>;

/// What the supervisor is asked to do. Who asks gets an answer; who has gone meanwhile does not need it.
#[derive(Debug)]
pub(super) enum Order {
    Services {
        reply: Reply<Vec<ServiceName>>,
    },
    Observe {
        service: ServiceName,
        reply: Reply<ServiceState>,
    },
    Stable {
        service: ServiceName,
        release: Release,
        reply: Reply<()>,
    },
    Canary {
        service: ServiceName,
        release: Release,
        replicas: u32,
        reply: Reply<()>,
    },
    NoCanary {
        service: ServiceName,
        reply: Reply<()>,
    },
    /// End every task, then the supervisor.
    StopAll,
    /// End the supervisor; tasks go on.
    Detach,
}

/// What became of a task.
#[derive(Debug)]
enum Event {
    Checked {
        task: String,
        answered: bool,
    },
    Sampled {
        samples: Vec<(String, Option<Sample>)>,
    },
    /// Its process is gone; why is being looked into.
    Gone {
        task: String,
    },
    Ended {
        task: String,
        end: End,
    },
}

/// One service, as known.
#[derive(Debug)]
pub(super) struct Service {
    /// How its tasks are run.
    pub(super) settings: Settings,
    /// What users call.
    pub(super) stable: Group,
    /// The clone on trial.
    pub(super) canary: Option<Group>,
    /// What was last saved of it.
    pub(super) saved: Option<ServiceRecord>,
}

impl Service {
    pub(super) fn groups_mut(&mut self) -> impl Iterator<Item = (Arm, &mut Group)> {
        let canary = self.canary.iter_mut().map(|group| (Arm::Canary, group));
        std::iter::once((Arm::Stable, &mut self.stable)).chain(canary)
    }

    pub(super) fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.stable
            .tasks
            .iter()
            .chain(self.canary.iter().flat_map(|group| &group.tasks))
    }

    fn group_mut(&mut self, arm: Arm) -> Option<&mut Group> {
        self.groups_mut()
            .find_map(|(other, group)| (other == arm).then_some(group))
    }

    fn record(&self, boot: &str, name: &ServiceName, now: Duration) -> ServiceRecord {
        let canary = self.canary.as_ref().map(|group| group.record(now));
        ServiceRecord::new(
            boot.to_owned(),
            name.clone(),
            self.settings.clone(),
            self.stable.record(now),
            canary,
        )
    }
}

/// What the supervisor is made of when it starts.
#[derive(Debug)]
pub(super) struct Supervisor {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) limits: Limits,
    pub(super) records: Arc<Records>,
    pub(super) boot: String,
    pub(super) hostname: String,
    pub(super) ready_check: ReadyCheck,
    pub(super) services: BTreeMap<ServiceName, Service>,
    /// What is wanted, by digest.
    pub(super) definitions: HashMap<String, Arc<Definition>>,
    /// Our right to act on the state directory, until we end.
    #[expect(dead_code, reason = "held, not read")]
    pub(super) lock: File,
}

impl Supervisor {
    /// Does its work until it is told to end, or nobody is left who could give orders.
    pub(super) async fn run(self, orders: mpsc::Receiver<Order>) {
        let (sender, events) = mpsc::channel(QUEUE_MAX);
        let running = Running {
            parts: self,
            events: sender,
            jobs: JoinSet::new(),
            checks: HashMap::new(),
            unsaved: HashMap::new(),
            is_sampling: false,
            is_ending: false,
        };
        running.run(orders, events).await;
    }
}

/// What is to be done for a service.
#[derive(Default)]
struct Decided {
    /// Whom to start: tasks that are noted already, without a process.
    starts: Vec<(Arm, String)>,
    /// Whom to send which signal.
    signals: Vec<(String, Option<Identity>, Signal)>,
}

/// A supervisor at work.
struct Running {
    parts: Supervisor,
    events: mpsc::Sender<Event>,
    /// Who waits for children, asks tasks whether they are ready, or reads `/proc`. Aborted when this is dropped, which
    /// ends no process.
    jobs: JoinSet<()>,
    /// The ready checks among them, by task.
    checks: HashMap<String, AbortHandle>,
    /// The services whose last change could not be saved.
    unsaved: HashMap<ServiceName, Unsaved>,
    is_sampling: bool,
    is_ending: bool,
}

/// A change that could not be saved.
struct Unsaved {
    retry_at: Duration,
    why: String,
}

impl Running {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>, mut events: mpsc::Receiver<Event>) {
        let mut tick = every(TICK);
        let mut sample = every(SAMPLE_EVERY);
        for (id, process) in self.processes() {
            tracing::info!(
                task = id,
                pid = process.pid,
                "adopted a task that an earlier controller started"
            );
        }
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    None | Some(Order::Detach) => return,
                    Some(Order::StopAll) => self.is_ending = true,
                    Some(order) => self.take(order).await,
                },
                Some(event) = events.recv() => self.hear(event),
                Some(job) = self.jobs.join_next() => rethrow(job),
                _ = tick.tick() => {}
                _ = sample.tick() => self.sample(),
            }
            self.reconcile().await;
            if self.is_ending
                && self
                    .parts
                    .services
                    .values()
                    .all(|service| service.tasks().next().is_none())
            {
                return;
            }
        }
    }

    // Orders.

    async fn take(&mut self, order: Order) {
        match order {
            Order::Services { reply } => {
                answer(reply, Ok(self.parts.services.keys().cloned().collect()));
            }
            Order::Observe { service, reply } => answer(reply, self.observe(&service)),
            Order::Stable {
                service,
                release,
                reply,
            } => {
                let replicas = self
                    .parts
                    .services
                    .get(&service)
                    .map_or(0, |service| service.stable.replicas);
                answer(
                    reply,
                    self.want(&service, Arm::Stable, &release, replicas).await,
                );
            }
            Order::Canary {
                service,
                release,
                replicas,
                reply,
            } => {
                answer(
                    reply,
                    self.want(&service, Arm::Canary, &release, replicas).await,
                );
            }
            Order::NoCanary { service, reply } => {
                answer(reply, self.want_no_canary(&service).await)
            }
            // The loop itself sees to these.
            Order::StopAll | Order::Detach => {}
        }
    }

    fn observe(&mut self, name: &ServiceName) -> Result<ServiceState, OrchestratorError> {
        let now = self.parts.clock.elapsed();
        let hostname = &self.parts.hostname;
        let service = known(&mut self.parts.services, name)?;
        let memory_bytes_max = service.settings.memory_bytes_max;
        Ok(ServiceState {
            stable: service.stable.observed(now, hostname, memory_bytes_max),
            canary: service
                .canary
                .as_mut()
                .map(|group| group.observed(now, hostname, memory_bytes_max)),
        })
    }

    /// A wish is saved before it is held, so that one that could not be saved has changed nothing.
    async fn want(
        &mut self,
        name: &ServiceName,
        arm: Arm,
        release: &Release,
        replicas: u32,
    ) -> Result<(), OrchestratorError> {
        let wish = || {
            format!(
                "{replicas} {} tasks of {} for {name}",
                arm.as_str(),
                release.image
            )
        };
        self.check_open(wish)?;
        let now = self.parts.clock.elapsed();
        let boot = self.parts.boot.clone();
        let service = known(&mut self.parts.services, name)?;
        if replicas > REPLICAS_MAX {
            let reason = format!("expected at most {REPLICAS_MAX} on one machine");
            return Err(OrchestratorError::Refused {
                what: wish(),
                reason,
            });
        }
        let mut group = match (arm, &service.canary) {
            (Arm::Stable, _) => service.stable.clone(),
            (Arm::Canary, Some(group)) => group.clone(),
            (Arm::Canary, None) => Group::new(release.clone(), replicas),
        };
        group.want(release, replicas);

        let mut record = service.record(&boot, name, now);
        match arm {
            Arm::Stable => record.stable = group.record(now),
            Arm::Canary => record.canary = Some(group.record(now)),
        }
        self.define(name, release).await?;
        self.save_if_new(name, record).await?;
        let service = known(&mut self.parts.services, name)?;
        match arm {
            Arm::Stable => service.stable = group,
            Arm::Canary => service.canary = Some(group),
        }
        self.forget_definitions();
        Ok(())
    }

    async fn want_no_canary(&mut self, name: &ServiceName) -> Result<(), OrchestratorError> {
        let now = self.parts.clock.elapsed();
        let boot = self.parts.boot.clone();
        let service = known(&mut self.parts.services, name)?;
        let mut record = service.record(&boot, name, now);
        match &mut record.canary {
            Some(group) if !group.removing => group.removing = true,
            Some(_) | None => return Ok(()),
        }
        self.save_if_new(name, record).await?;
        if let Some(group) = &mut known(&mut self.parts.services, name)?.canary {
            group.removing = true;
        }
        Ok(())
    }

    fn check_open(&self, wish: impl Fn() -> String) -> Result<(), OrchestratorError> {
        if self.is_ending {
            let reason = "every task is being stopped".to_owned();
            return Err(OrchestratorError::Refused {
                what: wish(),
                reason,
            });
        }
        Ok(())
    }

    /// Has the definition of `release` at hand, whatever the catalog says by now.
    async fn define(
        &mut self,
        service: &ServiceName,
        release: &Release,
    ) -> Result<(), OrchestratorError> {
        if self.parts.definitions.contains_key(&release.digest) {
            return Ok(());
        }
        let digest = release.digest.clone();
        let found = self.blocking(move |records| records.image(&digest)).await?;
        let definition = found.ok_or_else(|| OrchestratorError::UnknownImage {
            image: release.image.clone(),
            service: service.to_string(),
            reason: format!("nothing is kept under its digest {}", release.digest),
        })?;
        self.parts
            .definitions
            .insert(release.digest.clone(), Arc::new(definition));
        Ok(())
    }

    fn forget_definitions(&mut self) {
        let groups = |service: &Service| {
            let canary = service
                .canary
                .as_ref()
                .map(|group| group.release.digest.clone());
            std::iter::once(service.stable.release.digest.clone()).chain(canary)
        };
        let wanted: HashSet<String> = self.parts.services.values().flat_map(groups).collect();
        self.parts
            .definitions
            .retain(|digest, _| wanted.contains(digest));
    }

    // Events.

    fn hear(&mut self, event: Event) {
        let now = self.parts.clock.elapsed();
        match event {
            Event::Checked { task, answered } => {
                if let Some((name, group)) = self.group_of(&task) {
                    let was_ready = group.task(&task).is_some_and(|task| task.is_ready());
                    group.checked(&task, answered, now);
                    let is_ready = group.task(&task).is_some_and(|task| task.is_ready());
                    if was_ready != is_ready {
                        tracing::info!(service = %name, task, is_ready, "a task's readiness changed");
                    }
                }
            }
            Event::Sampled { samples } => {
                self.is_sampling = false;
                for (task, sample) in samples {
                    self.sampled(&task, sample);
                }
            }
            Event::Gone { task } => {
                if let Some((_, group)) = self.group_of(&task)
                    && let Some(task) = group.task(&task)
                {
                    task.has_ended = true;
                }
            }
            Event::Ended { task, end } => {
                if let Some((name, group)) = self.group_of(&task) {
                    let words = end.words.clone();
                    if group.ended(&task, end, now) {
                        tracing::warn!(service = %name, task, words, "a task ended without being asked to: restart");
                    } else {
                        tracing::info!(service = %name, task, words, "a task ended");
                    }
                }
            }
        }
    }

    // The loop's own work.

    /// Decides what to do for every service, saves it, and does it.
    async fn reconcile(&mut self) {
        let names: Vec<ServiceName> = self.parts.services.keys().cloned().collect();
        for name in names {
            let Decided { starts, signals } = self.decide(&name);
            if !self.save_changes(&name).await {
                self.take_back(&name, &starts);
            } else if !starts.is_empty() {
                self.start(&name, &starts).await;
                // Were we killed here, or were this not saved, the tasks would be found by their marks.
                self.save_changes(&name).await;
            }
            for (task, process, signal) in signals {
                let sent = process.is_some_and(|process| process.signal(signal));
                tracing::info!(service = %name, task, signal = signal.as_str(), sent, "stopping a task");
            }
        }
        self.watch();
    }

    fn decide(&mut self, name: &ServiceName) -> Decided {
        let now = self.parts.clock.elapsed();
        let mut ports: HashSet<u16> = self.tasks().map(|task| task.port).collect();
        let Decided {
            mut starts,
            mut signals,
        } = Decided::default();
        let Some(service) = self.parts.services.get_mut(name) else {
            return Decided::default();
        };
        for (arm, group) in service.groups_mut() {
            for action in group.next(now, self.parts.limits, self.is_ending) {
                match action {
                    Action::Start { slot } => match launch::free_port(&ports) {
                        Ok(port) => {
                            let id = launch::task_id(name, arm, slot);
                            ports.insert(port);
                            group.tasks.push(Task::intended(
                                id.clone(),
                                slot,
                                group.release.clone(),
                                port,
                            ));
                            starts.push((arm, id));
                        }
                        Err(error) => group.rest(slot, error.to_string(), SAVE_RETRY, now),
                    },
                    Action::Terminate { task, process } => {
                        signals.push((task, process, Signal::SIGTERM))
                    }
                    Action::Kill { task, process } => {
                        signals.push((task, process, Signal::SIGKILL))
                    }
                }
            }
        }
        if service.canary.as_ref().is_some_and(Group::is_gone) {
            service.canary = None;
        }
        Decided { starts, signals }
    }

    /// What could not be saved must not be started.
    fn take_back(&mut self, name: &ServiceName, starts: &[(Arm, String)]) {
        let now = self.parts.clock.elapsed();
        let words = self
            .unsaved
            .get(name)
            .map_or_else(String::new, |unsaved| unsaved.why.clone());
        for (arm, id) in starts {
            let group = self
                .parts
                .services
                .get_mut(name)
                .and_then(|service| service.group_mut(*arm));
            if let Some(group) = group
                && let Some(place) = group.tasks.iter().position(|task| task.id == *id)
            {
                let task = group.tasks.remove(place);
                group.rest(task.slot, words.clone(), SAVE_RETRY, now);
            }
        }
    }

    async fn start(&mut self, name: &ServiceName, starts: &[(Arm, String)]) {
        let living: HashSet<String> = self.tasks().map(|task| task.id.clone()).collect();
        let cleaned = self
            .blocking(move |records| {
                launch::remove_old_logs(records, &living);
                Ok(())
            })
            .await;
        if let Err(error) = cleaned {
            tracing::warn!(%error, "cannot remove old logs");
        }
        for (arm, id) in starts {
            let started = self.start_one(name, *arm, id);
            if let Err(error) = started {
                let now = self.parts.clock.elapsed();
                let words = launch::shortened(&error.to_string());
                tracing::warn!(service = %name, task = id, words, "a task could not be started");
                if let Some((_, group)) = self.group_of(id) {
                    group.ended(
                        id,
                        End {
                            words,
                            port_taken: false,
                        },
                        now,
                    );
                }
            }
        }
    }

    fn start_one(&mut self, name: &ServiceName, arm: Arm, id: &str) -> io::Result<()> {
        let parts = &mut self.parts;
        let task = parts
            .services
            .get_mut(name)
            .and_then(|service| service.group_mut(arm)?.task(id));
        let Some(task) = task else { return Ok(()) };
        let definition = parts.definitions.get(&task.release.digest).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("nothing is kept of image {}", task.release.image),
            )
        })?;
        let (child, process) = launch::start(
            &parts.records,
            &parts.hostname,
            (name, arm),
            task,
            definition,
        )?;
        task.process = Some(process);
        tracing::info!(service = %name, task = id, pid = process.pid, port = task.port, "started a task");
        let waiting = wait_for(
            child,
            self.events.clone(),
            parts.records.clone(),
            parts.clock.clone(),
            id.to_owned(),
            task.port,
        );
        self.jobs.spawn(waiting);
        Ok(())
    }

    fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.parts.services.values().flat_map(Service::tasks)
    }

    fn processes(&self) -> impl Iterator<Item = (String, Identity)> {
        self.tasks()
            .filter_map(|task| Some((task.id.clone(), task.process?)))
    }

    fn group_of(&mut self, task: &str) -> Option<(&ServiceName, &mut Group)> {
        self.parts.services.iter_mut().find_map(|(name, service)| {
            let (_, group) = service
                .groups_mut()
                .find(|(_, group)| group.tasks.iter().any(|other| other.id == task))?;
            Some((name, group))
        })
    }
}

/// Runs `work` on the state directory on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(
    records: Arc<Records>,
    work: impl FnOnce(&Records) -> Result<T, OrchestratorError> + Send + 'static,
) -> Result<T, OrchestratorError> {
    match tokio::task::spawn_blocking(move || work(&records)).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => Err(OrchestratorError::Unreachable {
            what: "the state directory".to_owned(),
            source: io::Error::other(error),
        }),
    }
}

fn known<'a>(
    services: &'a mut BTreeMap<ServiceName, Service>,
    name: &ServiceName,
) -> Result<&'a mut Service, OrchestratorError> {
    if !services.contains_key(name) {
        return Err(OrchestratorError::UnknownService {
            service: name.to_string(),
            known: services.keys().map(ToString::to_string).collect(),
        });
    }
    Ok(services
        .get_mut(name)
        .expect("it was there in the line before"))
}

fn every(period: Duration) -> time::Interval {
    let mut interval = time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

fn answer<T>(reply: Reply<T>, result: Result<T, OrchestratorError>) {
    if reply.send(result).is_err() {
        tracing::debug!("nobody waits for an answer any more");
    }
}

async fn send(events: &mpsc::Sender<Event>, event: Event) {
    if events.send(event).await.is_err() {
        tracing::debug!("the supervisor has ended; an event is dropped");
    }
}

/// A job that panicked is a bug: it ends the supervisor, and with it the controller.
fn rethrow(job: Result<(), tokio::task::JoinError>) {
    if let Err(error) = job
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}
