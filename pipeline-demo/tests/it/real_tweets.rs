//! The pipeline's judgement of real tweets, against that of people.

use std::path::PathBuf;

use pipeline_demo::features::all_of;
use pipeline_demo::tweet::Tweet;
use serde_json::Value;

/// A tweet that people found clearly glad or sad: the mean of their ratings, from -4 to 4, is beyond this.
const CLEAR: f64 = 0.5;

/// Least share of clear tweets on which we agree with people about the sign. VADER's authors report an F1 of 0.96 on this
/// very data for the original; the library used here leaves some of its rules out.
const AGREEMENT_MIN: f64 = 0.85;

fn tweets() -> Vec<(Tweet, f64)> {
    let path = std::env::var_os("FRIDAY_TWEETS").map(PathBuf::from).expect(
        "FRIDAY_TWEETS is not set; run `FRIDAY_TWEETS=/path/to/tweets.jsonl cargo test -p pipeline-demo`, \
         a file in the shape of the X API v2 filtered stream with `_label.human_mean_sentiment`",
    );
    let text = std::fs::read_to_string(&path);
    let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines()
        .map(|line| {
            let tweet = Tweet::parse(line.as_bytes()).unwrap();
            let value: Value = serde_json::from_str(line).unwrap();
            (
                tweet,
                value["_label"]["human_mean_sentiment"].as_f64().unwrap(),
            )
        })
        .collect()
}

#[test]
fn real_tweets_are_found_as_glad_or_sad_as_people_find_them() {
    let tweets = tweets();
    let clear = || tweets.iter().filter(|(_, human)| human.abs() >= CLEAR);
    let agreed = clear().filter(|(tweet, human)| {
        let found = all_of(tweet)["sentiment"]["compound"].as_f64().unwrap();
        found * human > 0.0
    });
    let share = agreed.count() as f64 / clear().count() as f64;
    println!("agreed on {share:.3} of {} tweets", clear().count());
    assert!(share >= AGREEMENT_MIN, "{share}");
}
