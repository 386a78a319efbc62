use rollout::rollout::{Promotion, Retreat};
use rollout::{Cause, Command, Event};

use super::*;
use crate::words::samples;

const MINUTE: Duration = Duration::from_secs(60);

fn at() -> Timestamp {
    "2026-11-20T16:00:00Z".parse().unwrap()
}

fn alert(name: &str, service: Option<&str>, is_firing: bool) -> Alert {
    Alert {
        fingerprint: format!("{name}-{}", service.unwrap_or("")),
        name: name.to_owned(),
        service: service.map(str::to_owned),
        summary: "users see failures".to_owned(),
        is_firing,
        holds: true,
    }
}

fn hear(incidents: &mut Incidents, alert: Alert, now: Duration) -> Vec<News> {
    let (news, _) = incidents.hear(vec![alert], now, at());
    news.into_iter().map(|(news, _)| news).collect()
}

#[test]
fn an_incident_lasts_until_it_is_resolved_or_nobody_tells_of_it_any_more() {
    let mut incidents = Incidents::default();
    let fires = || alert("Down", Some("web"), true);
    assert_eq!(hear(&mut incidents, fires(), MINUTE), [News::Opened]);
    assert_eq!(hear(&mut incidents, fires(), 5 * MINUTE), [], "again");
    assert_eq!(incidents.expire(9 * MINUTE), []);
    let told: Vec<News> = incidents
        .expire(10 * MINUTE)
        .into_iter()
        .map(|(news, _)| news)
        .collect();
    assert_eq!(told, [News::Expired]);
    assert_eq!(hear(&mut incidents, fires(), 11 * MINUTE), [News::Opened]);
    let resolved = alert("Down", Some("web"), false);
    assert_eq!(
        hear(&mut incidents, resolved.clone(), 12 * MINUTE),
        [News::Resolved]
    );
    assert_eq!(hear(&mut incidents, resolved, 12 * MINUTE), [], "again");
    assert_eq!(incidents.list(), []);
}

#[test]
fn an_alert_that_asks_for_nothing_holds_nothing() {
    let mut incidents = Incidents::default();
    let alert = Alert {
        holds: false,
        ..alert("Slow", None, true)
    };
    assert_eq!(hear(&mut incidents, alert, MINUTE), []);
    assert_eq!(incidents.unsaved(), None);
}

#[test]
fn an_incident_is_about_the_service_it_names_or_about_all() {
    let is_known = |name: &str| ["web", "shop"].contains(&name);
    for (named, held) in [
        (Some("web"), [true, false]),
        (Some("shop"), [false, true]),
        (Some("postgres"), [true, true]),
        (None, [true, true]),
    ] {
        let mut incidents = Incidents::default();
        hear(&mut incidents, alert("Down", named, true), MINUTE);
        let seen = ["web", "shop"].map(|name| {
            let service: ServiceName = name.parse().unwrap();
            incidents.about(&service, is_known).is_some()
        });
        assert_eq!(seen, held, "{named:?}");
    }
}

#[test]
fn every_phase_is_held_that_could_take_a_step_and_no_other() {
    let elapsed = Duration::ZERO;
    let cause = Cause::Deadline;
    let table = [
        (Phase::Deploying { elapsed }, true),
        (Phase::Analyzing { step: 1, elapsed }, true),
        (Phase::Gated { step: 2, elapsed }, true),
        (Phase::Baking { elapsed }, true),
        (Phase::Warm { elapsed }, true),
        (
            Phase::Promoting {
                stage: Promotion::Updating,
                elapsed,
            },
            false,
        ),
        (
            Phase::RollingBack {
                cause: cause.clone(),
                stage: Retreat::Leaving,
                elapsed,
            },
            false,
        ),
        (Phase::Promoted, false),
        (Phase::RolledBack { cause }, false),
    ];
    for (phase, held) in table {
        let mut incidents = Incidents::default();
        hear(&mut incidents, alert("Down", None, true), MINUTE);
        let mut rollout = samples::rollout(phase);
        let incident = incidents.list().remove(0);
        let hold = incidents.judge(&rollout, Some(&incident));
        assert_eq!(matches!(hold, Hold::Pause(_)), held, "{:?}", rollout.phase);
        assert_eq!(incidents.holds(&rollout.id), held);
        // To go back to what was stable before is never held.
        rollout.full = true;
        assert_eq!(
            Incidents::default().judge(&rollout, Some(&incident)),
            Hold::Leave
        );
    }
}

#[test]
fn what_was_held_goes_on_and_what_a_person_paused_does_not() {
    let mut incidents = Incidents::default();
    hear(&mut incidents, alert("Down", None, true), MINUTE);
    let incident = incidents.list().remove(0);
    let running = samples::rollout(Phase::Analyzing {
        step: 1,
        elapsed: Duration::ZERO,
    });
    let paused = running
        .clone()
        .on(Event::Ordered(Command::Pause), running.moved);
    // By a person before: neither paused again nor resumed.
    assert_eq!(incidents.judge(&paused, Some(&incident)), Hold::Leave);
    assert_eq!(incidents.judge(&paused, None), Hold::Leave);
    // By the incident.
    let words = "Down: users see failures".to_owned();
    assert_eq!(
        incidents.judge(&running, Some(&incident)),
        Hold::Pause(words)
    );
    assert_eq!(incidents.judge(&paused, Some(&incident)), Hold::Leave);
    assert_eq!(incidents.judge(&paused, None), Hold::Resume);
    // That could not be saved: again.
    assert_eq!(incidents.judge(&paused, None), Hold::Resume);
    assert_eq!(incidents.judge(&running, None), Hold::Leave);
    assert!(!incidents.holds(&running.id));
    // By the incident, and then by a person, who has the last word.
    incidents.judge(&running, Some(&incident));
    assert!(incidents.hand_over(&running.id));
    assert_eq!(incidents.judge(&paused, None), Hold::Leave);
}

#[test]
fn a_restart_forgets_nothing_and_waits_as_long_again() {
    let mut incidents = Incidents::default();
    hear(&mut incidents, alert("Down", Some("web"), true), MINUTE);
    let running = samples::rollout(Phase::Baking {
        elapsed: Duration::ZERO,
    });
    let incident = incidents.list().remove(0);
    incidents.judge(&running, Some(&incident));
    let text = serde_json::to_string(&incidents.unsaved().unwrap()).unwrap();
    incidents.was_saved();
    assert_eq!(incidents.unsaved(), None);
    let saved: SavedIncidents = serde_json::from_str(&text).unwrap();
    // Elapsed time begins anew with a process.
    let mut after = Incidents::restored(saved, Duration::from_secs(2));
    assert_eq!(after.list(), incidents.list());
    assert!(after.holds(&running.id));
    assert_eq!(after.expire(4 * MINUTE), []);
    assert_eq!(after.expire(6 * MINUTE).len(), 1);
}

#[test]
fn there_is_an_end_to_how_many_and_how_long() {
    let mut incidents = Incidents::default();
    let many = (0..INCIDENTS_MAX + 7).map(|number| Alert {
        fingerprint: number.to_string(),
        summary: "x".repeat(TEXT_MAX + 1),
        ..alert("Down", None, true)
    });
    let (news, left_out) = incidents.hear(many.collect(), MINUTE, at());
    assert_eq!((news.len(), left_out), (INCIDENTS_MAX, 7));
    assert_eq!(news[0].1.summary.len(), TEXT_MAX);
}
