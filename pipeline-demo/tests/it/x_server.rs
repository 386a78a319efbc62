//! A local server that speaks the filtered stream of X's API v2, down to the bytes: chunks that end anywhere, keep-alives,
//! cuts, refusals.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_rustls::TlsAcceptor;

/// How one connection to the stream goes.
#[derive(Debug, Clone)]
pub(crate) enum Script {
    /// 200, then these steps.
    Stream(Vec<Step>),
    /// Another answer: status, further headers, body.
    Refuse(u16, Vec<(&'static str, String)>, String),
    /// The connection ends before there is an answer.
    Drop,
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// These bytes as one chunk of the body.
    Send(Vec<u8>),
    /// `\r\n`, as X sends it when there is nothing else.
    KeepAlive,
    Pause(Duration),
    /// Keep-alives, this far apart, for ever.
    KeepAlives(Duration),
    /// Nothing until the test says so.
    Told(Arc<Notify>),
    /// Nothing more, and the connection stays.
    Silence,
    /// The body ends as it should.
    End,
}

/// A connection, in the clear or not.
trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// A request, as it came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) authorization: Option<String>,
    pub(crate) body: Value,
}

#[derive(Debug, Default)]
struct State {
    scripts: VecDeque<Script>,
    seen: Vec<Seen>,
    rules: Vec<Value>,
    /// Status and body for the next changes of rules.
    rule_answers: VecDeque<(u16, Value)>,
    next_id: u64,
}

pub(crate) struct XServer {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

impl Drop for XServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl XServer {
    /// Connections to the stream follow these scripts, one after the other; the last one is repeated.
    pub(crate) async fn start(scripts: impl IntoIterator<Item = Script>) -> Self {
        Self::start_with(scripts, None).await
    }

    /// The same by TLS, if there is an acceptor.
    pub(crate) async fn start_with(
        scripts: impl IntoIterator<Item = Script>,
        tls: Option<TlsAcceptor>,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State {
            scripts: scripts.into_iter().collect(),
            ..State::default()
        }));
        let shared = state.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (shared, tls) = (shared.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, shared).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, shared).await;
                            }
                        }
                    }
                });
            }
        });
        Self {
            address,
            state,
            task,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn set_rules(&self, rules: Vec<Value>) {
        self.state.lock().unwrap().rules = rules;
    }

    pub(crate) fn answer_rules(&self, status: u16, body: Value) {
        let mut state = self.state.lock().unwrap();
        state.rule_answers.push_back((status, body));
    }

    pub(crate) fn rules(&self) -> Vec<Value> {
        self.state.lock().unwrap().rules.clone()
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.lock().unwrap().seen.clone()
    }

    /// The requests for the stream itself.
    pub(crate) fn connects(&self) -> Vec<Seen> {
        let mut seen = self.seen();
        seen.retain(|seen| seen.target.starts_with("/2/tweets/search/stream?"));
        seen
    }
}

async fn serve(mut stream: impl Stream, state: Arc<Mutex<State>>) {
    let Some(request) = read_request(&mut stream).await else {
        return;
    };
    state.lock().unwrap().seen.push(request.clone());
    let is_rules = request.target.starts_with("/2/tweets/search/stream/rules");
    if is_rules {
        let (status, body) = rules(&request, &mut state.lock().unwrap());
        reply(&mut stream, status, &[], &body.to_string()).await;
        return;
    }
    let script = {
        let mut state = state.lock().unwrap();
        if state.scripts.len() > 1 {
            state.scripts.pop_front().unwrap()
        } else {
            state.scripts[0].clone()
        }
    };
    match script {
        Script::Drop => {}
        Script::Refuse(status, headers, body) => reply(&mut stream, status, &headers, &body).await,
        Script::Stream(steps) => {
            let head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
            if stream.write_all(head).await.is_ok() {
                play(&mut stream, steps).await;
            }
        }
    }
}

