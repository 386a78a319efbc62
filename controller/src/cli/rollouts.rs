//! Commands about rollouts: to start one, and to look at them.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use rollout::Ending;
use tokio::time::Instant;

use super::follow::{Patience, Screen, say_lost, until, until_ended};
use super::lease::{Held, LeaseArgs, told_to_stop};
use super::output::{Context, Format, Paint, plain, table};
use super::report::{self, Asked, ReportArgs};
use super::tree::{Health, tree};
use super::{AuthorArgs, GivenUp, Usage, Wrong, name};
use crate::api::types::{DeployRequest, RolloutSummary, RolloutView, SPEC_BYTES_MAX, ServiceView};
use crate::client::Client;
use crate::origin::Origin;
use crate::spec::{self, ReadOptions};
use crate::words;

/// Starts a rollout.
#[derive(Debug, Args)]
pub(super) struct DeployArgs {
    /// What is released, and how
    #[arg(short, long, default_value = "friday.yml", value_name = "FILE")]
    file: PathBuf,
    /// The image of the new release
    #[arg(long)]
    image: String,
    /// The commit it was built from
    #[arg(long, env = "CI_COMMIT_SHA", hide_env_values = true)]
    commit: Option<String>,
    /// Where it is released: a label, or one of the file's environments
    #[arg(long, env = "FRIDAY_ENVIRONMENT", hide_env_values = true)]
    environment: Option<String>,
    /// A plan of the file's `plans`, in place of `plan`
    #[arg(long)]
    plan: Option<String>,
    /// Try it although this release was rolled back before
    #[arg(long)]
    retry: bool,
    /// Go past freezes; the event log and the rollout's status keep the reason
    #[arg(long, value_name = "REASON")]
    emergency: Option<String>,
    /// The number of the lock that you believe to hold; refused if it is no more
    #[arg(long, value_name = "NUMBER")]
    fence: Option<u64>,
    /// Let the file's rules count alone, and the environment be another than the release before had; takes role admin
    #[arg(long)]
    change_rules: bool,
    #[command(flatten)]
    author: AuthorArgs,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    lease: LeaseArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// Whether to wait for the end.
#[derive(Debug, Args)]
pub(super) struct WaitArgs {
    /// Wait for the rollout to end; the exit code says how it did
    #[arg(long)]
    pub(super) wait: bool,
    #[command(flatten)]
    patience: Patience,
}

/// Sets something of a service.
#[derive(Debug, Args)]
pub(super) struct SetArgs {
    #[command(subcommand)]
    pub(super) what: SetCommand,
}

/// What can be set.
#[derive(Debug, Subcommand)]
pub(super) enum SetCommand {
    /// Start a rollout of an image; the same as `deploy`
    Image(DeployArgs),
}

/// Shows a rollout.
#[derive(Debug, Args)]
pub(super) struct GetArgs {
    /// A service, for its newest rollout, or a rollout
    #[arg(value_parser = name)]
    name: String,
    /// Show it again at each change, until it ends
    #[arg(short, long)]
    watch: bool,
    #[command(flatten)]
    patience: Patience,
}

/// Waits for a rollout.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// A service, for its newest rollout, or a rollout
    #[arg(value_parser = name)]
    name: String,
    /// Print where it is and exit with 0
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    patience: Patience,
}

/// Lists what was.
#[derive(Debug, Args)]
pub(super) struct HistoryArgs {
    /// A service
    #[arg(value_parser = name)]
    name: String,
    /// At most so many, up to 1000
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
}

/// The text of a file, unless it is longer than a `friday.yml` can be.
pub(super) fn read_text(file: &Path) -> anyhow::Result<String> {
    let shown = file.display();
    let usage = |reason: String| Usage(format!("{shown} cannot be read: {reason}"));
    let hint = |error: std::io::Error| usage(format!("{error}; name another file"));
    let size = std::fs::metadata(file).map_err(hint)?.len();
    if size > SPEC_BYTES_MAX as u64 {
        return Err(usage(format!(
            "it has {size} bytes, more than the {SPEC_BYTES_MAX} that friday.yml may have"
        ))
        .into());
    }
    let bytes = std::fs::read(file).map_err(hint)?;
    Ok(String::from_utf8(bytes).map_err(|_| usage("it is not UTF-8".to_owned()))?)
}

