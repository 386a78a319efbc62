use rollout::Millis;
use rollout::judge::SickNode;

use super::samples::{rollout, verdict as sample};
use super::*;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn causes() -> Vec<Cause> {
    let evidence = [
        "errors",
        "latency",
        "saturation",
        "warm_up",
        "restarts",
        "check",
        "answers",
        "traffic",
    ];
    let mut causes: Vec<_> = evidence
        .map(|signal| Cause::Evidence {
            signal: signal.into(),
        })
        .into();
    causes.extend([
        Cause::Person {
            by: "ann".into(),
            reason: None,
        },
        Cause::Person {
            by: "ann".into(),
            reason: Some("wrong branch".into()),
        },
        Cause::Rejected {
            by: "bob".into(),
            reason: Some("not on a Friday".into()),
        },
        Cause::Superseded {
            by: rollout::RolloutId::from_text("tweets-worker-4"),
        },
        Cause::Overtaken {
            release: rollout::ReleaseId::of_digest("0123456789ab"),
        },
        Cause::InsufficientEvidence,
        Cause::GateUnanswered,
        Cause::Deadline,
        Cause::NotReady { trouble: None },
        Cause::NotReady {
            trouble: Some("exit code 1: no such file model.bin".into()),
        },
    ]);
    causes
}

#[test]
fn says_every_cause_as_the_end_of_a_sentence() {
    let said: Vec<_> = causes().iter().map(cause).collect();
    insta::assert_snapshot!("causes", said.join("\n"));
}

#[test]
fn says_which_steps_a_rollout_passed_over() {
    let mut rollout = rollout(Phase::Promoted);
    rollout.skipped = Some(Skipped {
        steps: 1,
        requests_per_second: 4.987,
        canary_rate_min: 0.5,
    });
    assert_eq!(
        message(&rollout, None),
        "promoted: worker:v2 is the stable release; began with step 2 (10%): 1% of 4.99 requests/s would be fewer than \
         0.5/s for the canary"
    );
    let rates = [1234.4, 10.0, 4.987, 0.5, 0.0].map(rate);
    assert_eq!(rates, ["1234", "10", "4.99", "0.5", "0"]);
}

#[test]
fn has_an_exit_code_of_its_own_for_every_ending() {
    let endings = [
        Ending::Promoted,
        Ending::RolledBack,
        Ending::Aborted,
        Ending::Superseded,
        Ending::InsufficientEvidence,
        Ending::NotReady,
    ];
    assert_eq!(endings.map(exit_code), [0, 10, 11, 12, 13, 14]);
}

#[test]
fn says_where_every_phase_is_and_what_it_waits_for() {
    let elapsed = seconds(34);
    let cause = Cause::Evidence {
        signal: "errors".into(),
    };
    let analyzing = Phase::Analyzing { step: 1, elapsed };
    let rolling_back = |stage| Phase::RollingBack {
        cause: cause.clone(),
        stage,
        elapsed,
    };
    let phases = [
        Phase::Deploying { elapsed },
        Phase::Analyzing { step: 0, elapsed },
        analyzing.clone(),
        Phase::Gated { step: 2, elapsed },
        Phase::Baking { elapsed },
        Phase::Warm { elapsed },
        Phase::Paused {
            at: Box::new(analyzing),
        },
        Phase::Promoting {
            stage: Promotion::Shifting,
            elapsed,
        },
        Phase::Promoting {
            stage: Promotion::Updating,
            elapsed,
        },
        Phase::Promoting {
            stage: Promotion::Returning,
            elapsed,
        },
        Phase::Promoting {
            stage: Promotion::Removing,
            elapsed,
        },
        rolling_back(Retreat::Regaining {
            weight: rollout::Weight::from_percent(25).unwrap(),
        }),
        rolling_back(Retreat::Yielding {
            weight: rollout::Weight::from_percent(25).unwrap(),
        }),
        rolling_back(Retreat::Restoring { canary: true }),
        rolling_back(Retreat::Leaving),
        rolling_back(Retreat::Removing),
        Phase::Promoted,
        Phase::RolledBack {
            cause: cause.clone(),
        },
        Phase::RolledBack {
            cause: Cause::Person {
                by: "ann".into(),
                reason: None,
            },
        },
    ];
    let missing = vec![
        Missing::CanaryRequests {
            have: 6,
            needed: 10,
        },
        Missing::Proof {
            margin: Margin::Errors { excess: 0.02 },
        },
    ];
    let verdict = sample(Decision::Inconclusive { missing });
    let said: Vec<_> = phases
        .into_iter()
        .map(|phase| {
            format!(
                "{}\n  {}",
                phase.name(),
                message(&rollout(phase), Some(&verdict))
            )
        })
        .collect();
    insta::assert_snapshot!("phases", said.join("\n"));

    // With the judge's numbers where it was the judge.
    let fail = sample(Decision::Fail {
        signal: Signal::Errors,
        sick_node: None,
    });
    insta::assert_snapshot!(
        message(&rollout(Phase::RolledBack { cause }), Some(&fail)),
        @"rolled back to worker:v1: the canary fails more than stable: 12 of 60 requests, against 2 of 540"
    );
    let mut unseen = rollout(Phase::Promoting {
        stage: Promotion::Shifting,
        elapsed,
    });
    unseen.observed.weight_seen = None;
    insta::assert_snapshot!(
        message(&unseen, None),
        @"promoting: moves every request to the canary; no friday-proxy reports, or they differ in their weights"
    );
    let mut starting = rollout(Phase::Deploying { elapsed });
    starting.observed.canary_ready = 0;
    starting.observed.trouble = Some("exit code 1".into());
    insta::assert_snapshot!(
        message(&starting, None),
        @"waits for the canary's tasks: 0 of 1 ready after 34s, gives up at 5m; last trouble: exit code 1"
    );
}

