//! Does the canary answer other things than stable? A release may be quick, and without an error, and wrong.
//!
//! Answers say of what kind they are, in a header that the guard names: the sentiment of a tweet, the state of an order,
//! whether a search found anything. Nobody says which kinds are good. One that the canary gives less often makes another
//! one more frequent, so it is enough to look at what it gives more often.
//!
//! **Why it is evidence.** Each request's release is chosen by itself, by chance. If a release answers as stable does,
//! what a request is answered does not depend on that choice: inside a block the kinds fall on the canary as balls drawn
//! from an urn, and the split factor of errors (JUDGE 2.2) holds for each of them. So the unit of independence is the
//! **choice of the release**, not the answer. Answers may resemble each other as they like: one author with one mood who
//! writes half of all tweets, the same tweet a hundred times, a mood that turns. What is shared by both arms cancels, and
//! no measure of clustering is needed for it.
//!
//! - Where clients keep their release (`sticky` by cookie or header) the choice is one for each client, and all that a
//!   busy client is answered falls on one arm, block after block. Nobody counts clients here, so no factor can be right:
//!   such a guard is refused where `friday.yml` is read. By `Idempotency-Key` a choice is one for each task, which has one
//!   answer; that is fine.
//! - What all requests of one *node* share (a stale model, an empty cache) falls on one arm, too. With three stable nodes or
//!   more their scatter is measured, for each kind, and evidence divided by it, as for errors (JUDGE 2.4).
//! - Answers that name no kind are a kind: a canary that forgets its header answers otherwise. Nothing is compared before
//!   stable has named one, so that a release may introduce the header; meanwhile no gate opens, for no data is no pass.
//! - Answers that failed name nothing; they are for the evidence of errors.
//! - Only how often a kind is given is compared, not which request it is given to: two kinds that are equally frequent may be
//!   swapped, and nothing shows.
//!
//! Kinds are not known beforehand. The `i`-th that shows up, from 0, gets `1 / ((i + 1) (i + 2))` of the belief, from the
//! block after on; what no kind has stays unbet. So the sum is evidence at any time, however many kinds will come. It shares
//! the weight of checks that compare, and with it the one `alpha` of all signals.

use serde::{Deserialize, Serialize};

use super::baseline::NODES_TO_GROUP_BY;
use super::dispersion::Dispersion;
use super::mixture::log_sum_exp;
use super::split::{Harm, Outcomes};
use super::verdict::{KindSeen, Missing, Signal};
use crate::Duration;
use crate::plan::{Guard, Tuning};
use crate::signals::{Cell, KIND_NONE};

/// Kinds that are followed: the 16 that a proxy tells apart, those beyond them together, and answers that name none.
/// Several proxies may name more, of which the first are followed.
pub const KINDS_MAX: usize = 18;

/// What is known of all kinds, in the order in which they showed up.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Kinds {
    known: Vec<Known>,
    /// The canary's answers in blocks with both arms.
    canary: u64,
    /// Whether stable has named a kind, so that there is something to compare with.
    stable_speaks: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Known {
    name: String,
    /// The canary's answers of this kind.
    canary: u64,
    /// How many there would be if the canary had given it as often as stable did, block by block.
    expected: f64,
    /// Evidence that the canary gives it more often.
    more: Harm,
    /// How much it clusters by node.
    scatter: Dispersion,
}

impl Kinds {
    /// Takes the answers of one block after the warm-up. Without both arms it says nothing.
    pub(crate) fn block(
        &mut self,
        duration: Duration,
        canary: &[&Cell],
        stable: &[&Cell],
        tuning: &Tuning,
    ) {
        let (from_canary, from_stable) = (sum(canary), sum(stable));
        let (canary_all, stable_all) = (all(&from_canary), all(&from_stable));
        if canary_all == 0 || stable_all == 0 {
            return;
        }
        if self.stable_speaks {
            for known in &mut self.known {
                let outcomes = Outcomes {
                    canary: canary_all,
                    stable: stable_all,
                    canary_events: of(&from_canary, &known.name),
                    stable_events: of(&from_stable, &known.name),
                };
                let phi = known.scatter.phi();
                known.more.block(duration, &outcomes, phi, tuning);
                known
                    .scatter
                    .block(by_node(stable, &known.name).into_iter());
            }
        }
        // Only from the next block on: whether to look must not depend on what is looked at.
        self.stable_speaks |= from_stable.iter().any(|(name, _)| *name != KIND_NONE);
        if !self.stable_speaks {
            return;
        }
        // A new kind likewise: a bet on what was just seen would be no bet.
        for (name, _) in from_stable.iter().chain(&from_canary) {
            if self.known.len() < KINDS_MAX && !self.known.iter().any(|known| known.name == *name) {
                self.known.push(Known {
                    name: (*name).to_owned(),
                    canary: 0,
                    expected: 0.0,
                    more: Harm::default(),
                    scatter: Dispersion::default(),
                });
            }
        }
        self.canary += canary_all;
        for known in &mut self.known {
            known.canary += of(&from_canary, &known.name);
            let share = of(&from_stable, &known.name) as f64 / stable_all as f64;
            known.expected += share * canary_all as f64;
        }
    }

