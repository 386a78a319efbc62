//! An orchestrator in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use friday::clock::Clock;
use friday::orchestrator::{
    Group, Orchestrator, OrchestratorError, RESTART_WINDOW, ServiceState, Task,
};
use proxy_api::Arm;
use rollout::{Duration, Release, ServiceName};
use tokio::sync::watch;

use crate::FakeClock;

/// When something happens that takes a real orchestrator some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// As soon as it is asked for.
    AtOnce,
    /// When the test says so.
    WhenTold,
}

/// A call of the trait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    /// [`Orchestrator::services`].
    Services,
    /// [`Orchestrator::resolve`].
    Resolve,
    /// [`Orchestrator::observe`].
    Observe,
    /// [`Orchestrator::ensure_stable`].
    EnsureStable,
    /// [`Orchestrator::ensure_canary`].
    EnsureCanary,
    /// [`Orchestrator::ensure_no_canary`].
    EnsureNoCanary,
}

/// Tasks in memory that become ready, stop, crash and use memory as they are told. Needs no runtime and no time.
#[derive(Debug)]
pub struct FakeOrchestrator {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// Whether registries say nothing at present.
    registry_hangs: watch::Sender<bool>,
}

#[derive(Debug)]
struct State {
    images: BTreeMap<String, String>,
    kept: BTreeSet<String>,
    services: BTreeMap<ServiceName, Service>,
    ready: Pace,
    stop: Pace,
    failures: BTreeMap<Call, u32>,
    slow: BTreeMap<Call, (Arc<FakeClock>, Duration)>,
    calls: BTreeMap<Call, u32>,
    tasks_made: u32,
}

#[derive(Debug)]
struct Service {
    stable: Own,
    canary: Option<Own>,
}

/// A group, and what of it others do not see.
#[derive(Debug)]
struct Own {
    group: Group,
    removing: bool,
    leaving: BTreeSet<String>,
    forget_at: Vec<Duration>,
}

