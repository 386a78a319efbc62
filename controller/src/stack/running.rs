//! The same rules on a service that runs, as its engine has it: keys as `docker service inspect` shows them, and mends as
//! orders to the engine.

use rollout::Duration;
use serde::Serialize;
use serde_json::Value;

use super::{INTERVAL, MONITOR, RETRIES, Rule, Tag, tag, why};
use crate::yaml::{Finding, show_duration};

/// A service that runs.
#[derive(Debug, Clone, Copy)]
pub struct Running<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its spec, the engine's own JSON.
    pub spec: &'a Value,
    /// What its image brings along (`Config` of the image); `None` where the engine does not have the image.
    pub image: Option<&'a Value>,
}

/// A setting that a service should not have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The rule, as `--allow` names it.
    pub rule: String,
    /// The key in the service's spec.
    pub key: String,
    /// What stands there; `null` where nothing does.
    pub value: Option<String>,
    /// Why that hurts.
    pub why: String,
    /// What helps: an order, where one is enough.
    pub mend: String,
    /// Whether it has to wait until users come by the proxy: before, it would cut them off.
    pub waits_for_proxy: bool,
}

impl Fault {
    /// The same among the findings of files: it has no line.
    #[must_use]
    pub fn finding(self, service: &str, engine: &str) -> Finding {
        let Self {
            rule,
            key,
            value,
            why,
            mend,
            waits_for_proxy,
        } = self;
        let mend = if waits_for_proxy {
            format!("{mend}; once users come by the proxy")
        } else {
            mend
        };
        Finding {
            file: format!("service {service} at {engine}"),
            line: 0,
            column: 0,
            key,
            value,
            expected: why,
            mend: Some(format!("{mend}; or accept it: --allow {rule}")),
        }
    }
}

/// What helps, and when.
enum Mend {
    Now(String),
    /// Once users come by the proxy.
    BehindProxy(String),
}

/// How tasks are asked whether they can work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// They are not.
    None,
    /// The service does not say, and its image, which may, is not on this engine.
    Unknown,
    /// By this command.
    Check(HealthCheck),
}

/// A health check as it is in force: the service's own over the image's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// `CMD` or `CMD-SHELL`, and the command.
    pub test: Vec<String>,
    /// Whether the command is the image's.
    pub is_of_image: bool,
    /// How long it may take to say that a new task is ill: its start period and all its tries.
    pub patience: Duration,
}

/// The health check in force.
#[must_use]
pub fn health(running: &Running<'_>) -> Health {
    let own = &running.spec["TaskTemplate"]["ContainerSpec"]["Healthcheck"];
    let of_image = running.image.map(|image| &image["Healthcheck"]);
    let test = |check: &Value| -> Vec<String> {
        let words = check["Test"].as_array().into_iter().flatten();
        words
            .filter_map(|word| word.as_str().map(str::to_owned))
            .collect()
    };
    let (own_test, image_test) = (test(own), of_image.map(test));
    let (test, is_of_image) = match (own_test, image_test) {
        (own, _) if !own.is_empty() => (own, false),
        (_, Some(image)) => (image, true),
        (_, None) => return Health::Unknown,
    };
    if test.first().is_none_or(|first| first == "NONE") {
        return Health::None;
    }
    // What the service does not say, or says as 0, is the image's.
    let number = |key: &str| {
        let own = own[key].as_u64().filter(|number| *number > 0);
        own.or_else(|| of_image?[key].as_u64().filter(|number| *number > 0))
    };
    let time = |key: &str| number(key).map(Duration::from_nanos);
    let retries = number("Retries").and_then(|retries| u32::try_from(retries).ok());
    let tries = time("Interval")
        .unwrap_or(INTERVAL)
        .saturating_mul(retries.unwrap_or(RETRIES));
    Health::Check(HealthCheck {
        test,
        is_of_image,
        patience: time("StartPeriod").unwrap_or_default() + tries,
    })
}

