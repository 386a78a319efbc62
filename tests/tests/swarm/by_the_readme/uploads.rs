//! The parts that others talk to: tweets that a client hands in, what the statistics say of all of them, and the jobs that ran
//! meanwhile. At the ports that `swarm/up` published, from the node.

use std::fs;
use std::time::Duration;

use controller_testing::eventually;
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use super::{OwnSwarm, TWEETS};

/// Tweets that are handed in.
pub(super) const HANDED_IN: u64 = 3;

/// The options of `swarm/up` that publish both parts.
pub(super) const PORTS: &str = "--stats-port 8091 --ingest-port 8092";

const STATS: &str = "http://10.77.0.11:8091";
const INGEST: &str = "http://10.77.0.11:8092/ingest";

/// How long it may take until what was stored is in the statistics (two seconds, and what a busy machine adds), or a job runs
/// that is due each minute.
const PATIENCE: Duration = Duration::from_secs(120);

/// Hands in some tweets as a client that `swarm/secrets` made.
pub(super) fn are_taken(swarm: &OwnSwarm) {
    let token = secret(swarm, "ingest_token");
    let line = |number: u64| {
        let id = (TWEETS + number).to_string();
        let text = format!("I love handing in tweet {number} #upload");
        json!({ "data": { "id": id, "author_id": "1", "text": text } }).to_string()
    };
    let lines: Vec<String> = (1..=HANDED_IN).map(line).collect();
    let body = lines.join("\n");
    swarm.lab.within_node(1, move || async move {
        let post = |token: &str| client().post(INGEST).bearer_auth(token).body(body.clone());
        let stranger = post("a token that nobody has");
        assert_eq!(answer(stranger).await.0, StatusCode::UNAUTHORIZED);
        let (status, said) = answer(post(&token)).await;
        let accepted = json!({ "accepted": HANDED_IN });
        assert_eq!((status, said), (StatusCode::ACCEPTED, accepted));
    });
}

/// Waits until the statistics say how many rows are stored, and that a job has compared them with the bus; and adds to a counter.
pub(super) fn are_told_of(swarm: &OwnSwarm, results: u64, malformed: u64) {
    let token = secret(swarm, "stats_token");
    swarm.lab.within_node(1, move || async move {
        // Tweets count in the minute in which they were written, which was years ago.
        let url = format!("{STATS}/stats?from=2006-03-21T00:00:00Z");
        let ask = async || answer(client().get(&url)).await;
        let told = |(status, said): &(StatusCode, Value)| {
            let total = &said["total"];
            let both = (total["results"].as_u64(), total["malformed"].as_u64());
            *status == StatusCode::OK && both == (Some(results), Some(malformed))
        };
        eventually("the statistics know of all", PATIENCE, ask, told).await;

        let url = format!("{STATS}/stats/jobs?job=reconcile");
        let ask = async || answer(client().get(&url)).await;
        let ran = |(_, said): &(StatusCode, Value)| {
            let runs = said["items"].as_array();
            runs.is_some_and(|runs| runs.iter().any(|run| run["outcome"] == "done"))
        };
        eventually("the store is compared with the bus", PATIENCE, ask, ran).await;

        let counters = json!({ "counters": [{ "name": "visits", "value": 2 }] });
        let url = format!("{STATS}/stats");
        let post = |token: &str| {
            let post = client().post(&url).bearer_auth(token);
            post.body(counters.to_string())
        };
        let (status, said) = answer(post("a token that nobody has")).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{said}");
        let (status, said) = answer(post(&token)).await;
        assert_eq!((status, said), (StatusCode::OK, json!({ "added": 1 })));
        let page = client().get(STATS).send().await.unwrap();
        assert_eq!(page.status(), StatusCode::OK);
    });
}

fn secret(swarm: &OwnSwarm, name: &str) -> String {
    let file = format!("{}/{name}", swarm.variable("FRIDAY_SECRETS"));
    fs::read_to_string(file).unwrap()
}

fn client() -> Client {
    Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(10))
        .build()
        .unwrap()
}

/// The status, and the document or null.
async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let answer = request.send().await.unwrap();
    let status = answer.status();
    let text = answer.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or_default())
}
