//! A local server that speaks the filtered stream of X's API v2, as far as a subscriber that behaves needs it: rules that
//! stay as they are asked for, one stream of tweets at an even rate, then keep-alives.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};

/// How often tweets are sent: those that are due go together, as X's own stream comes in bunches.
const TICK: Duration = Duration::from_millis(20);

/// How often there is a sign of life when there are no tweets; X takes 20 s.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(5);

/// Longest request. A subscriber's are far below it.
const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// Tweets at an even rate, each sent once to whoever is connected, until [`TweetStream::end`]. Dropped, it ends at once.
#[derive(Debug)]
pub struct TweetStream {
    address: SocketAddr,
    progress: Arc<Mutex<Progress>>,
    task: JoinHandle<()>,
}

/// How far it is; the first tweet has the number 1.
#[derive(Debug, Default)]
struct Progress {
    sent: u64,
    /// The last tweet, once that is known.
    last: Option<u64>,
}

impl Progress {
    /// The tweets to send now, of those that are due.
    fn take(&mut self, due: u64) -> Range<u64> {
        let from = self.sent + 1;
        self.sent = (self.sent + due).min(self.last.unwrap_or(u64::MAX));
        from..self.sent + 1
    }

    fn is_over(&self) -> bool {
        self.last.is_some_and(|last| self.sent >= last)
    }
}

impl Drop for TweetStream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TweetStream {
    /// Serves tweets, `rate` a second, to whoever connects. `tweet` makes the one of a number, from 1 on: a JSON document
    /// without line ends.
    ///
    /// # Panics
    /// There is no free port.
    pub async fn start(tweet: fn(u64) -> String, rate: u32) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await;
        let listener = listener.expect("there is a free port");
        let address = listener.local_addr().expect("it listens");
        let progress = Arc::new(Mutex::new(Progress::default()));
        let shared = progress.clone();
        let task = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let shared = shared.clone();
                tokio::spawn(async move {
                    // Whoever leaves has a reason of their own.
                    drop(serve(connection, tweet, &shared, rate).await);
                });
            }
        });
        Self {
            address,
            progress,
            task,
        }
    }

    /// The address of the API.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sends no more tweets, once there were at least so many; from then on there are keep-alives alone. Returns how many
    /// tweets there are in all.
    #[must_use]
    pub fn end(&self, tweets_min: u64) -> u64 {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let last = progress.sent.max(tweets_min);
        progress.last = Some(last);
        last
    }
}

async fn serve(
    mut connection: TcpStream,
    tweet: fn(u64) -> String,
    progress: &Mutex<Progress>,
    rate: u32,
) -> io::Result<()> {
    let target = read_request(&mut connection).await?;
    if target.starts_with("/2/tweets/search/stream/rules") {
        // There are none yet, and every one that is asked for is made.
        let body = r#"{"meta":{"sent":"now","summary":{}}}"#;
        let status = if target.contains(" POST") { 201 } else { 200 };
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        );
        return connection.write_all(answer.as_bytes()).await;
    }
    let head =
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    connection.write_all(head).await?;
    let mut tick = interval(TICK);
    // A subscriber that was held up gets the rest at the same rate, not all at once.
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut due = 0.0;
    loop {
        tick.tick().await;
        due += f64::from(rate) * TICK.as_secs_f64();
        let (numbers, is_over) = {
            let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
            (progress.take(due as u64), progress.is_over())
        };
        due = due.fract();
        let lines: String = numbers.map(|number| tweet(number) + "\r\n").collect();
        if !lines.is_empty() {
            send(&mut connection, &lines).await?;
        }
        if is_over {
            break;
        }
    }
    loop {
        send(&mut connection, "\r\n").await?;
        sleep(KEEP_ALIVE_EVERY).await;
    }
}

/// One chunk of the body.
async fn send(connection: &mut TcpStream, text: &str) -> io::Result<()> {
    let chunk = format!("{:x}\r\n{text}\r\n", text.len());
    connection.write_all(chunk.as_bytes()).await
}

/// The target and, after a space, the method.
async fn read_request(connection: &mut TcpStream) -> io::Result<String> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let mut fields = head.lines().filter_map(|line| line.split_once(": "));
            let length = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            let length: usize = length.map_or(0, |(_, value)| value.parse().unwrap_or(0));
            if body.len() >= length {
                let mut words = head.split(' ');
                let (method, target) = (words.next(), words.next());
                return Ok(format!(
                    "{} {}",
                    target.unwrap_or_default(),
                    method.unwrap_or_default()
                ));
            }
        }
        if bytes.len() > REQUEST_BYTES_MAX || connection.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}
