//! Traces: a request's span stands between its sender's and its upstream's, a collector never costs a request anything, and
//! `/metrics` leads to what was recorded.

use std::collections::BTreeMap;
use std::time::Duration;

use friday_proxy::config::Source;
use friday_traces::testing::{Mood, Received, Receiver};
use friday_traces::{Config, Kind, Share, TraceParent};
use http::{Method, StatusCode};
use proxy_api::RouteTable;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::world::{Backend, Client, PATIENCE, Proxy, Seen, side, table, text};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SENDER: &str = "b7ad6b7169203331";
const RECORDED: (&str, &str) = (
    "traceparent",
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
);
const UNRECORDED: (&str, &str) = (
    "traceparent",
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
);

/// One in ten thousand new traces: what is recorded was recorded before.
const HARDLY_ANY: &str = "0.01";

/// A proxy that runs alone and sends traces; with the folder of its table.
async fn traced(receiver: &Receiver, share: &str, table: &RouteTable) -> (Proxy, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("routes.json");
    std::fs::write(&file, serde_json::to_vec(table).unwrap()).unwrap();
    let share: Share = share.parse().unwrap();
    let config = Config::new(&receiver.url(), share).unwrap();
    let proxy = Proxy::with(Source::File(file), PATIENCE, |proxy| {
        proxy.traces = Some(config);
    });
    (proxy.await.unwrap(), directory)
}

/// A backend that takes note of what it gets.
async fn noting(seen: &Seen) -> Backend {
    let seen = seen.clone();
    Backend::new(move |request| {
        seen.note(request.headers());
        async { text(StatusCode::OK, "noted") }
    })
    .await
}

async fn one_span(receiver: &Receiver) -> Received {
    let what = "a span of the proxy's";
    receiver.until(what, |spans| spans.first().cloned()).await
}

#[tokio::test]
async fn a_span_stands_between_the_senders_and_the_upstreams() {
    let receiver = Receiver::start(Mood::Well).await;
    let seen = Seen::default();
    let backend = noting(&seen).await;
    let (proxy, _directory) = traced(
        &receiver,
        HARDLY_ANY,
        &table(1, &[backend.address], json!({})),
    )
    .await;
    let url = proxy.url("/tasks?secret=1");
    let state = ("tracestate", "vendor=1");
    let headers = [RECORDED, state, ("host", "web.example:81")];
    let answer = Client::new()
        .call(Method::POST, &url, &headers, "work")
        .await
        .unwrap();
    assert_eq!(answer.status, StatusCode::OK);

    let span = one_span(&receiver).await;
    assert_eq!((span.trace.as_str(), span.parent.as_str()), (TRACE, SENDER));
    let sent = TraceParent::of(&seen.last()).expect("the upstream is told of the trace");
    assert_eq!(sent.trace().to_string(), TRACE);
    assert_eq!(sent.span().to_string(), span.span);
    assert!(sent.is_sampled());
    assert_eq!(seen.last()["tracestate"], "vendor=1");
    assert_eq!((span.name.as_str(), span.kind), ("POST web", Kind::Server));
    let endpoint = backend.address.to_string();
    for (key, value) in [
        ("http.request.method", "POST"),
        ("http.response.status_code", "200"),
        ("server.address", "web.example"),
        ("url.scheme", "http"),
        // Not what may be a secret.
        ("url.path", "/tasks"),
        ("error.type", ""),
        ("friday.service", "web"),
        ("friday.arm", "stable"),
        ("friday.release", "v1"),
        ("friday.endpoint", &endpoint),
        ("friday.shielded", "false"),
        ("friday.attempts", "1"),
        ("friday.end", "ok"),
    ] {
        assert_eq!(span.attribute(key), value, "{key} of {span:#?}");
    }
    assert!(!span.is_error);
    assert_eq!(span.resource("service.name"), "friday-proxy");
    assert!(!span.resource("service.version").is_empty());
    assert!(!span.resource("service.instance.id").is_empty());
    proxy.stop().await;
    assert_eq!(receiver.spans().len(), 1);
}

