//! Kinds of answers: a canary that answers other things is found, one that answers the same never is, more often than the
//! guard allows.

use super::super::kinds::KINDS_MAX;
use super::super::{Baseline, Decision, Judge, Missing, Position, Signal, Verdict};
use super::traffic_model::{Dice, percent};
use crate::plan::{Guard, Hold};
use crate::signals::{Block, Cell, KIND_NONE};
use crate::{Duration, LatencyHistogram, Weight};

const SECOND: Duration = Duration::from_secs(1);

/// Requests of each arm in a second.
const CANARY: u64 = 20;
const STABLE: u64 = 180;

fn guard() -> Guard {
    Guard {
        warm_up: Duration::ZERO,
        answers: Some("x-kind".to_owned()),
        ..Guard::default()
    }
}

fn position() -> Position {
    at(0, percent(10))
}

/// A step that lasts longer than any test.
fn at(step: usize, weight: Weight) -> Position {
    Position {
        step,
        weight,
        next: Some(percent(90)),
        last_gate: false,
        hold: Hold {
            least: 600 * SECOND,
            most: 6_000 * SECOND,
        },
    }
}

/// An arm's answers, each of a kind that the dice choose by these shares.
fn cell(node: &str, requests: u64, shares: &[(String, f64)], dice: &mut Dice) -> Cell {
    let mut counts = vec![0; shares.len()];
    for _ in 0..requests {
        let mut left = dice.share();
        let kind = shares.iter().position(|(_, share)| {
            left -= share;
            left < 0.0
        });
        counts[kind.unwrap_or(0)] += 1;
    }
    let names = shares.iter().map(|(kind, _)| kind.as_str());
    cell_of(node, names.zip(counts))
}

/// Quick answers, so many of each kind.
fn cell_of<'a>(node: &str, kinds: impl Iterator<Item = (&'a str, u64)>) -> Cell {
    let given = kinds.filter(|(_, count)| *count > 0);
    let kinds: std::collections::BTreeMap<String, u64> = given
        .map(|(kind, count)| (kind.to_owned(), count))
        .collect();
    let requests = kinds.values().sum();
    Cell {
        node: node.into(),
        requests,
        latency: [(200, requests as u32)]
            .into_iter()
            .collect::<LatencyHistogram>(),
        kinds,
        ..Cell::default()
    }
}

fn shares(shares: &[(&str, f64)]) -> Vec<(String, f64)> {
    let owned = |(kind, share): &(&str, f64)| ((*kind).to_owned(), *share);
    shares.iter().map(owned).collect()
}

/// The verdict of the block that condemned the canary and its number, or the last of so many.
fn judged(
    guard: &Guard,
    canary: &[(String, f64)],
    stable: &[(String, f64)],
    blocks: usize,
    seed: u64,
) -> (usize, Verdict) {
    let mut judge = Judge::new(guard, &Baseline::default());
    let mut dice = Dice::new(seed);
    let mut last = None;
    for number in 1..=blocks {
        let block = Block {
            weight: percent(10),
            duration: SECOND,
            canary: vec![cell("c", CANARY, canary, &mut dice)],
            stable: vec![cell("s", STABLE, stable, &mut dice)],
        };
        let verdict = judge.judge(&block, guard, &position());
        let is_over = matches!(verdict.decision, Decision::Fail { .. });
        last = Some((number, verdict));
        if is_over {
            break;
        }
    }
    last.unwrap()
}

fn sentiments() -> Vec<(String, f64)> {
    shares(&[("positive", 0.40), ("neutral", 0.35), ("negative", 0.25)])
}

fn flipped() -> Vec<(String, f64)> {
    shares(&[("positive", 0.25), ("neutral", 0.35), ("negative", 0.40)])
}

#[test]
fn a_canary_that_answers_other_things_is_rolled_back_and_the_kind_is_named() {
    for seed in 0..20 {
        let (block, verdict) = judged(&guard(), &flipped(), &sentiments(), 300, seed);
        let Decision::Fail { signal, .. } = &verdict.decision else {
            panic!("{block} blocks: {:?}", verdict.evidence);
        };
        let Signal::Answers {
            kind,
            canary,
            stable,
        } = signal
        else {
            panic!("{signal:?}");
        };
        assert_eq!(kind, "negative");
        assert!(canary > stable, "{canary} {stable}");
        // 20 answers a second: some thousand.
        assert!(block <= 200, "{block}");
    }
}

#[test]
fn nobody_who_does_not_ask_is_told() {
    let silent = Guard {
        answers: None,
        ..guard()
    };
    let (_, verdict) = judged(&silent, &flipped(), &sentiments(), 200, 1);
    assert!(!matches!(verdict.decision, Decision::Fail { .. }));
    assert!(verdict.kinds.is_empty());
}

