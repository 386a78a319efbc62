//! A service that runs already comes under Friday: its first file, what is wrong with it, and what is wrong later.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use controller_testing::contract::{IMAGE, NEXT_IMAGE};
use controller_testing::eventually;
use friday::api::types::Order;
use rollout::Ending;
use serde_json::Value;
use system_tests::{Ended, Lab, friday, run};
use tempfile::TempDir;

use crate::seats::Seats;
use crate::stage::Stage;
use crate::world::{LIMIT, World, docker, try_docker};

/// Longest that a command may take: a registry that is not there is given up after some seconds.
const COMMAND_MAX: Duration = Duration::from_secs(40);

/// A command beside one engine, and a folder for its files.
struct Desk {
    dir: TempDir,
    engine: String,
}

impl Desk {
    fn at(socket: &Path) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            engine: format!("unix://{}", socket.display()),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs `friday …`, where `FILE` is friday.yml in the folder and `STACK` the stack file there.
    async fn friday(&self, arguments: &str) -> Ended {
        let (file, stack) = (self.file("friday.yml"), self.file("stack.yml"));
        let arguments = arguments
            .replace("FILE", &file.display().to_string())
            .replace("STACK", &stack.display().to_string());
        let arguments: Vec<&str> = arguments
            .split_whitespace()
            .chain(["--engine", &self.engine])
            .collect();
        run(&friday(), &arguments, COMMAND_MAX).await
    }

    async fn code(&self, arguments: &str) -> i32 {
        let Ended { code, out, err } = self.friday(arguments).await;
        println!("friday {arguments}: {code}\n{out}{err}");
        code
    }
}

/// Gives the orders that `friday adopt` printed, in their order, as a person would type them.
async fn obey(socket: &Path, adoption: &Value) -> usize {
    let mut given = 0;
    for step in adoption["steps"].as_array().unwrap() {
        let how = step["how"].as_str().unwrap_or_default();
        // What follows a comma and a blank is said to the person.
        let order = how.split(", ").next().unwrap_or_default();
        let Some(order) = order.strip_prefix("docker service ") else {
            continue;
        };
        let (verb, rest) = order.split_once(' ').unwrap();
        let mut words = vec!["service", verb, "--detach"];
        words.extend(rest.split_whitespace());
        // The engine writes how far an update is into the same service: whoever comes second asks again.
        eventually(
            order,
            LIMIT,
            async || try_docker(socket, &words),
            Result::is_ok,
        )
        .await
        .unwrap();
        given += 1;
    }
    given
}

async fn settled(socket: &Path) {
    let state = "{{if .UpdateStatus}}{{.UpdateStatus.State}}{{end}}";
    eventually(
        "the engine is done with its update",
        LIMIT,
        async || docker(socket, &["service", "inspect", "--format", state, "worker"]),
        |state| state.is_empty() || state == "completed",
    )
    .await;
}

#[test]
fn a_service_that_runs_is_adopted_linted_and_released_by_the_file_that_was_written() {
    let world = World::new();
    world.create(&[]);
    let socket = world.lab().socket(1);
    world.lab().within(move || async move {
        let desk = Desk::at(&socket);
        let adopted = desk.friday("adopt worker --out FILE").await;
        assert_eq!((adopted.code, adopted.out.as_str()), (0, ""), "{}", adopted.err);
        for words in [
            "nothing of it was changed",
            "no limit of cpus and memory",
            "docker service update --limit-cpu 0.50 --limit-memory 256M worker, as much as it needs",
            "friday serve --orchestrator swarm --network mesh --service friday.yml",
            "makes worker-canary, a clone of the service",
            "friday.yml is written",
        ] {
            assert!(adopted.err.contains(words), "{words} in\n{}", adopted.err);
        }
        let text = fs::read_to_string(desk.file("friday.yml")).unwrap();
        assert!(text.contains("port: 9000\n") && text.contains("PORT in its environment"), "{text}");
        assert_eq!(desk.code("adopt worker --out FILE").await, 20, "it is not overwritten");
        assert_eq!(desk.code("adopt worker --out FILE --force").await, 0);

        let told = desk.friday("adopt worker -o json").await;
        let adoption: Value = serde_json::from_str(&told.out).unwrap();
        assert_eq!((adoption["friday_yml"].as_str(), told.err.as_str()), (Some(text.as_str()), ""));
        let linted = desk.friday("lint FILE").await;
        assert_eq!(linted.code, 20, "{}", linted.out);
        assert!(linted.out.contains("service worker at unix://"), "{}", linted.out);
        assert!(linted.out.contains("--allow no-limits"), "{}", linted.out);
        assert_eq!(desk.code("lint FILE --allow no-limits").await, 0);
        assert_eq!(obey(&socket, &adoption).await, 1);
        assert_eq!(desk.code("lint FILE").await, 0);
        settled(&socket).await;

        let stage = Stage::start_by(socket.clone(), &text).await;
        let id = stage.deploy(NEXT_IMAGE).await.id;
        stage
            .until(&id, "the canary has a share of the requests", LIMIT, |view| {
                view.weight.seen_percent > Some(0.0)
            })
            .await;
        // The judge is tried elsewhere; here a person has seen enough.
        stage.order(&id, Order::PromoteFull).await;
        let (view, _) = stage.end_of(&id, Duration::from_secs(240)).await;
        assert_eq!(view.ending, Some(Ending::Promoted), "{}", view.message);
        let (answered, failed) = stage.end().await;
        assert_eq!(failed, 0, "of {answered}");
    });
}

