//! A stack file for Docker Swarm, read for what makes a release dangerous, however well it is judged.
//!
//! Each [`Rule`] is a setting with which `docker service update`, or a rollout on top of it, drops requests, replaces what
//! works by what does not, or runs something else than was tried. The file stays the user's own: keys that no rule is about
//! are not looked at, and a rule that does not apply is allowed by its name.
//!
//! Source: the Compose file format's `deploy` and `healthcheck`
//! (<https://docs.docker.com/reference/compose-file/deploy/>) and Docker's defaults for what is not given
//! (<https://docs.docker.com/reference/cli/docker/service/create/>).

pub mod image;
pub mod running;
mod why;

use rollout::{Duration, ServiceName};

use crate::yaml::{Fields, Finding, Findings, Place, Tree, Value, show_duration, units};

/// A setting that a stack should not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Rule {
    /// The image's tag means something else tomorrow.
    FloatingTag,
    /// Nothing asks the tasks whether they can work.
    NoHealthCheck,
    /// The old task stops before the new one runs.
    StopFirst,
    /// A virtual address stands before the tasks.
    Vip,
    /// There is one task, or none.
    OneReplica,
    /// A task may take the whole node.
    NoLimits,
    /// An update is called good before the health check can have failed.
    ShortMonitor,
    /// The new task waits for a port that the old one holds.
    FixedPort,
    /// Neither the engine nor the registry has the image.
    MissingImage,
}

/// What an engine does where the file says nothing.
const MONITOR: Duration = Duration::from_secs(5);
const INTERVAL: Duration = Duration::from_secs(30);
const RETRIES: u32 = 3;

/// Tags that are moved with every build, by habit or by definition.
const MOVED_TAGS: [&str; 11] = [
    "latest",
    "stable",
    "main",
    "master",
    "edge",
    "nightly",
    "dev",
    "develop",
    "staging",
    "prod",
    "production",
];

/// What is wrong with `service` in the stack file `text`, which `name` names in findings. Swarm calls a service
/// `STACK_SERVICE`, so it is looked for by its whole name and by what follows an underscore.
#[must_use]
pub fn check(text: &str, name: &str, service: &ServiceName, allowed: &[Rule]) -> Vec<Finding> {
    let mut findings = Findings::new(name);
    if let Some(tree) = Tree::parse(text, &mut findings) {
        let mut report = Report {
            allowed,
            findings: &mut findings,
        };
        stack(Value::root(&tree), service, &mut report);
    }
    findings.in_order()
}

/// Where a rule speaks.
struct Report<'a> {
    allowed: &'a [Rule],
    findings: &'a mut Findings,
}

impl Report<'_> {
    /// Notes that a rule is broken, why that hurts and what helps, unless it is allowed.
    fn broken(&mut self, rule: Rule, spot: Spot, why: &str, mend: &str) {
        if self.allowed.contains(&rule) {
            return;
        }
        let word = rule.word();
        let mend = format!("{mend}; or accept it: --allow {word}");
        self.findings
            .note(spot.at, &spot.key, spot.shown, why.to_owned(), Some(mend));
    }
}

impl Rule {
    /// Its name on the command line.
    fn word(self) -> String {
        let value = clap::ValueEnum::to_possible_value(&self);
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// What a finding points at: a key that is there, or the place where it is missing.
struct Spot {
    at: Place,
    key: String,
    shown: Option<String>,
}

impl Spot {
    fn of(value: &Value<'_>) -> Self {
        Self {
            at: value.at(),
            key: value.key().to_owned(),
            shown: Some(value.shown()),
        }
    }
}

/// A service of the file, its keys taken apart as the rules need them.
struct Service<'a> {
    key: String,
    at: Place,
    fields: Fields<'a>,
    deploy: Option<Fields<'a>>,
    update: Option<Fields<'a>>,
}

impl<'a> Service<'a> {
    /// Where a value stands, or where its key is missing.
    fn spot(&self, value: Option<&Value<'_>>, key: &str) -> Spot {
        value.map_or_else(|| self.missing(key), Spot::of)
    }

