//! What every store promises: one suite, run on SQLite and on a real PostgreSQL.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;
use jiff::Timestamp;
use pipeline_demo::bus::Position;
use pipeline_demo::jobs::{Begun, Outcome, RunPlace};
use pipeline_demo::sink::{
    Batch, DAY_S, DatabaseConfig, HOUR_S, Kind, Letter, MINUTE_S, Range, Reconciled, Row,
    SqliteStorage, Store, StoredResult,
};
use pipeline_demo::stats::{Added, Window};
use serde_json::json;

use crate::postgres::Postgres;

/// When the suite is, and everything it stores.
const NOW: &str = "2026-11-20T12:00:30Z";
const NOW_MINUTE_S: i64 = 1_795_176_000;

const LATE_AFTER: Duration = Duration::from_secs(60);

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

fn at(partition: u32, offset: i64) -> Position {
    Position { partition, offset }
}

/// A result: its tweet, release and two places; what is found depends on tweet and release.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Made {
    tweet: u32,
    release: &'static str,
    position: Position,
    origin: Option<Position>,
}

impl Made {
    fn label(&self) -> &'static str {
        let flipped = self.release == "b";
        match (self.tweet % 3, flipped) {
            (0, _) => "neutral",
            (1, false) | (2, true) => "positive",
            _ => "negative",
        }
    }

    fn compound(&self) -> f64 {
        match self.label() {
            "positive" => 0.1234,
            "negative" => -0.4,
            _ => 0.0,
        }
    }

    fn row(&self) -> Row {
        let record = json!({
            "tweet_id": self.tweet.to_string(), "author_id": "7", "created_at": NOW, "release": self.release,
            "features": {
                "language": {"code": if self.tweet.is_multiple_of(2) { "eng" } else { "deu" }},
                "sentiment": {"compound": self.compound(), "label": self.label()},
                "hashtags": [format!("Tag{}", self.tweet % 4), "all", "ALL"],
            },
            "origin": self.origin,
        });
        let read = StoredResult::read(record.to_string().as_bytes(), self.position);
        Row::of(read.unwrap(), now())
    }
}

fn made(tweet: u32, release: &'static str, offset: i64, origin: i64) -> Made {
    Made {
        tweet,
        release,
        position: at(tweet % 4, offset),
        origin: Some(at(0, origin)),
    }
}

fn batch(made: &[Made]) -> Batch {
    Batch::new(
        made.iter().map(Made::row).collect(),
        Vec::new(),
        now(),
        LATE_AFTER,
    )
}

fn letter(offset: i64, code: &str, release: &str, letter: i64) -> Letter {
    Letter {
        topic: "tweets".into(),
        position: at(1, offset),
        code: code.into(),
        reason: "the record is not JSON\0".into(),
        release: release.into(),
        original: b"{\xff\0".to_vec(),
        letter: at(0, letter),
        tweet_id: None,
        origin: None,
    }
}

fn letters(letters: Vec<Letter>) -> Batch {
    Batch::new(Vec::new(), letters, now(), LATE_AFTER)
}

fn always() -> Window {
    Window {
        from_s: 0,
        to_s: i64::MAX,
        release: None,
    }
}

/// All counts of a store: what is counted, of which key, of which release.
type Counts = BTreeMap<(String, String, String), (i64, i64)>;

async fn counts(store: &Arc<dyn Store>, releases: &[&str]) -> Counts {
    let mut counts = Counts::new();
    for (kind, release, count, micros) in store.totals(&always(), 1_000).await.unwrap() {
        counts.insert((kind, String::new(), release), (count, micros));
    }
    for kind in [Kind::Sentiment, Kind::Language, Kind::Hashtag] {
        for release in releases {
            let window = Window {
                release: Some((*release).into()),
                ..always()
            };
            for (key, count, micros) in store.top(kind, &window, None, 1_000).await.unwrap() {
                counts.insert(
                    (kind.name().into(), key, (*release).into()),
                    (count, micros),
                );
            }
        }
    }
    counts
}

