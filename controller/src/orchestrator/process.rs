//! Tasks as child processes on this machine: what `cargo demo` runs on, with nothing else installed. Linux only.
//!
//! Images and services come from a [catalog](ProcessConfig::catalog) file. What is wanted, and who was started for it,
//! is saved before it is acted upon, so that tasks outlive the controller: one that is started again finds them by
//! saved pid and start time, or by a mark in their environment, and goes on with them. Read on in this order:
//! `catalog`, `group` (the decisions), `supervisor` (the loop), `launch`, `identity`, `record`, `leftovers`.

mod catalog;
mod group;
mod identity;
mod launch;
mod leftovers;
mod ready;
mod record;
mod supervisor;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::join_all;
use rollout::{Duration, Release, ServiceName};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

pub use leftovers::{Leftover, end_leftovers};

use catalog::{Catalog, CatalogService};
use group::{Group, Limits, Task};
use identity::Identity;
use ready::ReadyCheck;
use record::{Records, ServiceRecord};
use supervisor::{Order, QUEUE_MAX, Service, Supervisor, blocking};

use crate::clock::Clock;
use crate::orchestrator::{Orchestrator, OrchestratorError, ServiceState, off_runtime};

/// From "no new requests" to SIGTERM: a routing table reaches a proxy within half a second, and most requests end
/// within one more.
const DEFAULT_DRAIN: Duration = Duration::from_secs(2);

/// From SIGTERM to SIGKILL, as `docker stop` waits.
const DEFAULT_STOP_LIMIT: Duration = Duration::from_secs(10);

/// How long [`Process::open`] waits for another controller to let go of the state directory: one that was just told
/// to end needs a moment.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// How long [`Process::open`] waits for adopted tasks to say again that they are ready.
const ADOPT_WAIT: Duration = Duration::from_secs(2);

/// How often either is tried.
const TRY_EVERY: Duration = Duration::from_millis(50);

/// What [`Process::stop_all`] and [`Process::shutdown_detached`] allow the supervisor beyond the tasks' own limits.
const SHUTDOWN_MARGIN: Duration = Duration::from_secs(10);

/// Where the tasks' state is, what there is to run, and how long stopping may take.
#[derive(Debug, Clone)]
pub struct ProcessConfig {
    /// Wishes, tasks and logs are kept here; made if need be. One controller at a time.
    pub state_dir: PathBuf,
    /// A YAML file with the images and the services. The images are read again whenever one is asked for, the services
    /// when the controller starts.
    pub catalog: PathBuf,
    /// How long a task that shall go is left alone with its last requests.
    pub drain: Duration,
    /// How long it may take to stop before it is made to.
    pub stop_limit: Duration,
}

impl ProcessConfig {
    /// The given folder and catalog with the default limits.
    #[must_use]
    pub fn new(state_dir: impl Into<PathBuf>, catalog: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            catalog: catalog.into(),
            drain: DEFAULT_DRAIN,
            stop_limit: DEFAULT_STOP_LIMIT,
        }
    }
}

/// Runs tasks as processes. Dropping it stops the supervision and no task.
#[derive(Debug)]
pub struct Process {
    config: ProcessConfig,
    records: Arc<Records>,
    orders: mpsc::Sender<Order>,
    supervisor: Mutex<Option<JoinHandle<()>>>,
    ended: CancellationToken,
}

