//! The routes of the statistics.

use std::fmt;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::{Router, routing};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use friday::clock::{Clock, SystemClock};
use jiff::Timestamp;
use serde_json::{Value, json};
use utoipa::OpenApi;

use super::cache::Cache;
use super::counters::{self, CounterPost, NewCounter};
use super::page;
use super::store::Window;
use super::types::{
    Asked, Counter, KeyCount, Page, Problem, Reconciliation, ReleaseCounts, SentimentStep, Step,
    Summary,
};
use crate::jobs::{JobRun, RunPlace};
use crate::request::TokenHash;
use crate::server::problem;
use crate::sink::{DAY_S, Kind, MINUTE_S, StorageError, Store};

/// The range that is looked at unless told otherwise.
const RANGE_DEFAULT_S: i64 = DAY_S;

/// Rows of a page unless told otherwise, and at most.
const LIMIT_DEFAULT: i64 = 20;
const LIMIT_MAX: i64 = 500;

/// Releases that are shown.
const RELEASES_MAX: i64 = 100;

/// Holes that are shown.
const HOLES_MAX: i64 = 100;

/// Longest post of counters: 100 of the longest that are allowed are 130 KB.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// The OpenAPI document.
#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "Pipeline statistics",
        description = "What the pipeline found out about tweets, counted; and counters of others."
    ),
    paths(
        summary,
        hashtags,
        languages,
        sentiment,
        jobs,
        reconciliation,
        list_counters,
        post_counters
    ),
    components(schemas(CounterPost, NewCounter, Problem, Step))
)]
pub struct Document;

/// Statistics of one store.
#[derive(Clone)]
pub struct Stats {
    store: Arc<dyn Store>,
    cache: Arc<Cache>,
    clock: Arc<dyn Clock>,
    token: Option<TokenHash>,
}

impl fmt::Debug for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stats")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

impl Stats {
    /// Statistics of `store`; counters are taken from whoever brings `token`, from nobody without one.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, token: Option<&str>) -> Self {
        Self {
            store,
            cache: Arc::new(Cache::new()),
            clock: SystemClock::new(),
            token: token.map(|token| TokenHash::of(token.as_bytes())),
        }
    }
}

/// All routes.
pub fn router(stats: Stats) -> Router {
    Router::new()
        .route("/", routing::get(page::page))
        .route(
            "/openapi.json",
            routing::get(async || axum::Json(Document::openapi())),
        )
        .route("/stats", routing::get(summary).post(post_counters))
        .route("/stats/hashtags", routing::get(hashtags))
        .route("/stats/languages", routing::get(languages))
        .route("/stats/sentiment", routing::get(sentiment))
        .route("/stats/jobs", routing::get(jobs))
        .route("/stats/reconciliation", routing::get(reconciliation))
        .route("/stats/counters", routing::get(list_counters))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(stats)
}

/// A question that can be asked of the store.
struct Question {
    window: Window,
    limit: i64,
    cursor: Option<Value>,
}

type Given = Result<Query<Asked>, QueryRejection>;

impl Stats {
    fn question(&self, given: Given) -> Result<(Asked, Question), Box<Response>> {
        let wrong = |detail: &str| Box::new(problem(StatusCode::BAD_REQUEST, "bad_query", detail));
        let Query(asked) = given.map_err(|error| wrong(&error.body_text()))?;
        let limit = asked.limit.unwrap_or(LIMIT_DEFAULT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(wrong(&format!("limit: expected 1 to {LIMIT_MAX}")));
        }
        let cursor =
            match &asked.cursor {
                None => None,
                Some(text) => Some(read_cursor(text).ok_or_else(|| {
                    wrong("cursor: expected the next of an earlier page, unchanged")
                })?),
            };
        // To the minute, so that those who ask at nearly the same time ask the same.
        let minute = |time: Timestamp| time.as_second().div_euclid(MINUTE_S) * MINUTE_S;
        let now_s = minute(self.clock.now());
        let to_s = asked.to.map_or(now_s + DAY_S, minute);
        let from_s = asked
            .from
            .map_or_else(|| to_s.min(now_s) - RANGE_DEFAULT_S, minute);
        if from_s > to_s {
            return Err(wrong("from: expected a time before to"));
        }
        let release = asked.release.clone();
        if release
            .as_ref()
            .is_some_and(|release| release.contains('\0'))
        {
            return Err(wrong("release: expected a text without NUL"));
        }
        let question = Question {
            window: Window {
                from_s,
                to_s,
                release,
            },
            limit,
            cursor,
        };
        Ok((asked, question))
    }
}

/// The cursor is what the page ended with; opaque to callers, so that it can change.
fn write_cursor(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn read_cursor(text: &str) -> Option<Value> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
}

