//! Text in, a pipeline that is valid or every reason why there is none.

use std::collections::BTreeMap;

use std::time::Duration;

use friday::yaml::{
    Fields, Finding, Findings, Place, Setting, Tree, Value, duration, long_duration, nearest,
    show_duration,
};

use super::jobs::jobs;
use super::routes::{self, AskedRoute, routes};
use super::stages::{Condition, Stage, Workflow};
use super::stream::stream;
use super::{PARALLEL_DEFAULT, PARALLEL_MAX, Pipeline};
use crate::features::FEATURES;
use crate::jobs::JobSpec;
use crate::sink::LATE_AFTER_DEFAULT;

/// Releases with settings of their own.
const RELEASES_MAX: usize = 100;

/// Values that one condition may name.
const VALUES_MAX: usize = 1_000;

/// Keys that lead to the value of a condition: a feature, and what is in it.
const PATH_MAX: usize = 4;

/// Shortest `late_after`.
const LATE_AFTER_MIN: Duration = Duration::from_millis(1);

/// Reads the text of a `pipeline.yml`, which `name` names in findings.
///
/// # Errors
/// Everything that is wrong with it, in the order of the lines. There is at least one finding.
pub fn read(text: &str, name: &str) -> Result<Pipeline, Vec<Finding>> {
    let mut findings = Findings::new(name);
    let tree = Tree::parse(text, &mut findings);
    let pipeline = tree.as_ref().and_then(|tree| {
        let expected = "a map with features, routes, releases, stream or jobs";
        let fields = Value::root(tree).map(expected, &mut findings)?;
        Some(file(fields, &mut findings))
    });
    let findings = findings.in_order();
    match pipeline {
        Some(pipeline) if findings.is_empty() => Ok(pipeline),
        _ => Err(findings),
    }
}

fn file(mut fields: Fields<'_>, findings: &mut Findings) -> Pipeline {
    let asked = match fields.take("features") {
        Some(value) => features(value, findings),
        None => all(),
    };
    let parallel = parallel(&mut fields, PARALLEL_DEFAULT, findings);
    let ways = match fields.take("routes") {
        Some(value) => routes(value, findings),
        None => Vec::new(),
    };
    routes::check(&ways, &asked, true, findings);
    let releases = match fields.take("releases") {
        Some(value) => releases(value, &asked, &ways, parallel, findings),
        None => BTreeMap::new(),
    };
    let jobs = match fields.take("jobs") {
        Some(value) => jobs(value, findings),
        None => JobSpec::defaults(),
    };
    let stream = fields.take("stream").map(|value| stream(value, findings));
    let late_after = fields
        .take("late_after")
        .and_then(|value| span(&value, LATE_AFTER_MIN, findings))
        .unwrap_or(LATE_AFTER_DEFAULT);
    fields.finish(findings);
    Pipeline {
        workflow: workflow(&asked, &ways, parallel),
        releases,
        stream,
        jobs,
        late_after,
    }
}

/// A stage as it was asked for.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) name: &'static str,
    /// Where it stands and what its key is; nowhere in a file that names none.
    at: Place,
    key: String,
    /// Names of stages that come before it.
    needs: Vec<Setting<String>>,
    pub(super) when: Vec<Condition>,
}

/// Every feature, as without a file.
fn all() -> Vec<Asked> {
    let asked = |feature: &&dyn crate::features::Feature| Asked {
        name: feature.name(),
        at: Place::default(),
        key: "features".to_owned(),
        needs: Vec::new(),
        when: Vec::new(),
    };
    FEATURES.iter().map(asked).collect()
}

fn names() -> Vec<&'static str> {
    FEATURES.iter().map(|feature| feature.name()).collect()
}

/// Notes a stage that there is not.
pub(super) fn unknown(named: &Setting<String>, known: &[&str], findings: &mut Findings) {
    let mend = nearest(&named.value, known).map(|name| format!("did you mean {name}?"));
    let expected = match known {
        [] => "unknown stage: there is none".to_owned(),
        known => format!("unknown stage: expected one of {}", known.join(", ")),
    };
    let shown = Some(named.shown.clone());
    findings.note(
        named.at.unwrap_or_default(),
        &named.key,
        shown,
        expected,
        mend,
    );
}

fn features(value: Value<'_>, findings: &mut Findings) -> Vec<Asked> {
    let expected = "a map of stages like { language: , sentiment: { after: [language] } }";
    let (at, key) = (value.at(), value.key().to_owned());
    let Some(fields) = value.map(expected, findings) else {
        return all();
    };
    let entries: Vec<_> = fields.entries().collect();
    if entries.is_empty() {
        let expected = format!("expected at least one of {}", names().join(", "));
        findings.at(at, &key, Some("an empty map".to_owned()), expected);
        return all();
    }
    let mut stages = Vec::new();
    for (name, value) in entries {
        match names().into_iter().find(|known| *known == name) {
            Some(known) => stages.push(stage(known, value, findings)),
            None => {
                let shown = format!("{name:?}");
                let named = Setting {
                    value: name.to_owned(),
                    key: value.key().to_owned(),
                    at: Some(value.key_at()),
                    shown,
                };
                unknown(&named, &names(), findings);
            }
        }
    }
    check(&stages, findings);
    stages
}