pub(super) async fn deploy(
    args: DeployArgs,
    context: &Context,
    client: &Client,
) -> anyhow::Result<u8> {
    let text = read_text(&args.file)?;
    let spec_name = args.file.display().to_string();
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    let (environment, plan) = (filled(args.environment), filled(args.plan));
    // The controller reads it again; asking here first spares a round and works while it is away.
    let options = ReadOptions {
        plan: plan.as_deref(),
        environment: environment.as_deref(),
    };
    let service = spec::read(&text, &spec_name, &options)
        .map_err(Wrong)?
        .service;
    let origin = Origin::from_environment(&|name| std::env::var(name).ok());
    let lease = args
        .lease
        .terms(args.wait.wait, context.in_ci, origin.as_ref())?;
    let request = DeployRequest {
        spec: text,
        spec_name,
        image: args.image,
        commit: filled(args.commit),
        environment,
        plan,
        author: args.author.author(),
        retry: args.retry,
        emergency: args.emergency,
        fence: args.fence,
        change_rules: args.change_rules,
        origin,
        lease,
    };
    let mut id = None;
    let ended = release(&request, &mut id, &args.wait, context, client).await;
    if let Some(folder) = args.report.folder() {
        let asked = Asked {
            service: service.as_str(),
            request: &request,
            id: id.as_deref(),
        };
        report::leave(&folder, &asked, &ended, context, client).await;
    }
    ended
}

/// Starts a rollout and waits for it, holding its lease, as far as that is wanted. Puts its name into `id`.
async fn release(
    request: &DeployRequest,
    id: &mut Option<String>,
    wait: &WaitArgs,
    context: &Context,
    client: &Client,
) -> anyhow::Result<u8> {
    let started = if wait.wait {
        let Patience {
            timeout,
            unreachable_timeout,
        } = wait.patience;
        let limit = timeout.map_or(unreachable_timeout, |timeout| {
            timeout.min(unreachable_timeout)
        });
        let client = client.clone();
        // What it says it tries again for is never longer than it does.
        let starting = async { client.patient(limit, say_lost).deploy(request).await };
        tokio::select! {
            biased;
            () = until(Instant::now(), timeout) => {
                let waited = words::rounded(timeout.unwrap_or_default());
                return Err(GivenUp(format!(
                    "gave up after {waited} (--timeout) without an answer; `friday list` shows whether the rollout has begun"
                ))
                .into());
            }
            started = starting => started?,
        }
    } else {
        client.deploy(request).await?
    };
    let name = id.insert(started.id.clone());
    let terms = request.lease.as_ref().filter(|_| started.ending.is_none());
    let Some(terms) = terms else {
        return started_then_wait(started, wait, context, client).await;
    };
    let held = Held::new(name, terms, client, context);
    let outcome = tokio::select! {
        outcome = started_then_wait(started, wait, context, client) => outcome,
        () = told_to_stop() => return held.end("its job was told to stop").await,
        never = held.keep() => match never {},
    };
    match outcome {
        Err(error) if error.is::<GivenUp>() => {
            held.end("its job gave up waiting (--timeout)").await
        }
        outcome => outcome,
    }
}

/// Says what was started, and waits for it if that is wanted.
pub(super) async fn started_then_wait(
    started: RolloutView,
    wait: &WaitArgs,
    context: &Context,
    client: &Client,
) -> anyhow::Result<u8> {
    let id = &started.id;
    let line = format!(
        "{id}: {} against {} in {}",
        plain(&started.canary.release.image),
        plain(&started.stable.release.image),
        plain(&started.environment),
    );
    if !wait.wait {
        context.show(&started, |_| {
            format!("{line}\n`friday get {id} -w` watches it, `friday abort {id}` goes back")
        })?;
        return Ok(0);
    }
    if context.format == Format::Text {
        context.say(&line)?;
    }
    wait_for(id, wait, context, client).await
}

/// Waits for a rollout to end, and says how it did.
pub(super) async fn wait_for(
    id: &str,
    wait: &WaitArgs,
    context: &Context,
    client: &Client,
) -> anyhow::Result<u8> {
    let ended = until_ended(id, client, &wait.patience, &mut Screen::of_wait(context)).await?;
    finish(&ended, context)
}

/// Says how a rollout ended; its exit code.
fn finish(view: &RolloutView, context: &Context) -> anyhow::Result<u8> {
    context.show(view, |view| outcome(view, context.paint()))?;
    Ok(view.ending.map_or(0, words::exit_code))
}

