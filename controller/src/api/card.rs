//! A rollout as a picture that can be shared: in a merge request, a chat, a report. SVG in our own hand: a chart library
//! would bring fonts and rasters for two lines and a table.

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};
use rollout::judge::Percentile;
use rollout::{Ending, Timestamp};

use super::Api;
use super::error::ApiError;
use super::reads::find_for;
use super::rollouts::view;
use super::series;
use super::types::series::SeriesView;
use super::types::{Problem, RolloutView};
use crate::auth::Caller;
use crate::words;

/// Size of the picture, in its own units: the proportions that pages show previews in.
const WIDTH: f64 = 1200.0;
const HEIGHT: f64 = 630.0;

/// Where the chart is: left, top, right, bottom.
const CHART: (f64, f64, f64, f64) = (60.0, 262.0, 690.0, 540.0);

/// Longest texts, in characters, that fit in one line at the size they have.
const TITLE_MAX: usize = 34;
const LINE_MAX: usize = 108;
const IMAGE_MAX: usize = 46;

/// Most entries of the log that a picture is drawn from: a verdict each second for five hours, longer than deadlines are.
const ENTRIES_MAX: usize = 20_000;

/// Evidence beyond this many times its bound is drawn at the top.
const EVIDENCE_TOP: f64 = 1.25;

/// What the picture may do when it is opened by itself: nothing but be styled.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'";

/// A rollout as a picture: its releases, how it ended or where it is, weight and evidence over time, the last verdict.
#[utoipa::path(get, path = "/api/v1/rollouts/{name}/card.svg", params(("name" = String, Path, description = "a rollout or a service")),
    responses((status = 200, content_type = "image/svg+xml", body = String), (status = 404, body = Problem)))]
