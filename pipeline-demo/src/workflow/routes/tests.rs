use crate::tweet::Tweet;
use crate::workflow::{Workflow, read};

const WAYS: &str = "
features:
  language:
  hashtags:
  mentions: { after: hashtags }
  sentiment: { when: { language.code: eng } }
routes:
  sample: { when: { author_share: 10% }, stages: [language, hashtags, mentions, sentiment] }
  tagged: { when: { lang: [en, de], has: [hashtags, links] }, stages: [mentions, hashtags] }
  passed on: { when: { kind: [retweet, quote] }, stages: hashtags }
";

fn keys(workflow: &Workflow, data: &serde_json::Value) -> Vec<String> {
    let record = serde_json::json!({ "data": data }).to_string();
    let tweet = Tweet::parse(record.as_bytes()).unwrap();
    workflow.run(&tweet).keys().cloned().collect()
}

#[test]
fn a_tweet_takes_the_first_route_that_may_be_its_own_and_without_one_every_stage() {
    let file = WAYS.replace("passed on", "passed-on");
    let text = "The weather has been wonderful this morning, hasn't it? #rust https://t.co/a";
    let workflow = read(&file, "pipeline.yml").unwrap().workflow;
    let names: Vec<&str> = workflow.routes().iter().map(super::Route::name).collect();
    assert_eq!(names, ["sample", "tagged", "passed-on"]);
    let retweet = serde_json::json!([{"type": "retweeted", "id": "5"}]);
    let every = ["hashtags", "language", "mentions", "sentiment"];
    for (author, lang, references, expected) in [
        // Among the first tenth of all authors, whatever else holds.
        ("4", "en", &retweet, &every[..]),
        ("1", "en", &retweet, &["hashtags", "mentions"]),
        ("1", "fr", &retweet, &["hashtags"]),
        ("1", "und", &serde_json::json!(null), &every),
        // Every stage that it may go through: X says that it is not English, whatever the words are.
        ("1", "fr", &serde_json::json!(null), &every[..3]),
    ] {
        let data = serde_json::json!({"id": "1", "author_id": author, "lang": lang, "text": text,
            "referenced_tweets": references});
        assert_eq!(keys(&workflow, &data), expected, "{author} {lang}");
    }
    let data = serde_json::json!({"id": "1", "author_id": "1", "text": "#rust https://t.co/a"});
    let no_lang = keys(&workflow, &data);
    assert!(no_lang.contains(&"language".to_owned()), "{no_lang:?}");
}

#[test]
fn a_release_has_the_routes_of_all_less_what_it_does_without_or_its_own() {
    let file = "
features: { language: , hashtags: , mentions: }
routes:
  all: { stages: [language, hashtags] }
releases:
  canary: { without: hashtags }
  abc: { routes: { all: { stages: mentions } } }
";
    let pipeline = read(file, "pipeline.yml").unwrap();
    let data = serde_json::json!({"id": "1", "text": "a"});
    let of = |release: &str, arm: &str| keys(pipeline.workflow_for(release, arm), &data);
    assert_eq!(of("def", "stable"), ["hashtags", "language"]);
    assert_eq!(of("def", "canary"), ["language"]);
    assert_eq!(of("abc", "canary"), ["mentions"]);
}

