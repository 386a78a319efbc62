//! What is wrong is said: what, where, what was expected, and nothing is lost by it.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use system_tests::{Ended, SERVICE, SPEC, Scene, friday, proxy, run};

/// Longest time of a command that does not wait for anything.
const COMMAND_MAX: Duration = Duration::from_secs(30);

/// Wrong files: what is replaced in a good one by what, and all that must be said of it.
const MISTAKES: [(&str, &str, &[&str]); 5] = [
    (
        "keep_warm: 3s",
        "keepwarm: 3s",
        &[
            "friday.yml:12:1",
            "keepwarm",
            "unknown key",
            "expected",
            "keep_warm",
        ],
    ),
    (
        "weight: 25%",
        "weight: 250%",
        &[
            "friday.yml:9:",
            "plan[1].weight",
            "\"250%\"",
            "expected a share",
        ],
    ),
    (
        "hold: 2s..60s",
        "hold: 60s..2s",
        &[
            "friday.yml:8:",
            "plan[0].hold",
            "60s..2s",
            "expected at least .. at most",
        ],
    ),
    (
        "port: 9000",
        "port: 99999",
        &["friday.yml:2:7", "99999", "expected a port from 1 to 65535"],
    ),
    (
        "ready: 30s",
        "ready: soon",
        &[
            "friday.yml:13:",
            "deadlines.ready",
            "\"soon\"",
            "expected a duration",
        ],
    ),
];

async fn command(scene: &Scene, args: &[&str]) -> Ended {
    let url = scene.url();
    run(&friday(), &[&["--url", &url], args].concat(), COMMAND_MAX).await
}

#[track_caller]
fn assert_says(ended: &Ended, code: i32, words: &[&str]) {
    let said = format!("{}{}", ended.out, ended.err);
    assert_eq!(ended.code, code, "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
}

#[tokio::test]
async fn a_wrong_file_is_refused_with_its_line_the_value_and_what_was_expected() {
    let scene = Scene::start().await;
    let file = scene.path("wrong/friday.yml");
    fs::create_dir(scene.dir().join("wrong")).unwrap();
    for (good, bad, words) in MISTAKES {
        assert!(SPEC.contains(good), "{good}");
        fs::write(&file, SPEC.replacen(good, bad, 1)).unwrap();
        assert_says(&command(&scene, &["lint", &file]).await, 20, words);
        assert_says(
            &command(&scene, &["deploy", "-f", &file, "--image", "worker:v2"]).await,
            20,
            words,
        );
    }
    // Two mistakes are two lines, not one after the other.
    fs::write(
        &file,
        SPEC.replace("port: 9000", "port: 0")
            .replace("sticky: none", "sticky: glue"),
    )
    .unwrap();
    assert_says(
        &command(&scene, &["lint", &file]).await,
        20,
        &["port: 0", "\"glue\""],
    );
    let rollouts = command(&scene, &["history", SERVICE, "-o", "json"]).await;
    assert_eq!(rollouts.out.trim(), "[]", "none of them started anything");
}

#[tokio::test]
async fn a_wrong_file_is_refused_by_the_controller_too() {
    let scene = Scene::start().await;
    for (good, bad, words) in MISTAKES {
        let answer = reqwest::Client::new()
            .post(format!("{}/api/v1/rollouts", scene.url()))
            .json(&serde_json::json!({ "spec": SPEC.replacen(good, bad, 1), "image": "worker:v2", "author": "test" }))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 422);
        let problem: serde_json::Value = answer.json().await.unwrap();
        assert_eq!(problem["code"], "invalid_spec");
        let detail = problem["detail"].as_str().unwrap();
        for word in words {
            assert!(detail.contains(word), "{word:?} is not in: {detail}");
        }
    }
}

