//! One node under constant load: releases, scaling and the users' own deployments, and nobody is turned away.

use std::fs;
use std::time::Duration;

use controller_testing::eventually;
use friday::api::types::Order;
use rollout::Ending;
use system_tests::Lab;

use crate::crowd::{Crowd, counted};
use crate::stage::Stage;
use crate::world::{LIMIT, World, docker};

/// Requests a second that the crowd aims at, and the least that they may come to.
const RATE: u32 = 600;
const RATE_MIN: f64 = 500.0;

/// Longest that a whole release may take here; about a minute on a machine that does nothing else: requests of a minute
/// hold the evidence up until they are old, for 11 s at each step.
const RELEASE_MAX: Duration = Duration::from_secs(240);

/// Two steps, so that every kind of weight is seen; of latency nothing is said: the machine may be busy.
const SPEC: &str = "\
service: app_shop
port: 9000
ready: { path: /ready }
sticky: none
shield: idempotent
plan:
  - { weight: 10%, hold: 2s..90s }
  - { weight: 50%, hold: 2s..90s }
bake: { weight: 80%, for: 3s }
keep_warm: 3s
deadlines: { ready: 30s, evidence: 180s, rollout: 10m }
warm_up: 2s
guard: { alpha: 0.01%, latency: { floor: 100ms } }
";

/// The users' own stack. Requests may take a minute, so a task is given longer than that to finish them.
const STACK: &str = "\
version: '3.8'
services:
  shop:
    image: IMAGE
    hostname: '{{.Task.ID}}'
    environment: { SEASON: SPRING }
    networks: [mesh]
    stop_grace_period: 75s
    volumes: [ { type: bind, source: COUNTS, target: /counts } ]
    deploy:
      endpoint_mode: dnsrr
      replicas: 2
      update_config: { order: start-first, monitor: 2s, failure_action: rollback }
      restart_policy: { delay: 200ms }
networks:
  mesh: { external: true }
";

/// The stack file, and `docker stack deploy` of it.
struct Stack {
    folder: tempfile::TempDir,
    socket: std::path::PathBuf,
}

impl Stack {
    fn new(lab: &Lab) -> Self {
        let folder = tempfile::tempdir_in(lab.dir()).unwrap();
        fs::create_dir(folder.path().join("counts")).unwrap();
        Self {
            folder,
            socket: lab.socket(1),
        }
    }

    fn counts(&self) -> std::path::PathBuf {
        self.folder.path().join("counts")
    }

    fn deploy(&self, image: &str, season: &str) {
        let text = STACK
            .replace("IMAGE", image)
            .replace("SPRING", season)
            .replace("COUNTS", &self.counts().display().to_string());
        let file = self.folder.path().join("stack.yml");
        fs::write(&file, text).unwrap();
        let file = file.display().to_string();
        self.docker(&[
            "stack",
            "deploy",
            "--resolve-image",
            "never",
            "-c",
            &file,
            "app",
        ]);
    }

    fn docker(&self, arguments: &[&str]) -> String {
        docker(&self.socket, arguments)
    }
}

/// Waits until so many tasks of the stable group get requests, all of one environment.
async fn until_serving(stage: &Stage, stack: &Stack, count: usize, season: &str) {
    eventually(
        &format!("{count} tasks of {season} get requests"),
        LIMIT,
        async || {
            let table = stage.table(0).await;
            let mut seasons = Vec::new();
            for endpoint in table["routes"][0]["stable"]["endpoints"]
                .as_array()
                .unwrap()
            {
                let url = format!("http://{}/env/SEASON", endpoint.as_str().unwrap());
                seasons.push(crate::stage::get(&url).await.unwrap_or_default());
            }
            let updating = stack.docker(&[
                "service",
                "inspect",
                "--format",
                "{{if .UpdateStatus}}{{.UpdateStatus.State}}{{end}}",
                "app_shop",
            ]);
            (seasons, updating)
        },
        |(seasons, updating)| {
            seasons.len() == count
                && seasons.iter().all(|seen| seen == season)
                && updating != "updating"
        },
    )
    .await;
}

