//! TLS on either side: the certificate shown to clients, and what is asked of upstreams.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use proxy_api::{Protocol, Transport};
use tokio::time::{MissedTickBehavior, interval};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::chain;
use crate::socket::Socket;
use crate::stream::Stream;

/// Between two looks whether the files have changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Why a certificate or a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that is not there, or not what it should be.
    #[error("cannot read {what} from {path}", path = .path.display())]
    Pem {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: pem::Error,
    },
    /// A file with no certificate in it.
    #[error("{path} holds no certificate; expected PEM blocks that begin with BEGIN CERTIFICATE", path = .0.display())]
    Empty(PathBuf),
    /// A certificate for endpoints without its key, or a key without its certificate.
    #[error("certificate_file and key_file go together; one of them is missing")]
    Half,
    /// Not a host name or an address.
    #[error("server_name {0:?} is no host name")]
    Name(String),
    /// Key and certificate that do not fit, or an algorithm that is not known.
    #[error("the certificate of {path} cannot be used", path = .path.display())]
    Unfit {
        /// The file of the certificate.
        path: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
}

/// The files of a certificate, both in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, then those between it and the root.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What clients are shown. Replaced while it is in use: connections keep the one they began with.
pub(crate) struct Certificate {
    files: CertificateFiles,
    config: ArcSwap<ServerConfig>,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl Certificate {
    /// Reads both files. Blocks on the disk.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub(crate) fn load(files: CertificateFiles) -> Result<Self, TlsError> {
        let config = ArcSwap::from(server_config(&files)?);
        Ok(Self { files, config })
    }

    /// Agrees on TLS with a client.
    ///
    /// # Errors
    /// The client wants something else, or broke off.
    pub(crate) async fn accept(&self, stream: Socket) -> io::Result<TlsStream<Socket>> {
        TlsAcceptor::from(self.config.load_full())
            .accept(stream)
            .await
    }

    /// Reads the files again. If they cannot be used, the old certificate stays.
    pub(crate) fn reload(&self) {
        match server_config(&self.files) {
            Ok(config) => {
                self.config.store(config);
                info!(file = %self.files.certificate.display(), "a new certificate is in use");
            }
            Err(error) => {
                error!(error = %chain(&error), "the new certificate is refused, the old one stays in use");
            }
        }
    }

    /// Reads the files again whenever they change, until `stop`.
    pub(crate) async fn keep_watch(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = self.changed();
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let now = self.changed();
            if now != seen {
                seen = now;
                self.reload();
            }
        }
    }

    fn changed(&self) -> [Option<SystemTime>; 2] {
        let changed = |path: &Path| {
            std::fs::metadata(path)
                .and_then(|file| file.modified())
                .ok()
        };
        [changed(&self.files.certificate), changed(&self.files.key)]
    }
}

fn server_config(files: &CertificateFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates(&files.certificate)?;
    let key = private_key(&files.key)?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|source| TlsError::Unfit {
            path: files.certificate.clone(),
            source,
        })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// What is asked of the endpoints of a route, and shown to them.
#[derive(Debug, Clone)]
pub(crate) struct Asking {
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
}

impl Asking {
    /// Reads the files that the table names. Blocks on the disk.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub(crate) fn load(transport: &Transport) -> Result<Option<Self>, TlsError> {
        let Some(tls) = &transport.tls else {
            return Ok(None);
        };
        let unfit = |path: &str| {
            let path = PathBuf::from(path);
            move |source| TlsError::Unfit { path, source }
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(Path::new(&tls.ca_file))? {
            roots.add(certificate).map_err(unfit(&tls.ca_file))?;
        }
        let config = ClientConfig::builder().with_root_certificates(roots);
        let mut config = match (&tls.certificate_file, &tls.key_file) {
            (Some(certificate), Some(key)) => config
                .with_client_auth_cert(
                    certificates(Path::new(certificate))?,
                    private_key(Path::new(key))?,
                )
                .map_err(unfit(certificate))?,
            (None, None) => config.with_no_client_auth(),
            (Some(_), None) | (None, Some(_)) => return Err(TlsError::Half),
        };
        config.alpn_protocols = match transport.protocol {
            Protocol::Http1 => vec![b"http/1.1".to_vec()],
            Protocol::H2 => vec![b"h2".to_vec()],
        };
        let name = ServerName::try_from(tls.server_name.clone())
            .map_err(|_| TlsError::Name(tls.server_name.clone()))?;
        Ok(Some(Self {
            name,
            config: Arc::new(config),
        }))
    }

    /// Agrees on TLS with an endpoint.
    ///
    /// # Errors
    /// It is not who it should be, wants something else, or broke off.
    pub(crate) async fn connect(&self, stream: Socket) -> io::Result<Stream> {
        let stream = TlsConnector::from(Arc::clone(&self.config))
            .connect(self.name.clone(), stream)
            .await?;
        Ok(Stream::Tls(Box::new(stream.into())))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |source| TlsError::Pem {
        what: "a certificate",
        path: path.to_owned(),
        source,
    };
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .map_err(failed)?
        .collect();
    match all.map_err(failed)? {
        none if none.is_empty() => Err(TlsError::Empty(path.to_owned())),
        all => Ok(all),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|source| TlsError::Pem {
        what: "a private key",
        path: path.to_owned(),
        source,
    })
}
