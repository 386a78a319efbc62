//! The laws that the judge's promise rests on, by exact enumeration and by random search.

use proptest::prelude::*;

use super::super::EXCESS_GRID;
use super::super::aimed::{Aim, Aimed, best_stake, exact_split_log_factor, tied_log_factor};
use super::super::non_inferiority::{
    MARGIN_ODDS, NonInferiorErrors, NonInferiorLatency, excess_log_factor,
};
use super::super::split::{HARM_ODDS, Harm, Outcomes, split_log_factor};
use super::super::traffic::SampleRatio;
use super::super::warm_up::WarmUp;
use crate::plan::Tuning;
use crate::{Duration, Weight};

/// Rounding may lift a mean of exactly 1 by this much.
const ROUNDING: f64 = 1e-9;

fn ln_choose(all: u64, some: u64) -> f64 {
    (0..some)
        .map(|i| ((all - i) as f64 / (i + 1) as f64).ln())
        .sum()
}

fn binomial(tries: u64, hits: u64, each: f64) -> f64 {
    ln_choose(tries, hits).exp() * each.powi(hits as i32) * (1.0 - each).powi((tries - hits) as i32)
}

/// The mean of `of` over how `events` events may fall on two arms that are alike: the hypergeometric distribution.
pub(super) fn mean_given_events(
    canary: u64,
    stable: u64,
    events: u64,
    of: impl Fn(&Outcomes) -> f64,
) -> f64 {
    let all = ln_choose(canary + stable, events);
    (events.saturating_sub(stable)..=events.min(canary))
        .map(|canary_events| {
            let stable_events = events - canary_events;
            let chance =
                (ln_choose(canary, canary_events) + ln_choose(stable, stable_events) - all).exp();
            chance
                * of(&Outcomes {
                    canary,
                    stable,
                    canary_events,
                    stable_events,
                })
        })
        .sum()
}

/// The mean of `of` when each arm's requests have the event with their own chance, independently.
fn mean_of_independent(
    canary: u64,
    stable: u64,
    chances: (f64, f64),
    of: impl Fn(&Outcomes) -> f64,
) -> f64 {
    let mut mean = 0.0;
    for canary_events in 0..=canary {
        for stable_events in 0..=stable {
            let chance = binomial(canary, canary_events, chances.0)
                * binomial(stable, stable_events, chances.1);
            mean += chance
                * of(&Outcomes {
                    canary,
                    stable,
                    canary_events,
                    stable_events,
                });
        }
    }
    mean
}

#[test]
fn a_split_factor_gains_nothing_on_average_from_a_canary_that_is_like_stable() {
    let mut highest: f64 = 0.0;
    for (canary, stable) in [
        (1, 9),
        (1, 1),
        (2, 6),
        (5, 5),
        (3, 27),
        (20, 20),
        (9, 1),
        (12, 48),
    ] {
        for events in 0..=canary + stable {
            for odds in HARM_ODDS.into_iter().chain(MARGIN_ODDS) {
                for (phi, cap) in [
                    (1.0, f64::INFINITY),
                    (1.0, 3.0),
                    (1.7, 3.0),
                    (6.0, f64::INFINITY),
                ] {
                    let mean = mean_given_events(canary, stable, events, |block| {
                        split_log_factor(block, odds, phi, cap).exp()
                    });
                    assert!(
                        mean <= 1.0 + ROUNDING,
                        "{canary}/{stable}, {events} events, odds {odds}, phi {phi}: {mean}"
                    );
                    highest = highest.max(mean);
                }
            }
        }
    }
    assert!(
        highest > 0.99,
        "a law that is never nearly reached was not tested: {highest}"
    );
}

