//! A real Prometheus, which scrapes a server of the test's: what it answers is what the adapter reads, and what
//! `friday lint --prometheus` says of a file is what it says.

#![expect(
    clippy::unwrap_used,
    reason = "a test says what went wrong by failing there"
)]

use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::routing::get;
use controller_testing::eventually;
use friday::clock::{Clock, SystemClock};
use friday::metrics_source::{MetricsError, MetricsSource, Prometheus, Query, Subject};
use rollout::{Duration, Timestamp};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

const PROGRAM: &str = "/usr/bin/prometheus";

/// Longest wait for a program that starts, or a scrape.
const SOON: Duration = Duration::from_secs(20);

/// A release whose name tries to break out of every kind of string.
const EVIL: &str = r#"v1.0"} or vector(1) or x{a='b' \ | .*"#;

/// What the test's server shows: a lag for each release, and what is odd.
fn metrics(lag: u32) -> String {
    let evil = EVIL.replace('\\', r"\\").replace('"', "\\\"");
    format!(
        "consumer_lag{{release=\"good\"}} {lag}\nconsumer_lag{{release=\"{evil}\"}} 7\nconsumer_lag{{release=\"v1x0\"}} 8\n\
         odd{{kind=\"nan\"}} NaN\nodd{{kind=\"inf\"}} +Inf\n"
    )
}

/// A Prometheus that scrapes one target five times a second. It ends, by its process id, with this.
struct Running {
    url: String,
    shown: Arc<Mutex<String>>,
    source: Prometheus,
    clock: Arc<SystemClock>,
    _child: Child,
    _folder: tempfile::TempDir,
}

async fn start() -> Running {
    assert!(
        Path::new(PROGRAM).exists(),
        "{PROGRAM} is missing: apt-get install --yes --no-install-recommends prometheus"
    );
    let shown = Arc::new(Mutex::new(metrics(12)));
    let page = Arc::clone(&shown);
    let router = Router::new().route(
        "/metrics",
        get(move || async move { page.lock().unwrap().clone() }),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });

    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("prometheus.yml");
    let text = format!(
        "global: {{ scrape_interval: 200ms, scrape_timeout: 200ms }}\n\
         scrape_configs: [ {{ job_name: test, static_configs: [ {{ targets: [ '{target}' ] }} ] }} ]\n"
    );
    std::fs::write(&config, text).unwrap();
    let mut child = Command::new(PROGRAM)
        .arg(format!("--config.file={}", config.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            folder.path().join("data").display()
        ))
        .arg("--web.listen-address=127.0.0.1:0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = Vec::new();
    let address = tokio::time::timeout(SOON, async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if let Some((_, address)) = line.split_once("msg=\"Listening on\" address=") {
                return Some(address.trim().to_owned());
            }
            said.push(line);
        }
        None
    });
    let address = address.await.ok().flatten();
    let address = address
        .unwrap_or_else(|| panic!("{PROGRAM} does not listen; it said:\n{}", said.join("\n")));
    // It goes on talking, and would stop if nobody listened.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    let url = format!("http://{address}");
    let source = Prometheus::at(&url).unwrap();
    let running = Running {
        url,
        shown,
        source,
        clock: SystemClock::new(),
        _child: child,
        _folder: folder,
    };
    running
        .until(r#"consumer_lag{release="good"}"#, Some(12.0))
        .await;
    running
}

impl Running {
    async fn ask(&self, query: &str) -> Result<Option<f64>, MetricsError> {
        self.source.ask(query, self.clock.now()).await
    }

    /// Waits until it says so; while it starts it refuses connections.
    async fn until(&self, query: &str, value: Option<f64>) {
        let look = async || self.ask(query).await;
        let is_so = |answer: &Result<Option<f64>, MetricsError>| matches!(answer, Ok(found) if *found == value);
        drop(eventually(query, SOON, look, is_so).await);
    }

    fn about(&self, query: &str, release: &str) -> String {
        let subject = Subject {
            release: release.into(),
            service: "web".into(),
            environment: "test".into(),
            arm: "canary",
        };
        Query::parse(query).unwrap().about(&subject)
    }

    /// `friday lint` of a file with this check: exit code and words.
    async fn lint(&self, url: &str, query: &str) -> (i32, String) {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "service: web\nport: 80\nguard:\n  checks:\n    - name: a\n      prometheus: '{query}'\n      max: 1\n"
        );
        std::fs::write(folder.path().join("friday.yml"), text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_friday"))
            .args(["lint", "--prometheus", url, "friday.yml"])
            .current_dir(folder.path())
            .env_clear()
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(SOON, output).await.unwrap().unwrap();
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        (output.status.code().unwrap(), said.concat())
    }
}