#[tokio::test]
async fn what_is_not_recorded_passes_as_it_came_or_is_said_to_be_new() {
    let receiver = Receiver::start(Mood::Well).await;
    let seen = Seen::default();
    let backend = noting(&seen).await;
    let routes = table(1, &[backend.address], json!({}));
    let (proxy, _directory) = traced(&receiver, HARDLY_ANY, &routes).await;
    let client = Client::new();
    let url = proxy.url("/");
    for _ in 0..20 {
        let state = ("tracestate", "vendor=1");
        client.get(&url, &[UNRECORDED, state]).await.unwrap();
        assert_eq!(seen.last()["traceparent"], UNRECORDED.1);
        assert_eq!(seen.last()["tracestate"], "vendor=1");
    }
    proxy.stop().await;
    assert_eq!(receiver.spans(), []);

    // All of the new ones are recorded, and only they.
    let (proxy, _directory) = traced(&receiver, "100", &routes).await;
    let url = proxy.url("/");
    client.get(&url, &[UNRECORDED]).await.unwrap();
    assert_eq!(seen.last()["traceparent"], UNRECORDED.1);
    let twice = [RECORDED, UNRECORDED];
    for headers in [&[][..], &[("traceparent", "00-nonsense")], &twice] {
        client.get(&url, headers).await.unwrap();
        let sent = TraceParent::of(&seen.last()).expect("a new trace");
        assert!(sent.is_sampled() && sent.trace().to_string() != TRACE);
    }
    proxy.stop().await;
    let spans = receiver.spans();
    assert_eq!(spans.len(), 3);
    assert!(spans.iter().all(|span| span.parent.is_empty()));

    // Without a collector nobody looks at the field.
    let proxy = Proxy::alone(&routes).await;
    let url = proxy.url("/");
    client
        .get(&url, &[("traceparent", "nonsense")])
        .await
        .unwrap();
    assert_eq!(seen.last()["traceparent"], "nonsense");
    client.get(&url, &[]).await.unwrap();
    assert!(!seen.last().contains_key("traceparent"));
}

#[tokio::test]
async fn a_span_is_short_whatever_the_client_writes() {
    let receiver = Receiver::start(Mood::Well).await;
    let backend = Backend::named("stable").await;
    let routes = table(1, &[backend.address], json!({}));
    let (proxy, _directory) = traced(&receiver, HARDLY_ANY, &routes).await;
    let client = Client::new();
    let long = "x".repeat(30_000);
    let url = proxy.url(&format!("/{}", &long[..15_000]));
    let headers = [RECORDED, ("host", &*long)];
    let answer = client.get(&url, &headers).await.unwrap();
    assert_eq!(
        (answer.status, answer.header("x-friday-refusal")),
        (StatusCode::BAD_REQUEST, "bad_host")
    );
    let span = one_span(&receiver).await;
    assert_eq!(span.attribute("server.address"), &long[..260]);
    assert_eq!(span.attribute("url.path").len(), 1_024);
    proxy.stop().await;
}

#[tokio::test]
async fn all_attempts_are_in_one_span() {
    let receiver = Receiver::start(Mood::Well).await;
    let seen = Seen::default();
    let (stable, one, two) = (
        noting(&seen).await,
        Backend::killed().await,
        Backend::killed().await,
    );
    let noted = seen.clone();
    let canary = Backend::new(move |request| {
        noted.note(request.headers());
        async { text(StatusCode::INTERNAL_SERVER_ERROR, "broken") }
    })
    .await;
    let more = json!({ "canary_bp": 10_000, "shield": "idempotent", "canary": side("v2", &[canary.address]) });
    let (proxy, _directory) =
        traced(&receiver, HARDLY_ANY, &table(1, &[stable.address], more)).await;
    let client = Client::new();
    let answer = client.get(&proxy.url("/"), &[RECORDED]).await.unwrap();
    assert_eq!(answer.body, "noted", "the shield replays it on stable");
    let span = one_span(&receiver).await;
    assert_eq!(span.attribute("friday.attempts"), "2", "{span:#?}");
    assert_eq!(span.attribute("friday.shielded"), "true");
    assert_eq!(span.attribute("friday.arm"), "canary");
    assert_eq!(span.attribute("friday.release"), "v2");
    let endpoint = stable.address.to_string();
    assert_eq!(span.attribute("friday.endpoint"), endpoint);
    assert_eq!(span.attribute("http.response.status_code"), "200");
    assert!(!span.is_error);
    let sent = TraceParent::of(&seen.last()).unwrap();
    assert_eq!(sent.span().to_string(), span.span);

    // A retry on the same release, which does not help, and an answer of the proxy's own.
    let both = [one.address, two.address];
    proxy.put(&table(2, &both, json!({}))).await;
    let answer = client.get(&proxy.url("/"), &[RECORDED]).await.unwrap();
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    let span = receiver.until("its span", |spans| spans.get(1).cloned());
    let span = span.await;
    assert_eq!(span.attribute("friday.attempts"), "2", "{span:#?}");
    assert_eq!(span.attribute("friday.end"), "refused");
    assert_eq!(span.attribute("error.type"), "reset");
    assert_eq!(span.attribute("http.response.status_code"), "502");
    assert!(span.is_error);
    assert_eq!((one.hits(), two.hits()), (1, 1));
    proxy.stop().await;
}

