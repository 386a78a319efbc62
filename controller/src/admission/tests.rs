//! Tables of what may begin and what may grow.

use rollout::policy::{Admission, Demands, Freeze};
use rollout::{Duration, Phase, Release, RolloutId};
use tokio::sync::watch;

use super::calendar::{Window, at};
use super::freeze::{PERIODS_AGE_MAX, Periods};
use super::*;

const NOON: &str = "2026-07-10T12:00:00Z";

fn service() -> ServiceName {
    "web".parse().unwrap()
}

fn policy() -> Policy {
    let demands = |needs: Option<(&str, Option<&str>)>, approvals| Demands {
        needs: needs.map(|(environment, service)| Needs {
            service: service.map(|name| name.parse().unwrap()),
            environment: environment.to_owned(),
        }),
        approvals,
    };
    Policy {
        freeze: Vec::new(),
        environments: [
            ("production".to_owned(), demands(Some(("staging", None)), 1)),
            (
                "europe".to_owned(),
                demands(Some(("staging", Some("web-staging"))), 0),
            ),
        ]
        .into(),
    }
}

fn key(environment: &str) -> LockKey {
    LockKey {
        service: service(),
        environment: environment.to_owned(),
    }
}

fn code(outcome: Result<(), Refused>) -> &'static str {
    outcome.map_or_else(|refused| refused.code(), |()| "yes")
}

#[test]
fn only_what_may_begin_begins() {
    let now = at(NOON);
    let mut locks = Locks::default();
    let hour = Some(Duration::from_secs(3_600));
    locks.put(
        locks
            .take(&key("europe"), "bob", "migration", hour, now)
            .unwrap(),
    );
    let frozen = Frozen::Yes("by friday.yml until Monday".to_owned());
    let unknown = Frozen::Unknown("GitLab is away".to_owned());
    let service = service();
    let begin = |environment: &str, named, author, frozen: &Frozen, promoted, emergency, fence| {
        let asked = Asked {
            service: &service,
            environment,
            is_named: named,
            author,
            image: "web:v2",
            emergency,
            fence,
        };
        let known = Known {
            frozen,
            was_promoted: promoted,
            locks: &locks,
            now,
        };
        code(may_begin(&policy(), asked, known))
    };
    let no = Frozen::No;
    let table = [
        (("production", true, "ada", &no, true, None, None), "yes"),
        // The chain, and no way past it: neither an emergency nor an environment that is not named.
        (
            ("production", true, "ada", &no, false, None, None),
            "not_promoted_before",
        ),
        (
            ("production", true, "ada", &no, false, Some("fire"), None),
            "not_promoted_before",
        ),
        (
            ("default", false, "ada", &no, false, None, None),
            "no_environment",
        ),
        (("staging", true, "ada", &no, false, None, None), "yes"),
        // Freezes.
        (
            ("staging", true, "ada", &frozen, false, None, None),
            "frozen",
        ),
        (
            ("staging", true, "ada", &frozen, false, Some("fire"), None),
            "yes",
        ),
        (
            ("staging", true, "ada", &frozen, false, Some(" "), None),
            "no_reason",
        ),
        (
            ("staging", true, "ada", &no, false, Some(""), None),
            "no_reason",
        ),
        (
            ("staging", true, "ada", &unknown, false, None, None),
            "freeze_unknown",
        ),
        (
            ("staging", true, "ada", &unknown, false, Some("fire"), None),
            "yes",
        ),
        // Locks: an emergency is none of theirs.
        (("europe", true, "ada", &no, true, None, None), "locked"),
        (
            ("europe", true, "ada", &no, true, Some("fire"), None),
            "locked",
        ),
        (("europe", true, "bob", &no, true, None, None), "yes"),
        (("europe", true, "bob", &no, true, None, Some(1)), "yes"),
        (
            ("europe", true, "bob", &no, true, None, Some(2)),
            "lock_lost",
        ),
        (
            ("production", true, "bob", &no, true, None, Some(1)),
            "lock_lost",
        ),
        // Who is first: the lock, then the chain, then the freeze.
        (
            ("europe", true, "ada", &frozen, false, None, None),
            "locked",
        ),
        (
            ("europe", true, "bob", &frozen, false, None, None),
            "not_promoted_before",
        ),
    ];
    for ((environment, named, author, frozen, promoted, emergency, fence), expected) in table {
        assert_eq!(
            begin(
                environment,
                named,
                author,
                frozen,
                promoted,
                emergency,
                fence
            ),
            expected,
            "{environment} {author} {frozen:?} {promoted} {emergency:?} {fence:?}"
        );
    }
}

#[test]
fn a_chain_names_the_service_it_means() {
    let policy = policy();
    let shown = |environment| {
        let (service, name) = needs(&policy, environment)?;
        Some(format!(
            "{} {name}",
            service.map_or("any", ServiceName::as_str)
        ))
    };
    assert_eq!(shown("production").as_deref(), Some("any staging"));
    assert_eq!(shown("europe").as_deref(), Some("web-staging staging"));
    assert_eq!(shown("staging"), None);
}

