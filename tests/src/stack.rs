//! The stack of `swarm/` where it runs: what its parts say when they are asked from within their containers.

use serde_json::Value;

use crate::lab::{Lab, START_TRIES, pause};

/// What Prometheus finds where all parts of the stack run but Grafana and Alertmanager.
pub const SCRAPED: [&str; 10] = [
    "friday_agent",
    "friday_controller",
    "friday_feeder",
    "friday_ingest",
    "friday_jobs",
    "friday_producer",
    "friday_proxy",
    "friday_sink",
    "friday_stats",
    "friday_tweets-worker",
];

/// The container on this node of a service that has at most one there; nothing if it has none.
///
/// # Panics
/// The engine does not answer.
#[must_use]
pub fn container(lab: &Lab, node: u32, service: &str) -> String {
    let filter = format!("label=com.docker.swarm.service.name={service}");
    lab.docker(node, &["ps", "--quiet", "--filter", &filter])
}

/// Waits until every part is a target of Prometheus, which is on the first node, answers it, and says where it is; the
/// controller knows the environment of each service.
///
/// # Panics
/// One of these jobs is not found in ten seconds at least, or another is.
pub fn until_scraped(lab: &Lab, jobs: &[&str]) {
    let mut expected = jobs.to_vec();
    expected.sort_unstable();
    let prometheus = container(lab, 1, "friday_prometheus");
    // min by (job) (up{environment="default",node!=""} or up{job="friday_controller",node!=""})
    let url = "http://127.0.0.1:9090/api/v1/query?query=min%20by%20(job)%20(up%7Benvironment=%22default%22,node!=%22%22%7D%20or%20up%7Bjob=%22friday_controller%22,node!=%22%22%7D)";
    let query = ["exec", &prometheus, "wget", "-q", "-O", "-", url];
    let mut seen = Vec::new();
    for _ in 0..START_TRIES {
        let answer = lab.docker(1, &query);
        let answer: Value = serde_json::from_str(&answer).expect("Prometheus answers with JSON");
        let jobs = answer["data"]["result"].as_array();
        seen = jobs
            .into_iter()
            .flatten()
            .filter(|job| job["value"][1] == "1")
            .filter_map(|job| job["metric"]["job"].as_str().map(str::to_owned))
            .collect();
        seen.sort();
        if seen == expected {
            return;
        }
        pause();
    }
    panic!("Prometheus reaches {seen:?}, expected {expected:?}");
}

/// How many results and malformed records PostgreSQL holds, as a sink on this node counts them: `{"results":…,"malformed":…}`.
///
/// # Errors
/// What the sink says where it cannot.
pub fn stored(lab: &Lab, node: u32, sink: &str) -> Result<Value, String> {
    let database = "postgresql://tweets@postgres:5432/tweets";
    let password = "/run/secrets/postgres_password";
    let query = [
        "exec",
        sink,
        "/pipeline-demo",
        "query",
        "--database",
        database,
        "--database-password-file",
        password,
    ];
    let said = lab.try_docker(node, &query, std::process::Stdio::null())?;
    serde_json::from_str(&said).map_err(|error| format!("{said}: {error}"))
}
