use std::path::Path;

use proxy_api::{BootId, Match};

use super::*;

fn routes(file: PathBuf) -> Routes {
    Routes::new(
        file,
        Arc::new(Signals::new(BootId(1), 0, 1, Instant::now())),
        Arc::new(Telemetry::new().unwrap()),
        Arc::new(Peers::new(1)),
    )
}

fn route(name: &str, host: &str, path: &str) -> Route {
    let text = r#"{"name":"","stable":{"release":"v1","endpoints":["127.0.0.1:1"]}}"#;
    Route {
        name: name.to_owned(),
        matches: Match {
            host: host.to_owned(),
            path: path.to_owned(),
        },
        ..serde_json::from_str(text).unwrap()
    }
}

fn table(seq: u64, routes: Vec<Route>) -> RouteTable {
    let generation = Generation { term: 1, seq };
    RouteTable { generation, routes }
}

#[tokio::test]
async fn f40_a_table_that_cannot_be_saved_is_in_force_only_if_it_takes_requests_from_a_canary() {
    let routes = routes(PathBuf::from("/nowhere/table.json"));
    let with_share = |seq, points| {
        let mut route = route("web", "*", "/");
        route.canary = Some(route.stable.clone());
        route.canary_bp = BasisPoints::new(points).unwrap();
        table(seq, vec![route])
    };
    routes.apply(with_share(1, 1_000), Save::No).await.unwrap();
    let share = || {
        (*routes.current()).clone().unwrap().document().routes[0]
            .canary_bp
            .get()
    };
    for (seq, points, is_in_force) in [
        (2, 2_500, false),
        (3, 1_000, false),
        (4, 0, true),
        (5, 100, false),
    ] {
        let before = share();
        let applied = routes.apply(with_share(seq, points), Save::Yes).await;
        assert_eq!(applied.is_ok(), is_in_force, "{points}: {applied:?}");
        assert_eq!(share(), if is_in_force { points } else { before });
    }
}

#[tokio::test]
async fn finds_the_most_special_route() {
    let routes = routes(PathBuf::from("/nowhere"));
    let list = vec![
        route("any", "*", "/"),
        route("any-api", "*", "/api"),
        route("below", "*.example.org", "/"),
        route("deep", "*.shop.example.org", "/"),
        route("shop", "Shop.example.org", "/"),
        route("cart", "shop.example.org", "/cart"),
        route("only-x", "other.example.org", "/x/"),
    ];
    routes.apply(table(1, list), Save::No).await.unwrap();
    let table = (*routes.current()).clone().unwrap();
    let cases = [
        ("", "/", "any"),
        ("", "*", "any"),
        ("example.org", "/apix", "any"),
        ("example.org", "/api", "any-api"),
        ("example.org", "/api/x", "any-api"),
        ("a.example.org", "/api", "below"),
        ("a.b.example.org", "/", "below"),
        ("a.shop.example.org", "/", "deep"),
        ("shop.example.org", "/carts", "shop"),
        ("shop.example.org", "/cart/1", "cart"),
        ("other.example.org", "/x/y", "only-x"),
        ("other.example.org", "/y", "below"),
    ];
    for (host, path, name) in cases {
        let request = http::Request::builder().uri(path).header("host", host);
        let head = request.body(()).unwrap().into_parts().0;
        let found = table.find(&head).map(|route| &*route.name);
        assert_eq!(found, Some(name), "{host} {path}");
    }
}

#[tokio::test]
async fn refuses_what_is_not_newer_and_saves_before_it_applies() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("table.json");
    let routes = routes(file.clone());
    let newest = table(5, vec![route("web", "*", "/")]);
    routes.apply(newest.clone(), Save::Yes).await.unwrap();
    assert_eq!(load(&file).unwrap(), newest);
    for seq in [4, 5] {
        let refused = routes.apply(table(seq, vec![]), Save::Yes).await;
        assert!(matches!(refused, Err(ApplyError::NotNewer { .. })));
    }
    assert_eq!(load(&file).unwrap(), newest);
    drop(directory);
    let unsaved = routes.apply(table(6, vec![]), Save::Yes).await;
    assert!(matches!(unsaved, Err(ApplyError::Save { .. })));
    assert_eq!(
        routes.generation(),
        newest.generation,
        "not saved, so not in force"
    );
}