#[tokio::test]
async fn a_controller_does_not_start_with_a_wrong_file() {
    let scene = Scene::prepare();
    fs::write(
        scene.dir().join("friday.yml"),
        SPEC.replace("port: 9000", "prt: 9000"),
    )
    .unwrap();
    let args = scene.serve_args();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let ended = run(&friday(), &args, COMMAND_MAX).await;
    assert_ne!(ended.code, 0);
    assert!(
        ended.err.contains("friday.yml:2:1") && ended.err.contains("prt"),
        "{}",
        ended.err
    );

    fs::write(scene.dir().join("friday.yml"), SPEC).unwrap();
    let catalog = fs::read_to_string(scene.dir().join("processes.yml")).unwrap();
    fs::write(
        scene.dir().join("processes.yml"),
        catalog.replace("\"replicas\":2", "\"replicas\":0"),
    )
    .unwrap();
    let ended = run(&friday(), &args, COMMAND_MAX).await;
    assert_ne!(ended.code, 0);
    for word in ["processes.yml:1", "replicas is 0", "expected 1 to 64"] {
        assert!(
            ended.err.contains(word),
            "{word:?} is not in: {}",
            ended.err
        );
    }
}

#[tokio::test]
async fn an_unknown_name_is_refused_with_the_names_there_are() {
    let scene = Scene::start().await;
    let file = scene.path("friday.yml");
    let deployed = command(&scene, &["deploy", "-f", &file, "--image", "worker:v2"]).await;
    assert_eq!(deployed.code, 0, "{deployed:?}");
    let first = format!("{SERVICE}-1");
    for verb in ["get", "status", "abort", "pause", "promote", "explain"] {
        for name in ["nobody", &format!("{SERVICE}-99")] {
            assert_says(
                &command(&scene, &[verb, name]).await,
                20,
                &[name, SERVICE, &first],
            );
        }
    }
    for verb in ["undo", "retry", "rollback", "history"] {
        assert_says(
            &command(&scene, &[verb, "nobody"]).await,
            20,
            &["nobody", SERVICE],
        );
    }
    let words = ["worker:v9", "worker:v1", "worker:errors"];
    // What nobody has can never become ready.
    assert_says(
        &command(&scene, &["deploy", "-f", &file, "--image", "worker:v9"]).await,
        14,
        &words,
    );
    let other = scene.path("other.yml");
    fs::write(&other, SPEC.replace(SERVICE, "nobody")).unwrap();
    let words = ["nobody", SERVICE];
    assert_says(
        &command(&scene, &["deploy", "-f", &other, "--image", "worker:v2"]).await,
        20,
        &words,
    );
}

#[tokio::test]
async fn a_controller_that_is_not_there_is_named_with_the_option_that_chooses_another() {
    let scene = Scene::prepare();
    for args in [&["list"][..], &["get", SERVICE], &["status", SERVICE]] {
        assert_says(&command(&scene, args).await, 30, &[&scene.url(), "--url"]);
    }
}

#[tokio::test]
async fn a_taken_port_is_named_with_the_option_that_changes_it() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap().to_string();
    let scene = Scene::prepare();
    let replaced = |args: Vec<String>, option: &str| {
        let at = args.iter().position(|arg| arg == option).unwrap();
        let mut args = args;
        args[at + 1].clone_from(&address);
        args
    };
    let cases = [
        (
            friday(),
            replaced(scene.serve_args(), "--listen"),
            "--listen",
        ),
        (
            proxy(),
            replaced(scene.proxy_args(), "--listen"),
            "--listen",
        ),
        (proxy(), replaced(scene.proxy_args(), "--admin"), "--admin"),
    ];
    for (program, args, option) in cases {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let ended = run(&program, &args, COMMAND_MAX).await;
        assert_eq!(ended.code, 1, "{}", ended.err);
        assert!(
            ended.err.contains(&address) && ended.err.contains(option),
            "{}",
            ended.err
        );
    }
}

#[tokio::test]
async fn nothing_listens_beyond_loopback_without_being_told_twice() {
    let scene = Scene::prepare();
    let mut args = scene.serve_args();
    args[2] = "0.0.0.0:0".to_owned();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let ended = run(&friday(), &args, COMMAND_MAX).await;
    assert_ne!(ended.code, 0);
    assert!(
        ended.err.contains("--listen 0.0.0.0:0") && ended.err.contains("loopback"),
        "{}",
        ended.err
    );
    assert!(!scene.state_dir().exists(), "it did nothing");

    let mut args = scene.proxy_args();
    let at = args.iter().position(|arg| arg == "--admin").unwrap();
    args[at + 1] = "0.0.0.0:0".to_owned();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let ended = run(&proxy(), &args, COMMAND_MAX).await;
    assert_eq!(ended.code, 2);
    assert!(
        ended.err.contains("--admin 0.0.0.0:0") && ended.err.contains("--admin-anywhere"),
        "{}",
        ended.err
    );
}

