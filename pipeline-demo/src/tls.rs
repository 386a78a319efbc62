//! The cryptography of TLS, chosen once for each process: `ring`, as the proxy has it.

use tokio_rustls::rustls::crypto::ring::default_provider;

/// Makes sure that HTTP clients can be built; does nothing where it was done before.
pub fn ensure_provider() {
    // Refused only when there is one already.
    default_provider().install_default().ok();
}
