//! Certificates and keys out of files.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Largest file. All the authorities that a system trusts are 220 KiB.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Why a certificate, a key or an authority cannot be used.
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
    /// A file that is something else.
    #[error("{path} is longer than {FILE_BYTES_MAX} bytes; expected PEM blocks", path = .0.display())]
    TooLong(PathBuf),
    /// Key and certificate that do not fit, or an algorithm that is not known.
    #[error("the certificate of {path} cannot be used", path = .path.display())]
    Unfit {
        /// The file of the certificate.
        path: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// A system that has no certificates of authorities, as in an image that holds one program.
    #[error("no authority is trusted on this system: it has no certificates of any")]
    NoneOfSystem,
}

/// The certificates in a PEM file, in their order. Blocks on the disk.
///
/// # Errors
/// See [`TlsError`].
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let what = "a certificate";
    let bytes = read(path, what)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match all.map_err(|source| failed(path, what, source))? {
        none if none.is_empty() => Err(TlsError::Empty(path.to_owned())),
        all => Ok(all),
    }
}

/// The private key in a PEM file. Blocks on the disk.
///
/// # Errors
/// See [`TlsError`].
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let what = "a private key";
    let bytes = read(path, what)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|source| failed(path, what, source))
}

fn failed(path: &Path, what: &'static str, source: pem::Error) -> TlsError {
    TlsError::Pem {
        what,
        path: path.to_owned(),
        source,
    }
}

fn read(path: &Path, what: &'static str) -> Result<Vec<u8>, TlsError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| failed(path, what, pem::Error::Io(error)))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(TlsError::TooLong(path.to_owned()));
    }
    Ok(bytes)
}
