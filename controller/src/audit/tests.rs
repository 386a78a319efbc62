//! The chain breaks where it was touched, and the records say what the log says.

use serde_json::json;

use super::csv::cell;
use super::*;

fn log() -> Vec<Event> {
    let entries = [
        (None, "lock", "ada", json!({ "service": "web", "fence": 1 })),
        (
            Some("web-1"),
            "started",
            "ada",
            json!({ "service": "web", "environment": "production", "image": "web:v2", "digest": "sha256:22", "commit": "c0ffee", "share": 0.1 }),
        ),
        (
            Some("web-1"),
            "emergency",
            "ada",
            json!({ "reason": "users cannot pay" }),
        ),
        (
            Some("web-1"),
            "order",
            "bob",
            json!({ "order": "approve", "reason": "looks =good" }),
        ),
        (
            Some("web-1"),
            "phase",
            "friday",
            json!({ "from": { "name": "promoting", "stage": "removing", "elapsed_ms": 1 }, "to": { "name": "promoted" } }),
        ),
        (
            Some("web-2"),
            "started",
            "=cmd()",
            json!({ "service": "web", "environment": "staging", "image": "web:v3", "digest": "sha256:33" }),
        ),
        (
            Some("web-2"),
            "phase",
            "friday",
            json!({ "to": { "name": "rolled_back", "cause": { "kind": "person", "by": "bob", "reason": "no, \"never\"" } } }),
        ),
    ];
    let mut before = String::new();
    let chained = entries
        .into_iter()
        .zip(1..)
        .map(|((rollout, kind, author, data), seq)| {
            let at: Timestamp = format!("2026-11-20T16:00:0{seq}.5Z").parse().unwrap();
            before = event_hash(
                &before,
                seq,
                &at.to_string(),
                rollout,
                kind,
                author,
                &data.to_string(),
            );
            Event {
                seq,
                at,
                rollout: rollout.map(RolloutId::from_text),
                kind: kind.to_owned(),
                author: author.to_owned(),
                data,
                hash: before.clone(),
            }
        });
    chained.collect()
}

fn check(log: &[Event], expected: Option<Head>) -> Result<Head, Broken> {
    let mut chain = Chain::new(expected);
    for event in log {
        chain.take(event)?;
    }
    chain.finish()
}

#[test]
fn names_the_first_entry_that_does_not_fit() {
    let whole = log();
    let head = check(&whole, None).unwrap();
    assert_eq!((head.seq, &head.hash), (7, &whole[6].hash));
    type Touch = fn(&mut Vec<Event>);
    let table: [(Touch, Broken); 8] = [
        (
            |log| log[2].author = "eve".into(),
            Broken::Changed { seq: 3 },
        ),
        (
            |log| log[3].data = json!({ "order": "reject" }),
            Broken::Changed { seq: 4 },
        ),
        (
            |log| log[1].kind = "starter".into(),
            Broken::Changed { seq: 2 },
        ),
        (|log| log[4].rollout = None, Broken::Changed { seq: 5 }),
        (|log| log[0].at = log[1].at, Broken::Changed { seq: 1 }),
        (
            |log| log[5].hash = log[4].hash.clone(),
            Broken::Changed { seq: 6 },
        ),
        (
            |log| drop(log.remove(3)),
            Broken::Missing {
                expected: 4,
                before: 3,
                found: 5,
            },
        ),
        (
            |log| log.swap(1, 2),
            Broken::Missing {
                expected: 2,
                before: 1,
                found: 3,
            },
        ),
    ];
    for (touch, broken) in table {
        let mut touched = whole.clone();
        touch(&mut touched);
        assert_eq!(check(&touched, None), Err(broken));
    }
}

#[test]
fn an_earlier_look_finds_a_log_that_was_cut_off_or_written_anew() {
    let whole = log();
    let seen = |seq: i64, hash: &str| {
        Some(Head {
            seq,
            hash: hash.to_owned(),
        })
    };
    assert!(check(&whole, seen(5, &whole[4].hash)).is_ok());
    assert_eq!(
        check(&whole[..4], seen(5, &whole[4].hash)),
        Err(Broken::CutOff { last: 4, seq: 5 })
    );
    assert_eq!(
        check(&whole, seen(5, &whole[3].hash)),
        Err(Broken::Rewritten { seq: 5 })
    );
    assert_eq!(check(&[], None), Ok(Head::default()));
}

