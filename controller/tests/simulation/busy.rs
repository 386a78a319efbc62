//! Who asks much, or of registries and engines that hang, delays nobody else.

use std::future::Future;
use std::pin::{Pin, pin};

use axum::body::Body;
use axum::http::{Request as Sent, StatusCode};
use controller_testing::Call;
use friday::reconciler::{REQUESTS_MAX, Reply, Request, RequestError};
use rollout::{Cause, Command, Duration, RolloutId, Weight};
use serde_json::json;
use tokio::sync::oneshot;
use tower::ServiceExt as _;

use crate::world::{FAILING, FRIDAY_YML, World, service};

const MINUTE: Duration = Duration::from_secs(60);

/// What the simulated loop does within milliseconds it will not do later than this.
const NEVER: Duration = Duration::from_secs(30);

type Answer = oneshot::Receiver<Result<RolloutId, RequestError>>;

fn abort() -> Command {
    Command::Abort(Cause::Person {
        by: "bob".into(),
        reason: None,
    })
}

/// Asks to release an image of another service.
fn release(world: &World, name: &str, image: &str) -> impl Future<Output = StatusCode> + use<> {
    let spec = FRIDAY_YML.replace("service: web", &format!("service: {name}"));
    let body = json!({ "spec": spec, "image": image, "author": "eve" });
    let request = Sent::post("/api/v1/rollouts")
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()))
        .unwrap();
    let answer = world.api().oneshot(request);
    async { answer.await.unwrap().status() }
}

/// What it comes to as far as it can without the loop.
async fn so_far<T>(asking: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    tokio::select! {
        biased;
        answer = asking => Some(answer),
        () = tokio::task::yield_now() => None,
    }
}

fn ask(world: &World, make: impl FnOnce(Reply) -> Request) -> Option<Answer> {
    let (reply, answer) = oneshot::channel();
    let taken = world.handle.requests.try_send(make(reply));
    taken.is_ok().then_some(answer)
}

fn undo(reply: Reply) -> Request {
    Request::Undo {
        service: service(),
        to: None,
        of: None,
        by: "eve".into(),
        reason: None,
        reply,
    }
}

fn order(id: RolloutId, command: Command) -> impl FnOnce(Reply) -> Request {
    move |reply| Request::Order {
        id,
        command,
        by: "bob".into(),
        reason: None,
        emergency: None,
        may_approve: true,
        reply,
    }
}

/// One of those that say no after a look into the store.
fn idle(service: usize) -> impl FnOnce(Reply) -> Request {
    order(
        RolloutId::from_text(&format!("shop{service}-99")),
        Command::Resume,
    )
}

#[tokio::test]
async fn f32_a_registry_that_hangs_delays_no_verdict_and_no_abort_of_another_service() {
    for is_judged in [true, false] {
        let mut world = World::new().await;
        let other = "web-b".parse().unwrap();
        world.orchestrator.add_service(&other, "web:v1", 1);
        if is_judged {
            world.behave("web:v2", FAILING).await;
        }
        let id = world.deploy("web:v2").await.unwrap();
        world.until_phase("analyzing", MINUTE).await;
        world.orchestrator.hang_registry(true);
        let mut hanging = pin!(release(&world, "web-b", "web:v3"));
        assert_eq!(so_far(hanging.as_mut()).await, None);
        let back = async {
            if !is_judged {
                world.order(&id, abort()).await.unwrap();
                world.step().await;
                assert_eq!(world.published(), Weight::ZERO);
            }
            world.until_phase("rolled_back", 3 * MINUTE).await;
        };
        let back = tokio::time::timeout(NEVER, back).await;
        back.expect("the loop waits for no registry");
        assert_eq!(so_far(hanging.as_mut()).await, None);
        world.orchestrator.hang_registry(false);
        let answer = loop {
            if let Some(answer) = so_far(hanging.as_mut()).await {
                break answer;
            }
            world.step().await;
        };
        assert_eq!(answer, StatusCode::CREATED);
    }
}

