//! When and where a service may be released: freezes, the chain of environments, four eyes. What the file says, and what
//! of it holds one rollout. Whether a freeze is on is the shell's to say: the core knows no calendar.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Duration;
use crate::release::ServiceName;
use crate::serial::millis;

/// Most freezes of one file. Each is asked at every look at a running rollout.
pub const FREEZES_MAX: usize = 50;

/// Most approvals that an environment may ask for. Who needs more has a committee, and no release will ever be approved.
pub const APPROVALS_MAX: u32 = 10;

/// What `friday.yml` says of when and where its service may be released.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Policy {
    /// When nothing begins and nothing grows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub freeze: Vec<Freeze>,
    /// What each environment asks for, those alone that ask for something.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub environments: BTreeMap<String, Demands>,
}

impl Policy {
    /// Whether it asks for nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self == &Self::default()
    }

    /// How many people must approve a rollout to this environment before its first request.
    #[must_use]
    pub fn approvals(&self, environment: &str) -> u32 {
        self.environments
            .get(environment)
            .map_or(0, |demands| demands.approvals)
    }

    /// This one, and whatever `before` asks for beyond it: the freezes of both, the greater number of approvals, and where the
    /// two need something else to have been before, what `before` needs.
    #[must_use]
    pub fn at_least(&self, before: &Self) -> Self {
        let mut policy = self.clone();
        let more = before.freeze.iter();
        let more = more.filter(|freeze| !self.freeze.contains(freeze));
        policy.freeze.extend(more.cloned());
        for (name, demands) in &before.environments {
            let own = policy.environments.entry(name.clone()).or_default();
            own.approvals = own.approvals.max(demands.approvals);
            if demands.needs.is_some() {
                own.needs.clone_from(&demands.needs);
            }
        }
        policy
    }
}

/// A time that comes again and again, in which nothing begins and nothing grows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Freeze {
    /// When it begins: five fields of cron. Valid: whoever read the file checked it.
    pub cron: String,
    /// For how long.
    #[serde(rename = "for_ms", with = "millis")]
    #[schemars(with = "u64")]
    pub period: Duration,
    /// The time zone of `cron`, by its IANA name.
    pub zone: String,
    /// Where it holds; everywhere if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub environments: Vec<String>,
}

/// What an environment asks for before a release goes there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Demands {
    /// Where the same digest must have been promoted before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needs: Option<Needs>,
    /// How many people other than the author must approve before the canary's first request.
    pub approvals: u32,
}

/// Where a release must have been promoted before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Needs {
    /// Under which service; under any where it is not named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// In which environment.
    pub environment: String,
}

/// What of the policy holds one rollout, and what was said to that.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Admission {
    /// How many people other than the author must approve before the canary's first request.
    #[serde(skip_serializing_if = "is_zero")]
    pub approvals_min: u32,
    /// Who did, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub approved_by: Vec<String>,
    /// The freeze that is on, in words for people; `None` where none is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen: Option<String>,
    /// Whether it goes back to a release that was stable before: nothing holds that.
    #[serde(skip_serializing_if = "is_false")]
    pub goes_back: bool,
    /// Why no freeze holds this rollout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub emergency: Option<Emergency>,
    /// What its own file asks for, where that is less than what holds it: once it is promoted, that counts for the next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub own: Option<Policy>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(is: &bool) -> bool {
    !*is
}

/// The word that lifts freezes for one rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Emergency {
    /// Who gave it.
    pub by: String,
    /// Why.
    pub reason: String,
}

