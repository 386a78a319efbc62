//! `friday doctor`: asks the controller, and an engine if one is named, and says what is wrong.

use std::collections::BTreeSet;

use clap::Args;
use rollout::Duration;
use tokio::time::{Instant, sleep};

use super::output::{Context, Paint, plain};
use crate::api::types::health::HealthView;
use crate::api::types::{ProxyView, RolloutView};
use crate::app::{EngineIfAny, docker_config};
use crate::client::{Client, ClientError};
use crate::doctor::{EngineAnswer, EngineFacts, Facts, Finding, Level, diagnose};
use crate::fleet::PROXY_LIVE;
use crate::orchestrator::swarm::{Found, Visit, VisitError};

/// Rollouts that are looked through for those that are open.
const ROLLOUTS_MAX: u32 = 1000;

/// Most open rollouts that are looked at one by one.
const OPEN_MAX: usize = 100;

/// A new table is at every proxy in under a second, and in its reports within another.
const TABLE_MAX: Duration = Duration::from_secs(3);

/// Between two looks at proxies that do not have the newest table.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The exit code where something fails. The contract has it for a controller, engine or metrics out of reach; what else fails
/// here is out of reach for a release just so.
const FAILS: u8 = 30;

/// Looks for what is wrong.
#[derive(Debug, Args)]
#[command(after_help = "\
Each line is ok, warn or fail, with what to do. DOCKER_HOST names the engine too.
Exit codes: 0 nothing fails (warnings may be there); 30 something fails: the controller, the engine, the metrics source or every
proxy is out of reach, or tasks, state or a rollout are in a way that no release gets past; 20 the controller refuses the token.")]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    engine: EngineIfAny,
}

/// Prints what was found.
pub(super) async fn doctor(
    args: DoctorArgs,
    context: &Context,
    client: &Client,
) -> anyhow::Result<u8> {
    let engine = match args.engine.address()? {
        Some(address) => {
            let shown = address.to_string();
            let visit = Visit::at(address, docker_config()).await?;
            Some(EngineFacts {
                address: shown,
                answer: visited(&visit)
                    .await
                    .map_err(|error| format!("{:#}", anyhow::Error::from(error))),
            })
        }
        None => None,
    };
    let asked = ask(context, client, engine.as_ref()).await;
    let found = match asked {
        Ok(found) => found,
        // The engine is worth a line also where there is no controller to compare it with.
        Err(error) if error.exit_code() == FAILS => alone(&error, engine.as_ref()),
        Err(error) => return Err(error.into()),
    };
    let paint = context.paint();
    context.show(&found, |found| words(found, paint))?;
    let worst = found.iter().map(|finding| finding.level).max();
    Ok(if worst == Some(Level::Fail) { FAILS } else { 0 })
}

async fn ask(
    context: &Context,
    client: &Client,
    engine: Option<&EngineFacts>,
) -> Result<Vec<Finding>, ClientError> {
    let health = client.health().await?;
    let now = context.clock.now();
    let (services, agents) = (client.services().await?, client.agents().await?);
    let (proxies, behind) = proxies(client, &health).await?;
    let rollouts = open(client).await?;
    Ok(diagnose(&Facts {
        url: client.url(),
        now,
        health: &health,
        services: &services,
        rollouts: &rollouts,
        proxies: &proxies,
        behind: &behind,
        agents: &agents,
        engine,
    }))
}

/// The rollouts that have not ended, oldest first. One that ends meanwhile is left out.
async fn open(client: &Client) -> Result<Vec<RolloutView>, ClientError> {
    let all = client.rollouts(None, ROLLOUTS_MAX).await?;
    let open = all.iter().rev().filter(|rollout| rollout.ending.is_none());
    let mut views = Vec::new();
    for rollout in open.take(OPEN_MAX) {
        let view = client.rollout(&rollout.id).await?;
        if view.ending.is_none() {
            views.push(view);
        }
    }
    Ok(views)
}

/// The proxies, and those that did not get the table that was the newest at first.
async fn proxies(
    client: &Client,
    health: &HealthView,
) -> Result<(Vec<ProxyView>, BTreeSet<String>), ClientError> {
    let until = Instant::now() + TABLE_MAX;
    let newest = generation(&health.generation);
    loop {
        let proxies = client.proxies().await?;
        let live = proxies
            .iter()
            .filter(|proxy| proxy.silent_seconds < PROXY_LIVE.as_secs_f64());
        let behind: BTreeSet<String> = live
            .filter(|proxy| generation(&proxy.generation) < newest)
            .map(|proxy| proxy.name.clone())
            .collect();
        if behind.is_empty() || Instant::now() >= until {
            return Ok((proxies, behind));
        }
        sleep(LOOK_AGAIN).await;
    }
}

fn generation(text: &str) -> proxy_api::Generation {
    text.parse().unwrap_or_default()
}

async fn visited(visit: &Visit) -> Result<EngineAnswer, VisitError> {
    let version = visit.manager().await?;
    let (nodes, services) = (visit.nodes().await?, visit.services().await?);
    let canaries = services
        .iter()
        .filter_map(|found| Some((found.name().to_owned(), found.canary_of()?.to_owned())));
    let users = services.iter().filter(|found| found.canary_of().is_none());
    Ok(EngineAnswer {
        version,
        nodes,
        canaries: canaries.collect(),
        services: users.map(|found: &Found| found.name().to_owned()).collect(),
    })
}

/// What is left to say without a controller.
fn alone(error: &ClientError, engine: Option<&EngineFacts>) -> Vec<Finding> {
    let chain = crate::reconciler::chain(error);
    let mut found = vec![Finding::of(
        Level::Fail,
        "controller",
        chain,
        "start friday serve, or set --url or FRIDAY_URL; requests go on by the proxies' last table, and no release moves",
    )];
    match engine.map(|engine| (&engine.address, &engine.answer)) {
        Some((address, Ok(answer))) => found.push(Finding::ok(
            "engine",
            format!("{address} answers, version {}", answer.version),
        )),
        Some((_, Err(words))) => found.push(Finding::of(
            Level::Fail,
            "engine",
            words.clone(),
            "start it, or set --engine or DOCKER_HOST",
        )),
        None => {}
    }
    found
}

fn words(found: &[Finding], paint: Paint) -> String {
    let width = found
        .iter()
        .map(|finding| finding.about.chars().count())
        .max()
        .unwrap_or(0);
    let line = |finding: &Finding| {
        let Finding {
            level,
            about,
            what,
            mend,
        } = finding;
        let word = format!("{:<4}", level.as_str());
        let word = match level {
            Level::Ok => paint.good(&word),
            Level::Warn => paint.waiting(&word),
            Level::Fail => paint.bad(&word),
        };
        let mend = mend
            .as_ref()
            .map(|mend| format!(" → {mend}"))
            .unwrap_or_default();
        plain_line(&word, about, width, &format!("{what}{mend}"))
    };
    found.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn plain_line(word: &str, about: &str, width: usize, rest: &str) -> String {
    format!("{word}  {:<width$}  {}", plain(about), plain(rest))
}
