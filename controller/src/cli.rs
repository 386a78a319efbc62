//! The command line `friday`: what it understands, and the exit code of each outcome.
//!
//! A command prints its result to standard output and everything else to standard error, so that `-o json` can be piped.
//! The exit codes are a contract (`friday help` lists them): pipelines branch on them.

mod adopt;
mod audit;
mod credentials;
mod doctor;
mod explain;
mod files;
mod follow;
mod health;
mod lease;
mod lock;
mod login;
mod orders;
mod output;
mod plan;
mod replay;
mod report;
mod rollouts;
mod simulate;
mod token;
mod tree;
mod watch;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};

use crate::adopt::AdoptError;
use crate::auth::read_limited;
use crate::client::{Client, ClientError, Token, TokenError};
use crate::metrics_source::MetricsError;
use crate::orchestrator::swarm::VisitError;
use crate::origin::JobToken;
use crate::spec::Finding;
use output::{Context, Format};

/// Progressive delivery for GitLab and Docker Swarm
///
/// Sends a small, measured share of real requests to a new release, compares its golden signals with those of the
/// release that is stable, and goes on, holds or goes back by itself.
#[derive(Debug, Parser)]
#[command(name = "friday", version, arg_required_else_help = true, disable_help_subcommand = true, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes of `deploy --wait` and `status`, and of every other command as far as they apply:
   0  promoted, or done                      14  not ready: the canary never became ready, or nobody has its image
  10  rolled back on evidence                20  refused: lint, lock, gate, permission, unknown name
  11  aborted by a person                    30  controller, engine or metrics out of reach
  12  superseded by a newer release           2  wrong usage
  13  not enough evidence before a deadline   1  a defect of ours, or --timeout passed";

/// Where `friday serve` listens when nobody says otherwise.
const DEFAULT_URL: &str = "http://127.0.0.1:7070";

/// Largest file of a token: a token has 50 characters, one of GitLab's some 1,500.
const TOKEN_FILE_BYTES_MAX: u64 = 16 << 10;

/// What every command understands.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
struct Common {
    /// How the result is printed
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    output: Format,
    /// Address of the controller
    #[arg(
        long,
        global = true,
        env = "FRIDAY_URL",
        hide_env_values = true,
        default_value = DEFAULT_URL,
        value_name = "URL"
    )]
    url: String,
    /// Token to sign in with; FRIDAY_TOKEN keeps it out of the list of processes
    #[arg(
        long,
        global = true,
        env = "FRIDAY_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    token: Option<Token>,
    /// File of that token, which wins over it
    #[arg(
        long,
        global = true,
        env = "FRIDAY_TOKEN_FILE",
        hide_env_values = true,
        value_parser = path(),
        value_name = "FILE"
    )]
    token_file: Option<PathBuf>,
    /// PEM file of the authorities that a controller at https:// is verified with, in place of those that the system
    /// trusts
    #[arg(
        long,
        global = true,
        env = "FRIDAY_CA",
        hide_env_values = true,
        value_parser = path(),
        value_name = "FILE"
    )]
    ca: Option<PathBuf>,
}

/// A controller, and who says that it is the right one.
#[derive(Debug, Clone, Copy)]
struct Target<'a> {
    url: &'a str,
    ca: Option<&'a Path>,
}

impl Common {
    /// Which controller is asked.
    fn target(&self) -> Target<'_> {
        // An empty variable is what a CI system makes of one that is not set.
        let url = match self.url.as_str() {
            "" => DEFAULT_URL,
            url => url,
        };
        let ca = self
            .ca
            .as_deref()
            .filter(|file| !file.as_os_str().is_empty());
        Target { url, ca }
    }

    /// The token to sign in with.
    fn token(&self) -> Result<Option<Token>, Usage> {
        let file = self.token_file.as_ref();
        let Some(file) = file.filter(|file| !file.as_os_str().is_empty()) else {
            return Ok(self.token.clone());
        };
        let failed = |reason: String| Usage(format!("--token-file {}: {reason}", file.display()));
        let text =
            read_limited(file, TOKEN_FILE_BYTES_MAX).map_err(|error| failed(error.to_string()))?;
        let token: Token = text
            .parse()
            .map_err(|error: TokenError| failed(error.to_string()))?;
        if token.is_empty() {
            return Err(failed("it is empty".to_owned()));
        }
        Ok(Some(token))
    }
}

