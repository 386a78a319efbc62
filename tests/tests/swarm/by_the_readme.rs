//! README's section "On your Swarm", word for word, on an engine that is no swarm yet: the whole system from `swarm/up` on,
//! a release of the worker under tweets, in which the controller dies, a second one from a GitLab, tweets that a client hands in,
//! statistics, a service that is adopted, an alert, and `swarm/down`.

mod alerts;
mod gitlab;
mod outage;
mod uploads;
mod yours;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use system_tests::{Lab, friday, images, pause, stack};

use self::gitlab::GitLab;
use crate::seats::Seats;

/// Longest time of a step, in seconds; a release takes about 70.
const STEP_SECONDS_MAX: &str = "300";

/// Tweets a second.
const RATE: u32 = 150;

/// Tweets of the file, each with an id of its own: enough for the longest time that the test may take.
const TWEETS: u64 = 90_000;

/// Every so many lines one is no tweet.
const MALFORMED_EVERY: u64 = 200;

/// Longest wait for what was produced to be stored, in looks of a second or less.
const STORED_LOOKS_MAX: u32 = 120;

#[test]
fn readmes_steps_release_a_worker_on_a_swarm_and_lose_no_tweet() {
    let blocks = blocks_of_readme();
    let [steps, of_yours] = &blocks[..] else {
        panic!("two blocks of commands in the section, not {blocks:?}")
    };
    let (last, before) = steps.split_last().unwrap();
    assert!(
        last.starts_with("swarm/down"),
        "the section ends by removing everything: {last}"
    );
    // It takes longer than any other, so it is among the first: tests start in the order of their names.
    let _seats = Seats::take(2);
    let swarm = OwnSwarm::new();
    for step in before {
        if step.starts_with("swarm/friday deploy ") {
            outage::while_it_runs(&swarm, step);
        } else {
            swarm.run(step);
        }
    }
    assert_eq!(
        swarm.image_of("friday_tweets-worker"),
        swarm.id_of("tweets-worker:v2"),
        "the service runs the new image"
    );
    assert_eq!(
        swarm
            .services()
            .lines()
            .filter(|name| name.ends_with("-canary"))
            .count(),
        0
    );
    let scraped = [&stack::SCRAPED[..], &["friday_alertmanager"]].concat();
    stack::until_scraped(&swarm.lab, &scraped);
    swarm.run("! swarm/friday list --url http://controller:7070");
    let gitlab = GitLab::start(&swarm);
    swarm.run(&gitlab.up(""));
    swarm.run("swarm/build worker tweets-worker:v3");
    gitlab.push(&swarm, "tweets-worker:v3");
    let worker = swarm.image_of("friday_tweets-worker");
    assert_eq!(worker, swarm.id_of("tweets-worker:v3"), "its first canary");
    let produced = swarm.end_of_input();
    swarm.until_stored(produced, 0);
    uploads::are_taken(&swarm);
    let (results, malformed) = swarm.until_stored(produced, uploads::HANDED_IN);
    uploads::are_told_of(&swarm, results, malformed);
    swarm.nothing_runs_as_root_but_who_needs_the_engine();
    // Again: nothing is replaced, and what was released stays.
    let before = swarm.tasks();
    swarm.run(&gitlab.up("PRODUCERS=0"));
    assert_eq!(swarm.image_of("friday_tweets-worker"), worker);
    let after = swarm.tasks();
    let others = |tasks: &str| -> Vec<String> {
        let of_worker = |line: &&str| !line.contains("tweets-worker") && !line.contains("producer");
        tasks.lines().filter(of_worker).map(str::to_owned).collect()
    };
    assert_eq!(others(&before), others(&after));
    yours::is_adopted(&swarm, of_yours);
    alerts::reach_the_controller(&swarm);
    swarm.run(last);
    swarm.nothing_is_left();
}

/// The commands of the section, block by block.
fn blocks_of_readme() -> Vec<Vec<String>> {
    let text = fs::read_to_string(repository().join("README.md")).unwrap();
    let (_, section) = text.split_once("\n## On your Swarm\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let lines = |block: &str| {
        let (block, _) = block.split_once("\n```").unwrap();
        block.lines().map(str::to_owned).collect()
    };
    section.split("\n```sh\n").skip(1).map(lines).collect()
}

fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap().to_owned()
}

/// An engine that is no swarm, and the variables with which the steps run on it.
struct OwnSwarm {
    lab: Lab,
    variables: Vec<(&'static str, String)>,
}

impl OwnSwarm {
    fn new() -> Self {
        let lab = Lab::start(1);
        // The lab's own swarm, and who stands in its network, are for other tests.
        for container in lab.docker(1, &["ps", "--quiet"]).lines() {
            lab.docker(1, &["rm", "--force", container]);
        }
        lab.docker(1, &["swarm", "leave", "--force"]);
        images::make(&lab);
        let path = |name: &str| lab.dir().join(name).display().to_string();
        fs::write(path("tweets.jsonl"), tweets()).unwrap();
        let programs = friday().parent().unwrap().display().to_string();
        let variables = vec![
            ("DOCKER_HOST", format!("unix://{}", lab.socket(1).display())),
            ("DOCKER_CONFIG", lab.docker_config().display().to_string()),
            ("DOCKER_BUILDKIT", "0".to_owned()),
            ("CARGO_TARGET_DIR", path("built")),
            ("FRIDAY_BINARIES", programs),
            ("FRIDAY_SECRETS", path("secrets")),
            ("FRIDAY_AUTHOR", "tests".to_owned()),
            ("KAFKA_IMAGE", images::KAFKA.to_owned()),
            ("POSTGRES_IMAGE", images::POSTGRES.to_owned()),
            ("PROMETHEUS_IMAGE", images::PROMETHEUS.to_owned()),
            ("ALERTMANAGER_IMAGE", images::ALERTMANAGER.to_owned()),
            // No registry is in reach, and nobody packages Grafana here.
            ("GRAFANAS", "0".to_owned()),
            ("TWEETS_FILE", path("tweets.jsonl")),
            ("TWEETS_RATE", RATE.to_string()),
        ];
        Self { lab, variables }
    }

    /// What a variable of the steps is.
    fn variable(&self, name: &str) -> &str {
        let found = self.variables.iter().find(|(known, _)| *known == name);
        &found.unwrap().1
    }

    /// Runs a step in the repository, as if typed on the node; what it printed.
    fn run(&self, step: &str) -> String {
        let output = self.output(step);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        println!("$ {step}\n{out}{err}");
        assert!(
            output.status.success(),
            "{step}: {}\n{out}{err}{}",
            output.status,
            self.words()
        );
        out
    }

