//! The certificate that `friday serve` shows, as its arguments name it.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use friday_tls::{Certificate, CertificateFiles};
use tokio_util::sync::CancellationToken;

use super::given;
use crate::cli::{Usage, path};

/// TLS of our own.
#[derive(Debug, Clone, clap::Args)]
pub struct TlsArgs {
    /// Speak TLS, with the certificate in this PEM file, those between it and the root behind it; read again whenever it
    /// changes
    #[arg(
        long,
        env = "FRIDAY_TLS_CERT",
        hide_env_values = true,
        value_parser = path(),
        value_name = "FILE"
    )]
    pub tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert, PEM
    #[arg(
        long,
        env = "FRIDAY_TLS_KEY",
        hide_env_values = true,
        value_parser = path(),
        value_name = "FILE"
    )]
    pub tls_key: Option<PathBuf>,
}

impl TlsArgs {
    /// The files, if there are any. An empty variable is one that is not set.
    ///
    /// # Errors
    /// One of them is missing.
    pub(super) fn files(&self) -> Result<Option<CertificateFiles>, Usage> {
        let half = |there: &str, missing: &str| {
            Usage(format!(
                "{there} without {missing}: a certificate and its key go together"
            ))
        };
        match (given(&self.tls_cert), given(&self.tls_key)) {
            (Some(certificate), Some(key)) => Ok(Some(CertificateFiles {
                certificate: certificate.clone(),
                key: key.clone(),
            })),
            (None, None) => Ok(None),
            (Some(_), None) => Err(half("--tls-cert", "--tls-key")),
            (None, Some(_)) => Err(half("--tls-key", "--tls-cert")),
        }
    }

    /// The certificate, if there is one; its files are looked at until `stop`.
    ///
    /// # Errors
    /// It cannot be used.
    pub(super) fn open(
        &self,
        stop: &CancellationToken,
    ) -> anyhow::Result<Option<Arc<Certificate>>> {
        let Some(files) = self.files()? else {
            return Ok(None);
        };
        let certificate = Arc::new(Certificate::load(files).context("--tls-cert and --tls-key")?);
        tokio::spawn(Arc::clone(&certificate).keep_watch(stop.child_token()));
        Ok(Some(certificate))
    }
}
