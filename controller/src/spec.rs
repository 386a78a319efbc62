//! Reading `friday.yml`: text in, a [`Spec`] that is valid or every reason why there is none.
//!
//! How a file becomes values, and what is wrong with it findings, is [`yaml`](crate::yaml)'s; what is left to this file,
//! [`plans`] and [`guard`] is what each key means, its default, and which values cannot go together. [`schema`] says the
//! same to editors.

mod guard;
mod notify;
mod plans;
mod policy;
mod proxy;
mod schema;
mod tuning;

use rollout::plan::{Ready, RouteMatch, Sticky};
use rollout::{Bake, Deadlines, Duration, Guard, Notify, Policy, ServiceName, Spec, Weight};

use crate::yaml::{Fields, Findings, Setting, Tree, Value};
use guard::{guard, guard_for};
pub(crate) use notify::is_address;
use notify::notify;
use plans::{Steps, plans, weight_of};
use policy::freezes;
pub(crate) use policy::{ENVIRONMENT_BYTES_MAX, is_environment};
use proxy::proxy;

pub use crate::yaml::Finding;
pub(crate) use crate::yaml::{duration as read_duration, nearest, show_duration};
pub use schema::schema;

/// Which of the file's plans is wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReadOptions<'a> {
    /// A plan of `plans:` in place of `plan:`.
    pub plan: Option<&'a str>,
    /// Where it is released; its entry in `environments:` may name a plan.
    pub environment: Option<&'a str>,
}

/// The ready check's path, where `ready:` does not say: what most images answer.
const READY_PATH: &str = "/ready";

/// Every host and every path: one service behind the proxy needs no routing.
const ROUTE_HOST: &str = "*";
const ROUTE_PATH: &str = "/";

/// People keep the release they were given; clients without cookies are not touched by it.
const STICKY: Sticky = Sticky::Cookie;

/// A canary's failure is replayed on stable where that is safe, so that users do not pay for the trial.
const SHIELD: bool = true;

/// 80 % and not 95 %: with 5 % left on stable an excess error carries a fourth of the evidence (JUDGE 2.10).
const BAKE_PERCENT: u8 = 80;

/// The judge's bake (JUDGE 2.12); services with slow leaks set 5 minutes.
const BAKE_FOR: Duration = Duration::from_secs(60);

/// Two minutes in which going back is one flip: long enough to look at a board and say no.
const KEEP_WARM: Duration = Duration::from_secs(120);

/// A large image on a slow registry takes two minutes to pull and start; five are a fault.
const READY_WITHIN: Duration = Duration::from_secs(300);

/// At 5 requests a second a good release takes 15 to 21 min over all its steps (JUDGE 1): what one step did not find in
/// half an hour it will not find.
const EVIDENCE_WITHIN: Duration = Duration::from_secs(30 * 60);

/// Three steps, a gate somebody must see, the bake and the promotion fit well; an office afternoon does not pass.
const ROLLOUT_WITHIN: Duration = Duration::from_secs(2 * 60 * 60);

/// Reads the text of a `friday.yml`, which `name` names in findings.
///
/// # Errors
/// Everything that is wrong with it, in the order of the lines. There is at least one finding.
pub fn read(text: &str, name: &str, options: &ReadOptions<'_>) -> Result<Spec, Vec<Finding>> {
    let mut findings = Findings::new(name);
    let tree = Tree::parse(text, &mut findings);
    let spec = tree.as_ref().and_then(|tree| {
        let fields =
            Value::root(tree).map("a map with at least `service` and `port`", &mut findings)?;
        file(fields, options, &mut findings)
    });
    let findings = findings.in_order();
    match spec {
        Some(spec) if findings.is_empty() => Ok(spec),
        _ => Err(findings),
    }
}

