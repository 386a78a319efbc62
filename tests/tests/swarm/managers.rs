//! Three managers, one of which dies or is cut off in the middle of a rollout: it ends rightly, nobody gets more of the
//! canary than was decided, and users lose at most what was on its way to the dead node.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use controller_testing::eventually;
use rollout::{Ending, Phase};
use system_tests::{Lab, Orders};
use tokio::time::{Instant, sleep};

use crate::crowd::{Crowd, Outcome, of_tasks};
use crate::seats::Seats;
use crate::stage::{PROXIES, Stage, get};
use crate::world::{LIMIT, World, docker};

/// Requests a second at each proxy.
const RATE: u32 = 200;

/// Longest that a release may take here: without a leader nothing is started for half a minute.
const RELEASE_MAX: Duration = Duration::from_secs(300);

/// Shortest time without a leader: managers wait ten ticks of a second before they elect one, and it waits for the nodes.
const LEADERLESS: Duration = Duration::from_secs(2);

/// As long as a cable is out.
const CUT: Duration = Duration::from_secs(60);

/// How long it is watched that nobody asks tasks that were replaced: they come back into DNS for 12 to 40 s.
const WATCHED: Duration = Duration::from_secs(45);

/// Longest that a request takes that is answered.
const LONGEST: Duration = Duration::from_secs(1);

/// How long after its death requests may still be sent to a node over connections that were open before.
const LOST: Duration = Duration::from_secs(2);

/// The most requests that may be on their way to a node: every user of a crowd has one at a time.
const IN_FLIGHT_MAX: u64 = 60;

/// A step is held for so long that something can happen in it. Half of three tasks are two of the canary, on two nodes: a
/// canary whose only task dies with its node fails every request, and is rolled back rightly.
const SPEC: &str = "\
service: worker
port: 9000
ready: { path: /ready }
sticky: none
shield: idempotent
plan:
  - { weight: 50%, hold: 15s..120s }
bake: { weight: 80%, for: 5s }
keep_warm: 5s
deadlines: { ready: 60s, evidence: 240s, rollout: 10m }
warm_up: 2s
guard: { alpha: 0.01%, latency: { floor: 100ms } }
";

/// A lab of three managers with a service of three tasks that count, and users behind both proxies.
struct Scene {
    seats: Seats,
    world: World,
    counts: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let seats = Seats::take(3);
        let lab = Lab::start(3);
        lab.image("worker:v1", &["count", "/counts", "tag", "one"]);
        lab.image("worker:v2", &["count", "/counts", "tag", "two"]);
        let counts = lab.dir().join("counts");
        std::fs::create_dir(&counts).unwrap();
        let mount = format!("type=bind,source={},target=/counts", counts.display());
        let world = World::of(lab);
        world.create(&[
            "--replicas",
            "3",
            "--hostname",
            "{{.Task.ID}}",
            "--mount",
            &mount,
        ]);
        Self {
            seats,
            world,
            counts,
        }
    }

    /// Runs a test where controller and proxies stand: on the node that neither leads nor dies.
    fn run<F: Future<Output = ()>>(self, test: impl FnOnce(Act) -> F + Send + 'static) {
        let _seats = self.seats;
        let lab = self.world.into_lab();
        let (orders, socket, counts) = (lab.orders(), lab.socket(lab.home()), self.counts);
        lab.within(move || async move {
            let stage = Stage::open(socket.clone(), SPEC, 2).await;
            let watch = Watch::start(&stage);
            test(Act {
                orders,
                socket,
                counts,
                stage,
                watch,
            })
            .await;
        });
    }
}

/// What a test of three managers has.
struct Act {
    orders: Orders,
    socket: PathBuf,
    counts: PathBuf,
    stage: Stage,
    watch: Watch,
}

impl Act {
    /// Starts a release and waits until its first step is on, and every task there is has been seen.
    async fn deploy(&self) -> String {
        let id = self.stage.deploy("worker:v2").await.id;
        self.stage
            .until(&id, "the first step", LIMIT, |view| {
                view.weight.seen_percent == Some(50.0)
            })
            .await;
        eventually(
            "three stable tasks and two of the canary get requests",
            LIMIT,
            async || self.stage.endpoints(0).await,
            |seen| *seen == (3, 2),
        )
        .await;
        id
    }

    /// That the rollout ends with the new release everywhere, and no proxy ever gave the canary more than was decided.
    async fn ends_promoted(&self, id: &str) {
        let (view, _) = self.stage.end_of(id, RELEASE_MAX).await;
        assert_eq!(view.ending, Some(Ending::Promoted), "{}", view.message);
        let events = self.stage.events(id).await;
        let decided: Vec<u64> = events
            .iter()
            .filter(|event| event.kind == "weight")
            .map(|event| (event.data["to_percent"].as_f64().unwrap() * 100.0).round() as u64)
            .collect();
        for seen in self.watch.seen() {
            let mut left = decided.iter();
            for weight in seen.iter().filter(|weight| **weight > 0) {
                assert!(
                    left.any(|decided| decided == weight),
                    "a proxy had {seen:?}, and decided was {decided:?}"
                );
            }
        }
    }
}

/// What proxies do with the canary's share, as long as they run.
struct Watch(Arc<Mutex<Vec<Vec<u64>>>>);

