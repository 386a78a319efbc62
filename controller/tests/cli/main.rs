//! The program `friday` against a controller that answers from a script: what it sends, what it prints, and with which
//! exit code it ends. The script is the far side of a protocol; what is tested runs as users run it.

#![expect(
    clippy::unwrap_used,
    reason = "a test says what went wrong by failing there"
)]

mod controller;
mod doctor;
mod jobs;
mod terminal;

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use controller::{Controller, view};
use rollout::Duration;
use serde_json::{Value, json};
use tokio::process::Command;

const SPEC: &str = "service: web\nport: 80\n";

/// A file that is gone with its folder at the end of the test.
fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("friday.yml");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

fn friday(url: &str, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_friday"));
    command
        .env_clear()
        .env("FRIDAY_URL", url)
        .env("FRIDAY_AUTHOR", "ann")
        .args(arguments.split_whitespace());
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn output(mut command: Command) -> Output {
    tokio::time::timeout(Duration::from_secs(60), command.output())
        .await
        .unwrap()
        .unwrap()
}

/// Runs a command; its exit code, and what it printed to standard output and standard error.
async fn run(url: &str, arguments: &str) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = output(friday(url, arguments)).await;
    (
        status.code().unwrap(),
        String::from_utf8(stdout).unwrap(),
        String::from_utf8(stderr).unwrap(),
    )
}

fn deploy(spec: &Path, more: &str) -> String {
    format!("deploy -f {} --image worker:v2 {more}", spec.display())
}

fn analyzing() -> Value {
    view(
        3,
        json!({ "name": "analyzing", "step": 0, "elapsed_ms": 1000 }),
        None,
    )
}

fn rolled_back(cause: Value, ending: &str) -> Value {
    view(
        3,
        json!({ "name": "rolled_back", "cause": cause }),
        Some(ending),
    )
}

fn promoted() -> Value {
    view(3, json!({ "name": "promoted" }), Some("promoted"))
}

#[tokio::test]
async fn ends_with_the_code_of_the_ending() {
    let (_folder, spec) = file(SPEC);
    let person = json!({ "kind": "person", "by": "ann" });
    for (code, ended) in [
        (0, promoted()),
        (
            10,
            rolled_back(
                json!({ "kind": "evidence", "signal": "errors" }),
                "rolled_back",
            ),
        ),
        (11, rolled_back(person, "aborted")),
        (
            12,
            rolled_back(json!({ "kind": "superseded", "by": "web-4" }), "superseded"),
        ),
        (
            13,
            rolled_back(
                json!({ "kind": "insufficient_evidence" }),
                "insufficient_evidence",
            ),
        ),
        (14, rolled_back(json!({ "kind": "not_ready" }), "not_ready")),
    ] {
        let controller = Controller::start(vec![analyzing(), analyzing(), ended.clone()]).await;
        let (seen, out, err) = run(&controller.url(), &deploy(&spec, "--wait")).await;
        assert_eq!(seen, code, "{out}{err}");
        assert!(out.contains("web-3"), "{out}");
        let again = Controller::start(vec![ended]).await;
        assert_eq!(run(&again.url(), "status web").await.0, code);
        assert_eq!(run(&again.url(), "status web --no-wait").await.0, 0);
        assert_eq!(run(&again.url(), "get web -w").await.0, 0);
    }
}

#[tokio::test]
async fn sends_what_was_asked_for_and_signs_in() {
    let (_folder, spec) = file("service: web\nport: 80\nplans: { quick: [{ weight: 25% }] }\n");
    let controller = Controller::start(vec![analyzing()]).await;
    let arguments = deploy(
        &spec,
        "--commit c0ffee --environment staging --plan quick --retry",
    );
    let mut command = friday(&controller.url(), &arguments);
    command.env("FRIDAY_TOKEN", "s3cret");
    let Output {
        status,
        stdout,
        stderr,
    } = output(command).await;
    assert!(status.success());
    for printed in [stdout, stderr] {
        assert!(!String::from_utf8(printed).unwrap().contains("s3cret"));
    }
    let sent = controller.requests().remove(0);
    assert_eq!(
        (sent.method.as_str(), sent.path.as_str()),
        ("POST", "/api/v1/rollouts")
    );
    assert_eq!(sent.authorization.as_deref(), Some("Bearer s3cret"));
    let expected = json!({
        "spec": std::fs::read_to_string(&spec).unwrap(), "spec_name": spec.display().to_string(),
        "image": "worker:v2", "commit": "c0ffee", "environment": "staging", "plan": "quick", "author": "ann", "retry": true,
    });
    assert_eq!(sent.body, expected);
}