impl Cli {
    /// Whether it runs until it is told to stop, and then ends in its own order.
    #[must_use]
    pub fn serves(&self) -> bool {
        matches!(self.command, Command::Serve(_) | Command::Agent(_))
    }
}

/// A command.
#[derive(Debug, Subcommand)]
enum Command {
    /// Run the controller
    Serve(Box<crate::app::ServeArgs>),
    /// Say what the tasks on this node use, to the controller and to Prometheus; runs on every node
    Agent(Box<crate::agent::AgentArgs>),
    /// Make a token for a machine: a proxy, an agent, a pipeline
    Token(token::TokenArgs),
    /// Sign in at the controller, by its GitLab; later commands use the session when they are given no token
    Login(login::LoginArgs),
    /// Sign out, and forget the session
    Logout,
    /// Start a rollout
    #[command(visible_alias = "set-image")]
    Deploy(rollouts::DeployArgs),
    /// Start a rollout; the other way to write `deploy`
    Set(rollouts::SetArgs),
    /// List the services, each with its newest rollout
    #[command(visible_alias = "ls")]
    List,
    /// Show a rollout: where it is, its releases and their tasks
    Get(rollouts::GetArgs),
    /// Watch a rollout on the whole terminal, with the keys to move it; without a terminal, lines as `get -w` adds them
    Watch(watch::WatchArgs),
    /// Wait for a rollout to end; the exit code says how it did
    Status(rollouts::StatusArgs),
    /// List the rollouts of a service, newest first
    History(rollouts::HistoryArgs),
    /// Go on to the next step without further proof; resumes a paused rollout
    Promote(orders::PromoteArgs),
    /// Stay at this weight; the canary is still judged, and rolled back if it is worse
    Pause(orders::OrderArgs),
    /// Go on after a pause
    Resume(orders::OrderArgs),
    /// Back to stable at once
    Abort(orders::OrderArgs),
    /// Open the gate at which a rollout waits
    Approve(orders::ApproveArgs),
    /// Refuse at the gate: back to stable
    Reject(orders::OrderArgs),
    /// Try a release again that was rolled back
    Retry(orders::BackArgs),
    /// Make an earlier release stable again, without analysis
    Undo(orders::UndoArgs),
    /// Back, whatever is going on: abort a running rollout, else undo the last one
    Rollback(orders::BackArgs),
    /// Have a service, or one of its environments, to yourself: nobody else starts a rollout there
    Lock(lock::LockArgs),
    /// Give a lock back, or break somebody else's
    Unlock(lock::UnlockArgs),
    /// Say who released what, when, where, approved by whom and on which evidence
    Audit(audit::AuditArgs),
    /// Check friday.yml: where it is wrong, what was expected, how to mend it
    Lint(files::LintArgs),
    /// Foretell a rollout by friday.yml: how long it takes, how soon a bad release is caught, where traffic is too low
    Plan(plan::PlanArgs),
    /// Say why a rollout is where it is: each verdict in plain words
    Explain(explain::ExplainArgs),
    /// Derive every verdict of a rollout again, from its event log alone
    Replay(replay::ReplayArgs),
    /// Judge a past rollout by the guard of another friday.yml
    Whatif(replay::WhatIfArgs),
    /// Release many made-up canaries and show what the judge does to them
    Simulate(simulate::SimulateArgs),
    /// Write a friday.yml for a service that runs on a swarm, and say what to do before its first release
    Adopt(adopt::AdoptArgs),
    /// Say what is wrong with controller, engine, proxies, agents and metrics, and what every open rollout waits for
    Doctor(doctor::DoctorArgs),
    /// Print the JSON Schema of friday.yml, for editors
    Schema,
    /// Print a completion script for a shell
    Completion(files::CompletionArgs),
    /// Print the version
    Version,
    /// Ask a controller or an agent whether it works: for the health check of its container
    Health(health::HealthArgs),
}

