//! Who released what, when, approved by whom, on which evidence, into which environment: read from the event log alone,
//! whose chain of hashes is checked on the way. Pure.
//!
//! The chain says that no entry was changed, left out or put in between. It cannot say that the newest entries were not cut
//! off: the rollouts beside it say so, as far as nobody wrote those anew too. Whoever wants to be certain keeps the number
//! and the hash of an earlier look, and asks for them again.

mod csv;
mod rows;

use std::collections::BTreeMap;

use rollout::{Ending, Phase, RolloutId, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::replay::JudgedEntry;
use crate::store::{Event, event_hash};
use crate::words;

pub use csv::csv;
pub use rows::Rows;

/// Orders of one rollout that are kept. A rollout has some; a script that orders in a loop shall not fill the table.
const ORDERS_MAX: usize = 100;

/// The last entry of a chain that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Head {
    /// Its number; 0 before the first.
    pub seq: i64,
    /// Its hash; empty before the first.
    pub hash: String,
}

/// The first entry that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// There is a gap.
    #[error("event {expected} is missing: after event {before} comes event {found}")]
    Missing {
        /// The number that should come.
        expected: i64,
        /// The one before it.
        before: i64,
        /// The one that came.
        found: i64,
    },
    /// It, or one before it, was changed.
    #[error("event {seq} does not fit: it was changed, or the hash of the event before it was")]
    Changed {
        /// Its number.
        seq: i64,
    },
    /// The log is another one than before.
    #[error("event {seq} has another hash than it had: the log was written anew")]
    Rewritten {
        /// Its number.
        seq: i64,
    },
    /// The log is shorter than before.
    #[error("the log ends with event {last}, and it had event {seq}: its end was cut off")]
    CutOff {
        /// The last there is.
        last: i64,
        /// One that there was.
        seq: i64,
    },
    /// A rollout is where the log never had it.
    #[error(
        "the log ends with event {last} and says nothing of {rollout} being {phase}: its end was cut off, or the rollout was written anew"
    )]
    Untold {
        /// The last there is.
        last: i64,
        /// The rollout.
        rollout: String,
        /// Where it is.
        phase: String,
    },
}

/// The chain, checked entry by entry.
#[derive(Debug, Clone, Default)]
pub struct Chain {
    head: Head,
    expected: Vec<Head>,
}

impl Chain {
    /// A chain from the beginning of the log; `expected` are entries that earlier looks found.
    #[must_use]
    pub fn new(expected: impl IntoIterator<Item = Head>) -> Self {
        Self {
            head: Head::default(),
            expected: expected.into_iter().filter(|head| head.seq > 0).collect(),
        }
    }

    /// The last entry so far.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Takes the next entry.
    ///
    /// # Errors
    /// It does not fit.
    pub fn take(&mut self, event: &Event) -> Result<(), Broken> {
        let expected = self.head.seq + 1;
        if event.seq != expected {
            return Err(Broken::Missing {
                expected,
                before: self.head.seq,
                found: event.seq,
            });
        }
        // Stored as this very text: keys in order, times in their shortest form, numbers that come back as they were.
        let hash = event_hash(
            &self.head.hash,
            event.seq,
            &event.at.to_string(),
            event.rollout.as_ref().map(RolloutId::as_str),
            &event.kind,
            &event.author,
            &event.data.to_string(),
        );
        if hash != event.hash {
            return Err(Broken::Changed { seq: event.seq });
        }
        let here = |head: &Head| head.seq == event.seq;
        if self
            .expected
            .iter()
            .any(|head| here(head) && head.hash != hash)
        {
            return Err(Broken::Rewritten { seq: event.seq });
        }
        self.expected.retain(|head| !here(head));
        self.head = Head {
            seq: event.seq,
            hash,
        };
        Ok(())
    }

    /// The last entry, once there are no more.
    ///
    /// # Errors
    /// An entry that was expected never came.
    pub fn finish(self) -> Result<Head, Broken> {
        match self.expected.iter().map(|head| head.seq).max() {
            Some(seq) => Err(Broken::CutOff {
                last: self.head.seq,
                seq,
            }),
            None => Ok(self.head),
        }
    }
}

/// An order that somebody gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Given {
    /// When.
    pub at: Timestamp,
    /// Who.
    pub by: String,
    /// What: `approve`, `promote --full`, …
    pub order: String,
    /// In their words.
    pub reason: Option<String>,
}

