//! The canary's share of requests, in whole basis points.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The canary's share of requests: a whole number of basis points, 0 (none) to 10 000 (all). People see percent.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(try_from = "u16", into = "u16")]
#[schemars(with = "u16")]
pub struct Weight(u16);

impl Weight {
    /// No request.
    pub const ZERO: Self = Self(0);
    /// Every request.
    pub const ALL: Self = Self(10_000);

    /// The weight of `points` basis points; nothing above the whole.
    #[must_use]
    pub fn from_basis_points(points: u16) -> Option<Self> {
        (points <= 10_000).then_some(Self(points))
    }

    /// Whole percent; nothing above 100.
    #[must_use]
    pub fn from_percent(percent: u8) -> Option<Self> {
        Self::from_basis_points(u16::from(percent) * 100)
    }

    /// Basis points, 0 to 10 000.
    #[must_use]
    pub fn basis_points(self) -> u16 {
        self.0
    }

    /// The share as a number from 0 to 1.
    #[must_use]
    pub fn ratio(self) -> f64 {
        f64::from(self.0) / 10_000.0
    }

    /// What is left for the other arm.
    #[must_use]
    pub fn rest(self) -> Self {
        Self(10_000 - self.0)
    }

    /// The largest weight that `ready` of `full` replicas can carry; all of it when `full` is 0.
    #[must_use]
    pub fn carried_by(ready: u32, full: u32) -> Self {
        if ready >= full {
            return Self::ALL;
        }
        let points = u64::from(ready) * 10_000 / u64::from(full);
        Self(u16::try_from(points).unwrap_or(10_000))
    }

    /// The fewest of `full` replicas that can carry this weight, at least 1 for a weight above 0.
    #[must_use]
    pub fn replicas(self, full: u32) -> u32 {
        let needed = (u64::from(self.0) * u64::from(full)).div_ceil(10_000);
        u32::try_from(needed)
            .unwrap_or(full)
            .max(u32::from(self.0 > 0))
    }
}

/// Why a number is no weight.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a weight: expected 0% to 100% in steps of 0.01%")]
pub struct WeightError(pub String);

impl TryFrom<u16> for Weight {
    type Error = WeightError;

    fn try_from(points: u16) -> Result<Self, Self::Error> {
        Self::from_basis_points(points).ok_or_else(|| WeightError(format!("{points} basis points")))
    }
}

impl From<Weight> for u16 {
    fn from(weight: Weight) -> Self {
        weight.0
    }
}

impl fmt::Display for Weight {
    /// Percent, with as many decimals as it needs: `10%`, `0.25%`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / 100, self.0 % 100);
        match (rest, rest % 10) {
            (0, _) => write!(f, "{whole}%"),
            (_, 0) => write!(f, "{whole}.{}%", rest / 10),
            (_, _) => write!(f, "{whole}.{rest:02}%"),
        }
    }
}

impl FromStr for Weight {
    type Err = WeightError;

    /// Reads percent, with or without the sign: `10%`, `0.25 %`, `50`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || WeightError(format!("{text:?}"));
        let number = text.trim().trim_end_matches('%').trim_end();
        let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
        let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty()
            || decimals.len() > 2
            || !digits(whole)
            || !digits(decimals)
            || number.ends_with('.')
        {
            return Err(bad());
        }
        let whole: u16 = whole.parse().map_err(|_| bad())?;
        let hundredths: u16 = format!("{decimals:0<2}").parse().map_err(|_| bad())?;
        whole
            .checked_mul(100)
            .and_then(|points| points.checked_add(hundredths))
            .and_then(Self::from_basis_points)
            .ok_or_else(bad)
    }
}

/// Both arms' shares. They sum to the whole by construction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    canary: Weight,
}

impl Split {
    /// The split that gives `canary` to the canary and the rest to stable.
    #[must_use]
    pub fn new(canary: Weight) -> Self {
        Self { canary }
    }

    /// The canary's share.
    #[must_use]
    pub fn canary(self) -> Weight {
        self.canary
    }

    /// Stable's share.
    #[must_use]
    pub fn stable(self) -> Weight {
        self.canary.rest()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn shares_sum_to_the_whole(points in 0u16..=10_000) {
            let split = Split::new(Weight::from_basis_points(points).unwrap());
            prop_assert_eq!(split.canary().basis_points() + split.stable().basis_points(), 10_000);
        }

        #[test]
        fn reads_what_it_writes(points in 0u16..=10_000) {
            let weight = Weight::from_basis_points(points).unwrap();
            prop_assert_eq!(weight.to_string().parse::<Weight>().unwrap(), weight);
        }

        #[test]
        fn enough_replicas_carry_the_weight_and_one_fewer_do_not(points in 1u16..=10_000, full in 1u32..200) {
            let weight = Weight::from_basis_points(points).unwrap();
            let replicas = weight.replicas(full);
            prop_assert!(replicas <= full);
            prop_assert!(Weight::carried_by(replicas, full) >= weight);
            if replicas > 1 {
                prop_assert!(Weight::carried_by(replicas - 1, full) < weight);
            }
        }
    }

    #[test]
    fn refuses_what_is_no_share() {
        for text in [
            "", "%", "-1", "101", "100.01", "1.234", "1e1", "ten", "1.", "0x10", "+5",
        ] {
            assert!(text.parse::<Weight>().is_err(), "{text}");
        }
        assert_eq!("0.01%".parse::<Weight>().unwrap().basis_points(), 1);
        assert_eq!(" 12.5 % ".parse::<Weight>().unwrap().basis_points(), 1_250);
    }
}
