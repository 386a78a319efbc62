//! What proofs cost: what each gate asks for, and how many canary requests that takes (JUDGE 2.10). For planning; no verdict
//! comes from here.

use super::Position;
use super::non_inferiority::STAKES;
use super::trial::Trial;
use super::verdict::Proof;
use crate::plan::Guard;

/// What must be proven to pass the gate at this position, while nothing is; nothing in the bake. `error_rate` is stable's
/// share of bad requests: where it is high, so is the margin for errors.
#[must_use]
pub fn asked_at(position: &Position, error_rate: f64, guard: &Guard) -> Vec<Proof> {
    Trial::default().proofs(position, error_rate, guard)
}

/// How many canary requests after the warm-up prove, in the middling case, that a canary which fails as stable does, at
/// `error_rate`, does not exceed it by `excess`: `needed` is the logarithm of the evidence it takes. For a canary with a
/// small share of the requests and failures that do not cluster; half of all canaries need more.
#[must_use]
pub fn canary_requests_for_errors(excess: f64, error_rate: f64, needed: f64) -> f64 {
    // The mean of the bets is at least the best of them over their number.
    let evidence = needed + (STAKES.len() as f64).ln();
    let lost_to_errors = if error_rate > 0.0 {
        error_rate * (excess / error_rate).ln_1p()
    } else {
        0.0
    };
    evidence / (excess - lost_to_errors)
}

#[cfg(test)]
mod tests {
    use super::super::non_inferiority::NonInferiorErrors;
    use super::super::split::Outcomes;
    use super::*;
    use crate::plan::{Hold, Tuning};
    use crate::{Duration, Weight};

    /// Canary requests until an excess is disproven, where one in so many requests fails on both arms alike.
    fn counted(excess: f64, one_in: Option<u64>, needed: f64) -> f64 {
        let mut proof = NonInferiorErrors::new(excess);
        let (mut canary, mut all) = (0, 0);
        while proof.log_e() < needed {
            canary += 1;
            let stable = 99;
            // One failure in each arm whenever it is due, so that no chance is in it.
            let due = |before: u64, more: u64| {
                one_in.map_or(0, |every| (before + more) / every - before / every)
            };
            let block = Outcomes {
                canary: 1,
                stable,
                canary_events: due(canary - 1, 1),
                stable_events: due(all, stable),
            };
            all += stable;
            // No relative margin: the excess is what it is.
            let tuning = Tuning {
                errors_margin_relative: 0.0,
                ..Tuning::default()
            };
            proof.block(&block, 0.0, 1.0, &tuning);
        }
        canary as f64
    }

    #[test]
    fn a_proof_takes_as_many_requests_as_the_formula_says() {
        let level = 20_f64.ln();
        for (excess, one_in) in [
            (0.10, None),
            (0.01, None),
            (0.005, None),
            (0.05, Some(20)),
            (0.01, Some(100)),
            (0.005, Some(100)),
        ] {
            let rate = one_in.map_or(0.0, |every: u64| 1.0 / every as f64);
            let (counted, said) = (
                counted(excess, one_in, level),
                canary_requests_for_errors(excess, rate, level),
            );
            // The stakes are four, and the best one lies between two of them; errors come in whole ones.
            assert!(
                (0.75..1.25).contains(&(counted / said)),
                "{excess} at {one_in:?}: {counted} counted, {said:.0} said"
            );
        }
        // JUDGE 2.10: with p = 0, 4.4 / delta.
        let said = canary_requests_for_errors(0.005, 0.0, level);
        assert!((said * 0.005 - 4.38).abs() < 0.01, "{said}");
    }

    #[test]
    fn a_gate_asks_for_more_the_more_the_next_weight_risks() {
        let at = |next: u8, last_gate: bool, error_rate: f64| {
            let position = Position {
                step: 0,
                weight: Weight::from_percent(1).unwrap(),
                next: Weight::from_percent(next),
                last_gate,
                hold: Hold {
                    least: Duration::ZERO,
                    most: Duration::ZERO,
                },
            };
            asked_at(&position, error_rate, &Guard::default())
        };
        let excess = |proofs: &[Proof]| match proofs[0].margin {
            super::super::Margin::Errors { excess } => excess,
            super::super::Margin::Latency { .. } => panic!("errors come first"),
        };
        let small = at(5, false, 0.0);
        assert_eq!((excess(&small), small.len()), (0.10, 2));
        let last = at(80, true, 0.0);
        assert_eq!((excess(&last), last.len()), (0.005, 4));
        assert!(last[0].needed > small[0].needed);
        assert_eq!(excess(&at(80, true, 0.02)), 0.01, "half of stable's own");
    }
}
