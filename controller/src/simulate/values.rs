//! The values in a file of scenarios: each is right or does not exist, and says what was expected instead.

use rollout::{Duration, Weight};
use serde::{Deserialize, Serialize};

/// Nodes of one arm. The judge remembers 64.
const NODES_MAX: u32 = 64;

/// Largest number: requests a second, or a factor. It keeps what is added up and counted far from any overflow.
const NUMBER_MAX: f64 = 1e6;

/// Why a value in a file of scenarios is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value}: expected {expected}")]
pub struct ValueError {
    /// What stands there.
    pub value: String,
    /// What should.
    pub expected: &'static str,
}

/// A name: small letters, digits and hyphens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Name(String);

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if (1..=40).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text))
        } else {
            Err(ValueError {
                value: text,
                expected: "1 to 40 small letters, digits and hyphens",
            })
        }
    }
}

/// A number above 0: a rate, a factor, a width.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64")]
pub struct Positive(pub(super) f64);

impl Positive {
    pub(super) const fn one() -> Self {
        Self(1.0)
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> f64 {
        self.0
    }
}

impl Default for Positive {
    fn default() -> Self {
        Self::one()
    }
}

impl TryFrom<f64> for Positive {
    type Error = ValueError;

    fn try_from(number: f64) -> Result<Self, ValueError> {
        if number > 0.0 && number <= NUMBER_MAX {
            Ok(Self(number))
        } else {
            Err(ValueError {
                value: number.to_string(),
                expected: "a number above 0, up to a million",
            })
        }
    }
}

/// A share, written in percent and kept from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Percent(pub(super) f64);

impl Percent {
    /// The share, from 0 to 1.
    #[must_use]
    pub fn get(self) -> f64 {
        self.0
    }
}

impl TryFrom<String> for Percent {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        let number = text
            .strip_suffix('%')
            .and_then(|number| number.trim_end().parse().ok());
        match number {
            Some(number) if (0.0..=100.0).contains(&number) => Ok(Self(number / 100.0)),
            _ => Err(ValueError {
                value: text,
                expected: "a share such as 0.1%, from 0% to 100%",
            }),
        }
    }
}

/// A weight, written in percent.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Share(pub(super) Weight);

impl TryFrom<String> for Share {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        match text.parse() {
            Ok(weight) => Ok(Self(weight)),
            Err(_) => Err(ValueError {
                value: text,
                expected: "a weight such as 5%, from 0% to 100% in steps of 0.01%",
            }),
        }
    }
}

/// A time such as `90s`.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Time(pub(super) Duration);

impl Time {
    /// The time in seconds.
    pub(super) fn seconds(self) -> f64 {
        self.0.as_secs_f64()
    }
}

impl TryFrom<String> for Time {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        crate::spec::read_duration(&text)
            .map(Self)
            .ok_or(ValueError {
                value: text,
                expected: "a time such as 90s, 10m or 1h30m",
            })
    }
}

/// How many nodes.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "u32")]
pub(super) struct Count(pub(super) u32);

impl TryFrom<u32> for Count {
    type Error = ValueError;

    fn try_from(count: u32) -> Result<Self, ValueError> {
        if (1..=NODES_MAX).contains(&count) {
            Ok(Self(count))
        } else {
            Err(ValueError {
                value: count.to_string(),
                expected: "1 to 64 nodes",
            })
        }
    }
}