#[tokio::test]
async fn refuses_a_wrong_file_before_it_asks_anybody() {
    let (folder, spec) = file("service: web\nport: 80\nprot: 81\nkeep_warm: 10x\n");
    let controller = Controller::start(vec![analyzing()]).await;
    let (code, out, err) = run(&controller.url(), &deploy(&spec, "")).await;
    assert_eq!((code, out.as_str()), (20, ""));
    let begin = format!(
        "{}:3:1: prot: unknown key: expected one of ",
        spec.display()
    );
    assert!(err.starts_with(&begin), "{err}");
    assert!(
        err.contains(":4:12: keep_warm: \"10x\": expected a duration"),
        "{err}"
    );
    assert_eq!(controller.requests().len(), 0);

    let (code, out, _) = run("http://127.0.0.1:1", &format!("lint {}", spec.display())).await;
    assert_eq!((code, out.lines().count()), (20, 3), "{out}");
    let (code, out, _) = run(
        "http://127.0.0.1:1",
        &format!("lint {} -o json", spec.display()),
    )
    .await;
    let findings: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &findings[1]["line"], &findings[1]["key"]),
        (20, &json!(4), &json!("keep_warm"))
    );
    let (code, _, err) = run(
        "http://127.0.0.1:1",
        &format!("lint {}", folder.path().join("none.yml").display()),
    )
    .await;
    assert_eq!(code, 2, "{err}");
}

#[tokio::test]
async fn tells_refused_unreachable_failed_and_wrong_usage_apart() {
    let problem = |status: u16, code: &str| json!({ "code": code, "status": status, "title": "No", "detail": "rollout web-9 is unknown; known: web-3" });
    for (status, code) in [
        (404, 20),
        (409, 20),
        (403, 20),
        (422, 20),
        (507, 20),
        (500, 1),
        (503, 30),
    ] {
        let controller = Controller::refuse(status, problem(status, "why")).await;
        let (seen, _, err) = run(&controller.url(), "get web-9").await;
        assert_eq!(seen, code, "{status}: {err}");
        assert!(
            err.contains("could not get rollout web-9") && err.contains("known: web-3"),
            "{err}"
        );
        let (seen, out, err) = run(&controller.url(), "get web-9 -o json").await;
        let said: Value = serde_json::from_str(&err).unwrap();
        assert_eq!(
            (seen, out.as_str(), &said["code"]),
            (code, "", &json!("why"))
        );
    }
    // An image that nobody has: refused before there is a canary, which could never become ready.
    let (folder, spec) = file(SPEC);
    let controller = Controller::refuse(422, problem(422, "unknown_image")).await;
    let report = folder.path().join("report");
    let more = format!("--wait --report {}", report.display());
    let (code, _, err) = run(&controller.url(), &deploy(&spec, &more)).await;
    assert_eq!(code, 14, "{err}");
    let left = std::fs::read_to_string(report.join("friday.json")).unwrap();
    let left: Value = serde_json::from_str(&left).unwrap();
    assert_eq!(
        (&left["outcome"], &left["exit_code"]),
        (&json!("not_ready"), &json!(14))
    );

    let stranger = Controller::refuse(404, json!("<html>")).await;
    let (code, _, err) = run(&stranger.url(), "list").await;
    assert_eq!(code, 30);
    assert!(err.contains("not as a Friday controller does"), "{err}");

    let (code, _, err) = run("http://127.0.0.1:1", "status web").await;
    assert_eq!(code, 30);
    assert!(
        err.contains("http://127.0.0.1:1 is out of reach (is `friday serve` running there?"),
        "{err}"
    );

    let (code, _, err) = run("https://127.0.0.1:1", "list").await;
    assert_eq!(code, 30);
    assert!(err.contains("https://127.0.0.1:1 is out of reach"), "{err}");

    for wrong in [
        "",
        "deploy",
        "get a/b",
        "list --url ftp://x",
        "undo web --to x",
    ] {
        assert_eq!(run("http://127.0.0.1:1", wrong).await.0, 2, "{wrong}");
    }
}

#[tokio::test]
async fn f32_names_the_rollout_that_an_order_means() {
    // By the service's name, the order goes to the rollout that was the newest when it was given.
    for (arguments, order) in [
        ("promote web", "promote"),
        ("promote web --full", "promote_full"),
        ("pause web", "pause"),
        ("resume web", "resume"),
        ("abort web", "abort"),
        ("approve web", "approve"),
        ("reject web-3", "reject"),
        ("rollback web", "abort"),
    ] {
        let controller = Controller::start(vec![analyzing()]).await;
        let (code, out, err) =
            run(&controller.url(), &format!("{arguments} --reason because")).await;
        assert_eq!(code, 0, "{out}{err}");
        let sent = controller.requests().pop().unwrap();
        assert_eq!(sent.path, "/api/v1/rollouts/web-3/orders", "{arguments}");
        assert_eq!(
            sent.body,
            json!({ "order": order, "by": "ann", "reason": "because" })
        );
    }
}

