use std::collections::BTreeSet;

use rollout::Timestamp;
use rollout::judge::Decision;
use serde_json::{Value, json};

use super::{EngineAnswer, EngineFacts, Facts, Finding, Level, diagnose, is_private};
use crate::api::types::agents::AgentView;
use crate::api::types::health::HealthView;
use crate::api::types::{ProxyView, RolloutView, ServiceView};
use crate::orchestrator::swarm::SwarmNode;
use crate::words::samples::verdict;

const NOW: &str = "2026-11-20T09:00:00Z";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

/// What a controller says, to be changed by a test.
struct World {
    url: &'static str,
    health: HealthView,
    services: Vec<ServiceView>,
    rollouts: Vec<RolloutView>,
    proxies: Vec<ProxyView>,
    behind: BTreeSet<String>,
    agents: Vec<AgentView>,
    engine: Option<EngineFacts>,
}

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn arm(tasks: usize, is_ready: bool) -> Value {
    let task = json!({
        "id": "t", "release": "sha256:1", "endpoint": "10.0.0.1:80", "node": "n1", "ready": is_ready, "memory_bytes": 1,
    });
    json!({
        "release": { "id": "sha256:1", "image": "web:1", "digest": "sha256:1" },
        "tasks": vec![task; tasks], "replicas": 2, "restarts": 0, "signals": {
            "requests_per_second": 10.0, "error_ratio": null, "latency_p50_seconds": null, "latency_p90_seconds": null,
            "latency_p99_seconds": null, "memory_bytes": null, "cpu_cores": null,
        },
    })
}

fn rollout(number: u64, phase: Value) -> RolloutView {
    let id = format!("web-{number}");
    of(json!({
        "id": id, "number": number, "service": "web", "environment": "", "author": "ann", "created": NOW,
        "moved": "2026-11-20T08:57:00Z", "elapsed_seconds": 200.0, "phase": phase, "message": format!("message of {id}"),
        "weight": { "set_percent": 10.0, "seen_percent": 10.0 }, "steps": [], "stable": arm(2, true), "canary": arm(1, true),
        "ending": null, "superseded_by": null,
    }))
}

fn proxy(name: &str, silent: f64) -> ProxyView {
    of(json!({
        "name": name, "generation": "1.7", "silent_seconds": silent, "version": env!("CARGO_PKG_VERSION"),
    }))
}

fn agent(node: &str, silent: f64) -> AgentView {
    of(json!({
        "report": { "node": node, "boot": "1", "number": 1 }, "silent_seconds": silent, "is_live": silent < 5.0,
    }))
}

impl World {
    fn well() -> Self {
        Self {
            url: "http://127.0.0.1:7070",
            health: of(json!({
                "version": env!("CARGO_PKG_VERSION"), "now": NOW, "generation": "1.7", "needs_token": true,
                "services": [{ "service": "web", "is_seen": true }], "metrics": {},
            })),
            services: vec![of(json!({ "service": "web", "stable": arm(2, true) }))],
            rollouts: vec![rollout(
                3,
                json!({ "name": "analyzing", "step": 0, "elapsed_ms": 1000 }),
            )],
            proxies: vec![proxy("edge-1", 0.2), proxy("edge-2", 0.3)],
            behind: BTreeSet::new(),
            agents: vec![agent("n1", 0.5)],
            engine: Some(EngineFacts {
                address: "unix:///var/run/docker.sock".to_owned(),
                answer: Ok(EngineAnswer {
                    version: "20.10.24".to_owned(),
                    nodes: vec![node("n1", "ready", "active")],
                    services: vec!["web".to_owned()],
                    canaries: vec![("web-canary".to_owned(), "web".to_owned())],
                }),
            }),
        }
    }

    fn found(&self) -> Vec<Finding> {
        diagnose(&Facts {
            url: self.url,
            now: now(),
            health: &self.health,
            services: &self.services,
            rollouts: &self.rollouts,
            proxies: &self.proxies,
            behind: &self.behind,
            agents: &self.agents,
            engine: self.engine.as_ref(),
        })
    }
}

