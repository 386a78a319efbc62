//! Scenarios as data: what the traffic is like, how the canary differs, and what is expected of the judge.
//!
//! Each key is described where it is read, here; `scenarios.yml` beside this file uses them all.

use rollout::plan::{Plan, PlanError, Step};
use rollout::{Bake, Duration, Hold, Weight};
use serde::{Deserialize, Serialize};
use serde_saphyr::{Location, Spanned};

use super::values::{Count, Name, Percent, Positive, Share, Time};
use crate::spec::Finding;

/// The scenarios that come with the program.
pub const SHIPPED: &str = include_str!("scenarios.yml");

/// The shipped scenarios' name in findings.
pub const SHIPPED_NAME: &str = "scenarios.yml";

/// Longest file of scenarios: a hundred times the shipped one.
const BYTES_MAX: usize = 1 << 20;

/// A file of scenarios.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    scenarios: Vec<Spanned<Scenario>>,
}

/// One kind of release under one kind of traffic.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its name: small letters, digits and hyphens; no two alike.
    pub name: Name,
    /// What it is, for people.
    pub about: String,
    /// Where it comes from, and so whether the judge's settings were tuned on it.
    pub from: Source,
    /// How a rollout should end.
    pub expect: Expect,
    /// Requests a second, over both arms; one row of the result for each.
    pub rates: Vec<Positive>,
    /// Numbers that were published for it.
    #[serde(default)]
    pub(super) published: Vec<Spanned<Published>>,
    /// The requests, whoever serves them.
    #[serde(default)]
    pub(super) traffic: Traffic,
    /// Stable, and so the canary where it does not differ.
    #[serde(default)]
    pub(super) stable: Service,
    /// In what the canary differs.
    #[serde(default)]
    pub(super) canary: Change,
    /// Who serves.
    #[serde(default)]
    pub(super) nodes: Nodes,
    /// What the rollout goes by.
    #[serde(default)]
    pub(super) plan: Release,
}

/// Where a scenario comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The table of JUDGE 1, on which the settings were tuned.
    Table,
    /// Another number of JUDGE 2.
    Text,
    /// The whole rollouts of the judge's worked examples.
    Vectors,
    /// Made for this file; no setting was ever tuned on it.
    Own,
}

/// How a rollout should end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expect {
    /// The release is no worse: a rollback is a false one.
    Promote,
    /// The release is worse.
    RollBack,
    /// There is nothing to judge by: neither.
    Neither,
    /// Shown, and held against nothing.
    Any,
}

/// Numbers published for one rate: medians.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// Requests a second.
    pub rate: Positive,
    /// The share of rollouts that was rolled back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_back: Option<Percent>,
    /// Time to the rollback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<Positive>,
    /// Failed requests of the canary until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<Positive>,
    /// Time to the promotion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoted_seconds: Option<Positive>,
}

/// The requests, whoever serves them. Times count from the canary's first second.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Traffic {
    /// How long stable is watched before; 2 minutes.
    pub(super) before: Time,
    /// The share of its weight that the canary really gets; all of it. Less is broken routing.
    pub(super) routed: Percent,
    /// From when on there is no request at all, if ever.
    pub(super) stops: Option<Time>,
    /// A slow wave of the rate: by this factor up and down.
    pub(super) tide: Option<Wave>,
    /// Moments of high load.
    pub(super) bursts: Option<Bursts>,
    /// Slow waves of error rate and latency that both arms share.
    pub(super) drift: Drift,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            before: Time(Duration::from_secs(120)),
            routed: Percent(1.0),
            stops: None,
            tide: None,
            bursts: None,
            drift: Drift::default(),
        }
    }
}

/// A sine on the logarithm: from one `factor`th to `factor` times and back in one `period`, from any moment of it.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wave {
    pub(super) factor: Positive,
    pub(super) period: Time,
}

/// Waves of what both arms share.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Drift {
    pub(super) errors: Option<Wave>,
    pub(super) latency: Option<Wave>,
}

/// Bursts: lengths and gaps are exponential with these means. What load does to a service it does to both arms.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bursts {
    /// By how much the rate grows.
    pub(super) factor: Positive,
    /// How long a burst is.
    pub(super) lasts: Time,
    /// How long the gap before it is.
    pub(super) every: Time,
    /// By how much the error rate grows.
    #[serde(default = "Positive::one")]
    pub(super) errors: Positive,
    /// By how much the latency grows.
    #[serde(default = "Positive::one")]
    pub(super) latency: Positive,
}

