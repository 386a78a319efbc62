//! Connections to an engine: HTTP/1.1 over a socket, over TLS, or over the standard streams of ssh.

use std::fmt;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use friday_tls::{Authorities, CertificateFiles};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rollout::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::{Child, ChildStderr, Command};
use tokio::time;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::address::EngineAddress;
use crate::orchestrator::OrchestratorError;

/// Longest wait for a connection: an engine that is there takes it in milliseconds.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// The same through ssh, which agrees on keys and asks the machine's accounts first.
const SSH_CONNECT_MAX: Duration = Duration::from_secs(10);

/// Longest answer that is read. 10 000 tasks are 40 MB.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Connections that are kept for the next call. Calls come one after the other, seldom two at once.
const IDLE_MAX: usize = 4;

/// Most that is kept of what ssh says about its trouble.
const WORDS_BYTES_MAX: usize = 2048;

/// One connection, and what ssh has said of it.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    words: Words,
}

/// Where calls to one engine go.
pub(super) struct Wire {
    address: EngineAddress,
    tls: Option<TlsConnector>,
    idle: Mutex<Vec<Connection>>,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Wire")
            .field(&self.address.to_string())
            .finish()
    }
}

impl Wire {
    /// Reads certificates, if there are any; connects to nobody yet. Blocks on the disk.
    pub(super) fn new(address: EngineAddress) -> Result<Self, OrchestratorError> {
        let tls = match &address {
            EngineAddress::Tcp {
                certificates: Some(folder),
                ..
            } => Some(TlsConnector::from(Arc::new(tls_config(folder)?))),
            EngineAddress::Tcp { .. } | EngineAddress::Unix(_) | EngineAddress::Ssh { .. } => None,
        };
        Ok(Self {
            address,
            tls,
            idle: Mutex::default(),
        })
    }

    /// Whose engine it is, for messages.
    pub(super) fn address(&self) -> &EngineAddress {
        &self.address
    }

    /// Makes sure that there is a connection to send on; a limit for calls then measures the engine alone.
    pub(super) async fn warm(&self) -> io::Result<()> {
        let has_one = {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.iter().any(|connection| !connection.sender.is_closed())
        };
        if !has_one {
            let connection = self.connect().await?;
            self.keep(connection);
        }
        Ok(())
    }

    /// Sends one request and reads the whole answer. What an old connection did not take goes over a new one.
    pub(super) async fn send(&self, request: Request<Full<Bytes>>) -> io::Result<Response<Bytes>> {
        let mut request = request;
        while let Some(mut connection) = self.take() {
            match connection.sender.try_send_request(request).await {
                Ok(answer) => return self.read(connection, answer).await,
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(connection.failed(error.into_error())),
                },
            }
        }
        let mut connection = self.connect().await?;
        match connection.sender.send_request(request).await {
            Ok(answer) => self.read(connection, answer).await,
            Err(error) => Err(connection.failed(error)),
        }
    }

    /// Sends one request over a connection of its own and leaves the answer's body to be read as it comes: it may never
    /// end. The connection lives as long as what is returned.
    pub(super) async fn open(
        &self,
        request: Request<Full<Bytes>>,
    ) -> io::Result<(Response<Incoming>, Connection)> {
        let mut connection = self.connect().await?;
        match connection.sender.send_request(request).await {
            Ok(answer) => Ok((answer, connection)),
            Err(error) => Err(connection.failed(error)),
        }
    }

    async fn read(
        &self,
        connection: Connection,
        answer: Response<Incoming>,
    ) -> io::Result<Response<Bytes>> {
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(io::Error::other)?.to_bytes();
        self.keep(connection);
        Ok(Response::from_parts(head, body))
    }

    fn take(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|connection| !connection.sender.is_closed());
        idle.pop()
    }

    fn keep(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(connection);
        }
    }

    async fn connect(&self) -> io::Result<Connection> {
        let limit = match &self.address {
            EngineAddress::Ssh { .. } => SSH_CONNECT_MAX,
            EngineAddress::Unix(_) | EngineAddress::Tcp { .. } => CONNECT_MAX,
        };
        let late = |_| {
            io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no connection within {limit:?}"),
            )
        };
        time::timeout(limit, self.connect_now())
            .await
            .map_err(late)?
    }

    async fn connect_now(&self) -> io::Result<Connection> {
        match &self.address {
            EngineAddress::Unix(path) => {
                handshake(UnixStream::connect(path).await?, None, Words::default()).await
            }
            EngineAddress::Tcp { host, port, .. } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                match &self.tls {
                    None => handshake(stream, None, Words::default()).await,
                    Some(tls) => {
                        let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
                        let stream = tls.connect(name, stream).await?;
                        handshake(stream, None, Words::default()).await
                    }
                }
            }
            EngineAddress::Ssh { destination, port } => {
                let mut child = ssh(destination, *port).spawn().map_err(|error| {
                    io::Error::new(error.kind(), format!("ssh cannot be run: {error}"))
                })?;
                let (Some(to), Some(from), Some(said)) =
                    (child.stdin.take(), child.stdout.take(), child.stderr.take())
                else {
                    return Err(io::Error::other("ssh has no standard streams"));
                };
                let words = Words::of(said);
                handshake(tokio::io::join(from, to), Some(child), words).await
            }
        }
    }
}