#[test]
fn a_canary_that_answers_the_same_is_left_alone() {
    let all: Vec<(String, f64)> = (0..2 * KINDS_MAX)
        .map(|kind| (format!("kind {kind}"), 1.0 / (2 * KINDS_MAX) as f64))
        .collect();
    for same in [sentiments(), shares(&[("only", 1.0)]), all] {
        // One of a hundred good canaries may be lost over all signals; of this one it is one in two thousand.
        let lost = (0..40)
            .filter(|seed| {
                let (_, verdict) = judged(&guard(), &same, &same, 200, 1_000 + seed);
                assert!(verdict.kinds.len() <= KINDS_MAX);
                matches!(verdict.decision, Decision::Fail { .. })
            })
            .count();
        assert_eq!(lost, 0);
    }
}

#[test]
fn a_kind_that_only_the_canary_gives_is_found_too() {
    let with_new = shares(&[
        ("positive", 0.40),
        ("neutral", 0.25),
        ("negative", 0.25),
        ("no idea", 0.10),
    ]);
    let (block, verdict) = judged(&guard(), &with_new, &sentiments(), 300, 5);
    let Decision::Fail {
        signal: Signal::Answers { kind, stable, .. },
        ..
    } = verdict.decision
    else {
        panic!("{block}: {:?}", verdict.evidence);
    };
    assert_eq!((kind.as_str(), stable), ("no idea", 0.0));
}

#[test]
fn a_canary_that_names_no_kind_answers_otherwise() {
    let mute = shares(&[(KIND_NONE, 1.0)]);
    let (block, verdict) = judged(&guard(), &mute, &sentiments(), 60, 6);
    let Decision::Fail {
        signal: Signal::Answers { kind, canary, .. },
        ..
    } = verdict.decision
    else {
        panic!("{block}: {:?}", verdict.evidence);
    };
    assert_eq!((kind.as_str(), canary), (KIND_NONE, 1.0));
    assert!(block <= 20, "{block}");
}

#[test]
fn nothing_is_compared_before_stable_names_a_kind_and_no_gate_opens_meanwhile() {
    let mute = shares(&[(KIND_NONE, 1.0)]);
    let (_, verdict) = judged(&guard(), &sentiments(), &mute, 60, 7);
    let Decision::Inconclusive { missing } = verdict.decision else {
        panic!("{:?}", verdict.decision);
    };
    let header = "x-kind".to_owned();
    assert!(
        missing.contains(&Missing::Answers { header }),
        "{missing:?}"
    );
    assert!(verdict.kinds.is_empty());
    let (_, verdict) = judged(&guard(), &sentiments(), &sentiments(), 60, 7);
    let Decision::Inconclusive { missing } = verdict.decision else {
        panic!("{:?}", verdict.decision);
    };
    assert!(
        !missing
            .iter()
            .any(|missing| matches!(missing, Missing::Answers { .. }))
    );
}

#[test]
fn shares_are_compared_at_the_same_time_whatever_the_weight_was() {
    // Everybody's mood darkens while the canary grows: pooled, it would look much sadder than stable.
    let mut judge = Judge::new(&guard(), &Baseline::default());
    let mut last = None;
    for (step, (weight, sad)) in [(10, 10), (50, 50), (80, 90)].into_iter().enumerate() {
        let arm = |node, all: u64| {
            let sad = all * sad / 100;
            cell_of(node, [("sad", sad), ("glad", all - sad)].into_iter())
        };
        for _ in 0..10 {
            let block = Block {
                weight: percent(weight),
                duration: SECOND,
                canary: vec![arm("c", 10 * u64::from(weight))],
                stable: vec![arm("s", 1_000 - 10 * u64::from(weight))],
            };
            last = Some(judge.judge(&block, &guard(), &at(step, percent(weight))));
        }
    }
    for kind in last.unwrap().kinds {
        assert!((kind.canary - kind.stable).abs() < 1e-9, "{kind:?}");
    }
}

/// A crowd of which a few write nearly everything, each in one mood, in bursts, and moods turn: nothing here is independent
/// but the choice of the release.
struct Crowd {
    moods: Vec<usize>,
    /// Whether each author's release was chosen once and for all, by a share from 0 to 1.
    kept: Option<Vec<f64>>,
    burst: Option<(usize, u64)>,
}

const MOODS: [&str; 3] = ["glad", "neither", "sad"];
const AUTHORS: usize = 60;

impl Crowd {
    fn new(sticky: bool, dice: &mut Dice) -> Self {
        Self {
            moods: (0..AUTHORS).map(|_| dice.below(MOODS.len())).collect(),
            kept: sticky.then(|| (0..AUTHORS).map(|_| dice.share()).collect()),
            burst: None,
        }
    }

