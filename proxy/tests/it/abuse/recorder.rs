//! An upstream that takes note of every byte it gets, and reads it by the strictest rules.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::strict::{self, Message};

/// What came.
#[derive(Debug, Default, Clone)]
pub(crate) struct Log {
    /// Requests that came to their end.
    pub(crate) whole: Vec<Message>,
    /// Beginnings of requests whose connection ended before they did.
    pub(crate) cut: Vec<Vec<u8>>,
    /// Bytes that are no request, or could be read in two ways.
    pub(crate) faults: Vec<String>,
}

/// Answers every request with 200 and `ok`.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub(crate) address: SocketAddr,
    log: Arc<Mutex<Log>>,
    last: CancellationToken,
    task: JoinHandle<()>,
}

impl Recorder {
    pub(crate) async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::<Mutex<Log>>::default();
        let last = CancellationToken::new();
        let (noted, stop) = (Arc::clone(&log), last.clone());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
                let (stream, _) = accepted.unwrap();
                connections.spawn(record(stream, Arc::clone(&noted)));
            }
            while connections.join_next().await.is_some() {}
        });
        Self {
            address,
            log,
            last,
            task,
        }
    }

    /// All that came: to be asked when the proxy has stopped, so that its connections end.
    pub(crate) async fn end(self) -> Log {
        self.last.cancel();
        self.task.await.unwrap();
        self.log.lock().unwrap().clone()
    }
}

async fn record(mut stream: TcpStream, log: Arc<Mutex<Log>>) {
    let mut bytes = Vec::new();
    loop {
        match strict::parse(&bytes) {
            Err(fault) => {
                let fault = format!("{fault} in {:?}", bytes.escape_ascii().to_string());
                log.lock().unwrap().faults.push(fault);
                return;
            }
            Ok(Some((message, length))) => {
                bytes.drain(..length);
                let body = if message.method == "HEAD" { "" } else { "ok" };
                log.lock().unwrap().whole.push(message);
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{body}");
                // If the proxy has gone, the next read says so.
                drop(stream.write_all(answer.as_bytes()).await);
            }
            Ok(None) => {
                if !matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {
                    break;
                }
            }
        }
    }
    if !bytes.is_empty() {
        log.lock().unwrap().cut.push(bytes);
    }
}