#[tokio::test]
async fn numbers_tables_written_by_hand() {
    let routes = routes(PathBuf::from("/nowhere"));
    let by_hand = |list| RouteTable {
        generation: Generation::default(),
        routes: list,
    };
    let first = by_hand(vec![route("a", "*", "/")]);
    routes.apply_by_hand(first.clone(), Save::No).await.unwrap();
    routes.apply_by_hand(first, Save::No).await.unwrap();
    assert_eq!(routes.generation(), Generation { term: 0, seq: 0 });
    let second = by_hand(vec![route("b", "*", "/")]);
    routes.apply_by_hand(second, Save::No).await.unwrap();
    assert_eq!(routes.generation(), Generation { term: 0, seq: 1 });
    // What the proxy wrote into the file stays there when people edit it.
    for (seq, next) in [(1, 2), (1, 3), (0, 4), (9, 9), (9, 10)] {
        let mut edited = by_hand(vec![route(&format!("to-{next}"), "*", "/")]);
        edited.generation.seq = seq;
        routes.apply_by_hand(edited, Save::No).await.unwrap();
        assert_eq!(routes.generation(), Generation { term: 0, seq: next });
    }
    // A controller's table keeps its number.
    let of_controller = table(5, vec![route("a", "*", "/")]);
    routes.apply_by_hand(of_controller, Save::No).await.unwrap();
    for (term, seq) in [(0, 99), (1, 4), (1, 5)] {
        let mut old = by_hand(vec![route("b", "*", "/")]);
        old.generation = Generation { term, seq };
        let refused = routes.apply_by_hand(old, Save::No).await;
        assert!(matches!(refused, Err(ApplyError::NotNewer { .. })));
    }
}

#[tokio::test]
async fn admits_as_many_as_the_route_may_have_over_all_its_tables() {
    let routes = routes(PathBuf::from("/nowhere"));
    let mut narrow = route("web", "*", "/");
    narrow.limits.in_flight_max = 1;
    routes
        .apply(table(1, vec![narrow.clone()]), Save::No)
        .await
        .unwrap();
    let first = (*routes.current()).clone().unwrap().routes()[0].admit(0);
    assert!(first.is_some());
    routes
        .apply(table(2, vec![narrow]), Save::No)
        .await
        .unwrap();
    let route = Arc::clone(&(*routes.current()).clone().unwrap().routes()[0]);
    assert!(route.admit(0).is_none());
    drop(first);
    assert!(route.admit(0).is_some());
}

#[test]
fn says_where_a_table_is_wrong() {
    let stable = r#""stable":{"release":"v1","endpoints":[]}"#;
    let cases = [
        ("{\n  \"routes\": 3\n}", "t.json:2:13: invalid type"),
        ("{\n \"rotes\": []}", "t.json:2:8: unknown field `rotes`"),
        (
            "{\"routes\":[\n{\"name\":\"a\",\"canary_bp\":10001}]}",
            "t.json:2:",
        ),
        ("", "t.json:1:0: EOF"),
        (
            &format!(
                "{{\"routes\":[\n  {{\"name\":\"a\",{stable}}},\n  {{\"name\" : \"a\",{stable}}}]}}"
            ),
            "t.json:3:4: route \"a\" stands in the table twice",
        ),
        (
            &format!("{{\"routes\":[{{\"name\":\"a\",\"canary_bp\":5,{stable}}}]}}"),
            "t.json:1:13: route \"a\" gives 5 basis points",
        ),
    ];
    for (text, expected) in cases {
        let error = parse(Path::new("t.json"), text.as_bytes()).unwrap_err();
        assert!(error.to_string().starts_with(expected), "{error}");
    }
}
