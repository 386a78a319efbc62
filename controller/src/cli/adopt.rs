//! `friday adopt`: a `friday.yml` for a service that runs, and what stands between it and its first release.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::output::{Context, Format, plain};
use super::{Refusal, Usage, name};
use crate::adopt::{Adoption, Step, Subject, Who, adopt as adopted, tasks};
use crate::app::{EngineArgs, docker_config};
use crate::orchestrator::swarm::{Found, Visit};

/// Adopts a service.
#[derive(Debug, Args)]
pub(super) struct AdoptArgs {
    /// The service as `docker service ls` shows it
    #[arg(value_parser = name)]
    service: String,
    /// Write friday.yml to this file, in place of standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Overwrite that file
    #[arg(long, requires = "out")]
    force: bool,
    /// The port that its tasks listen on, where nothing of the service says it, or says it wrongly
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Reads the service and prints or writes a file for it; nothing of the service is changed.
pub(super) async fn adopt(args: AdoptArgs, context: &Context) -> anyhow::Result<u8> {
    let visit = Visit::at(args.engine.address()?, docker_config()).await?;
    visit.manager().await?;
    let mut services = visit.services().await?;
    let service = visit.named(&services, &args.service)?.clone();
    service.fits()?;
    services.retain(|other| other.name() != service.name());
    let image = visit.image_config(service.image()).await?;
    let holder = visit.holder(service.image()).await?;
    let networks = visit.networks().await?;
    let adoption = adopted(&Subject {
        engine: visit.address(),
        service: &service,
        image: image.as_ref(),
        holder: &holder,
        networks: &networks,
        others: &services,
        port: args.port,
    })?;
    if let Some(file) = &args.out {
        write(file, &adoption.friday_yml, args.force)?;
    }
    match (context.format, &args.out) {
        (Format::Json, _) => context.show(&adoption, |_| String::new())?,
        (Format::Text, None) => {
            context.note(&words(&adoption, &service))?;
            context.say(&adoption.friday_yml)?;
        }
        (Format::Text, Some(file)) => {
            context.note(&words(&adoption, &service))?;
            context.note(&format!("{} is written", file.display()))?;
        }
    }
    Ok(0)
}

/// Writes the file; one that is there only if that is wanted.
fn write(file: &Path, text: &str, force: bool) -> anyhow::Result<()> {
    let shown = file.display();
    let mut options = OpenOptions::new();
    options.write(true);
    if force {
        options.create(true).truncate(true);
    } else {
        options.create_new(true);
    }
    let written = options
        .open(file)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    match written {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let words = format!("{shown} is there already: choose another --out, or --force");
            Err(Refusal(words).into())
        }
        Err(error) => Err(Usage(format!("--out {shown}: {error}")).into()),
    }
}

/// What is to be done, and what will be.
fn words(adoption: &Adoption, service: &Found) -> String {
    let Adoption {
        service: name,
        engine,
        replicas,
        steps,
        ..
    } = adoption;
    let mut lines = vec![format!(
        "{name} at {engine}: {} of {}; nothing of it was changed",
        tasks(*replicas),
        plain(service.image())
    )];
    let mut number = 0;
    for (who, heading) in [
        (Who::YouFirst, "Before users come by the proxy, you:"),
        (Who::YouTraffic, "Then, in this order, you:"),
        (Who::Friday, "At each release, Friday by itself:"),
    ] {
        let own: Vec<&Step> = steps.iter().filter(|step| step.who == who).collect();
        if own.is_empty() {
            continue;
        }
        lines.push(heading.to_owned());
        for Step { what, how, .. } in own {
            let mark = if who == Who::Friday {
                " -".to_owned()
            } else {
                number += 1;
                format!("{number:>2}.")
            };
            lines.push(format!("{mark} {}", plain(what)));
            lines.extend(how.iter().map(|how| format!("      {}", plain(how))));
        }
    }
    lines.join("\n")
}
