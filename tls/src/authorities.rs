//! Whom a client trusts to say who a server is.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use crate::certificate::CertificateFiles;
use crate::pem::{TlsError, certificates, private_key};
use crate::provider;

/// The authorities that a client trusts.
#[derive(Debug)]
pub struct Authorities {
    roots: RootCertStore,
    /// Where they are from, for messages.
    from: PathBuf,
}

impl Authorities {
    /// Those of a PEM file, and no others. Blocks on the disk.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn from_file(path: &Path) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|source| TlsError::Unfit {
                path: path.to_owned(),
                source,
            })?;
        }
        let from = path.to_owned();
        Ok(Self { roots, from })
    }

    /// Those that this system trusts. Blocks on the disk.
    ///
    /// # Errors
    /// There are none.
    pub fn of_system() -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        let (usable, _) = roots.add_parsable_certificates(found.certs);
        if usable == 0 {
            return Err(TlsError::NoneOfSystem);
        }
        let from = PathBuf::from("the system");
        Ok(Self { roots, from })
    }

    /// A client that verifies servers, their names too, and shows `own` to those that ask who it is. `alpn` is what it
    /// speaks, the best first. Blocks on the disk if there is an `own`.
    ///
    /// # Errors
    /// `own` cannot be used.
    pub fn client(
        self,
        own: Option<&CertificateFiles>,
        alpn: &[&str],
    ) -> Result<ClientConfig, TlsError> {
        let shown = own.map_or(self.from, |files| files.certificate.clone());
        let unfit = |source| TlsError::Unfit {
            path: shown.clone(),
            source,
        };
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(unfit)?
            .with_root_certificates(self.roots);
        let config = match own {
            None => config.with_no_client_auth(),
            Some(files) => config
                .with_client_auth_cert(certificates(&files.certificate)?, private_key(&files.key)?)
                .map_err(unfit)?,
        };
        Ok(speaking(config, alpn))
    }
}

/// A client that takes any server for the one it asked for. Only for what is said on loopback, says no secret, and is no
/// command: whether something answers there at all.
#[must_use]
pub fn unverified_client(alpn: &[&str]) -> ClientConfig {
    let provider = provider();
    let verifier = Arc::new(Unverified(Arc::clone(&provider)));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring knows the versions that rustls has by default")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    speaking(config, alpn)
}

/// The name that a server's certificate must have: a host name, or an address with or without its brackets.
#[must_use]
pub fn server_name(host: &str) -> Option<ServerName<'static>> {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    ServerName::try_from(bare.unwrap_or(host).to_owned()).ok()
}

fn speaking(mut config: ClientConfig, alpn: &[&str]) -> ClientConfig {
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

/// Believes whatever a server says it is; that it has the key of the certificate it shows is checked all the same.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _between: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
