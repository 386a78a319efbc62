//! Commands about the event log as a record: who released what, and that nothing of it was changed.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use rollout::Phase;
use serde::{Deserialize, Serialize};

use super::output::{Context, plain, table};
use super::{Refusal, Usage, path};
use crate::api::types::EventView;
use crate::audit::{Audit, Broken, Chain, Head, Record, Rows, csv};
use crate::auth::read_limited;
use crate::client::Client;
use crate::store::{Event, Saved, Sqlite, Store as _};

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
    head: Head,
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
    /// And the last entry that there was when it was written.
    File(Vec<Event>, Head),
}

impl Source {
    async fn open(
        from: &FromArgs,
        client: impl FnOnce() -> anyhow::Result<Client>,
    ) -> anyhow::Result<Self> {
        match (&from.file, &from.state_dir) {
            (Some(file), _) => {
                let (events, head) = of_file(file)?;
                Ok(Self::File(events, head))
            }
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
            Self::File(events, _) => {
                let from = usize::try_from(after)
                    .unwrap_or(usize::MAX)
                    .min(events.len());
                let until = (from + PAGE as usize).min(events.len());
                Ok(events[from..until].to_vec())
            }
        }
    }

    /// The last entry, if it is known beside the entries.
    fn head(&self) -> Option<Head> {
        match self {
            Self::File(_, head) => Some(head.clone()),
            Self::Controller(_) | Self::Store(_) => None,
        }
    }

    /// Where every rollout is, as far as that is known beside the log.
    async fn rollouts(&self) -> anyhow::Result<Rows> {
        let mut all: Vec<(String, Phase)> = Vec::new();
        loop {
            let last = all.last().map(|(id, _)| id.as_str());
            let page: Vec<(String, Phase)> = match self {
                Self::Controller(client) => {
                    let page = match last {
                        None => client.rollouts(None, PAGE).await?,
                        Some(last) => client.rollouts_before(last, PAGE).await?,
                    };
                    page.into_iter().map(|one| (one.id, one.phase)).collect()
                }
                Self::Store(store) => {
                    let page = match last {
                        None => store.history(None, PAGE).await?,
                        Some(last) => {
                            let last = rollout::RolloutId::from_text(last);
                            let page = store.older(None, &last, PAGE).await?;
                            page.unwrap_or_default()
                        }
                    };
                    let place = |saved: Saved| (saved.rollout.id.to_string(), saved.rollout.phase);
                    page.into_iter().map(place).collect()
                }
                Self::File(..) => Vec::new(),
            };
            if page.is_empty() {
                return Ok(Rows::new(all));
            }
            all.extend(page);
        }
    }
}

/// The entries of an export, and the last one that it names.
fn of_file(file: &Path) -> anyhow::Result<(Vec<Event>, Head)> {
    let usage = |reason: String| Usage(format!("--file {}: {reason}", file.display()));
    let text = read_limited(file, FILE_BYTES_MAX).map_err(|error| usage(error.to_string()))?;
    let exported: Exported =
        serde_json::from_str(&text).map_err(|error| usage(error.to_string()))?;
    if exported.events.is_empty() {
        let reason = "it has no events: `friday audit export --format json --events` writes them";
        return Err(usage(reason.to_owned()).into());
    }
    let events = exported.events.into_iter().map(event).collect();
    Ok((events, exported.head))
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

fn broken(broken: Broken) -> Refusal {
    Refusal(format!("the event log is not what was written: {broken}"))
}

/// Reads the log and checks its chain; `rows` are the rollouts that it has to tell of, read before it.
async fn read(
    source: &Source,
    since: Option<Head>,
    mut rows: Rows,
    keep: bool,
) -> anyhow::Result<Read> {
    let mut chain = Chain::new(since.into_iter().chain(source.head()));
    let (mut audit, mut events) = (Audit::default(), Vec::new());
    loop {
        let page = source.page(chain.head().seq).await?;
        if page.is_empty() {
            break;
        }
        for event in page {
            chain.take(&event).map_err(broken)?;
            audit.take(&event);
            rows.take(&event);
            if keep {
                events.push(event);
            }
        }
    }
    let head = chain.finish().map_err(broken)?;
    rows.finish(&head).map_err(broken)?;
    Ok(Read {
        head,
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
            let Read { records, .. } = read(&source, None, Rows::default(), false).await?;
            context.show(&records, |records| records_table(records))?;
        }
        Some(What::Verify(verify)) => {
            // First the rollouts: the log goes on while it is read.
            let rows = source.rollouts().await?;
            let Read { head, .. } = read(&source, verify.since, rows, false).await?;
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
            let read = read(&source, None, Rows::default(), export.events).await?;
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::event_hash;

    #[tokio::test]
    async fn an_export_whose_last_events_were_cut_out_is_not_whole() {
        let mut before = String::new();
        let events: Vec<serde_json::Value> = (1..=3)
            .map(|seq| {
                let (at, data) = ("2026-11-20T16:00:00Z", json!({}));
                before = event_hash(&before, seq, at, None, "lock", "ada", &data.to_string());
                json!({ "seq": seq, "at": at, "rollout": null, "kind": "lock", "author": "ada", "data": data, "hash": before })
            })
            .collect();
        let head = json!({ "seq": 3, "hash": before });
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("export.json");
        let verify = async |export: serde_json::Value| {
            std::fs::write(&file, export.to_string()).unwrap();
            let (events, head) = of_file(&file)?;
            let source = Source::File(events, head);
            let rows = source.rollouts().await?;
            read(&source, None, rows, false)
                .await
                .map(|read| read.head.seq)
        };
        let whole = json!({ "head": head, "releases": [], "events": events });
        assert_eq!(verify(whole).await.unwrap(), 3);
        let cut = json!({ "head": head, "releases": [], "events": events[..2] });
        let said = verify(cut).await.unwrap_err().to_string();
        assert!(
            said.contains("ends with event 2, and it had event 3"),
            "{said}"
        );
        let headless = json!({ "releases": [], "events": events[..2] });
        let said = verify(headless).await.unwrap_err().to_string();
        assert!(said.contains("head"), "{said}");
    }
}