#[test]
fn what_adopt_says_of_a_careless_service_mends_it() {
    let world = World::new();
    world.create(&[
        "--replicas",
        "1",
        "--update-order",
        "stop-first",
        "--endpoint-mode",
        "vip",
        "--publish",
        "mode=host,target=9000,published=19000",
        "--label",
        "traefik.enable=true",
        "--health-interval",
        "10s",
    ]);
    let socket = world.lab().socket(1);
    world.lab().within(move || async move {
        let desk = Desk::at(&socket);
        let told = desk.friday("adopt worker -o json --out FILE").await;
        let adoption: Value = serde_json::from_str(&told.out).unwrap();
        assert!(
            adoption["port"]["source"]
                .as_str()
                .unwrap()
                .contains("port 19000")
        );
        let canary = adoption["steps"].as_array().unwrap().iter();
        let left_out = canary
            .filter_map(|step| step["what"].as_str())
            .find(|what| what.contains("leaves out of that clone"));
        let left_out = left_out.unwrap();
        assert!(
            left_out.contains("published ports") && left_out.contains("traefik.enable"),
            "{left_out}"
        );

        let before = desk.friday("lint FILE -o json").await;
        let findings: Value = serde_json::from_str(&before.out).unwrap();
        let mends: Vec<&str> = findings
            .as_array()
            .unwrap()
            .iter()
            .map(|finding| finding["mend"].as_str().unwrap())
            .collect();
        // Five tries of 10 s against a monitor of 5 s.
        for rule in [
            "stop-first",
            "vip",
            "one-replica",
            "no-limits",
            "short-monitor",
        ] {
            let allow = format!("--allow {rule}");
            assert!(
                mends.iter().any(|mend| mend.ends_with(&allow)),
                "{rule} in {mends:?}"
            );
        }
        assert_eq!(mends.len(), 5, "{mends:?}");
        assert_eq!(obey(&socket, &adoption).await, 5, "{adoption:#}");
        let after = desk.friday("lint FILE").await;
        assert_eq!(after.code, 0, "{}", after.out);
    });
}

#[test]
fn a_service_that_can_have_no_canary_is_refused_and_a_wrong_name_leads_to_the_right_one() {
    let world = World::new();
    world.create(&["--label", "friday.canary-of=other"]);
    let create = [
        "service",
        "create",
        "--detach",
        "--quiet",
        "--no-resolve-image",
        "--name",
    ];
    let create = |more: &[&str]| {
        world
            .lab()
            .docker(1, &[&create[..], more, &[IMAGE]].concat());
    };
    create(&["shop_everywhere", "--mode", "global"]);
    create(&["shop_once", "--mode", "replicated-job"]);
    create(&["shop_silent", "--env", "PORT="]);
    let socket = world.lab().socket(1);
    world.lab().within(move || async move {
        let desk = Desk::at(&socket);
        for (name, words) in [
            (
                "worker",
                "is the canary of other, which friday made and will remove: adopt other",
            ),
            ("shop_everywhere", "runs on every node (mode global)"),
            ("shop_once", "is a job"),
            ("everywhere", "did you mean shop_everywhere?"),
            ("shop_onec", "did you mean shop_once?"),
            ("shop_silent", "say it with --port"),
            (
                "nothing",
                "there are: shop_everywhere, shop_once, shop_silent",
            ),
        ] {
            let refused = desk.friday(&format!("adopt {name}")).await;
            assert_eq!(
                (refused.code, refused.out.as_str()),
                (20, ""),
                "{}",
                refused.err
            );
            assert!(refused.err.contains(words), "{words} in {}", refused.err);
        }
    });
    // Docker 20.10 goes on running the tasks of a job that was removed: no other test gets this lab.
    drop(world.into_lab());
}

#[test]
fn an_engine_that_is_no_manager_or_is_away_is_said_with_its_own_exit_code() {
    let _seats = Seats::take(1);
    let mut lab = Lab::start(1);
    let desk = Desk::at(&lab.socket(1));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    lab.docker(1, &["swarm", "leave", "--force"]);
    let refused = runtime.block_on(desk.friday("adopt worker"));
    assert_eq!(refused.code, 20, "{}", refused.err);
    assert!(
        refused.err.contains("no manager of a swarm"),
        "{}",
        refused.err
    );
    lab.order("kill", 1);
    let away = runtime.block_on(desk.friday("adopt worker"));
    assert_eq!(away.code, 30, "{}", away.err);
}

