//! What is looked at from outside: the swarm and its nodes, the services on it, and what is left.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use system_tests::{PATIENCE, pause, stack};

use super::{Bench, ENGINES, address};

/// How often it is looked, after a pause of 50 ms and what the look takes, for what comes about by itself: for a minute at least.
const LOOKS_MAX: u32 = 1200;

/// A tweet as the worker takes it.
const TWEET: &str = r#"{"data":{"id":"1","author_id":"7","text":"I love this #friday"}}"#;

impl Bench<'_> {
    /// Waits until a look at the world shows what is expected.
    fn until(&self, what: &str, mut look: impl FnMut() -> Result<(), String>) {
        let mut last = String::new();
        for _ in 0..LOOKS_MAX {
            match look() {
                Ok(()) => return,
                Err(seen) => last = seen,
            }
            pause();
        }
        panic!("{what}: last seen {last}\n{}", self.words());
    }

    /// A request through a node's proxy reaches a worker.
    pub(crate) fn answers(&self, node: u32) {
        let url = format!("http://{}:8080/tasks", address(node));
        self.lab.within_node(1, move || async move {
            let client = reqwest::Client::builder()
                .no_proxy()
                .timeout(Duration::from_secs(5))
                .build()
                .unwrap();
            let ask = async || match client.post(&url).body(TWEET).send().await {
                Ok(answer) => answer.status().to_string(),
                Err(error) => error.to_string(),
            };
            let what = format!("a worker answers through {url}");
            controller_testing::eventually(&what, PATIENCE, ask, |seen| seen == "200 OK").await;
        });
    }

    /// Waits until tweets that the producer makes have come through broker, proxy and worker to the database.
    pub(crate) fn stores_tweets(&self, nodes: &[u32]) {
        self.until("tweets are stored", || {
            let sinks = nodes.iter().map(|node| {
                let sink = stack::container(self.lab, *node, "friday_sink");
                (*node, sink)
            });
            let mut sinks = sinks.filter(|(_, sink)| !sink.is_empty());
            let (node, sink) = sinks.next().ok_or("no sink runs")?;
            let stored = stack::stored(self.lab, node, &sink)?;
            if stored["results"].as_u64() > Some(0) {
                Ok(())
            } else {
                Err(stored.to_string())
            }
        });
    }

    /// Waits until the swarm has exactly these nodes, and they are managers that can be reached.
    pub(crate) fn are_managers(&self, nodes: &[u32]) {
        let manager = |node| format!("n{node} Ready Active Reachable");
        let expected: Vec<String> = nodes.iter().map(manager).collect();
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        self.until_members(1, &expected);
    }

    /// Waits until this node lists exactly these: name, state, availability and, of managers, whether they can be reached.
    pub(crate) fn until_members(&self, asked: u32, expected: &[&str]) {
        self.until(&format!("the swarm is {expected:?}"), || {
            let format = "{{.Hostname}} {{.Status}} {{.Availability}} {{.ManagerStatus}}";
            let list = ["node", "ls", "--format", format];
            // Who leads may have changed, and nobody may lead for a moment.
            let members = self.lab.try_docker(asked, &list, Stdio::null())?;
            let members = members.replace("Leader", "Reachable");
            let mut seen: Vec<&str> = members.lines().map(str::trim_end).collect();
            seen.sort_unstable();
            if seen == expected {
                Ok(())
            } else {
                Err(members)
            }
        });
    }

    /// A node has exactly these labels; of a host, besides the module's own, which say the names of those it `gave`.
    pub(crate) fn has_labels(&self, node: u32, mut expected: Value, gave: Option<&str>) {
        if let Some(names) = gave {
            expected["friday.host"] = json!(format!("friday/n{node}"));
            expected["friday.docker-host"] = json!(self.docker_host(node));
            expected["friday.labels"] = json!(names);
        }
        let format = "{{json .Spec.Labels}}";
        let name = format!("n{node}");
        let labels = self.docker(&["node", "inspect", "--format", format, &name]);
        let labels: Value = serde_json::from_str(&labels).unwrap();
        assert_eq!(labels, expected, "{name}");
    }

    /// Which swarm a manager is in.
    pub(crate) fn swarm_id(&self, node: u32) -> String {
        let format = "{{.Swarm.Cluster.ID}}";
        self.lab.docker(node, &["info", "--format", format])
    }

    /// Waits until of the managers exactly these can be reached.
    pub(crate) fn until_reachable(&self, nodes: &[u32]) {
        let expected: Vec<String> = nodes.iter().map(|node| format!("n{node}")).collect();
        self.until("the managers that can be reached", || {
            let format = "{{.Hostname}} {{.ManagerStatus}}";
            let list = ["node", "ls", "--format", format];
            // Nobody may lead for a moment.
            let members = self.lab.try_docker(1, &list, Stdio::null())?;
            let reachable = |line: &&str| line.ends_with("Reachable") || line.ends_with("Leader");
            let mut seen: Vec<&str> = members
                .lines()
                .filter(reachable)
                .filter_map(|line| line.split(' ').next())
                .collect();
            seen.sort_unstable();
            if seen == expected {
                Ok(())
            } else {
                Err(members)
            }
        });
    }

    /// What a node's engine says of its place in a swarm.
    pub(crate) fn membership(&self, node: u32) -> String {
        let format = "{{.Swarm.LocalNodeState}}";
        self.lab.docker(node, &["info", "--format", format])
    }

    /// The tasks of a service that run.
    pub(crate) fn tasks(&self, service: &str) -> Vec<String> {
        let filter = "desired-state=running";
        let format = "{{.ID}} {{.CurrentState}}";
        let list = [
            "service", "ps", "--filter", filter, "--format", format, service,
        ];
        let tasks = self.lab.try_docker(1, &list, Stdio::null());
        let running = |line: &&str| line.contains(" Running ");
        let id = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
        tasks
            .unwrap_or_default()
            .lines()
            .filter(running)
            .map(id)
            .collect()
    }

    pub(crate) fn until_running(&self, service: &str) {
        self.until(&format!("{service} runs"), || {
            if self.tasks(service).is_empty() {
                Err("no task of it".to_owned())
            } else {
                Ok(())
            }
        });
    }

    pub(crate) fn image_of(&self, service: &str) -> String {
        let format = "{{.Spec.TaskTemplate.ContainerSpec.Image}}";
        self.docker(&["service", "inspect", "--format", format, service])
    }

    /// Neither what opens the swarm, nor what opens the controller.
    pub(crate) fn no_secret_is_in_the_state(&self) {
        let state = fs::read_to_string(self.path("state")).unwrap();
        let secrets = self.folder.path().join("secrets");
        let mut kept = vec!["SWMTKN".to_owned()];
        for name in ["operator_token", "postgres_password", "tokens"] {
            let text = fs::read_to_string(secrets.join(name)).unwrap();
            kept.extend(text.lines().map(str::trim).map(str::to_owned));
        }
        kept.retain(|secret| !secret.is_empty());
        for secret in kept {
            assert!(!state.contains(&secret), "the state has a secret");
        }
    }

    /// The names of a node's volumes.
    pub(crate) fn volumes(&self, node: u32) -> String {
        let list = ["volume", "ls", "--format", "{{.Name}}"];
        self.lab.docker(node, &list)
    }

    /// Nothing on any engine, no secret here, nothing in the state.
    pub(crate) fn nothing_is_left(&self) {
        for node in 1..=ENGINES {
            // An engine takes a moment to clean up after a swarm.
            self.until(&format!("nothing is left on node {node}"), || {
                let left = self.left_on(node);
                if left.is_empty() {
                    Ok(())
                } else {
                    Err(left.join(", "))
                }
            });
        }
        assert!(
            !self.folder.path().join("secrets").exists(),
            "the folder of secrets is left"
        );
        let state = self.path("state");
        let (code, said) = self.terraform(&["state", "list", &format!("-state={state}")]);
        assert_eq!((code, said.trim()), (Some(0), ""), "the state is not empty");
    }

    fn left_on(&self, node: u32) -> Vec<String> {
        let mut left = Vec::new();
        let membership = self.membership(node);
        if membership != "inactive" {
            left.push(format!("it is {membership} in a swarm"));
        }
        // Every engine makes the last when it is first in a swarm, and keeps it.
        let own = ["bridge", "host", "none", "docker_gwbridge"];
        for (what, list) in [
            ("container", ["ps", "--all", "--format", "{{.Names}}"]),
            ("volume", ["volume", "ls", "--format", "{{.Name}}"]),
            ("network", ["network", "ls", "--format", "{{.Name}}"]),
        ] {
            let names = self.lab.docker(node, &list);
            let names = names.lines().filter(|name| !own.contains(name));
            left.extend(names.map(|name| format!("{what} {name}")));
        }
        left
    }
}