#[test]
fn every_request_of_a_constant_load_is_answered_once_whatever_is_released_scaled_or_deployed() {
    let world = World::with_load(2);
    let lab = world.lab();
    for (image, more) in [
        ("shop:v1", ["tag", "one"]),
        ("shop:v2", ["tag", "two"]),
        ("shop:v3", ["tag", "three"]),
        ("shop:bad", ["fail", "20"]),
    ] {
        lab.image(image, &[&["count", "/counts"], &more[..]].concat());
    }
    let stack = Stack::new(lab);
    stack.deploy("shop:v1", "spring");
    let socket = lab.socket(1);
    lab.within(move || async move {
        let stage = Stage::open(socket, SPEC, 1).await;
        let mut crowd = Crowd::start(crate::stage::PROXIES[0], RATE, true);
        let so_far = |crowd: &Crowd, what: &str| {
            let outcome = crowd.outcome();
            assert_eq!(outcome.failed, 0, "{what}: {:#?}", outcome.failures);
        };

        let id = stage.deploy("shop:v2").await.id;
        let (view, most) = stage.end_of(&id, RELEASE_MAX).await;
        assert_eq!(view.ending, Some(Ending::Promoted), "{}", view.message);
        assert_eq!(most, 10_000, "every weight was applied");
        so_far(&crowd, "a good release");

        let id = stage.deploy("shop:bad").await.id;
        let (view, most) = stage.end_of(&id, RELEASE_MAX).await;
        assert_eq!(view.ending, Some(Ending::RolledBack), "{}", view.message);
        assert_eq!(most, 1_000, "no more than the first step's share");
        so_far(&crowd, "a bad release");

        for replicas in [4, 2] {
            let order = format!("app_shop={replicas}");
            stack.docker(&["service", "scale", "--detach", &order]);
            until_serving(&stage, &stack, replicas, "spring").await;
        }
        so_far(&crowd, "scaling");

        // The file as it was, which undoes the release, and another.
        for (image, season) in [("shop:v1", "spring"), ("shop:v2", "autumn")] {
            stack.deploy(image, season);
            until_serving(&stage, &stack, 2, season).await;
        }
        so_far(&crowd, "the users' own deployments");

        // Answers that say nothing for a minute need a longer `proxy.answer`. The judge would wait for them as long, so a
        // person sends this one all the way.
        let patient = SPEC.replace("sticky: none", "sticky: none\nproxy: { answer: 70s }");
        let id = stage.deploy_by(&patient, "shop:v3").await.id;
        eventually(
            "the proxy waits longer",
            LIMIT,
            async || stage.table(0).await["routes"][0]["timeouts"]["response_ms"].clone(),
            |wait| *wait == 70_000,
        )
        .await;
        (0..10).for_each(|number| crowd.ask("late", number));
        stage.order(&id, Order::PromoteFull).await;
        stage
            .until(&id, "all of it on the canary", LIMIT, |view| {
                view.weight.seen_percent == Some(100.0)
            })
            .await;
        (10..20).for_each(|number| crowd.ask("late", number));
        let (view, _) = stage.end_of(&id, RELEASE_MAX).await;
        assert_eq!(view.ending, Some(Ending::Promoted), "{}", view.message);

        let outcome = crowd.end().await;
        assert_eq!(outcome.failed, 0, "{outcome:#?}");
        assert!(outcome.long >= 40, "{outcome:#?}");
        let counted = counted(&stack.counts());
        let doubled: Vec<_> = counted.iter().filter(|(_, times)| **times > 1).collect();
        assert!(doubled.is_empty(), "answered more than once: {doubled:?}");
        assert_eq!(counted.len() as u64, outcome.answered, "all were counted");
        println!("{outcome:?}");
        // Last: it speaks of the machine too.
        assert!(outcome.rate >= RATE_MIN, "{outcome:#?}");
    });
}
