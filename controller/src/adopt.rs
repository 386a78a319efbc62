//! A service that runs already: a first `friday.yml` for it, and what stands between it and its first release.
//!
//! Pure: an engine's words in, a file and a list of steps out. What is guessed says what it was guessed of; what helps is an
//! order that can be copied. The order of the steps is one in which no user is cut off: first what mends the service itself,
//! then users come by the proxy, and only then goes what leads past it.

mod guess;
mod steps;

use rollout::{Duration, Weight};
use serde::Serialize;
use serde_json::Value;

pub use guess::{Guess, Route};
pub use steps::{Step, Who};

use crate::orchestrator::swarm::{Found, Holder, Network};
use crate::spec::{Finding, ReadOptions, read};
use crate::stack::running::{Health, HealthCheck, Running, check, health, published};
use crate::yaml::show_duration;
use guess::Clues;

/// From so long on, a health check leaves less than half of `deadlines.ready` (5m) for pulling the image.
const PATIENCE_USUAL: Duration = Duration::from_secs(150);

/// Longest `deadlines.ready` that is written: it must be below `deadlines.rollout`, two hours.
const READY_WITHIN_MAX: Duration = Duration::from_secs(90 * 60);

/// What is known of a service.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Where its engine is.
    pub engine: &'a str,
    /// The service.
    pub service: &'a Found,
    /// What its image brings along; `None` where this engine does not have it.
    pub image: Option<&'a Value>,
    /// Who has the image.
    pub holder: &'a Holder,
    /// The swarm's networks.
    pub networks: &'a [Network],
    /// The swarm's other services.
    pub others: &'a [Found],
    /// The port, where somebody says it.
    pub port: Option<u16>,
}

/// What adopting a service takes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Adoption {
    /// The service.
    pub service: String,
    /// The engine that it was seen on.
    pub engine: String,
    /// Its image.
    pub image: String,
    /// How many tasks it wants.
    pub replicas: u32,
    /// The port of its tasks.
    pub port: Guess<u16>,
    /// The path of the ready check.
    pub ready: Guess<String>,
    /// The route, where other proxies say one.
    pub route: Option<Guess<Route>>,
    /// The text of a `friday.yml` for it.
    pub friday_yml: String,
    /// What is to be done, and what Friday will do, in this order.
    pub steps: Vec<Step>,
}

/// Why there is no file for a service.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// Nothing says its port.
    #[error(
        "nothing says which port the tasks of {0} listen on: it publishes none, and neither its labels, its health check, its environment nor its image name one; say it with --port"
    )]
    NoPort(String),
    /// What was made does not pass our own lint.
    #[error("the friday.yml for {service} would be refused: {}", findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Refused {
        /// The service.
        service: String,
        /// Why.
        findings: Vec<Finding>,
    },
}

/// What it takes to release this service with Friday.
///
/// # Errors
/// Nothing says its port, or its values fit into no `friday.yml`.
pub fn adopt(subject: &Subject<'_>) -> Result<Adoption, AdoptError> {
    let name = subject.service.name();
    let spec = &subject.service.spec;
    let running = Running {
        name,
        spec,
        image: subject.image,
    };
    let (health, ports) = (health(&running), published(spec));
    let clues = Clues {
        spec,
        image: subject.image,
        ports: &ports,
        health: &health,
    };
    let port = clues
        .port(subject.port)
        .ok_or_else(|| AdoptError::NoPort(name.to_owned()))?;
    let (ready, route) = (clues.ready(port.value), clues.route());
    let replicas = subject.service.replicas().unwrap_or(0);
    let friday_yml = file(subject, &port, &ready, route.as_ref(), replicas, &health);
    if let Err(findings) = read(&friday_yml, "friday.yml", &ReadOptions::default()) {
        let service = name.to_owned();
        return Err(AdoptError::Refused { service, findings });
    }
    let faults = check(&running, &[]);
    let steps = steps::steps(
        subject,
        faults,
        &ports,
        &clues.labels_of_proxies(),
        replicas,
    );
    Ok(Adoption {
        service: name.to_owned(),
        engine: subject.engine.to_owned(),
        image: subject.service.image().to_owned(),
        replicas,
        port,
        ready,
        route,
        friday_yml,
        steps,
    })
}