/// The counts that these results must come to, whatever the order and however often they are delivered.
fn expected(all: &[Made]) -> Counts {
    let mut counts = Counts::new();
    let mut winners: BTreeMap<u32, &Made> = BTreeMap::new();
    for made in all {
        let winner = winners.entry(made.tweet).or_insert(made);
        if made.position > winner.position {
            *winner = made;
        }
    }
    for made in winners.values() {
        let micros = (made.compound() * 1e6).round() as i64;
        let mut add = |kind: &str, key: &str| {
            let count = counts.entry((kind.into(), key.into(), made.release.into()));
            let (count, sum) = count.or_default();
            (*count, *sum) = (*count + 1, *sum + micros);
        };
        add("total", "");
        add("sentiment", made.label());
        add(
            "language",
            if made.tweet.is_multiple_of(2) {
                "eng"
            } else {
                "deu"
            },
        );
        add("hashtag", &format!("tag{}", made.tweet % 4));
        add("hashtag", "all");
    }
    counts
}

fn second_places(all: &[Made]) -> usize {
    let winner = |tweet| {
        all.iter()
            .filter(|made| made.tweet == tweet)
            .max_by_key(|made| made.position)
    };
    let places: BTreeSet<Position> = all
        .iter()
        .filter(|made| winner(made.tweet).unwrap().origin != made.origin)
        .filter_map(|made| made.origin)
        .collect();
    places.len()
}

fn without_duplicates(counts: Counts) -> (Counts, i64) {
    let (duplicates, others): (Counts, Counts) = counts
        .into_iter()
        .partition(|((kind, ..), _)| kind == "duplicate");
    (others, duplicates.values().map(|(count, _)| count).sum())
}

async fn contract(store: Arc<dyn Store>) {
    a_row_again_changes_nothing(&store).await;
    a_letter_again_changes_nothing(&store).await;
    compares_offsets_and_finds_what_is_missing(&store).await;
    a_result_overrules_a_dead_letter_whichever_comes_first(&store).await;
    what_cannot_be_read_accounts_for_its_tweet(&store).await;
    keeps_book_of_jobs(&store).await;
    counters_are_added_once_for_each_key(&store).await;
    folds_counts_and_removes_rows_and_the_counts_stay(&store).await;
}

async fn a_row_again_changes_nothing(store: &Arc<dyn Store>) {
    let first: Vec<Made> = (0..50)
        .map(|n| made(n, "a", i64::from(n), i64::from(n)))
        .collect();
    let receipt = store.store(&batch(&first)).await.unwrap();
    assert_eq!((receipt.results.len(), receipt.redelivered), (50, 0));
    let receipt = store.store(&batch(&first)).await.unwrap();
    assert_eq!((receipt.results.len(), receipt.redelivered), (0, 50));
    assert_eq!(counts(store, &["a", "b"]).await, expected(&first));

    // The other release did some again, later in the topic: its results stay, and the counts move.
    let later: Vec<Made> = (0..10).map(|n| made(n, "b", 100, i64::from(n))).collect();
    let receipt = store.store(&batch(&later)).await.unwrap();
    assert_eq!(
        (
            receipt.results.len(),
            receipt.replaced.len(),
            receipt.duplicates
        ),
        (0, 10, 0)
    );
    // The earlier ones once more: too late.
    store.store(&batch(&first)).await.unwrap();
    let mut all = [first, later].concat();
    assert_eq!(counts(store, &["a", "b"]).await, expected(&all));

    // The same tweet from another place, in one batch with itself.
    let again = [
        made(3, "a", 50, 60),
        made(3, "a", 51, 61),
        made(49, "a", 60, 62),
    ];
    let receipt = store.store(&batch(&again)).await.unwrap();
    assert_eq!(receipt.duplicates, 3);
    all.extend(again);
    let (seen, duplicates) = without_duplicates(counts(store, &["a", "b"]).await);
    assert_eq!((seen, duplicates), (expected(&all), 3));
    assert_eq!(second_places(&all), 3);
    assert_eq!(store.stored().await.unwrap().results, 50);
}

