//! `freeze`, and what `environments` ask for before a release goes there.

use std::collections::BTreeMap;

use rollout::ServiceName;
use rollout::policy::{APPROVALS_MAX, Demands, FREEZES_MAX, Freeze, Needs};

use crate::admission::calendar;
use crate::yaml::{Fields, Findings, Value, units};

/// The zone of a freeze that names none: the one that needs no table.
const ZONE: &str = "UTC";

/// Longest name of an environment, in bytes: as long as GitLab takes.
pub(crate) const ENVIRONMENT_BYTES_MAX: usize = 255;

/// Reads `freeze`. `environments` are those that the file has, if it says which there are.
pub(super) fn freezes(
    value: Value<'_>,
    environments: Option<&[String]>,
    findings: &mut Findings,
) -> Option<Vec<Freeze>> {
    let (key, at) = (value.key().to_owned(), value.at());
    let entries = value.list(
        "a list of times like { cron: \"0 17 * * 5\", for: 63h, zone: Europe/Berlin }",
        findings,
    )?;
    if entries.len() > FREEZES_MAX {
        let expected = format!("expected at most {FREEZES_MAX} freezes");
        findings.at(
            at,
            &key,
            Some(format!("{} freezes", entries.len())),
            expected,
        );
        return None;
    }
    let read: Vec<Option<Freeze>> = entries
        .into_iter()
        .map(|entry| freeze(entry, environments, findings))
        .collect();
    read.into_iter().collect()
}

fn freeze(
    value: Value<'_>,
    environments: Option<&[String]>,
    findings: &mut Findings,
) -> Option<Freeze> {
    let mut fields = value.map(
        "a map like { cron: \"0 17 * * 5\", for: 63h, zone: Europe/Berlin }",
        findings,
    )?;
    let cron_forms = "when it begins, as five fields of cron such as \"0 17 * * 5\"";
    let cron = fields.required("cron", cron_forms, findings);
    let cron = cron.and_then(|value| {
        value.text(cron_forms, findings, |text| {
            calendar::cron(text).is_ok().then(|| text.to_owned())
        })
    });
    let period_forms = "for how long, more than 0s and at most 30d, such as 63h";
    let period = fields.required("for", period_forms, findings);
    let period = period.and_then(|value| {
        value.scalar(period_forms, findings, |text| {
            units::duration(text).filter(|period| !period.is_zero())
        })
    });
    let zone = fields.take("zone").map(|value| {
        value.text(
            "a time zone by its IANA name, such as Europe/Berlin or UTC",
            findings,
            |text| calendar::zone(text).is_ok().then(|| text.to_owned()),
        )
    });
    let only = fields
        .take("environments")
        .map(|value| only_in(value, environments, findings));
    fields.finish(findings);
    Some(Freeze {
        cron: cron?,
        period: period?,
        zone: zone.unwrap_or_else(|| Some(ZONE.to_owned()))?,
        environments: only.unwrap_or_else(|| Some(Vec::new()))?,
    })
}

/// The environments that a freeze is for.
fn only_in(
    value: Value<'_>,
    environments: Option<&[String]>,
    findings: &mut Findings,
) -> Option<Vec<String>> {
    let expected = match environments {
        Some(there) => format!("one of the file's environments: {}", there.join(", ")),
        None => "the name of an environment, such as production".to_owned(),
    };
    let (key, at) = (value.key().to_owned(), value.at());
    let entries = value.list("a list of environments, such as [production]", findings)?;
    if entries.is_empty() {
        let expected = "expected at least one environment; without the key it holds everywhere";
        findings.at(
            at,
            &key,
            Some("an empty list".to_owned()),
            expected.to_owned(),
        );
        return None;
    }
    let read: Vec<Option<String>> = entries
        .iter()
        .map(|entry| {
            entry.text(&expected, findings, |text| {
                let is_there =
                    environments.is_none_or(|there| there.iter().any(|name| name == text));
                (is_there && is_environment(text)).then(|| text.to_owned())
            })
        })
        .collect();
    read.into_iter().collect()
}

/// Whether a text may name an environment.
pub(crate) fn is_environment(text: &str) -> bool {
    !text.trim().is_empty()
        && text.len() <= ENVIRONMENT_BYTES_MAX
        && !text.contains(char::is_control)
}

const NEEDS_FORMS: &str = "where it must have been promoted before: staging, or { service: web-staging, environment: staging }";

/// Reads `needs` and `approvals` of the environment `name`, which is one of `known`.
pub(super) fn demands(
    name: &str,
    fields: &mut Fields<'_>,
    known: &[String],
    findings: &mut Findings,
) -> Demands {
    let needs = fields
        .take("needs")
        .and_then(|value| needs(name, value, known, findings));
    let approvals = fields.take("approvals").and_then(|value| {
        let expected =
            format!("how many people other than the author must approve, 0 to {APPROVALS_MAX}");
        value.scalar(&expected, findings, |text| {
            text.parse().ok().filter(|count| *count <= APPROVALS_MAX)
        })
    });
    Demands {
        needs,
        approvals: approvals.unwrap_or(0),
    }
}

fn needs(name: &str, value: Value<'_>, known: &[String], findings: &mut Findings) -> Option<Needs> {
    if !value.is_map() {
        let others: Vec<&str> = known
            .iter()
            .map(String::as_str)
            .filter(|other| *other != name)
            .collect();
        let expected = if others.is_empty() {
            "another environment of the file; there is none".to_owned()
        } else {
            format!(
                "another environment of the file, one of {}",
                others.join(", ")
            )
        };
        return value.text(&expected, findings, |text| {
            others.contains(&text).then(|| Needs {
                service: None,
                environment: text.to_owned(),
            })
        });
    }
    let mut fields = value.map(NEEDS_FORMS, findings)?;
    let service = fields.required(
        "service",
        "the service it was promoted under; for any, write needs: ENVIRONMENT",
        findings,
    );
    let service = service.and_then(|value| {
        let expected = "1 to 63 letters, digits, '-', '_' or '.', beginning with a letter or digit";
        value.text(expected, findings, |text| text.parse::<ServiceName>().ok())
    });
    let environment = fields.required("environment", "where, such as staging", findings);
    let environment = environment.and_then(|value| {
        value.text(
            "the name of an environment, such as staging",
            findings,
            |text| is_environment(text).then(|| text.to_owned()),
        )
    });
    fields.finish(findings);
    Some(Needs {
        service: Some(service?),
        environment: environment?,
    })
}

/// Notes environments that need each other in a ring: nothing could ever begin.
pub(super) fn refuse_rings(
    demands: &BTreeMap<String, Demands>,
    at: &Value<'_>,
    findings: &mut Findings,
) {
    let next = |name: &String| {
        let needs = demands.get(name)?.needs.as_ref()?;
        needs.service.is_none().then_some(&needs.environment)
    };
    for name in demands.keys() {
        // A chain is no longer than there are environments.
        let mut here = next(name);
        for _ in 0..demands.len() {
            let Some(there) = here else { break };
            if there == name {
                findings.at(
                    at.at(),
                    at.key(),
                    Some(format!("{name:?}")),
                    "it needs itself in the end: expected an environment that needs nothing"
                        .to_owned(),
                );
                return;
            }
            here = next(there);
        }
    }
}
