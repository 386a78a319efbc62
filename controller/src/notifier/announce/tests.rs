use rollout::rollout::Retreat;
use rollout::{Cause, Duration, RolloutId};

use super::*;
use crate::origin::Origin;
use crate::store::outbox::Destination;
use crate::words::samples;

const ALL: &str = "{ gitlab: { ticket: true, release: true, alert: { url_file: a, key_file: b } }, \
                   slack: { url_file: c }, webhook: { url: 'https://h.example/x', secret_file: d } }";

fn saved(phase: Phase, notify: &str) -> Saved {
    let text = format!("service: web\nport: 80\nnotify: {notify}\n");
    let spec =
        crate::spec::read(&text, "friday.yml", &crate::spec::ReadOptions::default()).unwrap();
    let mut rollout = samples::rollout(phase);
    rollout.spec.notify = spec.notify;
    let variable = |name: &str| {
        let value = match name {
            "CI_PROJECT_ID" => "4711",
            "CI_PIPELINE_ID" => "90001",
            "CI_JOB_ID" => "500123",
            "CI_COMMIT_SHA" => "3f1c9e0b7a5d4c2e8f6a1b0c9d8e7f6a5b4c3d2e",
            "CI_COMMIT_REF_NAME" => "main",
            _ => return None,
        };
        Some(value.to_owned())
    };
    Saved {
        number: 3,
        rollout,
        judge: None,
        verdict: None,
        origin: Origin::from_environment(&variable),
        lease: None,
    }
}

fn audience() -> Audience {
    Audience {
        has_gitlab: true,
        has_token: true,
        board: Some("https://friday.example.com".into()),
    }
}

fn told(messages: &[NewMessage]) -> Vec<String> {
    let shown = |message: &NewMessage| {
        let destination = message.destination.as_str();
        format!("{destination} {}", message.topic)
    };
    messages.iter().map(shown).collect()
}

const DEPLOYING: Phase = Phase::Deploying {
    elapsed: Duration::ZERO,
};

fn evidence() -> Cause {
    Cause::Evidence {
        signal: "errors".into(),
    }
}

#[test]
fn tells_each_of_its_own_moves() {
    let start = saved(DEPLOYING, ALL);
    assert_eq!(
        told(&announce(&audience(), None, &start)),
        [
            "gitlab status",
            "gitlab note",
            "gitlab deployment",
            "gitlab ticket",
            "slack deploying",
            "webhook deploying"
        ]
    );
    // Time that passes is no move.
    let later = saved(
        Phase::Deploying {
            elapsed: Duration::from_secs(9),
        },
        ALL,
    );
    assert!(announce(&audience(), Some(&start), &later).is_empty());

    let promoted = saved(Phase::Promoted, ALL);
    let messages = announce(&audience(), Some(&start), &promoted);
    assert!(told(&messages).contains(&"gitlab release".to_owned()));
    assert!(!told(&messages).iter().any(|one| one.starts_with("alert")));
    assert!(
        messages
            .iter()
            .all(|message| message.rollout == RolloutId::from_text("tweets-worker-3"))
    );
}

#[test]
fn an_alert_is_raised_once_and_ends_with_the_way_back() {
    let start = saved(DEPLOYING, ALL);
    let back = saved(
        Phase::RollingBack {
            cause: evidence(),
            stage: Retreat::Leaving,
            elapsed: Duration::ZERO,
        },
        ALL,
    );
    let over = saved(Phase::RolledBack { cause: evidence() }, ALL);
    let alerts = |before: &Saved, after: &Saved| {
        let messages = announce(&audience(), Some(before), after);
        let alerts = messages
            .into_iter()
            .filter(|one| one.destination == Destination::Alert);
        alerts.map(|one| (one.topic, one.body)).collect::<Vec<_>>()
    };
    let (topic, body) = alerts(&start, &back).pop().unwrap();
    let payload = &body["what"]["payload"];
    assert_eq!(
        (topic.as_str(), payload["severity"].as_str()),
        ("alert", Some("high"))
    );
    let (topic, body) = alerts(&back, &over).pop().unwrap();
    assert_eq!(topic, "alert-end");
    assert_eq!(
        body["what"]["payload"]["fingerprint"],
        payload["fingerprint"]
    );
    assert!(body["what"]["payload"]["end_time"].is_string());
    // Nobody is woken by a release that a person called back.
    let cause = Cause::Person {
        by: "ann".into(),
        reason: None,
    };
    assert!(alerts(&start, &saved(Phase::RolledBack { cause }, ALL)).is_empty());
}