/// How a rollout ended or where it is, and what to do about it.
pub(super) fn outcome(view: &RolloutView, paint: Paint) -> String {
    let status = Health::of(&view.phase).painted(paint);
    let line = format!("{status}: {} {}", view.id, plain(&view.message));
    let (id, service) = (&view.id, &view.service);
    let again = format!("`friday retry {service}` tries it again");
    let hint = match view.ending {
        None | Some(Ending::Promoted) => return line,
        Some(Ending::RolledBack | Ending::InsufficientEvidence) => {
            format!("`friday explain {id}` shows what was measured; {again}")
        }
        Some(Ending::NotReady) => format!("`friday get {id}` shows its tasks; {again}"),
        Some(Ending::Aborted) => again,
        Some(Ending::Superseded) => format!("`friday status {service}` waits for the newer one"),
    };
    format!("{line}\n{}", paint.quiet(&hint))
}

pub(super) async fn get(args: GetArgs, context: &Context, client: &Client) -> anyhow::Result<u8> {
    let view = client.rollout(&args.name).await?;
    if args.watch {
        let mut screen = Screen::of_watch(context);
        until_ended(&view.id, client, &args.patience, &mut screen).await?;
    } else {
        context.show(&view, |view| {
            tree(view, context.clock.now(), context.paint())
        })?;
    }
    Ok(0)
}

pub(super) async fn status(
    args: StatusArgs,
    context: &Context,
    client: &Client,
) -> anyhow::Result<u8> {
    let view = client.rollout(&args.name).await?;
    if args.no_wait {
        context.show(&view, |view| outcome(view, context.paint()))?;
        return Ok(0);
    }
    if view.ending.is_some() {
        return finish(&view, context);
    }
    let ended = until_ended(
        &view.id,
        client,
        &args.patience,
        &mut Screen::of_wait(context),
    )
    .await?;
    finish(&ended, context)
}

pub(super) async fn list(context: &Context, client: &Client) -> anyhow::Result<u8> {
    context.show(&client.services().await?, |services| {
        services_table(services)
    })?;
    Ok(0)
}

fn services_table(services: &[ServiceView]) -> String {
    if services.is_empty() {
        return "no services; `friday deploy` starts the first rollout".to_owned();
    }
    let row = |view: &ServiceView| {
        let stable = plain(&view.stable.release.image);
        match &view.rollout {
            Some(rollout) => [
                view.service.clone(),
                Health::of(&rollout.phase).shown().to_owned(),
                rollout.id.clone(),
                format!("{}%", rollout.weight_percent),
                stable,
                plain(&rollout.message),
            ],
            None => {
                let none = || "-".to_owned();
                [
                    view.service.clone(),
                    Health::Healthy.shown().to_owned(),
                    none(),
                    none(),
                    stable,
                    "no rollout yet".to_owned(),
                ]
            }
        }
    };
    let rows: Vec<_> = services.iter().map(row).collect();
    table(
        [
            "SERVICE", "STATUS", "ROLLOUT", "WEIGHT", "STABLE", "MESSAGE",
        ],
        &rows,
    )
}

pub(super) async fn history(
    args: HistoryArgs,
    context: &Context,
    client: &Client,
) -> anyhow::Result<u8> {
    let rollouts = client.rollouts(Some(&args.name), args.limit).await?;
    context.show(&rollouts, |rollouts| history_table(&args.name, rollouts))?;
    Ok(0)
}

fn history_table(service: &str, rollouts: &[RolloutSummary]) -> String {
    if rollouts.is_empty() {
        return format!("{service} has no rollout; `friday list` shows the services there are");
    }
    let row = |rollout: &RolloutSummary| {
        let commit = rollout.canary.commit.as_deref().unwrap_or("-");
        [
            rollout.number.to_string(),
            rollout.ending.map_or("running", words::ending).to_owned(),
            plain(&rollout.canary.image),
            plain(commit).chars().take(12).collect(),
            plain(&rollout.environment),
            plain(&rollout.author),
            rollout.created.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
            plain(&rollout.message),
        ]
    };
    let rows: Vec<_> = rollouts.iter().map(row).collect();
    table(
        [
            "REVISION",
            "OUTCOME",
            "IMAGE",
            "COMMIT",
            "ENVIRONMENT",
            "AUTHOR",
            "STARTED",
            "MESSAGE",
        ],
        &rows,
    )
}
