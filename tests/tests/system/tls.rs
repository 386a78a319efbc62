//! A controller that speaks TLS: what its clients are told when something is wrong, and that all goes on when its
//! certificate is replaced.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use controller_testing::eventually;
use friday_tls::testing::Pki;
use friday_tls::{Authorities, server_name};
use serde_json::Value;
use system_tests::{Ended, PATIENCE, Part, Scene, friday, proxy, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::tokens::make;

/// The names of the controller's certificate: `localhost` is none of them.
const NAMES: [&str; 1] = ["127.0.0.1"];

/// Longest time until a new certificate is in use; the files are looked at every 5 s.
const NOTICED_MAX: Duration = Duration::from_secs(20);

/// Connections that say nothing.
const SILENT: usize = 40;

/// A scene whose controller and proxy speak TLS, each with a token.
struct ByTls {
    // They end before the scene, which then ends the tasks.
    controller: Part,
    edge: Part,
    scene: Scene,
    pki: Pki,
    at: SocketAddr,
    operator: String,
}

impl ByTls {
    async fn start() -> Self {
        let scene = Scene::prepare();
        let dir = scene.dir().to_owned();
        let pki = Pki::new();
        pki.sign("server", &NAMES);
        let (edge_token, edge_line) = make(&dir, "edge", "proxy").await;
        let (operator, operator_line) = make(&dir, "gitlab", "operator").await;
        let tokens = scene.path("tokens");
        fs::write(&tokens, [edge_line, operator_line].join("\n")).unwrap();
        let (certificate, key) = (pki.text("server.pem"), pki.text("server.key"));
        let mut args = scene.serve_args();
        let more = [
            "--tokens",
            &tokens,
            "--tls-cert",
            &certificate,
            "--tls-key",
            &key,
        ];
        args.extend(more.map(str::to_owned));
        let controller = start("controller", &friday(), &args, &dir).await;
        let at = controller.address("listen");
        let mut args = scene.proxy_args();
        let url = args.iter().position(|arg| arg == "--controller").unwrap() + 1;
        args[url] = format!("https://{at}");
        let (token, ca) = (edge_token.display().to_string(), pki.text("root.pem"));
        let more = ["--token-file", &token, "--controller-ca", &ca];
        args.extend(more.map(str::to_owned));
        let edge = start("proxy", &proxy(), &args, &dir).await;
        let operator = operator.display().to_string();
        Self {
            scene,
            pki,
            at,
            controller,
            edge,
            operator,
        }
    }

    /// `friday list` of the controller at `url`, verified with the authorities in `ca`.
    async fn list(&self, url: &str, ca: &str) -> Ended {
        let more = ["--ca", ca, "--token-file", &self.operator];
        run(
            &friday(),
            &[&["list", "--url", url][..], &more].concat(),
            PATIENCE,
        )
        .await
    }

    /// The same as it should be.
    async fn listed(&self) -> Ended {
        self.list(&format!("https://{}", self.at), &self.pki.text("root.pem"))
            .await
    }

    /// Fails with words, and with the exit code of a controller that is out of reach.
    async fn fails(&self, url: &str, ca: &str, words: &[&str]) {
        let ended = self.list(url, ca).await;
        assert_eq!(ended.code, 30, "{url}: {}{}", ended.out, ended.err);
        for words in words {
            assert!(ended.err.contains(words), "{url}: {}", ended.err);
        }
    }

    async fn connect(&self) -> TlsStream<TcpStream> {
        let authorities = Authorities::from_file(&self.pki.path("root.pem")).unwrap();
        let config = Arc::new(authorities.client(None, &["http/1.1"]).unwrap());
        let stream = TcpStream::connect(self.at).await.unwrap();
        let name = server_name(NAMES[0]).unwrap();
        TlsConnector::from(config)
            .connect(name, stream)
            .await
            .unwrap()
    }

    /// One request with the operator's token on a connection that stays; the answer's body.
    async fn get(&self, stream: &mut TlsStream<TcpStream>, path: &str) -> Value {
        let token = fs::read_to_string(&self.operator).unwrap();
        let token = token.trim();
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: c\r\nauthorization: Bearer {token}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut heard = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&heard);
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                assert!(head.starts_with("HTTP/1.1 200 "), "{text}");
                if let Ok(document) = serde_json::from_str(body) {
                    return document;
                }
            }
            assert_ne!(
                stream.read_buf(&mut heard).await.unwrap(),
                0,
                "it broke off"
            );
        }
    }
}

async fn start(name: &str, program: &Path, args: &[String], dir: &Path) -> Part {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Part::start(name, program, &args, dir).await
}