/// A command that cannot be carried out as it was written.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// A command that would do something else than it says.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

/// A file that is wrong.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
struct Wrong(Vec<Finding>);

/// A wait that its caller gave up.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct GivenUp(String);

/// Runs a command to its end and says how it went, on standard error if it failed.
pub async fn run(cli: Cli) -> ExitCode {
    let Cli { common, command } = cli;
    let context = Context::of_process(common.output);
    let target = common.target();
    let session = session(&common, &command, &context, target).await;
    // The files of the token and of the authorities are read by those commands alone that ask a controller.
    let client = |other: Option<&str>| {
        let token = common.token()?;
        // An empty token is that of a variable that is not set.
        let token = token.filter(|token| !token.is_empty());
        let token = token.or_else(|| session.clone());
        Ok(Client::trusting(
            target.ca,
            other.unwrap_or(target.url),
            token,
        )?)
    };
    let result = dispatch(command, &context, client, target).await;
    ExitCode::from(result.unwrap_or_else(|error| {
        let code = exit_code(&error);
        // Whoever read our output has seen enough: `friday list | head -1`.
        if code != 0 {
            context.complain(&error, code);
        }
        code
    }))
}

/// The session of `friday login` at this controller, where no token is given.
async fn session(
    common: &Common,
    command: &Command,
    context: &Context,
    target: Target<'_>,
) -> Option<Token> {
    let asks_nobody = matches!(
        command,
        Command::Serve(_)
            | Command::Agent(_)
            | Command::Token(_)
            | Command::Login(_)
            | Command::Lint(_)
            | Command::Plan(_)
            | Command::Simulate(_)
            | Command::Adopt(_)
            | Command::Schema
            | Command::Completion(_)
            | Command::Version
            | Command::Health(_)
    );
    let is_given = |file: &PathBuf| !file.as_os_str().is_empty();
    let has_token = common.token.as_ref().is_some_and(|token| !token.is_empty())
        || common.token_file.as_ref().is_some_and(is_given);
    if asks_nobody || has_token {
        return None;
    }
    let url = Client::full_url(target.url)?;
    let client = |token| Ok(Client::trusting(target.ca, target.url, Some(token))?);
    let now = context.clock.now();
    credentials::Credentials::of_person()?
        .token(&url, now, client)
        .await
}

