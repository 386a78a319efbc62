//! What every orchestrator must do, as tests that take any of them.
//! [`orchestrator_contract!`](crate::orchestrator_contract) makes a test of each.

use std::sync::Arc;

use async_trait::async_trait;
use friday::orchestrator::{Group, Orchestrator, OrchestratorError, ServiceState};
use rollout::{Duration, Release, ServiceName};

use crate::eventually;

/// The image that the service runs at first.
pub const IMAGE: &str = "worker:v1";

/// An image that runs too.
pub const NEXT_IMAGE: &str = "worker:v2";

/// How many stable tasks the service has.
pub const REPLICAS: u32 = 2;

/// How long a real orchestrator may take for any one change: starting is quick here, draining is set short, and the
/// machine may be busy with other tests.
const LIMIT: Duration = Duration::from_secs(30);

/// The one service there is.
#[must_use]
pub fn service() -> ServiceName {
    "worker".parse().expect("a word is a name")
}

/// An orchestrator with one [`service`] that runs [`REPLICAS`] tasks of [`IMAGE`], and [`NEXT_IMAGE`] beside it.
#[async_trait]
pub trait Harness: Send + Sync {
    /// The orchestrator.
    fn orchestrator(&self) -> Arc<dyn Orchestrator>;

    /// Gives the tag `image` another meaning, one that runs too.
    async fn redefine(&self, image: &str);
}

/// Makes a test of each part of the contract. Takes an async function that makes a [`Harness`], or, after `within`, a
/// function that runs an async one with a harness wherever that has to be.
#[macro_export]
macro_rules! orchestrator_contract {
    (within $run:path) => {
        $crate::orchestrator_contract!(@all within $run);
    };
    ($harness:path) => {
        $crate::orchestrator_contract!(@all tokio $harness);
    };
    (@all $how:ident $what:path) => {
        $crate::orchestrator_contract!(
            @$how $what:
            an_unknown_service_names_the_known_ones
            an_unknown_image_names_the_known_ones
            f34_a_tag_that_moved_is_another_release_and_the_first_can_still_be_had
            a_release_that_was_never_resolved_is_refused
            asking_twice_for_a_canary_makes_one
            a_canary_is_scaled_up_and_down
            a_canary_that_is_removed_gets_no_requests_at_once_and_goes
            removing_a_canary_that_is_not_there_is_no_error
            a_canary_is_replaced_by_another_release
            stable_is_updated_start_first
            stable_stays_as_it_is_while_a_canary_comes_and_goes
        );
    };
    (@tokio $harness:path: $($name:ident)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                $crate::contract::$name(&$harness().await).await;
            }
        )*
    };
    (@within $run:path: $($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                $run(async |harness| $crate::contract::$name(&harness).await);
            }
        )*
    };
}

async fn seen(orchestrator: &Arc<dyn Orchestrator>) -> ServiceState {
    orchestrator
        .observe(&service())
        .await
        .unwrap_or_else(|error| panic!("cannot observe: {error}"))
}

async fn until(
    orchestrator: &Arc<dyn Orchestrator>,
    what: &str,
    holds: impl FnMut(&ServiceState) -> bool,
) -> ServiceState {
    eventually(what, LIMIT, async || seen(orchestrator).await, holds).await
}

async fn resolved(orchestrator: &Arc<dyn Orchestrator>, image: &str) -> Release {
    let release = orchestrator.resolve(&service(), image, None).await;
    release.unwrap_or_else(|error| panic!("cannot resolve {image}: {error}"))
}

/// Waits until the service runs as it should at first.
async fn started(harness: &impl Harness) -> (Arc<dyn Orchestrator>, Release) {
    let orchestrator = harness.orchestrator();
    let first = until(&orchestrator, "the first tasks are ready", |state| {
        runs(&state.stable, REPLICAS)
    })
    .await;
    assert_eq!(first.canary, None);
    (orchestrator, first.stable.release)
}

/// Whether the group has what is wanted, all ready, and nothing else.
fn runs(group: &Group, replicas: u32) -> bool {
    group.replicas == replicas
        && group.ready(&group.release.id) == replicas
        && u32::try_from(group.tasks.len()) == Ok(replicas)
}

fn has_canary(state: &ServiceState, release: &Release, replicas: u32) -> bool {
    state
        .canary
        .as_ref()
        .is_some_and(|group| group.release == *release && runs(group, replicas))
}