    /// The same of a step that may fail.
    fn output(&self, step: &str) -> Output {
        let mut command = Command::new("timeout");
        command
            .args(["--kill-after=10", STEP_SECONDS_MAX, "bash", "-c", step])
            .current_dir(repository())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for name in [
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "http_proxy",
            "https_proxy",
            "FRIDAY_URL",
        ] {
            command.env_remove(name);
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        let child = self.lab.spawn_in_node(1, command);
        child.wait_with_output().unwrap()
    }

    /// The last words of every service, for whoever looks for what went wrong.
    fn words(&self) -> String {
        let mut words = String::new();
        for service in self.services().lines() {
            let arguments = ["service", "logs", "--raw", "--tail", "8", service];
            let log = Command::new("docker")
                .envs(self.variables.iter().map(|(name, value)| (name, value)))
                .args(arguments)
                .output()
                .unwrap();
            let tail = String::from_utf8_lossy(&log.stdout).into_owned()
                + &String::from_utf8_lossy(&log.stderr);
            writeln!(words, "--- {service}\n{tail}").unwrap();
        }
        words
    }

    fn docker(&self, arguments: &[&str]) -> String {
        self.lab.docker(1, arguments)
    }

    fn services(&self) -> String {
        self.docker(&["service", "ls", "--format", "{{.Name}}"])
    }

    /// Every task that is to run, with its service.
    fn tasks(&self) -> String {
        let services = self.services();
        let mut lines = Vec::new();
        for service in services.lines() {
            let filter = "desired-state=running";
            let format = "{{.Name}} {{.ID}}";
            let tasks = [
                "service", "ps", "--filter", filter, "--format", format, service,
            ];
            lines.extend(self.docker(&tasks).lines().map(str::to_owned));
        }
        lines.sort();
        lines.join("\n")
    }

    fn image_of(&self, service: &str) -> String {
        let format = "{{.Spec.TaskTemplate.ContainerSpec.Image}}";
        self.docker(&["service", "inspect", "--format", format, service])
    }

    fn id_of(&self, image: &str) -> String {
        self.docker(&["image", "inspect", "--format", "{{.Id}}", image])
    }

    /// Ends the producer; how many records it made.
    fn end_of_input(&self) -> u64 {
        let producer = stack::container(&self.lab, 1, "friday_producer");
        self.docker(&["kill", "--signal", "TERM", &producer]);
        assert_eq!(self.docker(&["wait", &producer]), "0");
        let log = self.docker(&["logs", &producer]);
        let record: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
        let produced = record["tasks_produced"].as_u64().unwrap();
        assert!(
            (1..TWEETS).contains(&produced),
            "{produced} records of a file of {TWEETS}"
        );
        produced
    }

    /// Waits until as many rows are stored as records went in, and no more: those of the producer, and those handed in, of which
    /// each is a tweet. How many results and malformed ones that are.
    fn until_stored(&self, produced: u64, handed_in: u64) -> (u64, u64) {
        let sink = stack::container(&self.lab, 1, "friday_sink");
        let malformed = produced / MALFORMED_EVERY;
        let results = produced - malformed + handed_in;
        let expected = json!({ "results": results, "malformed": malformed });
        let mut stored = Value::Null;
        for _ in 0..STORED_LOOKS_MAX {
            stored = stack::stored(&self.lab, 1, &sink).unwrap();
            if stored == expected {
                return (results, malformed);
            }
            for _ in 0..10 {
                pause();
            }
        }
        panic!(
            "of {produced} records {stored} are stored, expected {expected}{}",
            self.words()
        );
    }

    /// Users and root file systems are what the stack promises.
    fn nothing_runs_as_root_but_who_needs_the_engine(&self) {
        let mut as_root = Vec::new();
        for container in self.docker(&["ps", "--quiet"]).lines() {
            let format = "{{index .Config.Labels \"com.docker.swarm.service.name\"}}|{{.Config.User}}|{{.HostConfig.ReadonlyRootfs}}";
            let seen = self.docker(&["inspect", "--format", format, container]);
            let parts: Vec<&str> = seen.split('|').collect();
            let [service, user, read_only] = parts[..] else {
                panic!("{seen}")
            };
            assert!(read_only == "true" || service == "friday_kafka", "{seen}");
            if ["", "0", "0:0", "root"].contains(&user) {
                as_root.push(service.to_owned());
            }
        }
        as_root.sort();
        assert_eq!(as_root, WITH_THE_ENGINE);
    }

    fn nothing_is_left(&self) {
        for kind in ["service", "config", "secret", "volume"] {
            assert_eq!(
                self.docker(&[kind, "ls", "--quiet"]),
                "",
                "a {kind} is left"
            );
        }
        let format = "{{.Name}}";
        let networks = self.docker(&["network", "ls", "--format", format]);
        assert!(!networks.contains("friday"), "{networks}");
        assert_eq!(self.docker(&["ps", "--all", "--quiet"]), "");
        assert!(!self.lab.dir().join("secrets").exists());
    }
}

/// Who may be root.
const WITH_THE_ENGINE: [&str; 3] = ["friday_agent", "friday_controller", "friday_prometheus"];

/// The file of tweets: real ones if there are any, again and again under new ids, else made up.
fn tweets() -> String {
    let real = std::env::var_os("FRIDAY_TWEETS").map(|file| fs::read_to_string(file).unwrap());
    let real: Vec<Value> = real
        .iter()
        .flat_map(|text| text.lines())
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let mut lines = String::new();
    for number in 1..=TWEETS {
        if number.is_multiple_of(MALFORMED_EVERY) {
            writeln!(lines, "no tweet but number {number}").unwrap();
            continue;
        }
        let at = usize::try_from(number).unwrap() % real.len().max(1);
        let mut tweet = real.get(at).cloned().unwrap_or_else(|| {
            let text = format!("I love tweet {number} #friday");
            json!({ "data": { "author_id": (number % 97).to_string(), "text": text } })
        });
        tweet["data"]["id"] = json!(number.to_string());
        writeln!(lines, "{tweet}").unwrap();
    }
    lines
}