/// A finding at the query of a check, counted from 0: for what only a metrics source can say of it. `None` where the text
/// has no such check.
pub(crate) fn finding_at_query(
    text: &str,
    name: &str,
    check: usize,
    expected: String,
    mend: Option<String>,
) -> Option<Finding> {
    let mut findings = Findings::new(name);
    let tree = Tree::parse(text, &mut findings)?;
    let guard = Value::root(&tree).map("", &mut findings)?.take("guard")?;
    let checks = guard
        .map("", &mut findings)?
        .take("checks")?
        .list("", &mut findings)?;
    let query = checks
        .into_iter()
        .nth(check)?
        .map("", &mut findings)?
        .take("prometheus")?;
    findings.note(query.at(), query.key(), Some(query.shown()), expected, mend);
    findings.in_order().pop()
}

/// A complete `friday.yml` with every default written out, for help and tests.
#[must_use]
pub fn example() -> &'static str {
    include_str!("spec/example.yml")
}

fn file(
    mut fields: Fields<'_>,
    options: &ReadOptions<'_>,
    findings: &mut Findings,
) -> Option<Spec> {
    let service = fields.required(
        "service",
        "the name of the service that users call",
        findings,
    );
    let service = service.and_then(|value| {
        let expected = "1 to 63 letters, digits, '-', '_' or '.', beginning with a letter or digit";
        value.text(expected, findings, |text| {
            ServiceName::try_from(text.to_owned()).ok()
        })
    });
    let port = fields.required(
        "port",
        "the port that the service's tasks listen on, such as 9000",
        findings,
    );
    let port = port.and_then(|value| {
        value.scalar("a port from 1 to 65535", findings, |text| {
            text.parse().ok().filter(|port| *port > 0)
        })
    });
    let ready = fields.take("ready").map(|value| ready(value, findings));
    let route = fields.take("route").map(|value| route(value, findings));
    let sticky = fields.take("sticky").map(|value| sticky(value, findings));
    let shield = fields.take("shield").map(|value| {
        value.scalar("off or idempotent", findings, |text| match text {
            "off" => Some(false),
            "idempotent" => Some(true),
            _ => None,
        })
    });
    let proxy = fields.take("proxy").map(|value| proxy(value, findings));
    let plan = plans(&mut fields, options, findings);
    let bake = bake(fields.take("bake"), findings);
    let keep_warm = fields.duration("keep_warm", KEEP_WARM, findings);
    let deadlines = deadlines(fields.take("deadlines"), findings);
    let warm_up = fields.duration("warm_up", Guard::default().warm_up, findings);
    let sticky_in_force = sticky.as_ref().and_then(Option::as_ref).unwrap_or(&STICKY);
    let defaults = guard_for(sticky_in_force);
    let (guard, sampled_after) = match fields.take("guard") {
        Some(value) => guard(defaults, sticky_in_force, value, findings),
        None => (defaults, Vec::new()),
    };
    let freeze = match fields.take("freeze") {
        Some(value) => freezes(value, plan.environments.as_deref(), findings),
        None => Some(Vec::new()),
    };
    let notify = match fields.take("notify") {
        Some(value) => notify(value, findings),
        None => Notify::default(),
    };
    fields.finish(findings);

    let (bake, deadlines) = (bake?, deadlines?);
    for steps in plan.all() {
        fits(steps, &bake, &deadlines, &keep_warm, findings);
    }
    warm_up.below(&deadlines.evidence, findings);
    deadlines.ready.below(&deadlines.rollout, findings);
    deadlines.evidence.below(&deadlines.rollout, findings);
    bake.period.below(&deadlines.evidence, findings);
    // A gate waits for a sample of its step; one that comes later than its deadline can never open it (F5).
    for after in &sampled_after {
        after.below(&deadlines.evidence, findings);
    }

    let policy = Policy {
        freeze: freeze?,
        environments: plan.demands.clone(),
    };

    Some(Spec {
        service: service?,
        port: port?,
        ready: ready.unwrap_or_else(|| {
            Some(Ready {
                path: READY_PATH.to_owned(),
            })
        })?,
        route: route.unwrap_or_else(|| {
            Some(RouteMatch {
                host: ROUTE_HOST.to_owned(),
                path: ROUTE_PATH.to_owned(),
            })
        })?,
        sticky: sticky.unwrap_or(Some(STICKY))?,
        shield: shield.unwrap_or(Some(SHIELD))?,
        proxy: proxy.unwrap_or_default(),
        plan: plan.chosen()?,
        bake: Bake {
            weight: bake.weight.value,
            period: bake.period.value,
        },
        keep_warm: keep_warm.value,
        deadlines: Deadlines {
            ready: deadlines.ready.value,
            evidence: deadlines.evidence.value,
            rollout: deadlines.rollout.value,
        },
        guard: Guard {
            warm_up: warm_up.value,
            ..guard
        },
        policy,
        notify,
    })
}