pub async fn card(
    State(api): State<Api>,
    caller: Option<Extension<Caller>>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let saved = find_for(&api, caller.as_ref(), &name).await?;
    let series = series::read(&*api.store, &saved.rollout.id, 0, ENTRIES_MAX).await?;
    let headers: [(HeaderName, &str); 4] = [
        (header::CONTENT_TYPE, "image/svg+xml"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    Ok((headers, picture(&view(&api, &saved), &series)).into_response())
}

/// The colours, light and dark, and the fonts of whoever looks.
const STYLE: &str = "\
:root{--bg:#fff;--ink:#1b2330;--soft:#556070;--line:#d5dbe4;--stable:#1f5fa8;--canary:#a8480a;--good:#146c34;--bad:#b3201d;--wait:#7a5200}\
@media (prefers-color-scheme:dark){:root{--bg:#151a22;--ink:#e8ecf2;--soft:#a3afbf;--line:#333d4b;--stable:#84b8f0;--canary:#f3a552;--good:#63cf91;--bad:#f58f87;--wait:#e6c05c}}\
text{font-family:system-ui,-apple-system,Segoe UI,Roboto,sans-serif;fill:var(--ink);font-size:22px}\
.title{font-size:46px;font-weight:700}.soft{fill:var(--soft)}.small{font-size:18px}.head{font-size:18px;font-weight:600;fill:var(--soft)}\
.outcome{font-size:30px;font-weight:700}.good{fill:var(--good)}.bad{fill:var(--bad)}.wait{fill:var(--wait)}\
.canary{fill:var(--canary)}.stable{fill:var(--stable)}.end{text-anchor:end}\
.area{fill:var(--canary);opacity:.18}.weight{fill:none;stroke:var(--canary);stroke-width:3}\
.evidence{fill:none;stroke:var(--bad);stroke-width:3}.bound{stroke:var(--bad);stroke-width:2;stroke-dasharray:8 6}\
.rule{stroke:var(--line);stroke-width:1}";

/// The picture of a rollout.
fn picture(view: &RolloutView, series: &SeriesView) -> String {
    let mut svg = vec![
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\" aria-labelledby=\"t d\">"
        ),
        format!(
            "<title id=\"t\">{}: {}</title>",
            escaped(&view.id),
            outcome(view).1
        ),
        format!("<desc id=\"d\">{}</desc>", escaped(&view.message)),
        format!("<style>{STYLE}</style>"),
        format!("<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"18\" style=\"fill:var(--bg)\"/>"),
    ];
    svg.extend(heading(view));
    svg.extend(chart(view, series));
    svg.extend(verdict_table(view));
    let times = format!(
        "{} to {}, {} verdicts, by {}",
        minute(view.created),
        minute(view.moved),
        series.verdicts,
        cut(&view.author, 40),
    );
    svg.push(text(60.0, 600.0, "soft small", &times));
    svg.push(text(1140.0, 600.0, "soft small end", "Friday"));
    svg.push("</svg>\n".to_owned());
    svg.join("\n")
}

/// How it ended or that it runs: a class for its colour, and words.
fn outcome(view: &RolloutView) -> (&'static str, &'static str) {
    match view.ending {
        None => ("wait", "in progress"),
        Some(ending @ Ending::Promoted) => ("good", words::ending(ending)),
        Some(
            ending @ (Ending::RolledBack
            | Ending::Aborted
            | Ending::Superseded
            | Ending::InsufficientEvidence
            | Ending::NotReady),
        ) => ("bad", words::ending(ending)),
    }
}

fn heading(view: &RolloutView) -> Vec<String> {
    let (class, words) = outcome(view);
    let place = format!("{} · {}", view.id, cut(&view.environment, 30));
    vec![
        text(60.0, 84.0, "title", &cut(&view.service, TITLE_MAX)),
        text(1140.0, 80.0, &format!("outcome end {class}"), words),
        text(60.0, 122.0, "soft", &place),
        text(
            60.0,
            164.0,
            "canary",
            &format!("canary  {}", cut(&view.canary.release.image, IMAGE_MAX)),
        ),
        text(
            620.0,
            164.0,
            "stable",
            &format!("stable  {}", cut(&view.stable.release.image, IMAGE_MAX)),
        ),
        text(60.0, 204.0, "", &cut(&view.message, LINE_MAX)),
    ]
}

/// Weight and evidence over the time of the rollout.
fn chart(view: &RolloutView, series: &SeriesView) -> Vec<String> {
    let (left, top, right, bottom) = CHART;
    let times = series.points.iter().map(|point| point.at);
    let times = times.chain(series.weights.iter().map(|change| change.at));
    let end = times.fold(view.moved, Timestamp::max);
    let whole = end.duration_since(view.created).as_secs_f64().max(1.0);
    let x = |at: Timestamp| {
        let passed = at.duration_since(view.created).as_secs_f64();
        left + (passed / whole).clamp(0.0, 1.0) * (right - left)
    };
    let y = |share: f64| bottom - share.clamp(0.0, 1.0) * (bottom - top);

    let mut steps = vec![format!("M{left:.1} {bottom:.1}")];
    for change in &series.weights {
        steps.push(format!("H{:.1}", x(change.at)));
        steps.push(format!("V{:.1}", y(change.percent / 100.0)));
    }
    steps.push(format!("H{right:.1}"));
    let steps = steps.join("");
    let bound = 1.0 / EVIDENCE_TOP;
    let evidence: Vec<String> = series
        .points
        .iter()
        .map(|point| {
            let share = point.evidence / point.rollback_at.max(f64::MIN_POSITIVE) * bound;
            format!("{:.1},{:.1}", x(point.at), y(share))
        })
        .collect();
    let rule = |at: f64, class: &str| {
        format!(
            "<line class=\"{class}\" x1=\"{left}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\"/>"
        )
    };
    let mut svg = vec![
        text(
            left,
            top - 16.0,
            "canary small",
            "canary's weight, 0 to 100 %",
        ),
        text(
            right,
            top - 16.0,
            "bad small end",
            "evidence of harm, and its bound",
        ),
    ];
    svg.extend([0.0, 0.25, 0.5, 0.75, 1.0].map(|share| rule(y(share), "rule")));
    svg.push(format!("<path class=\"area\" d=\"{steps}V{bottom:.1}Z\"/>"));
    svg.push(format!("<path class=\"weight\" d=\"{steps}\"/>"));
    svg.push(rule(y(bound), "bound"));
    if !evidence.is_empty() {
        let points = evidence.join(" ");
        svg.push(format!(
            "<polyline class=\"evidence\" points=\"{points}\"/>"
        ));
    }
    svg
}

/// The last verdict: each signal on both sides, and the evidence against the canary.
fn verdict_table(view: &RolloutView) -> Vec<String> {
    const COLUMNS: [f64; 4] = [730.0, 925.0, 1005.0, 1140.0];
    let Some(verdict) = &view.verdict else {
        return vec![text(COLUMNS[0], 300.0, "soft", "Nothing was judged.")];
    };
    let share = |part: u64, all: u64| {
        if all == 0 {
            "–".to_owned()
        } else {
            words::percent(super::views::as_f64(part) / super::views::as_f64(all))
        }
    };
    let (canary, stable) = (&verdict.in_step.canary, &verdict.in_step.stable);
    let evidence = &verdict.evidence;
    let none = || "–".to_owned();
    let mut rows = vec![
        [
            "Requests".to_owned(),
            canary.requests.to_string(),
            stable.requests.to_string(),
            String::new(),
        ],
        [
            "Errors".to_owned(),
            share(canary.bad, canary.requests),
            share(stable.bad, stable.requests),
            words::odds(evidence.errors),
        ],
    ];
    for percentile in Percentile::ALL {
        let at = percentile as usize;
        rows.push([
            format!("Slow at {}", words::percentile_name(percentile)),
            share(canary.slow[at], canary.timed),
            share(stable.slow[at], stable.timed),
            words::odds(evidence.latency[at]),
        ]);
    }
    rows.push([
        "Saturation".to_owned(),
        none(),
        none(),
        words::odds(evidence.saturation),
    ]);
    rows.push([
        "Together".to_owned(),
        String::new(),
        String::new(),
        words::odds(evidence.total),
    ]);
    rows.push([
        "Rolled back at".to_owned(),
        String::new(),
        String::new(),
        words::odds(verdict.rollback_at),
    ]);
    let mut svg = Vec::new();
    for (at, head) in COLUMNS
        .into_iter()
        .zip(["Signal", "Canary", "Stable", "Evidence"])
    {
        let class = if at == COLUMNS[0] { "head" } else { "head end" };
        svg.push(text(at, 262.0, class, head));
    }
    let mut y = 262.0;
    for row in &rows {
        y += 34.0;
        for (at, cell) in COLUMNS.into_iter().zip(row) {
            let class = if at == COLUMNS[0] {
                "small"
            } else {
                "small end"
            };
            svg.push(text(at, y, class, cell));
        }
    }
    svg
}

fn text(x: f64, y: f64, class: &str, words: &str) -> String {
    format!(
        "<text x=\"{x}\" y=\"{y}\" class=\"{class}\">{}</text>",
        escaped(words)
    )
}

fn minute(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%MZ").to_string()
}

/// The beginning of a text that is too long.
fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let beginning: String = text.chars().take(most - 1).collect();
    format!("{}…", beginning.trim_end())
}

