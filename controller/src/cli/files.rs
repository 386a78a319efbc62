//! Commands that need no controller: check a file, print what editors and shells want to know.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use rollout::Spec;
use serde_json::json;

use super::Cli;
use super::output::{Context, Format};
use super::rollouts::read_text;
use crate::app::{EngineIfAny, docker_config};
use crate::metrics_source::{MetricsError, MetricsSource as _, Prometheus, Query, Subject};
use crate::orchestrator::swarm::{Visit, VisitError};
use crate::spec::{self, Finding, ReadOptions, finding_at_query};
use crate::stack::{self, Rule, running};

/// Checks files.
#[derive(Debug, Args)]
#[command(after_help = "\
With --stack, the image of the service is looked for on the engine of --engine or DOCKER_HOST and at its registry; without an
engine the check says that it was left out. --engine without --stack checks the service as it runs there by the same rules.")]
pub(super) struct LintArgs {
    /// What is checked
    #[arg(default_value = "friday.yml", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Also check that it has this plan
    #[arg(long)]
    plan: Option<String>,
    /// Also check that it has this environment
    #[arg(long)]
    environment: Option<String>,
    /// Also try the queries of guard.checks on this Prometheus, such as http://prometheus:9090
    #[arg(long, value_name = "URL")]
    prometheus: Option<String>,
    /// Also check the service in this stack file for settings that make releases dangerous
    #[arg(long, value_name = "STACK_FILE")]
    stack: Option<PathBuf>,
    /// A setting of the service that is as it shall be; may be given several times
    #[arg(long, value_enum, value_name = "RULE")]
    allow: Vec<Rule>,
    #[command(flatten)]
    engine: EngineIfAny,
}

/// Prints a completion script.
#[derive(Debug, Args)]
pub(super) struct CompletionArgs {
    /// The shell that shall complete
    shell: clap_complete::Shell,
}

pub(super) async fn lint(args: &LintArgs, context: &Context) -> anyhow::Result<u8> {
    let options = ReadOptions {
        plan: args.plan.as_deref(),
        environment: args.environment.as_deref(),
    };
    let prometheus = args.prometheus.as_deref().map(Prometheus::at).transpose()?;
    let mut findings: Vec<Finding> = Vec::new();
    let mut words = Vec::new();
    let stack = args.stack.as_deref().map(|file| {
        let text = read_text(file)?;
        anyhow::Ok((file.display().to_string(), text))
    });
    let stack = stack.transpose()?;
    let engine = LintEngine::open(args).await?;
    for file in &args.files {
        let name = file.display().to_string();
        let text = read_text(file)?;
        match spec::read(&text, &name, &options) {
            Ok(spec) => {
                if let Some((name, text)) = &stack {
                    let found = stack::check(text, name, &spec.service, &args.allow);
                    words.extend(found.iter().map(ToString::to_string));
                    findings.extend(found);
                }
                let looked = match &stack {
                    Some((name, text)) => engine.image(text, name, &spec, &args.allow).await?,
                    None => engine.running(&spec, &args.allow).await?,
                };
                words.extend(looked.findings.iter().map(ToString::to_string));
                findings.extend(looked.findings);
                for left_out in looked.warnings {
                    // What was not done is said also where only findings are printed.
                    if context.format == Format::Json {
                        context.note(&left_out)?;
                    }
                    words.push(left_out);
                }
                if let Some(prometheus) = &prometheus {
                    let tried = try_checks(&spec, &text, &name, prometheus, context).await?;
                    words.extend(tried.warnings);
                    if !tried.findings.is_empty() {
                        words.extend(tried.findings.iter().map(ToString::to_string));
                        findings.extend(tried.findings);
                        continue;
                    }
                }
                let steps = spec.plan.steps().len();
                words.push(format!(
                    "{name}: ok, service {} in {steps} steps",
                    spec.service
                ));
            }
            Err(found) => {
                words.extend(found.iter().map(ToString::to_string));
                findings.extend(found);
            }
        }
    }
    context.show(&findings, |_| words.join("\n"))?;
    Ok(if findings.is_empty() { 0 } else { 20 })
}