async fn a_letter_again_changes_nothing(store: &Arc<dyn Store>) {
    let first = letters(vec![
        letter(0, "not_json", "a", 0),
        letter(1, "no_id", "", 1),
    ]);
    assert_eq!(store.store(&first).await.unwrap().letters.len(), 2);
    assert_eq!(store.store(&first).await.unwrap().redelivered, 2);
    // Refused again by another release, for another reason: one row, of the later letter.
    let later = letters(vec![letter(0, "no_text", "b", 2)]);
    store.store(&later).await.unwrap();
    store.store(&first).await.unwrap();
    assert_eq!(store.stored().await.unwrap().malformed, 2);
    let totals = store.totals(&always(), 100).await.unwrap();
    let malformed: BTreeMap<String, i64> = totals
        .into_iter()
        .filter(|(kind, ..)| kind == "malformed")
        .map(|(_, release, count, _)| (release, count))
        .collect();
    assert_eq!(
        malformed,
        BTreeMap::from([("b".into(), 1), (String::new(), 1)])
    );
}

async fn compares_offsets_and_finds_what_is_missing(store: &Arc<dyn Store>) {
    // Partition 0 holds the origins 0 to 49 and 60 to 62; tweet 49 is stored from place 62 and has 49 for its second one.
    let range = |partition, to| Range {
        partition,
        oldest: 30,
        to,
    };
    let reconciled = store.reconcile(range(0, 50), 1).await.unwrap();
    let found = (
        reconciled.expected,
        reconciled.results,
        reconciled.duplicates,
        reconciled.missing,
    );
    assert_eq!(found, (50, 49, 1, 0));
    let reconciled = store.reconcile(range(0, 65), 2).await.unwrap();
    let found = (
        reconciled.expected,
        reconciled.results,
        reconciled.duplicates,
        reconciled.missing,
    );
    assert_eq!(found, (65, 50, 3, 12));
    let holes = store.holes(10).await.unwrap();
    let holes: Vec<_> = holes
        .iter()
        .map(|hole| (hole.first_offset, hole.next_offset))
        .collect();
    assert_eq!(holes, [(50, 60), (63, 65)]);
    // What was missing comes after all, one as a dead letter.
    let late: Vec<Made> = (50..59).map(|n| made(n as u32, "a", n, n)).collect();
    store.store(&batch(&late)).await.unwrap();
    let mut dead = letter(59, "no_id", "a", 9);
    dead.position = at(0, 59);
    store.store(&letters(vec![dead])).await.unwrap();
    let reconciled = store.reconcile(range(0, 65), 3).await.unwrap();
    assert_eq!(
        (reconciled.expected, reconciled.missing, reconciled.doubled),
        (65, 2, 0)
    );
    // What came late is counted as what it is: the sum is whole.
    let found = (
        reconciled.results,
        reconciled.duplicates,
        reconciled.malformed,
    );
    assert_eq!(found, (59, 3, 1));
    // Partition 1 has only dead letters, at 0 and 1; and one of them was answered by another release after all.
    store
        .store(&batch(&[Made {
            origin: Some(at(1, 1)),
            ..made(77, "b", 7, 0)
        }]))
        .await
        .unwrap();
    let reconciled = store.reconcile(range(1, 2), 4).await.unwrap();
    let found = (
        reconciled.results,
        reconciled.malformed,
        reconciled.doubled,
        reconciled.missing,
    );
    assert_eq!(found, (1, 1, 0, 0));
    assert_eq!(store.reconciled().await.unwrap().len(), 2);
}

async fn malformed_counted(store: &Arc<dyn Store>) -> i64 {
    let sums = store.sums(&always()).await.unwrap();
    let malformed = sums.into_iter().filter(|(kind, ..)| kind == "malformed");
    malformed.map(|(_, count, _)| count).sum()
}

