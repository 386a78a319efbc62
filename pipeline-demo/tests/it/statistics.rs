//! The statistics over HTTP: what they say, their bounds, their pages. Each test on SQLite, and all of them on one PostgreSQL.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use pipeline_demo::bus::Position;
use pipeline_demo::jobs::{Begun, Outcome};
use pipeline_demo::sink::{Batch, DatabaseConfig, Letter, Row, Store, StoredResult};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::postgres::Postgres;
use crate::support::Process;

/// Whom a test asks.
struct Asked {
    _directory: TempDir,
    store: Arc<dyn Store>,
    process: Process,
    client: Client,
}

const TOKEN: &str = "a-token-of-24-characters";

/// The time of the tweets: an hour of a day.
const DAY: &str = "from=2026-11-20T00:00:00Z&to=2026-11-21T00:00:00Z";

impl Asked {
    /// A store with 100 results of two releases and two dead letters, and a process that tells of them.
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("store.sqlite");
        let config = DatabaseConfig::Sqlite(file.clone());
        Self::of(directory, &config, ["--db", file.to_str().unwrap()]).await
    }

    async fn of(directory: TempDir, config: &DatabaseConfig, database: [&str; 2]) -> Self {
        let store = config.open().await.unwrap();
        fill(&store).await;
        let token = directory.path().join("token");
        std::fs::write(&token, TOKEN).unwrap();
        let [option, value] = database;
        let args = [
            "stats",
            option,
            value,
            "--token-file",
            token.to_str().unwrap(),
        ];
        let process = Process::start(directory.path(), "stats", &args).await;
        Self {
            _directory: directory,
            store,
            process,
            client: Client::new(),
        }
    }

    async fn end(self) {
        self.process.terminate();
        assert_eq!(self.process.end().await.0, Some(0));
    }

    fn address(&self) -> SocketAddr {
        self.process.address
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        let answer = self
            .client
            .get(format!("http://{}{path}", self.address()))
            .send()
            .await
            .unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    async fn post(&self, token: &str, key: Option<&str>, body: &Value) -> (StatusCode, Value) {
        let mut post = self.client.post(format!("http://{}/stats", self.address()));
        post = post
            .header("authorization", format!("Bearer {token}"))
            .body(body.to_string());
        if let Some(key) = key {
            post = post.header("idempotency-key", key);
        }
        let answer = post.send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }
}

async fn fill(store: &Arc<dyn Store>) {
    let now: Timestamp = "2026-11-20T12:40:00Z".parse().unwrap();
    let place = |offset| Position {
        partition: 0,
        offset,
    };
    let rows = (0..100_i64).map(|n| {
        let (release, label, compound) = match n % 4 {
            0 => ("b", "negative", -0.5),
            1 => ("a", "neutral", 0.0),
            _ => ("a", "positive", 0.5),
        };
        let features = json!({"language": {"code": if n < 70 { "eng" } else { "deu" }},
            "sentiment": {"label": label, "compound": compound}, "hashtags": ["all", format!("t{}", n % 30)]});
        let at = format!("2026-11-20T{:02}:{:02}:00Z", 10 + n / 40, n % 40);
        let record = json!({"tweet_id": n.to_string(), "created_at": at, "release": release, "features": features});
        Row::of(StoredResult::read(record.to_string().as_bytes(), place(n)).unwrap(), now)
    });
    let letters = (0..2).map(|n| Letter {
        topic: "tweets".into(),
        position: place(1_000 + n),
        code: "no_id".into(),
        reason: "x".into(),
        release: "b".into(),
        original: Vec::new(),
        letter: place(n),
        tweet_id: None,
        origin: None,
    });
    let batch = Batch::new(
        rows.collect(),
        letters.collect(),
        now,
        Duration::from_hours(2),
    );
    store.store(&batch).await.unwrap();
}

#[tokio::test]
async fn real_postgres_is_asked_the_same() {
    let postgres = Postgres::start().await;
    let (config, url) = (DatabaseConfig::Postgres(postgres.config()), postgres.url());
    let directory = tempfile::tempdir().unwrap();
    let asked = Asked::of(directory, &config, ["--database", &url]).await;
    sums_and_pages(&asked).await;
    refusals(&asked).await;
    counters_of_others(&asked).await;
    known_answers(&asked).await;
    description(&asked).await;
    more_releases_than_it_lists(&asked).await;
    runs_that_began_at_once(&asked).await;
    asked.end().await;
}

