//! What the board lives on: its parts, who asks, a rollout over time, its picture, and the past by pages.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use friday::auth::{NewToken, Role, Tokens};
use http_body_util::BodyExt as _;
use rollout::Duration;
use tower::ServiceExt as _;

use crate::api::{answer, call};
use crate::world::{FAILING, World};

/// An answer's content type, security policy and text.
async fn text(world: &World, path: &str) -> (StatusCode, String, String, String) {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let answer = world.api().oneshot(request).await.unwrap();
    let (head, body) = answer.into_parts();
    let of = |name: &str| match head.headers.get(name) {
        Some(value) => value.to_str().unwrap().to_owned(),
        None => String::new(),
    };
    let bytes = body.collect().await.unwrap().to_bytes();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    (
        head.status,
        of("content-type"),
        of("content-security-policy"),
        text,
    )
}

#[tokio::test]
async fn the_page_is_served_in_parts_and_may_use_nothing_else() {
    let world = World::new().await;
    let mut whole = 0;
    for (path, kind) in [
        ("/", "text/html"),
        ("/board.css", "text/css"),
        ("/board.js", "text/javascript"),
        ("/board-draw.js", "text/javascript"),
    ] {
        let (status, is, policy, text) = text(&world, path).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        assert!(is.starts_with(kind), "{path} is {is}");
        assert!(
            policy.starts_with("default-src 'none'") && !policy.contains("unsafe"),
            "{policy}"
        );
        // No address of another host, but that which names a vocabulary.
        let text = text.replace("http://www.w3.org/2000/svg", "");
        assert!(
            !text.contains("http://") && !text.contains("https://"),
            "{path}"
        );
        assert!(!text.contains(".innerHTML"), "{path} shows text as text");
        if kind == "text/html" {
            assert!(
                !text.contains(" style=") && !text.contains("onclick"),
                "nothing inline"
            );
            assert!(!text.contains("<script>"), "nothing inline");
        }
        whole += text.len();
    }
    assert!(whole < 1 << 20, "the page has {whole} bytes");
}

#[tokio::test]
async fn says_who_asks_and_what_they_may_do() {
    let mut world = World::new().await;
    let (status, me) = call(&mut world, Method::GET, "/api/v1/me", None).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        (&me["may_operate"], &me["may_approve"]),
        (&true.into(), &true.into())
    );
    assert!(me.get("role").is_none(), "{me}");

    let roles = [
        (Role::Viewer, false, false),
        (Role::Operator, true, false),
        (Role::Approver, true, true),
    ];
    let tokens = roles.map(|(role, ..)| NewToken::random(&format!("the-{role}"), role));
    let lines: Vec<&str> = tokens.iter().map(|token| token.line.as_str()).collect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens");
    std::fs::write(&file, lines.join("\n")).unwrap();
    world.tokens = Some(Tokens::open(&file).unwrap());
    let (status, _) = call(&mut world, Method::GET, "/api/v1/me", None).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    for (token, (role, operate, approve)) in tokens.iter().zip(roles) {
        let request = Request::get("/api/v1/me")
            .header("authorization", format!("Bearer {}", token.token))
            .body(Body::empty())
            .unwrap();
        let (_, me) = answer(&mut world, request).await;
        assert_eq!(me["name"], format!("the-{role}"));
        assert_eq!(me["role"], role.as_str());
        assert_eq!(me["may_operate"], operate, "{role}");
        assert_eq!(me["may_approve"], approve, "{role}");
        assert_eq!(me["may_read_all"], true, "{role}");
    }
}

#[tokio::test]
async fn tells_a_rollout_over_time_and_draws_it() {
    let mut world = World::new().await;
    world.behave("web:v2", FAILING).await;
    let id = world.deploy("web:v2").await.unwrap();
    world
        .until_phase("analyzing", Duration::from_secs(10))
        .await;
    world.pass(Duration::from_secs(3)).await;
    let (_, seen) = call(&mut world, Method::GET, "/api/v1/rollouts/web", None).await;
    let worked = |arm: &str| {
        let tasks = seen[arm]["tasks"].as_array().unwrap().iter();
        tasks
            .map(|task| task["done"].as_u64().unwrap())
            .sum::<u64>()
    };
    assert!(worked("stable") > worked("canary"), "{seen}");
    world
        .until_phase("rolled_back", Duration::from_secs(120))
        .await;

    let path = format!("/api/v1/rollouts/{id}/series");
    let (status, series) = call(&mut world, Method::GET, &path, None).await;
    assert_eq!(status, StatusCode::OK, "{series}");
    assert_eq!(series["is_whole"], true);
    let points = series["points"].as_array().unwrap();
    assert_eq!(series["verdicts"], points.len());
    let last = points.last().unwrap();
    assert_eq!(last["decision"], "fail", "{last}");
    assert!(last["evidence"].as_f64() >= last["rollback_at"].as_f64());
    assert!(last["canary"]["error_ratio"].as_f64().unwrap() > 0.0);
    assert!(
        last["message"]
            .as_str()
            .unwrap()
            .contains("fails more than stable")
    );
    let weights: Vec<_> = series["weights"].as_array().unwrap().iter().collect();
    assert_eq!(weights.first().unwrap()["percent"], 10.0);
    assert_eq!(weights.last().unwrap()["percent"], 0.0);
    let story = series["story"].as_array().unwrap();
    assert!(
        story[0]["message"]
            .as_str()
            .unwrap()
            .starts_with("started by")
    );
    let next = &series["next"];
    let (_, more) = call(
        &mut world,
        Method::GET,
        &format!("{path}?after={next}"),
        None,
    )
    .await;
    assert_eq!(
        (&more["points"], &more["next"]),
        (&serde_json::json!([]), next)
    );

    let (status, kind, policy, svg) =
        text(&world, &format!("/api/v1/rollouts/{id}/card.svg")).await;
    assert_eq!((status, kind.as_str()), (StatusCode::OK, "image/svg+xml"));
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
    assert!(svg.contains(">rolled back<") && svg.contains("class=\"evidence\""));
}

#[tokio::test]
async fn the_past_comes_by_pages() {
    let mut world = World::new().await;
    for image in ["web:v2", "web:v3", "web:v2"] {
        world.promote_now(image).await;
    }
    let (_, page) = call(&mut world, Method::GET, "/api/v1/rollouts?limit=2", None).await;
    let ids = |page: &serde_json::Value| -> Vec<String> {
        let page = page.as_array().unwrap().iter();
        page.map(|one| one["id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(ids(&page), ["web-3", "web-2"]);
    let older = "/api/v1/rollouts?limit=2&before=web-2";
    let (_, page) = call(&mut world, Method::GET, older, None).await;
    assert_eq!(ids(&page), ["web-1"]);
    let older = "/api/v1/rollouts?limit=2&service=web&before=web-1";
    let (status, page) = call(&mut world, Method::GET, older, None).await;
    assert_eq!((status, ids(&page)), (StatusCode::OK, vec![]));
    let wrong = "/api/v1/rollouts?before=web-77";
    let (status, problem) = call(&mut world, Method::GET, wrong, None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(problem["code"], "unknown_rollout");
}
