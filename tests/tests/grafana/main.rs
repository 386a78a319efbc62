//! What people look at, asked of a real Prometheus that scraped real releases: every query of every board and rule has data for a
//! person who chose a service, an environment, releases and nodes; alerts fire where their causes are; exemplars lead to traces; and
//! an alert that asks for it holds a rollout by way of a real Alertmanager.

#![expect(
    clippy::unwrap_used,
    reason = "a test says what went wrong by failing there"
)]

mod alerts;
mod alone;
mod boards;
mod checks;
mod demo;
mod monitoring;

use std::process::Command;
use std::time::Duration;

use boards::{Choice, Question};
use controller_testing::eventually;
use demo::{Demo, ENVIRONMENT};
use friday::api::types::Order;
use friday_traces::testing::{Mood, Receiver};
use monitoring::{Alertmanager, Prometheus, Seen};
use rollout::{Ending, Phase};
use system_tests::{PATIENCE, SERVICE, SPEC};

/// Longest wait for a release of three short steps.
const RELEASE_MAX: Duration = Duration::from_secs(90);

/// Longest wait for the last query: recording rules of a week are looked at every 30 s, and rates look back over 20 s.
const DATA_MAX: Duration = Duration::from_secs(60);

/// Longest wait for an alert: 30 s of silence are the longest that one takes, and some scrapes.
const ALERT_MAX: Duration = Duration::from_secs(60);

/// Whether it is an alert's: while all is well it has nothing, and that is right. That each fires where its cause is, and only
/// there, these tests and promtool's show.
fn is_alert(question: &Question) -> bool {
    question.place.starts_with("alert ")
}

