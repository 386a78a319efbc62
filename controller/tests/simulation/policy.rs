//! Freezes, the chain of environments, approvals and locks: what may begin, what may grow, and that nothing stands in the
//! way back.

use friday::admission::LockKey;
use friday::clock::Clock as _;
use friday::reconciler::{Deploy, LockAct, LockOrder, Request, RequestError};
use friday::store::Store as _;
use rollout::policy::{Demands, Freeze, Needs, Policy};
use rollout::{Cause, Command, Duration, Ending, Phase, RolloutId, Weight};
use tokio::sync::oneshot;

use crate::world::{FAILING, World, service};

const MINUTE: Duration = Duration::from_secs(60);

/// From this minute after 16:00 on that day, when the world begins.
fn freeze(begin: u32, minutes: u32) -> Freeze {
    Freeze {
        cron: format!("{begin} 16 20 11 *"),
        period: minutes * MINUTE,
        zone: "UTC".to_owned(),
        environments: Vec::new(),
    }
}

fn code(outcome: Result<RolloutId, RequestError>) -> String {
    match outcome {
        Ok(id) => id.to_string(),
        Err(RequestError::NotAdmitted(refused)) => refused.code().to_owned(),
        Err(other) => panic!("{other}"),
    }
}

fn wanted(
    world: &World,
    image: &str,
    environment: &str,
    author: &str,
    emergency: Option<&str>,
) -> Deploy {
    Deploy {
        spec: world.spec.clone(),
        image: image.to_owned(),
        commit: None,
        environment: environment.to_owned(),
        author: author.to_owned(),
        retry: false,
        emergency: emergency.map(str::to_owned),
        fence: None,
        change_rules: false,
        origin: None,
        lease: None,
    }
}

async fn ask(world: &mut World, deploy: Deploy) -> Result<RolloutId, RequestError> {
    world.start(deploy).await
}

async fn deploy(
    world: &mut World,
    image: &str,
    environment: &str,
    author: &str,
    emergency: Option<&str>,
) -> Result<RolloutId, RequestError> {
    let deploy = wanted(world, image, environment, author, emergency);
    ask(world, deploy).await
}

/// An admin's release: of the service in another environment than before, by whatever rules the file has now.
async fn moved(
    world: &mut World,
    image: &str,
    environment: &str,
) -> Result<RolloutId, RequestError> {
    let deploy = Deploy {
        change_rules: true,
        ..wanted(world, image, environment, "ada", None)
    };
    ask(world, deploy).await
}

async fn order(
    world: &mut World,
    id: &RolloutId,
    command: Command,
    by: &str,
    emergency: Option<&str>,
) -> Result<RolloutId, RequestError> {
    let (id, by) = (id.clone(), by.to_owned());
    let emergency = emergency.map(str::to_owned);
    world
        .ask(|reply| Request::Order {
            id,
            command,
            by,
            reason: None,
            emergency,
            may_approve: true,
            reply,
        })
        .await
}

fn approve(by: &str) -> Command {
    Command::Approve { by: by.to_owned() }
}

async fn kinds(world: &World, id: &RolloutId) -> Vec<String> {
    let events = world.events(id).await;
    events.into_iter().map(|event| event.kind).collect()
}

#[tokio::test]
async fn a_freeze_holds_what_runs_over_a_crash_and_lets_it_go_on_afterwards() {
    let mut world = World::new().await;
    world.spec.policy.freeze = vec![freeze(1, 15)];
    world.pass(Duration::from_secs(30)).await;
    let id = world.deploy("web:v2").await.unwrap();
    world
        .until("frozen", MINUTE, |_, rollout| rollout.is_frozen())
        .await;
    let (weight, before) = (world.published(), world.rollout().await);
    assert!(weight > Weight::ZERO, "{:?}", before.phase);
    // Longer than every deadline of the plan; neither time nor proof moves it, and a controller that comes back knows.
    for _ in 0..3 {
        world.pass(4 * MINUTE).await;
        world.crash().await;
        world.pass(Duration::from_secs(1)).await;
        assert_eq!(
            (world.published(), world.rollout().await.phase),
            (weight, before.phase.clone())
        );
    }
    for command in [Command::Promote, Command::PromoteFull] {
        assert_eq!(
            code(order(&mut world, &id, command, "bob", None).await),
            "frozen"
        );
    }
    world.until_phase("promoted", 6 * MINUTE).await;
    world.assert_users_are_well();
    let freezes = kinds(&world, &id).await;
    assert_eq!(freezes.iter().filter(|kind| *kind == "freeze").count(), 2);
    assert!(world.store.verify().await.unwrap().is_ok());
}

