//! `cargo demo`: the whole system on this machine, each part a process of its own, nothing installed.
//!
//! ```text
//! produce ─▶ local log ─▶ feed ─HTTP─▶ proxy ─▶ workers (stable, canary) ─▶ local log ─▶ sink ─▶ SQLite
//!                                        │ reports, table                 │ child processes of
//!                                        └──────────── serve ─────────────┘
//! ```
//! This program starts itself as each of them and talks to them as anyone would: by their addresses, with the ordinary
//! client and the ordinary metrics. It ends all of them, whatever happens, and says what it saw.

use std::io::{IsTerminal, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use friday::api::types::{DeployRequest, RolloutView};
use friday::client::Client;
use friday::orchestrator::process::end_leftovers;
use friday::words;
use rollout::{Ending, Phase};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

mod children;
mod record;
mod scenario;
mod scrape;

pub use children::die_with_parent;
use children::{Child, Children};
use record::{Outcome, Record};
use scrape::Scrape;

use crate::worker::Fault;

/// The service that is released.
const SERVICE: &str = "tweets-worker";

/// Where it is released: a label of the metrics of every part that has it.
const ENVIRONMENT: &str = "demo";

/// The port of `friday`'s own default address.
const DEFAULT_PORT: u16 = 7070;

/// Tasks that must be done before the release starts, in seconds of traffic: the judge then knows what stable is like.
const TRAFFIC_BEFORE: f64 = 3.0;

/// Longest wait for a part to start. A debug build on a busy machine takes seconds.
const START_MAX: Duration = Duration::from_secs(60);

/// Longest wait for what was produced to be done and stored.
const DRAIN_MAX: Duration = Duration::from_secs(60);

/// How often the demo looks.
const LOOK: Duration = Duration::from_millis(250);

/// Tries the whole system on this machine.
#[derive(Debug, Clone, clap::Args)]
pub struct DemoArgs {
    /// Release a canary that differs in this from stable; without it the demo waits for `friday deploy`
    #[arg(long, value_enum)]
    scenario: Option<Fault>,
    /// Tweets a second
    #[arg(long, default_value_t = 200.0, value_parser = crate::cli::positive)]
    rate: f64,
    /// Give up after this many seconds; 0 never does
    #[arg(long, default_value_t = 600, value_name = "MAX")]
    seconds: u64,
    /// End when the release has ended
    #[arg(long, requires = "scenario")]
    exit: bool,
    /// Print what happened as one JSON object, in the last line
    #[arg(long)]
    json: bool,
    /// File of tweets, one JSON object a line, looped; without it, tweets are made up
    #[arg(long, value_name = "FILE.jsonl")]
    input: Option<PathBuf>,
    /// Seed of what is made up
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Port of the controller and the board on 127.0.0.1; 0 takes any free one
    #[arg(long, default_value_t = DEFAULT_PORT)]
    port: u16,
    /// Kafka brokers to use instead of the local log
    #[arg(long, value_name = "HOST:PORT")]
    kafka: Option<String>,
    #[command(flatten)]
    traces: friday_traces::Args,
    /// Folder of all state, kept at the end; without it a temporary one is used and removed
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Runs the demo.
///
/// # Errors
/// A part did not start or died; everything else has been ended.
pub async fn run(args: DemoArgs, stop: CancellationToken) -> anyhow::Result<ExitCode> {
    let temporary = tempfile::Builder::new()
        .prefix("friday-demo-")
        .tempdir()
        .context("no temporary folder")?;
    let dir = match &args.dir {
        Some(dir) => {
            std::fs::create_dir_all(dir)
                .with_context(|| format!("--dir {} cannot be made", dir.display()))?;
            dir.canonicalize()
                .with_context(|| format!("--dir {} cannot be found", dir.display()))?
        }
        None => temporary.path().to_owned(),
    };
    let mut demo = Demo {
        args,
        dir,
        stop,
        children: Children::default(),
        scrape: Scrape::new()?,
    };
    let outcome = demo.play().await;
    let ended = demo.end().await;
    if outcome.is_err() && demo.args.dir.is_none() {
        let kept = temporary.keep();
        eprintln!("demo: the logs of the parts are kept in {}", kept.display());
    }
    let code = outcome?;
    ended?;
    Ok(code)
}

struct Demo {
    args: DemoArgs,
    dir: PathBuf,
    stop: CancellationToken,
    children: Children,
    scrape: Scrape,
}

/// Where the parts listen.
struct Addresses {
    controller: String,
    proxy_admin: String,
    producer: String,
    feeder: String,
    sink: String,
}

impl Demo {
    /// Everything up to the last answer; ending is [`Demo::end`]'s.
    async fn play(&mut self) -> anyhow::Result<ExitCode> {
        let traces = self.traces();
        scenario::write_files(&self.dir, self.args.scenario, &traces)
            .context("the demo's files cannot be written")?;
        let at = self.start().await?;
        let board = format!("http://{}/", at.controller);
        eprintln!("board:      {board}");
        let Some(scenario) = self.args.scenario else {
            self.explain_itself(&board);
            self.wait_until_told().await?;
            return Ok(ExitCode::SUCCESS);
        };
        let outcome = self.release(scenario, &at).await?;
        let record = if self.args.exit {
            let produced = self.drain(&at).await?;
            Record::gather(scenario, &outcome, Some(produced), &self.scrape, &at).await?
        } else {
            let record = Record::gather(scenario, &outcome, None, &self.scrape, &at).await?;
            eprintln!(
                "ended:      {}; the demo goes on until Ctrl-C",
                record.reason
            );
            self.wait_until_told().await?;
            record
        };
        if self.args.json {
            println!(
                "{}",
                serde_json::to_string(&record).context("the record cannot be written")?
            );
        } else {
            eprintln!("{record}");
        }
        Ok(ExitCode::from(outcome.exit_code()))
    }

    /// What each part that takes part in traces is told of them.
    fn traces(&self) -> Vec<String> {
        let traces = &self.args.traces;
        let Some(endpoint) = traces.otlp_endpoint.as_ref().filter(|url| !url.is_empty()) else {
            return Vec::new();
        };
        let percent = traces.trace_percent.to_string();
        [
            "--otlp-endpoint",
            endpoint.as_str(),
            "--trace-percent",
            &percent,
        ]
        .map(str::to_owned)
        .to_vec()
    }

    fn explain_itself(&self, board: &str) {
        let url = board.trim_end_matches('/');
        let url = if self.args.port == DEFAULT_PORT {
            String::new()
        } else {
            format!("--url {url} ")
        };
        let file = self.dir.join("friday.yml");
        eprintln!("releases:   {}", scenario::images().join(", "));
        eprintln!(
            "try:        cargo friday {url}deploy -f {} --image worker:errors --environment {ENVIRONMENT}",
            file.display()
        );
        eprintln!("            cargo friday {url}get {SERVICE} -w");
        eprintln!("            cargo friday {url}explain {SERVICE}");
        eprintln!("end:        Ctrl-C");
    }

    async fn wait_until_told(&mut self) -> anyhow::Result<()> {
        tokio::select! {
            () = self.stop.cancelled() => Ok(()),
            died = self.children.any_ends() => Err(died),
        }
    }

    /// Starts every part, in the order in which they need each other, and waits until each answers.
    async fn start(&mut self) -> anyhow::Result<Addresses> {
        let dir = self.dir.clone();
        let file = |name: &str| dir.join(name).display().to_string();
        let controller_port = SocketAddr::from((Ipv4Addr::LOCALHOST, self.args.port)).to_string();
        let serve = [
            "serve",
            "--listen",
            &controller_port,
            "--state-dir",
            &file("controller"),
            "--service",
            &file("friday.yml"),
            "--processes",
            &file("processes.yml"),
            "--stop-tasks",
        ];
        let controller = self.child("controller", &serve).await?.address("listen")?;
        self.ready("controller", &controller).await?;
        let proxy = [
            "proxy",
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
            "--controller",
            &format!("http://{controller}"),
            "--state-dir",
            &file("proxy"),
            "--name",
            "demo",
            "--drain-seconds",
            "5",
        ];
        let traces = self.traces();
        let traces: Vec<&str> = traces.iter().map(String::as_str).collect();
        let proxy = [&proxy[..], &traces].concat();
        let proxy = self.child("proxy", &proxy).await?;
        let (listen, proxy_admin) = (proxy.address("listen")?, proxy.address("admin")?);
        self.ready("proxy", &proxy_admin).await?;
        let bus = match &self.args.kafka {
            Some(brokers) => ["--kafka".to_owned(), brokers.clone()],
            None => ["--bus".to_owned(), file("bus")],
        };
        let bus: Vec<&str> = bus.iter().map(String::as_str).collect();
        let sink = self
            .child(
                "sink",
                &[&["sink", "--db", &file("results.db")], &bus[..]].concat(),
            )
            .await?
            .address("listen")?;
        let url = format!("http://{listen}");
        let pin: &[&str] = if self.args.scenario == Some(Fault::Silent) {
            &["--pin", "stable"]
        } else {
            &[]
        };
        let feeder = self
            .child(
                "feeder",
                &[&["feed", "--proxy", &url], &bus[..], pin, &traces].concat(),
            )
            .await?
            .address("listen")?;
        let (rate, seed) = (self.args.rate.to_string(), self.args.seed.to_string());
        let mut produce = vec!["produce", "--rate", &rate, "--seed", &seed];
        let input = self
            .args
            .input
            .as_ref()
            .map(|input| input.display().to_string());
        if let Some(input) = &input {
            produce.extend(["--input", input]);
        }
        if self.args.scenario == Some(Fault::Malformed) {
            produce.extend(["--malformed-share", "0.05"]);
        }
        let producer = self
            .child("producer", &[&produce[..], &bus[..]].concat())
            .await?
            .address("listen")?;
        eprintln!("proxy:      {url}");
        Ok(Addresses {
            controller,
            proxy_admin,
            producer,
            feeder,
            sink,
        })
    }

    async fn child(&mut self, name: &'static str, args: &[&str]) -> anyhow::Result<Child> {
        self.children.start(name, args, &self.dir, START_MAX).await
    }

    async fn ready(&mut self, name: &str, address: &str) -> anyhow::Result<()> {
        let url = format!("http://{address}/ready");
        let mut last = String::new();
        let waiting = async {
            loop {
                match self.scrape.get(&url).await {
                    Ok(_) => return,
                    Err(error) => last = format!("{error:#}"),
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => bail!("told to stop"),
            died = self.children.any_ends() => return Err(died),
            outcome = timeout(START_MAX, waiting) => if outcome.is_ok() { return Ok(()) },
        }
        bail!("the {name} was not ready within {START_MAX:?}: {last}")
    }

    /// Starts a release and follows it to its end.
    async fn release(&mut self, scenario: Fault, at: &Addresses) -> anyhow::Result<Outcome> {
        let limit = (self.args.seconds > 0).then(|| Duration::from_secs(self.args.seconds));
        let began = Instant::now();
        #[expect(
            clippy::cast_sign_loss,
            clippy::cast_possible_truncation,
            reason = "a rate is positive and at most 1e6"
        )]
        let enough = (self.args.rate * TRAFFIC_BEFORE).ceil() as u64;
        let url = format!("http://{}/counts", at.feeder);
        loop {
            let counts = self.scrape.json(&url).await?;
            if counts["tasks_completed"].as_u64().unwrap_or(0) >= enough {
                break;
            }
            self.pause(began, limit).await?;
        }
        let client = Client::new(&format!("http://{}", at.controller), None)?;
        let file = self.dir.join("friday.yml");
        let request = DeployRequest {
            spec: std::fs::read_to_string(&file).context("friday.yml cannot be read")?,
            spec_name: "friday.yml".to_owned(),
            image: scenario::image(scenario),
            commit: None,
            environment: Some(ENVIRONMENT.to_owned()),
            plan: None,
            author: "demo".to_owned(),
            retry: false,
            emergency: None,
            fence: None,
            change_rules: false,
            origin: None,
            lease: None,
        };
        let mut view = match client.deploy(&request).await {
            Ok(view) => view,
            Err(error) => return Ok(Outcome::refused(format!("{:#}", anyhow::Error::new(error)))),
        };
        let id = view.id.clone();
        let mut outcome = Outcome::default();
        let mut line = ProgressLine::new();
        loop {
            outcome.see(&view, began.elapsed());
            line.show(&view, &outcome);
            if let Some(ending) = view.ending {
                line.end();
                outcome.end(ending, view.message.clone());
                return Ok(outcome);
            }
            if limit.is_some_and(|limit| began.elapsed() >= limit) {
                line.end();
                let seconds = self.args.seconds;
                return Ok(Outcome::unfinished(
                    outcome,
                    format!("not ended after {seconds} s: {}", view.message),
                ));
            }
            self.pause(began, None).await?;
            view = match client.rollout(&id).await {
                Ok(view) => view,
                // One answer may be lost; a dead controller shows as a dead child.
                Err(error) if error.is_transient() => view,
                Err(error) => return Err(error.into()),
            };
        }
    }

    /// Waits a moment, unless told to stop, out of time, or a part has died.
    async fn pause(&mut self, began: Instant, limit: Option<Duration>) -> anyhow::Result<()> {
        if limit.is_some_and(|limit| began.elapsed() >= limit) {
            bail!("no traffic within {} s", self.args.seconds);
        }
        tokio::select! {
            () = self.stop.cancelled() => bail!("told to stop"),
            died = self.children.any_ends() => Err(died),
            () = sleep(LOOK) => Ok(()),
        }
    }

    /// Stops producing and waits until all that was produced is done and stored. The producer's record.
    async fn drain(&mut self, at: &Addresses) -> anyhow::Result<Value> {
        let produced = self.children.finish("producer").await?;
        let began = Instant::now();
        loop {
            let feeder = self
                .scrape
                .json(&format!("http://{}/counts", at.feeder))
                .await?;
            let sink = self
                .scrape
                .json(&format!("http://{}/counts", at.sink))
                .await?;
            let lag = |counts: &Value| counts["lag"].as_u64();
            if lag(&feeder) == Some(0)
                && lag(&sink) == Some(0)
                && feeder["in_flight"].as_u64() == Some(0)
            {
                return Ok(produced);
            }
            if began.elapsed() >= DRAIN_MAX {
                bail!(
                    "not everything was done within {DRAIN_MAX:?}: produced {produced}, feeder {feeder}, sink {sink}"
                );
            }
            self.pause(began, None).await?;
        }
    }

    /// Ends every part, gently first, and whatever a killed controller may have left.
    async fn end(&mut self) -> anyhow::Result<()> {
        self.children.end().await;
        let left = end_leftovers(&self.dir.join("controller").join("processes")).await?;
        if !left.is_empty() {
            eprintln!(
                "demo: {} tasks were left over and have been ended",
                left.len()
            );
        }
        Ok(())
    }
}

/// The line that shows where the release is: redrawn on a terminal, else written when something moved.
struct ProgressLine {
    terminal: bool,
    shown: String,
}

impl ProgressLine {
    fn new() -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
            shown: String::new(),
        }
    }

    fn show(&mut self, view: &RolloutView, outcome: &Outcome) {
        let key = format!(
            "{} {} {}",
            view.phase.name(),
            view.weight.set_percent,
            view.message
        );
        if self.terminal {
            let text = format!(
                "{:>6.1} s  canary {:>5} %  {}",
                outcome.seconds, view.weight.set_percent, view.message
            );
            let cut: String = text.chars().take(110).collect();
            eprint!("\r\x1b[2K{cut}");
            // A terminal that cannot be written to is no reason to end.
            drop(std::io::stderr().flush());
        } else if key != self.shown && moved(&self.shown, view) {
            eprintln!(
                "{:>6.1} s  canary {:>5} %  {}",
                outcome.seconds, view.weight.set_percent, view.message
            );
        }
        self.shown = key;
    }

    fn end(&self) {
        if self.terminal {
            eprintln!();
        }
    }
}

/// Whether phase or weight differ from what was shown; messages alone change too often for a log.
fn moved(shown: &str, view: &RolloutView) -> bool {
    !shown.starts_with(&format!(
        "{} {} ",
        view.phase.name(),
        view.weight.set_percent
    ))
}

/// The exit code of `friday deploy --wait` for an ending.
fn exit_code(ending: Ending) -> u8 {
    words::exit_code(ending)
}

/// Whether the judge, or a deadline, has decided.
fn is_decided(phase: &Phase) -> bool {
    matches!(
        phase,
        Phase::RollingBack { .. } | Phase::RolledBack { .. } | Phase::Promoted
    )
}

/// The folder of the logs.
fn log_file(dir: &Path, name: &str) -> PathBuf {
    dir.join("logs").join(format!("{name}.log"))
}