#[utoipa::path(get, path = "/stats", params(Asked), responses((status = 200, body = Summary), (status = 400, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn summary(
    State(stats): State<Stats>,
    headers: HeaderMap,
    given: Given,
) -> Response {
    let (_, question) = match stats.question(given) {
        Ok(asked) => asked,
        Err(refused) => return *refused,
    };
    let window = question.window;
    let ask = async {
        let sums = stats.store.sums(&window).await?;
        let rows = stats.store.totals(&window, RELEASES_MAX).await?;
        let reconciled = stats.store.reconciled().await?;
        let mut releases: Vec<ReleaseCounts> = Vec::new();
        let mut micros: Vec<i64> = Vec::new();
        let mut total = ReleaseCounts::default();
        let mut total_micros = 0;
        for (kind, count, sum) in sums {
            total.add(&kind, count);
            if kind == Kind::Total.name() {
                total_micros += sum;
            }
        }
        for (kind, release, count, sum) in rows {
            let at = releases
                .iter()
                .position(|r| r.release == release)
                .unwrap_or_else(|| {
                    releases.push(ReleaseCounts {
                        release,
                        ..ReleaseCounts::default()
                    });
                    micros.push(0);
                    releases.len() - 1
                });
            releases[at].add(&kind, count);
            if kind == Kind::Total.name() {
                micros[at] += sum;
            }
        }
        for (counts, micros) in releases.iter_mut().zip(micros) {
            counts.finish(micros);
        }
        total.finish(total_micros);
        Ok(Summary {
            from: time(window.from_s),
            to: time(window.to_s),
            total,
            releases,
            missing: reconciled.iter().map(|partition| partition.missing).sum(),
        })
    };
    stats
        .cache
        .answer(format!("summary {window:?}"), &headers, ask)
        .await
}

impl ReleaseCounts {
    /// Adds a count to those of its kind.
    fn add(&mut self, kind: &str, count: i64) {
        match kind {
            "total" => self.results += count,
            "late" => self.late += count,
            "malformed" => self.malformed += count,
            _ => self.duplicates += count,
        }
    }

    fn finish(&mut self, micros: i64) {
        self.malformed_ratio = ratio(self.malformed, self.malformed + self.results);
        self.sentiment_mean = mean(micros, self.results);
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
fn ratio(part: i64, whole: i64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

fn mean(micros: i64, count: i64) -> f64 {
    (ratio(micros, count) / 100.0).round() / 1e4
}

fn time(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

async fn top(stats: Stats, headers: HeaderMap, given: Given, kind: Kind) -> Response {
    let (
        _,
        Question {
            window,
            limit,
            cursor,
        },
    ) = match stats.question(given) {
        Ok(asked) => asked,
        Err(refused) => return *refused,
    };
    let after = match cursor
        .map(serde_json::from_value::<(i64, String)>)
        .transpose()
    {
        Ok(after) => after,
        Err(_) => return wrong_cursor(),
    };
    let question = format!("{} {window:?} {limit} {after:?}", kind.name());
    let ask = async {
        let mut rows = stats.store.top(kind, &window, after, limit + 1).await?;
        let more = rows.len() as i64 > limit;
        rows.truncate(limit as usize);
        let last = rows.last().filter(|_| more);
        Ok(Page {
            next: last.map(|(key, count, _)| write_cursor(&json!([count, key]))),
            items: rows
                .into_iter()
                .map(|(key, count, micros)| KeyCount {
                    key,
                    count,
                    sentiment_mean: mean(micros, count),
                })
                .collect(),
        })
    };
    stats.cache.answer(question, &headers, ask).await
}

fn wrong_cursor() -> Response {
    let detail = "cursor: it is of another list";
    problem(StatusCode::BAD_REQUEST, "bad_query", detail)
}

#[utoipa::path(get, path = "/stats/hashtags", params(Asked), responses((status = 200, body = Page<KeyCount>), (status = 400, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn hashtags(
    State(stats): State<Stats>,
    headers: HeaderMap,
    given: Given,
) -> Response {
    top(stats, headers, given, Kind::Hashtag).await
}

#[utoipa::path(get, path = "/stats/languages", params(Asked), responses((status = 200, body = Page<KeyCount>), (status = 400, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn languages(
    State(stats): State<Stats>,
    headers: HeaderMap,
    given: Given,
) -> Response {
    top(stats, headers, given, Kind::Language).await
}

#[utoipa::path(get, path = "/stats/sentiment", params(Asked), responses((status = 200, body = Page<SentimentStep>), (status = 400, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn sentiment(
    State(stats): State<Stats>,
    headers: HeaderMap,
    given: Given,
) -> Response {
    let (
        asked,
        Question {
            mut window,
            limit,
            cursor,
        },
    ) = match stats.question(given) {
        Ok(asked) => asked,
        Err(refused) => return *refused,
    };
    let step_s = asked.step.unwrap_or(Step::Hour).seconds();
    match cursor.map(serde_json::from_value::<i64>).transpose() {
        // The page before ended with this step; it is whole, because steps begin at their multiples.
        Ok(before) => window.to_s = before.unwrap_or(window.to_s).min(window.to_s),
        Err(_) => return wrong_cursor(),
    }
    let question = format!("sentiment {step_s} {window:?} {limit}");
    let ask = async {
        let rows = stats
            .store
            .over_time(Kind::Sentiment, step_s, &window, limit)
            .await?;
        let mut steps: Vec<(i64, [i64; 3], i64, i64)> = Vec::new();
        for (at, label, count, micros) in rows {
            if steps.last().is_none_or(|(last, ..)| *last != at) {
                steps.push((at, [0; 3], 0, 0));
            }
            let Some((_, counts, all, sum)) = steps.last_mut() else {
                continue;
            };
            match label.as_str() {
                "positive" => counts[0] += count,
                "neutral" => counts[1] += count,
                "negative" => counts[2] += count,
                _ => {}
            }
            *all += count;
            *sum += micros;
        }
        let last = steps.last().filter(|_| steps.len() as i64 >= limit);
        Ok(Page {
            next: last.map(|(at, ..)| write_cursor(&json!(at))),
            items: steps
                .iter()
                .map(
                    |(at, [positive, neutral, negative], all, micros)| SentimentStep {
                        at: time(*at),
                        positive: *positive,
                        neutral: *neutral,
                        negative: *negative,
                        mean: mean(*micros, *all),
                    },
                )
                .collect(),
        })
    };
    stats.cache.answer(question, &headers, ask).await
}

#[utoipa::path(get, path = "/stats/jobs", params(Asked), responses((status = 200, body = Page<JobRun>), (status = 400, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn jobs(State(stats): State<Stats>, headers: HeaderMap, given: Given) -> Response {
    let (asked, Question { limit, cursor, .. }) = match stats.question(given) {
        Ok(asked) => asked,
        Err(refused) => return *refused,
    };
    let after = match cursor.map(serde_json::from_value::<RunPlace>).transpose() {
        Ok(after) if after.as_ref().is_none_or(|run| !run.job.contains('\0')) => after,
        Ok(_) | Err(_) => return wrong_cursor(),
    };
    let job = asked.job.filter(|job| !job.contains('\0'));
    let question = format!("jobs {job:?} {after:?} {limit}");
    let ask = async {
        let after = after.as_ref();
        let mut items = stats.store.runs(job.as_deref(), after, limit + 1).await?;
        let more = items.len() as i64 > limit;
        items.truncate(limit as usize);
        let last = items.last().filter(|_| more);
        Ok::<_, StorageError>(Page {
            next: last.map(|run| write_cursor(&json!(run.place()))),
            items,
        })
    };
    stats.cache.answer(question, &headers, ask).await
}

