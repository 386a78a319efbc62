//! Node agents on real engines: what tasks use is seen, judged, and unknown when nobody says it any more.

use std::time::Duration;

use controller_testing::contract::IMAGE;
use controller_testing::eventually;
use friday::api::types::ArmView;
use rollout::Ending;
use system_tests::{Lab, Part, friday};

use crate::seats::Seats;
use crate::stage::{Stage, get};
use crate::world::{LIMIT, World};

const MIB: u64 = 1 << 20;

/// The limit of every task here.
const MEMORY_MAX: u64 = 128 * MIB;

/// Longest that a release may take here.
const RELEASE_MAX: Duration = Duration::from_secs(180);

/// A service whose tasks have a limit of memory.
fn limited(world: &World) {
    world.create(&["--limit-memory", "128M"]);
}

async fn stable(stage: &Stage) -> ArmView {
    stage.client.services().await.unwrap().remove(0).stable
}

fn knows_memory(arm: &ArmView) -> bool {
    arm.tasks.len() == 2 && arm.tasks.iter().all(|task| task.memory_bytes.is_some())
}

#[test]
fn what_tasks_use_is_seen_by_node_service_and_release_until_their_agent_falls_silent() {
    let world = World::new();
    world.lab().image(IMAGE, &["eat", "40", "spin", "10"]);
    limited(&world);
    let socket = world.lab().socket(1);
    world.lab().within(move || async move {
        let stage = Stage::start(socket).await;
        assert!(!knows_memory(&stable(&stage).await), "nobody has said it");
        let agent = stage.start_agent().await;
        let seen = eventually(
            "memory and CPU of both tasks are known",
            LIMIT,
            async || stable(&stage).await,
            |arm| {
                let eaten = |task: &friday::api::types::TaskView| task.memory_bytes > Some(40 * MIB);
                arm.tasks.len() == 2
                    && arm.tasks.iter().all(eaten)
                    && arm.signals.cpu_cores.is_some_and(|cores| cores > 0.05)
            },
        )
        .await;
        for task in &seen.tasks {
            assert_eq!(task.memory_bytes_max, Some(MEMORY_MAX));
            assert!(task.memory_bytes < Some(MEMORY_MAX), "{task:?}");
        }
        // Two that take a tenth of a CPU each, and some requests.
        assert!(seen.signals.cpu_cores < Some(1.5), "{:?}", seen.signals);

        let agents = eventually(
            "the agent is in the list with both tasks",
            LIMIT,
            async || stage.client.agents().await.unwrap(),
            |agents| {
                let [agent] = agents.as_slice() else {
                    return false;
                };
                agent.is_live && agent.report.tasks.len() == 2
            },
        )
        .await;
        let report = &agents[0].report;
        assert_eq!(report.node, "n1");
        assert!(report.node_id.is_some() && report.host.memory_bytes > Some(40 * MIB));
        let url = format!("http://{}", agent.address("listen"));
        let text = get(&format!("{url}/metrics")).await.unwrap();
        let release = seen.release.id.to_string();
        for (name, task) in [("cpu_ratio", 0), ("memory_bytes", 1), ("memory_limit_bytes", 0)] {
            let line = format!(
                "friday_agent_{name}{{arm=\"stable\",node=\"n1\",release=\"{release}\",service=\"worker\",task=\"{}\"}} ",
                report.tasks[task].name
            );
            assert!(text.contains(&line), "{line} in\n{text}");
        }
        assert!(text.contains("friday_agent_node_memory_bytes{node=\"n1\"} "), "{text}");
        assert!(text.contains("friday_agent_controller_up 1"), "{text}");
        get(&format!("{url}/ready")).await.unwrap();

        agent.kill();
        eventually(
            "what they use is unknown, and not nothing",
            LIMIT,
            async || stable(&stage).await,
            |arm| arm.tasks.iter().all(|task| task.memory_bytes.is_none()),
        )
        .await;
        assert_eq!(stable(&stage).await.signals.memory_bytes, None);
        let (answered, failed) = stage.end().await;
        assert_eq!(failed, 0, "of {answered}");
    });
}

#[test]
fn a_leaking_canary_is_rolled_back_by_its_memory_and_users_see_nothing_of_it() {
    let world = World::new();
    // From 80 MiB on it takes ten seconds to its limit, and is near it for more than one of them.
    world
        .lab()
        .image("worker:leak", &["eat", "80", "leak", "4"]);
    limited(&world);
    let socket = world.lab().socket(1);
    world.lab().within(move || async move {
        let mut stage = Stage::start(socket).await;
        let agent = stage.start_agent().await;
        // The agent finds the next controller by itself.
        stage.kill_controller();
        stage.start_controller().await;
        let known = async || stable(&stage).await;
        eventually("what stable uses is known", LIMIT, known, knows_memory).await;
        let id = stage.deploy("worker:leak").await.id;
        let (view, _) = stage.end_of(&id, RELEASE_MAX).await;
        assert_eq!(view.ending, Some(Ending::RolledBack), "{}", view.message);
        assert!(view.message.contains("limit of memory"), "{}", view.message);
        assert!(view.message.contains("canary node n1"), "{}", view.message);
        assert_eq!(stage.exit_code(&["status", &id]).await, 10);
        stage.until_alone("worker worker:v1 2/2").await;
        let (answered, failed) = stage.end().await;
        assert_eq!(failed, 0, "of {answered}");
        assert!(agent.stop().await.success());
    });
}

#[test]
fn an_engine_that_is_away_is_said_and_seen_again_when_it_is_back() {
    let _seats = Seats::take(1);
    let mut lab = Lab::start(1);
    lab.image(IMAGE, &["tag", "one"]);
    let world = World::of(lab);
    limited(&world);
    lab = world.into_lab();
    let dir = tempfile::tempdir().unwrap();
    let engine = format!("unix://{}", lab.socket(1).display());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let args = ["agent", "--engine", &engine, "--listen", "127.0.0.1:0"];
    let agent = runtime.block_on(Part::start("agent", &friday(), &args, dir.path()));
    let url = format!("http://{}", agent.address("listen"));
    let until = |what: &str, path: &str, words: &str| {
        let look = async || get(&format!("{url}/{path}")).await;
        let holds = |seen: &Result<String, String>| {
            let (Ok(text) | Err(text)) = seen;
            text.contains(words)
        };
        runtime.block_on(eventually(what, LIMIT, look, holds)).ok()
    };
    until("tasks are seen", "metrics", "friday_agent_memory_bytes{").unwrap();
    lab.order("kill", 1);
    until("the engine is away", "ready", "the engine does not answer");
    let text = until("it says so", "metrics", "friday_agent_engine_up 0").unwrap();
    assert!(!text.contains("friday_agent_memory_bytes{"), "{text}");
    assert!(
        text.contains("friday_agent_node_memory_bytes{node=\"n1\"}"),
        "{text}"
    );
    lab.order("start", 1);
    until(
        "they are seen again",
        "metrics",
        "friday_agent_memory_bytes{",
    )
    .unwrap();
}
