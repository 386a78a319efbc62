//! The program itself: arguments, exit codes, signals.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use http::{Request, StatusCode};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proxy_api::RouteTable;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::world::{Backend, Client, eventually, side, table};

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_friday-proxy"));
    command
        .args(args)
        .env_remove("RUST_LOG")
        .stderr(Stdio::piped());
    command
}

/// Writes a table to a file of that directory, and gives its path.
pub(crate) fn table_file(directory: &Path, table: &RouteTable) -> String {
    let file = directory.join("routes.json");
    std::fs::write(&file, serde_json::to_vec(table).unwrap()).unwrap();
    file.to_str().unwrap().to_owned()
}

/// Runs it to its end: the exit code, and what it logged.
pub(crate) async fn run(args: &[&str]) -> (Option<i32>, String) {
    let mut command = program(args);
    let output: Output = tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// A running proxy; killed when dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    log: Arc<Mutex<String>>,
    pub(crate) listen: String,
    pub(crate) admin: String,
}

impl Running {
    /// One at any free port, with its files in `directory`.
    pub(crate) async fn start(directory: &Path, args: &[&str]) -> Self {
        Self::start_at("127.0.0.1:0", directory, args).await
    }

    /// One that clients reach at `listen`; ready when this returns.
    pub(crate) async fn start_at(listen: &str, directory: &Path, args: &[&str]) -> Self {
        let file = directory.join("addresses.json");
        let addresses = ["--addresses-file", file.to_str().unwrap()];
        let ports = ["--listen", listen, "--admin", "127.0.0.1:0"];
        let mut child = program(&[&ports[..], &addresses, args].concat())
            .spawn()
            .unwrap();
        let log = Arc::<Mutex<String>>::default();
        let (written, stderr) = (Arc::clone(&log), child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                written.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        let addresses: Value = eventually("the addresses", async || {
            serde_json::from_slice(&std::fs::read(&file).ok()?).ok()
        })
        .await;
        let address = |key: &str| addresses[key].as_str().unwrap().to_owned();
        Self {
            child,
            log,
            listen: address("listen"),
            admin: address("admin"),
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Replaces its table.
    pub(crate) async fn put(&self, table: &RouteTable) {
        let request = Request::put(format!("http://{}/routes", self.admin))
            .body(serde_json::to_vec(table).unwrap().into())
            .unwrap();
        let answer = Client::new().send(request).await.unwrap();
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    }

    /// The URL of a path at the proxy.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.listen)
    }

    async fn get(&self) -> String {
        let url = format!("http://{}/", self.listen);
        Client::new().get(&url, &[]).await.unwrap().body
    }

    /// Waits until the log says it for the `times`-th time.
    pub(crate) async fn logs(&self, text: &str, times: usize) {
        eventually(&format!("{text} in the log"), async || {
            (self.log.lock().unwrap().matches(text).count() >= times).then_some(())
        })
        .await;
    }

    pub(crate) async fn ended(mut self) -> Option<i32> {
        let what = "the end of the program";
        let status = eventually(what, async || self.child.try_wait().unwrap()).await;
        status.code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test]
async fn wrong_arguments_and_wrong_files_end_with_2_and_say_what_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("routes.json");
    let file = file.to_str().unwrap();
    std::fs::write(file, "{\n  \"routes\": [{\"nam\": \"a\"}]\n}").unwrap();
    let state = directory.path().join("state");
    let state = state.to_str().unwrap();
    let cases = [
        (vec![], "--routes"),
        (vec!["--routes", file, "--listen", "here"], "--listen"),
        (
            vec!["--routes", file, "--admin", "0.0.0.0:0"],
            "--admin-anywhere",
        ),
        (
            vec!["--routes", file],
            "routes.json:2:19: unknown field `nam`",
        ),
        (
            vec!["--routes", "/nowhere.json"],
            "cannot read /nowhere.json",
        ),
        (
            vec!["--controller", "ftp://c", "--state-dir", "d"],
            "expected https://HOST:PORT or http://HOST:PORT",
        ),
        (
            vec![
                "--controller",
                "https://c",
                "--state-dir",
                state,
                "--controller-ca",
                "/nowhere.pem",
            ],
            "--controller-ca names the PEM file",
        ),
    ];
    for (args, expected) in cases {
        let (code, log) = run(&args).await;
        assert_eq!(code, Some(2), "{args:?}: {log}");
        assert!(log.contains(expected), "{args:?}: {log}");
    }
}

#[tokio::test]
async fn a_taken_port_is_named_with_the_option_that_changes_it() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("routes.json");
    std::fs::write(&file, r#"{"routes":[]}"#).unwrap();
    let file = file.to_str().unwrap();
    for (option, other) in [("--listen", "--admin"), ("--admin", "--listen")] {
        let (code, log) = run(&["--routes", file, option, &address, other, "127.0.0.1:0"]).await;
        assert_eq!(code, Some(1), "{log}");
        assert!(
            log.contains(&address) && log.contains(&format!("{option} changes it")),
            "{log}"
        );
    }
}

#[tokio::test]
async fn a_damaged_saved_table_ends_with_1_and_is_named() {
    let state = tempfile::tempdir().unwrap();
    std::fs::write(state.path().join("table.json"), "{").unwrap();
    let path = state.path().to_str().unwrap();
    let ports = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let led = ["--controller", "http://127.0.0.1:1", "--state-dir", path];
    let (code, log) = run(&[&ports[..], &led].concat()).await;
    assert_eq!(code, Some(1), "{log}");
    assert!(
        log.contains("table.json:1:1: EOF") && log.contains("move it away"),
        "{log}"
    );
}

#[tokio::test]
async fn reads_its_file_again_on_sighup_keeps_the_old_table_if_it_is_bad_and_ends_on_sigterm() {
    let (one, two) = (Backend::named("one").await, Backend::named("two").await);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("routes.json");
    let write = |seq, backend: &Backend| {
        let table = table(seq, &[backend.address], json!({}));
        std::fs::write(&file, serde_json::to_vec(&table).unwrap()).unwrap();
    };
    write(1, &one);
    let proxy = Running::start(directory.path(), &["--routes", file.to_str().unwrap()]).await;
    assert_eq!(proxy.get().await, "one");

    std::fs::write(&file, "{\"routes\":\n oops}").unwrap();
    proxy.signal(Signal::SIGHUP);
    proxy.logs("routes.json:2:2: expected value", 1).await;
    assert_eq!(proxy.get().await, "one", "the old one serves on");

    write(2, &two);
    proxy.signal(Signal::SIGHUP);
    eventually("the second table", async || {
        (proxy.get().await == "two").then_some(())
    })
    .await;

    write(1, &one);
    proxy.signal(Signal::SIGHUP);
    proxy.logs("table 1.1 is not newer than 1.2", 1).await;
    assert_eq!(proxy.get().await, "two", "the newer one serves on");
    let url = format!("http://{}/ready", proxy.admin);
    assert_eq!(Client::new().get(&url, &[]).await.unwrap().body, "ready\n");

    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.ended().await, Some(0));
}

#[tokio::test]
async fn the_readmes_steps_work_again_and_again_edit_and_sighup_edit_and_put() {
    let (one, two) = (Backend::named("one").await, Backend::named("two").await);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("routes.json");
    // As the README has it, without a generation.
    let (stable, canary) = (side("v1", &[one.address]), side("v2", &[two.address]));
    let routes = json!({ "routes": [{ "name": "shop", "canary_bp": 0, "stable": stable, "canary": canary }] });
    std::fs::write(&file, routes.to_string()).unwrap();
    let proxy = Running::start(directory.path(), &["--routes", file.to_str().unwrap()]).await;
    assert_eq!(proxy.get().await, "one");
    // Another weight: what an editor does with whatever stands in the file by now.
    let edit = |points: u16| {
        let text = std::fs::read(&file).unwrap();
        let mut routes: Value = serde_json::from_slice(&text).unwrap();
        routes["routes"][0]["canary_bp"] = json!(points);
        std::fs::write(&file, routes.to_string()).unwrap();
    };
    for is_put in [false, false, true, true, false, true, false, false] {
        for (points, expected) in [(10_000, "two"), (0, "one")] {
            edit(points);
            if is_put {
                // `curl -T routes.json`
                let request = Request::put(format!("http://{}/routes", proxy.admin))
                    .body(std::fs::read(&file).unwrap().into())
                    .unwrap();
                let answer = Client::new().send(request).await.unwrap();
                assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
            } else {
                proxy.signal(Signal::SIGHUP);
            }
            eventually("the other weight", async || {
                (proxy.get().await == expected).then_some(())
            })
            .await;
        }
    }
}

#[tokio::test]
async fn health_asks_a_running_proxy_and_ends_as_docker_wants_it() {
    let backend = Backend::named("one").await;
    let directory = tempfile::tempdir().unwrap();
    let file = table_file(directory.path(), &table(1, &[backend.address], json!({})));
    let proxy = Running::start(directory.path(), &["--routes", &file]).await;
    let ask = async |args: &[&str]| {
        let mut command = program(&[&["health", "--admin", &proxy.admin], args].concat());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap());
        let Output { status, stdout, .. } = output.await.unwrap();
        (status.code(), String::from_utf8(stdout).unwrap())
    };
    assert_eq!(
        ask(&[]).await,
        (Some(0), format!("ready: {}\n", proxy.admin))
    );
    assert_eq!(
        ask(&["--live"]).await,
        (Some(0), format!("live: {}\n", proxy.admin))
    );
    let admin = proxy.admin.clone();
    drop(proxy);
    let mut command = program(&["health", "--admin", &admin]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    let Output { status, stdout, .. } = output.await.unwrap();
    let said = String::from_utf8(stdout).unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("Connection refused"), "{said}");
}
