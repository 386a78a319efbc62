//! From what runs and what was decided to the table that the proxies apply.

use proxy_api::{
    BasisPoints, Endpoint, Limits, Match, Protocol, Route, Shield, Sticky, Timeouts, Transport,
    Upstream, UpstreamTls,
};
use rollout::plan::Sticky as PlanSticky;
use rollout::proxy::{ProxySpec, TaskProtocol};
use rollout::rollout::{Cause, Promotion, Retreat};
use rollout::{Duration, Phase, Release, Rollout, Spec, Weight};

use crate::orchestrator::{Group, ServiceState};

/// The endpoints of `group` that run `release`: the ready ones, or, when none is, all that are there. With every check
/// failing the checks are more likely wrong than every task dead, and the proxy leaves dead ones by itself.
fn endpoints(group: &Group, release: Option<&Release>) -> Vec<Endpoint> {
    let of = |ready: bool| -> Vec<Endpoint> {
        group
            .tasks
            .iter()
            .filter(|task| task.ready || !ready)
            .filter(|task| release.is_none_or(|release| task.release == release.id))
            .map(|task| task.endpoint.clone())
            .collect()
    };
    let mut found = of(true);
    if found.is_empty() && release.is_some() {
        found = endpoints(group, None);
    }
    if found.is_empty() {
        found = of(false);
    }
    found.sort();
    found
}

/// The release that the stable group's tasks serve in this phase; `None` while any of them will do.
fn serving(rollout: &Rollout) -> Option<&Release> {
    match rollout.running_phase() {
        Phase::Promoting {
            stage: Promotion::Updating,
            ..
        } => None,
        Phase::Promoting {
            stage: Promotion::Returning | Promotion::Removing,
            ..
        }
        | Phase::Promoted => Some(&rollout.canary),
        Phase::RollingBack {
            stage: Retreat::Restoring { canary: false } | Retreat::Yielding { .. },
            ..
        } => None,
        // What the stable group runs is the owner's, and none of what this rollout knew.
        Phase::RollingBack {
            cause: Cause::Overtaken { .. },
            ..
        }
        | Phase::RolledBack {
            cause: Cause::Overtaken { .. },
        } => None,
        Phase::Deploying { .. }
        | Phase::Analyzing { .. }
        | Phase::Gated { .. }
        | Phase::Baking { .. }
        | Phase::Warm { .. }
        | Phase::Paused { .. }
        | Phase::Promoting {
            stage: Promotion::Shifting,
            ..
        }
        | Phase::RollingBack { .. }
        | Phase::RolledBack { .. } => Some(&rollout.stable),
    }
}

/// The canary's share, as a table has it.
#[must_use]
pub fn basis_points(weight: Weight) -> BasisPoints {
    BasisPoints::new(weight.basis_points()).unwrap_or(BasisPoints::ALL)
}

fn transport(proxy: &ProxySpec) -> Transport {
    Transport {
        protocol: match proxy.protocol {
            TaskProtocol::Http1 => Protocol::Http1,
            TaskProtocol::H2 => Protocol::H2,
        },
        tls: proxy.tls.clone().map(|tls| UpstreamTls {
            server_name: tls.server_name,
            ca_file: tls.ca_file,
            certificate_file: tls.certificate_file,
            key_file: tls.key_file,
        }),
    }
}

fn milliseconds(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)
}