#[tokio::test]
async fn releases_that_wait_for_a_registry_are_few_come_in_order_and_leave_room_for_others() {
    let mut world = World::new().await;
    world.orchestrator.hang_registry(true);
    let mut first = pin!(release(&world, "web", "web:v2"));
    assert_eq!(so_far(first.as_mut()).await, None);
    let mut second = pin!(release(&world, "web", "web:v3"));
    assert_eq!(so_far(second.as_mut()).await, None);
    let mut more: Vec<_> = (0..6)
        .map(|_| Box::pin(release(&world, "web", "web:v3")))
        .collect();
    for one in &mut more {
        assert_eq!(so_far(one.as_mut()).await, None);
    }
    let too_many = release(&world, "web", "web:v3").await;
    assert_eq!(too_many, StatusCode::SERVICE_UNAVAILABLE);
    // Another service has a line of its own; of this one there is only to hear that it is unknown.
    let mut other = pin!(release(&world, "web-b", "web:v3"));
    assert_eq!(so_far(other.as_mut()).await, None);
    world.orchestrator.hang_registry(false);
    assert_eq!(so_far(other.as_mut()).await, Some(StatusCode::NOT_FOUND));
    // Whoever came first is asked for first, and gives way to who came later.
    let (mut one, mut two) = (None, None);
    while one.is_none() || two.is_none() {
        if two.is_none() {
            two = so_far(second.as_mut()).await;
        }
        if one.is_none() {
            one = so_far(first.as_mut()).await;
        }
        world.step().await;
    }
    assert_eq!(
        (one, two),
        (Some(StatusCode::CREATED), Some(StatusCode::CREATED))
    );
    assert_eq!(world.in_memory().canary.image, "web:v3");
    // Those who gave up have left their places.
    drop(more);
    let mut again = pin!(release(&world, "web", "web:v3"));
    while so_far(again.as_mut()).await.is_none() {
        world.step().await;
    }
}

#[tokio::test]
async fn requests_that_never_end_do_not_keep_the_loop_from_its_turn() {
    let mut world = World::new().await;
    let requests = world.handle.requests.clone();
    let flood = tokio::spawn(async move {
        let mut service = 0;
        loop {
            let (reply, _) = oneshot::channel();
            service = (service + 1) % REQUESTS_MAX;
            if requests.try_send(idle(service)(reply)).is_err() {
                tokio::task::yield_now().await;
            }
        }
    });
    let turns = tokio::time::timeout(NEVER, world.pass(Duration::from_secs(2))).await;
    flood.abort();
    turns.expect("the loop turns, however many ask");
}

#[tokio::test]
async fn f32_what_goes_back_has_its_place_and_comes_first_however_many_others_wait() {
    let mut world = World::new().await;
    let id = world.deploy("web:v2").await.unwrap();
    world.until_phase("analyzing", MINUTE).await;
    let mut others: Vec<Answer> = Vec::new();
    while let Some(answer) = ask(&world, idle(others.len() % 8)) {
        others.push(answer);
    }
    assert_eq!(others.len(), REQUESTS_MAX);
    let mut first = ask(&world, order(id, abort())).expect("there is a place for an abort");
    world.step().await;
    assert_eq!(world.published(), Weight::ZERO);
    assert!(first.try_recv().unwrap().is_ok());
    assert!(
        others.pop().unwrap().try_recv().is_err(),
        "the last of the others waits for the next turn"
    );
}

#[tokio::test]
async fn an_engine_that_is_slow_for_those_who_ask_leaves_the_loop_its_turns() {
    let mut world = World::new().await;
    world
        .orchestrator
        .slow_down(Call::Observe, &world.clock, Duration::from_millis(2500));
    let mut answers: Vec<Answer> = Vec::new();
    while let Some(answer) = ask(&world, undo) {
        answers.push(answer);
    }
    assert_eq!(answers.len(), 16, "one service takes not all places");
    let other = ask(&world, order(RolloutId::from_text("shop-1"), abort()));
    assert!(other.is_some(), "there is one for another's abort");
    world.step().await;
    let answered = answers
        .iter_mut()
        .filter_map(|answer| answer.try_recv().ok())
        .count();
    assert_eq!(answered, 1, "of those that take longer than a turn");
}
