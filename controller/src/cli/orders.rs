//! Commands that move a rollout, or go back. An order names the rollout it means: when a newer one started in the
//! meantime, the order moves nothing (F32).

use clap::Args;
use rollout::{Duration, Ending, Phase};

use super::follow::say_lost;
use super::output::{Context, Format, plain};
use super::rollouts::{WaitArgs, outcome, started_then_wait, wait_for};
use super::{AuthorArgs, Refusal, name};
use crate::api::types::{Order, OrderRequest, RolloutView, UndoRequest};
use crate::client::Client;
use crate::words;

/// An order to a rollout.
#[derive(Debug, Args)]
pub(super) struct OrderArgs {
    /// A service, for its newest rollout, or a rollout
    #[arg(value_parser = name)]
    name: String,
    /// Why, for the event log and for whoever looks at the rollout
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    author: AuthorArgs,
}

/// Goes on.
#[derive(Debug, Args)]
pub(super) struct PromoteArgs {
    /// All the way to 100 %, without further steps and without analysis
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    emergency: EmergencyArgs,
    #[command(flatten)]
    order: OrderArgs,
}

/// Opens a gate.
#[derive(Debug, Args)]
pub(super) struct ApproveArgs {
    #[command(flatten)]
    emergency: EmergencyArgs,
    #[command(flatten)]
    order: OrderArgs,
}

/// The emergency word.
#[derive(Debug, Args)]
struct EmergencyArgs {
    /// Let no freeze hold this rollout from now on; the event log and its status keep the reason
    #[arg(long, value_name = "REASON")]
    emergency: Option<String>,
}