    fn missing(&self, key: &str) -> Spot {
        Spot {
            at: self.at,
            key: format!("{}.{key}", self.key),
            shown: None,
        }
    }

    /// A key of `deploy`.
    fn deploy(&mut self, key: &'static str) -> Option<Value<'a>> {
        self.deploy.as_mut()?.take(key)
    }

    /// A key of `deploy.update_config`.
    fn update(&mut self, key: &'static str) -> Option<Value<'a>> {
        self.update.as_mut()?.take(key)
    }
}

fn stack(root: Value<'_>, name: &ServiceName, report: &mut Report<'_>) {
    let expected = "a stack file: a map with `services`";
    let Some(mut file) = root.map(expected, report.findings) else {
        return;
    };
    let services = file.required("services", "the services of the stack", report.findings);
    let Some(services) = services.and_then(|value| value.map("a map of services", report.findings))
    else {
        return;
    };
    let Some((_, value)) = services.entries().find(|(key, _)| is_it(key, name)) else {
        let known: Vec<&str> = services.entries().map(|(key, _)| key).collect();
        let expected = format!(
            "expected a service {name}, or what follows an underscore in it; there are: {}",
            known.join(", ")
        );
        report
            .findings
            .at(services.at(), "services", None, expected);
        return;
    };
    let (key, at) = (value.key().to_owned(), value.key_at());
    let Some(mut fields) = value.map("a map: the service", report.findings) else {
        return;
    };
    let mut deploy = fields.sub("deploy", "a map: how it is run", report.findings);
    let update = deploy.as_mut().and_then(|deploy| {
        deploy.sub("update_config", "a map: how it is updated", report.findings)
    });
    let mut service = Service {
        key,
        at,
        fields,
        deploy,
        update,
    };
    image(&mut service, report);
    let patience = health_check(&mut service, report);
    order(&mut service, report);
    endpoint_mode(&mut service, report);
    replicas(&mut service, report);
    limits(&mut service, report);
    if let Some(patience) = patience {
        monitor(&mut service, patience, report);
    }
}

/// Whether a key of `services` is the service, whose name may begin with the stack's.
fn is_it(key: &str, name: &ServiceName) -> bool {
    let whole = name.as_str();
    whole == key || (whole.ends_with(key) && whole[..whole.len() - key.len()].ends_with('_'))
}

fn image(service: &mut Service<'_>, report: &mut Report<'_>) {
    let Some(value) = service.fields.take("image") else {
        let spot = service.missing("image");
        let expected = "missing: expected the image; Swarm builds none".to_owned();
        report.findings.at(spot.at, &spot.key, None, expected);
        return;
    };
    let expected = "an image, such as registry.example.org/shop/web:1.4.2";
    let Some(image) = value.text(expected, report.findings, Some) else {
        return;
    };
    let why = match tag(image) {
        Tag::Fixed => return,
        Tag::None => why::NO_TAG,
        Tag::Moved => why::MOVED_TAG,
    };
    report.broken(
        Rule::FloatingTag,
        Spot::of(&value),
        why,
        why::NAME_A_VERSION,
    );
}

enum Tag {
    Fixed,
    Moved,
    None,
}

/// What the tag of an image promises. Variables are the deployer's word: only their default can be looked at.
fn tag(image: &str) -> Tag {
    if image.contains('@') {
        return Tag::Fixed;
    }
    // The last variable, if the image ends with it.
    let variable = image.rsplit_once("${").map(|(_, rest)| rest);
    if let Some(inside) = variable.and_then(|rest| rest.strip_suffix('}')) {
        let default = inside
            .split_once(":-")
            .or_else(|| inside.split_once('-'))
            .map(|(_, default)| default);
        return match default {
            Some(default) if MOVED_TAGS.contains(&default) => Tag::Moved,
            Some(default) if default.contains('/') => tag(default),
            Some(_) | None => Tag::Fixed,
        };
    }
    // A colon before a slash is a registry's port.
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.split_once(':') {
        _ if last.contains('$') => Tag::Fixed,
        None => Tag::None,
        Some((_, tag)) if MOVED_TAGS.contains(&tag) => Tag::Moved,
        Some(_) => Tag::Fixed,
    }
}

/// How long the health check may take to say that a new task is ill: start period and all its tries. `None` without one.
fn health_check(service: &mut Service<'_>, report: &mut Report<'_>) -> Option<Duration> {
    let why = why::NO_HEALTH_CHECK;
    let mend = "add `healthcheck: { test: [CMD, …], interval: 5s, retries: 3 }`, unless the image brings one of its own";
    let Some(value) = service.fields.take("healthcheck") else {
        report.broken(
            Rule::NoHealthCheck,
            service.missing("healthcheck"),
            why,
            mend,
        );
        return None;
    };
    let spot = Spot::of(&value);
    let mut fields = value.map("a map like { test: [CMD, /app, health] }", report.findings)?;
    let disabled = fields
        .take("disable")
        .is_some_and(|value| is(&value, "true", "false", report));
    let test = fields.take("test");
    let is_none = test.is_some_and(|test| {
        if test.is_list() {
            let first = test.list("", report.findings).unwrap_or_default();
            let first = first.into_iter().next();
            first.is_some_and(|word| {
                word.scalar("NONE, CMD or CMD-SHELL", report.findings, Some) == Some("NONE")
            })
        } else {
            test.scalar("a command", report.findings, Some) == Some("NONE")
        }
    });
    if disabled || is_none {
        report.broken(Rule::NoHealthCheck, spot, why, mend);
        return None;
    }
    let interval = time(&mut fields, "interval", INTERVAL, report);
    let start = time(&mut fields, "start_period", Duration::ZERO, report);
    let retries = fields.take("retries").map(|value| {
        value.scalar("a number of tries, from 1", report.findings, |text| {
            text.parse::<u32>().ok().filter(|tries| *tries > 0)
        })
    });
    let retries = retries.unwrap_or(Some(RETRIES))?;
    Some(start + interval.checked_mul(retries)?)
}

/// Whether it is the one word of two; what is neither is noted.
fn is(value: &Value<'_>, yes: &str, no: &str, report: &mut Report<'_>) -> bool {
    let read = |text| match text {
        text if text == yes => Some(true),
        text if text == no => Some(false),
        _ => None,
    };
    value.scalar(&format!("{yes} or {no}"), report.findings, read) == Some(true)
}

/// A time as stack files have it, or its default.
fn time(
    fields: &mut Fields<'_>,
    key: &'static str,
    default: Duration,
    report: &mut Report<'_>,
) -> Duration {
    let value = fields.take(key);
    let given = value.and_then(|value| {
        let expected = "a time such as 500ms, 10s or 1m30s";
        value.scalar(expected, report.findings, units::fine_duration)
    });
    given.unwrap_or(default)
}

/// The order of an update, and what the ports make of it.
fn order(service: &mut Service<'_>, report: &mut Report<'_>) {
    let fixed = fixed_port(service, report);
    let order = service.update("order");
    let is_start_first = order
        .as_ref()
        .is_some_and(|value| is(value, "start-first", "stop-first", report));
    match (is_start_first, fixed) {
        (true, Some(port)) => report.broken(
            Rule::FixedPort,
            port,
            why::FIXED_PORT,
            "remove the port: the proxy reaches tasks over their network",
        ),
        (true, None) => {}
        (false, fixed) => {
            let spot = service.spot(order.as_ref(), "deploy.update_config.order");
            let mend = if fixed.is_some() {
                "set it to start-first, and remove the fixed port of the node, with which start-first never ends"
            } else {
                "set it to start-first"
            };
            report.broken(Rule::StopFirst, spot, why::STOP_FIRST, mend);
        }
    }
}

/// The first port of the service that is a fixed one of its node.
fn fixed_port(service: &mut Service<'_>, report: &mut Report<'_>) -> Option<Spot> {
    let ports = service.fields.take("ports")?;
    let ports = ports.list("a list of ports", report.findings)?;
    ports.into_iter().find_map(|port| {
        // The short form is published by all nodes, not by the task's own.
        if !port.is_map() {
            return None;
        }
        let spot = Spot::of(&port);
        let mut fields = port.map("", report.findings)?;
        let mode = fields.take("mode")?;
        let is_host = is(&mode, "host", "ingress", report);
        let published = fields.take("published")?;
        let shown = published.shown();
        (is_host && shown != "0").then(|| Spot {
            shown: Some(format!("published {shown} in mode host")),
            ..spot
        })
    })
}

fn endpoint_mode(service: &mut Service<'_>, report: &mut Report<'_>) {
    let value = service.deploy("endpoint_mode");
    if value
        .as_ref()
        .is_some_and(|value| is(value, "dnsrr", "vip", report))
    {
        return;
    }
    let spot = service.spot(value.as_ref(), "deploy.endpoint_mode");
    report.broken(
        Rule::Vip,
        spot,
        why::VIP,
        "set it to dnsrr, and publish no port in mode ingress: the proxy balances over the tasks themselves",
    );
}

fn replicas(service: &mut Service<'_>, report: &mut Report<'_>) {
    let mode = service.deploy("mode");
    let is_global = mode.is_some_and(|value| {
        value.scalar("a mode, such as replicated", report.findings, Some) == Some("global")
    });
    if is_global {
        return;
    }
    let value = service.deploy("replicas");
    let enough = value.as_ref().is_some_and(|value| match value.shown() {
        // What the deployer puts in is not ours to guess.
        text if text.contains('$') => true,
        _ => {
            let expected = "a number of tasks";
            let number = value.scalar(expected, report.findings, |text| text.parse::<u32>().ok());
            number.is_none_or(|number| number >= 2)
        }
    });
    if enough {
        return;
    }
    let spot = service.spot(value.as_ref(), "deploy.replicas");
    report.broken(
        Rule::OneReplica,
        spot,
        why::ONE_REPLICA,
        "set it to 2 or more",
    );
}

fn limits(service: &mut Service<'_>, report: &mut Report<'_>) {
    let expected = "a map like { limits: { cpus: \"0.50\", memory: 256M } }";
    let resources = service.deploy("resources");
    let limits = resources.and_then(|value| {
        let mut fields = value.map(expected, report.findings)?;
        fields.sub("limits", expected, report.findings)
    });
    let missing = match limits {
        None => vec!["cpus", "memory"],
        Some(mut limits) => ["cpus", "memory"]
            .into_iter()
            .filter(|key| limits.take(key).is_none_or(|value| value.is_nothing()))
            .collect(),
    };
    if missing.is_empty() {
        return;
    }
    let why = why::no_limits(&missing);
    let mend = "set `deploy: { resources: { limits: { cpus: \"0.50\", memory: 256M } } }`, as much as it needs";
    let spot = service.missing("deploy.resources.limits");
    report.broken(Rule::NoLimits, spot, &why, mend);
}

/// An update must be watched for as long as the health check may take to fail.
fn monitor(service: &mut Service<'_>, patience: Duration, report: &mut Report<'_>) {
    let value = service.update("monitor");
    let given = value.as_ref().and_then(|value| {
        let expected = "a time such as 30s";
        value.scalar(expected, report.findings, units::fine_duration)
    });
    let monitor = given.unwrap_or(MONITOR);
    if monitor >= patience {
        return;
    }
    let spot = service.spot(value.as_ref(), "deploy.update_config.monitor");
    let why = why::short_monitor(monitor, patience);
    let mend = format!(
        "set it to {} or more, or try faster",
        show_duration(patience)
    );
    report.broken(Rule::ShortMonitor, spot, &why, &mend);
}

#[cfg(test)]
mod tests;
