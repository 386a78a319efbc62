//! Commands about the event log as a record: who released what, and that nothing of it was changed.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use super::output::{Context, plain, table};
use super::{Refusal, Usage, path};
use crate::api::types::EventView;
use crate::audit::{Audit, Broken, Chain, Head, Record, csv};
use crate::auth::read_limited;
use crate::client::Client;
use crate::store::{Event, Sqlite, Store as _};

/// Entries that are asked for at once: as many as a page has.
const PAGE: u32 = 1_000;

/// Longest file of an export. An entry has about a kilobyte: this is a quarter of a million.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Reads the event log.
#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    from: FromArgs,
}

/// Where the log is read.
#[derive(Debug, Clone, Args)]
struct FromArgs {
    /// Read the state of a controller that is not asked, or does not run, in this folder
    #[arg(long, global = true, value_parser = path(), value_name = "DIR", conflicts_with = "file")]
    state_dir: Option<PathBuf>,
    /// Read what `friday audit export --format json --events` wrote
    #[arg(long, global = true, value_parser = path(), value_name = "FILE")]
    file: Option<PathBuf>,
}

/// What is wanted of the log.
#[derive(Debug, Subcommand)]
enum What {
    /// Check the whole chain of hashes; a failure names the first event that does not fit
    Verify(VerifyArgs),
    /// Print every release with who, when, where, approvals and evidence, for a spreadsheet or a program
    Export(ExportArgs),
}

/// Checks the chain.
#[derive(Debug, Args)]
struct VerifyArgs {
    /// What an earlier `verify` printed, NUMBER:HASH: fails if the log was cut off or written anew since
    #[arg(long, value_name = "NUMBER:HASH", value_parser = head)]
    since: Option<Head>,
}

/// Prints the records.
#[derive(Debug, Args)]
struct ExportArgs {
    /// How
    #[arg(long, value_enum, default_value_t = ExportFormat::Csv)]
    format: ExportFormat,
    /// With every entry of the log, so that `friday audit verify --file` can check it elsewhere; json only
    #[arg(long)]
    events: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ExportFormat {
    /// Comma-separated values
    Csv,
    /// JSON
    Json,
}

/// An export as JSON.
#[derive(Serialize)]
struct Export<'a> {
    head: &'a Head,
    releases: &'a [Record],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    events: Vec<EventView>,
}

/// What is read of one.
#[derive(Deserialize)]
struct Exported {
    #[serde(default)]
    events: Vec<EventView>,
}

fn head(text: &str) -> Result<Head, String> {
    let read = || {
        let (seq, hash) = text.split_once(':')?;
        let is_hash = hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit());
        is_hash.then_some(Head {
            seq: seq.parse().ok().filter(|seq| *seq > 0)?,
            hash: hash.to_ascii_lowercase(),
        })
    };
    read().ok_or_else(|| {
        "expected the number and the hash that `verify` printed, such as 17:5e88…".to_owned()
    })
}

/// What was read of the log.
struct Read {
    head: Head,
    records: Vec<Record>,
    events: Vec<Event>,
}

/// Where entries come from.
enum Source {
    Controller(Box<Client>),
    Store(Sqlite),
    File(Vec<Event>),
}

impl Source {
    async fn open(
        from: &FromArgs,
        client: impl FnOnce() -> anyhow::Result<Client>,
    ) -> anyhow::Result<Self> {
        match (&from.file, &from.state_dir) {
            (Some(file), _) => Ok(Self::File(of_file(file)?)),
            (None, Some(folder)) => {
                let file = folder.join("friday.db");
                Ok(Self::Store(Sqlite::read_only(&file).await?))
            }
            (None, None) => Ok(Self::Controller(Box::new(client()?))),
        }
    }

    /// The entries after this one.
    async fn page(&self, after: i64) -> anyhow::Result<Vec<Event>> {
        match self {
            Self::Controller(client) => {
                let page = client.log(after, PAGE).await?;
                Ok(page.into_iter().map(event).collect())
            }
            Self::Store(store) => Ok(store.events(None, after, PAGE).await?),
            Self::File(events) => {
                let from = usize::try_from(after)
                    .unwrap_or(usize::MAX)
                    .min(events.len());
                let until = (from + PAGE as usize).min(events.len());
                Ok(events[from..until].to_vec())
            }
        }
    }
}