async fn a_result_overrules_a_dead_letter_whichever_comes_first(store: &Arc<dyn Store>) {
    let from = |partition, offset, made: Made| Made {
        origin: Some(at(partition, offset)),
        ..made
    };
    let refused = |offset, tweet: &str| Letter {
        position: at(5, offset),
        tweet_id: Some(tweet.into()),
        ..letter(offset, "no_text", "b", 40 + offset)
    };
    let before = (
        store.stored().await.unwrap().malformed,
        malformed_counted(store).await,
    );
    let malformed = async |more: u64| {
        let now = (
            store.stored().await.unwrap().malformed,
            malformed_counted(store).await,
        );
        assert_eq!(now, (before.0 + more, before.1 + more.cast_signed()));
    };
    // The canary refused what stable did afterwards.
    let refusals = letters(vec![refused(0, "500"), refused(1, "501")]);
    assert_eq!(store.store(&refusals).await.unwrap().letters.len(), 2);
    malformed(2).await;
    let good = [from(5, 0, made(500, "a", 200, 0))];
    let receipt = store.store(&batch(&good)).await.unwrap();
    assert_eq!((receipt.results.len(), receipt.overruled), (1, 1));
    malformed(1).await;
    // The refusal again, and one that comes only now: the result stays as it is.
    let counted = counts(store, &["a", "b"]).await;
    let receipt = store.store(&refusals).await.unwrap();
    assert_eq!(
        (
            receipt.letters.len(),
            receipt.overruled,
            receipt.redelivered
        ),
        (0, 1, 1)
    );
    malformed(1).await;
    assert_eq!(counts(store, &["a", "b"]).await, counted);
    // In one batch with its result, and at the second place of a tweet.
    let again = [from(5, 2, made(500, "a", 201, 0))];
    let mut both = batch(&again);
    both.letters = letters(vec![refused(2, "500"), refused(0, "500")]).letters;
    let receipt = store.store(&both).await.unwrap();
    assert_eq!((receipt.duplicates, receipt.overruled), (1, 2));
    malformed(1).await;
    // A topic that was made anew has other tweets in the same places.
    let other = letters(vec![refused(0, "999")]);
    assert_eq!(store.store(&other).await.unwrap().letters, [0]);
    malformed(2).await;
}

async fn what_cannot_be_read_accounts_for_its_tweet(store: &Arc<dyn Store>) {
    let unreadable = |offset, tweet: Option<&str>, origin| Letter {
        topic: "results".into(),
        code: "unreadable".into(),
        tweet_id: tweet.map(str::to_owned),
        origin,
        ..letter(offset, "unreadable", "", offset)
    };
    let stored = letters(vec![
        unreadable(0, None, Some(at(6, 0))),
        unreadable(1, Some("601"), None),
        unreadable(2, None, None),
        // Done again, and unreadable again.
        unreadable(3, None, Some(at(6, 0))),
    ]);
    store.store(&stored).await.unwrap();
    let range = Range {
        partition: 6,
        oldest: 0,
        to: 3,
    };
    let reconciled = store.reconcile(range, 5).await.unwrap();
    let found = |reconciled: &Reconciled| {
        (
            reconciled.expected,
            reconciled.unreadable,
            reconciled.malformed,
            reconciled.missing,
            reconciled.doubled,
        )
    };
    assert_eq!(found(&reconciled), (3, 1, 0, 2, 0));
    assert_eq!(store.unplaced().await.unwrap(), 2);
    assert!(store.account_for(at(6, 1), "601").await.unwrap());
    assert!(!store.account_for(at(6, 1), "601").await.unwrap());
    assert_eq!(store.unplaced().await.unwrap(), 1);
    let reconciled = store.reconcile(range, 6).await.unwrap();
    assert_eq!(found(&reconciled), (3, 2, 0, 1, 0));
    // Done once more, and well: it is no dead letter any more.
    let good = Made {
        origin: Some(at(6, 0)),
        ..made(600, "a", 300, 0)
    };
    let receipt = store.store(&batch(&[good])).await.unwrap();
    assert_eq!(receipt.overruled, 2);
    let reconciled = store.reconcile(range, 7).await.unwrap();
    assert_eq!(reconciled.missing, 1);
}

