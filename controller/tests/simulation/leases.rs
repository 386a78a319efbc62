//! Jobs that wait for a release, and what happens when they are heard no more (F38).

use friday::lease::{LEASE, OnLost, State, Terms};
use friday::origin::Origin;
use friday::reconciler::{LeaseRequest, RequestError};
use rollout::{Cause, Command, Duration, Ending, RolloutId, Weight};

use crate::world::World;

const PERIOD: Duration = Duration::from_secs(6);
const MINUTE: Duration = Duration::from_secs(60);

fn terms(holder: &str, on_lost: OnLost) -> Terms {
    Terms {
        holder: holder.into(),
        period_ms: u64::try_from(PERIOD.as_millis()).unwrap(),
        on_lost,
    }
}

fn renew() -> LeaseRequest {
    LeaseRequest::Renew {
        holder: "job 7".into(),
    }
}

/// A canary that gets requests, waited for by "job 7".
async fn on_trial(on_lost: OnLost) -> (World, RolloutId) {
    let mut world = World::new().await;
    world.lease = Some(terms("job 7", on_lost));
    world.origin = Some(Origin {
        project_id: 42,
        project_path: "shop/web".into(),
        pipeline_id: 1001,
        job_id: 7,
        job_name: "canary".into(),
        sha: "0123456789abcdef".into(),
        ref_name: "main".into(),
        ref_is_tag: false,
        user_login: "ada".into(),
        user_id: None,
        merge_request_iid: None,
        pipeline_url: None,
        job_url: None,
        server_url: None,
    });
    let id = world.deploy("web:v2").await.unwrap();
    world.until_phase("analyzing", MINUTE).await;
    world.lease(&id, renew()).await.unwrap();
    (world, id)
}

/// What the lease ordered, by the event log.
async fn orders(world: &World, id: &RolloutId) -> Vec<String> {
    let events = world.events(id).await.into_iter();
    events
        .filter(|event| event.kind == "order" && event.author == LEASE)
        .map(|event| event.data["order"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn f38_a_job_that_is_heard_no_more_ends_its_release_within_one_period() {
    let (mut world, id) = on_trial(OnLost::Abort).await;
    world.pass(PERIOD - Duration::from_secs(1)).await;
    assert!(world.rollout().await.cause().is_none(), "not before");
    world.pass(Duration::from_secs(2)).await;
    let rollout = world.rollout().await;
    assert!(
        matches!(rollout.cause(), Some(Cause::Person { by, reason: Some(reason) })
            if by == LEASE && reason.contains("job 7 was silent for 6 s")),
        "{:?}",
        rollout.phase
    );
    assert_eq!(world.published(), Weight::ZERO);
    world.until_phase("rolled_back", MINUTE).await;
    assert_eq!(world.rollout().await.ending(), Some(Ending::Aborted));
    assert_eq!(orders(&world, &id).await, ["abort"]);
}

#[tokio::test]
async fn f38_held_is_held_until_the_job_is_back() {
    let (mut world, id) = on_trial(OnLost::Hold).await;
    world.until_phase("paused", 2 * PERIOD).await;
    let weight = world.published();
    world.pass(4 * PERIOD).await;
    assert_eq!(world.rollout().await.phase.name(), "paused");
    assert_eq!(world.published(), weight);
    // The same commit again, from the job that was started again.
    world.lease = Some(terms("job 8", OnLost::Hold));
    assert_eq!(world.deploy("web:v2").await.unwrap(), id);
    assert_ne!(world.rollout().await.phase.name(), "paused");
    assert_eq!(orders(&world, &id).await, ["pause", "resume"]);
    assert!(matches!(
        world.lease(&id, renew()).await,
        Err(RequestError::LeaseHeld { holder, .. }) if holder == "job 8"
    ));
}

#[tokio::test]
async fn f38_what_a_person_took_over_does_not_go_on_by_itself() {
    let (mut world, id) = on_trial(OnLost::Hold).await;
    world.until_phase("paused", 2 * PERIOD).await;
    world.order(&id, Command::Resume).await.unwrap();
    world.order(&id, Command::Pause).await.unwrap();
    world.lease(&id, renew()).await.unwrap();
    assert_eq!(world.rollout().await.phase.name(), "paused");
    assert_eq!(orders(&world, &id).await, ["pause"]);
}

#[tokio::test]
async fn a_lease_that_is_given_back_acts_at_once() {
    for (on_lost, order, phase) in [
        (OnLost::Abort, "abort", "rolling_back"),
        (OnLost::Hold, "pause", "paused"),
    ] {
        let (mut world, id) = on_trial(on_lost).await;
        let stranger = LeaseRequest::GiveBack {
            holder: "job 9".into(),
            reason: None,
        };
        assert!(matches!(
            world.lease(&id, stranger).await,
            Err(RequestError::LeaseHeld { .. })
        ));
        let cancelled = LeaseRequest::GiveBack {
            holder: "job 7".into(),
            reason: Some("cancelled".into()),
        };
        world.lease(&id, cancelled).await.unwrap();
        assert_eq!(world.in_memory().phase.name(), phase);
        assert_eq!(orders(&world, &id).await, [order]);
        let events = world.events(&id).await;
        let said = events.iter().find(|event| event.author == LEASE).unwrap();
        assert_eq!(said.data["reason"], "job 7: cancelled");
    }
}

#[tokio::test]
async fn f38_a_restart_of_the_controller_grants_a_whole_period_and_downtime_does_not_count() {
    let (mut world, id) = on_trial(OnLost::Abort).await;
    for _ in 0..3 {
        world.pass(PERIOD - Duration::from_secs(1)).await;
        world.crash().await;
    }
    assert!(world.rollout().await.cause().is_none());
    let saved = world.saved().await;
    assert_eq!(saved.origin.as_ref().map(|origin| origin.job_id), Some(7));
    assert_eq!(saved.lease.map(|lease| lease.state), Some(State::Held));
    world.pass(PERIOD + Duration::from_secs(1)).await;
    assert!(world.rollout().await.cause().is_some());
    assert_eq!(orders(&world, &id).await, ["abort"]);
}

#[tokio::test]
async fn a_rollout_that_nobody_waits_for_needs_nobody() {
    let mut world = World::new().await;
    let id = world.deploy("web:v2").await.unwrap();
    assert!(matches!(
        world.lease(&id, renew()).await,
        Err(RequestError::NotNow { .. })
    ));
    world.until_phase("promoted", 3 * MINUTE).await;
    let taken = world
        .lease(&id, LeaseRequest::Take(terms("job 7", OnLost::Abort)))
        .await;
    assert!(matches!(taken, Err(RequestError::NotNow { state, .. }) if state.contains("ended")));
}

#[tokio::test]
async fn the_event_log_says_where_a_release_comes_from() {
    let (world, id) = on_trial(OnLost::Abort).await;
    let events = world.events(&id).await;
    assert_eq!(events[0].kind, "started");
    assert_eq!(events[0].data["origin"]["pipeline_id"], 1001);
    assert_eq!(events[0].data["lease"]["holder"], "job 7");
}
