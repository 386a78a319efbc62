//! Debian's Prometheus and Alertmanager, with the rules and the route of grafana/.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use controller_testing::eventually;
use friday::clock::{Clock, SystemClock};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::alerts::write_sooner;
use crate::boards::repository;
use crate::demo::targets_file;

/// Longest wait for a program that starts.
const START_MAX: Duration = Duration::from_secs(20);

/// Starts a program that says where it listens, as those of the Prometheus project do: the address, and the program, which is
/// killed when it is dropped.
async fn start(program: &str, package: &str, args: &[String]) -> (String, Child) {
    assert!(
        Path::new(program).exists(),
        "{program} is missing: apt-get install --yes --no-install-recommends {package}"
    );
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = Vec::new();
    let looking = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if let Some((_, address)) = line.split_once("msg=\"Listening on\" address=") {
                return Some(address.trim().to_owned());
            }
            said.push(line);
        }
        None
    };
    let address = tokio::time::timeout(START_MAX, looking)
        .await
        .ok()
        .flatten();
    let address = address
        .unwrap_or_else(|| panic!("{program} does not listen; it said:\n{}", said.join("\n")));
    // It goes on talking, and would stop if nobody listened.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    (address, child)
}

fn client() -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(10))
        .build()
        .unwrap()
}

/// What an answer has.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    /// Series with at least one number.
    pub(crate) series: usize,
    /// The newest number of one of them.
    pub(crate) last: f64,
}

/// Where there is no Alertmanager to be told.
pub(crate) const NOBODY: &str = "127.0.0.1:1";

pub(crate) struct Prometheus {
    url: String,
    http: reqwest::Client,
    clock: std::sync::Arc<SystemClock>,
    _child: Child,
}

impl Prometheus {
    /// Scrapes these once a second, evaluates the rules of the repository as often, and tells that Alertmanager of alerts. Some
    /// alerts fire sooner than for people.
    pub(crate) async fn start(dir: &Path, targets: &[(&str, String)], alertmanager: &str) -> Self {
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self::start_at(anywhere, dir, targets, alertmanager).await
    }