/// How stable serves.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Service {
    /// The share of its requests that fails; 0.1 %.
    pub(super) errors: Percent,
    /// How many failures come together on one node, in the mean; 1, which is each by itself.
    pub(super) clusters: Positive,
    /// How long its answers take.
    pub(super) latency: Latency,
}

impl Default for Service {
    fn default() -> Self {
        Self {
            errors: Percent(0.001),
            clusters: Positive::one(),
            latency: Latency::default(),
        }
    }
}

/// A lognormal, and perhaps a part that is another one.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Latency {
    /// The body's median in milliseconds; 80.
    pub(super) median_ms: Positive,
    /// The standard deviation of the latency's natural logarithm; 0.5, where p99 is 3.2 times the median.
    pub(super) sigma: Positive,
    /// The part whose median is `factor` times the body's: a tail, or what misses a cache.
    pub(super) slow: Option<Slow>,
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            median_ms: Positive(80.0),
            sigma: Positive(0.5),
            slow: None,
        }
    }
}

/// A share that is slower.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Slow {
    pub(super) share: Percent,
    pub(super) factor: Positive,
}

/// In what the canary differs from stable; without keys in nothing.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Change {
    /// Its error rate where stable has its own without drift; what is more or less is added at all times.
    pub(super) errors: Option<Percent>,
    /// By how much all its answers are slower.
    pub(super) slower: Option<Positive>,
    /// Its slowest answers, by share, are slower by this; the others are as they were.
    pub(super) slowest: Option<Slow>,
    /// Its own slow part, in place of stable's.
    pub(super) slow: Option<Slow>,
    /// From when on it differs; from the start.
    pub(super) starts: Time,
    /// From when on it differs, counted from when it got every request, in place of `starts`. The times and the failed requests
    /// of its rollbacks count from there too.
    pub(super) alone: Option<Time>,
    /// How long the difference in errors and in `slower` takes to grow to its full size; no time.
    pub(super) grows: Time,
    /// Whether it differs in bursts alone.
    pub(super) only_in_bursts: bool,
    /// How each of its nodes begins.
    pub(super) cold_start: Option<ColdStart>,
}

/// How a node begins.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ColdStart {
    /// From its first request.
    pub(super) lasts: Time,
    /// By how much its answers are slower until then.
    #[serde(default = "Positive::one")]
    pub(super) slower: Positive,
    /// The share of its requests that fails until then, beside the usual ones.
    #[serde(default)]
    pub(super) errors: Percent,
}

/// Who serves. The defaults are those of the figures in the rollout crate's README.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Nodes {
    /// The canary's nodes; 2.
    pub(super) canary: Count,
    /// Stable's nodes; 4.
    pub(super) stable: Count,
    /// Whether the canary gets its nodes as its weight grows, up to as many as stable has; `canary` means nothing then.
    pub(super) join: bool,
    /// The standard deviation, by node, of the latency's natural logarithm; none.
    pub(super) spread: Percent,
    /// The same of the error rate's; none.
    pub(super) errors_spread: Percent,
    /// One node that is worse than its kin.
    pub(super) sick: Option<Sick>,
}

impl Default for Nodes {
    fn default() -> Self {
        Self {
            canary: Count(2),
            stable: Count(4),
            join: false,
            spread: Percent(0.0),
            errors_spread: Percent(0.0),
            sick: None,
        }
    }
}

/// One sick node.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sick {
    /// Whose.
    pub(super) arm: ArmName,
    /// The share of its requests that fails beside the usual ones.
    #[serde(default)]
    pub(super) errors: Percent,
    /// By how much its answers are slower.
    #[serde(default = "Positive::one")]
    pub(super) slower: Positive,
}

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ArmName {
    Canary,
    Stable,
}

