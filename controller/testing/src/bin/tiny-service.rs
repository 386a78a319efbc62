//! A tiny HTTP service for tests: what an orchestrator runs when it matters only how a task lives and ends.
//!
//! Listens on `127.0.0.1:$PORT`, or on the address in `$HOST`. `GET /ready` is 200 when it is ready, `GET /pid` tells its
//! process id, `GET /env/NAME` a variable. `/work` is 200, also with a `/NAME` behind it; `/late/SECONDS/NAME` is the same after
//! so long, and `/drip/SECONDS/NAME` answers at once with a body that comes a piece a second. Connections are kept. On
//! SIGTERM it takes no new ones, finishes the requests that run, however long they take, and exits with 0. Arguments, any of:
//! `never-ready`, `ignore-sigterm`, `with-child` (has a child process that ignores SIGTERM), `crash-after MS` (exits
//! with 70 and last words on standard error), `crash-in NAME` (the same after 300 ms, where `$SELF` is that name), `eat MIB`
//! (uses so much memory, once it has been ready for a moment), `leak MIB` (from then on so much more each second), `spin
//! PERCENT` (uses so much of one CPU), `fail PERCENT` (so many of a hundred answers to `/work` are 500), `count FOLDER` (each
//! NAME that was answered with 200 is a line of the file `$HOSTNAME` there), `tag TEXT` changes nothing but the command. With
//! `check` it is no service but asks one on the same port whether it is ready, for a container's health check.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time;

/// How long it stays after SIGTERM though nothing runs: a request may be on its way.
const FINISH: Duration = Duration::from_millis(200);

/// How often it looks whether requests still run, then.
const FINISH_LOOK: Duration = Duration::from_millis(50);

/// When `eat` begins: late enough to have been seen ready.
const EAT_AFTER: Duration = Duration::from_millis(500);

/// Between two pieces of `leak`.
const LEAK_EVERY: Duration = Duration::from_millis(100);

/// Requests that run.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// Whether it was asked to end.
static ENDING: AtomicBool = AtomicBool::new(false);

#[derive(Default)]
struct Behaviour {
    never_ready: bool,
    ignore_sigterm: bool,
    with_child: bool,
    crash_after: Option<Duration>,
    eat_mib: usize,
    leak_mib: usize,
    spin_percent: u32,
    fail_percent: u64,
    count: Option<PathBuf>,
}

impl Behaviour {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut behaviour = Self::default();
        let mut arguments = arguments.peekable();
        while let Some(argument) = arguments.next() {
            let mut value = || {
                arguments
                    .next()
                    .ok_or_else(|| format!("{argument} needs a value"))
            };
            match argument.as_str() {
                "never-ready" => behaviour.never_ready = true,
                "ignore-sigterm" => behaviour.ignore_sigterm = true,
                "with-child" => behaviour.with_child = true,
                "crash-after" => {
                    let milliseconds = value()?
                        .parse()
                        .map_err(|error| format!("crash-after: {error}"))?;
                    behaviour.crash_after = Some(Duration::from_millis(milliseconds));
                }
                "crash-in" => {
                    if std::env::var("SELF").is_ok_and(|own| Ok(own) == value()) {
                        behaviour.crash_after = Some(Duration::from_millis(300));
                    }
                }
                "eat" => {
                    behaviour.eat_mib = value()?.parse().map_err(|error| format!("eat: {error}"))?
                }
                "leak" => {
                    behaviour.leak_mib =
                        value()?.parse().map_err(|error| format!("leak: {error}"))?;
                }
                "spin" => {
                    behaviour.spin_percent =
                        value()?.parse().map_err(|error| format!("spin: {error}"))?;
                }
                "fail" => {
                    behaviour.fail_percent =
                        value()?.parse().map_err(|error| format!("fail: {error}"))?;
                }
                "count" => behaviour.count = Some(value()?.into()),
                "tag" => drop(value()?),
                other => return Err(format!("unknown argument {other:?}")),
            }
        }
        Ok(behaviour)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tiny-service: {error}");
            ExitCode::from(2)
        }
    }
}