#[tokio::test]
async fn a_failure_is_one_of_the_spans_too() {
    let receiver = Receiver::start(Mood::Well).await;
    let broken = Backend::with_status("broken", StatusCode::SERVICE_UNAVAILABLE).await;
    let routes = table(1, &[broken.address], json!({ "match": { "host": "web" } }));
    let (proxy, _directory) = traced(&receiver, HARDLY_ANY, &routes).await;
    let client = Client::new();
    let to = |host: &'static str| [RECORDED, ("host", host)];
    let url = proxy.url("/");
    client.get(&url, &to("web")).await.unwrap();
    client.get(&url, &to("elsewhere")).await.unwrap();
    let method = Method::from_bytes(b"BREW").unwrap();
    client.call(method, &url, &to("web"), "").await.unwrap();
    proxy.stop().await;
    let spans = receiver.spans();
    let told: BTreeMap<_, _> = spans
        .iter()
        .map(|span| {
            let of = |key| span.attribute(key);
            let told = (of("http.response.status_code"), of("error.type"));
            (span.name.as_str(), (told, span.is_error))
        })
        .collect();
    assert_eq!(
        told,
        BTreeMap::from([
            ("GET web", (("503", "503"), true)),
            ("HTTP web", (("503", "503"), true)),
            // The client's mistake.
            ("GET", (("404", ""), false)),
        ])
    );
}

#[tokio::test]
async fn a_collector_that_is_no_good_costs_spans_and_nothing_else() {
    let backend = Backend::named("stable").await;
    let routes = table(1, &[backend.address], json!({}));
    for mood in [Mood::Away, Mood::Refusing, Mood::Silent] {
        let receiver = Receiver::start(mood).await;
        let (proxy, _directory) = traced(&receiver, "100", &routes).await;
        let client = Client::new();
        let began = Instant::now();
        for _ in 0..200 {
            let answer = client.get(&proxy.url("/"), &[RECORDED]).await.unwrap();
            assert_eq!(
                (answer.status, answer.body.as_str()),
                (StatusCode::OK, "stable")
            );
        }
        let took = began.elapsed();
        // A collector is waited for for five seconds; not by anybody here.
        assert!(took < Duration::from_secs(4), "{mood:?}: {took:?}");
        let ok = proxy
            .metric("friday_proxy_requests_total", &["outcome=\"ok\""])
            .await;
        assert_eq!(ok, 200.0, "{mood:?}");
        proxy.stop().await;
        assert_eq!(receiver.spans(), []);
    }
}

#[tokio::test]
async fn metrics_lead_to_what_was_recorded_for_those_who_ask() {
    let receiver = Receiver::start(Mood::Well).await;
    let backend = Backend::named("stable").await;
    let routes = table(1, &[backend.address], json!({}));
    let (proxy, _directory) = traced(&receiver, HARDLY_ANY, &routes).await;
    let client = Client::new();
    client.get(&proxy.url("/"), &[UNRECORDED]).await.unwrap();
    client.get(&proxy.url("/"), &[RECORDED]).await.unwrap();
    let span = one_span(&receiver).await;

    let url = format!("http://{}/metrics", proxy.admin);
    // As Prometheus 2.42 asks.
    let accept = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    let answer = client.get(&url, &[("accept", accept)]).await.unwrap();
    assert_eq!(
        answer.header("content-type"),
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    assert!(answer.body.ends_with("\n# EOF\n"));
    let exemplars: Vec<&str> = answer
        .body
        .lines()
        .filter_map(|line| {
            let (sample, exemplar) = line.split_once(" # ")?;
            assert!(
                sample.starts_with("friday_proxy_request_duration_seconds_bucket{"),
                "{line}"
            );
            Some(exemplar)
        })
        .collect();
    let [exemplar] = exemplars[..] else {
        panic!("expected one exemplar: {exemplars:#?}");
    };
    let ids = format!("{{trace_id=\"{TRACE}\",span_id=\"{}\"}} ", span.span);
    assert!(exemplar.starts_with(&ids), "{exemplar}");
    assert!(
        answer
            .body
            .contains("# TYPE friday_proxy_requests counter\n")
    );

    let older = client.get(&url, &[]).await.unwrap();
    assert_eq!(older.header("content-type"), prometheus::TEXT_FORMAT);
    assert!(!older.body.contains("trace_id") && !older.body.contains("# EOF"));
    proxy.stop().await;
}
