//! Commands about locks: to have a service, or one of its environments, to oneself for a while.

use clap::Args;
use rollout::Duration;

use super::output::{Context, plain, table};
use super::{AuthorArgs, Usage, duration, name};
use crate::admission::lock::age;
use crate::api::types::locks::{LockRequest, LockView, UnlockRequest};
use crate::client::Client;

/// What is locked.
#[derive(Debug, Args)]
struct WhatArgs {
    /// A service
    #[arg(value_parser = name)]
    service: String,
    /// In this environment alone; everywhere where it is not given
    #[arg(long, env = "FRIDAY_ENVIRONMENT", hide_env_values = true)]
    environment: Option<String>,
    #[command(flatten)]
    author: AuthorArgs,
}

impl WhatArgs {
    fn environment(&self) -> Option<String> {
        // An empty variable is what a CI system makes of one that is not set.
        self.environment.clone().filter(|name| !name.is_empty())
    }
}

/// Takes a lock.
#[derive(Debug, Args)]
pub(super) struct LockArgs {
    #[command(flatten)]
    what: WhatArgs,
    /// Why, for the event log and for whoever is kept out; without it, the locks there are
    #[arg(long)]
    reason: Option<String>,
    /// For how long, such as 2h; until `friday unlock` where it is not given
    #[arg(long = "for", value_parser = duration, value_name = "TIME", requires = "reason")]
    period: Option<Duration>,
}

/// Gives a lock back.
#[derive(Debug, Args)]
pub(super) struct UnlockArgs {
    #[command(flatten)]
    what: WhatArgs,
    /// Break somebody else's lock; needs a reason
    #[arg(long = "break", requires = "reason")]
    breaks: bool,
    /// Why, for the event log
    #[arg(long)]
    reason: Option<String>,
    /// The number of the lock, so that a newer one is not given back by mistake
    #[arg(long, value_name = "NUMBER")]
    fence: Option<u64>,
}

pub(super) async fn lock(args: LockArgs, context: &Context, client: &Client) -> anyhow::Result<u8> {
    let LockArgs {
        what,
        reason,
        period,
    } = args;
    let Some(reason) = reason else {
        let locks = client.locks(&what.service).await?;
        context.show(&locks, |locks| locks_table(&what.service, locks, context))?;
        return Ok(0);
    };
    if period.is_some_and(|period| period.as_secs() == 0) {
        return Err(Usage("--for: expected at least 1s".to_owned()).into());
    }
    let request = LockRequest {
        environment: what.environment(),
        by: what.author.author(),
        reason,
        for_seconds: period.map(|period| period.as_secs()),
    };
    let lock = client.lock(&what.service, &request).await?;
    context.show(&lock, |lock| {
        let until = lock.until.map_or_else(
            || "until `friday unlock`".to_owned(),
            |until| format!("until {}", until.strftime("%Y-%m-%d %H:%M:%SZ")),
        );
        format!(
            "{} is locked by {} {until}: number {} (`friday deploy --fence {}` is refused once this lock is no more)",
            shown(lock),
            plain(&lock.owner),
            lock.fence,
            lock.fence
        )
    })?;
    Ok(0)
}

pub(super) async fn unlock(
    args: UnlockArgs,
    context: &Context,
    client: &Client,
) -> anyhow::Result<u8> {
    let request = UnlockRequest {
        environment: args.what.environment(),
        by: args.what.author.author(),
        reason: args.reason,
        fence: args.fence,
        breaks: args.breaks,
    };
    let lock = client.unlock(&args.what.service, &request).await?;
    context.show(&lock, |lock| {
        format!(
            "{} is not locked any more; it was by {} for {}",
            shown(lock),
            plain(&lock.owner),
            age(lock.taken, context.clock.now())
        )
    })?;
    Ok(0)
}

fn shown(lock: &LockView) -> String {
    match &lock.environment {
        Some(environment) => format!("{} in {}", lock.service, plain(environment)),
        None => lock.service.clone(),
    }
}

fn locks_table(service: &str, locks: &[LockView], context: &Context) -> String {
    if locks.is_empty() {
        return format!("{service} is not locked; `friday lock {service} --reason WHY` does");
    }
    let now = context.clock.now();
    let row = |lock: &LockView| {
        [
            plain(lock.environment.as_deref().unwrap_or("all")),
            plain(&lock.owner),
            age(lock.taken, now),
            lock.until.map_or_else(
                || "unlocked".to_owned(),
                |until| until.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
            ),
            lock.fence.to_string(),
            plain(&lock.reason),
        ]
    };
    let rows: Vec<_> = locks.iter().map(row).collect();
    table(
        ["ENVIRONMENT", "OWNER", "AGE", "UNTIL", "NUMBER", "REASON"],
        &rows,
    )
}
