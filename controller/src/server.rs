//! The listening side of the HTTP API: takes connections, agrees on TLS where there is a certificate, serves, lets go.
//!
//! What a silent or slow client costs is limited: it holds one of [`CONNECTIONS_MAX`] places, and each of its steps has its
//! time. Connections are served beside each other, and so is agreeing on TLS.

#[cfg(test)]
mod tests;
mod watched;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use axum::Router;
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use friday_tls::Certificate;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use proxy_api::TLS_REQUIRED;
use rollout::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::api::error::ApiError;
use watched::Watched;

/// Most connections at a time; more wait in the kernel's queue. A proxy has two and an agent one, and many a system gives a
/// process 1 024 descriptors for everything.
const CONNECTIONS_MAX: usize = 800;

/// Longest time in which a client agrees on TLS: four packets, and a signature on a busy machine.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Longest time for the head of a request, from the end of the one before it on.
const HEAD_MAX: Duration = Duration::from_secs(30);

/// Longest time in which nothing is read and nothing written. A long poll is silent for 30 s, a stream for 10 s.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// Most requests at a time on one connection of HTTP/2.
const STREAMS_MAX: u32 = 100;

/// Pause after accepting failed, most likely for want of file descriptors: they come back as clients leave.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Most that is read of the body of a request in the clear. What is left unread makes the kernel cut the connection, and
/// the answer with it.
const REFUSED_BYTES_MAX: usize = 1 << 20;

/// What the first byte of a client of TLS says: a record of the handshake (RFC 8446, 5.1).
const HANDSHAKE: u8 = 22;

/// Where clients come in.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    certificate: Option<Arc<Certificate>>,
}

impl From<TcpListener> for Server {
    /// In the clear.
    fn from(listener: TcpListener) -> Self {
        Self {
            listener,
            certificate: None,
        }
    }
}

impl Server {
    /// By TLS if there is a certificate, else in the clear.
    #[must_use]
    pub fn new(listener: TcpListener, certificate: Option<Arc<Certificate>>) -> Self {
        Self {
            listener,
            certificate,
        }
    }

    /// Serves until `stop`, and then until every request has its answer.
    ///
    /// # Cancel safety
    /// Dropped, it cuts every connection.
    pub(crate) async fn serve(self, router: Router, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let serving = Serving {
            router,
            certificate: self.certificate,
            stop: stop.clone(),
        };
        let mut connections = JoinSet::new();
        while let Some((stream, peer, place)) = stop
            .run_until_cancelled(accept(&self.listener, &places))
            .await
        {
            while connections.try_join_next().is_some() {}
            let serving = serving.clone();
            connections.spawn(async move {
                serving.client(stream, peer).await;
                drop(place);
            });
        }
        drop(self.listener);
        while connections.join_next().await.is_some() {}
    }
}

/// The next client, when there is a place for it.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    let place = Arc::clone(places).acquire_owned().await;
    let place = place.expect("nobody closes the semaphore");
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer, place),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// What each connection is served with.
#[derive(Clone)]
struct Serving {
    router: Router,
    certificate: Option<Arc<Certificate>>,
    stop: CancellationToken,
}

impl Serving {
    async fn client(self, stream: TcpStream, peer: SocketAddr) {
        // Small answers must not wait for an acknowledgement. Without it things are slower, not wrong.
        drop(stream.set_nodelay(true));
        let Some(certificate) = &self.certificate else {
            return self.http1(stream, peer).await;
        };
        let agreeing = async {
            if is_clear(&stream).await? {
                refuse(stream, peer).await;
                return Ok(None);
            }
            certificate.accept(stream).await.map(Some)
        };
        let agreeing = timeout(HANDSHAKE_MAX, agreeing);
        match self.stop.run_until_cancelled(agreeing).await {
            Some(Ok(Ok(Some(stream)))) => {
                if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                    self.http2(stream, peer).await;
                } else {
                    self.http1(stream, peer).await;
                }
            }
            Some(Ok(Err(error))) => tracing::debug!(%peer, %error, "a client did not agree on TLS"),
            Some(Err(_)) => tracing::debug!(%peer, "a client did not agree on TLS in time"),
            Some(Ok(Ok(None))) | None => {}
        }
    }

    async fn http1(&self, stream: impl AsyncRead + AsyncWrite + Unpin, peer: SocketAddr) {
        let stream = TokioIo::new(Watched::new(stream, SILENCE_MAX));
        let service = TowerToHyperService::new(self.router.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_MAX)
            .serve_connection(stream, service);
        let mut connection = pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return note(peer, ended),
            () = self.stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        note(peer, connection.await);
    }

    async fn http2(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        peer: SocketAddr,
    ) {
        let stream = TokioIo::new(Watched::new(stream, SILENCE_MAX));
        let service = TowerToHyperService::new(self.router.clone());
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .serve_connection(stream, service);
        let mut connection = pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return note(peer, ended),
            () = self.stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        note(peer, connection.await);
    }
}

/// Whether a client begins with anything but TLS.
async fn is_clear(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    match stream.peek(&mut first).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(first[0] != HANDSHAKE),
    }
}

/// Tells a client that speaks HTTP in the clear what to do.
async fn refuse(stream: TcpStream, peer: SocketAddr) {
    let service = service_fn(move |request: Request<Incoming>| refusal(request, peer));
    let ended = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    note(peer, ended);
}

async fn refusal(request: Request<Incoming>, peer: SocketAddr) -> Result<Response, Infallible> {
    if request.headers().contains_key(header::AUTHORIZATION) {
        tracing::warn!(%peer, "a token came in the clear and was not looked at: whoever listened has it, so make a new one");
    }
    drop(
        Limited::new(request.into_body(), REFUSED_BYTES_MAX)
            .collect()
            .await,
    );
    let detail = "this port speaks TLS, and nothing is answered in the clear; use https:// in place of http://";
    Ok(ApiError::new(StatusCode::BAD_REQUEST, TLS_REQUIRED, detail).into_response())
}

/// A connection that broke is its client's business, and worth a line only for whoever looks for it.
fn note(peer: SocketAddr, ended: Result<(), impl fmt::Display>) {
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a connection ended");
    }
}
