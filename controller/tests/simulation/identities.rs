//! CI jobs come by ID tokens, people sign in at their provider: what each may do, and what the event log says of it.

use axum::body::Body;
use axum::http::response::Parts;
use axum::http::{Request, StatusCode, header};
use controller_testing::identity::{
    CLIENT, CLIENT_SECRET, Person, Provider, Signer, encode, sha256,
};
use friday::auth::{Identities, NewToken, Role, Tokens};
use friday::clock::Clock as _;
use http_body_util::BodyExt as _;
use rollout::{Command, Duration, RolloutId};
use serde_json::{Value, json};
use sqlx::Connection as _;
use tower::ServiceExt as _;

use crate::api::answer;
use crate::world::{FRIDAY_YML, World};

const CLAIMS: &str = include_str!("../../../tests/data/gitlab/id-token-claims.json");
const FORK: &str =
    include_str!("../../../tests/data/gitlab/id-token-claims-fork-merge-request.json");

const SHA: &str = "3f1c9e0b7a5d4c2e8f6a1b0c9d8e7f6a5b4c3d2e";

/// Where browsers reach the controller.
const BOARD: &str = "http://127.0.0.1:7070";

/// A world that knows a provider, and one token of a machine.
async fn guarded() -> (World, Provider, String) {
    let mut world = World::new().await;
    let dana = Person {
        id: 42,
        login: "dana".to_owned(),
        groups: vec!["acme/ops".to_owned()],
    };
    let provider = Provider::start(world.clock.now().as_second(), dana).await;
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, format!("{CLIENT_SECRET}\n")).unwrap();
    let file = folder.path().join("identities.yml");
    let text = format!(
        "issuer: {}
jobs:
  audience: https://cd.example.com
  running_token_file: {}
  grants:
    - {{ project: 4711, role: operator, services: [web], environments: [production], refs: [main] }}
    - {{ project: 8888, role: viewer }}
    - {{ project: 9000, role: operator, services: [web], environments: [production] }}
    - {{ project: 9001, role: operator, services: [nope], environments: [production] }}
people:
  client: {CLIENT}
  secret_file: {}
  url: {BOARD}
  grants:
    - {{ group: acme/ops, role: operator, environments: [production] }}
    - {{ group: acme/all, role: viewer }}
",
        provider.issuer(),
        secret.display(),
        secret.display()
    );
    std::fs::write(&file, text).unwrap();
    let identities = Identities::open(&file, world.clock.clone()).unwrap();
    let machine = NewToken::random("machine", Role::Admin);
    let lines = folder.path().join("tokens");
    std::fs::write(&lines, &machine.line).unwrap();
    world.tokens = Some(Tokens::with(Some(&lines), Some(identities)).unwrap());
    (world, provider, machine.token)
}

fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> Request<Body> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::from(body.to_string())).unwrap()
}