impl FakeOrchestrator {
    /// One without images and services, whose tasks become ready and stop at once.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        let state = State {
            images: BTreeMap::new(),
            kept: BTreeSet::new(),
            services: BTreeMap::new(),
            ready: Pace::AtOnce,
            stop: Pace::AtOnce,
            failures: BTreeMap::new(),
            slow: BTreeMap::new(),
            calls: BTreeMap::new(),
            tasks_made: 0,
        };
        Arc::new(Self {
            clock,
            state: Mutex::new(state),
            registry_hangs: watch::Sender::new(false),
        })
    }

    /// Gives the tag `image` a meaning; another meaning is another digest.
    pub fn set_image(&self, image: &str, meaning: &str) {
        self.state()
            .images
            .insert(image.to_owned(), digest(meaning));
    }

    /// Adds a service that runs `image`, with tasks that are ready.
    ///
    /// # Panics
    /// If there is no such image.
    pub fn add_service(&self, service: &ServiceName, image: &str, replicas: u32) {
        let mut state = self.state();
        let digest = state
            .images
            .get(image)
            .expect("set the image before the service")
            .clone();
        state.kept.insert(digest.clone());
        let mut stable = Own::new(Release::new(image, digest, None), replicas);
        state.settle_group(&mut stable);
        for task in &mut stable.group.tasks {
            task.ready = true;
        }
        state.services.insert(
            service.clone(),
            Service {
                stable,
                canary: None,
            },
        );
    }

    /// When tasks that are started from now on become ready.
    pub fn set_ready_pace(&self, pace: Pace) {
        self.state().ready = pace;
    }

    /// When tasks that shall go from now on have gone. Until then they are there, and not ready.
    pub fn set_stop_pace(&self, pace: Pace) {
        self.state().stop = pace;
    }

    /// Makes every task of the group ready that is not about to go.
    pub fn make_ready(&self, service: &ServiceName, arm: Arm) {
        self.change(service, arm, |own| {
            for task in own
                .group
                .tasks
                .iter_mut()
                .filter(|task| !own.leaving.contains(&task.id))
            {
                task.ready = true;
            }
        });
    }

    /// Makes every task of the group fail its ready check.
    pub fn make_unready(&self, service: &ServiceName, arm: Arm) {
        self.change(service, arm, |own| {
            own.group
                .tasks
                .iter_mut()
                .for_each(|task| task.ready = false)
        });
    }

    /// Lets every task of the group that shall go be gone.
    pub fn finish_stopping(&self, service: &ServiceName, arm: Arm) {
        self.change(service, arm, |own| {
            let leaving = std::mem::take(&mut own.leaving);
            own.group.tasks.retain(|task| !leaving.contains(&task.id));
        });
    }

    /// Scales the stable group, as its owner may at any time.
    pub fn scale(&self, service: &ServiceName, replicas: u32) {
        self.change(service, Arm::Stable, |own| own.group.replicas = replicas);
    }

    /// Ends one task of the wanted release that nobody asked to go: it counts as a restart, and another is started.
    pub fn end_task(&self, service: &ServiceName, arm: Arm, why: &str) {
        let now = self.clock.elapsed();
        self.change(service, arm, |own| {
            if let Some(place) = own.group.tasks.iter().position(|task| {
                task.release == own.group.release.id && !own.leaving.contains(&task.id)
            }) {
                own.group.tasks.remove(place);
                own.forget_at.push(now + RESTART_WINDOW);
                own.group.trouble = Some(why.to_owned());
            }
        });
    }

    /// Says how much memory each task of the group uses, and may use.
    pub fn set_memory(&self, service: &ServiceName, arm: Arm, bytes: u64, bytes_max: Option<u64>) {
        self.change(service, arm, |own| {
            for task in &mut own.group.tasks {
                task.memory_bytes = Some(bytes);
                task.memory_bytes_max = bytes_max;
            }
        });
    }

    /// Makes the next `times` calls of this kind fail, as if nobody were there; `u32::MAX` is "until told otherwise",
    /// 0 is that.
    pub fn fail(&self, call: Call, times: u32) {
        self.state().failures.insert(call, times);
    }

    /// Makes each call of this kind take so long, by this clock.
    pub fn slow_down(&self, call: Call, clock: &Arc<FakeClock>, time: Duration) {
        let slow = (Arc::clone(clock), time);
        self.state().slow.insert(call, slow);
    }

    /// Whether [`Orchestrator::resolve`] hangs, calls that wait already included, until told otherwise.
    pub fn hang_registry(&self, hangs: bool) {
        self.registry_hangs.send_replace(hangs);
    }

    /// How many calls of this kind there were, failed ones too.
    #[must_use]
    pub fn calls(&self, call: Call) -> u32 {
        self.state().calls.get(&call).copied().unwrap_or(0)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, service: &ServiceName, arm: Arm, change: impl FnOnce(&mut Own)) {
        let mut state = self.state();
        let own = state
            .services
            .get_mut(service)
            .and_then(|service| match arm {
                Arm::Stable => Some(&mut service.stable),
                Arm::Canary => service.canary.as_mut(),
            });
        if let Some(own) = own {
            change(own);
        }
        state.settle(service);
    }

    fn call(&self, call: Call) -> Result<MutexGuard<'_, State>, OrchestratorError> {
        let mut state = self.state();
        *state.calls.entry(call).or_default() += 1;
        if let Some((clock, time)) = state.slow.get(&call) {
            clock.pass(*time);
        }
        let left = state.failures.entry(call).or_default();
        if *left == 0 {
            return Ok(state);
        }
        if *left != u32::MAX {
            *left -= 1;
        }
        Err(OrchestratorError::Unreachable {
            what: "the fake orchestrator".to_owned(),
            source: io::Error::new(io::ErrorKind::ConnectionRefused, "told to fail"),
        })
    }
}

impl Own {
    fn new(release: Release, replicas: u32) -> Self {
        Self {
            group: Group {
                release,
                replicas,
                tasks: Vec::new(),
                restarts: 0,
                trouble: None,
            },
            removing: false,
            leaving: BTreeSet::new(),
            forget_at: Vec::new(),
        }
    }

    fn want(&mut self, release: &Release, replicas: u32) {
        if self.group.release.digest != release.digest {
            self.forget_at.clear();
            self.group.trouble = None;
        }
        self.group.release = release.clone();
        self.group.replicas = replicas;
        self.removing = false;
    }

    fn send_away(&mut self, id: &str) {
        self.leaving.insert(id.to_owned());
        for task in self.group.tasks.iter_mut().filter(|task| task.id == id) {
            task.ready = false;
        }
    }
}

impl State {
    fn settle(&mut self, service: &ServiceName) {
        let Some(mut taken) = self.services.remove(service) else {
            return;
        };
        self.settle_group(&mut taken.stable);
        if let Some(canary) = &mut taken.canary {
            self.settle_group(canary);
        }
        if taken
            .canary
            .as_ref()
            .is_some_and(|own| own.removing && own.group.tasks.is_empty())
        {
            taken.canary = None;
        }
        self.services.insert(service.clone(), taken);
    }