/// A question about a service that is not there is answered with those that are.
pub async fn an_unknown_service_names_the_known_ones(harness: &impl Harness) {
    let (orchestrator, release) = started(harness).await;
    assert_eq!(
        orchestrator.services().await.expect("services"),
        [service()]
    );
    let other: ServiceName = "other".parse().expect("a word is a name");
    let errors = [
        orchestrator.observe(&other).await.expect_err("observe"),
        orchestrator
            .resolve(&other, IMAGE, None)
            .await
            .expect_err("resolve"),
        orchestrator
            .ensure_stable(&other, &release)
            .await
            .expect_err("ensure_stable"),
        orchestrator
            .ensure_canary(&other, &release, 1)
            .await
            .expect_err("ensure_canary"),
        orchestrator
            .ensure_no_canary(&other)
            .await
            .expect_err("ensure_no_canary"),
    ];
    for error in errors {
        assert!(!error.is_transient());
        assert_eq!(
            error.to_string(),
            "there is no service \"other\"; known: worker"
        );
    }
}

/// An image that is not there is answered with those that are.
pub async fn an_unknown_image_names_the_known_ones(harness: &impl Harness) {
    let (orchestrator, _) = started(harness).await;
    let error = orchestrator
        .resolve(&service(), "worker:v9", None)
        .await
        .expect_err("no such image");
    assert!(
        matches!(error, OrchestratorError::UnknownImage { .. }),
        "{error}"
    );
    let words = error.to_string();
    assert!(
        ["\"worker:v9\"", IMAGE, NEXT_IMAGE]
            .iter()
            .all(|name| words.contains(name)),
        "{words}"
    );
}

/// F34: a release is what its tag meant when it was resolved.
pub async fn f34_a_tag_that_moved_is_another_release_and_the_first_can_still_be_had(
    harness: &impl Harness,
) {
    let (orchestrator, stable) = started(harness).await;
    let first = resolved(&orchestrator, NEXT_IMAGE).await;
    assert_eq!(first, resolved(&orchestrator, NEXT_IMAGE).await);
    assert_eq!(stable.digest, resolved(&orchestrator, IMAGE).await.digest);
    harness.redefine(NEXT_IMAGE).await;
    let moved = resolved(&orchestrator, NEXT_IMAGE).await;
    assert_eq!(moved.image, first.image);
    assert_ne!(moved.digest, first.digest);

    orchestrator
        .ensure_canary(&service(), &first, 1)
        .await
        .expect("the first meaning can be had");
    until(&orchestrator, "a canary of the first meaning", |state| {
        has_canary(state, &first, 1)
    })
    .await;
}

/// A digest that nobody knows is refused, and changes nothing.
pub async fn a_release_that_was_never_resolved_is_refused(harness: &impl Harness) {
    let (orchestrator, stable) = started(harness).await;
    let unknown = Release::new(IMAGE, format!("sha256:{}", "9".repeat(64)), None);
    let refused = orchestrator.ensure_canary(&service(), &unknown, 1).await;
    assert!(
        matches!(refused, Err(OrchestratorError::UnknownImage { .. })),
        "{refused:?}"
    );
    orchestrator
        .ensure_stable(&service(), &unknown)
        .await
        .expect_err("refused");
    let state = seen(&orchestrator).await;
    assert_eq!((state.stable.release, state.canary), (stable, None));
}

/// A wish may be repeated.
pub async fn asking_twice_for_a_canary_makes_one(harness: &impl Harness) {
    let (orchestrator, _) = started(harness).await;
    let next = resolved(&orchestrator, NEXT_IMAGE).await;
    for _ in 0..2 {
        orchestrator
            .ensure_canary(&service(), &next, 1)
            .await
            .expect("taken down");
    }
    let once = until(&orchestrator, "one canary task", |state| {
        has_canary(state, &next, 1)
    })
    .await;
    orchestrator
        .ensure_canary(&service(), &next, 1)
        .await
        .expect("taken down");
    let again = until(&orchestrator, "one canary task", |state| {
        has_canary(state, &next, 1)
    })
    .await;
    let ids = |state: &ServiceState| -> Vec<String> {
        state
            .canary
            .iter()
            .flat_map(|group| &group.tasks)
            .map(|task| task.id.clone())
            .collect()
    };
    assert_eq!(ids(&once), ids(&again));
}