#[utoipa::path(get, path = "/stats/reconciliation", responses((status = 200, body = Reconciliation), (status = 503, body = Problem)))]
pub(crate) async fn reconciliation(State(stats): State<Stats>, headers: HeaderMap) -> Response {
    let ask = async {
        Ok::<_, StorageError>(Reconciliation {
            partitions: stats.store.reconciled().await?,
            missing: stats.store.holes(HOLES_MAX).await?,
            unplaced: stats.store.unplaced().await?,
        })
    };
    stats
        .cache
        .answer("reconciliation".to_owned(), &headers, ask)
        .await
}

#[utoipa::path(get, path = "/stats/counters", params(Asked), responses((status = 200, body = Page<Counter>), (status = 400, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn list_counters(
    State(stats): State<Stats>,
    headers: HeaderMap,
    given: Given,
) -> Response {
    let (_, Question { limit, cursor, .. }) = match stats.question(given) {
        Ok(asked) => asked,
        Err(refused) => return *refused,
    };
    let after = match cursor
        .map(serde_json::from_value::<(String, String)>)
        .transpose()
    {
        Ok(after) => after,
        Err(_) => return wrong_cursor(),
    };
    let question = format!("counters {after:?} {limit}");
    let ask = async {
        let mut rows = stats.store.counters(after, limit + 1).await?;
        let more = rows.len() as i64 > limit;
        rows.truncate(limit as usize);
        let last = rows.last().filter(|_| more);
        Ok::<_, StorageError>(Page {
            next: last.map(|(name, labels, ..)| write_cursor(&json!([name, labels]))),
            items: rows
                .into_iter()
                .map(|(name, labels, total, updated_ms)| Counter {
                    name,
                    labels: serde_json::from_str(&labels).unwrap_or_default(),
                    total,
                    updated: time(updated_ms / 1_000),
                })
                .collect(),
        })
    };
    stats.cache.answer(question, &headers, ask).await
}

#[utoipa::path(post, path = "/stats", request_body = CounterPost,
    params(("authorization" = String, Header, description = "Bearer TOKEN"), ("idempotency-key" = Option<String>, Header, description = "a post with the key of an earlier one is added once; with other counters it is refused")),
    responses(
        (status = 200, description = "added, or added before under the same key"),
        (status = 400, description = "the key is none", body = Problem),
        (status = 401, body = Problem),
        (status = 403, body = Problem),
        (status = 409, description = "there would be too many counters", body = Problem),
        (status = 413, description = "the post is too long"),
        (status = 422, description = "the counters are out of bounds, or the key is that of a post of other counters", body = Problem),
        (status = 503, body = Problem)
    ))]
pub(crate) async fn post_counters(
    State(stats): State<Stats>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let now_ms = stats.clock.now().as_millisecond();
    counters::add(&*stats.store, stats.token.as_ref(), &headers, &body, now_ms).await
}
