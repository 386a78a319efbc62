//! One question to a running program, `/ready` or `/live`: for the health check of its container.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest answer that is read. Those of `/live` and `/ready` are a line.
const ANSWER_BYTES_MAX: usize = 4 << 10;

/// The arguments of `friday-proxy health`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The --admin address of the proxy that is asked
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8081")]
    pub admin: SocketAddr,
    /// What is asked, and for how long
    #[command(flatten)]
    pub question: Question,
}

/// What is asked.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Question {
    /// Ask whether the process answers (/live), not whether it can serve (/ready)
    #[arg(long)]
    pub live: bool,
    /// Longest wait for the answer
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub seconds: u64,
}

/// Why the answer is no.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// Nobody listens, or the connection broke.
    #[error("not {path}: {address}: {source}")]
    Unreachable {
        /// What was asked.
        path: &'static str,
        /// Where.
        address: SocketAddr,
        /// What happened.
        source: io::Error,
    },
    /// There was no answer in time.
    #[error("not {path}: {address} gave no answer within {seconds} s")]
    Silent {
        /// What was asked.
        path: &'static str,
        /// Where.
        address: SocketAddr,
        /// How long it was waited for.
        seconds: u64,
    },
    /// It says no.
    #[error("not {path}: {address} answers {status}: {words}")]
    Refused {
        /// What was asked.
        path: &'static str,
        /// Where.
        address: SocketAddr,
        /// The HTTP status.
        status: StatusCode,
        /// Its words, in one line.
        words: String,
    },
}

/// Asks a proxy, and says in one line what it answered; 0 if that was yes, else 1, as Docker wants it.
pub async fn run(args: Args) -> ExitCode {
    tell(args.admin, args.question).await
}

/// The same of any program that answers `/live` and `/ready`.
pub async fn tell(address: SocketAddr, question: Question) -> ExitCode {
    let said: Result<Yes, HealthError> = ask(address, question).await;
    match said {
        Ok(yes) => {
            println!("{yes}");
            ExitCode::SUCCESS
        }
        Err(no) => {
            println!("{no}");
            ExitCode::FAILURE
        }
    }
}

/// An answer with 2xx.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Yes {
    path: &'static str,
    address: SocketAddr,
}

impl fmt::Display for Yes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.address)
    }
}

/// Asks once. A program that listens on every address of its container is asked on loopback.
///
/// # Errors
/// There was no answer in time, or another than 2xx.
pub async fn ask(address: SocketAddr, question: Question) -> Result<Yes, HealthError> {
    let path = if question.live { "live" } else { "ready" };
    let address = on_loopback(address);
    let seconds = question.seconds;
    let unreachable = |source| HealthError::Unreachable {
        path,
        address,
        source,
    };
    let asked = timeout(Duration::from_secs(seconds), get(address, path));
    let (status, words) = asked
        .await
        .map_err(|_| HealthError::Silent {
            path,
            address,
            seconds,
        })?
        .map_err(unreachable)?;
    if status.is_success() {
        Ok(Yes { path, address })
    } else {
        Err(HealthError::Refused {
            path,
            address,
            status,
            words,
        })
    }
}

fn on_loopback(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    (ip, address.port()).into()
}

async fn get(address: SocketAddr, path: &str) -> io::Result<(StatusCode, String)> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let request = Request::get(format!("/{path}"))
        .header(header::HOST, address.to_string())
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let asked = async {
        let answer = sender
            .send_request(request)
            .await
            .map_err(io::Error::other)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(io::Error::other)?;
        let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        let words: Vec<&str> = text.split_whitespace().collect();
        Ok((status, words.join(" ")))
    };
    tokio::pin!(asked);
    tokio::select! {
        answer = &mut asked => answer,
        // The answer may be there whole when the connection ends.
        _ = connection => asked.await,
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use tokio::net::TcpListener;

    use super::*;

    const READY: Question = Question {
        live: false,
        seconds: 1,
    };

    #[tokio::test]
    async fn says_yes_or_why_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let no = || async {
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "not ready:\n no route table yet\n",
            )
        };
        let router = Router::new()
            .route("/live", get(async || "live\n"))
            .route("/ready", get(no));
        tokio::spawn(async move { axum::serve(listener, router).await });
        // As a container's program listens.
        let everywhere = (Ipv4Addr::UNSPECIFIED, address.port()).into();
        let live = Question {
            live: true,
            ..READY
        };
        let yes = ask(everywhere, live).await.unwrap();
        assert_eq!(yes.to_string(), format!("live: {address}"));
        let no = ask(address, READY).await.unwrap_err().to_string();
        let expected = format!(
            "not ready: {address} answers 503 Service Unavailable: not ready: no route table yet"
        );
        assert_eq!(no, expected);
    }

    #[tokio::test]
    async fn gives_up_on_whoever_is_away_or_silent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let silent = ask(address, READY).await.unwrap_err().to_string();
        assert_eq!(
            silent,
            format!("not ready: {address} gave no answer within 1 s")
        );
        drop(listener);
        let away = ask(address, READY).await.unwrap_err();
        assert!(matches!(away, HealthError::Unreachable { .. }), "{away}");
    }
}
