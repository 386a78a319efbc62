//! The access log: a JSON line for each request, or for a share of them, written by a thread of its own.
//!
//! A disk that is slow delays no request: lines that do not fit into the queue are left out and counted.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::{self, JoinHandle};

use http::header::HOST;
use http::request::Parts;
use http::{StatusCode, Version};
use prometheus::IntCounter;
use proxy_api::{Arm, BasisPoints};
use serde::Serialize;
use tokio::time::Instant;
use tracing::error;

use crate::headers::{self, HOST_BYTES_MAX};
use crate::refusal::Refusal;

/// Lines that wait for the disk; about 8 MiB, and some 32 if each is as long as it may be.
const LINES_WAITING_MAX: usize = 16_384;

/// Longest path that is written whole; the rest of a longer one is not needed to find the request.
pub(crate) const PATH_BYTES_MAX: usize = 1_024;

/// The same of a method and of a request's name: methods are words, and names have some 40 characters.
const WORD_BYTES_MAX: usize = 128;

/// Where lines go.
#[derive(Debug)]
pub(crate) struct AccessLog {
    lines: SyncSender<Vec<u8>>,
    share: BasisPoints,
    dropped: IntCounter,
}

/// Ends the log once everybody else has let go of it.
#[derive(Debug)]
pub(crate) struct Writer(JoinHandle<()>);

impl Writer {
    /// Waits until the last line is written. Blocks on the disk.
    pub(crate) fn finish(self) {
        if self.0.join().is_err() {
            error!("the access log's thread panicked");
        }
    }
}

impl AccessLog {
    /// A log of that share of requests at the end of the file at `path`, or on standard output for `-`.
    ///
    /// # Errors
    /// The file cannot be opened for writing.
    pub(crate) fn open(
        path: &Path,
        share: BasisPoints,
        dropped: IntCounter,
    ) -> io::Result<(Self, Writer)> {
        let to: Box<dyn Write + Send> = if path == Path::new("-") {
            Box::new(io::stdout())
        } else {
            let file: File = OpenOptions::new().create(true).append(true).open(path)?;
            Box::new(file)
        };
        let (lines, waiting) = sync_channel(LINES_WAITING_MAX);
        let writer = thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_all(BufWriter::new(to), &waiting))?;
        let log = Self {
            lines,
            share,
            dropped,
        };
        Ok((log, Writer(writer)))
    }

    /// The beginning of a line, if this request gets one.
    pub(crate) fn sample(&self, head: &Parts, client: &str) -> Option<Box<Entry>> {
        (rand::random_range(0..10_000) < self.share.get())
            .then(|| Box::new(Entry::new(head, client)))
    }

    /// Writes the line of a request that has ended.
    pub(crate) fn write(&self, entry: &Entry) {
        let mut line = match serde_json::to_vec(entry) {
            Ok(line) => line,
            Err(error) => {
                return error!(%error, "a line of the access log cannot be written as JSON");
            }
        };
        line.push(b'\n');
        if self.lines.try_send(line).is_err() {
            self.dropped.inc();
        }
    }
}

fn write_all(mut to: BufWriter<Box<dyn Write + Send>>, lines: &Receiver<Vec<u8>>) {
    let mut failed = false;
    let mut note = |written: io::Result<()>| {
        if let Err(error) = &written
            && !failed
        {
            error!(%error, "the access log cannot be written; this is said once until it can");
        }
        failed = written.is_err();
    };
    loop {
        let line = match lines.try_recv() {
            Ok(line) => line,
            Err(TryRecvError::Disconnected) => break,
            // Nobody is waiting: what is there should be seen.
            Err(TryRecvError::Empty) => {
                note(to.flush());
                match lines.recv() {
                    Ok(line) => line,
                    Err(_) => break,
                }
            }
        };
        note(to.write_all(&line));
    }
    note(to.flush());
}

/// One line. What a query, a cookie or a body holds is not written: it may be a secret.
#[derive(Debug, Serialize)]
pub(crate) struct Entry {
    /// When the head was there (RFC 3339, UTC).
    time: String,
    client: String,
    method: String,
    host: String,
    path: String,
    version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    #[serde(skip)]
    began: Instant,
    duration_ms: f64,
    status: u16,
    /// `ok`, `broken_off` by the upstream, `client_gone`, or `refused` by the proxy.
    end: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<&'static str>,
    #[serde(flatten)]
    place: Option<Whereabouts>,
}

/// The time of day, for people who look for a request.
#[expect(
    clippy::disallowed_methods,
    reason = "nothing is decided by it: it only stands in the line"
)]
fn now() -> String {
    jiff::Timestamp::now().to_string()
}

/// Where a request was.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Whereabouts {
    /// The route.
    pub(crate) service: String,
    /// The side it was routed to.
    pub(crate) arm: Arm,
    /// The release it was routed to.
    pub(crate) release: String,
    /// The endpoint that answered.
    pub(crate) endpoint: Option<String>,
    /// Whether stable answered for the canary.
    pub(crate) shielded: bool,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// With a whole answer.
    Ok,
    /// The upstream broke off.
    BrokenOff,
    /// The client went away.
    ClientGone,
}

impl End {
    /// The word for it, in logs and traces.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::BrokenOff => "broken_off",
            Self::ClientGone => "client_gone",
        }
    }
}

/// The beginning of what a client wrote. Also heads that are to be refused have a line, and those may have 64 KiB.
fn cut(text: &str, bytes_max: usize) -> String {
    text[..text.floor_char_boundary(bytes_max)].to_owned()
}

impl Entry {
    fn new(head: &Parts, client: &str) -> Self {
        let authority = head.uri.authority().map(|authority| authority.as_str());
        let header = || head.headers.get(HOST).and_then(|host| host.to_str().ok());
        let host = authority.or_else(header).unwrap_or_default();
        Self {
            time: now(),
            client: client.to_owned(),
            method: cut(head.method.as_str(), WORD_BYTES_MAX),
            host: cut(host, HOST_BYTES_MAX),
            path: cut(head.uri.path(), PATH_BYTES_MAX),
            version: match head.version {
                Version::HTTP_2 => "2",
                Version::HTTP_10 => "1.0",
                _ => "1.1",
            },
            request_id: headers::request_id(&head.headers).map(|id| cut(id, WORD_BYTES_MAX)),
            began: Instant::now(),
            duration_ms: 0.0,
            status: 0,
            end: "refused",
            refusal: None,
            place: None,
        }
    }

    /// The name that the request got from us, if it had none.
    pub(crate) fn name(&mut self, id: Option<&str>) {
        if self.request_id.is_none() {
            self.request_id = id.map(ToOwned::to_owned);
        }
    }

    /// It was answered by an upstream.
    pub(crate) fn answered(&mut self, status: StatusCode, end: End, place: Whereabouts) {
        self.ended(status);
        self.place = Some(place);
        self.end = end.as_str();
    }

    /// It was answered by the proxy.
    pub(crate) fn refused(&mut self, refusal: Refusal) {
        self.ended(refusal.status());
        self.refusal = Some(refusal.code());
    }

    fn ended(&mut self, status: StatusCode) {
        self.status = status.as_u16();
        self.duration_ms = self.began.elapsed().as_secs_f64() * 1e3;
    }
}
