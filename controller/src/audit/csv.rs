//! Records as comma-separated values (RFC 4180), safe to open in a spreadsheet.

use super::Record;

/// The first characters by which a spreadsheet takes a cell for a formula: an image or a reason shall not be run.
const FORMULA: [char; 6] = ['=', '+', '-', '@', '\t', '\r'];

const HEADINGS: [&str; 19] = [
    "rollout",
    "service",
    "environment",
    "image",
    "digest",
    "commit",
    "author",
    "started",
    "ended",
    "outcome",
    "cause",
    "approved_by",
    "orders",
    "emergency",
    "verdicts",
    "evidence",
    "first_event",
    "last_event",
    "hash",
];

/// The records, with a line of headings; every line ends with CR LF.
#[must_use]
pub fn csv(records: &[Record]) -> String {
    let mut text = line(&HEADINGS.map(str::to_owned));
    for record in records {
        let orders: Vec<String> = record
            .orders
            .iter()
            .map(|given| {
                let reason = given.reason.as_ref().map(|reason| format!(" ({reason})"));
                format!(
                    "{} {} by {}{}",
                    given.at,
                    given.order,
                    given.by,
                    reason.unwrap_or_default()
                )
            })
            .collect();
        text.push_str(&line(&[
            record.rollout.clone(),
            record.service.clone(),
            record.environment.clone(),
            record.image.clone(),
            record.digest.clone(),
            record.commit.clone().unwrap_or_default(),
            record.author.clone(),
            record.started.to_string(),
            record.ended.map(|at| at.to_string()).unwrap_or_default(),
            record.outcome.clone().unwrap_or_default(),
            record.cause.clone().unwrap_or_default(),
            record.approved_by.join("; "),
            orders.join("; "),
            record.emergency.join("; "),
            record.verdicts.to_string(),
            record.evidence.clone().unwrap_or_default(),
            record.first_event.to_string(),
            record.last_event.to_string(),
            record.hash.clone(),
        ]));
    }
    text
}

fn line(cells: &[String; HEADINGS.len()]) -> String {
    let cells: Vec<String> = cells.iter().map(|cell| self::cell(cell)).collect();
    format!("{}\r\n", cells.join(","))
}

/// A cell: a quote mark before what looks like a formula, and in quotes where it must be.
pub(super) fn cell(text: &str) -> String {
    let safe = if text.starts_with(FORMULA) {
        format!("'{text}")
    } else {
        text.to_owned()
    };
    if safe.contains([',', '"', '\r', '\n']) {
        format!("\"{}\"", safe.replace('"', "\"\""))
    } else {
        safe
    }
}