#[test]
fn says_every_verdict() {
    let all_missing = vec![
        Missing::WarmUp {
            remaining: seconds(12),
        },
        Missing::Calm {
            log_e: 3.0,
            below: 10_f64.ln(),
        },
        Missing::BothArms,
        Missing::Weight,
        Missing::Gauges,
        Missing::Check {
            name: "consumer lag".into(),
            silent: Some(Millis(seconds(40))),
        },
        Missing::Check {
            name: "consumer lag".into(),
            silent: None,
        },
        Missing::Answers {
            header: "x-sentiment".into(),
        },
        Missing::Time {
            remaining: seconds(6),
        },
        Missing::CanaryRequests {
            have: 6,
            needed: 10,
        },
        Missing::Proof {
            margin: Margin::Errors { excess: 0.005 },
        },
        Missing::Estimate {
            margin: Margin::Latency {
                percentile: Percentile::P99,
                factor: 1.3,
            },
        },
    ];
    let mut decisions: Vec<_> = all_missing
        .into_iter()
        .map(|missing| Decision::Inconclusive {
            missing: vec![missing],
        })
        .collect();
    decisions.extend(
        [
            HoldReason::Silence,
            HoldReason::StableInTrouble {
                rate: 0.12,
                before: 0.004,
            },
            HoldReason::SplitMismatch {
                expected: 120.4,
                seen: 300,
            },
            HoldReason::MemoryTrend {
                seconds_to_limit: 412.7,
            },
        ]
        .map(|reason| Decision::Hold { reason }),
    );
    decisions.extend(
        [
            Grounds::Proof,
            Grounds::TimeOut { bound: Some(0.02) },
            Grounds::TimeOut { bound: None },
            Grounds::Calm,
        ]
        .map(|by| Decision::Pass { by }),
    );
    decisions.extend(
        [
            Signal::Errors,
            Signal::WarmUp,
            Signal::Latency {
                percentile: Percentile::P90,
            },
            Signal::Saturation { gauge: Gauge::Cpu },
            Signal::Limit {
                gauge: Gauge::Memory,
                node: "node-b".into(),
                ratio: 0.971,
            },
            Signal::Restarts {
                canary: 3,
                stable: 0,
            },
            Signal::ErrorsAlone { allowed: 0.022 },
            Signal::LatencyAlone {
                percentile: Percentile::P50,
            },
            Signal::Check {
                name: "consumer lag".into(),
                value: 1234.56,
                limit: 1000.0,
            },
            Signal::Answers {
                kind: "negative".into(),
                canary: 0.4,
                stable: 0.251,
            },
            Signal::Answers {
                kind: KIND_NONE.into(),
                canary: 1.0,
                stable: 0.0,
            },
            Signal::Answers {
                kind: KIND_OTHER.into(),
                canary: 0.3,
                stable: 0.01,
            },
        ]
        .map(|signal| Decision::Fail {
            signal,
            sick_node: None,
        }),
    );
    let sick_node = SickNode {
        node: "node-b".into(),
        bad: 11,
        bad_of_all: 12,
        nodes: 3,
        chance: 1e-4,
    };
    decisions.push(Decision::Fail {
        signal: Signal::Errors,
        sick_node: Some(sick_node),
    });
    let said: Vec<_> = decisions
        .into_iter()
        .map(|decision| verdict(&sample(decision)))
        .collect();
    insta::assert_snapshot!("verdicts", said.join("\n"));
}