async fn keeps_book_of_jobs(store: &Arc<dyn Store>) {
    assert_eq!(store.last_due("fold", 1_000).await.unwrap(), 1_000);
    assert_eq!(store.last_due("fold", 2_000).await.unwrap(), 1_000);
    let mut lock = store.lock("fold", "one", 1_000).await.unwrap().unwrap();
    assert!(store.lock("fold", "two", 1_000).await.unwrap().is_none());
    assert!(store.lock("other", "two", 1_000).await.unwrap().is_some());
    assert!(lock.held(1_500).await.unwrap());
    lock.release().await.unwrap();
    let lock = store.lock("fold", "two", 1_500).await.unwrap().unwrap();
    let begun = |attempt| Begun {
        job: "fold".into(),
        due_ms: 1_200,
        attempt,
        node: "two".into(),
        started_ms: 1_500 + attempt,
    };
    // Begun and not ended: whoever comes next writes it off.
    assert_eq!(store.attempts("fold", 1_200, 1_500).await.unwrap(), 0);
    store.begin(&begun(1)).await.unwrap();
    assert_eq!(store.attempts("fold", 1_200, 1_600).await.unwrap(), 1);
    store.begin(&begun(2)).await.unwrap();
    store
        .end(&begun(2), 1_700, Outcome::Stopped, "")
        .await
        .unwrap();
    assert_eq!(
        store.last_due("fold", 0).await.unwrap(),
        1_000,
        "it is still to be done"
    );
    store.begin(&begun(3)).await.unwrap();
    store
        .end(&begun(3), 1_800, Outcome::Done, "folded")
        .await
        .unwrap();
    assert_eq!(store.last_due("fold", 0).await.unwrap(), 1_200);
    lock.release().await.unwrap();
    let runs = store.runs(Some("fold"), None, 10).await.unwrap();
    let outcomes: Vec<&str> = runs.iter().map(|run| run.outcome.as_str()).collect();
    assert_eq!(outcomes, ["done", "stopped", "abandoned"]);
    assert_eq!((runs[0].delay_ms, runs[0].ended_ms), (303, Some(1_800)));
    let second = runs[1].place();
    let rest = store.runs(None, Some(&second), 10).await.unwrap();
    assert_eq!(rest, runs[2..]);
    // Of those that began at once, pages leave out none and show none twice.
    for (due_ms, job) in [(10, "a"), (20, "a"), (10, "b"), (20, "b"), (10, "c")] {
        let begun = Begun {
            job: job.into(),
            due_ms,
            ..begun(1)
        };
        store.begin(&begun).await.unwrap();
        store.end(&begun, 1_900, Outcome::Done, "").await.unwrap();
    }
    let all = store.runs(None, None, 100).await.unwrap();
    assert_eq!(all.len(), 8);
    let mut paged = Vec::new();
    let mut after: Option<RunPlace> = None;
    loop {
        let page = store.runs(None, after.as_ref(), 3).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.place());
        paged.extend(page);
    }
    assert_eq!(paged, all);
}

async fn counters_are_added_once_for_each_key(store: &Arc<dyn Store>) {
    let more = |name: &str, value| (name.to_owned(), "{}".to_owned(), value);
    let add = |key, counters: Vec<(String, String, i64)>| async move {
        store.add(key, &counters, 2, 5_000).await.unwrap()
    };
    assert_eq!(
        add(Some("k"), vec![more("a", 1), more("b", 2)]).await,
        Added::Now
    );
    assert_eq!(
        add(Some("k"), vec![more("a", 1), more("b", 2)]).await,
        Added::Before
    );
    for other in [vec![more("a", 1)], vec![more("a", 1), more("b", 3)]] {
        assert_eq!(add(Some("k"), other).await, Added::Other);
    }
    assert_eq!(add(None, vec![more("a", 4)]).await, Added::Now);
    assert_eq!(
        add(Some("l"), vec![more("a", 1), more("c", 2)]).await,
        Added::TooMany
    );
    assert_eq!(add(Some("l"), vec![more("a", 1)]).await, Added::Now);
    let listed = store.counters(None, 10).await.unwrap();
    let totals: Vec<_> = listed
        .iter()
        .map(|(name, _, total, _)| (name.as_str(), *total))
        .collect();
    assert_eq!(totals, [("a", 6), ("b", 2)]);
    let rest = store
        .counters(Some(("a".into(), "{}".into())), 10)
        .await
        .unwrap();
    assert_eq!(rest.len(), 1);
}

