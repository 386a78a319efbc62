//! Features that are not part of this release: `add-new-feature.sh` adds one of them. Here they are compiled and tested, so
//! that each fits the day it is wanted.

#[path = "../../features/emoji.rs"]
mod emoji;
#[path = "../../features/length.rs"]
mod length;
#[path = "../../features/shouting.rs"]
mod shouting;
#[path = "../../features/topic.rs"]
mod topic;

use std::collections::BTreeSet;

use super::{FEATURES, Feature, tweet};

static OFFERED: &[&dyn Feature] = &[
    &emoji::Emoji,
    &length::Length,
    &shouting::Shouting,
    &topic::Topic,
];

/// The script, whose list must be this one.
const SCRIPT: &str = include_str!("../../add-new-feature.sh");

#[test]
fn the_script_offers_these_by_their_names_and_kinds() {
    let mut listed: Vec<(&str, &str)> = Vec::new();
    let lines = SCRIPT
        .lines()
        .skip_while(|line| *line != "features=(")
        .skip(1);
    for line in lines.take_while(|line| *line != ")") {
        let mut words = line.trim().trim_matches('\'').split('|');
        listed.push((words.next().unwrap(), words.next().unwrap()));
    }
    let names: Vec<&str> = listed.iter().map(|(name, _)| *name).collect();
    let ours: Vec<&str> = OFFERED.iter().map(|feature| feature.name()).collect();
    assert_eq!(names, ours);
    for kind in ["good", "bad"] {
        assert!(
            listed.iter().any(|(_, listed)| *listed == kind),
            "{listed:?}"
        );
    }
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
}

#[test]
fn the_bad_ones_are_bad_on_some_tweets_alone() {
    let text = "what a lovely day for whoever has nothing else to do";
    assert_eq!(
        shouting::Shouting.of(&tweet(text)),
        serde_json::json!(null),
        "too slow to know"
    );
    let crashes = std::panic::catch_unwind(|| topic::Topic.of(&tweet("goal! #worldcup")));
    assert!(crashes.is_err());
}

#[test]
fn each_finds_its_place_in_the_list() {
    let source = include_str!("../features.rs");
    assert!(source.contains("\nmod sentiment;\n"));
    assert!(source.contains("\n    &sentiment::Sentiment,\n"));
    assert!(include_str!("../../pipeline.yml").contains("\n  sentiment:\n"));
    assert!(FEATURES.len() >= 4);
}
