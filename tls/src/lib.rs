//! TLS between the parts of Friday, and with the world: the certificate that a server shows, the authorities that a client
//! trusts, and words for what goes wrong between the two.
//!
//! TLS 1.3 and 1.2, by rustls with one provider of cryptography. What is spoken inside is left to others, and so are limits of
//! time: whoever waits for the other side knows for how long.

mod authorities;
mod certificate;
mod pem;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod trouble;

use std::sync::Arc;

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};

pub use authorities::{Authorities, server_name, unverified_client};
pub use certificate::{Certificate, CertificateFiles};
pub use pem::{TlsError, certificates, private_key};
pub use trouble::Trouble;

/// Named wherever it is needed: a program that is linked with two of them has no default.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
