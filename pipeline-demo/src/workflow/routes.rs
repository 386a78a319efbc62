//! `routes:`: which stages a tweet takes. Read, and checked against the stages that there are.

#[cfg(test)]
mod tests;

use friday::yaml::{Findings, Place, Setting, Value, nearest, percent};

use super::read::{Asked, texts, unknown};
use super::route::{AUTHORS_ALL, Has, Route, Traits};
use crate::tweet::Kind;

/// Routes of one workflow. Each tweet is compared with them one by one.
const ROUTES_MAX: usize = 100;

/// Longest name.
const NAME_BYTES_MAX: usize = 64;

/// What a tweet may be asked for.
const TRAITS: [&str; 4] = ["author_share", "has", "kind", "lang"];

/// Longest name of a language, such as `zh-TW`.
const LANG_BYTES_MAX: usize = 16;

/// A route as it was asked for.
#[derive(Debug, Clone)]
pub(super) struct AskedRoute {
    name: String,
    at: Place,
    key: String,
    /// Unless something is wrong with it.
    when: Option<Traits>,
    stages: Vec<Setting<String>>,
}

/// The routes in their order: a tweet takes the first that may be its own.
pub(super) fn routes(value: Value<'_>, findings: &mut Findings) -> Vec<AskedRoute> {
    let (at, key) = (value.at(), value.key().to_owned());
    let expected = "a map of routes like { tagged: { when: { has: hashtags }, stages: [language, hashtags] } }";
    let Some(fields) = value.map(expected, findings) else {
        return Vec::new();
    };
    let entries: Vec<_> = fields.entries().collect();
    if entries.is_empty() || entries.len() > ROUTES_MAX {
        let expected = format!(
            "expected 1 to {ROUTES_MAX} routes; without the key {key} every tweet takes every stage"
        );
        findings.at(at, &key, Some(entries.len().to_string()), expected);
        return Vec::new();
    }
    let route = |(name, value): (&str, Value<'_>)| route(name, value, findings);
    let routes: Vec<AskedRoute> = entries.into_iter().filter_map(route).collect();
    reached(&routes, findings);
    routes
}

fn route(name: &str, value: Value<'_>, findings: &mut Findings) -> Option<AskedRoute> {
    let (key, at) = (value.key().to_owned(), value.key_at());
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if !(1..=NAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(is_name) {
        let expected =
            format!("expected a name of 1 to {NAME_BYTES_MAX} letters, digits, '-', '_' or '.'");
        findings.at(at, &key, Some(format!("{name:?}")), expected);
    }
    let expected = "a map like { when: { lang: en }, stages: [language, sentiment] }";
    let mut fields = value.map(expected, findings)?;
    let when = match fields.take("when") {
        None => Some(Traits::default()),
        Some(value) => traits(value, findings),
    };
    let expected = "a stage or a list of stages";
    let stages = fields.required("stages", expected, findings);
    let stages = stages.map(|stages| texts(stages, expected, findings));
    fields.finish(findings);
    Some(AskedRoute {
        name: name.to_owned(),
        at,
        key,
        when,
        stages: stages?,
    })
}

fn traits(value: Value<'_>, findings: &mut Findings) -> Option<Traits> {
    let expected =
        "a map like { lang: [en, de], kind: original, has: hashtags, author_share: 10% }";
    let (at, key) = (value.at(), value.key().to_owned());
    let mut fields = value.map(expected, findings)?;
    if fields.entries().next().is_none() {
        let expected = "expected a condition; without the key when the route takes every tweet";
        findings.at(
            at,
            &key,
            Some("an empty map".to_owned()),
            expected.to_owned(),
        );
        return None;
    }
    let is_known = fields.entries().all(|(name, _)| TRAITS.contains(&name));
    let lang = fields.take("lang").map(|value| langs(value, findings));
    let kinds = Kind::ALL.map(|kind| (kind.name(), kind));
    let kind = (fields.take("kind")).map(|value| one_of(value, &kinds, findings));
    let things = Has::ALL.map(|has| (has.name(), has));
    let has = (fields.take("has")).map(|value| one_of(value, &things, findings));
    let authors = (fields.take("author_share")).map(|value| share(&value, findings));
    fields.finish(findings);
    // What is wrong is said; what is left of it would take other tweets.
    let lang = lang.map_or(Some(None), |lang| lang.map(Some))?;
    let kind = kind.map_or(Some(None), |kind| kind.map(Some))?;
    let has = has.unwrap_or_else(|| Some(Vec::new()))?;
    let authors = authors.map_or(Some(None), |authors| authors.map(Some))?;
    is_known.then_some(Traits {
        lang,
        kind,
        has,
        authors,
    })
}

fn langs(value: Value<'_>, findings: &mut Findings) -> Option<Vec<String>> {
    let named = texts(
        value,
        "a language as X names it, such as en, or a list of them",
        findings,
    );
    let is_lang = |text: &str| {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (2..=LANG_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_part)
    };
    let mut all_right = !named.is_empty();
    for lang in named.iter().filter(|lang| !is_lang(&lang.value)) {
        all_right = false;
        let expected = "expected a language as X names it, such as en or zh-TW".to_owned();
        let at = lang.at.unwrap_or_default();
        findings.at(at, &lang.key, Some(lang.shown.clone()), expected);
    }
    all_right.then(|| named.into_iter().map(|lang| lang.value).collect())
}

/// One or several of those that there are.
fn one_of<T: Copy>(
    value: Value<'_>,
    known: &[(&'static str, T)],
    findings: &mut Findings,
) -> Option<Vec<T>> {
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    let expected = format!("one or a list of {}", names.join(", "));
    let named = texts(value, &expected, findings);
    let mut found = Vec::new();
    let mut all_right = !named.is_empty();
    for named in named {
        match known.iter().find(|(name, _)| *name == named.value) {
            Some((_, it)) => found.push(*it),
            None => {
                all_right = false;
                let mend = nearest(&named.value, &names).map(|it| format!("did you mean {it}?"));
                let expected = format!("expected {expected}");
                let at = named.at.unwrap_or_default();
                findings.note(at, &named.key, Some(named.shown), expected, mend);
            }
        }
    }
    all_right.then_some(found)
}

fn share(value: &Value<'_>, findings: &mut Findings) -> Option<u16> {
    let expected = "a share of all authors from 0.01% to 100%, in steps of 0.01%";
    let read = |text: &str| {
        let hundredths = percent(text)? * 100.0;
        let whole = hundredths.round();
        let is_step = (hundredths - whole).abs() < 1e-6;
        let fits = (1.0..=f64::from(AUTHORS_ALL)).contains(&whole);
        // From 1 to 10 000, so it fits.
        (is_step && fits).then_some(whole as u16)
    };
    value.scalar(expected, findings, read)
}

/// Notes routes that no tweet ever takes, because an earlier one takes all that could.
fn reached(routes: &[AskedRoute], findings: &mut Findings) {
    for (index, route) in routes.iter().enumerate() {
        let Some(when) = &route.when else {
            continue;
        };
        let takes_all = |before: &&AskedRoute| {
            let of_before = before.when.as_ref();
            of_before.is_some_and(|of_before| of_before.cover(when))
        };
        let Some(first) = routes[..index].iter().find(takes_all) else {
            continue;
        };
        let words = format!(
            "no tweet ever takes this route: {} stands before it and takes all of them",
            first.name
        );
        let mend = format!("put it before {}, or remove it", first.name);
        findings.note(route.at, &route.key, None, words, Some(mend));
    }
}

/// Notes stages that are named and not there, if all of them have to be; and those that run by what another one finds which is
/// not on the route.
pub(super) fn check(
    routes: &[AskedRoute],
    asked: &[Asked],
    all_there: bool,
    findings: &mut Findings,
) {
    let known: Vec<&str> = asked.iter().map(|stage| stage.name).collect();
    for route in routes {
        for named in &route.stages {
            let Some(stage) = asked.iter().find(|stage| stage.name == named.value) else {
                if all_there {
                    unknown(named, &known, findings);
                }
                continue;
            };
            for condition in &stage.when {
                let needed = &condition.path[0];
                if route.stages.iter().any(|other| other.value == *needed) {
                    continue;
                }
                let expected = format!(
                    "expected {needed} on this route too: {} runs by what it finds",
                    stage.name
                );
                let at = named.at.unwrap_or_default();
                findings.at(at, &named.key, Some(named.shown.clone()), expected);
            }
        }
    }
}

/// What was asked for and checked, for stages in the order in which they run. Those that a release does without are left out.
pub(super) fn resolved(routes: &[AskedRoute], ordered: &[&Asked]) -> Vec<Route> {
    let route = |asked: &AskedRoute| Route {
        name: asked.name.clone(),
        // Where something is wrong with it, there is no workflow.
        when: asked.when.clone().unwrap_or_default(),
        stages: (0..ordered.len())
            .filter(|at| {
                let mut stages = asked.stages.iter();
                stages.any(|stage| stage.value == ordered[*at].name)
            })
            .collect(),
    };
    routes.iter().map(route).collect()
}
