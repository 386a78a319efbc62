//! How a rollout went, over time: read from its event log, and thinned to what a chart can show.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::{Extension, Json};
use rollout::judge::Decision;
use rollout::signals::{Cell, LatencyHistogram};
use rollout::{Duration, RolloutId};
use serde::Deserialize;

use super::Api;
use super::error::ApiError;
use super::reads::find_for;
use super::types::Problem;
use super::types::series::{
    BlockView, LINES_MAX, LineView, POINTS_MAX, PointView, SeriesView, WeightChange,
};
use super::views::{as_f64, quantile};
use crate::auth::Caller;
use crate::replay::JudgedEntry;
use crate::store::{Event, Store, StoreError};
use crate::story::{self, Entry};
use crate::words;

/// Entries that are read of the store at once: some kilobytes each.
const PAGE: u32 = 500;

/// Most entries that are read for one answer: a verdict each second for more than an hour. It bounds the work of one request
/// to some tenths of a second; whoever wants more asks again for what comes after.
const ENTRIES_MAX: usize = 5_000;

/// From where on.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub struct SeriesQuery {
    /// After the entry of this number.
    #[serde(default)]
    after: i64,
}

/// How a rollout went, over time: weights, evidence and signals by verdict, and what happened in words.
#[utoipa::path(get, path = "/api/v1/rollouts/{name}/series", params(("name" = String, Path, description = "a rollout or a service"), SeriesQuery),
    responses((status = 200, body = SeriesView), (status = 404, body = Problem)))]
pub async fn series(
    State(api): State<Api>,
    caller: Option<Extension<Caller>>,
    Path(name): Path<String>,
    query: Result<Query<SeriesQuery>, QueryRejection>,
) -> Result<Json<SeriesView>, ApiError> {
    let Query(query) = query?;
    let id = find_for(&api, caller.as_ref(), &name).await?.rollout.id;
    let series = read(&*api.store, &id, query.after, ENTRIES_MAX).await?;
    Ok(Json(series))
}

/// The series of a rollout, of the entries after `after`, at most so many.
pub(super) async fn read(
    store: &dyn Store,
    id: &RolloutId,
    after: i64,
    entries_max: usize,
) -> Result<SeriesView, StoreError> {
    let mut series = SeriesView {
        rollout: id.to_string(),
        next: after,
        ..SeriesView::default()
    };
    for _ in 0..entries_max / PAGE as usize {
        let page = store.events(Some(id), series.next, PAGE).await?;
        series.is_whole = page.len() < PAGE as usize;
        for event in page {
            series.next = event.seq;
            add(&mut series, event);
        }
        if series.is_whole {
            break;
        }
    }
    series.points = thinned(std::mem::take(&mut series.points), POINTS_MAX);
    let surplus = series.story.len().saturating_sub(LINES_MAX);
    series.story.drain(..surplus);
    let surplus = series.weights.len().saturating_sub(LINES_MAX);
    series.weights.drain(..surplus);
    Ok(series)
}

/// Adds an entry of the log.
fn add(series: &mut SeriesView, event: Event) {
    if event.kind == "verdict"
        && let Ok(judged) = JudgedEntry::deserialize(&event.data)
    {
        series.verdicts += 1;
        series.points.push(point(&event, &judged));
        return;
    }
    if event.kind == "weight"
        && let Some(percent) = event.data["to_percent"].as_f64()
    {
        let at = event.at;
        series.weights.push(WeightChange { at, percent });
    }
    if let Entry::Line(message) = story::entry(&event.kind, &event.author, &event.data) {
        series.story.push(LineView {
            seq: event.seq,
            at: event.at,
            kind: event.kind,
            author: event.author,
            message,
        });
    }
}

fn point(event: &Event, judged: &JudgedEntry) -> PointView {
    let verdict = &judged.verdict;
    let compared = (verdict.evidence.total, verdict.rollback_at);
    // A canary that has every request is watched by a budget of its own: the nearer of the two bounds is shown.
    let (evidence, rollback_at) = match &verdict.watched {
        Some(watched) if watched.total - watched.rollback_at > compared.0 - compared.1 => {
            (watched.total, watched.rollback_at)
        }
        Some(_) | None => compared,
    };
    let decision = match &verdict.decision {
        Decision::Pass { .. } => "pass",
        Decision::Fail { .. } => "fail",
        Decision::Hold { .. } => "hold",
        Decision::Inconclusive { .. } => "inconclusive",
    };
    let block = &judged.block;
    PointView {
        seq: event.seq,
        at: event.at,
        step: verdict.step,
        weight_percent: block.weight.ratio() * 100.0,
        decision: decision.to_owned(),
        message: words::verdict(verdict),
        evidence: evidence.max(0.0),
        rollback_at,
        canary: arm(&block.canary, block.duration),
        stable: arm(&block.stable, block.duration),
    }
}