/// Carries out a command; the exit code of one that did not fail.
async fn dispatch(
    command: Command,
    context: &Context,
    client_of: impl Fn(Option<&str>) -> anyhow::Result<Client>,
    target: Target<'_>,
) -> anyhow::Result<u8> {
    use crate::api::types::Order;
    let client = || client_of(None);
    let orderly = || anyhow::Ok(orders::orderly(client()?, context));
    match command {
        Command::Serve(args) => crate::app::serve(*args).await.map(|()| 0),
        Command::Agent(args) => {
            let controller = args.controller().map(|url| client_of(Some(url)));
            let controller = controller.transpose()?;
            crate::agent::run(*args, controller).await.map(|()| 0)
        }
        Command::Deploy(args)
        | Command::Set(rollouts::SetArgs {
            what: rollouts::SetCommand::Image(args),
        }) => {
            let client = client()?.with_job_token(JobToken::of_process());
            rollouts::deploy(args, context, &client).await
        }
        Command::List => rollouts::list(context, &client()?).await,
        Command::Get(args) => rollouts::get(args, context, &client()?).await,
        Command::Watch(args) => watch::watch(args, context, &client()?).await,
        Command::Status(args) => rollouts::status(args, context, &client()?).await,
        Command::History(args) => rollouts::history(args, context, &client()?).await,
        Command::Promote(args) => orders::promote(args, context, &orderly()?).await,
        Command::Pause(args) => orders::order(Order::Pause, args, context, &orderly()?).await,
        Command::Resume(args) => orders::order(Order::Resume, args, context, &orderly()?).await,
        Command::Abort(args) => orders::order(Order::Abort, args, context, &orderly()?).await,
        Command::Approve(args) => orders::approve(args, context, &orderly()?).await,
        Command::Reject(args) => orders::order(Order::Reject, args, context, &orderly()?).await,
        Command::Retry(args) => orders::retry(args, context, &orderly()?).await,
        Command::Undo(args) => orders::undo(args, context, &orderly()?).await,
        Command::Rollback(args) => orders::rollback(args, context, &orderly()?).await,
        Command::Lock(args) => lock::lock(args, context, &client()?).await,
        Command::Unlock(args) => lock::unlock(args, context, &client()?).await,
        Command::Audit(args) => audit::audit(args, context, client).await,
        Command::Lint(args) => files::lint(&args, context).await,
        Command::Plan(args) => plan::plan(args, context),
        Command::Explain(args) => explain::explain(args, context, &client()?).await,
        Command::Replay(args) => replay::replay(args, context, &client()?).await,
        Command::Whatif(args) => replay::what_if(args, context, &client()?).await,
        Command::Simulate(args) => simulate::simulate(&args, context),
        Command::Login(args) => login::login(args, context, &client()?).await,
        Command::Logout => login::logout(context, &client()?).await,
        Command::Token(args) => token::token(&args, context),
        Command::Adopt(args) => adopt::adopt(args, context).await,
        Command::Doctor(args) => doctor::doctor(args, context, &client()?).await,
        Command::Schema => files::schema(context),
        Command::Completion(args) => files::completion(&args, context),
        Command::Version => files::version(context),
        Command::Health(args) => health::health(args, context, target).await,
    }
}

/// The exit code of a command that failed.
fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(error) = error.downcast_ref::<ClientError>() {
        return error.exit_code();
    }
    if let Some(error) = error.downcast_ref::<VisitError>() {
        return error.exit_code();
    }
    if let Some(error) = error.downcast_ref::<MetricsError>() {
        return if matches!(error, MetricsError::Address { .. }) {
            2
        } else {
            30
        };
    }
    let is_broken_pipe = |error: &std::io::Error| error.kind() == ErrorKind::BrokenPipe;
    match () {
        () if error.is::<Usage>() => 2,
        () if error.is::<Wrong>() || error.is::<Refusal>() || error.is::<AdoptError>() => 20,
        () if error.downcast_ref().is_some_and(is_broken_pipe) => 0,
        () => 1,
    }
}

/// A service or a rollout, as it is named on the command line.
fn name(text: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let begins = text
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric());
    // A service has at most 63, a hyphen and a number of at most 20 digits follow.
    if begins && text.len() <= 84 && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err(
            "expected a service such as tweets-worker, or a rollout such as tweets-worker-3"
                .to_owned(),
        )
    }
}

/// A path, or an empty text: that of a variable that is not set.
pub(crate) fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// Who gives the order.
#[derive(Debug, Clone, Args)]
struct AuthorArgs {
    /// Who does this, for the event log; GITLAB_USER_LOGIN or USER where it is not given
    #[arg(
        long,
        env = "FRIDAY_AUTHOR",
        hide_env_values = true,
        value_name = "WHO"
    )]
    author: Option<String>,
}

impl AuthorArgs {
    fn author(self) -> String {
        let variable = |name| std::env::var(name).ok();
        let named = [self.author, variable("GITLAB_USER_LOGIN"), variable("USER")];
        let given = named
            .into_iter()
            .flatten()
            .find(|name| !name.trim().is_empty());
        given.unwrap_or_else(|| "unknown".to_owned())
    }
}

/// Reads a duration such as 90s or 10m.
fn duration(text: &str) -> Result<rollout::Duration, String> {
    crate::spec::read_duration(text)
        .ok_or_else(|| "expected a duration such as 90s, 10m or 1h30m".to_owned())
}

#[cfg(test)]
mod tests;
