//! Floods against the program itself: what it keeps of them is seen in its memory, and others are served meanwhile.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use http::StatusCode;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::frames::{
    CONTINUATION, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    block, frame, hello, request,
};
use crate::program::{Running, table_file};
use crate::world::{Backend, Client, PATIENCE, table};

/// Most that the program may grow by any flood and by all of them together, over what it has when honest clients were
/// served: nothing of what it is sent is kept.
const FLOOD_BYTES_KEPT_MAX: u64 = 8 << 20;

/// Most that it may grow by those who are slow: each may have a head of 64 KiB in the making, or a body that is collected so
/// that it could be repeated, and the connection's buffers.
const SLOW_BYTES_KEPT_MAX: u64 = 48 << 20;

/// Who does harm at a time,
const ATTACKERS: usize = 4;

/// for so long,
const FLOOD_TIME: Duration = Duration::from_millis(500);

/// or until that much went out in all.
const FLOOD_BYTES_MAX: usize = 256 << 20;

/// Connections of those who are slow.
const SLOW: usize = 200;

/// The program, and what it had before.
struct Target {
    program: Running,
    proxy: SocketAddr,
    before: u64,
    client: Client,
    _backend: Backend,
    _directory: tempfile::TempDir,
}

impl Target {
    async fn new() -> Self {
        let backend = Backend::named("good").await;
        let directory = tempfile::tempdir().unwrap();
        let file = table_file(directory.path(), &table(1, &[backend.address], json!({})));
        let program = Running::start(directory.path(), &["--routes", &file]).await;
        let target = Self {
            proxy: program.listen.parse().unwrap(),
            program,
            before: 0,
            client: Client::new(),
            _backend: backend,
            _directory: directory,
        };
        for _ in 0..1_000 {
            target.good().await;
        }
        Self {
            before: target.resident_bytes(),
            ..target
        }
    }

    /// One honest request is answered well and in time.
    async fn good(&self) {
        let url = self.program.url("/good");
        let answer = timeout(PATIENCE, self.client.get(&url, &[])).await;
        let answer = answer.expect("an answer in time").unwrap();
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    }

    fn resident_bytes(&self) -> u64 {
        let statm = format!("/proc/{}/statm", self.program.child.id());
        let pages = std::fs::read_to_string(statm).expect("the program runs");
        let pages: u64 = pages.split(' ').nth(1).unwrap().parse().unwrap();
        pages * 4_096
    }

    /// Does something bad to it while an honest client asks again and again, and once more behind it.
    async fn bears(&self, what: &str, kept_max: u64, bad: impl Future<Output = String>) {
        let over = AtomicBool::new(false);
        let good = async {
            let (mut most, mut answers) = (0, 0);
            loop {
                let last = over.load(Ordering::SeqCst);
                self.good().await;
                answers += 1;
                most = most.max(self.resident_bytes());
                if last {
                    return (most, answers);
                }
            }
        };
        let bad = async {
            let came = timeout(PATIENCE * 3, bad).await;
            over.store(true, Ordering::SeqCst);
            came.expect("it comes to an end")
        };
        let (came, (most, answers)) = tokio::join!(bad, good);
        let grown = most.saturating_sub(self.before);
        println!(
            "{what}: {came}; grew by {} KiB, {answers} good answers meanwhile",
            grown >> 10
        );
        assert!(grown < kept_max, "{what}: grew by {grown} bytes");
    }
}

/// Sends `first` and then pieces, by one connection after the other, each until it is closed or takes no more.
async fn attack(proxy: SocketAddr, first: &[u8], piece: &impl Fn(u32) -> Vec<u8>) -> (u32, usize) {
    let until = Instant::now() + FLOOD_TIME;
    let (mut connections, mut bytes) = (0, 0);
    while Instant::now() < until && bytes < FLOOD_BYTES_MAX / ATTACKERS {
        let Ok(stream) = TcpStream::connect(proxy).await else {
            continue;
        };
        connections += 1;
        let (mut from, mut to) = stream.into_split();
        let send = async {
            let mut at = 0;
            let mut batch = first.to_vec();
            while Instant::now() < until && bytes < FLOOD_BYTES_MAX / ATTACKERS {
                // Many at a time, as one would to do harm.
                batch.extend((at..at + 200).flat_map(piece));
                at += 200;
                match timeout(FLOOD_TIME / 4, to.write_all(&batch)).await {
                    Ok(Ok(())) => bytes += batch.len(),
                    Ok(Err(_)) | Err(_) => return,
                }
                batch.clear();
            }
        };
        // Every second connection is not listened to.
        if connections % 2 == 0 {
            send.await;
        } else {
            let mut heard = vec![0; 16 << 10];
            let listen = async { while let Ok(1..) = from.read(&mut heard).await {} };
            tokio::select! {
                () = send => {}
                () = listen => {}
            }
        }
    }
    (connections, bytes)
}

/// All attackers at once: what they managed to do.
async fn flood(proxy: SocketAddr, first: &[u8], piece: impl Fn(u32) -> Vec<u8>) -> String {
    let all = join_all((0..ATTACKERS).map(|_| attack(proxy, first, &piece))).await;
    let connections: u32 = all.iter().map(|(connections, _)| connections).sum();
    let bytes: usize = all.iter().map(|(_, bytes)| bytes).sum();
    format!("{connections} connections, {} KiB", bytes >> 10)
}