    /// The same, where it was said to be.
    pub(crate) async fn start_at(
        listen: SocketAddr,
        dir: &Path,
        targets: &[(&str, String)],
        alertmanager: &str,
    ) -> Self {
        let rules = repository().join("grafana/rules");
        let alerts = write_sooner(dir);
        let mut text = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\n\
             rule_files: ['{}/recording.yml', '{}']\n\
             alerting: {{ alertmanagers: [ {{ static_configs: [ {{ targets: ['{}'] }} ] }} ] }}\n\
             scrape_configs:\n",
            rules.display(),
            alerts.display(),
            alertmanager.trim_start_matches("http://"),
        );
        for (job, target) in targets {
            writeln!(
                text,
                "  - {{ job_name: {job}, honor_labels: true, static_configs: [ {{ targets: ['{target}'] }} ] }}"
            )
            .unwrap();
        }
        for job in ["workers", "agents"] {
            let file = targets_file(dir, job);
            writeln!(
                text,
                "  - {{ job_name: {job}, honor_labels: true, file_sd_configs: [ {{ files: ['{}'], refresh_interval: 1s }} ] }}",
                file.display()
            )
            .unwrap();
        }
        let config = dir.join("prometheus.yml");
        fs::write(&config, text).unwrap();
        let args = [
            format!("--config.file={}", config.display()),
            format!("--storage.tsdb.path={}", dir.join("prometheus").display()),
            format!("--web.listen-address={listen}"),
            // As in swarm/stack.yml.
            "--enable-feature=exemplar-storage".to_owned(),
        ];
        let (address, child) = start("/usr/bin/prometheus", "prometheus", &args).await;
        let prometheus = Self {
            url: format!("http://{address}"),
            http: client(),
            clock: SystemClock::new(),
            _child: child,
        };
        let limit = START_MAX;
        prometheus
            .until(
                "Prometheus has scraped the controller",
                limit,
                "friday_build_info",
            )
            .await;
        prometheus
    }

    /// The time, in seconds since 1970.
    pub(crate) fn now(&self) -> f64 {
        self.clock.now().as_duration().as_secs_f64()
    }

    async fn ask(&self, path: &str, query: &[(&str, String)]) -> Result<Value, String> {
        let answer = self
            .http
            .get(format!("{}/api/v1/{path}", self.url))
            .query(query)
            .send()
            .await
            .map_err(|error| error.to_string())?;
        let status = answer.status();
        let body: Value = answer.json().await.map_err(|error| error.to_string())?;
        if status.is_success() {
            Ok(body["data"].clone())
        } else {
            Err(format!("{status}: {body}"))
        }
    }

    /// What a query had, second by second since `from`.
    pub(crate) async fn range(&self, expr: &str, from: f64) -> Result<Seen, String> {
        let query = [
            ("query", expr.to_owned()),
            ("start", from.to_string()),
            ("end", self.now().to_string()),
            ("step", "1".to_owned()),
        ];
        let data = self.ask("query_range", &query).await?;
        let mut seen = Seen::default();
        for series in data["result"].as_array().into_iter().flatten() {
            let values = series["values"].as_array().into_iter().flatten();
            let mut numbers = values.filter_map(|pair| pair[1].as_str()?.parse::<f64>().ok());
            // Not a number is no data.
            if let Some(last) = numbers.rfind(|number| number.is_finite()) {
                seen.series += 1;
                seen.last = last;
            }
        }
        Ok(seen)
    }

    /// The traces that the exemplars of these series lead to, since `from`.
    pub(crate) async fn traces_of(&self, selector: &str, from: f64) -> Result<Vec<String>, String> {
        let query = [
            ("query", selector.to_owned()),
            ("start", from.to_string()),
            ("end", self.now().to_string()),
        ];
        let data = self.ask("query_exemplars", &query).await?;
        let series = data.as_array().into_iter().flatten();
        let exemplars =
            series.flat_map(|series| series["exemplars"].as_array().into_iter().flatten());
        let traces = exemplars.filter_map(|exemplar| exemplar["labels"]["trace_id"].as_str());
        Ok(traces.map(str::to_owned).collect())
    }

    /// The values that a label of these series has had since `from`, as Grafana asks for a variable's.
    pub(crate) async fn values(&self, label: &str, selector: &str, from: f64) -> Vec<String> {
        let query = [
            ("match[]", selector.to_owned()),
            ("start", from.to_string()),
            ("end", self.now().to_string()),
        ];
        let data = self.ask(&format!("label/{label}/values"), &query).await;
        let data = data.unwrap_or_else(|error| panic!("{label} of {selector}: {error}"));
        let values = data.as_array().into_iter().flatten();
        values
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect()
    }

    /// Waits until an alert has fired since `from`; it may be over.
    pub(crate) async fn fires(&self, alert: &str, limit: Duration, from: f64) {
        let query = format!(r#"ALERTS{{alertname="{alert}",alertstate="firing"}}"#);
        let look = async || self.range(&query, from).await;
        let fired = |seen: &Result<Seen, String>| seen.as_ref().is_ok_and(|seen| seen.series > 0);
        drop(eventually(&format!("{alert} fires"), limit, look, fired).await);
    }

    /// Waits until a query has something now.
    pub(crate) async fn until(&self, what: &str, limit: Duration, expr: &str) {
        let query = [("query", expr.to_owned())];
        let look = async || self.ask("query", &query).await;
        let is_there = |answer: &Result<Value, String>| {
            answer
                .as_ref()
                .is_ok_and(|data| data["result"].as_array().is_some_and(|all| !all.is_empty()))
        };
        drop(eventually(what, limit, look, is_there).await);
    }

    /// Its targets and how they are, for a test that fails.
    pub(crate) async fn targets(&self) -> String {
        let data = self.ask("targets", &[]).await.unwrap_or_default();
        let targets = data["activeTargets"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let line = |target: &Value| {
            let of = |key: &str| target[key].as_str().unwrap_or_default().to_owned();
            format!(
                "  {} {} {} {}",
                of("scrapePool"),
                of("scrapeUrl"),
                of("health"),
                of("lastError")
            )
        };
        targets.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

pub(crate) struct Alertmanager {
    address: String,
    url: String,
    http: reqwest::Client,
    clock: std::sync::Arc<SystemClock>,
    _child: Child,
}

impl Alertmanager {
    /// By the repository's own file, but for where the controller is and that it asks for no token.
    pub(crate) async fn start(dir: &Path, controller: &str) -> Self {
        let slack = dir.join("slack_url");
        // Nobody answers there.
        fs::write(&slack, "http://127.0.0.1:1/slack").unwrap();
        let text = fs::read_to_string(repository().join("grafana/alertmanager.yml")).unwrap();
        let mut is_left_out = false;
        let mut config = String::new();
        for line in text.lines() {
            if line.trim() == "http_config:" {
                is_left_out = true;
            } else if is_left_out && !line.starts_with("          ") {
                is_left_out = false;
            }
            if !is_left_out {
                config.push_str(line);
                config.push('\n');
            }
        }
        let config = config
            .replace("https://controller:7070", controller)
            .replace("/run/secrets/slack_url", &slack.display().to_string());
        let file = dir.join("alertmanager.yml");
        fs::write(&file, config).unwrap();
        let args = [
            format!("--config.file={}", file.display()),
            format!("--storage.path={}", dir.join("alertmanager").display()),
            "--web.listen-address=127.0.0.1:0".to_owned(),
            "--cluster.listen-address=".to_owned(),
        ];
        let program = "/usr/bin/prometheus-alertmanager";
        let (address, child) = start(program, "prometheus-alertmanager", &args).await;
        Self {
            url: format!("http://{address}"),
            address,
            http: client(),
            clock: SystemClock::new(),
            _child: child,
        }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Tells it of an alert that asks for rollouts to be held, as a Prometheus would; or that it is over.
    pub(crate) async fn fire(&self, name: &str, service: &str, is_firing: bool) {
        let now = self.clock.now();
        let hour = rollout::Duration::from_secs(3600);
        let ends = if is_firing { now + hour } else { now };
        let alert = json!([{
            "labels": { "alertname": name, "service": service, "friday_hold": "true", "severity": "critical" },
            "annotations": { "summary": "made by a test" },
            "startsAt": (now - hour).to_string(),
            "endsAt": ends.to_string(),
        }]);
        let answer = self
            .http
            .post(format!("{}/api/v2/alerts", self.url))
            .json(&alert)
            .send()
            .await
            .unwrap();
        let status = answer.status();
        assert!(
            status.is_success(),
            "{status}: {}",
            answer.text().await.unwrap_or_default()
        );
    }

    /// The alerts that it knows, as text.
    pub(crate) async fn alerts(&self) -> String {
        let answer = self.http.get(format!("{}/api/v2/alerts", self.url)).send();
        match answer.await {
            Ok(answer) => answer.text().await.unwrap_or_default(),
            Err(error) => error.to_string(),
        }
    }
}
