//! TLS towards upstreams and the controller: what is asked of them, and shown to them. What clients are shown is the crate
//! `friday-tls`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use friday_tls::{Authorities, server_name};
pub use friday_tls::{Certificate, CertificateFiles, TlsError};
use proxy_api::{Protocol, Transport};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use xxhash_rust::xxh3::Xxh3;

use crate::socket::Socket;
use crate::stream::Stream;

/// Why TLS cannot be asked for as it was written.
#[derive(Debug, thiserror::Error)]
pub enum AskingError {
    /// A file that cannot be used.
    #[error(transparent)]
    File(#[from] TlsError),
    /// A certificate for endpoints without its key, or a key without its certificate.
    #[error("certificate_file and key_file go together; one of them is missing")]
    Half,
    /// Not a host name or an address.
    #[error("{0:?} is no host name that a certificate could have")]
    Name(String),
}

/// What is asked of the endpoints of a route, or of the controller, and shown to them.
#[derive(Debug, Clone)]
pub(crate) struct Asking {
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
    /// What tells the contents of its files from others.
    files: u64,
}

impl Asking {
    /// Reads the files that the table names. Blocks on the disk.
    ///
    /// # Errors
    /// See [`AskingError`].
    pub(crate) fn load(transport: &Transport) -> Result<Option<Self>, AskingError> {
        let Some(tls) = &transport.tls else {
            return Ok(None);
        };
        let own = match (&tls.certificate_file, &tls.key_file) {
            (Some(certificate), Some(key)) => Some(CertificateFiles {
                certificate: PathBuf::from(certificate),
                key: PathBuf::from(key),
            }),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => return Err(AskingError::Half),
        };
        let alpn = match transport.protocol {
            Protocol::Http1 => "http/1.1",
            Protocol::H2 => "h2",
        };
        // Before they are loaded: what changes in between is seen as a change the next time.
        let all = [
            Some(&tls.ca_file),
            tls.certificate_file.as_ref(),
            tls.key_file.as_ref(),
        ];
        let files = fingerprint(all.into_iter().flatten());
        let authorities = Authorities::from_file(Path::new(&tls.ca_file))?;
        let config = authorities.client(own.as_ref(), &[alpn])?;
        Self::of(&tls.server_name, config, files).map(Some)
    }

    /// What is asked of a controller: a certificate for `host` of one of the authorities in `ca`, or of those that the
    /// system trusts. Blocks on the disk.
    ///
    /// # Errors
    /// See [`AskingError`].
    pub(crate) fn controller(host: &str, ca: Option<&Path>) -> Result<Self, AskingError> {
        let authorities = match ca {
            Some(file) => Authorities::from_file(file)?,
            None => Authorities::of_system()?,
        };
        Self::of(host, authorities.client(None, &["http/1.1"])?, 0)
    }

    fn of(host: &str, config: ClientConfig, files: u64) -> Result<Self, AskingError> {
        let name = server_name(host).ok_or_else(|| AskingError::Name(host.to_owned()))?;
        let config = Arc::new(config);
        Ok(Self {
            name,
            config,
            files,
        })
    }

    /// Another number when its files had other contents; 0 for a controller's.
    pub(crate) fn files(&self) -> u64 {
        self.files
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

/// A number of what is in these files. One that cannot be read is as if it were empty: whoever loads it says why.
fn fingerprint<'a>(files: impl Iterator<Item = &'a String>) -> u64 {
    let mut hash = Xxh3::new();
    for file in files {
        let content = std::fs::read(file).unwrap_or_default();
        hash.update(&content.len().to_le_bytes());
        hash.update(&content);
    }
    hash.digest()
}