impl Watch {
    fn start(stage: &Stage) -> Self {
        let seen = Arc::new(Mutex::new(vec![Vec::new(); PROXIES.len()]));
        for number in 0..PROXIES.len() {
            let (seen, admin) = (seen.clone(), stage.admin(number));
            tokio::spawn(async move {
                loop {
                    if let Ok(text) = get(&format!("http://{admin}/routes")).await {
                        let table: serde_json::Value = serde_json::from_str(&text).unwrap();
                        let weight = table["routes"][0]["canary_bp"].as_u64().unwrap_or(0);
                        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                        let own: &mut Vec<u64> = &mut seen[number];
                        if own.last() != Some(&weight) {
                            own.push(weight);
                        }
                    }
                    sleep(Duration::from_millis(50)).await;
                }
            });
        }
        Self(seen)
    }

    fn seen(&self) -> Vec<Vec<u64>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// That nothing failed but what may have been on its way to a node when it died, so long after the users came.
fn assert_only_in_flight(outcome: &Outcome, died: Duration) {
    let late: Vec<_> = outcome
        .failures
        .iter()
        .filter(|(asked, _)| !(died.saturating_sub(LONGEST)..died + LOST).contains(asked))
        .collect();
    assert!(late.is_empty(), "node died at {died:?}: {late:#?}");
    assert!(outcome.failed <= IN_FLIGHT_MAX, "{outcome:#?}");
}

#[test]
fn the_leader_dies_in_the_middle_of_a_rollout_and_then_its_controller() {
    Scene::new().run(async |mut act| {
        let crowds = PROXIES.map(|proxy| Crowd::start(proxy, RATE, false));
        let id = act.deploy().await;
        let died = crowds[0].age();
        act.orders.give("kill", 1);
        let nobody_led_until = Instant::now() + LEADERLESS;
        loop {
            let (stable, _) = act.stage.endpoints(0).await;
            // What is seen late may be what a new leader has decided.
            if Instant::now() > nobody_led_until {
                break;
            }
            let what = "what there was is not forgotten while nobody leads";
            assert_eq!(stable, 3, "{what}");
            sleep(Duration::from_millis(100)).await;
        }
        act.stage
            .until(&id, "the bake", RELEASE_MAX, |view| {
                matches!(view.phase, Phase::Baking { .. })
            })
            .await;
        act.stage.kill_controller();
        act.stage.start_controller().await;
        act.ends_promoted(&id).await;
        for crowd in crowds {
            let outcome = crowd.end().await;
            println!("{outcome:#?}");
            assert_only_in_flight(&outcome, died);
        }
    });
}

#[test]
fn a_proxy_is_killed_and_then_a_node_without_the_controller() {
    Scene::new().run(async |mut act| {
        let crowd = Crowd::start(PROXIES[0], RATE, false);
        let id = act.deploy().await;
        act.stage.kill_a_proxy();
        eventually(
            "the rollout says that it goes on without the proxy",
            LIMIT,
            async || act.stage.events(&id).await,
            |events| {
                events
                    .iter()
                    .any(|event| event.kind == "proxy" && event.data["silent"] == true)
            },
        )
        .await;
        assert_eq!(crowd.outcome().failed, 0, "{:#?}", crowd.outcome());
        let died = crowd.age();
        act.orders.give("kill", 2);
        act.ends_promoted(&id).await;
        let outcome = crowd.end().await;
        println!("{outcome:#?}");
        assert_only_in_flight(&outcome, died);
    });
}

#[test]
fn a_node_is_cut_off_for_a_minute_and_nobody_asks_its_replaced_tasks_when_it_is_back() {
    Scene::new().run(async |act| {
        let crowds = PROXIES.map(|proxy| Crowd::start(proxy, RATE, false));
        let id = act.deploy().await;
        let format = "{{.ID}}";
        let there = docker(
            &act.socket,
            &["node", "ps", "n2", "--no-trunc", "--format", format],
        );
        let there: Vec<&str> = there.lines().collect();
        let died = crowds[0].age();
        let cut = Instant::now();
        act.orders.give("cut", 2);
        act.ends_promoted(&id).await;
        tokio::time::sleep_until(cut + CUT).await;
        let counted = || -> HashMap<String, usize> {
            let mut all = of_tasks(&act.counts);
            all.retain(|task, _| there.contains(&task.as_str()));
            all.into_iter()
                .map(|(task, names)| (task, names.len()))
                .collect()
        };
        let before = counted();
        assert!(!before.is_empty(), "{there:?}");
        act.orders.give("heal", 2);
        let addresses: Vec<String> = before
            .keys()
            .map(|task| {
                let format = "{{(index (index .NetworksAttachments 0).Addresses 0)}}";
                let address = docker(
                    &act.socket,
                    &["inspect", "--type", "task", "--format", format, task],
                );
                address.split('/').next().unwrap().to_owned()
            })
            .collect();
        let healed = Instant::now();
        let mut answers = 0;
        while healed.elapsed() < WATCHED {
            for address in &addresses {
                let url = format!("http://{address}:9000/ready");
                answers += u32::from(get(&url).await.is_ok());
            }
            sleep(Duration::from_millis(200)).await;
        }
        println!("the replaced tasks {addresses:?} would have answered {answers} times");
        assert_eq!(counted(), before, "a replaced task was asked");
        for crowd in crowds {
            let outcome = crowd.end().await;
            println!("{outcome:#?}");
            assert_only_in_flight(&outcome, died);
        }
    });
}
