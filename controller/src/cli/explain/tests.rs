use rollout::judge::{Decision, Grounds, HoldReason, KindSeen, Margin, Missing, Signal, Watched};
use rollout::{Cause, Duration, Phase};
use serde_json::{Value, json};

use super::*;
use crate::words::samples::{timestamp, verdict, view};

fn event(seq: i64, kind: &str, author: &str, data: Value) -> EventView {
    let at = format!("2025-03-07T09:00:{:02}Z", seq * 5);
    EventView {
        seq,
        at: timestamp(&at),
        rollout: Some("tweets-worker-3".into()),
        kind: kind.into(),
        author: author.into(),
        data,
        hash: "00".into(),
    }
}

fn judged(seq: i64, decision: Decision) -> EventView {
    event(
        seq,
        "verdict",
        "friday",
        json!({ "position": {}, "block": {}, "verdict": verdict(decision) }),
    )
}

#[test]
fn tells_the_whole_story() {
    let elapsed = Duration::ZERO;
    let missing = vec![
        Missing::Proof {
            margin: Margin::Latency {
                percentile: Percentile::P50,
                factor: 1.41,
            },
        },
        Missing::Time {
            remaining: Duration::from_secs(6),
        },
    ];
    let cause = Cause::Evidence {
        signal: "errors".into(),
    };
    let events = vec![
        event(1, "started", "ann", json!({ "image": "worker:v2" })),
        event(
            1,
            "skipped",
            "friday",
            json!({
                "step": 1, "weight_percent": 10.0, "skipped_percent": [1.0], "requests_per_second": 4.987,
                "canary_rate_min": 0.5,
            }),
        ),
        event(
            2,
            "phase",
            "friday",
            json!({ "to": Phase::Analyzing { step: 1, elapsed } }),
        ),
        event(
            3,
            "weight",
            "friday",
            json!({ "from_percent": 1.0, "to_percent": 10.0 }),
        ),
        judged(
            4,
            Decision::Hold {
                reason: HoldReason::Silence,
            },
        ),
        event(
            5,
            "order",
            "bob",
            json!({ "order": "pause", "reason": "lunch" }),
        ),
        event(6, "sample", "friday", json!({})),
        event(
            7,
            "verdict",
            "friday",
            json!({ "verdict": { "from": "the future" } }),
        ),
        judged(8, Decision::Pass { by: Grounds::Proof }),
        judged(
            9,
            Decision::Fail {
                signal: Signal::Errors,
                sick_node: None,
            },
        ),
        event(
            10,
            "phase",
            "friday",
            json!({ "to": Phase::RolledBack { cause: cause.clone() } }),
        ),
        judged(11, Decision::Inconclusive { missing }),
    ];
    let ended = view(Phase::RolledBack { cause }, None);
    insta::assert_snapshot!("story", text(&ended, &events, false));
    let nothing = text(&ended, &events[..4], false);
    assert!(nothing.contains("Nothing was judged"), "{nothing}");
    assert!(text(&ended, &events, true).matches("SIGNAL").count() == 4);
}

#[test]
fn names_the_kind_of_answers_that_condemned_and_shows_all() {
    let mut wrong = verdict(Decision::Fail {
        signal: Signal::Answers {
            kind: "negative".into(),
            canary: 0.4,
            stable: 0.25,
        },
        sick_node: None,
    });
    wrong.evidence.checks = 7.9;
    wrong.kinds = [("negative", 0.4, 0.25, 8.6), ("positive", 0.25, 0.4, -3.1)]
        .map(|(name, canary, stable, log_e)| KindSeen {
            name: name.into(),
            canary,
            stable,
            log_e,
        })
        .into();
    let told = json!({ "position": {}, "block": {}, "verdict": wrong });
    let events = vec![event(1, "verdict", "friday", told)];
    let cause = Cause::Evidence {
        signal: "answers".into(),
    };
    let ended = view(Phase::RolledBack { cause }, None);
    insta::assert_snapshot!("answers", text(&ended, &events, false));
}

#[test]
fn says_that_the_watch_is_a_weaker_comparison() {
    let mut alone = verdict(Decision::Fail {
        signal: Signal::ErrorsAlone { allowed: 0.018 },
        sick_node: None,
    });
    alone.step = 5;
    alone.weight = rollout::Weight::ALL;
    alone.watched = Some(Watched {
        errors: 9.1,
        latency: [-0.4, -0.2, 0.1],
        cold: 0.0,
        total: 8.2,
        rollback_at: 1_000_f64.ln(),
        errors_before: Some(0.004),
        errors_allowed: 0.018,
    });
    let event = event(12, "verdict", "friday", json!({ "verdict": alone }));
    let shown = text(
        &view(
            Phase::Warm {
                elapsed: Duration::ZERO,
            },
            None,
        ),
        &[event],
        false,
    );
    insta::assert_snapshot!("watch", shown);
}