/// The weights of a plan for so many tasks, in percent. Few tasks have little traffic, of which a hundredth tells nothing; many
/// have enough for a first look at one request in a hundred, and grow their canary in more than one stride.
fn weights(replicas: u32) -> &'static [u8] {
    match replicas {
        0..=3 => &[10, 50],
        4..=9 => &[5, 25, 50],
        _ => &[1, 10, 25, 50],
    }
}

fn file(
    subject: &Subject<'_>,
    port: &Guess<u16>,
    ready: &Guess<String>,
    route: Option<&Guess<Route>>,
    replicas: u32,
    health: &Health,
) -> String {
    let name = subject.service.name();
    let mut text = format!(
        "# For the service {name} as it runs at {}, made by `friday adopt`. What is not written has its default:\n\
         # `friday schema` says which, `friday plan` what the whole is worth at your traffic. Look at each \"Check\".\n\
         service: {}\n",
        subject.engine,
        plain(name)
    );
    let mut key = |line: String, source: &str, check: &str| {
        text.push_str(&format!(
            "# {}.\n# Check: {check}.\n{line}\n",
            sentence(source)
        ));
    };
    let Guess {
        value,
        source,
        check,
    } = port;
    key(format!("port: {value}"), source, check);
    let Guess {
        value,
        source,
        check,
    } = ready;
    key(
        format!("ready: {{ path: {} }}", quoted(value)),
        source,
        check,
    );
    if let Some(Guess {
        value: Route { host, path },
        source,
        check,
    }) = route
    {
        let line = format!(
            "route: {{ host: {}, path: {} }}",
            quoted(host),
            quoted(path)
        );
        key(line, source, check);
    }
    text.push_str(&format!("# For {}: ", tasks(replicas)));
    text.push_str(
        "the canary starts as many as its share of requests needs. Evidence decides between the shortest and\n\
         # the longest hold.\nplan:\n",
    );
    for percent in weights(replicas) {
        let weight = Weight::from_percent(*percent).unwrap_or(Weight::ALL);
        let step = format!("  - {{ weight: {percent}%, hold: 10s..5m }}");
        let canary = canary_tasks(weight.replicas(replicas.max(1)));
        text.push_str(&format!("{step:<40}# {canary}\n"));
    }
    if let Health::Check(HealthCheck { patience, .. }) = health
        && *patience > PATIENCE_USUAL
    {
        let within = (*patience * 2).min(READY_WITHIN_MAX);
        text.push_str(&format!(
            "# Its health check may take {} to call a new task well; pulling the image comes on top.\n\
             deadlines: {{ ready: {} }}\n",
            show_duration(*patience),
            show_duration(within)
        ));
    }
    text
}

fn canary_tasks(count: u32) -> String {
    match count {
        1 => "1 canary task".to_owned(),
        count => format!("{count} canary tasks"),
    }
}

/// A number of tasks in words.
pub(crate) fn tasks(count: u32) -> String {
    match count {
        1 => "1 task".to_owned(),
        count => format!("{count} tasks"),
    }
}

/// Words as the beginning of a sentence, on one line: labels and images are other people's.
fn sentence(words: &str) -> String {
    let mut rest = words.chars().map(|c| if c.is_control() { ' ' } else { c });
    let first = rest.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(rest).collect()
}

/// A name as YAML takes it for a text.
fn plain(name: &str) -> String {
    let is_word = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"]
            .contains(&name.to_ascii_lowercase().as_str());
    if is_word {
        name.to_owned()
    } else {
        format!("{name:?}")
    }
}

/// A host or a path as YAML takes it for a text, also inside of braces.
fn quoted(text: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || "/-_.".contains(c);
    if text.starts_with(|c: char| c == '/' || c.is_ascii_alphabetic()) && text.chars().all(fits) {
        text.to_owned()
    } else {
        serde_json::Value::from(text).to_string()
    }
}

#[cfg(test)]
mod tests;