#[test]
fn says_only_what_it_may() {
    let start = saved(DEPLOYING, ALL);
    let mut nobody_asked = start.clone();
    nobody_asked.origin = None;
    let gitlab = |audience: &Audience, saved: &Saved| {
        let mut said = told(&announce(audience, None, saved));
        said.retain(|one| one.starts_with("gitlab"));
        said
    };
    assert!(gitlab(&audience(), &nobody_asked).is_empty());
    assert!(gitlab(&Audience::default(), &start).is_empty());
    let no_token = Audience {
        has_token: false,
        ..audience()
    };
    assert_eq!(gitlab(&no_token, &start), ["gitlab deployment"]);
    assert!(announce(&audience(), None, &saved(DEPLOYING, "{}")).is_empty());
}

#[test]
fn what_people_write_is_no_order_to_gitlab_and_calls_nobody() {
    let cause = Cause::Person {
        by: "ann".into(),
        reason: Some("@all look\n/close\n| `x` <script> [a](javascript:b)".into()),
    };
    let mut rolled_back = saved(Phase::RolledBack { cause }, ALL);
    rolled_back.rollout.environment = "pro`d\n/merge <!channel>".into();
    // As one that was saved before such an address was refused.
    rolled_back.origin.as_mut().unwrap().job_url =
        Some("https://x.example/a)\n/close\r\n\n@all\n\t/lock b".into());
    for said in [
        text::note(&audience(), &rolled_back),
        text::ticket(&audience(), &rolled_back),
    ] {
        assert!(
            !said.replace("/close@all/", "").contains("@all")
                && !said.contains("<script>")
                && !said.contains("](javascript"),
            "{said}"
        );
        assert!(
            !said
                .lines()
                .any(|line| line.trim_start().starts_with(['/', '@'])),
            "{said}"
        );
        assert_eq!(said.matches("<!--").count(), 1, "{said}");
    }
    let ticket = text::ticket(&audience(), &rolled_back);
    assert!(
        ticket.contains("](https://x.example/a%29/close@all/lock%20b)"),
        "{ticket}"
    );
    let chat = text::chat(&audience(), None, &rolled_back).unwrap();
    assert!(
        !chat.contains("<!channel>") && chat.contains("&lt;!channel&gt;"),
        "{chat}"
    );
    rolled_back.rollout.environment = "@all\n#1 !2 ~x review/a_b-1.2".into();
    assert_eq!(
        text::title(&rolled_back),
        "Release tweets-worker-3 to all12xreview/a_b-1.2"
    );
}

#[test]
fn a_note_holds_the_table_the_evidence_and_the_link() {
    let mut saved = saved(Phase::Promoted, ALL);
    saved.verdict = Some(samples::verdict(rollout::judge::Decision::Pass {
        by: rollout::judge::Grounds::Proof,
    }));
    let note = text::note(&audience(), &saved);
    for part in [
        "<!-- friday:rollout=tweets-worker-3 environment=production since=",
        "`tweets-worker-3` to `production`: **promoted**",
        "| image | `worker:v2` | `worker:v1` |",
        "| requests in this step | ",
        "started by `ann`",
        "Evidence of harm is ",
        "[Board](https://friday.example.com/#tweets-worker/tweets-worker-3)",
        "[Picture](https://friday.example.com/api/v1/rollouts/tweets-worker-3/card.svg)",
    ] {
        assert!(note.contains(part), "{part}\n{note}");
    }
    assert!(text::line(&saved).starts_with("promoted: "));
    saved.rollout.admission.approved_by = vec!["bob".to_owned(), "cleo".to_owned()];
    let ticket = text::ticket(&audience(), &saved);
    for part in ["asked for by `ann`", "Approved by `bob`, `cleo`."] {
        assert!(ticket.contains(part), "{part}\n{ticket}");
    }
}
