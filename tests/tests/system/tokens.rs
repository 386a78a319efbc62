//! A controller that wants tokens: who gets in, who does not, and what the pipeline is told.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use controller_testing::eventually;
use friday_tls::testing::Pki;
use serde_json::Value;
use system_tests::{Ended, PATIENCE, Part, SERVICE, Scene, friday, proxy, run};

/// Makes a token as people do; its file, and its line.
pub(crate) async fn make(dir: &Path, name: &str, role: &str) -> (PathBuf, String) {
    let made = run(&friday(), &["token", name, "--role", role], PATIENCE).await;
    assert_eq!(made.code, 0, "{}", made.err);
    let (token, line) = made.out.trim().split_once('\n').unwrap();
    let file = dir.join(format!("{name}.token"));
    fs::write(&file, token).unwrap();
    (file, line.to_owned())
}

async fn command(scene: &Scene, token: &Path, more: &[&str]) -> Ended {
    let (url, token) = (scene.url(), token.display().to_string());
    let with = ["--url", &url, "--token-file", &token];
    run(&friday(), &[more, &with].concat(), PATIENCE).await
}

#[tokio::test]
async fn tokens_let_in_whom_they_name_and_are_taken_back_while_all_runs() {
    let scene = Scene::prepare();
    let dir = scene.dir().to_owned();
    let (edge, edge_line) = make(&dir, "edge", "proxy").await;
    let (viewer, viewer_line) = make(&dir, "board", "viewer").await;
    let (operator, operator_line) = make(&dir, "gitlab", "operator").await;
    let (stranger, _) = make(&dir, "stranger", "admin").await;
    let tokens = dir.join("tokens");
    let all = [&*edge_line, &*viewer_line, &*operator_line];
    fs::write(&tokens, all.join("\n")).unwrap();

    let mut args = scene.serve_args();
    args.extend(["--tokens".to_owned(), tokens.display().to_string()]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let controller = Part::start("controller", &friday(), &args, &dir).await;
    let mut args = scene.proxy_args();
    args.extend(["--token-file".to_owned(), edge.display().to_string()]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let at_edge = Part::start("proxy", &proxy(), &args, &dir).await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("http://{}/live", at_edge.address("listen"));
    eventually(
        "the proxy got its table, and a task answers through it",
        PATIENCE,
        async || match http.get(&url).send().await {
            Ok(answer) => answer.status().is_success(),
            Err(_) => false,
        },
        |answers| *answers,
    )
    .await;
    let seen = command(&scene, &viewer, &["list", "-o", "json"]).await;
    assert_eq!(seen.code, 0, "{}", seen.err);

    let file = scene.path("friday.yml");
    let deploy = [
        "deploy",
        "-f",
        &file,
        "--image",
        "worker:v2",
        "--author",
        "ada",
    ];
    for (token, words) in [
        (&viewer, "rule \"operate\" takes"),
        (&edge, "that of \"edge\" is proxy"),
        (&stranger, "is not in the file"),
    ] {
        let refused = command(&scene, token, &deploy).await;
        assert_eq!(refused.code, 20, "{}{}", refused.out, refused.err);
        assert!(refused.err.contains(words), "{}", refused.err);
    }
    let url = scene.url();
    let without = run(&friday(), &["list", "--url", &url], PATIENCE).await;
    assert_eq!(without.code, 20);
    assert!(without.err.contains("FRIDAY_TOKEN"), "{}", without.err);

    let order = [&deploy[..], &["-o", "json"]].concat();
    let started = command(&scene, &operator, &order).await;
    assert_eq!(started.code, 0, "{}", started.err);
    let made: Value = serde_json::from_str(&started.out).unwrap();
    assert_eq!(made["author"], "gitlab (for ada)", "{made}");

    // A token that is taken out of the file is good no more, and the others are all the same.
    fs::write(&tokens, [&*edge_line, &*viewer_line].join("\n")).unwrap();
    let abort = ["abort", SERVICE];
    let refused = eventually(
        "the operator is refused",
        Duration::from_secs(10),
        async || command(&scene, &operator, &["list"]).await,
        |ended| ended.code == 20,
    )
    .await;
    assert!(
        refused.err.contains("is not in the file"),
        "{}",
        refused.err
    );
    assert_eq!(command(&scene, &operator, &abort).await.code, 20);
    assert_eq!(command(&scene, &viewer, &["list"]).await.code, 0);
    // A file that is wrong changes nothing; SIGHUP reads a good one at once.
    fs::write(&tokens, "nonsense").unwrap();
    eventually(
        "the mistake is logged",
        Duration::from_secs(10),
        async || controller.log(),
        |log| log.contains("the tokens stay as they were"),
    )
    .await;
    assert_eq!(command(&scene, &viewer, &["list"]).await.code, 0);
    fs::write(&tokens, all.join("\n")).unwrap();
    controller.signal_hangup();
    eventually(
        "the operator is let in again",
        Duration::from_secs(10),
        async || command(&scene, &operator, &abort).await,
        |ended| ended.code == 0,
    )
    .await;

    for part in [&controller, &at_edge] {
        let log = part.log();
        for file in [&edge, &viewer, &operator, &stranger] {
            let token = fs::read_to_string(file).unwrap();
            assert!(!log.contains(token.trim()), "a token in a log:\n{log}");
        }
    }
    assert!(controller.log().contains("refused"), "{}", controller.log());
    assert!(at_edge.stop().await.success());
    assert!(controller.stop().await.success());
}

#[tokio::test]
async fn a_controller_listens_to_others_only_with_tokens_and_with_tls_or_the_word_for_it() {
    let scene = Scene::prepare();
    let (_, line) = make(scene.dir(), "ci", "operator").await;
    let tokens = scene.path("tokens");
    fs::write(&tokens, line).unwrap();
    let mut args = scene.serve_args();
    let at = args.iter().position(|arg| arg == "--listen").unwrap();
    args[at + 1] = "0.0.0.0:0".to_owned();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let pki = Pki::new();
    pki.sign("server", &["127.0.0.1"]);
    let (certificate, key) = (pki.text("server.pem"), pki.text("server.key"));
    let by_tls = ["--tls-cert", &certificate, "--tls-key", &key];
    for (more, words) in [
        (&[][..], "everybody there could command releases"),
        (&by_tls, "everybody there could command releases"),
        (&by_tls[..2], "--tls-cert without --tls-key"),
        (
            &["--tls-in-front"],
            "everybody there could command releases",
        ),
        (&["--tokens", &tokens], "in the clear"),
        (
            &["--tokens", &tokens, "--tls-cert", "", "--tls-key", ""],
            "--tls-cert FILE with --tls-key FILE, or --tls-in-front",
        ),
    ] {
        let refused = run(&friday(), &[&args, more].concat(), PATIENCE).await;
        assert_eq!(refused.code, 2, "{}", refused.err);
        assert!(refused.err.contains(words), "{}", refused.err);
    }
    let with_tokens = [&args[..], &["--tokens", &tokens]].concat();
    for more in [&["--tls-in-front"][..], &by_tls] {
        let args = [&with_tokens[..], more].concat();
        let controller = Part::start("controller", &friday(), &args, scene.dir()).await;
        assert!(controller.stop().await.success());
    }
}