/// Goes back, or tries again.
#[derive(Debug, Args)]
pub(super) struct BackArgs {
    #[command(flatten)]
    order: OrderArgs,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Goes back to an earlier release.
#[derive(Debug, Args)]
pub(super) struct UndoArgs {
    /// The number of the rollout whose release shall be stable again; the one before the present where not given
    #[arg(long, value_name = "N")]
    to: Option<u64>,
    #[command(flatten)]
    back: BackArgs,
}

/// How long a job's order is given again while nobody answers; a person at a terminal sees it fail, and decides.
const ORDER_MAX: Duration = Duration::from_secs(60);

/// Who gives orders here: in a CI job, where a button was pressed once, a controller that restarts is waited for.
pub(super) fn orderly(client: Client, context: &Context) -> Client {
    if context.in_ci {
        client.patient(ORDER_MAX, say_lost)
    } else {
        client
    }
}

pub(super) async fn promote(
    args: PromoteArgs,
    context: &Context,
    client: &Client,
) -> anyhow::Result<u8> {
    let order = if args.full {
        Order::PromoteFull
    } else {
        Order::Promote
    };
    grow(order, args.order, args.emergency, context, client).await
}

pub(super) async fn approve(
    args: ApproveArgs,
    context: &Context,
    client: &Client,
) -> anyhow::Result<u8> {
    grow(Order::Approve, args.order, args.emergency, context, client).await
}

/// An order that a freeze may hold.
async fn grow(
    order: Order,
    args: OrderArgs,
    emergency: EmergencyArgs,
    context: &Context,
    client: &Client,
) -> anyhow::Result<u8> {
    let before = client.rollout(&args.name).await?;
    let request = OrderRequest {
        emergency: emergency.emergency,
        ..request(order, args)
    };
    say(&client.order(&before.id, &request).await?, context)
}

pub(super) async fn order(
    order: Order,
    args: OrderArgs,
    context: &Context,
    client: &Client,
) -> anyhow::Result<u8> {
    let before = client.rollout(&args.name).await?;
    let view = send(order, &before.id, args, client).await?;
    say(&view, context)
}

async fn send(
    order: Order,
    id: &str,
    args: OrderArgs,
    client: &Client,
) -> anyhow::Result<RolloutView> {
    Ok(client.order(id, &request(order, args)).await?)
}

fn request(order: Order, args: OrderArgs) -> OrderRequest {
    OrderRequest {
        order,
        by: args.author.author(),
        reason: args.reason,
        emergency: None,
    }
}

fn say(view: &RolloutView, context: &Context) -> anyhow::Result<u8> {
    context.show(view, |view| outcome(view, context.paint()))?;
    Ok(0)
}

pub(super) async fn retry(
    args: BackArgs,
    context: &Context,
    client: &Client,
) -> anyhow::Result<u8> {
    let BackArgs { order, wait } = args;
    let service = newest(&order.name, "retry", client).await?.service;
    let request = UndoRequest {
        to: None,
        of: None,
        by: order.author.author(),
        reason: order.reason,
    };
    let started = client.retry(&service, &request).await?;
    started_then_wait(started, &wait, context, client).await
}

pub(super) async fn undo(args: UndoArgs, context: &Context, client: &Client) -> anyhow::Result<u8> {
    let view = newest(&args.back.order.name, "undo", client).await?;
    undo_from(&view, args.to, args.back, context, client).await
}

/// Goes back from a rollout, if nobody else has done so by now.
async fn undo_from(
    view: &RolloutView,
    to: Option<u64>,
    args: BackArgs,
    context: &Context,
    client: &Client,
) -> anyhow::Result<u8> {
    let BackArgs { order, wait } = args;
    let request = UndoRequest {
        to,
        of: Some(view.id.clone()),
        by: order.author.author(),
        reason: order.reason,
    };
    let started = client.undo(&view.service, &request).await?;
    started_then_wait(started, &wait, context, client).await
}

pub(super) async fn rollback(
    args: BackArgs,
    context: &Context,
    client: &Client,
) -> anyhow::Result<u8> {
    let view = newest(&args.order.name, "rollback", client).await?;
    let goes_back = view.admission.goes_back;
    match &view.phase {
        // An undo that failed left requests where they were.
        Phase::RolledBack { .. } | Phase::RollingBack { .. } if goes_back => {
            undo_from(&view, None, args, context, client).await
        }
        Phase::RolledBack { .. } | Phase::RollingBack { .. } => {
            if context.format == Format::Text {
                context.say(&format!(
                    "nothing to do: requests go to {} already; `friday undo {}` goes back one release more",
                    plain(&view.stable.release.image),
                    view.service,
                ))?;
            }
            say(&view, context)
        }
        Phase::Promoted if goes_back => gone_back(&view, "went", context),
        Phase::Promoted => undo_from(&view, None, args, context, client).await,
        // The way back itself is no release to abort.
        Phase::Deploying { .. }
        | Phase::Analyzing { .. }
        | Phase::Gated { .. }
        | Phase::Baking { .. }
        | Phase::Warm { .. }
        | Phase::Promoting { .. }
            if goes_back =>
        {
            if !args.wait.wait {
                return gone_back(&view, "goes", context);
            }
            wait_for(&view.id, &args.wait, context, client).await
        }
        Phase::Paused { .. } if goes_back => {
            let BackArgs { order, wait } = args;
            let after = send(Order::Resume, &view.id, order, client).await?;
            if !wait.wait {
                return say(&after, context);
            }
            wait_for(&after.id, &wait, context, client).await
        }
        Phase::Deploying { .. }
        | Phase::Analyzing { .. }
        | Phase::Gated { .. }
        | Phase::Baking { .. }
        | Phase::Warm { .. }
        | Phase::Paused { .. }
        | Phase::Promoting { .. } => {
            let BackArgs { order, wait } = args;
            let after = send(Order::Abort, &view.id, order, client).await?;
            if !wait.wait {
                return say(&after, context);
            }
            let code = wait_for(&after.id, &wait, context, client).await?;
            // It ended as it was told to: that is no failure of this command.
            Ok(if code == words::exit_code(Ending::Aborted) {
                0
            } else {
                code
            })
        }
    }
}

/// Says that a rollout went back, or goes, and so need not be told to.
fn gone_back(view: &RolloutView, goes: &str, context: &Context) -> anyhow::Result<u8> {
    if context.format == Format::Text {
        context.say(&format!(
            "nothing to do: {} {goes} back to {} already; `friday undo {}` goes back one release more",
            view.id,
            plain(&view.canary.release.image),
            view.service,
        ))?;
    }
    say(view, context)
}

/// The rollout of this name, if it is the newest of its service: going back from an older one would undo another.
async fn newest(name: &str, verb: &str, client: &Client) -> anyhow::Result<RolloutView> {
    let view = client.rollout(name).await?;
    if name != view.service {
        let newest = client.rollout(&view.service).await?;
        anyhow::ensure!(
            newest.id == view.id,
            Refusal(format!(
                "{name} is not the newest rollout of {service}, {} is: `friday {verb} {service}` if you mean that one",
                newest.id,
                service = view.service,
            ))
        );
    }
    Ok(view)
}