/// Starts a program on a damaged file: it must refuse, name the file, and leave it as it is.
async fn refuses(program: &Path, args: &[String], file: &Path) {
    let before = fs::read(file).unwrap();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let ended = run(program, &args, COMMAND_MAX).await;
    assert!(
        ![0, -1].contains(&ended.code),
        "it started with {}: {ended:?}",
        file.display()
    );
    assert!(
        ended.err.contains(&file.display().to_string()),
        "{} is not named in: {}",
        file.display(),
        ended.err
    );
    assert!(!ended.err.contains("panicked"), "{}", ended.err);
    assert_eq!(
        fs::read(file).unwrap(),
        before,
        "{} has changed",
        file.display()
    );
}

/// A scene that has saved something, with nothing running: a rollout at its first step, killed.
async fn with_saved_state() -> Scene {
    let mut scene = Scene::start().await;
    let view = scene.deploy("worker:v2").await;
    let started = |view: &friday::api::types::RolloutView| view.phase.name() == "analyzing";
    scene
        .until(&view.id, "the first step", COMMAND_MAX, started)
        .await;
    scene.until_weight(1_000).await;
    scene.kill_controller();
    scene.kill_proxy();
    scene
}

/// A file with something else in place of what was there.
fn damage(file: &Path, at: usize, with: &[u8]) -> Vec<u8> {
    let good = fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut bad = good.clone();
    let end = (at + with.len()).min(bad.len());
    bad[at..end].copy_from_slice(&with[..end - at]);
    assert_ne!(bad, good);
    fs::write(file, bad).unwrap();
    good
}

#[tokio::test]
async fn a_damaged_file_of_the_controller_is_named_and_left_as_it_is() {
    let mut scene = with_saved_state().await;
    let id = format!("{SERVICE}-1");
    let saved = scene.saved(&id).await;
    let args = scene.serve_args();
    let services = scene
        .state_dir()
        .join("processes/services")
        .join(format!("{SERVICE}.json"));
    let good = damage(&services, 0, b"}{");
    refuses(&friday(), &args, &services).await;
    fs::write(&services, &good[..good.len() / 2]).unwrap();
    refuses(&friday(), &args, &services).await;
    fs::write(&services, good).unwrap();

    // Whole again, it goes on where it was: nothing was lost by refusing.
    scene.start_controller().await;
    let view = scene.rollout(&id).await;
    assert_eq!(view.phase.name(), saved.rollout.phase.name());
    assert!(view.elapsed_seconds >= saved.rollout.elapsed.as_secs_f64());
    let status = scene.stop_controller().await;
    assert!(status.success());

    let file = scene.state_dir().join("friday.db");
    let good = damage(&file, 0, b"this is no database");
    refuses(&friday(), &args, &file).await;
    fs::write(&file, &good).unwrap();
    // In the middle: found by the check at the start.
    damage(&file, 4096, &[0xA5; 4096]);
    refuses(&friday(), &args, &file).await;
    fs::write(&file, &good).unwrap();
    fs::write(&file, &good[..good.len() / 2 + 100]).unwrap();
    refuses(&friday(), &args, &file).await;
    fs::write(&file, good).unwrap();
    scene.start_controller().await;
    assert_eq!(scene.rollout(&id).await.phase.name(), "analyzing");
}

#[tokio::test]
async fn a_damaged_table_of_the_proxy_is_named_and_left_as_it_is() {
    let mut scene = with_saved_state().await;
    let file = scene.proxy_state_dir().join("table.json");
    let args = scene.proxy_args();
    let good = damage(&file, 0, b"]");
    refuses(&proxy(), &args, &file).await;
    fs::write(&file, &good[..good.len() - 10]).unwrap();
    refuses(&proxy(), &args, &file).await;
    fs::write(&file, "").unwrap();
    refuses(&proxy(), &args, &file).await;
    fs::write(&file, good).unwrap();
    scene.start_proxy().await;
    assert_eq!(scene.weight().await, 1_000);
}
