use std::time::Duration;

use serde_json::json;

use super::*;
use crate::features::FEATURES;
use crate::jobs::spec::DEADLINE_DEFAULT;
use crate::jobs::{Schedule, Task};
use crate::tweet::{Kind, Tweet};

fn tweet(text: &str) -> Tweet {
    Tweet {
        id: "1".into(),
        author_id: None,
        created_at: None,
        lang: None,
        kinds: vec![Kind::Original],
        text: text.into(),
    }
}

fn keys(workflow: &Workflow, text: &str) -> Vec<String> {
    workflow.run(&tweet(text)).keys().cloned().collect()
}

fn findings(text: &str) -> Vec<String> {
    let findings = read(text, "pipeline.yml").unwrap_err();
    findings.iter().map(ToString::to_string).collect()
}

const ENGLISH: &str = "The weather has been wonderful this morning, #hasn't it?";
const GERMAN: &str = "Heute ist das Wetter endlich wieder richtig schön.";

#[test]
fn without_a_file_and_with_an_empty_map_everything_runs() {
    let default = Pipeline::default();
    assert_eq!(read("{}", "pipeline.yml").unwrap(), default);
    let workflow = default.workflow_for("abc", "canary");
    assert_eq!(
        workflow.run(&tweet(ENGLISH)),
        crate::features::all_of(&tweet(ENGLISH))
    );
    assert_eq!(workflow.stages().len(), FEATURES.len());
    assert_eq!(workflow.parallel(), PARALLEL_DEFAULT);
}

#[test]
fn a_stage_runs_after_what_it_asks_about_and_only_where_that_holds() {
    let text = "
features:
  sentiment: { when: { language.code: eng } }
  language:
  hashtags: { after: sentiment }
parallel: 7
releases:
  canary: { without: hashtags, parallel: 3 }
  abc: { features: { mentions: } }
";
    let pipeline = read(text, "pipeline.yml").unwrap();
    let all = pipeline.workflow_for("def", "stable");
    let order: Vec<&str> = all.stages().iter().map(Stage::name).collect();
    assert_eq!(order, ["language", "sentiment", "hashtags"]);
    assert_eq!(keys(all, ENGLISH), ["hashtags", "language", "sentiment"]);
    assert_eq!(keys(all, GERMAN), ["hashtags", "language"]);
    let canary = pipeline.workflow_for("def", "canary");
    assert_eq!(keys(canary, ENGLISH), ["language", "sentiment"]);
    assert_eq!((all.parallel(), canary.parallel()), (7, 3));
    let by_name = pipeline.workflow_for("abc", "canary");
    assert_eq!(keys(by_name, ENGLISH), ["mentions"]);
    assert_eq!(by_name.parallel(), 7);
}

#[test]
fn conditions_hold_for_texts_lists_numbers_and_truth_values() {
    let runs = |when: &str, text: &str| {
        let file = format!(
            "features: {{ language: , hashtags: , sentiment: , mentions: {{ when: {{ {when} }} }} }}"
        );
        let pipeline = read(&file, "pipeline.yml").unwrap();
        keys(&pipeline.workflow, text).contains(&"mentions".to_owned())
    };
    assert!(runs("hashtags: [rust, weather]", "a #Rust"));
    assert!(!runs("hashtags: [rust]", "a #go"));
    assert!(runs("language.reliable: [true, false]", ENGLISH));
    assert!(runs("sentiment.compound: 0.0", "Tuesday"));
    assert!(!runs("sentiment.nothing: a", "Tuesday"));
    assert!(
        !runs("language.code: [eng], hashtags: [x]", ENGLISH),
        "both"
    );
}

