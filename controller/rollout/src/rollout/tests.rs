//! Laws of the state machine, and its whole table as a snapshot.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test names the phases it is about"
)]

use std::fmt::Write as _;

use proptest::prelude::*;

mod policy;

use super::*;
use crate::desired::{Desired, Placement};
use crate::plan::{Bake, Deadlines, Guard, Plan, Ready, RouteMatch, Start, Sticky};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn percent(percent: u8) -> Weight {
    Weight::from_percent(percent).unwrap()
}

fn spec() -> Spec {
    let hold = Hold {
        least: Duration::from_secs(10),
        most: Duration::from_secs(300),
    };
    Spec {
        service: "web".parse().unwrap(),
        port: 9000,
        ready: Ready {
            path: "/ready".into(),
        },
        route: RouteMatch {
            host: "*".into(),
            path: "/".into(),
        },
        sticky: Sticky::None,
        shield: true,
        proxy: crate::proxy::ProxySpec::default(),
        plan: Plan::new(vec![
            Step::Weight {
                weight: percent(10),
                hold,
            },
            Step::Gate {
                approvers: "release-managers".into(),
            },
            Step::Weight {
                weight: percent(50),
                hold,
            },
        ])
        .unwrap(),
        bake: Bake {
            weight: percent(80),
            period: Duration::from_secs(60),
        },
        keep_warm: Duration::from_secs(120),
        deadlines: Deadlines {
            ready: Duration::from_secs(300),
            evidence: Duration::from_secs(1_800),
            rollout: Duration::from_secs(7_200),
        },
        policy: crate::policy::Policy::default(),
        guard: Guard::default(),
        notify: crate::Notify::default(),
    }
}

fn rollout() -> Rollout {
    let release = |tag: &str, digit: &str| {
        Release::new(
            format!("web:{tag}"),
            format!("sha256:{}", digit.repeat(64)),
            None,
        )
    };
    Rollout::new(
        RolloutId::new(&"web".parse().unwrap(), 7),
        "web".parse().unwrap(),
        "production".into(),
        "ada".into(),
        release("v1", "1"),
        release("v2", "2"),
        spec(),
        false,
        NOW,
    )
}

/// Four replicas of stable, and of the canary as many as are asked for; every proxy applies `weight`.
fn healthy(canary_ready: u32, weight: Weight) -> Observed {
    Observed {
        stable_replicas: 4,
        stable_wants: Some(rollout().stable.id),
        stable_ready: 4,
        stable_updated: 0,
        stable_serving: 4,
        canary_exists: true,
        canary_ready,
        weight_seen: Some(weight),
        canary_in_flight: 0,
        requests_per_second: None,
        trouble: None,
        refused: None,
    }
}

fn at(phase: Phase) -> Rollout {
    let mut rollout = rollout();
    rollout.observed = healthy(4, Weight::ZERO);
    rollout.phase = phase;
    rollout
}

fn cause() -> Cause {
    Cause::Person {
        by: "bob".into(),
        reason: None,
    }
}

fn pause(at: Phase) -> Phase {
    Phase::Paused { at: Box::new(at) }
}

/// One of every phase, and of every stage.
fn phases() -> Vec<Phase> {
    let elapsed = Duration::from_secs(5);
    let promoting = |stage| Phase::Promoting { stage, elapsed };
    let back = |stage| Phase::RollingBack {
        cause: cause(),
        stage,
        elapsed,
    };
    vec![
        Phase::Deploying { elapsed },
        Phase::Analyzing { step: 0, elapsed },
        Phase::Gated { step: 1, elapsed },
        Phase::Analyzing { step: 2, elapsed },
        Phase::Baking { elapsed },
        Phase::Warm { elapsed },
        pause(Phase::Deploying { elapsed }),
        pause(Phase::Analyzing { step: 0, elapsed }),
        pause(promoting(Promotion::Updating)),
        promoting(Promotion::Shifting),
        promoting(Promotion::Updating),
        promoting(Promotion::Returning),
        promoting(Promotion::Removing),
        back(Retreat::Regaining {
            weight: Weight::from_percent(10).unwrap(),
        }),
        back(Retreat::Yielding {
            weight: Weight::from_percent(10).unwrap(),
        }),
        back(Retreat::Restoring { canary: true }),
        back(Retreat::Restoring { canary: false }),
        back(Retreat::Leaving),
        back(Retreat::Removing),
        Phase::Promoted,
        Phase::RolledBack { cause: cause() },
    ]
}

