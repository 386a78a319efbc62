//! The token by which the controller knows this proxy, out of a file.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderValue;
use tracing::{error, info};

use crate::chain;

/// Longest token, in bytes.
const TOKEN_BYTES_MAX: usize = 1024;

/// Largest file: a token and the blanks around it.
const FILE_BYTES_MAX: u64 = 2 * TOKEN_BYTES_MAX as u64;

/// Why a file holds no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It is not there, or cannot be read.
    #[error("cannot read the token of {path}; --token-file changes it", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It holds something else. That is not repeated.
    #[error(
        "{path} holds no token; expected up to {TOKEN_BYTES_MAX} visible ASCII characters without blanks, as `friday token` prints them",
        path = .0.display()
    )]
    Malformed(PathBuf),
}

/// The token as it goes into requests. Nothing prints it.
pub(crate) struct Token {
    file: PathBuf,
    header: ArcSwap<HeaderValue>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl Token {
    /// Reads the file. Blocks on the disk.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub(crate) fn open(file: &Path) -> Result<Self, TokenError> {
        Ok(Self {
            file: file.to_owned(),
            header: ArcSwap::from_pointee(read(file)?),
        })
    }

    /// What goes into `Authorization`.
    pub(crate) fn header(&self) -> HeaderValue {
        HeaderValue::clone(&self.header.load())
    }

    /// Reads the file again, because the controller knows `refused` no more. If it holds none, that one stays.
    pub(crate) async fn reread(self: &Arc<Self>, refused: &HeaderValue) {
        let own = Arc::clone(self);
        let reading = tokio::task::spawn_blocking(move || read(&own.file));
        match reading.await {
            Ok(Ok(header)) if header != *refused => {
                self.header.store(Arc::new(header));
                info!(file = %self.file.display(), "the token was read again");
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => error!(error = %chain(&error), "the token stays as it was"),
            Err(error) => error!(%error, "the token stays as it was"),
        }
    }
}

fn read(file: &Path) -> Result<HeaderValue, TokenError> {
    let mut bytes = Vec::new();
    File::open(file)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|source| TokenError::Read {
            path: file.to_owned(),
            source,
        })?;
    let text = String::from_utf8_lossy(&bytes);
    let token = text.trim();
    let is_whole = bytes.len() as u64 <= FILE_BYTES_MAX;
    let fits = is_whole && (1..=TOKEN_BYTES_MAX).contains(&token.len());
    let is_plain = token.bytes().all(|byte| byte.is_ascii_graphic());
    let header = (fits && is_plain)
        .then(|| HeaderValue::try_from(format!("Bearer {token}")).ok())
        .flatten();
    let mut header = header.ok_or_else(|| TokenError::Malformed(file.to_owned()))?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reads_a_token_and_reads_it_again_when_it_was_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        assert!(matches!(Token::open(&file), Err(TokenError::Read { .. })));
        // A token, and something else far behind it.
        let much = format!("s3cret{}x", " ".repeat(2 * TOKEN_BYTES_MAX));
        for wrong in [
            "",
            " \n",
            "a b",
            "ä",
            &"x".repeat(TOKEN_BYTES_MAX + 1),
            &much,
        ] {
            std::fs::write(&file, wrong).unwrap();
            let refused = Token::open(&file).unwrap_err();
            assert!(matches!(refused, TokenError::Malformed(_)), "{wrong}");
        }
        std::fs::write(&file, "s3cret\n").unwrap();
        let token = Arc::new(Token::open(&file).unwrap());
        let before = token.header();
        assert_eq!(before, "Bearer s3cret");
        assert!(!format!("{token:?}{before:?}").contains("s3cret"));
        std::fs::write(&file, "").unwrap();
        token.reread(&before).await;
        assert_eq!(token.header(), before);
        std::fs::write(&file, "next").unwrap();
        token.reread(&before).await;
        assert_eq!(token.header(), "Bearer next");
    }
}