#[test]
fn everything_that_is_wrong_with_routes_is_said_with_its_place() {
    let file = WAYS.to_owned()
        + "
  typo: { when: { lnag: en, has: hashtag, kind: [reply, retwet], author_share: 5 }, stages: [langage], stage: x }
  alone: { when: { lang: e }, stages: [sentiment] }
  none: { when: { } }
  flat: language
  never: { when: { author_share: 5%, kind: quote }, stages: [language] }
  rest: { stages: language }
  after: { when: { kind: reply }, stages: language }
releases:
  canary: { features: { language: , sentiment: { when: { language.code: eng } } }, routes: { a: { stages: hashtags } } }
  abc: { features: { hashtags: , mentions: { when: { hashtags: rust } } }, routes: { } }
";
    let found = read(&file, "pipeline.yml").unwrap_err();
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    for (at, words) in [
        (
            "10:3",
            "routes.passed on: \"passed on\": expected a name of 1 to 64 letters",
        ),
        (
            "12:19",
            "routes.typo.when.lnag: unknown key: expected one of author_share, has, kind, lang",
        ),
        ("12:19", "did you mean lang?"),
        (
            "12:34",
            "routes.typo.when.has: \"hashtag\": expected one or a list of hashtags, mentions, links",
        ),
        ("12:34", "did you mean hashtags?"),
        (
            "12:57",
            "routes.typo.when.kind[1]: \"retwet\": expected one or a list of original, reply, quote, retweet",
        ),
        (
            "12:80",
            "routes.typo.when.author_share: 5: expected a share of all authors from 0.01% to 100%",
        ),
        (
            "12:94",
            "routes.typo.stages[0]: \"langage\": unknown stage: expected one of language",
        ),
        (
            "12:104",
            "routes.typo.stage: unknown key: expected one of stages, when",
        ),
        (
            "13:26",
            "routes.alone.when.lang: \"e\": expected a language as X names it",
        ),
        (
            "13:40",
            "routes.alone.stages[0]: \"sentiment\": expected language on this route too: sentiment runs by what it finds",
        ),
        (
            "14:17",
            "routes.none.when: an empty map: expected a condition",
        ),
        (
            "14:9",
            "routes.none.stages: missing: expected a stage or a list of stages",
        ),
        (
            "15:9",
            "routes.flat: \"language\": expected a map like { when:",
        ),
        (
            "16:3",
            "routes.never: no tweet ever takes this route: sample stands before it and takes all of them",
        ),
        ("16:3", "put it before sample, or remove it"),
        (
            "18:3",
            "routes.after: no tweet ever takes this route: rest stands before it",
        ),
        (
            "20:107",
            "releases.canary.routes.a.stages: \"hashtags\": unknown stage: expected one of language, sentiment",
        ),
        ("21:84", "releases.abc.routes: 0: expected 1 to 100 routes"),
    ] {
        let place = format!("pipeline.yml:{at}: ");
        let said = (found.iter()).any(|f| f.starts_with(&place) && f.contains(words));
        assert!(said, "{at} {words}: {found:#?}");
    }
}

#[test]
fn the_file_of_the_page_is_right_and_so_is_the_one_in_comments() {
    let page = include_str!("../../../WORKFLOW.md");
    let (_, block) = page.split_once("\n```yaml\n").unwrap();
    let (block, _) = block.split_once("\n```").unwrap();
    let workflow = read(block, "WORKFLOW.md").unwrap().workflow;
    assert_eq!(workflow.routes().len(), 4);
    let file = include_str!("../../../pipeline.yml");
    let (_, comment) = file.split_once("# routes:").unwrap();
    let lines = comment.lines().skip(1).take(4);
    let lines: Vec<&str> = lines.map(|line| &line[2..]).collect();
    let routes = format!("routes:\n{}\n", lines.join("\n"));
    let workflow = read(&routes, "pipeline.yml").unwrap().workflow;
    assert_eq!(workflow.routes().len(), 4);
}

/// A release with stages of its own takes the routes of all, so what its stages ask about has to be on them.
#[test]
fn the_routes_of_all_have_to_do_for_the_stages_of_a_release() {
    let file = "
features: { language: , hashtags: }
routes: { tags: { stages: [hashtags] } }
releases:
  canary: { features: { language: , hashtags: { when: { language.code: eng } } } }
";
    let found = read(file, "pipeline.yml").unwrap_err();
    assert_eq!(found.len(), 1, "{found:#?}");
    let words = found[0].to_string();
    assert!(
        words.starts_with("pipeline.yml:3:28: routes.tags.stages[0]: \"hashtags\": expected language on this route too"),
        "{words}"
    );
}