/// One release: a rollout from its first entry to its last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Record {
    /// The rollout.
    pub rollout: String,
    /// What was released.
    pub service: String,
    /// Into which environment.
    pub environment: String,
    /// The image, as its author wrote it.
    pub image: String,
    /// What ran.
    pub digest: String,
    /// The commit it was built from.
    pub commit: Option<String>,
    /// Who started it.
    pub author: String,
    /// When.
    pub started: Timestamp,
    /// When it ended; `None` while it runs.
    pub ended: Option<Timestamp>,
    /// How: `promoted`, `rolled back`, …; `None` while it runs.
    pub outcome: Option<String>,
    /// Why, where it was not promoted.
    pub cause: Option<String>,
    /// Who approved, in order.
    pub approved_by: Vec<String>,
    /// Every order that was given, approvals too; the first hundred.
    pub orders: Vec<Given>,
    /// The emergency words that lifted freezes, each with who gave it.
    pub emergency: Vec<String>,
    /// How many verdicts there were.
    pub verdicts: u64,
    /// The last of them, in words: the evidence it ended on.
    pub evidence: Option<String>,
    /// The number of its first entry.
    pub first_event: i64,
    /// The number of its last.
    pub last_event: i64,
    /// The hash of its last entry, which stands for all before it.
    pub hash: String,
}

/// The records, as the log is read.
#[derive(Debug, Clone, Default)]
pub struct Audit {
    records: BTreeMap<i64, Record>,
    open: BTreeMap<String, i64>,
    verdicts: BTreeMap<i64, Value>,
}

impl Audit {
    /// Takes the next entry.
    pub fn take(&mut self, event: &Event) {
        let Some(id) = event.rollout.as_ref().map(RolloutId::as_str) else {
            return;
        };
        if event.kind == "started" {
            self.open.insert(id.to_owned(), event.seq);
            self.records.insert(event.seq, begun(id, event));
            return;
        }
        let Some(first) = self.open.get(id) else {
            return;
        };
        let Some(record) = self.records.get_mut(first) else {
            return;
        };
        record.last_event = event.seq;
        record.hash.clone_from(&event.hash);
        match event.kind.as_str() {
            "verdict" => {
                record.verdicts += 1;
                self.verdicts.insert(*first, event.data.clone());
            }
            "order" => {
                let given = given(event);
                let is_approval =
                    given.order == "approve" || event.data["approves"] == Value::Bool(true);
                if is_approval {
                    record.approved_by.push(given.by.clone());
                }
                if record.orders.len() < ORDERS_MAX {
                    record.orders.push(given);
                }
            }
            "emergency" => {
                let reason = text(&event.data, "reason").unwrap_or_default();
                record.emergency.push(format!("{}: {reason}", event.author));
            }
            "phase" => {
                let to = event.data.get("to").cloned().unwrap_or_default();
                if let Ok(phase) = serde_json::from_value::<Phase>(to) {
                    ended(record, &phase, event.at);
                }
            }
            _ => {}
        }
    }

    /// The records, oldest first.
    #[must_use]
    pub fn finish(mut self) -> Vec<Record> {
        for (first, data) in self.verdicts {
            if let (Some(record), Ok(entry)) = (
                self.records.get_mut(&first),
                serde_json::from_value::<JudgedEntry>(data),
            ) {
                record.evidence = Some(words::verdict(&entry.verdict));
            }
        }
        self.records.into_values().collect()
    }
}

fn text(data: &Value, key: &str) -> Option<String> {
    data.get(key)?.as_str().map(str::to_owned)
}

fn begun(id: &str, event: &Event) -> Record {
    let word = |key| text(&event.data, key).unwrap_or_default();
    Record {
        rollout: id.to_owned(),
        service: word("service"),
        environment: word("environment"),
        image: word("image"),
        digest: word("digest"),
        commit: text(&event.data, "commit"),
        author: event.author.clone(),
        started: event.at,
        ended: None,
        outcome: None,
        cause: None,
        approved_by: Vec::new(),
        orders: Vec::new(),
        emergency: Vec::new(),
        verdicts: 0,
        evidence: None,
        first_event: event.seq,
        last_event: event.seq,
        hash: event.hash.clone(),
    }
}

fn given(event: &Event) -> Given {
    Given {
        at: event.at,
        by: event.author.clone(),
        order: text(&event.data, "order").unwrap_or_default(),
        reason: text(&event.data, "reason"),
    }
}

fn ended(record: &mut Record, phase: &Phase, at: Timestamp) {
    let ending = match phase {
        Phase::Promoted => Ending::Promoted,
        Phase::RolledBack { cause } => {
            record.cause = Some(words::cause(cause));
            cause.ending()
        }
        Phase::Deploying { .. }
        | Phase::Analyzing { .. }
        | Phase::Gated { .. }
        | Phase::Baking { .. }
        | Phase::Warm { .. }
        | Phase::Paused { .. }
        | Phase::Promoting { .. }
        | Phase::RollingBack { .. } => return,
    };
    record.ended = Some(at);
    record.outcome = Some(words::ending(ending).to_owned());
}

#[cfg(test)]
mod tests;