#[tokio::test]
async fn f02_f06_reads_and_lints_what_a_real_prometheus_answers() {
    let prometheus = start().await;

    // One number, or no data; never 0 for none.
    let value = async |query: &str| prometheus.ask(query).await.unwrap();
    assert_eq!(value("vector(3)").await, Some(3.0));
    assert_eq!(value("-1.5").await, Some(-1.5));
    assert_eq!(value(r#"max(consumer_lag{release="nobody"})"#).await, None);
    assert_eq!(value(r#"odd{kind="nan"}"#).await, None);
    assert_eq!(value(r#"odd{kind="inf"}"#).await, None);
    assert_eq!(value("rate(never_seen[1m])").await, None);
    // What was not scraped yet at the time that is asked for.
    let early: Timestamp = prometheus.clock.now() - Duration::from_secs(3600);
    assert_eq!(
        prometheus
            .source
            .ask(r#"consumer_lag{release="good"}"#, early)
            .await
            .unwrap(),
        None
    );

    let many = prometheus.ask("consumer_lag").await.unwrap_err();
    assert!(
        many.to_string().contains("3 series") && !many.is_transient(),
        "{many}"
    );
    let wrong = prometheus.ask("max(consumer_lag").await.unwrap_err();
    assert!(
        wrong.to_string().contains("bad_data") && wrong.to_string().contains("parenthesis"),
        "{wrong}"
    );
    assert!(!wrong.is_transient());

    // No value breaks out of its string, and in a regular expression it matches itself alone.
    for (query, release, lag) in [
        (r#"consumer_lag{release="$release"}"#, EVIL, 7.0),
        (r#"consumer_lag{release='$release'}"#, EVIL, 7.0),
        (r#"consumer_lag{release=~"$release"}"#, EVIL, 7.0),
        (
            r#"sum(consumer_lag{release=~"v1.0|$release"})"#,
            "v1x0",
            8.0,
        ),
    ] {
        assert_eq!(
            value(&prometheus.about(query, release)).await,
            Some(lag),
            "{query}"
        );
    }
    assert_eq!(
        value(&prometheus.about(r#"consumer_lag{release=~"$release"}"#, "v1.0")).await,
        None
    );

    // A target that is gone is no data soon after, as Prometheus has it.
    *prometheus.shown.lock().unwrap() = metrics(99);
    prometheus
        .until(r#"consumer_lag{release="good"}"#, Some(99.0))
        .await;
    prometheus.shown.lock().unwrap().clear();
    prometheus
        .until(r#"consumer_lag{release="good"}"#, None)
        .await;

    // Lint: tried, warned of, refused, out of reach.
    let (code, said) = prometheus
        .lint(&prometheus.url, r#"max(consumer_lag{release="$release"})"#)
        .await;
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains("check \"a\" gives no data now") && said.contains("friday.yml: ok"),
        "{said}"
    );
    let (code, said) = prometheus.lint(&prometheus.url, "max(consumer_lagg)").await;
    assert_eq!(code, 20, "{said}");
    assert!(
        said.contains("friday.yml:6:19: guard.checks[0].prometheus:"),
        "{said}"
    );
    assert!(
        said.contains(
            "has never seen consumer_lagg: expected the name of a metric that it scrapes"
        ) && said.contains("\n  did you mean consumer_lag?"),
        "{said}"
    );
    // Names that are like nothing there get no advice; of the labels a Prometheus knows, only names of metrics count.
    let (code, said) = prometheus
        .lint(&prometheus.url, "max(something_else_entirely)")
        .await;
    assert_eq!(code, 20, "{said}");
    assert!(
        said.contains("has never seen something_else_entirely") && !said.contains("did you mean"),
        "{said}"
    );
    let (code, said) = prometheus
        .lint(&prometheus.url, "max(consumer_lag) +")
        .await;
    assert_eq!(code, 20, "{said}");
    assert!(
        said.contains("friday.yml:6:19:") && said.contains("parse error"),
        "{said}"
    );
    let (code, said) = prometheus.lint("http://127.0.0.1:1", "up").await;
    assert_eq!(code, 30, "{said}");
    assert!(
        said.contains("http://127.0.0.1:1 is out of reach"),
        "{said}"
    );
}
