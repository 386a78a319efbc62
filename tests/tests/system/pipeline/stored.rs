//! What is stored, against what went in: read from PostgreSQL and from the broker by the test itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use controller_testing::eventually;
use pipeline_demo::bus::{
    Bus, Kafka, KafkaConfig, MALFORMED, Position, RESULTS, Record, Span, TWEETS,
};
use pipeline_demo::tweet::Ids;
use sqlx::{PgPool, Row};

use super::Input;

/// What became of a tweet in the end.
#[derive(Debug, Clone, Copy)]
struct Effect {
    /// The place of the tweet that it was taken from.
    origin: Position,
    /// When the record that is stored was appended to the broker, in milliseconds since 1970.
    at_ms: i64,
}

/// All that is stored.
pub(super) struct Check {
    tasks: u64,
    pool: PgPool,
    /// Places in topic "tweets", by tweet, in order.
    places: BTreeMap<u64, Vec<Position>>,
    results: BTreeMap<u64, Effect>,
    /// A malformed tweet that the subscriber had to append again is there once for each place.
    malformed: BTreeMap<u64, Vec<Effect>>,
    /// Records in topics "results" and "malformed".
    answers: usize,
    ends: BTreeMap<u32, i64>,
}

impl Check {
    pub(super) async fn of(input: &Input, database: &str, broker: &str) -> Self {
        let bus = Kafka::connect(&KafkaConfig::plaintext(broker)).unwrap();
        let mut places: BTreeMap<u64, Vec<Position>> = BTreeMap::new();
        let mut ends = BTreeMap::new();
        for record in records(&bus, TWEETS).await {
            places
                .entry(id_in(&record.value))
                .or_default()
                .push(record.position);
            let end = ends.entry(record.position.partition).or_insert(0);
            *end = record.position.offset + 1;
        }
        let (results, letters) = (times(&bus, RESULTS).await, times(&bus, MALFORMED).await);
        let pool = PgPool::connect(database).await.unwrap();
        let rows = sqlx::query(
            "SELECT tweet_id, origin_partition, origin_offset, result_partition, result_offset FROM results",
        );
        let rows = rows.fetch_all(&pool).await.unwrap().into_iter();
        let stored: Vec<(u64, Effect)> = rows
            .map(|row| {
                let id: String = row.get(0);
                let (origin, answer) =
                    (place(row.get(1), row.get(2)), place(row.get(3), row.get(4)));
                let at_ms = results[&answer];
                (id.parse().unwrap(), Effect { origin, at_ms })
            })
            .collect();
        let rows = sqlx::query(
            "SELECT original, partition, \"offset\", letter_partition, letter_offset FROM malformed WHERE topic = 'tweets'",
        );
        let mut malformed: BTreeMap<u64, Vec<Effect>> = BTreeMap::new();
        for row in rows.fetch_all(&pool).await.unwrap() {
            let original: Vec<u8> = row.get(0);
            let (origin, letter) = (place(row.get(1), row.get(2)), place(row.get(3), row.get(4)));
            let effects = malformed.entry(id_in(&original)).or_default();
            let at_ms = letters[&letter];
            effects.push(Effect { origin, at_ms });
        }
        let count = stored.len();
        let check = Self {
            tasks: input.tasks,
            pool,
            places,
            results: stored.into_iter().collect(),
            malformed,
            answers: results.len() + letters.len(),
            ends,
        };
        assert_eq!(check.results.len(), count, "a tweet is stored twice");
        check
    }

    /// Against the input, by id: each tweet in the one table or in the other, and nothing else in either.
    pub(super) fn every_tweet_is_stored_once(&self) {
        let input = Input { tasks: self.tasks };
        let (malformed, good): (BTreeSet<u64>, BTreeSet<u64>) =
            input.ids().partition(|id| Input::is_malformed(*id));
        let went_in: BTreeSet<u64> = self.places.keys().copied().collect();
        assert_same("on the broker", &went_in, &input.ids().collect());
        let stored: BTreeSet<u64> = self.results.keys().copied().collect();
        assert_same("in results", &stored, &good);
        let letters: BTreeSet<u64> = self.malformed.keys().copied().collect();
        assert_same("in malformed", &letters, &malformed);
        for (id, letters) in &self.malformed {
            let mut places: Vec<Position> = letters.iter().map(|letter| letter.origin).collect();
            places.sort_unstable();
            assert_eq!(places, self.places[id], "the dead letters of tweet {id}");
        }
    }