async fn folds_counts_and_removes_rows_and_the_counts_stay(store: &Arc<dyn Store>) {
    let before = counts(store, &["a", "b"]).await;
    // Pages go on where they ended.
    let first = store.top(Kind::Hashtag, &always(), None, 2).await.unwrap();
    let (key, count, _) = first.last().unwrap().clone();
    let rest = store
        .top(Kind::Hashtag, &always(), Some((count, key)), 100)
        .await
        .unwrap();
    let all = store
        .top(Kind::Hashtag, &always(), None, 100)
        .await
        .unwrap();
    assert_eq!([first, rest].concat(), all);
    let hours = store
        .over_time(Kind::Sentiment, HOUR_S, &always(), 10)
        .await
        .unwrap();
    assert!(
        hours.iter().all(|(at, ..)| *at == NOW_MINUTE_S),
        "{hours:?}"
    );

    assert_eq!(
        store
            .fold(MINUTE_S, HOUR_S, NOW_MINUTE_S + 59)
            .await
            .unwrap(),
        0,
        "not over yet"
    );
    assert!(
        store
            .fold(MINUTE_S, HOUR_S, NOW_MINUTE_S + 60)
            .await
            .unwrap()
            > 10
    );
    assert_eq!(counts(store, &["a", "b"]).await, before);
    // A result of a folded minute comes, and the next fold takes it along.
    let late = Made {
        origin: None,
        ..made(90, "a", 90, 0)
    };
    store.store(&batch(&[late])).await.unwrap();
    let with_late = counts(store, &["a", "b"]).await;
    assert!(
        store
            .fold(MINUTE_S, HOUR_S, NOW_MINUTE_S + 60)
            .await
            .unwrap()
            > 3
    );
    assert!(
        store
            .fold(HOUR_S, DAY_S, NOW_MINUTE_S + DAY_S)
            .await
            .unwrap()
            > 10
    );
    assert_eq!(counts(store, &["a", "b"]).await, with_late);

    // Offsets 65 and later of partition 0 are not compared yet: their rows stay.
    let waiting = made(91, "a", 91, 70);
    store.store(&batch(&[waiting])).await.unwrap();
    let counted = counts(store, &["a", "b"]).await;
    let later_ms = now().as_millisecond() + 1;
    let mut removed = 0;
    loop {
        match store.remove_rows(later_ms).await.unwrap() {
            0 => break,
            more => removed += more,
        }
    }
    assert!(removed > 50, "{removed}");
    let stored = store.stored().await.unwrap();
    assert_eq!((stored.results, stored.malformed), (1, 0));
    assert_eq!(counts(store, &["a", "b"]).await, counted);
    assert!(store.remove_records(10_000).await.unwrap() >= 3);
}

/// Results of a few tweets, done again and again by two releases, some tweets in several places.
fn much_ado() -> Vec<Made> {
    (0..600_i64)
        .map(|n| {
            let tweet = (n * 7 % 83) as u32;
            let release = if n % 5 == 0 { "b" } else { "a" };
            let mut made = made(tweet, release, n, n * 7 % 83);
            if n % 11 == 0 {
                made.origin = Some(at(2, n));
            }
            made
        })
        .collect()
}