fn node(name: &str, state: &str, availability: &str) -> SwarmNode {
    SwarmNode {
        name: name.to_owned(),
        state: state.to_owned(),
        availability: availability.to_owned(),
        is_manager: true,
    }
}

fn shown(found: &[Finding]) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let line = |finding: &Finding| {
        let mend = finding.mend.as_deref().unwrap_or("-");
        let Finding {
            level, about, what, ..
        } = finding;
        format!("{} {about}: {what}\n    {mend}", level.as_str()).replace(version, "VERSION")
    };
    found.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn what_is_well_is_said_too() {
    let found = World::well().found();
    assert!(found.iter().all(|finding| finding.level == Level::Ok));
    insta::assert_snapshot!(shown(&found));
}

#[test]
fn everything_that_can_be_wrong_is_said_with_what_to_do() {
    let mut world = World::well();
    world.url = "http://manager:7070";
    world.health = of(json!({
        "version": "0.0.1", "now": "2026-11-20T08:00:00Z", "generation": "2.1", "needs_token": true,
        "services": [
            { "service": "web", "is_seen": true, "trouble": "the engine is out of reach" },
            { "service": "new", "is_seen": false },
        ],
        "store": { "words": "friday.db cannot grow: the disk is full", "seconds": 61.2 },
        "metrics": { "trouble": "http://prometheus:9090 is out of reach" },
    }));
    let mut trouble = arm(1, false);
    trouble["trouble"] = json!("it runs on n1 and is not ready: GET /ready answers 503");
    trouble["tasks"][0]["memory_bytes"] = Value::Null;
    trouble["tasks"][0]["node"] = json!("n2");
    world.services = vec![of(json!({ "service": "web", "stable": trouble }))];
    world.proxies = vec![
        proxy("edge-1", 12.0),
        proxy("edge-2", 0.3),
        proxy("edge-3", 0.1),
    ];
    world.behind.insert("edge-2".to_owned());
    world.agents = vec![agent("n1", 30.0), agent("n3", 0.1)];
    world.agents[1].report.trouble = Some("the engine does not answer".to_owned());
    let mut silent = rollout(
        3,
        json!({ "name": "analyzing", "step": 0, "elapsed_ms": 1000 }),
    );
    silent.weight.seen_percent = None;
    silent.checks = vec![of(json!({
        "name": "lag", "bound": "at most 10", "canary": null, "stable": null, "limit": 10.0, "state": "no_data",
        "message": "check \"lag\": no data yet, to be at most 10",
    }))];
    silent.verdict = Some(verdict(Decision::Inconclusive { missing: vec![] }));
    world.rollouts = vec![
        silent,
        rollout(4, json!({ "name": "deploying", "elapsed_ms": 0 })),
    ];
    world.engine = Some(EngineFacts {
        address: "unix:///var/run/docker.sock".to_owned(),
        answer: Ok(EngineAnswer {
            version: "20.10.24".to_owned(),
            nodes: vec![node("n1", "down", "active"), node("n2", "ready", "drain")],
            services: vec!["web".to_owned()],
            canaries: vec![("old-canary".to_owned(), "old".to_owned())],
        }),
    });
    insta::assert_snapshot!(shown(&world.found()));
}