    /// What order means where work is done again: the subscriber appends again what the broker did not take, with all that
    /// follows of its author, and a new feeder does again what the killed one had not committed, in order. So the *last*
    /// time that something was done is what keeps the order, and it is what is stored: of two results of a tweet the later
    /// one stays. For each author, tweet after tweet: the last places on the broker grow, and the moments at which the
    /// stored answers were appended never go back.
    pub(super) fn each_authors_order_is_kept(&self) {
        let mut last: BTreeMap<u64, (u64, Position, i64)> = BTreeMap::new();
        for (id, places) in &self.places {
            let author = Input::author_of(*id);
            let place = *places.last().unwrap();
            let letters = self.malformed.get(id).into_iter().flatten();
            let effects = self.results.get(id).into_iter().chain(letters);
            let at_ms = effects.map(|effect| effect.at_ms).max().unwrap();
            if let Some((before, earlier, earlier_ms)) = last.get(&author) {
                assert_eq!(
                    place.partition, earlier.partition,
                    "author {author}: one partition"
                );
                assert!(
                    place.offset > earlier.offset,
                    "author {author}: tweet {before} stands at {earlier}, and {id} at {place}"
                );
                assert!(
                    at_ms >= *earlier_ms,
                    "author {author}: tweet {before} was done at {earlier_ms}, and {id} at {at_ms}"
                );
            }
            last.insert(author, (*id, place, at_ms));
        }
    }

    /// The pipeline's own comparison has seen every offset, and nothing is missing or stored both ways.
    pub(super) async fn the_comparison_finds_nothing_missing(&self) {
        let ends: Vec<(i64, i64)> = self
            .ends
            .iter()
            .map(|(p, end)| (i64::from(*p), *end))
            .collect();
        let seen = async || -> (Vec<(i64, i64)>, i64, i64) {
            let compared = "SELECT partition, next_offset FROM reconciled ORDER BY partition";
            let compared = sqlx::query_as(compared)
                .fetch_all(&self.pool)
                .await
                .unwrap();
            let wrong = "SELECT (SELECT count(*) FROM missing), (SELECT coalesce(sum(doubled), 0)::bigint FROM reconciled)";
            let (missing, doubled) = sqlx::query_as(wrong).fetch_one(&self.pool).await.unwrap();
            (compared, missing, doubled)
        };
        let limit = Duration::from_secs(60);
        let what = "all that went in is compared, and nothing is missing";
        eventually(what, limit, seen, |(compared, missing, doubled)| {
            *compared == ends && (*missing, *doubled) == (0, 0)
        })
        .await;
    }
}

/// Figures for people.
impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places: usize = self.places.values().map(Vec::len).sum();
        let letters: usize = self.malformed.values().map(Vec::len).sum();
        write!(
            f,
            "{} tweets went in and stand in {places} places; {} answers, of which {} results and {letters} dead letters are stored",
            self.tasks,
            self.answers,
            self.results.len()
        )
    }
}

fn assert_same(place: &str, found: &BTreeSet<u64>, expected: &BTreeSet<u64>) {
    let differing: Vec<&u64> = found.symmetric_difference(expected).collect();
    let first = &differing[..differing.len().min(20)];
    let count = differing.len();
    assert!(
        first.is_empty(),
        "{place}, {count} tweets are missing or too many: {first:?}"
    );
}

fn place(partition: i64, offset: i64) -> Position {
    Position {
        partition: partition.try_into().unwrap(),
        offset,
    }
}

fn id_in(tweet: &[u8]) -> u64 {
    let id = Ids::of(tweet).tweet;
    id.unwrap_or_else(|| panic!("no id in {}", String::from_utf8_lossy(tweet)))
        .parse()
        .unwrap()
}

/// When the records of a topic were appended.
async fn times(bus: &Kafka, topic: &str) -> BTreeMap<Position, i64> {
    let records = records(bus, topic).await.into_iter();
    records
        .map(|record| {
            let at = record.produced_at.expect("Kafka keeps times");
            (record.position, at.as_millisecond())
        })
        .collect()
}

/// All records of a topic, those of each partition in order.
async fn records(bus: &Kafka, topic: &str) -> Vec<Record> {
    let ends = bus.ends(topic).await.unwrap();
    let spans: Vec<Span> = (0..)
        .zip(ends)
        .map(|(partition, (from, to))| Span {
            partition,
            from,
            to,
        })
        .collect();
    let mut reader = bus.reader(topic, &spans).await.unwrap();
    let mut all = Vec::new();
    loop {
        let more = reader.read(10_000).await.unwrap();
        if more.is_empty() {
            return all;
        }
        all.extend(more);
    }
}