fn stage(name: &'static str, value: Value<'_>, findings: &mut Findings) -> Asked {
    let mut asked = Asked {
        name,
        at: value.key_at(),
        key: value.key().to_owned(),
        needs: Vec::new(),
        when: Vec::new(),
    };
    if value.is_nothing() {
        return asked;
    }
    let expected = "nothing, or a map like { after: [language], when: { language.code: [eng] } }";
    let Some(mut fields) = value.map(expected, findings) else {
        return asked;
    };
    if let Some(after) = fields.take("after") {
        asked
            .needs
            .extend(texts(after, "a stage or a list of stages", findings));
    }
    if let Some(when) = fields.take("when") {
        let expected = "a map like { language.code: [eng, deu] }";
        if let Some(conditions) = when.map(expected, findings) {
            for (path, value) in conditions.entries().collect::<Vec<_>>() {
                condition(&mut asked, path, value, findings);
            }
        }
    }
    fields.finish(findings);
    asked
}

fn condition(asked: &mut Asked, path: &str, value: Value<'_>, findings: &mut Findings) {
    let keys: Vec<String> = path.split('.').map(str::to_owned).collect();
    let named = Setting {
        value: keys[0].clone(),
        key: value.key().to_owned(),
        at: Some(value.key_at()),
        shown: format!("{path:?}"),
    };
    if keys.len() > PATH_MAX || keys.iter().any(String::is_empty) {
        let expected = "expected a stage and perhaps a key of its result, such as language.code";
        let shown = Some(named.shown.clone());
        findings.at(
            named.at.unwrap_or_default(),
            &named.key,
            shown,
            expected.to_owned(),
        );
        return;
    }
    asked.needs.push(named);
    let values = texts(value, "a value or a list of values", findings);
    asked.when.push(Condition {
        path: keys,
        values: values.into_iter().map(|value| value.value).collect(),
    });
}

/// One text or several.
pub(super) fn texts(
    value: Value<'_>,
    expected: &str,
    findings: &mut Findings,
) -> Vec<Setting<String>> {
    let (at, key) = (value.at(), value.key().to_owned());
    let values = if value.is_list() {
        value.list(expected, findings).unwrap_or_default()
    } else {
        vec![value]
    };
    if values.is_empty() || values.len() > VALUES_MAX {
        let expected = format!("expected {expected}, 1 to {VALUES_MAX}");
        findings.at(
            at,
            &key,
            Some(format!("a list of {}", values.len())),
            expected,
        );
        return Vec::new();
    }
    let text = |value: Value<'_>| {
        let text = value.scalar(expected, findings, |text| Some(text.to_owned()))?;
        Some(value.setting(text))
    };
    values.into_iter().filter_map(text).collect()
}

fn parallel(fields: &mut Fields<'_>, default: usize, findings: &mut Findings) -> usize {
    let Some(value) = fields.take("parallel") else {
        return default;
    };
    let expected = format!("tasks at once in one worker, from 1 to {PARALLEL_MAX}");
    let read = |text: &str| text.parse().ok().filter(|n| (1..=PARALLEL_MAX).contains(n));
    value.scalar(&expected, findings, read).unwrap_or(default)
}

fn releases(
    value: Value<'_>,
    asked: &[Asked],
    ways: &[AskedRoute],
    parallel_of_all: usize,
    findings: &mut Findings,
) -> BTreeMap<String, Workflow> {
    let expected = "a map of releases like { canary: { without: [mentions] } }";
    let (at, key) = (value.at(), value.key().to_owned());
    let Some(fields) = value.map(expected, findings) else {
        return BTreeMap::new();
    };
    let entries: Vec<_> = fields.entries().collect();
    if entries.len() > RELEASES_MAX {
        let expected = format!("expected at most {RELEASES_MAX} releases");
        findings.at(at, &key, Some(entries.len().to_string()), expected);
        return BTreeMap::new();
    }
    let mut releases = BTreeMap::new();
    for (name, value) in entries {
        let expected = "a map like { features: { language: }, without: [mentions], parallel: 256 }";
        let Some(mut fields) = value.map(expected, findings) else {
            continue;
        };
        let mut asked = match fields.take("features") {
            Some(value) => features(value, findings),
            None => asked.to_vec(),
        };
        if let Some(value) = fields.take("without") {
            for left_out in texts(value, "a stage or a list of stages", findings) {
                let before = asked.len();
                asked.retain(|stage| stage.name != left_out.value);
                if asked.len() == before {
                    let known: Vec<&str> = asked.iter().map(|stage| stage.name).collect();
                    unknown(&left_out, &known, findings);
                    continue;
                }
                for stage in &mut asked {
                    needed(stage, &left_out, findings);
                }
            }
        }
        let ways = match fields.take("routes") {
            Some(value) => {
                let own = routes(value, findings);
                routes::check(&own, &asked, true, findings);
                own
            }
            None => {
                routes::check(ways, &asked, false, findings);
                ways.to_vec()
            }
        };
        let parallel = parallel(&mut fields, parallel_of_all, findings);
        fields.finish(findings);
        let workflow = workflow(&asked, &ways, parallel);
        releases.insert(name.to_owned(), workflow);
    }
    releases
}

