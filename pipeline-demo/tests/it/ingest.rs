//! `POST /ingest`: whole or not at all, from known clients, once for each key; and what hostile clients send.

use std::path::Path;
use std::time::Duration;

use async_compression::tokio::write::{GzipEncoder, ZstdEncoder};
use pipeline_demo::bus::TWEETS;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};
use sqlx::Connection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{Process, get, local_bus, tweet, until};

/// `printf %s secret | sha256sum`, and of `other`.
const CLIENTS: &str = "
acme: 2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b
former: d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa off
";

struct Endpoint {
    process: Process,
    directory: tempfile::TempDir,
}

impl Endpoint {
    async fn start(further: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("clients"), CLIENTS).unwrap();
        let process = start_in(directory.path(), further).await;
        Self { process, directory }
    }

    fn post(&self, body: impl Into<reqwest::Body>) -> RequestBuilder {
        let url = format!("http://{}/ingest", self.process.address);
        reqwest::Client::new()
            .post(url)
            .header(CONTENT_TYPE, "application/x-ndjson")
            .bearer_auth("secret")
            .body(body)
    }

    async fn produced(&self) -> u64 {
        self.process.counts().await["tasks_produced"]
            .as_u64()
            .unwrap()
    }

    /// The ids that are in the bus, once the process has ended.
    async fn ids(self) -> Vec<u64> {
        self.process.terminate();
        let (code, ended) = self.process.end().await;
        assert_eq!(code, Some(0));
        let produced = ended["tasks_produced"].as_u64().unwrap() as usize;
        let bus = local_bus(&self.directory.path().join("bus")).await;
        let mut consumer = bus.consumer(TWEETS, "test").await.unwrap();
        let mut ids = Vec::new();
        while ids.len() < produced {
            for record in consumer.next(1_000).await.unwrap() {
                let value: Value = serde_json::from_slice(&record.value).unwrap();
                ids.push(value["data"]["id"].as_str().unwrap().parse().unwrap());
            }
        }
        assert_eq!(bus.lag(TWEETS, "nobody").await.unwrap(), produced as u64);
        ids.sort_unstable();
        ids
    }
}

async fn start_in(directory: &Path, further: &[&str]) -> Process {
    let at = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let (bus, clients, state) = (at("bus"), at("clients"), at("state"));
    let mut args = vec![
        "ingest",
        "--bus",
        &bus,
        "--clients",
        &clients,
        "--state-dir",
        &state,
    ];
    if !further.contains(&"--client-rate") {
        args.extend(["--client-rate", "1000"]);
    }
    args.extend(further);
    Process::start(directory, "ingest", &args).await
}

fn lines(ids: impl IntoIterator<Item = u64>) -> Vec<u8> {
    let mut lines = Vec::new();
    for id in ids {
        lines.extend_from_slice(&tweet(id));
        lines.push(b'\n');
    }
    lines
}

async fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzipEncoder::new(Vec::new());
    encoder.write_all(bytes).await.unwrap();
    encoder.shutdown().await.unwrap();
    encoder.into_inner()
}

async fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZstdEncoder::new(Vec::new());
    encoder.write_all(bytes).await.unwrap();
    encoder.shutdown().await.unwrap();
    encoder.into_inner()
}

async fn status_and_body(request: RequestBuilder) -> (u16, Value) {
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    (status, answer.json().await.unwrap())
}