#[test]
fn f47_an_image_that_nobody_has_is_found_by_lint_before_there_is_a_release() {
    let world = World::new();
    let socket = world.lab().socket(1);
    world.lab().within(move || async move {
        let desk = Desk::at(&socket);
        fs::write(desk.file("friday.yml"), "service: app_worker\nport: 9000\n").unwrap();
        let lint = async |image: &str| {
            let text = format!("services:\n  worker:\n    image: {image}\n");
            fs::write(desk.file("stack.yml"), text).unwrap();
            let linted = desk.friday("lint FILE --stack STACK").await;
            // Of the rest of this stack other rules have much to say.
            assert_eq!(linted.code, 20);
            linted.out
        };
        let there = lint(IMAGE).await;
        assert!(
            !there.contains("missing-image") && !there.contains("nobody was asked"),
            "{there}"
        );
        let gone = lint("worker:gone").await;
        let line = gone
            .lines()
            .find(|line| line.contains("stack.yml:3:12: services.worker.image"));
        let line = line.unwrap_or_else(|| panic!("{gone}"));
        assert!(
            line.contains("this engine does not have it, and docker.io says: "),
            "{line}"
        );
        assert!(line.contains(IMAGE), "what there is of that name: {line}");
        assert!(
            gone.contains("or accept it: --allow missing-image"),
            "{gone}"
        );
        let unset = lint("worker:${FRIDAY_TEST_UNSET}").await;
        assert!(
            unset.contains("nobody was asked for the image of app_worker"),
            "{unset}"
        );
    });
}

#[test]
fn doctor_says_what_a_rollout_waits_for_and_which_proxy_is_silent() {
    let world = World::new();
    world.create(&[]);
    let socket = world.lab().socket(1);
    world.lab().within(move || async move {
        let mut stage = Stage::start(socket.clone()).await;
        let engine = format!("unix://{}", socket.display());
        let doctor = ["doctor", "--engine", &engine];
        // One task answers, or there would be no stage; the others may be about to.
        let look = async || stage.command(&doctor).await;
        let well = eventually("all tasks are ready", LIMIT, look, |ended| {
            ended.out.contains("\nok    service worker")
        })
        .await;
        assert_eq!(well.code, 0, "{}{}", well.out, well.err);
        let line = |ended: &Ended, begins: &str| {
            let found = ended.out.lines().find(|line| line.starts_with(begins));
            let found = found.unwrap_or_else(|| panic!("{begins} in\n{}", ended.out));
            found.to_owned()
        };
        line(&well, "ok    service worker");
        assert!(line(&well, "ok    engine").contains("1 node in the swarm"));
        assert!(line(&well, "ok    proxy proxy-0").contains("reports, with table "));
        assert!(line(&well, "warn  agents").contains("none on n1"));
        line(&well, "ok    rollouts");

        let id = stage.on_trial(NEXT_IMAGE).await;
        let paused = stage.command(&doctor).await;
        assert_eq!(paused.code, 0, "{}", paused.out);
        let waits = line(&paused, &format!("warn  rollout {id}"));
        assert!(
            waits.contains("paused") && waits.contains("last moved "),
            "{waits}"
        );
        assert!(waits.contains(&format!("friday resume {id}")), "{waits}");

        stage.kill_proxy();
        // Until then it may be behind, if there was a new table meanwhile.
        let look = async || stage.command(&doctor).await;
        let silent = eventually("the proxy is silent", LIMIT, look, |ended| {
            ended.out.contains("  silent for ")
        })
        .await;
        assert_eq!(silent.code, 30, "{}", silent.out);
        let words = line(&silent, "fail  proxy proxy-0");
        assert!(
            words.contains("silent for ") && words.contains("start it again"),
            "{words}"
        );

        // The swarm itself is asked too: what the controller believes and there is not.
        docker(&socket, &["service", "rm", "worker"]);
        let told = stage
            .command(&[&doctor[..], &["-o", "json"]].concat())
            .await;
        let found: Value = serde_json::from_str(&told.out).unwrap();
        let gone = found.as_array().unwrap().iter().find(|finding| {
            finding["about"] == "service worker"
                && finding["what"]
                    .as_str()
                    .unwrap()
                    .contains("no such service")
        });
        assert_eq!(gone.unwrap()["level"], "fail", "{found:#}");
        stage.kill_controller();
        let alone = stage.command(&doctor).await;
        assert_eq!(alone.code, 30);
        line(&alone, "fail  controller");
        line(&alone, "ok    engine");
    });
}