/// A text from elsewhere as character data of XML 1.0, which has no control characters.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use rollout::judge::{Decision, Signal};
    use rollout::{Cause, Phase};

    use super::*;
    use crate::api::types::series::{BlockView, PointView, WeightChange};
    use crate::words::samples::{self, timestamp};

    fn series() -> SeriesView {
        let point = |seq: i64, evidence: f64| PointView {
            seq,
            at: timestamp(&format!("2025-03-07T09:00:{:02}Z", 10 + seq)),
            step: 0,
            weight_percent: 10.0,
            decision: "inconclusive".into(),
            message: String::new(),
            evidence,
            rollback_at: 100_f64.ln(),
            canary: BlockView::default(),
            stable: BlockView::default(),
        };
        let change = |at: &str, percent| WeightChange {
            at: timestamp(at),
            percent,
        };
        SeriesView {
            rollout: "tweets-worker-3".into(),
            points: vec![point(1, 0.0), point(5, 2.0), point(9, 30.0)],
            verdicts: 3,
            weights: vec![
                change("2025-03-07T09:00:08Z", 10.0),
                change("2025-03-07T09:00:20Z", 0.0),
            ],
            story: vec![],
            next: 12,
            is_whole: true,
        }
    }

    #[test]
    fn draws_a_rollout_that_was_rolled_back() {
        let cause = Cause::Evidence {
            signal: "errors".into(),
        };
        let decision = Decision::Fail {
            signal: Signal::Errors,
            sick_node: None,
        };
        let verdict = samples::verdict(decision);
        let view = samples::view(Phase::RolledBack { cause }, Some(verdict));
        let svg = picture(&view, &series());
        insta::assert_snapshot!(svg);
    }

    #[test]
    fn text_from_elsewhere_is_text_and_fits() {
        let cause = Cause::Person {
            by: "<script>alert(1)</script>".into(),
            reason: Some(format!("\u{1b}[2J\u{0} & \"{}\"", "x".repeat(500))),
        };
        let mut view = samples::view(Phase::RolledBack { cause }, None);
        view.service = "ü".repeat(63);
        view.author = "]]>".repeat(100);
        let svg = picture(&view, &SeriesView::default());
        assert!(!svg.contains("<script"), "{svg}");
        assert!(!svg.chars().any(|c| c.is_control() && c != '\n'), "{svg}");
        assert!(svg.contains("&lt;script&gt;"), "{svg}");
        assert!(svg.contains("Nothing was judged."), "{svg}");
        let longest = svg.lines().filter(|line| line.starts_with("<text"));
        let longest = longest.map(|line| line.chars().count()).max().unwrap();
        assert!(longest < 260, "{longest}");
        // A rollout of no time at all, and evidence without end, are drawn inside the picture.
        let mut series = series();
        series.points[2].evidence = 1e300;
        series.points[1].rollback_at = 0.0;
        let svg = picture(&view, &series);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