#[test]
fn says_what_is_known_of_a_check() {
    let seen = CheckSeen {
        name: "consumer lag".into(),
        bound: Bound::Max(1000.0),
        canary: Some(1200.0),
        stable: None,
        broken: 2,
        log_e: 0.0,
        silent: seconds(8),
        trouble: None,
    };
    let compared = CheckSeen {
        bound: Bound::AboveStable(0.25),
        canary: Some(0.01234),
        stable: Some(0.01),
        broken: 0,
        ..seen.clone()
    };
    let silent = CheckSeen {
        silent: seconds(61),
        trouble: Some("no route".into()),
        ..compared.clone()
    };
    let never = CheckSeen {
        canary: None,
        bound: Bound::Min(-0.5),
        ..silent.clone()
    };
    let grace = seconds(30);
    let state = |seen: &CheckSeen| check_state(seen, grace);
    let worse = CheckSeen {
        canary: Some(0.02),
        log_e: 3_f64.ln(),
        ..compared.clone()
    };
    let lonely = CheckSeen {
        stable: None,
        ..compared.clone()
    };
    let all = [seen, compared, worse, silent, lonely, never];
    assert_eq!(
        all.each_ref().map(state),
        [
            CheckState::Beyond,
            CheckState::Kept,
            CheckState::Beyond,
            CheckState::NoData,
            CheckState::NoData,
            CheckState::NoData,
        ]
    );
    insta::assert_snapshot!(all.map(|seen| check(&seen)).join("\n"), @r#"
    check "consumer lag": 1200 on the canary, to be at most 1000: beyond it 2 times in a row
    check "consumer lag": 0.0123 on the canary, 0.01 on stable, to be at most 25% above stable's (0.0125): kept; evidence that it is worse: 1.0 to 1
    check "consumer lag": 0.02 on the canary, 0.01 on stable, to be at most 25% above stable's (0.0125): beyond it; evidence that it is worse: 3.0 to 1
    check "consumer lag": 0.0123 on the canary, 0.01 on stable, to be at most 25% above stable's (0.0125): kept; evidence that it is worse: 1.0 to 1; no data since 1m1s ago (no route)
    check "consumer lag": 0.0123 on the canary, to be at most 25% above stable's
    check "consumer lag": no data yet, to be at least -0.5 (no route)
    "#);
    let numbers = [0.0, 1.0, -7.5, 12.345, 1234.5, 0.00123, 1e-9, 2.5e12].map(number);
    assert_eq!(
        numbers,
        [
            "0", "1", "-7.5", "12.3", "1234", "0.0012", "1.000e-9", "2.500e12"
        ]
    );
}

#[test]
fn shows_numbers_with_no_more_digits_than_tell_something() {
    let odds = [
        f64::NEG_INFINITY,
        -1.0,
        0.0,
        0.5,
        100_f64.ln(),
        30.0,
        f64::NAN,
    ]
    .map(odds);
    assert_eq!(
        odds,
        [
            "none",
            "none",
            "1.0 to 1",
            "1.6 to 1",
            "100 to 1",
            "10^13 to 1",
            "unknown"
        ]
    );
    let percents = [0.0, 0.00012, 0.005, 0.0123, 0.1, 0.5, 1.0].map(percent);
    assert_eq!(
        percents,
        ["0%", "0.01%", "0.5%", "1.2%", "10%", "50%", "100%"]
    );
    assert_eq!(
        [0, 1500, 13 << 20, 3 << 29, 300 << 30].map(bytes),
        ["0 B", "1.5 KiB", "13 MiB", "1.5 GiB", "300 GiB"]
    );
    assert_eq!(rounded(Duration::from_millis(89_600)), "1m30s");
}

#[test]
fn a_gate_says_whom_it_does_not_take() {
    let mut rollout = rollout(Phase::Gated {
        step: 2,
        elapsed: seconds(5),
    });
    let author = format!("(others than {})", rollout.author);
    assert!(!message(&rollout, None).contains(&author));
    rollout.admission.approvals_min = 1;
    let message = message(&rollout, None);
    assert!(message.contains(&author), "{message}");
}