#[test]
fn a_lock_keeps_others_out_until_it_ends_and_its_number_only_grows() {
    let now = at(NOON);
    let later = at("2026-07-10T14:00:00Z");
    let hour = Some(Duration::from_secs(3_600));
    let mut locks = Locks::default();
    let everywhere = key("");
    let first = locks
        .take(&everywhere, "ada", "migration", hour, now)
        .unwrap();
    assert_eq!(first.fence, 1);
    locks.put(first);
    // The owner renews it and keeps the number and the age; nobody else takes it.
    let renewed = locks.take(&everywhere, "ada", "still", None, now).unwrap();
    assert_eq!((renewed.fence, renewed.lock.unwrap().until), (1, None));
    let error = locks.take(&everywhere, "bob", "me", None, at("2026-07-10T12:59:59Z"));
    insta::assert_snapshot!(error.unwrap_err(), @"web is locked by ada for 59m59s (migration; number 1, until 2026-07-10 13:00:00Z): wait, ask ada, or break it: `friday unlock web --break --reason WHY`, which the event log keeps");
    // A lock of the service holds in every environment.
    let admit = |locks: &Locks, author, fence, now| {
        code(locks.admit(&service(), "production", author, fence, now))
    };
    assert_eq!(admit(&locks, "bob", None, now), "locked");
    assert_eq!(admit(&locks, "ada", Some(1), now), "yes");
    // It ended by itself.
    assert_eq!(admit(&locks, "bob", None, later), "yes");
    assert_eq!(admit(&locks, "ada", Some(1), later), "lock_lost");
    let second = locks.take(&everywhere, "bob", "me", None, later).unwrap();
    assert_eq!(second.fence, 2);
    locks.put(second);
    // To give it back takes its owner, and the right number; to break it takes neither, but the right number if one is said.
    let give = |locks: &Locks, by, fence, breaks| {
        code(
            locks
                .give_back(&everywhere, by, fence, breaks, later)
                .map(drop),
        )
    };
    assert_eq!(give(&locks, "ada", None, false), "locked");
    assert_eq!(give(&locks, "bob", Some(1), false), "lock_lost");
    assert_eq!(give(&locks, "ada", Some(1), true), "lock_lost");
    assert_eq!(give(&locks, "bob", Some(2), false), "yes");
    let (slot, lock) = locks
        .give_back(&everywhere, "ada", None, true, later)
        .unwrap();
    assert_eq!(
        (slot.fence, slot.lock.clone(), lock.owner.as_str()),
        (2, None, "bob")
    );
    locks.put(slot);
    assert_eq!(give(&locks, "bob", None, false), "not_locked");
    let third = locks
        .take(&everywhere, "ada", "again", None, later)
        .unwrap();
    assert_eq!(third.fence, 3);
}

#[test]
fn there_is_a_most_of_locks() {
    let slot = |number: usize| lock::Slot {
        key: key(&format!("e{number}")),
        fence: 1,
        lock: None,
    };
    let take = |locks: &Locks, key: &LockKey| {
        code(locks.take(key, "ada", "why", None, at(NOON)).map(drop))
    };
    let here = Locks::of((0..lock::LOCKS_OF_SERVICE_MAX).map(slot).collect());
    assert_eq!(take(&here, &key("e0")), "yes");
    assert_eq!(take(&here, &key("new")), "too_many_locks");
    // Those of another service have places of their own, until there are none at all.
    let of = |service: &str| LockKey {
        service: service.parse().unwrap(),
        environment: "production".to_owned(),
    };
    assert_eq!(take(&here, &of("shop")), "yes");
    let many = (0..lock::LOCKS_MAX).map(|number| lock::Slot {
        key: of(&format!("s{number}")),
        fence: 1,
        lock: None,
    });
    let everywhere = Locks::of(many.collect());
    assert_eq!(take(&everywhere, &of("s0")), "yes");
    assert_eq!(take(&everywhere, &of("shop")), "too_many_locks");
}

#[test]
fn a_lock_is_of_a_person_whatever_their_login_is_now() {
    let table = [
        ("ada", "ada", true),
        ("ada", "bob", false),
        (
            "gitlab user 42 (for dana)",
            "gitlab user 42 (for dan)",
            true,
        ),
        (
            "gitlab user 42 (for dana)",
            "gitlab user 43 (for dana)",
            false,
        ),
        ("gitlab user 42 (for dana)", "dana", false),
        ("ops (for dana)", "ops (for dana)", true),
        ("ops (for dana)", "ops (for eve)", false),
        (
            "ops (for gitlab user 42 (for dana))",
            "gitlab user 42 (for dana)",
            false,
        ),
    ];
    for (owner, author, same) in table {
        assert_eq!(lock::is_same_owner(owner, author), same, "{owner} {author}");
        let locks = Locks::of(vec![
            Locks::default()
                .take(&key(""), owner, "why", None, at(NOON))
                .unwrap(),
        ]);
        let taken = locks.take(&key(""), author, "again", None, at(NOON));
        assert_eq!(taken.is_ok(), same, "{owner} {author}");
        let back = locks.give_back(&key(""), author, None, false, at(NOON));
        assert_eq!(back.is_ok(), same, "{owner} {author}");
        let begun = locks.admit(&service(), "production", author, None, at(NOON));
        assert_eq!(begun.is_ok(), same, "{owner} {author}");
    }
}