/// A port of its nodes that a service publishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Published {
    /// The port that tasks listen on.
    pub target: u16,
    /// The node's; `None` where the engine chooses one.
    pub published: Option<u16>,
    /// Whether each task takes a port of its own node (`host`), or all nodes lead to all tasks (`ingress`).
    pub is_host: bool,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
}

impl Published {
    /// The port as `docker service update --publish-rm` wants it: in short it means one of mode ingress, whatever there is.
    #[must_use]
    pub fn removal(&self) -> String {
        let Self {
            target, protocol, ..
        } = self;
        match (self.is_host, protocol.as_str()) {
            (true, "tcp") => format!("mode=host,target={target}"),
            (true, other) => format!("mode=host,target={target},protocol={other}"),
            (false, "tcp") => target.to_string(),
            (false, other) => format!("{target}/{other}"),
        }
    }
}

/// The ports that a service publishes.
#[must_use]
pub fn published(spec: &Value) -> Vec<Published> {
    let port = |value: &Value| u16::try_from(value.as_u64()?).ok().filter(|port| *port > 0);
    let ports = spec["EndpointSpec"]["Ports"].as_array();
    let read = |value: &Value| {
        Some(Published {
            target: port(&value["TargetPort"])?,
            published: port(&value["PublishedPort"]),
            is_host: value["PublishMode"].as_str() == Some("host"),
            protocol: value["Protocol"].as_str().unwrap_or("tcp").to_owned(),
        })
    };
    ports.into_iter().flatten().filter_map(read).collect()
}

