//! Does the canary answer other things than stable? A release may be quick, and without an error, and wrong.
//!
//! Answers say of what kind they are, in a header that the guard names: the sentiment of a tweet, the state of an order,
//! whether a search found anything. Inside a block both arms get the same mixture of requests, so if a release answers as
//! stable does, each kind falls on the canary as balls drawn from an urn: the split factor of errors (JUDGE 2.2) holds for
//! every kind. Nobody says which kinds are good. One that the canary gives less often makes another one more frequent, so it
//! is enough to look at what it gives more often.
//!
//! Kinds are not known beforehand. The `i`-th that shows up, from 0, gets `1 / ((i + 1) (i + 2))` of the belief, from the block
//! after on; what no kind has stays unbet. So the sum is evidence at any time, however many kinds will come.

use serde::{Deserialize, Serialize};

use super::mixture::log_sum_exp;
use super::split::{Harm, Outcomes};
use super::verdict::{KindSeen, Signal};
use crate::Duration;
use crate::plan::{Guard, Tuning};
use crate::signals::Cell;

/// Kinds that are told apart. Whoever has more has an identifier in the header.
pub const KINDS_MAX: usize = 16;

/// What is known of all kinds, in the order in which they showed up.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Kinds {
    known: Vec<Known>,
    /// Answers of each arm that said a kind.
    canary: u64,
    stable: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Known {
    name: String,
    canary: u64,
    stable: u64,
    /// Evidence that the canary gives it more often.
    more: Harm,
}

impl Kinds {
    /// Takes the answers of one block after the warm-up. Without both arms it says nothing.
    pub(crate) fn block<'a>(
        &mut self,
        duration: Duration,
        canary: impl Iterator<Item = &'a Cell>,
        stable: impl Iterator<Item = &'a Cell>,
        phi: f64,
        tuning: &Tuning,
    ) {
        let (canary, stable) = (sum(canary), sum(stable));
        let all = |kinds: &[(&str, u64)]| kinds.iter().map(|(_, count)| count).sum::<u64>();
        let (canary_all, stable_all) = (all(&canary), all(&stable));
        if canary_all == 0 || stable_all == 0 {
            return;
        }
        let of = |kinds: &[(&str, u64)], name: &str| {
            let found = kinds.iter().find(|(kind, _)| *kind == name);
            found.map_or(0, |(_, count)| *count)
        };
        for known in &mut self.known {
            let outcomes = Outcomes {
                canary: canary_all,
                stable: stable_all,
                canary_events: of(&canary, &known.name),
                stable_events: of(&stable, &known.name),
            };
            known.more.block(duration, &outcomes, phi, tuning);
            known.canary += outcomes.canary_events;
            known.stable += outcomes.stable_events;
        }
        self.canary += canary_all;
        self.stable += stable_all;
        // What is new is bet on from the next block on: a bet on what was just seen would be no bet.
        for (name, _) in stable.iter().chain(&canary) {
            if self.known.len() < KINDS_MAX && !self.known.iter().any(|known| known.name == *name) {
                self.known.push(Known {
                    name: (*name).to_owned(),
                    canary: of(&canary, name),
                    stable: of(&stable, name),
                    more: Harm::default(),
                });
            }
        }
    }

    /// The logarithm of the evidence that the canary answers other things; none where the guard does not ask.
    pub(crate) fn log_e(&self, guard: &Guard) -> Option<f64> {
        guard.answers.as_ref()?;
        let bets = self.known.iter().enumerate().map(|(index, known)| {
            let place = index as f64 + 1.0;
            known.more.log_e() - (place * (place + 1.0)).ln()
        });
        let unbet = -(self.known.len() as f64 + 1.0).ln();
        Some(log_sum_exp(bets.chain([unbet])))
    }

    /// The kind that speaks loudest against the canary.
    pub(crate) fn loudest(&self) -> Option<Signal> {
        let loudest = self
            .known
            .iter()
            .max_by(|one, other| one.more.log_e().total_cmp(&other.more.log_e()))?;
        let KindSeen {
            name,
            canary,
            stable,
            ..
        } = self.seen_of(loudest);
        Some(Signal::Answers {
            kind: name,
            canary,
            stable,
        })
    }

    /// All kinds, for people.
    pub(crate) fn seen(&self) -> Vec<KindSeen> {
        self.known.iter().map(|known| self.seen_of(known)).collect()
    }

    fn seen_of(&self, known: &Known) -> KindSeen {
        let share = |count: u64, all: u64| count as f64 / all.max(1) as f64;
        KindSeen {
            name: known.name.clone(),
            canary: share(known.canary, self.canary),
            stable: share(known.stable, self.stable),
            log_e: known.more.log_e(),
        }
    }
}

/// The counts of each kind over these cells, by name.
fn sum<'a>(cells: impl Iterator<Item = &'a Cell>) -> Vec<(&'a str, u64)> {
    let mut sums: Vec<(&str, u64)> = Vec::new();
    for (kind, count) in cells.flat_map(|cell| &cell.kinds) {
        match sums.binary_search_by(|(have, _)| (*have).cmp(kind)) {
            Ok(at) => sums[at].1 += count,
            Err(at) => sums.insert(at, (kind, *count)),
        }
    }
    sums
}