#[tokio::test]
async fn by_tls_the_proxy_gets_its_table_and_reports_and_people_give_orders() {
    let all = ByTls::start().await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("http://{}/live", all.edge.address("listen"));
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
    let mut stream = all.connect().await;
    let proxies = eventually(
        "the proxy reports",
        PATIENCE,
        async || all.get(&mut stream, "/api/v1/proxies").await,
        |proxies| !proxies.as_array().unwrap().is_empty(),
    )
    .await;
    assert_eq!(proxies[0]["name"], "scene");
    let silent = proxies[0]["silent_seconds"].as_f64().unwrap();
    assert!(silent < 5.0, "{proxies}");

    let controller = format!("https://{}", all.at);
    let (file, ca) = (all.scene.path("friday.yml"), all.pki.text("root.pem"));
    let deploy = ["deploy", "-f", &file, "--image", "worker:v2", "-o", "json"];
    let with = [
        "--url",
        &controller,
        "--ca",
        &ca,
        "--token-file",
        &all.operator,
    ];
    let started = run(&friday(), &[&deploy[..], &with].concat(), PATIENCE).await;
    assert_eq!(started.code, 0, "{}", started.err);
    // Through the stream of changes, too.
    let abort = run(
        &friday(),
        &[&["abort", "tweets-worker"][..], &with].concat(),
        PATIENCE,
    )
    .await;
    assert_eq!(abort.code, 0, "{}", abort.err);
    let status = run(
        &friday(),
        &[&["status", "tweets-worker"][..], &with].concat(),
        PATIENCE,
    )
    .await;
    assert_eq!(status.code, 11, "{}{}", status.out, status.err);

    // The container's own question needs no authority, and shows no token.
    let health = ["health", "--url", &controller];
    let health = run(&friday(), &health, PATIENCE).await;
    assert_eq!(health.code, 0, "{}{}", health.out, health.err);
    assert!(all.edge.stop().await.success());
    assert!(all.controller.stop().await.success());
}

#[tokio::test]
async fn whoever_asks_in_the_wrong_way_is_told_the_right_one() {
    let all = ByTls::start().await;
    let at = all.at;
    let root = all.pki.text("root.pem");
    let listed = all.listed().await;
    assert_eq!(listed.code, 0, "{}", listed.err);

    let clear = format!("http://{at}");
    all.fails(&clear, &root, &["speaks TLS", "https://"]).await;
    let log = all.controller.log();
    assert!(log.contains("a token came in the clear"), "{log}");
    let health = run(&friday(), &["health", "--url", &clear], PATIENCE).await;
    assert_eq!(health.code, 1);
    assert!(health.out.contains("use https://"), "{}", health.out);
    let plain = format!("https://{}", all.edge.address("admin"));
    all.fails(&plain, &root, &["speaks no TLS", "http://"])
        .await;

    let url = format!("https://{at}");
    let other = Pki::new();
    all.fails(&url, &other.text("root.pem"), &["authority", "--ca"])
        .await;
    let named = format!("https://localhost:{}", at.port());
    all.fails(&named, &root, &["not for this name but for 127.0.0.1"])
        .await;
    // Whatever the system trusts, it is not this authority.
    let with = ["list", "--url", &url, "--token-file", &all.operator];
    let alone = run(&friday(), &with, PATIENCE).await;
    assert_ne!(alone.code, 0);
    assert!(alone.err.contains("--ca"), "{}", alone.err);
    let missing = all.list(&url, "/nowhere.pem").await;
    assert_eq!(missing.code, 2);
    assert!(missing.err.contains("/nowhere.pem"), "{}", missing.err);

    for part in [&all.controller, &all.edge] {
        let log = part.log();
        let token = fs::read_to_string(&all.operator).unwrap();
        assert!(!log.contains(token.trim()), "a token in a log:\n{log}");
    }

    // A proxy is told as well, and serves on with what it has.
    let mut args = all.scene.proxy_args();
    let listen = args.iter().position(|arg| arg == "--listen").unwrap() + 1;
    args[listen] = "127.0.0.1:0".to_owned();
    let state = args.iter().position(|arg| arg == "--state-dir").unwrap() + 1;
    let controller = args.iter().position(|arg| arg == "--controller").unwrap() + 1;
    for (number, (url, ca, words)) in [
        (clear, None, "--controller takes its address with https://"),
        (url, Some(other.text("root.pem")), "--controller-ca names"),
        (named, Some(root), "not for this name but for 127.0.0.1"),
    ]
    .into_iter()
    .enumerate()
    {
        args[state] = all.scene.path(&format!("lost-{number}"));
        args[controller] = url;
        let mut args = args.clone();
        if let Some(ca) = ca {
            args.extend(["--controller-ca".to_owned(), ca]);
        }
        let lost = start(&format!("lost-{number}"), &proxy(), &args, all.scene.dir()).await;
        let log = eventually(
            words,
            PATIENCE,
            async || lost.log(),
            |log| log.contains(words),
        )
        .await;
        assert!(log.contains("serving on without the controller"), "{log}");
    }
}

#[tokio::test]
async fn a_new_certificate_needs_no_restart_and_breaks_no_connection() {
    let all = ByTls::start().await;
    let mut silent = Vec::new();
    for _ in 0..SILENT {
        silent.push(TcpStream::connect(all.at).await.unwrap());
    }
    let mut open = all.connect().await;
    all.get(&mut open, "/api/v1/services").await;

    all.pki
        .sign_between("server", &NAMES, "20200101000000Z", "20200201000000Z");
    eventually(
        "the expired certificate is refused",
        NOTICED_MAX,
        async || all.listed().await,
        |ended| ended.code == 30 && ended.err.contains("has expired"),
    )
    .await;
    all.get(&mut open, "/api/v1/services").await;
    all.pki.sign("server", &NAMES);
    eventually(
        "the new certificate is taken",
        NOTICED_MAX,
        async || all.listed().await,
        |ended| ended.code == 0,
    )
    .await;
    // So does the proxy, whose connections were open throughout.
    let log = all.edge.log();
    assert!(!log.contains("without the controller"), "{log}");
    all.get(&mut open, "/api/v1/services").await;
    drop(silent);
}