#[tokio::test]
async fn every_query_has_data_and_alerts_fire_and_hold() {
    let collector = Receiver::start(Mood::Well).await;
    let demo = Demo::traced(&collector.url()).await;
    let alertmanager = Alertmanager::start(demo.dir(), demo.url()).await;
    let mut targets = demo.targets();
    targets.push(("alertmanager", alertmanager.address().to_owned()));
    let prometheus = Prometheus::start(demo.dir(), &targets, alertmanager.url()).await;
    let scraping = demo.keep_telling_tasks();
    let nodes = demo.nodes().await;
    let agent = demo.start_agent(&nodes[0]).await;
    let lost = demo.start_agent("lost").await;
    demo.tell_of_agents(&[&agent, &lost]);
    let from = prometheus.now();

    // A bad release, a good one that an incident holds on its way.
    let bad = demo.release("worker:errors", RELEASE_MAX, None).await;
    assert_eq!(bad.ending, Some(Ending::RolledBack), "{}", bad.message);
    // Whose silence is long enough when the rest is over.
    drop(lost);
    let id = demo.deploy("worker:good").await;
    demo.until(&id, "it is judged", |view| {
        matches!(view.phase, Phase::Analyzing { .. })
    })
    .await;
    alertmanager
        .fire("TestIncident", "tweets-worker", true)
        .await;
    let held = demo
        .until(&id, "the incident holds it", |view| {
            matches!(view.phase, Phase::Paused { .. })
        })
        .await;
    assert!(
        held.message.contains("held by the incident TestIncident"),
        "{}",
        held.message
    );
    let what = "the metric of the open incident was scraped";
    prometheus
        .until(
            what,
            PATIENCE,
            r#"friday_incident_open{alert="TestIncident",service="tweets-worker"}"#,
        )
        .await;
    let waits = "FridayRolloutWaitsForPerson";
    prometheus.fires(waits, ALERT_MAX, from).await;
    alertmanager
        .fire("TestIncident", "tweets-worker", false)
        .await;
    let good = demo.release("worker:good", RELEASE_MAX, Some(&id)).await;
    assert_eq!(good.ending, Some(Ending::Promoted), "{}", good.message);

    // Every query, until each has had data.
    let choice = choose(&prometheus, from).await;
    println!("chosen: {choice:?}");
    let mut open: Vec<Question> = boards::questions(&choice);
    let total = open.len();
    assert!(total > 120, "these cannot be all: {total}");
    let mut table: Vec<(Question, Seen)> = Vec::new();
    let deadline = tokio::time::Instant::now() + DATA_MAX;
    loop {
        let mut left = Vec::new();
        for question in std::mem::take(&mut open) {
            match prometheus.range(&question.expr, from).await {
                Ok(seen) if seen.series > 0 || is_alert(&question) => table.push((question, seen)),
                Ok(_) => left.push(question),
                Err(error) => panic!("{}: {error}\n  {}", question.place, question.expr),
            }
        }
        open = left;
        if open.is_empty() || tokio::time::Instant::now() >= deadline {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    table.sort_by(|(a, _), (b, _)| a.place.cmp(&b.place));
    println!("{:>6}  {:>12}  query", "series", "last value");
    for (question, seen) in &table {
        println!(
            "{:>6}  {:>12.4}  {}\n{:>22}{}",
            seen.series, seen.last, question.place, "", question.expr
        );
    }
    let without: Vec<String> = open
        .iter()
        .map(|question| format!("{}\n    {}", question.place, question.expr))
        .collect();
    assert!(
        without.is_empty(),
        "{} of {total} queries have no data:\n  {}\ntargets:\n{}",
        without.len(),
        without.join("\n  "),
        prometheus.targets().await
    );

    // From a bucket to what was recorded of a request in it.
    let buckets = r#"friday_proxy_request_duration_seconds_bucket{service="tweets-worker"}"#;
    let look = async || prometheus.traces_of(buckets, from).await;
    let what = "exemplars are stored, and lead to traces that the collector has";
    let leads = |found: &Result<Vec<String>, String>| {
        let recorded = collector.spans();
        let is_there = |trace: &String| {
            let proxy = "POST tweets-worker";
            recorded
                .iter()
                .any(|span| span.trace == *trace && span.name == proxy)
        };
        found
            .as_ref()
            .is_ok_and(|traces| traces.iter().any(is_there))
    };
    drop(eventually(what, PATIENCE, look, leads).await);

    // A user who sends as much as all others, and stays with one release: no share of requests is as the weight says then.
    let since = prometheus.now();
    let user = demo.keep_sending_as_one_user();
    let id = demo
        .deploy_by(&spec_for_users_who_stay(), "worker:v1")
        .await;
    for alert in ["FridaySplitMismatch", "FridayRolloutStuck"] {
        prometheus.fires(alert, ALERT_MAX, since).await;
    }
    demo.until(&id, "it is held for that", |view| {
        view.message.contains("not split")
    })
    .await;
    user.abort();
    // Somebody who knows better promotes what was rolled back before.
    demo.order(&id, Order::Abort).await;
    demo.until(&id, "it has ended", |view| view.ending.is_some())
        .await;
    let id = demo.deploy_again("worker:errors").await;
    demo.order(&id, Order::PromoteFull).await;
    prometheus
        .fires("FridayUsersSeeFailures", ALERT_MAX, from)
        .await;
    // A proxy that says nothing any more, and lets no request through.
    let since = prometheus.now();
    let frozen = demo.freeze("proxy");
    let fired = r#"ALERTS{alertname="FridayProxySilent",alertstate="firing",proxy="demo"}"#;
    prometheus
        .until("FridayProxySilent fires", ALERT_MAX, fired)
        .await;
    prometheus
        .fires("PipelineLagGrowing", ALERT_MAX, since)
        .await;
    drop(frozen);
    let told = async || alertmanager.alerts().await;
    let is_there = |alerts: &String| alerts.contains("FridayProxySilent");
    eventually("the Alertmanager is told of it", PATIENCE, told, is_there).await;
    // A controller that nobody can ask. Before the first scrape there was none either.
    let since = prometheus.now();
    let frozen = demo.freeze("serve");
    prometheus
        .fires("FridayControllerDown", ALERT_MAX, since)
        .await;
    for (alert, cause) in alerts::OF_THE_DEMO {
        prometheus.fires(alert, ALERT_MAX, from).await;
        println!("{alert} fired: {cause}");
    }
    drop(frozen);

    scraping.abort();
    drop(agent);
    demo.end().await;
}

/// What a person chooses who looks at these releases: the service and its environment, and all the releases and nodes that the
/// boards offer then. Nothing is left at "All", which would hide that a metric lacks the label.
async fn choose(prometheus: &Prometheus, from: f64) -> Choice {
    let mut choice = Choice::new();
    for variable in boards::variables() {
        let metric = boards::replaced(&variable.metric, &choice);
        let name = variable.name.as_str();
        let offered = prometheus.values(name, &metric, from).await;
        let wanted = match name {
            "environment" => vec![ENVIRONMENT.to_owned()],
            "service" => vec![SERVICE.to_owned()],
            "release" | "node" => offered.clone(),
            other => panic!("which {other} would a person choose?"),
        };
        assert!(
            !wanted.is_empty() && wanted.iter().all(|value| offered.contains(value)),
            "{name}: {wanted:?} of {offered:?}"
        );
        choice.insert(variable.name, wanted);
    }
    choice
}

/// Users stay with their release, and the split is looked at all the same.
fn spec_for_users_who_stay() -> String {
    let spec = SPEC.replace("sticky: none", "sticky: { by: header, name: x-user }");
    spec.replace("guard: {", "guard: { ratio_check: true,")
}

#[test]
fn boards_and_rules_pass_their_check() {
    let check = boards::repository().join("tests/dashboards/check");
    let output = Command::new(check).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