fn of_file(file: &Path) -> anyhow::Result<Vec<Event>> {
    let usage = |reason: String| Usage(format!("--file {}: {reason}", file.display()));
    let text = read_limited(file, FILE_BYTES_MAX).map_err(|error| usage(error.to_string()))?;
    let exported: Exported =
        serde_json::from_str(&text).map_err(|error| usage(error.to_string()))?;
    if exported.events.is_empty() {
        let reason = "it has no events: `friday audit export --format json --events` writes them";
        return Err(usage(reason.to_owned()).into());
    }
    Ok(exported.events.into_iter().map(event).collect())
}

fn event(view: EventView) -> Event {
    Event {
        seq: view.seq,
        at: view.at,
        rollout: view.rollout.as_deref().map(rollout::RolloutId::from_text),
        kind: view.kind,
        author: view.author,
        data: view.data,
        hash: view.hash,
    }
}

async fn read(source: &Source, since: Option<Head>, keep: bool) -> anyhow::Result<Read> {
    let broken =
        |broken: Broken| Refusal(format!("the event log is not what was written: {broken}"));
    let (mut chain, mut audit, mut events) = (Chain::new(since), Audit::default(), Vec::new());
    loop {
        let page = source.page(chain.head().seq).await?;
        if page.is_empty() {
            break;
        }
        for event in page {
            chain.take(&event).map_err(broken)?;
            audit.take(&event);
            if keep {
                events.push(event);
            }
        }
    }
    Ok(Read {
        head: chain.finish().map_err(broken)?,
        records: audit.finish(),
        events,
    })
}

pub(super) async fn audit(
    args: AuditArgs,
    context: &Context,
    client: impl FnOnce() -> anyhow::Result<Client>,
) -> anyhow::Result<u8> {
    let source = Source::open(&args.from, client).await?;
    match args.what {
        None => {
            let Read { records, .. } = read(&source, None, false).await?;
            context.show(&records, |records| records_table(records))?;
        }
        Some(What::Verify(verify)) => {
            let Read { head, .. } = read(&source, verify.since, false).await?;
            context.show(&head, |head| {
                if head.seq == 0 {
                    return "the event log is empty".to_owned();
                }
                format!(
                    "all {} events fit\n{}:{}\nkeep this line: `friday audit verify --since` tells with it whether the log was cut off",
                    head.seq, head.seq, head.hash
                )
            })?;
        }
        Some(What::Export(export)) => {
            if export.events && export.format == ExportFormat::Csv {
                return Err(Usage("--events takes --format json".to_owned()).into());
            }
            let read = read(&source, None, export.events).await?;
            match export.format {
                ExportFormat::Csv => context.say(&csv(&read.records))?,
                ExportFormat::Json => {
                    let export = Export {
                        head: &read.head,
                        releases: &read.records,
                        events: read.events.into_iter().map(EventView::from).collect(),
                    };
                    context.say(&serde_json::to_string_pretty(&export)?)?;
                }
            }
        }
    }
    Ok(0)
}

fn records_table(records: &[Record]) -> String {
    if records.is_empty() {
        return "nothing was released yet".to_owned();
    }
    let row = |record: &Record| {
        let approved = if record.approved_by.is_empty() {
            "-".to_owned()
        } else {
            plain(&record.approved_by.join(", "))
        };
        let why = record
            .cause
            .as_ref()
            .or(record.evidence.as_ref())
            .map_or_else(|| "-".to_owned(), |text| plain(text));
        [
            record.started.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
            plain(&record.rollout),
            plain(&record.environment),
            plain(&record.image),
            plain(&record.author),
            approved,
            record.outcome.clone().unwrap_or_else(|| "runs".to_owned()),
            why,
        ]
    };
    let rows: Vec<_> = records.iter().map(row).collect();
    table(
        [
            "STARTED",
            "ROLLOUT",
            "ENVIRONMENT",
            "IMAGE",
            "AUTHOR",
            "APPROVED",
            "OUTCOME",
            "EVIDENCE",
        ],
        &rows,
    )
}
