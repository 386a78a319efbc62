//! `plan`, `plans` and `environments`: the steps, and which plan is meant.

use std::collections::BTreeMap;

use rollout::plan::Plan;
use rollout::policy::Demands;
use rollout::{Duration, Hold, Step, Weight};

use super::policy::{demands, refuse_rings};
use super::{ReadOptions, show_duration};
use crate::yaml::{Fields, Findings, Place, Setting, Value, units};

/// The plan of a file that has none, in percent: a first look that costs one request in a hundred, then tenfold, then
/// half, which is where both arms tell most about each other.
const PLAN_PERCENT: [u8; 3] = [1, 10, 50];

/// The judge's `step_min` (JUDGE 2.12): a quiet service's block closes after ten seconds, so every step sees one.
const HOLD_LEAST: Duration = Duration::from_secs(10);

/// The judge's `step_max` (JUDGE 2.12): from here on a calm canary may advance without proof.
const HOLD_MOST: Duration = Duration::from_secs(300);

/// Steps in one plan. The judge tells no more than a few weights apart; this only bounds what is kept and shown.
const STEPS_MAX: usize = 100;

/// The steps of one plan, and where each of their values stands.
pub(super) struct Steps {
    pub(super) key: String,
    pub(super) at: Option<Place>,
    steps: Vec<Step>,
    pub(super) holds: Vec<Setting<Hold>>,
    pub(super) last: Option<Setting<Weight>>,
    /// Whether a gate may come next.
    gate_fits: bool,
}

/// The file's plans, and which one is wanted.
pub(super) struct Plans {
    plain: Option<Steps>,
    named: BTreeMap<String, Option<Steps>>,
    wanted: Option<String>,
    known: bool,
    /// The environments there are, if the file says so.
    pub(super) environments: Option<Vec<String>>,
    /// What those ask for that ask for something.
    pub(super) demands: BTreeMap<String, Demands>,
}

impl Plans {
    /// Every plan that could be read.
    pub(super) fn all(&self) -> impl Iterator<Item = &Steps> {
        self.plain.iter().chain(self.named.values().flatten())
    }

    /// The plan that is wanted.
    pub(super) fn chosen(self) -> Option<Plan> {
        let steps = match &self.wanted {
            Some(name) => self.named.get(name)?.as_ref(),
            None if self.known => self.plain.as_ref(),
            None => None,
        };
        Plan::new(steps?.steps.clone()).ok()
    }
}

/// Reads the plans, and finds out which one is wanted.
pub(super) fn plans(
    fields: &mut Fields<'_>,
    options: &ReadOptions<'_>,
    findings: &mut Findings,
) -> Plans {
    let plain = match fields.take("plan") {
        Some(value) => steps(value, findings),
        None => Some(default_steps()),
    };
    let mut named = BTreeMap::new();
    let plans_at = fields.take("plans");
    if let Some(plans) = plans_at
        .clone()
        .and_then(|value| value.map("a map of names to plans", findings))
    {
        for (name, value) in plans.entries() {
            named.insert(name.to_owned(), steps(value, findings));
        }
    }
    let mut wanted = None;
    let names: Vec<_> = named.keys().map(String::as_str).collect();
    let environments_at = fields.take("environments");
    let environments = environments_at.clone().and_then(|value| {
        Some(environments(
            value.map("a map of names to environments", findings)?,
            &names,
            findings,
        ))
    });
    let (environments, demands) = environments.unzip();
    let demands: BTreeMap<String, Demands> = demands.unwrap_or_default();
    if let Some(at) = &environments_at {
        refuse_rings(&demands, at, findings);
    }
    let mut known = true;
    if let (Some(name), Some(environments), Some(at)) =
        (options.environment, &environments, &environments_at)
    {
        match environments.get(name) {
            Some(plan) => wanted.clone_from(plan),
            None => {
                known = false;
                let there: Vec<_> = environments.keys().map(String::as_str).collect();
                findings.at(
                    at.at(),
                    "environments",
                    Some(format!("{name:?}")),
                    one_of("environment", &there),
                );
            }
        }
    }
    if let Some(name) = options.plan {
        if !named.contains_key(name) {
            let at = plans_at.map_or_else(|| fields.at(), |value| value.at());
            findings.at(
                at,
                "plans",
                Some(format!("{name:?}")),
                one_of("plan", &names),
            );
        }
        wanted = Some(name.to_owned());
    }
    Plans {
        plain,
        named,
        wanted,
        known,
        environments: environments.map(|environments| environments.into_keys().collect()),
        demands,
    }
}