#[tokio::test]
async fn goes_back_by_abort_or_undo_whatever_fits() {
    let sent = async |views: Vec<Value>, arguments: &str| {
        let controller = Controller::start(views).await;
        let (code, out, err) = run(&controller.url(), arguments).await;
        let posts: Vec<_> = controller
            .requests()
            .into_iter()
            .filter(|request| request.method == "POST")
            .collect();
        (
            code,
            posts
                .into_iter()
                .map(|request| (request.path, request.body))
                .collect::<Vec<_>>(),
            out + &err,
        )
    };
    let (code, posts, _) = sent(vec![promoted()], "rollback web").await;
    assert_eq!(
        (code, posts),
        (
            0,
            vec![(
                "/api/v1/services/web/undo".into(),
                json!({ "of": "web-3", "by": "ann" })
            )]
        )
    );
    // A second press of the button: what went back, or goes, is neither undone nor aborted.
    let back = |mut view: Value| {
        view["admission"] = json!({ "goes_back": true });
        view
    };
    for (view, said) in [
        (back(promoted()), "web-3 went back to worker:v2 already"),
        (back(analyzing()), "web-3 goes back to worker:v2 already"),
    ] {
        let (code, posts, out) = sent(vec![view], "rollback web").await;
        assert_eq!((code, posts), (0, vec![]), "{out}");
        assert!(
            out.contains(said) && out.contains("`friday undo web`"),
            "{out}"
        );
    }
    let (code, posts, _) = sent(
        vec![back(analyzing()), back(promoted())],
        "rollback web --wait",
    )
    .await;
    assert_eq!((code, posts), (0, vec![]));
    // An undo that failed left requests where they were.
    let failed = back(rolled_back(json!({ "kind": "not_ready" }), "not_ready"));
    let (_, posts, out) = sent(vec![failed], "rollback web").await;
    assert_eq!(posts.len(), 1, "{out}");
    let (code, posts, _) = sent(vec![promoted()], "undo web --to 1").await;
    assert_eq!(
        (code, posts),
        (
            0,
            vec![(
                "/api/v1/services/web/undo".into(),
                json!({ "to": 1, "of": "web-3", "by": "ann" })
            )]
        )
    );
    let aborted = rolled_back(json!({ "kind": "person", "by": "ann" }), "aborted");
    let (code, posts, _) = sent(vec![analyzing(), aborted], "rollback web --wait").await;
    assert_eq!((code, posts.len()), (0, 1));
    let ended = rolled_back(json!({ "kind": "deadline" }), "insufficient_evidence");
    let (code, posts, out) = sent(vec![ended.clone()], "rollback web").await;
    assert_eq!((code, posts), (0, vec![]));
    assert!(
        out.contains("nothing to do: requests go to worker:v1 already"),
        "{out}"
    );
    let (code, posts, _) = sent(vec![ended], "retry web-3").await;
    assert_eq!(
        (code, posts),
        (
            0,
            vec![("/api/v1/services/web/retry".into(), json!({ "by": "ann" }))]
        )
    );
    // The newest is web-3: going back from an older one would undo another than was named.
    for verb in ["rollback", "undo", "retry"] {
        let old = view(2, json!({ "name": "promoted" }), Some("promoted"));
        let (code, posts, out) = sent(vec![old, promoted()], &format!("{verb} web-2")).await;
        assert_eq!((code, posts), (20, vec![]), "{out}");
        assert!(
            out.contains("web-2 is not the newest rollout of web, web-3 is"),
            "{out}"
        );
    }
}

#[tokio::test]
async fn waits_on_while_the_controller_restarts() {
    let controller = Controller::start(vec![analyzing()]).await;
    let (url, address) = (controller.url(), controller.address());
    let waiting = tokio::spawn(async move { run(&url, "status web").await });
    controller.asked(2).await;
    controller.end().await;
    // While it restarts, a proxy before it answers for it.
    let proxy = Controller::refuse_at(address, 502, json!("<html>")).await;
    proxy.asked(2).await;
    proxy.end().await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let _restarted = Controller::start_at(address, vec![analyzing(), promoted()]).await;
    let (code, out, err) = waiting.await.unwrap();
    assert_eq!(code, 0, "{out}{err}");
    assert!(
        out.contains("trying again for") && out.contains("the controller answers again"),
        "{out}"
    );
}