impl Process {
    /// Reads the catalog and the saved state, adopts the tasks that still run, and begins to supervise. What was ready
    /// before is ready again when this returns.
    ///
    /// # Errors
    /// The catalog is wrong; a saved file cannot be understood (nothing is changed then); another controller uses the
    /// state directory.
    pub async fn open(
        config: ProcessConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, OrchestratorError> {
        let catalog_path = config.catalog.clone();
        let state_dir = config.state_dir.clone();
        let (records, catalog) = off_runtime(move || {
            let catalog = Catalog::read(&catalog_path)?;
            Ok((Arc::new(Records::open(&state_dir)?), catalog))
        })
        .await?;
        let lock = lock(&records).await?;
        let ready_check = ReadyCheck::new().map_err(|error| OrchestratorError::Unreachable {
            what: "the HTTP client for ready checks".to_owned(),
            source: io::Error::other(error),
        })?;
        let limits = Limits {
            drain: config.drain,
            stop: config.stop_limit,
        };
        let now = clock.elapsed();
        let mut supervisor = blocking(records.clone(), {
            let records = records.clone();
            move |_| restore(records, &catalog, lock, clock, limits, ready_check, now)
        })
        .await?;
        check_adopted(&mut supervisor).await;

        let (orders, receiver) = mpsc::channel(QUEUE_MAX);
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        let handle = tokio::spawn(async move {
            let _guard = guard;
            supervisor.run(receiver).await;
        });
        Ok(Arc::new(Self {
            config,
            records,
            orders,
            supervisor: Mutex::new(Some(handle)),
            ended,
        }))
    }

    /// Stops supervising; every task goes on as it is, for the next controller to adopt.
    pub async fn shutdown_detached(&self) {
        self.end(Order::Detach, SHUTDOWN_MARGIN).await;
    }

    /// Drains and stops every task, then stops supervising. What is wanted stays saved. Takes up to the drain and the
    /// stop limit of the configuration.
    pub async fn stop_all(&self) {
        self.end(
            Order::StopAll,
            self.config.drain + self.config.stop_limit + SHUTDOWN_MARGIN,
        )
        .await;
    }

    /// Returns when supervising has ended, by order or by a defect of ours: the caller should end too.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    async fn end(&self, order: Order, limit: Duration) {
        let Some(handle) = self.supervisor.lock().await.take() else {
            return;
        };
        if self.orders.send(order).await.is_err() {
            tracing::debug!("the supervisor had ended before it was told to");
        }
        let abort = handle.abort_handle();
        match time::timeout(limit, handle).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the supervisor of processes failed"),
            Err(_) => {
                tracing::error!(
                    ?limit,
                    "the supervisor of processes did not end in time; tasks may be left"
                );
                abort.abort();
            }
        }
    }

    async fn ask<T>(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<T, OrchestratorError>>) -> Order,
    ) -> Result<T, OrchestratorError> {
        let gone = || OrchestratorError::Unreachable {
            what: "the supervisor of processes".to_owned(),
            source: io::Error::new(io::ErrorKind::BrokenPipe, "it has ended"),
        };
        let (reply, answer) = oneshot::channel();
        self.orders.send(order(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

#[async_trait]
impl Orchestrator for Process {
    async fn services(&self) -> Result<Vec<ServiceName>, OrchestratorError> {
        self.ask(|reply| Order::Services { reply }).await
    }

    async fn resolve(
        &self,
        service: &ServiceName,
        image: &str,
        commit: Option<String>,
    ) -> Result<Release, OrchestratorError> {
        let known = self.services().await?;
        if !known.contains(service) {
            return Err(OrchestratorError::UnknownService {
                service: service.to_string(),
                known: known.iter().map(ToString::to_string).collect(),
            });
        }
        let path = self.config.catalog.clone();
        let (service, image) = (service.clone(), image.to_owned());
        blocking(self.records.clone(), move |records| {
            let catalog = Catalog::read(&path)?;
            let definition =
                catalog
                    .image(&image)
                    .map_err(|known| OrchestratorError::UnknownImage {
                        image: image.clone(),
                        service: service.to_string(),
                        reason: format!("the catalog {} has: {known}", path.display()),
                    })?;
            let digest = records.save_image(definition)?;
            Ok(Release::new(image, digest, commit))
        })
        .await
    }

    async fn observe(&self, service: &ServiceName) -> Result<ServiceState, OrchestratorError> {
        let service = service.clone();
        self.ask(|reply| Order::Observe { service, reply }).await
    }

    async fn ensure_stable(
        &self,
        service: &ServiceName,
        release: &Release,
    ) -> Result<(), OrchestratorError> {
        let (service, release) = (service.clone(), release.clone());
        self.ask(|reply| Order::Stable {
            service,
            release,
            reply,
        })
        .await
    }

    async fn ensure_canary(
        &self,
        service: &ServiceName,
        release: &Release,
        replicas: u32,
    ) -> Result<(), OrchestratorError> {
        let (service, release) = (service.clone(), release.clone());
        self.ask(|reply| Order::Canary {
            service,
            release,
            replicas,
            reply,
        })
        .await
    }

    async fn ensure_no_canary(&self, service: &ServiceName) -> Result<(), OrchestratorError> {
        let service = service.clone();
        self.ask(|reply| Order::NoCanary { service, reply }).await
    }
}

async fn lock(records: &Arc<Records>) -> Result<File, OrchestratorError> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        if let Some(lock) = blocking(records.clone(), Records::try_lock).await? {
            return Ok(lock);
        }
        if Instant::now() >= deadline {
            return Err(OrchestratorError::Refused {
                what: format!("the state directory {}", records.dir().display()),
                reason: "another controller uses it: stop that one, or choose another directory"
                    .to_owned(),
            });
        }
        time::sleep(TRY_EVERY).await;
    }
}

/// What there was, with the tasks of it that still live. Blocking.
fn restore(
    records: Arc<Records>,
    catalog: &Catalog,
    lock: File,
    clock: Arc<dyn Clock>,
    limits: Limits,
    ready_check: ReadyCheck,
    now: Duration,
) -> Result<Supervisor, OrchestratorError> {
    let failed = |source| OrchestratorError::State {
        what: "cannot read the machine's boot id".to_owned(),
        source,
    };
    let boot = identity::boot().map_err(failed)?;
    let saved = records.services()?;

    let living = living(&saved, &records, &boot);
    // What bears our mark and belongs to no task that lives was left by one that died while nobody looked.
    launch::end_marked(records.dir(), |task| !living.contains_key(task));

    let mut services = BTreeMap::new();
    for record in saved {
        services.insert(
            record.service.clone(),
            restored(&record, &living, now, limits),
        );
    }
    for (name, service) in &catalog.services {
        match services.get_mut(name) {
            Some(known) => take_settings(known, service),
            None => {
                let first = first_release(&records, catalog, service)?;
                let stable = Group::new(first, service.replicas);
                let service = Service {
                    settings: service.settings.clone(),
                    stable,
                    canary: None,
                    saved: None,
                };
                services.insert(name.clone(), service);
            }
        }
    }
    for name in services
        .keys()
        .filter(|name| !catalog.services.contains_key(name))
    {
        tracing::warn!(service = %name, "the catalog no longer has this service: it is run as it was");
    }

    let mut definitions = HashMap::new();
    for service in services.values_mut() {
        for (_, group) in service.groups_mut() {
            let digest = group.release.digest.clone();
            match records.image(&digest)? {
                Some(definition) => {
                    definitions.insert(digest, Arc::new(definition));
                }
                // Its tasks run on; a new one cannot be started, and that will be its trouble.
                None => tracing::error!(digest, "nothing is kept of an image that is wanted"),
            }
        }
    }
    let hostname = identity::hostname();
    Ok(Supervisor {
        clock,
        limits,
        records,
        boot,
        hostname,
        ready_check,
        services,
        definitions,
        lock,
    })
}

/// The processes of the saved tasks that still run, by task.
fn living(saved: &[ServiceRecord], records: &Records, boot: &str) -> HashMap<String, Identity> {
    let by_mark = launch::by_mark(records.dir());
    let mut living = HashMap::new();
    for record in saved {
        for task in record.tasks() {
            let process = match task.process {
                Some(process) => {
                    Some(process).filter(|process| record.boot == boot && process.is_alive())
                }
                // The controller was killed between saving that it would start the task, and saving that it had.
                None => by_mark.get(&task.id).copied(),
            };
            living.extend(process.map(|process| (task.id.clone(), process)));
        }
    }
    living
}

fn restored(
    record: &ServiceRecord,
    living: &HashMap<String, Identity>,
    now: Duration,
    limits: Limits,
) -> Service {
    let group = |record: &record::GroupRecord| {
        let mut group = Group::restored(record, now);
        for saved in &record.tasks {
            if let Some(process) = living.get(&saved.id) {
                group
                    .tasks
                    .push(Task::adopted(saved, *process, now, limits));
            } else if saved.process.is_some()
                && !saved.leaving
                && saved.release.digest == record.release.digest
            {
                group.restarted("ended while no controller ran".to_owned(), now);
            }
        }
        group
    };
    Service {
        settings: record.settings.clone(),
        stable: group(&record.stable),
        canary: record.canary.as_ref().map(group),
        saved: Some(record.clone()),
    }
}

/// The catalog is the user's own file: how many stable tasks there are, and how they are run, is what it says. What
/// they run is not, since a rollout decided that.
fn take_settings(known: &mut Service, service: &CatalogService) {
    known.settings = service.settings.clone();
    known.stable.replicas = service.replicas;
}

fn first_release(
    records: &Records,
    catalog: &Catalog,
    service: &CatalogService,
) -> Result<Release, OrchestratorError> {
    let definition = catalog
        .image(&service.image)
        .expect("the catalog was checked: its services' images are there");
    let digest = records.save_image(definition)?;
    Ok(Release::new(service.image.clone(), digest, None))
}

/// Asks every adopted task whether it is ready, until all are or the time is over.
async fn check_adopted(supervisor: &mut Supervisor) {
    let deadline = Instant::now() + ADOPT_WAIT;
    let mut asked = Vec::new();
    for service in supervisor.services.values() {
        let tasks = service.tasks().filter(|task| task.is_checked());
        asked
            .extend(tasks.map(|task| (task.id.clone(), task.port, service.settings.ready.clone())));
    }
    let ready_check = &supervisor.ready_check;
    let checks = asked.into_iter().map(|(id, port, path)| async move {
        while Instant::now() < deadline {
            if ready_check.is_ready(port, &path).await {
                return Some(id);
            }
            time::sleep(TRY_EVERY).await;
        }
        None
    });
    let ready: Vec<String> = join_all(checks).await.into_iter().flatten().collect();
    let now = supervisor.clock.elapsed();
    for service in supervisor.services.values_mut() {
        for (_, group) in service.groups_mut() {
            for id in &ready {
                group.checked(id, true, now);
            }
        }
    }
}