fn ready(value: Value<'_>, findings: &mut Findings) -> Option<Ready> {
    let mut fields = value.map("a map like { path: /ready }", findings)?;
    let path = fields.take("path").map(|value| {
        value.text(
            "a path that begins with / and has no blanks, such as /ready",
            findings,
            |text| (text.starts_with('/') && is_path(text)).then(|| text.to_owned()),
        )
    });
    fields.finish(findings);
    Some(Ready {
        path: path.unwrap_or_else(|| Some(READY_PATH.to_owned()))?,
    })
}

fn route(value: Value<'_>, findings: &mut Findings) -> Option<RouteMatch> {
    let mut fields = value.map("a map like { host: \"*\", path: / }", findings)?;
    let host = fields.take("host").map(|value| {
        let expected =
            "a host name without scheme and port, such as api.example.org, or \"*\" for all";
        value.text(expected, findings, |text| {
            is_host(text).then(|| text.to_owned())
        })
    });
    let path = fields.take("path").map(|value| {
        value.text(
            "a path that begins with / and has neither blanks nor a query, such as /api",
            findings,
            |text| {
                (text.starts_with('/') && is_path(text) && !text.contains('?'))
                    .then(|| text.to_owned())
            },
        )
    });
    fields.finish(findings);
    Some(RouteMatch {
        host: host.unwrap_or_else(|| Some(ROUTE_HOST.to_owned()))?,
        path: path.unwrap_or_else(|| Some(ROUTE_PATH.to_owned()))?,
    })
}

/// Longest path of a route or a ready check, in bytes; servers refuse longer ones too.
const PATH_BYTES_MAX: usize = 1024;

fn is_path(text: &str) -> bool {
    text.len() <= PATH_BYTES_MAX && text.bytes().all(|b| b.is_ascii_graphic() && b != b'#')
}

/// `*`, a host name, or `*.` and a host name. 253 is the longest name that DNS can carry (RFC 1035).
fn is_host(text: &str) -> bool {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    text == "*" || (name.len() <= 253 && name.split('.').all(label))
}

const STICKY_FORMS: &str = "none, cookie, key, or \"header NAME\"";

fn sticky(value: Value<'_>, findings: &mut Findings) -> Option<Sticky> {
    if !value.is_map() {
        return value.scalar(STICKY_FORMS, findings, sticky_word);
    }
    let mut fields = value.map(STICKY_FORMS, findings)?;
    let by = fields.required("by", STICKY_FORMS, findings);
    let name = fields.take("name");
    let sticky = match (by, name) {
        (Some(by), Some(name)) => {
            let by = by.scalar("header, where there is a name", findings, |text| {
                (text == "header").then_some(())
            });
            let name = name.text(
                "the name of a request header, such as x-user",
                findings,
                |text| is_header(text).then(|| Sticky::Header(text.to_owned())),
            );
            by.and(name)
        }
        (Some(by), None) => by.scalar(STICKY_FORMS, findings, sticky_word),
        (None, _) => None,
    };
    fields.finish(findings);
    sticky
}

fn sticky_word(text: &str) -> Option<Sticky> {
    match text {
        "none" => Some(Sticky::None),
        "cookie" => Some(Sticky::Cookie),
        "key" => Some(Sticky::Key),
        header => {
            let name = header.strip_prefix("header ")?.trim();
            is_header(name).then(|| Sticky::Header(name.to_owned()))
        }
    }
}

/// A field name as RFC 9110, 5.1 has it, at most 64 long.
fn is_header(name: &str) -> bool {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !name.is_empty() && name.len() <= 64 && name.bytes().all(token)
}