#[tokio::test]
async fn gives_up_when_its_patience_ends() {
    let controller = Controller::start(vec![analyzing()]).await;
    let (code, _, err) = run(&controller.url(), "status web --timeout 1s").await;
    assert_eq!(code, 1);
    assert!(
        err.contains("gave up after 1s (--timeout); web-3 goes on without us"),
        "{err}"
    );

    // Also while nobody has answered yet, and however long it would try otherwise.
    let (_folder, spec) = file(SPEC);
    let hasty = deploy(&spec, "--wait --timeout 1s --unreachable-timeout 10m");
    let (code, _, err) = run("http://127.0.0.1:1", &hasty).await;
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("trying again for 1s"), "{err}");
    assert!(
        err.contains("gave up after 1s (--timeout) without an answer"),
        "{err}"
    );
    let patient = deploy(&spec, "--wait --timeout 10m --unreachable-timeout 1s");
    let (code, _, err) = run("http://127.0.0.1:1", &patient).await;
    assert_eq!(code, 30, "{err}");

    let url = controller.url();
    let waiting =
        tokio::spawn(async move { run(&url, "status web --unreachable-timeout 1s").await });
    // Two more requests than the wait before has made: this one has begun too.
    controller.asked(4).await;
    drop(controller);
    let (code, _, err) = waiting.await.unwrap();
    assert_eq!(code, 30, "{err}");
}

#[tokio::test]
async fn prints_one_document_as_json_and_a_line_for_each_change_otherwise() {
    let (_folder, spec) = file(SPEC);
    let script = || vec![analyzing(), analyzing(), analyzing(), promoted()];
    let controller = Controller::start(script()).await;
    let (_, out, err) = run(&controller.url(), &deploy(&spec, "--wait -o json")).await;
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(document["ending"], "promoted");
    assert_eq!(err.matches("web-3 at").count(), 2, "{err}");

    let controller = Controller::start(script()).await;
    let (_, out, _) = run(&controller.url(), "get web -w -o json").await;
    assert!(out.lines().count() >= 2);
    for line in out.lines() {
        assert_eq!(serde_json::from_str::<Value>(line).unwrap()["id"], "web-3");
    }

    let controller = Controller::start(script()).await;
    let (_, out, _) = run(&controller.url(), "get web -w").await;
    assert_eq!(out.matches("web-3 at").count(), 2, "{out}");
    assert!(!out.contains('\x1b'), "{out}");
}

#[tokio::test]
async fn folds_each_phase_in_the_log_of_a_gitlab_job() {
    let controller = Controller::start(vec![analyzing(), analyzing(), promoted()]).await;
    let mut command = friday(&controller.url(), "status web");
    command.env("GITLAB_CI", "true");
    let out = String::from_utf8(output(command).await.stdout).unwrap();
    for phase in ["analyzing", "promoted"] {
        let starts = out.matches("\x1b[0Ksection_start:").count();
        assert_eq!(starts, 2, "{out}");
        assert!(
            out.contains(&format!(":friday_{phase}_0\r\x1b[0K")),
            "{out}"
        );
    }
    assert_eq!(out.matches("section_end:").count(), 2, "{out}");
}

#[tokio::test]
async fn lists_shows_and_explains() {
    let controller = Controller::start(vec![analyzing()]).await;
    for (arguments, expected) in [
        (
            "list",
            "web      ◌ Progressing  web-3    10%     worker:v1  message of web-3",
        ),
        ("history web", "3         running  worker:v2"),
        ("get web", "Name:            web-3"),
        ("explain web", "Nothing was judged"),
        ("schema", "\"title\": \"friday.yml\""),
        ("version", "friday 0."),
    ] {
        let (code, out, err) = run(&controller.url(), arguments).await;
        assert_eq!(code, 0, "{arguments}: {err}");
        assert!(out.contains(expected), "{arguments}: {out}");
    }
    for arguments in [
        "list -o json",
        "history web -o json",
        "get web -o json",
        "explain web -o json",
    ] {
        let (code, out, _) = run(&controller.url(), arguments).await;
        assert_eq!(code, 0);
        assert!(
            serde_json::from_str::<Value>(&out).is_ok(),
            "{arguments}: {out}"
        );
    }
}