/// Asks what the loop need not answer, while no time passes.
async fn ask(
    world: &World,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Value,
) -> (Parts, Value) {
    let request = request(method, path, headers, &body);
    let (head, body) = world.api().oneshot(request).await.unwrap().into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    (head, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// The good claims with these in place of theirs.
fn claims(changes: Value) -> Value {
    let mut claims: Value = serde_json::from_str(CLAIMS).unwrap();
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

fn deploy(environment: &str, commit: &str) -> Value {
    json!({
        "spec": FRIDAY_YML, "image": "web:v2", "author": "dana", "environment": environment, "commit": commit,
    })
}

fn rule(problem: &Value) -> String {
    let words = problem["detail"].as_str().unwrap_or_default();
    words.split('"').nth(1).unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_job_releases_its_own_commit_where_it_was_let_in() {
    let (mut world, provider, machine) = guarded().await;
    let good = bearer(&provider.job_token(&claims(json!({}))));
    let services = "/api/v1/services";
    let (head, _) = ask(
        &world,
        "GET",
        services,
        &[("authorization", &good)],
        Value::Null,
    )
    .await;
    assert_eq!(head.status, StatusCode::OK);

    let rollouts = "/api/v1/rollouts";
    let fork: Value = serde_json::from_str(FORK).unwrap();
    let viewer = json!({ "project_id": "8888", "job_project_id": "8888", "jti": "v" });
    for (claims, body, refused) in [
        (claims(json!({})), deploy("staging", SHA), "grant"),
        (
            claims(json!({})),
            deploy("production", &"0".repeat(40)),
            "commit",
        ),
        (
            claims(json!({ "ref_protected": "false" })),
            deploy("production", SHA),
            "protected-ref",
        ),
        (
            claims(json!({ "environment": "staging" })),
            deploy("production", SHA),
            "environment",
        ),
        (
            claims(json!({ "pipeline_source": "merge_request_event" })),
            deploy("production", SHA),
            "source",
        ),
        (
            claims(json!({ "job_id": "7" })),
            deploy("production", SHA),
            "replay",
        ),
        (fork, deploy("production", SHA), "fork"),
        (claims(viewer), deploy("production", SHA), "operate"),
    ] {
        let token = bearer(&provider.job_token(&claims));
        let headers = [("authorization", token.as_str())];
        let (head, problem) = ask(&world, "POST", rollouts, &headers, body).await;
        assert_eq!(rule(&problem), refused, "{} {problem}", head.status);
        assert!(head.status.is_client_error());
    }

    let job = [("authorization", good.as_str())];
    // A token outlives its job, and starts nothing then.
    provider.set_job_state("success");
    let late = deploy("production", SHA);
    let (_, problem) = ask(&world, "POST", rollouts, &job, late).await;
    assert_eq!(rule(&problem), "job-running");
    provider.set_job_state("running");
    let mut body = deploy("production", SHA);
    body["origin"] = json!({ "project_id": 4711, "pipeline_id": 1, "job_id": 500_123, "sha": SHA });
    let (_, problem) = ask(&world, "POST", rollouts, &job, body.clone()).await;
    assert_eq!(rule(&problem), "origin");
    body["origin"]["pipeline_id"] = 90_001.into();
    body["origin"]["user_id"] = 1.into();
    let (head, made) = answer(&mut world, request("POST", rollouts, &job, &body)).await;
    assert_eq!(head.status, StatusCode::CREATED, "{made}");
    assert_eq!(made["author"], "gitlab user 42 (for dana)");
    world
        .until_phase("analyzing", Duration::from_secs(10))
        .await;
    // A later job of the pipeline may go further; a job of another commit may go back and no further.
    let older = claims(json!({ "sha": "1".repeat(40), "job_id": "9", "jti": "older" }));
    let older = bearer(&provider.job_token(&older));
    let orders = "/api/v1/rollouts/web-1/orders";
    let order = |order: &str| json!({ "order": order, "by": "dana" });
    let headers = [("authorization", older.as_str())];
    let (_, problem) = ask(&world, "POST", orders, &headers, order("promote_full")).await;
    assert_eq!(rule(&problem), "commit");
    let (_, problem) = ask(&world, "POST", orders, &headers, order("approve")).await;
    assert_eq!(rule(&problem), "approve");
    let other = json!({ "project_id": "9000", "job_project_id": "9000", "jti": "other" });
    let other = bearer(&provider.job_token(&claims(other)));
    let others = [("authorization", other.as_str())];
    let (_, problem) = ask(&world, "POST", orders, &others, order("abort")).await;
    assert_eq!(rule(&problem), "own-project");
    // A token outlives its job. Who may go further is asked of GitLab; back goes without.
    provider.set_job_state("canceled");
    let (_, problem) = ask(&world, "POST", orders, &job, order("promote_full")).await;
    assert_eq!(rule(&problem), "job-running");
    let back = request("POST", orders, &headers, &order("abort"));
    let (head, _) = answer(&mut world, back).await;
    assert_eq!(head.status, StatusCode::OK);
    // The machine's token is as good as ever.
    let machine = bearer(&machine);
    let (head, _) = ask(
        &world,
        "GET",
        services,
        &[("authorization", &machine)],
        Value::Null,
    )
    .await;
    assert_eq!(head.status, StatusCode::OK);
}

#[tokio::test]
async fn alerts_are_heard_of_who_may_move_every_service() {
    let (mut world, provider, machine) = guarded().await;
    let alert = json!({
        "version": "4",
        "alerts": [{ "status": "firing", "labels": { "alertname": "Down", "friday_hold": "true" } }],
    });
    let unprotected = claims(json!({ "ref_protected": "false", "ref": "mine" }));
    let job = bearer(&provider.job_token(&unprotected));
    let head = sign_in(&world, &provider, "/auth/login").await;
    let (cookie, alerts) = (cookies(&head), "/api/v1/alerts");
    for headers in [
        [("authorization", job.as_str()), ("x-friday-order", "1")],
        [("cookie", cookie.as_str()), ("x-friday-order", "1")],
    ] {
        let (head, problem) = ask(&world, "POST", alerts, &headers, alert.clone()).await;
        assert_eq!(head.status, StatusCode::FORBIDDEN, "{problem}");
        let words = problem["detail"].as_str().unwrap();
        assert!(words.contains("every service"), "{words}");
    }
    let machine = bearer(&machine);
    let headers = [("authorization", machine.as_str())];
    let (head, heard) = answer(&mut world, request("POST", alerts, &headers, &alert)).await;
    assert_eq!(head.status, StatusCode::OK, "{heard}");
}

/// What a caller reads of everything that there is, as the paths that do not answer; and how much is in the lists.
async fn reads(world: &World, headers: &[(&str, &str)]) -> (Vec<&'static str>, usize) {
    let paths = [
        "/api/v1/rollouts/web-1",
        "/api/v1/rollouts/web",
        "/api/v1/rollouts/web/events",
        "/api/v1/rollouts/web-1/series",
        "/api/v1/rollouts/web/card.svg",
        "/metrics",
        "/api/v1/events",
        "/api/v1/proxies",
        "/api/v1/agents",
        "/api/v1/health",
    ];
    let mut refused = Vec::new();
    for path in paths {
        let (head, problem) = ask(world, "GET", path, headers, Value::Null).await;
        if head.status != StatusCode::OK {
            assert_eq!(head.status, StatusCode::FORBIDDEN, "{path} {problem}");
            refused.push(path);
        }
    }
    let mut listed = 0;
    for path in [
        "/api/v1/rollouts",
        "/api/v1/services",
        "/api/v1/services/web/lock",
    ] {
        let (head, list) = ask(world, "GET", path, headers, Value::Null).await;
        assert_eq!(head.status, StatusCode::OK, "{path} {list}");
        listed += list.as_array().unwrap().len();
    }
    (refused, listed)
}

#[tokio::test]
async fn who_is_granted_something_somewhere_reads_of_that_and_of_nothing_else() {
    for (environment, is_theirs) in [("production", true), ("staging", false)] {
        let (mut world, provider, machine) = guarded().await;
        let machine = bearer(&machine);
        let of_machine = [("authorization", machine.as_str())];
        let body = deploy(environment, SHA);
        let rollouts = "/api/v1/rollouts";
        let begin = request("POST", rollouts, &of_machine, &body);
        assert_eq!(
            answer(&mut world, begin).await.0.status,
            StatusCode::CREATED
        );
        let lock = json!({ "by": "ada", "reason": "secret", "environment": environment });
        let path = "/api/v1/services/web/lock";
        let lock = request("PUT", path, &of_machine, &lock);
        assert_eq!(answer(&mut world, lock).await.0.status, StatusCode::OK);
        assert_eq!(reads(&world, &of_machine).await, (Vec::new(), 3));

        let head = sign_in(&world, &provider, "/auth/login").await;
        let cookie = cookies(&head);
        let job = bearer(&provider.job_token(&claims(json!({}))));
        let unprotected = json!({ "ref_protected": "false", "job_id": "8", "jti": "u" });
        let unprotected = bearer(&provider.job_token(&claims(unprotected)));
        for (headers, is_let_in) in [
            ([("cookie", cookie.as_str())], is_theirs),
            ([("authorization", job.as_str())], is_theirs),
            // A grant whose terms it does not meet lets a job read nothing.
            ([("authorization", unprotected.as_str())], false),
        ] {
            let (refused, listed) = reads(&world, &headers).await;
            let all = [
                "/metrics",
                "/api/v1/events",
                "/api/v1/proxies",
                "/api/v1/agents",
                "/api/v1/health",
            ];
            assert!(refused.ends_with(&all), "{refused:?}");
            // So the board asks for none of them.
            let (_, me) = ask(&world, "GET", "/api/v1/me", &headers, Value::Null).await;
            assert_eq!(me["may_read_all"], false, "{me}");
            let of_rollouts = refused.len() - all.len();
            let expected = if is_let_in { (0, 3) } else { (5, 0) };
            assert_eq!((of_rollouts, listed), expected, "{environment} {refused:?}");
            let stream = "/api/v1/stream?rollout=web";
            let stream = request("GET", stream, &headers, &Value::Null);
            let stream = world.api().oneshot(stream).await.unwrap();
            assert_eq!(stream.status() == StatusCode::OK, is_let_in);
            let path = "/api/v1/rollouts/nope";
            let (head, problem) = ask(&world, "GET", path, &headers, Value::Null).await;
            assert_eq!(head.status, StatusCode::NOT_FOUND);
            let words = problem["detail"].as_str().unwrap();
            assert!(!words.contains("web"), "{words}");
        }
    }
}

#[tokio::test]
async fn a_list_reads_no_rollout_of_services_that_are_not_its_readers() {
    let (mut world, provider, machine) = guarded().await;
    let machine = bearer(&machine);
    let of_machine = [("authorization", machine.as_str())];
    for image in ["web:v2", "web:v3"] {
        let mut body = deploy("production", SHA);
        body["image"] = image.into();
        let begin = request("POST", "/api/v1/rollouts", &of_machine, &body);
        let (head, made) = answer(&mut world, begin).await;
        assert_eq!(head.status, StatusCode::CREATED, "{made}");
    }
    // Somebody else's, and such that whoever reads it fails.
    let url = format!("sqlite://{}", world.file().display());
    let mut store = sqlx::SqliteConnection::connect(&url).await.unwrap();
    sqlx::query("INSERT INTO rollouts (id, service, number, ended, canary, body) VALUES ('shop-1', 'shop', 1, 1, 'x', '{}')")
        .execute(&mut store)
        .await
        .unwrap();
    let job = bearer(&provider.job_token(&claims(json!({}))));
    let of_job = [("authorization", job.as_str())];
    let read = async |headers: &[(&str, &str)], query: &str| {
        let path = format!("/api/v1/rollouts?{query}");
        let (head, list) = ask(&world, "GET", &path, headers, Value::Null).await;
        let list = list.as_array().cloned().unwrap_or_default();
        let ids = list
            .iter()
            .map(|one| one["id"].as_str().unwrap().to_owned());
        (head.status.as_u16(), ids.collect::<Vec<_>>().join(" "))
    };
    for (query, expected) in [
        ("limit=10", (200, "web-2 web-1")),
        ("limit=1", (200, "web-2")),
        ("limit=10&before=web-2", (200, "web-1")),
        ("limit=10&before=shop-1", (200, "web-2 web-1")),
        ("limit=10&before=shop-2", (404, "")),
        ("service=web", (200, "web-2 web-1")),
        ("service=shop", (404, "")),
    ] {
        let (status, ids) = read(&of_job, query).await;
        assert_eq!((status, ids.as_str()), expected, "{query}");
    }
    assert_eq!(read(&of_machine, "limit=10").await.0, 503);
}

#[tokio::test]
async fn a_refusal_names_no_service_that_is_not_its_readers() {
    let (world, provider, machine) = guarded().await;
    let other = json!({ "project_id": "9001", "job_project_id": "9001", "jti": "nope" });
    let other = bearer(&provider.job_token(&claims(other)));
    let machine = bearer(&machine);
    let mut release = deploy("production", SHA);
    release["spec"] = FRIDAY_YML.replace("service: web", "service: nope").into();
    let lock = json!({ "by": "ada", "reason": "migration", "environment": "production" });
    for (method, path, body) in [
        ("POST", "/api/v1/rollouts", release),
        ("PUT", "/api/v1/services/nope/lock", lock),
        ("GET", "/api/v1/rollouts?service=nope", Value::Null),
    ] {
        for (token, known) in [(&machine, "known: web"), (&other, "known: none")] {
            let headers = [("authorization", token.as_str())];
            let (head, problem) = ask(&world, method, path, &headers, body.clone()).await;
            assert_eq!(head.status, StatusCode::NOT_FOUND, "{problem}");
            assert_eq!(problem["code"], "unknown_service");
            let words = problem["detail"].as_str().unwrap();
            assert!(words.ends_with(known), "{path} {words}");
        }
    }
}

#[tokio::test]
async fn the_way_back_is_no_release_of_the_job_that_lets_it_go_on() {
    let (mut world, provider, machine) = guarded().await;
    let machine = bearer(&machine);
    let of_machine = [("authorization", machine.as_str())];
    for (image, commit) in [("web:v2", "1".repeat(40)), ("web:v3", SHA.to_owned())] {
        let mut body = deploy("production", &commit);
        body["image"] = image.into();
        let begin = request("POST", "/api/v1/rollouts", &of_machine, &body);
        let (_, made) = answer(&mut world, begin).await;
        let id = RolloutId::from_text(made["id"].as_str().unwrap());
        world.order(&id, Command::PromoteFull).await.unwrap();
        world.until_phase("promoted", Duration::from_secs(60)).await;
    }
    let back = world.undo(None).await.unwrap();
    world.order(&back, Command::Pause).await.unwrap();
    let canary = world.rollout().await.canary;
    assert_eq!(canary.commit, Some("1".repeat(40)));
    // The job's commit is the one that is left.
    let job = bearer(&provider.job_token(&claims(json!({}))));
    let of_job = [("authorization", job.as_str())];
    let orders = format!("/api/v1/rollouts/{back}/orders");
    let resume = json!({ "order": "resume", "by": "dana" });
    let resume = request("POST", &orders, &of_job, &resume);
    let (head, problem) = answer(&mut world, resume).await;
    assert_eq!(head.status, StatusCode::OK, "{problem}");
    world.until_phase("promoted", Duration::from_secs(60)).await;
}

#[tokio::test]
async fn keys_are_asked_for_once_and_outlive_the_provider() {
    let (world, provider, _) = guarded().await;
    let good = bearer(&provider.job_token(&claims(json!({}))));
    let services = "/api/v1/services";
    let ask = async |token: &str| {
        let headers = [("authorization", token)];
        let (head, problem) = ask(&world, "GET", services, &headers, Value::Null).await;
        (head.status, rule(&problem))
    };
    provider.fail(true);
    let (status, rule) = ask(&good).await;
    assert_eq!(
        (status, rule.as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "keys-reachable")
    );
    provider.fail(false);
    world.clock.pass(Duration::from_secs(10));
    assert_eq!(ask(&good).await.0, StatusCode::OK);
    assert_eq!(provider.key_requests(), 1);
    // Names of keys that somebody makes up.
    for n in 0..20 {
        let header = json!({ "alg": "RS256", "kid": format!("k{n}") }).to_string();
        let token = Signer::first().sign(&header, "{}");
        let (status, rule) = ask(&bearer(&token)).await;
        assert_eq!(
            (status, rule.as_str()),
            (StatusCode::UNAUTHORIZED, "key-known")
        );
    }
    assert_eq!(provider.key_requests(), 1, "at most once a minute");
    provider.fail(true);
    world.clock.pass(Duration::from_secs(120));
    assert_eq!(
        ask(&good).await.0,
        StatusCode::OK,
        "the last good set is kept"
    );
    let (status, rule) = ask(&bearer("a.b.c")).await;
    assert_eq!((status, rule.as_str()), (StatusCode::UNAUTHORIZED, "form"));
}

fn location(head: &Parts) -> String {
    head.headers[header::LOCATION].to_str().unwrap().to_owned()
}

/// The cookies that an answer sets, as a browser sends them back.
fn cookies(head: &Parts) -> String {
    let lines = head.headers.get_all(header::SET_COOKIE).iter();
    let lines = lines.map(|line| line.to_str().unwrap());
    let pairs = lines.map(|line| line.split(';').next().unwrap());
    pairs.collect::<Vec<_>>().join("; ")
}

fn path_of(url: &str, base: &str) -> String {
    url.strip_prefix(base).unwrap().to_owned()
}

/// A browser goes through the sign-in that begins at `path`; the last answer of the controller.
async fn sign_in(world: &World, provider: &Provider, path: &str) -> Parts {
    let (head, _) = ask(world, "GET", path, &[], Value::Null).await;
    assert_eq!(head.status, StatusCode::SEE_OTHER);
    let cookie = cookies(&head);
    let back = path_of(&provider.agree(&location(&head)), BOARD);
    // Another browser cannot be made to finish it.
    let (other, problem) = ask(world, "GET", &back, &[], Value::Null).await;
    assert_eq!(other.status, StatusCode::BAD_REQUEST);
    assert_eq!(problem["code"], "unknown_sign_in");
    let (head, problem) = ask(world, "GET", &back, &[("cookie", &cookie)], Value::Null).await;
    assert_eq!(head.status, StatusCode::SEE_OTHER, "{problem}");
    let (again, _) = ask(world, "GET", &back, &[("cookie", &cookie)], Value::Null).await;
    assert_eq!(again.status, StatusCode::BAD_REQUEST, "a code is good once");
    head
}

#[tokio::test]
async fn a_person_signs_in_on_the_board_and_gives_orders_with_a_header() {
    let (mut world, provider, _) = guarded().await;
    let (_, view) = ask(&world, "GET", "/auth/session", &[], Value::Null).await;
    assert_eq!(view["sign_in"], format!("{BOARD}/auth/login"));
    assert_eq!(view["name"], Value::Null);

    let head = sign_in(&world, &provider, "/auth/login").await;
    assert_eq!(location(&head), format!("{BOARD}/"));
    let set = head.headers.get_all(header::SET_COOKIE).iter();
    let set: Vec<&str> = set.map(|line| line.to_str().unwrap()).collect();
    let session = set.iter().find(|line| line.starts_with("friday_session="));
    let session = session.unwrap();
    assert!(session.contains("; HttpOnly; SameSite=Lax"), "{session}");
    let cookie = session.split(';').next().unwrap().to_owned();
    let with = [("cookie", cookie.as_str())];
    let (_, view) = ask(&world, "GET", "/auth/session", &with, Value::Null).await;
    assert_eq!(view["name"], "dana");
    assert_eq!(view["role"], "operator");

    let rollouts = "/api/v1/rollouts";
    let body = deploy("production", SHA);
    let (head, problem) = ask(&world, "POST", rollouts, &with, body.clone()).await;
    assert_eq!(head.status, StatusCode::FORBIDDEN);
    assert_eq!(problem["code"], "csrf");
    let with = [("cookie", cookie.as_str()), ("x-friday-order", "1")];
    let staging = deploy("staging", SHA);
    let (_, problem) = ask(&world, "POST", rollouts, &with, staging).await;
    assert_eq!(rule(&problem), "grant");
    let (head, made) = answer(&mut world, request("POST", rollouts, &with, &body)).await;
    assert_eq!(head.status, StatusCode::CREATED, "{made}");
    assert_eq!(made["author"], "gitlab user 42 (for dana)");

    let (head, _) = ask(&world, "POST", "/auth/logout", &with, Value::Null).await;
    assert_eq!(head.status, StatusCode::NO_CONTENT);
    let (head, problem) = ask(&world, "GET", rollouts, &with, Value::Null).await;
    assert_eq!(head.status, StatusCode::UNAUTHORIZED);
    assert_eq!(problem["code"], "session_ended");
}

#[tokio::test]
async fn many_who_begin_keep_nobody_from_signing_in_nor_the_provider_busy() {
    let (world, provider, _) = guarded().await;
    let (head, _) = ask(&world, "GET", "/auth/login", &[], Value::Null).await;
    let (cookie, away) = (cookies(&head), location(&head));
    for _ in 0..1_500 {
        let (head, _) = ask(&world, "GET", "/auth/login", &[], Value::Null).await;
        assert_eq!(head.status, StatusCode::SEE_OTHER);
    }
    let back = path_of(&provider.agree(&away), BOARD);
    let (head, problem) = ask(&world, "GET", &back, &[("cookie", &cookie)], Value::Null).await;
    assert_eq!(head.status, StatusCode::SEE_OTHER, "{problem}");
    // Each of these is a request to the provider.
    let mut refused = None;
    for n in 0..60 {
        let (head, problem) = ask(&world, "POST", "/auth/device", &[], Value::Null).await;
        if head.status != StatusCode::OK {
            refused = Some((n, head.status, problem));
            break;
        }
    }
    let (begun, status, problem) = refused.expect("there is a limit");
    assert_eq!((begun, status), (50, StatusCode::TOO_MANY_REQUESTS));
    assert_eq!(problem["code"], "too_many_sign_ins");
    world.clock.pass(Duration::from_secs(1));
    let (head, _) = ask(&world, "POST", "/auth/device", &[], Value::Null).await;
    assert_eq!(head.status, StatusCode::OK);
}

#[tokio::test]
async fn who_comes_back_in_a_flood_waits_and_loads_the_same_page_again() {
    let (world, provider, _) = guarded().await;
    let begin = async || {
        let (head, _) = ask(&world, "GET", "/auth/login", &[], Value::Null).await;
        (cookies(&head), location(&head))
    };
    let come = async |cookie: &str, path: &str| {
        let (head, problem) = ask(&world, "GET", path, &[("cookie", cookie)], Value::Null).await;
        (head.status.as_u16(), problem)
    };
    let state = |away: &str| {
        let url = reqwest::Url::parse(away).unwrap();
        let mut pairs = url.query_pairs();
        pairs
            .find(|(name, _)| name == "state")
            .unwrap()
            .1
            .into_owned()
    };
    let (cookie, away) = begin().await;
    let back = path_of(&provider.agree(&away), BOARD);
    // Who says no asks the provider nothing, and takes no place.
    for _ in 0..100 {
        let (cookie, away) = begin().await;
        let path = format!("/auth/callback?error=access_denied&state={}", state(&away));
        let (status, problem) = come(&cookie, &path).await;
        assert_eq!((status, &problem["code"]), (403, &json!("declined")));
    }
    let mut statuses = Vec::new();
    while statuses.last() != Some(&429) {
        let (cookie, away) = begin().await;
        let path = format!("/auth/callback?code=junk&state={}", state(&away));
        let (status, _) = come(&cookie, &path).await;
        statuses.push(status);
    }
    assert_eq!(statuses.len(), 51);
    let (status, problem) = come(&cookie, &back).await;
    assert_eq!(status, 429, "{problem}");
    world.clock.pass(Duration::from_secs(1));
    let (status, problem) = come(&cookie, &back).await;
    assert_eq!(status, 303, "{problem}");
}

#[tokio::test]
async fn nobody_is_signed_in_whom_nothing_is_granted() {
    let (world, provider, _) = guarded().await;
    provider.become_person(Person {
        id: 66,
        login: "mallory".to_owned(),
        groups: vec!["acme/ops-not".to_owned()],
    });
    let (head, _) = ask(&world, "GET", "/auth/login", &[], Value::Null).await;
    let (cookie, back) = (cookies(&head), provider.agree(&location(&head)));
    let with = [("cookie", cookie.as_str())];
    let (head, problem) = ask(&world, "GET", &path_of(&back, BOARD), &with, Value::Null).await;
    assert_eq!(head.status, StatusCode::FORBIDDEN);
    assert_eq!(rule(&problem), "grant");
    // A browser shows words, and not a document.
    let with = [("cookie", cookie.as_str()), ("accept", "text/html")];
    let (head, _) = ask(&world, "GET", &path_of(&back, BOARD), &with, Value::Null).await;
    assert_eq!(head.status, StatusCode::BAD_REQUEST);
    assert_eq!(
        head.headers[header::CONTENT_TYPE],
        "text/plain; charset=utf-8"
    );
}

#[tokio::test]
async fn the_command_line_redeems_its_code_and_only_it_can() {
    let (world, provider, _) = guarded().await;
    let verifier = "v".repeat(64);
    // RFC 7636: the hash of the verifier.
    let challenge = encode(&sha256(verifier.as_bytes()));
    let path = format!("/auth/login?port=4567&challenge={challenge}&state=s1");
    let redeem = async |code: &str, verifier: &str| {
        let body = json!({ "grant": "code", "code": code, "verifier": verifier });
        let (head, answer) = ask(&world, "POST", "/auth/token", &[], body).await;
        (head.status, answer)
    };
    let code_of = |head: &Parts| {
        let back = location(head);
        let rest = back.strip_prefix("http://127.0.0.1:4567/?code=").unwrap();
        rest.strip_suffix("&state=s1").unwrap().to_owned()
    };
    let head = sign_in(&world, &provider, &path).await;
    let code = code_of(&head);
    assert_eq!(redeem(&code, "w").await.0, StatusCode::BAD_REQUEST);
    let (status, _) = redeem(&code, &verifier).await;
    assert_eq!(
        status,
        StatusCode::BAD_REQUEST,
        "a stolen code is worth nothing afterwards"
    );

    let head = sign_in(&world, &provider, &path).await;
    let (status, session) = redeem(&code_of(&head), &verifier).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(session["name"], "dana");
    let token = bearer(session["token"].as_str().unwrap());
    let with = [("authorization", token.as_str())];
    let (head, renewed) = ask(&world, "POST", "/auth/refresh", &with, Value::Null).await;
    assert_eq!(head.status, StatusCode::OK, "{renewed}");
    assert_ne!(renewed["token"], session["token"]);
    // Who lost their group is not renewed.
    provider.become_person(Person {
        id: 42,
        login: "dana".to_owned(),
        groups: Vec::new(),
    });
    let renewed = bearer(renewed["token"].as_str().unwrap());
    let with = [("authorization", renewed.as_str())];
    let (head, _) = ask(&world, "POST", "/auth/refresh", &with, Value::Null).await;
    assert_eq!(head.status, StatusCode::FORBIDDEN);
    for path in [
        "/auth/login?port=0&challenge=x&state=s",
        "/auth/login?port=1",
        "/auth/login?port=4567&challenge=evil%0a&state=s1",
    ] {
        let (head, _) = ask(&world, "GET", path, &[], Value::Null).await;
        assert_eq!(head.status, StatusCode::BAD_REQUEST, "{path}");
    }
}

#[tokio::test]
async fn a_device_waits_until_its_person_confirms() {
    let (world, provider, _) = guarded().await;
    let (head, begun) = ask(&world, "POST", "/auth/device", &[], Value::Null).await;
    assert_eq!(head.status, StatusCode::OK, "{begun}");
    assert_eq!(begun["user_code"], "0A44L90H");
    let body = json!({ "grant": "device", "device": begun["device"] });
    let look = async || {
        let (head, answer) = ask(&world, "POST", "/auth/token", &[], body.clone()).await;
        (head.status, answer)
    };
    let (status, problem) = look().await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(problem["code"], "authorization_pending");
    provider.confirm();
    let (status, session) = look().await;
    assert_eq!(status, StatusCode::OK);
    let token = bearer(session["token"].as_str().unwrap());
    let with = [("authorization", token.as_str())];
    let (head, _) = ask(&world, "GET", "/api/v1/services", &with, Value::Null).await;
    assert_eq!(head.status, StatusCode::OK);
    assert_eq!(look().await.0, StatusCode::BAD_REQUEST, "good once");
    // A session ends by itself.
    world.clock.pass(Duration::from_secs(10 * 60 * 60 + 1));
    let (head, problem) = ask(&world, "GET", "/api/v1/services", &with, Value::Null).await;
    assert_eq!(head.status, StatusCode::UNAUTHORIZED);
    assert_eq!(problem["code"], "session_ended");
}