#[tokio::test]
async fn an_upload_is_in_the_bus_when_it_is_answered_packed_or_not() {
    let endpoint = Endpoint::start(&[]).await;
    let plain = endpoint.post(lines(1..=1_000));
    assert_eq!(
        status_and_body(plain).await,
        (202, json!({"accepted": 1_000}))
    );
    let packed = gzip(&lines(1_001..=2_000)).await;
    let packed = endpoint.post(packed).header(CONTENT_ENCODING, "gzip");
    assert_eq!(
        status_and_body(packed).await,
        (202, json!({"accepted": 1_000}))
    );
    let packed = zstd(&lines(2_001..=3_000)).await;
    let packed = endpoint.post(packed).header(CONTENT_ENCODING, "zstd");
    assert_eq!(
        status_and_body(packed).await,
        (202, json!({"accepted": 1_000}))
    );
    assert_eq!(endpoint.produced().await, 3_000);
    assert_eq!(endpoint.ids().await, (1..=3_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn one_wrong_line_at_the_end_and_nothing_is_taken() {
    let endpoint = Endpoint::start(&[]).await;
    let mut body = lines(1..=2_000);
    body.extend_from_slice(b"\n{\"data\":{\"id\":\"2001\"}}\n");
    let (status, problem) = status_and_body(endpoint.post(body)).await;
    assert_eq!(
        (status, &problem["line"], &problem["code"]),
        (422, &json!(2_002), &json!("no_text"))
    );
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        detail.starts_with("line 2002: data.text is missing"),
        "{detail}"
    );
    let (status, problem) = status_and_body(endpoint.post("\n \n")).await;
    assert_eq!((status, &problem["code"]), (422, &json!("empty")));
    let cut = gzip(&lines(1..=2_000)).await;
    let cut = endpoint
        .post(cut[..cut.len() - 9].to_vec())
        .header(CONTENT_ENCODING, "gzip");
    let (status, problem) = status_and_body(cut).await;
    assert_eq!((status, &problem["code"]), (422, &json!("not_readable")));
    assert_eq!(endpoint.ids().await, Vec::<u64>::new());
}

#[tokio::test]
async fn bombs_and_bodies_that_are_too_large_are_refused_and_cost_little() {
    let endpoint = Endpoint::start(&[
        "--body-mib",
        "1",
        "--unpacked-mib",
        "4",
        "--records",
        "1000",
    ])
    .await;
    let resident = async || {
        let metrics = get(endpoint.process.address, "/metrics").await.unwrap();
        let metrics = metrics.text().await.unwrap();
        let line = metrics
            .lines()
            .find(|l| l.starts_with("process_resident_memory_bytes"));
        line.unwrap()
            .rsplit(' ')
            .next()
            .unwrap()
            .parse::<f64>()
            .unwrap()
    };
    let before = resident().await;
    // A quarter of a gigabyte in one line, and 64 MiB in many.
    let line = gzip(&vec![b' '; 256 << 20]).await;
    let (status, problem) =
        status_and_body(endpoint.post(line).header(CONTENT_ENCODING, "gzip")).await;
    assert_eq!((status, &problem["code"]), (422, &json!("too_large")));
    let many = zstd(&b"\n".repeat(64 << 20)).await;
    let (status, problem) =
        status_and_body(endpoint.post(many).header(CONTENT_ENCODING, "zstd")).await;
    assert_eq!(
        (status, &problem["code"]),
        (413, &json!("unpacked_too_large"))
    );
    let (status, problem) = status_and_body(endpoint.post(lines(1..=1_001))).await;
    assert_eq!(
        (status, &problem["code"]),
        (413, &json!("too_many_records"))
    );
    let large = vec![b'x'; (1 << 20) + 1];
    let chunks = futures::stream::iter([Ok::<_, std::io::Error>(large)]);
    // Without its length, so that it has to be counted.
    let unannounced = endpoint.post(reqwest::Body::wrap_stream(chunks));
    let (status, problem) = status_and_body(unannounced).await;
    assert_eq!((status, &problem["code"]), (413, &json!("too_large")));
    // By its length alone, before any of it.
    let mut raw = TcpStream::connect(endpoint.process.address).await.unwrap();
    raw.write_all(head("content-length: 1048577\r\n").as_bytes())
        .await
        .unwrap();
    assert_eq!(answer_of(&mut raw).await, 413);
    let grown = resident().await - before;
    assert!(grown < 48e6, "{grown} bytes more");
    assert_eq!(endpoint.ids().await, Vec::<u64>::new());
}

fn head(fields: &str) -> String {
    format!(
        "POST /ingest HTTP/1.1\r\nhost: a\r\nauthorization: Bearer secret\r\ncontent-type: application/x-ndjson\r\n{fields}\r\n"
    )
}

/// Waits until the server asks for the body: then the upload is under way.
async fn asked_for_the_body(stream: &mut TcpStream) {
    let mut asked = [0; 25];
    stream.read_exact(&mut asked).await.unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
}

/// The status of a raw answer.
async fn answer_of(stream: &mut TcpStream) -> u16 {
    let mut first = [0; 12];
    stream.read_exact(&mut first).await.unwrap();
    std::str::from_utf8(&first[9..]).unwrap().parse().unwrap()
}

#[tokio::test]
async fn only_clients_that_are_known_and_switched_on_may_send() {
    let endpoint = Endpoint::start(&[]).await;
    let url = format!("http://{}/ingest", endpoint.process.address);
    let send = async |token: Option<&str>| -> Response {
        let mut request = reqwest::Client::new().post(&url).body(lines(1..=1));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        request.send().await.unwrap()
    };
    let none = send(None).await;
    assert_eq!(none.status(), 401);
    assert_eq!(none.headers()[WWW_AUTHENTICATE], "Bearer");
    for wrong in ["Secret", "secre", "secretsecret", &"x".repeat(2_000)] {
        assert_eq!(send(Some(wrong)).await.status(), 401, "{wrong}");
    }
    assert_eq!(send(Some("other")).await.status(), 403);
    assert_eq!(send(Some("secret")).await.status(), 202);
    assert_eq!(endpoint.ids().await, [1]);
}

#[tokio::test]
async fn half_a_body_is_nothing() {
    let endpoint = Endpoint::start(&[]).await;
    let body = lines(1..=10);
    let mut raw = TcpStream::connect(endpoint.process.address).await.unwrap();
    let head = head(&format!("content-length: {}\r\n", body.len()));
    raw.write_all(head.as_bytes()).await.unwrap();
    // It ends after a whole line: what came would be lines without fault.
    let half = body.len() / 2;
    let half = half + body[half..].iter().position(|b| *b == b'\n').unwrap() + 1;
    raw.write_all(&body[..half]).await.unwrap();
    drop(raw);
    assert_eq!(
        endpoint.post(lines(11..=11)).send().await.unwrap().status(),
        202
    );
    assert_eq!(endpoint.ids().await, [11]);
}

/// Whoever does not wait for the answer has sent all of it, and half of it would be neither accepted nor refused.
#[tokio::test]
async fn a_whole_body_is_taken_whole_although_its_client_hangs_up() {
    const LINES: u64 = 40_000;
    let endpoint = Endpoint::start(&[]).await;
    let body = lines(1..=LINES);
    let mut raw = TcpStream::connect(endpoint.process.address).await.unwrap();
    let head = head(&format!("content-length: {}\r\n", body.len()));
    raw.write_all(head.as_bytes()).await.unwrap();
    raw.write_all(&body).await.unwrap();
    drop(raw);
    until("all of it is taken", async || {
        match endpoint.produced().await {
            LINES => Ok(()),
            other => Err(other),
        }
    })
    .await;
    assert_eq!(endpoint.ids().await, (1..=LINES).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_key_gives_the_same_answer_again_also_after_a_crash_and_serves_one_body_only() {
    let mut endpoint = Endpoint::start(&[]).await;
    let post = |endpoint: &Endpoint, body: Vec<u8>, key: &str| {
        status_and_body(endpoint.post(body).header("Idempotency-Key", key))
    };
    let accepted = (202, json!({"accepted": 5}));
    assert_eq!(post(&endpoint, lines(1..=5), "\"a\"").await, accepted);
    assert_eq!(post(&endpoint, lines(1..=5), "a").await, accepted);
    let refused = post(&endpoint, b"{}".to_vec(), "b").await;
    assert_eq!(refused.0, 422);
    assert_eq!(post(&endpoint, b"{}".to_vec(), "b").await, refused);
    let (status, problem) = post(&endpoint, lines(1..=6), "a").await;
    assert_eq!(
        (status, &problem["code"]),
        (422, &json!("idempotency_key_reused"))
    );
    let (status, problem) = post(&endpoint, lines(1..=5), "a b").await;
    assert_eq!((status, &problem["code"]), (400, &json!("idempotency_key")));
    assert_eq!(endpoint.produced().await, 5);
    endpoint.process.child.kill().await.unwrap();
    endpoint.process = start_in(endpoint.directory.path(), &[]).await;
    assert_eq!(post(&endpoint, lines(1..=5), "a").await, accepted);
    assert_eq!(endpoint.produced().await, 0, "it was not taken again");
}

#[tokio::test]
async fn a_key_whose_upload_is_on_its_way_is_a_conflict_until_that_has_ended() {
    let endpoint = Endpoint::start(&[]).await;
    let body = lines(1..=3);
    let fields = format!(
        "content-length: {}\r\nidempotency-key: k\r\nexpect: 100-continue\r\n",
        body.len()
    );
    let mut slow = TcpStream::connect(endpoint.process.address).await.unwrap();
    slow.write_all(head(&fields).as_bytes()).await.unwrap();
    asked_for_the_body(&mut slow).await;
    slow.write_all(&body[..9]).await.unwrap();
    let again = async || {
        let request = endpoint.post(lines(1..=3)).header("Idempotency-Key", "k");
        status_and_body(request).await
    };
    let (status, problem) = again().await;
    assert_eq!((status, &problem["code"]), (409, &json!("in_progress")));
    slow.write_all(&body[9..]).await.unwrap();
    assert_eq!(answer_of(&mut slow).await, 202);
    assert_eq!(again().await, (202, json!({"accepted": 3})));
}

#[tokio::test]
async fn too_much_at_once_or_too_often_is_told_when_to_come_back() {
    let endpoint = Endpoint::start(&["--client-rate", "0.1", "--client-uploads", "1"]).await;
    // A burst of one.
    assert_eq!(
        endpoint.post(lines(1..=1)).send().await.unwrap().status(),
        202
    );
    let answer = endpoint.post(lines(2..=2)).send().await.unwrap();
    assert_eq!(answer.status(), 429);
    let wait: u64 = answer.headers()[RETRY_AFTER]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((8..=10).contains(&wait), "{wait}");
    assert_eq!(endpoint.ids().await, [1]);
    let endpoint = Endpoint::start(&["--client-uploads", "1"]).await;
    let mut slow = TcpStream::connect(endpoint.process.address).await.unwrap();
    let fields = "content-length: 5\r\nexpect: 100-continue\r\n";
    slow.write_all(head(fields).as_bytes()).await.unwrap();
    asked_for_the_body(&mut slow).await;
    let second = endpoint.post("{}").send().await.unwrap();
    assert_eq!(second.status(), 429);
    assert_eq!(second.headers()[RETRY_AFTER], "1");
}

#[tokio::test]
async fn what_is_no_json_lines_or_packed_in_an_unknown_way_is_said_so() {
    let endpoint = Endpoint::start(&[]).await;
    let url = format!("http://{}/ingest", endpoint.process.address);
    let form = reqwest::Client::new().post(&url).bearer_auth("secret");
    let form = form
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body("a");
    let answer = form.send().await.unwrap();
    assert_eq!(answer.status(), 415);
    let answer = endpoint
        .post("a")
        .header(CONTENT_ENCODING, "br")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 415);
    assert_eq!(answer.headers()["accept-encoding"], "gzip, zstd, identity");
    assert_eq!(reqwest::get(&url).await.unwrap().status(), 405);
}

#[tokio::test]
async fn a_wrong_file_of_clients_stops_it_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("clients"), "acme: my-secret-token\n").unwrap();
    let (bus, clients, state) = (at("bus"), at("clients"), at("state"));
    let ended = tokio::process::Command::new(env!("CARGO_BIN_EXE_pipeline-demo"))
        .args([
            "ingest",
            "--bus",
            &bus,
            "--clients",
            &clients,
            "--state-dir",
            &state,
        ])
        .output();
    let ended = timeout(Duration::from_secs(30), ended)
        .await
        .unwrap()
        .unwrap();
    let text = String::from_utf8(ended.stderr).unwrap();
    assert!(
        text.contains("clients:1: there is no SHA-256") && !text.contains("my-secret"),
        "{text}"
    );
}

#[tokio::test]
async fn while_the_bus_is_slow_new_uploads_are_sent_away_and_what_waits_is_taken_in_the_end() {
    let endpoint = Endpoint::start(&["--client-uploads", "8"]).await;
    // Holds the log's only writer up, as a disk does that is busy.
    let log = endpoint.directory.path().join("bus").join("log.sqlite");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(log);
    let mut locked = sqlx::sqlite::SqliteConnection::connect_with(&options)
        .await
        .unwrap();
    sqlx::raw_sql("BEGIN EXCLUSIVE")
        .execute(&mut locked)
        .await
        .unwrap();
    let first = tokio::spawn(endpoint.post(lines(1..=3)).send());
    // It counts as slow after 5 s; what comes before waits as well, and is given up here.
    until("new uploads are sent away", async || {
        let request = endpoint.post(lines(4..=4)).send();
        let answer = timeout(Duration::from_secs(1), request).await;
        let answer = answer.map_err(|_| None)?.unwrap();
        match (answer.status().as_u16(), answer.headers().get(RETRY_AFTER)) {
            (429, Some(wait)) if wait == "5" => Ok(()),
            (status, _) => Err(Some(status)),
        }
    })
    .await;
    sqlx::raw_sql("ROLLBACK")
        .execute(&mut locked)
        .await
        .unwrap();
    assert_eq!(first.await.unwrap().unwrap().status(), 202);
    until("uploads are taken again", async || {
        match endpoint
            .post(lines(5..=5))
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
        {
            202 => Ok(()),
            other => Err(other),
        }
    })
    .await;
}