#[test]
fn every_earlier_look_counts() {
    let whole = log();
    let seen = |seq: usize| Head {
        seq: whole[seq - 1].seq,
        hash: whole[seq - 1].hash.clone(),
    };
    let check = |log: &[Event], heads: &[Head]| {
        let mut chain = Chain::new(heads.to_vec());
        for event in log {
            chain.take(event)?;
        }
        chain.finish()
    };
    assert!(check(&whole, &[seen(3), seen(7), seen(3)]).is_ok());
    let cut = Err(Broken::CutOff { last: 5, seq: 7 });
    assert_eq!(check(&whole[..5], &[seen(3), seen(7)]), cut);
    assert_eq!(check(&whole[..5], &[seen(7), seen(6)]), cut);
    let other = Head {
        hash: seen(4).hash,
        ..seen(3)
    };
    assert_eq!(
        check(&whole, &[seen(3), other]),
        Err(Broken::Rewritten { seq: 3 })
    );
}

#[test]
fn a_rollout_that_is_further_than_its_log_shows_that_the_log_was_cut_off() {
    let whole = log();
    let ended: Phase = serde_json::from_value(whole[6].data["to"].clone()).unwrap();
    let deploying = Phase::Deploying {
        elapsed: rollout::Duration::from_secs(3),
    };
    let check = |log: &[Event], second: &Phase| {
        let rollouts = [("web-1", &Phase::Promoted), ("web-2", second)];
        let mut rows = Rows::new(rollouts.map(|(id, phase)| (id.to_owned(), phase.clone())));
        for event in log {
            rows.take(event);
        }
        let head = Head {
            seq: i64::try_from(log.len()).unwrap(),
            hash: String::new(),
        };
        rows.finish(&head)
    };
    let untold = |last: i64, rollout: &str, phase: &str| {
        Err(Broken::Untold {
            last,
            rollout: rollout.to_owned(),
            phase: phase.to_owned(),
        })
    };
    assert_eq!(check(&whole, &ended), Ok(()));
    // The log may have gone on since the rollouts were read.
    assert_eq!(check(&whole, &deploying), Ok(()));
    assert_eq!(check(&whole[..6], &deploying), Ok(()));
    assert_eq!(
        check(&whole[..6], &ended),
        untold(6, "web-2", "rolled back")
    );
    assert_eq!(
        check(&whole[..5], &deploying),
        untold(5, "web-2", "deploying")
    );
    assert_eq!(
        check(&whole[..4], &deploying),
        untold(4, "web-1", "promoted")
    );
    assert_eq!(check(&[], &deploying), untold(0, "web-1", "promoted"));
}

#[test]
fn says_who_released_what() {
    let mut audit = Audit::default();
    for event in log() {
        audit.take(&event);
    }
    let records = audit.finish();
    let said: Vec<_> = records
        .iter()
        .map(|record| {
            format!(
                "{} {} {} {} by {} {:?} {:?} approved {:?} emergency {:?} events {}..{}",
                record.rollout,
                record.image,
                record.digest,
                record.environment,
                record.author,
                record.outcome.as_deref().unwrap_or("runs"),
                record.cause,
                record.approved_by,
                record.emergency,
                record.first_event,
                record.last_event,
            )
        })
        .collect();
    insta::assert_snapshot!(said.join("\n"), @r#"
    web-1 web:v2 sha256:22 production by ada "promoted" None approved ["bob"] emergency ["ada: users cannot pay"] events 2..5
    web-2 web:v3 sha256:33 staging by =cmd() "aborted" Some("aborted by bob: no, \"never\"") approved [] emergency [] events 6..7
    "#);
    let text = csv(&records);
    assert_eq!(text.matches("\r\n").count(), 3, "{text}");
    assert!(text.contains(",'=cmd(),"), "{text}");
    assert!(text.contains("looks =good"), "{text}");
    assert!(text.contains("\"\"never\"\""), "{text}");
}

#[test]
fn a_spreadsheet_runs_nothing_of_it() {
    let table = [
        ("web:v2", "web:v2"),
        ("", ""),
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@sum(a1)", "'@sum(a1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "\"'\r=1\""),
        ("a,b", "\"a,b\""),
        ("say \"hi\"", "\"say \"\"hi\"\"\""),
        ("=a,\"b\"", "\"'=a,\"\"b\"\"\""),
        ("two\nlines", "\"two\nlines\""),
        ("a=b", "a=b"),
    ];
    for (text, expected) in table {
        assert_eq!(cell(text), expected);
    }
}