    /// What a real one does over some time: starts what is missing, then sends away what is too many or too old.
    fn settle_group(&mut self, own: &mut Own) {
        let release = own.group.release.id.clone();
        let wanted = if own.removing {
            0
        } else {
            own.group.replicas as usize
        };
        let current = |own: &Own| -> Vec<(String, bool)> {
            let tasks = own.group.tasks.iter();
            tasks
                .filter(|task| task.release == release && !own.leaving.contains(&task.id))
                .map(|task| (task.id.clone(), task.ready))
                .collect()
        };
        for _ in current(own).len()..wanted {
            self.tasks_made += 1;
            let number = self.tasks_made;
            own.group.tasks.push(Task {
                id: format!("task-{number}"),
                release: release.clone(),
                endpoint: format!("10.0.{}.{}:9000", number / 256, number % 256)
                    .parse()
                    .expect("an address and a port are an endpoint"),
                node: format!("node-{}", number % 3),
                ready: self.ready == Pace::AtOnce,
                memory_bytes: None,
                memory_bytes_max: None,
                cpu: None,
            });
        }
        let mut current = current(own);
        let ready = current.iter().filter(|(_, ready)| *ready).count();
        if ready >= wanted {
            let old: Vec<String> = own
                .group
                .tasks
                .iter()
                .filter(|task| task.release != release)
                .map(|task| task.id.clone())
                .collect();
            old.iter().for_each(|id| own.send_away(id));
        }
        current.sort_by_key(|(_, ready)| !ready);
        for (id, _) in current.iter().skip(wanted) {
            own.send_away(id);
        }
        if self.stop == Pace::AtOnce {
            let leaving = std::mem::take(&mut own.leaving);
            own.group.tasks.retain(|task| !leaving.contains(&task.id));
        }
    }

    fn service(&mut self, name: &ServiceName) -> Result<&mut Service, OrchestratorError> {
        let known = self.services.keys().map(ToString::to_string).collect();
        self.services
            .get_mut(name)
            .ok_or_else(|| OrchestratorError::UnknownService {
                service: name.to_string(),
                known,
            })
    }

    fn check_kept(
        &self,
        service: &ServiceName,
        release: &Release,
    ) -> Result<(), OrchestratorError> {
        if self.kept.contains(&release.digest) {
            return Ok(());
        }
        Err(OrchestratorError::UnknownImage {
            image: release.image.clone(),
            service: service.to_string(),
            reason: format!("nothing is kept under its digest {}", release.digest),
        })
    }
}

#[async_trait]
impl Orchestrator for FakeOrchestrator {
    async fn services(&self) -> Result<Vec<ServiceName>, OrchestratorError> {
        Ok(self
            .call(Call::Services)?
            .services
            .keys()
            .cloned()
            .collect())
    }

    async fn resolve(
        &self,
        service: &ServiceName,
        image: &str,
        commit: Option<String>,
    ) -> Result<Release, OrchestratorError> {
        let mut hangs = self.registry_hangs.subscribe();
        let is_back = hangs.wait_for(|hangs| !hangs).await;
        is_back.expect("the sender is ours");
        let mut state = self.call(Call::Resolve)?;
        state.service(service)?;
        let Some(digest) = state.images.get(image).cloned() else {
            let known: Vec<&str> = state.images.keys().map(String::as_str).collect();
            return Err(OrchestratorError::UnknownImage {
                image: image.to_owned(),
                service: service.to_string(),
                reason: format!("there are: {}", known.join(", ")),
            });
        };
        state.kept.insert(digest.clone());
        Ok(Release::new(image, digest, commit))
    }

    async fn observe(&self, service: &ServiceName) -> Result<ServiceState, OrchestratorError> {
        let now = self.clock.elapsed();
        let mut state = self.call(Call::Observe)?;
        let service = state.service(service)?;
        let seen = |own: &mut Own| {
            own.forget_at.retain(|at| *at > now);
            let mut group = own.group.clone();
            group.restarts = u32::try_from(own.forget_at.len()).unwrap_or(u32::MAX);
            group.replicas = if own.removing { 0 } else { group.replicas };
            group
        };
        Ok(ServiceState {
            stable: seen(&mut service.stable),
            canary: service.canary.as_mut().map(seen),
        })
    }

    async fn ensure_stable(
        &self,
        service: &ServiceName,
        release: &Release,
    ) -> Result<(), OrchestratorError> {
        let mut state = self.call(Call::EnsureStable)?;
        state.service(service)?;
        state.check_kept(service, release)?;
        let stable = &mut state.service(service)?.stable;
        let replicas = stable.group.replicas;
        stable.want(release, replicas);
        state.settle(service);
        Ok(())
    }