async fn play(stream: &mut impl Stream, steps: Vec<Step>) {
    for step in steps {
        match step {
            Step::Send(bytes) => {
                if send_chunk(stream, &bytes).await.is_err() {
                    return;
                }
            }
            Step::KeepAlive => {
                if send_chunk(stream, b"\r\n").await.is_err() {
                    return;
                }
            }
            Step::Pause(duration) => sleep(duration).await,
            Step::Told(told) => told.notified().await,
            Step::KeepAlives(apart) => loop {
                if send_chunk(stream, b"\r\n").await.is_err() {
                    return;
                }
                sleep(apart).await;
            },
            Step::Silence => {
                // Until the other side has had enough.
                stream.read_u8().await.ok();
                return;
            }
            Step::End => {
                stream.write_all(b"0\r\n\r\n").await.ok();
                return;
            }
        }
    }
}

async fn send_chunk(stream: &mut impl Stream, bytes: &[u8]) -> std::io::Result<()> {
    let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
    chunk.extend_from_slice(bytes);
    chunk.extend_from_slice(b"\r\n");
    stream.write_all(&chunk).await
}

/// X's rules: a text is there once, and a change names what it did.
fn rules(request: &Seen, state: &mut State) -> (u16, Value) {
    if request.method == "GET" {
        // Pages of two, so that more than one is read.
        let from = request.target.split("pagination_token=p").nth(1);
        let from: usize = from.map_or(0, |from| from.parse().unwrap());
        let page: Vec<&Value> = state.rules.iter().skip(from).take(2).collect();
        let more = state.rules.len() > from + 2;
        let next = more.then(|| format!("p{}", from + 2));
        let mut answer = json!({"meta": {"sent": "now", "result_count": page.len()}});
        if !page.is_empty() {
            answer["data"] = json!(page);
        }
        if let Some(next) = next {
            answer["meta"]["next_token"] = json!(next);
        }
        return (200, answer);
    }
    if let Some(answer) = state.rule_answers.pop_front() {
        return answer;
    }
    if let Some(ids) = request.body["delete"]["ids"].as_array() {
        state.rules.retain(|rule| !ids.contains(&rule["id"]));
        return (200, json!({"meta": {"summary": {"deleted": ids.len()}}}));
    }
    let mut errors = Vec::new();
    for rule in request.body["add"].as_array().unwrap() {
        if state.rules.iter().any(|r| r["value"] == rule["value"]) {
            errors.push(json!({"title": "DuplicateRule", "value": rule["value"]}));
            continue;
        }
        state.next_id += 1;
        let mut rule = rule.clone();
        rule["id"] = json!(format!("n{}", state.next_id));
        state.rules.push(rule);
    }
    (201, json!({"meta": {"summary": {}}, "errors": errors}))
}

async fn reply(stream: &mut impl Stream, status: u16, headers: &[(&str, String)], body: &str) {
    let mut answer = format!(
        "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n",
        body.len()
    );
    for (name, value) in headers {
        answer.push_str(&format!("{name}: {value}\r\n"));
    }
    answer.push_str("\r\n");
    answer.push_str(body);
    stream.write_all(answer.as_bytes()).await.ok();
}

async fn read_request(stream: &mut impl Stream) -> Option<Seen> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let header = |name: &str| {
        let mut fields = head.lines().filter_map(|line| line.split_once(": "));
        let field = fields.find(|(field, _)| field.eq_ignore_ascii_case(name));
        field.map(|(_, value)| value.to_owned())
    };
    let length: usize = header("content-length").map_or(0, |length| length.parse().unwrap());
    while bytes.len() < end + 4 + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    Some(Seen {
        at: Instant::now(),
        method: first.next()?.to_owned(),
        target: first.next()?.to_owned(),
        authorization: header("authorization"),
        body: serde_json::from_slice(&bytes[end + 4..]).unwrap_or_default(),
    })
}