    /// The logarithm of the evidence that the canary answers other things; none where the guard does not ask.
    pub(crate) fn log_e(&self, guard: &Guard) -> Option<f64> {
        guard.answers.as_ref()?;
        let unbet = -(self.known.len() as f64 + 1.0).ln();
        Some(log_sum_exp(self.terms().chain([unbet])))
    }

    /// The weighted evidence of each kind.
    fn terms(&self) -> impl Iterator<Item = f64> + Clone {
        self.known.iter().enumerate().map(|(index, known)| {
            let place = index as f64 + 1.0;
            known.more.log_e() - (place * (place + 1.0)).ln()
        })
    }

    /// The kind that speaks loudest against the canary: the largest term.
    pub(crate) fn loudest(&self) -> Option<Signal> {
        let (loudest, _) = self
            .known
            .iter()
            .zip(self.terms())
            .max_by(|(_, one), (_, other)| one.total_cmp(other))?;
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

    /// What keeps the gates closed: stable names no kind, so nothing is compared.
    pub(crate) fn missing(&self, guard: &Guard) -> Option<Missing> {
        let header = guard.answers.as_ref()?;
        (!self.stable_speaks).then(|| Missing::Answers {
            header: header.clone(),
        })
    }

    /// All kinds, for people.
    pub(crate) fn seen(&self) -> Vec<KindSeen> {
        self.known.iter().map(|known| self.seen_of(known)).collect()
    }

    fn seen_of(&self, known: &Known) -> KindSeen {
        let all = self.canary.max(1) as f64;
        KindSeen {
            name: known.name.clone(),
            canary: known.canary as f64 / all,
            stable: known.expected / all,
            log_e: known.more.log_e(),
        }
    }
}

/// The counts of each kind over these cells, by name.
fn sum<'a>(cells: &[&'a Cell]) -> Vec<(&'a str, u64)> {
    let mut sums: Vec<(&str, u64)> = Vec::new();
    for (kind, count) in cells.iter().flat_map(|cell| &cell.kinds) {
        match sums.binary_search_by(|(have, _)| (*have).cmp(kind)) {
            Ok(at) => sums[at].1 += count,
            Err(at) => sums.insert(at, (kind, *count)),
        }
    }
    sums
}

fn all(kinds: &[(&str, u64)]) -> u64 {
    kinds.iter().map(|(_, count)| count).sum()
}

fn of(kinds: &[(&str, u64)], name: &str) -> u64 {
    let found = kinds.binary_search_by(|(kind, _)| (*kind).cmp(name));
    found.map_or(0, |at| kinds[at].1)
}

/// The answers of each stable node, and how many are of this kind; nothing where there are too few nodes to measure a
/// scatter between. Cells are sorted by node.
fn by_node(stable: &[&Cell], name: &str) -> Vec<(u64, u64)> {
    let mut nodes: Vec<(&str, u64, u64)> = Vec::new();
    for cell in stable.iter().filter(|cell| !cell.node.is_empty()) {
        if nodes.last().is_none_or(|(node, ..)| *node != cell.node) {
            nodes.push((&cell.node, 0, 0));
        }
        if let Some((_, answers, events)) = nodes.last_mut() {
            *answers += cell.kinds.values().sum::<u64>();
            *events += cell.kinds.get(name).copied().unwrap_or(0);
        }
    }
    if nodes.len() < NODES_TO_GROUP_BY {
        return Vec::new();
    }
    let counts = |(_, answers, events)| (answers, events);
    nodes.into_iter().map(counts).collect()
}