#[test]
fn everything_that_is_wrong_is_said_with_its_place() {
    let text = "
featurs: {}
features:
  language: { after: [hashtag] }
  sentimant:
  mentions: { when: { langage.code: eng }, afer: x }
  hashtags: 5
parallel: 0
releases:
  canary: { without: [sentiment, language] }
jobs:
  a: { task: agregate, every: 1m }
  b: { task: aggregate }
  c: { task: aggregate, cron: \"61 * * * *\", zone: Europe/Berlin }
  d: { task: aggregate, every: 10ms, catch_up: maybe, deadline: 999d }
  e: { task: aggregate, every: 1m, cron: \"* * * * *\" }
  f g: { task: reconcile, every: 1m, keep: 1d }
  h: { task: clean_up, cron: \"0 0 30 2 *\", keep: 1m }
late_after: soon
";
    let found = findings(text);
    for (at, words) in [
        (
            "2:1",
            "featurs: unknown key: expected one of features, jobs",
        ),
        ("2:1", "did you mean features?"),
        (
            "4:23",
            "features.language.after[0]: \"hashtag\": unknown stage: expected one of",
        ),
        ("4:23", "did you mean hashtags?"),
        (
            "5:3",
            "features.sentimant: \"sentimant\": unknown stage: expected one of",
        ),
        ("5:3", "did you mean sentiment?"),
        (
            "6:23",
            "features.mentions.when.langage.code: \"langage.code\": unknown stage",
        ),
        (
            "6:44",
            "features.mentions.afer: unknown key: expected one of after, when\n  did you mean after?",
        ),
        (
            "7:13",
            "features.hashtags: 5: expected nothing, or a map like",
        ),
        (
            "8:11",
            "parallel: 0: expected tasks at once in one worker, from 1 to 4096",
        ),
        (
            "10:23",
            "releases.canary.without[0]: \"sentiment\": unknown stage",
        ),
        (
            "12:14",
            "jobs.a.task: \"agregate\": unknown task: expected one of aggregate, clean_up, reconcile\n  did you mean aggregate?",
        ),
        (
            "13:6",
            "jobs.b: missing: expected every, such as 1m, or cron",
        ),
        (
            "14:31",
            "jobs.c.cron: \"61 * * * *\": expected minute, hour",
        ),
        ("14:31", "Number out of bounds"),
        (
            "14:45",
            "jobs.c.zone: unknown key: expected one of catch_up, cron, deadline, every, keep, task",
        ),
        (
            "15:32",
            "jobs.d.every: \"10ms\": expected a duration from 1s to 30d",
        ),
        (
            "15:48",
            "jobs.d.catch_up: \"maybe\": expected true or false",
        ),
        (
            "15:65",
            "jobs.d.deadline: \"999d\": expected a duration from 1s to 30d",
        ),
        (
            "16:42",
            "jobs.e.cron: \"* * * * *\": expected either every or cron",
        ),
        (
            "17:3",
            "jobs.f g: \"f g\": expected a name of 1 to 64 letters",
        ),
        (
            "17:44",
            "jobs.f g.keep: \"1d\": expected no keep: reconcile removes no rows",
        ),
        ("18:30", "there is no such day"),
        (
            "18:50",
            "jobs.h.keep: \"1m\": expected a duration from 1h to 366d",
        ),
        (
            "19:13",
            "late_after: \"soon\": expected a duration from 1ms to 30d",
        ),
    ] {
        let place = format!("pipeline.yml:{at}: ");
        let said = found
            .iter()
            .any(|f| f.starts_with(&place) && f.contains(words));
        assert!(said, "{at} {words}: {found:#?}");
    }
}

#[test]
fn a_circle_of_stages_is_refused_and_named() {
    let found = findings(
        "features:\n  hashtags: { after: mentions }\n  language: { after: [sentiment] }\n  mentions: { when: { language.code: eng } }\n  sentiment: { after: [mentions] }\n",
    );
    let circle = "these stages wait for each other: ";
    let named: Vec<&String> = found.iter().filter(|f| f.contains(circle)).collect();
    assert_eq!(found.len(), 1, "{found:#?}");
    // hashtags waits for the circle and is no part of it.
    assert!(
        !named[0].split(circle).nth(1).unwrap().contains("hashtags"),
        "{found:#?}"
    );
    let own = findings("features: { language: { after: language } }");
    assert!(
        own[0].contains("wait for each other: language after language"),
        "{own:#?}"
    );
    let canary = findings(
        "features: { language: }\nreleases: { canary: { features: { hashtags: { after: mentions }, mentions: { after: hashtags } } } }",
    );
    assert!(canary[0].contains(circle), "{canary:#?}");
}

#[test]
fn a_stage_that_another_asks_about_cannot_be_left_out() {
    let found = findings(
        "features: { language: , sentiment: { when: { language.code: eng } } }\nreleases: { canary: { without: language } }",
    );
    assert!(
        found[0].starts_with("pipeline.yml:2:32: releases.canary.without: "),
        "{found:#?}"
    );
    assert!(
        found[0].contains("sentiment runs by what this one finds"),
        "{found:#?}"
    );
}

#[test]
fn jobs_and_times_are_read() {
    let text = "
jobs:
  aggregate: { task: aggregate, every: 1m, catch_up: true, deadline: 30s }
  clean-up: { task: clean_up, cron: \"15 3 * * *\", keep: 90d }
late_after: 90s
";
    let pipeline = read(text, "pipeline.yml").unwrap();
    let expected = [
        JobSpec {
            name: "aggregate".into(),
            task: Task::Aggregate,
            schedule: Schedule::every(Duration::from_secs(60)),
            catch_up: true,
            deadline: Duration::from_secs(30),
        },
        JobSpec {
            name: "clean-up".into(),
            task: Task::CleanUp {
                keep: Duration::from_hours(90 * 24),
            },
            schedule: Schedule::cron("15 3 * * *").unwrap(),
            catch_up: false,
            deadline: DEADLINE_DEFAULT,
        },
    ];
    assert_eq!(pipeline.jobs, expected);
    assert_eq!(pipeline.late_after, Duration::from_secs(90));
}

#[test]
fn without_jobs_there_are_the_usual_ones() {
    let usual = read("parallel: 7", "pipeline.yml").unwrap().jobs;
    assert_eq!(usual, JobSpec::defaults());
    let none = findings("jobs: {}");
    assert!(none[0].contains("jobs: 0: expected 1 to 100"), "{none:?}");
    let twice = findings(
        "jobs:\n  a: { task: reconcile, every: 1m }\n  a: { task: reconcile, every: 1m }\n",
    );
    assert!(twice[0].starts_with("pipeline.yml:3:3: "), "{twice:?}");
}

#[test]
fn the_file_beside_the_sources_says_what_holds_without_one() {
    let file = include_str!("../../pipeline.yml");
    let pipeline = read(file, "pipeline.yml").unwrap();
    let default = Pipeline::default();
    assert_eq!(pipeline.workflow, default.workflow);
    assert_eq!(pipeline.jobs, default.jobs);
    assert_eq!(pipeline.late_after, default.late_after);
}

#[test]
fn a_finding_is_an_object_for_programs() {
    let findings = read("parallel: many", "p.yml").unwrap_err();
    let expected = json!([{"file": "p.yml", "line": 1, "column": 11, "key": "parallel", "value": "\"many\"",
        "expected": "expected tasks at once in one worker, from 1 to 4096", "mend": null}]);
    assert_eq!(json!(findings), expected);
}

#[test]
fn rules_of_the_stream_are_checked_as_x_would() {
    let text = "
stream:
  rules: { rust: (rust OR cargo) lang:en, tls: rustls }
  backfill_minutes: 3
";
    let stream = read(text, "pipeline.yml").unwrap().stream.unwrap();
    assert_eq!(stream.rules[0].value, "(rust OR cargo) lang:en");
    assert_eq!((stream.rules.len(), stream.backfill_minutes), (2, Some(3)));
    let found = findings(
        "stream:\n  rules: { a b: x, c: rust, d: rust, e: 5, f: }\n  backfill_minutes: 6\n",
    );
    for words in [
        "2:17: stream.rules.a b: \"x\": expected a tag of 1 to 64 letters",
        "2:32: stream.rules.d: \"rust\": expected another rule than that of c",
        "2:41: stream.rules.e: 5: expected a text: put it in quotes",
        "stream.rules.f: nothing: expected a rule in X's words",
        "3:21: stream.backfill_minutes: 6: expected whole minutes from 1 to 5",
    ] {
        assert!(
            found.iter().any(|f| f.contains(words)),
            "{words}: {found:#?}"
        );
    }
    assert!(findings("stream: {}")[0].contains("stream.rules: missing"));
}