    /// The author of the next tweet: few write much, and mostly the one who wrote the last.
    fn author(&mut self, dice: &mut Dice) -> usize {
        if let Some((author, left @ 1..)) = self.burst {
            self.burst = Some((author, left - 1));
            return author;
        }
        let author = (AUTHORS as f64).powf(dice.share()) as usize - 1;
        self.burst = Some((author, dice.below(16) as u64));
        author
    }

    fn block(&mut self, weight: Weight, flip: bool, dice: &mut Dice) -> Block {
        if dice.below(20) == 0 {
            let author = dice.below(AUTHORS);
            self.moods[author] = dice.below(MOODS.len());
        }
        let mut counts = [[0; MOODS.len()]; 2];
        for _ in 0..100 {
            let author = self.author(dice);
            let mood = self.moods[author];
            let chosen = self
                .kept
                .as_ref()
                .map_or_else(|| dice.share(), |kept| kept[author]);
            let is_canary = chosen < weight.ratio();
            let answered = if flip && is_canary {
                MOODS.len() - 1 - mood
            } else {
                mood
            };
            counts[usize::from(is_canary)][answered] += 1;
        }
        let [stable, canary] = counts.map(|counts| MOODS.into_iter().zip(counts));
        Block {
            weight,
            duration: SECOND,
            canary: vec![cell_of("c", canary)],
            stable: vec![cell_of("s", stable)],
        }
    }
}

/// Whether the release was rolled back, and the highest evidence of its answers, over the usual weights.
fn released(sticky: bool, flip: bool, seed: u64) -> (Option<Signal>, f64) {
    let guard = guard();
    let mut dice = Dice::new(seed);
    let mut crowd = Crowd::new(sticky, &mut dice);
    let mut judge = Judge::new(&guard, &Baseline::default());
    let mut highest = f64::NEG_INFINITY;
    for (step, weight) in [10, 25, 50, 80].map(percent).into_iter().enumerate() {
        for _ in 0..30 {
            let block = crowd.block(weight, flip, &mut dice);
            let verdict = judge.judge(&block, &guard, &at(step, weight));
            highest = highest.max(verdict.evidence.checks);
            if let Decision::Fail { signal, .. } = verdict.decision {
                return (Some(signal), highest);
            }
        }
    }
    (None, highest)
}

const RELEASES: u64 = 2_000;

#[test]
fn a_good_release_is_left_alone_however_answers_clump() {
    let all: Vec<_> = (0..RELEASES)
        .map(|seed| released(false, false, seed))
        .collect();
    let lost = all.iter().filter(|(signal, _)| signal.is_some()).count();
    // Answers have a twentieth of alpha: one in two thousand.
    assert!(lost <= 2, "{lost} of {RELEASES}");
    // The evidence alone keeps what Ville promises.
    for at in [5.0_f64, 20.0] {
        let above = all
            .iter()
            .filter(|(_, highest)| *highest >= at.ln())
            .count();
        let promised = RELEASES as f64 / at;
        assert!(
            (above as f64) <= promised,
            "{above} of {RELEASES} reach {at}"
        );
    }
}

#[test]
fn a_bad_release_is_found_however_answers_clump() {
    let found = (0..50).filter(|seed| {
        let (signal, _) = released(false, true, *seed);
        matches!(signal, Some(Signal::Answers { .. }))
    });
    let found = found.count();
    // In a few crowds the busy authors' moods are as often glad as sad, or neither.
    assert!(found >= 40, "{found} of 50");
}

/// Why `friday.yml` refuses to compare answers where clients keep their release.
#[test]
fn clients_that_keep_their_release_would_look_like_a_difference() {
    let lost = (0..100)
        .filter(|seed| released(true, false, *seed).0.is_some())
        .count();
    assert!(lost > 20, "{lost} of 100");
}

#[test]
fn what_stables_own_nodes_differ_by_is_no_evidence() {
    let mut lost = 0;
    for seed in 0..200 {
        let guard = guard();
        let mut dice = Dice::new(seed);
        let mut judge = Judge::new(&guard, &Baseline::default());
        for _ in 0..200 {
            // Each node has a cache of its own that now finds more and now less.
            let mut node = |name: &str, answers: u64| {
                let found = 0.3 + 0.4 * dice.share();
                let shares = shares(&[("found", found), ("nothing", 1.0 - found)]);
                cell(name, answers, &shares, &mut dice)
            };
            let block = Block {
                weight: percent(20),
                duration: SECOND,
                canary: vec![node("c", 60)],
                stable: ["s1", "s2", "s3", "s4"].map(|name| node(name, 60)).into(),
            };
            let verdict = judge.judge(&block, &guard, &at(0, percent(20)));
            if matches!(verdict.decision, Decision::Fail { .. }) {
                lost += 1;
                break;
            }
        }
    }
    // Measured, and not known: nearly what is promised where it is known.
    assert!(lost <= 2, "{lost} of 200");
}