#[tokio::test]
async fn foretells_a_rollout_without_a_controller() {
    let (_folder, spec) = file(
        "service: web\nport: 80\nplan: [{ weight: 1% }, { weight: 10% }, { gate: all }, { weight: 50% }]\n\
         plans: { quick: [{ weight: 25%, hold: 10s..2m }] }\nenvironments: { staging: { plan: quick } }\n",
    );
    let plan = async |more: &str| {
        let arguments = format!("plan -f {} {more}", spec.display());
        run("http://127.0.0.1:1", &arguments).await
    };
    let began = tokio::time::Instant::now();
    let (code, out, err) = plan("").await;
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
    for said in [
        "5 requests/s step 2 (10%)",
        "50 requests/s step 1 (1%)",
        "500 requests/s step 1 (1%)",
        "1% more fail",
        "20% slower",
        "passed over: too small for this traffic",
        "At 5 requests/s, step 2 (10%): your traffic is too low for this margin, expect a time-out.",
        "the wait at 1 gate.",
    ] {
        let words = out.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains(said), "{said}\n{out}");
    }

    let (code, out, err) = plan("--rps 500 --reps 20 -o json").await;
    assert_eq!(code, 0, "{err}");
    let forecast: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(forecast["releases"], 20);
    let at = &forecast["rates"][0];
    assert_eq!(
        (&at["requests_per_second"], &at["first_step"]),
        (&json!(500.0), &json!(0))
    );
    assert_eq!(at["good"]["promoted"]["ratio"], 1.0);
    assert_eq!(at["regressions"][0]["worse"], json!({ "errors": 0.01 }));
    assert_eq!(
        at["steps"][0]["margins"][0],
        json!({ "errors": { "excess": 0.05 } })
    );
    assert_eq!(at["steps"][0]["too_low"], Value::Null);
    let again = plan("--rps 500 --reps 20 -o json").await.1;
    assert_eq!(again, out, "the same seed gives the same numbers");

    for more in ["--plan quick", "--environment staging"] {
        let (code, out, _) = plan(&format!("{more} --rps 500 --reps 5 -o json")).await;
        let forecast: Value = serde_json::from_str(&out).unwrap();
        let steps = &forecast["rates"][0]["steps"];
        assert_eq!(
            (code, &steps[0]["weight_percent"]),
            (0, &json!(25.0)),
            "{out}"
        );
    }
    let (code, _, err) = plan("--plan slow").await;
    assert_eq!(code, 20);
    assert!(
        err.contains("there is no such plan, expected one of quick"),
        "{err}"
    );
    for wrong in [
        "--rps 0",
        "--rps x",
        "--rps 1,,2",
        "--errors 5",
        "--reps 0",
        "--rps 1,2,3,4,5,6,7,8,9,10,11",
    ] {
        let (code, _, err) = plan(wrong).await;
        assert_eq!(code, 2, "{wrong}: {err}");
    }
    let (_folder, wrong) = file("service: web\nport: 80\nprot: 81\n");
    let (code, _, err) = run(
        "http://127.0.0.1:1",
        &format!("plan -f {}", wrong.display()),
    )
    .await;
    assert_eq!(code, 20, "{err}");
    assert!(
        err.starts_with(&format!("{}:3:1: prot: unknown key", wrong.display())),
        "{err}"
    );
}

#[tokio::test]
async fn health_says_in_a_line_what_a_controller_answers_and_ends_as_docker_wants_it() {
    let well = Controller::start(vec![promoted()]).await;
    let (code, out, err) = run(&well.url(), "health").await;
    assert_eq!(
        (code, out),
        (0, format!("ready: {}/ready\n", well.url())),
        "{err}"
    );
    let problem = json!({ "title": "Not ready", "status": 503, "detail": "not every service was seen yet", "code": "not_ready" });
    let ill = Controller::refuse(503, problem).await;
    let (code, out, err) = run(&ill.url(), "health --live --within 5s").await;
    assert_eq!((code, err.as_str()), (1, ""), "{out}");
    assert_eq!(out.lines().count(), 1, "{out}");
    assert!(
        out.starts_with(&format!("not live: {}/live answers 503", ill.url()))
            && out.contains("not every service was seen yet"),
        "{out}"
    );
    let (code, out, _) = run("http://127.0.0.1:1", "health").await;
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("Connection refused"), "{out}");
    let (code, _, err) = run("http://", "health").await;
    assert_eq!(code, 2, "{err}");
}

#[tokio::test]
async fn the_stack_of_this_repository_is_as_lint_wants_a_stack() {
    let swarm = Path::new(env!("CARGO_MANIFEST_DIR")).join("../swarm");
    let (stack, spec) = (swarm.join("stack.yml"), swarm.join("friday.yml"));
    let lint = format!("lint --stack {} {}", stack.display(), spec.display());
    let (code, out, err) = run("http://127.0.0.1:1", &lint).await;
    assert_eq!(code, 0, "{out}{err}");
}
