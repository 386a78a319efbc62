//! Every verdict of a rollout once more, from its event log alone.
//!
//! The log holds what the judge was given: the guard, what was known of stable at the start, and then blocks, gauges and
//! restarts in their order. Given the same again, the judge must say the same, bit for bit. If it does not, either the
//! rules have changed since, which the verdicts' own version tells, or something is wrong. Given another guard, the same
//! log says how the release would have fared under it.

use rollout::judge::{Baseline, CheckSample, Decision, Position, RULES_VERSION, SaturationSample};
use rollout::{Block, Guard, Judge, Timestamp, Verdict};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An entry of the event log, as far as it matters here.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its number.
    pub seq: i64,
    /// When.
    pub at: Timestamp,
    /// What kind.
    pub kind: String,
    /// What happened.
    pub data: Value,
}

/// Why a log cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// An entry is not as this version writes it.
    #[error("event {seq} ({kind}) cannot be read; it was written by another version")]
    Entry {
        /// Its number.
        seq: i64,
        /// Its kind.
        kind: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The log has verdicts, but not what they began with.
    #[error("the log has no entry of kind {0:?}, so the verdicts cannot be derived again")]
    Missing(&'static str),
}

/// A verdict that came out differently.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// The entry.
    pub seq: i64,
    /// When it was found.
    pub at: Timestamp,
    /// What the log says.
    pub logged: Verdict,
    /// What comes out now.
    pub now: Verdict,
}

/// What a replay found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Replay {
    /// How many verdicts there are.
    pub verdicts: usize,
    /// Those that came out differently.
    pub differences: Vec<Difference>,
    /// The version of the rules that were in force then; several if the controller was updated on the way.
    pub rules_then: Vec<u32>,
    /// The version in force now.
    pub rules_now: u32,
}

/// What another guard would have said of the same blocks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WhatIf {
    /// How many blocks were judged.
    pub blocks: usize,
    /// When the canary would have been rolled back, if at all, with the verdict.
    pub fails: Option<(Timestamp, Verdict)>,
    /// When the log's own guard rolled it back, if it did.
    pub failed: Option<Timestamp>,
    /// The first block of each step at which its gate would have been open, and at which it was.
    pub gates: Vec<Gate>,
}

/// When the gate of a step opened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gate {
    /// The step, from 0.
    pub step: usize,
    /// Under the other guard; `None`: not within the blocks that the log has of the step.
    pub then: Option<Timestamp>,
    /// As it was; `None`: it did not, or a person opened it.
    pub was: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Started {
    spec: StartedSpec,
}

#[derive(Deserialize)]
struct StartedSpec {
    guard: Guard,
}

/// What the judge began with, as it stands in the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Began {
    /// The version of the rules.
    pub rules: u32,
    /// What was known of stable.
    pub baseline: Baseline,
}

/// What the judge is told beside requests, as it stands in the log.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Sample {
    /// Restarts of the canary's tasks in the last five minutes.
    pub canary_restarts: u32,
    /// The same of stable's.
    pub stable_restarts: u32,
    /// What the tasks use; each ten seconds.
    pub gauges: Option<SaturationSample>,
    /// What the tasks use, when one of the canary's is about to reach its limit.
    pub limits: Option<SaturationSample>,
    /// Answers to checks of the guard.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckSample>,
}

impl Sample {
    /// Tells the judge.
    pub fn tell(&self, judge: &mut Judge, guard: &Guard) {
        judge.restart(self.canary_restarts, self.stable_restarts);
        if let Some(gauges) = &self.gauges {
            judge.saturation(gauges, guard);
        }
        if let Some(limits) = &self.limits {
            judge.limits(limits);
        }
        judge.checks(&self.checks, guard);
    }
}

/// A judged block, as it stands in the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JudgedEntry {
    /// Where the rollout was.
    pub position: Position,
    /// The block.
    pub block: Block,
    /// What was said of it.
    pub verdict: Verdict,
}

