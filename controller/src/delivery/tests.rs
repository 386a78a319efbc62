use prometheus::TextEncoder;
use rollout::{Cell, LatencyHistogram};

use super::*;
use crate::words::samples;

const SECOND: Duration = Duration::from_secs(1);

fn analyzing() -> Phase {
    Phase::Analyzing {
        step: 1,
        elapsed: Duration::ZERO,
    }
}

fn evidence() -> Cause {
    Cause::Evidence {
        signal: "errors".into(),
    }
}

fn going_back(stage: Retreat) -> Phase {
    Phase::RollingBack {
        cause: evidence(),
        stage,
        elapsed: Duration::ZERO,
    }
}

/// The value of the one series whose line begins with this name and has all of these labels.
fn value(delivery: &Delivery, name: &str, labels: &[&str]) -> Option<f64> {
    let text = TextEncoder::new()
        .encode_to_string(&delivery.gather())
        .unwrap();
    let mut found = text.lines().filter(|line| {
        line.starts_with(&format!("{name}{{")) && labels.iter().all(|label| line.contains(label))
    });
    let line = found.next()?;
    assert_eq!(found.next(), None, "{name} {labels:?} is one series");
    line.rsplit_once(' ').unwrap().1.parse().ok()
}

/// Moves a new rollout through these phases, each so many seconds after the last.
fn played(phases: Vec<(u32, Phase)>) -> Arc<Delivery> {
    let delivery = Delivery::new();
    let mut before = samples::rollout(Phase::Deploying {
        elapsed: Duration::ZERO,
    });
    before.observed.canary_ready = 2;
    delivery.began(&before);
    let mut now = Duration::from_secs(1_000);
    for (seconds, phase) in phases {
        now += SECOND * seconds;
        let mut after = before.clone();
        after.phase = phase;
        after.moved = before.moved + SECOND * seconds;
        delivery.moved(&before, &after, now);
        before = after;
    }
    delivery
}

fn block(requests: u64, bad: u64, node: &str) -> Block {
    let latency: LatencyHistogram = [(32 * 4, u32::try_from(requests - bad).unwrap())]
        .into_iter()
        .collect();
    let cell = Cell {
        node: node.into(),
        requests,
        bad,
        latency,
        ..Cell::default()
    };
    Block {
        canary: vec![cell.clone()],
        stable: vec![cell],
        ..Block::default()
    }
}

fn served(delivery: &Delivery, release: &str, block: &Block) {
    let whose = Served {
        service: "tweets-worker",
        environment: "production",
        stable: "111111111111",
        canary: Some(release),
    };
    let running = samples::rollout(Phase::Promoted).id;
    delivery.served(whose, Some(&running), block);
}

#[test]
fn a_rollback_is_timed_from_the_first_weight_to_the_decision_and_on_to_the_last_request() {
    let delivery = played(vec![
        (30, analyzing()),
        (12, going_back(Retreat::Leaving)),
        (2, going_back(Retreat::Leaving)),
        (1, going_back(Retreat::Removing)),
        (9, Phase::RolledBack { cause: evidence() }),
    ]);
    let of = |name: &str| value(&delivery, name, &[]);
    assert_eq!(of("friday_rollout_detection_seconds_sum"), Some(12.0));
    assert_eq!(of("friday_rollout_restore_seconds_sum"), Some(3.0));
    assert_eq!(of("friday_rollout_restore_seconds_count"), Some(1.0));
    assert_eq!(of("friday_rollout_lead_time_seconds_count"), Some(0.0));
    let ended = |outcome: &str| {
        let label = format!("outcome=\"{outcome}\"");
        value(&delivery, "friday_rollouts_ended_total", &[&label])
    };
    for name in OUTCOMES {
        let expected = f64::from(u8::from(name == "rolled_back"));
        assert_eq!(ended(name), Some(expected), "{name}");
    }
}

#[test]
fn a_promotion_has_a_lead_time_and_nothing_was_found_out() {
    let delivery = played(vec![(30, analyzing()), (600, Phase::Promoted)]);
    let of = |name: &str| value(&delivery, name, &[]);
    assert_eq!(of("friday_rollout_lead_time_seconds_sum"), Some(630.0));
    assert_eq!(of("friday_rollout_detection_seconds_count"), Some(0.0));
    assert_eq!(of("friday_rollout_restore_seconds_count"), Some(0.0));
}