#[test]
fn a_split_factor_of_harm_gains_nothing_from_a_canary_that_is_better() {
    for (canary, stable) in [(1, 9), (4, 4), (2, 10)] {
        for (better, base) in [(0.0, 0.1), (0.05, 0.3), (0.4, 0.8)] {
            for odds in HARM_ODDS {
                let mean = mean_of_independent(canary, stable, (better, base), |block| {
                    split_log_factor(block, odds, 1.0, 3.0).exp()
                });
                assert!(
                    mean <= 1.0 + ROUNDING,
                    "{canary}/{stable} at {better} against {base}, odds {odds}: {mean}"
                );
            }
        }
    }
}

#[test]
fn a_bet_on_no_excess_gains_nothing_on_average_when_there_is_one() {
    for (canary, stable) in [(1, 1), (1, 9), (3, 3), (5, 20), (9, 1)] {
        for delta in super::super::EXCESS_GRID.into_iter().chain([0.3]) {
            for stake in [0.1, 0.35, 0.7, 0.95] {
                for base in [0.0, 0.001, 0.05, 0.3, 0.6] {
                    for more in [0.0, 0.1] {
                        let chances = (base + delta + more, base);
                        for (phi, cap) in [(1.0, f64::INFINITY), (1.0, 3.0), (2.5, 3.0)] {
                            let mean = mean_of_independent(canary, stable, chances, |block| {
                                excess_log_factor(block, delta, stake, phi, cap).exp()
                            });
                            assert!(
                                mean <= 1.0 + ROUNDING,
                                "{canary}/{stable} at {chances:?}, delta {delta}: {mean}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn an_aimed_stake_gains_nothing_on_average_however_wrong_the_aim() {
    let mut highest: f64 = 0.0;
    for (canary, stable) in [(1, 1), (1, 9), (3, 3), (5, 20), (9, 1)] {
        let share = canary as f64 / (canary + stable) as f64;
        for delta in EXCESS_GRID.into_iter().chain([0.3]) {
            for expected in [0.0, 1e-5, 0.01, 0.2, 0.9] {
                let stake = best_stake(expected, delta, share);
                assert!((0.0..=0.95).contains(&stake), "{stake}");
                for base in [0.0, 0.001, 0.05, 0.3, 0.6] {
                    for more in [0.0, 0.1] {
                        let chances = (base + delta + more, base);
                        for (phi, cap) in [(1.0, f64::INFINITY), (1.0, 3.0), (2.5, 3.0)] {
                            let mean = mean_of_independent(canary, stable, chances, |block| {
                                excess_log_factor(block, delta, stake, phi, cap).exp()
                            });
                            assert!(
                                mean <= 1.0 + ROUNDING,
                                "{canary}/{stable} at {chances:?}, delta {delta}, aimed at {expected}: {mean}"
                            );
                            highest = highest.max(mean);
                        }
                    }
                }
            }
        }
    }
    assert!(highest > 0.999, "never nearly reached: {highest}");
}

#[test]
fn an_aimed_stake_grows_at_least_as_fast_as_any_of_the_grid_where_the_aim_is_right() {
    for share in [0.01, 0.1, 0.25, 0.5, 0.8] {
        for delta in EXCESS_GRID {
            for rate in [0.0, 0.0001, 0.001, 0.01, 0.05] {
                // The growth of a large block, which has exactly as many errors as expected.
                let growth = |stake: f64| {
                    let bet = stake / (1.0 / share - delta);
                    rate * share * (bet * (delta - 1.0 / share)).ln_1p()
                        + rate * (1.0 - share) * (bet * (delta + 1.0 / (1.0 - share))).ln_1p()
                        + (1.0 - rate) * (bet * delta).ln_1p()
                };
                let aimed = growth(best_stake(rate, delta, share));
                for stake in [0.1, 0.35, 0.7, 0.95] {
                    assert!(
                        aimed >= growth(stake) - 1e-9,
                        "share {share}, delta {delta}, rate {rate}, stake {stake}"
                    );
                }
            }
        }
    }
}

#[test]
fn an_exact_split_gains_nothing_on_average_and_is_never_below_the_bound() {
    for (canary, stable) in [
        (1, 9),
        (1, 1),
        (2, 6),
        (5, 5),
        (20, 20),
        (9, 1),
        (12, 48),
        (150, 250),
    ] {
        for events in (0..=canary + stable).step_by(1 + usize::from(canary > 100) * 37) {
            for odds in [0.02, 0.15, 0.4, 0.65, 0.98] {
                let exact =
                    |block: &Outcomes| exact_split_log_factor(block, odds, 1.0, f64::INFINITY);
                let mean = mean_given_events(canary, stable, events, |block| exact(block).exp());
                assert!(
                    (mean - 1.0).abs() < 1e-6,
                    "{canary}/{stable}, {events} events, odds {odds}: {mean}"
                );
                let _ = mean_given_events(canary, stable, events, |block| {
                    let bound = split_log_factor(block, odds, 1.0, f64::INFINITY);
                    assert!(exact(block) >= bound - ROUNDING, "{block:?} at {odds}");
                    0.0
                });
            }
        }
    }
    // A canary with a larger chance is one with more events, whatever their number: less evidence that it has fewer.
    for (canary, stable) in [(1, 9), (4, 4), (6, 2)] {
        for (base, more) in [(0.1, 0.0), (0.1, 0.2), (0.5, 0.3), (0.01, 0.05)] {
            for odds in [0.02, 0.4, 0.98] {
                for (phi, cap) in [(1.0, f64::INFINITY), (1.0, 3.0), (2.5, 3.0)] {
                    let chances = (base + more, base);
                    let mean = mean_of_independent(canary, stable, chances, |block| {
                        exact_split_log_factor(block, odds, phi, cap).exp()
                    });
                    assert!(
                        mean <= 1.0 + ROUNDING,
                        "{canary}/{stable} at {chances:?}: {mean}"
                    );
                }
            }
        }
    }
}

/// The share of canaries that pass a proof at level 0.10 within two hundred blocks, when they fail by exactly the excess
/// that is to be disproven.
fn passes_at_the_margin(delta: f64, base: f64, aimed_at: f64, (canary, stable): (u64, u64)) -> f64 {
    const ROLLOUTS: u64 = 1_000;
    const BLOCKS: usize = 200;
    let index = EXCESS_GRID.iter().position(|of| *of == delta).unwrap();
    let tuning = Tuning {
        errors_margin_relative: 0.0,
        ..Tuning::default()
    };
    let aim = Aim {
        error_rate: aimed_at,
        ..Aim::default()
    };
    let passed = (0..ROLLOUTS).filter(|seed| {
        let mut dice = super::traffic_model::Dice::new(*seed);
        let (mut grid, mut aimed) = (NonInferiorErrors::new(delta), Aimed::default());
        (0..BLOCKS).any(|_| {
            let mut count = |requests: u64, chance: f64| {
                (0..requests).filter(|_| dice.share() < chance).count() as u64
            };
            let block = Outcomes {
                canary,
                stable,
                canary_events: count(canary, base + delta),
                stable_events: count(stable, base),
            };
            grid.block(&block, base, 1.0, &tuning);
            aimed.errors(&block, &aim, base, 1.0, &tuning);
            aimed.excess_log_e(index, grid.log_e(), &tuning) >= 10.0_f64.ln()
        })
    });
    passed.count() as f64 / ROLLOUTS as f64
}

#[test]
fn at_most_one_in_ten_canaries_at_the_margin_passes_by_proof_although_the_stake_is_aimed() {
    // Three standard errors of 1,000 rollouts are 2.8 points.
    for (delta, base, aimed_at, arms) in [
        (0.02, 0.001, 0.001, (25, 75)),
        (0.02, 0.01, 0.01, (50, 50)),
        (0.005, 0.01, 0.01, (50, 50)),
        (0.05, 0.0, 0.0, (10, 90)),
        (0.02, 0.001, 0.05, (25, 75)),
        (0.02, 0.05, 0.001, (25, 75)),
    ] {
        let passed = passes_at_the_margin(delta, base, aimed_at, arms);
        assert!(passed <= 0.128, "{passed} at {delta}, {base}, {arms:?}");
    }
}

#[test]
fn closing_a_block_early_for_its_errors_gains_nothing_while_the_rule_cannot_see_the_arms() {
    // Up to nine requests, each of a random arm and with a random outcome; the block closes at the second error.
    const REQUESTS: u32 = 9;
    for (weight, rate) in [(0.5_f64, 0.3_f64), (0.2, 0.1), (0.8, 0.6)] {
        for odds in HARM_ODDS {
            let mut mean = 0.0;
            for outcomes in 0..1_u32 << REQUESTS {
                let mut closes_at = REQUESTS;
                let mut seen = 0;
                for request in 0..REQUESTS {
                    seen += outcomes >> request & 1;
                    if seen == 2 {
                        closes_at = request + 1;
                        break;
                    }
                }
                let chance_of = |bits: u32, each: f64| {
                    let ones = bits.count_ones() as i32;
                    each.powi(ones) * (1.0 - each).powi(REQUESTS as i32 - ones)
                };
                let in_block = (1_u32 << closes_at) - 1;
                for arms in 0..1_u32 << REQUESTS {
                    let count = |bits: u32| u64::from((bits & in_block).count_ones());
                    let block = Outcomes {
                        canary: count(arms),
                        stable: count(!arms),
                        canary_events: count(arms & outcomes),
                        stable_events: count(!arms & outcomes),
                    };
                    let factor = split_log_factor(&block, odds, 1.0, 3.0).exp();
                    mean += chance_of(outcomes, rate) * chance_of(arms, weight) * factor;
                }
            }
            assert!(
                mean <= 1.0 + ROUNDING,
                "weight {weight}, rate {rate}, odds {odds}: {mean}"
            );
        }
    }
}

#[test]
fn the_warm_up_guard_and_the_sample_ratio_gain_nothing_on_average_either() {
    let tuning = Tuning {
        cap_nats: f64::INFINITY,
        ..Tuning::default()
    };
    for canary in 1..=12 {
        let mean = mean_of_independent(canary, 1, (tuning.catastrophe, 0.1), |block| {
            let mut guard = WarmUp::default();
            guard.block(Duration::from_secs(1), block, 1.0, &tuning);
            guard.log_e_broken().exp()
        });
        assert!(mean <= 1.0 + ROUNDING, "{canary}: {mean}");
    }
    for percent in [1, 10, 50, 90] {
        let weight = Weight::from_percent(percent).unwrap();
        let mean: f64 = (0..=40)
            .map(|canary| {
                let mut ratio = SampleRatio::default();
                ratio.block(weight, canary, 40);
                binomial(40, canary, weight.ratio()) * ratio.log_e().exp()
            })
            .sum();
        assert!((mean - 1.0).abs() < ROUNDING, "{percent} %: {mean}");
    }
}

#[test]
fn a_bet_on_a_tied_threshold_gains_nothing_on_average_from_a_canary_beyond_the_margin() {
    for canary in 1..=30 {
        for tail in [0.5, 0.1, 0.01] {
            for beyond in [tail, f64::min(3.0 * tail, 1.0)] {
                let mean = mean_of_independent(canary, 1, (beyond, 0.0), |block| {
                    let mut proof = NonInferiorLatency::default();
                    proof.block_of_tied(block, tail, 1.0, &Tuning::default());
                    proof.log_e().exp()
                });
                assert!(
                    mean <= 1.0 + ROUNDING,
                    "{canary} at {beyond}, tail {tail}: {mean}"
                );
                for odds in [0.02, 0.5, 0.98] {
                    let mean = mean_of_independent(canary, 1, (beyond, 0.0), |block| {
                        tied_log_factor(block, odds, tail, 1.0, 3.0).exp()
                    });
                    assert!(mean <= 1.0 + ROUNDING, "{canary} at {beyond}: {mean}");
                }
            }
        }
    }
}

/// A block with room for one more event on either arm.
fn blocks() -> impl Strategy<Value = Vec<Outcomes>> {
    let block = (1_u64..60, 1_u64..200).prop_flat_map(|(canary, stable)| {
        (Just(canary), Just(stable), 0..canary, 0..stable).prop_map(
            |(canary, stable, canary_events, stable_events)| Outcomes {
                canary,
                stable,
                canary_events,
                stable_events,
            },
        )
    });
    proptest::collection::vec(block, 1..12)
}

fn harm_of(blocks: &[Outcomes]) -> f64 {
    let mut harm = Harm::default();
    for block in blocks {
        harm.block(Duration::from_secs(2), block, 1.0, &Tuning::default());
    }
    harm.log_e()
}

fn proof_of(blocks: &[Outcomes]) -> (f64, f64) {
    let (mut errors, mut latency) = (NonInferiorErrors::new(0.02), NonInferiorLatency::default());
    for block in blocks {
        errors.block(block, 0.001, 1.0, &Tuning::default());
        latency.block(block, 1.0, &Tuning::default());
    }
    (errors.log_e(), latency.log_e())
}

proptest! {
    #[test]
    fn one_more_error_of_an_arm_never_speaks_for_it(blocks in blocks(), at in any::<prop::sample::Index>()) {
        let at = at.index(blocks.len());
        let (harm, proof) = (harm_of(&blocks), proof_of(&blocks));

        let mut worse = blocks.clone();
        worse[at].canary_events += 1;
        prop_assert!(harm_of(&worse) >= harm - ROUNDING);
        prop_assert!(proof_of(&worse).0 <= proof.0 + ROUNDING);
        // Thresholds are medians and above, so at most about half of a block is slow. Where nearly all of it is, the
        // factor still has a mean of at most 1, but it is not monotone: its denominator falls faster than its power.
        let Outcomes { canary, stable, canary_events, stable_events } = blocks[at];
        let half = 2 * (canary_events + stable_events + 1) <= canary + stable;
        prop_assert!(!half || proof_of(&worse).1 <= proof.1 + ROUNDING);

        let mut better = blocks.clone();
        better[at].stable_events += 1;
        prop_assert!(harm_of(&better) <= harm + ROUNDING);
        prop_assert!(proof_of(&better).0 >= proof.0 - ROUNDING);
        prop_assert!(!half || proof_of(&better).1 >= proof.1 - ROUNDING);
    }

    // Of the exact factor this holds everywhere: one event more puts at most one more on the canary, so the mean of
    // odds^events falls by no more than the power does.
    #[test]
    fn one_more_slow_answer_of_an_arm_never_speaks_for_it_where_the_mean_is_exact(
        blocks in blocks(), odds in 0.02_f64..0.98
    ) {
        let of = |block: &Outcomes| exact_split_log_factor(block, odds, 1.0, 3.0);
        for block in blocks {
            let log = of(&block);
            let worse = Outcomes { canary_events: block.canary_events + 1, ..block };
            prop_assert!(of(&worse) <= log + ROUNDING, "{block:?}");
            let better = Outcomes { stable_events: block.stable_events + 1, ..block };
            prop_assert!(of(&better) >= log - ROUNDING, "{block:?}");
        }
    }

    #[test]
    fn no_block_brings_more_than_the_cap(blocks in blocks()) {
        let before = harm_of(&blocks[..blocks.len() - 1]);
        prop_assert!(harm_of(&blocks) <= before + Tuning::default().cap_nats + ROUNDING);
    }

    #[test]
    fn blocks_without_both_arms_change_no_proof_and_no_harm(blocks in blocks(), bad in 0_u64..50) {
        let mut longer = blocks.clone();
        longer.push(Outcomes { canary: 50, stable: 0, canary_events: bad, stable_events: 0 });
        longer.push(Outcomes { canary: 0, stable: 50, canary_events: 0, stable_events: bad });
        prop_assert!((harm_of(&longer) - harm_of(&blocks)).abs() < ROUNDING);
        prop_assert_eq!(proof_of(&longer), proof_of(&blocks));
    }
}
