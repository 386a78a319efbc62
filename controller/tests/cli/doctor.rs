//! `friday doctor` and `friday adopt` where nothing runs, and beside a real controller; on a real engine they are tried with
//! the swarm.

use std::process::Stdio;

use rollout::Duration;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::controller::Controller;
use crate::{file, run};

const NOBODY: &str = "http://127.0.0.1:1";

#[tokio::test]
async fn a_controller_that_is_away_fails_and_the_engine_gets_a_line_all_the_same() {
    let (code, out, err) = run(NOBODY, "doctor").await;
    assert_eq!((code, out.lines().count()), (30, 1), "{out}{err}");
    assert!(
        out.starts_with("fail  controller  ") && out.contains("→ start friday serve"),
        "{out}"
    );
    let arguments = "doctor --engine unix:///nowhere/docker.sock -o json";
    let (code, out, _) = run(NOBODY, arguments).await;
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, 30);
    assert_eq!(found[1]["about"], "engine");
    assert_eq!(found[1]["level"], "fail");
    let words = found[1]["what"].as_str().unwrap();
    assert!(words.contains("unix:///nowhere/docker.sock"), "{words}");

    let problem =
        json!({ "code": "no_token", "status": 401, "title": "No", "detail": "a token is needed" });
    let strict = Controller::refuse(401, problem).await;
    let (code, out, err) = run(&strict.url(), "doctor").await;
    assert_eq!((code, out.as_str()), (20, ""), "{err}");
    assert!(err.contains("a token is needed"), "{err}");
    assert_eq!(run(NOBODY, "doctor --engine docker.sock").await.0, 2);
}

/// A controller with nothing to do, ended with its test.
async fn serve(folder: &std::path::Path) -> (Child, String) {
    std::fs::write(folder.join("processes.yml"), "images: {}\nservices: {}\n").unwrap();
    let addresses = folder.join("addresses.json");
    let child = Command::new(env!("CARGO_BIN_EXE_friday"))
        .env_clear()
        .args(["serve", "--listen", "127.0.0.1:0"])
        .arg("--state-dir")
        .arg(folder.join("state"))
        .arg("--processes")
        .arg(folder.join("processes.yml"))
        .arg("--addresses-file")
        .arg(&addresses)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let address = async {
        loop {
            let text = std::fs::read_to_string(&addresses).unwrap_or_default();
            if let Ok(Value::Object(map)) = serde_json::from_str(&text) {
                break map["listen"].as_str().unwrap().to_owned();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let address = tokio::time::timeout(Duration::from_secs(30), address)
        .await
        .unwrap();
    (child, format!("http://{address}"))
}

#[tokio::test]
async fn a_controller_without_proxy_and_service_is_told_what_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let (_serving, url) = serve(folder.path()).await;
    let (code, out, err) = run(&url, "doctor").await;
    assert_eq!(code, 30, "{out}{err}");
    let begins = |line: &str| out.lines().any(|shown| shown.starts_with(line));
    for line in [
        &format!("ok    controller  {url} answers, version "),
        "ok    tokens      none are needed",
        "warn  services    the controller looks after none → ",
        "fail  proxies     none has ever reported",
        "ok    metrics     no Prometheus is set",
        "ok    rollouts    none is running",
    ] {
        assert!(begins(line), "{line} in\n{out}");
    }
}

#[tokio::test]
async fn an_engine_that_is_away_is_said_by_every_command_that_asks_it() {
    let away = "unix:///nowhere/docker.sock";
    let (code, out, err) = run(NOBODY, &format!("adopt worker --engine {away}")).await;
    assert_eq!((code, out.as_str()), (30, ""), "{err}");
    assert!(
        err.contains(away) && err.contains("is --engine (or DOCKER_HOST) right?"),
        "{err}"
    );
    for wrong in [
        "adopt".to_owned(),
        "adopt a/b".to_owned(),
        "adopt worker --engine http://127.0.0.1:1".to_owned(),
        "adopt worker --engine tcp://10.0.0.1:2375".to_owned(),
        "adopt worker --force".to_owned(),
    ] {
        assert_eq!(run(NOBODY, &wrong).await.0, 2, "{wrong}");
    }

    // Whoever typed an engine is told that it did not answer; a variable of the surroundings is only tried.
    let (folder, spec) = file("service: web\nport: 80\n");
    let stack = folder.path().join("stack.yml");
    let text = "services:\n  web:\n    image: web:1\n    healthcheck: { test: [CMD, /web], interval: 1s, retries: 3 }\n    deploy:\n      endpoint_mode: dnsrr\n      replicas: 2\n      resources: { limits: { cpus: \"1\", memory: 1G } }\n      update_config: { order: start-first }\n";
    std::fs::write(&stack, text).unwrap();
    let lint = format!("lint {} --stack {}", spec.display(), stack.display());
    let (code, out, _) = run(NOBODY, &lint).await;
    assert_eq!(code, 0, "{out}");
    assert!(
        out.contains("nobody was asked for the image of web: name an engine"),
        "{out}"
    );
    let (code, out, err) = run(NOBODY, &format!("{lint} -o json")).await;
    assert_eq!((code, out.trim()), (0, "[]"));
    assert!(
        err.contains("nobody was asked for the image of web"),
        "{err}"
    );
    let (code, out, err) = run(NOBODY, &format!("{lint} --engine {away}")).await;
    assert_eq!(code, 30, "{out}{err}");
    let mut command = crate::friday(NOBODY, &lint);
    command.env("DOCKER_HOST", away);
    let tried = crate::output(command).await;
    let out = String::from_utf8(tried.stdout).unwrap();
    assert_eq!(tried.status.code(), Some(0), "{out}");
    assert!(
        out.contains("nobody was asked") && out.contains(away),
        "{out}"
    );
    // Nor does a lint without a stack care for that variable.
    let mut command = crate::friday(NOBODY, &format!("lint {}", spec.display()));
    command.env("DOCKER_HOST", "tcp://docker:2375");
    assert_eq!(crate::output(command).await.status.code(), Some(0));
}