/// `bake:` as it was read.
struct BakeRead {
    weight: Setting<Weight>,
    period: Setting<Duration>,
}

fn bake(value: Option<Value<'_>>, findings: &mut Findings) -> Option<BakeRead> {
    let weight = Setting::default_of("bake.weight", Weight::from_percent(BAKE_PERCENT)?);
    let period = Setting::default_of("bake.for", BAKE_FOR);
    let Some(value) = value else {
        return Some(BakeRead { weight, period });
    };
    let mut fields = value.map("a map like { weight: 80%, for: 60s }", findings)?;
    let given = fields
        .take("weight")
        .map(|value| weight_of(&value, findings));
    let period = fields.duration("for", BAKE_FOR, findings);
    fields.finish(findings);
    Some(BakeRead {
        weight: given.unwrap_or(Some(weight))?,
        period,
    })
}

/// `deadlines:` as it was read.
struct DeadlinesRead {
    ready: Setting<Duration>,
    evidence: Setting<Duration>,
    rollout: Setting<Duration>,
}

fn deadlines(value: Option<Value<'_>>, findings: &mut Findings) -> Option<DeadlinesRead> {
    let Some(value) = value else {
        return Some(DeadlinesRead {
            ready: Setting::default_of("deadlines.ready", READY_WITHIN),
            evidence: Setting::default_of("deadlines.evidence", EVIDENCE_WITHIN),
            rollout: Setting::default_of("deadlines.rollout", ROLLOUT_WITHIN),
        });
    };
    let mut fields = value.map(
        "a map like { ready: 5m, evidence: 30m, rollout: 2h }",
        findings,
    )?;
    let read = DeadlinesRead {
        ready: fields.duration("ready", READY_WITHIN, findings),
        evidence: fields.duration("evidence", EVIDENCE_WITHIN, findings),
        rollout: fields.duration("rollout", ROLLOUT_WITHIN, findings),
    };
    fields.finish(findings);
    for deadline in [&read.ready, &read.evidence, &read.rollout] {
        if let (Some(at), Duration::ZERO) = (deadline.at, deadline.value) {
            findings.at(
                at,
                &deadline.key,
                Some(deadline.shown.clone()),
                "expected more than 0s: it would end at once".to_owned(),
            );
            return None;
        }
    }
    Some(read)
}

/// Whether a plan can reach its end: within its deadlines, and with a bake above its last step.
fn fits(
    steps: &Steps,
    bake: &BakeRead,
    deadlines: &DeadlinesRead,
    keep_warm: &Setting<Duration>,
    findings: &mut Findings,
) {
    for hold in &steps.holds {
        let Setting {
            key,
            at,
            shown,
            value,
        } = hold.clone();
        let least = Setting {
            value: value.least,
            key,
            at,
            shown,
        };
        least.below(&deadlines.evidence, findings);
    }
    if let Some(last) = steps
        .last
        .as_ref()
        .filter(|last| last.value >= bake.weight.value)
    {
        let (faulty, expected) = if bake.weight.at.is_some() {
            (
                &bake.weight,
                format!(
                    "expected more than {}, the last weight of {}",
                    last.value, steps.key
                ),
            )
        } else {
            (
                last,
                format!(
                    "expected less than bake.weight ({} by default)",
                    bake.weight.value
                ),
            )
        };
        findings.at(
            faulty.at.unwrap_or_default(),
            &faulty.key,
            Some(faulty.shown.clone()),
            expected,
        );
    }
    let holds: Duration = steps.holds.iter().map(|hold| hold.value.least).sum();
    let shortest = holds + bake.period.value + keep_warm.value;
    let rollout = &deadlines.rollout;
    if shortest >= rollout.value {
        let expected = format!(
            "expected more than {}: so long take the holds of {}, the bake and keep_warm at the least",
            show_duration(shortest),
            steps.key,
        );
        let at = rollout
            .at
            .or(keep_warm.at)
            .or(bake.period.at)
            .or(steps.at)
            .unwrap_or_default();
        let value = Some(format!("{:?}", show_duration(rollout.value)));
        findings.at(at, &rollout.key, value, expected);
    }
}

#[cfg(test)]
mod tests;
