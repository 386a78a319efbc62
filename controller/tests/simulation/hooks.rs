//! Hooks of GitLab: what is answered, and what follows from them.

use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::{Body, Bytes};
use axum::http::{Method, Request, StatusCode};
use controller_testing::eventually;
use controller_testing::gitlab::{Gitlab as StandIn, PROJECT, PROJECT_TOKEN};
use friday::admission::Freezes;
use friday::admission::freeze::Frozen;
use friday::api::webhooks::{QUEUE_MAX, Webhooks};
use friday::app::{HookArgs, OnPipelineCancel};
use friday::clock::Clock;
use friday::gitlab::webhook::{BODY_BYTES_MAX, Hint, Keys};
use friday::gitlab::{Gitlab, Secret};
use futures::{StreamExt as _, stream};
use rollout::policy::Policy;
use rollout::{Duration, Ending};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::api::{answer, call};
use crate::world::World;

const TOKEN: &str = "correct horse battery staple";
const MINUTE: Duration = Duration::from_secs(60);

/// Longest wait for what follows from a hook: far below the minute after which freeze periods are read anyway.
const SOON: Duration = Duration::from_secs(20);

fn pipeline(status: &str) -> String {
    json!({
        "object_kind": "pipeline",
        "object_attributes": { "id": 90_001, "status": status },
        "project": { "id": 4_711 },
    })
    .to_string()
}

async fn deliver(world: &mut World, token: &str, id: &str, body: String) -> StatusCode {
    let request = Request::post("/api/v1/webhooks/gitlab")
        .header("content-type", "application/json")
        .header("x-gitlab-token", token)
        .header("idempotency-key", id)
        .body(Body::from(body))
        .unwrap();
    answer(world, request).await.0.status
}

#[tokio::test]
async fn answers_at_once_and_queues_each_hint_once() {
    let mut world = World::new().await;
    let cancelled = || pipeline("canceled");
    let status = deliver(&mut world, TOKEN, "1", cancelled()).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "nobody takes them");
    let (webhooks, mut hints) = Webhooks::new(Keys::new(Some(TOKEN), None).unwrap());
    world.webhooks = Some(webhooks);
    let wrong = deliver(&mut world, "another", "1", cancelled()).await;
    assert_eq!(wrong, StatusCode::UNAUTHORIZED);
    assert!(hints.try_recv().is_err());
    let expected = Hint::Pipeline {
        project_id: 4_711,
        pipeline_id: 90_001,
        status: "canceled".to_owned(),
    };
    for (id, comes_out) in [("1", true), ("1", false), ("2", true)] {
        let status = deliver(&mut world, TOKEN, id, cancelled()).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(hints.try_recv().ok(), comes_out.then(|| expected.clone()));
    }
    // What nobody acts on, and what makes no sense, is no failure: GitLab would switch the hook off.
    for (id, body) in [("3", r#"{"object_kind":"wiki_page"}"#), ("4", "{")] {
        let status = deliver(&mut world, TOKEN, id, body.to_owned()).await;
        assert_eq!(status, StatusCode::OK);
        assert!(hints.try_recv().is_err());
    }
    // Nobody works on them: one more than the queue holds may come again later.
    for number in 0..QUEUE_MAX {
        let status = deliver(&mut world, TOKEN, &format!("q{number}"), cancelled()).await;
        assert_eq!(status, StatusCode::OK);
    }
    let full = deliver(&mut world, TOKEN, "late", cancelled()).await;
    assert_eq!(full, StatusCode::SERVICE_UNAVAILABLE);
    assert!(hints.try_recv().is_ok());
    let again = deliver(&mut world, TOKEN, "late", cancelled()).await;
    assert_eq!(again, StatusCode::OK);
}

/// A body of this many MiB, and nothing more until `ends`.
fn body(mebibytes: usize, ends: bool) -> Body {
    let chunk = || Ok::<_, std::io::Error>(Bytes::from_static(&[b' '; 1 << 20]));
    let chunks = stream::iter(std::iter::repeat_with(chunk).take(mebibytes));
    if ends {
        Body::from_stream(chunks)
    } else {
        Body::from_stream(chunks.chain(stream::pending()))
    }
}

fn delivery(token: &str, body: Body) -> Request<Body> {
    let request = Request::post("/api/v1/webhooks/gitlab").header("x-gitlab-token", token);
    request.body(body).unwrap()
}