fn one_of(what: &str, names: &[&str]) -> String {
    if names.is_empty() {
        format!("there is no such {what}: the file names none")
    } else {
        format!(
            "there is no such {what}, expected one of {}",
            names.join(", ")
        )
    }
}

/// The plan that each environment names, if it names one, and what those ask for that ask for something.
fn environments(
    fields: Fields<'_>,
    plans: &[&str],
    findings: &mut Findings,
) -> (BTreeMap<String, Option<String>>, BTreeMap<String, Demands>) {
    let known: Vec<String> = fields.entries().map(|(name, _)| name.to_owned()).collect();
    let (mut environments, mut asked) = (BTreeMap::new(), BTreeMap::new());
    for (name, value) in fields.entries() {
        let Some(mut fields) = value.map(
            "a map like { plan: NAME, needs: staging, approvals: 1 }",
            findings,
        ) else {
            continue;
        };
        let plan = fields.take("plan").and_then(|value| {
            let expected = format!("the name of a plan in `plans`; there: {}", list(plans));
            value.text(&expected, findings, |text| {
                plans.contains(&text).then(|| text.to_owned())
            })
        });
        let demands = demands(name, &mut fields, &known, findings);
        if demands != Demands::default() {
            asked.insert(name.to_owned(), demands);
        }
        fields.finish(findings);
        environments.insert(name.to_owned(), plan);
    }
    (environments, asked)
}