/// The route of one service: its running rollout's, if there is one.
#[must_use]
pub fn route(spec: &Spec, state: &ServiceState, rollout: Option<&Rollout>) -> Route {
    let stable_release = rollout.and_then(serving).unwrap_or(&state.stable.release);
    let stable = Upstream {
        release: stable_release.id.to_string(),
        // Without a rollout it is the owner's business which release a task runs: while they update the service themselves,
        // the first new task shall not get everything.
        endpoints: endpoints(&state.stable, rollout.and_then(serving)),
    };
    let canary = rollout.and_then(|rollout| {
        let group = state.canary.as_ref()?;
        let ready = group
            .tasks
            .iter()
            .filter(|task| task.ready && task.release == rollout.canary.id);
        let mut endpoints: Vec<_> = ready.map(|task| task.endpoint.clone()).collect();
        endpoints.sort();
        Some(Upstream {
            release: rollout.canary.id.to_string(),
            endpoints,
        })
    });
    let weight = rollout.map_or(Weight::ZERO, |rollout| rollout.desired().weight);
    Route {
        name: spec.service.to_string(),
        matches: Match {
            host: spec.route.host.clone(),
            path: spec.route.path.clone(),
        },
        canary_bp: if canary.is_some() {
            basis_points(weight)
        } else {
            BasisPoints::NONE
        },
        sticky: match &spec.sticky {
            PlanSticky::None => None,
            PlanSticky::Cookie => Some(Sticky::Cookie),
            PlanSticky::Header(name) => Some(Sticky::Header { name: name.clone() }),
            PlanSticky::Key => Some(Sticky::Key),
        },
        shield: if spec.shield {
            Shield::Idempotent
        } else {
            Shield::Off
        },
        stable,
        canary,
        mirror_bp: basis_points(spec.proxy.mirror),
        answer_kind: spec.guard.answers.clone(),
        transport: transport(&spec.proxy),
        limits: Limits::default(),
        timeouts: Timeouts {
            connect_ms: milliseconds(spec.proxy.connect),
            response_ms: milliseconds(spec.proxy.answer),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{ReadOptions, read};

    #[test]
    fn f16_while_the_owner_updates_the_service_all_its_ready_tasks_share_the_requests() {
        let task = |id: u8, digest: &str, ready| crate::orchestrator::Task {
            id: id.to_string(),
            release: rollout::ReleaseId::of_digest(digest),
            endpoint: format!("10.0.0.{id}:80").parse().unwrap(),
            node: "n1".to_owned(),
            ready,
            memory_bytes: None,
            memory_bytes_max: None,
            cpu: None,
        };
        let old = |id| task(id, "sha256:1", true);
        let state = ServiceState {
            stable: Group {
                release: Release::new("web:2", "sha256:2", None),
                replicas: 4,
                tasks: vec![
                    task(9, "sha256:2", true),
                    task(8, "sha256:2", false),
                    old(1),
                    old(2),
                ],
                restarts: 0,
                trouble: None,
            },
            canary: None,
        };
        let text = "service: web\nport: 80\n";
        let spec = read(text, "friday.yml", &ReadOptions::default()).unwrap();
        let table = route(&spec, &state, None);
        assert_eq!(table.stable.release, state.stable.release.id.to_string());
        let endpoints: Vec<&str> = table
            .stable
            .endpoints
            .iter()
            .map(Endpoint::as_str)
            .collect();
        assert_eq!(endpoints, ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.9:80"]);
    }

    #[test]
    fn what_friday_yml_says_of_the_proxy_stands_in_its_table() {
        let text = "service: web\nport: 80\nproxy:\n  mirror: 0.5%\n  protocol: h2\n  connect: 500ms\n  answer: 30s\n  \
                    tls: { server_name: web.internal, ca_file: /ca.pem, certificate_file: /c.pem, key_file: /k.pem }\n";
        let spec = read(text, "friday.yml", &ReadOptions::default()).unwrap();
        let state = ServiceState {
            stable: Group {
                release: Release::new("web:1", "sha256:1", None),
                replicas: 1,
                tasks: Vec::new(),
                restarts: 0,
                trouble: None,
            },
            canary: None,
        };
        let table = route(&spec, &state, None);
        assert_eq!(table.mirror_bp.get(), 50);
        assert_eq!(table.timeouts.connect_ms, 500);
        assert_eq!(table.timeouts.response_ms, 30_000);
        assert_eq!(table.transport.protocol, Protocol::H2);
        let tls = table.transport.tls.unwrap();
        assert_eq!(tls.server_name, "web.internal");
        assert_eq!(tls.ca_file, "/ca.pem");
        assert_eq!(tls.certificate_file.as_deref(), Some("/c.pem"));
        assert_eq!(tls.key_file.as_deref(), Some("/k.pem"));

        let spec = read(
            "service: web\nport: 80\n",
            "friday.yml",
            &ReadOptions::default(),
        )
        .unwrap();
        let table = route(&spec, &state, None);
        assert_eq!(table.transport, Transport::default());
        assert_eq!(table.timeouts, Timeouts::default());
        assert!(table.mirror_bp.is_none());
    }
}