impl Admission {
    /// Whether nothing holds the rollout, and nothing was said.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self == &Self::default()
    }

    /// Whether a freeze holds it.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.frozen.is_some() && self.emergency.is_none() && !self.goes_back
    }

    /// How many approvals are still missing.
    #[must_use]
    pub fn approvals_missing(&self) -> u32 {
        let there = u32::try_from(self.approved_by.len()).unwrap_or(u32::MAX);
        self.approvals_min.saturating_sub(there)
    }

    /// Counts an approval of a rollout by `author`. One by its author, a second one by the same person, or one that
    /// nobody asked for changes nothing.
    pub(crate) fn approve(&mut self, author: &str, by: &str) {
        let is_known = self.approved_by.iter().any(|other| same_person(other, by));
        if self.approvals_missing() > 0 && !same_person(author, by) && !is_known {
            self.approved_by.push(by.to_owned());
        }
    }
}

/// Whether two names of the event log may be one person's: `NAME`, or `NAME (for CLAIMED)` where NAME is certain. Two
/// people who share a token are one here, and so is a token with the person it claims to speak for: four eyes are counted
/// strictly.
#[must_use]
pub fn same_person(one: &str, other: &str) -> bool {
    let (certain, claimed) = names(one);
    let (others_certain, others_claimed) = names(other);
    [Some(certain), claimed]
        .into_iter()
        .flatten()
        .any(|name| name == others_certain || Some(name) == others_claimed)
}

/// The certain name, and the claimed one behind it.
fn names(author: &str) -> (&str, Option<&str>) {
    let split = author
        .strip_suffix(')')
        .and_then(|text| text.split_once(" (for "));
    split.map_or((author, None), |(certain, claimed)| {
        (certain, Some(claimed))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_eyes_are_two_people() {
        let table = [
            ("ada", "ada", true),
            ("ada", "bob", false),
            ("gitlab (for ada)", "gitlab (for bob)", true),
            ("gitlab (for ada)", "ada", true),
            ("ada", "gitlab (for ada)", true),
            ("gitlab (for ada)", "bob", false),
            ("gitlab (for ada)", "slack (for bob)", false),
            ("gitlab (for ada)", "slack (for ada)", true),
            // No way out by a name that looks like two.
            ("ada", "ada (for bob)", true),
        ];
        for (one, other, same) in table {
            assert_eq!(same_person(one, other), same, "{one} {other}");
            assert_eq!(same_person(other, one), same, "{other} {one}");
        }
    }

    #[test]
    fn the_stricter_of_two_counts() {
        let freeze = |cron: &str| Freeze {
            cron: cron.to_owned(),
            period: Duration::from_secs(3_600),
            zone: "UTC".to_owned(),
            environments: Vec::new(),
        };
        let policy = |freezes: &[&str], environments: &[(&str, Option<&str>, u32)]| Policy {
            freeze: freezes.iter().map(|cron| freeze(cron)).collect(),
            environments: environments
                .iter()
                .map(|(name, needs, approvals)| {
                    let needs = needs.map(|environment| Needs {
                        service: None,
                        environment: environment.to_owned(),
                    });
                    let approvals = *approvals;
                    ((*name).to_owned(), Demands { needs, approvals })
                })
                .collect(),
        };
        let before = policy(&["a", "b"], &[("production", Some("staging"), 1)]);
        let table = [
            (Policy::default(), before.clone()),
            (before.clone(), before.clone()),
            (
                policy(
                    &["c", "b"],
                    &[("production", Some("dev"), 2), ("dev", None, 1)],
                ),
                policy(
                    &["c", "b", "a"],
                    &[("production", Some("staging"), 2), ("dev", None, 1)],
                ),
            ),
        ];
        for (own, expected) in table {
            assert_eq!(own.at_least(&before), expected);
            assert_eq!(own.at_least(&Policy::default()), own);
        }
    }

    #[test]
    fn counts_each_approver_once_and_the_author_never() {
        let mut admission = Admission {
            approvals_min: 2,
            ..Admission::default()
        };
        for by in ["ada", "bob", "bob", "gitlab (for bob)", "carol", "dan"] {
            admission.approve("ada", by);
        }
        assert_eq!(admission.approved_by, ["bob", "carol"]);
        assert_eq!(admission.approvals_missing(), 0);
        let mut plain = Admission::default();
        plain.approve("ada", "bob");
        assert!(plain.is_plain());
    }
}
