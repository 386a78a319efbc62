//! Kinds of answers: a canary that answers other things is found, one that answers the same never is, more often than the
//! guard allows.

use super::super::kinds::KINDS_MAX;
use super::super::{Baseline, Decision, Judge, Position, Signal, Verdict};
use super::traffic_model::{Dice, percent};
use crate::plan::{Guard, Hold};
use crate::signals::{Block, Cell};
use crate::{Duration, LatencyHistogram};

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
    Position {
        step: 0,
        weight: percent(10),
        next: Some(percent(50)),
        last_gate: false,
        hold: Hold {
            least: 600 * SECOND,
            most: 6_000 * SECOND,
        },
    }
}

/// An arm's answers, each of a kind that the dice choose by these shares.
fn cell(node: &str, requests: u64, shares: &[(String, f64)], dice: &mut Dice) -> Cell {
    let mut cell = Cell {
        node: node.into(),
        requests,
        latency: [(200, requests as u32)]
            .into_iter()
            .collect::<LatencyHistogram>(),
        ..Cell::default()
    };
    for _ in 0..requests {
        let mut left = dice.share();
        let kind = shares.iter().find(|(_, share)| {
            left -= share;
            left < 0.0
        });
        let (kind, _) = kind.unwrap_or(&shares[0]);
        *cell.kinds.entry(kind.clone()).or_default() += 1;
    }
    cell
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