fn list(names: &[&str]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

fn default_steps() -> Steps {
    let hold = Hold {
        least: HOLD_LEAST,
        most: HOLD_MOST,
    };
    let weights = PLAN_PERCENT.into_iter().filter_map(Weight::from_percent);
    let steps: Vec<_> = weights
        .map(|weight| Step::Weight { weight, hold })
        .collect();
    let holds = (0..steps.len())
        .map(|step| Setting::default_of(&format!("plan[{step}].hold"), hold))
        .collect();
    let last = PLAN_PERCENT
        .last()
        .and_then(|percent| Weight::from_percent(*percent));
    let last = last.map(|weight| Setting::default_of("plan", weight));
    Steps {
        key: "plan".to_owned(),
        at: None,
        steps,
        holds,
        last,
        gate_fits: true,
    }
}

const STEP_FORMS: &str = "a step like { weight: 10%, hold: 10s..5m } or { gate: release-managers }";

fn steps(value: Value<'_>, findings: &mut Findings) -> Option<Steps> {
    let key = value.key().to_owned();
    let at = value.at();
    let entries = value.list(
        "a list of steps like { weight: 10%, hold: 10s..5m }",
        findings,
    )?;
    if entries.len() > STEPS_MAX {
        findings.at(
            at,
            &key,
            Some(format!("{} steps", entries.len())),
            format!("expected at most {STEPS_MAX} steps"),
        );
        return None;
    }
    let mut read = Steps {
        key,
        at: Some(at),
        steps: Vec::new(),
        holds: Vec::new(),
        last: None,
        gate_fits: false,
    };
    let mut whole = true;
    for value in entries {
        whole &= step(value, &mut read, findings).is_some();
    }
    if whole && read.last.is_none() {
        let expected = "expected at least one step like { weight: 10%, hold: 10s..5m }";
        findings.at(
            at,
            &read.key,
            Some("no weight".to_owned()),
            expected.to_owned(),
        );
    }
    (whole && read.last.is_some()).then_some(read)
}

/// Reads one step into `read`; `None` if it is none, or cannot come here.
fn step(value: Value<'_>, read: &mut Steps, findings: &mut Findings) -> Option<()> {
    let at = value.at();
    let key = value.key().to_owned();
    let mut fields = value.map(STEP_FORMS, findings)?;
    let (weight, gate, hold) = (
        fields.take("weight"),
        fields.take("gate"),
        fields.take("hold"),
    );
    fields.finish(findings);
    match (weight, gate) {
        (Some(value), None) => {
            read.gate_fits = true;
            let weight = weight_of(&value, findings);
            let hold = match hold {
                Some(value) => hold_of(value, findings),
                None => Some(Setting::default_of(
                    &format!("{key}.hold"),
                    Hold {
                        least: HOLD_LEAST,
                        most: HOLD_MOST,
                    },
                )),
            };
            let weight = weight?;
            let before = read.last.replace(weight.clone());
            if let Some(before) = before.filter(|before| before.value >= weight.value) {
                let expected = format!("expected more than the {} of {}", before.value, before.key);
                findings.at(value.at(), value.key(), Some(weight.shown), expected);
                return None;
            }
            let hold = hold?;
            read.steps.push(Step::Weight {
                weight: weight.value,
                hold: hold.value,
            });
            read.holds.push(hold);
        }
        (None, Some(value)) => {
            let approvers =
                value.text("the name of the group that may approve", findings, |text| {
                    let fits = !text.trim().is_empty()
                        && text.len() <= 255
                        && !text.contains(char::is_control);
                    fits.then(|| text.to_owned())
                });
            if let Some(hold) = hold {
                let expected = "a gate waits for a person, it has no hold: remove it";
                findings.at(
                    hold.at(),
                    hold.key(),
                    Some(hold.shown()),
                    expected.to_owned(),
                );
            }
            if !std::mem::replace(&mut read.gate_fits, false) {
                let expected =
                    "a gate waits at the weight of the step before it: expected a weight there";
                findings.at(
                    value.at(),
                    value.key(),
                    Some(value.shown()),
                    expected.to_owned(),
                );
                return None;
            }
            read.steps.push(Step::Gate {
                approvers: approvers?,
            });
        }
        (Some(_), Some(_)) => {
            let expected = "expected either a weight or a gate: make two steps of it";
            findings.at(
                at,
                &key,
                Some("both weight and gate".to_owned()),
                expected.to_owned(),
            );
            return None;
        }
        (None, None) => {
            findings.at(
                at,
                &key,
                Some("neither weight nor gate".to_owned()),
                format!("expected {STEP_FORMS}"),
            );
            return None;
        }
    }
    Some(())
}

/// A share at which both arms can be compared.
pub(super) fn weight_of(value: &Value<'_>, findings: &mut Findings) -> Option<Setting<Weight>> {
    let expected = "a share above 0% and below 100%, in steps of 0.01%, such as 10%";
    let weight = value.scalar(expected, findings, |text| {
        text.parse()
            .ok()
            .filter(|weight| *weight != Weight::ZERO && *weight != Weight::ALL)
    });
    weight.map(|weight| value.setting(weight))
}

fn hold_of(value: Value<'_>, findings: &mut Findings) -> Option<Setting<Hold>> {
    let expected = "a duration such as 10s, 5m or 1h30m, or a range 10s..5m";
    let hold = value.scalar(expected, findings, |text| match text.split_once("..") {
        Some((least, most)) => Some(Hold {
            least: units::duration(least)?,
            most: units::duration(most)?,
        }),
        // Alone it says how long at least; the time-out rule keeps its own time.
        None => units::duration(text).map(|least| Hold {
            least,
            most: HOLD_MOST.max(least),
        }),
    })?;
    if hold.least > hold.most {
        let (least, most) = (show_duration(hold.least), show_duration(hold.most));
        let expected = format!("expected at least .. at most: {least} is more than {most}");
        findings.at(value.at(), value.key(), Some(value.shown()), expected);
        return None;
    }
    Some(value.setting(hold))
}