#[tokio::test]
async fn reads_no_body_of_a_stranger() {
    let mut world = World::new().await;
    let (webhooks, _hints) = Webhooks::new(Keys::new(Some(TOKEN), None).unwrap());
    let table = [
        (None, TOKEN, StatusCode::NOT_FOUND),
        (Some(&webhooks), "another", StatusCode::UNAUTHORIZED),
    ];
    for (takes, token, expected) in table {
        world.webhooks = takes.cloned();
        let is_read = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&is_read);
        let chunks = stream::poll_fn(move |_| {
            seen.store(true, Ordering::Relaxed);
            std::task::Poll::Ready(None::<Result<Bytes, std::io::Error>>)
        });
        let request = delivery(token, Body::from_stream(chunks));
        assert_eq!(answer(&mut world, request).await.0.status, expected);
        assert!(!is_read.load(Ordering::Relaxed), "{expected}");
    }
}

#[tokio::test]
async fn keeps_only_so_much_of_what_comes_in_at_one_time() {
    let mut world = World::new().await;
    let (webhooks, _hints) = Webhooks::new(Keys::new(Some(TOKEN), None).unwrap());
    world.webhooks = Some(webhooks);
    let longest = BODY_BYTES_MAX >> 20;
    let long = world
        .api()
        .oneshot(delivery(TOKEN, body(longest + 1, true)));
    let status = long.await.unwrap().status();
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    let on_their_way = [longest, longest].map(|mebibytes| {
        let request = delivery(TOKEN, body(mebibytes, false));
        tokio::spawn(world.api().oneshot(request))
    });
    let one_more = || world.api().oneshot(delivery(TOKEN, body(1, true)));
    // They are read in turns with us.
    while one_more().await.unwrap().status() == StatusCode::OK {
        tokio::task::yield_now().await;
    }
    let status = one_more().await.unwrap().status();
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    for sender in on_their_way {
        sender.abort();
        assert!(sender.await.unwrap_err().is_cancelled());
    }
    assert_eq!(one_more().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_cancelled_pipeline_ends_or_holds_its_own_rollout_alone() {
    let table = [
        (OnPipelineCancel::Abort, 90_001, "rolled_back"),
        (OnPipelineCancel::Hold, 90_001, "paused"),
        (OnPipelineCancel::Ignore, 90_001, "analyzing"),
        (OnPipelineCancel::Abort, 90_002, "analyzing"),
    ];
    for (on_pipeline_cancel, pipeline_id, phase) in table {
        let mut world = World::new().await;
        let origin = json!({ "project_id": 4_711, "pipeline_id": pipeline_id, "job_id": 1 });
        world.origin = Some(serde_json::from_value(origin).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
        let args = HookArgs {
            webhook_secret_file: Some(file),
            on_pipeline_cancel,
            ..HookArgs::default()
        };
        let clock: Arc<dyn Clock> = world.clock.clone();
        let hooks = args.open(None, &clock).unwrap();
        world.webhooks = hooks.webhooks.clone();
        let stop = CancellationToken::new();
        let working = tokio::spawn(hooks.run(world.handle.clone(), stop.clone()));
        world.deploy("web:v2").await.unwrap();
        world.until_phase("analyzing", MINUTE).await;
        let running = deliver(&mut world, TOKEN, "1", pipeline("running")).await;
        assert_eq!(running, StatusCode::OK);
        let status = deliver(&mut world, TOKEN, "2", pipeline("canceled")).await;
        assert_eq!(status, StatusCode::OK);
        // Its work is done between two turns of the loop.
        for _ in 0..8 {
            tokio::task::yield_now().await;
            world.step().await;
        }
        if phase == "rolled_back" {
            world
                .until("ended", 2 * MINUTE, |_, rollout| rollout.ending().is_some())
                .await;
            assert_eq!(world.rollout().await.ending(), Some(Ending::Aborted));
        } else {
            assert_eq!(world.rollout().await.phase.name(), phase);
        }
        stop.cancel();
        working.await.unwrap();
    }
}

/// A GitLab whose freeze periods are read, and whose hooks are taken.
struct Hooked {
    gitlab: StandIn,
    freezes: Freezes,
    stop: CancellationToken,
    working: tokio::task::JoinHandle<()>,
}

impl Hooked {
    async fn up(world: &mut World) -> Self {
        let gitlab = StandIn::start().await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
        let args = HookArgs {
            freeze_project: Some(PROJECT.to_string()),
            webhook_secret_file: Some(file),
            ..HookArgs::default()
        };
        let token = Secret::from_text(PROJECT_TOKEN);
        let client = Gitlab::new(&gitlab.url(), None, token).unwrap();
        let clock: Arc<dyn Clock> = world.clock.clone();
        let hooks = args.open(Some(&client), &clock).unwrap();
        world.webhooks = hooks.webhooks.clone();
        world.gitlab = hooks.gitlab_url();
        let freezes = hooks.freezes.clone();
        world.freeze_by(freezes.clone());
        let stop = CancellationToken::new();
        let working = tokio::spawn(hooks.run(world.handle.clone(), stop.clone()));
        let hooked = Self {
            gitlab,
            freezes,
            stop,
            working,
        };
        hooked.says(world, &Frozen::No).await;
        hooked
    }

    /// Requests of this path so far.
    fn asked(&self, path: &str) -> usize {
        let seen = self.gitlab.seen();
        seen.iter().filter(|one| one.path.ends_with(path)).count()
    }

    /// Waits until freezes are known to be like this.
    async fn says(&self, world: &World, expected: &Frozen) {
        let look = async || {
            let (now, elapsed) = (world.clock.now(), world.clock.elapsed());
            let policy = Policy::default();
            self.freezes.ask(&policy, "test", now, elapsed)
        };
        eventually("freezes", SOON, look, |seen| seen == expected).await;
    }

    async fn down(self) {
        self.stop.cancel();
        self.working.await.unwrap();
    }
}

fn push() -> String {
    include_str!("../../../tests/data/gitlab/webhook-push.json").to_owned()
}

#[tokio::test]
async fn a_push_brings_a_new_freeze_at_once() {
    let mut world = World::new().await;
    let hooked = Hooked::up(&mut world).await;
    // It is Friday, 16:00 by UTC.
    hooked
        .gitlab
        .records(|records| records.add_freeze_period("0 12 * * 5", "0 7 * * 1"));
    let status = deliver(&mut world, TOKEN, "push-1", push()).await;
    assert_eq!(status, StatusCode::OK);
    let frozen = "by a freeze period of GitLab until 2026-11-23 07:00:00Z";
    hooked.says(&world, &Frozen::Yes(frozen.to_owned())).await;
    let refused = world.deploy("web:v2").await.unwrap_err().to_string();
    assert!(refused.contains(frozen), "{refused}");
    assert_eq!(hooked.asked("/freeze_periods"), 2, "once each");
    hooked.down().await;
}

#[tokio::test]
async fn health_says_whether_freeze_periods_are_known() {
    let mut world = World::new().await;
    let hooked = Hooked::up(&mut world).await;
    world.pass(Duration::from_secs(10)).await;
    let path = "/api/v1/health";
    let (_, health) = call(&mut world, Method::GET, path, None).await;
    let gitlab = &health["gitlab"];
    assert_eq!(gitlab["url"], hooked.gitlab.url());
    let periods = &gitlab["freeze_periods"];
    assert!(periods["age_seconds"].as_f64() >= Some(10.0), "{gitlab}");
    assert_eq!(
        (&periods["trouble"], &gitlab["keys"]),
        (&Value::Null, &Value::Null)
    );
    // Somebody writes a period that nobody can tell.
    hooked
        .gitlab
        .records(|records| records.add_freeze_period("soon", "0 7 * * 1"));
    deliver(&mut world, TOKEN, "push-1", push()).await;
    let look = async || call(&mut world, Method::GET, path, None).await.1;
    let is_unknown = |health: &Value| health["gitlab"]["freeze_periods"]["trouble"].is_string();
    eventually("freeze periods that are not known", SOON, look, is_unknown).await;
    hooked.down().await;
}

#[tokio::test]
async fn a_cancelled_pipeline_is_read_back_before_anything_is_ended() {
    for (status, phase) in [("running", "analyzing"), ("canceled", "rolled_back")] {
        let mut world = World::new().await;
        let origin = json!({ "project_id": PROJECT, "pipeline_id": 90_001, "job_id": 1 });
        world.origin = Some(serde_json::from_value(origin).unwrap());
        let hooked = Hooked::up(&mut world).await;
        hooked
            .gitlab
            .records(|records| records.set_pipeline(90_001, status));
        world.deploy("web:v2").await.unwrap();
        world.until_phase("analyzing", MINUTE).await;
        deliver(&mut world, TOKEN, "1", pipeline("canceled")).await;
        if phase == "rolled_back" {
            let ended = async || {
                world.step().await;
                world.rollout().await.ending()
            };
            eventually("its end", SOON, ended, Option::is_some).await;
            assert_eq!(world.rollout().await.ending(), Some(Ending::Aborted));
        } else {
            // Hints are worked on one after the other: what the push does comes after.
            deliver(&mut world, TOKEN, "2", push()).await;
            let read = async || hooked.asked("/freeze_periods");
            eventually("freeze periods read anew", SOON, read, |read| *read > 1).await;
            world.pass(Duration::from_secs(2)).await;
            assert_eq!(world.rollout().await.phase.name(), phase);
        }
        assert_eq!(hooked.asked("/pipelines/90001"), 1, "{status}");
        hooked.down().await;
    }
}
