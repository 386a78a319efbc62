//! What a server shows its clients.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{MissedTickBehavior, interval};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::pem::{TlsError, certificates, private_key};
use crate::provider;

/// Between two looks whether the files have changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// The files of a certificate, both in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, then those between it and the root.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What clients are shown. Replaced while it is in use: connections keep the one they began with.
pub struct Certificate {
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
    pub fn load(files: CertificateFiles) -> Result<Self, TlsError> {
        let config = ArcSwap::from(server_config(&files)?);
        Ok(Self { files, config })
    }

    /// Agrees on TLS with a client, and on HTTP/2 or HTTP/1.1 where it offers both.
    ///
    /// # Errors
    /// The client wants something else, or broke off.
    pub async fn accept<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        TlsAcceptor::from(self.config.load_full())
            .accept(stream)
            .await
    }

    /// Reads the files again. If they cannot be used, the old certificate stays.
    fn reload(&self) {
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
    pub async fn keep_watch(self: Arc<Self>, stop: CancellationToken) {
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
    let unfit = |source| TlsError::Unfit {
        path: files.certificate.clone(),
        source,
    };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(unfit)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unfit)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// An error with what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