/// What is wrong with a service that runs, in the order in which one would mend it. Rules that are allowed are silent.
#[must_use]
pub fn check(running: &Running<'_>, allowed: &[Rule]) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut broken = |rule: Rule, key: &str, value: Option<String>, why: &str, mend: Mend| {
        if !allowed.contains(&rule) {
            let (mend, waits_for_proxy) = match mend {
                Mend::Now(mend) => (mend, false),
                Mend::BehindProxy(mend) => (mend, true),
            };
            faults.push(Fault {
                rule: rule.word(),
                key: key.to_owned(),
                value,
                why: why.to_owned(),
                mend,
                waits_for_proxy,
            });
        }
    };
    let Running { name, spec, .. } = *running;
    let update = |options: &str| format!("docker service update {options} {name}");

    let image = spec["TaskTemplate"]["ContainerSpec"]["Image"]
        .as_str()
        .unwrap_or_default();
    let floating = match tag(image) {
        Tag::Fixed => None,
        Tag::None => Some(why::NO_TAG),
        Tag::Moved => Some(why::MOVED_TAG),
    };
    if let Some(words) = floating {
        let key = "TaskTemplate.ContainerSpec.Image";
        let shown = Some(format!("{image:?}"));
        broken(
            Rule::FloatingTag,
            key,
            shown,
            words,
            Mend::Now(why::NAME_A_VERSION.to_owned()),
        );
    }

    let health = health(running);
    let health_key = "TaskTemplate.ContainerSpec.Healthcheck";
    match &health {
        Health::Check(_) => {}
        Health::None => {
            let mend = update("--health-cmd 'COMMAND' --health-interval 5s --health-retries 3");
            let why = why::NO_HEALTH_CHECK;
            broken(Rule::NoHealthCheck, health_key, None, why, Mend::Now(mend));
        }
        Health::Unknown => {
            let why = "the service has none, and its image, which may bring one, is not on this engine: nothing is known of it";
            let mend = format!("docker pull {image}, and look again");
            broken(Rule::NoHealthCheck, health_key, None, why, Mend::Now(mend));
        }
    }

    let order = spec["UpdateConfig"]["Order"].as_str();
    let ports = published(spec);
    let fixed = ports
        .iter()
        .find(|port| port.is_host && port.published.is_some());
    match (order == Some("start-first"), fixed) {
        (true, Some(port)) => {
            let shown = port
                .published
                .map(|number| format!("published {number} in mode host"));
            let mend = Mend::BehindProxy(update(&format!("--publish-rm {}", port.removal())));
            let (key, why) = ("EndpointSpec.Ports", why::FIXED_PORT);
            broken(Rule::FixedPort, key, shown, why, mend);
        }
        (true, None) => {}
        (false, fixed) => {
            let shown = order.map(|order| format!("{order:?}"));
            let mend = match fixed {
                // With it start-first never ends.
                Some(port) => Mend::BehindProxy(update(&format!(
                    "--publish-rm {} --update-order start-first",
                    port.removal()
                ))),
                None => Mend::Now(update("--update-order start-first")),
            };
            let (key, why) = ("UpdateConfig.Order", why::STOP_FIRST);
            broken(Rule::StopFirst, key, shown, why, mend);
        }
    }

    let mode = spec["EndpointSpec"]["Mode"].as_str();
    if mode != Some("dnsrr") {
        let shown = mode.map(|mode| format!("{mode:?}"));
        // The engine refuses dnsrr with a port of all nodes.
        let ingress: String = ports
            .iter()
            .filter(|port| !port.is_host)
            .map(|port| format!("--publish-rm {} ", port.removal()))
            .collect();
        let mend = update(&format!("{ingress}--endpoint-mode dnsrr"));
        let mend = if ingress.is_empty() {
            Mend::Now(mend)
        } else {
            Mend::BehindProxy(mend)
        };
        broken(Rule::Vip, "EndpointSpec.Mode", shown, why::VIP, mend);
    }

    if let Some(replicated) = spec["Mode"].get("Replicated") {
        let replicas = replicated["Replicas"].as_u64().unwrap_or(0);
        if replicas < 2 {
            let shown = Some(replicas.to_string());
            let mend = format!("docker service scale {name}=2, or more");
            broken(
                Rule::OneReplica,
                "Mode.Replicated.Replicas",
                shown,
                why::ONE_REPLICA,
                Mend::Now(mend),
            );
        }
    }

    let limits = &spec["TaskTemplate"]["Resources"]["Limits"];
    let is_missing = |key: &str| limits[key].as_u64().is_none_or(|limit| limit == 0);
    let kinds = [("cpus", "NanoCPUs"), ("memory", "MemoryBytes")];
    let missing: Vec<&str> = kinds
        .into_iter()
        .filter(|(_, key)| is_missing(key))
        .map(|(kind, _)| kind)
        .collect();
    if !missing.is_empty() {
        let options: Vec<&str> = missing
            .iter()
            .map(|kind| match *kind {
                "cpus" => "--limit-cpu 0.50",
                _ => "--limit-memory 256M",
            })
            .collect();
        let mend = format!("{}, as much as it needs", update(&options.join(" ")));
        let why = why::no_limits(&missing);
        broken(
            Rule::NoLimits,
            "TaskTemplate.Resources.Limits",
            None,
            &why,
            Mend::Now(mend),
        );
    }

    let monitor = spec["UpdateConfig"]["Monitor"].as_u64();
    let in_force = monitor
        .filter(|nanos| *nanos > 0)
        .map_or(MONITOR, Duration::from_nanos);
    if let Health::Check(HealthCheck { patience, .. }) = health
        && in_force < patience
    {
        let shown = monitor.map(|nanos| show_duration(Duration::from_nanos(nanos)));
        let mend = update(&format!("--update-monitor {}", for_docker(patience)));
        let why = why::short_monitor(in_force, patience);
        broken(
            Rule::ShortMonitor,
            "UpdateConfig.Monitor",
            shown,
            &why,
            Mend::Now(mend),
        );
    }
    faults
}

/// That nobody has the image of a service.
#[must_use]
pub fn missing_image(image: &str, why: String, mend: String) -> Fault {
    Fault {
        rule: Rule::MissingImage.word(),
        key: "TaskTemplate.ContainerSpec.Image".to_owned(),
        value: Some(format!("{image:?}")),
        why,
        mend,
        waits_for_proxy: false,
    }
}

/// A time as Docker's command line reads it: it knows no days.
fn for_docker(duration: Duration) -> String {
    if duration < Duration::from_secs(24 * 60 * 60) {
        show_duration(duration)
    } else {
        format!("{}s", duration.as_secs())
    }
}

#[cfg(test)]
mod tests;
