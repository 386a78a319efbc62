use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use rollout::judge::{Decision, Missing};
use rollout::{Cause, Phase};

use super::*;
use crate::api::types::series::LineView;
use crate::words::samples::{timestamp, verdict, view};

fn analyzing() -> Phase {
    Phase::Analyzing {
        step: 1,
        elapsed: Duration::from_secs(12),
    }
}

fn watching(phase: Phase, may_operate: bool) -> Watching {
    let missing = vec![Missing::Time {
        remaining: Duration::from_secs(6),
    }];
    let judged = verdict(Decision::Inconclusive { missing });
    let me = MeView {
        name: Some("ann".into()),
        role: None,
        may_operate,
        may_approve: may_operate,
        may_read_all: true,
    };
    let mut watching = Watching::of(view(phase, Some(judged)), me, false);
    for sample in 0..30 {
        let mut next = watching.view.clone();
        next.canary.signals.requests_per_second = f64::from(sample);
        next.canary.signals.error_ratio = (sample > 10).then_some(0.002);
        watching.see(next);
    }
    let line = |seq: i64, message: &str| LineView {
        seq,
        at: timestamp(&format!("2025-03-07T09:00:{seq:02}Z")),
        kind: "phase".into(),
        author: "friday".into(),
        message: message.into(),
    };
    watching.add(SeriesView {
        story: vec![
            line(1, "started by ann: worker:v2"),
            line(8, "weight from 0% to 10%"),
            line(20, "pause by a name with \u{1b}[2J in it"),
        ],
        next: 20,
        is_whole: true,
        ..SeriesView::default()
    });
    watching
}

fn drawn(watching: &Watching, width: u16, height: u16) -> String {
    let area = Rect::new(0, 0, width, height);
    let mut buffer = Buffer::empty(area);
    let now = timestamp("2025-03-07T09:00:34Z");
    picture::draw(watching, now, area, &mut buffer);
    let row = |row: u16| {
        let cells = (0..width).map(|column| buffer[(column, row)].symbol());
        cells.collect::<String>().trim_end().to_owned()
    };
    (0..height).map(row).collect::<Vec<_>>().join("\n")
}

fn key(code: KeyCode) -> KeyEvent {
    KeyEvent::new(code, KeyModifiers::NONE)
}

#[test]
fn draws_a_rollout_on_eighty_columns() {
    insta::assert_snapshot!(drawn(&watching(analyzing(), true), 80, 24));
}

#[test]
fn draws_an_end_for_a_viewer_who_has_no_keys_to_order_with() {
    let cause = Cause::Person {
        by: "ann".into(),
        reason: Some("numbers look odd".into()),
    };
    insta::assert_snapshot!(drawn(
        &watching(Phase::RolledBack { cause }, false),
        100,
        30
    ));
}

#[test]
fn draws_on_any_size_without_panic() {
    let mut watching = watching(analyzing(), true);
    watching.asking = Some(Order::Abort);
    for (width, height) in [
        (0, 0),
        (1, 1),
        (5, 3),
        (20, 4),
        (40, 12),
        (80, 1),
        (300, 90),
    ] {
        drawn(&watching, width, height);
    }
}

#[test]
fn an_order_is_asked_about_first_and_only_yes_is_a_yes() {
    let mut watching = watching(analyzing(), true);
    assert_eq!(watching.press(key(KeyCode::Char('a'))), Wish::Nothing);
    assert_eq!(watching.asking, Some(Order::Abort));
    let last = drawn(&watching, 80, 24);
    let last = last.lines().last().unwrap().to_owned();
    assert!(last.contains("All requests back to worker:v1?"), "{last}");
    assert_eq!(watching.press(key(KeyCode::Char('a'))), Wish::Nothing);
    assert_eq!(watching.asking, None);
    watching.press(key(KeyCode::Char('a')));
    let given = watching.press(key(KeyCode::Char('y')));
    assert_eq!(given, Wish::Give(Order::Abort));
    // Nobody approves where there is no gate, resumes what is not paused, or leaves by asking.
    for other in ['y', 'n', 'r', 'x'] {
        assert_eq!(watching.press(key(KeyCode::Char(other))), Wish::Nothing);
        assert_eq!(watching.asking, None, "{other}");
    }
    assert_eq!(watching.press(key(KeyCode::Char('q'))), Wish::Leave);
}

#[test]
fn who_may_approve_the_first_request_has_a_key_for_it_and_none_to_promote() {
    let deploying = Phase::Deploying {
        elapsed: Duration::from_secs(3),
    };
    let keys = |watching: &mut Watching| -> String {
        let is_asked = |key: &char| {
            watching.press(KeyEvent::new(KeyCode::Char(*key), KeyModifiers::NONE));
            watching.asking.take().is_some()
        };
        picture::KEYS
            .map(|(key, ..)| key)
            .into_iter()
            .filter(is_asked)
            .collect()
    };
    let mut watching = watching(deploying.clone(), true);
    assert_eq!(keys(&mut watching), "fha");
    watching.view.admission.approvals_min = 1;
    assert_eq!(keys(&mut watching), "ynha");
    watching.press(key(KeyCode::Char('y')));
    let last = drawn(&watching, 80, 24);
    assert!(
        last.contains("Approve the canary's first request?"),
        "{last}"
    );
    watching.view.phase = Phase::Paused {
        at: Box::new(deploying),
    };
    assert_eq!(keys(&mut watching), "ra");
    watching.view.admission.approved_by.push("bob".into());
    assert_eq!(keys(&mut watching), "fra");
    watching.me.may_approve = false;
    watching.view.phase = Phase::Gated {
        step: 1,
        elapsed: Duration::ZERO,
    };
    assert_eq!(keys(&mut watching), "fha");
}

#[test]
fn a_viewer_gives_no_orders() {
    let mut watching = watching(analyzing(), false);
    for (with, ..) in picture::KEYS {
        assert_eq!(watching.press(key(KeyCode::Char(with))), Wish::Nothing);
        assert_eq!(watching.asking, None, "{with}");
    }
    assert!(!drawn(&watching, 80, 24).contains("abort"));
}

#[test]
fn the_log_scrolls_and_stops_at_its_ends() {
    let mut watching = watching(analyzing(), true);
    for _ in 0..10 {
        watching.press(key(KeyCode::Up));
    }
    assert_eq!(watching.scrolled, 3);
    for _ in 0..10 {
        watching.press(key(KeyCode::Down));
    }
    assert_eq!(watching.scrolled, 0);
}
