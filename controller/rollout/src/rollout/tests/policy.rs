//! What holds a rollout that is no evidence: freezes, missing approvals, the author's own eyes.

use super::*;
use crate::policy::Admission;

fn frozen(rollout: Rollout) -> Rollout {
    rollout.on(Event::Frozen(Some("a freeze until Monday".into())), NOW)
}

fn approve(rollout: Rollout, by: &str) -> Rollout {
    rollout.on(Event::Ordered(Command::Approve { by: by.into() }), NOW)
}

fn with_approvals(rollout: Rollout, approvals_min: u32) -> Rollout {
    Rollout {
        admission: Admission {
            approvals_min,
            ..Admission::default()
        },
        ..rollout
    }
}

#[test]
fn a_freeze_stops_all_that_grows_and_no_way_back() {
    let growing = ["deploying", "analyzing", "gated", "baking"];
    for phase in phases() {
        let before = frozen(at(phase.clone()));
        let grows = growing.contains(&before.running_phase().name());
        assert_eq!(before.is_frozen(), grows, "{phase:?}");
        let weight = before.desired().weight;
        if !grows {
            continue;
        }
        // Neither time, nor what is seen, nor proof, nor an order gives the canary more.
        let stage = before.stage_of(&before.phase);
        let mut events = vec![
            Event::Passed(Duration::from_secs(100_000)),
            Event::Observed(healthy(4, weight)),
            Event::Ordered(Command::Promote),
            Event::Ordered(Command::PromoteFull),
        ];
        events.extend(stage.map(|stage| Event::Judged {
            stage,
            ruling: Ruling::Pass,
        }));
        for event in events {
            let after = before.clone().on(event.clone(), NOW);
            assert_eq!(after.desired().weight, weight, "{phase:?} {event:?}");
            assert_eq!(after.phase, before.phase, "{phase:?} {event:?}");
        }
        // Back is open, for evidence and for people.
        let aborted = before
            .clone()
            .on(Event::Ordered(Command::Abort(cause())), NOW);
        assert_eq!(aborted.phase.name(), "rolling_back", "{phase:?}");
        if let Some(stage) = stage {
            let ruling = Ruling::Fail {
                signal: "errors".into(),
            };
            let failed = before.clone().on(Event::Judged { stage, ruling }, NOW);
            assert_eq!(failed.phase.name(), "rolling_back", "{phase:?}");
        }
        // The emergency word and the freeze's end both let it go on.
        let lifted = [
            before.clone().in_emergency("ada", "users cannot pay"),
            before.clone().on(Event::Frozen(None), NOW),
        ];
        for after in lifted {
            assert!(!after.is_frozen());
            let second = Duration::from_secs(1);
            let later = after.clone().on(Event::Passed(second), NOW);
            let stands = matches!(phase, Phase::Paused { .. });
            assert_eq!(later.elapsed == after.elapsed, stands, "{phase:?}");
        }
    }
}

#[test]
fn going_back_to_an_earlier_release_is_never_frozen() {
    let mut rollout = rollout();
    rollout.full = true;
    rollout.admission.goes_back = true;
    let rollout = frozen(rollout).on(Event::Observed(healthy(4, Weight::ZERO)), NOW);
    assert_eq!(rollout.phase.name(), "promoting");
}

#[test]
fn the_first_request_waits_for_every_approval() {
    let ready = healthy(4, Weight::ZERO);
    let rollout = with_approvals(rollout(), 2).on(Event::Observed(ready.clone()), NOW);
    assert!(rollout.awaits_approval());
    // Waiting for people is no fault of the canary's: its own deadline does not pass.
    let rollout = rollout.on(Event::Passed(Duration::from_secs(3_600)), NOW);
    assert_eq!(rollout.phase.name(), "deploying");
    let mut approved = rollout.clone();
    for (by, missing) in [("ada", 2), ("bob", 1), ("bob", 1), ("carol", 0)] {
        approved = approve(approved, by);
        assert_eq!(approved.admission.approvals_missing(), missing, "{by}");
        let seen = approved.clone().on(Event::Observed(ready.clone()), NOW);
        let name = if missing == 0 {
            "analyzing"
        } else {
            "deploying"
        };
        assert_eq!(seen.phase.name(), name);
    }
    // No order goes past them.
    for command in [Command::Promote, Command::PromoteFull, Command::Resume] {
        let ordered = rollout.clone().on(Event::Ordered(command), NOW);
        let seen = ordered.on(Event::Observed(ready.clone()), NOW);
        assert_eq!(seen.phase.name(), "deploying");
    }
    // Nor does one arm what the approvals would then let go all the way, unjudged.
    for held in [
        rollout.clone(),
        rollout.clone().on(Event::Ordered(Command::Pause), NOW),
    ] {
        let armed = held.clone().on(Event::Ordered(Command::PromoteFull), NOW);
        assert_eq!(armed, held);
    }
    let approved = ["bob", "carol"].into_iter().fold(rollout.clone(), approve);
    let armed = approved.on(Event::Ordered(Command::PromoteFull), NOW);
    assert!(armed.full);
    // Nobody answers: it ends, as at any gate.
    let late = rollout.on(Event::Passed(Duration::from_secs(3_600)), NOW);
    assert_eq!(late.cause(), Some(&Cause::GateUnanswered));
}

#[test]
fn a_later_gate_takes_other_eyes_too() {
    let gated = at(Phase::Gated {
        step: 1,
        elapsed: Duration::ZERO,
    });
    let strict = with_approvals(gated.clone(), 1);
    assert_eq!(approve(strict.clone(), "ada").phase.name(), "gated");
    assert_eq!(approve(strict, "bob").phase.name(), "analyzing");
    // Without a wish for other eyes, a gate is opened by whoever may.
    assert_eq!(approve(gated, "ada").phase.name(), "analyzing");
}