/// Several sinks store the same records at once, in different orders and cuts, each several times.
async fn many_sinks_at_once(stores: Vec<Arc<dyn Store>>) {
    let all = much_ado();
    let storing = stores.iter().cloned().enumerate().map(|(number, store)| {
        let mut mine = all.clone();
        mine.rotate_left(number * 97);
        if number % 2 == 1 {
            mine.reverse();
        }
        tokio::spawn(async move {
            for records in mine.chunks(13 + number * 5).chain(mine.chunks(40)) {
                // What collides too often is stored the next time, as the sink does.
                while let Err(error) = store.store(&batch(records)).await {
                    assert!(error.is_transient(), "{error:?}");
                }
            }
        })
    });
    try_join_all(storing).await.unwrap();
    let (seen, duplicates) = without_duplicates(counts(&stores[0], &["a", "b"]).await);
    assert_eq!(seen, expected(&all));
    assert_eq!(duplicates, second_places(&all) as i64);
}

/// One sink stores the results of tasks while another stores refusals of the same: the results stay, and nothing is refused.
async fn results_and_refusals_at_once(stores: &[Arc<dyn Store>]) {
    const TASKS: u32 = 400;
    let (one, other) = (stores[0].clone(), stores[1].clone());
    let done: Vec<Made> = (0..TASKS)
        .map(|n| Made {
            origin: Some(at(3, n.into())),
            ..made(1_000 + n, "a", n.into(), 0)
        })
        .collect();
    let results = tokio::spawn(async move {
        for some in done.chunks(8) {
            while let Err(error) = one.store(&batch(some)).await {
                assert!(error.is_transient(), "{error:?}");
            }
        }
    });
    let refused: Vec<Letter> = (0..TASKS)
        .map(|n| Letter {
            position: at(3, n.into()),
            tweet_id: Some((1_000 + n).to_string()),
            ..letter(0, "no_text", "b", n.into())
        })
        .collect();
    let refusals = tokio::spawn(async move {
        for some in refused.chunks(8) {
            while let Err(error) = other.store(&letters(some.to_vec())).await {
                assert!(error.is_transient(), "{error:?}");
            }
        }
    });
    try_join_all([results, refusals]).await.unwrap();
    assert_eq!(stores[0].stored().await.unwrap().malformed, 0);
    assert_eq!(malformed_counted(&stores[0]).await, 0);
}

/// How often the view over both tables shows a task, at most.
const SHOWN: &str = "SELECT max(shown) FROM (
    SELECT count(*) AS shown FROM records GROUP BY origin_partition, origin_offset, tweet_id) AS tasks";