    async fn restore_stable(
        &self,
        service: &ServiceName,
        release: &Release,
        replicas: u32,
    ) -> Result<(), OrchestratorError> {
        let mut state = self.call(Call::EnsureStable)?;
        state.service(service)?;
        state.check_kept(service, release)?;
        state.service(service)?.stable.want(release, replicas);
        state.settle(service);
        Ok(())
    }

    async fn ensure_canary(
        &self,
        service: &ServiceName,
        release: &Release,
        replicas: u32,
    ) -> Result<(), OrchestratorError> {
        let mut state = self.call(Call::EnsureCanary)?;
        state.service(service)?;
        state.check_kept(service, release)?;
        let canary = &mut state.service(service)?.canary;
        canary
            .get_or_insert_with(|| Own::new(release.clone(), replicas))
            .want(release, replicas);
        state.settle(service);
        Ok(())
    }

    async fn ensure_no_canary(&self, service: &ServiceName) -> Result<(), OrchestratorError> {
        let mut state = self.call(Call::EnsureNoCanary)?;
        if let Some(canary) = &mut state.service(service)?.canary {
            canary.removing = true;
        }
        state.settle(service);
        Ok(())
    }
}

/// A digest for a fake image: its own text in hexadecimal, so that equal meanings are equal and a reader can tell.
fn digest(meaning: &str) -> String {
    let hex: String = meaning
        .bytes()
        .rev()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex:0<64}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{Harness, IMAGE, NEXT_IMAGE, REPLICAS, service};
    use rollout::Timestamp;

    struct Fake(Arc<FakeOrchestrator>);

    #[async_trait]
    impl Harness for Fake {
        fn orchestrator(&self) -> Arc<dyn Orchestrator> {
            self.0.clone()
        }

        async fn redefine(&self, image: &str) {
            self.0.set_image(image, "redefined");
        }
    }

    async fn fake() -> Fake {
        let fake = FakeOrchestrator::new(FakeClock::standing(Timestamp::UNIX_EPOCH));
        fake.set_image(IMAGE, "one");
        fake.set_image(NEXT_IMAGE, "two");
        fake.add_service(&service(), IMAGE, REPLICAS);
        Fake(fake)
    }

    crate::orchestrator_contract!(fake);

    #[tokio::test]
    async fn an_update_waits_for_the_new_tasks_to_be_ready_when_told_so() {
        let Fake(fake) = fake().await;
        fake.set_ready_pace(Pace::WhenTold);
        fake.set_stop_pace(Pace::WhenTold);
        let next = fake.resolve(&service(), NEXT_IMAGE, None).await.unwrap();
        fake.ensure_stable(&service(), &next).await.unwrap();
        let before = fake.observe(&service()).await.unwrap().stable;
        assert_eq!((before.tasks.len(), before.ready(&next.id)), (4, 0));
        fake.make_ready(&service(), Arm::Stable);
        let after = fake.observe(&service()).await.unwrap().stable;
        assert_eq!((after.tasks.len(), after.ready(&next.id)), (4, 2));
        fake.finish_stopping(&service(), Arm::Stable);
        assert_eq!(
            fake.observe(&service()).await.unwrap().stable.tasks.len(),
            2
        );
    }

    #[tokio::test]
    async fn a_restart_is_counted_for_the_window_and_the_task_replaced() {
        let clock = FakeClock::standing(Timestamp::UNIX_EPOCH);
        let fake = FakeOrchestrator::new(clock.clone());
        fake.set_image(IMAGE, "one");
        fake.add_service(&service(), IMAGE, REPLICAS);
        fake.end_task(&service(), Arm::Stable, "exited with code 70");
        let seen = fake.observe(&service()).await.unwrap().stable;
        assert_eq!((seen.restarts, seen.tasks.len()), (1, 2));
        assert_eq!(seen.trouble.as_deref(), Some("exited with code 70"));
        clock.pass(RESTART_WINDOW);
        assert_eq!(fake.observe(&service()).await.unwrap().stable.restarts, 0);
    }

    #[tokio::test]
    async fn fails_as_often_as_told_and_counts_every_call() {
        let Fake(fake) = fake().await;
        fake.fail(Call::Observe, 1);
        assert!(fake.observe(&service()).await.unwrap_err().is_transient());
        assert!(fake.observe(&service()).await.is_ok());
        assert_eq!(fake.calls(Call::Observe), 2);
    }
}