/// One of every event that the table shows.
fn events() -> Vec<(&'static str, Event)> {
    let judged = |stage, ruling| Event::Judged { stage, ruling };
    let fail = || Ruling::Fail {
        signal: "errors".into(),
    };
    let updated = Observed {
        stable_ready: 0,
        stable_updated: 4,
        stable_wants: Some(rollout().canary.id),
        ..healthy(4, Weight::ALL)
    };
    vec![
        ("1 s passes", Event::Passed(Duration::from_secs(1))),
        ("30 s pass", Event::Passed(Duration::from_secs(30))),
        ("2 min pass", Event::Passed(Duration::from_secs(120))),
        ("1 h passes", Event::Passed(Duration::from_secs(3_600))),
        ("3 h pass", Event::Passed(Duration::from_secs(3 * 3_600))),
        (
            "canary ready, weight 0 seen",
            Event::Observed(healthy(4, Weight::ZERO)),
        ),
        (
            "canary ready, weight 100 % seen",
            Event::Observed(healthy(4, Weight::ALL)),
        ),
        (
            "stable updated, weight 100 % seen",
            Event::Observed(updated.clone()),
        ),
        (
            "stable updated, weight 0 seen",
            Event::Observed(Observed {
                weight_seen: Some(Weight::ZERO),
                ..updated
            }),
        ),
        (
            "old release ready, new one wanted",
            Event::Observed(Observed {
                stable_wants: Some(rollout().canary.id),
                ..healthy(4, Weight::ALL)
            }),
        ),
        (
            "canary gone",
            Event::Observed(Observed {
                canary_exists: false,
                ..healthy(0, Weight::ZERO)
            }),
        ),
        (
            "nothing ready",
            Event::Observed(Observed {
                stable_ready: 0,
                weight_seen: None,
                ..healthy(0, Weight::ZERO)
            }),
        ),
        ("judge: step 1 passes", judged(Stage::Step(0), Ruling::Pass)),
        ("judge: step 3 passes", judged(Stage::Step(2), Ruling::Pass)),
        ("judge: bake passes", judged(Stage::Bake, Ruling::Pass)),
        ("judge: step 1 fails", judged(Stage::Step(0), fail())),
        ("judge: bake fails", judged(Stage::Bake, fail())),
        ("judge: warm fails", judged(Stage::Warm, fail())),
        ("judge: warm passes", judged(Stage::Warm, Ruling::Pass)),
        ("judge: step 1 holds", judged(Stage::Step(0), Ruling::Hold)),
        ("promote", Event::Ordered(Command::Promote)),
        ("promote --full", Event::Ordered(Command::PromoteFull)),
        ("pause", Event::Ordered(Command::Pause)),
        ("resume", Event::Ordered(Command::Resume)),
        (
            "approve",
            Event::Ordered(Command::Approve { by: "eve".into() }),
        ),
        ("abort", Event::Ordered(Command::Abort(cause()))),
    ]
}

fn show(phase: &Phase) -> String {
    match phase {
        Phase::Analyzing { step, .. } => format!("analyzing step {}", step + 1),
        Phase::Gated { step, .. } => format!("gated at step {}", step + 1),
        Phase::Promoting { stage, .. } => format!("promoting: {stage:?}"),
        Phase::RollingBack { stage, cause, .. } => {
            format!("rolling back: {stage:?} ({:?})", cause.ending())
        }
        Phase::RolledBack { cause } => format!("rolled back ({:?})", cause.ending()),
        Phase::Paused { at } => format!("paused at {}", show(at)),
        phase => phase.name().to_owned(),
    }
}