#[tokio::test]
async fn sums_by_release_and_pages_through_hashtags_and_time() {
    let asked = Asked::start().await;
    sums_and_pages(&asked).await;
    asked.end().await;
}

async fn sums_and_pages(asked: &Asked) {
    let (status, summary) = asked.get(&format!("/stats?{DAY}")).await;
    assert_eq!(status, 200, "{summary}");
    let total = &summary["total"];
    assert_eq!(
        (&total["results"], &total["malformed"]),
        (&json!(100), &json!(2)),
        "{summary}"
    );
    assert_eq!(total["sentiment_mean"], 0.125);
    assert_eq!(summary["releases"][0]["release"], "a");
    assert_eq!(summary["releases"][1]["malformed_ratio"], json!(2.0 / 27.0));
    let (_, only) = asked.get(&format!("/stats?{DAY}&release=b")).await;
    assert_eq!(only["total"]["results"], 25);
    let (_, none) = asked
        .get("/stats?from=2020-01-01T00:00:00Z&to=2020-01-02T00:00:00Z")
        .await;
    assert_eq!(
        (&none["total"]["results"], &none["releases"]),
        (&json!(0), &json!([]))
    );

    // Three pages of hashtags, each key once, the largest first.
    let mut keys = Vec::new();
    let mut path = format!("/stats/hashtags?{DAY}&limit=11");
    loop {
        let (status, page) = asked.get(&path).await;
        assert_eq!(status, 200, "{page}");
        let items = page["items"].as_array().unwrap();
        keys.extend(
            items
                .iter()
                .map(|item| (item["count"].as_i64().unwrap(), item["key"].to_string())),
        );
        match page["next"].as_str() {
            Some(next) => path = format!("/stats/hashtags?{DAY}&limit=11&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(
        (keys.len(), keys[0].clone()),
        (31, (100, "\"all\"".to_owned()))
    );
    assert!(
        keys.windows(2)
            .all(|pair| pair[0].0 > pair[1].0 || pair[0].1 < pair[1].1),
        "{keys:?}"
    );

    let (_, hours) = asked
        .get(&format!("/stats/sentiment?{DAY}&step=hour&limit=2"))
        .await;
    let at = |page: &Value| {
        page["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| s["at"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(at(&hours), ["2026-11-20T12:00:00Z", "2026-11-20T11:00:00Z"]);
    assert_eq!(hours["items"][1]["positive"], 20);
    let next = hours["next"].as_str().unwrap();
    let (_, rest) = asked
        .get(&format!(
            "/stats/sentiment?{DAY}&step=hour&limit=2&cursor={next}"
        ))
        .await;
    assert_eq!(
        (at(&rest), &rest["next"]),
        (vec![json!("2026-11-20T10:00:00Z")], &Value::Null)
    );
    let (_, languages) = asked.get(&format!("/stats/languages?{DAY}")).await;
    assert_eq!(
        languages["items"][0],
        json!({"key": "eng", "count": 70, "sentiment_mean": 0.1143})
    );
}

#[tokio::test]
async fn adds_all_releases_up_also_those_it_does_not_list() {
    more_releases_than_it_lists(&Asked::start().await).await;
}

async fn more_releases_than_it_lists(asked: &Asked) {
    const RELEASES: i64 = 450;
    let now: Timestamp = "2026-11-18T12:40:00Z".parse().unwrap();
    let rows = (0..RELEASES).map(|n| {
        let record = json!({"tweet_id": format!("m{n}"), "created_at": "2026-11-18T12:00:00Z",
            "release": format!("r{n:03}"), "features": {"sentiment": {"label": "positive", "compound": 0.5}}});
        let position = Position {
            partition: 1,
            offset: n,
        };
        Row::of(StoredResult::read(record.to_string().as_bytes(), position).unwrap(), now)
    });
    // One of them has less than all the others, but more of another kind.
    let letters = (0..3).map(|n| Letter {
        topic: "tweets".into(),
        position: Position {
            partition: 2,
            offset: n,
        },
        code: "no_id".into(),
        reason: "x".into(),
        release: "r449".into(),
        original: Vec::new(),
        letter: Position {
            partition: 2,
            offset: n,
        },
        tweet_id: None,
        origin: None,
    });
    let late_after = Duration::from_secs(1);
    let batch = Batch::new(rows.collect(), letters.collect(), now, late_after);
    asked.store.store(&batch).await.unwrap();
    let day = "from=2026-11-18T00:00:00Z&to=2026-11-19T00:00:00Z";
    let (status, summary) = asked.get(&format!("/stats?{day}")).await;
    assert_eq!(status, 200, "{summary}");
    let total = &summary["total"];
    assert_eq!(
        (&total["results"], &total["late"], &total["malformed"]),
        (&json!(RELEASES), &json!(RELEASES), &json!(3))
    );
    assert_eq!(total["sentiment_mean"], 0.5);
    let releases = summary["releases"].as_array().unwrap();
    assert_eq!(releases.len(), 100);
    assert_eq!(
        (
            &releases[0]["release"],
            &releases[0]["malformed"],
            &releases[0]["results"]
        ),
        (&json!("r449"), &json!(3), &json!(1))
    );
    // Of each that is listed, all that is counted is there.
    assert!(
        releases.iter().all(|r| r["results"] == 1 && r["late"] == 1),
        "{summary}"
    );
}

#[tokio::test]
async fn pages_of_runs_show_each_once_also_those_that_began_at_once() {
    runs_that_began_at_once(&Asked::start().await).await;
}

async fn runs_that_began_at_once(asked: &Asked) {
    for n in 0..7 {
        let begun = Begun {
            job: "paged".into(),
            due_ms: 1_000 + n,
            attempt: 1,
            node: "one".into(),
            started_ms: 5_000 + n / 6,
        };
        asked.store.begin(&begun).await.unwrap();
        let ended = asked.store.end(&begun, 6_000, Outcome::Done, "").await;
        ended.unwrap();
    }
    let mut due = Vec::new();
    let mut path = "/stats/jobs?job=paged&limit=2".to_owned();
    loop {
        let (status, page) = asked.get(&path).await;
        assert_eq!(status, 200, "{page}");
        let items = page["items"].as_array().unwrap();
        assert!((1..=2).contains(&items.len()), "{page}");
        due.extend(items.iter().map(|run| run["due_ms"].as_i64().unwrap()));
        match page["next"].as_str() {
            Some(next) => path = format!("/stats/jobs?job=paged&limit=2&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(due, [1_006, 1_005, 1_004, 1_003, 1_002, 1_001, 1_000]);
    // The cursor of another list, and one that was made up.
    for cursor in ["MTI", "eyJhIjoxfQ"] {
        let (status, problem) = asked.get(&format!("/stats/jobs?cursor={cursor}")).await;
        assert_eq!(
            (status, &problem["code"]),
            (StatusCode::BAD_REQUEST, &json!("bad_query"))
        );
    }
}

#[tokio::test]
async fn refuses_what_is_out_of_bounds_and_says_what_is_expected() {
    refusals(&Asked::start().await).await;
}

async fn refusals(asked: &Asked) {
    for (path, part) in [
        ("/stats?limit=0", "limit"),
        ("/stats/hashtags?limit=501", "500"),
        ("/stats/hashtags?cursor=nonsense", "cursor"),
        ("/stats/hashtags?cursor=MTI", "cursor"),
        ("/stats/sentiment?step=year", "step"),
        ("/stats?from=yesterday", "from"),
        (
            "/stats?from=2026-11-21T00:00:00Z&to=2026-11-20T00:00:00Z",
            "from",
        ),
        ("/stats?unknown=1", "unknown"),
    ] {
        let (status, problem) = asked.get(path).await;
        assert_eq!(
            (status, &problem["code"]),
            (StatusCode::BAD_REQUEST, &json!("bad_query")),
            "{path}"
        );
        assert!(
            problem["detail"].as_str().unwrap().contains(part),
            "{path}: {problem}"
        );
    }
    let (status, jobs) = asked.get("/stats/jobs").await;
    assert_eq!(
        (status, jobs),
        (StatusCode::OK, json!({"items": [], "next": null}))
    );
    let (status, reconciliation) = asked.get("/stats/reconciliation").await;
    assert_eq!(
        (status, reconciliation),
        (
            StatusCode::OK,
            json!({"partitions": [], "missing": [], "unplaced": 0})
        )
    );
}

#[tokio::test]
async fn takes_counters_of_others_once_for_each_key_from_whoever_has_the_token() {
    counters_of_others(&Asked::start().await).await;
}

async fn counters_of_others(asked: &Asked) {
    let post = json!({"counters": [{"name": "clicks", "value": 3, "labels": {"page": "a"}}, {"name": "views", "value": 1}]});
    assert_eq!(asked.post("wrong", None, &post).await.0, 401);
    let bad = json!({"counters": [{"name": "bad name", "value": 3}]});
    let (status, problem) = asked.post(TOKEN, None, &bad).await;
    assert_eq!(
        (status, &problem["code"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!("bad_counters"))
    );
    for (key, added) in [(Some("one"), 2), (Some("one"), 0), (Some("two"), 2)] {
        assert_eq!(
            asked.post(TOKEN, key, &post).await,
            (StatusCode::OK, json!({"added": added}))
        );
    }
    // The same counters, written in another way, are the same.
    let same =
        json!({"counters": [{"value": 1, "name": "views", "labels": {}}, post["counters"][0]]});
    assert_eq!(
        asked.post(TOKEN, Some("one"), &same).await,
        (StatusCode::OK, json!({"added": 0}))
    );
    // Others under a key that was used are a mistake of the client's (draft-ietf-httpapi-idempotency-key-header).
    let other = json!({"counters": [{"name": "clicks", "value": 4, "labels": {"page": "a"}}]});
    let (status, problem) = asked.post(TOKEN, Some("one"), &other).await;
    assert_eq!(
        (status, &problem["code"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!("key_reused"))
    );
    let (_, counters) = asked.get("/stats/counters").await;
    assert_eq!(counters["items"][0]["total"], 6, "{counters}");
    assert_eq!(counters["items"][0]["labels"], json!({"page": "a"}));
    let large = json!({"counters": [], "filler": "x".repeat(300_000)});
    let address = asked.address();
    let refused = asked
        .client
        .post(format!("http://{address}/stats"))
        .bearer_auth(TOKEN)
        .body(large.to_string())
        .send();
    assert_eq!(
        refused.await.unwrap().status(),
        StatusCode::PAYLOAD_TOO_LARGE
    );
}

#[tokio::test]
async fn an_answer_that_is_known_is_not_sent_again() {
    known_answers(&Asked::start().await).await;
}

async fn known_answers(asked: &Asked) {
    let url = format!("http://{}/stats?{DAY}", asked.address());
    let first = asked.client.get(&url).send().await.unwrap();
    let etag = first.headers()["etag"].clone();
    assert!(
        first.headers()["cache-control"]
            .to_str()
            .unwrap()
            .starts_with("max-age=")
    );
    let again = asked
        .client
        .get(&url)
        .header("if-none-match", etag.clone())
        .send()
        .await
        .unwrap();
    assert_eq!(
        (again.status(), &again.headers()["etag"]),
        (StatusCode::NOT_MODIFIED, &etag)
    );
    assert_eq!(again.bytes().await.unwrap().len(), 0);
}

#[tokio::test]
async fn describes_itself_and_has_a_page_that_asks_nobody_else() {
    description(&Asked::start().await).await;
}

async fn description(asked: &Asked) {
    let (_, document) = asked.get("/openapi.json").await;
    for path in [
        "/stats",
        "/stats/hashtags",
        "/stats/sentiment",
        "/stats/jobs",
        "/stats/counters",
    ] {
        assert!(document["paths"][path]["get"].is_object(), "{path}");
    }
    let post = &document["paths"]["/stats"]["post"];
    assert!(post["requestBody"].is_object());
    for status in ["200", "400", "401", "403", "409", "413", "422", "503"] {
        assert!(post["responses"][status].is_object(), "{status}");
    }
    let schemas = &document["components"]["schemas"];
    assert!(schemas["Reconciled"]["properties"]["unreadable"].is_object());
    assert!(schemas["Reconciliation"]["properties"]["unplaced"].is_object());
    let text = document.to_string();
    let mut named = text
        .match_indices("#/components/schemas/")
        .map(|(at, prefix)| text[at + prefix.len()..].split('"').next().unwrap());
    assert!(
        named.all(|name| document["components"]["schemas"][name].is_object()),
        "{text}"
    );
    let page = asked
        .client
        .get(format!("http://{}/", asked.address()))
        .send()
        .await
        .unwrap();
    assert!(
        page.headers()["content-security-policy"]
            .to_str()
            .unwrap()
            .contains("default-src 'none'")
    );
    let html = page.text().await.unwrap();
    assert!(
        html.contains("stats/sentiment") && !html.contains("http://") && !html.contains("https://")
    );
}