/// What the rollout goes by: the judge's defaults of JUDGE 2.12 where a key is missing.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "RawRelease")]
pub(super) struct Release {
    pub(super) plan: Plan,
    pub(super) bake: Bake,
    pub(super) warm_up: Duration,
    pub(super) keep_warm: Duration,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawRelease {
    /// The steps' weights.
    weights: Vec<Share>,
    /// The shortest time of a step.
    hold: Time,
    /// The time from which a step passes without proof.
    hold_max: Time,
    /// The same for the last step.
    hold_max_last: Time,
    /// The weight of the bake.
    bake: Share,
    /// How long it lasts.
    bake_for: Time,
    /// How long nodes are left out while they warm up.
    warm_up: Time,
    /// How long the canary is watched with every request on it; not at all.
    keep_warm: Time,
}

impl Default for RawRelease {
    fn default() -> Self {
        let percent = |percent| Share(Weight::from_percent(percent).unwrap_or(Weight::ZERO));
        let seconds = |seconds| Time(Duration::from_secs(seconds));
        Self {
            weights: [1, 5, 10, 25, 50].map(percent).to_vec(),
            hold: seconds(10),
            hold_max: seconds(300),
            hold_max_last: seconds(600),
            bake: percent(80),
            bake_for: seconds(60),
            warm_up: seconds(30),
            keep_warm: seconds(0),
        }
    }
}

impl TryFrom<RawRelease> for Release {
    type Error = PlanError;

    fn try_from(raw: RawRelease) -> Result<Self, PlanError> {
        let last = raw.weights.len().saturating_sub(1);
        let step = |(index, weight): (usize, &Share)| Step::Weight {
            weight: weight.0,
            hold: Hold {
                least: raw.hold.0,
                most: if index == last {
                    raw.hold_max_last.0
                } else {
                    raw.hold_max.0
                },
            },
        };
        let plan = Plan::new(raw.weights.iter().enumerate().map(step).collect())?;
        // The bake is one more step as far as weights go, so the plan's own rules say whether it can follow.
        let mut with_bake = plan.steps().to_vec();
        let at_once = Hold {
            least: Duration::ZERO,
            most: Duration::ZERO,
        };
        with_bake.push(Step::Weight {
            weight: raw.bake.0,
            hold: at_once,
        });
        Plan::new(with_bake)?;
        Ok(Self {
            plan,
            bake: Bake {
                weight: raw.bake.0,
                period: raw.bake_for.0,
            },
            warm_up: raw.warm_up.0,
            keep_warm: raw.keep_warm.0,
        })
    }
}

impl Default for Release {
    fn default() -> Self {
        Self::try_from(RawRelease::default()).expect("the default weights grow")
    }
}

/// Reads a file of scenarios, which `name` names in findings.
///
/// # Errors
/// What is wrong with it, and where. There is at least one finding; of what is no scenario at all only the first.
pub fn read(text: &str, name: &str) -> Result<Vec<Scenario>, Vec<Finding>> {
    let finding = |at: Location, value: Option<String>, expected: String| Finding {
        file: name.to_owned(),
        line: at.line().max(1),
        column: at.column().max(1),
        key: String::new(),
        value,
        expected,
        mend: None,
    };
    if text.len() > BYTES_MAX {
        let expected = format!("expected at most {BYTES_MAX} bytes: is it the right file?");
        return Err(vec![finding(
            Location::UNKNOWN,
            Some(format!("{} bytes", text.len())),
            expected,
        )]);
    }
    let options = serde_saphyr::options! { with_snippet: false };
    let file: File = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        // The parser names the place too; a finding does so already.
        let mut words = error.to_string();
        words.truncate(words.find(" at line ").unwrap_or(words.len()));
        vec![finding(
            error.location().unwrap_or(Location::UNKNOWN),
            None,
            words,
        )]
    })?;
    let mut findings = Vec::new();
    let mut scenarios: Vec<Scenario> = Vec::with_capacity(file.scenarios.len());
    for Spanned {
        value: scenario,
        referenced: at,
        ..
    } in file.scenarios
    {
        let mut wrong = |at: Location, value: &str, expected: &str| {
            findings.push(finding(at, Some(value.to_owned()), expected.to_owned()));
        };
        let shown = scenario.name.as_str();
        if scenarios.iter().any(|other| other.name == scenario.name) {
            wrong(at, shown, "expected a name that no scenario above has");
        }
        if scenario.rates.is_empty() {
            wrong(at, shown, "expected at least one rate in `rates`");
        }
        for published in &scenario.published {
            let rate = published.value.rate;
            if !scenario.rates.contains(&rate) {
                wrong(
                    published.referenced,
                    &rate.get().to_string(),
                    "expected one of the scenario's `rates`",
                );
            }
        }
        scenarios.push(scenario);
    }
    if findings.is_empty() {
        Ok(scenarios)
    } else {
        Err(findings)
    }
}