#[test]
fn moves_as_the_table_says() {
    let mut table = String::new();
    for phase in phases() {
        writeln!(table, "{}", show(&phase)).unwrap();
        let mut still = Vec::new();
        for (name, event) in events() {
            let after = at(phase.clone()).on(event, NOW);
            if after.phase.at_start() == phase.at_start() {
                still.push(name);
            } else {
                writeln!(table, "  {name:34} → {}", show(&after.phase)).unwrap();
            }
        }
        writeln!(table, "  unmoved by: {}\n", still.join("; ")).unwrap();
    }
    insta::assert_snapshot!(table);
}

#[test]
fn asks_of_the_world_what_the_table_says() {
    let mut table = String::new();
    let worlds = [
        ("healthy", healthy(4, Weight::ZERO)),
        ("half the canary ready", healthy(2, Weight::ZERO)),
        ("no canary ready", healthy(0, Weight::ZERO)),
        (
            "half of stable updated",
            Observed {
                stable_ready: 0,
                stable_updated: 2,
                ..healthy(4, Weight::ALL)
            },
        ),
        (
            "stable updated",
            Observed {
                stable_ready: 0,
                stable_updated: 4,
                ..healthy(4, Weight::ALL)
            },
        ),
    ];
    for phase in phases() {
        writeln!(table, "{}", show(&phase)).unwrap();
        for (name, observed) in &worlds {
            let mut rollout = at(phase.clone());
            rollout.observed = observed.clone();
            let Desired {
                weight,
                canary,
                stable,
                stable_replicas,
            } = rollout.desired();
            let canary = match canary {
                Placement::Absent => "absent".to_owned(),
                Placement::Keep => "kept".to_owned(),
                Placement::Run { replicas, .. } => format!("{replicas} tasks"),
            };
            let stable = stable.map_or("left alone", |release| {
                if release == rollout.stable {
                    "old release"
                } else {
                    "new release"
                }
            });
            let replicas = stable_replicas.map_or(String::new(), |least| {
                format!(", not scaled to nothing: {least}")
            });
            writeln!(
                table,
                "  {name:24} weight {weight:>5}  canary {canary:8} stable {stable}{replicas}",
                weight = weight.to_string()
            )
            .unwrap();
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn f15_an_abort_without_stable_tasks_gets_them_back_before_the_canary_loses_its_share() {
    let elapsed = Duration::from_secs(5);
    let baking = at(Phase::Baking { elapsed });
    let share = baking.spec.bake.weight;
    let seen = |rollout: Rollout, replicas, ready| {
        let observed = Observed {
            stable_replicas: replicas,
            stable_ready: ready,
            ..healthy(4, share)
        };
        rollout.on(Event::Observed(observed), NOW)
    };
    let scaled_to_nothing = seen(seen(baking, 4, 4), 0, 0);
    let mut rollout = scaled_to_nothing.on(Event::Ordered(Command::Abort(cause())), NOW);
    for (replicas, ready, weight) in [(0, 0, 8000), (4, 0, 8000), (4, 1, 7500), (4, 3, 2500)] {
        rollout = seen(rollout, replicas, ready);
        let desired = rollout.desired();
        assert_eq!(desired.weight.basis_points(), weight, "{:?}", rollout.phase);
        assert_eq!(desired.stable_replicas, Some(4));
        assert_eq!(desired.stable, Some(rollout.stable.clone()));
        assert_eq!(desired.canary, Placement::Keep);
    }
    rollout = seen(rollout, 4, 4);
    assert_eq!(rollout.desired().weight, Weight::ZERO);
    assert!(
        matches!(
            rollout.phase,
            Phase::RollingBack {
                stage: Retreat::Leaving,
                ..
            }
        ),
        "{:?}",
        rollout.phase
    );
}

#[test]
fn f14_after_an_abort_the_weight_is_zero_and_stays_so_and_nothing_is_scaled_up() {
    for phase in phases().into_iter().filter(|phase| {
        let untouched = matches!(
            phase,
            Phase::Promoting {
                stage: Promotion::Shifting,
                ..
            }
        );
        !phase.is_ended()
            && (untouched
                || !matches!(
                    phase,
                    Phase::Promoting { .. } | Phase::RollingBack { .. } | Phase::Paused { .. }
                ))
    }) {
        let mut rollout = at(phase).on(Event::Ordered(Command::Abort(cause())), NOW);
        for (_, event) in events() {
            // A restart is a round trip through the store.
            rollout = serde_json::from_str(&serde_json::to_string(&rollout).unwrap()).unwrap();
            let desired = rollout.desired();
            assert_eq!(desired.weight, Weight::ZERO, "{:?}", rollout.phase);
            assert!(
                !matches!(desired.canary, Placement::Run { .. }),
                "{:?}",
                rollout.phase
            );
            rollout = rollout.on(event, NOW);
        }
        assert!(rollout.phase.is_ended(), "{:?}", rollout.phase);
    }
}

#[test]
fn f16_a_flip_back_gives_stable_no_more_than_it_can_carry() {
    let mut rollout = at(Phase::Promoting {
        stage: Promotion::Updating,
        elapsed: Duration::ZERO,
    });
    rollout.observed = Observed {
        stable_ready: 0,
        stable_updated: 1,
        ..healthy(4, Weight::ALL)
    };
    let rollout = rollout.on(Event::Ordered(Command::Abort(cause())), NOW);
    assert_eq!(
        rollout.desired().weight,
        Weight::ALL,
        "nothing of the old release is ready yet"
    );
    assert_eq!(rollout.desired().stable, Some(rollout.stable.clone()));
    let half = Observed {
        stable_ready: 2,
        ..healthy(4, Weight::ALL)
    };
    let rollout = rollout.on(Event::Observed(half), NOW);
    assert_eq!(rollout.desired().weight, percent(50));
    let rollout = rollout.on(Event::Observed(healthy(4, percent(50))), NOW);
    assert_eq!(rollout.desired().weight, Weight::ZERO);
}

#[test]
fn f17_a_superseded_rollout_goes_back_to_the_last_promoted_release() {
    let newer = RolloutId::new(&"web".parse().unwrap(), 8);
    for phase in phases()
        .into_iter()
        .filter(|phase| !phase.is_ended() && !matches!(phase, Phase::RollingBack { .. }))
    {
        let rollout = at(phase).on(
            Event::Ordered(Command::Abort(Cause::Superseded { by: newer.clone() })),
            NOW,
        );
        let rollout = rollout.on(Event::Observed(healthy(4, Weight::ZERO)), NOW);
        let rollout = rollout.on(Event::Observed(healthy(4, Weight::ZERO)), NOW);
        let rollout = rollout.on(
            Event::Observed(Observed {
                canary_exists: false,
                ..healthy(0, Weight::ZERO)
            }),
            NOW,
        );
        assert_eq!(rollout.ending(), Some(Ending::Superseded));
        assert_eq!(rollout.desired().canary, Placement::Absent);
    }
}

/// A release that this rollout knows nothing of.
fn foreign() -> ReleaseId {
    let digest = format!("sha256:{}", "3".repeat(64));
    Release::new("web:v3".to_owned(), digest, None).id
}

/// Four replicas, of which so many are ready, that their owner updates to a release of their own.
fn overtaken(serving: u32) -> Observed {
    Observed {
        stable_wants: Some(foreign()),
        stable_ready: 0,
        stable_serving: serving,
        ..healthy(4, Weight::ALL)
    }
}

#[test]
fn what_the_owner_deploys_meanwhile_is_left_to_stand_and_gets_requests_as_it_gets_ready() {
    for (phase, cause) in [
        (
            Phase::Warm {
                elapsed: Duration::ZERO,
            },
            None,
        ),
        (
            pause(Phase::Warm {
                elapsed: Duration::ZERO,
            }),
            None,
        ),
        (
            Phase::Promoting {
                stage: Promotion::Updating,
                elapsed: Duration::ZERO,
            },
            None,
        ),
        (
            Phase::RollingBack {
                cause: cause(),
                stage: Retreat::Restoring { canary: true },
                elapsed: Duration::ZERO,
            },
            Some(cause()),
        ),
    ] {
        let overtakes = Cause::Overtaken { release: foreign() };
        let mut rollout = at(phase).on(Event::Observed(overtaken(1)), NOW);
        assert_eq!(rollout.cause(), Some(&cause.unwrap_or(overtakes)));
        for (ready, left) in [(0, 10_000), (1, 7_500), (3, 2_500), (2, 5_000)] {
            rollout = rollout.on(Event::Observed(overtaken(ready)), NOW);
            let Desired {
                weight,
                stable,
                stable_replicas,
                ..
            } = rollout.desired();
            assert_eq!(weight.basis_points(), left, "with {ready} of 4 ready");
            assert_eq!(
                (stable, stable_replicas),
                (None, None),
                "theirs is not written over"
            );
        }
        rollout = rollout.on(Event::Observed(overtaken(4)), NOW);
        assert_eq!(rollout.desired().weight, Weight::ZERO);
        let gone = Observed {
            canary_exists: false,
            canary_ready: 0,
            weight_seen: Some(Weight::ZERO),
            ..overtaken(4)
        };
        rollout = rollout
            .on(Event::Observed(gone.clone()), NOW)
            .on(Event::Observed(gone), NOW);
        assert!(rollout.phase.is_ended(), "{:?}", rollout.phase);
    }
}

#[test]
fn f18_a_promotion_that_fails_midway_leaves_traffic_on_the_copy_that_was_proven() {
    let mut rollout = at(Phase::Promoting {
        stage: Promotion::Updating,
        elapsed: Duration::ZERO,
    });
    for _ in 0..100 {
        let broken = Observed {
            stable_ready: 0,
            stable_updated: 0,
            ..healthy(4, Weight::ALL)
        };
        rollout = rollout
            .on(Event::Observed(broken), NOW)
            .on(Event::Passed(Duration::from_secs(60)), NOW);
        assert_eq!(rollout.desired().weight, Weight::ALL);
    }
}

#[test]
fn f19_looking_again_during_the_last_phase_does_not_move_the_weight_back() {
    let mut rollout = at(Phase::Promoting {
        stage: Promotion::Updating,
        elapsed: Duration::ZERO,
    });
    for ready in [4, 3, 2, 1, 0] {
        let seen = Observed {
            stable_ready: ready,
            stable_updated: 0,
            ..healthy(4, Weight::ALL)
        };
        rollout = rollout
            .on(Event::Observed(seen), NOW)
            .on(Event::Passed(Duration::from_secs(1)), NOW);
        assert_eq!(rollout.desired().weight, Weight::ALL);
    }
}

#[test]
fn f28_the_ready_deadline_fires_although_a_crash_looping_canary_keeps_starting() {
    let mut rollout = rollout();
    for second in 0..400 {
        let crashing = Observed {
            canary_ready: 0,
            trouble: Some("exited with code 70".into()),
            canary_exists: second % 2 == 0,
            ..healthy(0, Weight::ZERO)
        };
        rollout = rollout
            .on(Event::Observed(crashing), NOW)
            .on(Event::Passed(Duration::from_secs(1)), NOW);
    }
    assert_eq!(rollout.ending(), Some(Ending::NotReady));
    let Some(Cause::NotReady { trouble }) = rollout.cause() else {
        panic!("{:?}", rollout.phase)
    };
    assert_eq!(trouble.as_deref(), Some("exited with code 70"));
}

#[test]
fn f35_what_is_refused_for_good_ends_without_waiting_for_a_deadline() {
    let refused = |phase: Phase| {
        let seen = Observed {
            refused: Some("the engine took it back".into()),
            ..healthy(4, Weight::ALL)
        };
        at(phase).on(Event::Observed(seen), NOW)
    };
    let elapsed = Duration::ZERO;
    let updating = refused(Phase::Promoting {
        stage: Promotion::Updating,
        elapsed,
    });
    assert!(
        matches!(
            &updating.phase,
            Phase::RollingBack {
                stage: Retreat::Restoring { .. },
                cause: Cause::NotReady { trouble: Some(words) },
                ..
            } if words == "the engine took it back"
        ),
        "{:?}",
        updating.phase
    );
    let deploying = refused(Phase::Deploying { elapsed });
    assert!(
        matches!(deploying.phase, Phase::RollingBack { .. }),
        "{:?}",
        deploying.phase
    );
    // Where requests are on the canary already, a wish that is refused takes nothing from it.
    let analyzing = Phase::Analyzing { step: 0, elapsed };
    assert_eq!(refused(analyzing.clone()).phase, analyzing);
}

#[test]
fn f29_no_deadline_fires_when_no_rollout_is_running() {
    for ended in [Phase::Promoted, Phase::RolledBack { cause: cause() }] {
        let rollout = at(ended.clone()).on(Event::Passed(Duration::from_secs(1_000_000)), NOW);
        assert_eq!(rollout.phase, ended);
        assert_eq!(rollout.elapsed, Duration::ZERO);
    }
}

#[test]
fn f30_abort_wins_after_promote_full_and_promote_full_finishes_from_a_hold() {
    let full = at(Phase::Analyzing {
        step: 0,
        elapsed: Duration::ZERO,
    })
    .on(Event::Ordered(Command::PromoteFull), NOW);
    assert!(matches!(full.phase, Phase::Promoting { .. }));
    let aborted = full.on(Event::Ordered(Command::Abort(cause())), NOW);
    assert_eq!(aborted.desired().weight, Weight::ZERO);
    assert_eq!(
        aborted
            .on(Event::Ordered(Command::PromoteFull), NOW)
            .cause(),
        Some(&cause())
    );

    let held = at(pause(Phase::Gated {
        step: 1,
        elapsed: Duration::ZERO,
    }));
    let mut rollout = held.on(Event::Ordered(Command::PromoteFull), NOW);
    let updated = Observed {
        stable_ready: 0,
        stable_updated: 4,
        ..healthy(4, Weight::ALL)
    };
    for seen in [
        healthy(4, Weight::ALL),
        updated.clone(),
        Observed {
            weight_seen: Some(Weight::ZERO),
            ..updated.clone()
        },
        Observed {
            canary_exists: false,
            canary_ready: 0,
            weight_seen: Some(Weight::ZERO),
            ..updated
        },
    ] {
        rollout = rollout.on(Event::Observed(seen), NOW);
    }
    assert_eq!(rollout.phase, Phase::Promoted);
}

#[test]
fn f32_a_rollback_wins_over_a_promotion_that_arrives_with_it() {
    let judged = || Event::Judged {
        stage: Stage::Bake,
        ruling: Ruling::Pass,
    };
    let abort = || Event::Ordered(Command::Abort(cause()));
    let start = || {
        at(Phase::Baking {
            elapsed: Duration::from_secs(60),
        })
    };
    for events in [[judged(), abort()], [abort(), judged()]] {
        let rollout = events
            .into_iter()
            .fold(start(), |rollout, event| rollout.on(event, NOW));
        assert_eq!(rollout.cause(), Some(&cause()));
        assert_eq!(rollout.desired().weight, Weight::ZERO);
    }
}

#[test]
fn a_canary_with_every_request_is_judged_and_goes_back_in_one_flip_unless_the_guard_looks_away() {
    let elapsed = Duration::from_secs(20);
    let warm = at(Phase::Warm { elapsed });
    let (stage, position) = warm.position().unwrap();
    assert_eq!(stage, Stage::Warm);
    assert!(position.is_watch());
    assert_eq!(position.hold.least, warm.spec.keep_warm);
    let paused = at(pause(Phase::Warm { elapsed }));
    assert_eq!(paused.position(), Some((stage, position)));
    for rollout in [warm.clone(), paused] {
        let signal = "errors_alone".to_owned();
        let after = rollout.on(
            Event::Judged {
                stage,
                ruling: Ruling::Fail { signal },
            },
            NOW,
        );
        assert_eq!(after.desired().weight, Weight::ZERO);
        assert_eq!(after.cause().map(Cause::ending), Some(Ending::RolledBack));
    }
    let mut unwatched = warm;
    unwatched.spec.guard.watch = false;
    assert_eq!(unwatched.position(), None);
}

#[test]
fn f33_a_pass_lost_on_its_way_ends_at_a_deadline_and_never_waits_silently() {
    let mut rollout = at(Phase::Analyzing {
        step: 0,
        elapsed: Duration::ZERO,
    });
    rollout = rollout.on(Event::Passed(Duration::from_secs(1_800)), NOW);
    assert_eq!(rollout.cause(), Some(&Cause::InsufficientEvidence));
}

#[test]
fn f39_a_step_of_the_wall_clock_moves_no_timer() {
    let rollout = at(Phase::Analyzing {
        step: 0,
        elapsed: Duration::ZERO,
    });
    let hour = jiff::SignedDuration::from_hours(1);
    for now in [NOW + hour, NOW - hour] {
        let after = rollout
            .clone()
            .on(Event::Passed(Duration::from_secs(1)), now);
        assert_eq!(
            after.phase,
            Phase::Analyzing {
                step: 0,
                elapsed: Duration::from_secs(1)
            }
        );
    }
}

/// A rollout by a plan of these weights, with a gate after one of them, whose canary has just become ready.
fn begun(points: &[u16], gate_after: Option<usize>, rate: Option<f64>, start: Start) -> Rollout {
    let hold = Hold {
        least: Duration::from_secs(10),
        most: Duration::from_secs(300),
    };
    let mut steps = Vec::new();
    for (index, points) in points.iter().enumerate() {
        let weight = Weight::from_basis_points(*points).unwrap();
        steps.push(Step::Weight { weight, hold });
        if gate_after == Some(index) {
            steps.push(Step::Gate {
                approvers: "release-managers".into(),
            });
        }
    }
    let mut rollout = rollout();
    rollout.spec.plan = Plan::new(steps).unwrap();
    rollout.spec.guard.start = start;
    let observed = Observed {
        requests_per_second: rate,
        ..healthy(4, Weight::ZERO)
    };
    rollout.on(Event::Observed(observed), NOW)
}

#[test]
fn passes_over_steps_that_are_too_small_for_the_traffic_and_says_so() {
    let first = |rate, start| {
        let rollout = begun(&[100, 1_000, 5_000], None, rate, start);
        let Phase::Analyzing { step, .. } = rollout.phase else {
            panic!("{:?}", rollout.phase)
        };
        assert_eq!(rollout.desired().weight, rollout.spec.plan.weight_at(step));
        (step, rollout.skipped)
    };
    // 1 % of 50 a second are half a request a second; 10 % of 5 are, too.
    assert_eq!(first(Some(50.0), Start::Auto), (0, None));
    let skipped = Skipped {
        steps: 1,
        requests_per_second: 5.0,
        canary_rate_min: 0.5,
    };
    assert_eq!(first(Some(5.0), Start::Auto), (1, Some(skipped)));
    assert_eq!(
        first(Some(0.1), Start::Auto).0,
        1,
        "half of all is no beginning"
    );
    // Nothing known, nothing there to know it by, and a guard that wants it so.
    assert_eq!(first(None, Start::Auto), (0, None));
    assert_eq!(first(Some(0.0), Start::Auto), (0, None));
    assert_eq!(first(Some(5.0), Start::First), (0, None));
}

fn any_event() -> impl Strategy<Value = Event> {
    let wanted = [rollout().stable.id, rollout().canary.id, foreign()];
    let all: Vec<Event> = events().into_iter().map(|(_, event)| event).collect();
    let observed = (
        prop::sample::select(wanted.to_vec()),
        (0u32..6, 0u32..6, 0u32..6),
        0u32..6,
        any::<bool>(),
        0u32..3,
        prop::option::of(0u16..=10_000),
        prop::option::of(0.0..100.0),
    )
        .prop_map(
            |(wants, (ready, updated, serving), canary, exists, in_flight, seen, rate)| {
                Event::Observed(Observed {
                    stable_replicas: 4,
                    stable_wants: Some(wants),
                    stable_ready: ready,
                    stable_updated: updated,
                    stable_serving: serving,
                    canary_exists: exists,
                    canary_ready: canary,
                    weight_seen: seen.and_then(Weight::from_basis_points),
                    canary_in_flight: in_flight,
                    requests_per_second: rate,
                    trouble: None,
                    refused: None,
                })
            },
        );
    prop_oneof![
        prop::sample::select(all),
        observed,
        (1u64..10_000).prop_map(|ms| Event::Passed(Duration::from_millis(ms)))
    ]
}

fn is_word(event: &Event) -> bool {
    matches!(
        event,
        Event::Ordered(Command::Promote | Command::PromoteFull)
    )
}

proptest! {
    #[test]
    fn no_canary_gets_everything_without_passing_every_step_or_a_persons_word(
        events in prop::collection::vec(any_event(), 0..200)
    ) {
        let mut rollout = rollout();
        let mut passed = Vec::new();
        let mut word = false;
        for event in events {
            let judged = if let Event::Judged { stage, ruling: Ruling::Pass } = &event { Some(*stage) } else { None };
            word |= is_word(&event);
            let before = rollout.phase.at_start();
            rollout = rollout.on(event, NOW);
            if rollout.phase.at_start() != before && let Some(stage) = judged {
                passed.push(stage);
            }
            if rollout.desired().weight == Weight::ALL && !word {
                prop_assert_eq!(&passed, &vec![Stage::Step(0), Stage::Step(2), Stage::Bake]);
            }
        }
    }

    #[test]
    fn no_traffic_passes_over_a_gate_or_over_a_step_that_is_large_enough(
        points in prop::collection::btree_set(1u16..10_000, 1..6),
        gate_after in prop::option::of(0usize..6),
        rate in prop_oneof![Just(0.0), Just(f64::NAN), 1e-4..1.0, 1.0..1e4],
    ) {
        let points: Vec<u16> = points.into_iter().collect();
        let rollout = begun(&points, gate_after, Some(rate), Start::Auto);
        let Phase::Analyzing { step, .. } = rollout.phase else { panic!("{:?}", rollout.phase) };
        let steps = rollout.spec.plan.steps();
        prop_assert_eq!(rollout.skipped.map_or(0, |skipped| skipped.steps), step);
        for skipped in &steps[..step] {
            let Step::Weight { weight, .. } = skipped else { panic!("a gate was passed over") };
            prop_assert!(weight.ratio() * rate < 0.5);
        }
        let is_weight = matches!(steps[step], Step::Weight { .. });
        prop_assert!(is_weight);
    }

    #[test]
    fn the_weight_is_never_above_what_was_decided_nor_above_what_is_ready(
        events in prop::collection::vec(any_event(), 0..200)
    ) {
        let mut rollout = rollout();
        for event in events {
            rollout = rollout.on(event, NOW);
            let weight = rollout.desired().weight;
            let decided = match rollout.running_phase() {
                Phase::Deploying { .. } | Phase::Promoted | Phase::RolledBack { .. } => Weight::ZERO,
                Phase::Analyzing { step, .. } | Phase::Gated { step, .. } => rollout.spec.plan.weight_at(*step),
                Phase::Baking { .. } => rollout.spec.bake.weight,
                Phase::RollingBack { stage: Retreat::Leaving | Retreat::Removing, .. } => Weight::ZERO,
                _ => Weight::ALL,
            };
            prop_assert!(weight <= decided, "{weight} in {:?}", rollout.phase);
            if rollout.observed.canary_ready == 0 {
                prop_assert_eq!(weight, Weight::ZERO);
            }
        }
    }

    #[test]
    fn nothing_is_written_over_what_the_owner_deployed(events in prop::collection::vec(any_event(), 0..100)) {
        let mut rollout = rollout();
        for event in events {
            rollout = rollout.on(event.clone(), NOW);
            if matches!(&event, Event::Observed(seen) if seen.stable_wants == Some(foreign())) {
                prop_assert_eq!(rollout.desired().stable, None);
            }
        }
    }

    #[test]
    fn an_ended_rollout_is_steady(events in prop::collection::vec(any_event(), 0..100), promoted in any::<bool>()) {
        let ended = if promoted { Phase::Promoted } else { Phase::RolledBack { cause: cause() } };
        let mut rollout = at(ended.clone());
        let desired = rollout.desired();
        for event in events {
            rollout = rollout.on(event, NOW);
            prop_assert_eq!(&rollout.phase, &ended);
            prop_assert_eq!(&rollout.desired(), &desired);
        }
    }

    #[test]
    fn a_round_trip_through_the_store_changes_nothing(events in prop::collection::vec(any_event(), 0..60)) {
        let mut rollout = rollout();
        for event in events {
            rollout = rollout.on(event, NOW);
        }
        let text = serde_json::to_string(&rollout).unwrap();
        prop_assert_eq!(serde_json::from_str::<Rollout>(&text).unwrap(), rollout);
    }
}