/// The engine that a lint may ask.
#[derive(Debug)]
struct LintEngine {
    visit: Option<Visit>,
    /// Whether it was typed: then it has to answer.
    is_typed: bool,
}

impl LintEngine {
    async fn open(args: &LintArgs) -> anyhow::Result<Self> {
        let is_typed = args.engine.typed()?.is_some();
        // What a job's DOCKER_HOST says is of use for a stack; nobody asked for more.
        let address = match &args.stack {
            Some(_) => args.engine.address()?,
            None => args.engine.typed()?,
        };
        let visit = match address {
            Some(address) => Some(Visit::at(address, docker_config()).await?),
            None => None,
        };
        Ok(Self { visit, is_typed })
    }

    /// Whether somebody has the image that a stack file names for the service of a `friday.yml`.
    async fn image(
        &self,
        text: &str,
        name: &str,
        spec: &Spec,
        allowed: &[Rule],
    ) -> Result<Tried, VisitError> {
        let variable = |name: &str| std::env::var(name).ok();
        let written = stack::image::image(text, name, &spec.service, variable);
        let Some(written) = written.filter(|_| !allowed.contains(&Rule::MissingImage)) else {
            return Ok(Tried::default());
        };
        let left_out = |why: String| {
            Ok(Tried {
                warnings: vec![format!(
                    "{name}: nobody was asked for the image of {}: {why}",
                    spec.service
                )],
                ..Tried::default()
            })
        };
        let Some(visit) = &self.visit else {
            return left_out("name an engine with --engine or DOCKER_HOST".to_owned());
        };
        let image = match &written.image {
            Ok(image) => image,
            Err(variable) => {
                return left_out(format!(
                    "its name has the variable {variable:?}, which is not set here"
                ));
            }
        };
        let holder = match visit.holder(image).await {
            Err(error @ VisitError::Unreachable { .. }) if !self.is_typed => {
                return left_out(format!("{:#}", anyhow::Error::from(error)));
            }
            holder => holder?,
        };
        let missing = stack::image::missing(image, &holder);
        let finding = missing.and_then(|(why, mend)| written.missing(why, &mend));
        Ok(Tried {
            findings: finding.into_iter().collect(),
            ..Tried::default()
        })
    }

    /// What is wrong with the service of a `friday.yml` as it runs.
    async fn running(&self, spec: &Spec, allowed: &[Rule]) -> Result<Tried, VisitError> {
        let Some(visit) = &self.visit else {
            return Ok(Tried::default());
        };
        visit.manager().await?;
        let services = visit.services().await?;
        let service = visit.named(&services, spec.service.as_str())?;
        service.fits()?;
        let image = visit.image_config(service.image()).await?;
        let faults = running::check(
            &running::Running {
                name: service.name(),
                spec: &service.spec,
                image: image.as_ref(),
            },
            allowed,
        );
        let mut findings: Vec<Finding> = faults
            .into_iter()
            .map(|fault| fault.finding(service.name(), visit.address()))
            .collect();
        if !allowed.contains(&Rule::MissingImage) {
            let holder = visit.holder(service.image()).await?;
            let missing = stack::image::missing(service.image(), &holder);
            let fault =
                missing.map(|(why, mend)| running::missing_image(service.image(), why, mend));
            findings.extend(fault.map(|fault| fault.finding(service.name(), visit.address())));
        }
        Ok(Tried {
            findings,
            ..Tried::default()
        })
    }
}

/// What somebody else says of a file: a Prometheus, an engine.
#[derive(Debug, Default)]
struct Tried {
    findings: Vec<Finding>,
    warnings: Vec<String>,
}