/// The number of tasks follows the wish; what is there already stays.
pub async fn a_canary_is_scaled_up_and_down(harness: &impl Harness) {
    let (orchestrator, _) = started(harness).await;
    let next = resolved(&orchestrator, NEXT_IMAGE).await;
    let mut endpoints = Vec::new();
    for replicas in [1, 3, 2] {
        orchestrator
            .ensure_canary(&service(), &next, replicas)
            .await
            .expect("taken down");
        let state = until(&orchestrator, "as many as wanted", |state| {
            has_canary(state, &next, replicas)
        })
        .await;
        let now: Vec<String> = state
            .canary
            .iter()
            .flat_map(|group| &group.tasks)
            .map(|task| task.endpoint.to_string())
            .collect();
        let kept = endpoints
            .iter()
            .filter(|endpoint| now.contains(endpoint))
            .count();
        assert_eq!(
            kept,
            endpoints.len().min(now.len()),
            "{endpoints:?} became {now:?}"
        );
        endpoints = now;
    }
}

/// A task that shall go is unready first; the group is seen until the last one has gone.
pub async fn a_canary_that_is_removed_gets_no_requests_at_once_and_goes(harness: &impl Harness) {
    let (orchestrator, _) = started(harness).await;
    let next = resolved(&orchestrator, NEXT_IMAGE).await;
    orchestrator
        .ensure_canary(&service(), &next, 2)
        .await
        .expect("taken down");
    until(&orchestrator, "two canary tasks", |state| {
        has_canary(state, &next, 2)
    })
    .await;
    orchestrator
        .ensure_no_canary(&service())
        .await
        .expect("taken down");
    if let Some(group) = seen(&orchestrator).await.canary {
        assert_eq!((group.replicas, group.ready(&next.id)), (0, 0), "{group:?}");
    }
    orchestrator
        .ensure_no_canary(&service())
        .await
        .expect("may be repeated");
    until(&orchestrator, "no canary", |state| state.canary.is_none()).await;
}

/// Nothing is what was asked for.
pub async fn removing_a_canary_that_is_not_there_is_no_error(harness: &impl Harness) {
    let (orchestrator, _) = started(harness).await;
    orchestrator
        .ensure_no_canary(&service())
        .await
        .expect("nothing to do");
    assert_eq!(seen(&orchestrator).await.canary, None);
}

/// A newer release takes the canary group over.
pub async fn a_canary_is_replaced_by_another_release(harness: &impl Harness) {
    let (orchestrator, _) = started(harness).await;
    let first = resolved(&orchestrator, NEXT_IMAGE).await;
    harness.redefine(NEXT_IMAGE).await;
    let second = resolved(&orchestrator, NEXT_IMAGE).await;
    orchestrator
        .ensure_canary(&service(), &first, 1)
        .await
        .expect("taken down");
    until(&orchestrator, "the first canary", |state| {
        has_canary(state, &first, 1)
    })
    .await;
    orchestrator
        .ensure_canary(&service(), &second, 1)
        .await
        .expect("taken down");
    until(&orchestrator, "the second canary", |state| {
        has_canary(state, &second, 1)
    })
    .await;
}

/// During an update there are never fewer ready tasks than wanted.
pub async fn stable_is_updated_start_first(harness: &impl Harness) {
    let (orchestrator, old) = started(harness).await;
    let next = resolved(&orchestrator, NEXT_IMAGE).await;
    orchestrator
        .ensure_stable(&service(), &next)
        .await
        .expect("taken down");
    until(&orchestrator, "only the new release", |state| {
        let ready = state.stable.ready(&old.id) + state.stable.ready(&next.id);
        assert!(ready >= REPLICAS, "only {ready} ready: {:#?}", state.stable);
        assert_eq!(state.stable.release, next);
        runs(&state.stable, REPLICAS)
    })
    .await;
}

/// The two groups have nothing to do with each other.
pub async fn stable_stays_as_it_is_while_a_canary_comes_and_goes(harness: &impl Harness) {
    let (orchestrator, _) = started(harness).await;
    let ids = |state: &ServiceState| -> Vec<String> {
        state
            .stable
            .tasks
            .iter()
            .map(|task| task.id.clone())
            .collect()
    };
    let before = ids(&seen(&orchestrator).await);
    let next = resolved(&orchestrator, NEXT_IMAGE).await;
    orchestrator
        .ensure_canary(&service(), &next, 1)
        .await
        .expect("taken down");
    until(&orchestrator, "a canary", |state| {
        has_canary(state, &next, 1)
    })
    .await;
    orchestrator
        .ensure_no_canary(&service())
        .await
        .expect("taken down");
    let after = until(&orchestrator, "no canary", |state| state.canary.is_none()).await;
    assert!(runs(&after.stable, REPLICAS));
    assert_eq!(before, ids(&after));
}