#[test]
fn an_abort_by_a_person_restores_and_detects_nothing_and_before_the_first_weight_there_is_nothing_to_restore()
 {
    let cause = Cause::Person {
        by: "ann".into(),
        reason: None,
    };
    let back = |stage| Phase::RollingBack {
        cause: cause.clone(),
        stage,
        elapsed: Duration::ZERO,
    };
    let ends = [
        (5, back(Retreat::Leaving)),
        (1, back(Retreat::Removing)),
        (
            1,
            Phase::RolledBack {
                cause: cause.clone(),
            },
        ),
    ];
    for (first, restored) in [(Some((30, analyzing())), 1.0), (None, 0.0)] {
        let delivery = played(first.into_iter().chain(ends.clone()).collect());
        let of = |name: &str| value(&delivery, name, &[]);
        assert_eq!(of("friday_rollout_detection_seconds_count"), Some(0.0));
        assert_eq!(of("friday_rollout_restore_seconds_count"), Some(restored));
    }
}

#[test]
fn requests_are_counted_by_node_and_those_of_the_canary_with_its_ending() {
    let delivery = played(vec![(1, analyzing())]);
    served(&delivery, "aaaaaaaaaaaa", &block(10, 2, "n1"));
    served(&delivery, "aaaaaaaaaaaa", &block(5, 0, "n2"));
    let of = |outcome: &str, arm: &str, node: &str| {
        let labels = [("outcome", outcome), ("arm", arm), ("node", node)];
        let labels = labels.map(|(name, value)| format!("{name}=\"{value}\""));
        let labels = labels.each_ref().map(String::as_str);
        value(&delivery, "friday_requests_total", &labels)
    };
    assert_eq!(of("good", "canary", "n1"), Some(8.0));
    assert_eq!(of("bad", "stable", "n1"), Some(2.0));
    assert_eq!(of("good", "canary", "n2"), Some(5.0));
    // 1.6 ms, the lower edge of its bucket: the next bound above it is 2 ms.
    let at = |le: &str| {
        let labels = [le, "arm=\"canary\"", "node=\"n2\""];
        value(&delivery, "friday_request_duration_seconds_bucket", &labels)
    };
    assert_eq!(
        (at("le=\"0.001\""), at("le=\"0.002\"")),
        (Some(0.0), Some(5.0))
    );

    let before = samples::rollout(analyzing());
    let mut after = before.clone();
    after.phase = Phase::RolledBack { cause: evidence() };
    delivery.moved(&before, &after, Duration::from_secs(2_000));
    let of = |name: &str| value(&delivery, name, &["outcome=\"rolled_back\""]);
    assert_eq!(of("friday_rollout_exposed_requests_sum"), Some(15.0));
    assert_eq!(of("friday_rollout_exposed_bad_requests_total"), Some(2.0));
}

#[test]
fn a_rollout_that_was_under_way_already_is_counted_with_its_ending_alone() {
    let delivery = Delivery::new();
    let before = samples::rollout(analyzing());
    delivery.show(&before);
    let mut after = before.clone();
    after.phase = Phase::RolledBack { cause: evidence() };
    delivery.moved(&before, &after, SECOND);
    let of = |name: &str| value(&delivery, name, &["environment=\"production\""]);
    assert_eq!(of("friday_rollout_detection_seconds_count"), Some(0.0));
    assert_eq!(
        value(
            &delivery,
            "friday_rollouts_ended_total",
            &["outcome=\"rolled_back\""]
        ),
        Some(1.0)
    );
    assert_eq!(
        value(
            &delivery,
            "friday_rollout_exposed_requests_count",
            &["outcome=\"rolled_back\""]
        ),
        Some(0.0)
    );
}

#[test]
fn series_of_releases_long_gone_are_let_go() {
    let delivery = played(vec![(1, analyzing())]);
    for number in 0..SERIES_MAX + 100 {
        served(&delivery, &format!("{number:012}"), &block(1, 0, "n1"));
    }
    assert!(delivery.lock().places.len() <= SERIES_MAX);
    let of = |release: &str| {
        let label = format!("release=\"{release}\"");
        value(&delivery, "friday_requests_total", &["\"good\"", &label])
    };
    assert_eq!(of("000000000000"), None, "the oldest is gone");
    assert_eq!(of(&format!("{:012}", SERIES_MAX + 99)), Some(1.0));
    assert!(of("111111111111") > Some(2_000.0), "what is used is kept");
}
