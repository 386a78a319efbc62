//! What there is: of every service, by its orchestrator and the proxies.

use futures::future::join_all;
use rollout::{Duration, Observed, Phase, Rollout, ServiceName};

use super::service::Service;
use super::{REST, RESTLESS, Reconciler, chain};

impl Reconciler {
    pub(super) async fn look(&mut self) {
        let now = self.clock.elapsed();
        let within =
            |at: Option<Duration>, span| at.is_some_and(|at| now.saturating_sub(at) < span);
        let may_rest = self.orchestrator.tells() && !within(self.told, RESTLESS);
        let mut due: Vec<_> = self
            .services
            .iter_mut()
            .filter(|(_, service)| {
                !(may_rest && service.is_at_rest() && within(service.looked, REST))
            })
            .collect();
        // All at once: an engine that hangs costs one time-out a turn, however many services it has.
        let looks = join_all(due.iter().map(async |(name, service)| {
            self.orchestrator.know(service.spec());
            self.orchestrator.observe(name).await
        }));
        let looks = looks.await;
        for ((name, service), look) in due.iter_mut().zip(looks) {
            service.looked = Some(now);
            match look {
                Ok(mut state) => {
                    if service.blind.take().is_some() {
                        tracing::info!(service = %name, "the orchestrator answers again");
                    }
                    self.agents.fill(&mut state, now);
                    service.saturation.see(&state, now);
                    service.state = Some(state);
                    service.remember_nodes();
                }
                Err(error) => {
                    let words = chain(&error);
                    if service.blind.replace(words.clone()).is_none() {
                        tracing::warn!(service = %name, error = words, "cannot see the tasks: what was known stays in force");
                    }
                }
            }
        }
    }

    pub(super) fn observed(
        &self,
        name: &ServiceName,
        service: &Service,
        rollout: &Rollout,
    ) -> Option<Observed> {
        let state = service.state.as_ref()?;
        let now = self.clock.elapsed();
        let canary = state.canary.as_ref();
        Some(Observed {
            stable_replicas: state.stable.replicas,
            stable_wants: Some(state.stable.release.id.clone()),
            stable_ready: state.stable.ready(&rollout.stable.id),
            stable_updated: state.stable.ready(&rollout.canary.id),
            stable_serving: state.stable.serving(),
            canary_exists: canary.is_some(),
            canary_ready: canary.map_or(0, |group| group.ready(&rollout.canary.id)),
            weight_seen: self.fleet.weight_seen(name.as_str(), now),
            canary_in_flight: self.canary_in_flight(name, rollout, now),
            requests_per_second: matches!(rollout.running_phase(), Phase::Deploying { .. })
                .then(|| service.rate.per_second())
                .flatten(),
            trouble: canary.and_then(|group| group.trouble.clone()),
            refused: service
                .refused
                .as_ref()
                .filter(|(id, _)| *id == rollout.id)
                .map(|(_, words)| words.clone()),
        })
    }

    /// Requests in flight to the canary's tasks. Once the stable group runs the same release they cannot be told apart
    /// by release; then only the drain limit of the tasks themselves protects them.
    fn canary_in_flight(&self, name: &ServiceName, rollout: &Rollout, now: Duration) -> u32 {
        if matches!(rollout.running_phase(), Phase::Promoting { .. }) {
            return 0;
        }
        self.fleet
            .in_flight(name.as_str(), rollout.canary.id.as_str(), now)
    }
}
