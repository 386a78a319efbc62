//! A tiny HTTP service for tests: what an orchestrator runs when it matters only how a task lives and ends.
//!
//! Listens on `127.0.0.1:$PORT`, or on the address in `$HOST`. `GET /ready` is 200 when it is ready, `GET /pid` tells its process id, `GET /env/NAME`
//! a variable, `GET /work` is 200. On SIGTERM it takes no new requests, finishes the running ones and exits with 0. Arguments, any of:
//! `never-ready`, `ignore-sigterm`, `with-child` (has a child process that ignores SIGTERM), `crash-after MS` (exits
//! with 70 and last words on standard error), `crash-in NAME` (the same after 300 ms, where `$SELF` is that name), `eat MIB` (uses so much memory, once it has been ready for a moment);
//! `fail PERCENT` (so many of a hundred answers to `/work` are 500), `tag TEXT` changes nothing but the command. With `check` it is no service but asks one on the same port whether it is
//! ready, for a container's health check.

use std::process::{ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time;

/// How long running requests may take after SIGTERM; there are none that take long.
const FINISH: Duration = Duration::from_millis(200);

/// When `eat` begins: late enough to have been seen ready.
const EAT_AFTER: Duration = Duration::from_millis(500);

#[derive(Default, Clone, Copy)]
struct Behaviour {
    never_ready: bool,
    ignore_sigterm: bool,
    with_child: bool,
    crash_after: Option<Duration>,
    eat_mib: usize,
    fail_percent: u64,
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
                "fail" => {
                    behaviour.fail_percent =
                        value()?.parse().map_err(|error| format!("fail: {error}"))?;
                }
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
    let behaviour = Behaviour::parse(std::env::args().skip(1))?;
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
        let eaten: Vec<u8> = vec![1; behaviour.eat_mib << 20];
        std::future::pending::<()>().await;
        drop(eaten);
    };
    let serve = async {
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, behaviour));
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
        () = serve => {}
        () = terminated => {}
    }
    drop(listener);
    time::sleep(FINISH).await;
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

async fn answer(mut stream: TcpStream, behaviour: Behaviour) {
    let (reader, mut writer) = stream.split();
    let mut lines = BufReader::new(reader).lines();
    let mut path = None;
    while let Ok(Some(line)) = lines.next_line().await {
        if line.is_empty() {
            break;
        }
        path = path.or_else(|| line.split(' ').nth(1).map(ToOwned::to_owned));
    }
    let path = path.unwrap_or_default();
    let (status, body) = match path.as_str() {
        "/ready" if behaviour.never_ready => ("503 Service Unavailable", String::new()),
        "/ready" => ("200 OK", String::new()),
        "/work" if fails(behaviour.fail_percent) => ("500 Internal Server Error", String::new()),
        "/work" => ("200 OK", String::new()),
        "/pid" => ("200 OK", std::process::id().to_string()),
        other => match other.strip_prefix("/env/").map(std::env::var) {
            Some(Ok(value)) => ("200 OK", value),
            Some(Err(_)) | None => ("404 Not Found", String::new()),
        },
    };
    let length = body.len();
    let text =
        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
    if let Err(error) = writer.write_all(text.as_bytes()).await {
        eprintln!("tiny-service: cannot answer: {error}");
    }
}
