use serde_json::json;

use super::*;

const NOW: &str = "2026-11-20T12:00:30Z";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

fn at(offset: i64) -> Position {
    Position {
        partition: 0,
        offset,
    }
}

fn row(record: &Value, offset: i64) -> Row {
    let read = StoredResult::read(record.to_string().as_bytes(), at(offset));
    Row::of(read.unwrap(), now())
}

fn result(tweet: &str, origin: i64) -> Value {
    json!({"tweet_id": tweet, "release": "a", "features": {}, "origin": {"partition": 0, "offset": origin}})
}

#[test]
fn counts_what_it_knows_and_bounds_what_it_does_not() {
    let tags: Vec<String> = (0..100).map(|n| format!("T{n}\0")).collect();
    let row = row(
        &json!({"tweet_id": "1", "author_id": "a\0b", "release": "r".repeat(1_000), "created_at": "yesterday",
            "features": {"hashtags": tags, "sentiment": {"compound": 7.0, "label": 3}, "language": {"code": "eng"}}}),
        0,
    );
    assert_eq!(row.author_id.as_deref(), Some("a\u{fffd}b"));
    assert_eq!(row.fact.release.len(), WORD_CHARS_MAX);
    assert_eq!(row.fact.hashtags.len(), HASHTAGS_MAX);
    assert_eq!(row.fact.hashtags[1], "t1\u{fffd}");
    assert_eq!(
        (row.fact.sentiment, row.fact.sentiment_label),
        (Some(1.0), None)
    );
    assert_eq!(row.fact.minute, now().as_second() / 60);
    assert_eq!(row.since_ms, None);
}

#[test]
fn late_is_what_the_bus_had_for_too_long_and_a_file_of_old_tweets_is_not() {
    let made = |created_at: &str, appended_ms: Option<i64>| {
        let mut result = result("1", 0);
        result["created_at"] = created_at.into();
        result["origin"]["appended_ms"] = appended_ms.into();
        let mut batch = Batch::new(
            vec![row(&result, 0)],
            Vec::new(),
            now(),
            Duration::from_secs(60),
        );
        let row = batch.rows.pop().unwrap();
        (
            row.lateness.map(|lateness| lateness.as_secs()),
            row.fact.late,
        )
    };
    let now_ms = now().as_millisecond();
    assert_eq!(made("2013-11-10T16:13:27.000Z", None), (None, false));
    assert_eq!(
        made("2013-11-10T16:13:27.000Z", Some(now_ms - 61_000)),
        (Some(61), true)
    );
    assert_eq!(made("2026-11-20T11:58:30Z", None), (Some(120), true));
    assert_eq!(
        made("2026-11-20T11:58:30Z", Some(now_ms - 1_000)),
        (Some(1), false)
    );
    // A clock that is behind.
    assert_eq!(made("2026-11-20T12:10:00Z", None), (Some(0), false));
}

#[test]
fn of_several_results_of_a_tweet_the_last_stays_and_the_other_places_are_noted() {
    let rows = [
        ("1", 7, 4),
        ("2", 8, 1),
        ("1", 9, 2),
        ("1", 7, 9),
        ("2", 8, 6),
    ]
    .map(|(tweet, origin, offset)| row(&result(tweet, origin), offset));
    let batch = Batch::new(rows.to_vec(), Vec::new(), now(), Duration::ZERO);
    let kept: Vec<_> = batch
        .rows
        .iter()
        .map(|row| (row.tweet_id.as_str(), row.position.offset))
        .collect();
    assert_eq!(kept, [("1", 9), ("2", 6)]);
    let places: Vec<_> = batch
        .duplicates
        .iter()
        .map(|duplicate| duplicate.origin)
        .collect();
    assert_eq!((places, batch.redelivered), (vec![at(9)], 2));
    let (first, rest) = batch.clone().halves();
    assert_eq!((first.len(), rest.len()), (1, 2));
    assert_eq!([first.rows, rest.rows].concat(), batch.rows);
}