fn rollout(phase: Phase, admission: Admission) -> Rollout {
    let spec = crate::spec::read(
        "service: web\nport: 80\n",
        "friday.yml",
        &crate::spec::ReadOptions::default(),
    );
    let release = |digit: &str| Release::new("web:v", format!("sha256:{}", digit.repeat(64)), None);
    let mut rollout = Rollout::new(
        RolloutId::new(&service(), 3),
        service(),
        "production".to_owned(),
        "ada".to_owned(),
        release("1"),
        release("2"),
        spec.unwrap(),
        false,
        at(NOON),
    );
    rollout.phase = phase;
    rollout.admission = admission;
    rollout
}

#[test]
fn only_others_open_the_gates_of_an_environment_that_asks_for_them() {
    let gated = |approvals_min, frozen: Option<&str>| {
        let phase = Phase::Gated {
            step: 1,
            elapsed: Duration::ZERO,
        };
        let admission = Admission {
            approvals_min,
            frozen: frozen.map(str::to_owned),
            ..Admission::default()
        };
        rollout(phase, admission)
    };
    let grow =
        |rollout: &Rollout, by, opens, emergency| code(may_grow(rollout, by, opens, emergency));
    let (strict, lax, frozen) = (
        gated(1, None),
        gated(0, None),
        gated(1, Some("until Monday")),
    );
    assert_eq!(grow(&strict, "ada", true, None), "four_eyes");
    assert_eq!(grow(&strict, "gitlab (for ada)", true, None), "four_eyes");
    assert_eq!(grow(&strict, "ada", true, Some("fire")), "four_eyes");
    assert_eq!(grow(&strict, "ada", false, None), "yes");
    assert_eq!(grow(&strict, "bob", true, None), "yes");
    assert_eq!(grow(&lax, "ada", true, None), "yes");
    assert_eq!(grow(&frozen, "bob", true, None), "frozen");
    assert_eq!(grow(&frozen, "bob", true, Some("fire")), "yes");
    assert_eq!(grow(&frozen, "bob", true, Some("")), "no_reason");
}

#[test]
fn what_is_not_known_of_gitlab_is_not_taken_for_leave() {
    let now = at("2026-07-11T00:00:00Z");
    let none = Policy::default();
    let read = |windows, hours: u64| {
        let at = Duration::from_secs(hours * 3_600);
        watch::channel(std::sync::Arc::new(Periods::Read { windows, at })).1
    };
    let weekend = || Window::between("0 23 * * 5", "0 7 * * 1", "UTC").unwrap();
    let ask = |freezes: &Freezes, elapsed| freezes.ask(&none, "production", now, elapsed);
    let old = PERIODS_AGE_MAX + Duration::from_secs(1);
    assert_eq!(ask(&Freezes::default(), old), Frozen::No);
    let quiet = Freezes::with_gitlab(read(Vec::new(), 0));
    assert_eq!(ask(&quiet, PERIODS_AGE_MAX), Frozen::No);
    assert!(matches!(ask(&quiet, old), Frozen::Unknown(_)));
    let weekend = Freezes::with_gitlab(read(vec![weekend()], 0));
    assert_eq!(
        ask(&weekend, Duration::ZERO),
        Frozen::Yes("by a freeze period of GitLab until 2026-07-13 07:00:00Z".to_owned())
    );
    let unknown = Periods::Unknown("GitLab was not asked yet".to_owned());
    let (_sender, unknown) = watch::channel(std::sync::Arc::new(unknown));
    let unknown = Freezes::with_gitlab(unknown);
    assert!(matches!(ask(&unknown, Duration::ZERO), Frozen::Unknown(_)));
    // The file's own word is heard first, and is heard while GitLab is away.
    let own = Policy {
        freeze: vec![Freeze {
            cron: "0 0 * * *".to_owned(),
            period: Duration::from_secs(60),
            zone: "UTC".to_owned(),
            environments: Vec::new(),
        }],
        ..Policy::default()
    };
    let said = unknown.ask(&own, "production", now, Duration::ZERO);
    assert_eq!(
        said,
        Frozen::Yes(
            "by friday.yml (freeze[0], \"0 0 * * *\" UTC) until 2026-07-11 00:01:00Z".to_owned()
        )
    );
}