/// A stage that is left out may be one that another only came after, but none that another asks about.
fn needed(stage: &mut Asked, left_out: &Setting<String>, findings: &mut Findings) {
    if stage
        .when
        .iter()
        .any(|condition| condition.path[0] == left_out.value)
    {
        let expected = format!(
            "expected a stage that no other asks about: {} runs by what this one finds",
            stage.name
        );
        let at = left_out.at.unwrap_or_default();
        findings.at(at, &left_out.key, Some(left_out.shown.clone()), expected);
    }
    stage.needs.retain(|need| need.value != left_out.value);
}

/// A duration of at least `least`, and at most a month.
pub(super) fn span(
    value: &Value<'_>,
    least: Duration,
    findings: &mut Findings,
) -> Option<Duration> {
    span_to(value, least, "30d", duration, findings)
}

/// A duration of at least `least`, and at most a year.
pub(super) fn long_span(
    value: &Value<'_>,
    least: Duration,
    findings: &mut Findings,
) -> Option<Duration> {
    span_to(value, least, "366d", long_duration, findings)
}

fn span_to(
    value: &Value<'_>,
    least: Duration,
    most: &str,
    read: fn(&str) -> Option<Duration>,
    findings: &mut Findings,
) -> Option<Duration> {
    let expected = format!(
        "a duration from {} to {most}, such as 90s, 10m or 7d",
        show_duration(least)
    );
    let read = |text: &str| read(text).filter(|span| *span >= least);
    value.scalar(&expected, findings, read)
}

/// Puts the stages into an order in which each comes after those that it needs; also those that stay because they need
/// what is not there, or each other.
fn in_order(asked: &[Asked]) -> (Vec<&Asked>, Vec<&Asked>) {
    let mut ordered: Vec<&Asked> = Vec::new();
    let mut left: Vec<&Asked> = asked.iter().collect();
    let is_there = |name: &str| asked.iter().any(|stage| stage.name == name);
    loop {
        let is_done = |name: &str| ordered.iter().any(|stage| stage.name == name);
        let can_run = |stage: &&Asked| {
            let mut needs = stage.needs.iter();
            needs.all(|need| is_done(&need.value) || !is_there(&need.value))
        };
        let Some(next) = left.iter().position(can_run) else {
            return (ordered, left);
        };
        ordered.push(left.remove(next));
    }
}

/// Notes stages that are needed and not there, and stages that wait for each other.
fn check(asked: &[Asked], findings: &mut Findings) {
    let known: Vec<&str> = asked.iter().map(|stage| stage.name).collect();
    for need in asked.iter().flat_map(|stage| &stage.needs) {
        if !known.contains(&&*need.value) {
            unknown(need, &known, findings);
        }
    }
    let (_, left) = in_order(asked);
    if let Some(stuck) = left.first() {
        circle(stuck, &left, findings);
    }
}

/// What was asked for and checked, as a worker does it.
fn workflow(asked: &[Asked], ways: &[AskedRoute], parallel: usize) -> Workflow {
    let (ordered, _) = in_order(asked);
    let stage = |asked: &&Asked| {
        let feature = names().iter().position(|name| *name == asked.name);
        let feature = feature.expect("only features that there are become stages");
        Stage::new(feature, asked.when.clone())
    };
    let ways = routes::resolved(ways, &ordered);
    Workflow::new(ordered.iter().map(stage).collect(), ways, parallel)
}

/// Walks from a stage that cannot run to one it waits for, until one comes again: from there on it is the circle.
fn circle(stuck: &Asked, left: &[&Asked], findings: &mut Findings) {
    let mut path = vec![stuck];
    loop {
        let last = path[path.len() - 1];
        let mut waited_for = last.needs.iter().filter_map(|need| {
            let mut left = left.iter();
            left.find(|stage| stage.name == need.value)
        });
        let next = waited_for
            .next()
            .expect("who is stuck waits for somebody who is stuck");
        let Some(begin) = path.iter().position(|stage| stage.name == next.name) else {
            path.push(next);
            continue;
        };
        let circle = &path[begin..];
        let mut words: Vec<&str> = circle.iter().map(|stage| stage.name).collect();
        words.push(next.name);
        let words = format!(
            "these stages wait for each other: {}",
            words.join(" after ")
        );
        let mend = "remove one of their after or when".to_owned();
        findings.note(next.at, &next.key, None, words, Some(mend));
        return;
    }
}