#[tokio::test]
async fn a_freeze_never_holds_the_way_back() {
    let mut world = World::new().await;
    let first = world.promote_now("web:v2").await;
    world.spec.policy.freeze = vec![freeze(5, 600)];
    while world.clock.now() < crate::world::timestamp("2026-11-20T16:04:40Z") {
        world.step().await;
    }
    let second = world.deploy("web:v3").await.unwrap();
    world
        .until("frozen", MINUTE, |_, rollout| rollout.is_frozen())
        .await;
    world.behave("web:v3", FAILING).await;
    if world.published() > Weight::ZERO {
        // Evidence of harm still speaks.
        world
            .until("back", 2 * MINUTE, |_, rollout| {
                rollout.ending() == Some(Ending::RolledBack)
            })
            .await;
    } else {
        let abort = Command::Abort(Cause::Person {
            by: "bob".to_owned(),
            reason: None,
        });
        order(&mut world, &second, abort, "bob", None)
            .await
            .unwrap();
        world
            .until("back", 2 * MINUTE, |_, rollout| rollout.ending().is_some())
            .await;
    }
    // An undo begins, and reaches its end.
    let undone = world.undo(None).await.unwrap();
    assert_ne!(undone, first);
    world.until_phase("promoted", 2 * MINUTE).await;
    assert_eq!(world.state().await.stable.release.image, "web:v1");
}

#[tokio::test]
async fn nothing_begins_in_a_freeze_without_the_emergency_word() {
    let mut world = World::new().await;
    world.spec.policy.freeze = vec![freeze(1, 600)];
    world.pass(MINUTE).await;
    let attempt = deploy(&mut world, "web:v2", "test", "ada", None).await;
    assert_eq!(code(attempt), "frozen");
    let attempt = deploy(&mut world, "web:v2", "test", "ada", Some(" ")).await;
    assert_eq!(code(attempt), "no_reason");
    let id = deploy(
        &mut world,
        "web:v2",
        "test",
        "ada",
        Some("users cannot pay"),
    )
    .await
    .unwrap();
    assert!(kinds(&world, &id).await.contains(&"emergency".to_owned()));
    world.until_phase("promoted", 4 * MINUTE).await;
    let emergency = world.rollout().await.admission.emergency.unwrap();
    assert_eq!(
        (emergency.by.as_str(), emergency.reason.as_str()),
        ("ada", "users cannot pay")
    );
}

#[tokio::test]
async fn production_takes_what_staging_promoted_and_somebody_else_approved() {
    let mut world = World::new().await;
    let needs = Needs {
        service: None,
        environment: "staging".to_owned(),
    };
    let demands = Demands {
        needs: Some(needs),
        approvals: 1,
    };
    world.spec.policy.environments = [("production".to_owned(), demands)].into();
    for (environment, expected) in [
        ("production", "not_promoted_before"),
        ("default", "no_environment"),
    ] {
        let attempt = deploy(&mut world, "web:v2", environment, "ada", None).await;
        assert_eq!(code(attempt), expected);
    }
    let staged = deploy(&mut world, "web:v2", "staging", "ada", None)
        .await
        .unwrap();
    world.order(&staged, Command::PromoteFull).await.unwrap();
    world.until_phase("promoted", 2 * MINUTE).await;
    // Another digest is another release, however it is called.
    let attempt = moved(&mut world, "web:v3", "production").await;
    assert_eq!(code(attempt), "not_promoted_before");
    // One service of its own for each environment, as they are in one swarm: here one stands for both, so stable moves on, and
    // an admin moves it.
    let third = moved(&mut world, "web:v3", "staging").await.unwrap();
    world.order(&third, Command::PromoteFull).await.unwrap();
    world.until_phase("promoted", 2 * MINUTE).await;
    let id = moved(&mut world, "web:v2", "production").await.unwrap();
    world
        .until("awaits approval", MINUTE, |_, rollout| {
            rollout.awaits_approval()
        })
        .await;
    world.pass(MINUTE).await;
    assert_eq!(world.published(), Weight::ZERO);
    assert_eq!(
        code(order(&mut world, &id, approve("ada"), "ada", None).await),
        "four_eyes"
    );
    assert_eq!(
        code(order(&mut world, &id, Command::PromoteFull, "ada", None).await),
        "four_eyes"
    );
    // Nor does anybody else arm what one approval would then let go all the way, unjudged.
    let armed = order(&mut world, &id, Command::PromoteFull, "bob", None).await;
    let said = armed.unwrap_err().to_string();
    assert!(said.contains("waits for 1 more approvals first"), "{said}");
    world.crash().await;
    assert_eq!(world.published(), Weight::ZERO);
    order(&mut world, &id, approve("bob"), "bob", None)
        .await
        .unwrap();
    world.until_phase("promoted", 4 * MINUTE).await;
    assert_eq!(world.rollout().await.admission.approved_by, ["bob"]);
}