fn stream(number: u32) -> u32 {
    // Numbers end before they would be of the server's or none.
    (number % (1 << 29)) * 2 + 1
}

/// A head whose one field of 4,000 letters is put into the table, and then named again and again at a byte each.
fn bomb(stream: u32) -> Vec<u8> {
    const TIMES: usize = 10_000;
    let mut head = request("GET", "/");
    // With incremental indexing, a name of its own; the length takes two bytes and a half (RFC 7541, 5.1).
    let length = [0x7f, 0xa1, 0x1e];
    head.extend_from_slice(&[0x40, 1, b'x']);
    head.extend_from_slice(&length);
    head.extend(std::iter::repeat_n(b'y', 4_000));
    // The newest of the table is number 62.
    head.extend(std::iter::repeat_n(0x80 | 62, TIMES));
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &head)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_bears_every_flood_in_bounded_memory_and_answers_others_meanwhile() {
    let target = Target::new().await;
    let proxy = target.proxy;

    // HTTP/1.1: a head without end, of long fields and of short ones.
    let line = "GET /flood HTTP/1.1\r\nhost: a\r\n";
    for (name, field) in [
        ("long fields", format!("x: {}\r\n", "y".repeat(4_000))),
        ("short fields", "x: y\r\n".to_owned()),
    ] {
        let piece = |_| field.clone().into_bytes();
        let bad = flood(proxy, line.as_bytes(), piece);
        target.bears(name, FLOOD_BYTES_KEPT_MAX, bad).await;
    }

    // HTTP/2.
    let get = request("GET", "/flood");
    let post = request("POST", "/flood");
    let open = frame(HEADERS, END_STREAM, 1, &get);
    let long = block(&[(b"x", &[b'y'; 4_000])]);
    for (name, payload) in [("endless head", &long[..]), ("empty pieces of a head", &[])] {
        let first = [hello(&[]), open.clone()].concat();
        let piece = |_| frame(CONTINUATION, 0, 1, payload);
        target
            .bears(name, FLOOD_BYTES_KEPT_MAX, flood(proxy, &first, piece))
            .await;
    }
    let reset = |at| {
        [
            frame(HEADERS, END_HEADERS | END_STREAM, stream(at), &get),
            frame(RST_STREAM, 0, stream(at), &8_u32.to_be_bytes()),
        ]
        .concat()
    };
    target
        .bears(
            "rapid reset",
            FLOOD_BYTES_KEPT_MAX,
            flood(proxy, &hello(&[]), reset),
        )
        .await;
    let made_to_reset = |at| {
        [
            frame(HEADERS, END_HEADERS, stream(at), &post),
            frame(WINDOW_UPDATE, 0, stream(at), &[0; 4]),
        ]
        .concat()
    };
    target
        .bears(
            "made to reset",
            FLOOD_BYTES_KEPT_MAX,
            flood(proxy, &hello(&[]), made_to_reset),
        )
        .await;
    let bombs = |at| bomb(stream(at));
    target
        .bears(
            "heads of 40 MB each",
            FLOOD_BYTES_KEPT_MAX,
            flood(proxy, &hello(&[]), bombs),
        )
        .await;
    // What has to be answered, by those who do not listen.
    for (name, kind, payload) in [("pings", PING, &[0; 8][..]), ("settings", SETTINGS, &[])] {
        let piece = |_| frame(kind, 0, 0, payload);
        target
            .bears(name, FLOOD_BYTES_KEPT_MAX, flood(proxy, &hello(&[]), piece))
            .await;
    }

    // Many who are slow: they begin, and then send a byte now and then.
    let head = format!(
        "GET /slow HTTP/1.1\r\nhost: a\r\nx: {}",
        "y".repeat(32 << 10)
    );
    let body = format!(
        "PUT /slow HTTP/1.1\r\nhost: a\r\ncontent-length: 40000\r\n\r\n{}",
        "z".repeat(32 << 10)
    );
    for (name, begun) in [("slow heads", head), ("slow bodies", body)] {
        let bad = async {
            let mut slow = Vec::new();
            for _ in 0..SLOW {
                let mut stream = TcpStream::connect(proxy).await.unwrap();
                stream.write_all(begun.as_bytes()).await.unwrap();
                slow.push(stream);
            }
            let mut bytes = 0;
            let until = Instant::now() + FLOOD_TIME;
            while Instant::now() < until {
                for stream in &mut slow {
                    // Refused already, it may be.
                    bytes += u32::from(stream.write_all(b"y").await.is_ok());
                }
                tokio::time::sleep(FLOOD_TIME / 20).await;
            }
            format!("{} connections, {bytes} bytes later", slow.len())
        };
        target.bears(name, SLOW_BYTES_KEPT_MAX, bad).await;
    }

    // They were refused, and that is counted.
    let url = format!("http://{}/metrics", target.program.admin);
    let metrics = target.client.get(&url, &[]).await.unwrap().body;
    let refused = "friday_proxy_refusals_total{reason=\"head_too_large\"} ";
    let counted = metrics.lines().find_map(|line| line.strip_prefix(refused));
    let counted: f64 = counted.expect("it is counted").parse().unwrap();
    assert!(counted >= ATTACKERS as f64, "{counted}");
    target.program.signal(nix::sys::signal::Signal::SIGTERM);
    let Target { program, .. } = target;
    assert_eq!(program.ended().await, Some(0));
}
