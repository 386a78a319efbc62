//! What the proxy does with what no honest client sends: it is refused or closed, the upstream never sees two requests
//! where the client sent one, and other clients are served meanwhile.
//!
//! A case is what a client sends on one connection, what it gets, and what the upstream then has. Behind every case
//! the client sends one more, honest request, [`MARKER`]: if the proxy read the case's end elsewhere than we do, that
//! one comes out mutilated, or not at all. Everything is sent twice: at once, and byte by byte.

mod answers;
mod floods;
pub(crate) mod frames;
mod framing;
mod heads;
mod http2;
mod process;
mod recorder;
mod slow;
mod strict;

use std::net::SocketAddr;

use futures::StreamExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use self::recorder::Recorder;
use self::strict::Message;
use crate::world::{PATIENCE, Proxy, table};

/// The honest request behind every case.
const MARKER: &str = "GET /marker HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

/// Cases at the same time, each with a proxy of its own.
const AT_ONCE: usize = 4;

/// How a client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    AtOnce,
    ByteByByte,
}

/// One line of a table of cases.
#[derive(Debug, Clone)]
struct Case {
    name: String,
    sent: Vec<u8>,
    /// Whether the client hangs up instead of sending [`MARKER`].
    hangs_up: bool,
    /// The codes of the answers; one of these.
    answers: Vec<&'static str>,
    /// Whole requests at the upstream but for the marker, `METHOD host target body`, parted by `; `.
    upstream: String,
    /// Whether the upstream may also see the beginning of a request that is cut off.
    may_be_cut: bool,
    /// Fields that the upstream's first request must have, and values.
    fields: Vec<(&'static str, &'static str)>,
}

/// A case whose bytes are answered with those codes (`400`, or `200 200` with the marker's; `|` between alternatives),
/// when the upstream gets those requests.
fn case(name: &str, sent: impl AsRef<[u8]>, answers: &'static str, upstream: &str) -> Case {
    Case {
        name: name.to_owned(),
        sent: sent.as_ref().to_vec(),
        hangs_up: false,
        answers: answers.split('|').collect(),
        upstream: upstream.to_owned(),
        may_be_cut: false,
        fields: Vec::new(),
    }
}

impl Case {
    /// The client hangs up behind it.
    fn hangs_up(mut self) -> Self {
        self.hangs_up = true;
        self
    }

    /// The upstream may see the beginning of it, never the end.
    fn may_be_cut(mut self) -> Self {
        self.may_be_cut = true;
        self
    }

    /// The upstream sees that field once with that value; with an empty value, not at all.
    fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.fields.push((name, value));
        self
    }

    /// What is wrong with what the proxy did; empty if nothing is.
    async fn faults(&self, pace: Pace) -> Vec<String> {
        let recorder = Recorder::new().await;
        let more = json!({ "match": { "host": "*", "path": "/" }, "limits": { "body_bytes_max": 100_000 } });
        let proxy = Proxy::alone(&table(1, &[recorder.address], more)).await;
        let mut sent = self.sent.clone();
        if !self.hangs_up {
            sent.extend_from_slice(MARKER.as_bytes());
        }
        let got = exchange(proxy.listen, &sent, pace, self.hangs_up).await;
        proxy.stop().await;
        let log = recorder.end().await;

        let mut faults = log.faults;
        match answers(&got) {
            Ok(codes) if self.answers.contains(&codes.as_str()) => {}
            other => faults.push(format!("answered {other:?}, not {:?}", self.answers)),
        }
        let (marker, own): (Vec<&Message>, Vec<&Message>) = log
            .whole
            .iter()
            .partition(|message| message.target == "/marker");
        let own_text: Vec<String> = own.iter().map(ToString::to_string).collect();
        if own_text.join("; ") != self.upstream {
            faults.push(format!(
                "upstream got {own_text:?}, not {:?}",
                self.upstream
            ));
        }
        if marker
            .iter()
            .any(|marker| marker.to_string() != "GET a /marker")
            || marker.len() > 1
        {
            faults.push(format!("the marker came as {marker:?}"));
        }
        if !log.cut.is_empty() && !self.may_be_cut {
            let cut: Vec<_> = log
                .cut
                .iter()
                .map(|cut| cut.escape_ascii().to_string())
                .collect();
            faults.push(format!("upstream got a request without its end: {cut:?}"));
        }
        for (name, value) in &self.fields {
            let seen = own.first().map(|message| message.field(name));
            let wanted = Some([*value].into_iter().filter(|value| !value.is_empty()));
            if seen != wanted.map(|values| values.map(str::to_owned).collect()) {
                faults.push(format!("upstream got {name} {seen:?}, not {value:?}"));
            }
        }
        faults
            .iter()
            .map(|fault| format!("{} ({pace:?}): {fault}", self.name))
            .collect()
    }
}

/// Tries all cases and fails with everything that was wrong.
async fn check(cases: Vec<Case>) {
    // A byte at a time makes a system call of each: for what is short enough.
    let both = cases.iter().flat_map(|case| {
        [Pace::AtOnce, Pace::ByteByByte]
            .into_iter()
            .filter(|pace| *pace == Pace::AtOnce || case.sent.len() < 2_000)
            .map(move |pace| (case, pace))
    });
    let tried: Vec<_> = both.collect();
    let faults: Vec<String> = futures::stream::iter(tried)
        .map(|(case, pace)| case.faults(pace))
        .buffer_unordered(AT_ONCE)
        .concat()
        .await;
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// Sends, and reads until the proxy closes.
async fn exchange(proxy: SocketAddr, sent: &[u8], pace: Pace, hangs_up: bool) -> Vec<u8> {
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut from, mut to) = stream.split();
    let send = async {
        let step = match pace {
            Pace::AtOnce => sent.len(),
            Pace::ByteByByte => 1,
        };
        for piece in sent.chunks(step.max(1)) {
            // The proxy may have closed already.
            if to.write_all(piece).await.is_err() {
                break;
            }
        }
        if hangs_up {
            drop(to.shutdown().await);
        }
    };
    let mut got = Vec::new();
    let read = async {
        // A reset behind the answer is an end, too.
        while let Ok(1..) = from.read_buf(&mut got).await {}
    };
    let both = async {
        tokio::join!(send, read);
    };
    let ended = timeout(PATIENCE, both).await;
    if ended.is_err() {
        got.extend_from_slice(b"(and the connection stayed open)");
    }
    got
}

/// The codes of the answers in these bytes.
fn answers(mut bytes: &[u8]) -> Result<String, String> {
    let mut codes = Vec::new();
    while !bytes.is_empty() {
        let bad = || {
            format!(
                "{} and then {:?}",
                codes.join(" "),
                bytes.escape_ascii().to_string()
            )
        };
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let (head, rest) = bytes.split_at(end.ok_or_else(bad)? + 4);
        let head = String::from_utf8_lossy(head).to_lowercase();
        let code = head.strip_prefix("http/1.").and_then(|rest| rest.get(2..5));
        let code = code.ok_or_else(bad)?.to_owned();
        let length = head
            .split_once("\r\ncontent-length: ")
            .map_or("0", |(_, value)| value.lines().next().unwrap_or_default());
        let length: usize = length.parse().map_err(|_| bad())?;
        // An answer to HEAD has a length and no body.
        let is_bare = rest.starts_with(b"HTTP/1.1 ");
        let length = if is_bare { 0 } else { length };
        bytes = rest.get(length..).ok_or_else(bad)?;
        codes.push(code);
    }
    Ok(codes.join(" "))
}