fn arm(cells: &[Cell], duration: Duration) -> BlockView {
    let requests: u64 = cells.iter().map(|cell| cell.requests).sum();
    let bad: u64 = cells.iter().map(|cell| cell.bad).sum();
    let mut latency = LatencyHistogram::default();
    for cell in cells {
        latency.merge(&cell.latency);
    }
    let seconds = duration.as_secs_f64();
    BlockView {
        requests_per_second: if seconds > 0.0 {
            as_f64(requests) / seconds
        } else {
            0.0
        },
        error_ratio: (requests > 0).then(|| as_f64(bad) / as_f64(requests)),
        latency_p90_seconds: quantile(&latency, 0.90),
    }
}

/// At most `most` of the points: of neighbours the one with the most evidence, and always the last.
fn thinned(points: Vec<PointView>, most: usize) -> Vec<PointView> {
    if points.len() <= most {
        return points;
    }
    let mut kept = Vec::with_capacity(most);
    let last = points.len() - 1;
    let chunk = last.div_ceil(most - 1);
    for neighbours in points[..last].chunks(chunk) {
        let loudest = neighbours
            .iter()
            .max_by(|a, b| a.evidence.total_cmp(&b.evidence));
        kept.extend(loudest.cloned());
    }
    kept.push(points[last].clone());
    kept
}

#[cfg(test)]
mod tests {
    use rollout::{Block, Weight};
    use serde_json::json;

    use super::*;
    use crate::words::samples::{timestamp, verdict};

    fn event(seq: i64, kind: &str, data: serde_json::Value) -> Event {
        Event {
            seq,
            at: timestamp("2025-03-07T09:00:00Z"),
            rollout: None,
            kind: kind.into(),
            author: "friday".into(),
            data,
            hash: String::new(),
        }
    }

    fn judged(seq: i64, evidence: f64) -> Event {
        let mut verdict = verdict(Decision::Fail {
            signal: rollout::judge::Signal::Errors,
            sick_node: None,
        });
        verdict.evidence.total = evidence;
        let cell = |requests, bad| Cell {
            requests,
            bad,
            latency: [(160, 9), (320, 1)].into_iter().collect(),
            ..Cell::default()
        };
        let position = rollout::judge::Position {
            step: 1,
            weight: Weight::from_percent(10).unwrap(),
            next: None,
            last_gate: false,
            hold: rollout::Hold {
                least: Duration::ZERO,
                most: Duration::ZERO,
            },
        };
        let block = Block {
            weight: Weight::from_percent(10).unwrap(),
            duration: Duration::from_secs(2),
            canary: vec![cell(10, 2), cell(10, 0)],
            stable: vec![],
        };
        let entry = JudgedEntry {
            position,
            block,
            verdict,
        };
        event(seq, "verdict", json!(entry))
    }

    #[test]
    fn reads_verdicts_weights_and_words_of_the_log() {
        let mut series = SeriesView::default();
        add(
            &mut series,
            event(1, "started", json!({ "image": "web:v2" })),
        );
        add(
            &mut series,
            event(
                2,
                "weight",
                json!({ "from_percent": 0.0, "to_percent": 10.0 }),
            ),
        );
        add(&mut series, judged(3, 5.0));
        add(&mut series, event(4, "of tomorrow", json!({})));
        assert_eq!(series.weights[0].percent, 10.0);
        let told: Vec<_> = series
            .story
            .iter()
            .map(|line| line.message.as_str())
            .collect();
        assert_eq!(told, ["started by friday: web:v2", "weight from 0% to 10%"]);
        let point = &series.points[0];
        assert_eq!((point.seq, point.decision.as_str()), (3, "fail"));
        assert_eq!((point.weight_percent, point.evidence), (10.0, 5.0));
        assert_eq!(point.canary.requests_per_second, 10.0);
        assert_eq!(point.canary.error_ratio, Some(0.1));
        let p90 = point.canary.latency_p90_seconds.unwrap();
        assert!((0.0032..0.0033).contains(&p90), "{p90}");
        assert_eq!(point.stable, BlockView::default());
        // What JSON cannot say is no evidence.
        add(&mut series, judged(5, f64::NEG_INFINITY));
        assert_eq!(series.points[1].evidence, 0.0);
        let text = serde_json::to_string(&series).unwrap();
        assert_eq!(serde_json::from_str::<SeriesView>(&text).unwrap(), series);
    }

    #[test]
    fn thins_without_losing_a_peak_or_the_last() {
        let mut series = SeriesView::default();
        add(&mut series, judged(1, 0.5));
        let first = series.points[0].clone();
        series.points = (1..=10_001)
            .map(|seq| PointView {
                seq,
                evidence: if seq == 4_321 { 6.0 } else { 0.5 },
                ..first.clone()
            })
            .collect();
        for most in [2, 7, 400] {
            let kept = thinned(series.points.clone(), most);
            assert!(kept.len() <= most, "{} of {most}", kept.len());
            assert!(kept.iter().any(|point| point.seq == 4_321));
            assert_eq!(kept.last().unwrap().seq, 10_001);
            assert!(kept.is_sorted_by_key(|point| point.seq));
        }
        assert_eq!(thinned(series.points[..5].to_vec(), 5).len(), 5);
    }
}