/// Asks each check once, about releases that are none: it must be a query that Prometheus understands, of metrics that it
/// knows (F6). That it gives nothing yet is worth a word and no more: there is no canary.
async fn try_checks(
    spec: &Spec,
    text: &str,
    name: &str,
    prometheus: &Prometheus,
    context: &Context,
) -> Result<Tried, MetricsError> {
    let mut tried = Tried::default();
    let subject = Subject {
        release: "none".into(),
        service: "none".into(),
        environment: "none".into(),
        arm: "canary",
    };
    for (index, check) in spec.guard.checks.iter().enumerate() {
        // Read before, or there would be no spec.
        let Ok(query) = Query::parse(&check.query) else {
            continue;
        };
        let mut found = |expected: String, mend: Option<String>| {
            tried
                .findings
                .extend(finding_at_query(text, name, index, expected, mend))
        };
        match prometheus
            .ask(&query.about(&subject), context.clock.now() - check.lag)
            .await
        {
            Ok(value) => {
                let unknown = prometheus.unknown_of(query.metrics()).await?;
                if !unknown.is_empty() {
                    // Advice alone: without the list the finding is the same.
                    let names = prometheus.names().await.unwrap_or_default();
                    let mend = meant(&unknown, &names);
                    let unknown = unknown.join(", ");
                    let expected = format!(
                        "Prometheus has never seen {unknown}: expected the name of a metric that it scrapes"
                    );
                    found(expected, mend);
                } else if value.is_none() {
                    let name = &check.name;
                    tried.warnings.push(format!(
                        "check {name:?} gives no data now; it must as soon as there is a canary"
                    ));
                }
            }
            Err(error) if error.is_transient() => return Err(error),
            Err(error @ (MetricsError::Refused { .. } | MetricsError::Shape { .. })) => {
                found(error.to_string(), None)
            }
            Err(error) => return Err(error),
        }
    }
    Ok(tried)
}

/// The metrics that were probably meant, in words; none where nothing there is like any of them.
fn meant(unknown: &[String], names: &[String]) -> Option<String> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let found: Vec<(&String, &str)> = unknown
        .iter()
        .filter_map(|metric| Some((metric, nearest_metric(metric, &names)?)))
        .collect();
    let words: Vec<String> = match found[..] {
        [] => return None,
        [(_, name)] if unknown.len() == 1 => vec![format!("did you mean {name}?")],
        _ => {
            let word =
                |(metric, name): &(&String, &str)| format!("for {metric} did you mean {name}?");
            found.iter().map(word).collect()
        }
    };
    Some(words.join(" "))
}

/// The name that is most like this one; or, of those that go on before or after it (a namespace, a unit, `_total`), the
/// shortest.
fn nearest_metric<'a>(metric: &str, names: &[&'a str]) -> Option<&'a str> {
    let longer = || {
        let names = names.iter().copied().filter(|name| name.contains(metric));
        names.min_by_key(|name| (name.len(), *name))
    };
    spec::nearest(metric, names).or_else(longer)
}

pub(super) fn schema(context: &Context) -> anyhow::Result<u8> {
    context.say(&serde_json::to_string_pretty(&spec::schema())?)?;
    Ok(0)
}

pub(super) fn completion(args: &CompletionArgs, context: &Context) -> anyhow::Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "friday", &mut script);
    context.say(&String::from_utf8(script)?)?;
    Ok(0)
}

pub(super) fn version(context: &Context) -> anyhow::Result<u8> {
    let version = env!("CARGO_PKG_VERSION");
    match context.format {
        Format::Text => context.say(&format!("friday {version}"))?,
        Format::Json => {
            context.say(&json!({ "name": "friday", "version": version }).to_string())?
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_which_metric_was_meant() {
        let names: Vec<String> = [
            "consumer_lag",
            "http_requests_total",
            "shop_orders_failed_total",
            "shop_orders_failed",
            "up",
        ]
        .map(str::to_owned)
        .into();
        let said = |unknown: &[&str]| {
            let unknown: Vec<String> = unknown.iter().map(|name| (*name).to_owned()).collect();
            meant(&unknown, &names)
        };
        for (unknown, name) in [
            ("consumer_lagg", "consumer_lag"),
            ("consmuer_lag", "consumer_lag"),
            ("http_requests", "http_requests_total"),
            ("orders_failed", "shop_orders_failed"),
        ] {
            assert_eq!(
                said(&[unknown]).unwrap(),
                format!("did you mean {name}?"),
                "{unknown}"
            );
        }
        assert_eq!(
            said(&["consumer_lagg", "never", "upp"]).unwrap(),
            "for consumer_lagg did you mean consumer_lag? for upp did you mean up?"
        );
        assert_eq!(said(&["something_else_entirely"]), None);
        assert_eq!(meant(&["x".to_owned()], &[]), None);
    }
}