#[tokio::test]
async fn sqlite_keeps_the_storage_contract() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deeper/store.sqlite");
    contract(Arc::new(SqliteStorage::open(&path).await.unwrap())).await;
    let reader = SqliteStorage::open_to_read(&path).await.unwrap();
    let again: Arc<dyn Store> = Arc::new(SqliteStorage::open(&path).await.unwrap());
    let reader: Arc<dyn Store> = Arc::new(reader);
    assert_eq!(
        reader.stored().await.unwrap(),
        again.stored().await.unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn real_postgres_keeps_the_storage_contract() {
    let postgres = Postgres::start().await;
    let config = DatabaseConfig::Postgres(postgres.config());
    let missing = config.open_to_read().await.unwrap_err();
    assert!(
        missing.to_string().contains("cannot use the database"),
        "{missing}"
    );
    contract(config.open().await.unwrap()).await;
    config.open_to_read().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_may_open_a_new_sqlite_file_at_once() {
    let directory = tempfile::tempdir().unwrap();
    for file in 0..20 {
        let path = directory.path().join(format!("{file}/store.sqlite"));
        let opened = (0..6).map(|_| {
            let path = path.clone();
            tokio::spawn(async move { SqliteStorage::open(&path).await })
        });
        for storage in try_join_all(opened).await.unwrap() {
            storage.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_counts_exactly_while_several_store() {
    let directory = tempfile::tempdir().unwrap();
    let config = DatabaseConfig::Sqlite(directory.path().join("store.sqlite"));
    let stores = try_join_all((0..3).map(|_| config.open())).await.unwrap();
    many_sinks_at_once(stores.clone()).await;
    results_and_refusals_at_once(&stores).await;
    let options = sqlx::sqlite::SqliteConnectOptions::new();
    let file = options.filename(directory.path().join("store.sqlite"));
    let pool = sqlx::SqlitePool::connect_with(file).await.unwrap();
    let shown: i64 = sqlx::query_scalar(SHOWN).fetch_one(&pool).await.unwrap();
    assert_eq!(shown, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn real_postgres_counts_exactly_while_several_store() {
    let postgres = Postgres::start().await;
    let config = DatabaseConfig::Postgres(postgres.config());
    // All of them make the tables at once, too.
    let stores = try_join_all((0..4).map(|_| config.open())).await.unwrap();
    many_sinks_at_once(stores.clone()).await;
    results_and_refusals_at_once(&stores).await;
    let pool = postgres.pool().await;
    let shown: i64 = sqlx::query_scalar(SHOWN).fetch_one(&pool).await.unwrap();
    assert_eq!(shown, 1);
}

#[tokio::test]
async fn a_file_of_the_first_version_is_taken_along() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.sqlite");
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(true);
    let old = sqlx::SqlitePool::connect_with(options).await.unwrap();
    sqlx::raw_sql(
        r#"CREATE TABLE results (tweet_id TEXT PRIMARY KEY, author_id TEXT, created_at TEXT, release TEXT NOT NULL,
            language TEXT, sentiment REAL, features TEXT NOT NULL,
            stored_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))) STRICT, WITHOUT ROWID;
        CREATE TABLE malformed (topic TEXT NOT NULL, partition INTEGER NOT NULL, offset INTEGER NOT NULL,
            code TEXT NOT NULL, reason TEXT NOT NULL, original BLOB NOT NULL,
            stored_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
            PRIMARY KEY (topic, partition, offset)) STRICT, WITHOUT ROWID;
        PRAGMA user_version = 1;
        INSERT INTO results (tweet_id, created_at, release, language, sentiment, features) VALUES
            ('1', '2013-11-10T16:13:27.000Z', 'a', 'eng', 0.5,
             '{"hashtags":["Rust","c"],"sentiment":{"label":"positive","compound":0.5}}'),
            ('2', NULL, 'a', NULL, NULL, '{}');
        INSERT INTO malformed (topic, partition, offset, code, reason, original) VALUES ('tweets', 0, 3, 'no_id', 'x', x'00');"#,
    )
    .execute(&old)
    .await
    .unwrap();
    old.close().await;
    let store: Arc<dyn Store> = Arc::new(SqliteStorage::open(&path).await.unwrap());
    let stored = store.stored().await.unwrap();
    assert_eq!((stored.results, stored.malformed), (2, 1));
    let seen = counts(&store, &["a", ""]).await;
    let of = |kind: &str, key: &str, release: &str| {
        let key = (kind.to_owned(), key.to_owned(), release.to_owned());
        seen.get(&key).copied()
    };
    assert_eq!(of("total", "", "a"), Some((2, 500_000)));
    assert_eq!(of("hashtag", "rust", "a"), Some((1, 500_000)));
    assert_eq!(of("malformed", "", ""), Some((1, 0)));
    // A new result of an old row takes its place, and the counts move exactly.
    store.store(&batch(&[made(1, "b", 0, 0)])).await.unwrap();
    let after = counts(&store, &["a", "b"]).await;
    let total = |release: &str| after[&("total".to_owned(), String::new(), release.to_owned())].0;
    assert_eq!((total("a"), total("b")), (1, 1));
    assert!(!after.contains_key(&("hashtag".to_owned(), "rust".to_owned(), "a".to_owned())));
}

#[tokio::test]
async fn refuses_a_file_that_is_no_store_and_leaves_it_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.sqlite");
    std::fs::write(
        &path,
        "no database, by no means, and long enough to be looked at",
    )
    .unwrap();
    let before = std::fs::read(&path).unwrap();
    let error = SqliteStorage::open(&path).await.unwrap_err();
    assert!(error.to_string().contains("store.sqlite"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
    let missing = directory.path().join("missing.sqlite");
    assert!(SqliteStorage::open_to_read(&missing).await.is_err());
    assert!(!missing.exists());
}
