//! How requests get to a controller: HTTP/1.1, by TLS where its address says https.
//!
//! Of our own, because the HTTP client of the other adapters is built without TLS: with it, every one of them would have
//! to be told whom to trust, or fail.

use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use friday_tls::{Authorities, TlsError, Trouble, server_name, unverified_client};
use http::header::{PROXY_AUTHORIZATION, USER_AGENT};
use http::{HeaderValue, Request, Response, Uri, uri::Scheme};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rollout::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tower::Service;

/// Longest wait for a connection, TLS included. A controller in the same data centre answers in milliseconds.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// How long a connection is kept for the next request. The controller lets go of it after 30 s.
const IDLE_MAX: Duration = Duration::from_secs(20);

/// Most connections that are kept: requests come one after the other, beside a stream.
const IDLE_CONNECTIONS_MAX: usize = 4;

/// What is spoken by TLS.
const ALPN: [&str; 1] = ["http/1.1"];

/// Who a server at https:// may be.
#[derive(Debug)]
pub(crate) enum Trust {
    /// Whoever shows a certificate of these authorities for the name it is asked by.
    Signed(Authorities),
    /// Anybody: see [`unverified_client`].
    Anybody,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// None within this time.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// No connection, or one that broke.
    #[error("the request got no answer")]
    Failed(#[source] legacy::Error),
    /// The connection broke while the answer was read.
    #[error("the answer broke off")]
    Broken(#[source] hyper::Error),
}

impl TransportError {
    /// Whether there was no connection at all: then nobody can have heard of the request.
    #[must_use]
    pub fn is_unsent(&self) -> bool {
        match self {
            Self::Failed(error) => error.is_connect(),
            Self::Late(_) | Self::Broken(_) => false,
        }
    }

    /// What is wrong with TLS, if that is it.
    #[must_use]
    pub fn trouble(&self) -> Option<&Trouble> {
        let Self::Failed(error) = self else {
            return None;
        };
        let mut cause = error.source();
        while let Some(error) = cause {
            if let Some(trouble) = error.downcast_ref() {
                return Some(trouble);
            }
            cause = error.source();
        }
        None
    }
}

/// Sends requests, and keeps connections for the next ones.
#[derive(Debug, Clone)]
pub(crate) struct Transport {
    client: legacy::Client<Connector, Full<Bytes>>,
    proxies: Option<Arc<Matcher>>,
}

impl Transport {
    /// A transport that has connected to nobody yet. `trust` may be left out where no address is https://. Requests to
    /// other machines go through the proxy that the environment names, if it names one.
    ///
    /// # Errors
    /// The authorities cannot be used.
    pub(crate) fn new(trust: Option<Trust>, is_loopback: bool) -> Result<Self, TlsError> {
        let tls = match trust {
            None => None,
            Some(Trust::Signed(authorities)) => Some(authorities.client(None, &ALPN)?),
            Some(Trust::Anybody) => Some(unverified_client(&ALPN)),
        };
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let proxies = (!is_loopback).then(|| Arc::new(Matcher::from_env()));
        let connector = Connector {
            tcp,
            tls: tls.map(|config| TlsConnector::from(Arc::new(config))),
            proxies: proxies.clone(),
        };
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .build(connector);
        Ok(Self { client, proxies })
    }

    /// Sends a request to the whole address that is its target, and waits for the head of the answer; for how long, its
    /// caller says.
    ///
    /// # Errors
    /// See [`TransportError`].
    pub(crate) async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, TransportError> {
        let us = concat!("friday/", env!("CARGO_PKG_VERSION"));
        request
            .headers_mut()
            .insert(USER_AGENT, HeaderValue::from_static(us));
        // A proxy of https:// is only told where to connect.
        if request.uri().scheme() == Some(&Scheme::HTTP)
            && let Some(proxy) = intercept(self.proxies.as_deref(), request.uri())
            && let Some(shown) = proxy.basic_auth()
        {
            let shown = shown.clone();
            request.headers_mut().insert(PROXY_AUTHORIZATION, shown);
        }
        self.client
            .request(request)
            .await
            .map_err(TransportError::Failed)
    }
}

/// Whether a host of an address is this machine by name or number.
pub(crate) fn is_loopback(host: &str) -> bool {
    let bare = host.trim_matches(['[', ']']);
    bare == "localhost" || bare.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

fn intercept(proxies: Option<&Matcher>, target: &Uri) -> Option<Intercept> {
    proxies.and_then(|proxies| proxies.intercept(target))
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("no connection within {CONNECT_MAX:?}")]
    Late,
    #[error("no connection")]
    Tcp(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("no connection through the proxy that the environment names")]
    Proxy(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("no TLS")]
    Tls(#[from] Trouble),
    #[error("the connection broke while TLS was agreed on")]
    Broken(#[source] io::Error),
    #[error("{0:?} is no name that a certificate could have")]
    Name(String),
}

/// Makes connections.
#[derive(Clone)]
struct Connector {
    tcp: HttpConnector,
    tls: Option<TlsConnector>,
    proxies: Option<Arc<Matcher>>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let connecting = timeout(CONNECT_MAX, connector.connect(target));
            connecting.await.map_err(|_| ConnectError::Late)?
        })
    }
}

impl Connector {
    async fn connect(mut self, target: Uri) -> Result<TokioIo<Stream>, ConnectError> {
        let proxy = intercept(self.proxies.as_deref(), &target);
        let is_tls = target.scheme() == Some(&Scheme::HTTPS);
        let (stream, is_proxied) = match proxy {
            None => {
                let made = self.tcp.call(target.clone()).await;
                (
                    made.map_err(|error| ConnectError::Tcp(error.into()))?,
                    false,
                )
            }
            Some(proxy) if is_tls => {
                let mut tunnel = Tunnel::new(proxy.uri().clone(), self.tcp);
                if let Some(shown) = proxy.basic_auth() {
                    tunnel = tunnel.with_auth(shown.clone());
                }
                let made = tunnel.call(target.clone()).await;
                (
                    made.map_err(|error| ConnectError::Proxy(error.into()))?,
                    false,
                )
            }
            Some(proxy) => {
                let made = self.tcp.call(proxy.uri().clone()).await;
                (
                    made.map_err(|error| ConnectError::Proxy(error.into()))?,
                    true,
                )
            }
        };
        let io: Box<dyn Io> = match self.tls {
            Some(tls) if is_tls => {
                let host = target.host().unwrap_or_default();
                let name = server_name(host).ok_or_else(|| ConnectError::Name(host.to_owned()))?;
                let agreed = tls.connect(name, stream.into_inner()).await;
                Box::new(agreed.map_err(|error| match Trouble::of(&error) {
                    Some(trouble) => ConnectError::Tls(trouble),
                    None => ConnectError::Broken(error),
                })?)
            }
            // Its caller was to say whom to trust; nothing goes there in the clear.
            None if is_tls => return Err(ConnectError::Name(target.to_string())),
            Some(_) | None => Box::new(stream.into_inner()),
        };
        Ok(TokioIo::new(Stream { io, is_proxied }))
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection, by TLS or not.
struct Stream {
    io: Box<dyn Io>,
    /// Whether a proxy reads the requests, which then name whole addresses.
    is_proxied: bool,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.is_proxied)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