fn read<T: serde::de::DeserializeOwned>(entry: &Entry) -> Result<T, ReplayError> {
    T::deserialize(&entry.data).map_err(|source| ReplayError::Entry {
        seq: entry.seq,
        kind: entry.kind.clone(),
        source,
    })
}

/// Judges the log's blocks again, with its own guard or another, and shows each verdict beside the logged one.
fn judge_again(
    entries: &[Entry],
    guard: Option<&Guard>,
    mut see: impl FnMut(&Entry, JudgedEntry, Verdict),
) -> Result<(), ReplayError> {
    let mut own_guard = None;
    let mut judge: Option<Judge> = None;
    for entry in entries {
        match entry.kind.as_str() {
            "started" => own_guard = Some(read::<Started>(entry)?.spec.guard),
            "judge" => {
                let guard = guard
                    .or(own_guard.as_ref())
                    .ok_or(ReplayError::Missing("started"))?;
                judge = Some(Judge::new(guard, &read::<Began>(entry)?.baseline));
            }
            "sample" | "verdict" => {
                let guard = guard
                    .or(own_guard.as_ref())
                    .ok_or(ReplayError::Missing("started"))?;
                let judge = judge.as_mut().ok_or(ReplayError::Missing("judge"))?;
                if entry.kind == "sample" {
                    read::<Sample>(entry)?.tell(judge, guard);
                } else {
                    let judged: JudgedEntry = read(entry)?;
                    let now = judge.judge(&judged.block, guard, &judged.position);
                    see(entry, judged, now);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Derives every verdict of a log again.
///
/// # Errors
/// The log is not whole, or was written by another version.
pub fn replay(entries: &[Entry]) -> Result<Replay, ReplayError> {
    let mut replay = Replay {
        verdicts: 0,
        differences: Vec::new(),
        rules_then: Vec::new(),
        rules_now: RULES_VERSION,
    };
    judge_again(entries, None, |entry, judged, now| {
        replay.verdicts += 1;
        if !replay.rules_then.contains(&judged.verdict.rules) {
            replay.rules_then.push(judged.verdict.rules);
        }
        if judged.verdict != now {
            replay.differences.push(Difference {
                seq: entry.seq,
                at: entry.at,
                logged: judged.verdict,
                now,
            });
        }
    })?;
    Ok(replay)
}

/// Judges a log by another guard. Its weights stay as they were: what would have been routed otherwise, nobody knows.
///
/// # Errors
/// As [`replay`].
pub fn what_if(entries: &[Entry], guard: &Guard) -> Result<WhatIf, ReplayError> {
    let mut outcome = WhatIf {
        blocks: 0,
        fails: None,
        failed: None,
        gates: Vec::new(),
    };
    judge_again(entries, Some(guard), |entry, judged, now| {
        outcome.blocks += 1;
        if matches!(judged.verdict.decision, Decision::Fail { .. }) {
            outcome.failed.get_or_insert(entry.at);
        }
        if matches!(now.decision, Decision::Fail { .. }) && outcome.fails.is_none() {
            outcome.fails = Some((entry.at, now.clone()));
        }
        // Nothing is waited for any more where the canary has every request.
        if judged.position.is_watch() {
            return;
        }
        let step = judged.position.step;
        let at = match outcome.gates.iter().position(|gate| gate.step == step) {
            Some(at) => at,
            None => {
                outcome.gates.push(Gate {
                    step,
                    then: None,
                    was: None,
                });
                outcome.gates.len() - 1
            }
        };
        let gate = &mut outcome.gates[at];
        if matches!(now.decision, Decision::Pass { .. }) {
            gate.then.get_or_insert(entry.at);
        }
        if matches!(judged.verdict.decision, Decision::Pass { .. }) {
            gate.was.get_or_insert(entry.at);
        }
    })?;
    Ok(outcome)
}
