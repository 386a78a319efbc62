//! Commands that need no controller: check a file, print what editors and shells want to know.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use rollout::Spec;
use serde_json::json;

use super::Cli;
use super::output::{Context, Format};
use super::rollouts::read_text;
use crate::metrics_source::{MetricsError, MetricsSource as _, Prometheus, Query, Subject};
use crate::spec::{self, Finding, ReadOptions, finding_at_query};

/// Checks files.
#[derive(Debug, Args)]
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
    for file in &args.files {
        let name = file.display().to_string();
        let text = read_text(file)?;
        match spec::read(&text, &name, &options) {
            Ok(spec) => {
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

/// What a Prometheus says of a file's checks.
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
        let mut found = |expected: String| {
            tried
                .findings
                .extend(finding_at_query(text, name, index, expected))
        };
        match prometheus
            .ask(&query.about(&subject), context.clock.now() - check.lag)
            .await
        {
            Ok(value) => {
                let unknown = prometheus.unknown_of(query.metrics()).await?;
                if !unknown.is_empty() {
                    let unknown = unknown.join(", ");
                    found(format!(
                        "Prometheus has never seen {unknown}: expected the name of a metric that it scrapes"
                    ));
                } else if value.is_none() {
                    let name = &check.name;
                    tried.warnings.push(format!(
                        "check {name:?} gives no data now; it must as soon as there is a canary"
                    ));
                }
            }
            Err(error) if error.is_transient() => return Err(error),
            Err(error @ (MetricsError::Refused { .. } | MetricsError::Shape { .. })) => {
                found(error.to_string())
            }
            Err(error) => return Err(error),
        }
    }
    Ok(tried)
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
