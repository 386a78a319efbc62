//! One request on a connection of its own, in the clear or by TLS: what a stream that lasts for days needs, and no more.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_util::task::AbortOnDropHandle;

use super::XError;

/// How long the way to the server may take, with the name's look-up and TLS.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(10);

/// How long the head of an answer may take.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(30);

/// Where X is.
pub(super) struct Server {
    host: String,
    port: u16,
    /// What the `Host` header says.
    authority: HeaderValue,
    /// What stands before each path.
    prefix: String,
    tls: Option<TlsConnector>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("authority", &self.authority)
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

/// An answer, and the connection that it comes by; without the second there is no more of the first.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    pub(super) connection: AbortOnDropHandle<()>,
}

type Cause = Box<dyn Error + Send + Sync>;

impl Server {
    /// Reads `https://HOST[:PORT][/PATH]` or `http://…`.
    pub(super) fn at(base: &str) -> Result<Self, XError> {
        let wrong = || XError::Address {
            address: base.to_owned(),
        };
        let uri: Uri = base.parse().map_err(|_| wrong())?;
        let authority = uri.authority().ok_or_else(wrong)?;
        if authority.as_str().contains('@') || uri.query().is_some() {
            return Err(wrong());
        }
        let (tls, port) = match uri.scheme_str() {
            Some("https") => (Some(tls()?), 443),
            Some("http") => (None, 80),
            Some(_) | None => return Err(wrong()),
        };
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        Ok(Self {
            host,
            port: authority.port_u16().unwrap_or(port),
            authority: HeaderValue::from_str(authority.as_str()).map_err(|_| wrong())?,
            prefix: uri.path().trim_end_matches('/').to_owned(),
            tls,
        })
    }

    /// The target of a request for `path`.
    pub(super) fn target(&self, path: &str) -> String {
        format!("{}{path}", self.prefix)
    }

    /// Sends one request and waits for the head of its answer.
    pub(super) async fn send(&self, mut request: Request<Full<Bytes>>) -> Result<Answer, Cause> {
        request.headers_mut().insert(HOST, self.authority.clone());
        let connected = timeout(
            CONNECT_WAIT_MAX,
            TcpStream::connect((&*self.host, self.port)),
        );
        let stream = connected.await.map_err(|_| "no connection in time")??;
        let Some(tls) = &self.tls else {
            return exchange(stream, request).await;
        };
        let name = ServerName::try_from(self.host.clone())?;
        let secured = timeout(CONNECT_WAIT_MAX, tls.connect(name, stream));
        let stream = secured.await.map_err(|_| "no TLS in time")??;
        exchange(stream, request).await
    }
}

async fn exchange<IO>(stream: IO, request: Request<Full<Bytes>>) -> Result<Answer, Cause>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Its errors come out of the answer or its body.
    let connection = tokio::spawn(async move { connection.await.unwrap_or_default() });
    let connection = AbortOnDropHandle::new(connection);
    let answered = timeout(ANSWER_WAIT_MAX, sender.send_request(request)).await;
    Ok(Answer {
        response: answered.map_err(|_| "no answer in time")??,
        connection,
    })
}

/// TLS that trusts whom this machine trusts: the system's certificates, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`.
fn tls() -> Result<TlsConnector, XError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        return Err(XError::NoCertificates);
    }
    // The provider is named here, because a program with two of them has no default.
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring knows the versions that rustls has by default")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_an_address_with_or_without_port_and_path() {
        let server = Server::at("http://127.0.0.1:81/x/").unwrap();
        assert_eq!((server.port, &*server.target("/2")), (81, "/x/2"));
        assert_eq!(Server::at("http://[::1]").unwrap().host, "::1");
        for wrong in ["api.x.com", "ftp://a", "http://u:p@a", "http://a/?b=1", ""] {
            let refused = Server::at(wrong);
            assert!(matches!(refused, Err(XError::Address { .. })), "{wrong}");
        }
    }
}