#[test]
fn each_wait_of_a_rollout_names_who_can_end_it() {
    let level = |phase: Value, change: &dyn Fn(&mut RolloutView)| {
        let mut world = World::well();
        let mut view = rollout(3, phase);
        change(&mut view);
        world.rollouts = vec![view];
        let found = world.found();
        let finding = found
            .iter()
            .find(|finding| finding.about == "rollout web-3");
        let finding = finding.unwrap();
        (
            finding.level,
            finding.what.clone(),
            finding.mend.clone().unwrap(),
        )
    };
    let as_is = |_: &mut RolloutView| {};
    let gated = json!({ "name": "gated", "step": 1, "elapsed_ms": 1000 });
    let (seen, what, mend) = level(gated.clone(), &as_is);
    assert_eq!(seen, Level::Warn);
    assert!(
        what.contains("message of web-3") && what.contains("last moved 3m ago"),
        "{what}"
    );
    assert!(mend.contains("friday approve web-3"), "{mend}");
    let (seen, _, mend) = level(json!({ "name": "paused", "at": gated }), &as_is);
    assert_eq!(seen, Level::Warn);
    assert!(mend.contains("friday resume web-3"), "{mend}");
    let deploying = json!({ "name": "deploying", "elapsed_ms": 1000 });
    assert_eq!(level(deploying.clone(), &as_is).0, Level::Ok);
    let in_trouble =
        |view: &mut RolloutView| view.canary.trouble = Some("no such image".to_owned());
    assert_eq!(level(deploying, &in_trouble).0, Level::Fail);
    let baking = json!({ "name": "baking", "elapsed_ms": 1000 });
    assert_eq!(level(baking.clone(), &as_is).0, Level::Ok);
    let unasked = |view: &mut RolloutView| view.canary.signals.requests_per_second = 0.0;
    let (seen, _, mend) = level(baking.clone(), &unasked);
    assert_eq!(seen, Level::Warn);
    assert!(mend.contains("does it come by the proxy?"), "{mend}");
    let apart = |view: &mut RolloutView| view.weight.seen_percent = None;
    assert_eq!(level(baking, &apart).0, Level::Fail);
}

#[test]
fn no_proxy_at_all_and_no_living_one_fail() {
    let mut world = World::well();
    let level_of_proxies = |world: &World| {
        let found = world.found();
        let proxies = found
            .iter()
            .filter(|finding| finding.about.starts_with("prox"));
        proxies.map(|finding| finding.level).collect::<Vec<_>>()
    };
    world.proxies = vec![proxy("edge-1", 5.0), proxy("edge-2", 700.0)];
    assert_eq!(level_of_proxies(&world), [Level::Fail, Level::Fail]);
    world.proxies[1].silent_seconds = 0.4;
    assert_eq!(level_of_proxies(&world), [Level::Warn, Level::Ok]);
    world.proxies[1].version = Some("0.0.1".to_owned());
    assert_eq!(level_of_proxies(&world), [Level::Warn, Level::Warn]);
    world.proxies.clear();
    assert_eq!(level_of_proxies(&world), [Level::Fail]);
}

#[test]
fn a_token_stays_private_on_this_machine_and_under_tls() {
    for (url, private) in [
        ("http://127.0.0.1:7070", true),
        ("http://localhost", true),
        ("http://[::1]:7070", true),
        ("https://manager:7070", true),
        ("http://manager:7070", false),
        ("http://10.0.0.1", false),
    ] {
        assert_eq!(is_private(url), private, "{url}");
    }
}

#[test]
fn an_incident_is_named_with_what_it_holds_and_how_that_ends() {
    let mut world = World::well();
    world.rollouts = vec![rollout(
        3,
        json!({ "name": "paused", "at": { "name": "warm", "elapsed_ms": 0 } }),
    )];
    for (service, holds, is_ours) in [
        (None, "every rollout", true),
        (Some("web"), "rollouts of web", true),
        (Some("shop"), "rollouts of shop", false),
    ] {
        world.health.incidents = vec![of(json!({
            "alert": "Down", "service": service, "summary": "half of the answers fail", "since": "2026-11-20T08:58:00Z",
        }))];
        let found = world.found();
        let about = |name: &str| found.iter().find(|finding| finding.about == name).unwrap();
        let incident = about("incident Down");
        assert_eq!(incident.level, Level::Warn);
        assert_eq!(
            incident.what,
            format!("half of the answers fail; for 2m it holds {holds}")
        );
        let mend = about("rollout web-3").mend.as_deref().unwrap();
        assert_eq!(mend.contains("the line on the incident"), is_ours, "{mend}");
    }
}