async fn lock(world: &mut World, by: &str, act: LockAct) -> Result<u64, String> {
    let (reply, mut answer) = oneshot::channel();
    let order = LockOrder {
        key: LockKey {
            service: service(),
            environment: String::new(),
        },
        by: by.to_owned(),
        reason: "migration".to_owned(),
        act,
    };
    let sent = world.handle.requests.try_send(Request::Lock(order, reply));
    assert!(sent.is_ok());
    world.step().await;
    match answer.try_recv().unwrap() {
        Ok((fence, _)) => Ok(fence),
        Err(RequestError::NotAdmitted(refused)) => Err(refused.code().to_owned()),
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_lock_keeps_others_out_over_a_crash_until_it_is_given_back_broken_or_over() {
    let mut world = World::new().await;
    let take = |seconds: Option<u64>| LockAct::Take {
        period: seconds.map(Duration::from_secs),
    };
    let break_it = LockAct::GiveBack {
        fence: None,
        breaks: true,
    };
    assert_eq!(lock(&mut world, "ada", take(None)).await, Ok(1));
    world.crash().await;
    assert_eq!(
        code(deploy(&mut world, "web:v2", "test", "bob", None).await),
        "locked"
    );
    assert_eq!(
        lock(&mut world, "bob", take(None)).await,
        Err("locked".to_owned())
    );
    assert_eq!(lock(&mut world, "bob", break_it).await, Ok(1));
    assert_eq!(lock(&mut world, "bob", take(Some(30))).await, Ok(2));
    assert_eq!(
        code(deploy(&mut world, "web:v2", "test", "ada", None).await),
        "locked"
    );
    world.pass(Duration::from_secs(31)).await;
    let id = deploy(&mut world, "web:v2", "test", "ada", None)
        .await
        .unwrap();
    // A lock that somebody takes meanwhile holds nothing that runs, and not the way back.
    assert_eq!(lock(&mut world, "bob", take(None)).await, Ok(3));
    world.until_phase("promoted", 4 * MINUTE).await;
    assert_eq!(
        world
            .store
            .rollout(&id)
            .await
            .unwrap()
            .unwrap()
            .rollout
            .phase,
        Phase::Promoted
    );
    world.undo(None).await.unwrap();
    let log = world.store.events(None, 0, 1_000).await.unwrap();
    let locks: Vec<_> = log
        .iter()
        .filter(|event| event.kind.contains("lock"))
        .map(|event| (event.kind.as_str(), event.author.as_str()))
        .collect();
    assert_eq!(
        locks,
        [
            ("lock", "ada"),
            ("break_lock", "bob"),
            ("lock", "bob"),
            ("lock", "bob")
        ]
    );
    assert!(world.store.verify().await.unwrap().is_ok());
}

#[tokio::test]
async fn a_service_is_released_in_one_environment_and_nobody_passes_its_rules_by_another_name() {
    let mut world = World::new().await;
    let demands = Demands {
        needs: None,
        approvals: 1,
    };
    world.spec.policy.environments = [("production".to_owned(), demands)].into();
    let refused = async |world: &mut World, image: &str, environment: &str| {
        let attempt = deploy(world, image, environment, "ada", None).await;
        match attempt {
            Err(error @ RequestError::OtherEnvironment { .. }) => error.to_string(),
            other => panic!("{image} {environment}: {other:?}"),
        }
    };
    let first = deploy(&mut world, "web:v2", "production", "ada", None)
        .await
        .unwrap();
    // While it runs, the same release in another environment is not this one, nor does another take its place.
    for image in ["web:v2", "web:v3"] {
        let said = refused(&mut world, image, "dev").await;
        assert!(
            said.contains("web is released in \"production\" (web-1)")
                && said.contains("a service of its own"),
            "{said}"
        );
    }
    order(&mut world, &first, approve("bob"), "bob", None)
        .await
        .unwrap();
    world.until_phase("promoted", 4 * MINUTE).await;
    // What is stable already was not released in dev by that.
    refused(&mut world, "web:v2", "dev").await;
    refused(&mut world, "web:v3", "dev").await;
    let said = refused(&mut world, "web:v3", "default").await;
    assert!(said.contains("give --environment production"), "{said}");
    world.crash().await;
    refused(&mut world, "web:v3", "dev").await;
    // An admin moves it; whoever goes back afterwards stays where it is now.
    let third = moved(&mut world, "web:v3", "dev").await.unwrap();
    world.order(&third, Command::PromoteFull).await.unwrap();
    world.until_phase("promoted", 2 * MINUTE).await;
    let back = world.undo(Some(1)).await.unwrap();
    let back = world.store.rollout(&back).await.unwrap().unwrap().rollout;
    assert_eq!(back.environment, "dev");
}

#[tokio::test]
async fn a_service_that_was_released_without_an_environment_gets_one() {
    let mut world = World::new().await;
    let first = deploy(&mut world, "web:v2", "default", "ada", None)
        .await
        .unwrap();
    let early = deploy(&mut world, "web:v2", "test", "ada", None).await;
    assert!(
        matches!(early, Err(RequestError::OtherEnvironment { .. })),
        "{early:?}"
    );
    world.order(&first, Command::PromoteFull).await.unwrap();
    world.until_phase("promoted", 2 * MINUTE).await;
    let again = deploy(&mut world, "web:v2", "test", "ada", None).await;
    assert!(
        matches!(again, Err(RequestError::AlreadyStable { .. })),
        "{again:?}"
    );
    let second = deploy(&mut world, "web:v3", "test", "ada", None)
        .await
        .unwrap();
    assert_ne!(first, second);
}

#[tokio::test]
async fn a_file_that_asks_for_less_is_held_by_the_last_promoted_release_once_more() {
    let mut world = World::new().await;
    let demands = Demands {
        needs: None,
        approvals: 1,
    };
    world.spec.policy.environments = [("test".to_owned(), demands)].into();
    world.spec.policy.freeze = vec![freeze(8, 60)];
    let strict = world.spec.policy.clone();
    let first = deploy(&mut world, "web:v2", "test", "ada", None)
        .await
        .unwrap();
    order(&mut world, &first, approve("bob"), "bob", None)
        .await
        .unwrap();
    world.until_phase("promoted", 4 * MINUTE).await;

    // Four eyes are still asked for, and a retry asks for them too.
    world.spec.policy = Policy::default();
    let second = deploy(&mut world, "web:v3", "test", "ada", None)
        .await
        .unwrap();
    let held = world.rollout().await;
    assert_eq!(held.admission.approvals_min, 1);
    assert_eq!(held.spec.policy, strict);
    assert_eq!(held.admission.own, Some(Policy::default()));
    let abort = Command::Abort(Cause::Person {
        by: "bob".to_owned(),
        reason: None,
    });
    order(&mut world, &second, abort, "bob", None)
        .await
        .unwrap();
    world
        .until("back", MINUTE, |_, rollout| rollout.ending().is_some())
        .await;
    world.retry().await.unwrap();
    assert_eq!(world.rollout().await.admission.approvals_min, 1);
    let third = world.rollout().await.id;

    // So is the freeze, also once it has begun.
    while world.clock.now() < crate::world::timestamp("2026-11-20T16:08:10Z") {
        world.step().await;
    }
    assert!(world.rollout().await.is_frozen());
    let abort = Command::Abort(Cause::Person {
        by: "bob".to_owned(),
        reason: None,
    });
    order(&mut world, &third, abort, "bob", None).await.unwrap();
    world
        .until("back", MINUTE, |_, rollout| rollout.ending().is_some())
        .await;
    let attempt = deploy(&mut world, "web:v3", "test", "ada", None).await;
    assert!(
        matches!(attempt, Err(RequestError::HeldByRules { ref rollout, .. }) if *rollout == first),
        "{attempt:?}"
    );
    let said = attempt.unwrap_err().to_string();
    assert!(
        said.contains("is frozen") && said.contains("web-1"),
        "{said}"
    );

    // An admin lets the file count alone; what was promoted by it holds the next.
    let fourth = moved(&mut world, "web:v3", "test").await.unwrap();
    world.order(&fourth, Command::PromoteFull).await.unwrap();
    world.until_phase("promoted", 2 * MINUTE).await;
    // Going back to a release of stricter rules, or of laxer ones, changes none.
    world.undo(None).await.unwrap();
    world
        .until("promoted", 2 * MINUTE, |_, rollout| {
            rollout.admission.goes_back && rollout.phase == Phase::Promoted
        })
        .await;
    let fifth = deploy(&mut world, "web:v3", "test", "ada", None)
        .await
        .unwrap();
    let free = world.rollout().await;
    assert_eq!((free.id, free.admission.approvals_min), (fifth, 0));
}

#[tokio::test]
async fn a_release_that_passed_the_old_rules_brings_its_own() {
    let mut world = World::new().await;
    let demands = Demands {
        needs: None,
        approvals: 1,
    };
    world.spec.policy.environments = [("test".to_owned(), demands)].into();
    for image in ["web:v2", "web:v3"] {
        let id = deploy(&mut world, image, "test", "ada", None)
            .await
            .unwrap();
        assert_eq!(world.rollout().await.admission.approvals_min, 1, "{image}");
        order(&mut world, &id, approve("bob"), "bob", None)
            .await
            .unwrap();
        world
            .until("promoted", 4 * MINUTE, |_, rollout| {
                rollout.id == id && rollout.phase == Phase::Promoted
            })
            .await;
        world.spec.policy = Policy::default();
    }
    deploy(&mut world, "web:v1", "test", "ada", None)
        .await
        .unwrap();
    assert_eq!(world.rollout().await.admission.approvals_min, 0);
}