impl Connection {
    /// The error with what ssh has said.
    fn failed(&self, error: hyper::Error) -> io::Error {
        let words = self.words.text();
        if words.is_empty() {
            io::Error::other(error)
        } else {
            io::Error::other(format!("{error}; ssh says: {words}"))
        }
    }
}

/// Speaks HTTP over a stream. The connection lives in a task of its own until both sides are done with it, and ssh with
/// it: dropping the child ends it.
async fn handshake(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    child: Option<Child>,
    words: Words,
) -> io::Result<Connection> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    tokio::spawn(async move {
        let _child = child;
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to the engine broke");
        }
    });
    Ok(Connection { sender, words })
}

/// What the docker command line runs for the same address. It never asks for a password: nobody is there to answer.
fn ssh(destination: &str, port: Option<u16>) -> Command {
    let mut command = Command::new("ssh");
    command.args(["-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=8"]);
    if let Some(port) = port {
        command.args(["-p", &port.to_string()]);
    }
    command
        .args(["--", destination, "docker", "system", "dial-stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// The beginning of what ssh has said on its standard error.
#[derive(Clone, Default)]
struct Words(Arc<Mutex<Vec<u8>>>);

impl Words {
    fn of(said: ChildStderr) -> Self {
        let words = Self::default();
        let kept = words.clone();
        tokio::spawn(async move {
            let mut said = said;
            let mut piece = [0; 256];
            // Read to the end, so that ssh never waits for a reader.
            while let Ok(count @ 1..) = said.read(&mut piece).await {
                let mut text = kept.0.lock().unwrap_or_else(PoisonError::into_inner);
                let room = WORDS_BYTES_MAX.saturating_sub(text.len());
                text.extend_from_slice(&piece[..count.min(room)]);
            }
        });
        words
    }

    fn text(&self) -> String {
        let text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&text).trim().replace('\n', "; ")
    }
}

/// Trusts `ca.pem` alone, and shows `cert.pem`.
fn tls_config(folder: &Path) -> Result<ClientConfig, OrchestratorError> {
    let own = CertificateFiles {
        certificate: folder.join("cert.pem"),
        key: folder.join("key.pem"),
    };
    let config = Authorities::from_file(&folder.join("ca.pem"))
        .and_then(|authorities| authorities.client(Some(&own), &[]));
    config.map_err(|error| OrchestratorError::State {
        what: format!("cannot use {} for the engine", folder.display()),
        source: io::Error::new(io::ErrorKind::InvalidData, error),
    })
}