async fn run() -> Result<ExitCode, Box<dyn std::error::Error>> {
    if std::env::args().nth(1).as_deref() == Some("check") {
        return Ok(check().await);
    }
    let behaviour = Arc::new(Behaviour::parse(std::env::args().skip(1))?);
    let counter = Arc::new(behaviour.count.clone().map(counter).transpose()?);
    let mut terminate = signal(SignalKind::terminate())?;
    if behaviour.with_child {
        let program = std::env::current_exe()?;
        std::process::Command::new(program)
            .arg("ignore-sigterm")
            .env("PORT", "0")
            .stdin(Stdio::null())
            .spawn()?;
    }
    let port: u16 = std::env::var("PORT")?.parse()?;
    let host = std::env::var("HOST").unwrap_or_else(|_| "127.0.0.1".to_owned());
    let listener = TcpListener::bind((host, port)).await?;
    let crash = async {
        match behaviour.crash_after {
            Some(after) => time::sleep(after).await,
            None => std::future::pending().await,
        }
    };
    let eat = async {
        time::sleep(EAT_AFTER).await;
        // Written to, so that it is really there.
        let mut eaten: Vec<Vec<u8>> = vec![vec![1; behaviour.eat_mib << 20]];
        if behaviour.leak_mib == 0 {
            std::future::pending::<()>().await;
        }
        loop {
            time::sleep(LEAK_EVERY).await;
            eaten.push(vec![1; (behaviour.leak_mib << 20) / 10]);
        }
    };
    let spin = async {
        if behaviour.spin_percent == 0 {
            std::future::pending::<()>().await;
        }
        let every = Duration::from_millis(10);
        let mut due = time::interval(every);
        loop {
            due.tick().await;
            let until = time::Instant::now() + every * behaviour.spin_percent / 100;
            while time::Instant::now() < until {}
        }
    };
    let serve = async {
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(converse(stream, behaviour.clone(), counter.clone()));
            }
        }
    };
    let terminated = async {
        terminate.recv().await;
        if behaviour.ignore_sigterm {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = crash => {
            eprintln!("a line before the last");
            eprintln!("tiny-service: told to crash");
            return Ok(ExitCode::from(70));
        }
        () = eat => {}
        () = spin => {}
        () = serve => {}
        () = terminated => {}
    }
    ENDING.store(true, Ordering::Relaxed);
    drop(listener);
    time::sleep(FINISH).await;
    while RUNNING.load(Ordering::Relaxed) > 0 {
        time::sleep(FINISH_LOOK).await;
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks the service on this port whether it is ready.
async fn check() -> ExitCode {
    let asked = async {
        let port: u16 = std::env::var("PORT").ok()?.parse().ok()?;
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        stream
            .write_all(b"GET /ready HTTP/1.1\r\n\r\n")
            .await
            .ok()?;
        BufReader::new(stream).lines().next_line().await.ok()?
    };
    match asked.await {
        Some(line) if line.contains(" 200 ") => ExitCode::SUCCESS,
        Some(_) | None => ExitCode::FAILURE,
    }
}

/// Whether this answer is one of those that fail, spread evenly.
fn fails(percent: u64) -> bool {
    static ANSWERS: AtomicU64 = AtomicU64::new(0);
    let number = ANSWERS.fetch_add(1, Ordering::Relaxed);
    number * percent % 100 < percent
}

/// The file of this task in a folder that outlives it.
fn counter(folder: PathBuf) -> std::io::Result<File> {
    let name = std::env::var("HOSTNAME").unwrap_or_else(|_| std::process::id().to_string());
    File::options()
        .create(true)
        .append(true)
        .open(folder.join(name))
}

/// Answers what comes over one connection, until either side closes it.
async fn converse(mut stream: TcpStream, behaviour: Arc<Behaviour>, counter: Arc<Option<File>>) {
    // Small answers must not wait for an acknowledgement. Without it things are slower, not wrong.
    drop(stream.set_nodelay(true));
    let (reader, mut writer) = stream.split();
    let mut lines = BufReader::new(reader).lines();
    loop {
        let mut path = None;
        let mut is_last = false;
        loop {
            match lines.next_line().await {
                Ok(Some(line)) if line.is_empty() => break,
                Ok(Some(line)) => {
                    is_last |= line.eq_ignore_ascii_case("connection: close");
                    path = path.or_else(|| line.split(' ').nth(1).map(ToOwned::to_owned));
                }
                Ok(None) | Err(_) => return,
            }
        }
        RUNNING.fetch_add(1, Ordering::Relaxed);
        is_last |= ENDING.load(Ordering::Relaxed);
        let path = path.unwrap_or_default();
        let answered = answer(&mut writer, &path, is_last, &behaviour).await;
        if let (Ok(Some(name)), Some(mut counter)) = (&answered, counter.as_ref().as_ref())
            && let Err(error) = counter.write_all(format!("{name}\n").as_bytes())
        {
            eprintln!("tiny-service: cannot count: {error}");
        }
        RUNNING.fetch_sub(1, Ordering::Relaxed);
        if let Err(error) = answered {
            eprintln!("tiny-service: cannot answer: {error}");
            return;
        }
        if is_last {
            return;
        }
    }
}

/// Answers one request; the name of the work that was done.
async fn answer<'a>(
    writer: &mut (impl AsyncWriteExt + Unpin),
    path: &'a str,
    is_last: bool,
    behaviour: &Behaviour,
) -> std::io::Result<Option<&'a str>> {
    let mut parts = path.splitn(4, '/').skip(1);
    let (kind, first, second) = (parts.next(), parts.next(), parts.next());
    let seconds = first.and_then(|text| text.parse().ok()).unwrap_or(0);
    let fails = matches!(kind, Some("work" | "late" | "drip")) && fails(behaviour.fail_percent);
    let (status, body, done) = match kind {
        Some("ready") if behaviour.never_ready => ("503 Service Unavailable", String::new(), None),
        Some("ready") => ("200 OK", String::new(), None),
        Some("pid") => ("200 OK", std::process::id().to_string(), None),
        Some("env") => match std::env::var(first.unwrap_or_default()) {
            Ok(value) => ("200 OK", value, None),
            Err(_) => ("404 Not Found", String::new(), None),
        },
        _ if fails => ("500 Internal Server Error", String::new(), None),
        Some("work") => ("200 OK", String::new(), first),
        Some("late") => {
            time::sleep(Duration::from_secs(seconds)).await;
            ("200 OK", String::new(), second)
        }
        Some("drip") => {
            drip(writer, seconds, is_last).await?;
            return Ok(second);
        }
        Some(_) | None => ("404 Not Found", String::new(), None),
    };
    let length = body.len();
    let close = if is_last { "connection: close\r\n" } else { "" };
    let text = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{close}\r\n{body}");
    writer.write_all(text.as_bytes()).await?;
    Ok(done)
}

/// An answer that takes its time.
async fn drip(
    writer: &mut (impl AsyncWriteExt + Unpin),
    seconds: u64,
    is_last: bool,
) -> std::io::Result<()> {
    let close = if is_last { "connection: close\r\n" } else { "" };
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {seconds}\r\n{close}\r\n");
    writer.write_all(head.as_bytes()).await?;
    for _ in 0..seconds {
        time::sleep(Duration::from_secs(1)).await;
        writer.write_all(b".").await?;
    }
    Ok(())
}
